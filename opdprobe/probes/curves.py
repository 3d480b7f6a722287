"""A probe over training steps or over output positions, with a bootstrap interval."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from opdprobe.errors import ConfigError
from opdprobe.probes.states import (
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

if TYPE_CHECKING:
    from opdprobe.store import Run


def curve(
    run_or_dataset: "Run | xr.Dataset",
    probe: Probe,
    *,
    by: str = "step",
    bins: int | Sequence[float] | None = None,
    ci: float = 0.95,
    n_boot: int = 1000,
    seed: int = 0,
) -> xr.Dataset:
    """Average a probe over the states of each step, or of each range of positions.

    Parameters
    ----------
    run_or_dataset : Run or Dataset
        A run, of which one step at a time is held in memory, or states in the store's schema.
    probe : str or callable
        Name of a ``ds.opd`` method (``"overlap_ratio"``), or a function of a Dataset that returns
        one value a state (``lambda ds: ds.opd.overlap_mass("teacher")``).
    by : {"step", "position"}, default "step"
        What the points of the curve are.
    bins : int or sequence of float, optional
        With ``by="position"``: the number of equally wide ranges, or their edges, each range
        holding its left edge but not its right. Positions outside are left out. Without it, every
        position that occurs is a point.
    ci : float, default 0.95
        Coverage of the interval, in (0, 1).
    n_boot : int, default 1000
        Bootstrap replicates, 100 or more.
    seed : int, default 0
        Seed of the bootstrap.

    Returns
    -------
    Dataset
        Over ``step`` or ``position`` (the middle of a range, with ``position_start`` and
        ``position_stop``, exclusive, beside it):

        - ``value``: mean over states, in the probe's units; NaN where no state has a value;
        - ``low``, ``high``: its interval; NaN where fewer than two rollouts have a value;
        - ``n``, ``n_missing``: states averaged, and states left out because the probe is NaN
          there;
        - ``n_rollouts``: rollouts that the averaged states come from.

        Its attributes name the interval (``ci_kind``, ``ci_prob``, ``n_boot``, ``seed``) and the
        probe (``units``, ``long_name``).

    Raises
    ------
    ConfigError
        If `probe` is no ``ds.opd`` method, or another argument is out of range.
    ValueError
        If the probe returns other than one value a state, or a Dataset has no ``step`` or
        ``position`` to sort the states by.

    Notes
    -----
    States of one rollout are not independent, so the bootstrap draws whole rollouts, with
    replacement, and lets each bring all its states (percentile interval). It draws within each
    step, since the steps themselves are not a sample. A step's interval depends on the seed and
    on that step alone. Infinite values give an infinite mean with a NaN bound.

    Examples
    --------
    >>> from opdprobe.testing import synthetic_step
    >>> ds = synthetic_step(n_rollouts=4, length=8)
    >>> overlap = curve(ds, "overlap_ratio")
    >>> overlap.sizes["step"], overlap.n.item(), overlap.value.attrs["long_name"]
    (1, 32, 'overlap ratio')
    >>> curve(ds, "entropy_gap", by="position", bins=[0, 2, 8]).position.values
    array([0.5, 4.5])
    """
    if by not in ("step", "position"):
        raise ConfigError(f"by is {by!r}; choose 'step' or 'position'")
    if by == "step" and bins is not None:
        raise ConfigError(f"bins is {bins!r} with by='step'; bins are ranges of positions")
    if not 0 < ci < 1 or n_boot < 100:
        raise ConfigError(f"ci is {ci}, n_boot {n_boot}; expected 0 < ci < 1 and n_boot >= 100")

    check_coords(run_or_dataset, "rollout", by)
    edges = None
    if by == "position":
        check_bins(bins)
        edges = position_edges(bins, lambda: _n_positions(run_or_dataset))
    steps: list[int] = []
    columns: list[dict[str, NDArray[Any]]] = []  # by step: one each; by position: the sum of all
    attrs: dict[str, Any] = {}
    for step, part in by_step(run_or_dataset):
        steps.append(step)
        quantity = evaluate(probe, part)
        attrs = probe_attrs(quantity)
        if edges is None:
            point, width = np.zeros(quantity.size, np.intp), 1
        else:
            point = np.searchsorted(edges, part["position"].values, side="right") - 1
            width = len(edges) - 1
        sums = _sums(
            np.asarray(quantity, np.float64),
            point,
            width,
            part["rollout"].values,
            np.random.default_rng([seed, step]),
            n_boot,
        )
        if edges is None or not columns:
            columns.append(sums)
        else:
            for name, array in sums.items():
                columns[0][name] += array
    check_steps(steps)

    joined = {name: np.concatenate([c[name] for c in columns], axis=-1) for name in columns[0]}
    result = _summary(joined, by, ci, attrs)
    if edges is None:
        result = result.assign_coords(step_coord(steps))
    else:
        result = result.assign_coords(position_coords(edges))
        if bins is None:
            result = result.isel(position=(result["n"] + result["n_missing"]).values > 0)
    result.attrs = attrs | {
        "ci_kind": "percentile bootstrap over rollouts",
        "ci_prob": ci,
        "n_boot": n_boot,
        "seed": seed,
    }
    return result


def _sums(
    values: NDArray[np.float64],
    point: NDArray[np.intp],
    width: int,
    rollout: NDArray[np.integer],
    rng: np.random.Generator,
    n_boot: int,
) -> dict[str, NDArray[Any]]:
    """Add one step's states up by point, in the data and in its bootstrap replicates.

    Works from each rollout's sum and count, so a replicate costs one weighted sum of rollouts and
    never touches the states. Points outside 0…width-1 are left out. The last axis is the point.
    """
    ids, row = np.unique(rollout, return_inverse=True)
    shape = (ids.size, width)
    inside = (point >= 0) & (point < width)
    known = inside & ~np.isnan(values)
    cell = row[known] * width + point[known]
    n = np.bincount(cell, minlength=ids.size * width).reshape(shape)
    total = np.bincount(cell, weights=values[known], minlength=ids.size * width).reshape(shape)
    if ids.size:
        drawn = rng.multinomial(ids.size, np.full(ids.size, 1 / ids.size), size=n_boot).astype(
            float
        )
    else:
        drawn = np.zeros((n_boot, 0))
    with np.errstate(invalid="ignore"):  # 0 draws of an infinite sum: NaN, as documented
        return {
            "n": n.sum(axis=0),
            "n_missing": np.bincount(point[inside & ~known], minlength=width),
            "n_rollouts": (n > 0).sum(axis=0),
            "total": total.sum(axis=0),
            "boot_n": drawn @ n,
            "boot_total": drawn @ total,
        }


def _summary(
    sums: dict[str, NDArray[Any]], dim: str, ci: float, attrs: dict[str, Any]
) -> xr.Dataset:
    """Turn sums into means and percentile intervals."""
    low, high = np.full((2, sums["n"].size), np.nan)
    several = sums["n_rollouts"] >= 2  # one rollout drawn again and again shows no spread
    with np.errstate(invalid="ignore"):  # 0/0 where nothing was seen; inf - inf in a quantile
        value = sums["total"] / sums["n"]
        if several.any():
            replicates = sums["boot_total"][:, several] / sums["boot_n"][:, several]
            bounds = np.nanquantile(replicates, [(1 - ci) / 2, (1 + ci) / 2], axis=0)
            low[several], high[several] = bounds
    bound = f"bound of the {100 * ci:g} % interval"
    return xr.Dataset(
        {
            "value": (dim, value, attrs),
            "low": (dim, low, attrs | {"long_name": f"lower {bound}"}),
            "high": (dim, high, attrs | {"long_name": f"upper {bound}"}),
            "n": (dim, sums["n"], {"units": "1", "long_name": "states"}),
            "n_missing": (dim, sums["n_missing"], {"units": "1", "long_name": "states left out"}),
            "n_rollouts": (dim, sums["n_rollouts"], {"units": "1", "long_name": "rollouts"}),
        }
    )


def _n_positions(source: "Run | xr.Dataset") -> int:
    """One more than the last position that occurs; reads every step."""
    parts = [source] if isinstance(source, xr.Dataset) else map(source.load, source.steps)
    return 1 + max(
        (int(part["position"].max()) for part in parts if part.sizes["state"]), default=0
    )
