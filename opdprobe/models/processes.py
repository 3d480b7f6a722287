"""Several processes that work on one batch, each on its own share.

Processes communicate in one way only: every process contributes a value and receives the values of
all. Errors are exchanged the same way, so a process that fails stops the others with its error
instead of leaving them waiting.
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
        This process's rank, and the number of processes. Several need torch's default process
        group; `launched` sets it up.
    device
        Device that the launcher chose for this process; None without a launcher.
    sharded
        Whether the launcher asks to shard trained models over the processes (FSDP).

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
            accelerate does not see all of them, as on CPUs without ACCELERATE_USE_CPU.
        """
        started = int(os.environ.get("WORLD_SIZE", "1"))
        if started == 1:
            return cls()
        state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
        if state.num_processes != started:
            raise ConfigError(
                f"started as one of {started} processes, but accelerate sees "
                f"{state.num_processes}: on CPUs, set ACCELERATE_USE_CPU=true for all of them."
            )
        # A process that exits while the group's threads still run can be aborted at the very end.
        atexit.register(_leave)
        sharded = parse_flag_from_env("ACCELERATE_USE_FSDP")
        if sharded:
            # With FSDP, some versions of transformers load weights in one process only and send
            # them to the others later. Here each process loads the weights and keeps its shard.
            os.environ |= dict.fromkeys(
                ("FSDP_CPU_RAM_EFFICIENT_LOADING", "FSDP_SYNC_MODULE_STATES"), "false"
            )
        return cls(state.process_index, started, state.device, sharded)

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which does what must be done once."""
        return self.rank == 0

    def share(self, n: int) -> slice:
        """Return this process's contiguous share of `n` items."""
        return slice(self.rank * n // self.size, (self.rank + 1) * n // self.size)

    def gather(self, value: T) -> list[T]:
        """Contribute a small value; return the values of all processes, in rank order.

        Raises
        ------
        OPDProbeError
            Another process raised it instead, within `together`.
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
        """Wait until all processes have reached this call."""
        self.gather(None)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Raise in every process what one of them raises in the block."""
        self._failed = False
        try:
            yield
            self.wait()  # for processes that fail at the end of the block
        except OPDProbeError as error:
            if not self._failed:  # the other processes do not know yet
                self._failed = True
                self.gather(error)
            raise

    def leave(self) -> None:
        """Exchange no further error: the others cannot answer, and the launcher stops them."""
        self._failed = True

    def main_first(self, work: Callable[[], T]) -> T:
        """Run `work` in the main process first, then in the others."""
        if not self.is_main:
            self.wait()
            return work()
        result = work()
        self.wait()
        return result

    def add_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Sum each parameter's gradient over all processes, in place.

        Parameters
        ----------
        parameters
            The same parameters in every process. One process may lack a gradient that another
            has: that of an expert that none of its tokens reached.
        """
        if self.size == 1 or self.sharded:  # FSDP sums them in the backward pass
            return
        have = self.gather([p.grad is not None for p in parameters])
        sums = []
        for parameter, *anywhere in zip(parameters, *have, strict=True):
            if any(anywhere):
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                sums.append(distributed.all_reduce(parameter.grad, async_op=True))
        for pending in sums:
            if pending is not None:  # never None for an asynchronous operation
                pending.wait()


def _leave() -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()
