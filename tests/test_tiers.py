"""opdprobe without the extra train: what works, and what says that it needs the extra."""

import importlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import opdprobe
from opdprobe.errors import _TRAIN_EXTRA, MissingExtraError, OPDProbeError, needs_train_extra

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
# Importing one of these fails as if it were not installed.
WITHOUT_TRAIN = f"import sys; sys.modules |= dict.fromkeys({sorted(_TRAIN_EXTRA)})\n"

IMPORT_ALL = """
# Nor is there what only POSIX has.
sys.modules |= dict.fromkeys(("fcntl", "grp", "pwd", "resource", "syslog", "termios"))
import importlib, pkgutil, warnings
warnings.filterwarnings("ignore", "only soft file lock")  # Windows has locks of its own
rooms = ["opdprobe.store", "opdprobe.probes", "opdprobe.report", "analyses", "figures"]
found = ["opdprobe.train.config", "opdprobe.testing", "opdprobe.cli.parser"]
for room in rooms:
    package = importlib.import_module(room)
    found += [f"{room}.{module.name}" for module in pkgutil.iter_modules(package.__path__)]
assert len(found) > 80, found
for name in found:
    importlib.import_module(name)
"""

LAZY = """
import opdprobe, opdprobe.testing
for name in sorted(opdprobe._LAZY):
    try:
        getattr(opdprobe, name)
    except opdprobe.MissingExtraError as error:
        print(error)
for module in ("opdprobe.hooks", "opdprobe.preflight"):
    try:
        __import__(module)
    except ImportError as error:
        print(error)
for fake in (opdprobe.testing.tiny_model, opdprobe.testing.tiny_tokenizer):
    try:
        fake()
    except ImportError as error:
        print(error)
"""

COMMANDS = """
from opdprobe.cli.parser import main
models = ["--student", "zoo:sft-small", "--teacher", "zoo:rl-small", "--prompts", "zoo:train"]
for command in [
    ["train", *models, "--run-dir", "run"],
    ["probe", "zoo:sft-small", *models[2:], "--run-dir", "run"],
    ["preflight", *models],
    ["cold-start", *models, "--out", "out"],
    ["select", "--strategy", "max_divergence", *models, "--n-prompts", "1", "--out", "some.jsonl"],
    ["zoo", "check"],
    ["zoo", "build"],
    ["reproduce", "--only", "fig06", "--json"],
    ["dedup", "all.parquet", "--against", "zoo:easy", "--out", "some.jsonl"],
]:
    assert main(command) == 1, command
"""

WORKS = """
from opdprobe.cli.parser import main
template = ["--strategy", "template", "--template", "boxed"]
for command in [
    ["zoo", "list"],
    ["select", *template, "--prompts", "zoo:train", "--n-prompts", "3", "--out", "some.jsonl"],
    ["dedup", "some.jsonl", "--against", "zoo:easy", "--out", "rest.jsonl"],
    ["figures", "fig05", "--out", "figures"],
]:
    assert main(command) == 0, command
"""


def python(script: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-W", "error", "-c", WITHOUT_TRAIN + script]
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, check=False, timeout=240
    )


def test_the_extra_is_what_pyproject_says():
    table = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extra = {name.partition(">=")[0] for name in table["optional-dependencies"]["train"]}
    assert extra == _TRAIN_EXTRA
    assert not extra & {name.partition(">=")[0] for name in table["dependencies"]}


def test_everything_else_can_be_imported_on_windows_too(tmp_path):
    done = python(IMPORT_ALL, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_names_that_need_the_extra_say_so(tmp_path):
    done = python(LAZY, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert all(line.endswith("run pip install 'opdprobe[train]' first.") for line in lines)
    works = {"OPDConfig", "Prompt", "Rollout", "TeacherContext", "TopLists", "load_prompts"}
    hooked = {"ProbeCallback", "capture", "probe_checkpoints"}
    hooked |= {"import_rollouts", "sample", "score_rollouts"}
    hooks = ["opdprobe.hooks"] * len(hooked)
    others = {"Callback", "OPDTrainer", "coherence"}
    others |= {"drop_layers", "load_model", "load_tokenizer"}
    assert {*works, *others, *hooked} == {*opdprobe._LAZY}
    fakes = [f"opdprobe.testing.{name}" for name in ("tiny_model", "tiny_tokenizer")]
    subjects = [f"opdprobe.{name}" for name in others]
    subjects += [*hooks, "opdprobe.hooks", "opdprobe.preflight", *fakes]
    assert sorted(line.split()[0] for line in lines) == sorted(subjects)


def test_commands_that_need_the_extra_say_so(tmp_path):
    (tmp_path / "all.parquet").touch()
    done = python(COMMANDS, tmp_path)
    assert (done.returncode, done.stdout) == (0, "")
    lines = done.stderr.splitlines()
    assert len(lines) == 9
    start, end = "error: MissingExtraError: ", "run pip install 'opdprobe[train]' first."
    assert all(line.startswith(start) and line.endswith(end) for line in lines), lines
    assert "reading all.parquet needs pyarrow" in lines[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["all.parquet"]


def test_commands_without_models_work(tmp_path):
    done = python(WORKS, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert len((tmp_path / "rest.jsonl").read_text().splitlines()) == 3
    assert (tmp_path / "figures/fig05.png").stat().st_size > 10_000


@pytest.mark.parametrize("name", ["no_such_module", "torch.no_such_part"])
def test_any_other_module_that_is_missing_is_named_as_it_is(name):
    # A torch that lacks a part is installed: the extra would not help.
    missing = pytest.raises(ModuleNotFoundError, match=f"No module named '{name}'")
    with missing, needs_train_extra("this"):
        importlib.import_module(name)


def test_the_error_is_both_ours_and_pythons():
    assert issubclass(MissingExtraError, OPDProbeError)
    assert issubclass(MissingExtraError, ImportError)
