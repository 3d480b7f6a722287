"""Models whose parameters are sharded over processes (torch's FSDP2).

A pass through the model gathers one layer at a time and frees it afterwards; gradients are summed
over the processes and scattered to the shards. So all processes must make their passes together.
What a process does on its own, such as sampling, which some finish before others, needs the full
model (`whole`).
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import get_world_size
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from opdprobe.errors import ConfigError


def shard(model: PreTrainedModel, device: torch.device) -> None:
    """Shard a model in place: keep only this process's part of each parameter.

    Every process of torch's default group must call this, with the same weights. Each decoder layer
    is gathered separately; embeddings and output head stay gathered from the beginning of a pass
    until the end of its backward pass, or until `rest`, so that the head can be used in between.

    Parameters
    ----------
    model
        A causal LM. Each of its parameters must take part in every pass.
    device
        Where the shards go; it never holds more than one full layer of `model` at a time.

    Raises
    ------
    ConfigError
        The trained parameters have several dtypes.
    """
    dtypes = {str(p.dtype) for p in model.parameters() if p.requires_grad}
    if len(dtypes) > 1:
        raise ConfigError(
            f"{type(model).__name__} has trained parameters of {' and '.join(sorted(dtypes))}; "
            "expected one dtype, since they are sharded over processes."
        )
    mesh = init_device_mesh(device.type, (get_world_size(),))
    policy = MixedPrecisionPolicy(reduce_dtype=torch.promote_types(model.dtype, torch.float32))
    layers = [layer for layer in model.modules() if isinstance(layer, GradientCheckpointingLayer)]
    for module in (*layers, model):
        fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=module is not model)
    for group in _groups(model):
        # Losses are divided by the states of all processes. gloo supports only plain sums.
        group.set_gradient_divide_factor(1.0)
        group.set_force_sum_reduction_for_comms(True)


def as_pass(model: PreTrainedModel, name: str, body: Callable[..., Any]) -> Callable[..., Any]:
    """Make a function that runs a part of a sharded model count as a pass through it.

    Parameters
    ----------
    model
        A sharded model.
    name
        Name of an unused attribute of the model, which will hold the function.
    body
        The function.
    """
    setattr(model, name, lambda **inputs: body(**inputs))
    register_fsdp_forward_method(model, name)
    return getattr(model, name)


@contextmanager
def whole(model: nn.Module) -> Iterator[None]:
    """Gather the full model in every process inside the block, where each can run it on its own.

    Every process must enter the block and leave the weights unchanged. Inside, the hooks of FSDP
    and DeepSpeed do not run: none gathers, frees or notes anything, so that training goes on as if
    nothing had been computed, and the settings of whoever sharded the model stay. Does nothing to a
    model that is not sharded.
    """
    groups, parts = _groups(model), zero_3_parts(model)
    with ExitStack() as stack:
        for module in model.modules() if parts else groups:
            stack.enter_context(_unhooked(module))
        if parts:
            stack.enter_context(import_module("deepspeed").zero.GatheredParameters(parts))
        for group in groups:
            group.unshard()
        try:
            yield
        finally:
            for group in groups:
                group.reshard()


def zero_3_parts(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of which DeepSpeed's ZeRO-3 keeps a part in each process."""
    return [parameter for parameter in model.parameters() if hasattr(parameter, "ds_id")]


@contextmanager
def _unhooked(module: Any) -> Iterator[None]:
    """Take FSDP's and DeepSpeed's hooks from a module inside the block; others stay."""
    kept = []
    for hooks in (module._forward_pre_hooks, module._forward_hooks):
        kept.append((hooks, dict(hooks)))
        for key, hook in kept[-1][1].items():
            if getattr(hook, "__module__", "").startswith(("torch.distributed.", "deepspeed.")):
                del hooks[key]
    try:
        yield
    finally:
        for hooks, before in kept:  # in the same order, in the dicts that hooks' handles know
            now = before | hooks
            hooks.clear()
            hooks.update(now)


def rest(model: nn.Module) -> None:
    """Free what a pass without a backward pass has left gathered."""
    for group in _groups(model):
        group.reshard()


def is_sharded(model: nn.Module) -> bool:
    """Whether a model, or the base model of its adapters, is sharded."""
    return bool(_groups(model))


@contextmanager
def named_as_whole(model: nn.Module) -> Iterator[None]:
    """Give a model's modules their unsharded classes inside the block, for code that reads them."""
    groups: list[Any] = list(_groups(model))
    own = [type(group) for group in groups]
    for group in groups:
        plain = next(kind for kind in type(group).__mro__ if not issubclass(kind, FSDPModule))
        group.__class__ = plain
    try:
        yield
    finally:
        for group, kind in zip(groups, own, strict=True):
            group.__class__ = kind


def full(tensor: Tensor) -> Tensor:
    """Gather a tensor if it is sharded; every process must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def on_main(tensor: Tensor) -> Tensor:
    """Gather a tensor as `full` does, but into rank 0's host memory; other ranks get an empty one.

    Examples
    --------
    >>> on_main(torch.ones(2))
    tensor([1., 1.])
    """
    if not isinstance(tensor, DTensor):
        return tensor
    gathered = tensor.full_tensor()
    return gathered.cpu() if tensor.device_mesh.get_rank() == 0 else gathered.new_empty(0)


def part(tensor: Tensor, like: Tensor) -> Tensor:
    """Return this process's shard of a full tensor, sharded as `like` is."""
    if not isinstance(like, DTensor):
        return tensor
    # Each process has the full tensor: nothing needs to be sent.
    return distribute_tensor(
        tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None
    )


@torch.no_grad()
def load_parts(state: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    """Copy full tensors into those of a sharded model.

    Parameters
    ----------
    state
        ``model.state_dict(keep_vars=True)``; one tensor may have several names.
    saved
        Every tensor of `state`, in full, under one of its names.

    Raises
    ------
    ValueError
        A tensor is missing, has another shape, or is not in `state`.
    """
    there = {id(state[name]) for name in saved if name in state}
    missing = [name for name, tensor in state.items() if id(tensor) not in there]
    if wrong := sorted((saved.keys() - state.keys()) | set(missing)):
        raise ValueError(f"{wrong[0]} is in one of checkpoint and model only")
    for name, tensor in saved.items():
        if tensor.shape != state[name].shape:
            raise ValueError(
                f"{name} is {tuple(tensor.shape)} in the checkpoint, expected "
                f"{tuple(state[name].shape)}"
            )
        state[name].copy_(part(tensor, state[name]))


def _groups(model: nn.Module) -> list[FSDPModule]:
    """Find the modules that are gathered separately, outermost first."""
    return [module for module in model.modules() if isinstance(module, FSDPModule)]
