"""A teacher in a cache: what it tells at the states of given rollouts, as a server would."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from opdprobe.errors import ConfigError, RolloutError, VocabularyError
from opdprobe.hooks.served.told import Told
from opdprobe.rollout.given import Given, named
from opdprobe.rollout.rollout import Rollout, TeacherLists
from opdprobe.rollout.sample import Rollouts
from opdprobe.store.schema import match_tokens

# Padding has no trained weights; models of another family give their own tokens most of the mass.
_MOST_PADDING = 0.5
# Another place fits the lists better if its share of listed tokens is this much larger. axolotl
# tells its two alignments apart by the same numbers.
_TIMES, _MARGIN, _LEAST = 1.5, 0.1, 64


class CachedTeacher:
    """What a cache tells of a teacher at the states of some rollouts.

    Parameters
    ----------
    given
        A step's rollouts, each with `Rollout.teacher_lists`.

    Raises
    ------
    RolloutError
        A rollout has no lists.
    """

    def __init__(self, given: Given):
        self._rows, self._chosen = given.rows, given.chosen
        lists = [_lists(row) for row in given.rows]
        self._token_id = _stacked([one.token_id for one in lists], given.chosen, -1)
        self._logp = _stacked([one.logp for one in lists], given.chosen, -np.inf)
        also = [_also(one) for one in lists]
        self._also_id = _stacked([ids for ids, _ in also], given.chosen, -1)
        self._also_logp = _stacked([logp for _, logp in also], given.chosen, np.nan)
        parts = [one.sampled_logp[at] for one, at in zip(lists, given.chosen, strict=True)]
        self._sampled = np.concatenate([np.zeros(0), *parts]).astype(np.float32)
        known = [one.entropy for one in lists if one.entropy is not None]
        self._entropy = None
        if known and len(known) == len(lists):
            parts = [values[at] for values, at in zip(known, given.chosen, strict=True)]
            self._entropy = np.concatenate(parts).astype(np.float32)

    def tell(self, rollouts: Rollouts, *, k: int, width: int) -> Told:
        """Tell the top-k at every state.

        Parameters
        ----------
        rollouts
            Those that were given.
        k
            Tokens kept per state.
        width
            Size of the vocabulary. Ids beyond it are padding of the logits, and left out.

        Raises
        ------
        ConfigError
            A list has fewer than `k` tokens.
        VocabularyError
            The lists give padding more probability than it gets.
        """
        padding = self._token_id >= width
        mass = np.exp(np.where(padding, self._logp, -np.inf).astype(np.float64)).sum(-1)
        if (mass > _MOST_PADDING).any():
            state = int(mass.argmax())
            raise VocabularyError(
                f"{self._place(state)}: the teacher's list gives ids beyond the tokenizer's "
                f"{width} tokens {mass[state]:.0%} of the probability, which is more than padding "
                "gets: give the tokenizer that the cache was made with (tokenizer=)."
            )
        kept = (self._token_id >= 0) & ~padding
        counts = kept.sum(-1)
        if len(counts) and counts.min() < k:
            state = int(counts.argmin())
            least = int(counts[state])
            raise ConfigError(
                f"{self._place(state)}: the teacher's list has {least} tokens, but k = {k}: "
                + (f"use k = {least} or less." if least else "leave this rollout out.")
            )
        first = np.argsort(~kept, axis=-1, kind="stable")[:, :k]
        return Told(
            np.take_along_axis(self._token_id, first, -1).astype(np.int64),
            np.take_along_axis(self._logp, first, -1).astype(np.float32),
            self._drawn(),
            self._entropy,
        )

    def tell_at(self, rollouts: Rollouts, ids: NDArray[np.integer]) -> NDArray[np.float32]:
        """Tell the log-probabilities of given tokens (states, M); NaN where unknown."""
        return self._looked_up(ids)

    def _looked_up(self, ids: NDArray[np.integer]) -> NDArray[np.float32]:
        found = np.full(ids.shape, np.nan, np.float32)
        for known, logp in ((self._also_id, self._also_logp), (self._token_id, self._logp)):
            if known.shape[1]:
                place = match_tokens(ids, known).astype(int)
                there = np.take_along_axis(logp, np.maximum(place, 0), -1).astype(np.float32)
                found = np.where(place >= 0, there, found)
        return found

    def check_places(self) -> None:
        """Refuse lists that fit the token before or after their own far better.

        Raises
        ------
        RolloutError
            They do; names the shares.
        """
        hits, n = {-1: 0, 0: 0, 1: 0}, 0
        for row, places in zip(self._rows, self._chosen, strict=True):
            ids = np.asarray(row.response_ids, np.int64)
            inner = places[(places > 0) & (places < len(ids) - 1)]
            lists = _lists(row).token_id[inner]
            n += len(inner)
            for shift in hits:
                hits[shift] += int((lists == ids[inner + shift, None]).any(-1).sum())
        if n < _LEAST:
            return
        other = max((-1, 1), key=lambda shift: hits[shift])
        own, theirs = hits[0] / n, hits[other] / n
        if theirs > _TIMES * own and theirs > own + _MARGIN:
            raise RolloutError(
                f"{named(self._rows[0])}: {own:.0%} of the tokens are in the teacher's lists at "
                f"their places, but {theirs:.0%} in those of the token "
                f"{'after' if other < 0 else 'before'} them: the lists are shifted against the "
                "text; expected a list for each token, of what the teacher predicts there: make "
                "the cache anew, or correct it."
            )

    def _drawn(self) -> NDArray[np.float32]:
        """Log-probabilities of the texts' own tokens: told, or in a list."""
        texts = [
            np.asarray(row.response_ids, np.int64)[places]
            for row, places in zip(self._rows, self._chosen, strict=True)
        ]
        looked_up = self._looked_up(np.concatenate([np.zeros(0, np.int64), *texts])[:, None])[:, 0]
        return np.where(np.isnan(self._sampled), looked_up, self._sampled)

    def _place(self, state: int) -> str:
        """Name a state in a message."""
        for row, places in zip(self._rows, self._chosen, strict=True):
            if state < len(places):
                return f"{named(row)}, token {places[state]} of its response"
            state -= len(places)
        raise IndexError(state)


def _lists(row: Rollout) -> TeacherLists:
    if row.teacher_lists is None:
        raise RolloutError(
            f"{named(row)}: it has no lists of the teacher (teacher_lists); expected the rollouts "
            "of the cache that is the teacher."
        )
    return row.teacher_lists


def _also(lists: TeacherLists) -> tuple[NDArray, NDArray]:
    """Tokens beside the lists, and their log-probabilities; none is the rule."""
    if lists.also_id is None or lists.also_logp is None:
        none = np.zeros((len(lists.token_id), 0))
        return none, none
    return lists.also_id, lists.also_logp


def _stacked(parts: Sequence, chosen: Sequence[NDArray[np.intp]], fill: float) -> NDArray:
    """Stack the rollouts' rows at their states, and fill shorter lists up."""
    width = max((part.shape[1] for part in parts), default=0)
    padded = [
        np.pad(part[at], ((0, 0), (0, width - part.shape[1])), constant_values=fill)
        for part, at in zip(parts, chosen, strict=True)
    ]
    return np.concatenate(padded) if padded else np.zeros((0, width))
