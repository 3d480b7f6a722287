"""Score a student's rollouts with both models once, without training."""

from collections.abc import Sequence
from dataclasses import replace

import torch
import xarray as xr

from opdprobe.errors import ConfigError
from opdprobe.models.head import evaluating
from opdprobe.models.processes import Processes
from opdprobe.models.vocabulary import eos_ids
from opdprobe.rollout.engine import Sampler, check_sampler, sample_with
from opdprobe.rollout.grade import Grader, counted, grade_rollouts
from opdprobe.rollout.memory import sample_in_parts
from opdprobe.rollout.pair import Pair
from opdprobe.rollout.prompts import EncodedPrompt, has_conversation
from opdprobe.rollout.rows import record_dataset
from opdprobe.rollout.sample import step_generator
from opdprobe.rollout.teacher_context import teacher_prompts


@torch.no_grad()
def probe(
    pair: Pair,
    prompts: Sequence[EncodedPrompt],
    *,
    num_generations: int = 4,
    k: int = 16,
    max_completion_length: int,
    temperature: float = 1.0,
    grader: Grader | None = None,
    unfinished: str = "wrong",
    step: int = 0,
    seed: int = 0,
    micro_batch_tokens: int = 16384,
    processes: Processes | None = None,
    sampler: Sampler | None = None,
) -> xr.Dataset:
    """Sample the student and score both models at every state it visits.

    Neither model is changed, and torch's global random state is left alone.

    Parameters
    ----------
    pair
        Student and teacher.
    prompts
        Encoded prompts.
    num_generations
        Rollouts per prompt.
    k
        Number of top tokens kept per model.
    max_completion_length
        Longest response.
    temperature
        Temperature of sampling and of the recorded distributions.
    grader
        Maps response text and prompt to a score; None leaves `correct` NaN.
    unfinished : {"wrong", "graded"}
        What a response counts as that reached the length limit: wrong, or graded by what it says so
        far.
    step
        Training step to label the record with.
    seed
        The same seed and student give the same rollouts, whatever the teacher.
    micro_batch_tokens
        Most tokens in a micro-batch, padding included.
    processes
        Processes that share the prompts, each with its own copy of the models.
    sampler
        An engine with the student's weights, which samples in its place, at temperature 1. Its
        log-probabilities of the drawn tokens are the step's ``sampler_logp``.

    Returns
    -------
    Dataset
        One step in the store's schema, see `opdprobe.store.schema`; with several processes,
        this process's part of it.

    Raises
    ------
    ConfigError
        There are more processes than prompts.
    ModelError
        A model's table of positions is too short; or the engine fails, or is not the student
        (`opdprobe.rollout.engine.check_sampler`).
    """
    processes = processes or Processes()
    total, share = len(prompts), processes.share(len(prompts))
    if total < processes.size:
        raise ConfigError(
            f"{total} prompts for {processes.size} processes; expected at least one prompt per "
            "process: give more prompts, or start fewer processes."
        )
    prompts = prompts[share]
    pair.check_teacher(prompts, max_completion_length)
    ids = [p.ids for p in prompts]
    if sampler is not None:
        rollouts = sample_with(
            sampler,
            ids,
            num_generations=num_generations,
            max_completion_length=max_completion_length,
            seed=(seed, step, processes.rank),
            width=pair.width,
            temperature=temperature,
        )
    else:
        rollouts = sample_in_parts(
            pair.student,
            ids,
            num_generations=num_generations,
            max_completion_length=max_completion_length,
            eos_ids=eos_ids(pair.student, pair.tokenizer, conversations=has_conversation(prompts)),
            pad_id=pair.pad_id,
            temperature=temperature,
            generator=step_generator(seed, step, pair.student.device),
            width=pair.width,
            part=(share.start, total),
        )
    own = [prompts[i].prompt for i in rollouts.prompt_index]
    rollouts = replace(
        rollouts,
        teacher_prompt_ids=teacher_prompts(prompts, rollouts.prompt_index),
        teachers=pair.teachers_of(own),
    )
    correct = None
    if grader is not None:
        correct = grade_rollouts(
            pair.tokenizer,
            rollouts.response_ids,
            own,
            grader,
            finished=counted(rollouts.finished, unfinished),
        )
    with evaluating(pair.student), evaluating(pair.teacher):
        scores, _ = pair.all_scores(
            rollouts, k=k, temperature=temperature, micro_batch_tokens=micro_batch_tokens
        )
    if sampler is not None:
        check_sampler(sampler, scores.sampled_logp[:, 0].numpy(), rollouts)
    return record_dataset(step, rollouts, scores, own, correct)
