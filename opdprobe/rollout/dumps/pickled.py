"""Load what `torch.save` wrote, without running what a pickle may hold."""

from __future__ import annotations

import pickle
import re
import struct
import warnings
import zipfile
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from opdprobe.errors import RolloutError, needs_train_extra
from opdprobe.store.budget import check_values
from opdprobe.store.files import check_stored

# How torch names what it does not build.
_OBJECT = re.compile(r"GLOBAL (\S+)|got <class '([^']+)'>")


def load(path: Path, name: str | None = None) -> Any:
    """Read a file of plain values, tensors and NumPy arrays; refuse any other object.

    Parameters
    ----------
    path
        A file that `torch.save` wrote.
    name
        What messages call it; by default its path.

    Raises
    ------
    RolloutError
        The file holds another kind of object, or is not readable.
    MissingExtraError
        torch (``opdprobe[train]``) is not installed.
    """
    name = name or str(path)
    with needs_train_extra(f"reading {name}"):
        import torch
    arrays = [np.ndarray, np.dtype, *(type(np.dtype(name)) for name in "?bBhHiIlLqQefd")]
    # What rebuilds an array and a NumPy scalar; older files name the module without underscore.
    core: Any = import_module("numpy._core.multiarray")
    rebuild = [
        (getattr(core, name), f"numpy.{module}.multiarray.{name}")
        for name in ("_reconstruct", "scalar")
        for module in ("_core", "core")
    ]
    try:
        check_stored(path)
        with torch.serialization.safe_globals([*arrays, *rebuild]), warnings.catch_warnings():
            # Of a pickle protocol that torch itself does not write.
            warnings.filterwarnings("ignore", "Detected pickle protocol")
            found = torch.load(path, map_location="cpu", weights_only=True)
        check_values(found, path)
        return found
    except pickle.UnpicklingError as error:
        named = _OBJECT.search(str(error))
        what = (
            f"an object of {named[1] or named[2]}"
            if named
            else "something that torch.save does not write"
        )
        raise RolloutError(
            f"{name}: the pickle holds {what}; only plain values, tensors and NumPy arrays are "
            "read, since any other object can run code: save it without."
        ) from error
    except (
        OSError,
        EOFError,
        RuntimeError,
        ValueError,
        LookupError,
        AttributeError,
        TypeError,
        ArithmeticError,
        MemoryError,
        AssertionError,
        zipfile.BadZipFile,
        struct.error,
    ) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise RolloutError(
            f"{name}: not a readable torch file ({first}): check that it is complete."
        ) from error
