"""How a run is started: what accelerate offers that would not do what it seems to is refused."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import parse_flag_from_env

from opdprobe.errors import ConfigError
from opdprobe.models.processes import Processes


def check_launch(accelerator: Accelerator) -> None:
    """Refuse ways to spread and to round that would not train what they seem to."""
    kind = str(accelerator.distributed_type.value)
    # Asked of the environment: on a CPU accelerate leaves FSDP out without a word.
    if parse_flag_from_env("ACCELERATE_USE_FSDP"):
        kind = "FSDP"
        version = os.environ.get("FSDP_VERSION", "1")
        if version != "2":
            raise ConfigError(
                f"launched with FSDP {version}, which makes one long vector of a layer's weights: "
                "ask for version 2 (--fsdp_version 2, or FSDP_VERSION=2)."
            )
        if parse_flag_from_env("FSDP_OFFLOAD_PARAMS"):
            raise ConfigError(
                "launched with FSDP and parameters offloaded to the CPU (fsdp_offload_params): "
                "parts stay on the device here. Switch it off; more processes make parts smaller."
            )
    if kind not in ("NO", "FSDP") and not kind.startswith("MULTI_"):
        raise ConfigError(
            f"launched with {kind}: OPDTrainer has whole models in each process (--multi_gpu), or "
            "spreads them over the processes by FSDP (--use_fsdp --fsdp_version 2)."
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
