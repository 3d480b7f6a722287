"""Purely on-policy GRPO, which makes the testbed's RL teachers (paper Table 1).

Each batch of rollouts gets one optimiser step, so the importance ratio is 1 and clipping never
acts. There is no KL term; the loss is a mean over all tokens of the batch. This is not a general RL
trainer.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from opdprobe.models.head import split_head
from opdprobe.models.vocabulary import eos_ids, padding_id
from opdprobe.rollout.batches import batches
from opdprobe.rollout.grade import Grader, grade_rollouts
from opdprobe.rollout.memory import halving, sample_in_parts
from opdprobe.rollout.prompts import EncodedPrompt, Prompt, has_conversation
from opdprobe.rollout.sample import Rollouts, step_generator
from opdprobe.train.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from opdprobe.train.config import GRPOConfig
from opdprobe.train.losses import weighted_nll
from opdprobe.train.optim import Optimization
from opdprobe.train.sigterm import stop


def group_advantages(rewards: torch.Tensor) -> torch.Tensor:
    """Standardise rewards within each prompt's group.

    Parameters
    ----------
    rewards : Tensor (prompts, generations)

    Returns
    -------
    Tensor (prompts, generations)
        Mean 0 per row; 0 where all rewards of a row are equal.
    """
    centred = rewards - rewards.mean(1, keepdim=True)
    return centred / (rewards.std(1, keepdim=True, correction=0) + 1e-6)


def grpo(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts_at: Callable[[int], Sequence[EncodedPrompt]],
    grader: Grader,
    config: GRPOConfig,
    run_dir: Path | None = None,
    stopping: Callable[[], bool] = lambda: False,
) -> Iterator[dict[str, float]]:
    """Train in place, yielding one dictionary of metrics per step.

    Parameters
    ----------
    model, tokenizer
        The policy.
    prompts_at
        Maps a step to its prompts; depends on the step alone, so that a resumed run sees the same.
    grader
        Maps response text and prompt to a reward in [0, 1].
    config
        Sampling and optimisation.
    run_dir
        Gets a checkpoint every `config.save_steps` steps; the newest one there is resumed.
    stopping
        Called after each step; if true, training writes a checkpoint and stops. Not called without
        `run_dir`.

    Yields
    ------
    dict
        ``step``, ``reward`` (mean), ``grad_norm``, ``completion_length``.

    Raises
    ------
    SystemExit
        `stopping` returned true; the metrics of the last step were yielded before.
    """
    body, head = split_head(model)
    optimization = Optimization(
        model,
        learning_rate=config.learning_rate,
        total_steps=config.max_steps,
        warmup_steps=config.warmup_steps,
        schedule=config.lr_scheduler_type,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
    )
    start = 0
    if run_dir is not None and (checkpoint := latest_checkpoint(run_dir)):
        load_checkpoint(checkpoint, model, optimization)
        start = checkpoint.step
    micro_batch_tokens = config.micro_batch_tokens
    for step in range(start, config.max_steps):
        prompts = prompts_at(step)
        rollouts = sample_in_parts(
            model,
            [p.ids for p in prompts],
            num_generations=config.num_generations,
            max_completion_length=config.max_completion_length,
            eos_ids=eos_ids(model, tokenizer, conversations=has_conversation(prompts)),
            pad_id=padding_id(tokenizer),
            temperature=config.temperature,
            generator=step_generator(config.seed, step, model.device),
        )
        graded: list[Prompt] = [prompts[i].prompt for i in rollouts.prompt_index]
        reward = torch.tensor(grade_rollouts(tokenizer, rollouts.response_ids, graded, grader))
        advantage = group_advantages(reward.view(-1, config.num_generations)).flatten()
        n_tokens = rollouts.n_tokens
        # Rollouts of a group with equal rewards have no gradient; they count in the mean only.
        useful = advantage.nonzero().flatten().tolist()
        kept = Rollouts(
            [rollouts.prompt_ids[i] for i in useful],
            [rollouts.response_ids[i] for i in useful],
            [rollouts.finished[i] for i in useful],
            [rollouts.prompt_index[i] for i in useful],
        )
        per_token = advantage[useful].repeat_interleave(
            torch.tensor([len(r) for r in kept.response_ids], dtype=torch.long)
        )

        def work(
            tokens: int,
            kept: Rollouts = kept,
            per_token: torch.Tensor = per_token,
            n_tokens: int = n_tokens,
        ) -> None:
            optimization.zero_grad()  # of a call that ran out of memory
            for batch in batches(
                kept,
                micro_batch_tokens=tokens,
                pad_id=padding_id(tokenizer),
                device=model.device,
            ):
                hidden = batch.hidden(body)
                weight = per_token[batch.state].to(hidden)[:, None]
                ids = batch.sampled_ids[:, None]
                loss = weighted_nll(hidden, head, ids, weight, config.temperature)
                (loss / n_tokens).backward()
                optimization.collect()

        _, micro_batch_tokens = halving(
            work,
            kept,
            micro_batch_tokens=micro_batch_tokens,
            device=model.device,
            doing="training on",
        )
        norm = optimization.step() if useful else 0.0
        done = step + 1
        due = config.save_steps and done % config.save_steps == 0
        stop_here = run_dir is not None and stopping()
        if run_dir is not None and (due or stop_here):
            save_checkpoint(run_dir, done, model, tokenizer, optimization)
        yield {
            "step": step,
            "reward": float(reward.mean()),
            "grad_norm": norm,
            "completion_length": n_tokens / len(rollouts),
        }
        if stop_here:
            stop(run_dir, done, config.max_steps, "GRPO steps")
    model.eval()
