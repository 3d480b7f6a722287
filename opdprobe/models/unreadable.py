"""Why a model or a tokenizer does not load: other libraries' exceptions as the library's own."""

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from opdprobe.errors import ConfigError, ModelError, OPDProbeError, shown
from opdprobe.models.devices import is_out_of_memory, out_of_memory, reason_of, release

# What transformers raises when files are absent, torn, of an unknown kind or contradictory: damaged
# configurations and tokenizers have raised each of these.
UNREADABLE = (
    *(OSError, ValueError, LookupError, SafetensorError, struct.error, StrictDataclassError),
    *(AttributeError, TypeError, ArithmeticError, RuntimeError, AssertionError),
)


def check_attention(attn_implementation: str | None, dtype: torch.dtype | str) -> None:
    """Refuse a way of attention that would only fail in the first forward pass.

    Raises
    ------
    ConfigError
        It computes in 16 bits, and neither the weights nor automatic mixed precision do.
    """
    autocast = os.environ.get("ACCELERATE_MIXED_PRECISION") == "bf16"
    if "flash" in (attn_implementation or "") and dtype == torch.float32 and not autocast:
        raise ConfigError(
            f"attn_implementation = {shown(attn_implementation)} computes in 16 bits, but the "
            "weights would be float32; expected dtype bfloat16 with it, or sdpa."
        )


@contextmanager
def explained(
    name_or_path: str | Path, device: torch.device, attn_implementation: str | None
) -> Iterator[None]:
    """Turn what transformers and torch raise while they load a model into the library's errors.

    Parameters
    ----------
    name_or_path
        The model, as the user named it.
    device
        Where it goes.
    attn_implementation
        The attention asked for.

    Raises
    ------
    ModelError, ConfigError, OutOfMemoryError
        Whichever fits.
    """
    try:
        yield
    except OPDProbeError:
        raise
    except (ImportError, MemoryError, *UNREADABLE) as error:
        if is_out_of_memory(error):
            release(device)
            raise out_of_memory(
                f"{name_or_path}: the model does not fit into the memory of {device}",
                "load it in bfloat16 (dtype), on another device, or take a smaller model",
                reason_of(error),
            ) from error
        about = str(error).lower()
        if attn_implementation and ("attn_impl" in about or "attention" in about):
            raise ConfigError(
                f"attn_implementation = {shown(attn_implementation)} cannot be used: "
                f"{first_line(error).rstrip('.')}. Expected sdpa or eager, or install what it "
                "needs."
            ) from error
        if isinstance(error, ImportError):
            raise ModelError(
                f"{name_or_path}: the model needs a package that is not installed, such as the one "
                f"that unpacks quantised weights: {first_line(error).rstrip('.')}. Install it, or "
                "take a checkpoint that is not quantised."
            ) from error
        raise ModelError(
            f"{name_or_path}: the model does not load: {first_line(error)}; expected a causal "
            "language model, as save_pretrained writes it."
        ) from error


def first_line(error: BaseException) -> str:
    """First line of an error's message, without the pages of advice that transformers adds."""
    text = str(error).strip().partition("\n")[0].rstrip(": ")
    # A KeyError's message is only the key.
    return f"{type(error).__name__} {text}" if isinstance(error, LookupError) or not text else text
