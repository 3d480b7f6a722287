"""Wait for a function no longer than some time, though nothing can end it."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable
from typing import Any

_Outcome = tuple[Any, BaseException | None]


class _Worker:
    """A thread that calls one function after the other."""

    def __init__(self) -> None:
        self._asked: queue.SimpleQueue[Callable[[], Any] | None] = queue.SimpleQueue()
        self._told: queue.SimpleQueue[_Outcome] = queue.SimpleQueue()
        # A daemon: the process may end while the thread cannot.
        threading.Thread(target=_work, args=(self._asked, self._told), daemon=True).start()

    def __del__(self) -> None:
        self._asked.put(None)

    def ask(self, call: Callable[[], Any], seconds: float) -> _Outcome:
        self._asked.put(call)
        return self._told.get(timeout=seconds)


def _work(
    asked: queue.SimpleQueue[Callable[[], Any] | None], told: queue.SimpleQueue[_Outcome]
) -> None:
    while (call := asked.get()) is not None:
        try:
            outcome: _Outcome = (call(), None)
        except BaseException as error:
            outcome = (None, error)
        told.put(outcome)
        del call, outcome  # they may hold much, and the next call may be far away


# One of each thread, so that nobody waits for another's function.
_own = threading.local()


def in_time(call: Callable[[], Any], seconds: float) -> tuple[Any, BaseException | None]:
    """Return what a function returns or raises.

    Parameters
    ----------
    call
        The function; it runs in another thread.
    seconds
        How long to wait. The function may go on for longer: nothing can end one that is not
        Python's, but it must let other threads run.

    Raises
    ------
    TimeoutError
        It took too long.

    Examples
    --------
    >>> in_time(lambda: 7, 1.0)
    (7, None)
    """
    worker = getattr(_own, "worker", None)
    if worker is None:
        worker = _own.worker = _Worker()
    try:
        return worker.ask(call, seconds)
    except BaseException as error:
        _own.worker = None  # what it will tell is nobody's
        if isinstance(error, queue.Empty):
            raise TimeoutError(f"more than {seconds:g} s") from error
        raise


def _forget() -> None:
    global _own
    _own = threading.local()  # a forked process has no other threads


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
