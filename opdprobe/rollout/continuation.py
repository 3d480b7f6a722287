"""Let one model continue a prefix that the other has written, and grade the result."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from numpy.typing import ArrayLike, NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from opdprobe.errors import ConfigError, PromptError
from opdprobe.models.vocabulary import eos_ids, padding_id
from opdprobe.rollout.grade import Grader, counted, grade_rollouts
from opdprobe.rollout.memory import sample_in_parts
from opdprobe.rollout.prompts import Prompt
from opdprobe.rollout.sample import step_generator


@dataclass(frozen=True)
class Sampling:
    """How continuations are sampled.

    Parameters
    ----------
    max_completion_length
        Longest full response, prefix included: the limit with which the prefix was sampled.
    temperature, top_p
        Use those of the prefix for a fair comparison.
    seed
        Seed of the random numbers.
    width
        Sample from the first `width` ids only (`Pair.width`).
    micro_batch_tokens
        Most tokens sampled at once, prompts and padding included; bounds the memory.
    unfinished : {"wrong", "graded"}
        What a continuation counts as that reaches the length limit: wrong, or graded by what it
        says so far. Use what the rollouts were graded with.
    """

    max_completion_length: int
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    width: int | None = None
    micro_batch_tokens: int = 16384
    unfinished: str = "wrong"


def continuation_gain(
    step: xr.Dataset,
    teacher: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    grader: Grader,
    sampling: Sampling,
    *,
    depths: Sequence[int],
    which: ArrayLike = True,
) -> xr.Dataset:
    """Let the teacher take over from the student at several depths, and compare the outcomes.

    The student's own continuation of a prefix is the rollout that the prefix was cut from: given
    the prefix, the rest is a sample from the student, so nothing has to be sampled twice.

    Parameters
    ----------
    step : Dataset
        A graded step of the student's rollouts: one of a run (``run.load(step)``), or the result of
        `opdprobe.rollout.once.probe`.
    teacher, tokenizer
        The model that continues, and the tokenizer both models share.
    prompts
        Prompts, among them those of the step's rollouts; matched by id.
    grader
        Maps response text and prompt to a score; use the grader of `step`.
    sampling
        How the continuations are sampled.
    depths
        Numbers of student tokens kept, 0 or more. At 0 the teacher writes the full answer.
    which : bool or (rollout,) array_like of bool
        The rollouts that are continued; all by default.

    Returns
    -------
    Dataset
        Over ``(depth, rollout)``, with each rollout's ``prompt_id``; in [0, 1], NaN for a rollout
        that has ended at `depth` or is not one of `which`:

        - ``teacher``: score of the prefix with the teacher's continuation;
        - ``student``: score of the rollout itself;
        - ``gain``: their difference, in [-1, 1]; above 0 where the teacher does better.

        The longer the prefix, the fewer rollouts reach it: compare depths with that in mind.

    Raises
    ------
    ConfigError
        A depth is below 0, not below the longest response, or given twice; `step` is not graded.
    PromptError
        A rollout's prompt is not among `prompts`.

    References
    ----------
    §6.1 and Fig. 11b: 0.366, 0.271, 0.152 and 0.024 from 1K to 16K tokens; the gain falls as the
    prefix grows.
    """
    limit = sampling.max_completion_length
    if len(set(depths)) < len(depths) or not all(0 <= d < limit for d in depths):
        raise ConfigError(
            f"depths = {list(depths)}; expected different numbers from 0 to {limit - 1}, "
            "which is max_completion_length - 1."
        )
    own = step["correct"].values.astype(np.float64)
    if np.isnan(own).any():
        raise ConfigError(
            f"{np.isnan(own).sum()} of {own.size} rollouts are not graded; sample them with a "
            "grader, from prompts with answers."
        )
    # A rollout that is cut at its end is not continued.
    cuts = [np.where(which, depth, step["length"].values) for depth in depths]
    scores = np.array(
        [
            continued(step, teacher, tokenizer, prompts, grader, sampling, cut=cut, role="teacher")
            for cut in cuts
        ]
    ).reshape(len(depths), own.size)
    own = np.where(np.isnan(scores), np.nan, own)
    dims = ("depth", "rollout")
    return xr.Dataset(
        {
            "teacher": (dims, scores, {"units": "1", "long_name": "teacher's continuation"}),
            "student": (dims, own, {"units": "1", "long_name": "student's continuation"}),
            "gain": (dims, scores - own, {"units": "1", "long_name": "continuation gain"}),
        },
        {
            "depth": (
                "depth",
                list(depths),
                {"units": "1", "long_name": "prefix length in tokens"},
            ),
            "prompt_id": ("rollout", step["prompt_id"].values, {"long_name": "prompt"}),
        },
    )


@torch.no_grad()
def continued(
    step: xr.Dataset,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    grader: Grader,
    sampling: Sampling,
    *,
    cut: ArrayLike,
    role: str = "student",
) -> NDArray[np.float64]:
    """Cut rollouts short, let a model continue them, and grade the results.

    Parameters
    ----------
    step : Dataset
        Rollouts of any model. Reads ``prompt_id``, ``prompt_ids``, ``response_ids`` and lengths,
        as in the store's schema.
    model
        The model that continues.
    tokenizer, prompts, grader, sampling
        As for `continuation_gain`.
    cut : int or (rollout,) array_like of int
        Tokens kept of each response.
    role : {"student", "teacher"}
        Whose prompts the model reads, if the teacher reads others.

    Returns
    -------
    (rollout,) ndarray of float64
        Scores; NaN for a rollout that has no more than `cut` tokens.
    """
    own = _prompts_of(step, {prompt.id: prompt for prompt in prompts})
    own_prompts = role == "teacher" and "teacher_prompt_ids" in step
    starts = token_rows(step, "teacher_prompt" if own_prompts else "prompt")
    responses = token_rows(step, "response")
    cuts = np.broadcast_to(np.asarray(cut), len(own)).tolist()
    prefixes = [response[:c] for response, c in zip(responses, cuts, strict=True)]
    going = [i for i, response in enumerate(responses) if len(response) > cuts[i]]
    scores = np.full(len(own), np.nan)
    for number, batch in enumerate(_batches(going, starts, cuts, sampling)):
        room = [sampling.max_completion_length - cuts[i] for i in batch]
        rollouts = sample_in_parts(
            model,
            [starts[i] + prefixes[i] for i in batch],
            max_completion_length=max(room),
            eos_ids=eos_ids(model, tokenizer, conversations=any(p.text is None for p in own)),
            pad_id=padding_id(tokenizer),
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            generator=step_generator(sampling.seed, number, model.device),
            width=sampling.width,
        )
        whole = [
            prefixes[i] + rest[:left]
            for i, rest, left in zip(batch, rollouts.response_ids, room, strict=True)
        ]
        finished = [
            ended and len(rest) <= left
            for ended, rest, left in zip(
                rollouts.finished, rollouts.response_ids, room, strict=True
            )
        ]
        scores[batch] = grade_rollouts(
            tokenizer,
            whole,
            [own[i] for i in batch],
            grader,
            finished=counted(finished, sampling.unfinished),
        )
    return scores


def token_rows(step: xr.Dataset, part: str) -> list[list[int]]:
    """Token ids of each rollout's ``prompt``, ``teacher_prompt`` or ``response``."""
    lengths = step["length" if part == "response" else f"{part}_length"].values
    return [ids.tolist() for ids in np.split(step[f"{part}_ids"].values, np.cumsum(lengths)[:-1])]


def _prompts_of(step: xr.Dataset, by_id: Mapping[str, Prompt]) -> list[Prompt]:
    ids = [str(name) for name in step["prompt_id"].values]
    if missing := sorted(set(ids) - set(by_id)):
        raise PromptError(
            f"{len(missing)} prompts of the step are not among those given; the first is "
            f"{missing[0]!r}: pass the prompts that were sampled."
        )
    return [by_id[name] for name in ids]


def _batches(
    rows: list[int], starts: list[list[int]], cuts: list[int], sampling: Sampling
) -> list[list[int]]:
    """Group rows of similar length, at most `micro_batch_tokens` per group with padding."""
    order, out = sorted(rows, key=lambda i: -(len(starts[i]) + cuts[i])), []
    while order:
        longest = len(starts[order[0]]) + sampling.max_completion_length
        size = max(1, sampling.micro_batch_tokens // longest)
        out.append(order[:size])
        order = order[size:]
    return out
