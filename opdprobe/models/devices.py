"""Where models run and in which precision: the machine's accelerator, its memory, its random state.

Everything that loads a model asks `resolve_device` where it goes, and that asks `accelerator`, the
only function that looks at the hardware.
"""

import gc
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from opdprobe.errors import ConfigError, OutOfMemoryError, shown
from opdprobe.models.processes import Processes

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Names of the dtypes that weights are loaded in; ``"auto"`` is the one they were saved in."""

_CPU = torch.device("cpu")
# Messages of running out of memory that are not a torch.OutOfMemoryError: the CPU's allocator, the
# MPS backend, and CUDA's libraries and driver.
_MESSAGES = ("can't allocate memory", "not enough memory", "out of memory", "STATUS_ALLOC_FAILED")
# Where a container's limit on memory, and what it uses of it, are found.
_CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
    ),
)


def accelerator() -> tuple[str, int] | None:
    """Return the kind of this machine's accelerators, such as ``"cuda"``, and their number.

    None if it has none.
    """
    found = torch.accelerator.current_accelerator(check_available=True)
    return None if found is None else (found.type, torch.accelerator.device_count())


def resolve_device(
    device: str | torch.device | None = "auto", processes: Processes | None = None
) -> torch.device:
    """Choose the device that a model goes to.

    Parameters
    ----------
    device : str or torch.device, optional
        A device that this machine has; ``"auto"`` or None takes its accelerator, or the CPU if
        there is none. Without `processes`, one of several launched processes takes the CPU.
    processes : Processes, optional
        Under a launcher of several processes, the launcher chooses each one's device.

    Raises
    ------
    ConfigError
        The machine has no such device, or the launcher has chosen another.
    """
    found = accelerator()
    if device is None or str(device) == "auto":
        if processes is not None and processes.device is not None:
            return processes.device
        if processes is None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            return _CPU  # only what knows the processes can give each its device
        return _CPU if found is None else torch.device(found[0])
    there = "cpu" if found is None else f"cpu or {_names(*found)}"
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError):
        raise ConfigError(
            f"device = {shown(str(device))}: no such device; expected auto, {there}."
        ) from None
    kind, count = ("", 0) if found is None else found
    there_is_one = chosen.type == "cpu" or (
        chosen.type == kind and (chosen.index is None or chosen.index < count)
    )
    if not there_is_one:
        raise ConfigError(
            f"device = {shown(str(device))}: this machine has no such device, or this build of "
            f"torch ({torch.__version__}) does not reach it; expected auto, {there}."
        )
    given = processes.device if processes is not None else None
    if given is not None and (
        chosen.type != given.type or chosen.index not in (None, given.index or 0)
    ):
        raise ConfigError(
            f"device = {shown(str(device))}, but the launcher gave this process {given}; leave "
            "the device out (auto)."
        )
    return chosen if given is None else given


def _names(kind: str, count: int) -> str:
    return kind if count == 1 else f"{kind} ({kind}:0 to {kind}:{count - 1})"


def resolve_dtype(dtype: str | torch.dtype | None, name: str = "dtype") -> torch.dtype | str:
    """Check a dtype that weights are to be loaded in.

    Parameters
    ----------
    dtype : str or torch.dtype, optional
        One of `DTYPES` by name, ``"auto"``, or any of torch's floating-point dtypes. None is
        float32.
    name : str
        What the setting is called, for the message.

    Returns
    -------
    torch.dtype or str
        The dtype, or ``"auto"``.

    Raises
    ------
    ConfigError
        It is none of these.
    """
    if dtype is None:
        return torch.float32
    if isinstance(dtype, torch.dtype) and dtype.is_floating_point:
        return dtype
    if dtype == "auto":
        return "auto"
    if isinstance(dtype, str) and (found := DTYPES.get(dtype.removeprefix("torch."))):
        return found
    raise ConfigError(
        f"{name} = {shown(str(dtype))}: not a dtype of weights; expected auto, {', '.join(DTYPES)}."
    )


def teacher_default(
    device: torch.device,
    dtype: str | torch.dtype | None = None,
    teacher_dtype: str | torch.dtype | None = None,
) -> torch.dtype | str:
    """Choose a teacher's dtype: its own setting, else that of both models, else the device's.

    The device's is bfloat16 on an accelerator: a teacher is never updated, and takes half the
    memory in it. On a CPU it is float32, in which CPUs are fastest.
    """
    if teacher_dtype is not None:
        return resolve_dtype(teacher_dtype, "teacher_dtype")
    if dtype is not None:
        return resolve_dtype(dtype)
    return torch.float32 if device.type == "cpu" else torch.bfloat16


def precision(models: Mapping[str, Any], mixed_precision: str = "no") -> dict[str, Any]:
    """Describe what numbers depend on besides weights and settings, as a run records it.

    Parameters
    ----------
    models : mapping of str to transformers.PreTrainedModel
        The models by role.
    mixed_precision : str
        accelerate's name of the dtype that passes are computed in: ``"bf16"``, ``"fp16"``, or
        ``"no"`` if it is that of the weights.

    Returns
    -------
    dict
        ``device`` (its kind: ``"cuda"``), ``dtype`` and ``attn_implementation`` by role, and
        ``mixed_precision``.
    """
    return {
        "device": next(iter(models.values())).device.type,
        "dtype": {role: str(model.dtype).removeprefix("torch.") for role, model in models.items()},
        "attn_implementation": {
            role: str(getattr(model.config, "_attn_implementation", None))
            for role, model in models.items()
        },
        "mixed_precision": mixed_precision,
    }


def free_bytes(device: torch.device) -> int | None:
    """Return the memory that a device has left, in bytes; None if it does not tell.

    On a CPU, this is what the operating system can give out, or what is left of a container's
    limit if that is less.
    """
    if device.type == "cpu":
        return min([psutil.virtual_memory().available, *_left_in_container()])
    module = torch.get_device_module(device)
    if hasattr(module, "mem_get_info"):  # cuda, xpu
        return int(module.mem_get_info(device)[0])
    if hasattr(module, "recommended_max_memory"):  # mps
        return int(module.recommended_max_memory() - module.driver_allocated_memory())
    return None


def _left_in_container() -> Iterator[int]:
    for limit, usage in _CGROUPS:
        try:
            most, used = (Path(path).read_text().strip() for path in (limit, usage))
        except OSError:
            continue
        if most.isdecimal() and used.isdecimal():  # "max": no limit
            yield max(0, int(most) - int(used))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on whichever device.

    Examples
    --------
    >>> is_out_of_memory(MemoryError()), is_out_of_memory(RuntimeError("shapes differ"))
    (True, False)
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(part in str(error) for part in _MESSAGES)


def reason_of(error: BaseException) -> str:
    """Return the first sentence of what an allocator said; the rest is advice on its settings."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].partition(". ")[0].rstrip(".")


def out_of_memory(what: str, advice: str, reason: str) -> OutOfMemoryError:
    """Make the library's error for memory that ran out in a piece of work."""
    return OutOfMemoryError(f"{what}: memory ran out ({reason}); {advice}.")


def release(device: torch.device) -> None:
    """Give back what a failed piece of work held, before a smaller one is tried."""
    gc.collect()
    if device.type != "cpu":
        torch.get_device_module(device).empty_cache()


def random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Return torch's random state: the CPU's, and that of the device if it is another."""
    if device.type == "cpu":
        return torch.get_rng_state(), None
    return torch.get_rng_state(), torch.get_device_module(device).get_rng_state(device)


def restore_random_state(device: torch.device, state: tuple[Tensor, Tensor | None]) -> None:
    """Restore what `random_state` returned."""
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.get_device_module(device).set_rng_state(state[1], device)


@contextmanager
def same_randomness(*models: nn.Module) -> Iterator[None]:
    """Restore torch's random state after the block: the CPU's, and that of the models' devices."""
    used = {p.device for model in models for p in model.parameters()} - {_CPU}
    kinds = {device.type for device in used if device.type != "meta"}
    if not kinds:
        with torch.random.fork_rng(devices=[]):
            yield
        return
    (kind,) = kinds  # a machine has accelerators of one kind
    indices = sorted({device.index or 0 for device in used if device.type == kind})
    with torch.random.fork_rng(devices=indices, device_type=kind):
        yield
