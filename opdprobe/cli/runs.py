"""The commands on runs, models and figures; `opdprobe.cli.parser` declares their arguments."""

import argparse
import json
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from opdprobe.errors import ConfigError, StoreError, printable
from opdprobe.store import Run, open_run
from opdprobe.store.files import refuse_links
from opdprobe.store.safe_text import parse_yaml
from opdprobe.train.config import Config, OPDConfig

if TYPE_CHECKING:
    import xarray as xr


class _Console(Console):
    """Prints control characters, for example in a run's or a model's name, as escapes."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text), **options)


# A path may contain brackets, which would be read as markup.
console = _Console(markup=False, highlight=False)
errors = _Console(stderr=True)


@contextmanager
def progress(*, plain: bool = False):
    """Show progress bars with the time left, if stderr is a terminal.

    Parameters
    ----------
    plain
        If stderr is not a terminal, print a line per finished task. Default: print nothing.
    """
    bars = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=errors,
        disable=not errors.is_terminal,
    )
    tasks: dict[str, Any] = {}
    ended = set()

    def show(name: str, done: int, total: int) -> None:
        if name not in tasks:
            tasks[name] = bars.add_task(name, total=total)
        bars.update(tasks[name], completed=done, total=total)
        if plain and done == total and name not in ended and not errors.is_terminal:
            ended.add(name)
            errors.print(f"{name}: done", soft_wrap=True)

    with bars:
        yield show


def reproduce(arguments: argparse.Namespace) -> None:
    """Run a preset, print the verdicts by figure."""
    from analyses.claims import figures_table
    from analyses.presets import LOADING, PRESETS, own_preset, real_preset
    from opdprobe.cli.reproduce import drawable, plan, reproduce

    preset, folder = PRESETS[arguments.preset], arguments.out / arguments.preset
    own_zoo = arguments.preset == "real" and not arguments.models
    if own_zoo:
        preset = real_preset(folder / "zoo")
    elif arguments.base:
        raise ConfigError("--base is for --preset real without --models, which it makes models of.")
    if arguments.models:
        preset = own_preset(arguments.models, preset)
        folder = arguments.out / arguments.models.stem
    given = {name: getattr(arguments, name) for name in LOADING}
    if any(given.values()):
        preset = replace(preset, **{name: value for name, value in given.items() if value})
    if own_zoo or arguments.models or any(given.values()):
        _check_loading(preset)
    names, left_out = drawable(preset, arguments.only)
    if not arguments.json:
        for figure, roles in left_out.items():
            console.print(
                f"{figure} skipped: no model or prompt set for {', '.join(roles)}.", soft_wrap=True
            )
        n_tasks = len(plan(preset, folder, names))
        console.print(
            f"{n_tasks} runs, measurements and analyses in {arguments.workers} processes; output "
            f"in {folder}.\nIf interrupted, the same command resumes.",
            soft_wrap=True,
        )
    start = time.monotonic()
    if own_zoo:
        from opdprobe.cli.real_zoo import ready

        ready(preset, names, folder / "zoo", arguments)
    with progress(plain=True) as show:
        results = reproduce(
            preset, folder, figure_names=names, workers=arguments.workers, on_progress=show
        )
    if arguments.json:
        claims = [claim.to_dict() for result in results for claim in result.claims]
        report = {"report": str(folder / "report.html"), "claims": claims, "left_out": left_out}
        print(json.dumps(report))
        return
    console.print(figures_table(results))
    console.print(f"figures  {folder / 'figures'}", soft_wrap=True)
    console.print(f"claims   {folder / 'report.html'}", soft_wrap=True)
    console.print(f"{time.monotonic() - start:.0f} s. Open the report in a browser.")


def _check_loading(preset: Any) -> None:
    """Refuse devices and dtypes that are not there, before a process per job finds out."""
    from opdprobe.models.devices import resolve_device, resolve_dtype
    from opdprobe.train.optim import refuse_float16

    resolve_device(preset.device)
    refuse_float16(preset.dtype)
    resolve_dtype(preset.teacher_dtype, "teacher_dtype")


def figures(arguments: argparse.Namespace) -> None:
    """Draw figures and list their claims, or check that both are up to date."""
    import figures
    from analyses.pages import check_pages, write_pages

    results = arguments.results or figures.COMMITTED
    out = arguments.out or (
        arguments.results.parent / "figures" if arguments.results else Path("docs/figures")
    )
    if arguments.check:
        figures.check(results, out, arguments.name or None)
        check_pages(out, results)
        console.print(f"{out} and the pages beside it are up to date.", soft_wrap=True)
        return
    for path in [
        *figures.make(results, out, arguments.name or None),
        *write_pages(out, results),
    ]:
        console.print(str(path), soft_wrap=True)


def train(arguments: argparse.Namespace) -> None:
    """Train, print the metrics."""
    import transformers

    from opdprobe.cli.models import loading, longest_prompt, longest_teacher_prompt, models
    from opdprobe.cli.names import (
        reading,
        resolve_prompts,
        teacher_settings,
        template_settings,
    )
    from opdprobe.hooks.served import ServedModel
    from opdprobe.train.freed_memory import keep_freed_memory
    from opdprobe.train.memory import Job
    from opdprobe.train.optim import refuse_float16
    from opdprobe.train.trainer import OPDTrainer

    keep_freed_memory()
    transformers.utils.logging.disable_progress_bar()
    options = loading(arguments)
    refuse_float16(options["dtype"])
    config = OPDConfig.from_yaml(arguments.config) if arguments.config else OPDConfig()
    config = replace(config, **settings(arguments.set, OPDConfig))
    if arguments.max_prompt_length is not None:
        config = replace(config, max_prompt_length=arguments.max_prompt_length)
    config = replace(config, **template_settings(arguments), **teacher_settings(arguments))
    if arguments.teacher_by is not None:
        config = replace(config, teacher_by=arguments.teacher_by)
    arguments.teacher_by = config.teacher_by
    prompts, grader = resolve_prompts(arguments.prompts, arguments.limit, **reading(arguments))
    benchmarks = {}
    if arguments.benchmark:
        benchmarks["test"], grader = resolve_prompts(
            arguments.benchmark, arguments.limit, **reading(arguments)
        )
    longest = longest_prompt(prompts, config.max_prompt_length)
    job = Job(
        rollouts=min(config.batch_size, len(prompts)) * config.num_generations,
        prompt_length=longest,
        max_completion_length=config.max_completion_length,
        micro_batch_tokens=config.micro_batch_tokens,
        trained=True,
        teacher_prompt_length=longest_teacher_prompt(prompts, config.teacher_context, longest),
    )
    student, teacher, tokenizers = models(arguments, options, job)
    trainer = OPDTrainer(
        student,
        teacher,
        prompts=prompts,
        config=config,
        run_dir=arguments.run_dir,
        grader=grader,
        eval_prompts=benchmarks,
        report_to=arguments.report_to,
        on_error=arguments.on_error,
        one_teacher_at_a_time=arguments.one_teacher_at_a_time,
        sampler=ServedModel(arguments.sampler) if arguments.sampler else None,
        **tokenizers,
        **options,
    )
    if not arguments.json:
        console.print(
            f"{trainer.n_steps} steps, recorded in {arguments.run_dir}; the store will take at "
            f"most {file_size(trainer.expected_bytes())}.",
            soft_wrap=True,
        )
    with progress() as show:
        run = trainer.train(
            resume=not arguments.no_resume,
            on_progress=lambda done, total: show("step", done, total),
        )
    if not trainer.processes.is_main:
        return
    if arguments.json:
        print(json.dumps({"run_dir": str(run.path), **_last(run)}))
    else:
        console.print(_metrics_table(run))


def settings(pairs: list[str], config: type[Config]) -> dict[str, Any]:
    """Parse ``NAME=VALUE`` pairs as settings of a configuration."""
    values = {}
    known = {f.name for f in fields(config)}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or name not in known:
            raise ConfigError(
                f"--set {pair!r}; expected NAME=VALUE with NAME one of {', '.join(sorted(known))}."
            )
        try:
            value = parse_yaml(text)
        except ValueError:
            raise ConfigError(f"--set {pair!r}; expected a value that YAML can read.") from None
        # YAML reads 1e-5 as text; only 1.0e-5 is a number.
        values[name] = _number(value) if isinstance(value, str) else value
    return values


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def probe(arguments: argparse.Namespace) -> None:
    """Probe saved checkpoints, or models on a server."""
    import transformers

    from opdprobe.cli.models import (
        loading,
        longest_prompt,
        longest_teacher_prompt,
        tell_memory,
    )
    from opdprobe.cli.names import (
        reading,
        resolve_model,
        resolve_prompts,
        resolve_teachers,
        teacher_context,
        template_settings,
    )
    from opdprobe.hooks import probe_checkpoints
    from opdprobe.hooks.checkpoints import find_checkpoints
    from opdprobe.hooks.served import ServedModel, probe_served
    from opdprobe.models.load import load_tokenizer
    from opdprobe.train.memory import Job

    transformers.utils.logging.disable_progress_bar()
    if (arguments.prompts is None) == (arguments.fixed_contexts is None):
        raise ConfigError("give either --prompts, or --fixed-contexts with a recorded run.")
    prompts, grader = None, None
    if arguments.prompts is not None:
        prompts, grader = resolve_prompts(arguments.prompts, arguments.limit, **reading(arguments))
    options = loading(arguments)
    students = arguments.checkpoint
    served_teachers = [name for name in arguments.teacher if "://" in name]
    several = arguments.teacher_by is not None or len(arguments.teacher) > 1
    if several and (served_teachers or any("://" in s for s in students)):
        raise ConfigError("several teachers with a served model; expected local models.")
    if len(students) > 1 and any("://" in name for name in students):
        raise ConfigError("a served student is probed alone: give one address as CKPT.")

    def named(name: str) -> ServedModel | str | Path:
        return ServedModel(name) if "://" in name else resolve_model(name)

    tokenizer = arguments.tokenizer
    teacher: Any = resolve_teachers(arguments.teacher, arguments.teacher_by)
    served = bool(served_teachers) or any("://" in name for name in students)
    if arguments.sampler is not None and any("://" in name for name in students):
        raise ConfigError("--sampler with a served student, which samples itself; leave it out.")
    if served_teachers:
        teacher = ServedModel(str(teacher))
    if served and prompts is None:
        raise ConfigError("--fixed-contexts scores with local models; a server samples itself.")
    context = teacher_context(arguments)
    if not served and prompts is not None:
        longest = longest_prompt(prompts, arguments.max_prompt_length)
        job = Job(
            rollouts=len(prompts) * arguments.num_generations,
            prompt_length=longest,
            max_completion_length=arguments.max_completion_length,
            teacher_prompt_length=longest_teacher_prompt(prompts, context, longest),
        )
        found = find_checkpoints([resolve_model(name) for name in students])
        one = arguments.one_teacher_at_a_time
        tell_memory(next(iter(found.values())), teacher, job, options, one_teacher_at_a_time=one)
    with progress() as show:
        settings: dict[str, Any] = {
            "k": arguments.k,
            "num_generations": arguments.num_generations,
            "max_completion_length": arguments.max_completion_length,
            "max_prompt_length": arguments.max_prompt_length,
            "on_error": arguments.on_error,
            **template_settings(arguments),
            "teacher_context": context,
            "grader": grader,
            "tokenizer": load_tokenizer(resolve_model(tokenizer)) if tokenizer else None,
            "sampler": ServedModel(arguments.sampler) if arguments.sampler else None,
            "on_progress": lambda done, total: show("checkpoint", done, total),
            **options,
        }
        look: Callable[..., Run] = probe_checkpoints
        if served:
            look = probe_served
        else:
            settings |= {
                "fixed_contexts": arguments.fixed_contexts,
                "teacher_by": arguments.teacher_by,
                "one_teacher_at_a_time": arguments.one_teacher_at_a_time,
            }
        own = named(students[0]) if len(students) == 1 else [resolve_model(s) for s in students]
        run = look(own, teacher, prompts, arguments.run_dir, **settings)
    if arguments.json:
        print(json.dumps({"run_dir": str(run.path), "steps": run.steps, **_last(run)}))
    else:
        console.print(_metrics_table(run))


def inspect(arguments: argparse.Namespace) -> None:
    """Check a run, print what it holds."""
    from opdprobe.probes.thinning import thinned
    from opdprobe.report.view import model_name
    from opdprobe.store.prompt_form import prompt_form
    from opdprobe.store.schema import validate

    verified = _verify(arguments) if arguments.verify else {}
    run = open_run(arguments.run_dir)
    if arguments.figure:
        draw_runs([run], [arguments.figure])
    n_states = 0
    for step in run.steps:
        dataset = run.load(step)
        validate(dataset)
        n_states += dataset.sizes["state"]
    size = sum(path.stat().st_size for path in (run.path / "steps").glob("*.zip"))
    summary = {
        "run_dir": str(run.path),
        "student": model_name(run, "student"),
        "teacher": model_name(run, "teacher"),
        "steps": len(run.steps),
        "states": n_states,
        "bytes": size,
        "valid": True,
        **_missing(run),
        **({"prompts": form} if (form := prompt_form(run.attrs)) else {}),
        **({"positions": left_out} if (left_out := thinned(run)) else {}),
        **verified,
    }
    if arguments.json:
        print(json.dumps({**summary, "config": run.config, **_last(run)}))
        return
    table = Table.grid(padding=(0, 2))
    for name, value in summary.items():
        table.add_row(name, file_size(value) if name == "bytes" else f"{value}")
    usual = OPDConfig().to_dict()
    changed = {k: v for k, v in run.config.items() if v != usual.get(k)}
    table.add_row("settings", ", ".join(f"{k}={v}" for k, v in changed.items()) or "the paper's")
    console.print(table)
    if run.metrics["step"].size:  # a run that has just begun has no metrics, nor has a probe
        console.print(_metrics_table(run))


def _missing(run: Run) -> dict[str, str]:
    """Name what was not reported; empty if the run has everything."""
    from opdprobe.report.view import model_name
    from opdprobe.store.schema import MODELS

    first = run.load(run.steps[0]) if run.steps else None
    if first is not None and "logp" not in first:
        return {"missing": "top-k lists, entropies, reverse KL (drawn tokens only)"}
    told = [] if first is None else first.attrs.get("missing", [])
    roles = [role for role in MODELS if isinstance(told, list) and role in told]
    names = " and ".join(model_name(run, role) or role for role in roles)
    # Without a model, a run of rollouts has no vocabulary.
    alone = run.attrs.get("recorded_by") == "score_rollouts" and "vocabulary" not in run.attrs
    cached = isinstance(run.attrs.get("teacher"), dict) and "cache" in run.attrs["teacher"]
    told = "not in the rollouts" if alone else "cached" if cached else "served"
    if first is None or not roles:
        return {}
    parts = ["entropy", "reverse KL"]
    if cached and not first["entropy"].isnull().any():
        parts.remove("entropy")
    if cached and first["sampled_logp"].isnull().any():
        parts.append("log-probabilities of some tokens of the texts")
    if any(_unknown(first, "logp", role) for role in roles):
        parts.append("log-probabilities of some tokens that it does not list")
    if any(_unknown(first, "stop_logp", role) for role in roles):
        parts.append("stop-token mass")
    return {"missing": f"{', '.join(parts)} of {names} ({told})"}


def _unknown(step: "xr.Dataset", name: str, role: str) -> bool:
    """Whether a model did not report all that it gives to the other model's tokens."""
    from opdprobe.store.schema import MODELS

    m = MODELS.index(role)
    return name in step and bool(step[name].isel(model=m, support=1 - m).isnull().any())


def _verify(arguments: argparse.Namespace) -> dict[str, str]:
    """Compare a run's files with their checksums; raise if any is missing or differs."""
    from opdprobe.store.step_parts import list_files
    from opdprobe.store.verify import verify_run

    folder = arguments.run_dir
    if folder.is_dir() and not ((folder / "run.json").exists() or list_files(folder)):
        open_run(folder)  # raises that this is not a run; for a run, verify_run reports more
    found = verify_run(arguments.run_dir)
    if found.faults:
        if arguments.json:
            faults = {str(fault.path): fault.what for fault in found.faults}
            print(json.dumps({"run_dir": str(arguments.run_dir), "valid": False, "faults": faults}))
        raise StoreError(
            f"{arguments.run_dir} has missing or changed files ({len(found.faults)}):\n"
            + "\n".join(f"{fault.path}: {fault.what}" for fault in found.faults)
        )
    unproven = ", ".join(path.name for path in found.unproven)
    without = f"; readable, but without a checksum: {unproven}" if unproven else ""
    return {"verified": f"{found.n_files} files match their checksums{without}"}


def open_runs(paths: list[Path]) -> list[Run]:
    """Open one run, or two to compare."""
    runs = [open_run(path) for path in paths]
    if len({run.path.resolve() for run in runs}) < len(runs):
        raise ConfigError(f"{paths[0]} and {paths[-1]} are the same run: give two different ones.")
    return runs


def draw_runs(runs: list[Run], paths: list[Path]) -> None:
    """Draw the curves of one run, or of two in the same axes; a path's suffix sets its format."""
    import opdprobe.report.draw
    from opdprobe.report.course import course
    from opdprobe.report.run_panels import report_panels
    from opdprobe.report.view import run_labels

    refuse_links(*paths)  # before the work
    labels = run_labels(runs)
    tell_thinned(runs, labels)
    courses = [course(run, label=name) for run, name in zip(runs, labels, strict=True)]
    panels = report_panels(runs, courses)
    for path in paths:
        try:
            opdprobe.report.draw.save(panels, path)
        except (OSError, ValueError) as error:  # unknown folder or format
            raise ConfigError(f"figure {path}: {error}") from error


def tell_thinned(runs: list[Run], labels: list[str]) -> None:
    """Warn of averages that leave positions out."""
    from opdprobe.probes.thinning import thinned

    for run, label in zip(runs, labels, strict=True):
        if text := thinned(run):
            errors.print(f"{label}: {text}.", style="yellow", soft_wrap=True)


def _metrics_table(run: Run) -> Table:
    metrics = run.metrics
    steps = metrics["step"].values
    chosen = sorted({i * (len(steps) - 1) // 4 for i in range(5)})  # the ends and the quarters
    table = Table(title=f"{run.path}, by step")
    table.add_column("metric")
    for i in chosen:
        table.add_column(str(steps[i]), justify="right")
    for name, values in metrics.data_vars.items():
        if not str(name).startswith("seconds"):
            cells = (values.values[i] for i in chosen)
            table.add_row(str(name), *("" if v != v else f"{v:.4g}" for v in cells))
    return table


def _last(run: Run) -> dict[str, float]:
    """Last known value of every metric."""
    metrics = run.metrics
    known = {str(name): values.dropna("step") for name, values in metrics.data_vars.items()}
    return {name: float(v[-1]) for name, v in known.items() if v.size}


def zoo(arguments: argparse.Namespace) -> None:
    """List, build or check the models of the testbed, or of the world that `--world` names."""
    from opdprobe.testing.testbed import members

    if arguments.world == "real":
        from opdprobe.cli import real_zoo

        real_zoo.zoo(arguments)
        return
    if arguments.base or arguments.dtype:
        raise ConfigError("--base and --dtype are for --world real; the testbed needs neither.")

    names = arguments.name or list(members.MEMBERS)
    if unknown := sorted(set(names) - set(members.MEMBERS)):
        raise members.ZooError(
            f"no zoo model {', '.join(unknown)}; expected one of {', '.join(members.MEMBERS)}."
        )
    if arguments.action != "list":
        import transformers

        transformers.utils.logging.disable_progress_bar()
    if arguments.action == "build":
        from opdprobe.testing.testbed.zoo import build_all

        with progress() as show:
            build_all(
                names,
                arguments.work_dir or Path("out/zoo"),
                workers=arguments.workers,
                device=arguments.device,
                on_progress=show,
            )
    if arguments.action == "check":
        from opdprobe.testing.testbed import zoo

        for name in names:
            found = zoo.check(name, device=arguments.device)
            console.print(f"{name}: accuracy {found['accuracy']:.3f}, weights as recorded")
        return
    table = Table()
    for column in ("model", "stands for", "made from", "parameters", "accuracy"):
        table.add_column(column)
    for name in names:
        member, built = members.MEMBERS[name], members.manifest().get(name)
        table.add_row(
            name,
            member.analog,
            member.parent or "scratch",
            f"{built['parameters']:,}" if built else "not built",
            f"{built['accuracy']:.3f}" if built else "",
        )
    console.print(table)


def file_size(n: float) -> str:
    """Write a number of bytes in a unit that fits."""
    for unit in ("B", "kB", "MB"):
        if n < 1000:
            return f"{n:.0f} {unit}"
        n /= 1000
    return f"{n:.1f} GB"
