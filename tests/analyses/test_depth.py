"""Figures 13 and 23: maps of known entropies, and where they are high, by loops."""

import math
from functools import cache
from statistics import mean

import numpy as np
import pytest
from oracle import claims_of

from analyses import depth
from analyses.evidence import Evidence
from analyses.presets import PRESETS
from analyses.results import load, save
from opdprobe.store import RunWriter, open_run
from opdprobe.testing import synthetic_step

pytestmark = pytest.mark.slow

N_STEPS, LONGEST = 8, 40
LENGTHS = [40, 40, 37, 0, 38]  # prompts are few, and have to agree


def wave(position, step):
    """1 at the beginning, 3 from a point on that moves forward by four tokens a step."""
    return np.where(position >= 38 - 4 * step, 3.0, 1.0)


def retreat(position, step):
    """3 at the beginning, up to a point that moves back by four tokens a step."""
    return wave(LONGEST - 1 - position, N_STEPS - 1 - step)


def write_run(path, seed, course):
    attrs = {"seed": seed, "k": 4}
    writer = RunWriter(path, attrs=attrs, config={}, resume=False)
    for step in range(N_STEPS):
        ds = synthetic_step(step, n_rollouts=5, length=LENGTHS, k=4, seed=seed)
        noise = np.random.default_rng([seed, step]).random(ds.sizes["state"]) / 10
        entropy = course(ds["position"].values, step) + noise
        # The teacher's is a constant larger.
        ds["entropy"].values[:] = np.stack([entropy, entropy + 0.5], axis=1)
        ds["finished"].values[:] = [True, False, True, True, step % 2 == 0]
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


@cache
def loaded(path, step):
    return open_run(path).load(step)


def states(run):
    """Step, position and both models' entropies, state by state."""
    for step in run.steps:
        ds = loaded(run.path, step)
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


def finished(run, steps, model):
    """Share of the response that lies before a state, and the entropy, in finished responses."""
    for step in steps:
        ds = loaded(run.path, step)
        names = ("rollout", "position", "entropy", "finished", "length")
        rollouts, positions, entropies, ended, lengths = (
            ds[name].values.tolist() for name in names
        )
        for rollout, position, entropy in zip(rollouts, positions, entropies, strict=True):
            if ended[rollout]:
                yield position / lengths[rollout], entropy[MODELS[model]]


def part(run, start, stop, steps, model):
    return mean(v for share, v in finished(run, steps, model) if start <= share < stop)


def forward(run, steps, model):
    return part(run, 0.25, 0.75, steps, model) / part(run, 0.75, 1, steps, model)


@pytest.mark.parametrize(("model", "figure"), [("student", "fig13"), ("teacher", "fig23")])
def test_every_number_of_every_seed_is_what_its_claim_says(like, results, model, figure):
    begin, end = range(5), range(3, 8)
    want = {"end_first": [], "end_first_position": [], "moves_forward": []}
    for run in like.runs["length_6"]:
        want["end_first"].append(
            part(run, 0.75, 1, begin, model) / part(run, 0, 0.25, begin, model)
        )
        first, last = [], []
        for step, position, entropies in states(run):
            if step < 5 and position < 10:
                first.append(entropies[MODELS[model]])
            if step < 5 and position >= 30:
                last.append(entropies[MODELS[model]])
        want["end_first_position"].append(mean(last) / mean(first))
        want["moves_forward"].append(forward(run, end, model) / forward(run, begin, model))
    found = claims_of(results[model])
    assert list(found) == [f"{figure}.{name}" for name in want]
    for name, values in want.items():
        assert list(found[f"{figure}.{name}"].seeds) == pytest.approx(values)
        assert found[f"{figure}.{name}"].ours == pytest.approx(mean(values))


def test_responses_that_were_cut_off_say_nothing_of_parts_of_a_response(like, results, tmp_path):
    """Where a response would have ended is not known of them; of its positions, it is."""
    (run, *_) = like.runs["length_6"]
    writer = RunWriter(tmp_path / "run", attrs=run.attrs, config=run.config, resume=False)
    for step in run.steps:
        ds = run.load(step)
        cut = ds["finished"].values[ds["rollout"].values] == 0
        ds["entropy"].values[cut & (ds["position"].values >= 30)] *= 10
        writer.write_step(step, ds)
    runs = {"length_6": [open_run(tmp_path / "run")]}
    loud = depth.student(Evidence("quick", PRESETS["quick"].models, runs, {})).claims
    ends, positions, moves = (claim.seeds[0] for claim in results["student"].claims)
    assert [loud[0].ours, loud[2].ours] == pytest.approx([ends, moves])
    assert loud[1].ours > 2 * positions


def test_runs_like_the_papers_support_its_claims(results):
    claims = claims_of(*results.values())
    assert {claim.verdict for claim in claims.values()} == {"supported"}


def test_runs_unlike_the_papers_support_none(make):
    """High at the beginning, and ever less far."""
    found = claims_of(depth.student(make(retreat, range(3))))
    assert {claim.verdict for claim in found.values()} == {"refuted"}


def test_a_single_run_of_few_prompts_has_no_interval(make):
    """A part of the response is a function of which nothing is known: it needs 64 prompts."""
    for claim in depth.student(make(wave)).claims:
        assert math.isfinite(claim.ours)
        assert claim.verdict == "inconclusive"


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
    assert [claim.verdict for claim in found.claims] == ["inconclusive"] * 3
    assert np.isnan(heat_of(found).z).all()


def test_results_survive_the_file(results, tmp_path):
    for found in results.values():
        save(found, tmp_path / f"{found.figure}.json")
        assert load(tmp_path / f"{found.figure}.json").claims == found.claims
        assert all(claim.id.startswith(found.figure) for claim in found.claims)
