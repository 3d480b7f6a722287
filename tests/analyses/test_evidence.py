"""What figures share: recovery, changes, panels, verdicts."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from analyses.evidence import (
    above,
    accuracy_panel,
    at_least,
    below,
    claim,
    curve_panel,
    differences,
    metric_series,
    ratios,
)
from opdprobe.probes import curve
from opdprobe.probes.bootstrap import N_BOOT, Estimate, resample

NAN = float("nan")


def scores(run, end, benchmarks=("easy", "medium", "hard")):
    return np.concatenate([run.evaluation(name)["score"].values[end] for name in benchmarks])


def role_scores(evidence, role):
    return np.concatenate([evidence.scores[role][name] for name in ("easy", "medium", "hard")])


def test_accuracy_is_that_of_the_first_and_of_the_last_evaluation(evidence):
    (run,) = evidence.runs["success"]
    for end in (0, -1):
        (estimate,) = evidence.accuracy("success", end=end)
        assert estimate.value == pytest.approx(scores(run, end).mean())
    assert evidence.role("large").value == pytest.approx(role_scores(evidence, "large").mean())


@pytest.mark.parametrize("benchmark", ["easy", "medium", "hard"])
def test_a_benchmark_has_its_own_accuracy_and_recovery(evidence, benchmark):
    (run,) = evidence.runs["success"]
    before, after = (scores(run, end, [benchmark]).mean() for end in (0, -1))
    best = evidence.scores["rl_student"][benchmark].mean()
    (estimate,) = evidence.accuracy("success", benchmark=benchmark)
    assert estimate.value == pytest.approx(after)
    assert evidence.role("rl_student", benchmark=benchmark).value == pytest.approx(best)
    (estimate,) = evidence.recovery("success", benchmark=benchmark)
    assert estimate.value == pytest.approx((after - before) / (best - before))
    panel = accuracy_panel(
        evidence, {"success": "S"}, {"rl_student": "T"}, title="T", benchmark=benchmark
    )
    assert panel.name == f"accuracy_{benchmark}"
    assert (panel.series[0].y[0], panel.series[0].y[-1]) == pytest.approx((before, after))
    assert panel.references[0].y == pytest.approx(best)


@pytest.mark.parametrize(
    ("name", "teacher"),
    [("success", "rl_student"), ("failure", "large"), ("reverse_small", "student")],
)
def test_recovery_is_the_share_of_the_gap_on_the_same_problems(evidence, name, teacher, drawn_rows):
    (run,) = evidence.runs[name]
    before, after, best = scores(run, 0), scores(run, -1), role_scores(evidence, teacher)
    (estimate,) = evidence.recovery(name)
    want = (after.mean() - before.mean()) / (best.mean() - before.mean())
    assert estimate.value == pytest.approx(want)
    rows = drawn_rows(len(best), N_BOOT)
    samples = [
        (after[i].mean() - before[i].mean()) / (best[i].mean() - before[i].mean()) for i in rows
    ]
    np.testing.assert_allclose(estimate.samples, samples)
    low, high = estimate.interval()
    assert low < want < high


def test_no_gap_has_no_recovery(evidence):
    (run,) = evidence.runs["success"]
    before = {name: run.evaluation(name)["score"].values[0] for name in evidence.benchmarks}
    level = replace(evidence, scores={"rl_student": before})
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
    assert meta.config == {"eval_n": 4}
    assert "bootstrap" in meta.interval
    assert five_seeds.meta(["success"]).seeds == [0, 1, 2, 3, 4]
    assert five_seeds.meta(["success"]).interval == "95 % t-interval over 5 seeds"
    assert five_seeds.meta(["success"]).runs["success"]["states"] == 5 * 3 * 4 * 30


# Panels


def test_accuracy_panel_shows_every_evaluation(evidence):
    panel = accuracy_panel(evidence, {"success": "S", "failure": "F"}, {"large": "larger"})
    assert panel.y_label == "accuracy (avg@4)"
    assert [s.label for s in panel.series] == ["S", "F"]
    (run,) = evidence.runs["failure"]
    series = panel.series[1]
    assert list(series.x) == [0, 6, 12]
    np.testing.assert_allclose(series.y, [scores(run, i).mean() for i in range(3)])
    assert all(lo < y < hi for lo, y, hi in zip(series.low, series.y, series.high, strict=True))
    (line,) = panel.references
    assert (line.role, line.label) == ("large", "larger")
    assert line.y == pytest.approx(role_scores(evidence, "large").mean())


def test_accuracy_panel_of_five_seeds_has_students_interval(five_seeds):
    (series,) = accuracy_panel(five_seeds, {"success": "S"}, {}).series
    for i in range(3):
        values = [scores(run, i).mean() for run in five_seeds.runs["success"]]
        want = stats.t.interval(0.95, 4, loc=np.mean(values), scale=stats.sem(values))
        assert series.y[i] == pytest.approx(np.mean(values))
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


def test_curve_panel_of_five_seeds_is_their_mean_with_students_interval(five_seeds):
    (series,) = curve_panel(five_seeds, "reverse_kl", {"success": "S"}).series
    values = np.array([curve(run, "reverse_kl")["value"] for run in five_seeds.runs["success"]])
    low, high = stats.t.interval(0.95, 4, loc=values.mean(0), scale=stats.sem(values))
    np.testing.assert_allclose(series.y, values.mean(0))
    np.testing.assert_allclose(series.low, low)
    np.testing.assert_allclose(series.high, high)


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
    """An estimate whose interval is from its smallest to its largest sample."""

    def interval(self, level=0.95):
        return float(self.samples.min()), float(self.samples.max())


def given(low, high):
    return [Given((low + high) / 2, np.array([low, high]))]


def judged(*values, opposite=None):
    """Judge "the mean is at least 1" over problems with these values."""
    extra = {} if opposite is None else {"opposite": opposite}
    return claim(
        "fig06.x",
        "the claim",
        paper="1",
        ours=[Given(float(np.mean(values)), np.array(values, float))],
        test="≥ 1",
        holds=lambda mean: mean >= 1,
        **extra,
    )


def below_zero(low, high):
    return high < 0


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ((2, 2), "shown"),
        ((1, 1), "shown"),  # the limit itself counts
        ((0.9, 1.0), "not shown"),
        ((0, 0), "not shown"),  # a whole interval at 0 is not below it
        ((-5, 4), "not shown"),  # the mean is below 0, the interval not wholly
        ((-2, -1), "opposite"),
        ((NAN, NAN), "not shown"),
        ((NAN, 2), "not shown"),
    ],
)
def test_a_verdict_needs_the_mean_and_its_opposite_the_whole_interval(values, verdict):
    assert judged(*values, opposite=below_zero).verdict == verdict


def test_without_a_stated_opposite_there_is_none():
    assert judged(-2, -1).verdict == "not shown"


def test_a_claim_carries_its_number_and_interval():
    found = judged(1, 2, 3, 4)
    assert (found.ours, found.paper, found.test) == (2.5, "1", "≥ 1")
    assert (found.low, found.high) == (1, 4)
    unknown = judged(NAN)
    assert np.isnan([unknown.ours, unknown.low, unknown.high]).all()


@pytest.mark.parametrize(("spread", "verdict"), [(0.1, "shown"), (0.5, "not shown")])
def test_a_direction_asks_the_whole_interval(spread, verdict):
    found = claim(
        "fig19.x", "", paper="", ours=given(0.7 - spread, 0.7 + spread), test="< 1",
        holds=lambda r: r < 1, whole_interval=True,
    )  # fmt: skip
    assert found.verdict == verdict


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.1, 0.3, "shown"),
        (-0.4, 0.8, "shown"),  # the size is asked of the mean alone
        (-0.1, 0.3, "not shown"),
        (-0.3, -0.1, "opposite"),
    ],
)
def test_at_least(low, high, verdict):
    found = at_least("fig08.x", "", paper="", ours=given(low, high), statistic="gain", limit=0.15)
    assert (found.verdict, found.test) == (verdict, "gain ≥ 0.15")


@pytest.mark.parametrize(
    ("low", "high", "up", "down"),
    [
        (1.1, 1.3, "shown", "opposite"),
        (0.9, 1.3, "not shown", "not shown"),
        (0.7, 0.9, "opposite", "shown"),
        (1.0, 1.0, "not shown", "not shown"),
        (NAN, NAN, "not shown", "not shown"),
    ],
)
def test_directions(low, high, up, down):
    rest = {"paper": "", "ours": given(low, high), "statistic": "share", "limit": 1}
    for direction, verdict, test in ((above, up, ">"), (below, down, "<")):
        found = direction("fig08.x", "", **rest)
        assert (found.verdict, found.test) == (verdict, f"share {test} 1, whole interval")
