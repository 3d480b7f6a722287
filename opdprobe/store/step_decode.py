"""Read a step file: check its members and decode rows of its variables.

zarr's own reader takes about 10 ms per step, whatever the step's size. That is nothing for a single
step, but most of the time of a curve through many small ones; so rows are decoded here, from the
one form that `opdprobe.store.step_check` accepts.
"""

import errno
import json
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numcodecs.blosc import Blosc
from numcodecs.vlen import VLenUTF8
from numcodecs.zstd import Zstd
from numpy.typing import NDArray

from opdprobe.errors import StoreError, shown
from opdprobe.store.budget import most_bytes
from opdprobe.store.files import within
from opdprobe.store.schema import required
from opdprobe.store.step_check import (
    check_counts,
    check_members,
    is_member,
    read_group,
)

# What zipfile raises for a torn file, and ValueError for one that was never a step.
_UNREADABLE = (
    *(zipfile.BadZipFile, EOFError, zlib.error, NotImplementedError),
    *(IsADirectoryError, ValueError, RuntimeError, struct.error, OverflowError),
)
_ZIP64_SIZE = 2**31  # size of a file from which on members get extra fields


class MissingStepError(StoreError):
    """A step file does not exist."""


class StepArchive:
    """A step file opened for reading; made by `open_archive`.

    Attributes
    ----------
    path : pathlib.Path
        The file.
    n_state, n_rollout : int
        Numbers of states and rollouts of the step.
    attributes : dict
        Attributes of the step.
    variables : list of str
        Names of its variables, in no particular order.
    most_bytes : int
        Bytes that its variables may take in memory.
    """

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        self._size = file.seek(0, 2)
        self._zip = zipfile.ZipFile(file)
        self._members = {m.filename: m for m in self._zip.infolist() if not m.is_dir()}
        if unknown := [name for name in self._members if not is_member(name)]:
            raise ValueError(f"it has a member called {shown(unknown[0])}")
        infos = self._members.values()
        if sum(m.file_size for m in infos) > self._size or any(m.compress_type for m in infos):
            raise ValueError("its members are compressed, or overlap")
        # A flipped bit in the length of a comment hides the members after it, and a missing chunk
        # would be read as fill values.
        if any(m.comment or (m.extra and self._size < _ZIP64_SIZE) for m in infos):
            raise ValueError("its members carry comments")
        if "zarr.json" not in self._members:
            raise ValueError("zarr.json is not in it")
        self._forms: dict[str, dict[str, Any]] = {}
        self._group = self._zip.read("zarr.json")
        self.n_state, self.n_rollout = read_group(self._group, str(path))
        check_counts((self.n_state, self.n_rollout), self._size)
        self.most_bytes = most_bytes(self._size)
        self.attributes = json.loads(self._group)["attributes"]
        self.variables = [
            name.split("/")[0] for name in self._members if name.endswith("/zarr.json")
        ]
        if missing := [name for name in required(self.variables) if name not in self.variables]:
            raise ValueError(f"{missing[0]} is not in it")

    def members(self, *prefixes: str) -> dict[str, bytes]:
        """Read and check the group's metadata and all members whose names begin with a prefix.

        Raises
        ------
        StoreError
            The file is torn, or not a step.
        """
        with reading(self.path):
            # Reading a member to its end verifies its checksum.
            members = {"zarr.json": self._group} | {
                name: self._zip.read(member)
                for name, member in self._members.items()
                if name.startswith(prefixes) and name != "zarr.json"
            }
            check_members(members, self._size, str(self.path))
        return members

    def check_sizes(self) -> None:
        """Check by their metadata that all variables agree in size and fit in memory.

        Raises
        ------
        StoreError
            They do not.
        """
        self.members(*map(self._form_name, self.variables))

    def form(self, variable: str) -> dict[str, Any]:
        """Read the metadata of a variable, as it stands in its ``zarr.json``."""
        if variable not in self._forms:
            name = self._form_name(variable)
            self._forms[variable] = _read_form(self.members(name)[name])
        return self._forms[variable]

    def _form_name(self, variable: str) -> str:
        name = f"{variable}/zarr.json"
        if name not in self._members:
            raise torn(self.path, f"{name} is not in it")
        return name

    def rows(self, variable: str, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Decode rows of a variable; reads only the chunks that hold them.

        Parameters
        ----------
        variable : str
            One of `variables`.
        start, stop : int
            Range of rows, `stop` exclusive. Default: all.

        Returns
        -------
        ndarray
            The rows, possibly read-only; text as objects.

        Raises
        ------
        StoreError
            The file is torn, or not a step.
        """
        if stop is None:  # metadata and chunks at once
            members = self.members(f"{variable}/")
            meta = self._forms[variable] = _read_form(members[self._form_name(variable)])
            stop = int(meta["shape"][0])
            names = _chunk_names(variable, meta, start, stop)
        else:
            meta = self.form(variable)
            names = _chunk_names(variable, meta, start, stop)
            members = self.members(self._form_name(variable), *names)
        with reading(self.path):
            (size, *others), rest = _chunk_shape(meta), meta["shape"][1:]
            if any(chunk < length for chunk, length in zip(others, rest, strict=True)):
                raise ValueError(f"{variable} is split along an axis other than its first")
            blocks = [_decode(members.get(name), meta) for name in names]
            blocks = [block[(slice(None), *map(slice, rest))] for block in blocks]
        joined = blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
        skipped = start // size * size
        return joined[start - skipped : stop - skipped]


@contextmanager
def open_archive(path: Path) -> Iterator[StepArchive]:
    """Open a step file; it is closed at the end of the block.

    Raises
    ------
    StoreError
        The file is missing, torn, or not a step.
    """
    with ExitStack() as stack:
        with reading(path):
            file = stack.enter_context(within(path, path.parent.parent).open("rb"))
            archive = StepArchive(path, file)  # pyright: ignore[reportArgumentType]  # UPath's open
        yield archive


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn errors in reading a step file into a StoreError that names the file."""
    try:
        yield
    except FileNotFoundError:
        raise MissingStepError(
            f"{path} is missing: it was removed, or the run was rolled back."
        ) from None
    except _UNREADABLE as error:
        raise torn(path, error) from error
    except OSError as error:
        if error.errno != errno.EINVAL:  # a member that would begin before the file does
            raise
        raise torn(path, error) from error


def torn(path: Path, why: object) -> StoreError:
    """Make the error for a torn or foreign file, which says what to do."""
    return StoreError(
        f"{path} is torn or not a step ({why}): delete it to read the run without this step, "
        "or resume the run from a step before it."
    )


def _read_form(content: bytes) -> dict[str, Any]:
    meta = json.loads(content)
    if meta["attributes"].get("dtype") == "bool":  # written as int8 by older xarray
        meta["data_type"] = "bool"
    return meta


def _chunk_shape(meta: dict[str, Any]) -> list[int]:
    return meta["chunk_grid"]["configuration"]["chunk_shape"]


def _chunk_names(variable: str, meta: dict[str, Any], start: int, stop: int) -> list[str]:
    """Name the chunks that hold the rows."""
    size, *others = _chunk_shape(meta)
    last = max(start, stop - 1) // size
    return [f"{variable}/c/{i}{'/0' * len(others)}" for i in range(start // size, last + 1)]


def _decode(chunk: bytes | None, meta: dict[str, Any]) -> NDArray[Any]:
    """Decode one chunk; None stands for one in which every value is the fill value."""
    shape = _chunk_shape(meta)
    if meta["data_type"] == "string":
        if chunk is None:
            return np.full(shape, meta["fill_value"], object)
        texts = VLenUTF8().decode(Zstd().decode(chunk))
        # numpy's texts lose them: two ids would become one.
        if "\0" in "".join(texts) and any(text.endswith("\0") for text in texts):
            raise ValueError("a text in it ends with a NUL")
        return texts.reshape(shape)
    dtype = np.dtype(meta["data_type"])
    if chunk is None:
        return np.full(shape, meta["fill_value"], dtype)
    return np.frombuffer(Blosc().decode(chunk), dtype).reshape(shape)
