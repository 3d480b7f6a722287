"""The command line. Exit code 0: fine; 1: failed, with the reason on stderr; 2: bad usage."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import ConsoleRenderable
from rich.logging import RichHandler

from opdprobe import __version__
from opdprobe.cli import demo as demo_command
from opdprobe.cli import recipes as recipe_commands
from opdprobe.cli import reports as report_command
from opdprobe.cli import runs as commands
from opdprobe.cli.runs import errors
from opdprobe.errors import OPDProbeError, printable


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
        handlers=[_Handler(console=errors, show_path=False, show_time=False)],
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
        on = "; the same command goes on from the last checkpoint" if _goes_on(arguments) else ""
        errors.print(f"interrupted{on}.")
        return 130
    return 0


def _goes_on(arguments: argparse.Namespace) -> bool:
    """Whether the same command goes on with what an interrupted one has done."""
    if arguments.run is commands.train:
        return not arguments.no_resume
    if arguments.run is commands.zoo:
        return arguments.action == "build"
    return arguments.run in (
        demo_command.demo,
        commands.reproduce,
        commands.probe,
        recipe_commands.cold_start,
    )


class _Handler(RichHandler):
    """Shows what a message quotes, and does not obey it."""

    def render_message(self, record: logging.LogRecord, message: str) -> ConsoleRenderable:
        return super().render_message(record, printable(message))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="opdprobe",
        description="Token-level analysis of on-policy distillation: why did a run work, or not?",
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("--verbose", action="store_true", help="show what is going on")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Any, help: str) -> argparse.ArgumentParser:
        sub = subparsers.add_parser(name, help=help, description=help)
        sub.set_defaults(run=run)
        return sub

    sub = command("demo", demo_command.demo, "a first run: one success and one failure, compared")
    sub.add_argument("--out", type=Path, default=Path("out"), help="default: %(default)s")
    sub.add_argument("--workers", type=_positive, default=2, help="processes side by side")

    sub = command("reproduce", commands.reproduce, "run a preset, draw its figures, report")
    sub.add_argument("--preset", choices=["quick", "full", "paper"], default="quick")
    sub.add_argument("--only", action="append", metavar="FIGURE", help="for example fig06")
    sub.add_argument(
        "--models", type=Path, metavar="YAML", help="models, prompts, benchmarks of your own"
    )
    sub.add_argument("--out", type=Path, default=Path("out"), help="default: %(default)s")
    sub.add_argument("--workers", type=_positive, default=2, help="processes side by side")
    sub.add_argument("--json", action="store_true", help="print the verdicts as JSON")

    sub = command("figures", report_command.figures_of, "draw the paper's figures, or a run's")
    sub.add_argument(
        "name",
        nargs="*",
        metavar="NAME",
        help="for example fig06, default: all; or RUN, or RUN RUN2: draw their curves",
    )
    sub.add_argument("--results", type=Path, metavar="DIR", help="default: the published ones")
    sub.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="default: docs/figures, figures/ beside --results, or RUN",
    )
    sub.add_argument(
        "--check", action="store_true", help="draw nothing; fail where a figure is not up to date"
    )

    sub = command("train", commands.train, "distil a student on its own rollouts, and record it")
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

    sub = command("probe", commands.probe, "sample saved checkpoints, score them, and record a run")
    sub.add_argument(
        "checkpoint",
        nargs="+",
        metavar="CKPT",
        help="a directory of checkpoints, or checkpoints (checkpoint-500, …); zoo:NAME; or a "
        "served model, http://HOST:8000/v1#NAME",
    )
    sub.add_argument(
        "--teacher",
        required=True,
        help="directory, hub id, GGUF file, zoo:NAME or http://HOST:8000/v1#NAME",
    )
    sub.add_argument("--prompts", required=True, help="parquet or JSON-lines file, or zoo:SPLIT")
    sub.add_argument("--run-dir", required=True, type=Path)
    sub.add_argument("--tokenizer", metavar="DIR", help="where no model is local; or zoo:NAME")
    sub.add_argument("--limit", type=_positive, help="use the first so many prompts")
    sub.add_argument("--k", type=_positive, default=16, help="tokens kept; default: %(default)s")
    sub.add_argument("--n", type=_positive, default=4, help="rollouts a prompt; %(default)s")
    sub.add_argument(
        "--max-new-tokens", type=_positive, default=512, help="longest response; %(default)s"
    )
    sub.add_argument("--json", action="store_true", help="print the last metrics as JSON")

    sub = command("preflight", commands.preflight, "will this teacher teach this student?")
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
    sub.add_argument("--n-prompts", type=_positive, default=64, help="default: %(default)s")
    sub.add_argument("--n", type=_positive, default=4, help="rollouts a prompt (%(default)s)")
    sub.add_argument("--k", type=_positive, default=16, help="tokens compared (%(default)s)")
    sub.add_argument(
        "--max-new-tokens", type=_positive, default=64, help="longest response (%(default)s)"
    )
    sub.add_argument("--temperature", type=float, default=1.0, help="default: %(default)s")
    sub.add_argument("--seed", type=_not_negative, default=0)
    sub.add_argument("--skip-bad-prompts", action="store_true", help="leave out unusable prompts")
    sub.add_argument("--json", action="store_true", help="print verdict and numbers as JSON")

    sub = command("cold-start", recipe_commands.cold_start, "SFT on the teacher's responses first")
    sub.add_argument("--student", required=True, help="directory, hub id, GGUF file or zoo:NAME")
    sub.add_argument("--teacher", required=True, help="likewise")
    sub.add_argument("--prompts", required=True, help="parquet or JSON-lines file, or zoo:SPLIT")
    sub.add_argument("--out", required=True, type=Path, metavar="DIR")
    sub.add_argument("--limit", type=_positive, help="use the first so many prompts")
    sub.add_argument("--n", type=_positive, default=1, help="responses a prompt (%(default)s)")
    sub.add_argument(
        "--max-new-tokens", type=_positive, default=12288, help="longest response (%(default)s)"
    )
    sub.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="one SFTConfig setting; may be given again",
    )
    sub.add_argument("--skip-bad-prompts", action="store_true", help="leave out unusable prompts")
    sub.add_argument("--json", action="store_true", help="print the counts as JSON")

    sub = command("select", recipe_commands.select, "choose or reword prompts for a teacher")
    sub.add_argument(
        "--strategy", required=True, choices=["template", "content", "mixed", "max_divergence"]
    )
    sub.add_argument("--prompts", required=True, help="parquet or JSON-lines file, or zoo:SPLIT")
    sub.add_argument("--out", required=True, type=Path, metavar="FILE.jsonl")
    sub.add_argument("--n", type=_positive, help="prompts to choose; default: all, where it may be")
    sub.add_argument("--seed", type=_not_negative, default=0)
    sub.add_argument("--template", help="template: boxed, dapo, or a text with {question}")
    sub.add_argument("--other", help="mixed: prompts that the teacher was not trained on")
    sub.add_argument("--share", type=float, help="mixed: share of the other prompts (0.3)")
    sub.add_argument("--student", help="max_divergence: directory, hub id, GGUF file or zoo:NAME")
    sub.add_argument("--teacher", help="max_divergence: likewise")
    sub.add_argument("--rollouts", type=_positive, help="max_divergence: rollouts a prompt (2)")
    sub.add_argument(
        "--max-new-tokens", type=_positive, help="max_divergence: longest response (512)"
    )
    sub.add_argument(
        "--skip-bad-prompts", action="store_true", help="max_divergence: leave out unusable prompts"
    )
    sub.add_argument("--json", action="store_true", help="print what was chosen as JSON")

    sub = command("dedup", recipe_commands.dedup, "remove the prompts that another set has")
    sub.add_argument("prompts", metavar="PROMPTS", help="parquet or JSON-lines file, or zoo:SPLIT")
    sub.add_argument("--against", required=True, help="likewise")
    sub.add_argument("--out", required=True, type=Path, metavar="FILE.jsonl")
    sub.add_argument("--semantic", action="store_true", help="by meaning too, not only by wording")
    sub.add_argument("--model", help="sentence-transformers model (all-mpnet-base-v2)")
    sub.add_argument("--threshold", type=float, help="cosine from which two are the same (0.6)")
    sub.add_argument("--json", action="store_true", help="print the counts as JSON")

    sub = command("inspect", commands.inspect, "show what a recorded run holds, and check it")
    sub.add_argument("run_dir", type=_run, metavar="RUN")
    sub.add_argument(
        "--verify", action="store_true", help="compare every file with its checksum; name bad ones"
    )
    sub.add_argument("--figure", type=Path, metavar="FILE", help="draw its curves (pdf, png, svg)")
    sub.add_argument("--json", action="store_true")

    sub = command("view", commands.view, "one HTML page with every token of a run, or of two")
    sub.add_argument("run_dir", type=_run, metavar="RUN")
    sub.add_argument("other", type=_run, nargs="?", metavar="RUN2", help="a run to compare with")
    sub.add_argument("--out", type=Path, metavar="FILE", help="default: view.html in RUN")
    sub.add_argument(
        "--steps",
        type=_numbers,
        metavar="A,B,…",
        help="recorded steps; default: all; of two runs, those that both have",
    )
    sub.add_argument("--rollouts", type=_positive, metavar="N", help="the first N of each step")
    sub.add_argument("--tokenizer", type=Path, metavar="DIR", help="default: the student's")
    sub.add_argument("--max-mb", type=float, default=20, help="thin above; default: %(default)s")

    sub = command("report", report_command.report, "what a run's curves say, or two runs' together")
    sub.add_argument("run_dir", type=_run, metavar="RUN")
    sub.add_argument("other", type=_run, nargs="?", metavar="RUN2", help="a run to compare with")
    sub.add_argument("--out", type=Path, metavar="FILE", help="default: report.html in RUN")
    sub.add_argument("--no-view", action="store_true", help="no page of tokens to link to")
    sub.add_argument("--json", action="store_true", help="print the findings as JSON")

    sub = command("zoo", commands.zoo, "the testbed's models")
    sub.add_argument("action", choices=["list", "build", "check"])
    sub.add_argument("name", nargs="*", metavar="NAME", help="default: all")
    sub.add_argument("--work-dir", type=Path, default=Path("out/zoo"), help="for checkpoints")
    sub.add_argument("--workers", type=_positive, default=2, help="processes side by side")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def _not_negative(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number, 0 or above")
    return int(text)


def _run(text: str) -> Path:
    if "://" in text:
        raise argparse.ArgumentTypeError(
            f"{text!r} is on object storage, and commands take a directory: copy the run, or use "
            "opdprobe.open_run in Python"
        )
    return Path(text)


def _numbers(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers such as 0,10,20")
    return [int(part) for part in parts]


if __name__ == "__main__":
    sys.exit(main())
