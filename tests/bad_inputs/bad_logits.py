"""Logits, and arrays that are to be a step."""

from typing import Any

import numpy as np
from case import Case

from opdprobe import from_logits
from opdprobe.errors import ConfigError, NonFiniteError, StoreError, VocabularyError
from opdprobe.store.schema import validate
from opdprobe.testing import synthetic_step

_GOOD = np.log([[0.5, 0.3, 0.2], [0.2, 0.2, 0.6]])


def _with(value: float) -> np.ndarray:
    logits = _GOOD.copy()
    logits[1, 2] = value
    return logits


def _logits(
    fed: str, error: type[Exception], message: str, student: Any, teacher: Any = _GOOD, **more: Any
) -> Case:
    return Case(
        "Logits", fed, lambda _: from_logits(student, teacher, **{"k": 2} | more), error, message
    )


def _bad_maximum(who: str, value: str) -> str:
    return (
        f"{who} logits have a maximum of {value} at rollout 0, column 1; expected finite numbers, "
        "with -inf for tokens ruled out but not for all: check the model's dtype and the mask."
    )


CASES = [
    _logits("NaN", NonFiniteError, _bad_maximum("student", "nan"), _with(np.nan)),
    _logits("+inf", NonFiniteError, _bad_maximum("teacher", "inf"), _GOOD, _with(np.inf)),
    _logits(
        "a state where every token is ruled out",
        NonFiniteError,
        _bad_maximum("student", "-inf"),
        np.vstack([_GOOD[:1], np.full((1, 3), -np.inf)]),
    ),
    _logits(
        "vocabularies of two sizes",
        VocabularyError,
        "student logits have 3 columns, teacher logits 2; expected one vocabulary: cut both to "
        "it with logits[..., :len(tokenizer)], because the rest is padding.",
        _GOOD,
        _GOOD[:, :2],
    ),
    _logits(
        "states of two numbers",
        ValueError,
        "student logits have shape (2, 3), teacher logits (1, 3); expected the same states in "
        "both.",
        _GOOD,
        _GOOD[:1],
    ),
    _logits(
        "an empty vocabulary",
        ConfigError,
        "k = 2; expected 1 <= k <= 0, the vocabulary's size.",
        _GOOD[:, :0],
        _GOOD[:, :0],
    ),
    _logits(
        "k above the vocabulary",
        ConfigError,
        "k = 4; expected 1 <= k <= 3, the vocabulary's size.",
        _GOOD,
        k=4,
    ),
    _logits(
        "a number",
        ValueError,
        "logits are scalars; expected the vocabulary on the last axis.",
        1.0,
    ),
    _logits(
        "temperature 0",
        ConfigError,
        "temperature = 0; expected a finite number > 0.",
        _GOOD,
        temperature=0,
    ),
    _logits(
        "a mask of another shape",
        ValueError,
        "mask has shape (3,); expected (2,), as the logits without their last axis.",
        _GOOD,
        mask=[True, True, False],
    ),
    _logits(
        "a sampled token outside of the vocabulary",
        ValueError,
        "sampled_ids runs from 0 to 3 at the kept positions; expected 0 to 2: mask out the "
        "padding.",
        _GOOD,
        sampled_ids=[0, 3],
    ),
    Case(
        "Logits",
        "log-probabilities that were not normalised",
        lambda _: validate(synthetic_step(k=4).map(lambda v: v * 0 if v.name == "logp" else v)),
        StoreError,
        "probability mass of logp = 4.0 at index (0, 0, 0) …; expected <= 1: normalise over all "
        "ids.",
    ),
]
