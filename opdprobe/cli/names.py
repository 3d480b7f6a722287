"""Names that the command line and the presets use for models and prompt sets.

``zoo:NAME`` is a model of the testbed. ``zoo:SPLIT`` is one of its problem splits, and
``zoo:SPLIT/TEMPLATE`` that split in another wording. Any other name is a path or a hub id.
"""

import argparse
from pathlib import Path
from typing import Any

from opdprobe.rollout.grade import Grader, grade_math
from opdprobe.rollout.prompt_files import load_prompts
from opdprobe.rollout.prompts import OnError, Prompt
from opdprobe.testing.testbed.members import zoo_path
from opdprobe.testing.testbed.problems import DATA_SOURCE, problems
from opdprobe.testing.testbed.problems import grader as testbed_grader


def resolve_model(name: str) -> str | Path:
    """Turn ``zoo:sft-small`` into the directory of that model; leave any other name alone."""
    return zoo_path(name.removeprefix("zoo:")) if name.startswith("zoo:") else name


def reading(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return a command's options for `resolve_prompts`."""
    return {
        name: getattr(arguments, name) for name in ("prompt_column", "answer_column", "on_error")
    }


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
        ``zoo:SPLIT`` or ``zoo:SPLIT/TEMPLATE`` for testbed problems, or a file.
    limit
        Use only the first `limit` prompts. Default: the whole file, or 2048 from a testbed split
        (these are infinite).
    prompt_column, answer_column, on_error
        For a file, as in `load_prompts`.

    Returns
    -------
    prompts : list of Prompt
    grader : callable or None
        None if any prompt has no answer; the testbed's grader if every prompt comes from the
        testbed, by its column ``data_source``; otherwise `opdprobe.rollout.grade.grade_math`.
    """
    if name.startswith("zoo:"):
        split, _, template = name.removeprefix("zoo:").partition("/")
        n = 2048 if limit is None else limit
        return problems(n, split=split, template=template or "add"), testbed_grader
    prompts = load_prompts(
        name,
        limit=limit,
        prompt_column=prompt_column,
        answer_column=answer_column,
        on_error=on_error,
    )
    if any(prompt.answer is None for prompt in prompts):
        return prompts, None
    own = all(prompt.meta.get("data_source") == DATA_SOURCE for prompt in prompts)
    return prompts, testbed_grader if own else grade_math
