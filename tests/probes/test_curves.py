"""Curves against loops over states, and their intervals against sums by prompt."""

from typing import Any

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from opdprobe.errors import ConfigError
from opdprobe.probes import curve
from opdprobe.probes.bootstrap import draw_units, mean_intervals, unit_keys
from opdprobe.store import RunWriter, open_run
from opdprobe.testing import synthetic_run, synthetic_step

STEPS = [0, 3, 10]
LENGTHS = 14 * [5, 1, 8, 3, 0, 8]


def states(steps=STEPS):
    """States of several steps in one Dataset, each step numbering its rollouts from 0."""
    parts = [synthetic_step(s, n_rollouts=84, length=LENGTHS, agreement=0.3) for s in steps]
    flat = [part.drop_dims(["rollout", "prompt_token", "response_token"]) for part in parts]
    return xr.concat(flat, "state", combine_attrs="drop_conflicts")


def patchy(ds):
    """Give a reverse KL with holes: late positions of odd rollouts, and all of rollout 1."""
    hole = (ds["rollout"] % 2 == 1) & (ds.position >= 2) | (ds["rollout"] == 1)
    return ds.opd.reverse_kl().where(~hole)


def test_values_are_means_over_states():
    ds = states()
    result = curve(ds, patchy)
    np.testing.assert_array_equal(result.step, STEPS)
    for i, step in enumerate(STEPS):
        values = patchy(ds).values[ds.step.values == step]
        assert result.value[i] == pytest.approx(np.nanmean(values))
        assert result.n[i] == (~np.isnan(values)).sum()
        assert result.n_missing[i] == np.isnan(values).sum() > 0
        assert result.n_rollouts[i] == 69  # 14 rollouts have no states, rollout 1 no values


def test_the_interval_is_that_of_sums_by_prompt():
    """Two rollouts a prompt: their sums are the bootstrap's units."""
    ds = synthetic_step(n_rollouts=40, length=[1, 2, 3, 4] * 10)
    prompts = np.array([f"prompt-{i // 2}" for i in range(40)])
    ds = ds.assign(prompt_id=("rollout", prompts))
    result = curve(ds, "entropy_gap", ci=0.8, n_boot=150, seed=7)
    rollout, values = ds["rollout"].values, ds.opd.entropy_gap().values.astype(float)
    names = np.unique(prompts)
    states = [prompts[rollout] == name for name in names]
    total, n = (np.array([of[which].sum() for which in states]) for of in (values, values**0))
    weights = draw_units(unit_keys(names), 7, 150)
    low, high = mean_intervals(total[:, None], n[:, None], weights, 0.8, least=16)[:, 0]
    assert (result.low.item(), result.high.item()) == pytest.approx((low, high))
    assert (result.n_prompts.item(), result.n_rollouts.item()) == (20, 40)
    assert result.attrs["ci_kind"] == "studentised bootstrap over prompts"


def test_rollouts_that_agree_with_their_prompts_others_narrow_nothing():
    one = synthetic_step(n_rollouts=16, length=5)
    again = synthetic_step(n_rollouts=16, length=5)
    again = again.assign_coords(rollout=again["rollout"] + 16)
    both = xr.concat(
        [part.drop_dims(["rollout", "prompt_token", "response_token"]) for part in (one, again)],
        "state",
    ).assign(prompt_id=("rollout", np.tile(one["prompt_id"].values, 2)))
    once, twice = curve(one, "entropy_gap"), curve(both, "entropy_gap")
    assert (twice.n.item(), twice.n_prompts.item()) == (2 * once.n.item(), 16)
    assert (twice.low.item(), twice.high.item()) == pytest.approx(
        (once.low.item(), once.high.item())
    )


def test_a_prompt_that_steps_repeat_is_drawn_once_for_all(tmp_path):
    """The same step recorded three times tells no more of a position than once."""
    writer = RunWriter(tmp_path, attrs={}, config={}, resume=False)
    for step in range(3):
        ds = synthetic_step(0, n_rollouts=16, length=4)
        writer.write_step(step, ds.assign_coords(step=0 * ds["step"] + step))
    run = open_run(tmp_path)
    thrice = curve(run, "entropy_gap", by="position")
    once = curve(run.load(0), "entropy_gap", by="position")
    assert (thrice.n == 3 * once.n).all()
    for name in ("value", "low", "high", "n_prompts"):
        np.testing.assert_allclose(thrice[name], once[name])


def test_interval_agrees_with_students():
    ds = synthetic_step(n_rollouts=400, length=6)
    result = curve(ds, "entropy_gap")
    per_rollout = ds.opd.entropy_gap().values.reshape(400, 6).astype(float).mean(axis=1)
    low, high = stats.t.interval(0.95, 399, per_rollout.mean(), stats.sem(per_rollout))
    assert result.low.item() == pytest.approx(low, abs=0.1 * (high - low))
    assert result.high.item() == pytest.approx(high, abs=0.1 * (high - low))


def test_rollouts_not_states_are_resampled():
    # One value per rollout: more states of the same rollouts add no information.
    ds = synthetic_step(n_rollouts=64, length=50)
    widths = []
    for length in (1, 50):
        part = ds.isel(state=ds.position.values < length)
        result = curve(part, lambda d: d["rollout"].astype(float).rename("r").drop_vars("rollout"))
        widths.append((result.high - result.low).item())
    assert widths[0] == pytest.approx(widths[1])


@pytest.mark.parametrize(
    ("n", "probe", "given"),
    [
        (15, "entropy_gap", False),
        (16, "entropy_gap", True),
        (63, "reverse_kl", False),
        (64, "reverse_kl", True),
        (63, lambda ds: ds.opd.entropy_gap(), False),  # of a function nothing is known
    ],
)
def test_few_prompts_have_no_interval(n, probe, given):
    result = curve(synthetic_step(n_rollouts=n), probe)
    assert np.isfinite(result.value.item())
    assert np.isfinite([result.low.item(), result.high.item()]).all() == given


def test_a_step_does_not_depend_on_the_others():
    alone = curve(states([3]), patchy)
    xr.testing.assert_identical(curve(states(), patchy).isel(step=[1]), alone)


def test_a_step_without_any_value():
    result = curve(states(), lambda ds: patchy(ds).where(ds.step != 3))
    np.testing.assert_array_equal(result.n > 0, [True, False, True])
    assert np.isnan(result[["value", "low", "high"]].isel(step=1).to_array()).all()


def test_infinite_values_stay_visible():
    ds = states()
    result = curve(ds, lambda d: patchy(d).where((d.step != 3) | (d.position > 0), -np.inf))
    assert result.value[1] == -np.inf
    assert np.isfinite(result[["value", "low", "high"]].isel(step=[0, 2]).to_array()).all()


def test_order_of_states_does_not_matter():
    ds = states()
    order = np.random.default_rng(0).permutation(ds.sizes["state"])
    for by in ("step", "position"):
        shuffled = curve(ds.isel(state=order), patchy, by=by)
        xr.testing.assert_allclose(shuffled, curve(ds, patchy, by=by))


def test_a_run_gives_what_its_states_give(tmp_path):
    run = synthetic_run(tmp_path / "run", STEPS, n_rollouts=84, length=LENGTHS)
    lazy = run.states()
    for by in ("step", "position"):
        from_run = curve(run, "overlap_token_advantage", by=by)
        from_states = curve(lazy, "overlap_token_advantage", by=by)
        xr.testing.assert_allclose(
            curve(lazy.load(), "overlap_token_advantage", by=by), from_states
        )
        # States of several steps have no table of prompts.
        counts = ["value", "n", "n_missing", "n_rollouts"]
        xr.testing.assert_allclose(from_states[counts], from_run[counts])
        assert from_run.attrs["ci_kind"].endswith("prompts")
        assert from_states.attrs["ci_kind"].endswith("rollouts")


def test_every_position_is_a_point():
    ds = states()
    result = curve(ds.isel(state=ds.position.values != 2), patchy, by="position")
    np.testing.assert_array_equal(result.position, [0, 1, 3, 4, 5, 6, 7])
    np.testing.assert_array_equal(result.position_stop - result.position_start, 1)
    for i, position in enumerate(result.position.values):
        values = patchy(ds).values[ds.position.values == position]
        assert result.value[i] == pytest.approx(np.nanmean(values))
        assert (result.n[i], result.n_missing[i]) == (
            (~np.isnan(values)).sum(),
            np.isnan(values).sum(),
        )


def test_positions_in_ranges():
    ds = states()
    result = curve(ds, patchy, by="position", bins=[1, 4, 6])
    np.testing.assert_array_equal(result.position, [2.0, 4.5])
    np.testing.assert_array_equal(result.position_start, [1, 4])
    np.testing.assert_array_equal(result.position_stop, [4, 6])
    for i, (start, stop) in enumerate([(1, 4), (4, 6)]):
        inside = (ds.position.values >= start) & (ds.position.values < stop)
        assert result.value[i] == pytest.approx(np.nanmean(patchy(ds).values[inside]))
        assert result.n[i] + result.n_missing[i] == inside.sum()


@pytest.mark.parametrize("bins", [1, 3, 8, 50])
def test_a_number_of_ranges_covers_every_position_once(bins):
    ds = states()
    result = curve(ds, "overlap_ratio", by="position", bins=bins)
    assert result.n.sum() == ds.sizes["state"]
    assert result.sizes["position"] == min(bins, 8)
    assert (result.position_start[0], result.position_stop[-1]) == (0, 8)
    np.testing.assert_array_equal(result.position_start[1:], result.position_stop[:-1])


def test_by_position_needs_no_step():
    ds = states([3])
    with_step, without = (
        curve(d, patchy, by="position", seed=1) for d in (ds, ds.drop_vars("step"))
    )
    np.testing.assert_allclose(without.value, with_step.value)


def test_the_result_is_labelled():
    result = curve(states(), "entropy_gap", ci=0.9, n_boot=200, seed=3)
    assert result.attrs == {
        "units": "nats",
        "long_name": "entropy gap",
        "ci_kind": "studentised bootstrap over rollouts",
        "ci_prob": 0.9,
        "n_boot": 200,
        "seed": 3,
    }
    assert result.value.attrs == {"units": "nats", "long_name": "entropy gap"}
    assert result.low.attrs["long_name"] == "lower bound of the 90 % interval"
    assert result.step.attrs["long_name"] == "training step"


def test_refusals():
    ds = states()
    with pytest.raises(ConfigError, match=r"'entropy_gab'; expected .* ds.opd: .*entropy_gap"):
        curve(ds, "entropy_gab")
    with pytest.raises(ConfigError, match="expected a function, or a method"):
        curve(ds, "_get")
    with pytest.raises(ValueError, match=r"dims \('state', 'rank'\); expected a DataArray over"):
        curve(ds, "overlap_mask")
    with pytest.raises(ValueError, match="gave a float with dims None"):
        curve(ds, lambda d: 1.0)  # pyright: ignore[reportArgumentType]  # the point of the test
    with pytest.raises(ConfigError, match="expected 'step' or 'position'"):
        curve(ds, patchy, by="rollout")
    with pytest.raises(ConfigError, match="expected by = 'position'"):
        curve(ds, patchy, bins=3)
    bad: Any
    for bad in (0, 2.5, [3], [3, 3], "ab"):
        with pytest.raises(ConfigError, match="bins = "):
            curve(ds, patchy, by="position", bins=bad)
    for bad in ({"ci": 1.0}, {"ci": 0.0}, {"n_boot": 99}):
        with pytest.raises(ConfigError, match="expected 0 < ci < 1 and n_boot >= 100"):
            curve(ds, patchy, **bad)
    for name, by in (("step", "step"), ("position", "position"), ("rollout", "step")):
        with pytest.raises(ValueError, match=f"no coordinate '{name}'"):
            curve(ds.drop_vars(name), patchy, by=by)
    for by in ("step", "position"):
        with pytest.raises(ValueError, match="no states"):
            curve(ds.isel(state=[]), patchy, by=by)
