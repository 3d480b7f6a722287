"""Check that a directory may be written: it holds one thing, made with one set of settings."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from opdprobe.errors import StoreError
from opdprobe.store.files import TEMPORARY


def refuse_other_files(
    directory: Path, marker: str, kind: str, *, beginnings: tuple[str, ...] = ()
) -> None:
    """Raise unless a directory is absent, empty or holds what is to be written; changes nothing.

    Parameters
    ----------
    directory : pathlib.Path
        Directory to be written to.
    marker : str
        Name of the file that identifies the directory's content.
    kind : str
        What a directory with that file is, such as "run"; for the message.
    beginnings : tuple of str
        Other names that a process may leave if it is killed before it writes the marker.

    Raises
    ------
    StoreError
        The path is a file, or the directory holds other files.
    """
    if directory.exists() and not directory.is_dir():
        raise StoreError(f"{directory} is a file; expected a directory: choose another path.")
    if not directory.exists() or (directory / marker).exists():
        return
    for entry in sorted(directory.iterdir()):
        if entry.name not in beginnings and not entry.name.startswith(TEMPORARY):
            raise StoreError(
                f"{directory} is not empty ({entry.name} is in it) and not a {kind}: "
                "choose a new or an empty directory."
            )


# Set since 0.2: what an older run or cold start lacks is not a difference.
_NEW = ("chat_template", "dtype", "attn_implementation", "mixed_precision")
# Describe the code and the machine, not the experiment.
_MAY_CHANGE = ("schema_version", "versions", "commit", "device")


def differences(
    old: Mapping[str, Any], new: Mapping[str, Any], ignore: tuple[str, ...] = ()
) -> str:
    """List what differs between two nested mappings of settings, key by key.

    The versions, the commit and the device may differ, and what is in `ignore`, and a precision or
    a chat template that the old mapping does not tell. A ``name`` may be another path to the same
    file or directory.

    Examples
    --------
    >>> differences({"a": {"b": 1}, "c": 0}, {"a": {"b": 2}, "c": 0})
    'a.b: 1 before, 2 now'
    """
    left_out = {*_MAY_CHANGE, *ignore, *(name for name in _NEW if name not in old)}
    before = {key: _shown(key, value) for key, value in _flatten(old).items()}
    now = {key: _shown(key, value) for key, value in _flatten(new).items()}
    return "; ".join(
        f"{key}: {before.get(key, 'absent')} before, {now.get(key, 'absent')} now"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and key.split(".")[0] not in left_out
    )


def _shown(key: str, value: Any) -> str:
    """Show a value, a name that is a path as the place that it leads to."""
    # Of os.path, since a name may be too long for a path, or hold what no path may.
    if key.split(".")[-1] == "name" and isinstance(value, str) and os.path.exists(value):
        value = os.path.realpath(value)
    return repr(value)


def _flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping) and value:
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
