"""Read a file of JSON lines that is still being written."""

import io
import logging
import os
from collections.abc import Callable
from pathlib import Path

from opdprobe.rollout.row_files import NotRows
from opdprobe.store.safe_text import parse_json

logger = logging.getLogger("opdprobe")

_BLOCK = 2**16


class GrowingLines(io.RawIOBase):
    """The whole lines of a file: one that is being written is waited for.

    Parameters
    ----------
    path
        The file.
    at_end
        Called at the end of the file. Returns True if no more will come; otherwise it waits for a
        while and returns False. What is left then of a last line without its end is read if it is
        JSON, and left out with a note in the log if it is torn.
    most
        Bytes of a line from which it is passed on unfinished, to be refused.

    Raises
    ------
    NotRows
        On reading: the file was shortened meanwhile.
    """

    def __init__(self, path: Path, at_end: Callable[[], bool], most: int):
        self._path, self._at_end, self._most = path, at_end, most
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115  # closed by `close`
        self._whole = memoryview(b"")
        self._begun: list[bytes] = []  # of a line that has not ended yet
        self._held = 0

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        """Read whole lines, as far as they fit; 0 bytes at the end."""
        while not self._whole:
            data = self._file.read(_BLOCK)
            if data:
                self._take(data)
            elif os.fstat(self._file.fileno()).st_size < self._file.tell():
                raise NotRows("was shortened while it was read: import it again from its start.")
            elif self._at_end():
                self._finish()
                break
        n = min(len(buffer), len(self._whole))
        buffer[:n] = self._whole[:n]
        self._whole = self._whole[n:]
        return n

    def _take(self, data: bytes) -> None:
        whole, end, rest = data.rpartition(b"\n")
        if end:
            self._whole = memoryview(b"".join([*self._begun, whole, end]))
            self._begun, self._held = [], 0
        self._begun.append(rest)
        self._held += len(rest)
        if self._held > self._most:
            self._whole = memoryview(bytes(self._whole) + b"".join(self._begun))
            self._begun, self._held = [], 0

    def _finish(self) -> None:
        rest, self._begun, self._held = b"".join(self._begun), [], 0
        try:
            parse_json(rest.decode())
        except ValueError:  # also of what is not UTF-8
            if rest.strip():
                logger.warning(
                    "%s: its last line is half-written (%d bytes), and is left out.",
                    *(self._path, len(rest)),
                )
        else:
            self._whole = memoryview(rest)
