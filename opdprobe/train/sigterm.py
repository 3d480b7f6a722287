"""Turn SIGTERM into a flag, so that the step in flight can finish.

Batch systems send SIGTERM before they take a machine back. `EXIT_CODE` is what a shell reports for
a process that the signal killed; a process that stops on request exits with it too.
"""

import logging
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

logger = logging.getLogger("opdprobe")

EXIT_CODE = 128 + signal.SIGTERM


@contextmanager
def sigterm_noted() -> Iterator[Callable[[], bool]]:
    """Keep SIGTERM from ending the process inside the block; restore the old handler after it.

    Does nothing outside the main thread, which alone may handle signals, or if the program has a
    handler that Python cannot restore.

    Yields
    ------
    callable
        Returns whether the signal has come since.

    Examples
    --------
    >>> with sigterm_noted() as stopping:
    ...     signal.raise_signal(signal.SIGTERM)
    ...     stopping()
    True
    """
    came: list[int] = []
    before = signal.getsignal(signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread() or before is None:
        yield lambda: False
        return
    signal.signal(signal.SIGTERM, lambda number, frame: came.append(number))
    try:
        yield lambda: bool(came)
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def sigterm_raised() -> Iterator[None]:
    """Make SIGTERM leave the block as SystemExit, so that the block can clean up.

    Does nothing outside the main thread, which alone may handle signals, or if the program handles
    the signal itself.
    """
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    ):
        yield
        return
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(EXIT_CODE))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def stop(where: object, done: int, total: int, what: str) -> NoReturn:
    """Log how far the work has come and end the process.

    Parameters
    ----------
    where
        The directory that holds the finished work.
    done, total, what
        As in "5 of 8 SFT steps".

    Raises
    ------
    SystemExit
        Always, with `EXIT_CODE`.
    """
    logger.warning(
        "%s: stopped by SIGTERM after %d of %d %s; the same command resumes from there.",
        *(where, done, total, what),
    )
    raise SystemExit(EXIT_CODE)
