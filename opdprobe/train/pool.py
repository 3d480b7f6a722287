"""Run tasks in parallel processes, each one after the tasks that it depends on."""

import logging
import multiprocessing
import os
import queue
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from multiprocessing import util
from typing import Any

from opdprobe.errors import OPDProbeError
from opdprobe.train.freed_memory import keep_freed_memory
from opdprobe.train.sigterm import EXIT_CODE, sigterm_noted

logger = logging.getLogger("opdprobe")

Report = Callable[[int, int], None]
"""Called with steps done, steps in total."""
Progress = Callable[[str, int, int], None]
"""Called with a task's label, steps done, steps in total."""


@dataclass(frozen=True)
class Task:
    """One piece of work.

    Parameters
    ----------
    label
        Its name, shown to the user.
    function
        Called in a worker process as ``function(*arguments, report)``; defined at a module's top
        level.
    arguments
        Must be picklable.
    after
        Labels of tasks that must finish first. Labels that are not among the given tasks are
        ignored.
    """

    label: str
    function: Callable[..., None]
    arguments: tuple[Any, ...] = ()
    after: frozenset[str] = frozenset()


def work(
    tasks: Sequence[Task],
    *,
    workers: int = 2,
    on_progress: Progress = lambda label, done, total: None,
) -> None:
    """Run tasks in parallel, in the given order where `Task.after` does not require another.

    Parameters
    ----------
    tasks
        Tasks listed earlier start earlier.
    workers
        Number of processes, with one thread each.
    on_progress
        Called whenever a task reports progress.

    Raises
    ------
    SystemExit
        SIGTERM came and was passed on to the processes, which saved what can be resumed.
    ValueError
        Tasks wait for each other; none was started.
    OPDProbeError
        A process was killed. An error of a task is raised unchanged: the log names the task at
        once, no other task is started, and running tasks finish first.
    """
    order = _in_order(tasks)
    # Fresh interpreters: forking a process that has used torch's threads can hang.
    context = multiprocessing.get_context("spawn")
    progress = context.Queue()
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(
        workers, mp_context=context, initializer=_start_worker, initargs=(progress,)
    )
    left, running = {task.label: task for task in tasks}, dict[Future[None], str]()
    ready: set[str] = set()
    failure: BaseException | None = None
    with sigterm_noted() as stopping:
        try:
            while running or (left and failure is None):
                ready.update(order.get_ready())
                startable = [label for label in left if label in ready and failure is None]
                # At most one per process: the pool would also run a queued task after a failure.
                for label in startable[: workers - len(running)]:
                    running[pool.submit(_do, left.pop(label))] = label
                done, _ = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
                while True:
                    try:
                        on_progress(*progress.get_nowait())
                    except queue.Empty:
                        break
                if stopping():
                    for process in set(multiprocessing.active_children()) - others:
                        process.terminate()
                for future in done:
                    label, error = running[future], future.exception()
                    if isinstance(error, BrokenProcessPool):
                        raise error
                    del running[future]
                    order.done(label)
                    if error is not None:
                        failure = failure or error
                        _report_failure(label, error, running.values(), left)
        except BrokenProcessPool as error:
            if stopping():
                logger.warning("stopped by SIGTERM; the same command resumes the work.")
                raise SystemExit(EXIT_CODE) from None
            raise OPDProbeError(
                f"a process was killed during {' or '.join(running.values())}, perhaps because "
                "memory ran out: the same command resumes the work, with --workers 1 in less of it."
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
        if stopping():  # as the last task ended
            raise SystemExit(EXIT_CODE)
    if failure is not None:
        raise failure


def _in_order(tasks: Sequence[Task]) -> TopologicalSorter[str]:
    labels = [task.label for task in tasks]
    order = TopologicalSorter({task.label: task.after.intersection(labels) for task in tasks})
    try:
        order.prepare()
    except CycleError as error:
        waiting = ", ".join(label for label in labels if label in error.args[1])
        raise ValueError(f"tasks wait for each other: {waiting}.") from None
    return order


def _report_failure(
    label: str, error: BaseException, running: Iterable[str], left: Iterable[str]
) -> None:
    reason = next(iter(str(error).splitlines()), "")
    logger.error(
        "%s failed (%s: %s); still running: %s; not started: %s.",
        *(label, type(error).__name__, reason),
        ", ".join(running) or "nothing",
        ", ".join(left) or "nothing",
    )


_progress: Any = None  # the worker's end of the queue


def _start_worker(progress: Any) -> None:
    keep_freed_memory()
    global _progress
    _progress = progress
    # Read by torch and transformers when a task imports them: an analysis needs neither. The models
    # are tiny, so a second thread costs more than it gives. What transformers prints while it loads
    # a model would run into the progress bars of the waiting process.
    os.environ |= {
        "OMP_NUM_THREADS": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }


def _do(task: Task) -> None:
    try:
        task.function(*task.arguments, lambda done, total: _progress.put((task.label, done, total)))
    except SystemExit as stopped:
        # SIGTERM came, and everything is on disk. The executor would take the exception for an
        # error of the task, and give this process the next one. The function is what ends any other
        # process of multiprocessing; without it, locks such as tqdm's would be left in the system.
        util._exit_function()  # pyright: ignore[reportAttributeAccessIssue]  # in no stub
        os._exit(stopped.code if isinstance(stopped.code, int) else 1)
