"""Note that the process is asked to stop, rather than die of it: SIGTERM.

Batch systems send it before they take a machine back. `EXIT_CODE` is what a shell reports of a
process that died of the signal; one that was asked to stop and did in good order exits with it too.
"""

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

logger = logging.getLogger("opdprobe")

EXIT_CODE = 128 + signal.SIGTERM


@contextmanager
def sigterm_noted() -> Iterator[Callable[[], bool]]:
    """Keep SIGTERM from ending the process until the block's end; the handler before comes back.

    Only the main thread may handle signals: in another one, this does nothing, and a program that
    handles the signal in a way that Python cannot put back is left to it.

    Yields
    ------
    callable
        Says whether the signal has come since.

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


def stop(where: object, done: int, total: int, what: str) -> NoReturn:
    """End the process in good order, saying how far it came.

    Parameters
    ----------
    where
        The directory that holds all that was done.
    done, total, what
        As in "5 of 8 SFT steps".

    Raises
    ------
    SystemExit
        Always, with `EXIT_CODE`.
    """
    logger.warning(
        "%s: stopped by SIGTERM after %d of %d %s; the same command goes on from there.",
        *(where, done, total, what),
    )
    raise SystemExit(EXIT_CODE)
