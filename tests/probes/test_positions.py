"""Heat maps against loops over states, and against curves of one step or one range."""

import math
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from opdprobe.errors import ConfigError
from opdprobe.probes import curve, heat_map
from opdprobe.testing import synthetic_run, synthetic_step

STEPS = [0, 3, 10]
LENGTHS = {0: [5, 1, 8, 3], 3: [2, 0, 2, 1], 10: [9, 9, 4, 0]}


def states(steps=STEPS):
    """States of several steps in one Dataset; the longest response differs from step to step."""
    parts = [synthetic_step(s, n_rollouts=4, length=LENGTHS[s], agreement=0.3) for s in steps]
    flat = [part.drop_dims(["rollout", "prompt_token", "response_token"]) for part in parts]
    return xr.concat(flat, "state", combine_attrs="drop_conflicts")


def patchy(ds):
    """A reverse KL with holes: position 1 everywhere, position 4 of rollout 0."""
    return ds.opd.reverse_kl().where(
        (ds.position != 1) & ((ds.position != 4) | (ds["rollout"] != 0))
    )


def by_hand(ds, probe, start, stop, step):
    """Values of the states in one cell."""
    values = probe(ds).values
    return [
        float(values[i])
        for i in range(ds.sizes["state"])
        if ds.step.values[i] == step and start <= ds.position.values[i] < stop
    ]


@pytest.mark.parametrize("bins", [None, 1, 2, 4, 9, 30, [0, 2, 3, 20], [1.5, 4.5]])
def test_a_cell_is_the_mean_over_its_states(bins):
    ds = states()
    found = heat_map(ds, patchy, bins=bins)
    assert found["value"].dims == ("position", "step")
    np.testing.assert_array_equal(found.step, STEPS)
    for p in range(found.sizes["position"]):
        start, stop = found.position_start.values[p], found.position_stop.values[p]
        assert found.position.values[p] == (start + stop - 1) / 2
        for s, step in enumerate(STEPS):
            values = by_hand(ds, patchy, start, stop, step)
            known = [v for v in values if not math.isnan(v)]
            assert found.n.values[p, s] == len(known)
            assert found.n_missing.values[p, s] == len(values) - len(known)
            want = sum(known) / len(known) if known else math.nan
            assert found.value.values[p, s] == pytest.approx(want, nan_ok=True)


@given(
    lengths=st.lists(
        st.lists(st.integers(0, 6), min_size=1, max_size=3), min_size=1, max_size=3
    ).filter(lambda steps: any(map(sum, steps))),
    bins=st.one_of(st.none(), st.integers(1, 8)),
)
@settings(max_examples=40, deadline=None)
@pytest.mark.slow
def test_rows_and_columns_are_those_of_curves(lengths, bins):
    parts = [
        synthetic_step(i, n_rollouts=len(row), length=row, k=2, vocab_size=4)
        for i, row in enumerate(lengths)
    ]
    flat = [part.drop_dims(["rollout", "prompt_token", "response_token"]) for part in parts]
    ds = xr.concat(flat, "state", combine_attrs="drop_conflicts")
    found = heat_map(ds, "reverse_kl", bins=bins)
    by_position = curve(ds, "reverse_kl", by="position", bins=bins, n_boot=100)
    np.testing.assert_array_equal(found.position_start, by_position.position_start)
    np.testing.assert_array_equal(found.position_stop, by_position.position_stop)
    by_step = curve(ds, "reverse_kl", n_boot=100)
    for dim, other in (("step", by_position), ("position", by_step)):
        n = found["n"].sum(dim)
        np.testing.assert_array_equal(n, other["n"])
        mean = (found["value"].fillna(0) * found["n"]).sum(dim) / n
        np.testing.assert_allclose(mean, other["value"])


def test_a_run_is_read_once_and_gives_what_its_states_give(tmp_path, monkeypatch):
    run = synthetic_run(tmp_path / "run", STEPS, n_rollouts=3, length=[4, 0, 7])
    lazy, loads, load = run.states(), [], type(run).load

    def counted(run, step):
        loads.append(step)
        return load(run, step)

    monkeypatch.setattr(type(run), "load", counted)
    for bins in (None, 3):
        loads.clear()
        from_run = heat_map(run, "entropy_gap", bins=bins)
        assert loads == STEPS
        xr.testing.assert_allclose(heat_map(lazy, "entropy_gap", bins=bins), from_run)


def test_order_of_states_does_not_matter():
    ds = states()
    order = np.random.default_rng(0).permutation(ds.sizes["state"])
    xr.testing.assert_allclose(heat_map(ds.isel(state=order), patchy), heat_map(ds, patchy))


def test_positions_that_no_response_reaches_have_no_row_unless_requested():
    ds = states().isel(state=states().position.values != 2)
    np.testing.assert_array_equal(heat_map(ds, patchy).position, [0, 1, 3, 4, 5, 6, 7, 8])
    beyond = heat_map(ds, patchy, bins=[0, 9, 12])
    assert beyond["n"].values[1].tolist() == [0, 0, 0]
    assert np.isnan(beyond["value"].values[1]).all()


def test_a_step_without_states_is_an_empty_column(tmp_path):
    run = synthetic_run(tmp_path / "run", [4], n_rollouts=2, length=0)
    for bins, rows in ((None, 0), (5, 1)):  # no position occurs: one range, with nothing in it
        found = heat_map(run, "entropy", bins=bins)
        assert found.sizes == {"position": rows, "step": 1}
        assert not found["n"].any()
        assert np.isnan(found["value"]).all()


def test_infinite_values_stay_visible():
    ds = states()

    def probe(d):
        sign = xr.where(d["rollout"] == 0, -np.inf, np.inf)
        return d.opd.reverse_kl().where((d.step != 0) | (d.position > 1), sign)

    found = heat_map(ds, probe, bins=[0, 2, 9])["value"]
    assert np.isnan(found[0, 0])  # both infinities in one cell
    assert np.isfinite(found[0, 1:]).all()
    assert np.isfinite(found[1, [0, 2]]).all()
    assert heat_map(ds, lambda d: probe(d).clip(max=9), bins=1)["value"][0, 0] == -np.inf


def test_the_result_is_labelled():
    found = heat_map(states(), "entropy", bins=2)
    assert found.attrs == {"units": "nats", "long_name": "student entropy"} == found.value.attrs
    assert found.step.attrs["long_name"] == "training step"
    assert found.position.attrs["long_name"] == "position"


def test_refusals():
    ds = states()
    with pytest.raises(ConfigError, match=r"'entropi'; expected .* ds.opd: .*entropy"):
        heat_map(ds, "entropi")
    with pytest.raises(ValueError, match=r"dims \('state', 'rank'\); expected a DataArray over"):
        heat_map(ds, "overlap_mask")
    bad: Any
    for bad in (0, 2.5, [3], [3, 3], "ab"):
        with pytest.raises(ConfigError, match="bins = "):
            heat_map(ds, patchy, bins=bad)
    for name in ("step", "position"):
        with pytest.raises(ValueError, match=f"no coordinate '{name}'"):
            heat_map(ds.drop_vars(name), patchy)
    with pytest.raises(ValueError, match="no states"):
        heat_map(ds.isel(state=[]), patchy)
