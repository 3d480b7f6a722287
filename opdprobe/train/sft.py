"""Supervised fine-tuning: cross-entropy on responses, token-mean over the full batch."""

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from opdprobe.errors import ConfigError
from opdprobe.models.head import split_head
from opdprobe.models.vocabulary import padding_id
from opdprobe.rollout.batches import batches
from opdprobe.rollout.memory import halving
from opdprobe.rollout.sample import Rollouts
from opdprobe.train.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from opdprobe.train.config import SFTConfig
from opdprobe.train.losses import weighted_nll
from opdprobe.train.optim import Optimization
from opdprobe.train.sigterm import stop

Example = tuple[list[int], list[int]]
"""Prompt ids and response ids."""


def shuffled(
    examples: Sequence[Example], config: SFTConfig
) -> tuple[Callable[[int], list[Example]], int]:
    """Turn a data set into batches by step, each epoch in a new order.

    Returns
    -------
    batch_at : callable
        Maps a step to its examples.
    n_steps : int
        ``max_steps``, or the number of steps in `num_train_epochs`.

    Raises
    ------
    ConfigError
        `examples` is empty.
    """
    if not examples:
        raise ConfigError("there are no examples to train on; expected at least one.")
    size = min(config.batch_size, len(examples))
    per_epoch = len(examples) // size

    def batch_at(step: int) -> list[Example]:
        epoch, place = divmod(step, per_epoch)
        order = random.Random(f"{config.seed}/{epoch}").sample(range(len(examples)), len(examples))
        return [examples[i] for i in order[place * size : (place + 1) * size]]

    return batch_at, config.max_steps or per_epoch * config.num_train_epochs


def sft(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    batch_at: Callable[[int], list[Example]],
    n_steps: int,
    config: SFTConfig,
    run_dir: Path | None = None,
    stopping: Callable[[], bool] = lambda: False,
) -> Iterator[dict[str, float]]:
    """Train in place, yielding one dictionary of metrics per step.

    Parameters
    ----------
    model, tokenizer
        A causal LM and the tokenizer saved with its checkpoints.
    batch_at
        Maps a step to its examples; depends on the step alone, so that a resumed run sees the same.
    n_steps
        Optimiser steps in total.
    config
        Learning rate, schedule, micro-batches.
    run_dir
        Gets a checkpoint every `config.save_steps` steps; the newest one there is resumed.
    stopping
        Called after each step; if true, training writes a checkpoint and stops. Not called without
        `run_dir`.

    Yields
    ------
    dict
        ``step``, ``loss`` (nats per response token), ``grad_norm``, ``learning_rate``.

    Raises
    ------
    SystemExit
        `stopping` returned true; the metrics of the last step were yielded before.
    """
    model.train()
    body, head = split_head(model)
    optimization = Optimization(
        model,
        learning_rate=config.learning_rate,
        total_steps=n_steps,
        warmup_steps=int(config.warmup_ratio * n_steps),
        schedule=config.lr_scheduler_type,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        muon_learning_rate=config.muon_learning_rate if config.optimizer == "muon" else None,
    )
    start = 0
    if run_dir is not None and (checkpoint := latest_checkpoint(run_dir)):
        load_checkpoint(checkpoint, model, optimization)
        start = checkpoint.step
    micro_batch_tokens = config.micro_batch_tokens
    for step in range(start, n_steps):
        prompts, responses = zip(*batch_at(step), strict=True)
        data = Rollouts(list(prompts), list(responses), [True] * len(prompts), [])
        n_tokens = data.n_tokens

        def work(tokens: int, data: Rollouts = data, n_tokens: int = n_tokens) -> float:
            optimization.zero_grad()  # of a call that ran out of memory
            total = 0.0
            for batch in batches(
                data,
                micro_batch_tokens=tokens,
                pad_id=padding_id(tokenizer),
                device=model.device,
            ):
                hidden = batch.hidden(body)
                ids = batch.sampled_ids[:, None]
                # Summed, then divided by the tokens of the full batch: micro-batches change
                # nothing.
                loss = weighted_nll(hidden, head, ids, torch.ones_like(ids, dtype=hidden.dtype))
                (loss / n_tokens).backward()
                optimization.collect()
                total += float(loss.detach())
            return total

        total, micro_batch_tokens = halving(
            work,
            data,
            micro_batch_tokens=micro_batch_tokens,
            device=model.device,
            doing="training on",
        )
        rate = optimization.learning_rate
        norm = optimization.step()
        done = step + 1
        due = config.save_steps and done % config.save_steps == 0
        stop_here = run_dir is not None and stopping()
        if run_dir is not None and (due or stop_here):
            save_checkpoint(run_dir, done, model, tokenizer, optimization)
        yield {
            "step": step,
            "loss": total / n_tokens,
            "grad_norm": norm,
            "learning_rate": rate,
        }
        if stop_here:
            stop(run_dir, done, n_steps, "SFT steps")
    model.eval()
