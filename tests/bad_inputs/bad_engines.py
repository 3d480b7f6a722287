"""Servers whose answers cannot be used, and engines that are not the student."""

from pathlib import Path
from typing import Any

import numpy as np
from case import Case

from opdprobe.errors import ConfigError, ModelError
from opdprobe.hooks.checkpoints import probe_checkpoints
from opdprobe.hooks.served.steady import judge
from opdprobe.models.processes import Processes
from opdprobe.rollout.engine import check_sampler, sample_trained, sample_with
from opdprobe.rollout.prompts import Prompt
from opdprobe.rollout.sample import Rollouts
from opdprobe.testing import tiny_model, tiny_tokenizer
from opdprobe.train.config import OPDConfig
from opdprobe.train.engine import check_engine

_DRAWN = Rollouts([[7]], [[8, 9]], [True], [0], sampler_logp=[[-1.0, -2.0]])


class _Engine:
    """An engine that says nothing of what it draws."""

    name, loads_weights = "student", False

    def __repr__(self) -> str:
        return "http://gpu:8000/v1#student"

    def load_weights(self, directory: Path) -> None:
        pass

    def has_loaded(self) -> bool:
        return False

    def sample(self, prompts: object, **settings: object) -> Rollouts:
        return Rollouts([[7]], [[8, 9]], [True], [0])


class _Telling(_Engine):
    """One that says it."""

    def sample(self, prompts: object, **settings: object) -> Rollouts:
        return _DRAWN


_SIZES: dict[str, Any] = {"num_generations": 1, "max_completion_length": 2, "width": 64}


def _drawn(**settings: Any) -> Rollouts:
    return sample_with(_Engine(), [[7]], seed=(0,), **{**_SIZES, **settings})


def _several(folder: Path) -> object:
    for step in (1, 2):
        tiny_model().save_pretrained(folder / f"checkpoint-{step}")
        tiny_tokenizer().save_pretrained(folder / f"checkpoint-{step}")
    return probe_checkpoints(
        folder, tiny_model(), [Prompt("a", text="7")], folder / "run", sampler=_Engine()
    )


def _engine(fed: str, feed: object, error: type[Exception], message: str) -> Case:
    return Case("Engines", fed, feed, error, message)


CASES = [
    _engine(
        "a server whose answers differ by more than teacher and student do",
        lambda _: judge(_Engine(), (3, 512), 0.31, 0.042),
        ModelError,
        "http://gpu:8000/v1#student: 3 answers for the same 512 tokens differ by 0.31 nats "
        "(standard deviation), and teacher and student by 0.042 only, so nothing can be measured; "
        "expected answers that do not depend on the rest of the batch: serve the model in float32 "
        "or with batch-invariant kernels, and without a prefix cache.",
    ),
    _engine(
        "an engine that samples with other weights than the student's",
        lambda _: check_sampler(_Engine(), np.array([-1.5, -2.1]), _DRAWN),
        ModelError,
        "http://gpu:8000/v1#student: its log-probabilities of the 2 tokens that it drew differ "
        "from the student's by 0.3 nats on average (0.5 at the first tokens, KL 0.056); expected "
        "less than 0.05, which rounding explains: serve the student's own weights, and compute in "
        "one precision.",
    ),
    _engine(
        "an engine that takes a part of a trained student's weights",
        lambda _: check_sampler(_Engine(), np.array([-1.01, -1.99]), _DRAWN, first_kl=3e-11),
        ModelError,
        "http://gpu:8000/v1#student: the KL of what it draws from the student is 5e-05 nats, and "
        "was 3e-11 in the run's first step; expected no more than 1e-06 of an engine that was so "
        "close: it did not load all of the weights, or computes in another precision than then. "
        "vLLM on CPUs keeps the output layer of a student that shares it with its embeddings "
        "(tie_word_embeddings): serve and train an untied copy there.",
    ),
    _engine(
        "an engine that does not say what it drew with",
        lambda _: _drawn(),
        ModelError,
        "http://gpu:8000/v1#student does not report the log-probabilities that it drew tokens "
        "with, so it cannot be compared with the student; expected a server such as vLLM's or "
        "SGLang's.",
    ),
    _engine(
        "an engine that has other weights again after each step's sampling",
        lambda _: sample_trained(_Telling(), Path("weights"), [[7]], seed=(0,), **_SIZES),
        ModelError,
        "http://gpu:8000/v1#student lost the weights that it had loaded 3 times in one step; "
        "expected a server that stays up, and whose weights no one else changes: see its log.",
    ),
    _engine(
        "an engine at another temperature",
        lambda _: _drawn(temperature=0.7),
        ConfigError,
        "temperature = 0.7 with an engine as sampler; expected 1: engines report log-probabilities "
        "before they are scaled.",
    ),
    _engine(
        "an engine for several checkpoints",
        _several,
        ConfigError,
        "http://gpu:8000/v1#student as sampler beside 2 checkpoints; expected one checkpoint, "
        "whose weights it serves, and prompts.",
    ),
    _engine(
        "a vLLM server as sampler in training, outside its development mode",
        lambda _: check_engine(_Engine(), OPDConfig(), tiny_model(), Processes()),
        ConfigError,
        "http://gpu:8000/v1#student as sampler: its server does not take a trained student's "
        "weights from a directory; expected an SGLang server, a vLLM server in its development "
        "mode (VLLM_SERVER_DEV_MODE=1), or no sampler.",
    ),
]
