"""Write files and directories completely or not at all, and read files of JSON lines.

Content has a temporary name until all of it is on disk, so that a crash leaves the old or the new
content, never a part. Temporary names begin with `TEMPORARY`, and no two writers share one. Nothing
is written or deleted through a link, which may lead out of a directory that somebody else made.
"""

import errno
import os
import re
import secrets
import shutil
import stat
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, BinaryIO

from opdprobe.errors import StoreError, shown
from opdprobe.store.budget import OverBudgetError
from opdprobe.store.safe_text import is_number, parse_json

TEMPORARY = ".tmp-"
_OLD = f"{TEMPORARY}old-"
_LEFT_AFTER = 3600.0  # seconds: a temporary directory that is older was left by a process that died
_BY_HANDLE = os.open in os.supports_dir_fd and os.scandir in os.supports_fd  # not on Windows


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


def check_stored(path: Path) -> None:
    """Check that the members of a zip archive are stored as they are, or that it is none.

    torch unpacks a compressed member to whatever size it claims; `torch.save` writes none.

    Raises
    ------
    OverBudgetError
        A member is compressed, or members overlap.
    ValueError, OSError, zipfile.BadZipFile
        The archive is damaged, or cannot be read.
    """
    if not zipfile.is_zipfile(regular(path)):
        return
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    if any(m.compress_type for m in members):
        raise OverBudgetError("its members are compressed")
    if sum(m.file_size for m in members) > path.stat().st_size:
        raise OverBudgetError("its members overlap")


def within(path: Path, folder: Path | None = None) -> Path:
    """Return the path of a file to read, as `regular`, unless it is a link out of its directory.

    A run that was made elsewhere could show what is in other files of the reader.

    Parameters
    ----------
    path
        The file.
    folder
        It must be in this directory, whatever links lead to it. Default: the file alone may be no
        link out of the directory in which it lies.

    Raises
    ------
    OddFileError
        It is such a link, or a pipe, a socket or a device.
    """
    regular(path)
    try:
        linked = folder is not None or os.path.islink(path)
        outside = linked and not path.resolve().is_relative_to((folder or path.parent).resolve())
    except (OSError, TypeError, ValueError, RuntimeError):
        return path  # reading it will say what is wrong, or it is not on this disk
    if outside:
        what = "is a link" if os.path.islink(path) else "is reached by a link"
        raise OddFileError(f"{path.name} {what} out of its directory, which is not followed")
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

    A file that has a second name (a hard link) is replaced by a copy first: the other one, of a
    backup or of a stranger's choice, stays as it is.

    Raises
    ------
    StoreError
        `path` is a link or an odd file, or is given a second name again and again.
    """
    for _ in range(2):
        refuse_links(path)
        file = _append(path, buffering)
        if os.fstat(file.fileno()).st_nlink <= 1:
            return file
        file.close()
        with path.open("rb") as whole:
            write_whole(path, lambda copy: shutil.copyfileobj(whole, copy))
    raise StoreError(
        f"{path} has a second name (a hard link), which would change with it: end what makes such "
        "links, or write to another place."
    )


def _append(path: Path, buffering: int) -> IO[bytes]:
    return open(path, "ab", buffering=buffering, opener=_opens_no_link)


def _opens_no_link(name: str, flags: int) -> int:
    # Fails for a link that was made since; Windows has no such flag.
    return os.open(name, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def write_whole(path: Path, fill: Callable[[BinaryIO], object], *, follow: bool = True) -> None:
    """Write a file completely or not at all, even after a crash.

    Parameters
    ----------
    path : pathlib.Path
        The file; replaced if it exists. Its directory must exist.
    fill : callable
        Writes the content to an open binary file.
    follow : bool
        Whether the directory may be a link: one that the user named may, one inside a run may not.

    Raises
    ------
    StoreError
        The disk is full, or `path` may not be written, or is a link or a directory.
    """
    refuse_links(path)
    if path.is_dir():
        raise StoreError(f"{path} is a directory; expected the name of a file to write.")
    temporary = _temporary(path)
    # By handle: the directory may be replaced by a link meanwhile.
    with explain_unwritable(f"writing {path}"), _opened(path.parent, follow=follow) as folder:
        try:
            with open(
                temporary.name if folder else temporary, "xb", opener=_opener(folder)
            ) as file:
                fill(file)
                file.flush()
                os.fsync(file.fileno())
            if folder is None:
                os.replace(temporary, path)
            else:
                os.replace(temporary.name, path.name, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            _unlink(temporary, folder)
            raise
        if folder is not None:
            os.fsync(folder)  # makes the rename itself durable


@contextmanager
def _opened(directory: Path, *, follow: bool = True) -> Iterator[int | None]:
    """Open a directory for work by handle; yield None where the system has no such thing.

    Raises
    ------
    StoreError
        It is a link, and `follow` is false.
    """
    if not follow:
        refuse_links(directory)
    if not _BY_HANDLE:
        yield None
        return
    flags = os.O_RDONLY | os.O_DIRECTORY | (0 if follow else os.O_NOFOLLOW)
    handle = os.open(directory, flags)
    try:
        yield handle
    finally:
        os.close(handle)


def _opener(folder: int | None) -> Callable[[str, int], int]:
    def opener(name: str, flags: int) -> int:
        # "x" refuses to follow a link, which could redirect the write.
        return os.open(name, flags, 0o666, dir_fd=folder)

    return opener


def _unlink(path: Path, folder: int | None) -> None:
    """Delete a file, or a link itself; in the directory of the handle, if there is one."""
    with suppress(FileNotFoundError):
        if folder is None:
            path.unlink()
        else:
            os.unlink(path.name, dir_fd=folder)


def _temporary(path: Path, beginning: str = TEMPORARY) -> Path:
    return path.with_name(f"{beginning}{path.name}-{secrets.token_hex(4)}")


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
    temporary, old = _temporary(path), _temporary(path, _OLD)
    try:
        _remove_left(path)
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
    old = _temporary(path, _OLD)
    os.replace(path, old)
    shutil.rmtree(old)


def remove_temporaries(directory: Path, *names: str) -> None:
    """Delete the temporary files and directories that killed processes left in a directory.

    Parameters
    ----------
    directory
        Where; it need not exist, and is left alone if it is a link.
    *names
        Delete only what is left of these files. Default: of all.
    """
    if directory.is_symlink() or not directory.is_dir():
        return
    for left in directory.glob(f"{TEMPORARY}*"):
        if not names or any(name in left.name for name in names):
            _remove(left)


def remove_files(directory: Path, names: Iterable[str]) -> None:
    """Delete files of a directory, or links themselves, unless the directory is a link.

    Raises
    ------
    StoreError
        The directory is a link, or may not be written.
    """
    with explain_unwritable(f"deleting in {directory}"), _opened(directory, follow=False) as folder:
        for name in names:
            _unlink(directory / name, folder)


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
    return _parsed(path, _entry_of(path))


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
            within(self.path)
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
        entries = _parsed_text(self.path, text, _entry_of(self.path), self._lines + 1)
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


def _remove_left(path: Path) -> None:
    """Delete the temporary directories of a path that processes left which died long ago."""
    form = re.compile(
        f"({re.escape(TEMPORARY)}|{re.escape(_OLD)}){re.escape(path.name)}-[0-9a-f]{{8}}"
    )
    before = time.time() - _LEFT_AFTER
    for left in path.parent.glob(f"{TEMPORARY}*"):
        if form.fullmatch(left.name) and left.lstat().st_mtime < before:
            _remove(left)


def _parsed(path: Path, check: Callable[[Any], dict[str, Any]]) -> list[dict[str, Any]]:
    try:
        text = within(path).read_text(encoding="utf-8")
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


def _entry_of(path: Path) -> Callable[[Any], dict[str, Any]]:
    return _evaluation if path.name == "evaluations.jsonl" else _metrics


def _metrics(entry: Any) -> dict[str, Any]:
    """Check that a line holds only numbers."""
    _check_step(entry)
    _check_values([], [value for name, value in entry.items() if name != "step"])
    return entry


def _evaluation(entry: Any) -> dict[str, Any]:
    """Check that a line is an evaluation."""
    _check_step(entry)
    ids, scores = entry.get("prompt_id"), entry.get("score")
    if not (isinstance(ids, list) and isinstance(scores, list) and len(ids) == len(scores)):
        raise ValueError("expected one score per prompt_id")
    _check_values([entry.get("benchmark"), *ids], scores)
    return entry


def _check_step(entry: Any) -> None:
    step = _object(entry).get("step")
    if not isinstance(step, int) or isinstance(step, bool) or abs(step) >= 2**63:
        raise ValueError(f"step = {shown(step)}; expected an integer")


def _check_values(texts: list[Any], numbers: list[Any]) -> None:
    if bad := [text for text in texts if not isinstance(text, str)]:
        raise ValueError(f"{shown(bad[0])} is not a name")
    if bad := [number for number in numbers if not is_number(number)]:
        raise ValueError(f"{shown(bad[0])} is not a number")
