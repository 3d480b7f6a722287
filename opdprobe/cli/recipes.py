"""The commands of the recipes (§5): choose and clean prompts, warm up a student."""

import argparse
import json
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from opdprobe.cli.runs import console, progress, settings
from opdprobe.errors import ConfigError, PromptError
from opdprobe.rollout.prompt_files import save_prompts
from opdprobe.rollout.prompts import BOXED_TEMPLATE, DAPO_TEMPLATE, Prompt
from opdprobe.train.config import SFTConfig

# Per strategy: the options it requires, and those it accepts.
_OPTIONS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "template": (("template",), ("n_prompts",)),
    "content": ((), ("n_prompts",)),
    "mixed": (("other", "n_prompts"), ("share",)),
    "max_divergence": (
        ("student", "teacher", "n_prompts"),
        (
            *("num_generations", "max_completion_length", "max_prompt_length"),
            *("device", "dtype", "teacher_dtype", "attn_implementation"),
            *("chat_template_kwargs", "system_prompt"),
        ),
    ),
}
# Defaults of max_divergence.
DIVERGENCE_GENERATIONS, DIVERGENCE_LENGTH, DIVERGENCE_PROMPT = 2, 512, 1024
# Number of removed pairs that `dedup` shows.
_SHOWN = 3


def cold_start(arguments: argparse.Namespace) -> None:
    """Warm a student up on its teacher's responses, print how many were used."""
    import transformers

    from opdprobe.cli.models import loading, longest_prompt, names, tell_memory
    from opdprobe.cli.names import reading, resolve_prompts, template_settings
    from opdprobe.train.memory import Job
    from opdprobe.train.optim import refuse_float16
    from opdprobe.train.recipes.cold_start import cold_start
    from opdprobe.train.recipes.teacher_responses import BATCH_SIZE

    transformers.utils.logging.disable_progress_bar()
    options = loading(arguments)
    refuse_float16(options["dtype"])
    config = SFTConfig(**settings(arguments.set, SFTConfig))
    prompts, _ = resolve_prompts(arguments.prompts, arguments.limit, **reading(arguments))
    job = Job(
        rollouts=min(BATCH_SIZE, len(prompts)) * arguments.num_generations,
        prompt_length=longest_prompt(prompts, arguments.max_prompt_length),
        max_completion_length=arguments.max_completion_length,
        micro_batch_tokens=config.micro_batch_tokens,
        trained=True,
        sampled=("teacher",),
    )
    student, teacher = names(arguments)
    tell_memory(student, teacher, job, options)
    with progress() as show:
        made = cold_start(
            student,
            teacher,
            prompts=prompts,
            config=config,
            out_dir=arguments.out,
            num_generations=arguments.num_generations,
            max_completion_length=arguments.max_completion_length,
            max_prompt_length=arguments.max_prompt_length,
            **template_settings(arguments),
            on_error=arguments.on_error,
            on_progress=show,
            **options,
        )
    if arguments.json:
        print(json.dumps({"model": str(made.path), "steps": made.n_steps, **made.counts}))
        return
    counts = ", ".join(f"{count} {outcome}" for outcome, count in made.counts.items())
    console.print(f"Teacher responses: {counts}.", soft_wrap=True)
    if 2 * made.counts["kept"] < sum(made.counts.values()):
        console.print("Most are unusable: raise --max-completion-length if they were truncated.")
    console.print(
        f"{made.path}: the student after SFT, steps: {made.n_steps}; next: "
        f"opdprobe train --student {shlex.quote(str(made.path))}",
        soft_wrap=True,
    )


def select(arguments: argparse.Namespace) -> None:
    """Choose or reword prompts, write them."""
    from opdprobe.cli.names import reading, resolve_prompts
    from opdprobe.train.recipes.select import mixed, template

    _check_options(arguments)
    _check_out(arguments.out, arguments.prompts, arguments.other)
    prompts, _ = resolve_prompts(arguments.prompts, **reading(arguments))
    report: dict[str, Any] = {"strategy": arguments.strategy, "read": len(prompts)}
    if arguments.strategy == "max_divergence":
        chosen = _most_divergent(arguments, prompts)
        report["reverse_kl"] = [prompt.meta["reverse_kl"] for prompt in chosen]
    elif arguments.strategy == "mixed":
        other, _ = resolve_prompts(arguments.other, **reading(arguments))
        share = 0.3 if arguments.share is None else arguments.share
        chosen = mixed(
            prompts, other, n_prompts=arguments.n_prompts, share=share, seed=arguments.seed
        )
        report["read_other"] = len(other)
    else:
        # The same draw for both, so that one seed gives the same problems in two wordings.
        chosen = prompts
        if arguments.n_prompts is not None:
            chosen = mixed(
                prompts, [], n_prompts=arguments.n_prompts, share=0.0, seed=arguments.seed
            )
        if arguments.strategy == "template":
            known, text = {"boxed": BOXED_TEMPLATE, "dapo": DAPO_TEMPLATE}, str(arguments.template)
            chosen = template(chosen, known.get(text, text))
    save_prompts(chosen, arguments.out)
    report |= {"written": len(chosen), "out": str(arguments.out)}
    if arguments.json:
        print(json.dumps(report))
        return
    console.print(
        f"{report['written']} prompts chosen by {report['strategy']}, written to {report['out']}.",
        soft_wrap=True,
    )
    if divergences := report.get("reverse_kl"):
        console.print(
            f"Mean reverse KL from {divergences[0]:.3g} down to {divergences[-1]:.3g} nats per "
            "state."
        )


def _check_options(arguments: argparse.Namespace) -> None:
    """Raise unless the strategy has every option that it requires, and none that it ignores."""
    strategy = arguments.strategy
    needed, allowed = _OPTIONS[strategy]
    names = sorted({name for pair in _OPTIONS.values() for group in pair for name in group})
    values = {name: getattr(arguments, name) for name in names}
    given = {name for name, value in values.items() if value is not None}
    if missing := [_flag(name) for name in needed if name not in given]:
        raise ConfigError(f"--strategy {strategy} also needs {', '.join(missing)}.")
    if useless := [_flag(name) for name in sorted(given - {*needed, *allowed})]:
        raise ConfigError(
            f"--strategy {strategy} does not use {', '.join(useless)}: leave that out."
        )


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _check_out(path: Path, *read: str | None) -> None:
    """Raise if `path` cannot or must not be written, before an hour is spent."""
    if path.suffix != ".jsonl" or not path.parent.is_dir():
        raise ConfigError(f"--out {path}; expected a .jsonl file in a directory that exists.")
    if path.resolve() in {Path(name).resolve() for name in read if name}:
        raise ConfigError(f"--out {path}: prompts are read from this file; choose another name.")


def _most_divergent(arguments: argparse.Namespace, prompts: list[Prompt]) -> list[Prompt]:
    """Choose prompts by divergence, and add each one's to its columns as ``reverse_kl``."""
    import transformers

    from opdprobe.cli.models import loading, longest_prompt, names, tell_memory
    from opdprobe.cli.names import template_settings
    from opdprobe.rollout.pair import Pair
    from opdprobe.train.memory import Job
    from opdprobe.train.recipes.select import CHUNK, max_divergence

    transformers.utils.logging.disable_progress_bar()
    options = loading(arguments)
    generations = arguments.num_generations or DIVERGENCE_GENERATIONS
    longest = arguments.max_completion_length or DIVERGENCE_LENGTH
    job = Job(
        rollouts=min(CHUNK, len(prompts)) * generations,
        prompt_length=longest_prompt(prompts, arguments.max_prompt_length or DIVERGENCE_PROMPT),
        max_completion_length=longest,
    )
    student, teacher = names(arguments)
    tell_memory(student, teacher, job, options)
    pair = Pair.load(student, teacher, **options)
    with progress() as show:
        chosen, divergence = max_divergence(
            pair,
            prompts,
            n_prompts=arguments.n_prompts,
            num_generations=generations,
            max_completion_length=longest,
            max_prompt_length=arguments.max_prompt_length or DIVERGENCE_PROMPT,
            **template_settings(arguments),
            on_error=arguments.on_error,
            seed=arguments.seed,
            on_progress=lambda done, total: show("prompt", done, total),
        )
    return [
        replace(prompt, meta={**prompt.meta, "reverse_kl": value})
        for prompt, value in zip(chosen, divergence.tolist(), strict=True)
    ]


def dedup(arguments: argparse.Namespace) -> None:
    """Remove the prompts that another set also contains, write the rest."""
    from opdprobe.cli.names import reading, resolve_prompts
    from opdprobe.train.recipes.dedup import (
        PAPER_MODEL,
        PAPER_THRESHOLD,
        exact_duplicates,
        sentence_encoder,
    )

    alone = (arguments.model, arguments.threshold, arguments.device, arguments.dtype)
    if not arguments.semantic and any(value is not None for value in alone):
        raise ConfigError(
            "--model, --threshold, --device and --dtype need --semantic: add it, or leave them out."
        )
    _check_out(arguments.out, arguments.prompts, arguments.against)
    encode = None
    if arguments.semantic:
        encode = sentence_encoder(
            arguments.model or PAPER_MODEL, device=arguments.device, dtype=arguments.dtype
        )
    prompts, _ = resolve_prompts(arguments.prompts, **reading(arguments))
    against, _ = resolve_prompts(arguments.against, **reading(arguments))
    exact = exact_duplicates(prompts, against)
    left = [prompt for prompt, known in zip(prompts, exact, strict=True) if not known]
    report: dict[str, Any] = {"read": len(prompts), "exact": sum(exact)}
    if encode:
        threshold = PAPER_THRESHOLD if arguments.threshold is None else arguments.threshold
        left, found = _without_near(left, against, encode, threshold)
        report |= found
    semantic = f", {report['semantic']} by meaning" if encode else ""
    if not left:
        raise PromptError(
            f"all {len(prompts)} prompts of {arguments.prompts} are in {arguments.against}: "
            f"{report['exact']} by wording{semantic}; nothing was written."
        )
    save_prompts(left, arguments.out)
    report |= {"left": len(left), "out": str(arguments.out)}
    if arguments.json:
        print(json.dumps(report))
        return
    console.print(
        f"{report['read']} prompts; removed: {report['exact']} by wording{semantic}; "
        f"{len(left)} left, written to {arguments.out}.",
        soft_wrap=True,
    )
    for pair in report.get("nearest", []):
        console.print(
            f"{pair['cosine']:.2f}  {pair['prompt']}\n      {pair['against']}", soft_wrap=True
        )


def _without_near(
    prompts: list[Prompt], against: list[Prompt], encode: Callable[..., Any], threshold: float
) -> tuple[list[Prompt], dict[str, Any]]:
    from opdprobe.train.recipes.dedup import bare_question, semantic_duplicates

    found = semantic_duplicates(prompts, against, encode=encode, threshold=threshold)
    left = [p for p, known in zip(prompts, found.duplicate, strict=True) if not known]
    removed = [int(i) for i in (-found.cosine).argsort(kind="stable") if found.duplicate[i]]
    nearest = [
        {
            "cosine": float(found.cosine[i]),
            "prompt": bare_question(prompts[i]),
            "against": bare_question(against[int(found.index[i])]),
        }
        for i in removed[:_SHOWN]
    ]
    return left, {"semantic": len(removed), "nearest": nearest}
