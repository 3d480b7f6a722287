"""The claims about teachers and recipes, recomputed by plain loops; both ways they can fall out."""

from dataclasses import replace
from statistics import mean

import numpy as np
import pytest
from oracle import BENCHMARKS, claims_of, seeds

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
# Of the other runs, the accuracy alone matters.
WHOLE = (
    "success", "baseline", "failure", "large_success", "large_failure", "base_rl", "base_post",
    "no_cold_start", "cold_start", "template_original", "content_other", "select_mixed",
)  # fmt: skip


@pytest.fixture(scope="module")
def evidence(make_evidence):
    used = {name for figure in ANALYSES for name in FIGURES[figure].experiments}
    recorded = {name: 12 if name in WHOLE else 1 for name in sorted(used)}
    return make_evidence(recorded, range(3))


@pytest.fixture(scope="module")
def each(evidence):
    return seeds(evidence)


@pytest.fixture(scope="module")
def swapped(evidence):
    """The same evidence with what should win and what should lose exchanged."""
    names = {
        "success": "failure",
        "failure": "success",
        "baseline": "failure",
        "template_original": "success",
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
        "no_cold_start": "cold_start",
        "no_cold_start_long": "cold_start",
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


def oracle(seed):
    def other(a, b, *roles):
        """Mean over tests of the difference of the areas; no role is the preset's benchmarks."""
        return mean(seed.final(a, b, benchmarks=BENCHMARKS if r is None else [r]) for r in roles)

    def helps(name):
        return other(name, "select_none", None, "other", "original", "other_original")

    def own(name, matched, unmatched):
        return other(name, "select_none", matched) - other(name, "select_none", unmatched)

    def first(a, b, quantity="overlap"):
        return seed.first(a, quantity) - seed.first(b, quantity)

    cold = ("cold_start", "no_cold_start")
    template_ = ("baseline", "template_original")
    content_ = ("base_rl", "content_other")
    comparable = seed.role("rl_base_large") - seed.role("post_large")
    family = {
        1: seed.recovery("large_rl") - seed.recovery("large_same"),
        2: seed.recovery("post_rl") - seed.recovery("post_same"),
    }
    return {
        "fig01.recovery": family[1],
        "fig01.reverse": seed.accuracy("reverse_large", "end") - seed.role("student"),
        "fig01.overlap": seed.change("success", "overlap") - seed.change("failure", "overlap"),
        "fig02.wins": seed.final("base_rl", "base_post"),
        "fig02.overlap_start": first("base_rl", "base_post"),
        "fig02.not_stronger": comparable,
        "fig03.comparable": comparable,
        "fig04.family1": family[1],
        "fig04.family2": family[2],
        "fig08.ceiling": seed.final("cold_start", "no_cold_start_long", "end"),
        "fig08.final": seed.final(*cold, "end"),
        "fig08.adds": seed.gain("cold_start"),
        "fig08.starts_higher": seed.start("cold_start") - seed.start("no_cold_start"),
        "fig08.overlap_start": first(*cold),
        "fig08.gap_start": seed.first("cold_start", "gap") / seed.first("no_cold_start", "gap"),
        "fig08.smoother": seed.unrest("cold_start", "overlap")
        - seed.unrest("no_cold_start", "overlap"),
        "fig09.accuracy": seed.final(*template_),
        "fig09.accuracy_other": other(*template_, "original"),
        "fig09.interaction": seed.final(*template_) - other(*template_, "original"),
        "fig09.overlap_start": first(*template_),
        "fig10.accuracy": seed.final(*content_),
        "fig10.accuracy_other": other(*content_, "other"),
        "fig10.interaction": seed.final(*content_) - other(*content_, "other"),
        "fig10.overlap": seed.over_all(*content_, "overlap"),
        "fig10.mass": seed.over_all(*content_, "student_mass"),
        "fig10.entropy": seed.last("base_rl", "entropy") / seed.last("content_other", "entropy"),
        **{
            f"fig17.{name}": seed.final("base_rl", "base_post", benchmarks=[name])
            for name in BENCHMARKS
        },
        "fig20.recovery": seed.recovery("large_success"),
        "fig20.stronger": seed.role("extra_large") - seed.role("large"),
        "fig20.failure": seed.recovery("large_failure") / seed.recovery("large_success"),
        "fig20.overlap": seed.change("large_success", "overlap"),
        "fig20.overlap_flat": seed.change("large_failure", "overlap")
        / seed.change("large_success", "overlap"),
        "fig20.advantage": seed.left("large_success", "advantage"),
        "fig20.advantage_flat": seed.left("large_failure", "advantage"),
        "fig20.gap": seed.left("large_success", "gap"),
        "fig20.gap_flat": seed.left("large_failure", "gap"),
        "fig21.student_mass": seed.over_all(*cold, "student_mass"),
        "fig21.teacher_mass": seed.over_all(*cold, "teacher_mass"),
        "fig21.steadier": seed.unrest("cold_start", "student_mass")
        - seed.unrest("no_cold_start", "student_mass"),
        "fig22.recovery": seed.recovery("baseline") - seed.recovery("template_original"),
        "selection.both": helps("baseline"),
        "selection.template": helps("select_template"),
        "selection.content": helps("template_original"),
        "selection.mixed": helps("select_mixed"),
        "selection.max_divergence": helps("select_divergence"),
        "selection.template_own": own("select_template", "other", "other_original"),
        "selection.content_own": own("template_original", "original", "other_original"),
        "selection.entropy": seed.last("select_mixed", "entropy")
        / seed.last("baseline", "entropy"),
    }


def test_every_number_of_every_seed_is_what_its_claim_says(each, results):
    want = [oracle(seed) for seed in each]
    found = claims_of(*results.values())
    assert set(found) == set(want[0])
    for name, claim in found.items():
        values = [seed[name] for seed in want]
        assert list(claim.seeds) == pytest.approx(values, rel=1e-6, abs=1e-9), name
        assert claim.ours == pytest.approx(mean(values), rel=1e-6, abs=1e-9), name
        assert claim.low <= claim.ours <= claim.high, name


def test_runs_like_the_papers_support_its_claims(results):
    verdicts = {name: claim.verdict for name, claim in claims_of(*results.values()).items()}
    assert {name: v for name, v in verdicts.items() if v != "supported"} == {
        "fig10.mass": "refuted",  # in these runs, more overlap is always more mass on it
        # Either prompts win where they are tested.
        "fig09.accuracy_other": "refuted",
        "fig10.accuracy_other": "refuted",
        "selection.content_own": "inconclusive",  # tested on few problems
    }


def test_runs_unlike_the_papers_support_none(swapped):
    found = claims_of(*(analyse(swapped) for analyse in ANALYSES.values()))
    verdicts = {name: claim.verdict for name, claim in found.items()}
    assert {name for name, verdict in verdicts.items() if verdict == "supported"} == {
        "fig20.stronger",  # about models, not runs
        "fig10.mass",
        "fig08.adds",  # either run learns
    }


@pytest.mark.parametrize(
    ("module", "figure", "names"),
    [
        (template, "fig09", ("baseline", "template_original")),
        (content, "fig10", ("base_rl", "content_other")),
    ],
)
def test_prompts_exchanged_reverse_every_comparison(evidence, results, module, figure, names):
    """Also what crossed tests say: a difference the other way round has the other sign."""
    a, b = (evidence.runs[name] for name in names)
    exchanged = replace(evidence, runs=evidence.runs | dict(zip(names, (b, a), strict=True)))
    found, other = claims_of(results[figure]), claims_of(module.analyse(exchanged))
    for name in ("accuracy", "accuracy_other", "interaction"):
        mine, theirs = found[f"{figure}.{name}"], other[f"{figure}.{name}"]
        assert theirs.ours == pytest.approx(-mine.ours)
        assert {mine.verdict, theirs.verdict} == {"supported", "refuted"}


def test_where_no_selection_wins_all_gains_are_refuted(evidence):
    worse = {run: evidence.runs["select_none"] for run in selection.RUNS}
    runs = evidence.runs | worse | {"select_none": evidence.runs["select_mixed"]}
    found = claims_of(selection.analyse(replace(evidence, runs=runs)))
    assert {found[f"selection.{name}"].verdict for name in selection.GAINS} == {"refuted"}


def test_without_tests_of_the_other_kinds_nothing_is_said_of_them(make_evidence):
    used = {*FIGURES["fig09"].experiments, *FIGURES["fig10"].experiments}
    used |= {*FIGURES["selection"].experiments}
    evidence = make_evidence(dict.fromkeys(sorted(used), 1), crossed=False)
    found = [
        analyse(evidence) for analyse in (template.analyse, content.analyse, selection.analyse)
    ]
    unknown = {name for name, claim in claims_of(*found).items() if np.isnan(claim.ours)}
    assert unknown == {
        *("fig09.accuracy_other", "fig09.interaction"),
        *("fig10.accuracy_other", "fig10.interaction"),
        *(f"selection.{name}" for name in selection.GAINS),
        *("selection.template_own", "selection.content_own"),
    }
    assert {claims_of(*found)[name].verdict for name in unknown} == {"inconclusive"}
    assert not any("accuracy_" in panel.name for result in found for panel in result.panels)


@pytest.mark.parametrize("weaker", ["rl_base_large", "post_large"])
def test_two_teachers_far_apart_are_not_comparable(evidence, weaker):
    scores = evidence.scores | {weaker: evidence.scores["base"]}
    (claim,) = teachers.own_accuracy(replace(evidence, scores=scores)).claims
    assert claim.verdict == "refuted"
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
    for panel, name in zip(results["fig17"].panels, BENCHMARKS, strict=True):
        assert (panel.title, panel.name) == (name, f"accuracy_{name}")
        runs = evidence.runs["base_post"]
        want = [run.evaluation(name)["score"].values.mean(axis=1) for run in runs]
        np.testing.assert_allclose(panel.series[1].y, np.mean(want, axis=0))
        (scores, *_) = evidence.scores["rl_base_large"]
        assert panel.references[0].y == pytest.approx(scores[name].mean())
    assert [panel.title for panel in results["fig22"].panels] == list(BENCHMARKS)

    hard = {
        role: [{"hard": one["hard"]} for one in scores] for role, scores in evidence.scores.items()
    }
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
        want = [evidence.scores[role][0][name].mean() for name in BENCHMARKS]
        assert series.y == pytest.approx(want)
        assert all(lo < y < hi for lo, y, hi in zip(series.low, series.y, series.high, strict=True))
    assert "bootstrap" in result.meta.interval


def test_recovery_bars_are_those_of_the_runs(each, results):
    panel = results["fig04"].panels[-1]
    assert (panel.kind, list(panel.ticks)) == ("bar", ["Family 1", "Family 2"])
    runs = (("large_same", "post_same"), ("large_rl", "post_rl"))
    for series, names in zip(panel.series, runs, strict=True):
        want = [mean(seed.recovery(name) for seed in each) for name in names]
        assert series.y == pytest.approx(want)
    (before, after) = results["fig01"].panels[0].series
    assert (before.y[0], after.y[0]) == (panel.series[0].y[0], panel.series[1].y[0])


def test_families_are_drawn_alike(each, results):
    *families, bars = results["fig04"].panels
    for panel, runs in zip(
        families, (("large_same", "large_rl"), ("post_same", "post_rl")), strict=True
    ):
        assert [s.role for s in panel.series] == [s.role for s in bars.series]
        starts = [mean(seed.accuracy(name, "start") for seed in each) for name in runs]
        assert [s.y[0] for s in panel.series] == pytest.approx(starts)
        teachers = [each[0].role(EXPERIMENTS[name].teacher) for name in runs]
        assert [line.y for line in panel.references] == pytest.approx(teachers)
