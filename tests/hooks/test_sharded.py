"""ProbeCallback on students that FSDP2 shards over two processes, inside trainers of TRL."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from opdprobe import open_run, validate

pytestmark = pytest.mark.slow
pytest.importorskip("trl")
pytest.importorskip("datasets")
pytest.importorskip("peft")

SCRIPT = Path(__file__).with_name("sharded.py")
# What `accelerate launch --use_fsdp --fsdp_version 2` sets.
FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
}
TRAININGS = ["distilled", "adapted", "reinforced"]


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return str(one.getsockname()[1])


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The same trainings, by how the student is held."""
    folder = tmp_path_factory.mktemp("two")
    launches = {name: {"MASTER_PORT": free_port()} for name in ("sharded", "full models")}
    launches["sharded"] |= FSDP
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder), json.dumps(launches)],
        capture_output=True,
        text=True,
        env=os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return folder, done.stderr


def noted(folder, rank=0):
    return json.loads((folder / "sharded" / f"noted-{rank}.json").read_text())


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("name", TRAININGS)
def test_training_in_shards_is_the_same_with_the_callback(both, name, rank):
    folder, _ = both
    alone, watched = noted(folder, rank)[name]
    assert alone["sharded"] > 0
    assert len(alone["losses"]) == 2
    assert watched == alone


@pytest.mark.parametrize("name", ["distilled", "reinforced"])
def test_a_sharded_student_is_recorded_as_a_full_one(both, name, assert_same_steps):
    folder, said = both
    assert "not a plain projection" not in said  # no slow path
    got, want = (open_run(folder / launch / name / "run") for launch in ("sharded", "full models"))
    assert got.steps == want.steps == [0, 2]
    assert got.attrs == want.attrs  # with the student's weight hash
    assert_same_steps(got, want)
    before, after = (got.load(step).reverse_kl.mean() for step in got.steps)
    assert abs(after - before) > 1e-4


def test_mixed_precision_is_that_of_the_shards(both):
    folder, _ = both
    run = open_run(folder / "sharded" / "adapted" / "run")
    assert run.attrs["dtype"] == {"student": "bfloat16", "teacher": "float32"}
    for step in run.steps:
        validate(run.load(step))
