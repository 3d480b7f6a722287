"""Figures 13 and 23: maps of known entropies, and where they are high, by loops."""

import math
from statistics import mean

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from analyses import depth
from analyses.evidence import Evidence
from analyses.presets import PRESETS
from analyses.results import load, save
from opdprobe.store import RunWriter, open_run
from opdprobe.testing import synthetic_step

pytestmark = pytest.mark.slow

N_STEPS, LONGEST = 8, 40
LENGTHS = [40, 40, 24, 0, 31]


def wave(position, step):
    """1 at the beginning, 3 from a point on that moves forward by four tokens a step."""
    return np.where(position >= 38 - 4 * step, 3.0, 1.0)


def backward(position, step):
    """High at the beginning first, and then further and further back."""
    return np.where(position >= 4 * step, 1.0, 3.0 if step < 5 else 1.0) * (1 + position / 1e3)


def write_run(path, seed, course):
    attrs = {"seed": seed, "k": 4}
    writer = RunWriter(path, attrs=attrs, config={}, resume=False)
    for step in range(N_STEPS):
        ds = synthetic_step(step, n_rollouts=5, length=LENGTHS, k=4, seed=seed)
        noise = np.random.default_rng([seed, step]).random(ds.sizes["state"]) / 10
        entropy = course(ds["position"].values, step) + noise
        # The teacher's is a constant larger.
        ds["entropy"].values[:] = np.stack([entropy, entropy + 0.5], axis=1)
        writer.write_step(step, ds)
    return open_run(path)


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    def evidence(course, seeds=(0,)):
        folder = tmp_path_factory.mktemp("runs")
        runs = {"length_6": [write_run(folder / str(s), s, course) for s in seeds]}
        return Evidence("quick", PRESETS["quick"].models, runs, {})

    return evidence


@pytest.fixture(scope="module")
def like(make):
    return make(wave, range(3))


@pytest.fixture(scope="module")
def results(like):
    return {"student": depth.student(like), "teacher": depth.teacher(like)}


def heat_of(results):
    (panel,) = results.panels
    assert panel.heat is not None
    return panel.heat


def states(run):
    """Step, position and both models' entropies, state by state."""
    for step in run.steps:
        ds = run.load(step)
        yield from zip(
            [step] * ds.sizes["state"],
            ds["position"].values.tolist(),
            ds["entropy"].values.tolist(),
            strict=True,
        )


MODELS = {"student": 0, "teacher": 1}


@pytest.mark.parametrize("model", MODELS)
def test_the_map_is_the_mean_over_the_states_of_all_seeds(like, results, model):
    heat = heat_of(results[model])
    assert list(heat.x) == list(range(N_STEPS))
    assert list(heat.y) == [0.5 + 2 * i for i in range(20)]  # 40 positions in 20 ranges
    cells = {}
    for run in like.runs["length_6"]:
        for step, position, entropy in states(run):
            cells.setdefault((position // 2, step), []).append(entropy[MODELS[model]])
    for row in range(20):
        for step in range(N_STEPS):
            assert heat.z[row][step] == pytest.approx(mean(cells[row, step]))
    assert heat.label == f"{model} entropy [nats]"


def onset(cells, step, reference):
    """First range, two positions wide, from which on every mean is high; else the end."""
    for row in range(20):
        if all(mean(cells[later, step]) > 1.5 * reference for later in range(row, 20)):
            return 2 * row
    return LONGEST


@pytest.mark.parametrize(("model", "figure"), [("student", "fig13"), ("teacher", "fig23")])
def test_every_number_is_what_its_claim_says(like, results, model, figure):
    ends, moves = [], []
    for run in like.runs["length_6"]:
        cells, first, last = {}, [], []
        for step, position, entropies in states(run):
            entropy = entropies[MODELS[model]]
            cells.setdefault((position // 2, step), []).append(entropy)
            if step < 5 and position < 10:
                first.append(entropy)
            if step < 5 and position >= 30:
                last.append(entropy)
        ends.append(mean(last) / mean(first))
        reference = mean(v for row in range(5) for v in cells[row, 0])
        onsets = [onset(cells, step, reference) for step in range(N_STEPS)]
        moves.append(stats.spearmanr(range(N_STEPS), onsets)[0])
    main, second = results[model].claims
    assert (main.id, second.id) == (f"{figure}.end_first", f"{figure}.moves_forward")
    assert main.ours == pytest.approx(mean(ends))
    assert second.ours == pytest.approx(mean(moves))
    half = stats.t.ppf(0.975, 2) * stats.sem(ends)
    assert (main.low, main.high) == pytest.approx((mean(ends) - half, mean(ends) + half))


def test_runs_like_the_papers_show_its_claims(results):
    claims = [claim for found in results.values() for claim in found.claims]
    assert {claim.verdict for claim in claims} == {"shown"}


def test_runs_unlike_the_papers_show_none_of_it(make):
    found = depth.student(make(backward))
    # A part of the positions is a function of which nothing is known: it needs 64 prompts.
    assert [claim.verdict for claim in found.claims] == ["not shown", "not shown"]
    assert found.claims[0].ours < 1
    # Nothing is ever high up to the end, so that there is no trend.
    assert math.isnan(found.claims[1].ours)


def test_an_onset_that_moves_back_is_the_opposite(make):
    found = depth.student(make(lambda position, step: wave(position, N_STEPS - step), range(3)))
    moves = found.claims[1]
    assert moves.ours == pytest.approx(1)
    assert moves.verdict == "opposite"


NAN = math.nan


@pytest.mark.parametrize(
    ("column", "want"),
    [
        ([1, 1, 1, 1], 40),  # never
        ([1, 1, 2, 2], 20),
        ([2, 2, 2, 2], 0),
        ([1, 2, 1, 2], 30),  # a low range later: not yet
        ([1, 2, NAN, NAN], 10),  # what nobody reaches says nothing
        ([1, NAN, 2, 2], 20),
        ([1, 2, NAN, 1], 40),
        ([2, 1.5, 2, 2], 20),  # 1.5 times does not exceed it
        ([NAN, NAN, NAN, NAN], 40),
    ],
)
def test_onsets(column, want):
    value = np.array([[1, 1, 1, 1], column], float).T
    starts = np.array([0, 10, 20, 30])
    found = xr.Dataset(
        {
            "value": (("position", "step"), value),
            "n": (("position", "step"), (~np.isnan(value)).astype(int)),
        },
        {"position_start": ("position", starts), "position_stop": ("position", starts + 10)},
    )
    assert depth.onsets(found).tolist() == [40, want]


def test_the_reference_weighs_states_not_ranges():
    value = np.array([[1.0, 2.0], [4.0, 2.0], *[[9.0, 2.0]] * 6])
    n = np.array([[9, 1], [1, 1], *[[1, 1]] * 6])
    starts = np.arange(8)
    found = xr.Dataset(
        {"value": (("position", "step"), value), "n": (("position", "step"), n)},
        {"position_start": ("position", starts), "position_stop": ("position", starts + 1)},
    )
    # 1.3, not 2.5: 2 is high.
    assert depth.onsets(found).tolist() == [1, 0]


def test_many_steps_share_columns(monkeypatch, like):
    monkeypatch.setattr(depth, "MAX_COLUMNS", 3)
    heat = heat_of(depth.student(like))
    assert list(heat.x) == [0.5, 3.0, 6.0]  # steps 0-1, 2-4, 5-7
    values = [
        entropy[0]
        for run in like.runs["length_6"]
        for step, position, entropy in states(run)
        if step in (2, 3, 4) and position in (30, 31)
    ]
    assert heat.z[15][1] == pytest.approx(mean(values))


def test_positions_that_nobody_reaches_are_blank(tmp_path):
    def run(lengths, folder):
        writer = RunWriter(folder, attrs={"seed": 0, "k": 4}, config={}, resume=False)
        for step, length in enumerate(lengths):
            writer.write_step(step, synthetic_step(step, n_rollouts=2, length=length, k=4))
        return open_run(folder)

    runs = {"length_6": [run([30, 10], tmp_path / "a"), run([12, 16], tmp_path / "b")]}
    heat = heat_of(depth.student(Evidence("quick", PRESETS["quick"].models, runs, {})))
    z = np.array(heat.z)
    middle = np.array(heat.y)
    # Of the two seeds together, the longest response is 30 tokens long, then 16.
    np.testing.assert_array_equal(np.isnan(z[:, 0]), np.zeros(20))
    np.testing.assert_array_equal(np.isnan(z[:, 1]), middle >= 16)


def test_runs_without_a_state(tmp_path):
    writer = RunWriter(tmp_path / "run", attrs={"seed": 0, "k": 4}, config={}, resume=False)
    writer.write_step(0, synthetic_step(n_rollouts=2, length=0, k=4))
    runs = {"length_6": [open_run(tmp_path / "run")]}
    found = depth.student(Evidence("quick", PRESETS["quick"].models, runs, {}))
    assert [claim.verdict for claim in found.claims] == ["not shown", "not shown"]
    assert np.isnan(heat_of(found).z).all()


def test_results_survive_the_file(results, tmp_path):
    for found in results.values():
        save(found, tmp_path / f"{found.figure}.json")
        assert load(tmp_path / f"{found.figure}.json").claims == found.claims
        assert all(claim.id.startswith(found.figure) for claim in found.claims)
