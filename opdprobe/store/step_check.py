"""Check that a step file has exactly the form that opdprobe writes, before anything is decoded.

A run may come from anywhere, and `opdprobe.store.step_decode` trusts what it reads: it would fill
an array of a petabyte that has no chunk, allocate as many texts as a chunk announces, and decode
every chunk in the one encoding it knows, whatever the metadata names. So only the written form
passes: arrays of the schema, in one of two encodings, of sizes that the file can account for.
"""

import math
import re
import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numcodecs.vlen import VLenUTF8
from numcodecs.zstd import Zstd

from opdprobe.errors import shown
from opdprobe.store.budget import most_bytes
from opdprobe.store.safe_text import parse_json
from opdprobe.store.schema import VARIABLES, check_version

_MEMBER = re.compile(r"zarr\.json|[a-z_]+/(?:zarr\.json|c(?:/\d{1,18})*)", re.ASCII)
_CHUNK_KEYS = {"name": "default", "configuration": {"separator": "/"}}, {"name": "default"}
_FILL = {"f": ("NaN", 0.0), "i": (0,), "b": (False,), "U": ("",)}
# Besides that of the schema: many ranks, and rollouts of which it is not known.
_OTHER_TYPES = {"match": ["int16"], "finished": ["float32"]}
_GROUP_KEYS = {"attributes", "zarr_format", "node_type", "consolidated_metadata"}
_ARRAY_KEYS = {
    *("shape", "data_type", "chunk_grid", "chunk_key_encoding", "fill_value", "codecs"),
    *("attributes", "dimension_names", "zarr_format", "node_type", "storage_transformers"),
}
_ATTRIBUTES = {"units", "long_name", "coordinates"}
_MOST_CHUNKS = 10_000  # of a variable of a small file; also those that are left out
_ROW_BYTES = 4  # of a state or a rollout, at the least


class _Array(NamedTuple):
    """Metadata of one variable."""

    dtype: np.dtype
    shape: tuple[int, ...]
    chunks: tuple[int, ...]

    @property
    def n_bytes(self) -> int:
        # Texts are decoded as Python objects: a pointer each, however short they are.
        return math.prod(self.shape) * (self.dtype.itemsize or 8)

    @property
    def n_chunks(self) -> int:
        return math.prod(-(-size // n) for size, n in zip(self.shape, self.chunks, strict=True))


def check_counts(counts: tuple[int, int], file_size: int) -> None:
    """Check that a file of some size can hold so many states and rollouts.

    Raises
    ------
    ValueError
        It cannot.
    """
    if max(counts) * _ROW_BYTES > most_bytes(file_size):
        raise ValueError(
            f"it claims {counts[0]} states and {counts[1]} rollouts, too many for a file of "
            f"{file_size} bytes"
        )


def is_member(name: str) -> bool:
    """Return whether a step file may have a member of this name."""
    return _MEMBER.fullmatch(name) is not None


def check_members(members: Mapping[str, bytes], file_size: int, where: str) -> None:
    """Check the group and the variables of a step, as its file stores them.

    Parameters
    ----------
    members : mapping of str to bytes
        The group's ``zarr.json``, and the metadata and chunks of any of its variables.
    file_size : int
        Bytes of the file.
    where : str
        What the message calls the file if its schema is newer.

    Raises
    ------
    StoreError
        The schema is newer.
    ValueError
        Anything else is not as `opdprobe.store.step` writes it; the message says what.
    """
    counts = read_group(members["zarr.json"], where)
    arrays = {
        name.partition("/")[0]: _read_array(name.partition("/")[0], content)
        for name, content in members.items()
        if name.endswith("/zarr.json")
    }
    total = sum(array.n_bytes for array in arrays.values())
    if total > most_bytes(file_size):
        raise ValueError(f"its variables take {total} bytes, too many for a file of {file_size}")
    sizes: dict[str, int] = {"state": counts[0], "rollout": counts[1]}
    for name, array in arrays.items():
        if array.n_chunks > _MOST_CHUNKS + file_size // 100:
            raise ValueError(f"{name} has {array.n_chunks} chunks, too many for its file")
        for dim, size in zip(VARIABLES[name].dims, array.shape, strict=True):
            if sizes.setdefault(dim, size) != size:
                raise ValueError(f"{name} has {size} {dim}s, expected {sizes[dim]}")
    for name, content in members.items():
        variable = name.partition("/")[0]
        if not name.endswith("zarr.json"):
            if variable not in arrays:
                raise ValueError(f"{variable}/zarr.json is not in it")
            _check_chunk(name, content, arrays[variable])


def read_group(content: bytes, where: str) -> tuple[int, int]:
    """Read the numbers of states and rollouts of a step from its group's metadata.

    Raises
    ------
    StoreError
        The schema is newer.
    ValueError
        This is not the metadata of a step.
    """
    group = _object("zarr.json", content, _GROUP_KEYS)
    attributes = group.get("attributes")
    if group.get("node_type") != "group":
        raise ValueError("zarr.json does not describe a group")
    if not isinstance(attributes, dict):
        raise ValueError("zarr.json has no attributes")
    check_version(attributes.get("schema_version"), where)
    counts = attributes.get("n_state"), attributes.get("n_rollout")
    if not all(_is_count(count) for count in counts):
        raise ValueError(f"n_state and n_rollout are {shown(counts)}, expected two counts")
    return counts  # pyright: ignore[reportReturnType]  # checked on the line above


def _read_array(name: str, content: bytes) -> _Array:
    if name not in VARIABLES:
        raise ValueError(f"{name} is not a variable of the schema")
    variable, where = VARIABLES[name], f"{name}/zarr.json"
    meta = _object(where, content, _ARRAY_KEYS)
    wanted = [variable.dtype.replace("str", "string"), *_OTHER_TYPES.get(name, [])]
    attributes, data_type = meta.get("attributes"), meta.get("data_type")
    if isinstance(attributes, dict) and attributes.get("dtype") == "bool" == wanted[0]:
        # xarray before 2026.9 wrote booleans as numbers, marked by this attribute.
        wanted, attributes = ["int8"], {k: v for k, v in attributes.items() if k != "dtype"}
    if data_type not in wanted:
        raise ValueError(f"{name} has type {shown(data_type)}, expected {' or '.join(wanted)}")
    if meta.get("dimension_names") != list(variable.dims):
        dims = shown(meta.get("dimension_names"))
        raise ValueError(f"{name} has dims {dims}, expected {list(variable.dims)}")
    dtype = np.dtype("U" if data_type == "string" else data_type)
    if (wrong := _unlike_written(meta, attributes, dtype, len(variable.dims))) is not None:
        found = shown(meta.get(wrong))
        raise ValueError(f"{where} has {wrong} {found}, which opdprobe does not write")
    chunks = meta["chunk_grid"]["configuration"]["chunk_shape"]
    return _Array(dtype, tuple(meta["shape"]), tuple(chunks))


def _unlike_written(
    meta: dict[str, Any], attributes: Any, dtype: np.dtype, n_dims: int
) -> str | None:
    """Name the first field of a variable's metadata that `opdprobe.store.step` does not write."""
    if meta.get("node_type") != "array":
        return "node_type"
    codecs = meta.get("codecs")
    if not isinstance(codecs, list) or [_get(codec, "name") for codec in codecs] != _codecs(dtype):
        return "codecs"
    if not _are_counts(meta.get("shape"), n_dims):
        return "shape"
    grid = meta.get("chunk_grid")
    chunks = _get(grid, "configuration", "chunk_shape")
    if _get(grid, "name") != "regular" or not _are_counts(chunks, n_dims) or 0 in chunks:
        return "chunk_grid"
    if any(n > max(1, size) for n, size in zip(chunks, meta["shape"], strict=True)):
        return "chunk_grid"  # a chunk that is left out is made in full
    if meta.get("chunk_key_encoding") not in _CHUNK_KEYS:
        return "chunk_key_encoding"
    if meta.get("storage_transformers"):
        return "storage_transformers"
    if meta.get("fill_value") not in _FILL[dtype.kind]:
        return "fill_value"
    return None if _are_texts(attributes) else "attributes"


def _codecs(dtype: np.dtype) -> list[str]:
    """Names of zarr's codecs in the order of writing."""
    return ["vlen-utf8", "zstd"] if dtype.kind == "U" else ["bytes", "blosc"]


def _check_chunk(name: str, content: bytes, array: _Array) -> None:
    place = [int(index) for index in name.split("/")[2:]]
    ends = [-(-size // chunk) for size, chunk in zip(array.shape, array.chunks, strict=True)]
    if len(place) != len(ends) or any(i >= end for i, end in zip(place, ends, strict=True)):
        raise ValueError(f"{name} is outside the variable's shape {array.shape}")
    items = math.prod(array.chunks)
    if array.dtype.kind == "U":
        if _zstd_size(content) > most_bytes(len(content)):
            raise ValueError(f"{name} would take {_zstd_size(content)} bytes")
        try:
            text = Zstd().decode(content)
            # The decoder allocates as many texts as the chunk says it has.
            if len(text) < 4 or struct.unpack("<I", text[:4])[0] != items:
                raise ValueError(f"not {items} texts")
            VLenUTF8().decode(text)
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"{name} does not decode: {error}") from error
        return
    if len(content) < 16:
        raise ValueError(f"{name} is cut off")
    # Blosc's header: versions and flags, then the sizes unpacked, of a block, and packed.
    unpacked, _, packed = struct.unpack("<III", content[4:16])
    if unpacked != items * array.dtype.itemsize or packed != len(content):
        raise ValueError(f"{name} is not a chunk of {items} {array.dtype}")


def _zstd_size(content: bytes) -> int:
    """Unpacked size that a zstd frame announces; ValueError if it announces none."""
    if len(content) < 6 or content[:4] != b"\x28\xb5\x2f\xfd":
        raise ValueError("a chunk of text is not a zstd frame")
    flags = content[4]
    single, n_size = bool(flags & 0x20), (0, 2, 4, 8)[flags >> 6]
    start = 5 + (not single) + (0, 1, 2, 4)[flags & 3]
    n_size = n_size or int(single)
    if not n_size or len(content) < start + n_size:
        raise ValueError("a chunk of text does not say its size")
    size = int.from_bytes(content[start : start + n_size], "little")
    return size + 256 if n_size == 2 else size


def _object(name: str, content: bytes, keys: set[str]) -> dict[str, Any]:
    try:
        found = parse_json(content)
    except ValueError as error:
        raise ValueError(f"{name} is not JSON: {error}") from error
    if not isinstance(found, dict) or found.get("zarr_format") != 3:
        raise ValueError(f"{name} is not of zarr format 3")
    if unknown := sorted(set(found) - keys):
        raise ValueError(f"{name} has an unknown field {shown(unknown[0])}")
    return found


def _get(value: Any, *keys: str) -> Any:
    """Return ``value[key][key]…``, or None if one of them is not a mapping or lacks the key."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31


def _are_counts(values: Any, n: int) -> bool:
    return isinstance(values, list) and len(values) == n and all(map(_is_count, values))


def _are_texts(attributes: Any) -> bool:
    return (
        isinstance(attributes, dict)
        and attributes.keys() <= _ATTRIBUTES
        and all(isinstance(value, str) for value in attributes.values())
    )
