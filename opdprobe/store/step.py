"""One recorded step on disk: a zarr-v3 group in an uncompressed zip file.

The file appears complete or not at all: it is written under a temporary name, flushed to disk and
renamed into place. Plain xarray reads it without opdprobe::

    xr.open_dataset("zip::run_dir/steps/000120.zarr.zip", engine="zarr", consolidated=False)

A variable has one chunk per 131072 states and is never split along another axis. Reading a step
verifies the checksum of everything that is read and closes the file again, so that a run of any
number of steps holds no file open.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from opdprobe.errors import StoreError
from opdprobe.store.files import write_whole
from opdprobe.store.schema import VARIABLES, Step
from opdprobe.store.step_decode import torn
from opdprobe.store.step_encode import step_members, write_zip
from opdprobe.store.step_parts import open_files

_KEPT_BITS = 12
_COUNTS = ("n_state", "n_rollout")  # attributes on disk, so that a reader can plan without data
_OF_XARRAY = ("coordinates", "dtype")  # attributes that xarray adds to a variable


def write_step_file(path: Path, step: xr.Dataset | Step) -> None:
    """Write a valid, loaded step to `path`, completely or not at all.

    `logp` is rounded to 12 bits of mantissa, so that it compresses well. The relative error is at
    most 2**-13: 0.002 nats for a token of probability 1e-7, and 4.5e-5 of probability for any
    token (the largest p·|log p| is 0.37). The order of ranks is kept; everything else is exact.
    Equal steps give equal bytes.

    Parameters
    ----------
    path : pathlib.Path
        The file; replaced if it exists.
    step : xarray.Dataset or Step
        The step.
    """
    variables = step.variables
    of_rollouts = (len(v) for v in variables.values() if v.dims == ("rollout",))
    # Without rollout tables, count up to the last rollout that has a state.
    n_rollout = next(of_rollouts, variables["rollout"].values.max(initial=-1) + 1)
    attributes = {
        **step.attrs,
        "n_state": len(variables["rollout"]),
        "n_rollout": int(n_rollout),
    }
    rounded = {"logp": round_mantissa(variables["logp"].values)} if "logp" in variables else {}
    members = step_members(step, attributes, **rounded)
    write_whole(path, lambda file: write_zip(members, file), follow=False)


def read_step(files: Sequence[Path]) -> xr.Dataset:
    """Read a step from its files.

    Parameters
    ----------
    files : sequence of pathlib.Path
        The file, or all parts in order.

    Returns
    -------
    xarray.Dataset
        The step, in memory; the files are closed.

    Raises
    ------
    StoreError
        A file is missing, torn, or not a step.
    """
    with open_files(files) as archive:
        archive.check_sizes()
        variables: dict[str, xr.Variable] = {}
        for name in sorted(archive.variables, key=[*VARIABLES].index):
            values = archive.rows(name)
            # Decoded chunks are read-only. Text is decoded as objects; numpy finds its width.
            if values.dtype == object:
                texts = values.ravel().tolist()
                width = max(map(len, texts), default=0)
                if 4 * width * len(texts) > archive.most_bytes:  # numpy's texts have one width
                    raise torn(
                        archive.path,
                        f"{name} has {len(texts)} texts and one of {width} characters, too many "
                        "for its file",
                    )
                values = np.array(texts, str).reshape(values.shape)
            else:
                values = values.copy()
            attrs = archive.form(name)["attributes"]
            attrs = {key: attrs[key] for key in attrs if key not in _OF_XARRAY}
            variables[name] = xr.Variable(VARIABLES[name].dims, values, attrs)
        attrs = {key: v for key, v in archive.attributes.items() if key not in _COUNTS}
        return Step(variables, attrs).to_dataset()


def read_counts(files: Sequence[Path]) -> tuple[int, int]:
    """Read only the numbers of states and rollouts of a step (0.1 ms per file)."""
    with open_files(files) as archive:
        return archive.n_state, archive.n_rollout


def read_finished_dtype(files: Sequence[Path]) -> np.dtype:
    """Read only the dtype of ``finished``: bool, or float32 if it is not known of some rollout."""
    with open_files(files) as archive:
        return np.dtype(archive.form("finished")["data_type"])


def read_block(
    files: Sequence[Sequence[Path]],
    variable: str,
    shift: Sequence[int],
    row_shape: tuple[int, ...],
    block_id: tuple[int, ...],
) -> NDArray[Any]:
    """Read one variable of one step, for a dask array with one block per step.

    Parameters
    ----------
    files : sequence of sequence of pathlib.Path
        The files of each step.
    variable : str
        Name of the variable.
    shift : sequence of int
        Number to add to its values, per step; empty to add nothing.
    row_shape : tuple of int
        Shape of a row in the first step.
    block_id : tuple of int
        The first entry is the index of the step.

    Returns
    -------
    ndarray
        The values.

    Raises
    ------
    StoreError
        The file is torn, or not a step of the same run.
    """
    row = block_id[0]
    with open_files(files[row]) as archive:
        values = archive.rows(variable)
    if values.shape[1:] != row_shape:
        raise StoreError(
            f"{archive.path}: a row of {variable} has shape {values.shape[1:]}; expected "
            f"{row_shape}, as in the first step: move the file to its own run."
        )
    return values + values.dtype.type(shift[row]) if shift else values


def round_mantissa(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Round float32 values to 12 explicit bits of mantissa, to nearest, ties to even.

    Parameters
    ----------
    values : ndarray of float32
        Finite or infinite.

    Returns
    -------
    ndarray of float32
        Within a relative error of 2**-13; infinities, NaN and zeros are unchanged.

    Examples
    --------
    >>> round_mantissa(np.float32([-1.0, -2.3456789, -np.inf]))
    array([-1. , -2.3457031, -inf], dtype=float32)
    """
    dropped = 23 - _KEPT_BITS
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = bits >> np.uint32(dropped)  # in place from here: the array may be large
    rounded &= np.uint32(1)  # whether the last bit that is kept is odd
    rounded += bits
    rounded += np.uint32((1 << (dropped - 1)) - 1)
    rounded &= np.uint32(0xFFFFFFFF ^ ((1 << dropped) - 1))
    # Rounding up a NaN whose mantissa is full would carry into its sign.
    return np.where(np.isnan(values), np.float32(np.nan), rounded.view(np.float32))


def estimate_bytes(n_states: int, k: int) -> int:
    """Estimate how many bytes a step takes on disk, compressed.

    An upper fit to steps over a vocabulary of 50 000 to 150 000 tokens (within 20 % for
    1000 states and more). A small vocabulary or confident models take less.

    Parameters
    ----------
    n_states : int
        Recorded positions per step.
    k : int
        Tokens kept per state.

    Returns
    -------
    int
        Bytes.

    Examples
    --------
    >>> estimate_bytes(100_000, 16), estimate_bytes(0, 16)
    (21724000, 24000)
    """
    # Ids and log-probs cost 12 bytes per state and rank, the rest 25 per state; the constant is the
    # metadata of about 20 arrays.
    return 24_000 + n_states * (25 + 12 * k)
