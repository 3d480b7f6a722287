"""Figures 11 and 12 against loops over what runs of known numbers hold."""

import math
from dataclasses import replace
from statistics import mean

import numpy as np
import pytest
import xarray as xr
from oracle import accuracy, claims_of, drawn, interval

from analyses import length
from analyses.evidence import Evidence
from analyses.experiments import LENGTHS
from analyses.presets import PRESETS
from analyses.registry import FIGURES
from analyses.results import load, save
from opdprobe.store import RunWriter, open_run
from opdprobe.testing import synthetic_step

pytestmark = pytest.mark.slow

N_STEPS, N_ROLLOUTS = 12, 40
DEPTHS = (0, 4, 2, 16, 8)  # in no order
# Final accuracy by length, as the paper has it and otherwise.
LIKE = dict(zip(LENGTHS, (0.4, 0.5, 0.7, 0.8, 0.75, 0.6), strict=True))
UNLIKE = dict(zip(LENGTHS, (0.9, 0.5, 0.7, 0.8, 0.75, 0.95), strict=True))
# Overlap ratio that the longest logs.
COLLAPSE = [0.5, 0.6, 0.8, 0.9, 0.9, 0.9, 0.9, 0.9, 0.8, 0.7, 0.7, 0.6]
RISE = [0.5, 0.6, 0.7, 0.7, 0.75, 0.8, 0.8, 0.82, 0.84, 0.85, 0.86, 0.9]
LIMITS = {name: int(64 * factor) for name, factor in LENGTHS.items()}


def draw(rng, chance, n=40):
    return (rng.binomial(4, chance, n) / 4).tolist()


def write_run(path, name, seed, *, final, overlap, loud):
    """A run whose longest responses are `loud` times as uncertain, and its gradients as large."""
    rng = np.random.default_rng([seed, *map(ord, name)])
    attrs = {"seed": seed, "k": 4}
    config = {"eval_n": 4, "max_completion_length": LIMITS.get(name, 64)}
    writer = RunWriter(path, attrs=attrs, config=config, resume=False)
    # Entropies are read of the last five recorded steps.
    recorded = range(6, N_STEPS) if name in ("length_4", "length_6") else [0]
    for step in range(N_STEPS):
        factor = loud if name == "length_6" and step >= 6 else 1
        if step in recorded:
            ds = synthetic_step(step, n_rollouts=24, length=8 * [4, 0, 5], k=4, seed=seed)
            ds["entropy"] *= np.float32(factor)
            writer.write_step(step, ds)
        writer.log_metrics(
            step,
            {
                "overlap_ratio": overlap[step] if name == "length_6" else 0.8,
                "student_entropy": factor * (1 + rng.random() / 10),
                "grad_norm": factor * (1 + rng.random() / 10),
            },
        )
    # The last two evaluations are in the last quarter of the steps.
    after = final.get(name, 0.3)
    for step, chance in ((0, 0.3), (6, 0.35), (9, after), (N_STEPS, after)):
        for benchmark in ("easy", "hard"):
            scores = draw(rng, chance)
            writer.log_evaluation(step, benchmark, list(map(str, range(40))), scores)
    writer.log_metrics(N_STEPS, {"accuracy/easy": 0.5})  # a row without the other metrics
    return open_run(path)


def continuation(seed, *, gain_at):
    """Gains by depth. A rollout that ends before a depth has none there."""
    rng = np.random.default_rng(seed)
    gain = np.array([rng.choice([gain_at[d] - 0.1, gain_at[d] + 0.1], N_ROLLOUTS) for d in DEPTHS])
    gain[:, :6] += 0.5  # those that end first gain most
    gain[DEPTHS.index(4), :3] = math.nan
    gain[DEPTHS.index(8), :6] = math.nan
    gain[DEPTHS.index(16), :21] = math.nan  # too few go on
    prompts = [f"p{i // 2}" for i in range(N_ROLLOUTS)]
    return xr.Dataset(
        {"gain": (("depth", "rollout"), gain)},
        {"depth": list(DEPTHS), "prompt_id": ("rollout", prompts)},
    )


# Nothing is said of depth 0, before the response, and of depth 16.
FALLING = {0: -5.0, 2: 0.4, 4: 0.25, 8: 0.05, 16: 9.0}
RISING = {0: 5.0, 2: 0.0, 4: 0.15, 8: 0.3, 16: -9.0}


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    def evidence(seeds=range(3), *, final=LIKE, overlap=COLLAPSE, loud=3.0, gain_at=FALLING):
        folder = tmp_path_factory.mktemp("runs")
        settings = {"final": final, "overlap": overlap, "loud": loud}
        return Evidence(
            preset="quick",
            models=PRESETS["quick"].models,
            runs={
                name: [write_run(folder / f"{name}-{s}", name, s, **settings) for s in seeds]
                for name in FIGURES["fig11"].experiments
            },
            scores={"student": [{"easy": np.zeros(40), "hard": np.zeros(40)}] * len(seeds)},
            continuations={"probe_success": [continuation(s, gain_at=gain_at) for s in seeds]},
        )

    return evidence


@pytest.fixture(scope="module")
def like(make):
    return make()


@pytest.fixture(scope="module")
def unlike(make):
    return make(final=UNLIKE, overlap=RISE, loud=0.3, gain_at=RISING)


@pytest.fixture(scope="module")
def results(like):
    return length.analyse(like), length.dynamics(like)


def final(run):
    return accuracy(run, "end", ("easy", "hard"))


def gain(ds, depth):
    """Mean over the rollouts that reach depth 8."""
    rows = zip(*(ds["gain"].sel(depth=d).values.tolist() for d in (depth, 8)), strict=True)
    return mean(here for here, there in rows if not math.isnan(there))


def last_entropy(run):
    values = []
    for step in run.steps[-5:]:
        values += run.load(step)["entropy"].sel(model="student").values.tolist()
    return mean(values)


def oracle(evidence, seed):
    run = {name: runs[seed] for name, runs in evidence.runs.items()}
    ends = [final(run[name]) for name in LENGTHS]
    gains = evidence.continuations["probe_success"][seed]
    overlap = run["length_6"].metrics["overlap_ratio"].values[:N_STEPS].tolist()
    norms = {name: run[name].metrics["grad_norm"].values[:N_STEPS].tolist() for name in LENGTHS}
    return {
        "fig11.sweet_spot": 1 + ends.index(max(ends)),
        "fig11.long": ends[3] - ends[5],
        "fig11.short": ends[3] - ends[0],
        "fig11.gain_start": gain(gains, 2),
        "fig11.gain_falls": np.polyfit([1, 2, 3], [gain(gains, d) for d in (2, 4, 8)], 1)[0],
        "fig11.gain_ends": gain(gains, 8) - gain(gains, 2),
        "fig12.collapse": mean(overlap[-5:])
        - max(mean(overlap[i : i + 5]) for i in range(N_STEPS - 4)),
        "fig12.entropy": last_entropy(run["length_6"]) / last_entropy(run["length_4"]),
        "fig12.gradient": mean(norms["length_6"][-3:]) / mean(norms["length_4"][-3:]),
    }


@pytest.mark.parametrize("evidence", ["like", "unlike"])
def test_every_number_of_every_seed_is_what_its_claim_says(evidence, request):
    evidence = request.getfixturevalue(evidence)
    found = claims_of(length.analyse(evidence), length.dynamics(evidence))
    want = [oracle(evidence, seed) for seed in range(3)]
    assert set(found) == set(want[0])
    for name, claim in found.items():
        values = [seed[name] for seed in want]
        assert list(claim.seeds) == pytest.approx(values, rel=1e-6), name
        assert claim.ours == pytest.approx(mean(values), rel=1e-6), name


def test_the_slope_has_an_interval_over_seeds_and_prompts(like, results):
    """A prompt's rollouts are drawn together, at all depths and in all seeds."""
    prompts = [f"p{i}" for i in range(3, 20)]  # of the rollouts that reach depth 8
    times, samples = drawn(prompts), []
    for ds in like.continuations["probe_success"]:
        means = []
        for depth in (2, 4, 8):
            values = ds["gain"].sel(depth=depth).values.tolist()
            sums = [values[2 * i] + values[2 * i + 1] for i in range(3, 20)]
            means.append((times @ sums) / (2 * times.sum(axis=1)))
        samples.append(np.polyfit([1, 2, 3], means, 1)[0])
    claim = claims_of(*results)["fig11.gain_falls"]
    want = interval([oracle(like, s)["fig11.gain_falls"] for s in range(3)], np.mean(samples, 0))
    assert (claim.low, claim.high) == pytest.approx(want)


def test_runs_like_the_papers_support_its_claims(results):
    assert {claim.verdict for claim in claims_of(*results).values()} == {"supported"}


def test_runs_unlike_the_papers_support_none(unlike):
    found = claims_of(length.analyse(unlike), length.dynamics(unlike))
    assert {claim.verdict for claim in found.values()} == {"refuted"}


def test_accuracy_panel(like):
    panel = length.analyse(like).panels[0]
    (series,) = panel.series
    assert list(panel.ticks) == ["2", "8", "16", "32", "64", "160"]
    assert list(series.x) == [0, 1, 2, 3, 4, 5]
    want = [mean(map(final, like.runs[name])) for name in LENGTHS]
    assert list(series.y) == pytest.approx(want)
    assert all(lo < y < hi for lo, y, hi in zip(series.low, series.y, series.high, strict=True))
    (line,) = panel.references
    starts = [accuracy(run, "start", ("easy", "hard")) for run in like.runs["length_4"]]
    assert (line.role, line.y) == ("student", pytest.approx(mean(starts)))
    assert panel.y_label == "accuracy (avg@4)"


def test_gain_panel_has_the_depths_that_enough_rollouts_reach(like):
    panel = length.analyse(like).panels[1]
    (series,) = panel.series
    assert list(panel.ticks) == ["2", "4", "8"]
    gains = like.continuations["probe_success"]
    want = [mean(gain(ds, depth) for ds in gains) for depth in (2, 4, 8)]
    assert list(series.y) == pytest.approx(want)


def with_gains(evidence, *depths):
    """The same evidence, of which no rollout goes on beyond some depths."""
    gains = [ds.copy(deep=True) for ds in evidence.continuations["probe_success"]]
    for ds in gains:
        ds["gain"][{"depth": [d not in depths for d in DEPTHS]}] = math.nan
    return replace(evidence, continuations={"probe_success": gains})


@pytest.mark.parametrize(
    ("depths", "unknown"),
    [
        ((0,), ["gain_start", "gain_falls", "gain_ends"]),
        ((0, 2), ["gain_falls", "gain_ends"]),  # one depth shows no fall
        (None, ["gain_start", "gain_falls", "gain_ends"]),  # prompts without answers
    ],
)
def test_depths_that_too_few_reach_leave_claims_open(like, depths, unknown):
    some = replace(like, continuations={}) if depths is None else with_gains(like, *depths)
    found = length.analyse(some)
    assert list(found.panels[1].ticks) == (["2"] if depths == (0, 2) else [])
    for claim in found.claims:
        if claim.id.removeprefix("fig11.") in unknown:
            assert np.isnan([claim.ours, *claim.seeds]).all()
            assert len(claim.seeds) == 3
            assert claim.verdict == "inconclusive"
        else:
            assert claim.verdict == "supported"


def test_a_depth_counts_if_enough_rollouts_of_every_seed_reach_it(like):
    first, *others = like.continuations["probe_success"]
    few = first.copy(deep=True)
    few["gain"][{"depth": DEPTHS.index(8), "rollout": slice(0, 21)}] = math.nan  # 19 are left
    some = replace(like, continuations={"probe_success": [few, *others]})
    assert list(length.analyse(some).panels[1].ticks) == ["2", "4"]


def test_dynamics_panels_hold_what_was_logged(like):
    found = length.dynamics(like)
    assert [panel.y_label for panel in found.panels] == [
        "overlap ratio",
        "student entropy [nats]",
        "gradient norm",
    ]
    for panel in found.panels:
        assert [series.role for series in panel.series] == list(LENGTHS)
        for series in panel.series:
            runs = like.runs[series.role]
            logged = [run.metrics[panel.name].values[:N_STEPS] for run in runs]
            assert list(series.x) == list(range(N_STEPS))
            np.testing.assert_allclose(series.y, np.mean(logged, axis=0))
    assert found.panels[0].series[-1].label == "160 tokens"


def test_results_survive_the_file(results, tmp_path):
    for found in results:
        save(found, tmp_path / f"{found.figure}.json")
        assert load(tmp_path / f"{found.figure}.json").claims == found.claims
        assert all(claim.id.startswith(found.figure) for claim in found.claims)
