"""Learning rates and negative controls against plain loops; both ways the runs can fall out."""

from dataclasses import replace
from statistics import mean

import pytest
from oracle import claims_of, seeds

from analyses import controls, rates
from analyses.experiments import EXPERIMENTS
from analyses.registry import FIGURES
from analyses.results import load, save

pytestmark = pytest.mark.slow

CONTROLS = FIGURES["controls"].experiments
# What fails in each claim on learning rates, and what it is compared to.
ARMS = {
    "failure": (["failure_slow", "large_same", "failure_fast"], None),
    "post_same": (["post_same_slow", "post_same", "post_same_fast"], None),
    "base_post": (["base_post_slow", "base_post", "base_post_fast"], "base_rl"),
    "non_overlap": (["non_overlap_slow", "support_non_overlap", "non_overlap_fast"], "baseline"),
    "k1": (["k1_slow", "k1_pg", "k1_fast"], "k16_pg"),
}


@pytest.fixture(scope="module")
def evidence(make_evidence):
    used = {*FIGURES["rates"].experiments, *CONTROLS}
    # Overlap is looked at in the controls alone.
    recorded = {name: 10 if name in CONTROLS else 1 for name in sorted(used)}
    return make_evidence(recorded, range(3))


@pytest.fixture(scope="module")
def results(evidence):
    return rates.analyse(evidence), controls.analyse(evidence)


def best(each, names):
    """Name the run with the highest mean over seeds of the accuracy at the end."""
    return max(names, key=lambda name: mean(seed.accuracy(name, "end") for seed in each))


def oracle(each, seed):
    want = {}
    for arm, (names, rival) in ARMS.items():
        name = best(each, names)
        want[f"rates.{arm}"] = (
            seed.recovery(name) if rival is None else seed.final(rival, name, "end")
        )
    for name in ("self", "base_self", "still"):
        want[f"controls.{name}_accuracy"] = seed.gain(f"control_{name}")
        want[f"controls.{name}_overlap"] = seed.change(f"control_{name}", "overlap")
    want["controls.permuted"] = seed.gain("control_permuted")
    want["controls.permuted_overlap"] = seed.first("control_permuted", "overlap") - seed.first(
        "baseline", "overlap"
    )
    return want


def test_every_number_of_every_seed_is_what_its_claim_says(evidence, results):
    each = seeds(evidence)
    want = [oracle(each, seed) for seed in each]
    found = claims_of(*results)
    assert set(found) == set(want[0])
    for name, claim in found.items():
        values = [seed[name] for seed in want]
        assert list(claim.seeds) == pytest.approx(values, rel=1e-6, abs=1e-9), name
        assert claim.ours == pytest.approx(mean(values), rel=1e-6, abs=1e-9), name


def test_runs_that_fail_at_every_rate_and_controls_that_hold_still_support_the_claims(results):
    assert {claim.verdict for claim in claims_of(*results).values()} == {"supported"}


@pytest.mark.parametrize("place", [0, 1, 2])
def test_one_rate_at_which_an_arm_does_well_refutes_its_claim(evidence, place):
    works = {names[place]: evidence.runs[rival or "baseline"] for names, rival in ARMS.values()}
    found = claims_of(rates.analyse(replace(evidence, runs=evidence.runs | works)))
    assert {claim.verdict for claim in found.values()} == {"refuted"}


def test_controls_that_move_support_none_of_their_claims(evidence):
    moved = {name: evidence.runs["baseline"] for name in CONTROLS}
    found = claims_of(controls.analyse(replace(evidence, runs=evidence.runs | moved)))
    assert {claim.verdict for claim in found.values()} == {"refuted"}


@pytest.mark.parametrize("arm", list(ARMS))
def test_an_arm_differs_from_the_usual_run_in_its_learning_rate_alone(arm):
    slow, usual, fast = (EXPERIMENTS[name] for name in ARMS[arm][0])
    assert (slow.learning_rate, usual.learning_rate, fast.learning_rate) == (0.25, 1, 4)
    for other in (slow, fast):
        assert replace(other, learning_rate=1.0, crossed=usual.crossed) == usual


def test_the_panel_has_a_line_for_each_arm(evidence, results):
    (panel,) = results[0].panels
    each = seeds(evidence)
    assert list(panel.ticks) == ["0.25", "1", "4"]
    for series, (names, _) in zip(panel.series, ARMS.values(), strict=True):
        assert list(series.x) == [0, 1, 2]
        want = [mean(seed.accuracy(name, "end") for seed in each) for name in names]
        assert series.y == pytest.approx(want)


def test_results_survive_the_file(results, tmp_path):
    for found, name in zip(results, ("rates", "controls"), strict=True):
        save(found, tmp_path / f"{name}.json")
        assert load(tmp_path / f"{name}.json").claims == found.claims
        assert all(claim.id.startswith(f"{name}.") for claim in found.claims)
        assert set(found.meta.runs) == set(FIGURES[name].experiments)
