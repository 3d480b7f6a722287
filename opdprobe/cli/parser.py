"""The command line. Exit codes: 0 success, 1 failure (reason on stderr), 2 usage, 130 Ctrl-C."""

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
from opdprobe.cli import export as export_command
from opdprobe.cli import importing as import_command
from opdprobe.cli import options
from opdprobe.cli import preflight as preflight_command
from opdprobe.cli import recipes as recipe_commands
from opdprobe.cli import reports as report_command
from opdprobe.cli import runs as run_commands
from opdprobe.cli import trackers as log_command
from opdprobe.cli import viewing as view_command
from opdprobe.cli import watch as watch_command
from opdprobe.cli.recipes import DIVERGENCE_GENERATIONS, DIVERGENCE_LENGTH
from opdprobe.cli.runs import errors
from opdprobe.errors import OPDProbeError, needs_train_extra, printable
from opdprobe.rollout.dumps import FORMATS


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv
        Arguments without the program's name. Default: those of the process.

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
        with needs_train_extra(f"opdprobe {arguments.command}"):
            arguments.run(arguments)
    except OPDProbeError as error:
        errors.print(f"[bold red]error:[/] {type(error).__name__}:", highlight=False, end=" ")
        errors.print(str(error), markup=False, highlight=False, soft_wrap=True)
        return 1
    except OSError as error:  # for example a directory that cannot be written
        errors.print("[bold red]error:[/]", highlight=False, end=" ")
        errors.print(str(error), markup=False, highlight=False, soft_wrap=True)
        return 1
    except (MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        errors.print("[bold red]error:[/] OutOfMemoryError:", highlight=False, end=" ")
        errors.print(
            f"memory ran out: {str(error) or type(error).__name__}\nLower the sizes of the job, "
            "load the models in bfloat16, or take smaller ones.",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        return 1
    except KeyboardInterrupt:
        hint = "; the same command resumes from the last checkpoint" if _resumes(arguments) else ""
        errors.print(f"interrupted{hint}.")
        return 130
    return 0


def _out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError):
        return True
    if "torch" not in sys.modules:
        return False
    from opdprobe.models.devices import is_out_of_memory

    return is_out_of_memory(error)


def _resumes(arguments: argparse.Namespace) -> bool:
    """Whether the same command resumes after an interruption."""
    if arguments.run is run_commands.train:
        return not arguments.no_resume
    if arguments.run is run_commands.zoo:
        return arguments.action == "build"
    return arguments.run in (
        demo_command.demo,
        run_commands.reproduce,
        run_commands.probe,
        import_command.import_dumps,
        recipe_commands.cold_start,
    )


class _Handler(RichHandler):
    """Prints control characters that a message quotes as escapes."""

    def render_message(self, record: logging.LogRecord, message: str) -> ConsoleRenderable:
        return super().render_message(record, printable(message))


class _CommandList(argparse.HelpFormatter):
    """Leaves room for the indented names of the commands, which argparse does not count."""

    def format_help(self) -> str:
        self._action_max_length += 2
        return super().format_help()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="opdprobe",
        formatter_class=_CommandList,
        description="Token-level analysis of on-policy distillation: why did a run work, or not?",
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("--verbose", action="store_true", help="log what is being done")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for declare in (
        _demo,
        _reproduce,
        _figures,
        _train,
        _probe,
        _import,
        _preflight,
        _cold_start,
        _select,
        _dedup,
        _inspect,
        _watch,
        _export,
        _log,
        _power,
        _view,
        _report,
        _zoo,
    ):
        declare(commands)
    return parser


def _command(
    commands: Any, name: str, run: Any, help: str, *shared: argparse.ArgumentParser
) -> argparse.ArgumentParser:
    sub = commands.add_parser(name, help=help, description=help, parents=shared)
    sub.set_defaults(run=run, command=name)
    return sub


# Options that several commands share. Each call makes new ones, so that their defaults can differ.


def _demo(commands: Any) -> None:
    _command(
        commands,
        "demo",
        demo_command.demo,
        "a first run: one success and one failure, compared",
        options.out_dir(),
        options.workers(),
    )


def _reproduce(commands: Any) -> None:
    sub = _command(
        commands,
        "reproduce",
        run_commands.reproduce,
        "run a preset, draw its figures, write a report",
        options.out_dir(),
        options.workers(),
        options.as_json("the verdicts"),
        *options.computing(None, "cpu for the testbed, auto for other models"),
    )
    sub.add_argument(
        "--preset",
        choices=["quick", "full", "paper", "real"],
        default="quick",
        help="how much to run (default: %(default)s)",
    )
    sub.add_argument(
        "--only",
        action="append",
        metavar="FIGURE",
        help="run only what this figure needs, for example fig06; may be repeated",
    )
    sub.add_argument(
        "--models",
        type=Path,
        metavar="YAML",
        help="file that names your models, prompts and benchmarks",
    )
    sub.add_argument(
        "--base",
        metavar="MODEL",
        help="with --preset real, the pre-trained model that all others are made from: directory, "
        "GGUF file or hub id",
    )


def _figures(commands: Any) -> None:
    sub = _command(
        commands,
        "figures",
        report_command.figures_of,
        "draw the paper's figures, or a run's curves",
    )
    sub.add_argument(
        "name",
        nargs="*",
        metavar="NAME",
        help="figures, for example fig06 (default: all); or one or two recorded runs",
    )
    sub.add_argument(
        "--results",
        type=Path,
        metavar="DIR",
        help="results to draw the figures from (default: the published ones)",
    )
    sub.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="where the figures are written (default: docs/figures, figures/ beside --results, or "
        "the run)",
    )
    sub.add_argument(
        "--check", action="store_true", help="draw nothing; fail if a figure is out of date"
    )


def _train(commands: Any) -> None:
    sub = _command(
        commands,
        "train",
        run_commands.train,
        "distil a student on its own rollouts, and record the run",
        *options.models(roles=["student"]),
        *options.several_teachers(),
        options.sampler("an SGLang server, or vLLM's in its development mode"),
        options.prompts(),
        *options.reading(),
        *options.computing(),
        options.run_dir(),
        options.limit("prompts, and the first N problems of --benchmark"),
        options.max_prompt_length(set_default=False),
        *options.chat_template(),
        *options.teacher_context(),
        options.drop_layers(),
        options.settings("OPDConfig", "; overrides --config"),
        options.as_json("the last metrics"),
    )
    sub.add_argument("--benchmark", metavar="FILE", help="evaluation problems, as for --prompts")
    sub.add_argument("--config", type=Path, metavar="YAML", help="file of OPDConfig settings")
    sub.add_argument(
        "--no-resume", action="store_true", help="fail if --run-dir already holds a run"
    )
    sub.add_argument(
        "--report-to",
        action="append",
        default=[],
        metavar="TRACKER",
        help="send the metrics to a tracker that accelerate supports, for example wandb; may be "
        "repeated",
    )


def _probe(commands: Any) -> None:
    sub = _command(
        commands,
        "probe",
        run_commands.probe,
        "sample from saved checkpoints, score the responses, and record a run",
        *options.several_teachers(f"{options.MODEL}, or http://HOST:8000/v1#NAME"),
        options.sampler(),
        *options.reading(),
        *options.computing(),
        options.run_dir(),
        options.limit(),
        options.k("kept"),
        options.max_prompt_length(),
        *options.chat_template(),
        *options.teacher_context(),
        *options.responses(4, 512),
        options.as_json("the last metrics"),
    )
    sub.add_argument(
        "checkpoint",
        nargs="+",
        metavar="CKPT",
        help="a checkpoint (checkpoint-500, …) or a directory of checkpoints; zoo:NAME; or a "
        "served model, http://HOST:8000/v1#NAME",
    )
    sub.add_argument("--prompts", metavar="FILE", help=options.PROMPTS)
    sub.add_argument(
        "--fixed-contexts",
        type=options.run_path,
        metavar="RUN",
        help="instead of --prompts: sample nothing, and score the rollouts of this run's first "
        "step with each checkpoint",
    )
    sub.add_argument(
        "--tokenizer",
        metavar="DIR",
        help="the models' tokenizer, directory or zoo:NAME; required if both are served",
    )


def _import(commands: Any) -> None:
    sub = _command(
        commands,
        "import",
        import_command.import_dumps,
        "make a run from rollouts that a trainer or an evaluation dumped",
        *options.models(required=False),
        *options.computing(),
        options.run_dir(),
        options.as_json("the counts"),
    )
    sub.add_argument(
        "dump",
        nargs="+",
        metavar="DUMP",
        help="a file, a directory or a pattern; all of one format; or, with --student alone, a "
        "cache of a teacher's top-k lists (a run, DistillKit, axolotl, Megatron)",
    )
    sub.add_argument(
        "--format",
        choices=list(FORMATS),
        metavar="NAME",
        help="who wrote the dumps (default: found by looking; pickles must be named): "
        + ", ".join(FORMATS),
    )
    sub.add_argument(
        "--chat-template-kwargs",
        action="append",
        metavar="NAME=VALUE",
        help="for text: a variable that the trainer gave to the chat template, such as "
        "enable_thinking=false; may be repeated, or be one JSON object (default: none)",
    )
    sub.add_argument(
        "--step",
        type=options.not_negative,
        metavar="N",
        help="the step of rollouts, where neither a row nor a file's name says it",
    )
    sub.add_argument(
        "--tokenizer",
        metavar="DIR",
        help="the models' tokenizer, directory or zoo:NAME (default: the student's); without "
        "models, the page of tokens needs it",
    )
    sub.add_argument(
        "--k",
        type=options.positive,
        metavar="N",
        help="number of most probable tokens kept per state (default: 16, or as many as the dump's "
        "lists have)",
    )
    sub.add_argument(
        "--temperature",
        type=float,
        default=1.0,
        metavar="T",
        help="the temperature that the rollouts were sampled at (default: %(default)s)",
    )
    sub.add_argument(
        "--on-error",
        choices=["raise", "skip"],
        default="raise",
        help="stop at a row that cannot be used, or leave it out with a note in the log (default: "
        "%(default)s)",
    )
    sub.add_argument(
        "--limit",
        type=options.positive,
        metavar="N",
        help="read the first N rollouts only; memory holds all texts of a teacher's cache",
    )
    sub.add_argument(
        "--follow",
        action="store_true",
        help="import steps of dumps that grow, each when a later one has begun; Ctrl-C imports the "
        "rest and ends it",
    )
    _interval(sub)


def _interval(sub: Any) -> None:
    sub.add_argument(
        "--interval",
        type=options.seconds,
        default=5.0,
        metavar="S",
        help="seconds from one look to the next (default: 5)",
    )


def _preflight(commands: Any) -> None:
    sub = _command(
        commands,
        "preflight",
        preflight_command.preflight,
        "estimate, before training, whether a teacher will teach a student",
        *options.models(roles=["student"]),
        options.teachers_to_rank(),
        options.sampler(),
        options.prompts(),
        *options.reading(),
        *options.computing(),
        options.drop_layers(),
        options.k("compared"),
        options.max_prompt_length(),
        *options.chat_template(),
        *options.teacher_context(),
        *options.responses(4, None, told="64 on a CPU, 1024 on an accelerator"),
        options.seed(),
        options.workers(None, "one a core, at most 4, for large jobs on a CPU; else 1"),
        options.as_json("the verdict and the numbers"),
    )
    sub.add_argument(
        "--n-prompts",
        type=options.positive,
        metavar="N",
        help="number of prompts drawn from the file (default: 64 on a CPU, 256 on an accelerator)",
    )
    sub.add_argument(
        "--temperature",
        type=float,
        default=1.0,
        metavar="T",
        help="temperature of sampling and of the comparison (default: %(default)s)",
    )
    sub.add_argument(
        "--template",
        action="append",
        default=[],
        help="a wording to compare: boxed, dapo, or a text with {question}; may be repeated",
    )


def _cold_start(commands: Any) -> None:
    sub = _command(
        commands,
        "cold-start",
        recipe_commands.cold_start,
        "fine-tune a student on its teacher's responses, before distillation",
        *options.models(),
        options.prompts(),
        *options.reading(),
        *options.computing(),
        options.limit(),
        options.max_prompt_length(),
        *options.chat_template(),
        *options.responses(1, 12288),
        options.settings("SFTConfig"),
        options.as_json("the counts"),
    )
    sub.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="where the student is written"
    )


def _select(commands: Any) -> None:
    alone = "options of --strategy max_divergence"
    sub = _command(
        commands,
        "select",
        recipe_commands.select,
        "choose or reword prompts for a teacher",
        options.prompts(),
        *options.reading(),
        options.out_jsonl(),
        options.seed(),
        options.as_json("the counts and the divergences"),
        *options.models(required=False, group=alone),
        *options.responses(
            DIVERGENCE_GENERATIONS, DIVERGENCE_LENGTH, set_defaults=False, group=alone
        ),
        options.max_prompt_length(set_default=False, group=alone),
        *options.chat_template(group=alone),
        *options.computing(None, group=alone),
    )
    sub.add_argument(
        "--strategy",
        required=True,
        choices=["template", "content", "mixed", "max_divergence"],
        help="how the prompts are chosen",
    )
    sub.add_argument(
        "--n-prompts",
        type=options.positive,
        metavar="N",
        help="number of prompts to choose; required for mixed and max_divergence (default: all)",
    )
    sub.add_argument(
        "--template", help="template: the new wording, boxed, dapo, or a text with {question}"
    )
    sub.add_argument(
        "--other", metavar="FILE", help="mixed: prompts that the teacher was not trained on"
    )
    sub.add_argument(
        "--share", type=float, metavar="S", help="mixed: share of the other prompts (default: 0.3)"
    )


def _dedup(commands: Any) -> None:
    sub = _command(
        commands,
        "dedup",
        recipe_commands.dedup,
        "remove the prompts that another set also contains",
        *options.reading(),
        options.out_jsonl(),
        options.as_json("the counts"),
        options.on_device(None),
        options.dtype("dtype of the sentence model for --semantic (default: float32)"),
    )
    sub.add_argument("prompts", metavar="PROMPTS", help=options.PROMPTS)
    sub.add_argument("--against", required=True, metavar="FILE", help="the other set of prompts")
    sub.add_argument(
        "--semantic", action="store_true", help="compare the meaning as well as the wording"
    )
    sub.add_argument(
        "--model",
        help="sentence-transformers model for --semantic (default: all-mpnet-base-v2)",
    )
    sub.add_argument(
        "--threshold",
        type=float,
        metavar="C",
        help="lowest cosine at which two prompts count as the same (default: 0.6)",
    )


def _inspect(commands: Any) -> None:
    sub = _command(
        commands,
        "inspect",
        run_commands.inspect,
        "show what a recorded run holds, and check it",
        options.run_to_read(),
        options.as_json("the summary"),
    )
    sub.add_argument(
        "--verify",
        action="store_true",
        help="compare every file with its checksum, and name the damaged ones",
    )
    sub.add_argument(
        "--figure", type=Path, metavar="FILE", help="draw the run's curves (pdf, png or svg)"
    )


def _watch(commands: Any) -> None:
    sub = _command(
        commands,
        "watch",
        watch_command.watch,
        "show a run's curves and first finding while it grows",
        options.run_to_read(),
    )
    _interval(sub)
    sub.add_argument("--once", action="store_true", help="print once and end")


def _power(commands: Any) -> None:
    sub = _command(
        commands,
        "power",
        report_command.power,
        "say how many prompts, rollouts and seeds a difference between two runs needs",
        options.as_json("the plan"),
    )
    sub.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="a recorded run; three or more that differ in their seeds also give the number of "
        "seeds",
    )
    sub.add_argument(
        "--quantity",
        metavar="NAME",
        help="accuracy, or a quantity of the last recorded steps, such as correct, overlap_ratio "
        "or reverse_kl (default: the first of these that the run has)",
    )
    sub.add_argument(
        "--difference",
        type=float,
        default=0.05,
        metavar="D",
        help="the difference to show, in the quantity's unit (default: 0.05)",
    )
    sub.add_argument(
        "--power",
        type=float,
        default=0.8,
        metavar="P",
        help="the chance of showing it (default: 0.8)",
    )


def _export(commands: Any) -> None:
    sub = _command(
        commands,
        "export",
        export_command.export,
        "write a run to one file for pandas, polars or DuckDB",
        options.run_to_read(),
    )
    sub.add_argument(
        "--to",
        choices=["parquet", "csv", "jsonl"],
        default="parquet",
        help="form of the file (default: %(default)s)",
    )
    sub.add_argument(
        "--by",
        choices=["token", "rollout"],
        default="token",
        help="what a row is (default: %(default)s)",
    )
    sub.add_argument("--out", type=Path, metavar="FILE", help="default: RUN/tokens.parquet, …")
    sub.add_argument(
        "--steps",
        type=options.numbers,
        metavar="A,B,…",
        help="recorded steps to write (default: all)",
    )


def _log(commands: Any) -> None:
    sub = _command(
        commands,
        "log",
        log_command.log,
        "send a run's metrics and accuracies to a tracker",
        options.run_to_read(),
    )
    sub.add_argument("--to", required=True, choices=log_command.TRACKERS, help="the tracker")
    sub.add_argument(
        "--project",
        default="opdprobe",
        metavar="NAME",
        help="the tracker's project; for tensorboard, a folder in RUN (default: %(default)s)",
    )
    sub.add_argument(
        "--name", metavar="NAME", help="what the run is called there (default: RUN's name)"
    )


def _view(commands: Any) -> None:
    sub = _command(
        commands,
        "view",
        view_command.view,
        "write an HTML page with every token of one or two runs",
        options.run_to_read(),
        options.run_to_compare(),
    )
    sub.add_argument(
        "--out", type=Path, metavar="FILE", help="the page (default: view.html in RUN)"
    )
    sub.add_argument(
        "--steps",
        type=options.numbers,
        metavar="A,B,…",
        help="recorded steps to show (default: all; with two runs, all that both have)",
    )
    sub.add_argument(
        "--rollouts",
        type=options.positive,
        metavar="N",
        help="first N rollouts of each step (default: all)",
    )
    sub.add_argument(
        "--tokenizer",
        type=Path,
        metavar="DIR",
        help="tokenizer that decodes the tokens (default: the student's)",
    )
    sub.add_argument(
        "--max-mb",
        type=float,
        default=20,
        metavar="MB",
        help="largest page; steps and rollouts beyond it are left out (default: %(default)s)",
    )
    sub.add_argument(
        "--follow",
        action="store_true",
        help="write the page anew as steps come, until the run ends or Ctrl-C",
    )
    _interval(sub)


def _report(commands: Any) -> None:
    sub = _command(
        commands,
        "report",
        report_command.report,
        "write a report on the curves of one run, or of two side by side",
        options.run_to_read(),
        options.run_to_compare(),
        options.as_json("the findings"),
    )
    sub.add_argument(
        "--out", type=Path, metavar="FILE", help="the report (default: report.html in RUN)"
    )
    sub.add_argument(
        "--no-view",
        action="store_true",
        help="do not write the token page that it links to",
    )


def _zoo(commands: Any) -> None:
    sub = _command(
        commands,
        "zoo",
        run_commands.zoo,
        "list, build or check the models of the testbed, or of --world real",
        options.workers(),
        options.on_device("cpu"),
        options.dtype("with --world real, dtype of the models in training (default: float32)"),
    )
    sub.add_argument("action", choices=["list", "build", "check"])
    sub.add_argument("name", nargs="*", metavar="NAME", help="models (default: all)")
    sub.add_argument(
        "--work-dir",
        type=Path,
        metavar="DIR",
        help="where build keeps checkpoints (default: out/zoo); with --world real, also the models "
        "(default: out/real/zoo)",
    )
    sub.add_argument(
        "--world",
        choices=["sums", "real"],
        default="sums",
        help="sums: the testbed, which is shipped; real: models that solve word problems in "
        "English, made from --base (default: %(default)s)",
    )
    sub.add_argument(
        "--base",
        metavar="MODEL",
        help="the pre-trained model to build --world real from: directory, GGUF file or hub id",
    )


if __name__ == "__main__":
    sys.exit(main())
