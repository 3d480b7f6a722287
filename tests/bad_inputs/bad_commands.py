"""What is typed: exit code 2 where the words are wrong, 1 where what they name is."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

from accelerate import tracking
from accelerate.utils import LoggerType
from case import Case, Exit1, Exit2, run_command

from opdprobe.store import RunWriter
from opdprobe.testing import synthetic_run

_TRAIN = ("train", "--student", "zoo:sft-small", "--teacher", "zoo:sft-small")


def _usage(fed: str, message: str, *words: Any) -> Case:
    return Case("Command line", fed, lambda _: run_command(*words), Exit2, message)


def _failed(fed: str, message: str, *words: Any) -> Case:
    """Words in which FOLDER is the folder."""

    def feed(folder: Path) -> None:
        run_command(*(word.replace("FOLDER", str(folder)) for word in words))

    return Case("Command line", fed, feed, Exit1, f"error: {message}")


def _inspected(folder: Path) -> None:
    run = synthetic_run(folder / "[red]\x1b[31mrun", [0], n_rollouts=1, length=1, k=2)
    (run.path / "run.json").write_text("{}")
    run_command("inspect", run.path)


def _logged(*installed: LoggerType, to: str) -> Callable[[Path], None]:
    """Send a run to a tracker, where some trackers are installed and one log is there already."""

    def feed(folder: Path) -> None:
        run = synthetic_run(folder / "run", [0], n_rollouts=1, length=1, k=2)
        (run.path / "opdprobe/run").mkdir(parents=True)
        (run.path / "opdprobe/run/events").touch()
        with patch.object(tracking, "_available_trackers", [*installed]):
            run_command("log", run.path, "--to", to)

    return feed


def _logged_too_early(folder: Path) -> None:
    RunWriter(folder / "run", attrs={}, config={}, resume=False)
    run_command("log", folder / "run", "--to", "wandb")


CASES = [
    _usage("no command", "opdprobe: error: the following arguments are required: COMMAND"),
    _usage(
        "a command that there is not",
        "opdprobe: error: argument COMMAND: invalid choice: 'trian' (choose from …)",
        "trian",
    ),
    _usage(
        "an argument too few",
        "opdprobe train: error: the following arguments are required: --prompts, --run-dir",
        *_TRAIN,
    ),
    _usage(
        "an option that there is not",
        "opdprobe: error: unrecognized arguments: --fast",
        *(*_TRAIN, "--prompts", "zoo:train", "--run-dir", "run", "--fast"),
    ),
    _failed(
        "a student to be trained in float16",
        "ConfigError: dtype = float16: the student is to be trained, and the loss is not scaled, "
        "so that small gradients underflow to zero in float16; expected float32 or bfloat16 (auto, "
        "if it was saved in one of these).",
        *(*_TRAIN, "--prompts", "zoo:train", "--run-dir", "FOLDER/run", "--dtype", "float16"),
    ),
    _usage(
        "a number that is none",
        "opdprobe train: error: argument --limit: '-3'; expected a whole number above 0",
        *(*_TRAIN, "--prompts", "zoo:train", "--run-dir", "run", "--limit=-3"),
    ),
    _usage(
        "a list of steps that is none",
        "opdprobe view: error: argument --steps: 'a,b'; expected a list of numbers such as 0,10,20",
        *("view", "run", "--steps", "a,b"),
    ),
    _usage(
        "an interval that is none",
        "opdprobe watch: error: argument --interval: '0'; expected a number of seconds above 0",
        *("watch", "run", "--interval", "0"),
    ),
    _failed(
        "two runs for a page that is to grow",
        "ConfigError: --follow with two runs; expected one: leave out the second, or --follow.",
        *("view", "FOLDER/a", "FOLDER/b", "--follow"),
    ),
    _usage(
        "a negative seed",
        "opdprobe preflight: error: argument --seed: '-1'; expected a whole number, 0 or above",
        *("preflight", *_TRAIN[1:], "--prompts", "zoo:train", "--seed=-1"),
    ),
    _failed(
        "one teacher twice, to be ranked",
        "ConfigError: --teacher zoo:sft-small, zoo:sft-small; expected each teacher once.",
        *("preflight", *_TRAIN[1:], "--teacher", "zoo:sft-small", "--prompts", "zoo:train"),
    ),
    _usage(
        "a run on object storage",
        "opdprobe report: error: argument RUN: 's3://bucket/run' is on object storage; "
        "expected a directory: copy the run, or use opdprobe.open_run in Python",
        *("report", "s3://bucket/run"),
    ),
    _failed(
        "a model of the zoo that there is not",
        "ZooError: no zoo model 'huge'; expected one of sft-small, …",
        *("train", "--student", "zoo:huge", "--teacher", "zoo:sft-small"),
        *("--prompts", "zoo:train", "--run-dir", "FOLDER/run"),
    ),
    _failed(
        "prompts of the testbed that there are not",
        "PromptError: no testbed problems zoo:harder; expected one of zoo:easy, …",
        *(*_TRAIN, "--prompts", "zoo:harder", "--run-dir", "FOLDER/run"),
    ),
    _failed(
        "word problems that there are not",
        "PromptError: no word problems real:harder; expected one of real:easy, …",
        *(*_TRAIN, "--prompts", "real:harder", "--run-dir", "FOLDER/run"),
    ),
    _failed(
        "models made from no base model",
        "ZooError: --world real has no base model; expected --base with a model directory, a GGUF "
        "file or a hub id.",
        *("zoo", "build", "--world", "real", "--work-dir", "FOLDER/zoo"),
    ),
    _failed(
        "a base model for models that are shipped",
        "ConfigError: --base and --dtype are for --world real; the testbed needs neither.",
        *("zoo", "build", "--base", "FOLDER/model"),
    ),
    _failed(
        "a base model for a preset that needs none",
        "ConfigError: --base is for --preset real without --models, which it makes models of.",
        *("reproduce", "--preset", "full", "--base", "FOLDER/model"),
    ),
    _failed(
        "a setting that there is not",
        "ConfigError: --set 'lr=1'; expected NAME=VALUE with NAME one of batch_size, ….",
        *(*_TRAIN, "--prompts", "zoo:train", "--run-dir", "FOLDER/run", "--set", "lr=1"),
    ),
    _failed(
        "a value that no YAML is",
        "ConfigError: --set 'k=[16'; expected a value that YAML can read.",
        *(*_TRAIN, "--prompts", "zoo:train", "--run-dir", "FOLDER/run", "--set", "k=[16"),
    ),
    _failed(
        "a variable for the chat template without a value",
        "ConfigError: --chat-template-kwargs 'thinking'; expected NAME=VALUE, such as "
        "enable_thinking=true, or a JSON object.",
        *(*_TRAIN, "--prompts", "zoo:train", "--run-dir", "FOLDER/run"),
        *("--chat-template-kwargs", "thinking"),
    ),
    _failed(
        "layers from high to low",
        "ConfigError: --drop-layers '3-1'; expected A-B with A ≤ B, for example 14-17.",
        *(*_TRAIN, "--prompts", "zoo:train", "--run-dir", "FOLDER/run", "--drop-layers", "3-1"),
    ),
    _failed(
        "a directory without a model, to be probed",
        "ModelError: FOLDER: no checkpoint there; expected a saved model (config.json and "
        "safetensors), an adapter (adapter_config.json), or a directory of them whose names end in "
        "a step (checkpoint-500).",
        *("probe", "FOLDER", "--teacher", "zoo:sft-small"),
        *("--prompts", "zoo:train", "--run-dir", "FOLDER/run"),
    ),
    _failed(
        "a directory without a model, as the teacher",
        "ModelError: FOLDER: the tokenizer does not load: no tokenizer.json in this directory; "
        "expected a tokenizer as save_pretrained writes it, beside the model.",
        *("preflight", "--student", "zoo:sft-small", "--teacher", "FOLDER"),
        *("--prompts", "zoo:train"),
    ),
    _failed(
        "a run that is not there",
        "StoreError: FOLDER/absent does not exist; expected the directory of a run.",
        *("inspect", "FOLDER/absent"),
    ),
    _failed(
        "a place to write to that is not there",
        "ConfigError: --out FOLDER/absent/out.jsonl; expected a .jsonl file in a directory that "
        "exists.",
        *("select", "--strategy", "content", "--prompts", "zoo:train"),
        *("--out", "FOLDER/absent/out.jsonl"),
    ),
    _failed(
        "an option of another strategy",
        "ConfigError: --strategy content does not use --share: leave that out.",
        *("select", "--strategy", "content", "--prompts", "zoo:train", "--share", "0.5"),
        *("--out", "FOLDER/out.jsonl"),
    ),
    Case(
        "Command line",
        "a tracker whose package is missing",
        _logged(LoggerType.WANDB, to="trackio"),
        Exit1,
        "error: ConfigError: --to trackio: trackio is not installed, or accelerate is too old to "
        "know it; run pip install -U trackio accelerate first.",
    ),
    Case(
        "Command line",
        "a run that TensorBoard has already",
        _logged(LoggerType.TENSORBOARD, to="tensorboard"),
        Exit1,
        "error: ConfigError: FOLDER/run/opdprobe/run exists already; expected a new --name, since "
        "TensorBoard would draw both as one curve: choose another name, or remove it.",
    ),
    Case(
        "Command line",
        "a run for a tracker before its first step",
        _logged_too_early,
        Exit1,
        "error: StoreError: FOLDER/run has no metrics, evaluations or recorded steps to send.",
    ),
    Case(
        "Command line",
        "a path that holds markup and a terminal's orders",
        _inspected,
        Exit1,
        "error: StoreError: FOLDER/[red]\\x1b[31mrun: schema_version = None; expected an "
        "integer: opdprobe did not write this, or its attributes were dropped.",
    ),
]
