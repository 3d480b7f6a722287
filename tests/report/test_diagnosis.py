"""The diagnosis: every finding from a run that shows it, and none from one that does not."""

import dataclasses
import json
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import xarray as xr

from opdprobe import curve
from opdprobe.probes.rollout_sums import RolloutSums
from opdprobe.report.course import Course, course, course_panels
from opdprobe.report.diagnosis import _direction, diagnose
from opdprobe.report.finding import Evidence, change, level
from opdprobe.store import RunWriter, open_run
from opdprobe.store.schema import MODELS
from opdprobe.testing import synthetic_run, synthetic_step

RISING = np.linspace(0.5, 0.95, 12)
STEADY = np.full(12, 0.8)
ROOT = Path(__file__).parents[2]


def step(number, agreement, *, ended=1.0, n_rollouts=64, student=1.0, teacher=1.0, **kwargs):
    """Make a step whose responses end, with both entropies scaled."""
    ds = synthetic_step(number, n_rollouts=n_rollouts, agreement=agreement, **kwargs)
    scales = np.array([student, teacher], np.float32)
    finished = np.arange(n_rollouts) < ended * n_rollouts
    return ds.assign(
        entropy=(ds.entropy.dims, ds.entropy.values * scales, ds.entropy.attrs),
        finished=("rollout", finished),
        correct=("rollout", np.full(n_rollouts, np.nan, np.float32)),
    )


def course_of(steps, **changes) -> Course:
    """Give the course of a run of these steps."""
    with TemporaryDirectory() as folder:
        writer = RunWriter(folder, attrs={}, config={"objective": "full"}, resume=False)
        for i, ds in enumerate(steps):
            writer.write_step(i, ds)
        made = course(open_run(folder), label="x")
    return dataclasses.replace(made, **changes)


def sums_of(steps, first, length, total=None, n=None):
    """Give sums by rollout by hand."""
    some = {} if total is None else {"reverse_kl": np.array(total, float)}
    counts = {} if n is None else {"reverse_kl": np.array(n)}
    unit = np.arange(len(length), dtype=np.uint64)
    return RolloutSums(np.array(steps), np.array(first), unit, np.array(length), some, counts)


def logged(**columns):
    """Metrics as a run gives them."""
    metrics = xr.Dataset({name: ("step", np.asarray(values)) for name, values in columns.items()})
    return metrics.assign_coords(step=np.arange(metrics.sizes["step"]))


@pytest.fixture(scope="module")
def rising():
    return course_of([step(i, agreement) for i, agreement in enumerate(RISING)])


@pytest.fixture(scope="module")
def steady():
    return course_of([step(i, agreement) for i, agreement in enumerate(STEADY)])


def found(course):
    return {finding.name: finding for finding in diagnose(course)}


def scores(mean, n=100, seed=0):
    """Give one score a problem, all near the mean."""
    return np.clip(mean + np.random.default_rng(seed).normal(0, 0.02, n), 0, 1)


# ---- a run's course


def test_a_course_gives_the_curves_of_opdprobe_curve(tmp_path):
    run = synthetic_run(tmp_path, steps=[0, 5, 9], n_rollouts=6, length=[8, 3, 5, 1, 2, 8])
    lines = {p.name: p.series for p in course_panels([course(run)])}
    overlap, entropy = curve(run, "overlap_ratio"), curve(run, "entropy")
    for drawn, expected in ((lines["overlap_ratio"][0], overlap), (lines["entropy"][0], entropy)):
        assert drawn.x == [0, 5, 9]
        for name, values in (("value", drawn.y), ("low", drawn.low), ("high", drawn.high)):
            np.testing.assert_allclose(values, expected[name].values, rtol=1e-12)
    length = [ds.length.values.mean() for ds in map(run.load, run.steps)]
    np.testing.assert_allclose(lines["completion_length"][0].y, length)
    assert np.isnan(lines["loss"][0].low).all()


def test_a_model_whose_line_is_alone_is_named_in_the_title():
    ds = step(0, 0.8)
    both = {p.name: p for p in course_panels([course_of([ds])])}
    assert (both["entropy"].title, len(both["entropy"].series)) == ("Entropy", 2)
    for model, title in enumerate(("Teacher entropy", "Student entropy")):
        lacking = ds.copy(deep=True)
        lacking["entropy"][:, model] = np.nan
        lacking.attrs["missing"] = [MODELS[model]]
        alone = {p.name: p for p in course_panels([course_of([lacking])])}["entropy"]
        assert (alone.title, len(alone.series)) == (title, 1)
        assert alone.y_label == f"{title.lower()} [nats]"
    some = course_of([ds])
    some.sums.n["teacher_overlap_mass"][:] = 0
    alone = {p.name: p for p in course_panels([some])}["overlap_mass"]
    assert alone.title == "Student overlap mass"


def test_means_over_steps_weigh_states_alike(tmp_path):
    run = synthetic_run(tmp_path, steps=[0, 1, 2], n_rollouts=3, length=[1, 9, 0])
    whole = run.states([1, 2])
    mean = course(run).mean("reverse_kl", slice(1, 3))
    assert mean.value == pytest.approx(float(whole.reverse_kl.mean()))
    assert np.nanstd(mean.samples) > 0


@pytest.mark.parametrize(("n", "width"), [(1, 1), (2, 1), (6, 2), (15, 5), (40, 5)])
def test_the_ends_of_a_run(n, width):
    some = Course("x", {}, sums_of(range(n), [0] * (n + 1), []), metrics=xr.Dataset())
    assert some.steps[some.first] == list(range(width))
    assert some.steps[some.last] == list(range(n - width, n))


def test_a_run_without_what_is_optional():
    optional = ["length", "finished", "correct", "prompt_id", "prompt_length", "prompt_ids"]
    bare = step(0, 0.8).drop_vars([*optional, "response_ids"])
    some = course_of([bare])
    assert not some.has("completion_length")
    assert some.has("overlap_ratio")
    assert {"completion_length", "finished", "correct"}.isdisjoint(
        panel.name for panel in course_panels([some])
    )
    assert list(found(some)) == ["too_short", "low_overlap"]


def test_the_extreme_rollout_is_no_fragment():
    # Means of 9, 4 and 2 over 1, 10 and 10 states.
    sums = sums_of([7], [0, 3], [1, 10, 10], total=[9, 40, 20], n=[1, 10, 10])
    some = Course("x", {}, sums, metrics=xr.Dataset())
    assert some.extreme("reverse_kl", slice(1), 1) == (7, 1)
    assert some.extreme("reverse_kl", slice(1), -1) == (7, 2)
    assert some.extreme("correct", slice(1), -1) == (7, 0)  # nothing known: the first


# ---- the signatures


def test_aligning(rising):
    finding = found(rising)["aligning"]
    assert (finding.kind, finding.step in (8, 9, 10, 11)) == ("good", True)
    assert "in overlap ratio, overlap-token advantage, entropy gap: the success" in finding.text
    assert "Not recorded" not in finding.text
    overlap, advantage, gap = finding.evidence
    assert overlap.steps == ((0, 3), (8, 11))
    assert 0.05 < overlap.low < overlap.value < overlap.high
    assert advantage.high < 0.8
    assert gap.high < 1
    assert "steps 0–3 → 8–11" in overlap.text


@pytest.mark.parametrize(
    ("quantity", "value", "interval", "expected"),
    [
        # of the testbed's failures
        ("overlap_ratio", 0.010, (0.003, 0.017), "flat"),
        ("overlap_token_advantage", 0.55, (0.41, 0.74), "flat"),
        ("entropy_gap", 0.85, (0.72, 0.99), "flat"),
        # of its successes
        ("overlap_ratio", 0.054, (0.051, 0.057), "toward"),
        ("overlap_token_advantage", 0.28, (0.22, 0.35), "toward"),
        ("entropy_gap", 0.75, (0.746, 0.754), "toward"),
        # made up
        ("overlap_ratio", -0.1, (-0.2, -0.01), "away"),
        ("overlap_token_advantage", 3.0, (1.5, 6.0), "away"),
        ("entropy_gap", 1.3, (1.1, 1.5), "away"),
        ("overlap_ratio", 0.03, (-0.01, 0.07), "unclear"),
        ("overlap_token_advantage", 0.6, (0.1, 3.0), "unclear"),
        ("entropy_gap", 0.9, (np.nan, np.nan), "unclear"),
    ],
)
def test_what_counts_as_a_move(quantity, value, interval, expected):
    move = Evidence(quantity, "", value, *interval, ())
    assert _direction(move, 1.0) == expected


@pytest.mark.parametrize(
    ("quantity", "value", "interval", "expected"),
    [
        # a student of the testbed that learns, after 12 of 48 steps
        ("overlap_ratio", 0.009, (0.001, 0.017), "unclear"),
        ("overlap_token_advantage", 0.569, (0.445, 0.711), "unclear"),
        # as much as a steady pace to 0.05, 0.2 and 0.5 makes in a quarter, and just less
        ("overlap_ratio", 0.01, (0.0, 0.0126), "unclear"),
        ("overlap_ratio", 0.01, (0.0, 0.0124), "flat"),
        ("overlap_token_advantage", 0.8, (0.66, 1.0), "unclear"),
        ("overlap_token_advantage", 0.8, (0.68, 1.0), "flat"),
        ("entropy_gap", 0.9, (0.83, 1.0), "unclear"),
        ("entropy_gap", 0.9, (0.85, 1.0), "flat"),
        # a move is a move at any time
        ("overlap_ratio", 0.03, (0.01, 0.05), "toward"),
    ],
)
def test_a_quarter_of_a_run_shows_a_quarter_of_a_success(quantity, value, interval, expected):
    assert _direction(Evidence(quantity, "", value, *interval, ()), 0.25) == expected


def test_partly_aligning():
    steps = [step(i, a) for i, a in enumerate(RISING)]
    for ds in steps:
        ds["entropy"][:, 1] = ds["entropy"][:, 0] + 0.5
    finding = found(course_of(steps))["partly_aligning"]
    assert "Toward the teacher: overlap ratio, overlap-token advantage." in finding.text
    assert finding.text.endswith("(§4.1): entropy gap.")


def test_moving_both_ways():
    steps = [step(i, a, teacher=1 + i / 3) for i, a in enumerate(RISING)]
    finding = found(course_of(steps))["mixed"]
    assert "Away from it: entropy gap." in finding.text


def test_drifting_apart():
    steps = [step(i, agreement) for i, agreement in enumerate(RISING[::-1])]
    assert found(course_of(steps))["drifting_apart"].kind == "bad"


def test_stagnating(steady):
    metrics = logged(loss=0.2 + 0.001 * np.arange(12))
    finding = found(dataclasses.replace(steady, metrics=metrics))["stagnating"]
    assert finding.kind == "bad"
    assert "preflight" in finding.advice
    assert finding.evidence[-1].quantity == "loss"
    assert finding.evidence[-1].value == pytest.approx(0.008)
    assert np.isnan(finding.evidence[-1].low)


@pytest.mark.parametrize(("agreements", "name"), [(RISING, "aligning"), (STEADY, "stagnating")])
def test_what_was_not_recorded_is_said_to_be_so(agreements, name):
    steps = [step(i, agreement) for i, agreement in enumerate(agreements)]
    for ds in steps:
        ds["entropy"][:, 1] = np.nan
        ds.attrs["missing"] = ["teacher"]  # a served one
    finding = found(course_of(steps))[name]
    assert " overlap ratio, overlap-token advantage" in finding.text
    assert finding.text.count("entropy gap") == 1
    assert finding.text.endswith(" Not recorded: entropy gap.")


def test_the_same_model_is_aligned_from_the_start():
    assert (
        found(course_of([step(i, 1.0) for i in range(6)]))["aligned_from_the_start"].kind == "note"
    )


def test_too_few_rollouts_are_no_clear_sign():
    steps = [step(i, 0.8, n_rollouts=4) for i in range(3)]
    assert found(course_of(steps))["no_clear_sign"].kind == "unclear"


def test_at_k_1_there_is_no_advantage_to_look_at():
    steps = [step(i, a, k=1) for i, a in enumerate(RISING)]
    finding = found(course_of(steps))["aligning"]
    assert [one.quantity for one in finding.evidence] == ["overlap_ratio", "entropy_gap"]
    assert "advantage" not in finding.text


def test_a_single_step_has_no_course():
    assert list(found(course_of([step(0, 1.0)]))) == ["too_short"]


# ---- accuracy


@pytest.mark.parametrize(
    ("run", "before", "after", "name", "text"),
    [
        ("rising", 0.3, 0.6, "accuracy_rose", "solves more"),
        ("steady", 0.3, 0.6, "accuracy_without_alignment", "something other"),
        ("rising", 0.6, 0.3, "accuracy_fell_with_alignment", "§3.3"),
        ("steady", 0.6, 0.3, "accuracy_fell", "solves fewer"),
        ("rising", 0.5, 0.5, "accuracy_flat", "does not help it solve more (§3.2)"),
        ("steady", 0.5, 0.5, "accuracy_flat", "about as many problems as before"),
    ],
)
def test_accuracy(request, run, before, after, name, text):
    some = dataclasses.replace(
        request.getfixturevalue(run),
        evaluated=[0, 6, 11],
        scores=[scores(before), scores(0.9), scores(after, seed=1)],
    )
    finding = found(some)[name]
    (evidence,) = finding.evidence
    assert evidence.value == pytest.approx(after - before, abs=0.02)
    assert evidence.steps == ((0, 0), (11, 11))
    assert text in finding.text


def test_few_problems_leave_accuracy_open(steady):
    answers = [np.array([0.0, 1, 0, 1, 0]), np.array([1.0, 0, 1, 0, 1])]
    some = dataclasses.replace(steady, evaluated=[0, 11], scores=answers)
    assert "accuracy_unclear" in found(some)


def test_without_evaluations_rollouts_tell():
    steps = [
        step(i, a).assign(correct=("rollout", np.full(64, float(i > 5), np.float32)))
        for i, a in enumerate(RISING)
    ]
    (evidence,) = found(course_of(steps))["accuracy_rose"].evidence
    assert (evidence.quantity, evidence.value) == ("correct", 1.0)


def test_accuracy_counts_the_steps_that_evaluated_every_benchmark(tmp_path):
    writer = RunWriter(tmp_path, attrs={}, config={}, resume=False)
    writer.write_step(0, step(0, 0.8))
    for number, name, score in ((0, "a", 0.0), (0, "b", 1.0), (5, "a", 1.0)):
        writer.log_evaluation(number, name, ["p"], [score])
    some = course(open_run(tmp_path))
    assert some.evaluated == [0]
    assert some.scores[0].tolist() == [0.0, 1.0]


# ---- single signs


def test_low_overlap(rising):
    finding = found(rising)["low_overlap"]
    assert "cold start" in finding.advice.lower()
    assert finding.step in (0, 1, 2, 3)
    assert finding.by == "overlap_ratio"
    assert "low_overlap" not in found(course_of([step(0, 0.99), step(1, 0.99)]))


def collapsing(entropy):
    up = [step(i, a) for i, a in enumerate(np.linspace(0.6, 0.95, 9))]
    return up + [step(9 + i, 0.6, student=entropy) for i in range(6)]


def test_late_collapse():
    steps = collapsing(1.5)
    finding = found(course_of(steps))["late_collapse"]
    overlap, entropy, length = finding.evidence
    assert overlap.steps == ((4, 8), (10, 14))
    assert overlap.high < -0.02
    assert entropy.low > 1.1
    assert length.quantity == "completion_length"
    assert "Shorten responses" in finding.advice
    # What the viewer is opened at: the most uncertain rollout of the last steps.
    means = {
        (number, row): steps[number]
        .entropy.values[steps[number]["rollout"].values == row, 0]
        .mean()
        for number in range(10, 15)
        for row in range(32)
    }
    assert max(means, key=lambda key: means[key]) == (finding.step, finding.rollout)


def test_a_fall_without_entropy_is_no_collapse():
    assert "late_collapse" not in found(course_of(collapsing(1.0)))


def test_a_fall_from_the_start_is_no_late_collapse():
    steps = [step(i, a, student=1 + i / 10) for i, a in enumerate(RISING[::-1])]
    assert "late_collapse" not in found(course_of(steps))


def test_entropy_collapse():
    steps = [step(i, 0.9, student=1 - i / 12) for i in range(12)]
    fall, below = found(course_of(steps))["entropy_collapse"].evidence
    assert fall.value < 0.5
    assert below.high < 0.8
    together = [step(i, 0.9, student=1 - i / 12, teacher=1 - i / 12) for i in range(12)]
    assert "entropy_collapse" not in found(course_of(together))


def test_truncated_responses():
    finding = found(course_of([step(i, 0.9, ended=0.5) for i in range(6)]))["truncated"]
    assert finding.text.startswith("50% of the last responses")
    assert finding.evidence[0].value == 0.5
    assert finding.rollout >= 16  # one that did not end
    assert "truncated" not in found(course_of([step(i, 0.9, ended=0.95) for i in range(6)]))


def longer(lengths, ended, **kwargs):
    """Give the course of a run by mean length and share that ends, lengths differing by prompt."""
    spread = np.linspace(0.5, 1.5, 64)
    return course_of(
        [
            step(i, 0.9, ended=share, length=np.round(spread * mean).astype(int), **kwargs)
            for i, (mean, share) in enumerate(zip(lengths, ended, strict=True))
        ]
    )


def test_a_length_explosion():
    finding = found(longer([8, 8, 8, 14, 20, 20], [1, 1, 0.95, 0.7, 0.5, 0.5]))["length_explosion"]
    grown, fewer = finding.evidence[:2]
    assert (grown.quantity, grown.value) == ("completion_length", pytest.approx(2.5, abs=0.02))
    assert 1.1 < grown.low < grown.high
    assert (fewer.quantity, fewer.value) == ("finished", pytest.approx(-0.5, abs=0.02))
    assert fewer.high < -0.05
    assert finding.step >= 4
    assert "truncated" not in found(longer([8] * 3 + [20] * 3, [1] * 3 + [0.5] * 3))


@pytest.mark.parametrize(
    ("lengths", "ended"),
    [
        ([10] * 6, [0.9] * 6),  # steady
        ([8, 8, 12, 16, 20, 20], [1.0] * 6),  # it thinks longer, and ends
        ([8, 8, 12, 16, 20, 20], [0.8] * 6),  # as many were cut before
        ([20, 20, 16, 12, 8, 8], [1, 1, 0.9, 0.7, 0.5, 0.5]),  # shorter: another limit, not this
        ([20, 20, 20, 21, 22, 22], [1, 1, 0.9, 0.7, 0.5, 0.5]),  # a tenth longer
        ([8, 8, 12, 16, 20, 20], [1, 1, 1, 0.97, 0.95, 0.95]),  # a few more are cut
        ([8, 20, 20, 20, 20, 8], [1, 0.5, 0.5, 0.5, 0.5, 1]),  # it has passed
    ],
)
def test_no_length_explosion(lengths, ended):
    assert "length_explosion" not in found(longer(lengths, ended))


def test_few_prompts_are_no_evidence_of_an_explosion():
    lengths, ended = [8, 8, 8, 20, 20, 20], [1, 1, 1, 0.5, 0.5, 0.5]
    few = course_of(
        [
            step(i, 0.9, ended=share, length=mean, n_rollouts=4)
            for i, (mean, share) in enumerate(zip(lengths, ended, strict=True))
        ]
    )
    assert "length_explosion" not in found(few)


@pytest.mark.parametrize(("chance", "explodes"), [(0.025, True), (0.05, False)])
def test_where_nobody_says_what_ended_the_stop_mass_tells(chance, explodes):
    """Responses of 8, then 20 tokens that end with a given chance at each token."""

    def made(number, mean, chance):
        ds = step(number, 0.9, length=np.round(np.linspace(0.5, 1.5, 64) * mean).astype(int))
        stop = np.full((ds.sizes["state"], 2, 2), np.log(chance), np.float32)
        unknown = np.full(64, np.nan, np.float32)
        dims = ("state", "model", "support")
        return ds.assign(stop_logp=(dims, stop), finished=("rollout", unknown))

    steps = [made(i, 8, 0.125) for i in range(3)] + [made(i, 20, chance) for i in range(3, 6)]
    finding = found(course_of(steps)).get("length_explosion")
    assert (finding is not None) == explodes
    if finding:
        fewer = finding.evidence[1]
        assert fewer.quantity == "student_stop_token_mass"
        assert fewer.value == pytest.approx(20 * chance - 8 * 0.125, abs=0.02)
        assert "student stop-token mass a response" in fewer.text


def test_gradient_spikes(steady):
    norms = np.full(30, 1.0)
    norms[17] = 8.0
    finding = found(dataclasses.replace(steady, metrics=logged(grad_norm=norms)))["gradient_spikes"]
    assert finding.evidence[0].value == 8
    assert finding.evidence[0].steps == ((17, 17),)
    assert finding.kind == "note"  # a few come in runs that go well
    assert "k = 4" in finding.advice
    assert finding.step == 11  # the nearest recorded one


@pytest.mark.parametrize("first", [9.0, 1.0])
def test_no_gradient_spike(steady, first):
    norms = [first, *np.linspace(1, 0.1, 20), 2.0 if first > 1 else 1.0]
    some = dataclasses.replace(steady, metrics=logged(grad_norm=norms))
    assert "gradient_spikes" not in found(some)


@pytest.mark.parametrize(
    ("config", "k", "blind"),
    [
        ({"objective": "topk"}, 4, True),
        ({}, 4, False),  # a hook does not know the loss
        ({"objective": "full"}, 4, False),
        ({"objective": "topk"}, 64, False),
    ],
)
def test_a_blind_loss(config, k, blind):
    some = course_of([step(i, 0.8, k=k) for i in range(3)], config=config)
    assert ("blind_loss" in found(some)) == blind


# ---- numbers


def test_infinite_means_have_no_interval():
    ds = step(0, 0.8)
    ds["reverse_kl"][3] = np.inf
    evidence = level(course_of([ds]), "reverse_kl", slice(1))
    assert evidence.value == np.inf
    assert np.isnan(evidence.low)
    assert evidence.to_dict()["value"] is None


def test_a_relative_change_of_nothing_is_unknown():
    steps = [step(i, 1.0) for i in range(4)]
    evidence = change(course_of(steps), "entropy_gap", relative=True)
    assert np.isnan(evidence.value)


def test_findings_are_json(steady):
    for finding in diagnose(dataclasses.replace(steady, metrics=logged(loss=np.ones(12)))):
        given = json.loads(json.dumps(finding.to_dict(), allow_nan=False))
        assert given["name"] == finding.name
        assert set(given) == {field.name for field in dataclasses.fields(finding)}


# ---- runs of the testbed


@pytest.mark.parametrize(
    ("name", "expected"),
    [("success", {"aligning", "accuracy_rose"}), ("failure", {"stagnating", "accuracy_flat"})],
)
@pytest.mark.slow
def test_the_two_signatures_in_real_runs(name, expected):
    for preset in ("quick", "full"):
        path = ROOT / "out" / preset / "runs" / f"{name}-s0"
        # One that is being trained has no signature yet.
        if (path / "run.json").exists() and len(open_run(path).steps) == open_run(path).config[
            "max_steps"
        ]:
            assert expected <= set(found(course(open_run(path))))
            return
    pytest.skip(f"no whole run {name}-s0 in out/: `opdprobe reproduce --only fig06` makes it")


# ---- what is too early to tell


def test_a_still_run_is_no_failure_before_half_of_its_plan(steady):
    early = dataclasses.replace(steady, config=steady.config | {"max_steps": 25})
    finding = found(early)["too_early"]
    assert finding.kind == "unclear"
    assert "only 12 of 25 planned steps" in finding.text
    late = found(dataclasses.replace(steady, config=steady.config | {"max_steps": 24}))
    assert late["stagnating"].evidence[0].high < 0.025  # half of a success
    whole = dataclasses.replace(steady, config=steady.config | {"max_steps": 12})
    assert "stagnating" in found(whole)


@pytest.mark.parametrize(("rate", "name"), [(0.9, "too_early"), (1.0, "stagnating")])
def test_a_run_whose_divergence_still_falls_is_no_failure(rate, name):
    steps = [step(i, agreement) for i, agreement in enumerate(STEADY)]
    for i, ds in enumerate(steps):
        ds["reverse_kl"] *= np.float32(rate**i)
    finding = found(course_of(steps))[name]
    assert ("reverse KL still falls" in finding.text) == (rate < 1)
