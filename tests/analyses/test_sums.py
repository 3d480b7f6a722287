"""Sums by rollout: against the states themselves, and through a file."""

import numpy as np
import pytest

from analyses.sums import PROBES, add_up, load, save, window
from opdprobe.probes.bootstrap import draw_units, unit_keys
from opdprobe.probes.evaluate import evaluate


@pytest.fixture(scope="module")
def run(make_evidence):
    (run,) = make_evidence({"success": 3}).runs["success"]
    return run


def test_sums_are_those_of_the_states(run):
    sums = add_up(run)
    assert sums.steps.tolist() == run.steps
    row = 0
    for i, step in enumerate(run.steps):
        ds = run.load(step)
        assert sums.rows(slice(i, i + 1)) == slice(row, row + ds.sizes["rollout"])
        for rollout in range(ds.sizes["rollout"]):
            mine = ds["rollout"].values == rollout
            assert sums.length[row] == mine.sum()
            for name, probe in PROBES.items():
                values = evaluate(probe, ds).values[mine]
                assert sums.n[name][row] == np.count_nonzero(~np.isnan(values))
                assert sums.total[name][row] == pytest.approx(np.nansum(values))
            row += 1
    assert row == sums.first[-1] == sums.length.size
    assert sums.rows(slice(-1, None)) == slice(int(sums.first[-2]), row)
    assert sums.rows(slice(None)) == slice(0, row)


def test_a_file_gives_back_what_was_saved(run, tmp_path):
    sums = add_up(run)
    save(sums, tmp_path / "a/b.npz")
    got = load(tmp_path / "a/b.npz")
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["b.npz"]
    for name in ("steps", "first", "length"):
        np.testing.assert_array_equal(getattr(got, name), getattr(sums, name))
    for name in PROBES:
        np.testing.assert_array_equal(got.total[name], sums.total[name])
        np.testing.assert_array_equal(got.n[name], sums.n[name])


def test_window_is_the_mean_over_all_known_states(evidence):
    """Also of a probe with states that have no value, and with a rollout that has no state."""
    run = evidence.runs["failure"][0]
    steps = run.steps[2:6]
    states = run.states(steps)
    entropy = states["entropy"].values[:, 0].astype(float)

    def whole(ds):
        return ds.opd.entropy("student")

    def holey(ds):
        return whole(ds).where(ds["position"] % 3 != 1)

    found = window(run, {"whole": whole, "holey": holey}, steps)
    assert found["whole"].value == pytest.approx(entropy.mean(), rel=1e-12)
    known = states["position"].values % 3 != 1
    assert 0 < known.mean() < 1
    assert found["holey"].value == pytest.approx(entropy[known].mean(), rel=1e-12)
    assert np.isfinite(found["holey"].samples).all()


def test_window_draws_whole_prompts(evidence):
    """Where all states of a rollout are equal, more states a rollout tell nothing more."""
    run = evidence.runs["failure"][0]
    step = run.load(run.steps[0])
    probes = {"rollout": lambda ds: ds["rollout"].astype(float)}
    estimate = window(run, probes, run.steps[:1])["rollout"]
    names, prompt = np.unique(step["prompt_id"].values, return_inverse=True)
    n = np.bincount(prompt, step["length"].values)
    total = np.bincount(prompt, step["length"].values * np.arange(len(prompt)))
    drawn = draw_units(unit_keys(names))
    with np.errstate(invalid="ignore"):
        np.testing.assert_allclose(estimate.samples, (drawn @ total) / (drawn @ n))
