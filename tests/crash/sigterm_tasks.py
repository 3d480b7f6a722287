"""Tasks for test_sigterm.py: the processes that do them import this module by its name."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

from opdprobe.train.sigterm import EXIT_CODE, sigterm_noted


def steps(folder: Path, report) -> None:
    """Have the parent told to stop; go on as a trainer does until the parent says so."""
    with sigterm_noted() as stopping:
        os.kill(os.getppid(), signal.SIGTERM)
        for _ in range(6000):  # a minute at most
            if stopping():
                break
            time.sleep(0.01)
        else:
            raise AssertionError("nobody said to stop")
        (folder / "checkpoint").touch()
        raise SystemExit(EXIT_CODE)


def locked(folder: Path, report) -> None:
    """Hold a lock of this process's own, as tqdm makes one, and stop."""
    lock = multiprocessing.RLock()
    os.kill(os.getppid(), signal.SIGTERM)
    with lock:
        (folder / "locked").touch()
    raise SystemExit(EXIT_CODE)


def later(folder: Path, report) -> None:
    (folder / "later").touch()
