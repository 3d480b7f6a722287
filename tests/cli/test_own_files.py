"""Files of the user's own, called as our packages are, are not in the way of a run."""

import os
import subprocess
import sys

import pytest

from opdprobe.testing import synthetic_run

pytestmark = pytest.mark.slow

SCRIPT = """
import sys
import analyses, figures  # the user's
import opdprobe
from opdprobe.cli.parser import main

assert analyses.MINE == figures.MINE == 1
run = opdprobe.open_run("run")
assert len(opdprobe.curves(run)["probe"]) == 6
for command in ("inspect", "report", "view", "figures"):
    assert main([command, "run"]) == 0, command
"""


@pytest.fixture
def folder(tmp_path):
    synthetic_run(tmp_path / "run", steps=[0, 5, 10])
    for name in ("analyses", "figures"):
        (tmp_path / f"{name}.py").write_text("MINE = 1\n")
    return tmp_path


def run(folder, *arguments):
    # Only what is installed, and what Python puts first: the folder of the script, or this one.
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder, capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


WRITTEN = {"report.html", "report-view.html", "view.html", "curves.pdf", "curves.png"}


def test_a_script_beside_them(folder):
    (folder / "script.py").write_text(SCRIPT)
    run(folder, "script.py")
    assert set(os.listdir(folder / "run")) > WRITTEN


def test_the_command_line_beside_them(folder):
    synthetic_run(folder / "other", steps=[0, 5, 10], seed=1)
    for command in ("report", "figures"):
        run(folder, "-m", "opdprobe", command, "run", "other")
    assert set(os.listdir(folder / "run")) > WRITTEN - {"view.html"}
