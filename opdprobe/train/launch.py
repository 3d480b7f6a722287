"""Launch checks: refuse accelerate settings that would be ignored or train the wrong thing."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import parse_flag_from_env

from opdprobe.errors import ConfigError
from opdprobe.models.processes import Processes


def check_launch(accelerator: Accelerator) -> None:
    """Refuse kinds of distribution and precision that would train the wrong thing."""
    kind = str(accelerator.distributed_type.value)
    # Read from the environment: on a CPU, accelerate silently ignores FSDP.
    if parse_flag_from_env("ACCELERATE_USE_FSDP"):
        kind = "FSDP"
        version = os.environ.get("FSDP_VERSION", "1")
        if version != "2":
            raise ConfigError(
                f"launched with FSDP {version}, which flattens a layer's weights into one vector; "
                "expected version 2: pass --fsdp_version 2, or set FSDP_VERSION=2."
            )
        if parse_flag_from_env("FSDP_OFFLOAD_PARAMS"):
            raise ConfigError(
                "launched with FSDP and parameters offloaded to the CPU (fsdp_offload_params); "
                "expected shards to stay on the device: switch it off. If memory is short, use "
                "more processes."
            )
    if kind not in ("NO", "FSDP") and not kind.startswith("MULTI_"):
        raise ConfigError(
            f"launched with {kind}; expected full models in each process (--multi_gpu), or models "
            "sharded by FSDP (--use_fsdp --fsdp_version 2)."
        )
    if accelerator.mixed_precision not in ("no", "bf16"):
        raise ConfigError(
            f"launched with mixed precision {accelerator.mixed_precision}; expected bf16 or no: "
            "the loss is not scaled, so small gradients underflow to zero in a narrower range."
        )


def check_trackers(names: Sequence[str]) -> None:
    """Refuse a tracker that accelerate would silently ignore."""
    known = ["all", *map(str, get_available_trackers())]
    missing = sorted(set(names) - set(known))
    if missing:
        raise ConfigError(
            f"report_to = {', '.join(missing)}: unknown tracker, or its package is not installed; "
            f"available: {', '.join(known[1:]) or 'none'}."
        )


def check_agreement(processes: Processes, given: Mapping[str, Any]) -> None:
    """Raise if the processes were given different models, settings or prompts."""
    first, *others = processes.gather(given)
    for rank, theirs in enumerate(others, start=1):
        if differing := [name for name in first if theirs[name] != first[name]]:
            raise ConfigError(
                f"process {rank} and process 0 were given a different {' and '.join(differing)}: "
                "load the same in each, and seed what is random (torch.manual_seed before adding "
                "an adapter)."
            )
