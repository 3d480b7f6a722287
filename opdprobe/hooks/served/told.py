"""What a server says of a model at some states, read into arrays, and checked."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from opdprobe.errors import ConfigError, ModelError, VocabularyError
from opdprobe.rollout.sample import Rollouts

# Sent with every request, since the server's own defaults (a model's generation_config.json) may
# differ: rollouts must come from the student's unchanged distribution.
UNCHANGED = {
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": -1,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}
# Padding has no trained weights; models of another family give their own tokens most of the mass.
_MOST_PADDING = 0.5
# How vLLM writes a log-probability of -inf, which JSON cannot represent.
_RULED_OUT = -9999.0


class TooFewError(Exception):
    """Padding took places in a list; `missing` is how many tokens are missing."""

    def __init__(self, missing: int):
        super().__init__(missing)
        self.missing = missing


@dataclass(frozen=True)
class Told:
    """What a server reports of a model at N states.

    Parameters
    ----------
    token_id : ndarray (N, K) of int64
        Its top-k, most probable first; ties go to the lower id.
    logp : ndarray (N, K) of float32
        Their log-probabilities over the full vocabulary, in nats.
    sampled_logp : ndarray (N,) of float32
        Log-probabilities of the text's own tokens, in nats; a cache may lack some, which are NaN.
    entropy : ndarray (N,) of float32, optional
        Entropies in nats, which only a cache may have.
    """

    token_id: NDArray[np.int64]
    logp: NDArray[np.float32]
    sampled_logp: NDArray[np.float32]
    entropy: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Drawn:
    """A response that a server sampled.

    Parameters
    ----------
    tokens
        Its token ids, with the one that ended it.
    reason
        Why it ended: ``"stop"``, ``"length"``, or what the server calls it.
    logp
        The sampler's log-probability of each token, in nats; None if the server does not say.
    """

    tokens: list[int]
    reason: str
    logp: list[float] | None


class Teller(Protocol):
    """A model that does not run here: on a server, or in a cache."""

    def tell(self, rollouts: Rollouts, *, k: int, width: int) -> Told:
        """Tell the top-k at every state of some rollouts."""
        ...

    def tell_at(self, rollouts: Rollouts, ids: NDArray[np.integer]) -> NDArray[np.float32] | None:
        """Tell the log-probabilities of `ids` (states, M), NaN where unknown; None: of no token."""
        ...


class Engine(Protocol):
    """Requests in the protocol of one kind of server."""

    @property
    def loads_weights(self) -> bool:
        """Whether the server can load weights from a directory."""
        ...

    def draw(self, prompt: Sequence[int], n: int, length: int, seed: int) -> list[Drawn]:
        """Sample `n` responses of at most `length` tokens, from the unchanged distribution."""
        ...

    def lists(
        self, prompt: Sequence[int], response: Sequence[int], k: int
    ) -> list[dict[int, float]]:
        """Ask for the `k` most probable tokens at each token of the response, and for itself."""
        ...

    def at(
        self, prompt: Sequence[int], response: Sequence[int], ids: NDArray[np.integer]
    ) -> NDArray[np.float32] | None:
        """Ask for the log-probabilities of `ids` (tokens, M); None if the server cannot tell."""
        ...

    def load(self, directory: Path) -> None:
        """Have the server load the weights of a saved model of the same shapes."""
        ...

    def has_loaded(self) -> bool:
        """Whether the weights are still those of the last `load`, as far as the server can say."""
        ...


def read_told(
    who: object, entries: Sequence[Mapping[int, float]], response: Sequence[int], k: int, width: int
) -> Told:
    """Read the lists of one response.

    Parameters
    ----------
    who
        The model, as messages name it.
    entries
        Log-probabilities by token, at each token of the response, which is among them.
    response
        Its token ids.
    k
        Tokens kept.
    width
        Size of the vocabulary.

    Raises
    ------
    TooFewError
        Without padding, there are fewer than `k` tokens.
    ConfigError
        There are fewer than `k`.
    ModelError, VocabularyError
        As from `opdprobe.hooks.served.ServedModel.tell`.
    """
    n = len(response)
    told = Told(np.empty((n, k), np.int64), np.empty((n, k), np.float32), np.empty(n, "f4"))
    for i, (entry, drawn) in enumerate(zip(entries, response, strict=True)):
        logp = dict(entry)
        if drawn not in logp:
            raise ModelError(
                f"{who} was sent token {drawn} and reports {sorted(logp)[:5]} instead: its server "
                "changes texts."
            )
        check_ids(who, logp)
        if drawn >= width:
            raise VocabularyError(
                f"{who} drew token {drawn}, but the tokenizer has {width} tokens: either its model "
                "has padded logits and gives them probability, or the models are not of one "
                "family. Have the server draw only the tokenizer's tokens, or choose other models."
            )
        # Ids beyond the tokenizer are padding of the logits, as in the Qwen family.
        padding = [token for token in logp if token >= width]
        if (mass := sum(np.exp(logp.pop(token)) for token in padding)) > _MOST_PADDING:
            raise VocabularyError(
                f"{who} gives ids beyond the tokenizer's {width} tokens {mass:.0%} of the "
                f"probability, as token {padding[0]}, which is more than padding gets; choose "
                "models of one family."
            )
        best = sorted(logp, key=lambda token: (-logp[token], token))[:k]
        if len(best) < k and padding:
            raise TooFewError(k - len(best))
        if len(best) < k:
            raise ConfigError(
                f"{who} returns {len(best)} log-probabilities per token, but k = {k}: use "
                f"k = {len(best)} or less."
            )
        told.token_id[i] = best
        told.logp[i] = [logp[token] for token in best]
        told.sampled_logp[i] = logp[drawn]
    return told


def check_ids(who: object, ids: Iterable[int]) -> None:
    """Raise a `ModelError` if a token id is negative."""
    if (lowest := min(ids, default=0)) < 0:
        raise ModelError(
            f"{who} reports token {lowest}; expected ids from 0: its server is faulty, see its "
            "log, or update it."
        )


def nats(logprob: Any) -> float:
    """Read a log-probability; rounding may have put it above 0.

    Raises
    ------
    ValueError, TypeError
        It is none.
    """
    value = float(logprob)
    if not value < 1e-3:
        raise ValueError(f"a log-probability of {value}")
    return -np.inf if value <= _RULED_OUT else min(value, 0.0)
