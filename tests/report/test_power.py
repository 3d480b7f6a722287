"""Plans: variance components of samples whose components are known, and the sizes they ask for."""

import json

import numpy as np
import pytest
from scipy import stats

from opdprobe import open_run
from opdprobe.cli.parser import main
from opdprobe.errors import ConfigError
from opdprobe.report.course import course
from opdprobe.report.power import Spread, _of_rollouts, _of_scores, _seeds, plan
from opdprobe.store import RunWriter
from opdprobe.testing import synthetic_run, synthetic_step

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(("between", "within"), [(1.0, 2.0), (0.0, 1.0), (2.0, 0.1)])
def test_components_of_a_sample_are_those_it_was_drawn_with(between, within):
    size = RNG.integers(1, 8, 4000)
    prompt = np.repeat(np.arange(size.size), size)
    values = RNG.normal(0, between, size.size)[prompt] + RNG.normal(0, within, prompt.size)
    n = np.full(prompt.size, 7)
    found = _of_rollouts("x", values * n, n, prompt)
    assert found.between == pytest.approx(between, abs=0.1)
    assert found.within == pytest.approx(within, rel=0.05)
    assert (found.prompts, found.rollouts) == (4000, pytest.approx(size.mean()))


def test_a_single_rollout_a_prompt_has_one_component():
    values = RNG.normal(size=50)
    found = _of_rollouts("x", values, np.ones(50, int), np.arange(50))
    assert found.between == pytest.approx(values.std(ddof=1))
    assert np.isnan(found.within)
    assert found.error(50, 1) == pytest.approx(stats.sem(values))


def test_scores_are_means_of_samples():
    chance = RNG.beta(2, 2, 20_000)
    found = _of_scores(RNG.binomial(4, chance) / 4, 4)
    assert found.between == pytest.approx(chance.std(), rel=0.03)
    assert found.within == pytest.approx(np.sqrt((chance * (1 - chance)).mean()), rel=0.03)


def test_an_error_is_that_of_a_mean_of_means():
    # 9 / 100 between prompts, 16 / 400 between their rollouts
    assert Spread("x", 0.0, 1, 1, 3.0, 4.0).error(100, 4) == pytest.approx((0.09 + 0.04) ** 0.5)


def test_runs_of_the_planned_size_show_the_difference_as_often_as_planned():
    spread = Spread("x", 0.0, 2, 4, 0.3, 0.5)
    factor = stats.norm.ppf(0.975) + stats.norm.ppf(0.8)
    n = int(np.ceil(2 * (factor * spread.error(1, 4) / 0.1) ** 2))
    drawn = RNG.normal(0.3 * RNG.normal(size=(2, 4000, n, 1)), 0.5, (2, 4000, n, 4)).mean(3)
    drawn[1] += 0.1
    shown = stats.ttest_ind(drawn[1], drawn[0], axis=1).pvalue < 0.05
    assert shown.mean() == pytest.approx(0.8, abs=0.025)


@pytest.mark.parametrize(("effect", "n"), [(1.0, 17), (2.0, 6), (0.5, 64)])
def test_seeds_are_those_of_the_textbook(effect, n):
    """Cohen's tables: two samples, two-sided 5 %, power 80 %."""
    assert _seeds(effect, 0.8) == n


def test_an_effect_too_small_for_a_thousand_seeds():
    assert _seeds(0.001, 0.8) is None


@pytest.fixture
def runs(tmp_path):
    return [
        synthetic_run(tmp_path / str(i), steps=[0, 1], n_rollouts=20, agreement=0.5 + i / 50)
        for i in range(3)
    ]


def test_the_plan_is_printed(runs, capsys):
    paths = [str(run.path) for run in runs]
    assert main(["power", *paths[:1], "--quantity", "entropy_gap", "--difference", "0.1"]) == 0
    said = capsys.readouterr().out
    assert "entropy_gap" in said
    assert "20 prompts × 1" in said
    assert "give 3 or more runs that differ in their seeds" in said
    assert main(["power", *paths, "--quantity", "overlap_ratio", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    values = [course(run).mean("overlap_ratio", course(run).last).value for run in runs]
    assert found["seeds_spread"] == pytest.approx(np.std(values, ddof=1))
    assert found["spread"]["within"] is None
    assert list(found["prompts"]) == ["1"]


def test_the_usual_quantity_is_the_accuracy(tmp_path):
    writer = RunWriter(tmp_path, attrs={}, config={"eval_n": 4}, resume=False)
    writer.write_step(0, synthetic_step(0))
    writer.log_evaluation(0, "easy", ["a", "b"], [0.25, 0.75])
    made = plan([course(open_run(tmp_path))], difference=0.1)
    assert (made.spread.quantity, made.spread.value, made.spread.prompts) == ("accuracy", 0.5, 2)


def test_refusals(runs, tmp_path):
    some = [course(runs[0])]
    for bad in ({"difference": 0.0}, {"difference": 0.1, "power": 1.0}):
        with pytest.raises(ConfigError, match="expected a difference above 0"):
            plan(some, **bad)
    with pytest.raises(ConfigError, match="has no evaluations"):
        plan(some, quantity="accuracy", difference=0.1)
    with pytest.raises(ConfigError, match="has no 'nonsense'; expected accuracy, or one of"):
        plan(some, quantity="nonsense", difference=0.1)
    one = course(synthetic_run(tmp_path / "one", steps=[0], n_rollouts=1))
    with pytest.raises(ConfigError, match="1 prompts; expected two or more"):
        plan([one], quantity="entropy_gap", difference=0.1)
