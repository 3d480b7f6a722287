"""Note that the process is asked to stop, rather than die of it: SIGTERM.

Batch systems send it before they take a machine back. `EXIT_CODE` is what a shell reports of a
process that died of the signal; one that was asked to stop and did in good order exits with it too.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

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
