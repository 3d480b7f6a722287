"""Figures 25 and 26 against plain loops; every verdict can fall out the other way."""

from dataclasses import replace
from statistics import mean

import numpy as np
import pytest
from oracle import claims_of, seeds

from analyses import tokens
from analyses.evidence import Evidence
from analyses.experiments import EXPERIMENTS
from analyses.presets import PRESETS
from analyses.registry import FIGURES
from analyses.results import load, save
from opdprobe.probes.selectors import SELECTORS
from opdprobe.store import RunWriter, open_run
from opdprobe.testing import synthetic_step

BENCHMARKS = {"easy": 20, "medium": 20, "hard": 20}
EVALUATED = (0, 12, 36, 48)
START, WELL, BADLY = 0.4, 0.9, 0.5
RUNS = sorted({name for figure in ("fig25", "fig26") for name in FIGURES[figure].experiments})
SWEPT = ("entropy", "reverse_kl", "tip", "early", "random")
# As others claim: whatever is chosen by a score does as well as all tokens, and better than random
# ones; without what is chosen, less is learnt.
LIKE = {
    name: BADLY if ("random" in name) != name.endswith("_rest") else WELL
    for name in RUNS
    if name != "baseline"
} | {"baseline": WELL, "tokens_random_50": WELL}
UNLIKE = {name: WELL if value == BADLY else BADLY for name, value in LIKE.items()} | {
    "baseline": WELL,
    "tokens_random_50": BADLY,
}


def write_run(path, seed, after):
    """A run that gains all it gains by its second evaluation."""
    attrs = {"seed": seed, "k": 4, "student": {"name": "s"}, "teacher": {"name": "t"}}
    writer = RunWriter(path, attrs=attrs, config={"eval_n": 4}, resume=False)
    writer.write_step(0, synthetic_step(n_rollouts=2, length=3, k=4))
    for step in EVALUATED:
        chance = (after if step else START) + 0.01 * (seed % 3)
        for benchmark, n in BENCHMARKS.items():
            right = round(n * chance)
            ids = [f"{benchmark}-{i}" for i in range(n)]
            writer.log_evaluation(step, benchmark, ids, [1.0] * right + [0.0] * (n - right))
    return open_run(path)


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """Make the evidence of runs that end at these accuracies; equal ones are the same run."""
    folder, known = tmp_path_factory.mktemp("runs"), {}

    def run(seed, after):
        if (seed, after) not in known:
            known[seed, after] = write_run(folder / f"{after}-{seed}", seed, after)
        return known[seed, after]

    sums = {}

    def evidence(final, n_seeds=5):
        runs = {name: [run(s, final[name]) for s in range(n_seeds)] for name in RUNS}
        levels = {"student": START, "rl_student": 0.95}
        scores = {
            role: [{name: np.full(n, level) for name, n in BENCHMARKS.items()}] * n_seeds
            for role, level in levels.items()
        }
        return Evidence("quick", PRESETS["quick"].models, runs, scores, sums=sums)

    return evidence


@pytest.fixture(scope="module")
def like(make):
    return make(LIKE)


@pytest.fixture(scope="module")
def results(like):
    return tokens.analyse(like), tokens.complements(like)


def oracle(seed):
    """All claims by hand: names of the runs are written out, apart from what names them."""

    def end(a, b):
        return seed.final(f"tokens_{a}" if a else "baseline", f"tokens_{b}" if b else "baseline",
                          "end")  # fmt: skip

    want = {}
    for name in SWEPT:
        want[f"fig25.{name}_suffices"] = end(f"{name}_20", "")
    for name in SELECTORS:
        if name != "random":
            want[f"fig25.{name}_chosen"] = end(f"{name}_20", "random_20")
    want["fig25.tip_better"] = want["fig25.tip_half"] = end("tip_50", "")
    want["fig25.random_half"] = end("random_50", "")
    want["fig25.divergence_tenth"] = end("reverse_kl_10", "random_10")
    for name in SWEPT[:-1]:
        want[f"fig26.{name}_kept"] = end(f"{name}_20", f"{name}_20_rest")
        want[f"fig26.{name}_needed"] = end("random_20_rest", f"{name}_20_rest")
        want[f"fig26.{name}_speed"] = seed.final(f"tokens_{name}_20", "baseline")
    return want


def test_every_number_of_every_seed_is_what_its_claim_says(make):
    """With as many accuracies as runs, so that no two can be taken for each other."""
    final = {name: 0.45 + 0.02 * i for i, name in enumerate(RUNS)}
    evidence = make(final, n_seeds=3)
    found = claims_of(tokens.analyse(evidence), tokens.complements(evidence))
    want = [oracle(seed) for seed in seeds(evidence)]
    assert set(found) == set(want[0])
    for name, claim in found.items():
        values = [seed[name] for seed in want]
        assert list(claim.seeds) == pytest.approx(values, abs=1e-12), name
        assert claim.ours == pytest.approx(mean(values), abs=1e-12), name


def test_runs_that_fall_out_as_others_claim_support_the_claims(results):
    found = claims_of(*results)
    # Of the half by TIP the stronger claim asks more than these runs, which all end alike, give.
    not_so = {"fig25.tip_better", "fig25.random_suffices"}
    assert {name for name, claim in found.items() if claim.verdict != "supported"} == not_so
    assert all(found[name].verdict == "refuted" for name in not_so)


def test_runs_that_fall_out_otherwise_refute_them(make):
    other = make(UNLIKE)
    found = claims_of(tokens.analyse(other), tokens.complements(other))
    supported = {name for name, claim in found.items() if claim.verdict == "supported"}
    assert supported == {"fig25.random_suffices"}


def test_a_run_differs_from_the_baseline_in_its_tokens_alone():
    plain = replace(EXPERIMENTS["baseline"], crossed=False)
    kinds = set()
    for name in RUNS:
        if name == "baseline":
            continue
        given = dict(EXPERIMENTS[name].overrides)
        assert replace(EXPERIMENTS[name], overrides={}) == plain
        selector, fraction = given.pop("token_selector"), given.pop("token_fraction")
        rest = given.pop("token_complement", False)
        assert given == {}
        assert name == f"tokens_{selector}_{round(100 * fraction)}" + "_rest" * rest
        kinds.add((selector, fraction, rest))
    assert kinds == {
        *((selector, 0.2, False) for selector in SELECTORS),
        *((selector, 0.2, True) for selector in SWEPT),
        *((selector, fraction, False) for selector in SWEPT for fraction in (0.1, 0.5)),
    }


def test_panels_of_figure_25(like, results):
    by_share, recovery = results[0].panels
    each = seeds(like)
    assert list(by_share.ticks) == ["10 %", "20 %", "50 %", "all"]
    for series, name in zip(by_share.series, SWEPT, strict=True):
        runs = [f"tokens_{name}_{n}" for n in (10, 20, 50)] + ["baseline"]
        want = [mean(seed.accuracy(run, "end") for seed in each) for run in runs]
        assert (series.role, list(series.x)) == (f"tokens_{name}", [0, 1, 2, 3])
        assert series.y == pytest.approx(want)
    (bars,) = recovery.series
    chosen = [name for name in SELECTORS if name != "random"]
    assert len(recovery.ticks) == len(bars.y) == len(chosen)
    want = [mean(seed.recovery(f"tokens_{name}_20") for seed in each) for name in chosen]
    assert bars.y == pytest.approx(want)
    levels = [
        mean(seed.recovery(name) for seed in each) for name in ("baseline", "tokens_random_20")
    ]
    assert [line.y for line in recovery.references] == pytest.approx(levels)


def test_panels_of_figure_26(like, results):
    final, kept, rest = results[1].panels
    each = seeds(like)
    for series, end in zip(final.series, ("", "_rest"), strict=True):
        want = [mean(s.accuracy(f"tokens_{name}_20{end}", "end") for s in each) for name in SWEPT]
        assert series.y == pytest.approx(want)
    for panel, end in ((kept, ""), (rest, "_rest")):
        roles = ["baseline", *(f"tokens_{name}" for name in SWEPT)]
        assert [series.role for series in panel.series] == roles
        assert all(list(series.x) == list(EVALUATED) for series in panel.series)
        for series, name in zip(panel.series[1:], SWEPT, strict=True):
            assert series.y[-1] == pytest.approx(
                mean(s.accuracy(f"tokens_{name}_20{end}", "end") for s in each)
            )


def test_results_survive_the_file(results, tmp_path):
    for found in results:
        save(found, tmp_path / f"{found.figure}.json")
        assert load(tmp_path / f"{found.figure}.json").claims == found.claims
        assert all(claim.id.startswith(f"{found.figure}.") for claim in found.claims)
        assert set(found.meta.runs) == set(FIGURES[found.figure].experiments)
