"""The command line. Exit code 0: fine; 1: failed, with the reason on stderr; 2: bad usage."""

import argparse
import json
import logging
import sys
import time
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from opdprobe import __version__
from opdprobe.errors import ConfigError, OPDProbeError
from opdprobe.store import Run, open_run
from opdprobe.train.config import OPDConfig

# A path may hold brackets, which would be read as markup.
console = Console(markup=False, highlight=False)
errors = Console(stderr=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv
        Arguments without the program's name; those of the process by default.

    Returns
    -------
    int
        Exit code.
    """
    arguments = _parser().parse_args(argv)
    logging.basicConfig(
        level=logging.INFO if arguments.verbose else logging.WARNING,
        format="%(message)s",
        handlers=[RichHandler(console=errors, show_path=False, show_time=False)],
    )
    try:
        arguments.run(arguments)
    except OPDProbeError as error:
        errors.print(f"[bold red]error:[/] {type(error).__name__}:", highlight=False, end=" ")
        errors.print(str(error), markup=False, highlight=False, soft_wrap=True)
        return 1
    except OSError as error:  # a directory that cannot be written, a file that is none
        errors.print("[bold red]error:[/]", highlight=False, end=" ")
        errors.print(str(error), markup=False, highlight=False, soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        errors.print("interrupted; the same command goes on from the last checkpoint.")
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="opdprobe",
        description="Token-level analysis of on-policy distillation: why did a run work, or not?",
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("--verbose", action="store_true", help="show what is going on")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Any, help: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help)
        sub.set_defaults(run=run)
        return sub

    sub = command("reproduce", _reproduce, "run a preset's experiments, draw its figures, report")
    sub.add_argument("--preset", choices=["quick", "full", "paper"], default="quick")
    sub.add_argument("--only", action="append", metavar="FIGURE", help="for example fig06")
    sub.add_argument("--out", type=Path, default=Path("out"), help="default: %(default)s")
    sub.add_argument("--workers", type=_positive, default=2, help="processes side by side")
    sub.add_argument("--json", action="store_true", help="print the verdicts as JSON")

    sub = command("figures", _figures, "draw figures from results files")
    sub.add_argument("name", nargs="*", metavar="NAME", help="for example fig06; default: all")
    sub.add_argument("--results", type=Path, default=Path("out/quick/results"))
    sub.add_argument("--out", type=Path, help="default: figures/ beside the results")
    sub.add_argument(
        "--check", action="store_true", help="draw nothing; fail where a figure is not up to date"
    )

    sub = command("train", _train, "distil a student on its own rollouts and record the run")
    sub.add_argument("--student", required=True, help="directory, hub id, GGUF file or zoo:NAME")
    sub.add_argument("--teacher", required=True, help="likewise")
    sub.add_argument("--prompts", required=True, help="parquet or JSON-lines file, or zoo:SPLIT")
    sub.add_argument("--run-dir", required=True, type=Path)
    sub.add_argument("--benchmark", help="evaluation problems, as --prompts")
    sub.add_argument("--limit", type=_positive, help="use the first so many prompts and problems")
    sub.add_argument(
        "--drop-layers",
        metavar="A-B",
        help="remove the student's layers A to B, counted from 0",
    )
    sub.add_argument("--config", type=Path, help="YAML file of OPDConfig settings")
    sub.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="one OPDConfig setting, over --config; may be given again",
    )
    sub.add_argument("--skip-bad-prompts", action="store_true", help="leave out unusable prompts")
    sub.add_argument("--no-resume", action="store_true", help="refuse a run that exists")
    sub.add_argument("--report-to", action="append", default=[], help="a tracker of accelerate")
    sub.add_argument("--json", action="store_true", help="print the last metrics as JSON")

    sub = command("probe", _probe, "sample saved checkpoints, score them, and record a run")
    sub.add_argument(
        "checkpoint",
        nargs="+",
        metavar="CKPT",
        help="a directory of checkpoints, or checkpoints (checkpoint-500, …); or zoo:NAME",
    )
    sub.add_argument("--teacher", required=True, help="directory, hub id, GGUF file or zoo:NAME")
    sub.add_argument("--prompts", required=True, help="parquet or JSON-lines file, or zoo:SPLIT")
    sub.add_argument("--run-dir", required=True, type=Path)
    sub.add_argument("--limit", type=_positive, help="use the first so many prompts")
    sub.add_argument("--k", type=_positive, default=16, help="tokens kept; default: %(default)s")
    sub.add_argument("--n", type=_positive, default=4, help="rollouts a prompt; %(default)s")
    sub.add_argument(
        "--max-new-tokens", type=_positive, default=512, help="longest response; %(default)s"
    )
    sub.add_argument("--json", action="store_true", help="print the last metrics as JSON")

    sub = command("preflight", _preflight, "will this teacher teach this student? before training")
    sub.add_argument("--student", required=True, help="directory, hub id, GGUF file or zoo:NAME")
    sub.add_argument("--teacher", required=True, help="likewise")
    sub.add_argument("--prompts", required=True, help="parquet or JSON-lines file, or zoo:SPLIT")
    sub.add_argument("--drop-layers", metavar="A-B", help="remove the student's layers A to B")
    sub.add_argument(
        "--template",
        action="append",
        default=[],
        help="a wording to compare: boxed, dapo, or a text with {question}; may be given again",
    )
    sub.add_argument("--n-prompts", type=_positive, default=32, help="default: %(default)s")
    sub.add_argument("--n", type=_positive, default=4, help="rollouts a prompt (%(default)s)")
    sub.add_argument("--k", type=_positive, default=16, help="tokens compared (%(default)s)")
    sub.add_argument(
        "--max-new-tokens", type=_positive, default=64, help="longest response (%(default)s)"
    )
    sub.add_argument("--temperature", type=float, default=1.0, help="default: %(default)s")
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--skip-bad-prompts", action="store_true", help="leave out unusable prompts")
    sub.add_argument("--json", action="store_true", help="print verdict and numbers as JSON")

    sub = command("inspect", _inspect, "show what a recorded run holds, and check it")
    sub.add_argument("run_dir", type=Path, metavar="RUN")
    sub.add_argument("--figure", type=Path, metavar="FILE", help="draw its curves (pdf, png, svg)")
    sub.add_argument("--json", action="store_true")

    sub = command("view", _view, "write one HTML page that shows every token of a run, or of two")
    sub.add_argument("run_dir", type=Path, metavar="RUN")
    sub.add_argument("other", type=Path, nargs="?", metavar="RUN2", help="a run to compare with")
    sub.add_argument("--out", type=Path, metavar="FILE", help="default: view.html in RUN")
    sub.add_argument("--steps", type=_numbers, metavar="A,B,…", help="recorded steps; default: all")
    sub.add_argument("--rollouts", type=_positive, metavar="N", help="the first N of each step")
    sub.add_argument("--tokenizer", type=Path, metavar="DIR", help="default: the student's")
    sub.add_argument("--max-mb", type=float, default=20, help="thin above; default: %(default)s")

    sub = command("zoo", _zoo, "the testbed's models")
    sub.add_argument("action", choices=["list", "build", "check"])
    sub.add_argument("name", nargs="*", metavar="NAME", help="default: all")
    sub.add_argument("--work-dir", type=Path, default=Path("out/zoo"), help="for checkpoints")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def _numbers(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers such as 0,10,20")
    return [int(part) for part in parts]


@contextmanager
def _progress():
    """Bars with an estimate of what is left; silent where stderr is no terminal."""
    bars = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=errors,
        disable=not errors.is_terminal,
    )
    tasks: dict[str, Any] = {}

    def show(name: str, done: int, total: int) -> None:
        if name not in tasks:
            tasks[name] = bars.add_task(name, total=total)
        bars.update(tasks[name], completed=done, total=total)

    with bars:
        yield show


def _reproduce(arguments: argparse.Namespace) -> None:
    from analyses.experiments import PRESETS, needed
    from opdprobe.report import claims_table
    from opdprobe.reproduce import plan, reproduce

    preset = PRESETS[arguments.preset]
    jobs = plan(preset, needed(arguments.only))
    folder = arguments.out / arguments.preset
    if not arguments.json:
        console.print(
            f"{len(jobs)} runs and measurements on {arguments.workers} processes into {folder}; "
            "interrupted, the same command goes on where it was.",
            soft_wrap=True,
        )
    start = time.monotonic()
    with _progress() as show:
        results = reproduce(
            arguments.preset,
            figure_names=arguments.only,
            out=arguments.out,
            workers=arguments.workers,
            on_progress=show,
        )
    if arguments.json:
        claims = [claim.to_dict() for result in results for claim in result.claims]
        print(json.dumps({"report": str(folder / "report.html"), "claims": claims}))
        return
    console.print(claims_table(results))
    console.print(
        f"{time.monotonic() - start:.0f} s. Figures: {folder / 'figures'}. "
        f"Report: {folder / 'report.html'}",
        soft_wrap=True,
    )


def _figures(arguments: argparse.Namespace) -> None:
    import figures

    out = arguments.out or arguments.results.parent / "figures"
    if arguments.check:
        figures.check(arguments.results, out, arguments.name or None)
        console.print(f"{out} is up to date.", soft_wrap=True)
        return
    for path in figures.make(arguments.results, out, arguments.name or None):
        console.print(str(path), soft_wrap=True)


def _train(arguments: argparse.Namespace) -> None:
    import transformers

    from opdprobe.models import drop_layers, load_model, load_tokenizer
    from opdprobe.names import resolve_model, resolve_prompts
    from opdprobe.train.trainer import OPDTrainer

    transformers.utils.logging.disable_progress_bar()
    config = OPDConfig.from_yaml(arguments.config) if arguments.config else OPDConfig()
    config = replace(config, **_settings(arguments.set))
    prompts, grader = resolve_prompts(arguments.prompts, arguments.limit)
    benchmarks = {}
    if arguments.benchmark:
        benchmarks["test"], grader = resolve_prompts(arguments.benchmark, arguments.limit)
    student_name = resolve_model(arguments.student)
    student = load_model(student_name)
    if arguments.drop_layers:
        student = drop_layers(student, _layers(arguments.drop_layers))
    trainer = OPDTrainer(
        student,
        resolve_model(arguments.teacher),
        tokenizer=load_tokenizer(student_name),
        prompts=prompts,
        config=config,
        run_dir=arguments.run_dir,
        grader=grader,
        eval_prompts=benchmarks,
        report_to=arguments.report_to,
        skip_bad_prompts=arguments.skip_bad_prompts,
    )
    if not arguments.json:
        console.print(
            f"{trainer.n_steps} steps into {arguments.run_dir}; the store will take at most "
            f"{_size(trainer.expected_bytes())}.",
            soft_wrap=True,
        )
    with _progress() as show:
        run = trainer.train(
            resume=not arguments.no_resume,
            on_progress=lambda done, total: show("step", done, total),
        )
    if arguments.json:
        print(json.dumps({"run_dir": str(run.path), **_last(run)}))
    else:
        console.print(_metrics_table(run))


def _preflight(arguments: argparse.Namespace) -> None:
    import transformers

    from opdprobe.models import drop_layers, load_model, load_tokenizer
    from opdprobe.names import resolve_model, resolve_prompts
    from opdprobe.preflight import preflight
    from opdprobe.preflight.show import rendered
    from opdprobe.prompts import BOXED_TEMPLATE, DAPO_TEMPLATE

    transformers.utils.logging.disable_progress_bar()
    student_name, teacher_name = map(resolve_model, (arguments.student, arguments.teacher))
    prompts, grader = resolve_prompts(arguments.prompts)
    known = {"boxed": BOXED_TEMPLATE, "dapo": DAPO_TEMPLATE}
    student = load_model(student_name)
    names = {"student": arguments.student, "teacher": arguments.teacher}
    if arguments.drop_layers:
        student = drop_layers(student, _layers(arguments.drop_layers))
        names["student"] += f" without layers {arguments.drop_layers}"
    templates = {str(text): known.get(text, str(text)) for text in arguments.template}
    with _progress() as show:
        result = preflight(
            student,
            teacher_name,
            prompts,
            tokenizer=load_tokenizer(student_name),
            grader=grader,
            templates=templates,
            n_prompts=arguments.n_prompts,
            n=arguments.n,
            k=arguments.k,
            max_new_tokens=arguments.max_new_tokens,
            temperature=arguments.temperature,
            skip_bad_prompts=arguments.skip_bad_prompts,
            seed=arguments.seed,
            on_progress=lambda done, total: show("measurement", done, total),
        )
    result = replace(result, settings={**result.settings, **names})
    if arguments.json:
        print(json.dumps(result.to_dict()))
    else:
        console.print(rendered(result))


def _settings(pairs: list[str]) -> dict[str, Any]:
    values = {}
    known = {f.name for f in fields(OPDConfig)}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or name not in known:
            raise ConfigError(
                f"--set {pair!r}: expected NAME=VALUE with NAME one of {', '.join(sorted(known))}."
            )
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ConfigError(f"--set {pair!r}: the value is not readable as YAML.") from None
        # YAML reads 1e-5 as text: it wants 1.0e-5.
        values[name] = _number(value) if isinstance(value, str) else value
    return values


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _layers(text: str) -> range:
    first, dash, last = text.partition("-")
    if not (dash and first.isdecimal() and last.isdecimal() and int(first) <= int(last)):
        raise ConfigError(f"--drop-layers {text!r}: expected A-B with A ≤ B, for example 14-17.")
    return range(int(first), int(last) + 1)


def _probe(arguments: argparse.Namespace) -> None:
    import transformers

    from opdprobe.hooks import probe_checkpoints
    from opdprobe.names import resolve_model, resolve_prompts

    transformers.utils.logging.disable_progress_bar()
    prompts, grader = resolve_prompts(arguments.prompts, arguments.limit)
    with _progress() as show:
        run = probe_checkpoints(
            [resolve_model(name) for name in arguments.checkpoint],
            resolve_model(arguments.teacher),
            prompts,
            arguments.run_dir,
            k=arguments.k,
            n=arguments.n,
            max_new_tokens=arguments.max_new_tokens,
            grader=grader,
            on_progress=lambda done, total: show("checkpoint", done, total),
        )
    if arguments.json:
        print(json.dumps({"run_dir": str(run.path), "steps": run.steps, **_last(run)}))
    else:
        console.print(_metrics_table(run))


def _inspect(arguments: argparse.Namespace) -> None:
    from opdprobe.schema import validate

    run = open_run(arguments.run_dir)
    if arguments.figure:
        _draw_run(run, arguments.figure)
    n_states = 0
    for step in run.steps:
        dataset = run.load(step)
        validate(dataset)
        n_states += dataset.sizes["state"]
    size = sum(path.stat().st_size for path in (run.path / "steps").glob("*.zip"))
    summary = {
        "run_dir": str(run.path),
        "student": _model_name(run, "student"),
        "teacher": _model_name(run, "teacher"),
        "steps": len(run.steps),
        "states": n_states,
        "bytes": size,
        "valid": True,
    }
    if arguments.json:
        print(json.dumps({**summary, "config": run.config, **_last(run)}))
        return
    table = Table.grid(padding=(0, 2))
    for name, value in summary.items():
        table.add_row(name, _size(value) if name == "bytes" else f"{value}")
    changed = {k: v for k, v in run.config.items() if v != getattr(OPDConfig(), k, None)}
    table.add_row("settings", ", ".join(f"{k}={v}" for k, v in changed.items()) or "the paper's")
    console.print(table)
    if run.metrics["step"].size:  # a run that has just begun has none, and so has a probe
        console.print(_metrics_table(run))


def _model_name(run: Run, role: str) -> str | None:
    """Name of a model; what else wrote the run may have stored a bare name, or none."""
    model = run.attrs.get(role)
    return model.get("name") if isinstance(model, dict) else model


def _draw_run(run: Run, path: Path) -> None:
    import figures.run
    from analyses.single import panels

    try:
        figures.run.save(panels(run), path)
    except (OSError, ValueError) as error:  # no such folder, or no such format
        raise ConfigError(f"--figure {path}: {error}") from error


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


def _view(arguments: argparse.Namespace) -> None:
    from opdprobe.report.view import write_view

    paths = [path for path in (arguments.run_dir, arguments.other) if path]
    out = arguments.out or arguments.run_dir / "view.html"
    notices = write_view(
        out,
        [open_run(path) for path in paths],
        steps=arguments.steps,
        rollouts=arguments.rollouts,
        tokenizer=arguments.tokenizer,
        max_mb=arguments.max_mb,
    )
    for notice in notices:
        errors.print(notice, style="yellow", markup=False, highlight=False, soft_wrap=True)
    console.print(f"{out}: {_size(out.stat().st_size)}; open it in a browser.", soft_wrap=True)


def _zoo(arguments: argparse.Namespace) -> None:
    import torch
    import transformers

    from opdprobe.testbed import zoo

    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    names = arguments.name or list(zoo.MEMBERS)
    if unknown := sorted(set(names) - set(zoo.MEMBERS)):
        raise zoo.ZooError(f"no {', '.join(unknown)}; there are {', '.join(zoo.MEMBERS)}.")
    if arguments.action == "build":
        for name in names:
            recipe = zoo.MEMBERS[name].recipe
            with _progress() as show:
                for metrics in zoo.build(name, arguments.work_dir):
                    show(name, int(metrics["step"]) + 1, recipe.max_steps or 0)
    if arguments.action == "check":
        for name in names:
            found = zoo.check(name)
            console.print(f"{name}: accuracy {found['accuracy']:.3f}, weights as recorded")
        return
    table = Table()
    for column in ("model", "stands for", "made from", "parameters", "accuracy"):
        table.add_column(column)
    for name in names:
        member, built = zoo.MEMBERS[name], zoo.manifest().get(name)
        table.add_row(
            name,
            member.analog,
            member.parent or "scratch",
            f"{built['parameters']:,}" if built else "not built",
            f"{built['accuracy']:.3f}" if built else "",
        )
    console.print(table)


def _size(n: float) -> str:
    for unit in ("B", "kB", "MB"):
        if n < 1000:
            return f"{n:.0f} {unit}"
        n /= 1000
    return f"{n:.1f} GB"


if __name__ == "__main__":
    sys.exit(main())
