"""Let only one process at a time write a run."""

from pathlib import Path
from weakref import WeakValueDictionary

from filelock import FileLock, Timeout

from opdprobe.errors import StoreError

LOCK = ".lock"

_held: WeakValueDictionary[Path, FileLock] = WeakValueDictionary()


def lock_run(run_dir: Path) -> object:
    """Keep other processes from writing a run for as long as the result is referenced.

    Writers in one process share the lock, so that a writer still held by a traceback does not
    block the next one. The operating system releases the lock however the process ends.

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
        Another process is writing the run.
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
                "another directory."
            ) from None
        _held[path] = lock
    return lock
