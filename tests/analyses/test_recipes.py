"""The claims about teachers and recipes, recomputed by plain loops; both ways they can fall out."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from analyses import alignment, cold_start, content, overview, scale, selection, teachers, template
from analyses.experiments import EXPERIMENTS
from analyses.registry import FIGURES
from analyses.results import load, save

pytestmark = pytest.mark.slow

ANALYSES = {
    "fig01": overview.analyse,
    "fig02": teachers.analyse,
    "fig03": teachers.own_accuracy,
    "fig04": scale.analyse,
    "fig08": cold_start.analyse,
    "fig09": template.analyse,
    "fig10": content.analyse,
    "fig17": teachers.by_benchmark,
    "fig20": alignment.larger_student,
    "fig21": cold_start.mass,
    "fig22": template.by_benchmark,
    "selection": selection.analyse,
}
BENCHMARKS = ("easy", "medium", "hard")
# Of the other runs, the accuracy alone matters.
WHOLE = (
    "success", "baseline", "failure", "large_success", "large_failure", "base_rl", "base_post",
    "no_cold_start", "cold_start", "template_original", "content_other", "select_mixed",
)  # fmt: skip


@pytest.fixture(scope="module")
def evidence(make_evidence):
    used = {name for figure in ANALYSES for name in FIGURES[figure].experiments}
    return make_evidence({name: 12 if name in WHOLE else 1 for name in sorted(used)})


@pytest.fixture(scope="module")
def swapped(evidence):
    """The same evidence with what should win and what should lose exchanged."""
    names = {
        "success": "failure",
        "baseline": "failure",
        "failure": "success",
        "large_success": "large_failure",
        "large_failure": "large_success",
        "large_rl": "large_same",
        "large_same": "large_rl",
        "post_same": "post_rl",
        "post_rl": "post_same",
        "reverse_large": "success",
        "base_rl": "base_post",
        "base_post": "base_rl",
        "content_other": "template_original",
        "cold_start": "no_cold_start",
        "no_cold_start": "base_rl",
        "template_original": "success",
        "select_none": "success",
        "select_template": "failure",
        "select_mixed": "failure",
        "select_divergence": "failure",
    }
    roles = {"rl_base_large": "rl_student"}
    return replace(
        evidence,
        runs={name: evidence.runs[names.get(name, name)] for name in evidence.runs},
        scores={role: evidence.scores[roles.get(role, role)] for role in evidence.scores},
    )


@pytest.fixture(scope="module")
def results(evidence):
    return {figure: analyse(evidence) for figure, analyse in ANALYSES.items()}


def claims_of(results):
    return {claim.id: claim for result in results.values() for claim in result.claims}


# The oracle


def state_numbers(ids, logp, entropy):
    """All that claims say about one state, from its two lists of tokens."""
    shared = [(i, r) for i, v in enumerate(ids[0]) for r, w in enumerate(ids[1]) if v == w]
    p = [math.exp(logp[0, 0, i]) for i, _ in shared]
    q = [math.exp(logp[1, 1, r]) for _, r in shared]
    a, b = [x / sum(p) for x in p], [x / sum(q) for x in q]
    kl = sum(x * math.log(x / y) for x, y in zip(a, b, strict=True))
    return {
        "overlap": len(shared) / len(ids[0]),
        "student_mass": sum(p),
        "teacher_mass": sum(q),
        "advantage": -kl / len(shared) if shared else math.nan,
        "gap": abs(entropy[1] - entropy[0]),
        "entropy": entropy[0],
    }


def by_step(run):
    """For each step, the numbers of each of its states."""
    steps = []
    for step in run.steps:
        ds = run.load(step)
        arrays = [ds[name].values.astype(float) for name in ("token_id", "logp", "entropy")]
        steps.append([state_numbers(*state) for state in zip(*arrays, strict=True)])
    return steps


def mean(steps, quantity):
    return np.nanmean([state[quantity] for step in steps for state in step])


def oracle(evidence):
    steps = {name: by_step(evidence.runs[name][0]) for name in WHOLE}
    role = {r: np.concatenate(list(s.values())).mean() for r, s in evidence.scores.items()}

    def accuracy(name, end, benchmarks=BENCHMARKS):
        (run,) = evidence.runs[name]
        return np.concatenate([run.evaluation(b)["score"].values[end] for b in benchmarks]).mean()

    def final(a, b, *benchmarks):
        benchmarks = benchmarks or BENCHMARKS
        return accuracy(a, -1, benchmarks) - accuracy(b, -1, benchmarks)

    def recovery(name):
        before, teacher = accuracy(name, 0), role[EXPERIMENTS[name].teacher]
        return (accuracy(name, -1) - before) / (teacher - before)

    def first(name, quantity):
        return mean(steps[name][:5], quantity)

    def last(name, quantity):
        return mean(steps[name][7:], quantity)

    def change(name, quantity):
        return last(name, quantity) - first(name, quantity)

    def left(name, quantity):
        return last(name, quantity) / first(name, quantity)

    def each(name, quantity):
        return np.array([mean([step], quantity) for step in steps[name]])

    def step_size(name):
        curve = each(name, "overlap")
        return np.mean([abs(curve[i + 1] - curve[i]) for i in range(len(curve) - 1)])

    def over_all(a, b, quantity):
        return mean(steps[a], quantity) - mean(steps[b], quantity)

    none = accuracy("select_none", -1)
    return {
        "fig01.recovery": recovery("large_rl") - recovery("large_same"),
        "fig01.reverse": accuracy("reverse_large", -1) - role["student"],
        "fig01.overlap": change("success", "overlap") - change("failure", "overlap"),
        "fig02.wins": final("base_rl", "base_post"),
        "fig02.overlap_start": first("base_rl", "overlap") - first("base_post", "overlap"),
        "fig02.not_stronger": role["rl_base_large"] - role["post_large"],
        "fig03.comparable": role["rl_base_large"] - role["post_large"],
        "fig04.family1": recovery("large_rl") - recovery("large_same"),
        "fig04.family2": recovery("post_rl") - recovery("post_same"),
        "fig08.final": final("cold_start", "no_cold_start"),
        "fig08.starts_higher": accuracy("cold_start", 0) - accuracy("no_cold_start", 0),
        "fig08.overlap_start": first("cold_start", "overlap") - first("no_cold_start", "overlap"),
        "fig08.gap_start": first("cold_start", "gap") / first("no_cold_start", "gap"),
        "fig08.smoother": step_size("cold_start") / step_size("no_cold_start"),
        "fig09.accuracy": final("baseline", "template_original"),
        "fig09.overlap_start": first("baseline", "overlap") - first("template_original", "overlap"),
        "fig10.accuracy": final("base_rl", "content_other"),
        "fig10.overlap": over_all("base_rl", "content_other", "overlap"),
        "fig10.mass": over_all("base_rl", "content_other", "student_mass"),
        "fig10.entropy": last("base_rl", "entropy") / last("content_other", "entropy"),
        "fig17.easy": final("base_rl", "base_post", "easy"),
        "fig17.medium": final("base_rl", "base_post", "medium"),
        "fig17.hard": final("base_rl", "base_post", "hard"),
        "fig20.recovery": recovery("large_success"),
        "fig20.stronger": role["extra_large"] - role["large"],
        "fig20.failure": recovery("large_failure") / recovery("large_success"),
        "fig20.overlap": change("large_success", "overlap"),
        "fig20.overlap_flat": change("large_failure", "overlap")
        / change("large_success", "overlap"),
        "fig20.advantage": left("large_success", "advantage"),
        "fig20.advantage_flat": left("large_failure", "advantage"),
        "fig20.gap": left("large_success", "gap"),
        "fig20.gap_flat": left("large_failure", "gap"),
        "fig21.student_mass": over_all("cold_start", "no_cold_start", "student_mass"),
        "fig21.teacher_mass": over_all("cold_start", "no_cold_start", "teacher_mass"),
        "fig21.steadier": each("cold_start", "student_mass").std()
        / each("no_cold_start", "student_mass").std(),
        "fig22.recovery": recovery("baseline") - recovery("template_original"),
        "selection.both": accuracy("baseline", -1) - none,
        "selection.template": accuracy("select_template", -1) - none,
        "selection.content": accuracy("template_original", -1) - none,
        "selection.mixed": accuracy("select_mixed", -1) - none,
        "selection.max_divergence": accuracy("select_divergence", -1) - none,
        "selection.entropy": last("select_mixed", "entropy") / last("baseline", "entropy"),
    }


def test_every_number_is_what_its_claim_says(evidence, results):
    found = claims_of(results)
    want = oracle(evidence)
    assert {name: claim.ours for name, claim in found.items()} == pytest.approx(want, rel=1e-6)
    for name, claim in found.items():
        if claim.low == claim.low:
            assert claim.low <= claim.ours <= claim.high, name


def test_runs_like_the_papers_show_its_claims(results):
    verdicts = {name: claim.verdict for name, claim in claims_of(results).items()}
    # In these runs, unlike the paper's, more overlap is always more mass on it.
    # What is judged by an interval has none over so few prompts or steps of one seed.
    assert {name for name, verdict in verdicts.items() if verdict != "shown"} == {
        "fig10.mass",
        "fig08.smoother",
        "fig21.steadier",
        "fig21.student_mass",
        "fig21.teacher_mass",
    }


def test_runs_unlike_the_papers_show_none_of_it(swapped):
    found = claims_of({figure: analyse(swapped) for figure, analyse in ANALYSES.items()})
    verdicts = {name: claim.verdict for name, claim in found.items()}
    assert {name for name, verdict in verdicts.items() if verdict == "shown"} == {
        "fig20.stronger",  # about models, not runs
    }
    assert {name for name, verdict in verdicts.items() if verdict == "not shown"} >= {
        "fig08.starts_higher",  # one and the same student, data or run
        "fig09.overlap_start",
        "selection.content",
        "selection.entropy",
        "fig20.recovery",  # nothing moves
        "fig20.failure",
        "fig20.overlap",
        "fig20.overlap_flat",
        "fig20.advantage",
        "fig20.gap",
    }


@pytest.mark.parametrize("weaker", ["rl_base_large", "post_large"])
def test_two_teachers_far_apart_are_not_comparable(evidence, weaker):
    scores = evidence.scores | {weaker: evidence.scores["base"]}
    (claim,) = teachers.own_accuracy(replace(evidence, scores=scores)).claims
    assert claim.verdict == "opposite"
    assert (claim.ours < 0) == (weaker == "rl_base_large")


# Panels


def test_results_are_labelled_and_survive_the_file(results, tmp_path):
    for figure, result in results.items():
        save(result, tmp_path / f"{figure}.json")
        back = load(tmp_path / f"{figure}.json")
        assert [claim.id for claim in back.claims] == [claim.id for claim in result.claims]
        assert result.figure == figure
        assert all(claim.id.startswith(f"{figure}.") for claim in result.claims)
        assert set(result.meta.runs) == set(FIGURES[figure].experiments)
        assert len({panel.name for panel in result.panels}) == len(result.panels)
        for panel in result.panels:
            assert panel.x_label
            assert panel.y_label
            assert all(len(series.x) for series in panel.series)


def test_a_label_looks_the_same_in_every_panel(results):
    """A figure has one legend, in which a label stands once."""
    for result in results.values():
        looks = {
            (line.label, line.role)
            for panel in result.panels
            for line in (*panel.series, *panel.references)
        }
        assert len({label for label, _ in looks}) == len(looks), result.figure


def test_panels_by_benchmark_are_as_many_as_benchmarks(evidence, results):
    (run,) = evidence.runs["no_cold_start"]
    for panel, name in zip(results["fig17"].panels, BENCHMARKS, strict=True):
        assert (panel.title, panel.name) == (name, f"accuracy_{name}")
        want = run.evaluation(name)["score"].values.mean(axis=1)
        np.testing.assert_allclose(panel.series[1].y, want)
        assert panel.references[0].y == evidence.scores["rl_base_large"][name].mean()
    assert [panel.title for panel in results["fig22"].panels] == list(BENCHMARKS)

    hard = {role: {"hard": scores["hard"]} for role, scores in evidence.scores.items()}
    alone = replace(evidence, scores=hard)
    assert [c.id for c in teachers.by_benchmark(alone).claims] == ["fig17.hard"]
    assert [p.title for p in template.by_benchmark(alone).panels] == ["hard"]
    assert teachers.own_accuracy(alone).panels[0].ticks == ["hard"]


def test_teachers_bars_are_their_accuracies(evidence, results):
    result = results["fig03"]
    (panel,) = result.panels
    assert (panel.kind, list(panel.ticks)) == ("bar", list(BENCHMARKS))
    for series, role in zip(panel.series, ("rl_base_large", "post_large"), strict=True):
        assert series.role == role
        assert list(series.x) == [0, 1, 2]
        want = [evidence.scores[role][name].mean() for name in BENCHMARKS]
        assert series.y == pytest.approx(want)
        assert all(lo < y < hi for lo, y, hi in zip(series.low, series.y, series.high, strict=True))
    assert "bootstrap" in result.meta.interval


def test_recovery_bars_are_those_of_the_runs(evidence, results):
    panel = results["fig04"].panels[-1]
    assert (panel.kind, list(panel.ticks)) == ("bar", ["Family 1", "Family 2"])
    runs = (("large_same", "post_same"), ("large_rl", "post_rl"))
    for series, names in zip(panel.series, runs, strict=True):
        want = [evidence.recovery(name)[0].value for name in names]
        assert series.y == pytest.approx(want)
    (before, after) = results["fig01"].panels[0].series
    assert (before.y[0], after.y[0]) == (panel.series[0].y[0], panel.series[1].y[0])


def test_families_are_drawn_alike(evidence, results):
    *families, bars = results["fig04"].panels
    for panel, runs in zip(
        families, (("large_same", "large_rl"), ("post_same", "post_rl")), strict=True
    ):
        assert [s.role for s in panel.series] == [s.role for s in bars.series]
        ends = [evidence.accuracy(name)[0].value for name in runs]
        assert [s.y[-1] for s in panel.series] == pytest.approx(ends)
        teachers = [evidence.role(EXPERIMENTS[name].teacher).value for name in runs]
        assert [line.y for line in panel.references] == pytest.approx(teachers)


# Seeds and steps


def test_seeds_are_compared_pairwise(make_evidence):
    """What is said of a curve is said of each seed's own, not of their mean."""
    evidence = make_evidence({"cold_start": 3, "no_cold_start": 3}, seeds=range(3))
    found = {c.id: c for f in (cold_start.analyse, cold_start.mass) for c in f(evidence).claims}

    def per_seed(name, quantity):
        runs = (by_step(run) for run in evidence.runs[name])
        return [[mean([step], quantity) for step in steps] for steps in runs]

    for claim, quantity, statistic in [
        ("fig08.smoother", "overlap", lambda curve: np.abs(np.diff(curve)).mean()),
        ("fig21.steadier", "student_mass", np.std),
    ]:
        with_, without = (
            np.array([statistic(curve) for curve in per_seed(name, quantity)])
            for name in ("cold_start", "no_cold_start")
        )
        ratios = with_ / without
        half = stats.t.ppf(0.975, 2) * stats.sem(ratios)
        assert found[claim].ours == pytest.approx(ratios.mean(), rel=1e-6)
        assert found[claim].low == pytest.approx(ratios.mean() - half, rel=1e-6)
        assert found[claim].high == pytest.approx(ratios.mean() + half, rel=1e-6)


def test_the_deviation_of_drawn_steps(drawn_rows):
    values = np.random.default_rng(0).normal(5, 2, 30)
    estimate = cold_start._deviation(values)
    assert estimate.value == pytest.approx(values.std())
    rows = drawn_rows(30, len(estimate.samples))
    np.testing.assert_allclose(estimate.samples, [values[drawn].std() for drawn in rows])
    assert cold_start._deviation(np.full(7, 0.1)).value == 0
