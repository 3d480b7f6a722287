"""Names that the command line and the presets use for models and prompt sets.

``zoo:NAME`` is a model of the testbed. ``zoo:SPLIT`` is one of its problem splits, and
``zoo:SPLIT/TEMPLATE`` that split in another wording; ``real:SPLIT`` and ``real:SPLIT/WORDING`` are
the same of the word problems in English. Any other name is a path or a hub id.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from opdprobe.errors import ConfigError
from opdprobe.rollout.grade import Grader, grade_math
from opdprobe.rollout.prompt_files import load_prompts
from opdprobe.rollout.prompts import OnError, Prompt
from opdprobe.rollout.teacher_context import TeacherContext
from opdprobe.store.safe_text import parse_json, parse_yaml
from opdprobe.testing.real import problems as real
from opdprobe.testing.testbed.members import zoo_path
from opdprobe.testing.testbed.problems import DATA_SOURCE, problems
from opdprobe.testing.testbed.problems import grader as testbed_grader


def resolve_model(name: str) -> str | Path:
    """Turn ``zoo:sft-small`` into the directory of that model; leave any other name alone."""
    return zoo_path(name.removeprefix("zoo:")) if name.startswith("zoo:") else name


def resolve_teachers(given: Sequence[str], by: str | None) -> str | Path | dict[str, str | Path]:
    """Return the teacher, or several by name.

    Parameters
    ----------
    given
        A name of a model; with `by`, ``NAME=MODEL`` twice or more; without, ``WEIGHT=MODEL`` twice
        or more is a mixture.
    by
        Column of the prompts that names the teacher; None: there is one teacher, or a mixture.

    Raises
    ------
    ConfigError
        There are several without `by` or weights; or, with `by`, a teacher has no name, or one that
        another has.

    Examples
    --------
    >>> resolve_teachers(["math=my/math", "code=my/code"], "domain")
    {'math': 'my/math', 'code': 'my/code'}
    """
    if by is None:
        if len(given) > 1:
            return _mixture(given)
        return resolve_model(given[0])
    found: dict[str, str | Path] = {}
    for text in given:
        name, equals, model = text.partition("=")
        if not (name and equals and model) or name in found:
            raise ConfigError(
                f"--teacher {text!r} with --teacher-by {by}; expected NAME=MODEL, with a value of "
                "this column as NAME, and each of them once."
            )
        found[name] = resolve_model(model)
    return found


def _mixture(given: Sequence[str]) -> dict[str, str | Path]:
    from opdprobe.rollout.mixture import Mixture

    teachers: dict[str, str | Path] = {}
    weights: dict[str, float] = {}
    for text in given:
        weight, _, model = text.partition("=")
        try:
            weights[model] = float(weight)
        except ValueError:
            model = ""
        if not model or model in teachers:
            raise ConfigError(
                f"{len(given)} teachers; expected one, or --teacher NAME=MODEL for each with "
                "--teacher-by COLUMN, the column of the prompts that names the teacher, or "
                "--teacher WEIGHT=MODEL for each of a mixture, no model twice."
            ) from None
        teachers[model] = resolve_model(model)
    return Mixture(teachers, weights)


def reading(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return a command's options for `resolve_prompts`."""
    return {
        name: getattr(arguments, name) for name in ("prompt_column", "answer_column", "on_error")
    }


def template_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return a command's options for `opdprobe.rollout.prompts.encode_prompts` that were given."""
    found = {
        "chat_template_kwargs": chat_template_kwargs(arguments.chat_template_kwargs or []),
        "system_prompt": arguments.system_prompt,
    }
    return {name: value for name, value in found.items() if value is not None}


def teacher_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return a command's settings of the teacher's context that were given, as in OPDConfig."""
    variables = chat_template_kwargs(
        arguments.teacher_chat_template_kwargs or [], "--teacher-chat-template-kwargs"
    )
    found = {
        "teacher_prompt": arguments.teacher_prompt,
        "teacher_system_prompt": arguments.teacher_system_prompt,
        "teacher_chat_template_kwargs": variables,
        "teacher_template": arguments.teacher_template,
    }
    return {name: value for name, value in found.items() if value is not None}


def teacher_context(arguments: argparse.Namespace) -> TeacherContext:
    """Return how the teacher's prompts differ, by a command's options."""
    given = teacher_settings(arguments)
    return TeacherContext(**{name.removeprefix("teacher_"): v for name, v in given.items()})


def chat_template_kwargs(
    texts: Sequence[str], option: str = "--chat-template-kwargs"
) -> dict[str, Any] | None:
    """Parse variables for the chat template.

    Parameters
    ----------
    texts
        ``NAME=VALUE`` with a value as YAML reads it, or JSON objects; later ones precede.
    option
        What they were given as, for messages.

    Returns
    -------
    dict or None
        None if there is no text.

    Raises
    ------
    ConfigError
        A text is neither.

    Examples
    --------
    >>> chat_template_kwargs(["enable_thinking=off", "reasoning_effort=low"])
    {'enable_thinking': False, 'reasoning_effort': 'low'}
    >>> chat_template_kwargs(['{"enable_thinking": true}'])
    {'enable_thinking': True}
    """
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        try:
            if text.lstrip().startswith("{"):
                found |= parse_json(text)
                continue
            parsed = parse_yaml(value) if equals and name.isidentifier() else None
        except ValueError:
            parsed = None
        if parsed is None:
            raise ConfigError(
                f"{option} {text!r}; expected NAME=VALUE, such as "
                "enable_thinking=true, or a JSON object."
            )
        # YAML reads dates, too; a template is given the text.
        found[name] = parsed if isinstance(parsed, bool | int | float | list | dict) else value
    return found or None


def resolve_prompts(
    name: str,
    limit: int | None = None,
    *,
    prompt_column: str = "prompt",
    answer_column: str | None = None,
    on_error: OnError = "raise",
) -> tuple[list[Prompt], Grader | None]:
    """Read a prompt set and choose how its answers are graded.

    Parameters
    ----------
    name
        ``zoo:SPLIT`` or ``zoo:SPLIT/TEMPLATE`` for testbed problems, ``real:SPLIT`` or
        ``real:SPLIT/WORDING`` for word problems, or what `load_prompts` reads.
    limit
        Use only the first `limit` prompts. Default: the whole file, or 2048 from a split of a
        built-in world (these are infinite).
    prompt_column, answer_column, on_error
        For a file, as in `load_prompts`.

    Returns
    -------
    prompts : list of Prompt
    grader : callable or None
        None if any prompt has no answer; a built-in world's grader if every prompt comes from that
        world, by its column ``data_source``; otherwise `opdprobe.rollout.grade.grade_math`.
    """
    if name.startswith("zoo:"):
        split, _, template = name.removeprefix("zoo:").partition("/")
        n = 2048 if limit is None else limit
        return problems(n, split=split, template=template or "add"), testbed_grader
    if name.startswith("real:"):
        split, _, wording = name.removeprefix("real:").partition("/")
        n = 2048 if limit is None else limit
        return real.problems(n, split=split, wording=wording or "plain"), real.grader
    prompts = load_prompts(
        name,
        limit=limit,
        prompt_column=prompt_column,
        answer_column=answer_column,
        on_error=on_error,
    )
    if any(prompt.answer is None for prompt in prompts):
        return prompts, None
    for source, own in ((DATA_SOURCE, testbed_grader), (real.DATA_SOURCE, real.grader)):
        if all(prompt.meta.get("data_source") == source for prompt in prompts):
            return prompts, own
    return prompts, grade_math
