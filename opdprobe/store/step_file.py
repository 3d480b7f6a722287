"""One recorded step on disk: a zarr-v3 group in an uncompressed zip file.

The file appears whole or not at all: it is written under a temporary name, flushed to disk and
renamed into place. Plain xarray reads it, without opdprobe::

    xr.open_dataset("zip::run_dir/steps/000120.zarr.zip", engine="zarr", consolidated=False)

A variable is one chunk for up to 131072 states and never split along another axis. Reading goes
through memory: the members that are needed are read from the zip at once, with their checksums
verified, and the file is closed again, so that a run of any number of steps holds no file open.
"""

import errno
import json
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import xarray as xr
import zarr
from numpy.typing import NDArray
from zarr.buffer import cpu
from zarr.codecs import BloscCodec
from zarr.storage import MemoryStore

from opdprobe.errors import StoreError
from opdprobe.schema import VARIABLES

TEMPORARY = ".tmp-"
_CHUNK = 131_072  # states
_KEPT_BITS = 12
_COUNTS = ("n_state", "n_rollout")  # attributes on disk, so that a reader can plan without data


def write_step_file(path: Path, ds: xr.Dataset) -> None:
    """Write a valid, loaded step to `path`, whole or not at all.

    `logp` is rounded to 12 bits of mantissa, so that it compresses well. The relative error is at
    most 2**-13: 0.002 nats for a token of probability 1e-7, and 4.5e-5 of probability for any
    token (the largest p·|log p| is 0.37). The order of ranks is kept; everything else is exact.
    Equal steps give equal bytes.

    Parameters
    ----------
    path : pathlib.Path
        The file; replaced where it exists.
    ds : xarray.Dataset
        The step.
    """
    members: dict[str, Any] = {}
    rollouts = ds.sizes.get("rollout")
    if rollouts is None:
        rollouts = int(ds["rollout"].max()) + 1 if ds.sizes["state"] else 0
    ds = ds.assign_attrs(n_state=ds.sizes["state"], n_rollout=rollouts)
    ds = ds.assign(logp=ds["logp"].copy(data=round_mantissa(ds["logp"].values)))
    encoding: dict[str, dict[str, Any]] = {}
    for name, variable in list(ds.variables.items()):
        chunks = tuple(max(1, min(size, _CHUNK)) for size in variable.shape)
        encoding[str(name)] = {"chunks": chunks}
        if variable.dtype.kind in "UOT":
            # zarr has a stable encoding for strings of any length, none for those of one length.
            ds[name] = variable.astype(object)
        else:
            codec = BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle")
            encoding[str(name)] |= {"compressors": [codec], "_FillValue": None}
    ds.to_zarr(MemoryStore(members), zarr_format=3, consolidated=False, encoding=encoding)

    def fill(file: BinaryIO) -> None:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            # The group's zarr.json comes last, after all that it announces. A bare ZipInfo carries
            # a fixed date.
            for name in sorted(members, key=lambda name: (name == "zarr.json", name)):
                archive.writestr(zipfile.ZipInfo(name), members[name].to_bytes())

    write_whole(path, fill)


def read_step_file(path: Path) -> xr.Dataset:
    """Read a step: compressed into memory, decoded variable by variable when first used.

    Parameters
    ----------
    path : pathlib.Path
        The file.

    Returns
    -------
    xarray.Dataset
        The step; the file is closed.

    Raises
    ------
    StoreError
        The file is torn, or not a step.
    """
    store = MemoryStore(_read_members(path, ""), read_only=True)
    ds = xr.open_zarr(store, consolidated=False, chunks=None)
    for name, variable in list(ds.variables.items()):
        if variable.dtype.kind == "T":
            # Without a stated size numpy does not cast StringDType to the usual "<U".
            ds[name] = variable.copy(data=np.asarray(variable.values.tolist(), str))
    for name in _COUNTS:
        ds.attrs.pop(name, None)
    # zarr lists the variables of a group in no particular order.
    names = sorted(ds.data_vars, key=lambda name: [*VARIABLES].index(str(name)))
    return ds[names].drop_encoding()


def read_counts(path: Path) -> tuple[int, int]:
    """Read how many states and rollouts a step has, and nothing else (0.1 ms)."""
    attributes = json.loads(_read_members(path, "zarr.json")["zarr.json"].to_bytes())["attributes"]
    return attributes[_COUNTS[0]], attributes[_COUNTS[1]]


def read_block(
    files: Sequence[str], variable: str, shift: Sequence[int], block_id: tuple[int, ...]
) -> NDArray[Any]:
    """Read one variable of one step, for a dask array with one block a step.

    Parameters
    ----------
    files : sequence of str
        Step files.
    variable : str
        Which variable.
    shift : sequence of int
        What to add to its values, per file; empty for nothing.
    block_id : tuple of int
        The first entry says which file.

    Returns
    -------
    ndarray
        The values.
    """
    row = block_id[0]
    store = MemoryStore(_read_members(Path(files[row]), f"{variable}/"), read_only=True)
    values = np.asarray(zarr.open_array(store, path=variable, mode="r")[...])
    if values.dtype.kind == "T":
        values = values.astype(object)
    return values + values.dtype.type(shift[row]) if shift else values


def _read_members(path: Path, prefix: str) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.startswith(prefix)]
            # Reading a member to its end verifies its checksum.
            members = {name: cpu.Buffer.from_bytes(archive.read(name)) for name in names}
    except FileNotFoundError:
        raise StoreError(f"{path} is missing: it was removed, or the run was rolled back") from None
    except (zipfile.BadZipFile, EOFError, zlib.error, NotImplementedError) as error:
        raise _torn(path, error) from error
    if not any(name.endswith("zarr.json") for name in members):
        raise _torn(path, f"{prefix or 'zarr.json'} is not in it")
    return members


def _torn(path: Path, why: object) -> StoreError:
    return StoreError(
        f"{path} is torn or not a step ({why}): delete it to read the run without this step, "
        "or resume the run from a step before it"
    )


def round_mantissa(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Round float32 values to 12 explicit bits of mantissa, to nearest, ties to even.

    Parameters
    ----------
    values : ndarray of float32
        Finite or infinite.

    Returns
    -------
    ndarray of float32
        Within a relative error of 2**-13; infinities and zeros as they were.

    Examples
    --------
    >>> round_mantissa(np.float32([-1.0, -2.3456789, -np.inf]))
    array([-1. , -2.3457031, -inf], dtype=float32)
    """
    dropped = 23 - _KEPT_BITS
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    odd = (bits >> np.uint32(dropped)) & np.uint32(1)
    rounded = bits + (np.uint32((1 << (dropped - 1)) - 1) + odd)
    return (rounded & np.uint32(0xFFFFFFFF ^ ((1 << dropped) - 1))).view(np.float32)


def estimate_bytes(n_states: int, k: int) -> int:
    """Expect how many bytes a step takes on disk, compressed.

    A fit, from above, to steps over a vocabulary of 50 000 to 150 000 tokens (within 20 % for
    1000 states and more). A small vocabulary or confident models take less.

    Parameters
    ----------
    n_states : int
        Recorded positions a step.
    k : int
        Tokens kept a state.

    Returns
    -------
    int
        Bytes.

    Examples
    --------
    >>> estimate_bytes(100_000, 16), estimate_bytes(0, 16)
    (21724000, 24000)
    """
    # Ids and log-probs cost 12 bytes a state and rank, the rest 25 a state; the constant is the
    # metadata of some 20 arrays.
    return 24_000 + n_states * (25 + 12 * k)


@contextmanager
def explain_full_disk(doing: str) -> Iterator[None]:
    """Turn "no space left" into a StoreError that says while doing what."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise StoreError(
            f"disk full while {doing} ({error}): nothing half-written is left; "
            "free some space and resume the run"
        ) from error


def write_whole(path: Path, fill: Callable[[BinaryIO], object]) -> None:
    """Write a file so that it is there whole or not at all, also after a crash.

    Parameters
    ----------
    path : pathlib.Path
        The file; replaced where it exists.
    fill : callable
        Writes the content to an open binary file.
    """
    temporary = path.with_name(f"{TEMPORARY}{path.name}")
    try:
        with open(temporary, "wb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)  # makes the rename itself durable
    finally:
        os.close(directory)
