"""Several processes that work on one batch, each on its share of it.

What is done by all is exchanged in one way only: every process gives something, and every process
gets what all of them gave. An error goes the same way. So a process that cannot go on ends the
others with the reason, rather than leave them waiting.
"""

import atexit
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from torch import Tensor, distributed

from opdprobe.errors import ConfigError, OPDProbeError

T = TypeVar("T")


class Processes:
    """The processes of a launch, seen from one of them.

    Parameters
    ----------
    rank, size
        Which process this is, and how many there are. More than one need torch's default process
        group; `launched` sets it up.
    device
        Where a launch wants this process to compute; None without one.
    sharded
        Whether it wants trained models spread over the processes (FSDP).

    Examples
    --------
    >>> alone = Processes()
    >>> alone.share(5), alone.gather("mine")
    (slice(0, 5, None), ['mine'])
    >>> [Processes(rank, 3).share(5) for rank in range(3)]
    [slice(0, 1, None), slice(1, 3, None), slice(3, 5, None)]
    """

    def __init__(
        self,
        rank: int = 0,
        size: int = 1,
        device: torch.device | None = None,
        sharded: bool = False,
    ) -> None:
        self.rank = rank
        self.size = size
        self.device = device
        self.sharded = sharded
        self._failed = False

    @classmethod
    def launched(cls) -> "Processes":
        """Join the processes that `accelerate launch` or torchrun started this one with.

        Raises
        ------
        ConfigError
            accelerate does not see them, as on a CPU that it was not told to use.
        """
        started = int(os.environ.get("WORLD_SIZE", "1"))
        if started == 1:
            return cls()
        state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
        if state.num_processes != started:
            raise ConfigError(
                f"started as one of {started} processes, of which accelerate makes "
                f"{state.num_processes}: on CPUs, set ACCELERATE_USE_CPU=true for all of them."
            )
        # A process that ends with the group's threads still there can be aborted at the very end.
        atexit.register(_leave)
        sharded = parse_flag_from_env("ACCELERATE_USE_FSDP")
        if sharded:
            # For it, some transformers load weights in one process only, to be sent to the others
            # later. Here each cuts its part out of what it loads itself.
            os.environ |= dict.fromkeys(
                ("FSDP_CPU_RAM_EFFICIENT_LOADING", "FSDP_SYNC_MODULE_STATES"), "false"
            )
        return cls(state.process_index, started, state.device, sharded)

    @property
    def is_main(self) -> bool:
        """Whether this process does what is done once."""
        return self.rank == 0

    def share(self, n: int) -> slice:
        """Divide `n` things: the ones of this process, next to each other."""
        return slice(self.rank * n // self.size, (self.rank + 1) * n // self.size)

    def gather(self, value: T) -> list[T]:
        """Give something small, and get what each process gave, in the order of their ranks.

        Raises
        ------
        OPDProbeError
            What another process raised instead, within `together`.
        """
        gathered: list[Any] = [value]
        if self.size > 1:
            gathered = [None] * self.size
            distributed.all_gather_object(gathered, value)
        errors = [given for given in gathered if isinstance(given, OPDProbeError)]
        if errors and not isinstance(value, OPDProbeError):
            self._failed = True
            raise errors[0]
        return gathered

    def wait(self) -> None:
        """Go on when all processes have come this far."""
        self.gather(None)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Raise in every process what one of them raises in the block."""
        self._failed = False
        try:
            yield
            self.wait()  # for those that fail at the very end
        except OPDProbeError as error:
            if not self._failed:  # the others do not know
                self._failed = True
                self.gather(error)
            raise

    def main_first(self, work: Callable[[], T]) -> T:
        """Do something in the main process, and in the others when it is done there."""
        if not self.is_main:
            self.wait()
            return work()
        result = work()
        self.wait()
        return result

    def add_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Make each parameter's gradient the sum of all processes' gradients of it.

        Parameters
        ----------
        parameters
            The same ones in every process. Where a process has no gradient, another may have one:
            an expert that none of its tokens took.
        """
        if self.size == 1 or self.sharded:  # or else added up in the backward pass
            return
        have = self.gather([p.grad is not None for p in parameters])
        sums = []
        for parameter, *anywhere in zip(parameters, *have, strict=True):
            if any(anywhere):
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                sums.append(distributed.all_reduce(parameter.grad, async_op=True))
        for pending in sums:
            if pending is not None:  # of an asynchronous operation it never is
                pending.wait()


def _leave() -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()
