"""Sums of probes by rollout, in one pass: all that a mean over states and its interval need."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from opdprobe.errors import StoreError
from opdprobe.probes.evaluate import Probe, by_step, evaluate_all, probe_attrs
from opdprobe.store.stream import batches, pieces

if TYPE_CHECKING:
    from opdprobe.store import Run

Map = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]
"""What the builtin ``map`` is, in this process or over others: ``executor.map``."""


@dataclass(frozen=True)
class StepSums:
    """Sums of P probes over one step's states, by rollout and by range of positions.

    Parameters
    ----------
    step : int
        The step.
    length : ndarray (rollouts,)
        States of each rollout.
    total : ndarray (P, rollouts, ranges)
        Sum over the states that have a value. One range without `edges`: all positions.
    n, n_missing : ndarray of int (P, rollouts, ranges)
        How many those are, and how many have none.
    """

    step: int
    length: NDArray[np.int64]
    total: NDArray[np.float64]
    n: NDArray[np.int64]
    n_missing: NDArray[np.int64]

    def __add__(self, other: "StepSums") -> "StepSums":
        return StepSums(
            self.step,
            self.length + other.length,
            self.total + other.total,
            self.n + other.n,
            self.n_missing + other.n_missing,
        )


def step_sums(
    source: "Run | xr.Dataset",
    probes: Sequence[Probe],
    then: Callable[[list[dict[str, Any]], Iterator[StepSums]], Any],
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
        What to make of a batch of steps: takes each probe's attributes and the steps' sums, in
        order. A step is in one batch.
    edges : ndarray, optional
        Edges of ranges of positions.
    map : callable
        Maps over the batches, in order.

    Yields
    ------
    Any
        What `then` returned, batch by batch.
    """
    work = partial(_add_up, probes=tuple(probes), then=then, edges=edges)
    if isinstance(source, xr.Dataset):
        yield from map(work, list(by_step(source)))
    else:
        # Tables of rollouts are of one step, so a function that may want them gets one step.
        joined = all(isinstance(probe, str) for probe in probes)
        yield from map(work, [(source, steps) for steps in batches(source, joined=joined)])


def _add_up(
    batch: "tuple[int | Run, xr.Dataset | list[int]]",
    *,
    probes: Sequence[Probe],
    then: Callable[[list[dict[str, Any]], Iterator[StepSums]], Any],
    edges: NDArray[Any] | None,
) -> Any:
    found = _parts(batch, probes, edges)
    attrs, first = next(found)

    def steps() -> Iterator[StepSums]:
        current = first
        for _, part in found:
            if part.step == current.step:
                current += part
            else:
                yield current
                current = part
        yield current

    return then(attrs, steps())


def _parts(
    batch: "tuple[int | Run, xr.Dataset | list[int]]",
    probes: Sequence[Probe],
    edges: NDArray[Any] | None,
) -> Iterator[tuple[list[dict[str, Any]], StepSums]]:
    """Sum up each part of a step by itself."""
    for states, rollout, parts in _read(batch):
        quantities = evaluate_all(probes, states)
        attrs = [probe_attrs(quantity) for quantity in quantities]
        values = np.array(quantities, np.float64)  # (probe, state)
        point, width = None, 1
        if edges is not None:
            point = np.searchsorted(edges, states["position"].values, side="right") - 1
            width = len(edges) - 1
        start = 0
        for step, n_rollout, n_state in parts:
            here = slice(start, start := start + n_state)
            if rollout[here].max(initial=-1) >= n_rollout:
                raise StoreError(
                    f"step {step} has a state of rollout {rollout[here].max()}, but {n_rollout} "
                    "rollouts: it is not a step that opdprobe wrote"
                )
            places = None if point is None else point[here]
            yield (
                attrs,
                _sum_up(step, values[:, here], rollout[here], n_rollout, places, width),
            )


def _read(
    batch: "tuple[int | Run, xr.Dataset | list[int]]",
) -> Iterator[tuple[xr.Dataset, NDArray[np.integer], list[tuple[int, int, int]]]]:
    """States, the rollout of each, and whose they are: (step, its rollouts, its states here)."""
    source, what = batch
    if isinstance(what, xr.Dataset):
        ids, rollout = np.unique(what["rollout"].values, return_inverse=True)
        yield what, rollout, [(cast(int, source), ids.size, what.sizes["state"])]
    else:
        for piece in pieces(cast("Run", source), what):
            yield piece.states, piece.states["rollout"].values, piece.parts


def _sum_up(
    step: int,
    values: NDArray[np.float64],
    rollout: NDArray[np.integer],
    n_rollout: int,
    point: NDArray[np.intp] | None,
    width: int,
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
    return StepSums(step, length, total.reshape(shape), n.reshape(shape), n_missing)
