"""Sample the teacher's responses, and mark those that are fit to learn from (paper §5.1)."""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from opdprobe.errors import ConfigError
from opdprobe.models.vocabulary import eos_ids, padding_id
from opdprobe.rollout.memory import sample_in_parts
from opdprobe.rollout.prompts import EncodedPrompt, has_conversation
from opdprobe.rollout.sample import step_generator
from opdprobe.store.files import explain_unwritable, open_append, read_lines, write_text
from opdprobe.train.config import Config
from opdprobe.train.recipes.repetition import repeats
from opdprobe.train.sigterm import stop

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, all)."""

BATCH_SIZE = 64
"""Prompts sampled at once, by default."""

KEPT, TRUNCATED, REPETITIVE = "kept", "truncated", "repetitive"


@dataclass(frozen=True)
class TeacherSampling(Config):
    """How the teacher is sampled (Table 3, unless another source is named).

    Parameters
    ----------
    num_generations
        Responses per prompt; the paper does not state it.
    max_completion_length
        Longest response: 12,288.
    temperature, top_p
        0.7 and 0.95; a temperature of 0 takes the most probable token.
    batch_size
        Prompts sampled at once: bounds the memory. The random numbers depend on it.
    seed
        Seed of the responses.
    """

    num_generations: int = 1
    max_completion_length: int = 12288
    temperature: float = 0.7
    top_p: float = 0.95
    batch_size: int = BATCH_SIZE
    seed: int = 0

    _positive: ClassVar = ("num_generations", "max_completion_length", "top_p", "batch_size")
    _not_negative: ClassVar = ("temperature", "seed")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.top_p > 1:
            raise ConfigError(f"top_p = {self.top_p}; expected at most 1.")


@dataclass(frozen=True)
class TeacherResponse:
    """One line of ``examples.jsonl``.

    Parameters
    ----------
    prompt_id
        Id of the prompt that it answers.
    outcome
        ``kept``; ``repetitive``: it repeats itself (`opdprobe.train.recipes.repetition.repeats`),
        whether it ends or not; ``truncated``: it does not end.
    response
        Its text, without special tokens.
    response_ids
        Its token ids, including the one that ends it.
    """

    prompt_id: str
    outcome: str
    response: str
    response_ids: list[int]


def teacher_examples(
    teacher: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[EncodedPrompt],
    path: Path,
    sampling: TeacherSampling,
    *,
    width: int | None = None,
    on_progress: Progress | None = None,
    stopping: Callable[[], bool] = lambda: False,
) -> list[TeacherResponse]:
    """Sample the teacher, writing every response with its outcome.

    Resumes after the last complete batch in `path`. A batch depends only on its number, the seed
    and its prompts, not on what was sampled before.

    Parameters
    ----------
    teacher, tokenizer
        The model and the tokenizer it shares with the student.
    prompts
        Encoded prompts.
    path
        JSON lines, one per response; appended to.
    sampling
        Number and length of responses, temperature.
    width
        Sample from the first `width` ids only (`Pair.width`).
    on_progress
        Called with ("teacher responses", done, all).
    stopping
        Called after each batch but the last; if true, sampling stops there.

    Returns
    -------
    list of TeacherResponse
        In the order of `prompts`; the responses to a prompt are adjacent.

    Raises
    ------
    NonFiniteError
        The teacher's logits hold NaN.
    StoreError
        `path` cannot be read, or the disk is full.
    SystemExit
        `stopping` returned true; the next call resumes from there.
    """
    n, size = sampling.num_generations, sampling.batch_size
    total = len(prompts) * n
    done = _whole_batches(path, size * n, total)
    for start in range(len(done) // n, len(prompts), size):
        if on_progress:
            on_progress("teacher responses", len(done), total)
        some = prompts[start : start + size]
        rollouts = sample_in_parts(
            teacher,
            [prompt.ids for prompt in some],
            num_generations=n,
            max_completion_length=sampling.max_completion_length,
            eos_ids=eos_ids(teacher, tokenizer, conversations=has_conversation(some)),
            pad_id=padding_id(tokenizer),
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            generator=step_generator(sampling.seed, start // size, teacher.device),
            width=width,
        )
        texts = tokenizer.batch_decode(rollouts.response_ids, skip_special_tokens=True)
        # A response that loops until it is cut off counts as repetitive: a higher limit would not
        # help it.
        outcomes = [
            REPETITIVE if repetitive else KEPT if finished else TRUNCATED
            for repetitive, finished in zip(repeats(texts), rollouts.finished, strict=True)
        ]
        owners = [some[i].prompt.id for i in rollouts.prompt_index]
        columns = zip(owners, outcomes, texts, rollouts.response_ids, strict=True)
        batch = [TeacherResponse(*column) for column in columns]
        with explain_unwritable(f"writing to {path}"), open_append(path) as file:
            file.writelines((json.dumps(asdict(one)) + "\n").encode() for one in batch)
            file.flush()
            os.fsync(file.fileno())
        done += batch
        if len(done) < total and stopping():
            stop(path.parent, len(done), total, "teacher responses")
    if on_progress:
        on_progress("teacher responses", total, total)
    return done


def _whole_batches(path: Path, size: int, total: int) -> list[TeacherResponse]:
    """Read responses, and cut off the incomplete batch that a killed process left."""
    lines = read_lines(path)
    if len(lines) < total:
        lines = lines[: len(lines) - len(lines) % size]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    if path.exists() and path.read_text() != text:
        write_text(path, text)
    return [TeacherResponse(**line) for line in lines]
