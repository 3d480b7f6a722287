"""Evaluate probes, and sort states by step and position: what curves and heat maps share."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from opdprobe.errors import ConfigError
from opdprobe.probes.quantities import PER_STATE
from opdprobe.probes.union import UNION_STATISTICS
from opdprobe.store.schema import MODELS

if TYPE_CHECKING:
    from opdprobe.store import Run

logger = logging.getLogger("opdprobe")

Probe = str | Callable[[xr.Dataset], xr.DataArray]
"""Name of a ``ds.opd`` method, with the model before it where it takes one
(``"teacher_overlap_mass"``), or a function of a Dataset; either gives one value per state."""

# The methods of ds.opd whose first argument is a model.
_BY_MODEL = (
    *("overlap_mass", "topk_mass", "mass_set_size", "entropy", "topk_entropy"),
    "stop_token_mass",
    "drawn_rank",
    "effective_support",
)

_TOGETHER = {
    "overlap_statistics": (
        "student_overlap_mass",
        "teacher_overlap_mass",
        "overlap_token_advantage",
    ),
    "union_statistics": UNION_STATISTICS,
}
"""Methods of ``ds.opd`` to what they compute at once, that last which takes and needs the most."""


def check_coords(source: "Run | xr.Dataset", *names: str) -> None:
    """Raise if a Dataset lacks a coordinate to sort its states by; a run has them all."""
    if isinstance(source, xr.Dataset):
        for name in names:
            if name not in source.coords:
                raise ValueError(f"the Dataset has no coordinate {name!r}; expected it on 'state'.")


def check_steps(steps: Sequence[int]) -> None:
    """Raise if a source turned out to be empty."""
    if not steps:
        raise ValueError("there are no states to average; expected a run with at least one step.")


def by_step(source: "Run | xr.Dataset") -> Iterator[tuple[int, xr.Dataset]]:
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
            # A slice if the states of a step are contiguous, as in a store: no copy, no dask take.
            together = index[-1] - index[0] == index.size - 1
            yield step, source.isel(state=slice(index[0], index[-1] + 1) if together else index)


def evaluate(probe: Probe, part: xr.Dataset) -> xr.DataArray:
    """Compute a probe on one step's states.

    Raises
    ------
    ConfigError
        If a name is not a ``ds.opd`` method.
    ValueError
        If the probe does not give one value per state.
    """
    if isinstance(probe, str):
        methods = {name for name in dir(part.opd) if not name.startswith("_")}
        model, _, rest = probe.partition("_")
        if probe in methods:
            quantity = getattr(part.opd, probe)()
        elif model in MODELS and rest in _BY_MODEL:
            quantity = getattr(part.opd, rest)(model)
        else:
            raise ConfigError(
                f"probe = {probe!r}; expected a function, or a method of ds.opd: "
                f"{', '.join(sorted(methods))}, with 'student_' or 'teacher_' before "
                f"{', '.join(_BY_MODEL)}."
            )
    else:
        quantity = probe(part)
    dims = getattr(quantity, "dims", None)
    if dims != ("state",):
        raise ValueError(
            f"probe {probe!r} gave a {type(quantity).__name__} with dims {dims}; expected a "
            "DataArray over 'state', one value per state."
        )
    return quantity


def evaluate_all(probes: Sequence[Probe], part: xr.Dataset) -> list[xr.DataArray]:
    """Compute several probes; what they share is computed once.

    A quantity whose variable the step does not hold is NaN at every state, with a note in the log,
    unless that is all that was asked for.
    """
    absent = {
        probe
        for probe in probes
        if isinstance(probe, str) and probe in PER_STATE and PER_STATE[probe].needs not in part
    }
    if absent and len(absent) < len(set(probes)):
        _say(tuple(sorted(absent)))
        nothing = {name: _nothing(name, part) for name in absent}
        rest = [probe for probe in probes if probe not in absent]
        found = dict(zip(rest, evaluate_all(rest, part), strict=True))
        return [nothing[str(probe)] if probe in absent else found[probe] for probe in probes]
    shared: dict[Any, xr.DataArray] = {}
    for at_once, names in _TOGETHER.items():
        asked = [name for name in names if name in probes]
        if len(asked) > 1 and names[-1] in asked:
            shared |= dict(getattr(part.opd, at_once)().data_vars)
    return [
        shared[probe] if isinstance(probe, str) and probe in shared else evaluate(probe, part)
        for probe in probes
    ]


def _nothing(name: str, part: xr.Dataset) -> xr.DataArray:
    about = PER_STATE[name].name._asdict()
    return xr.DataArray(np.full(part.sizes["state"], np.nan), dims="state", attrs=about)


@lru_cache(16)  # once, not for every step
def _say(absent: Sequence[str]) -> None:
    needs = dict.fromkeys(PER_STATE[name].needs for name in absent)
    logger.warning(
        "The run does not hold %s, so %s cannot be computed: NaN.",
        " and ".join(needs),
        ", ".join(PER_STATE[name].name.long_name for name in absent),
    )


def probe_attrs(quantity: xr.DataArray) -> dict[str, Any]:
    """Pick the attributes that a mean of a probe keeps."""
    return {k: v for k, v in quantity.attrs.items() if k in ("units", "long_name")}


def check_bins(bins: Any) -> None:
    """Raise unless `bins` is a positive integer, increasing edges, or None."""
    if bins is None:
        return
    if np.ndim(bins) == 1:
        edges = np.asarray(bins)
        if len(edges) < 2 or not (np.diff(edges) > 0).all():
            raise ConfigError(f"bins = {bins!r}; expected two or more increasing edges.")
    elif not isinstance(bins, int | np.integer) or bins < 1:
        raise ConfigError(f"bins = {bins!r}; expected a number of ranges, edges or None.")


def position_edges(bins: Any, n_positions: Callable[[], int]) -> NDArray[Any]:
    """Return the edges of the position ranges; for a number of bins, integers from 0.

    `n_positions` is called only if the edges depend on the positions that occur.
    """
    if bins is None:
        return np.arange(n_positions() + 1)
    if np.ndim(bins) == 1:
        return np.asarray(bins)
    # Integers, so that the ranges differ by at most one in their number of positions; no range is
    # empty if there are fewer positions than bins.
    return np.unique(np.linspace(0, n_positions(), bins + 1).round().astype(int))


def position_coords(edges: NDArray[Any]) -> Mapping[str, xr.Variable]:
    """Return the coordinates of position ranges: their middles and their ends."""
    start, stop = edges[:-1], edges[1:]
    attrs = {"units": "1", "long_name": "position"}
    return {
        "position": xr.Variable("position", (start + stop - 1) / 2, attrs),
        "position_start": xr.Variable("position", start),
        "position_stop": xr.Variable("position", stop),
    }


def step_coord(steps: Sequence[int]) -> Mapping[str, xr.Variable]:
    """Return the coordinate of training steps."""
    attrs = {"units": "1", "long_name": "training step"}
    return {"step": xr.Variable("step", np.asarray(steps, np.int64), attrs)}
