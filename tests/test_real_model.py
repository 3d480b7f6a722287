"""A real language model on real mathematics, through the command line: opt-in, minutes to run.

Set ``OPDPROBE_SMOLLM2`` to a directory with a GGUF file of SmolLM2-135M-Instruct.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from opdprobe import open_run, validate
from opdprobe.cli.parser import main

FOLDER = os.environ.get("OPDPROBE_SMOLLM2")

# Two problems of MATH-500, in the columns of verl's prompt files.
PROBLEMS = {
    "Convert the point $(0,3)$ in rectangular coordinates to polar coordinates. Enter your answer "
    "in the form $(r,\\theta),$ where $r > 0$ and $0 \\le \\theta < 2 \\pi.$": (
        "\\left( 3, \\frac{\\pi}{2} \\right)"
    ),
    "If $f(x) = \\frac{3x-2}{x-2}$, what is the value of $f(-2) +f(-1)+f(0)$? Express your answer "
    "as a common fraction.": "\\frac{14}{3}",
}


@pytest.mark.real_model
@pytest.mark.skipif(not FOLDER, reason="OPDPROBE_SMOLLM2 is not set to SmolLM2's directory")
def test_smollm2_teaches_itself_without_four_layers(tmp_path):
    (gguf,) = Path(str(FOLDER)).glob("*.gguf")
    prompts = tmp_path / "prompts.jsonl"
    with prompts.open("w") as file:
        for question, answer in PROBLEMS.items():
            message = [{"role": "user", "content": question}]
            row = {"prompt": message, "reward_model": {"ground_truth": answer}}
            file.write(json.dumps(row) + "\n")
    settings = {
        "batch_size": 2,
        "num_generations": 1,
        "max_completion_length": 8,
        "max_steps": 2,
        "learning_rate": 2e-5,
    }
    command = [
        "train", "--student", str(gguf), "--teacher", str(gguf), "--drop-layers", "14-17",
        "--prompts", str(prompts), "--run-dir", str(tmp_path / "run"),
    ]  # fmt: skip
    command += [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    assert main(command) == 0

    run = open_run(tmp_path / "run")
    assert run.steps == [0, 1]
    for step in run.steps:
        ds = run.load(step)
        validate(ds)
        assert ds.sizes["rollout"] == 2
        assert 2 <= ds.sizes["state"] <= 16
    metrics = run.metrics
    # A relative of the teacher, not the teacher: they share much of their lists, not all.
    assert (metrics.overlap_ratio.values > 0.2).all()
    assert (metrics.overlap_ratio.values < 1).all()
    assert (metrics.reverse_kl.values > 0).all()
    assert np.isfinite(metrics.loss.values).all()
    assert run.attrs["student"]["weight_hash"] != run.attrs["teacher"]["weight_hash"]
    assert run.attrs["vocabulary"] == 49152
