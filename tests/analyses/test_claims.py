"""Every claim's number, recomputed from the raw arrays; both ways the runs can fall out."""

import math
from dataclasses import replace
from statistics import mean

import numpy as np
import pytest
from oracle import BENCHMARKS, claims_of, drawn, interval, mean_of, seeds, weighted

from analyses import alignment, gradients, mass, reverse, reward, supports
from analyses.results import load, save
from opdprobe import RunWriter, open_run

pytestmark = pytest.mark.slow

ANALYSES = [reverse, alignment, supports, reward, mass, gradients]
USED = {
    **dict.fromkeys(("success", "failure"), 12),
    **dict.fromkeys(("reverse_small", "reverse_large", "baseline"), 1),
    **dict.fromkeys(
        ("support_overlap", "support_non_overlap", "probe_success", "probe_failure"), 1
    ),
}


@pytest.fixture(scope="module")
def evidence(make_evidence):
    return make_evidence(USED, range(3))


@pytest.fixture(scope="module")
def each(evidence):
    return seeds(evidence)


@pytest.fixture(scope="module")
def swapped(evidence, tmp_path_factory):
    """The same evidence with success and failure exchanged, and the reverse runs unharmed."""
    names = {
        "success": "failure",
        "baseline": "failure",
        "failure": "success",
        "support_overlap": "support_non_overlap",
        "support_non_overlap": "support_overlap",
        "reverse_small": "success",
        "reverse_large": "success",
    }
    runs = {name: evidence.runs[names.get(name, name)] for name in evidence.runs}
    folder = tmp_path_factory.mktemp("wrong")
    for name in ("probe_success", "probe_failure"):
        runs[name] = [wrong(run, folder / f"{name}-{i}") for i, run in enumerate(runs[name])]
    return replace(evidence, runs=runs)


def wrong(run, path):
    """The same rollouts, correct where the others were incorrect."""
    writer = RunWriter(path, attrs=run.attrs, config=run.config, resume=False)
    ds = run.load(0)
    ds["correct"] = 1 - ds["correct"]
    writer.write_step(0, ds)
    return open_run(path)


@pytest.fixture(scope="module")
def results(evidence):
    return [module.analyse(evidence) for module in ANALYSES]


# The oracle


def auroc(run, *, within=False, by_length=False):
    """Share of pairs of a correct and an incorrect rollout in which the correct one is ahead."""
    ds = run.load(0)
    right, wrong = [], []
    for r in range(ds.sizes["rollout"]):
        mine = ds["sampled_logp"].values[ds["rollout"].values == r].astype(float)
        score = -float(ds["length"].values[r])
        if not by_length:
            score = (mine[:, 1] - mine[:, 0]).mean() if len(mine) else math.nan
        if not math.isnan(score):
            group = right if ds["correct"].values[r] == 1 else wrong
            group.append((score, ds["prompt_id"].values[r]))
    pairs = [(a, b) for a, p in right for b, q in wrong if p == q or not within]
    return mean((a > b) + (a == b) / 2 for a, b in pairs)


def beyond_length(run):
    length = auroc(run, within=True, by_length=True)
    return auroc(run, within=True) - max(length, 1 - length)


def logged(seed, metric, where):
    """Mean over five of the twelve steps, failure / success."""
    means = [
        mean(seed.run(name).metrics[metric].values[:12].tolist()[where])
        for name in ("failure", "success")
    ]
    return means[0] / means[1]


def oracle(seed):
    begin, end = slice(0, 5), slice(7, 12)
    probes = {name: seed.run(f"probe_{name}") for name in ("success", "failure")}
    after = {name: seed.accuracy(name, "end") for name in ("reverse_small", "reverse_large")}
    return {
        "fig05.small": after["reverse_small"] - seed.role("student"),
        "fig05.large": after["reverse_large"] - seed.role("student"),
        "fig05.loses": seed.gain("reverse_large"),
        "fig05.same": after["reverse_large"] - after["reverse_small"],
        "fig06.recovery": seed.recovery("success"),
        "fig06.stronger": seed.role("large") - seed.role("student"),
        "fig06.failure": seed.recovery("failure") / seed.recovery("success"),
        "fig06.overlap": seed.change("success", "overlap"),
        "fig06.overlap_flat": seed.change("failure", "overlap") / seed.change("success", "overlap"),
        "fig06.advantage": seed.left("success", "advantage"),
        "fig06.advantage_flat": seed.left("failure", "advantage"),
        "fig06.gap": seed.left("success", "gap"),
        "fig06.gap_flat": seed.left("failure", "gap"),
        "fig07.overlap": seed.final("support_overlap", "baseline"),
        "fig07.non_overlap": seed.final("support_non_overlap", "baseline"),
        # The non-overlap run logs means of 0.8 that fall to 0.7 and end at 0.73.
        "fig07.dip": 0.1,
        "fig07.recovers": 0.3,
        **{f"fig14.{name}": auroc(run) for name, run in probes.items()},
        **{f"fig14.{name}_within": auroc(run, within=True) for name, run in probes.items()},
        **{f"fig14.{name}_length": beyond_length(run) for name, run in probes.items()},
        "fig18.student": mean_of(seed.steps("success"), "student_mass"),
        "fig18.teacher": mean_of(seed.steps("success"), "teacher_mass"),
        "fig19.loss": logged(seed, "loss", begin),
        "fig19.grad_norm": logged(seed, "grad_norm", begin),
        "fig19.loss_end": logged(seed, "loss", end),
        "fig19.grad_norm_end": logged(seed, "grad_norm", end),
        "fig19.gap": seed.left("success", "extreme"),
        "fig19.gap_stays": seed.left("failure", "extreme"),
    }


def test_every_number_of_every_seed_is_what_its_claim_says(each, results):
    want = [oracle(seed) for seed in each]
    found = claims_of(*results)
    assert set(found) == set(want[0])
    for name, claim in found.items():
        values = [seed[name] for seed in want]
        assert list(claim.seeds) == pytest.approx(values, rel=1e-6), name
        assert claim.ours == pytest.approx(mean(values), rel=1e-6), name
        assert claim.low <= claim.ours <= claim.high, name


def test_runs_like_the_papers_support_its_claims(results):
    verdicts = {name: claim.verdict for name, claim in claims_of(*results).items()}
    assert {name: v for name, v in verdicts.items() if v != "supported"} == {
        "fig18.student": "refuted",  # they overlap little in the first half
        "fig18.teacher": "refuted",
    }


def test_runs_unlike_the_papers_support_none(swapped):
    found = claims_of(*(module.analyse(swapped) for module in ANALYSES))
    verdicts = {name: claim.verdict for name, claim in found.items()}
    assert {name for name, verdict in verdicts.items() if verdict == "supported"} == {
        "fig05.same",  # one and the same run
        "fig06.stronger",  # about models, not runs
    }


def test_results_are_labelled_and_survive_the_file(results, tmp_path):
    for result in results:
        save(result, tmp_path / f"{result.figure}.json")
        back = load(tmp_path / f"{result.figure}.json")
        assert [claim.id for claim in back.claims] == [claim.id for claim in result.claims]
        assert all(claim.id.startswith(result.figure) for claim in result.claims)
        for panel in result.panels:
            assert panel.x_label
            assert panel.y_label
            assert panel.series
            assert all(len(series.x) or len(series.values) for series in panel.series)


def test_the_interval_is_over_seeds_and_over_problems(evidence, results):
    """Problems are drawn together in both runs of every seed."""
    names = [
        f"{name}/{i}" for name, n in (("easy", 20), ("medium", 18), ("hard", 16)) for i in range(n)
    ]
    changes = []
    for runs in zip(evidence.runs["support_overlap"], evidence.runs["baseline"], strict=True):
        areas = []
        for run in runs:
            scores = np.concatenate([run.evaluation(b)["score"].values for b in BENCHMARKS], axis=1)
            areas.append([weighted([0, 4, 9, 12], column, "whole") for column in scores.T.tolist()])
        changes.append(np.subtract(*areas))
    changes = np.array(changes)  # (seeds, problems)
    times = drawn(names)
    samples = (times @ changes.T / times.sum(axis=1, keepdims=True)).mean(axis=1)
    claim = claims_of(*results)["fig07.overlap"]
    want = interval(changes.mean(axis=1).tolist(), samples, 0.9)
    assert (claim.low, claim.high) == pytest.approx(want)
    assert claim.level == 0.9


def test_the_interval_is_over_seeds_and_over_prompts(each, results):
    """One prompt has several rollouts, each with many states: they are drawn together."""
    prompts = sorted({state["prompt"] for step in each[0].steps("success") for state in step})
    times, samples, values = drawn(prompts), [], []
    for seed in each:
        total, n = np.zeros(len(prompts)), np.zeros(len(prompts))
        for step in seed.steps("success"):
            for state in step:
                total[prompts.index(state["prompt"])] += state["student_mass"]
                n[prompts.index(state["prompt"])] += 1
        samples.append((times @ total) / (times @ n))
        values.append(total.sum() / n.sum())
    claim = claims_of(*results)["fig18.student"]
    want = interval(values, np.mean(samples, axis=0))
    assert (claim.low, claim.high) == pytest.approx(want, rel=1e-6)
    assert claim.level == 0.95


def test_seeds_are_compared_pairwise(evidence, each, results):
    """The mean over seeds of each seed's ratio, not the ratio of the means."""
    claim = claims_of(*results)["fig19.loss"]
    ratios = [logged(seed, "loss", slice(0, 5)) for seed in each]
    means = [
        mean(mean(run.metrics["loss"].values[:5].tolist()) for run in evidence.runs[name])
        for name in ("failure", "success")
    ]
    assert claim.ours == pytest.approx(mean(ratios))
    assert claim.ours != pytest.approx(means[0] / means[1], rel=1e-4)


def test_figure_14_shows_the_rewards_of_right_and_of_wrong_rollouts(evidence, results):
    (panel, _) = results[ANALYSES.index(reward)].panels
    for series, correct in zip(panel.series, (1, 0), strict=True):
        want = []
        for run in evidence.runs["probe_success"]:
            ds = run.load(0)
            want += ds.opd.sequence_mean_reward()[ds.correct == correct].values.tolist()
        np.testing.assert_array_equal(series.values, want)


def test_no_dip_is_told_of_less_than_ten_steps(tmp_path):
    writer = RunWriter(tmp_path, attrs={}, config={}, resume=False)
    for step in range(9):
        writer.log_metrics(step, {"overlap_ratio": 0.9 - 0.1 * step})
    assert np.isnan(supports._fall(open_run(tmp_path))).all()


@pytest.mark.parametrize(
    ("logged", "dip", "share"),
    [
        ([0.8] * 12, 0.0, math.nan),  # no fall: nothing to regain
        ([0.8] * 5 + [0.7] * 7, 0.1, 0.0),
        ([0.8] * 5 + [0.7] * 5 + [0.8] * 5, 0.1, 1.0),
        ([0.7] * 5 + [0.8] * 5, 0.0, math.nan),  # a rise after no fall is no recovery
        ([0.8] * 5 + [0.785] * 5 + [0.8] * 5, 0.015, math.nan),  # a fall too small to count
    ],
)
def test_the_dip_of_figure_7(logged, dip, share, tmp_path):
    writer = RunWriter(tmp_path, attrs={}, config={}, resume=False)
    for step, value in enumerate(logged):
        writer.log_metrics(step, {"overlap_ratio": value})
    writer.log_metrics(len(logged), {"accuracy/test": 0.5})  # a row without the metric
    fall, regained = supports._fall(open_run(tmp_path))
    assert fall == pytest.approx(dip, abs=1e-12)
    assert (regained / fall if fall >= 0.02 else math.nan) == pytest.approx(share, nan_ok=True)
