"""A trainer on tiny models, and the comparison of what two runs recorded."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from opdprobe import OPDConfig, OPDTrainer, Prompt, Run
from opdprobe.testing import tiny_model, tiny_tokenizer

PROMPTS = [Prompt(str(i), text=" ".join(["7", "11", str(i)][i % 3 :])) for i in range(6)]
SETTINGS = {
    "k": 4,
    "batch_size": 2,
    "num_generations": 2,
    "max_completion_length": 6,
    "learning_rate": 1e-3,
    "max_steps": 4,
}


def make_model(seed: int, vocab_size: int = 64):
    """Make a tiny model with probabilities far from uniform."""
    model = tiny_model(vocab_size, seed=seed)
    model.lm_head.weight.data *= 20
    return model


def make_trainer(run_dir: Path, *, settings: dict[str, Any] | None = None, **kwargs):
    """Make a trainer, of two tiny models unless given others, on six prompts of three lengths."""
    defaults = {
        "student": make_model(0),
        "teacher": make_model(1),
        "tokenizer": tiny_tokenizer(),
        "prompts": PROMPTS,
        "config": OPDConfig(**SETTINGS | (settings or {})),
    }
    return OPDTrainer(run_dir=run_dir, **defaults | kwargs)


def compare_runs(got: Run, want: Run, *, rtol: float = 0.0):
    """Compare everything that two runs recorded, except times."""
    assert got.steps == want.steps
    if rtol == 0:
        for step in want.steps:
            assert got.load(step).identical(want.load(step))
    a, b = (
        run.metrics.drop_vars([name for name in run.metrics if "seconds" in str(name)])
        for run in (got, want)
    )
    assert a.keys() == b.keys()
    for name in b:
        np.testing.assert_allclose(a[name], b[name], rtol=rtol, atol=rtol, err_msg=str(name))


@pytest.fixture
def sharpened() -> Callable:
    return make_model


@pytest.fixture
def trainer_in() -> Callable[..., OPDTrainer]:
    return make_trainer


@pytest.fixture
def assert_same_runs() -> Callable[..., None]:
    return compare_runs
