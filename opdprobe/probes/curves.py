"""A probe over training steps or over output positions, with a bootstrap interval."""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from opdprobe.errors import ConfigError

if TYPE_CHECKING:
    from opdprobe.store import Run

Probe = str | Callable[[xr.Dataset], xr.DataArray]


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

    if isinstance(run_or_dataset, xr.Dataset):
        for name in ("rollout", by):
            if name not in run_or_dataset.coords:
                raise ValueError(f"the Dataset has no coordinate {name!r}; expected one on 'state'")

    edges = _position_edges(run_or_dataset, bins) if by == "position" else None
    steps: list[int] = []
    columns: list[dict[str, NDArray[Any]]] = []  # by step: one each; by position: the sum of all
    attrs: dict[str, Any] = {}
    for step, part in _by_step(run_or_dataset):
        steps.append(step)
        quantity = _evaluate(probe, part)
        attrs = {k: v for k, v in quantity.attrs.items() if k in ("units", "long_name")}
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
    if not steps:
        raise ValueError("there are no states to average; expected a run with at least one step")

    joined = {name: np.concatenate([c[name] for c in columns], axis=-1) for name in columns[0]}
    result = _summary(joined, by, ci, attrs)
    if edges is None:
        result = result.assign_coords(step=("step", np.asarray(steps, np.int64)))
    else:
        start, stop = edges[:-1], edges[1:]
        result = result.assign_coords(
            position=("position", (start + stop - 1) / 2),
            position_start=("position", start),
            position_stop=("position", stop),
        )
        if bins is None:
            result = result.isel(position=(result["n"] + result["n_missing"]).values > 0)
    result[by].attrs = {"units": "1", "long_name": "training step" if by == "step" else "position"}
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


def _evaluate(probe: Probe, part: xr.Dataset) -> xr.DataArray:
    if isinstance(probe, str):
        method = None if probe.startswith("_") else getattr(part.opd, probe, None)
        if method is None:
            known = ", ".join(name for name in dir(part.opd) if not name.startswith("_"))
            raise ConfigError(f"probe is {probe!r}; ds.opd offers {known}: name one, or a function")
        quantity = method()
    else:
        quantity = probe(part)
    dims = getattr(quantity, "dims", None)
    if dims != ("state",):
        raise ValueError(
            f"probe {probe!r} gave a {type(quantity).__name__} with dims {dims}; expected a "
            "DataArray over 'state', one value a state"
        )
    return quantity


def _by_step(source: "Run | xr.Dataset") -> Iterator[tuple[int, xr.Dataset]]:
    """Yield the steps in order, one at a time in memory; a Dataset without steps is step 0."""
    if not isinstance(source, xr.Dataset):
        for step in source.steps:
            yield step, source.load(step)
    elif not source.sizes["state"]:
        return
    elif "step" not in source.coords:
        yield 0, source
    else:
        values = source["step"].values
        order = np.argsort(values, kind="stable")
        steps, first = np.unique(values[order], return_index=True)
        for step, index in zip(steps.tolist(), np.split(order, first[1:]), strict=True):
            # A slice where the states of a step lie together, as in a store: no copy, no dask take.
            together = index[-1] - index[0] == index.size - 1
            yield step, source.isel(state=slice(index[0], index[-1] + 1) if together else index)


def _position_edges(source: "Run | xr.Dataset", bins: Any) -> NDArray[Any]:
    """Edges of the position ranges; for a number of bins, whole numbers from 0 to the last."""
    if bins is not None and np.ndim(bins) == 1:
        edges = np.asarray(bins)
        if len(edges) < 2 or not (np.diff(edges) > 0).all():
            raise ConfigError(f"bins is {bins!r}; expected two or more increasing edges")
        return edges
    parts = [source] if isinstance(source, xr.Dataset) else map(source.load, source.steps)
    stop = 1 + max(
        (int(part["position"].max()) for part in parts if part.sizes["state"]), default=0
    )
    if bins is None:
        return np.arange(stop + 1)
    if not isinstance(bins, int | np.integer) or bins < 1:
        raise ConfigError(f"bins is {bins!r}; expected a number of ranges, edges or None")
    # Whole numbers, so that the ranges hold equally many positions give or take one; no range is
    # empty when there are fewer positions than bins.
    return np.unique(np.linspace(0, stop, bins + 1).round().astype(int))
