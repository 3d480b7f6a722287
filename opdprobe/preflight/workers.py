"""Processes that share the work of a preflight on a CPU.

The work is cut into parts, such as a batch to sample, in the same way for any number of processes,
and each part draws its own random numbers. So the results do not depend on that number; with
another number of threads in each process they may differ by rounding.
"""

import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import torch

from opdprobe.errors import ConfigError, OPDProbeError
from opdprobe.rollout.pair import Pair
from opdprobe.train.freed_memory import keep_freed_memory
from opdprobe.train.sigterm import sigterm_raised

T = TypeVar("T")


class Alone:
    """Does all parts in this process, when their results are asked for.

    Parameters
    ----------
    pair
        The models.
    """

    is_alone = True

    def __init__(self, pair: Pair):
        self._pair = pair

    def start(
        self, function: Callable[..., T], parts: Sequence[tuple[Any, ...]]
    ) -> Callable[[], list[T]]:
        """Begin with some parts.

        Parameters
        ----------
        function
            Called as ``function(pair, *part)``; defined at a module's top level.
        parts
            Must be picklable.

        Returns
        -------
        callable
            Returns the results, in the order of `parts`.
        """
        return lambda: [function(self._pair, *part) for part in parts]


class Shared(Alone):
    """Has the processes of a pool do the parts, which begin with them at once.

    Parameters
    ----------
    pair, pool
        The models, and processes that hold the same.
    """

    is_alone = False

    def __init__(self, pair: Pair, pool: ProcessPoolExecutor):
        super().__init__(pair)
        self._pool = pool

    def start(
        self, function: Callable[..., T], parts: Sequence[tuple[Any, ...]]
    ) -> Callable[[], list[T]]:
        """Begin with some parts; see `Alone.start`."""
        # As bytes: the pool would pass tensors through /dev/shm, of which containers have little.
        given = [pickle.dumps((function, part)) for part in parts]
        running: list[Future[bytes]] = [self._pool.submit(_do, one) for one in given]
        return lambda: [pickle.loads(future.result()) for future in running]


@contextmanager
def shared_work(pair: Pair, workers: int) -> Iterator[Alone]:
    """Start processes that hold a pair's models, and end them after the block.

    The models travel in a temporary file that all processes map, so that their weights are in
    memory twice for any number of processes. The threads of torch are divided among the processes.

    Parameters
    ----------
    pair
        The models, on the CPU if there are several processes.
    workers
        Number of processes; with 1, this one does the work.

    Raises
    ------
    ConfigError
        The models are not on the CPU, or cannot be pickled.
    OPDProbeError
        A process was killed or did not start. What a part raises is raised unchanged.
    """
    if workers == 1:
        yield Alone(pair)
        return
    if (kind := pair.student.device.type) != "cpu":
        raise ConfigError(
            f"workers = {workers} with models on {kind}; expected 1: processes share the work on "
            "a CPU only."
        )
    others = set(multiprocessing.active_children())
    with sigterm_raised(), TemporaryDirectory(prefix="opdprobe-") as directory:
        models = Path(directory) / "models"
        _save(pair, models)
        pool = ProcessPoolExecutor(
            workers,
            # Fresh interpreters: forking a process that has used torch's threads can hang.
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_start_worker,
            initargs=(models, max(1, torch.get_num_threads() // workers)),
        )
        try:
            yield Shared(pair, pool)
        except BaseException as error:
            # Whatever they still do, no one will ask for it.
            for process in set(multiprocessing.active_children()) - others:
                process.terminate()
            if isinstance(error, BrokenProcessPool):
                raise OPDProbeError(
                    f"one of {workers} processes was killed, perhaps because memory ran out, or "
                    "did not start (a script that starts processes needs `if __name__ == "
                    '"__main__":`); expected memory for all: workers = 1 takes the least.'
                ) from error
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _save(pair: Pair, path: Path) -> None:
    tokenizers = pair.tokenizer, pair.teacher_tokenizer
    # In one go, so that a student that is its own teacher stays that.
    teacher = pair.outer_student if pair.teacher is pair.student else pair.teacher
    try:
        torch.save((pair.outer_student, teacher, *tokenizers), path)
    except (OSError, RuntimeError) as error:  # torch's own, with the reason
        raise OPDProbeError(
            f"{path.parent}: the models cannot be written for the other processes ({error}); "
            "expected room for both, or workers = 1."
        ) from error
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ConfigError(
            f"the models cannot be passed to other processes ({error}); expected models that can "
            "be pickled, or workers = 1."
        ) from error


_pair: Pair | None = None  # the worker's


def _start_worker(models: Path, threads: int) -> None:
    global _pair
    # Ctrl-C reaches all processes of a terminal: the first one ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    keep_freed_memory()
    torch.set_num_threads(threads)
    student, teacher, *tokenizers = torch.load(models, mmap=True, weights_only=False)
    _pair = Pair(student, teacher, tokenizers[0])
    _pair.teacher_tokenizer = tokenizers[1]  # compared before


def _end_with_parent() -> None:
    """Leave no process behind if the first one is killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None  # this runs in a worker
    parent.join()
    os._exit(1)


def _do(work: bytes) -> bytes:
    function, part = pickle.loads(work)
    return pickle.dumps(function(_pair, *part))
