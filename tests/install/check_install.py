"""Install opdprobe as a stranger would, in both tiers, and use it away from the checkout.

    python tests/install/check_install.py

Builds the source archive and the wheel, then makes two fresh environments with the releases of
constraints.txt: one for opdprobe alone, from either archive, and one for opdprobe[train].
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
# Neither the checkout nor its environment may help.
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}

RECORD = """
import sys
from opdprobe.testing import synthetic_run
synthetic_run(sys.argv[1], steps=[0, 5, 10])
"""

READ = """
import importlib.util
import sys
from pathlib import Path
import numpy as np
import xarray as xr
import opdprobe

assert Path(opdprobe.__file__).is_relative_to(sys.prefix), opdprobe.__file__
assert Path(opdprobe.__file__).with_name("py.typed").exists()
for name in ("torch", "transformers", "tokenizers", "safetensors", "accelerate", "pyarrow"):
    assert importlib.util.find_spec(name) is None, name
run = opdprobe.open_run(sys.argv[1])
assert run.steps == [0, 5, 10]
curves = opdprobe.curves(run)
assert np.isfinite(curves["value"]).all() and len(curves["probe"]) == 6
assert run.states().opd.overlap_ratio().sizes["state"] == 3 * 4 * 8
step = f"zip::{run.path}/steps/000005.zarr.zip"
with xr.open_dataset(step, engine="zarr", consolidated=False) as ds:
    assert ds.sizes["state"] == 4 * 8
"""

TRAIN = ["train", "--student", "zoo:sft-small", "--teacher", "zoo:rl-small"]
TRAIN += ["--prompts", "zoo:train", "--set", "max_steps=2", "--set", "batch_size=4"]


def call(*command: object, cwd: Path | None = None, fails: bool = False) -> str:
    """Run a command; return what it printed. It has to exit with 0, or with 1 if it `fails`."""
    words = [str(word) for word in command]
    done = subprocess.run(
        words, cwd=cwd, env=CLEAN, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, encoding="utf-8", check=False,
    )  # fmt: skip
    if done.returncode != fails:
        sys.exit(f"{' '.join(words)}: exit code {done.returncode}\n{done.stdout}")
    return done.stdout


class Environment:
    """A fresh virtual environment and a folder to work in."""

    def __init__(self, folder: Path) -> None:
        call(sys.executable, "-m", "venv", "--without-pip", folder)
        scripts = folder / ("Scripts" if sys.platform == "win32" else "bin")
        self.python, self.opdprobe = scripts / "python", scripts / "opdprobe"
        self.cwd = folder / "work"
        self.cwd.mkdir()

    def install(self, *arguments: object) -> None:
        # Most of torch is never imported: do not compile it.
        options = ["--quiet", "--no-compile", "-c", ROOT / "constraints.txt"]
        call(*PIP, "--python", self.python, "install", *options, *arguments)

    def run(self, *command: object, fails: bool = False) -> str:
        """Run a command in the folder; see `call`."""
        return call(*command, cwd=self.cwd, fails=fails)


def check_core(env: Environment, version: str) -> None:
    """Read, analyse and draw a recorded run where nothing of the extra train is installed."""
    run = env.cwd / "run"
    if not run.exists():
        env.run(env.python, "-c", RECORD, run)
    env.run(env.python, "-c", READ, run)
    assert env.run(env.python, "-m", "opdprobe", "--version").strip() == version
    for command, written in {
        "inspect": (),
        "report": ("report.html", "report-view.html"),
        "view": ("view.html",),
        "figures": ("curves.pdf", "curves.png"),
    }.items():
        for name in written:
            (run / name).unlink(missing_ok=True)
        env.run(env.opdprobe, command, run)
        for name in written:
            assert (run / name).stat().st_size > 1000, name
    assert "sft-small" in env.run(env.opdprobe, "zoo", "list")
    refused = env.run(env.opdprobe, *TRAIN, "--run-dir", "none", fails=True)
    assert "which is not installed: run pip install 'opdprobe[train]' first." in refused, refused
    assert "Traceback" not in refused, refused


def main() -> None:
    """Build, install, use; say what took how long."""
    start = time.monotonic()

    def done(what: str) -> None:
        print(f"{time.monotonic() - start:4.0f} s  {what}", flush=True)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        call(sys.executable, "-m", "build", "--outdir", folder / "dist", ROOT)
        (wheel,) = folder.glob("dist/*.whl")
        (archive,) = folder.glob("dist/*.tar.gz")
        version = wheel.name.split("-")[1]
        done(f"built {wheel.name} and {archive.name}")

        core = Environment(folder / "core")
        core.install(wheel)
        check_core(core, version)
        done("opdprobe from the wheel")
        core.install("--force-reinstall", "--no-deps", archive)
        check_core(core, version)
        done("opdprobe from the source archive")

        train = Environment(folder / "train")
        train.install(f"opdprobe[train] @ {wheel.as_uri()}")
        train.run(train.opdprobe, *TRAIN, "--run-dir", "trained")
        done("opdprobe[train]: two steps")
        # The other tier reads what this one wrote.
        core.run(core.opdprobe, "inspect", "--verify", train.cwd / "trained")
        core.run(core.opdprobe, "report", train.cwd / "trained")
        done("opdprobe reads what opdprobe[train] wrote")


if __name__ == "__main__":
    main()
