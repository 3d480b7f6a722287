"""Tell a change at the same positions from a change of the mix of positions."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from opdprobe.errors import ConfigError
from opdprobe.probes.evaluate import (
    Probe,
    by_step,
    check_bins,
    check_coords,
    check_steps,
    evaluate_all,
    position_edges,
    probe_attrs,
    step_coord,
)
from opdprobe.store.run import Run

BINS = 10


@dataclass(frozen=True)
class _Table:
    """Sums of P probes by step and range of positions, over the states that have a value."""

    steps: list[int]
    edges: NDArray[np.number]
    total: NDArray[np.float64]  # (P, step, range)
    n: NDArray[np.float64]
    attrs: list[dict[str, str]]


def standardised(
    run_or_dataset: Run | xr.Dataset,
    probe: Probe,
    *,
    bins: int | Sequence[float] | None = BINS,
) -> xr.Dataset:
    """Average a probe by step as if the positions were visited as often as at the first step.

    The mean over a step's states is Σ_b w_b m_b, with the share w_b of its states in each range of
    positions b and their mean m_b. Here, the shares are the first step's at every step.

    Parameters
    ----------
    run_or_dataset : Run or Dataset
        A run, read one step at a time and twice, or states in the store's schema.
    probe : str or callable
        As in `opdprobe.curve`.
    bins : int or sequence of float, default 10
        As in `opdprobe.curve` with ``by="position"``: equally wide ranges, or their edges; None for
        one range per position.

    Returns
    -------
    Dataset
        Over ``step``:

        - ``value``: mean over the step's states, as in `curve` where all positions are in a range;
        - ``standardised``: with the first step's shares;
        - ``by_mix``: how much of the change of ``value`` since the first step is not in
          ``standardised``: other positions, not other values at them;
        - ``covered``: share of the first step's states in ranges that the step visits, too. The
          shares of the others are left out, and the rest are scaled up to 1; the same ranges are
          then taken for the first step in ``by_mix``.

        In the probe's units, except ``covered`` (unit 1). NaN where no state has a value. Its
        attributes name the probe (``units``, ``long_name``).

    Raises
    ------
    ConfigError
        If `probe` is not a ``ds.opd`` method, or `bins` is neither a number, edges nor None.
    ValueError
        As `curve`.

    Notes
    -----
    This is direct standardisation. It holds fixed what position tells of a state, and no more: for
    the same states at each step, see `opdprobe.probe_checkpoints` with `fixed_contexts`.

    Examples
    --------
    Overlap falls at both positions, and its mean rises, because there are more late ones:

    >>> step = [0, 0, 0, 0, 1, 1, 1, 1]
    >>> position = [0, 0, 0, 5, 0, 5, 5, 5]
    >>> overlap = [0.2, 0.2, 0.2, 0.8, 0.1, 0.7, 0.7, 0.7]
    >>> ds = xr.Dataset(
    ...     {"overlap": ("state", overlap)},
    ...     {"step": ("state", step), "position": ("state", position)},
    ... )
    >>> found = standardised(ds, lambda ds: ds["overlap"], bins=[0, 5, 10])
    >>> [found[name].values.round(3).tolist() for name in ("value", "standardised", "by_mix")]
    [[0.35, 0.55], [0.35, 0.25], [0.0, 0.3]]
    """
    table = _table(run_or_dataset, [probe], bins)
    total, n = table.total[0], table.n[0]
    rows = [_compare(total[0], n[0], total[i], n[i]) for i in range(len(table.steps))]
    value, first, last, covered = np.array(rows).T
    attrs = table.attrs[0]
    per_step = ("step",)
    return xr.Dataset(
        {
            "value": (per_step, value, attrs),
            "standardised": (per_step, last, attrs),
            "by_mix": (per_step, (value - value[0]) - (last - first), attrs),
            "covered": (per_step, covered, {"units": "1"}),
        },
        step_coord(table.steps),
        attrs,
    )


@dataclass(frozen=True)
class Mix:
    """A change of a mean between two stretches of steps, and its part due to the positions.

    Parameters
    ----------
    change
        Mean over the last stretch's states minus that over the first's.
    standardised
        The same with the first stretch's shares of positions.
    covered
        Share of the first stretch's states in ranges of positions that the last one visits, too.
    """

    change: float
    standardised: float
    covered: float

    @property
    def by_mix(self) -> float:
        """What is left of the change: other positions, not other values at them."""
        return self.change - self.standardised

    @property
    def mostly_mix(self) -> bool:
        """Whether less than half of the change, or the opposite, is left at equal positions."""
        return bool(self.change != 0 and self.standardised / self.change < 0.5)


def position_mix(
    run: Run,
    probes: Mapping[str, Probe],
    first: Sequence[int],
    last: Sequence[int],
    *,
    bins: int | Sequence[float] | None = BINS,
) -> dict[str, Mix]:
    """Compare two stretches of a run's steps at equal shares of positions.

    Parameters
    ----------
    run
        A run; only these steps are read.
    probes
        Probes by name.
    first, last
        Recorded steps; the states of a stretch are pooled.
    bins
        As in `standardised`.
    """
    steps = sorted({*first, *last})
    table = _table(run, [*probes.values()], bins, steps)
    here = [np.isin(table.steps, some) for some in (first, last)]
    found = {}
    for i, name in enumerate(probes):
        sums = [part[i][rows].sum(axis=0) for rows in here for part in (table.total, table.n)]
        start = _compare(sums[0], sums[1], sums[0], sums[1])[0]
        value, before, after, covered = _compare(*sums)
        found[name] = Mix(value - start, after - before, covered)
    return found


def _compare(
    total: NDArray[np.float64],
    n: NDArray[np.float64],
    later_total: NDArray[np.float64],
    later_n: NDArray[np.float64],
) -> tuple[float, float, float, float]:
    """Return the later mean; both means with the earlier shares, over the ranges of both; covered.

    All arrays are over ranges.
    """
    both = (n > 0) & (later_n > 0)
    with np.errstate(invalid="ignore", divide="ignore"):  # NaN where nothing was seen
        value = later_total.sum() / later_n.sum()
        shares = np.where(both, n, 0.0) / n[both].sum()
        first, last = (
            float(np.dot(shares[both], sums[both] / counts[both])) if both.any() else np.nan
            for sums, counts in ((total, n), (later_total, later_n))
        )
        covered = n[both].sum() / n.sum()
    return float(value), first, last, float(covered)


def _table(
    source: Run | xr.Dataset,
    probes: Sequence[Probe],
    bins: int | Sequence[float] | None,
    steps: Sequence[int] | None = None,
) -> _Table:
    check_bins(bins)
    check_coords(source, "position")
    edges = position_edges(
        bins,
        lambda: 1 + max((int(p.max(initial=-1)) for p in _positions(source, steps)), default=-1),
    )
    if len(edges) < 2:
        raise ConfigError("there are no states to sort by position; expected at least one.")
    names: list[int] = []
    totals, counts = [], []
    attrs: list[dict[str, str]] = []
    for step, part in _parts(source, steps):
        place = np.searchsorted(edges, part["position"].values, side="right") - 1
        inside = (place >= 0) & (place < len(edges) - 1)
        quantities = evaluate_all(probes, part)
        attrs = [probe_attrs(one) for one in quantities]
        sums = []
        for quantity in quantities:
            values = quantity.values.astype(np.float64)
            known = inside & ~np.isnan(values)
            sums.append(
                [
                    np.bincount(place[known], weights, minlength=len(edges) - 1)
                    for weights in (values[known], np.ones(int(known.sum())))
                ]
            )
        names.append(step)
        totals.append([one[0] for one in sums])
        counts.append([one[1] for one in sums])
    check_steps(names)
    total, n = (np.swapaxes(np.array(some, np.float64), 0, 1) for some in (totals, counts))
    return _Table(names, edges, total, n, attrs)


def _parts(
    source: Run | xr.Dataset, steps: Sequence[int] | None
) -> Iterator[tuple[int, xr.Dataset]]:
    if steps is None or isinstance(source, xr.Dataset):
        yield from by_step(source)
        return
    for step in steps:
        yield step, source.load(step)


def _positions(
    source: Run | xr.Dataset, steps: Sequence[int] | None
) -> Iterator[NDArray[np.integer]]:
    return (part["position"].values for _, part in _parts(source, steps))
