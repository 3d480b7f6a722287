"""Write files and directories completely or not at all, and read files of JSON lines.

Content has a temporary name until all of it is on disk, so that a crash leaves the old or the new
content, never a part. Temporary names begin with `TEMPORARY`. Nothing is written or deleted through
a link, which may lead out of a directory that somebody else made.
"""

import errno
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO

from opdprobe.errors import StoreError, shown
from opdprobe.store.safe_text import is_number, parse_json

TEMPORARY = ".tmp-"


@contextmanager
def explain_unwritable(doing: str) -> Iterator[None]:
    """Turn a full disk or a missing permission into a StoreError that says what was being done."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreError(
                f"disk full while {doing} ({error}): nothing half-written is left; "
                "free some space and run this again."
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise StoreError(
                f"no permission for {doing} ({error}): change the directory's permissions, or "
                "choose another directory."
            ) from error
        raise


class OddFileError(OSError, ValueError):
    """A pipe, a socket or a device is in the place of a file."""


def regular(path: Path) -> Path:
    """Return the path of a file to read, unless reading it might never end.

    Raises
    ------
    OddFileError
        It is a pipe, a socket or a device, or a link to one.
    """
    try:
        mode = os.stat(path).st_mode
    except (OSError, TypeError, ValueError, NotImplementedError):
        return path  # reading it will say what is wrong, or it is not on this disk
    if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
        raise OddFileError(f"{path.name} is a pipe, a socket or a device, and no file")
    return path


def refuse_links(*paths: Path) -> None:
    """Raise if one of the paths, which are to be written, is a link or an odd file.

    Links above the last name of a path are a user's own.

    Raises
    ------
    StoreError
        Names the link, or the pipe, socket or device.
    """
    for path in paths:
        try:
            mode = path.lstat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            continue
        if stat.S_ISLNK(mode):
            raise StoreError(
                f"{path} is a link to {os.readlink(path)}, which is not followed: remove the link, "
                "or write to another place."
            )
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise StoreError(f"{path} is neither a file nor a directory: remove it.")


def open_append(path: Path, *, buffering: int = -1) -> IO[bytes]:
    """Open a file for appending, unless it is a link.

    Raises
    ------
    StoreError
        `path` is a link or an odd file.
    """
    refuse_links(path)

    def opener(name: str, flags: int) -> int:
        # Fails for a link that was made since; Windows has no such flag.
        return os.open(name, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)

    return open(path, "ab", buffering=buffering, opener=opener)


def write_whole(path: Path, fill: Callable[[BinaryIO], object]) -> None:
    """Write a file completely or not at all, even after a crash.

    Parameters
    ----------
    path : pathlib.Path
        The file; replaced if it exists. Its directory must exist.
    fill : callable
        Writes the content to an open binary file.

    Raises
    ------
    StoreError
        The disk is full, or `path` may not be written, or is a link or a directory.
    """
    refuse_links(path)
    if path.is_dir():
        raise StoreError(f"{path} is a directory; expected the name of a file to write.")
    temporary = path.with_name(f"{TEMPORARY}{path.name}")
    with explain_unwritable(f"writing {path}"):
        temporary.unlink(missing_ok=True)
        try:
            # "x" refuses to follow a link, which could redirect the write.
            with open(temporary, "xb") as file:
                fill(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        put_on_disk(path.parent)  # makes the rename itself durable


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file, as `write_whole` does."""
    write_whole(path, lambda file: file.write(text.encode()))


def put_on_disk(path: Path) -> None:
    """Wait until a file's content, or a directory's list of names, is on disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows cannot open a directory
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def write_directory(path: Path) -> Iterator[Path]:
    """Fill a directory so that it appears completely or not at all, even after a crash.

    Parameters
    ----------
    path : pathlib.Path
        The directory; replaced if it exists (for a moment, neither version has the name). Missing
        parents are created.

    Yields
    ------
    pathlib.Path
        An empty directory to fill in the block; it becomes `path` at the end of the block.

    Raises
    ------
    StoreError
        `path` is a link; or an OSError occurred, in the block or here: the disk is full, or may not
        be written.
    """
    refuse_links(path)
    temporary, old = path.with_name(f"{TEMPORARY}{path.name}"), _old(path)
    try:
        for left in (temporary, old):  # left by a process that was killed
            _remove(left)
        temporary.mkdir(parents=True)
        yield temporary
        for file in (*temporary.rglob("*"), temporary):
            put_on_disk(file)
        if path.exists():
            os.replace(path, old)
        os.replace(temporary, path)
        put_on_disk(path.parent)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise StoreError(
            f"could not write {path} ({error}): no part of it is left; free some space and run "
            "this again."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_directory(path: Path) -> None:
    """Delete a directory, renaming it first so that a partial one never has its name.

    Of a link, only the link is deleted.
    """
    if path.is_symlink():
        path.unlink()
        return
    os.replace(path, _old(path))
    shutil.rmtree(_old(path))


def remove_temporaries(directory: Path) -> None:
    """Delete the temporary files and directories that killed processes left in a directory."""
    for left in directory.glob(f"{TEMPORARY}*"):
        _remove(left)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read a file of JSON lines, each a dict; an incomplete last line is left out.

    Returns
    -------
    list of dict
        Empty if the file does not exist.

    Raises
    ------
    StoreError
        The file is not UTF-8, or a line, which the message names, is not a JSON object.
    """
    return _parsed(path, _object)


def read_entries(path: Path) -> list[dict[str, Any]]:
    """Read a file of metrics or evaluations, as `read_lines`; each line has a ``step``."""
    return _parsed(path, _entry)


class Tail:
    """Read what was appended to a file of metrics or evaluations since the last time.

    Parameters
    ----------
    path : pathlib.Path
        The file; it need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._forget()

    def _forget(self) -> None:
        self._inode = 0
        self._offset = 0
        self._lines = 0
        self._last = b""  # the last line that was read

    def read(self) -> tuple[list[dict[str, Any]], bool]:
        """Read the new entries; an incomplete last line is left for the next time.

        Returns
        -------
        entries : list of dict
            As `read_entries` returns them.
        anew : bool
            Whether the file is another one than before, or was shortened or removed: the entries
            of before do not count, and these begin at the first line.

        Raises
        ------
        StoreError
            As for `read_entries`.
        """
        if not self.path.exists():
            anew = self._offset > 0
            self._forget()
            return [], anew
        try:
            regular(self.path)
        except OddFileError as error:
            raise StoreError(f"{self.path} cannot be read ({error}): restore the file.") from error
        with open(self.path, "rb") as file:
            inode = os.fstat(file.fileno()).st_ino
            file.seek(max(self._offset - len(self._last), 0))
            same = inode == self._inode and file.read(len(self._last)) == self._last
            anew = not same and self._offset > 0
            if not same:
                self._forget()
                file.seek(0)
            raw = file.read()
        raw = raw[: raw.rfind(b"\n") + 1]
        try:
            text = raw.decode()
        except UnicodeDecodeError as error:
            raise StoreError(
                f"{self.path} is not UTF-8 text ({error}): restore the file."
            ) from error
        entries = _parsed_text(self.path, text, _entry, self._lines + 1)
        self._inode = inode
        if raw:
            self._offset += len(raw)
            self._lines += len(entries)
            self._last = raw[raw.rfind(b"\n", 0, -1) + 1 :]
        return entries, anew


def _remove(left: Path) -> None:
    """Delete what was left under a temporary name: a directory, a file or a link itself."""
    if left.is_dir() and not left.is_symlink():
        shutil.rmtree(left, ignore_errors=True)
    else:
        left.unlink(missing_ok=True)


def _old(path: Path) -> Path:
    return path.with_name(f"{TEMPORARY}old-{path.name}")


def _parsed(path: Path, check: Callable[[Any], dict[str, Any]]) -> list[dict[str, Any]]:
    try:
        text = regular(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    except OddFileError as error:
        raise StoreError(f"{path} cannot be read ({error}): restore the file.") from error
    except UnicodeDecodeError as error:
        raise StoreError(f"{path} is not UTF-8 text ({error}): restore the file.") from error
    return _parsed_text(path, text, check)


def _parsed_text(
    path: Path, text: str, check: Callable[[Any], dict[str, Any]], first: int = 1
) -> list[dict[str, Any]]:
    lines = []
    # Text after the last line break is an incomplete line.
    for number, line in enumerate(text.split("\n")[:-1], start=first):
        try:
            lines.append(check(parse_json(line)))
        except ValueError as error:
            raise StoreError(f"{path}, line {number}: {error}; remove the line.") from error
    return lines


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{shown(value)} is not an object")
    return value


def _entry(entry: Any) -> dict[str, Any]:
    """Check that a line is an evaluation or holds only numbers."""
    step = _object(entry).get("step")
    if not isinstance(step, int) or abs(step) >= 2**63:
        raise ValueError(f"step = {shown(step)}; expected an integer")
    if "benchmark" in entry:
        ids, scores = entry.get("prompt_id"), entry.get("score")
        if not (isinstance(ids, list) and isinstance(scores, list) and len(ids) == len(scores)):
            raise ValueError("expected one score per prompt_id")
        texts, numbers = [entry["benchmark"], *ids], scores
    else:
        texts, numbers = [], [value for name, value in entry.items() if name != "step"]
    if bad := [text for text in texts if not isinstance(text, str)]:
        raise ValueError(f"{shown(bad[0])} is not a name")
    if bad := [number for number in numbers if not is_number(number)]:
        raise ValueError(f"{shown(bad[0])} is not a number")
    return entry
