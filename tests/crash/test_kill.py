"""The kill harness itself, with few kills: CONTRIBUTING says how to run it with many."""

import subprocess
import sys
from pathlib import Path

import kill_harness
import pytest
from tiny_training import outcome


@pytest.mark.skipif(sys.platform == "win32", reason="forks the processes that it kills")
@pytest.mark.slow
def test_killed_runs_become_the_unbroken_one():
    # A process of its own: this one has threads, which a fork would lose.
    done = subprocess.run(
        [sys.executable, kill_harness.__file__, "--kills", "4", "--seed", "0"],
        capture_output=True, text=True, check=False, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    *kills, last = done.stdout.splitlines()
    assert len(kills) == 4  # one at each aim
    assert last.startswith("4 of 4 survived, nothing lost")


def test_the_harness_notices_what_is_lost(unbroken, tmp_path):
    whole = outcome(unbroken)
    for name in ("steps/000003.zarr.zip", "metrics.jsonl"):
        run = tmp_path / Path(name).stem
        for file in unbroken.rglob("*"):
            if file.is_file() and "checkpoints" not in file.parts:
                copy = run / file.relative_to(unbroken)
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(file.read_bytes())
        changed = run / name
        changed.write_bytes(changed.read_bytes().replace(b"5", b"6", 1))
        with pytest.raises(AssertionError, match=r"has other bytes|are others"):
            kill_harness.check_remains(run, whole)
