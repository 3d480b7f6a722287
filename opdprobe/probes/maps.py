"""Average a probe over training steps and output positions at once, for a heat map."""

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from opdprobe.probes.evaluate import (
    Probe,
    by_step,
    check_bins,
    check_coords,
    check_steps,
    evaluate,
    position_coords,
    position_edges,
    probe_attrs,
    step_coord,
)
from opdprobe.probes.thinning import thinned

if TYPE_CHECKING:
    from opdprobe.store import Run


def heat_map(
    run_or_dataset: "Run | xr.Dataset",
    probe: Probe,
    *,
    bins: int | Sequence[float] | None = None,
) -> xr.Dataset:
    """Average a probe over the states of each step in each range of output positions.

    Reads each step once. There are no intervals, because a cell holds few states; `curve` gives
    them by step or by position.

    Parameters
    ----------
    run_or_dataset : Run or Dataset
        A run, read one step at a time, or states in the store's schema.
    probe : str or callable
        Name of a ``ds.opd`` method (``"entropy"``), or a function of a Dataset that returns one
        value per state (``lambda ds: ds.opd.entropy("teacher")``).
    bins : int or sequence of float, optional
        The number of equally wide ranges of positions, from 0 to the last that occurs in any step,
        or their edges, each range including its left edge but not its right. Positions outside
        are left out. By default, every position that occurs is a row.

    Returns
    -------
    Dataset
        Over ``(position, step)``; a position is the middle of a range, with ``position_start`` and
        ``position_stop``, exclusive, beside it:

        - ``value``: mean over states, in the probe's units; NaN where no state has a value;
        - ``n``, ``n_missing``: states averaged, and states left out because the probe is NaN
          there.

        Its attributes name the probe (``units``, ``long_name``), and say in ``thinned`` which
        positions were not recorded, if any.

    Raises
    ------
    ConfigError
        If `probe` is not a ``ds.opd`` method, or `bins` is neither a number, edges nor None.
    ValueError
        If the probe does not return one value per state, there are no states, or a Dataset has no
        ``step`` or ``position`` to sort them by.

    See Also
    --------
    curve : The mean by step or by position alone, with its interval.

    References
    ----------
    §6.1 and App. D.1: Figs. 13 and 23 show both models' entropies in this way.

    Examples
    --------
    >>> from opdprobe.testing import synthetic_step
    >>> found = heat_map(synthetic_step(n_rollouts=4, length=[2, 8, 8, 8]), "entropy", bins=2)
    >>> found.n.values.tolist(), found.position.values.tolist()
    ([[14], [12]], [1.5, 5.5])
    >>> found.value.dims, found.value.attrs["long_name"]
    (('position', 'step'), 'student entropy')
    """
    check_bins(bins)
    check_coords(run_or_dataset, "step", "position")
    steps: list[int] = []
    # One row per position, not yet per range: the longest response is known only at the end.
    columns: list[NDArray[np.float64]] = []
    attrs: dict[str, Any] = {}
    for step, part in by_step(run_or_dataset):
        steps.append(step)
        quantity = evaluate(probe, part)
        attrs = probe_attrs(quantity)
        columns.append(_sums(np.asarray(quantity, np.float64), part["position"].values))
    check_steps(steps)

    n_positions = max(1, *(column.shape[1] for column in columns))
    cells = np.zeros((3, n_positions, len(columns)))
    for i, column in enumerate(columns):
        cells[:, : column.shape[1], i] = column
    edges = position_edges(bins, lambda: n_positions)
    starts = np.searchsorted(np.arange(n_positions), edges)  # edges may lie between positions
    with np.errstate(invalid="ignore"):  # inf - inf in a sum, 0/0 where nothing was seen
        total, n, n_missing = (
            np.array([part[start:stop].sum(axis=0) for start, stop in pairwise(starts)])
            for part in cells
        )
        value = total / n
    dims = ("position", "step")
    result = xr.Dataset(
        {
            "value": (dims, value, attrs),
            "n": (dims, n.astype(np.int64), {"units": "1", "long_name": "states"}),
            "n_missing": (
                dims,
                n_missing.astype(np.int64),
                {"units": "1", "long_name": "states left out"},
            ),
        },
        {**position_coords(edges), **step_coord(steps)},
        attrs,
    )
    if text := thinned(run_or_dataset):
        result.attrs["thinned"] = text
    if bins is None:
        seen = (result["n"] + result["n_missing"]).sum("step").values > 0
        return result.isel(position=seen)
    return result


def _sums(values: NDArray[np.float64], position: NDArray[np.integer]) -> NDArray[np.float64]:
    """Return sum of values, number of values and number of NaN per position, from 0 to the last."""
    known = ~np.isnan(values)
    return np.array(
        [
            np.bincount(position, np.where(known, values, 0)),
            np.bincount(position, known),
            np.bincount(position, ~known),
        ],
        np.float64,
    )
