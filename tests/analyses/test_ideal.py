"""Figure 28 against a loop over states; every verdict can fall out both ways."""

import numpy as np
import pytest
from oracle import claims_of
from scipy import stats

from analyses import ideal
from analyses.evidence import Evidence
from analyses.presets import PRESETS
from opdprobe.store import RunWriter, open_run
from opdprobe.testing import synthetic_step

SEEDS, STATES, TOKENS, SAMPLES = 5, 24, 3, 8


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")

    def run(name, seed):
        attrs = {"seed": seed, "k": 6, "student": {"name": "s"}, "teacher": {"name": "t"}}
        writer = RunWriter(folder / f"{name}-{seed}", attrs=attrs, config={}, resume=False)
        writer.write_step(0, synthetic_step(n_rollouts=4, length=12, k=6, seed=seed))
        return open_run(folder / f"{name}-{seed}")

    return {n: [run(n, s) for s in range(SEEDS)] for n in ("probe_success", "probe_failure")}


def evidence(runs, scores):
    """Scores of (run, seed) give success after each token."""
    found = [
        {
            "states": list(range(1, 2 * STATES, 2)),
            "tokens": [],
            "scores": scores(runs["probe_success"][seed], seed).tolist(),
        }
        for seed in range(SEEDS)
    ]
    models = PRESETS["quick"].models
    return Evidence("quick", models, runs, {}, measured={("forced", "probe_success"): found})


def drawn(run, seed):
    rng = np.random.default_rng(seed)
    chance = rng.uniform(size=(STATES, TOKENS, 1))
    scores = (rng.uniform(size=(STATES, TOKENS, SAMPLES)) < chance).astype(float)
    scores[0] = 1.0  # success does not depend on the token here
    return scores


def wished(run, sign):
    """Success as the teacher would have it, or the opposite; no grade has to be 0 or 1."""
    logp = run.load(0)["logp"].sel(support="student").values[1 : 2 * STATES : 2, :, :TOKENS]
    return np.repeat(sign * (logp[:, 1] - logp[:, 0])[..., None], SAMPLES, axis=-1)


def test_each_seeds_numbers_are_those_of_a_loop(runs):
    results = ideal.analyse(evidence(runs, drawn))
    found = claims_of(results)
    for seed in range(SEEDS):
        step, scores = runs["probe_success"][seed].load(0), drawn(None, seed)
        cosines, harmed, entropy = [], [], []
        for i, state in enumerate(range(1, 2 * STATES, 2)):
            lp, lq = step["logp"].sel(support="student").values[state, :, :TOKENS].astype(float)
            p = np.exp(lp) / np.exp(lp).sum()
            q_value, f = scores[i].mean(axis=1), lq - lp
            a = [p[j] * (q_value[j] - p @ q_value) for j in range(TOKENS)]
            b = [p[j] * (f[j] - p @ f) for j in range(TOKENS)]
            if not any(a):
                continue
            dot = sum(x * y for x, y in zip(a, b, strict=True))
            cosines.append(dot / np.sqrt(sum(x * x for x in a) * sum(y * y for y in b)))
            harmed.append(dot < 0)
            entropy.append(step["entropy"].sel(model="student").values[state])
        assert len(cosines) < STATES
        assert found["fig28.aligned"].seeds[seed] == pytest.approx(np.mean(cosines))
        assert found["fig28.harm"].seeds[seed] == pytest.approx(np.mean(harmed))
        rho = stats.spearmanr(entropy, cosines)[0]
        assert found["fig28.entropy"].seeds[seed] == pytest.approx(rho)
    # Both runs are the same step here.
    assert found["fig28.better"].ours == pytest.approx(0)
    assert len(results.panels[0].series[0].values) == SEEDS * (STATES - 1)


@pytest.mark.parametrize("sign", [1, -1])
def test_success_as_the_teacher_would_have_it_is_a_cosine_of_one(runs, sign):
    found = claims_of(ideal.analyse(evidence(runs, lambda run, seed: wished(run, sign))))
    assert found["fig28.aligned"].ours == pytest.approx(sign)
    assert found["fig28.harm"].ours == (sign < 0)
    verdicts = ("supported", "refuted") if sign > 0 else ("refuted", "supported")
    assert (found["fig28.harm"].verdict, found["fig28.harm_failing"].verdict) == verdicts
    assert found["fig28.aligned_failing"].verdict == "refuted"


def test_a_direction_that_is_not_there_has_no_cosine():
    a, b = (
        np.array([[1.0, -1.0], [0.0, 0.0], [2.0, 0.0]]),
        np.array([[2.0, -2.0], [1.0, 0.0], [0, 3]]),
    )
    np.testing.assert_allclose(ideal.cosines(a, b), [1.0, np.nan, 0.0])


def test_the_gradient_is_that_of_the_mean_by_the_logits():
    logits, value = np.array([0.3, -1.0, 0.7]), np.array([1.0, 0.0, 0.4])

    def mean(x):
        return np.exp(x) / np.exp(x).sum() @ value

    p = np.exp(logits) / np.exp(logits).sum()
    steps = 1e-6 * np.eye(3)
    slope = [(mean(logits + step) - mean(logits - step)) / 2e-6 for step in steps]
    np.testing.assert_allclose(ideal.weighted(p, value), slope, atol=1e-9)
