"""The tokens of a whole run: a table by string, and the most divergent ones in their contexts."""

from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass, replace
from heapq import nlargest
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from opdprobe.probes.quantities import QUANTITIES
from opdprobe.report.token_text import TokenText, TokenTexts
from opdprobe.store import Run
from opdprobe.store.step_parts import open_step
from opdprobe.store.stream import Piece, batches, pieces

STRINGS = 100  # rows of the table by string
WORST = 50  # most divergent tokens
_BEFORE, _AFTER = 16, 8  # tokens of context
# What tokens are judged by: the divergence, or what stands for it where only the drawn tokens'
# log-probabilities are known. High is worse for the first, low for the second.
_BY = ("reverse_kl", "sampled_reward")


@dataclass(frozen=True)
class WorstToken:
    """One drawn token of a run, and the text around it.

    Parameters
    ----------
    value
        Reverse KL of the state at which it was drawn, or the token's reward; in nats.
    step, rollout, position
        Where it is; the position counts from 0 in the response.
    token_id
        The token.
    before, after
        Ids of the tokens around it, from the prompt and the response; empty if the run holds no
        texts.
    """

    value: float
    step: int
    rollout: int
    position: int
    token_id: int
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()


class TokenRow(NamedTuple):
    """All occurrences of one token string in a run.

    Attributes
    ----------
    token : TokenText
        The string.
    n : int
        How often it was drawn at a state with a value.
    mean : float
        Mean value of these states, in nats; infinite if one is.
    share : float
        Their part of the sum over all states, in [0, 1]; NaN for rewards, which have both signs.
        States with an infinite value are left out of both sums.
    """

    token: TokenText
    n: int
    mean: float
    share: float


class RunTokens:
    """What is known of a run's drawn tokens; steps are added as they come.

    Memory holds one piece of the run (131,072 states), and three numbers for every token that was
    drawn.

    Attributes
    ----------
    by : str
        Key of `opdprobe.probes.quantities.QUANTITIES`: ``"reverse_kl"``, or ``"sampled_reward"``
        in a run that does not know the divergence.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> from opdprobe.testing import synthetic_run
    >>> with TemporaryDirectory() as folder:
    ...     run = synthetic_run(folder, steps=[0, 10])
    ...     tokens = RunTokens()
    ...     tokens.update(run)
    ...     largest = max(float(run.load(step).reverse_kl.max()) for step in run.steps)
    ...     tokens.worst(run)[0].value == largest
    True
    """

    def __init__(self) -> None:
        self._begin("reverse_kl")
        self._versions: dict[int, Hashable] = {}

    def _begin(self, by: str) -> None:
        self.by = by
        self._ids = np.zeros(0, np.int64)
        self._sums = np.zeros((3, 0))  # states, infinite ones, sum of the finite values
        self._worst: list[WorstToken] = []

    @property
    def n(self) -> int:
        """States with a value."""
        return int(self._sums[0].sum())

    @property
    def infinite(self) -> int:
        """States whose value is infinite."""
        return int(self._sums[1].sum())

    @property
    def n_tokens(self) -> int:
        """Different tokens that were drawn at states with a value."""
        return self._ids.size

    def update(self, run: Run, versions: Mapping[int, Hashable] | None = None) -> None:
        """Add the steps that are new since the last time.

        Parameters
        ----------
        run
            The run.
        versions
            The steps to count, each with what identifies its present content. If one that was
            counted is gone or has changed, all are counted anew. Default: all, as they are.

        Raises
        ------
        StoreError
            A step cannot be read.
        """
        now: dict[int, Hashable] = dict.fromkeys(run.steps, 0) if versions is None else {**versions}
        counted = self._versions
        if any(step not in now or now[step] != version for step, version in counted.items()):
            counted = {}
            self._begin("reverse_kl")
        self._add(run, now.keys() - counted.keys())
        if not self.n and self.by != _BY[1]:
            self._begin(_BY[1])
            self._add(run, now.keys())
            if not self.n:
                self._begin(_BY[0])  # it may come with a later step
        self._versions = now

    def _add(self, run: Run, steps: Collection[int]) -> None:
        for batch in batches(run, steps=steps):
            for piece in pieces(run, batch):
                if QUANTITIES[self.by].needs in piece.states and "sampled_id" in piece.states:
                    self._count(piece)

    def _count(self, piece: Piece) -> None:
        states = piece.states
        values = QUANTITIES[self.by].compute(states).values.astype(np.float64)
        known = np.flatnonzero(~np.isnan(values))
        values, ids = values[known], states["sampled_id"].values[known].astype(np.int64)
        infinite = np.isinf(values)
        kinds = [np.ones(ids.size), infinite, np.where(infinite, 0.0, values)]
        joined = np.concatenate([self._ids, ids])
        self._ids, place = np.unique(joined, return_inverse=True)
        self._sums = np.array(
            [
                np.bincount(place, np.concatenate([old, new]), self._ids.size)
                for old, new in zip(self._sums, kinds, strict=True)
            ]
        )
        worse = self._worse(values)
        some = np.argsort(-worse, kind="stable")[:WORST]
        step = np.repeat([s for s, _, _ in piece.parts], [n for _, _, n in piece.parts])[known]
        rollout, position = (states[name].values[known] for name in ("rollout", "position"))
        new = (
            WorstToken(
                float(values[i]), int(step[i]), int(rollout[i]), int(position[i]), int(ids[i])
            )
            for i in some
        )
        self._worst = nlargest(WORST, [*self._worst, *new], key=self._order)

    def _worse(self, values: NDArray[Any]) -> NDArray[Any]:
        return values if self.by == _BY[0] else -values

    def _order(self, one: WorstToken) -> tuple[float, int, int, int]:
        worse = one.value if self.by == _BY[0] else -one.value
        return worse, -one.step, -one.rollout, -one.position

    def rows(self, texts: TokenTexts) -> list[TokenRow]:
        """Return the strings with the largest sums, up to 100; those with infinite values first.

        Parameters
        ----------
        texts
            Texts of the run's tokens. Ids of the same text are one row.
        """
        shown = [texts[token] for token in self._ids.tolist()]
        strings = {text: i for i, text in enumerate(dict.fromkeys(shown))}
        place = np.array([strings[text] for text in shown], np.int64)
        n, infinite, total = (np.bincount(place, one, len(strings)) for one in self._sums)
        every = total.sum()
        signed = self.by != _BY[0]
        order = np.lexsort((-self._worse(total), -infinite))[:STRINGS]
        names = list(strings)
        return [
            TokenRow(
                names[i],
                int(n[i]),
                float(-np.inf if signed else np.inf) if infinite[i] else float(total[i] / n[i]),
                float(total[i] / every) if every > 0 and not signed else np.nan,
            )
            for i in order
        ]

    def worst(self, run: Run) -> list[WorstToken]:
        """Return the 50 most divergent tokens, worst first, with their contexts; reads their steps.

        Raises
        ------
        StoreError
            A step cannot be read.
        """
        found: dict[WorstToken, WorstToken] = {}
        by_step = sorted(self._worst, key=lambda one: one.step)
        for step, some in groupby(by_step, key=lambda one: one.step):
            found |= _in_context(run, step, list(some))
        return [found[one] for one in self._worst]


def _in_context(run: Run, step: int, some: list[WorstToken]) -> dict[WorstToken, WorstToken]:
    """Return tokens of one step with their contexts."""
    with open_step(run.path, step) as archive:
        names = set(archive.variables)
        if "response_ids" not in names:
            return {one: one for one in some}
        response, length = archive.rows("response_ids"), archive.rows("length")
        prompt, prompt_length = np.zeros(0, np.int32), np.zeros_like(length)
        if "prompt_ids" in names:
            prompt, prompt_length = archive.rows("prompt_ids"), archive.rows("prompt_length")
    ends, prompt_ends = np.cumsum(length), np.cumsum(prompt_length)
    found = {}
    for one in some:
        end, prompt_end = int(ends[one.rollout]), int(prompt_ends[one.rollout])
        start = end - int(length[one.rollout])
        at = start + one.position
        before = response[max(start, at - _BEFORE) : at].tolist()
        missing = min(_BEFORE - len(before), int(prompt_length[one.rollout]))
        before = prompt[prompt_end - missing : prompt_end].tolist() + before
        after = response[at + 1 : min(end, at + 1 + _AFTER)].tolist()
        found[one] = replace(one, before=tuple(before), after=tuple(after))
    return found
