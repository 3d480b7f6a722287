"""Sum probes by rollout in one pass: all that a mean over states and its interval need."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial, reduce
from itertools import groupby
from operator import add, attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from opdprobe.errors import StoreError
from opdprobe.probes.bootstrap import Estimate, draw_units, percentile_interval, ratio, resample
from opdprobe.probes.evaluate import Probe, by_step, evaluate_all, probe_attrs
from opdprobe.store.stream import batches, pieces

if TYPE_CHECKING:
    from opdprobe.store import Run

Map = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]
"""The builtin ``map``, or one that uses other processes, such as ``executor.map``."""


@dataclass(frozen=True)
class StepSums:
    """Sums of P probes over one step's states, by rollout and by range of positions.

    Parameters
    ----------
    step : int
        The step.
    length : ndarray (rollouts,)
        Number of states of each rollout.
    total : ndarray (P, rollouts, ranges)
        Sum over the states that have a value. Without edges, one range holds all positions.
    n, n_missing : ndarray of int (P, rollouts, ranges)
        Number of these states, and number of states without a value.
    attrs : list of dict
        ``units`` and ``long_name`` of each probe, as far as it has them.
    """

    step: int
    length: NDArray[np.int64]
    total: NDArray[np.float64]
    n: NDArray[np.int64]
    n_missing: NDArray[np.int64]
    attrs: list[dict[str, Any]]

    def __add__(self, other: "StepSums") -> "StepSums":
        return StepSums(
            self.step,
            self.length + other.length,
            self.total + other.total,
            self.n + other.n,
            self.n_missing + other.n_missing,
            self.attrs,
        )


def step_sums(
    source: "Run | xr.Dataset",
    probes: Sequence[Probe],
    then: Callable[[Iterator[StepSums]], Any],
    *,
    edges: NDArray[Any] | None = None,
    map: Map = map,
) -> Iterator[Any]:
    """Evaluate probes at every state, once, and sum them up by rollout.

    Parameters
    ----------
    source : Run or Dataset
        A run, read in pieces of at most 131,072 states; or states in memory or on dask.
    probes : sequence of str or callable
        As in `opdprobe.probes.curve`. A function sees one step at a time.
    then : callable
        Function of the sums of a batch's steps, in order. A step is in one batch.
    edges : ndarray, optional
        Edges of ranges of positions.
    map : callable
        Maps over the batches, in order.

    Yields
    ------
    Any
        What `then` returned, batch by batch.
    """
    work: dict[str, Any] = {"probes": tuple(probes), "then": then, "edges": edges}
    if isinstance(source, xr.Dataset):
        yield from map(partial(_add_up, read=_read_dataset, **work), by_step(source))
    else:
        # Rollout tables belong to one step, so a function, which may use them, gets one step.
        joined = all(isinstance(probe, str) for probe in probes)
        read = partial(_read_run, source)
        yield from map(partial(_add_up, read=read, **work), batches(source, joined=joined))


def _add_up(
    batch: Any,
    *,
    read: "Callable[[Any], Iterator[_States]]",
    probes: Sequence[Probe],
    then: Callable[[Iterator[StepSums]], Any],
    edges: NDArray[Any] | None,
) -> Any:
    parts = (part for states in read(batch) for part in _sums_of_parts(states, probes, edges))
    # The parts of a large step come one after the other.
    return then(reduce(add, same) for _, same in groupby(parts, key=attrgetter("step")))


class _States(NamedTuple):
    """States that are read together: one step, a part of one, or several small ones."""

    states: xr.Dataset
    rollout: NDArray[np.integer]  # row of each state's rollout in its step
    parts: list[tuple[int, int, int]]  # step, its number of rollouts, its number of states here


def _read_dataset(batch: tuple[int, xr.Dataset]) -> Iterator[_States]:
    step, states = batch
    ids, rollout = np.unique(states["rollout"].values, return_inverse=True)
    yield _States(states, rollout, [(step, ids.size, states.sizes["state"])])


def _read_run(run: "Run", steps: Sequence[int]) -> Iterator[_States]:
    for piece in pieces(run, steps):
        yield _States(piece.states, piece.states["rollout"].values, piece.parts)


def _sums_of_parts(
    read: _States, probes: Sequence[Probe], edges: NDArray[Any] | None
) -> Iterator[StepSums]:
    quantities = evaluate_all(probes, read.states)
    attrs = [probe_attrs(quantity) for quantity in quantities]
    values = np.array(quantities, np.float64)  # (probe, state)
    point, width = None, 1
    if edges is not None:
        point = np.searchsorted(edges, read.states["position"].values, side="right") - 1
        width = len(edges) - 1
    start = 0
    for step, n_rollout, n_state in read.parts:
        here = slice(start, start := start + n_state)
        rollout = read.rollout[here]
        if rollout.max(initial=-1) >= n_rollout:
            raise StoreError(
                f"step {step} has a state of rollout {rollout.max()}, but {n_rollout} rollouts: "
                "opdprobe did not write this step."
            )
        places = None if point is None else point[here]
        yield _sum_up(step, values[:, here], rollout, n_rollout, places, width, attrs)


def _sum_up(
    step: int,
    values: NDArray[np.float64],
    rollout: NDArray[np.integer],
    n_rollout: int,
    point: NDArray[np.intp] | None,
    width: int,
    attrs: list[dict[str, Any]],
) -> StepSums:
    """Sum values by rollout and point; points outside 0…width-1 are left out."""
    length = np.bincount(rollout, minlength=n_rollout)
    cell, n_cells = rollout, n_rollout
    if point is not None:
        inside = (point >= 0) & (point < width)
        cell, n_cells = rollout[inside] * width + point[inside], n_rollout * width
        values = values[:, inside]
    every = np.bincount(cell, minlength=n_cells)
    total = np.empty((len(values), n_cells))
    n = np.empty((len(values), n_cells), np.int64)
    for i, v in enumerate(values):
        missing = np.isnan(v)
        if missing.any():
            known = ~missing
            total[i] = np.bincount(cell[known], weights=v[known], minlength=n_cells)
            n[i] = np.bincount(cell[known], minlength=n_cells)
        else:
            total[i] = np.bincount(cell, weights=v, minlength=n_cells)
            n[i] = every
    shape = (len(values), n_rollout, width)
    n_missing = every.reshape(shape[1:]) - n.reshape(shape)
    return StepSums(step, length, total.reshape(shape), n.reshape(shape), n_missing, attrs)


@dataclass(frozen=True)
class RolloutSums:
    """Sums of named quantities over the states of each rollout: what means and intervals need.

    Parameters
    ----------
    steps : ndarray (steps,)
        Recorded steps.
    first : ndarray (steps + 1,)
        Row of each step's first rollout; the last entry is the number of rows.
    length : ndarray (rows,)
        Number of states of each rollout.
    total, n : dict of str to ndarray (rows,)
        By quantity: sum over the states that have a value, and their number. A quantity of the
        rollout itself has its value in `total` and 1 in `n`, or 0 in both.
    """

    steps: NDArray[np.int64]
    first: NDArray[np.int64]
    length: NDArray[np.int64]
    total: dict[str, NDArray[np.float64]]
    n: dict[str, NDArray[np.int64]]

    def rows(self, where: slice) -> slice:
        """Return the rows of some steps, given by their place in `steps`."""
        start, stop, _ = where.indices(len(self.steps))
        return slice(int(self.first[start]), int(self.first[stop]))

    def mean(self, name: str, where: slice = slice(None)) -> Estimate:
        """Estimate a mean over all states of some steps; the bootstrap draws rollouts."""
        return resample(*self._units(name, where))

    def means(self, name: str) -> NDArray[np.float64]:
        """Return the mean over the states of each step; NaN if none has a value."""
        # Not reduceat, which gives an empty step the next one's first row.
        total, n = (
            np.array([column[self.rows(slice(i, i + 1))].sum() for i in range(len(self.steps))])
            for column in (self.total[name], self.n[name])
        )
        return np.atleast_1d(ratio(total, n))

    def band(self, name: str) -> NDArray[np.float64]:
        """Return the ends of the interval at each step, as `opdprobe.curve` does; (2, steps)."""
        return self._bands[name]

    @cached_property
    def _bands(self) -> dict[str, NDArray[np.float64]]:
        # Step by step, since all quantities of a step share its draws.
        bands = {name: np.full((2, len(self.steps)), np.nan) for name in self.total}
        for i, step in enumerate(self.steps.tolist()):
            for name, ends in bands.items():
                total, n = self._units(name, slice(i, i + 1))
                if np.count_nonzero(n) >= 2:  # one rollout drawn again and again shows no spread
                    drawn = draw_units(n.size, [0, step])
                    with np.errstate(invalid="ignore"):  # 0 draws of an infinite sum
                        ends[:, i] = percentile_interval(ratio(drawn @ total, drawn @ n))
        return bands

    def _units(self, name: str, where: slice) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return sums and counts of the rollouts to draw from: those with at least one state."""
        rows = self.rows(where)
        total, n = self.total[name][rows], self.n[name][rows]
        there = (self.length[rows] > 0) | (n > 0)
        return total[there], n[there].astype(float)


def rollout_sums(sources: "Iterable[Run | xr.Dataset]", probes: Mapping[str, Probe]) -> RolloutSums:
    """Evaluate probes at every state in one pass, a piece at a time in memory.

    Parameters
    ----------
    sources
        Runs, or steps in memory, in order.
    probes
        Probes by name, as in `opdprobe.probes.curve`.
    """
    parts = [
        part
        for source in sources
        for batch in step_sums(source, [*probes.values()], list)
        for part in batch
    ]

    def columns(of: Callable[[StepSums], NDArray[Any]], dtype: type) -> dict[str, NDArray[Any]]:
        none = np.zeros((len(probes), 0), dtype)
        joined = np.concatenate([none, *(of(part)[..., 0] for part in parts)], axis=1)
        return dict(zip(probes, joined, strict=True))

    return RolloutSums(
        np.array([part.step for part in parts], np.int64),
        np.cumsum([0, *(part.length.size for part in parts)]),
        np.concatenate([np.zeros(0, np.int64), *(part.length for part in parts)]),
        columns(lambda part: part.total, np.float64),
        columns(lambda part: part.n, np.int64),
    )
