"""Let only one process at a time write a run."""

from pathlib import Path
from weakref import WeakValueDictionary

from filelock import FileLock, Timeout

from opdprobe.errors import StoreError
from opdprobe.store.files import refuse_links

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
        Another process is writing the run, or the lock's file is a link.
    """
    path = run_dir.resolve() / LOCK
    # Locking a file empties it, so it may have no other name elsewhere.
    refuse_links(run_dir / LOCK)
    if path.is_file() and path.stat().st_nlink > 1:
        raise StoreError(f"{run_dir / LOCK} has a second name (a hard link): remove it.")
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
