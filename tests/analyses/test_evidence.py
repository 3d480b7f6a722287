"""What figures share: recovery, changes, panels, verdicts."""

from dataclasses import replace
from statistics import mean

import numpy as np
import pytest
from oracle import BENCHMARKS, accuracy, by_step, drawn, interval, unrest
from scipy import stats

from analyses.evidence import (
    _weights,
    accuracy_panel,
    claim,
    curve_panel,
    differences,
    metric_series,
    ratios,
)
from opdprobe.probes import curve
from opdprobe.probes.bootstrap import N_BOOT, Estimate, resample, unit_keys
from opdprobe.probes.rollout_sums import RolloutSums
from opdprobe.report.estimate import exact

NAN = float("nan")


@pytest.fixture(scope="module")
def three_seeds(make_evidence):
    return make_evidence({"success": 3, "reverse_small": 1}, range(3))


def scores(run, end, benchmarks=BENCHMARKS):
    return np.concatenate([run.evaluation(name)["score"].values[end] for name in benchmarks])


def role_scores(evidence, role):
    return np.concatenate([evidence.scores[role][0][name] for name in BENCHMARKS])


@pytest.mark.parametrize("when", ["start", "end", "whole"])
@pytest.mark.parametrize("benchmark", [None, "hard", "other"])
def test_accuracy_before_at_the_end_and_over_all_of_training(evidence, when, benchmark):
    (estimate,) = evidence.accuracy("baseline", when, benchmark=benchmark)
    (run,) = evidence.runs["baseline"]
    # The problems of other prompt roles are no part of what has no name.
    want = accuracy(run, when, BENCHMARKS if benchmark is None else [benchmark])
    assert estimate.value == pytest.approx(want)
    low, high = estimate.interval()
    assert 0 <= low < want < high <= 1


@pytest.mark.parametrize(
    ("steps", "when", "weights"),
    [
        ([0, 12, 24, 36, 48], "end", [0, 0, 0, 0.5, 0.5]),
        ([0, 12, 24, 36, 48], "whole", [0.125, 0.25, 0.25, 0.25, 0.125]),
        ([0, 12, 20], "end", [0, 0, 1]),
        ([0, 12, 20], "whole", [0.3, 0.5, 0.2]),
        ([100, 108], "end", [0, 1]),
        ([0, 12], "start", [1, 0]),
        *(([0], when, [1]) for when in ("start", "end", "whole")),
    ],
)
def test_the_weight_of_each_evaluation(steps, when, weights):
    assert _weights(steps, when).tolist() == pytest.approx(weights)


def test_seeds_share_the_accuracy_before_training_if_they_share_the_student(three_seeds):
    each = [accuracy(run, "start") for run in three_seeds.runs["reverse_small"]]
    assert len(set(each)) == 3  # it is measured anew with each
    shared = three_seeds.start("reverse_small")
    assert [e.value for e in shared] == pytest.approx([np.mean(each)] * 3)
    own = replace(three_seeds, models={**three_seeds.models, "rl_student": ("a", "b", "c")})
    assert [e.value for e in own.start("reverse_small")] == pytest.approx(each)
    for evidence, starts in ((three_seeds, [np.mean(each)] * 3), (own, each)):
        ends = [accuracy(run, "end") for run in evidence.runs["reverse_small"]]
        gains = [e.value for e in evidence.gain("reverse_small")]
        assert gains == pytest.approx(np.subtract(ends, starts))


def test_each_seed_has_the_teacher_that_it_learnt_from(three_seeds):
    """Also its own: the gap of a seed is to that model."""
    others = [
        {name: np.minimum(values + i / 20, 1) for name, values in one.items()}
        for i, one in enumerate(three_seeds.scores["rl_student"])
    ]
    evidence = replace(three_seeds, scores=three_seeds.scores | {"rl_student": others})
    teachers = [np.concatenate(list(one.values())).mean() for one in others]
    assert [e.value for e in evidence.role("rl_student")] == pytest.approx(teachers)
    runs = evidence.runs["success"]
    start = np.mean([accuracy(run, "start") for run in runs])
    want = [
        (accuracy(run, "end") - start) / (teacher - start)
        for run, teacher in zip(runs, teachers, strict=True)
    ]
    assert [e.value for e in evidence.recovery("success")] == pytest.approx(want)


def test_unrest_is_what_drawing_prompts_does_not_explain(three_seeds):
    found = three_seeds.unrest("success", "overlap_ratio")
    want = [unrest(by_step(run), "overlap") for run in three_seeds.runs["success"]]
    assert [e.value for e in found] == pytest.approx(want)
    assert np.isnan([e.interval() for e in found]).all()


@pytest.mark.parametrize(
    ("per_step", "want"),
    [
        # Two prompts of one state each: the squared standard error of 1 and 3 is 1.
        ([(1, 3), (1, 3)], -2.0),
        ([(2, 2), (3, 3), (2, 2)], 1.0),
        ([(2, 2)], NAN),  # a step alone does not move
        ([(2,), (3,)], NAN),  # one prompt does not say how much prompts differ
    ],
)
def test_unrest_of_known_curves(three_seeds, per_step, want):
    (run, *_) = three_seeds.runs["success"]
    sizes = [len(step) for step in per_step]
    values = np.array([v for step in per_step for v in step], float)
    sums = RolloutSums(
        steps=np.arange(len(per_step)),
        first=np.cumsum([0, *sizes]),
        unit=unit_keys(i for size in sizes for i in range(size)),
        length=np.ones(values.size, int),
        total={"overlap_ratio": values},
        n={"overlap_ratio": np.ones(values.size, int)},
    )
    evidence = replace(three_seeds, runs={"success": [run]}, sums={run.path: sums})
    (found,) = evidence.unrest("success", "overlap_ratio")
    assert found.value == pytest.approx(want, nan_ok=True)


def test_runs_are_tested_on_other_kinds_of_problems_only_where_they_say_so(evidence, make_evidence):
    titles = {"other": "Other kind of problems"}
    (panel,) = evidence.crossed_panels({"baseline": "B"}, titles)
    assert (panel.name, panel.title) == ("accuracy_other", "Other kind of problems")
    (run,) = evidence.runs["baseline"]
    want = run.evaluation("other")["score"].values.mean(axis=1)
    assert list(panel.series[0].y) == pytest.approx(want.tolist())
    assert evidence.crossed_panels({"baseline": "B", "success": "S"}, titles) == []
    (unknown,) = evidence.accuracy("success", benchmark="other")
    assert np.isnan(unknown.value)
    # Without them, what names no benchmark is the same.
    without = make_evidence({"baseline": 1}, crossed=False)
    assert without.crossed_panels({"baseline": "B"}, titles) == []
    (a,), (b,) = (e.accuracy("baseline") for e in (evidence, without))
    assert (a.value, a.interval()) == (b.value, b.interval())


@pytest.mark.parametrize("benchmark", ["easy", "medium", "hard"])
def test_a_benchmark_has_its_own_accuracy_and_recovery(evidence, benchmark):
    (run,) = evidence.runs["success"]
    before, last = (scores(run, end, [benchmark]).mean() for end in (0, -1))
    after = accuracy(run, "end", [benchmark])
    best = evidence.scores["rl_student"][0][benchmark].mean()
    (estimate,) = evidence.role("rl_student", benchmark=benchmark)
    assert estimate.value == pytest.approx(best)
    (estimate,) = evidence.recovery("success", benchmark=benchmark)
    assert estimate.value == pytest.approx((after - before) / (best - before))
    panel = accuracy_panel(
        evidence, {"success": "S"}, {"rl_student": "T"}, title="T", benchmark=benchmark
    )
    assert panel.name == f"accuracy_{benchmark}"
    assert (panel.series[0].y[0], panel.series[0].y[-1]) == pytest.approx((before, last))
    assert panel.references[0].y == pytest.approx(best)


@pytest.mark.parametrize(
    ("name", "teacher"),
    [("success", "rl_student"), ("failure", "large"), ("reverse_small", "student")],
)
def test_recovery_is_the_share_of_the_gap_on_the_same_problems(evidence, name, teacher):
    (run,) = evidence.runs[name]
    before, best = scores(run, 0), role_scores(evidence, teacher)
    after = (scores(run, -2) + scores(run, -1)) / 2  # the last quarter of the steps
    (estimate,) = evidence.recovery(name)
    want = (after.mean() - before.mean()) / (best.mean() - before.mean())
    assert estimate.value == pytest.approx(want)
    sizes = {"easy": 20, "medium": 18, "hard": 16}
    samples = []
    for times in drawn(f"{name}/{i}" for name, size in sizes.items() for i in range(size)):
        rows = [i for i, n in enumerate(times) for _ in range(int(n))]
        b, a, t = (mean(values[rows].tolist()) for values in (before, after, best))
        samples.append((a - b) / (t - b))
    np.testing.assert_allclose(estimate.samples, samples)
    low, high = estimate.interval()
    assert low < want < high


def test_no_gap_has_no_recovery(evidence):
    (run,) = evidence.runs["success"]
    before = {name: run.evaluation(name)["score"].values[0] for name in evidence.benchmarks}
    level = replace(evidence, scores={"rl_student": [before]})
    (estimate,) = level.recovery("success")
    assert np.isnan(estimate.value)
    assert np.isnan(estimate.samples).all()


def test_change_and_remaining_compare_the_first_five_steps_with_the_last_five(evidence):
    (run,) = evidence.runs["success"]
    first, last = (
        run.states(steps)["reverse_kl"].values.astype(float).mean()
        for steps in (range(5), range(7, 12))
    )
    (change,) = evidence.change("success", "reverse_kl")
    (left,) = evidence.remaining("success", "reverse_kl")
    assert change.value == pytest.approx(last - first, rel=1e-9)
    assert left.value == pytest.approx(last / first, rel=1e-9)


def test_a_run_of_less_than_ten_steps_does_not_tell_a_change(evidence):
    (run,) = evidence.runs["success"]
    sums = evidence.sums_of(run)
    cut = replace(evidence, sums={run.path: replace(sums, steps=sums.steps[:9])})
    for measure in (cut.change, cut.remaining):
        (found,) = measure("success", "reverse_kl")
        assert np.isnan(found.value)


def test_pairs_are_compared_seed_by_seed():
    a, b = (
        [resample(np.array(v)) for v in pair] for pair in ([[1.0, 3], [6.0, 8]], [[4.0], [0.0]])
    )
    assert [e.value for e in differences(a, b)] == [-2, 7]
    assert [e.value for e in ratios(a, b)] == pytest.approx([0.5, NAN], nan_ok=True)
    with pytest.raises(ValueError, match="shorter"):
        differences(a, b[:1])


def test_nothing_at_the_start_leaves_no_share(evidence):
    (run,) = evidence.runs["failure"]
    sums = evidence.sums_of(run)
    nothing = replace(sums, total={name: 0 * total for name, total in sums.total.items()})
    (left,) = replace(evidence, sums={run.path: nothing}).remaining("failure", "reverse_kl")
    assert np.isnan(left.value)


def test_meta_counts_what_is_behind_a_figure(evidence, five_seeds):
    meta = evidence.meta(["success", "failure"])
    tables = [evidence.runs[n][0].rollouts() for n in ("success", "failure")]
    assert meta.n_rollouts == sum(t.sizes["rollout"] for t in tables) == 2 * 12 * 24
    assert meta.n_states == sum(int(t.length.sum()) for t in tables) == 2 * 12 * 4 * 30
    assert (meta.seeds, meta.k, meta.preset) == ([0], 8, "quick")
    assert meta.runs["failure"] == {
        "student": "zoo:sft-small",
        "teacher": "zoo:sft-large",
        "steps": 12,
        "states": 1440,
        "settings": "",
    }
    several = replace(evidence, models={**evidence.models, "large": ("a", "b")})
    assert several.meta(["failure"]).runs["failure"]["teacher"] == "a, b"
    assert meta.config == {"eval_n": 4}
    assert "bootstrap" in meta.interval
    assert five_seeds.meta(["success"]).seeds == [0, 1, 2, 3, 4]
    assert five_seeds.meta(["success"]).interval == (
        "95 % over 5 seeds (Student's t) and over prompts or problems (bootstrap)"
    )
    assert five_seeds.meta(["success"]).runs["success"]["states"] == 5 * 3 * 4 * 30


# Panels


def test_accuracy_panel_shows_every_evaluation(evidence):
    panel = accuracy_panel(evidence, {"success": "S", "failure": "F"}, {"large": "larger"})
    assert panel.y_label == "accuracy (avg@4)"
    assert [s.label for s in panel.series] == ["S", "F"]
    (run,) = evidence.runs["failure"]
    series = panel.series[1]
    assert list(series.x) == [0, 4, 9, 12]
    np.testing.assert_allclose(series.y, [scores(run, i).mean() for i in range(4)])
    assert all(lo < y < hi for lo, y, hi in zip(series.low, series.y, series.high, strict=True))
    (line,) = panel.references
    assert (line.role, line.label) == ("large", "larger")
    assert line.y == pytest.approx(role_scores(evidence, "large").mean())


def test_accuracy_panel_of_five_seeds_has_an_interval_over_seeds_and_problems(five_seeds):
    (series,) = accuracy_panel(five_seeds, {"success": "S"}, {}).series
    for i in range(4):
        each = np.array([scores(run, i) for run in five_seeds.runs["success"]])
        samples = resample(each.mean(axis=0)).samples
        assert series.y[i] == pytest.approx(each.mean())
        want = interval(each.mean(axis=1).tolist(), samples)
        assert (series.low[i], series.high[i]) == pytest.approx(want)


def test_curve_panel_is_the_curve_of_one_run(evidence):
    panel = curve_panel(evidence, "overlap_token_advantage", {"failure": "F"})
    want = curve(evidence.runs["failure"][0], "overlap_token_advantage", n_boot=N_BOOT)
    (series,) = panel.series
    assert list(series.x) == list(range(12))
    for name, got in (("value", series.y), ("low", series.low), ("high", series.high)):
        np.testing.assert_allclose(got, want[name])
    assert panel.y_label == "overlap-token advantage [nats]"
    ratio = curve_panel(evidence, "overlap_ratio", {"failure": "F"})
    assert ratio.y_label == "overlap ratio"
    mass = curve_panel(evidence, "teacher_overlap_mass", {"failure": "F"})
    assert mass.y_label == "teacher overlap mass"


@pytest.mark.parametrize(
    ("probe", "least", "most"),
    [
        ("reverse_kl", 0, np.inf),
        ("student_overlap_mass", 0, 1),
        ("overlap_token_advantage", -np.inf, np.inf),
    ],
)
def test_curve_panel_of_five_seeds_is_their_mean_with_students_interval(
    five_seeds, probe, least, most
):
    (series,) = curve_panel(five_seeds, probe, {"success": "S"}).series
    values = np.array([curve(run, probe)["value"] for run in five_seeds.runs["success"]])
    low, high = stats.t.interval(0.95, 4, loc=values.mean(0), scale=stats.sem(values))
    np.testing.assert_allclose(series.y, values.mean(0))
    np.testing.assert_allclose(series.low, np.maximum(low, least))
    np.testing.assert_allclose(series.high, np.minimum(high, most))


def test_logged_scalars_have_a_band_with_three_seeds_or_more_only(evidence, five_seeds):
    one = metric_series(evidence.runs["success"], "loss", role="success", label="S")
    # The last evaluation is a row of the metrics without a loss: no point of the curve.
    assert list(one.x) == list(range(12))
    np.testing.assert_array_equal(one.y, evidence.runs["success"][0].metrics["loss"].values[:12])
    assert np.isnan([*one.low, *one.high]).all()
    many = metric_series(five_seeds.runs["success"], "loss", role="success", label="S")
    values = np.array([run.metrics["loss"].values[:12] for run in five_seeds.runs["success"]])
    low, high = stats.t.interval(0.95, 4, loc=values.mean(0), scale=stats.sem(values))
    np.testing.assert_allclose(many.low, low)
    np.testing.assert_allclose(many.high, high)


# Verdicts


class Given(Estimate):
    """An estimate whose interval is from its smallest to its largest sample, at either level."""

    def interval(self, level=0.95):
        extra = 0.0 if level == 0.9 else self.samples[2]
        return float(self.samples[0]) - extra, float(self.samples[1]) + extra


def given(low, high, *, wider=0.0):
    """One seed with this interval; the 95 % one is wider at both ends by `wider`."""
    return [Given((low + high) / 2, np.array([low, high, wider]))]


def judged(ours, **limits):
    return claim("fig06.x", "the claim", paper="1", ours=ours, statistic="gain", **limits)


@pytest.mark.parametrize(
    ("low", "high", "above", "below"),
    [
        (1.1, 1.3, "supported", "refuted"),
        (0.9, 1.3, "inconclusive", "inconclusive"),
        (0.7, 0.9, "refuted", "supported"),
        # The limit itself is neither above nor below it.
        (1.0, 1.3, "inconclusive", "refuted"),
        (0.7, 1.0, "refuted", "inconclusive"),
        (1.0, 1.0, "refuted", "refuted"),
        (-np.inf, np.inf, "inconclusive", "inconclusive"),
        (NAN, NAN, "inconclusive", "inconclusive"),
    ],
)
def test_a_direction_is_judged_by_the_whole_interval(low, high, above, below):
    up, down = judged(given(low, high), above=1), judged(given(low, high), below=1)
    assert (up.verdict, down.verdict) == (above, below)
    assert (up.test, down.test) == ("gain > 1", "gain < 1")
    assert up.level == down.level == 0.95


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (-0.02, 0.02, "supported"),
        (-0.03, 0.02, "inconclusive"),  # a limit is outside
        (-0.02, 0.03, "inconclusive"),
        (-0.05, 0.05, "inconclusive"),
        (0.02, 0.05, "inconclusive"),
        (0.03, 0.05, "refuted"),
        (-0.05, -0.03, "refuted"),
        (0.04, 0.05, "refuted"),
        (NAN, NAN, "inconclusive"),
    ],
)
def test_an_equivalence_needs_both_ends_within_the_limits(low, high, verdict):
    found = judged(given(low, high), above=-0.03, below=0.03)
    assert (found.verdict, found.test) == (verdict, "|gain| < 0.03")


@pytest.mark.parametrize(
    ("change", "verdicts"),
    [
        ((0.1, 0.3), ("supported", "refuted")),
        ((-0.1, 0.3), ("inconclusive", "inconclusive")),
        ((0.0, 0.3), ("inconclusive", "inconclusive")),
        ((-0.3, -0.1), ("inconclusive", "inconclusive")),  # it went the other way
        ((NAN, NAN), ("inconclusive", "inconclusive")),
    ],
)
def test_a_share_of_no_change_says_nothing(change, verdicts):
    of = given(*change)
    found = [
        judged(given(-0.2, 0.3), **limit, relative_to=of)
        for limit in ({"below": 0.5}, {"above": 0.5})
    ]
    assert tuple(one.verdict for one in found) == verdicts


def test_an_equivalence_is_judged_at_90_percent():
    """Two one-sided tests at 5 %; a direction that the same numbers say has two sides of 2.5 %."""
    ours = given(-0.02, 0.02, wider=0.02)
    both = judged(ours, above=-0.03, below=0.03)
    assert (both.level, both.low, both.high, both.verdict) == (0.9, -0.02, 0.02, "supported")
    one = judged(ours, below=0.03)
    assert (one.level, one.low, one.high) == (0.95, -0.04, 0.04)
    assert one.verdict == "inconclusive"
    uneven = judged(given(2, 3), above=1, below=6)
    assert (uneven.level, uneven.test) == (0.9, "gain between 1 and 6")


@pytest.mark.parametrize("limits", [{"above": 0.5}, {"above": 0.5, "below": 0.9}])
def test_the_interval_of_five_seeds_is_at_the_level_of_the_claim(limits):
    values = [0.6, 0.7, 0.72, 0.8, 0.65]
    problems = np.random.default_rng(0).normal(0, 0.1, 40)
    problems -= problems.mean()
    found = judged([resample(value + problems) for value in values], **limits)
    level = 0.9 if "below" in limits else 0.95
    want = interval(values, np.mean(values) + resample(problems).samples, level)
    assert (found.low, found.high) == pytest.approx(want)
    assert list(found.seeds) == pytest.approx(values)
    assert (found.ours, found.level) == (pytest.approx(np.mean(values)), level)


def test_one_seed_that_lacks_the_number_leaves_the_claim_open():
    known = [exact(v) for v in (0.6, 0.7, 0.8)]
    assert judged(known, above=0).verdict == "supported"
    found = judged([*known, exact(NAN)], above=0)
    assert found.verdict == "inconclusive"
    assert np.isnan([found.ours, found.low, found.high]).all()
    assert list(found.seeds) == pytest.approx([0.6, 0.7, 0.8, NAN], nan_ok=True)


def test_a_number_of_a_single_run_that_has_no_interval_decides_nothing():
    assert judged([exact(5.0)], above=1).verdict == "inconclusive"
    assert judged([exact(5.0)], below=1).verdict == "inconclusive"


def test_a_claim_carries_what_it_says():
    found = judged(given(-4, 2), above=-2.5, repeats="fig05.y")
    assert (found.id, found.claim, found.paper) == ("fig06.x", "the claim", "1")
    assert (found.ours, found.low, found.high, found.repeats) == (-1, -4, 2, "fig05.y")
    assert found.test == "gain > −2.5"
