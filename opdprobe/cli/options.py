"""Options that several commands share, and what their values must be."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

MODEL = "directory, hub id, GGUF file, ADAPTER@BASE or zoo:NAME"
ROLES = ("student", "teacher")
DTYPES = ["auto", "float32", "bfloat16", "float16"]
PROMPTS = (
    "the prompts: .parquet, .jsonl, .json or .csv file, a directory of them, a data set of the Hub "
    "(OWNER/NAME:CONFIG:SPLIT), zoo:SPLIT or real:SPLIT"
)


def shared(*flags: str, group: str | None = None, **settings: Any) -> argparse.ArgumentParser:
    """Make an option for `_command`; `group` is the heading that it has in the command's help."""
    parent = argparse.ArgumentParser(add_help=False)
    (parent.add_argument_group(group) if group else parent).add_argument(*flags, **settings)
    return parent


def models(
    *, required: bool = True, group: str | None = None, roles: Sequence[str] = ROLES
) -> list[argparse.ArgumentParser]:
    """Declare the student and the teacher."""
    return [
        shared(
            f"--{role}",
            required=required,
            metavar="MODEL",
            help=f"the {role}: {MODEL}",
            group=group,
        )
        for role in roles
    ]


def several_teachers(model: str = MODEL) -> list[argparse.ArgumentParser]:
    """Declare a teacher, or several by name."""
    return [
        shared(
            "--teacher",
            required=True,
            action="append",
            metavar="[NAME=]MODEL",
            help=f"the teacher: {model}; may be repeated with --teacher-by, then with a name, or "
            "with a weight in its place, for a mixture",
        ),
        shared(
            "--teacher-by",
            metavar="COLUMN",
            help="column of the prompts that names the teacher of each, such as data_source",
        ),
        shared(
            "--one-teacher-at-a-time",
            action="store_true",
            help="of several teachers, keep one in memory, and read the next one's files when its "
            "turn comes",
        ),
    ]


def sampler(what: str = "a server with the student's weights") -> argparse.ArgumentParser:
    """Declare an engine that samples in the student's place."""
    return shared(
        "--sampler",
        metavar="URL",
        help=f"{what}, http://HOST:8000/v1#NAME, that samples in the student's place",
    )


def teachers_to_rank() -> argparse.ArgumentParser:
    """Declare one teacher, or several of which to choose."""
    return shared(
        "--teacher",
        required=True,
        action="append",
        metavar="MODEL",
        help=f"the teacher: {MODEL}; repeat it to rank several",
    )


def prompts() -> argparse.ArgumentParser:
    """Declare the prompt file."""
    return shared("--prompts", required=True, metavar="FILE", help=PROMPTS)


def reading() -> list[argparse.ArgumentParser]:
    """Declare how prompt files are read."""
    return [
        shared(
            "--prompt-column",
            default="prompt",
            metavar="NAME",
            help="column of prompt files that holds the prompts (default: %(default)s)",
        ),
        shared(
            "--answer-column",
            metavar="NAME",
            help="column of prompt files that holds the answers (default: verl's, or answer)",
        ),
        shared(
            "--on-error",
            choices=["raise", "skip"],
            default="raise",
            help="stop at a prompt that cannot be used, or skip it with a note in the log "
            "(default: %(default)s)",
        ),
    ]


def chat_template(*, group: str | None = None) -> list[argparse.ArgumentParser]:
    """Declare what the chat template gets."""
    return [
        shared(
            "--chat-template-kwargs",
            action="append",
            metavar="NAME=VALUE",
            help="a variable for the chat template, such as enable_thinking=true; may be repeated, "
            "or be one JSON object (default: enable_thinking=false)",
            group=group,
        ),
        shared(
            "--system-prompt",
            metavar="TEXT",
            help="first message of conversations that have no system message",
            group=group,
        ),
    ]


def teacher_context() -> list[argparse.ArgumentParser]:
    """Declare how the teacher's prompts differ from the student's."""
    group = "what the teacher reads, where it is not what the student reads"
    return [
        shared(
            "--teacher-template",
            choices=["student", "own"],
            help="whose chat template forms the teacher's prompts (default: student)",
            group=group,
        ),
        shared(
            "--teacher-prompt",
            metavar="TEXT",
            help="the teacher's wording of the last message: {question}, {answer} and {COLUMN} "
            "stand for the row's; a row's own column teacher_prompt precedes it",
            group=group,
        ),
        shared(
            "--teacher-system-prompt",
            metavar="TEXT",
            help="its first message, in place of the student's system message; '' leaves that out",
            group=group,
        ),
        shared(
            "--teacher-chat-template-kwargs",
            action="append",
            metavar="NAME=VALUE",
            help="a variable for its chat template, as for --chat-template-kwargs",
            group=group,
        ),
    ]


def max_prompt_length(
    *, set_default: bool = True, group: str | None = None
) -> argparse.ArgumentParser:
    """Declare the longest prompt."""
    return shared(
        "--max-prompt-length",
        type=positive,
        default=1024 if set_default else None,
        metavar="N",
        help="longest prompt, in tokens (default: 1024)",
        group=group,
    )


def limit(what: str = "prompts") -> argparse.ArgumentParser:
    """Declare how many prompts are used."""
    return shared(
        "--limit",
        type=positive,
        metavar="N",
        help=f"use only the first N {what} (default: the whole file, or 2048 of a zoo split)",
    )


def responses(
    num_generations: int,
    max_completion_length: int | None,
    *,
    told: str = "",
    set_defaults: bool = True,
    group: str | None = None,
) -> list[argparse.ArgumentParser]:
    """Declare how many responses are sampled, and how long they may be; what is told of that."""
    return [
        shared(
            "--num-generations",
            type=positive,
            default=num_generations if set_defaults else None,
            metavar="N",
            help=f"rollouts per prompt (default: {num_generations})",
            group=group,
        ),
        shared(
            "--max-completion-length",
            type=positive,
            default=max_completion_length if set_defaults else None,
            metavar="N",
            help=f"longest response, in tokens (default: {told or max_completion_length})",
            group=group,
        ),
    ]


def k(verb: str) -> argparse.ArgumentParser:
    """Declare the number of top tokens."""
    return shared(
        "--k",
        type=positive,
        default=16,
        metavar="N",
        help=f"number of most probable tokens {verb} per state (default: %(default)s)",
    )


def on_device(
    default: str | None = "auto", told: str = "auto", group: str | None = None
) -> argparse.ArgumentParser:
    """Declare where models run."""
    return shared(
        "--device",
        default=default,
        metavar="DEVICE",
        help="where models run: auto (the accelerator, if there is one), cpu, cuda, cuda:1, mps or "
        f"xpu (default: {default or told})",
        group=group,
    )


def dtype(help: str, group: str | None = None) -> argparse.ArgumentParser:
    """Declare the dtype of weights."""
    return shared("--dtype", choices=DTYPES, help=help, group=group)


def computing(
    device: str | None = "auto", told: str = "auto", *, group: str | None = None
) -> list[argparse.ArgumentParser]:
    """Declare device, dtypes and attention."""
    return [
        on_device(device, told, group),
        dtype("dtype of both models' weights (default: float32; see --teacher-dtype)", group),
        shared(
            "--teacher-dtype",
            choices=DTYPES,
            help="the teacher's (default: as --dtype says; else bfloat16 on an accelerator)",
            group=group,
        ),
        shared(
            "--attn-implementation",
            metavar="NAME",
            help="how attention is computed: sdpa, eager, flash_attention_2, … (default: "
            "transformers chooses)",
            group=group,
        ),
    ]


def seed() -> argparse.ArgumentParser:
    """Declare the seed."""
    return shared(
        "--seed",
        type=not_negative,
        default=0,
        metavar="N",
        help="random seed (default: %(default)s)",
    )


def drop_layers() -> argparse.ArgumentParser:
    """Declare the layers to remove."""
    return shared(
        "--drop-layers", metavar="A-B", help="remove the student's layers A to B, counted from 0"
    )


def settings(config: str, more: str = "") -> argparse.ArgumentParser:
    """Declare settings of a configuration."""
    return shared(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help=f"one {config} setting{more}; may be repeated",
    )


def workers(default: int | None = 2, told: str = "%(default)s") -> argparse.ArgumentParser:
    """Declare the number of processes."""
    return shared(
        "--workers",
        type=positive,
        default=default,
        metavar="N",
        help=f"number of parallel processes (default: {told})",
    )


def out_dir() -> argparse.ArgumentParser:
    """Declare a directory to write to."""
    return shared(
        "--out",
        type=Path,
        default=Path("out"),
        metavar="DIR",
        help="where everything is written (default: %(default)s)",
    )


def run_dir() -> argparse.ArgumentParser:
    """Declare the directory of a run that is recorded."""
    return shared(
        "--run-dir", required=True, type=Path, metavar="DIR", help="where the run is recorded"
    )


def run_to_read() -> argparse.ArgumentParser:
    """Declare a recorded run."""
    return shared("run_dir", type=run_path, metavar="RUN", help="directory of a recorded run")


def run_to_compare() -> argparse.ArgumentParser:
    """Declare a second recorded run."""
    return shared(
        "other", type=run_path, nargs="?", metavar="RUN2", help="a second run, to compare with"
    )


def out_jsonl() -> argparse.ArgumentParser:
    """Declare a file of prompts to write."""
    return shared(
        "--out",
        required=True,
        type=Path,
        metavar="FILE.jsonl",
        help="where the prompts are written",
    )


def as_json(what: str) -> argparse.ArgumentParser:
    """Declare whether to print JSON."""
    return shared("--json", action="store_true", help=f"print {what} as JSON")


# One function per command.


def positive(text: str) -> int:
    """Read a whole number above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}; expected a whole number above 0")
    return int(text)


def not_negative(text: str) -> int:
    """Read a whole number, 0 or above."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}; expected a whole number, 0 or above")
    return int(text)


def seconds(text: str) -> float:
    """Read a number of seconds."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e6:  # NaN, too
        raise argparse.ArgumentTypeError(f"{text!r}; expected a number of seconds above 0")
    return seconds


def run_path(text: str) -> Path:
    """Read the path of a run."""
    if "://" in text:
        raise argparse.ArgumentTypeError(
            f"{text!r} is on object storage; expected a directory: copy the run, or use "
            "opdprobe.open_run in Python"
        )
    return Path(text)


def numbers(text: str) -> list[int]:
    """Read whole numbers, separated by commas."""
    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r}; expected a list of numbers such as 0,10,20")
    return [int(part) for part in parts]
