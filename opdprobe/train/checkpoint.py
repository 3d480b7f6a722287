"""Checkpoints: each is written beside the last one, then renamed; a kill leaves the old or the new.

A checkpoint is an ordinary Hugging Face directory (safetensors, tokenizer) plus ``optimizer.pt``
and ``checksums.json``. For a model under PEFT adapters, it holds the adapter alone.
"""

import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedTokenizerBase

from opdprobe.errors import StoreError
from opdprobe.models.adapters import gathered_weights, load_weights, save_weights
from opdprobe.models.processes import Processes
from opdprobe.models.save import saving
from opdprobe.store.budget import check_values
from opdprobe.store.checksums import check_checkpoint, write_checksums
from opdprobe.store.files import (
    check_stored,
    refuse_links,
    remove_directory,
    remove_temporaries,
    write_directory,
)
from opdprobe.train.optim import Optimization


@dataclass(frozen=True)
class Checkpoint:
    """A saved state of training.

    Parameters
    ----------
    path
        Its directory.
    step
        The next step to run; also the number of optimiser steps done.
    """

    path: Path
    step: int


def latest_checkpoint(run_dir: Path) -> Checkpoint | None:
    """Find the newest complete checkpoint of a run, or None."""
    steps = [int(p.name) for p in (run_dir / "checkpoints").glob("*") if p.name.isdecimal()]
    return Checkpoint(run_dir / "checkpoints" / f"{max(steps):06d}", max(steps)) if steps else None


def save_checkpoint(
    run_dir: Path,
    step: int,
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    optimization: Optimization,
    processes: Processes | None = None,
) -> Checkpoint:
    """Write a checkpoint and delete the older ones.

    It does not depend on whether the model is sharded, and can be resumed either way.

    Parameters
    ----------
    run_dir
        Directory of the run.
    step
        Optimiser steps done.
    model, tokenizer, optimization
        What to save. torch's global random state and checksums of the run's text files are added.
    processes
        All of them must call this; the main one writes.

    Raises
    ------
    StoreError
        The disk is full or cannot be written; the previous checkpoint is still there.
    """
    parent = run_dir / "checkpoints"
    final = parent / f"{step:06d}"
    weights = gathered_weights(model)
    state = {"optimization": optimization.state_dict(), "rng": torch.get_rng_state()}
    if processes is not None and not processes.is_main:
        return Checkpoint(final, step)
    refuse_links(parent)
    remove_temporaries(parent)
    with write_directory(final) as directory:
        with saving():
            save_weights(model, directory, weights)
            tokenizer.save_pretrained(directory)
            torch.save(state, directory / "optimizer.pt")
        write_checksums(directory, run_dir)
    for old in parent.iterdir():
        if old.name.isdecimal() and old != final:
            remove_directory(old)
    return Checkpoint(final, step)


def load_checkpoint(checkpoint: Checkpoint, model: nn.Module, optimization: Optimization) -> None:
    """Restore weights, optimiser and random state, bit for bit.

    Raises
    ------
    StoreError
        A file is missing, torn, or belongs to another model or optimiser.
    """
    if faults := check_checkpoint(checkpoint.path):
        raise _unreadable(checkpoint, f"{faults[0].path.name} {faults[0].what}")
    try:
        load_weights(model, checkpoint.path)
        state = checkpoint.path / "optimizer.pt"
        check_stored(state)
        saved: dict[str, Any] = torch.load(state, map_location="cpu", weights_only=True)
        check_values(saved, state)  # a tensor may claim more numbers than it stores
        optimization.load_state_dict(saved["optimization"])
        torch.set_rng_state(saved["rng"])
    except (
        OSError,
        EOFError,
        RuntimeError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        SafetensorError,
        zipfile.BadZipFile,
        pickle.UnpicklingError,
    ) as error:
        raise _unreadable(checkpoint, error or type(error).__name__) from error


def _unreadable(checkpoint: Checkpoint, why: object) -> StoreError:
    return StoreError(
        f"the checkpoint {checkpoint.path} cannot be read ({why}): it is torn, or belongs "
        "to another model or optimiser. Delete it to start the run from its first step."
    )
