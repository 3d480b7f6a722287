"""Probes over training steps or over output positions, with bootstrap intervals."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from opdprobe.errors import ConfigError
from opdprobe.probes.bootstrap import (
    MAX_UNITS,
    draw_units,
    folded,
    mean_intervals,
    sum_by_unit,
)
from opdprobe.probes.evaluate import (
    Probe,
    check_bins,
    check_coords,
    check_steps,
    position_coords,
    position_edges,
    step_coord,
)
from opdprobe.probes.quantities import MAIN, fewest_prompts
from opdprobe.probes.rollout_sums import Map, StepSums, step_sums
from opdprobe.probes.thinning import thinned
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
        - ``low``, ``high``: its interval; NaN where fewer than 64 prompts have a value, or 16 for
          overlap ratio, entropies, entropy gap and extreme-advantage gap;
        - ``n``, ``n_missing``: states averaged, and states left out because the probe is NaN
          there;
        - ``n_rollouts``, ``n_prompts``: rollouts and prompts that the averaged states come from.

        Its attributes name the interval (``ci_kind``, ``ci_prob``, ``n_boot``, ``seed``), the probe
        (``units``, ``long_name``), and which positions were not recorded (``thinned``), if some
        were not.

    Raises
    ------
    ConfigError
        If `probe` is not a ``ds.opd`` method, or another argument is out of range.
    ValueError
        If the probe does not return one value per state, or a Dataset has no ``step`` or
        ``position`` to sort the states by.

    Notes
    -----
    States of one rollout are not independent, and neither are the rollouts of one prompt, so the
    bootstrap draws whole prompts, each with all its rollouts (studentised interval; Poisson
    weights). A prompt that occurs at several steps is drawn once for all of them. Steps are not
    drawn, because they are not a sample. Where prompts are not recorded, or a Dataset holds several
    steps, a rollout counts as a prompt of its own, and ``ci_kind`` says so; the interval is then
    too narrow if prompts have several rollouts. Infinite values give an infinite mean without an
    interval. The page *Statistics* has the measured coverage.

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
    label: str | None = None,
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
    label : str, optional
        Split a run by this label of its rollouts, such as ``"teacher"`` of a run with several
        teachers. The run is read once for each value that the label has.

    Returns
    -------
    Dataset
        Over ``(probe, step)`` or ``(probe, position)``: the variables of `curve`, and each
        probe's ``units`` and ``long_name`` as coordinates ("" where it has none). With `label`,
        there is one more dimension, of this name, whose coordinate holds the label's values.

    Raises
    ------
    ConfigError, ValueError
        As `curve`.

    Notes
    -----
    Memory does not grow with the run. A process holds one piece (about 100 MB decoded at k = 16);
    ``by="position"`` adds, for each probe and point, 16 bytes for each of at most 2,048 prompts.
    Where there are more, groups of prompts are drawn, and by position ``n_prompts`` counts groups.

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

    common = partial(
        _curves, run_or_dataset, named, by=by, bins=bins, ci=ci, n_boot=n_boot, seed=seed, map=map
    )
    if label is None:
        return _seen(common(), by, bins)
    tables = rollout_labels(run_or_dataset, label)
    values = sorted({value for table in tables.values() for value in table.tolist()})
    parts = [
        common(chosen={step: table == value for step, table in tables.items()}) for value in values
    ]
    together = xr.concat(parts, xr.Variable(label, values), coords="minimal", join="exact")
    return _seen(together, by, bins)


def _seen(result: xr.Dataset, by: str, bins: int | Sequence[float] | None) -> xr.Dataset:
    """Leave out the positions at which there is no state, unless the ranges were given."""
    if by == "step" or bins is not None:
        return result
    n_states = (result["n"] + result["n_missing"]).isel(probe=0)
    seen = n_states.sum([dim for dim in n_states.dims if dim != "position"]).values > 0
    return result.isel(position=seen)


def rollout_labels(source: "Run | xr.Dataset", label: str) -> dict[int, NDArray[Any]]:
    """Return a label of every rollout of a run, by step.

    Raises
    ------
    ConfigError
        `source` is no run, or has no such label.
    """
    if isinstance(source, xr.Dataset):
        raise ConfigError(
            f"label = {label!r} with a Dataset; expected a run, whose rollouts have it."
        )
    table = source.rollouts()
    known = table["label_name"].values.tolist() if "label_name" in table else []
    if label not in known:
        names = ", ".join(map(repr, known)) or "none"
        raise ConfigError(f"label = {label!r}; expected one of the run's labels: {names}.")
    of_rollout = table["label"].sel(label_name=label).values.astype(str)
    step = table["step"].values
    return {int(one): of_rollout[step == one] for one in np.unique(step)}


def _curves(
    run_or_dataset: "Run | xr.Dataset",
    named: Mapping[str, Probe],
    *,
    by: str,
    bins: int | Sequence[float] | None,
    ci: float,
    n_boot: int,
    seed: int,
    map: Map,
    chosen: Mapping[int, NDArray[np.bool_]] | None = None,
) -> xr.Dataset:
    """Average probes; `chosen` marks, by step, the rollouts that count."""
    check_coords(run_or_dataset, "rollout", by)
    edges = None
    if by == "position":
        check_bins(bins)
        edges = position_edges(bins, lambda: _n_positions(run_or_dataset))
    least = [fewest_prompts(probe) for probe in named.values()]
    summary = partial(_summary, least=least, ci=ci, n_boot=n_boot, seed=seed)
    then = partial(_by_step if by == "step" else _by_position, summary=summary, chosen=chosen)
    steps: list[int] = []
    by_prompt = True
    found: list[_Units] = []
    columns: list[dict[str, NDArray[Any]]] = []
    attrs: list[dict[str, Any]] = []
    for batch in step_sums(run_or_dataset, [*named.values()], then, edges=edges, map=map):
        attrs = batch.attrs  # the same in every batch
        steps += batch.steps
        by_prompt &= batch.by_prompt
        if by == "position":
            found = [_merged([*found, batch.found])]
        else:
            columns.append(batch.found)
    check_steps(steps)

    if by == "position":
        columns = [summary(found[0])]
    bound = f"bound of the {100 * ci:g} % interval"
    about = {
        "value": {},
        "low": {"long_name": f"lower {bound}"},
        "high": {"long_name": f"upper {bound}"},
        "n": {"units": "1", "long_name": "states"},
        "n_missing": {"units": "1", "long_name": "states left out"},
        "n_rollouts": {"units": "1", "long_name": "rollouts"},
        "n_prompts": {"units": "1", "long_name": "prompts"},
    }
    result = xr.Dataset(
        {
            name: (("probe", by), np.concatenate([c[name] for c in columns], axis=1), about[name])
            for name in about
        },
        {"probe": list(named)}
        | {name: ("probe", [a.get(name, "") for a in attrs]) for name in ("units", "long_name")},
        {
            "ci_kind": f"studentised bootstrap over {'prompts' if by_prompt else 'rollouts'}",
            "ci_prob": ci,
            "n_boot": n_boot,
            "seed": seed,
        },
    )
    if left_out := thinned(run_or_dataset):
        result.attrs["thinned"] = left_out
    if edges is None:
        return result.assign_coords(step_coord(steps))
    return result.assign_coords(position_coords(edges))


@dataclass(frozen=True)
class _Units:
    """Sums of P probes by unit, over R points."""

    keys: NDArray[np.uint64]  # (units,)
    total: NDArray[np.float64]  # (P, R, units)
    n: NDArray[np.float64]  # (P, R, units)
    n_missing: NDArray[np.int64]  # (P, R)
    n_rollouts: NDArray[np.int64]  # (P, R)


@dataclass(frozen=True)
class _Batch:
    """What a batch of steps gives: their summary, or by position their sums."""

    attrs: list[dict[str, Any]]
    steps: list[int]
    by_prompt: bool
    found: Any


def _by_step(
    sums: Iterator[StepSums],
    *,
    summary: Callable[[_Units], dict[str, Any]],
    chosen: Mapping[int, NDArray[np.bool_]] | None,
) -> _Batch:
    """Summarise each step."""
    steps = _only(sums, chosen)
    found = [summary(_units(one)) for one in steps]
    joined = {name: np.concatenate([f[name] for f in found], axis=-1) for name in found[0]}
    return _batch(steps, joined)


def _by_position(
    sums: Iterator[StepSums],
    *,
    summary: object,
    chosen: Mapping[int, NDArray[np.bool_]] | None,
) -> _Batch:
    """Add up the steps by position; the summary needs them all."""
    steps = _only(sums, chosen)
    return _batch(steps, _merged([_units(one) for one in steps]))


def _only(
    sums: Iterator[StepSums], chosen: Mapping[int, NDArray[np.bool_]] | None
) -> list[StepSums]:
    return list(sums) if chosen is None else [one.only(chosen[one.step]) for one in sums]


def _batch(steps: list[StepSums], found: Any) -> _Batch:
    by_prompt = all(one.by_prompt for one in steps)
    return _Batch(steps[-1].attrs, [one.step for one in steps], by_prompt, found)


def _units(sums: StepSums) -> _Units:
    keys, (total, n) = sum_by_unit(
        sums.unit, np.moveaxis(sums.total, 1, -1), np.moveaxis(sums.n, 1, -1)
    )
    return _Units(keys, total, n, sums.n_missing.sum(axis=1), (sums.n > 0).sum(axis=1))


def _merged(parts: Sequence[_Units]) -> _Units:
    """Add up the sums of the same units; beyond `MAX_UNITS`, of groups of units."""
    keys, (total, n) = sum_by_unit(
        np.concatenate([part.keys for part in parts]),
        np.concatenate([part.total for part in parts], axis=-1),
        np.concatenate([part.n for part in parts], axis=-1),
    )
    if len(keys) > MAX_UNITS:
        keys, (total, n) = sum_by_unit(folded(keys), total, n)
    n_missing, n_rollouts = (
        np.sum([getattr(part, name) for part in parts], axis=0)
        for name in ("n_missing", "n_rollouts")
    )
    return _Units(keys, total, n, n_missing, n_rollouts)


def _summary(
    found: _Units, *, least: Sequence[int], ci: float, n_boot: int, seed: int
) -> dict[str, NDArray[Any]]:
    """Turn sums into means and intervals, (P, R)."""
    count = found.n.sum(axis=-1)
    with np.errstate(invalid="ignore"):  # 0/0 where nothing was seen
        value = found.total.sum(axis=-1) / count
    keys, total, n = found.keys, found.total, found.n
    if len(keys) > MAX_UNITS:
        keys, (total, n) = sum_by_unit(folded(keys), total, n)
    drawn = draw_units(keys, seed, n_boot)
    # Probe by probe: a product of all at once would round differently from that of one.
    ends = np.stack(
        [
            mean_intervals(t.T, m.T, drawn, ci, least=fewest)
            for t, m, fewest in zip(total, n, least, strict=True)
        ]
    )
    return {
        "value": value,
        "low": ends[:, 0],
        "high": ends[:, 1],
        "n": count.astype(np.int64),
        "n_missing": found.n_missing,
        "n_rollouts": found.n_rollouts,
        "n_prompts": (found.n > 0).sum(axis=-1),
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
