"""A GGUF file is parsed once, not once for each thing that transformers reads from it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any


@contextmanager
def parsed_once() -> Iterator[None]:
    """Keep what the gguf package has parsed, for the block and for later blocks.

    transformers parses the whole file for the configuration, again for the weights and again for
    the tokenizer, a Python loop over the vocabulary each time; and it builds the table of weight
    names anew for each module. Of SmolLM2's file this is half of the time that loading takes. The
    last file is kept: its pages are mapped, not read into memory.
    """
    try:
        import gguf
    except ImportError:  # the caller says which package is missing
        yield
        return
    package: Any = gguf
    reader, names = package.GGUFReader, package.get_tensor_name_map

    def read(path: Any, mode: str = "r") -> Any:
        if mode != "r":
            return reader(path, mode)
        state = os.stat(path)
        return _read(reader, os.fspath(path), state.st_ino, state.st_size, state.st_mtime_ns)

    package.GGUFReader, package.get_tensor_name_map = read, lru_cache(maxsize=1)(names)
    try:
        yield
    finally:
        package.GGUFReader, package.get_tensor_name_map = reader, names


@lru_cache(maxsize=1)
def _read(reader: Any, path: str, *_state: int) -> Any:
    """Parse a file; another state of the file is another call."""
    return reader(path)
