"""Sum probes by rollout in one pass: all that a mean over states and its interval need."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial, reduce
from itertools import groupby
from operator import add, attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from opdprobe.errors import StoreError
from opdprobe.probes.bootstrap import (
    MAX_UNITS,
    Estimate,
    draw_units,
    folded,
    mean_intervals,
    ratio,
    resample,
    sum_by_unit,
    unit_keys,
)
from opdprobe.probes.evaluate import Probe, by_step, evaluate_all, probe_attrs
from opdprobe.probes.quantities import bounds_of, fewest_prompts
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
    unit : ndarray of uint64 (rollouts,)
        Key of the prompt of each rollout, which the bootstrap draws as a whole; of the rollout
        itself where the prompts are not known.
    by_prompt : bool
        Whether the units are prompts.
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
    unit: NDArray[np.uint64]
    by_prompt: bool
    length: NDArray[np.int64]
    total: NDArray[np.float64]
    n: NDArray[np.int64]
    n_missing: NDArray[np.int64]
    attrs: list[dict[str, Any]]

    def only(self, chosen: NDArray[np.bool_]) -> "StepSums":
        """Return the sums of some rollouts, given by a mask."""
        return replace(
            self,
            unit=self.unit[chosen],
            length=self.length[chosen],
            total=self.total[:, chosen],
            n=self.n[:, chosen],
            n_missing=self.n_missing[:, chosen],
        )

    def __add__(self, other: "StepSums") -> "StepSums":
        return StepSums(
            self.step,
            self.unit,
            self.by_prompt,
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
    steps: Collection[int] | None = None,
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
    steps : collection of int, optional
        Steps of a run to read. Default: all.

    Yields
    ------
    Any
        What `then` returned, batch by batch.
    """
    work: dict[str, Any] = {"probes": tuple(probes), "then": then, "edges": edges}
    if isinstance(source, xr.Dataset):
        # Rollout tables belong to one step; in a Dataset of several, they name no prompts.
        one = "step" not in source.coords or np.unique(source["step"].values).size <= 1
        read = partial(_read_dataset, tables=one)
        yield from map(partial(_add_up, read=read, **work), by_step(source))
    else:
        # Rollout tables belong to one step, so a function, which may use them, gets one step.
        joined = all(isinstance(probe, str) for probe in probes)
        read = partial(_read_run, source)
        yield from map(
            partial(_add_up, read=read, **work), batches(source, joined=joined, steps=steps)
        )


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


class _Part(NamedTuple):
    """A step of which some states are read."""

    step: int
    prompts: NDArray[Any] | None  # of each rollout, if the step has them
    n_rollout: int
    n_state: int  # number of states here


class _States(NamedTuple):
    """States that are read together: one step, a part of one, or several small ones."""

    states: xr.Dataset
    rollout: NDArray[np.integer]  # row of each state's rollout in its step
    parts: list[_Part]


def _read_dataset(batch: tuple[int, xr.Dataset], *, tables: bool) -> Iterator[_States]:
    step, states = batch
    ids, rollout = np.unique(states["rollout"].values, return_inverse=True)
    prompts = None
    if tables and "prompt_id" in states and ids.max(initial=-1) < states.sizes["rollout"]:
        prompts = states["prompt_id"].values[ids]
    yield _States(states, rollout, [_Part(step, prompts, ids.size, states.sizes["state"])])


def _read_run(run: "Run", steps: Sequence[int]) -> Iterator[_States]:
    for piece in pieces(run, steps):
        parts = [
            _Part(step, prompts, n_rollout, n_state)
            for (step, n_rollout, n_state), prompts in zip(piece.parts, piece.prompts, strict=True)
        ]
        yield _States(piece.states, piece.states["rollout"].values, parts)


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
    for step, prompts, n_rollout, n_state in read.parts:
        here = slice(start, start := start + n_state)
        rollout = read.rollout[here]
        if rollout.max(initial=-1) >= n_rollout or rollout.min(initial=0) < 0:
            wrong = rollout.max() if rollout.max() >= n_rollout else rollout.min()
            raise StoreError(
                f"step {step} has a state of rollout {wrong}, but {n_rollout} rollouts: "
                "opdprobe did not write this step."
            )
        places = None if point is None else point[here]
        total, n, n_missing = _sum_up(values[:, here], rollout, n_rollout, places, width)
        # Without prompts, a rollout is a unit: named by its place, it equals no other step's.
        names = [f"{step}/{i}" for i in range(n_rollout)] if prompts is None else prompts
        length = np.bincount(rollout, minlength=n_rollout)
        unit = unit_keys(names)
        yield StepSums(step, unit, prompts is not None, length, total, n, n_missing, attrs)


def _sum_up(
    values: NDArray[np.float64],
    rollout: NDArray[np.integer],
    n_rollout: int,
    point: NDArray[np.intp] | None,
    width: int,
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Sum values by rollout and point; points outside 0…width-1 are left out."""
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
    return total.reshape(shape), n.reshape(shape), n_missing


@dataclass(frozen=True)
class RolloutSums:
    """Sums of named quantities over the states of each rollout: what means and intervals need.

    Parameters
    ----------
    steps : ndarray (steps,)
        Recorded steps.
    first : ndarray (steps + 1,)
        Row of each step's first rollout; the last entry is the number of rows.
    unit : ndarray of uint64 (rows,)
        Key of each rollout's prompt, as in `StepSums`.
    length : ndarray (rows,)
        Number of states of each rollout.
    total, n : dict of str to ndarray (rows,)
        By quantity: sum over the states that have a value, and their number. A quantity of the
        rollout itself has its value in `total` and 1 in `n`, or 0 in both.
    """

    steps: NDArray[np.int64]
    first: NDArray[np.int64]
    unit: NDArray[np.uint64]
    length: NDArray[np.int64]
    total: dict[str, NDArray[np.float64]]
    n: dict[str, NDArray[np.int64]]

    def at(self, place: int) -> "RolloutSums":
        """Return the sums of one step, given by its place in `steps`."""
        rows = self.rows(slice(place, place + 1))
        return RolloutSums(
            self.steps[[place]],
            np.array([0, rows.stop - rows.start]),
            self.unit[rows],
            self.length[rows],
            {name: values[rows] for name, values in self.total.items()},
            {name: values[rows] for name, values in self.n.items()},
        )

    def only(self, chosen: NDArray[np.bool_]) -> "RolloutSums":
        """Return the sums of some rollouts, given by a mask over the rows."""
        before = np.concatenate([[0], np.cumsum(chosen)])
        return RolloutSums(
            self.steps,
            before[self.first],
            self.unit[chosen],
            self.length[chosen],
            {name: values[chosen] for name, values in self.total.items()},
            {name: values[chosen] for name, values in self.n.items()},
        )

    def rows(self, where: slice) -> slice:
        """Return the rows of some steps, given by their place in `steps`."""
        start, stop, _ = where.indices(len(self.steps))
        return slice(int(self.first[start]), int(self.first[stop]))

    def mean(self, name: str, where: slice = slice(None), *, least: int | None = None) -> Estimate:
        """Estimate a mean over all states of some steps; the bootstrap draws prompts.

        `least` is the fewest prompts for an interval, by default `fewest_prompts` of the name.
        """
        keys, total, n = self._units(name, where)
        least = least or fewest_prompts(name)
        return resample(total, n, keys=keys, bounds=bounds_of(name), least=least)

    def means(self, name: str) -> NDArray[np.float64]:
        """Return the mean over the states of each step; NaN if none has a value."""
        # Not reduceat, which gives an empty step the next one's first row.
        total, n = (
            np.array([column[self.rows(slice(i, i + 1))].sum() for i in range(len(self.steps))])
            for column in (self.total[name], self.n[name])
        )
        return np.atleast_1d(ratio(total, n))

    def errors(self, name: str) -> NDArray[np.float64]:
        """Return the standard error of each step's mean, for other prompts; NaN for one."""
        found = np.full(len(self.steps), np.nan)
        for i in range(len(self.steps)):
            _, total, n = self._units(name, slice(i, i + 1))
            total, n = total[n > 0], n[n > 0]
            if n.size > 1:
                residual = total - n * (total.sum() / n.sum())
                found[i] = np.sqrt((residual**2).sum() * n.size / (n.size - 1)) / n.sum()
        return found

    def band(self, name: str) -> NDArray[np.float64]:
        """Return the ends of the interval at each step, as `opdprobe.curve` does; (2, steps)."""
        return self._bands[name]

    @cached_property
    def _bands(self) -> dict[str, NDArray[np.float64]]:
        # Step by step, since all quantities of a step share its draws.
        bands = {name: np.full((2, len(self.steps)), np.nan) for name in self.total}
        for i in range(len(self.steps)):
            for name, ends in bands.items():
                keys, total, n = self._units(name, slice(i, i + 1))
                drawn, least = draw_units(keys), fewest_prompts(name)
                ends[:, [i]] = mean_intervals(total[:, None], n[:, None], drawn, least=least)
        return bands

    def _units(
        self, name: str, where: slice
    ) -> tuple[NDArray[np.uint64], NDArray[np.float64], NDArray[np.float64]]:
        """Return keys, sums and counts of the units to draw from: those with a rollout."""
        rows = self.rows(where)
        keys, (total, n) = sum_by_unit(self.unit[rows], self.total[name][rows], self.n[name][rows])
        if len(keys) > MAX_UNITS:
            keys, (total, n) = sum_by_unit(folded(keys), total, n)
        return keys, total, n


def join_sums(parts: Sequence[RolloutSums]) -> RolloutSums:
    """Put the sums of several steps one after the other.

    Parameters
    ----------
    parts
        In the order of their steps. A quantity that one of them lacks has no value there.
    """
    names = dict.fromkeys(name for part in parts for name in part.total)

    def column(of: Callable[[RolloutSums], NDArray[Any] | None], dtype: type) -> NDArray[Any]:
        found = (np.zeros(p.length.size, dtype) if (v := of(p)) is None else v for p in parts)
        return np.concatenate([np.zeros(0, dtype), *found])

    return RolloutSums(
        column(lambda part: part.steps, np.int64),
        np.cumsum([0, *(n for part in parts for n in np.diff(part.first))]),
        column(lambda part: part.unit, np.uint64),
        column(lambda part: part.length, np.int64),
        {name: column(lambda part, name=name: part.total.get(name), np.float64) for name in names},
        {name: column(lambda part, name=name: part.n.get(name), np.int64) for name in names},
    )


def rollout_sums(
    sources: "Iterable[Run | xr.Dataset]",
    probes: Mapping[str, Probe],
    steps: Collection[int] | None = None,
) -> RolloutSums:
    """Evaluate probes at every state in one pass, a piece at a time in memory.

    Parameters
    ----------
    sources
        Runs, or steps in memory, in order.
    probes
        Probes by name, as in `opdprobe.probes.curve`.
    steps
        Steps of a run to read. Default: all.
    """
    parts = [
        part
        for source in sources
        for batch in step_sums(source, [*probes.values()], list, steps=steps)
        for part in batch
    ]

    def columns(of: Callable[[StepSums], NDArray[Any]], dtype: type) -> dict[str, NDArray[Any]]:
        none = np.zeros((len(probes), 0), dtype)
        joined = np.concatenate([none, *(of(part)[..., 0] for part in parts)], axis=1)
        return dict(zip(probes, joined, strict=True))

    return RolloutSums(
        np.array([part.step for part in parts], np.int64),
        np.cumsum([0, *(part.length.size for part in parts)]),
        np.concatenate([np.zeros(0, np.uint64), *(part.unit for part in parts)]),
        np.concatenate([np.zeros(0, np.int64), *(part.length for part in parts)]),
        columns(lambda part: part.total, np.float64),
        columns(lambda part: part.n, np.int64),
    )
