"""The command ``opdprobe preflight``."""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opdprobe.cli.runs import console, progress
from opdprobe.errors import ConfigError

if TYPE_CHECKING:
    from opdprobe.preflight import Preflight
    from opdprobe.train.memory import Job

# Processes by default: no more, since there are only a few batches to share.
_MOST_WORKERS = 4
# Parameters times response tokens from which several processes are the default: about 100 seconds
# of one core of `docs/preflight.md`, where each process takes about ten to start.
_WORTH_SHARING = 4e11


def preflight(arguments: argparse.Namespace) -> None:
    """Measure a pair before training and print the verdict, or rank several teachers."""
    import transformers

    from opdprobe.cli.models import (
        loading,
        longest_prompt,
        longest_teacher_prompt,
        models,
        tell_memory,
    )
    from opdprobe.cli.names import (
        reading,
        resolve_model,
        resolve_prompts,
        teacher_context,
        template_settings,
    )
    from opdprobe.hooks.served import ServedModel
    from opdprobe.models.devices import resolve_device
    from opdprobe.preflight import Ranking, preflight, rank_teachers
    from opdprobe.preflight.procedure import Sizes, planned
    from opdprobe.preflight.show import rendered, rendered_ranking
    from opdprobe.rollout.prompts import BOXED_TEMPLATE, DAPO_TEMPLATE

    transformers.utils.logging.disable_progress_bar()
    options = loading(arguments)
    prompts, grader = resolve_prompts(arguments.prompts, **reading(arguments))
    known = {"boxed": BOXED_TEMPLATE, "dapo": DAPO_TEMPLATE}
    context = teacher_context(arguments)
    longest = longest_prompt(prompts, arguments.max_prompt_length)
    device = resolve_device(options["device"])
    given = {
        name: size
        for name in ("n_prompts", "max_completion_length")
        if (size := getattr(arguments, name)) is not None
    }
    sizes = replace(Sizes.of(device), **given)
    few = replace(sizes, n_prompts=min(sizes.n_prompts, len(prompts)))
    job = planned(
        few,
        arguments.num_generations,
        longest,
        teacher_prompt_length=longest_teacher_prompt(prompts, context, longest),
    )
    names = arguments.teacher
    if len(set(names)) < len(names):
        raise ConfigError(f"--teacher {', '.join(names)}; expected each teacher once.")
    for name in names:
        if "=" in name and not Path(name).exists():
            raise ConfigError(
                f"--teacher {name}; expected --teacher MODEL, once for each model: preflight has "
                "each teacher answer the prompts, so it judges and ranks them one by one. What a "
                "mixture, or a teacher by label, changes at the student's states is measured by "
                "`opdprobe probe` with the same options."
            )
    arguments.teacher = names[0]
    tokens = few.n_prompts * arguments.num_generations * few.max_completion_length
    workers = arguments.workers or _workers(arguments, options, job, tokens)
    student, teacher, tokenizers = models(arguments, options, job, workers=workers)
    teachers = {names[0]: teacher} | {name: resolve_model(name) for name in names[1:]}
    for other in names[1:]:
        tell_memory(
            resolve_model(arguments.student), teachers[other], job, options, workers=workers
        )
    own = arguments.student
    if arguments.drop_layers:
        own += f" without layers {arguments.drop_layers}"
    settings: dict[str, Any] = dict(
        grader=grader,
        templates={str(text): known.get(text, str(text)) for text in arguments.template},
        n_prompts=sizes.n_prompts,
        num_generations=arguments.num_generations,
        k=arguments.k,
        max_completion_length=sizes.max_completion_length,
        temperature=arguments.temperature,
        max_prompt_length=arguments.max_prompt_length,
        on_error=arguments.on_error,
        **template_settings(arguments),
        teacher_context=context,
        seed=arguments.seed,
        sampler=ServedModel(arguments.sampler) if arguments.sampler else None,
        workers=workers,
        **tokenizers,
        **options,
    )
    what = "measurement" if len(names) == 1 else "teacher"
    with progress() as show:
        settings["on_progress"] = lambda done, total: show(what, done, total)
        if len(names) == 1:
            found = preflight(student, teacher, prompts, **settings)
            result = _named(found, student=own, teacher=names[0])
        else:
            ranking = rank_teachers(student, teachers, prompts, **settings)
            result = replace(
                ranking, found=tuple(_named(one, student=own) for one in ranking.found)
            )
    if arguments.json:
        print(json.dumps(result.to_dict()))
    else:
        console.print(rendered_ranking(result) if isinstance(result, Ranking) else rendered(result))


def _workers(
    arguments: argparse.Namespace, options: dict[str, Any], job: "Job", tokens: int
) -> int:
    """Choose the number of processes: several if they save more time than they take to start."""
    import torch

    from opdprobe.cli.names import resolve_model
    from opdprobe.errors import ModelError
    from opdprobe.models.devices import resolve_device
    from opdprobe.models.sizes import ModelSize, UnknownSizeError
    from opdprobe.train.memory import told

    device = resolve_device(options["device"])
    workers = min(torch.get_num_threads(), _MOST_WORKERS)
    if device.type != "cpu" or workers == 1:
        return 1
    student, teacher = resolve_model(arguments.student), resolve_model(arguments.teacher)
    try:
        parameters = ModelSize.of(teacher).parameters
    except (ModelError, UnknownSizeError):  # loading, and the line on memory, say why
        return 1
    if parameters * tokens < _WORTH_SHARING:
        return 1
    precise = {name: options[name] for name in ("dtype", "teacher_dtype")}
    _, short = told(student, [teacher], job, device=device, workers=workers, **precise)
    return 1 if short else workers


def _named(found: "Preflight", **names: str) -> "Preflight":
    """Name models as the user does, not by their configurations."""
    return replace(found, settings={**found.settings, **names})
