"""One process writes a run at a time."""

import fcntl
import weakref
from pathlib import Path

from opdprobe.errors import StoreError

LOCK = ".lock"


class _Lock:
    """An open, locked file; the system takes the lock back however the process ends."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "a")  # noqa: SIM115  # held until the last writer lets go
        weakref.finalize(self, self._file.close)
        fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)


_held: weakref.WeakValueDictionary[Path, _Lock] = weakref.WeakValueDictionary()


def lock_run(run_dir: Path) -> object:
    """Keep other processes from writing a run for as long as the result is referred to.

    Within a process, writers share the lock: what one left behind in a traceback does not keep
    the next from continuing.

    Parameters
    ----------
    run_dir : pathlib.Path
        An existing directory.

    Returns
    -------
    object
        The lock.

    Raises
    ------
    StoreError
        Another process writes the run.
    """
    path = run_dir.resolve() / LOCK
    lock = _held.get(path)
    if lock is None:
        try:
            lock = _held[path] = _Lock(path)
        except BlockingIOError:
            raise StoreError(
                f"{run_dir} is being written by another process: wait for it, stop it, or choose "
                "another directory"
            ) from None
    return lock
