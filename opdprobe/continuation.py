"""What a teacher makes of a prefix that the student has written."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from opdprobe.errors import ConfigError, PromptError
from opdprobe.grade import Grader, grade_rollouts
from opdprobe.prompts import Prompt
from opdprobe.rollout import eos_ids, padding_id, sample, step_generator


@torch.no_grad()
def continuation_gain(
    step: xr.Dataset,
    teacher: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    grader: Grader,
    *,
    depths: Sequence[int],
    max_new_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
    width: int | None = None,
    max_tokens: int = 16384,
) -> xr.Dataset:
    """Let the teacher take over from the student at several depths, and compare the outcomes.

    The student's own continuation of a prefix is the rollout that the prefix was cut from: given
    the prefix, the rest is a sample from the student, so nothing has to be sampled twice.

    Parameters
    ----------
    step : Dataset
        A graded step: one of a run (``run.load(step)``) or what `opdprobe.probe.probe` gives.
    teacher, tokenizer
        The model that continues, and the tokenizer both models share.
    prompts
        At least those that the step's rollouts answer; matched by id.
    grader
        Response text and prompt to a score: the one that `step` was graded by.
    depths
        Student tokens kept, 0 or more. 0 is the teacher's own answer.
    max_new_tokens
        Longest whole response, prefix included: the limit under which the student was sampled.
    temperature, top_p
        Of the continuation. Those of the student's sampling make the comparison fair.
    seed
        Of the sampling.
    width
        Sample from the first `width` ids only (`Pair.width`).
    max_tokens
        Most tokens sampled at once, prompts and padding included: bounds the memory.

    Returns
    -------
    Dataset
        Over ``(depth, rollout)``, in [0, 1], NaN for a rollout that has ended at `depth`:

        - ``teacher``: score of prefix and teacher's continuation;
        - ``student``: score of the rollout itself;
        - ``gain``: their difference, in [-1, 1]; above 0 where the teacher does better.

        The longer the prefix, the fewer rollouts reach it: compare depths with that in mind.

    Raises
    ------
    ConfigError
        A depth is below 0, not below `max_new_tokens`, or given twice; or `step` is not graded.
    PromptError
        A rollout's prompt is not among `prompts`.

    References
    ----------
    §6.1 and Fig. 11b: 0.366, 0.271, 0.152 and 0.024 from 1K to 16K tokens; the gain falls as the
    prefix grows.
    """
    if sorted(set(depths)) != sorted(depths) or not all(0 <= d < max_new_tokens for d in depths):
        raise ConfigError(
            f"depths are {list(depths)}; expected different numbers from 0 to "
            f"{max_new_tokens - 1}, one below max_new_tokens."
        )
    student = step["correct"].values.astype(np.float64)
    if np.isnan(student).any():
        raise ConfigError(
            f"{np.isnan(student).sum()} of {student.size} rollouts are not graded; sample them "
            "with the grader of prompts with answers."
        )
    own = _prompts_of(step, {prompt.id: prompt for prompt in prompts})
    starts, responses = token_rows(step, "prompt"), token_rows(step, "response")
    score = np.full((len(depths), len(own)), np.nan)
    for row, depth in zip(score, depths, strict=True):
        reach = [i for i, response in enumerate(responses) if len(response) > depth]
        rows = [starts[i] + responses[i][:depth] for i in reach]
        room = max_new_tokens - depth
        for n, batch in enumerate(_batches([len(r) + room for r in rows], max_tokens)):
            rollouts = sample(
                teacher,
                [rows[b] for b in batch],
                max_new_tokens=room,
                eos_ids=eos_ids(teacher, tokenizer),
                pad_id=padding_id(tokenizer),
                temperature=temperature,
                top_p=top_p,
                generator=step_generator(seed, depth * len(rows) + n, teacher.device),
                width=width,
            )
            which = [reach[b] for b in batch]
            whole = [
                responses[i][:depth] + rest
                for i, rest in zip(which, rollouts.response_ids, strict=True)
            ]
            row[which] = grade_rollouts(tokenizer, whole, [own[i] for i in which], grader)
    dims = ("depth", "rollout")
    own_score = np.where(np.isnan(score), np.nan, student)
    return xr.Dataset(
        {
            "teacher": (dims, score, {"units": "1", "long_name": "teacher's continuation"}),
            "student": (dims, own_score, {"units": "1", "long_name": "student's continuation"}),
            "gain": (dims, score - own_score, {"units": "1", "long_name": "continuation gain"}),
        },
        {"depth": ("depth", list(depths), {"units": "1", "long_name": "prefix length in tokens"})},
    )


def _prompts_of(step: xr.Dataset, by_id: Mapping[str, Prompt]) -> list[Prompt]:
    ids = [str(name) for name in step["prompt_id"].values]
    if missing := sorted(set(ids) - set(by_id)):
        raise PromptError(
            f"{len(missing)} prompts of the step are not among those given, the first is "
            f"{missing[0]!r}; pass the prompts that were sampled."
        )
    return [by_id[name] for name in ids]


def token_rows(step: xr.Dataset, part: str) -> list[list[int]]:
    """Token ids of each rollout's ``prompt`` or ``response``."""
    lengths: NDArray = step["length" if part == "response" else "prompt_length"].values
    return [ids.tolist() for ids in np.split(step[f"{part}_ids"].values, np.cumsum(lengths)[:-1])]


def _batches(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Rows of similar length together, at most `max_tokens` with their padding."""
    order, out = sorted(range(len(lengths)), key=lambda i: -lengths[i]), []
    while order:
        size = max(1, max_tokens // lengths[order[0]])
        out.append(order[:size])
        order = order[size:]
    return out
