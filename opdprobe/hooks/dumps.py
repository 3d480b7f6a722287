"""Make a run from rollouts that a trainer or an evaluation dumped, without sampling."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from opdprobe.errors import ConfigError, RolloutError
from opdprobe.hooks.given import score_rollouts
from opdprobe.models.chat_template import turn_end
from opdprobe.models.load import load_tokenizer
from opdprobe.models.processes import Processes
from opdprobe.models.vocabulary import eos_ids
from opdprobe.rollout.caches import TeacherCache, find_cache
from opdprobe.rollout.dumps.growing import GrowingDump
from opdprobe.rollout.dumps.read import DumpReader
from opdprobe.rollout.dumps.text import TextCounts, TextEncoder
from opdprobe.rollout.prompt import OnError
from opdprobe.rollout.rollout import Rollout
from opdprobe.store import Run, open_run

if TYPE_CHECKING:
    import torch

    from opdprobe.hooks.served import ServedModel

# What a rollout may not tell, in words.
_UNTOLD = {
    "correct": "grade",
    "finished": "whether the response ended by itself",
    "sampler_logp": "the sampler's log-probabilities",
    "student_logp": "the trained student's log-probabilities",
    "teacher_logp": "the teacher's log-probabilities",
}


@dataclass(frozen=True)
class Imported:
    """What an import did.

    Parameters
    ----------
    run
        The run.
    format
        The dumps' format, of `opdprobe.rollout.dumps.FORMATS`, or a cache's, as
        `opdprobe.rollout.caches.find_cache` returns it.
    level
        "A": the dumps have both models' top-k lists; "B": token ids; "C": text; "T": a cache of the
        teacher's lists.
    rows
        Rollouts that were read.
    rows_left_out
        Rows that could not be used, with ``on_error="skip"``.
    steps, steps_before
        Steps in the dumps; of these, those that the run had already, which were left as they are.
    untold
        For each thing that some rollouts do not tell, how many do not.
    text
        What became of text; None if the dumps have token ids.
    files_left_out
        Files that were not read, and why.
    """

    run: Run
    format: str
    level: str
    rows: int
    rows_left_out: int
    steps: int
    steps_before: int
    untold: Mapping[str, int]
    text: TextCounts | None
    files_left_out: Sequence[str] = field(default=())


def import_rollouts(
    dumps: str | Path | Sequence[str | Path],
    run_dir: str | Path,
    *,
    student: PreTrainedModel | ServedModel | str | Path | None = None,
    teacher: PreTrainedModel | ServedModel | str | Path | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    format: str | None = None,
    step: int | None = None,
    on_error: OnError = "raise",
    chat_template_kwargs: Mapping[str, Any] | None = None,
    k: int | None = None,
    temperature: float = 1.0,
    micro_batch_tokens: int = 16384,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype | None = None,
    teacher_dtype: str | torch.dtype | None = None,
    attn_implementation: str | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    wait: Callable[[str], bool] | None = None,
    limit: int | None = None,
) -> Imported:
    """Make a run from rollouts that exist already.

    Nothing is sampled. Dumps with both models' top-k lists, or with both models' log-probabilities
    of the drawn tokens, need no model; token ids are scored by a student and a teacher; text is put
    through the student's chat template and tokenised anew first. One step is in memory at a time.

    The same call resumes after an interruption, and adds steps that were dumped since.

    Parameters
    ----------
    dumps, format, step, on_error
        As `paths` and the others for `opdprobe.rollout.dumps.read_dumps`.
    run_dir : str or Path
        Where the run is recorded.
    student, teacher : PreTrainedModel, ServedModel, str or Path, optional
        Both, or neither; a student alone, if `dumps` is a `TeacherCache`'s path, which then is the
        teacher. One student scores all steps: its distributions are those of that model,
        not of the checkpoint that sampled.
    tokenizer : PreTrainedTokenizerBase, optional
        By default, the one saved with the student.
    chat_template_kwargs : mapping, optional
        For text: variables for the chat template, which must be those of the trainer. Unlike
        elsewhere, ``enable_thinking`` is not given by default, since trainers do not give it.
    k : int, optional
        Number of top tokens kept; by default 16, or as many as the dumps' lists have.
    temperature, micro_batch_tokens, device, dtype, teacher_dtype, attn_implementation
        As for `opdprobe.score_rollouts`.
    on_progress : callable, optional
        Called with (files done, files in total).
    wait : callable, optional
        For dumps that are still being written: called with what is waited for, after all complete
        steps were imported; returns True after a while, or False to import the rest and end. A step
        is complete when a later one has begun; a half-written last line is waited for. By default,
        the dumps are taken as complete.

    Returns
    -------
    Imported
        The run, and what the dumps told and did not tell.

    Raises
    ------
    RolloutError
        A file or a row cannot be used, or its step comes back after another one; names it.
    ConfigError
        The dumps need models that are not given, or only one is.
    StoreError
        `run_dir` holds something else, or a run made with other settings.
    ModelError, VocabularyError
        A model cannot be used.
    """
    cache = _cache(dumps) if format is None and wait is None else None
    if cache is not None and student is not None:
        return _imported_cache(
            cache,
            run_dir,
            student,
            teacher,
            tokenizer,
            k=k,
            limit=limit,
            on_error=on_error,
            chat_template_kwargs=chat_template_kwargs,
            temperature=temperature,
            micro_batch_tokens=micro_batch_tokens,
            device=device,
            dtype=dtype,
            teacher_dtype=teacher_dtype,
            attn_implementation=attn_implementation,
        )
    if cache is not None:
        raise ConfigError(
            f"{cache}: a cache of a teacher's lists, without a student; expected the student to "
            "score beside it (student=, --student)."
        )
    if (student is None) != (teacher is None):
        raise ConfigError("only one of student and teacher is given; expected both, or neither.")
    if wait is None:
        reader = DumpReader(dumps, format, step=step, on_error=on_error, on_progress=on_progress)
    elif Processes.launched().size > 1:
        raise ConfigError(
            "dumps that grow are imported by one process: start it without a launcher."
        )
    else:
        reader = GrowingDump(dumps, format, wait=wait, step=step, on_error=on_error)
    rollouts = iter(reader)
    first = next((rollout for rollout in rollouts if rollout is not None), None)
    if first is None:
        raise RolloutError(f"{reader.files[0]}: no rollout; expected {reader.format.files}.")
    _check_models(first, student is not None)
    if tokenizer is None and isinstance(student, str | Path):
        tokenizer = load_tokenizer(student)
    encoder = None
    if tokenizer is not None:
        encoder = TextEncoder(tokenizer, _eos_ids(student, tokenizer), chat_template_kwargs)
    elif first.response_ids is None:
        raise ConfigError(
            f"{first.source}: text, and a student that brings no tokenizer: give it with "
            "--tokenizer (tokenizer=)."
        )
    if student is None and first.top is not None:
        k = k or first.top.token_id.shape[-1]
    tally = _Tally(_steps(run_dir))
    run = score_rollouts(
        student,
        teacher,
        tally.counted(reader.each(islice(chain([first], rollouts), limit), encoder)),
        run_dir,
        k=k or 16,
        temperature=temperature,
        micro_batch_tokens=micro_batch_tokens,
        tokenizer=tokenizer,
        attrs={"recorded_by": "import_rollouts", "dump": reader.format.name},
        device=device,
        dtype=dtype,
        teacher_dtype=teacher_dtype,
        attn_implementation=attn_implementation,
    )
    return Imported(
        run=run,
        format=reader.format.name,
        level=_level(first),
        rows=tally.rows,
        rows_left_out=reader.rows_left_out,
        steps=len(tally.steps),
        steps_before=len(tally.steps & tally.before),
        untold=tally.told(),
        text=encoder.counts if encoder and encoder.counts.rows else None,
        files_left_out=tuple(reader.left_out),
    )


def _cache(dumps: str | Path | Sequence[str | Path]) -> Path | None:
    """Return the path of a cache; None if dumps of rollouts are named."""
    named = [dumps] if isinstance(dumps, str | os.PathLike) else list(dumps)
    if len(named) != 1 or not Path(named[0]).expanduser().exists():
        return None
    return Path(named[0]) if find_cache(named[0]) else None


def _imported_cache(
    path: Path,
    run_dir: str | Path,
    student: Any,
    teacher: Any,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    k: int | None,
    limit: int | None,
    on_error: OnError,
    chat_template_kwargs: Mapping[str, Any] | None,
    **settings: Any,
) -> Imported:
    """Score a cache's texts with a student, beside the cache or another teacher."""
    if tokenizer is None and isinstance(student, str | Path):
        tokenizer = load_tokenizer(student)
    cache = TeacherCache(
        path,
        tokenizer=tokenizer,
        on_error=on_error,
        chat_template_kwargs=chat_template_kwargs,
    )
    rollouts = cache.rollouts()
    first = next(rollouts, None)
    if first is None or first.teacher_lists is None:
        raise RolloutError(f"{path}: no text; expected some, with the teacher's lists.")
    tally = _Tally(_steps(run_dir), ("correct", "finished"))
    run = score_rollouts(
        student,
        cache if teacher is None else teacher,
        tally.counted(islice(chain([first], rollouts), limit)),
        run_dir,
        k=k or min(16, int((first.teacher_lists.token_id >= 0).sum(-1).max())),
        tokenizer=tokenizer,
        attrs={"recorded_by": "import_rollouts", "dump": cache.format},
        **settings,
    )
    return Imported(
        run=run,
        format=cache.format,
        level="T",
        rows=tally.rows,
        rows_left_out=cache.rows_left_out,
        steps=len(tally.steps),
        steps_before=len(tally.steps & tally.before),
        untold=tally.told(),
        text=None,
    )


class _Tally:
    """Counts rollouts as they pass, and what they do not tell."""

    def __init__(self, before: Iterable[int], asked: Iterable[str] = tuple(_UNTOLD)):
        self.asked = list(asked)
        self.before = set(before)
        self.steps: set[int] = set()
        self.rows = 0
        self.untold: Counter[str] = Counter()

    def counted(self, rollouts: Iterable[Rollout | None]) -> Iterator[Rollout | None]:
        for rollout in rollouts:
            if rollout is None:
                yield None
                continue
            self.rows += 1
            self.steps.add(rollout.step)
            self.untold["correct"] += math.isnan(rollout.correct)
            for name in ("finished", "student_logp", "teacher_logp"):
                self.untold[name] += getattr(rollout, name) is None
            # With top-k lists, the student is the engine that sampled.
            self.untold["sampler_logp"] += rollout.sampler_logp is None and rollout.top is None
            yield rollout

    def told(self) -> dict[str, int]:
        """Say how many rollouts do not tell something, in words."""
        return {_UNTOLD[name]: self.untold[name] for name in self.asked if self.untold[name]}


def _level(rollout: Rollout) -> str:
    if rollout.top is not None:
        return "A"
    return "C" if rollout.response_ids is None else "B"


def _check_models(first: Rollout, are_given: bool) -> None:
    """Refuse what cannot become a run: no models where they are needed, or no prompts for them."""
    if are_given and first.prompt_ids is not None and not len(first.prompt_ids):
        raise ConfigError(
            f"{first.source}: the dump has no prompts, so no model can score its responses: leave "
            "out --student and --teacher (student=, teacher=)."
        )
    scored = first.student_logp is not None and first.teacher_logp is not None
    if are_given or first.top is not None or (scored and first.response_ids is not None):
        return
    what = {"B": "token ids, without log-probabilities of both models", "C": "text"}[_level(first)]
    raise ConfigError(
        f"{first.source}: {what}; expected models that score it: give --student and --teacher "
        "(student=, teacher=)."
    )


def _steps(run_dir: str | Path) -> list[int]:
    return open_run(run_dir).steps if Path(run_dir, "run.json").exists() else []


def _eos_ids(student: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens that end a response: the student's, the tokenizer's, and what ends a turn."""
    end = turn_end(tokenizer)
    found = set(end.ids[:1] if end else ())
    if isinstance(student, PreTrainedModel):
        return sorted(found | set(eos_ids(student, tokenizer)))
    if isinstance(tokenizer.eos_token_id, int):
        found.add(tokenizer.eos_token_id)
    settings = Path(student, "generation_config.json") if isinstance(student, str | Path) else None
    if settings is not None and settings.is_file():
        named = GenerationConfig.from_pretrained(str(student)).eos_token_id
        found |= set(np.atleast_1d(named).tolist()) if named is not None else set()
    return sorted(found)
