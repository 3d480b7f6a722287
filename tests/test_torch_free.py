"""The store and all that reads it work where torch is not installed."""

import subprocess
import sys

import pytest

SCRIPT = """
import sys
for name in ("torch", "transformers", "tokenizers", "accelerate"):
    sys.modules[name] = None  # importing it now fails

import numpy as np
import opdprobe
from opdprobe.store.schema import validate
from opdprobe.store import open_run
from opdprobe.testing import synthetic_run

run = synthetic_run(sys.argv[1], steps=[0, 5], agreement=1.0)
run = open_run(sys.argv[1])
validate(run.load(5))
states = run.states()
assert run.rollouts().sizes["rollout"] == 8
assert run.metrics["loss"].values.tolist() == [0.0, 0.0]

ids = states["token_id"].values
np.testing.assert_array_equal(opdprobe.overlap_ratio(ids[:, 0], ids[:, 1]), 1.0)
np.testing.assert_array_equal(states.opd.overlap_ratio(), 1.0)
np.testing.assert_array_equal(opdprobe.curve(run, "overlap_ratio")["value"], 1.0)
logits = np.zeros((2, 3, 8))
validate(opdprobe.from_logits(logits, logits, k=4))

from opdprobe.cli.parser import main

assert main(["watch", sys.argv[1], "--once"]) == 0
assert main(["inspect", sys.argv[1]]) == 0
"""


@pytest.mark.slow
def test_the_store_and_the_probes_run_without_torch(tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT, tmp_path / "run"],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
