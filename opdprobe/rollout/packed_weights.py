"""Fast products of a few rows with large weights on CPUs, from weights in oneDNN's own layout.

Sampling one token for each of eight rollouts multiplies eight rows by every weight of the model.
BLAS then reads float32 weights at less than half of the speed at which it reads them for one row;
oneDNN, given weights in its own blocked layout, reads them nearly twice as fast as BLAS does then
(`benchmarks/step_parts.py` measures all three). Converting the weights costs about as much as two
tokens, so it pays for a batch of rollouts, but not for one pass.

The operators are those that torch.compile uses on CPUs for frozen weights. They are private to
torch, so they are tested before use; where they do not work, the layers stay unchanged.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import TypeGuard

import torch
from torch import Tensor, nn

logger = logging.getLogger("opdprobe")

# Packing was measured to pay within these limits: with fewer rows or elements BLAS is as fast or
# faster (a smaller weight stays in the cache), with more rows the gain is small.
_MIN_ROWS, _MAX_ROWS = 4, 32
_MIN_ROWS_AVX2 = 2  # two rows take BLAS 1.4 times as long there (`benchmarks/processor.py`)
_MIN_ELEMENTS = 2**18
_CPU = torch.device("cpu")


@contextmanager
def packed_weights(model: nn.Module, rows: int) -> Iterator[None]:
    """Run a model's large linear layers from packed weights, for products of `rows` rows.

    For inference: no gradient flows through these layers, and a change of their weights inside the
    block is not seen. Results differ from the layers' own in rounding. Does nothing on other
    devices, in other dtypes, under autocast, for numbers of rows at which it does not pay, and if
    torch's operators do not work, which is logged once. The packed weights are a second copy in
    memory.

    Parameters
    ----------
    model
        Its `torch.nn.Linear` layers on the CPU in float32 are packed; subclasses are left alone.
    rows
        Rows that most products in the block will have.
    """
    pays = packs(rows) and not torch.is_autocast_enabled("cpu")
    layers = [layer for layer in model.modules() if pays and _is_large(layer)]
    if layers and not _works():
        layers = []
    try:
        for layer in layers:
            packed = _pack(layer.weight.detach(), rows)
            vars(layer)["forward"] = partial(_linear, packed, layer.bias)
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)


def packs(rows: int, device: torch.device = _CPU, dtype: torch.dtype = torch.float32) -> bool:
    """Whether large layers with weights of a dtype on a device are packed for so many rows."""
    avx2 = torch.backends.cpu.get_cpu_capability() == "AVX2"  # and neither AVX-512 nor AMX
    return (
        (_MIN_ROWS_AVX2 if avx2 else _MIN_ROWS) <= rows <= _MAX_ROWS
        and device.type == "cpu"
        and dtype == torch.float32
        and torch.backends.mkldnn.is_available()
    )


def _is_large(layer: nn.Module) -> TypeGuard[nn.Linear]:
    return (
        type(layer) is nn.Linear
        and "forward" not in vars(layer)  # replaced by other code, such as an offloading hook
        and layer.weight.device.type == "cpu"
        and layer.weight.dtype == torch.float32
        and layer.weight.numel() >= _MIN_ELEMENTS
    )


@cache
def _works() -> bool:
    """Try the operators on a small product whose result is exact."""
    weight = torch.arange(32.0).view(8, 4)
    rows, bias = torch.arange(16.0).view(4, 4), torch.ones(8)
    try:
        found = _linear(_pack(weight, len(rows)), bias, rows)
        if torch.equal(found, rows @ weight.T + bias):
            return True
        why = "a product is wrong"
    except (AttributeError, NotImplementedError, RuntimeError, TypeError) as error:
        why = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
    logger.warning(
        "torch %s cannot multiply with packed weights as opdprobe asks it to (%s): sampling from "
        "large models is slower on CPUs.",
        *(torch.__version__, why),
    )
    return False


def _pack(weight: Tensor, rows: int) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight, rows)


def _linear(packed: Tensor, bias: Tensor | None, rows: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(rows, packed, bias, "none", [], "")
