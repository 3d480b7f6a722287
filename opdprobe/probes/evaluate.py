"""States sorted by training step and by output position: what curves and heat maps share."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from opdprobe.errors import ConfigError
from opdprobe.store.schema import MODELS

if TYPE_CHECKING:
    from opdprobe.store import Run

Probe = str | Callable[[xr.Dataset], xr.DataArray]
"""Name of a ``ds.opd`` method, with the model before it where it takes one
(``"teacher_overlap_mass"``), or a function of a Dataset; either gives one value a state."""

# The methods of ds.opd whose first argument is a model.
_BY_MODEL = ("overlap_mass", "topk_mass", "mass_set_size", "entropy", "topk_entropy")

_TOGETHER = ("overlap_token_advantage", "student_overlap_mass", "teacher_overlap_mass")


def check_coords(source: "Run | xr.Dataset", *names: str) -> None:
    """Refuse a Dataset that lacks a coordinate to sort its states by; a run has them all."""
    if isinstance(source, xr.Dataset):
        for name in names:
            if name not in source.coords:
                raise ValueError(f"the Dataset has no coordinate {name!r}; expected one on 'state'")


def check_steps(steps: Sequence[int]) -> None:
    """Refuse a source that turned out to hold nothing."""
    if not steps:
        raise ValueError("there are no states to average; expected a run with at least one step")


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
            # A slice where the states of a step lie together, as in a store: no copy, no dask take.
            together = index[-1] - index[0] == index.size - 1
            yield step, source.isel(state=slice(index[0], index[-1] + 1) if together else index)


def evaluate(probe: Probe, part: xr.Dataset) -> xr.DataArray:
    """Compute a probe on one step's states.

    Raises
    ------
    ConfigError
        If a name is no ``ds.opd`` method.
    ValueError
        If the probe gives other than one value a state.
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
                f"probe is {probe!r}; ds.opd offers {', '.join(sorted(methods))}: name one, "
                f"with 'student_' or 'teacher_' before {', '.join(_BY_MODEL)}, or a function"
            )
    else:
        quantity = probe(part)
    dims = getattr(quantity, "dims", None)
    if dims != ("state",):
        raise ValueError(
            f"probe {probe!r} gave a {type(quantity).__name__} with dims {dims}; expected a "
            "DataArray over 'state', one value a state"
        )
    return quantity


def evaluate_all(probes: Sequence[Probe], part: xr.Dataset) -> list[xr.DataArray]:
    """Compute several probes; what they have in common once."""
    together = [probe for probe in probes if probe in _TOGETHER]
    shared = part.opd.overlap_statistics() if len(together) > 1 else {}
    return [
        shared[probe] if probe in shared else evaluate(probe, part)  # pyright: ignore[reportArgumentType]  # only names are in it
        for probe in probes
    ]


def probe_attrs(quantity: xr.DataArray) -> dict[str, Any]:
    """Pick the attributes that a mean of a probe keeps."""
    return {k: v for k, v in quantity.attrs.items() if k in ("units", "long_name")}


def check_bins(bins: Any) -> None:
    """Refuse what is no number of ranges, no edges and not None, before anything is read."""
    if bins is None:
        return
    if np.ndim(bins) == 1:
        edges = np.asarray(bins)
        if len(edges) < 2 or not (np.diff(edges) > 0).all():
            raise ConfigError(f"bins is {bins!r}; expected two or more increasing edges")
    elif not isinstance(bins, int | np.integer) or bins < 1:
        raise ConfigError(f"bins is {bins!r}; expected a number of ranges, edges or None")


def position_edges(bins: Any, n_positions: Callable[[], int]) -> NDArray[Any]:
    """Edges of the position ranges; for a number of bins, whole numbers from 0 to the last.

    `n_positions` is called where the edges depend on what occurs.
    """
    if bins is None:
        return np.arange(n_positions() + 1)
    if np.ndim(bins) == 1:
        return np.asarray(bins)
    # Whole numbers, so that the ranges hold equally many positions give or take one; no range is
    # empty when there are fewer positions than bins.
    return np.unique(np.linspace(0, n_positions(), bins + 1).round().astype(int))


def position_coords(edges: NDArray[Any]) -> Mapping[str, xr.Variable]:
    """Coordinates of position ranges: their middles, and their ends beside them."""
    start, stop = edges[:-1], edges[1:]
    attrs = {"units": "1", "long_name": "position"}
    return {
        "position": xr.Variable("position", (start + stop - 1) / 2, attrs),
        "position_start": xr.Variable("position", start),
        "position_stop": xr.Variable("position", stop),
    }


def step_coord(steps: Sequence[int]) -> Mapping[str, xr.Variable]:
    """Coordinate of training steps."""
    attrs = {"units": "1", "long_name": "training step"}
    return {"step": xr.Variable("step", np.asarray(steps, np.int64), attrs)}
