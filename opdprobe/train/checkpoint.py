"""Checkpoints: written beside the last one, then renamed, so that a kill leaves the old or the new.

A checkpoint is an ordinary Hugging Face directory (safetensors, tokenizer) plus ``optimizer.pt``.
"""

import os
import pickle
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from opdprobe.errors import StoreError
from opdprobe.train.optim import Optimization


@dataclass(frozen=True)
class Checkpoint:
    """A saved state of training.

    Parameters
    ----------
    path
        Its directory.
    step
        The next step to do: that many optimiser steps are in it.
    """

    path: Path
    step: int


def latest_checkpoint(run_dir: Path) -> Checkpoint | None:
    """Find the newest complete checkpoint of a run, or None."""
    steps = [int(p.name) for p in (run_dir / "checkpoints").glob("[0-9]*")]
    return Checkpoint(run_dir / "checkpoints" / f"{max(steps):06d}", max(steps)) if steps else None


def save_checkpoint(
    run_dir: Path,
    step: int,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    optimization: Optimization,
) -> Checkpoint:
    """Write a checkpoint and delete the older ones.

    Parameters
    ----------
    run_dir
        Directory of the run.
    step
        Optimiser steps done.
    model, tokenizer, optimization
        What to save; torch's global random state goes with them.

    Raises
    ------
    StoreError
        The disk is full or cannot be written; the checkpoint before is still there.
    """
    parent = run_dir / "checkpoints"
    parent.mkdir(parents=True, exist_ok=True)
    for left in parent.glob(".tmp-*"):
        shutil.rmtree(left)
    temporary, final = parent / f".tmp-{step:06d}", parent / f"{step:06d}"
    try:
        model.save_pretrained(temporary, max_shard_size="1000GB")
        tokenizer.save_pretrained(temporary)
        state = {"optimization": optimization.state_dict(), "rng": torch.get_rng_state()}
        torch.save(state, temporary / "optimizer.pt")
        for file in temporary.iterdir():
            _fsync(file)
    # On a full disk safetensors raises an error of its own and torch.save a RuntimeError.
    except (OSError, RuntimeError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise StoreError(
            f"could not write the checkpoint {final} ({error}); nothing of it is left. Make room "
            "and resume the run."
        ) from error
    if final.exists():
        shutil.rmtree(final)
    os.replace(temporary, final)
    _fsync(parent)
    for old in parent.glob("[0-9]*"):
        if old != final:
            shutil.rmtree(old)
    return Checkpoint(final, step)


def load_checkpoint(
    checkpoint: Checkpoint, model: PreTrainedModel, optimization: Optimization
) -> None:
    """Put weights, optimiser and random state back, bit for bit.

    Raises
    ------
    StoreError
        A file is missing, torn, or of another model or optimiser.
    """
    try:
        load_model(model, checkpoint.path / "model.safetensors")
        saved: dict[str, Any] = torch.load(checkpoint.path / "optimizer.pt", weights_only=True)
        optimization.load_state_dict(saved["optimization"])
        torch.set_rng_state(saved["rng"])
    except (
        OSError,
        EOFError,
        RuntimeError,
        ValueError,
        SafetensorError,
        pickle.UnpicklingError,
    ) as error:
        raise StoreError(
            f"the checkpoint {checkpoint.path} cannot be read ({error or type(error).__name__}): "
            "it is torn, or of another model or optimiser. Delete it to start the run anew."
        ) from error


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
