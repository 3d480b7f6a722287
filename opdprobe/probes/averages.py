"""Probes over training steps or over output positions, with bootstrap intervals."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from opdprobe.errors import ConfigError
from opdprobe.probes.bootstrap import draw_units, percentile_interval
from opdprobe.probes.evaluate import (
    Probe,
    check_bins,
    check_coords,
    check_steps,
    position_coords,
    position_edges,
    step_coord,
)
from opdprobe.probes.quantities import MAIN
from opdprobe.probes.rollout_sums import Map, StepSums, step_sums
from opdprobe.store.stream import batches, pieces

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
        A run, read in pieces of at most 131,072 states, or states in the store's schema.
    probe : str or callable
        Name of a ``ds.opd`` method (``"overlap_ratio"``), with the model before it where it takes
        one (``"teacher_overlap_mass"``); or a function of a Dataset that returns one value per
        state (``lambda ds: ds.opd.mass_set_size(mass=0.9)``), computed from that state alone: the
        function sees one step, or a part of a large one.
    by : {"step", "position"}, default "step"
        What the points of the curve are.
    bins : int or sequence of float, optional
        With ``by="position"``: the number of equally wide ranges, or their edges, each range
        including its left edge but not its right. Positions outside are left out. By default, every
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
        If `probe` is not a ``ds.opd`` method, or another argument is out of range.
    ValueError
        If the probe does not return one value per state, or a Dataset has no ``step`` or
        ``position`` to sort the states by.

    Notes
    -----
    States of one rollout are not independent, so the bootstrap draws whole rollouts, each with all
    its states, with replacement (percentile interval). It draws within each step, because the steps
    themselves are not a sample. A step's interval depends only on the seed and on that step.
    Infinite values give an infinite mean with a NaN bound.

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
    probes = {"": probe}
    found = curves(run_or_dataset, probes, by=by, bins=bins, ci=ci, n_boot=n_boot, seed=seed)
    result = found.isel(probe=0).drop_vars(("probe", "units", "long_name"))
    attrs = {name: found[name].item() for name in ("units", "long_name") if found[name].item()}
    for name in ("value", "low", "high"):
        result[name].attrs = attrs | result[name].attrs
    result.attrs = attrs | result.attrs
    return result


def curves(
    run_or_dataset: "Run | xr.Dataset",
    probes: Sequence[str] | Mapping[str, Probe] = MAIN,
    *,
    by: str = "step",
    bins: int | Sequence[float] | None = None,
    ci: float = 0.95,
    n_boot: int = 1000,
    seed: int = 0,
    map: Map = map,
) -> xr.Dataset:
    """Average many probes in one pass, each exactly as `curve` does.

    Parameters
    ----------
    run_or_dataset : Run or Dataset
        As in `curve`.
    probes : sequence of str, or mapping of str to str or callable
        Probes as in `curve`; a mapping gives names to functions.
    by, bins, ci, n_boot, seed
        As in `curve`.
    map : callable
        Function that maps over batches of steps. The builtin works in this process. To use other
        processes, pass an executor's ``map``: that of `concurrent.futures.ProcessPoolExecutor`, or
        that of a cluster, ``distributed.Client(…).get_executor().map``. A cluster's workers must
        have access to the run's files.

    Returns
    -------
    Dataset
        Over ``(probe, step)`` or ``(probe, position)``: the variables of `curve`, and each
        probe's ``units`` and ``long_name`` as coordinates ("" where it has none).

    Raises
    ------
    ConfigError, ValueError
        As `curve`.

    Notes
    -----
    Memory does not grow with the run. A process holds one piece (about 100 MB decoded at k = 16);
    ``by="position"`` adds, for each probe and point, 16 · `n_boot` bytes.

    Examples
    --------
    >>> from opdprobe.testing import synthetic_step
    >>> found = curves(synthetic_step(), ["overlap_ratio", "teacher_entropy"])
    >>> found["value"].dims, found["long_name"].values.tolist()
    (('probe', 'step'), ['overlap ratio', 'teacher entropy'])
    """
    if by not in ("step", "position"):
        raise ConfigError(f"by = {by!r}; expected 'step' or 'position'.")
    if by == "step" and bins is not None:
        raise ConfigError(f"bins = {bins!r} with by = 'step'; expected by = 'position'.")
    if not 0 < ci < 1 or n_boot < 100:
        raise ConfigError(f"ci = {ci}, n_boot = {n_boot}; expected 0 < ci < 1 and n_boot >= 100.")
    named = dict(probes) if isinstance(probes, Mapping) else {name: name for name in probes}
    if not named or isinstance(probes, str):
        raise ConfigError(f"probes = {probes!r}; expected a list of names, or a dict of probes.")

    check_coords(run_or_dataset, "rollout", by)
    edges = None
    if by == "position":
        check_bins(bins)
        edges = position_edges(bins, lambda: _n_positions(run_or_dataset))
    then = partial(_resample, by=by, ci=ci, n_boot=n_boot, seed=seed)
    steps: list[int] = []
    columns: list[dict[str, NDArray[Any]]] = []
    attrs: list[dict[str, Any]] = []
    for labels, some, found in step_sums(
        run_or_dataset, [*named.values()], then, edges=edges, map=map
    ):
        attrs = labels  # the same in every batch
        steps += some
        if by == "position" and columns:
            # Not in place: arrays from a cluster may be read-only.
            columns = [{name: columns[0][name] + array for name, array in found.items()}]
        else:
            columns.append(found)
    check_steps(steps)

    if by == "position":
        columns = [_summary(columns[0], ci)]
    bound = f"bound of the {100 * ci:g} % interval"
    about = {
        "value": {},
        "low": {"long_name": f"lower {bound}"},
        "high": {"long_name": f"upper {bound}"},
        "n": {"units": "1", "long_name": "states"},
        "n_missing": {"units": "1", "long_name": "states left out"},
        "n_rollouts": {"units": "1", "long_name": "rollouts"},
    }
    result = xr.Dataset(
        {
            name: (("probe", by), np.concatenate([c[name] for c in columns], axis=1), about[name])
            for name in about
        },
        {"probe": list(named)}
        | {name: ("probe", [a.get(name, "") for a in attrs]) for name in ("units", "long_name")},
        {
            "ci_kind": "percentile bootstrap over rollouts",
            "ci_prob": ci,
            "n_boot": n_boot,
            "seed": seed,
        },
    )
    if edges is None:
        return result.assign_coords(step_coord(steps))
    result = result.assign_coords(position_coords(edges))
    if bins is None:
        seen = (result["n"] + result["n_missing"]).isel(probe=0).values > 0
        result = result.isel(position=seen)
    return result


def _resample(
    steps: Iterator[StepSums],
    *,
    by: str,
    ci: float,
    n_boot: int,
    seed: int,
) -> tuple[list[dict[str, Any]], list[int], dict[str, NDArray[Any]]]:
    """Summarise each step of a batch; by position, add up the replicates of all steps."""
    attrs: list[dict[str, Any]] = []
    numbers: list[int] = []
    drawn: list[dict[str, NDArray[Any]]] = []
    for sums in steps:
        attrs = sums.attrs
        numbers.append(sums.step)
        found = _replicates(sums, seed, n_boot)
        if by == "position" and drawn:
            for name, array in found.items():
                drawn[0][name] += array
        else:
            drawn.append(found)
    if by == "position":
        return attrs, numbers, drawn[0]
    joined = {name: np.concatenate([d[name] for d in drawn], axis=-1) for name in drawn[0]}
    return attrs, numbers, _summary(joined, ci)


def _replicates(sums: StepSums, seed: int, n_boot: int) -> dict[str, NDArray[Any]]:
    """Sum one step's rollouts, as recorded and as resampled; the last axis is the point.

    A replicate costs one weighted sum of rollouts and never touches the states. All probes share
    the draws.
    """
    there = sums.length > 0
    total, n = sums.total[:, there], sums.n[:, there]
    drawn = draw_units(int(there.sum()), [seed, sums.step], n_boot)
    with np.errstate(invalid="ignore"):  # 0 draws of an infinite sum: NaN, as `curve` documents
        return {
            "n": n.sum(axis=1),
            "n_missing": sums.n_missing.sum(axis=1),
            "n_rollouts": (n > 0).sum(axis=1),
            "total": total.sum(axis=1),
            "boot_n": np.moveaxis(np.tensordot(drawn, n.astype(float), (1, 1)), 0, 1),
            # Probe by probe: a product of all at once would round differently from that of one.
            "boot_total": np.stack([drawn @ one for one in total]),
        }


def _summary(sums: dict[str, NDArray[Any]], ci: float) -> dict[str, NDArray[Any]]:
    """Turn sums into means and percentile intervals."""
    low, high = np.full((2, *sums["n"].shape), np.nan)
    several = sums["n_rollouts"] >= 2  # one rollout drawn again and again shows no spread
    with np.errstate(invalid="ignore"):  # 0/0 where nothing was seen
        value = sums["total"] / sums["n"]
        if several.any():
            replicates = np.moveaxis(sums["boot_total"] / sums["boot_n"], 1, -1)[several]
            low[several], high[several] = percentile_interval(replicates, ci)
    return {
        "value": value,
        "low": low,
        "high": high,
        **{name: sums[name] for name in ("n", "n_missing", "n_rollouts")},
    }


def _n_positions(source: "Run | xr.Dataset") -> int:
    """One more than the last position that occurs; reads every step's positions."""
    if isinstance(source, xr.Dataset):
        parts = iter([source])
    else:
        parts = (piece.states for batch in batches(source) for piece in pieces(source, batch))
    return 1 + max(
        (int(part["position"].max()) for part in parts if part.sizes["state"]), default=0
    )
