"""How a run is started: what accelerate offers that would not do what it seems to is refused."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import get_available_trackers

from opdprobe.errors import ConfigError
from opdprobe.processes import Processes


def check_launch(accelerator: Accelerator) -> None:
    """Refuse ways to spread and to round that would not train what they seem to."""
    kind = str(accelerator.distributed_type.value)
    # On a CPU accelerate leaves FSDP out without a word.
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true":
        kind = "FSDP"
    if kind != "NO" and not kind.startswith("MULTI_"):
        raise ConfigError(
            f"launched with {kind}: OPDTrainer needs the whole student and teacher in each "
            "process, as data parallelism keeps them. If they do not fit, train adapters, switch "
            "gradient checkpointing on, or load the teacher in bfloat16."
        )
    if accelerator.mixed_precision not in ("no", "bf16"):
        raise ConfigError(
            f"launched with mixed precision {accelerator.mixed_precision}, expected bf16 or no: "
            "without a scaled loss, small gradients are zero in a narrower range."
        )


def check_trackers(names: Sequence[str]) -> None:
    """Refuse a tracker that accelerate would leave out without a word."""
    known = ["all", *map(str, get_available_trackers())]
    missing = sorted(set(names) - set(known))
    if missing:
        raise ConfigError(
            f"report_to {', '.join(missing)}: no such tracker, or its package is not installed; "
            f"ready here: {', '.join(known[1:]) or 'none'}."
        )


def check_agreement(processes: Processes, given: Mapping[str, Any]) -> None:
    """Refuse processes that were given different things."""
    first, *others = processes.gather(given)
    for rank, theirs in enumerate(others, start=1):
        if differing := [name for name in first if theirs[name] != first[name]]:
            raise ConfigError(
                f"process {rank} was given other {' and '.join(differing)} than process 0: load "
                "the same in each, and seed what is random (torch.manual_seed before an adapter "
                "is put on)."
            )
