"""What reading a file may cost: one budget, which every reader of files from anybody goes through.

A file of n bytes may make its reader use `LEAST` + `TIMES` * n bytes of memory, and compressed
content may unpack to `LEAST` + `UNPACKED_TIMES` * n bytes. So the limits grow with what is on disk,
and only a file that claims far more than it holds is refused. Plain JSON needs no check: parsed, it
takes less than 100 times its size.
"""

from pathlib import Path
from typing import Any

LEAST = 2**26
TIMES = 1000
UNPACKED_TIMES = 100
MOST_LINE = 2**27
"""Bytes of a line of JSON, which holds a rollout or one logging step of them."""
MOST_YAML = 2**20
"""Characters of a configuration; PyYAML reads about 100,000 a second."""

# Bytes of memory for each of these in JSON, at most: characters, containers, and an entry of one.
_OF_CHARACTER, _OF_ENTRY = 4, 72
ROW = 232
"""Bytes of memory for a row of a file, at most, besides its fields."""
CSV_FIELD = 128
"""Bytes of memory for a field of a row of CSV, at most, besides its text."""
_OF_CONTAINER = {b"[": 64, b"{": 232}


class OverBudgetError(ValueError):
    """A file would take more memory than its size accounts for."""


def most_bytes(file_size: int) -> int:
    """Bytes of memory that the content of a file of some size may take.

    Examples
    --------
    >>> most_bytes(0), most_bytes(1_000_000)
    (67108864, 1067108864)
    """
    return LEAST + TIMES * file_size


def most_unpacked(file_size: int) -> int:
    """Bytes that a compressed file of some size may unpack to.

    Examples
    --------
    >>> most_unpacked(1_000_000)
    167108864
    """
    return LEAST + UNPACKED_TIMES * file_size


def parsed_bytes(text: bytes) -> int:
    """Bytes of memory that JSON or CSV takes when it is parsed, at most.

    Examples
    --------
    >>> parsed_bytes(b'{"step": 3}'), parsed_bytes(b"[[],[],[]]")
    (243, 410)
    """
    containers = sum(size * text.count(mark) for mark, size in _OF_CONTAINER.items())
    of_text = len(text) * (1 if text.isascii() else _OF_CHARACTER)
    return of_text + _OF_ENTRY * text.count(b",") + containers


def check_parsed(text: bytes, most: float) -> None:
    """Check that a text, which came out of a compressed file or a server, may be parsed.

    Raises
    ------
    OverBudgetError
        It would take more than `most` bytes.
    """
    if (needed := parsed_bytes(text)) > most:
        raise OverBudgetError(
            f"{len(text)} bytes of JSON that take up to {needed} bytes of memory; expected at most "
            f"{most}"
        )


def check_values(value: Any, path: Path) -> None:
    """Check that values which were loaded from a file are no larger than it accounts for.

    A tensor may claim more numbers than its storage has, and a list may stand in many places.

    Raises
    ------
    OverBudgetError
        They are larger.
    """
    most = left = most_bytes(path.stat().st_size)
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            waiting += one.values()
            left -= _OF_CONTAINER[b"{"] + _OF_ENTRY * len(one)
        elif isinstance(one, list | tuple | set | frozenset):
            waiting += one
            left -= _OF_CONTAINER[b"["] + _OF_ENTRY * len(one)
        elif isinstance(one, str | bytes | bytearray):
            left -= len(one)
        else:  # of a tensor or an array, each number becomes an object
            left -= _OF_ENTRY * _n_numbers(one)
        if left < 0:
            raise OverBudgetError(f"it holds more than {most} bytes of values")


def _n_numbers(value: Any) -> int:
    """Count the numbers of a tensor or an array; any other value is one."""
    count: Any = getattr(value, "numel", None)
    if callable(count):
        return int(count())  # pyright: ignore[reportArgumentType]
    size: Any = getattr(value, "size", 1)
    return size if isinstance(size, int) else 1
