"""Does a server answer the same when it is asked again? Compared with what is to be measured.

An engine's kernels depend on what else is in the batch, and so may a cache. Where that changes
log-probabilities by as much as teacher and student differ, nothing is left to measure.
"""

import logging
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from opdprobe.errors import ModelError
from opdprobe.hooks.served.model import ServedModel
from opdprobe.hooks.served.scores import score_served
from opdprobe.rollout.sample import Rollouts
from opdprobe.store.schema import MODELS

logger = logging.getLogger("opdprobe")

# Rollouts that are scored several times, and the longest part of them in tokens.
_ROLLOUTS, _TOKENS = 4, 256
# In nats: less than the rounding of any engine, where models may well be equal.
_NEGLIGIBLE = 1e-3
# Share of the signal that is worth a warning.
_LARGE = 0.2


def check_steady(
    models: Mapping[str, PreTrainedModel | ServedModel],
    tokenizer: PreTrainedTokenizerBase,
    rollouts: Rollouts,
    *,
    width: int,
) -> None:
    """Have some rollouts scored several times, alone and in company, and compare the answers.

    The signal is the root mean square of the difference of both models' log-probabilities of the
    drawn tokens, estimated from pairs of answers, so that noise does not add to it. The noise is
    the standard deviation of a server's answers.

    Parameters
    ----------
    models
        ``"student"`` and ``"teacher"``, at least one of them served.
    tokenizer
        The tokenizer of both models.
    rollouts
        Rollouts of the student; the first ones are used.
    width
        Size of the vocabulary.

    Raises
    ------
    ModelError
        The noise is above the signal; names both.
    """
    chosen = [i for i, ids in enumerate(rollouts.response_ids) if ids][:_ROLLOUTS]
    if not chosen:
        return
    some = replace(rollouts, drawn=None, sampler_logp=None).pick(chosen)
    some = replace(some, response_ids=[ids[:_TOKENS] for ids in some.response_ids])
    logp = score_served(models, tokenizer, some, k=1).sampled_logp.numpy().astype(np.float64)
    answers: dict[str, NDArray[np.float64]] = {}
    for role, first in zip(MODELS, logp.T, strict=True):
        model = models[role]
        served = isinstance(model, ServedModel)
        again = _again(model, some.read_by(role), width) if served else [first, first]
        answers[role] = np.stack([first, *again]).astype(np.float64)
    gap = answers["teacher"] - answers["student"]
    n = len(gap)
    square = (gap.sum(0) ** 2 - (gap**2).sum(0)).mean() / (n * (n - 1))
    signal = float(np.sqrt(max(square, 0)))
    for role, model in models.items():
        if isinstance(model, ServedModel):
            noise = float(np.sqrt(answers[role].var(axis=0, ddof=1).mean()))
            judge(model, answers[role].shape, noise, signal)


def judge(model: object, shape: tuple[int, ...], noise: float, signal: float) -> None:
    """Refuse a server, warn of it, or say nothing.

    Parameters
    ----------
    model
        The model, as messages name it.
    shape
        Numbers of answers and of their tokens.
    noise, signal
        In nats; see `check_steady`.

    Raises
    ------
    ModelError
        The noise is above the signal.
    """
    if noise > max(signal, _NEGLIGIBLE):
        raise ModelError(
            f"{model}: {shape[0]} answers for the same {shape[1]} tokens differ by {noise:.2g} "
            f"nats (standard deviation), and teacher and student by {signal:.2g} only, so nothing "
            "can be measured; expected answers that do not depend on the rest of the batch: serve "
            "the model in float32 or with batch-invariant kernels, and without a prefix cache."
        )
    if noise > max(_LARGE * signal, _NEGLIGIBLE):
        logger.warning(
            "%s: its answers for the same tokens differ by %.2g nats (standard deviation), %.0f%% "
            "of what teacher and student differ by (%.2g).",
            *(model, noise, 100 * noise / signal, signal),
        )


def _again(model: ServedModel, some: Rollouts, width: int) -> list[NDArray[np.float32]]:
    """Log-probabilities of the texts' own tokens: of each alone, then beside itself and others."""
    n = len(some)
    alone = [model.tell(some.pick([i]), k=1, width=width).sampled_logp for i in range(n)]
    crowd = some.pick([*reversed(range(n)), *range(n)])
    told = model.tell(crowd, k=1, width=width).sampled_logp
    return [np.concatenate(alone), told[len(told) // 2 :]]
