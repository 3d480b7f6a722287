"""Encode a step as the members of a zarr-v3 group, and write these as a zip file.

zarr writes the same members (tests compare them), but takes over a millisecond per array, whatever
its size. A step has twenty arrays, and a small model's training step takes a quarter of a second.
"""

import json
import zipfile
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, BinaryIO

import numpy as np
import xarray as xr
from numcodecs.blosc import Blosc
from numcodecs.vlen import VLenUTF8
from numcodecs.zstd import Zstd
from numpy.typing import NDArray

from opdprobe.store.schema import COORDS, Step

_CHUNK = 131_072  # rows of a variable per chunk; other axes are never split
_FILL: dict[str, Any] = {"f": "NaN", "i": 0, "b": False, "O": ""}
_BLOSC = Blosc("lz4", clevel=5, shuffle=Blosc.BITSHUFFLE)
# Attributes may hold numpy numbers and arrays.
_JSON = json.JSONEncoder(separators=(",", ":"), default=lambda x: x.tolist())


def step_members(
    step: xr.Dataset | Step, attributes: Mapping[str, Any], **instead: NDArray[Any]
) -> dict[str, bytes]:
    """Encode a loaded step.

    Parameters
    ----------
    step : xarray.Dataset or Step
        In memory.
    attributes : mapping
        Attributes of the group, in place of the step's own.
    **instead : ndarray
        Values that replace those of a variable.

    Returns
    -------
    dict of str to bytes
        Members by name, in order: the group's metadata comes last, after all that it describes.
    """
    # xarray tells coordinates from data by this attribute; dimension coordinates it knows by name.
    dims = {dim for variable in step.variables.values() for dim in variable.dims}
    coordinates = sorted(name for name in COORDS if name in step.variables and name not in dims)
    members: dict[str, bytes] = {}
    for name in sorted(map(str, step.variables)):
        variable = step.variables[name]
        own = dict(variable.attrs)
        if "state" in variable.dims and name not in coordinates:
            own["coordinates"] = " ".join(coordinates)
        values = instead.get(name, variable.values)
        if values.dtype.kind in "UT":
            # zarr has a stable encoding for strings of variable length, none for fixed length.
            values = values.astype(object)
        shape = max(1, min(_CHUNK, len(values))), *values.shape[1:]
        for i, chunk in enumerate(_chunks(values, shape)):
            if chunk is not None:
                members[f"{name}/c/{i}{'/0' * (values.ndim - 1)}"] = chunk
        about = {
            "shape": values.shape,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": shape}},
            "attributes": own,
            "dimension_names": variable.dims,
        }
        members[f"{name}/zarr.json"] = _json(about)[:-1] + b"," + _about_dtype(values.dtype)[1:]
    members["zarr.json"] = _json({"attributes": attributes, "zarr_format": 3, "node_type": "group"})
    return members


def write_zip(members: Mapping[str, bytes], file: BinaryIO) -> None:
    """Write members to an uncompressed zip file.

    Parameters
    ----------
    members : mapping of str to bytes
        Content by name.
    file : binary file
        Open for writing, empty.
    """
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content)  # dated 1980, whenever it is written


def _chunks(values: NDArray[Any], shape: tuple[int, ...]):
    """Encode each block of rows; yield None for one that holds only the fill value."""
    fill = float("nan") if values.dtype.kind == "f" else _FILL[values.dtype.kind]
    for start in range(0, len(values), shape[0]):
        rows = values[start : start + shape[0]]
        if (np.isnan(rows) if values.dtype.kind == "f" else rows == fill).all():
            yield None
            continue
        if len(rows) < shape[0]:  # a chunk on disk always has the full shape
            rest = np.full((shape[0] - len(rows), *shape[1:]), fill, values.dtype)
            rows = np.concatenate([rows, rest])
        if values.dtype == object:
            yield _encode_text(*rows.ravel())
        else:
            yield bytes(_BLOSC.encode(np.ascontiguousarray(rows)))


@lru_cache(4)  # every step has the same labels
def _encode_text(*words: str) -> bytes:
    return bytes(Zstd(level=0).encode(VLenUTF8().encode(np.array(words, object))))


@lru_cache(16)
def _about_dtype(dtype: np.dtype) -> bytes:
    return _json(
        {
            "data_type": "string" if dtype.kind == "O" else dtype.name,
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": _FILL[dtype.kind],
            "codecs": _codecs(dtype),
            "zarr_format": 3,
            "node_type": "array",
            "storage_transformers": [],
        }
    )


def _codecs(dtype: np.dtype) -> list[dict[str, Any]]:
    if dtype.kind == "O":
        zstd = {"name": "zstd", "configuration": {"level": 0, "checksum": False}}
        return [{"name": "vlen-utf8", "configuration": {}}, zstd]
    raw: dict[str, Any] = {"name": "bytes"}
    if dtype.itemsize > 1:
        raw["configuration"] = {"endian": "little"}
    settings = {"typesize": dtype.itemsize, "cname": "lz4", "clevel": 5}
    settings |= {"shuffle": "bitshuffle", "blocksize": 0}
    return [raw, {"name": "blosc", "configuration": settings}]


def _json(value: Any) -> bytes:
    return _JSON.encode(value).encode()
