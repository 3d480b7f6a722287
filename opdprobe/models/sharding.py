"""Models whose parameters are spread over processes, a part in each (torch's FSDP2).

In a pass through the model a layer is gathered when its turn comes and let go behind it; gradients
are added up over the processes and go back to the parts. So all processes have to make their passes
together. What each does for itself, such as sampling, where some end before others, it does with a
model that is `whole`.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
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
    """Leave a part of each parameter in this process, in place.

    Every process of torch's default group has to do it, with the same weights. Each decoder layer
    is gathered by itself; the rest (embeddings, output head) stays gathered from the beginning of a
    pass to the end of its backward pass or to `rest`, so that the head can be used in between.

    Parameters
    ----------
    model
        A causal LM. Each of its parameters has to take part in every pass.
    device
        Where the parts go: never more than a layer of `model` at a time is there whole.

    Raises
    ------
    ConfigError
        Parameters of several dtypes are trained.
    """
    dtypes = {str(p.dtype) for p in model.parameters() if p.requires_grad}
    if len(dtypes) > 1:
        raise ConfigError(
            f"{type(model).__name__} has trained parameters of {' and '.join(sorted(dtypes))}; "
            "spread over processes they have to be of one dtype."
        )
    mesh = init_device_mesh(device.type, (get_world_size(),))
    policy = MixedPrecisionPolicy(reduce_dtype=torch.promote_types(model.dtype, torch.float32))
    layers = [layer for layer in model.modules() if isinstance(layer, GradientCheckpointingLayer)]
    for module in (*layers, model):
        fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=module is not model)
    for group in _groups(model):
        # Losses are divided by the states of all processes. gloo knows no other sum than the plain.
        group.set_gradient_divide_factor(1.0)
        group.set_force_sum_reduction_for_comms(True)


def as_pass(model: PreTrainedModel, name: str, body: Callable[..., Any]) -> Callable[..., Any]:
    """Have a function that runs a part of a sharded model count as a pass through it.

    Parameters
    ----------
    model
        A sharded model.
    name
        An attribute of the model that is free, and holds the function from now on.
    body
        The function.
    """
    setattr(model, name, lambda **inputs: body(**inputs))
    register_fsdp_forward_method(model, name)
    return getattr(model, name)


@contextmanager
def whole(model: nn.Module) -> Iterator[None]:
    """Have all of a model in each process, which can then run it by itself.

    All processes have to enter, and the weights must not be changed inside. Does nothing to a model
    that is not sharded.
    """
    groups = _groups(model)
    for group in groups:
        group.set_reshard_after_forward(False, recurse=False)
        group.unshard()
    try:
        yield
    finally:
        for place, group in enumerate(groups):
            group.reshard()
            group.set_reshard_after_forward(place > 0, recurse=False)  # not the model itself


def rest(model: nn.Module) -> None:
    """Let go of what is left of a pass without a backward pass."""
    for group in _groups(model):
        group.reshard()


def is_sharded(model: nn.Module) -> bool:
    """Whether a model, or the one under its adapters, is spread over processes."""
    return bool(_groups(model))


@contextmanager
def named_as_whole(model: nn.Module) -> Iterator[None]:
    """Give a model the class that it had before it was sharded, for what writes its name down."""
    own = type(model)
    model.__class__ = next(kind for kind in own.__mro__ if not issubclass(kind, FSDPModule))
    try:
        yield
    finally:
        model.__class__ = own


def full(tensor: Tensor) -> Tensor:
    """Gather a tensor if it is spread over processes, all of which have to do it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def on_main(tensor: Tensor) -> Tensor:
    """Gather a tensor as `full` does, but to the memory of process 0's host; others get none.

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
    """Cut out what this process has of a tensor that is spread as another one is."""
    if not isinstance(like, DTensor):
        return tensor
    # Each process has all of it: nothing needs to be sent.
    return distribute_tensor(
        tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None
    )


@torch.no_grad()
def load_parts(state: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    """Copy whole tensors into those of a sharded model.

    Parameters
    ----------
    state
        ``model.state_dict(keep_vars=True)``; one tensor may have several names.
    saved
        Under one of these names each, for all of them.

    Raises
    ------
    ValueError
        One is missing, is of another shape, or has no place.
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
    """Find the modules that are gathered by themselves, the outermost first."""
    return [module for module in model.modules() if isinstance(module, FSDPModule)]
