"""Set sizes that are known only up to k, against the sizes from the whole vocabulary."""

import math

import numpy as np
import pytest
import xarray as xr

from opdprobe import curve, from_logits, mass_set_summary, open_run
from opdprobe.errors import ConfigError
from opdprobe.testing import synthetic_run, synthetic_step


@pytest.fixture(scope="module")
def logits():
    rng = np.random.default_rng(5)
    sharpness = rng.choice([0.5, 2.0, 6.0], size=(8, 25, 1))  # flat, ordinary and sure states
    return sharpness * rng.normal(size=(8, 25, 40))


def true_sizes(logits, mass=0.97):
    """Sizes over the whole vocabulary, state by state, in plain Python."""
    sizes = []
    for row in logits.reshape(-1, logits.shape[-1]):
        p = sorted((math.exp(x - row.max()) for x in row), reverse=True)
        target = mass * math.fsum(p)
        sizes.append(next(n for n in range(1, 41) if math.fsum(p[:n]) >= target - 1e-6))
    return np.array(sizes)


@pytest.mark.parametrize("k", [4, 16, 40])
def test_the_summary_is_that_of_sizes_cut_at_k(logits, k):
    found = mass_set_summary(from_logits(logits, logits, k=k), quantiles=[0.25, 0.5, 0.9])
    sizes = true_sizes(logits)
    np.testing.assert_allclose(found["mean"], [np.minimum(sizes, k + 1).mean()])
    assert found["n"].item() == sizes.size
    assert found["n_censored"].item() == (sizes > k).sum()
    assert found["share_censored"].item() == (sizes > k).mean()
    for level in (0.25, 0.5, 0.9):
        # The inverse of the empirical distribution, and whether k is enough to know it.
        exact = np.sort(sizes)[math.ceil(level * sizes.size) - 1]
        one = found.sel(quantile=level)
        assert one["quantile_censored"].item() == (exact > k)
        assert one["quantile_value"].item() == min(exact, k + 1)


def test_the_same_states_give_one_story_at_every_k(logits):
    sizes = true_sizes(logits)
    found = {k: mass_set_summary(from_logits(logits, logits, k=k)) for k in (4, 16, 40)}
    means = [one["mean"].item() for one in found.values()]
    assert means == sorted(means)
    assert means[-1] == pytest.approx(sizes.mean())  # the list is the vocabulary
    assert "lower bound" in found[4].attrs["comment"]
    share = (sizes > 4).mean()
    assert f"{(sizes > 4).sum()} of 200 states ({share:.1%})" in found[4].attrs["comment"]
    assert found[40].attrs["comment"] == "exact: no state needs more than 40 tokens"
    # A curve cannot count them, but its name says what k + 1 stands for.
    names = {k: curve(from_logits(logits, logits, k=k), "student_mass_set_size") for k in (4, 16)}
    assert names[4].attrs["long_name"] == "student tokens holding 97 %, 5 for more than 4"
    assert names[16].attrs["long_name"] == "student tokens holding 97 %, 17 for more than 16"
    assert names[4]["n_missing"].item() == 0
    assert names[4]["value"].item() == pytest.approx(found[4]["mean"].item())


def test_a_run_is_summarised_step_by_step(tmp_path):
    synthetic_run(tmp_path / "run", steps=[0, 7])
    run = open_run(tmp_path / "run")
    found = mass_set_summary(run, "teacher", mass=0.5)
    assert found["step"].values.tolist() == [0, 7]
    for step in run.steps:
        alone = mass_set_summary(run.load(step), "teacher", mass=0.5)
        xr.testing.assert_equal(found.sel(step=[step]), alone)


def test_states_without_a_value_are_counted():
    step = synthetic_step(n_rollouts=1, length=4, k=4)
    logp = step["logp"].copy()
    logp[0, 0, 0, 2] = np.nan
    found = mass_set_summary(step.assign(logp=logp))
    assert (found["n"].item(), found["n_missing"].item()) == (3, 1)
    empty = mass_set_summary(step.assign(logp=logp * np.nan))
    assert (empty["n"].item(), empty["n_missing"].item()) == (0, 4)
    assert np.isnan(empty["mean"].item())
    assert np.isnan(empty["quantile_value"]).all()
    assert not empty["quantile_censored"].any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "critic"}, "model = 'critic'; expected one of"),
        ({"mass": 0.0}, "mass = 0.0; expected a probability"),
        ({"quantiles": [0.0]}, r"expected a list of numbers in \(0, 1\]"),
        ({"quantiles": 0.5}, r"expected a list of numbers in \(0, 1\]"),
    ],
)
def test_refuses(arguments, message):
    with pytest.raises(ConfigError, match=message):
        mass_set_summary(synthetic_step(), **arguments)
