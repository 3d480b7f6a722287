"""Names that the command line and the presets use for models and prompt sets.

``zoo:NAME`` is a model or a problem split of the testbed, the latter as ``zoo:SPLIT/TEMPLATE`` in
another wording; anything else is a path (or a hub id).
"""

from pathlib import Path

from opdprobe.rollout.grade import Grader, grade_math
from opdprobe.rollout.prompt_files import load_prompts
from opdprobe.rollout.prompts import Prompt
from opdprobe.testing.testbed.members import zoo_path
from opdprobe.testing.testbed.problems import DATA_SOURCE, problems
from opdprobe.testing.testbed.problems import grader as testbed_grader


def resolve_model(name: str) -> str | Path:
    """Turn ``zoo:sft-small`` into the directory of that model; leave any other name alone."""
    return zoo_path(name.removeprefix("zoo:")) if name.startswith("zoo:") else name


def resolve_prompts(name: str, limit: int | None = None) -> tuple[list[Prompt], Grader | None]:
    """Read a prompt set and choose how its answers are graded.

    Parameters
    ----------
    name
        ``zoo:SPLIT`` or ``zoo:SPLIT/TEMPLATE`` for testbed problems, or a parquet or JSON-lines
        file.
    limit
        Take the first so many; all by default, 2048 of the testbed's endless splits.

    Returns
    -------
    prompts : list of Prompt
    grader : callable or None
        None if a prompt has no answer; the testbed's if all of them come from there, by their
        column ``data_source``; else `opdprobe.rollout.grade.grade_math`.
    """
    if name.startswith("zoo:"):
        split, _, template = name.removeprefix("zoo:").partition("/")
        n = 2048 if limit is None else limit
        return problems(n, split=split, template=template or "add"), testbed_grader
    prompts = load_prompts(name, limit=limit)
    if any(prompt.answer is None for prompt in prompts):
        return prompts, None
    own = all(prompt.meta.get("data_source") == DATA_SOURCE for prompt in prompts)
    return prompts, testbed_grader if own else grade_math
