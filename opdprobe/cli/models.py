"""What the commands that load models share: their options, and a line on the memory they need."""

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opdprobe.cli.names import resolve_model, resolve_teachers
from opdprobe.cli.runs import errors
from opdprobe.errors import ConfigError, PromptError
from opdprobe.rollout.prompts import Prompt
from opdprobe.rollout.teacher_context import TeacherContext

if TYPE_CHECKING:
    from opdprobe.train.memory import Job

# Tokens that a chat template adds, about.
_TEMPLATE = 32
_OPTIONS = ("device", "dtype", "teacher_dtype", "attn_implementation")


def loading(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return a command's options on devices and precision; refuse a device that is not there."""
    from opdprobe.models.devices import resolve_device

    given = {name: getattr(arguments, name) for name in _OPTIONS}
    given["device"] = given["device"] or "auto"
    if "WORLD_SIZE" not in os.environ:  # else the launcher chooses, and is asked later
        resolve_device(given["device"])
    return given


def longest_prompt(prompts: Sequence[Prompt], max_prompt_length: int) -> int:
    """Return about how many tokens the longest prompt has: the characters are an upper bound."""
    return min(max_prompt_length, max(map(_characters, prompts), default=0) + _TEMPLATE)


def longest_teacher_prompt(
    prompts: Sequence[Prompt], context: TeacherContext, longest: int
) -> int | None:
    """Return about how many tokens the longest prompt has that the teacher reads.

    Parameters
    ----------
    prompts, context
        The prompts, and how the teacher's differ.
    longest
        What `longest_prompt` returned.

    Returns
    -------
    int or None
        None if the teacher reads what the student reads. There is no limit to its prompts.
    """
    if context.is_shared and not any(prompt.has_own_teacher for prompt in prompts):
        return None
    found = longest
    for prompt in prompts:
        if context.prompt is None and prompt.teacher is None:
            continue  # its wording is the student's
        try:
            found = max(found, _characters(context.of(prompt)) + _TEMPLATE)
        except PromptError:
            continue  # encoding the prompts says what is wrong, or leaves the row out
    return found + len(context.system_prompt or "")


def _characters(prompt: Prompt) -> int:
    return len(prompt.text or "".join(str(message["content"]) for message in prompt.messages))


def tell_memory(
    student: str | Path,
    teacher: "str | Path | Mapping[str, str | Path]",
    job: "Job",
    options: dict[str, Any],
    *,
    one_teacher_at_a_time: bool = False,
    workers: int = 1,
) -> None:
    """Print on stderr what a job will take, before its models are read."""
    from opdprobe.models.devices import resolve_device
    from opdprobe.train.memory import told

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return  # each process has its share of the work, and with FSDP of the weights
    line, short = told(
        student,
        [*teacher.values()] if isinstance(teacher, Mapping) else [teacher],
        job,
        device=resolve_device(options["device"]),
        dtype=options["dtype"],
        teacher_dtype=options["teacher_dtype"],
        together=not one_teacher_at_a_time,
        workers=workers,
    )
    if line:
        errors.print(line, style="yellow" if short else None, markup=False, soft_wrap=True)


def names(arguments: argparse.Namespace) -> tuple[str | Path, Any]:
    """Return the names or paths of student and teacher; a mapping of several teachers."""
    given = arguments.teacher
    if isinstance(given, str):  # a command that knows one teacher
        return resolve_model(arguments.student), resolve_model(given)
    return resolve_model(arguments.student), resolve_teachers(given, arguments.teacher_by)


def models(
    arguments: argparse.Namespace, options: dict[str, Any], job: "Job", *, workers: int = 1
) -> tuple[Any, Any, dict[str, Any]]:
    """Print what a job will take; return student, teacher, and the student's tokenizer if read.

    The student is loaded only if layers are to be dropped from it; then the tokenizers are compared
    before that.
    """
    layers = _layers(arguments.drop_layers) if arguments.drop_layers else None
    student, teacher = names(arguments)
    one = getattr(arguments, "one_teacher_at_a_time", False)
    tell_memory(student, teacher, job, options, one_teacher_at_a_time=one, workers=workers)
    if layers is None:
        return student, teacher, {}
    from opdprobe.models.load import drop_layers, load_model, load_tokenizer
    from opdprobe.models.vocabulary import shared_vocabulary

    tokenizer = load_tokenizer(student)
    for name in teacher.values() if isinstance(teacher, Mapping) else [teacher]:
        shared_vocabulary(tokenizer, load_tokenizer(name))
    own = {name: options[name] for name in ("device", "dtype", "attn_implementation")}
    whole = load_model(student, **own)
    return drop_layers(whole, layers), teacher, {"tokenizer": tokenizer}


def _layers(text: str) -> range:
    first, dash, last = text.partition("-")
    if not (dash and first.isdecimal() and last.isdecimal() and int(first) <= int(last)):
        raise ConfigError(f"--drop-layers {text!r}; expected A-B with A ≤ B, for example 14-17.")
    return range(int(first), int(last) + 1)
