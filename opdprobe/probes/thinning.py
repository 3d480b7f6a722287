"""Say which positions a record leaves out: its averages are not those of whole responses."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from opdprobe.store.step_parts import open_step

if TYPE_CHECKING:
    from opdprobe.store import Run


def thinned(
    run_or_dataset: "Run | xr.Dataset", *, steps: Sequence[int] | None = None
) -> str | None:
    """Say whether states of responses were left out when they were recorded, and which.

    Leaving out whole rollouts (``record_fraction``) does not bias an average; leaving out the later
    positions of each (``record_max_positions``) does.

    Parameters
    ----------
    run_or_dataset : Run or Dataset
        A run, of which only the lengths are read: those of every step if its settings limit the
        positions, otherwise those of the first and the last recorded step. Or a step.

    Returns
    -------
    str or None
        A sentence for whoever reads an average; None if every token has its state, or the lengths
        of the responses are not known.

    Examples
    --------
    >>> from opdprobe.testing import synthetic_step
    >>> ds = synthetic_step(n_rollouts=2, length=[4, 8])
    >>> thinned(ds) is None
    True
    >>> thinned(ds.isel(state=ds.position.values < 3))
    'only the first 3 positions of each response are recorded: 50.0% of 12 tokens'
    """
    if isinstance(run_or_dataset, xr.Dataset):
        ds = run_or_dataset
        if "length" not in ds:
            return None
        position = ds["position"].values if "position" in ds.variables else None
        return _sentence([ds["length"].values], ds.sizes["state"], _last(position))
    run = run_or_dataset
    steps, limited = (
        run.steps if steps is None else steps,
        bool(run.config.get("record_max_positions")),
    )
    lengths: list[NDArray[np.integer]] = []
    n_state, last = 0, 0
    for step in steps if limited else sorted({*steps[:1], *steps[-1:]}):
        with open_step(run.path, step) as archive:
            if "length" not in archive.variables:
                return None
            lengths.append(archive.rows("length"))
            n_state += archive.n_state
            if archive.n_state:
                last = max(last, _last(archive.rows("position")) or 0)
    found = _sentence(lengths, n_state, last)
    if found is None:
        return None
    whole = (
        "; Run.metrics has the averages over all positions, under the same names" if limited else ""
    )
    return found + whole


def _last(position: NDArray[np.integer] | None) -> int | None:
    return None if position is None else int(position.max(initial=-1)) + 1


def _sentence(lengths: Sequence[NDArray[np.integer]], n_state: int, last: int | None) -> str | None:
    total = sum(int(length.sum()) for length in lengths)
    if n_state >= total:
        return None
    share = f"{n_state / total:.1%} of {total:,} tokens"
    if last is not None and n_state == sum(int(np.minimum(n, last).sum()) for n in lengths):
        return f"only the first {last} positions of each response are recorded: {share}"
    return f"not every position has a state (some are masked, or were left out): {share} have one"
