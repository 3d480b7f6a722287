"""One process writes a run at a time."""

from pathlib import Path
from weakref import WeakValueDictionary

from filelock import FileLock, Timeout

from opdprobe.errors import StoreError

LOCK = ".lock"

_held: WeakValueDictionary[Path, FileLock] = WeakValueDictionary()


def lock_run(run_dir: Path) -> object:
    """Keep other processes from writing a run for as long as the result is referred to.

    Within a process, writers share the lock: what one left behind in a traceback does not keep
    the next from continuing. The system takes the lock back however the process ends.

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
        # By default a lock belongs to a thread; this one belongs to the process.
        lock = FileLock(path, timeout=0, thread_local=False)
        try:
            lock.acquire()
        except Timeout:
            raise StoreError(
                f"{run_dir} is being written by another process: wait for it, stop it, or choose "
                "another directory"
            ) from None
        _held[path] = lock
    return lock
