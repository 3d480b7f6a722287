"""Log-probabilities that rollouts brought: each planted cause is the one that the report names."""

import numpy as np
import pytest

from opdprobe import RunWriter, open_run
from opdprobe.probes import compare_sampler
from opdprobe.report.course import course
from opdprobe.report.diagnosis import diagnose
from opdprobe.store.schema import step_dataset

LENGTH, VOCABULARY, K = 24, 200, 16


def distributions(n, rng):
    """Logits as of a language model: most states are nearly certain, some are not."""
    scale = rng.choice([9.0, 4.0, 2.0], n)[:, None]
    return scale * rng.normal(size=(n, VOCABULARY)) * 0.9


def log_softmax(logits):
    logits = logits - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def draw(logp, rng):
    return (logp + rng.gumbel(size=logp.shape)).argmax(-1)


def at(logp, ids):
    return np.take_along_axis(logp, ids[:, None], -1)[:, 0]


def bfloat16(values):
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x8000) & np.uint32(0xFFFF0000)).view(np.float32)


def planted(cause, lists=True):
    """A step of 20 rollouts whose sampler has a planted fault; returns the arrays of the store."""
    n = 20 * LENGTH
    rollout, position = np.divmod(np.arange(n), LENGTH)
    rng = np.random.default_rng(0)
    logits = distributions(n, rng)
    student = log_softmax(logits)
    sampler = {
        "temperature": lambda: log_softmax(logits / 0.7),
        "hot": lambda: log_softmax(logits / 1.4),
        "bfloat16": lambda: log_softmax(bfloat16(logits + 1e-3 * rng.normal(size=logits.shape))),
        "template": lambda: log_softmax(
            logits + 4 * np.exp(-position / 3)[:, None] * rng.normal(size=logits.shape)
        ),
        "late": lambda: log_softmax(
            logits + 2 * (position > 8)[:, None] * rng.normal(size=logits.shape)
        ),
        "shifted": lambda: student,
    }[cause]()
    drawn = draw(sampler, rng)
    reported = at(sampler, drawn)
    if cause == "shifted":
        reported = np.roll(reported.reshape(20, LENGTH), 1, axis=1).ravel()
    ids = np.argsort(-student, axis=-1)[:, :K]
    top = np.take_along_axis(student, ids, -1)
    sampled = np.stack([at(student, drawn)] * 2, 1)
    arrays = {
        "rollout": rollout,
        "position": position,
        "sampled_id": drawn,
        "sampled_logp": sampled,
        "sampler_logp": np.minimum(reported, 0),
    }
    if lists:
        arrays |= {
            "token_id": np.stack([ids, ids], 1),
            "logp": np.stack([np.stack([top, top], 1)] * 2, 1),
            "entropy": np.stack([-(np.exp(student) * student).sum(-1)] * 2, 1),
            "reverse_kl": np.zeros(n),
        }
    return arrays


CAUSES = {
    "bfloat16": "sampler_agrees",
    "temperature": "sampler_temperature",
    "hot": "sampler_temperature",
    "shifted": "sampler_shifted",
    "template": "sampler_reads_otherwise",
    "late": "sampler_differs",
}


@pytest.mark.parametrize("lists", [True, False], ids=["lists", "drawn tokens"])
@pytest.mark.parametrize("cause", CAUSES)
def test_the_planted_cause_is_named(cause, lists, tmp_path):
    writer = RunWriter(tmp_path / "run", attrs={}, config={}, resume=False)
    writer.write_step(0, step_dataset(**planted(cause, lists)))
    findings = {finding.name: finding for finding in diagnose(course(open_run(tmp_path / "run")))}
    named = [name for name in findings if name.startswith("sampler_")]
    # Drawn tokens alone do not tell a temperature.
    untold = not lists and CAUSES[cause] == "sampler_temperature"
    assert named == ["sampler_differs" if untold else CAUSES[cause]]
    assert ("not_recorded" in findings) is (not lists)
    if cause == "temperature" and lists:
        assert "0.7 times the temperature" in findings["sampler_temperature"].text


@pytest.mark.parametrize(("cause", "temperature"), [("temperature", 0.7), ("hot", 1.4)])
def test_the_temperature_is_that_of_the_sampler(cause, temperature):
    arrays = planted(cause)
    found = compare_sampler(
        arrays["sampled_logp"][:, 0],
        arrays["sampler_logp"],
        arrays["rollout"],
        arrays["logp"][:, 0, 0],
    )
    assert found.temperature == pytest.approx(temperature, rel=0.01)
    assert found.temperature_left < 0.05
    assert found.mean_abs > 0.2


def test_the_estimates_are_those_of_the_definition():
    p, q = np.array([0.5, 0.3, 0.2]), np.array([0.4, 0.4, 0.2])  # the sampler's, the student's
    drawn = np.random.default_rng(0).choice(3, 200_000, p=p)
    found = compare_sampler(np.log(q)[drawn], np.log(p)[drawn], np.arange(len(drawn)))
    kl = (p * np.log(p / q)).sum()
    assert found.k1 == pytest.approx(kl, rel=0.05)
    assert found.k3 == pytest.approx(kl, rel=0.05)
    assert found.largest == pytest.approx(np.log(0.4 / 0.3))
    assert np.isnan(found.at_shift)  # no rollout has two tokens


def test_what_is_not_known_is_left_out():
    nan = np.nan
    assert compare_sampler([-1.0], [nan], [0]).n == 0
    found = compare_sampler([-1.0, -2.0, -np.inf], [-1.5, nan, -1.0], [0, 0, 0])
    assert (found.n, found.mean_abs, found.first) == (1, 0.5, 0.5)
    with pytest.raises(ValueError, match="expected all three flat over tokens"):
        compare_sampler([-1.0], [-1.0, -2.0], [0])
