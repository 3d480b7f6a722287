"""Whether the words are earned: more prompts sharpen a verdict; known wrong answers are gone.

A wrong answer of an earlier rule is either right now, or *cannot tell*.
"""

import importlib
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from opdprobe import OPDConfig, OPDTrainer
from opdprobe.cli.names import resolve_model, resolve_prompts
from opdprobe.models.load import drop_layers, load_model, load_tokenizer
from opdprobe.preflight import preflight
from opdprobe.preflight.estimates import Number, prompt_mean
from opdprobe.preflight.verdict import HARMFUL, LIKELY, UNKNOWN, UNLIKELY, Evidence, judge
from opdprobe.report.course import course
from opdprobe.report.diagnosis import diagnose
from opdprobe.rollout.prompts import Prompt

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
FOLDER = os.environ.get("OPDPROBE_SMOLLM2")

# What was measured of base-small and post-large with 128 prompts × 4 (docs/verdicts.md): training
# gains 0.10.
BASE_POST = Evidence(
    overlap=Number(0.53, 0.52, 0.54),
    reverse_kl=Number(1.9, 1.8, 2.0),
    noise=1e-9,
    learnt=Number(0.83, 0.82, 0.84),
    accuracy=Number(0.38, 0.33, 0.43),
    teacher_accuracy=Number(0.86, 0.82, 0.9),
    gap=Number(0.48, 0.42, 0.54),
    gain=Number(-0.05, -0.11, 0.01),
    tail=None,
    truncated=0.0,
    teacher_truncated=0.0,
    repetitive=0.0,
    prompts=128,
)


# ---- more of the same data ----


def drawn(rng, n, before, gain):
    """Give changes of accuracy of n prompts, four rollouts each, whose mean is `gain`."""
    # Prompts differ in difficulty; a prompt's chance moves from its own towards 1, or towards 0.
    chance = rng.beta(2, 2 * (1 - before) / before, n)
    up, down = gain * (1 - chance) / (1 - before), gain * chance / before
    moved = chance + (up if gain > 0 else down)
    return (rng.binomial(4, moved) - rng.binomial(4, chance)) / 4


def word_of(changes):
    gain = prompt_mean(changes, np.arange(len(changes)), (-1, 1))
    # The teacher is no better, so that nothing but the gain decides.
    return judge(replace(BASE_POST, gap=Number(0.0, -0.1, 0.1), gain=gain, learnt=UNCLEAR)).word


UNCLEAR = Number(0.25, 0.2, 0.3)
TRUTHS = {0.4: LIKELY, 0.3: LIKELY, 0.0: UNLIKELY, -0.3: HARMFUL}
ERRORS = 0.05  # of a 95 % interval


@pytest.mark.parametrize("truth", TRUTHS)
def test_more_prompts_sharpen_a_verdict_and_do_not_flip_it(truth):
    rng, sizes = np.random.default_rng(0), (16, 32, 64, 256)
    words = {n: [] for n in sizes}
    for _ in range(100):
        changes = drawn(rng, sizes[-1], 0.5, truth)
        for n in sizes:  # a part of the same data
            words[n].append(word_of(changes[:n]))
    right = [np.mean([w == TRUTHS[truth] for w in words[n]]) for n in sizes]
    wrong = [np.mean([w not in (TRUTHS[truth], UNKNOWN) for w in words[n]]) for n in sizes]
    assert max(wrong) <= ERRORS, wrong
    assert right == sorted(right), right
    assert right[-1] > 0.9
    # From one definite word to another. Of all draws: few prompts give few definite words.
    for n in sizes[:-1]:
        pairs = zip(words[n], words[sizes[-1]], strict=True)
        flips = [few != many and UNKNOWN not in (few, many) for few, many in pairs]
        assert np.mean(flips) <= ERRORS


def test_an_effect_between_the_sizes_is_never_called_its_opposite():
    rng = np.random.default_rng(1)
    for n in (16, 64):
        words = [word_of(drawn(rng, n, 0.5, 0.1)) for _ in range(100)]
        assert HARMFUL not in words


# ---- the known wrong answers ----


@pytest.mark.parametrize(
    "gain", [Number(-0.05, -0.11, 0.01), Number(-0.06, -0.11, -0.02), Number(0.02, -0.05, 0.09)]
)
def test_a_pattern_that_the_last_layer_cannot_hold_is_not_called_useless(gain):
    assert judge(replace(BASE_POST, gain=gain)).word == UNKNOWN


@pytest.mark.slow  # two samplings of a model of four layers, and its scores
def test_base_small_from_post_large_is_not_called_useless():
    prompts, grader = resolve_prompts("zoo:train", 256)
    models = resolve_model("zoo:base-small"), resolve_model("zoo:post-large")
    result = preflight(*models, prompts, grader=grader, n_prompts=64)
    assert result.verdict.word in (LIKELY, UNKNOWN)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("n_prompts", [8, 16])
def test_few_prompts_are_no_evidence_against_a_good_teacher(n_prompts, seed):
    prompts, grader = resolve_prompts("zoo:train", 256)
    models = resolve_model("zoo:sft-small"), resolve_model("zoo:rl-small")
    result = preflight(*models, prompts, grader=grader, n_prompts=n_prompts, seed=seed)
    assert result.verdict.word in (LIKELY, UNKNOWN)


def test_a_share_of_twelve_prompts_is_no_evidence_against_a_teacher():
    """SmolLM2 without four layers from the whole, 12 prompts × 2: no answers, and no interval."""
    nothing = dict.fromkeys(("accuracy", "teacher_accuracy", "gap", "gain"), Number(np.nan))
    few = replace(BASE_POST, learnt=Number(0.08), prompts=12, **nothing)
    assert judge(few).word == UNKNOWN


@pytest.mark.real_model
@pytest.mark.skipif(not FOLDER, reason="OPDPROBE_SMOLLM2 is not set to SmolLM2's directory")
def test_few_prompts_are_no_evidence_against_a_real_teacher():
    """Training removes a third of the divergence of this pair."""
    (gguf,) = Path(str(FOLDER)).glob("*.gguf")
    teacher, tokenizer = load_model(gguf), load_tokenizer(gguf)
    student = drop_layers(teacher, range(14, 18))
    prompts = [Prompt(str(n), text=f"What is {n} + {n + 3}?") for n in range(12)]
    settings = {"num_generations": 2, "max_completion_length": 24}
    result = preflight(student, teacher, prompts, tokenizer=tokenizer, **settings)
    assert result.verdict.word == UNKNOWN


@pytest.fixture(scope="module")
def beginning(tmp_path_factory):
    """The first 24 steps of the success, of which 192 are planned: it recovers 92 %."""
    prompts, grader = resolve_prompts("zoo:train", 2048)
    config = OPDConfig(
        batch_size=16,
        num_generations=4,
        max_prompt_length=32,
        max_completion_length=64,
        learning_rate=2e-4,
        max_steps=24,
        micro_batch_tokens=2048,
    )
    student = resolve_model("zoo:sft-small")
    trainer = OPDTrainer(
        student,
        resolve_model("zoo:rl-small"),
        tokenizer=load_tokenizer(student),
        prompts=prompts,
        config=config,
        run_dir=tmp_path_factory.mktemp("success"),
        grader=grader,
        device="cpu",
    )
    return course(trainer.train())


@pytest.mark.slow  # trains for 24 steps
@pytest.mark.parametrize("steps", [12, 24])
def test_the_beginning_of_a_success_is_not_called_a_failure(beginning, steps, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    cut = importlib.import_module("diagnosis").cut
    planned = replace(beginning, config=beginning.config | {"max_steps": 192})
    names = {finding.name for finding in diagnose(cut(planned, steps))}
    assert not names & {"stagnating", "drifting_apart"}
    assert names & {"too_early", "aligning", "partly_aligning"}
