"""Rollouts that exist already."""

from typing import Any

import numpy as np
from case import Case

from opdprobe import Rollout, TopLists, score_rollouts
from opdprobe.errors import OPDProbeError, RolloutError, VocabularyError
from opdprobe.testing import tiny_model, tiny_tokenizer


def _rollout(
    fed: str, message: str, *, step: Any = 0, response: Any = (20, 2), **more: Any
) -> Case:
    row = Rollout(0, "a", [7, 8], response, source="dump.jsonl:3", **more)
    return _rollouts(fed, [row], f"dump.jsonl:3: {message}")


def _rollouts(fed: str, rows: list[Rollout], message: str) -> Case:
    return Case(
        "Rollouts",
        fed,
        lambda folder: score_rollouts(None, None, rows, folder / "run", k=2),
        RolloutError,
        message,
    )


def _scored(fed: str, error: type[OPDProbeError], message: str, **parts: Any) -> Case:
    row = Rollout(
        0, "a", **{"prompt_ids": [7], "response_ids": [20]} | parts, source="dump.jsonl:3"
    )
    pair = tiny_model(), tiny_model()

    def feed(folder):
        return score_rollouts(*pair, [row], folder / "run", tokenizer=tiny_tokenizer(), k=2)

    return Case("Rollouts", fed, feed, error, f"dump.jsonl:3: {message}")


_TOLD = {"student_logp": np.zeros(2), "teacher_logp": np.zeros(2)}
_IDS = np.array([[[3, 1], [1, 0]]] * 2)

CASES = [
    _rollout(
        "a text that was not tokenised",
        "it has no response_ids; expected token ids: tokenise its text first.",
        response=None,
    ),
    _rollout(
        "token ids that are no whole numbers",
        "response_ids = [1.5]; expected a list of token ids.",
        response=[1.5],
    ),
    _rollout(
        "a mask of another length",
        "mask has shape (3,); expected one of each response token, 2.",
        mask=np.ones(3, bool),
    ),
    _rollout(
        "probabilities in place of their logarithms",
        "sampler_logp has 0.9; expected log-probabilities, at most 0.",
        sampler_logp=np.array([0.9, 0.2]),
    ),
    _rollout(
        "neither lists nor log-probabilities, and no model",
        "it has neither both models' top lists, as all rollouts of a step must have, nor "
        "log-probabilities of both models: give a student and a teacher to score it with.",
    ),
    _rollout(
        "lists that do not begin with the most probable token",
        "logp of support student = -0.5 at index (0, 1) (2 of 4 values); expected most probable "
        "first.",
        top=TopLists(_IDS, np.full((2, 2, 2, 2), [-1.0, -0.5])),
    ),
    _rollouts(
        "steps that are not in order",
        [Rollout(step, "a", [7], [20, 2], **_TOLD) for step in (0, 1, 0)],
        "a rollout of step 0, prompt 'a': step 0 comes again after another step; expected all "
        "rollouts of a step one after another: sort them by step.",
    ),
    _scored(
        "a response without a prompt",
        RolloutError,
        "it has no prompt, so nothing predicts the first token of its response: put that token "
        "into prompt_ids, or leave the rollout out.",
        prompt_ids=[],
    ),
    _scored(
        "a token that the models do not have",
        VocabularyError,
        "the student drew token 64, but the models share 64 tokens: give the models and the "
        "tokenizer that the rollouts were sampled with.",
        response_ids=[64],
    ),
]
