"""A training run of a second: what it is made of, and what has to be the same at its end."""

import hashlib
import json
from pathlib import Path
from typing import Any

from opdprobe import Callback, OPDConfig, OPDTrainer, Prompt
from opdprobe.testing import tiny_model, tiny_tokenizer

PROMPTS = [Prompt(str(i), text=f"7 {i} 11") for i in range(6)]
SETTINGS = {
    "k": 4,
    "batch_size": 2,
    "num_generations": 2,
    "max_completion_length": 6,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "cosine",
    "max_steps": 8,
    "save_steps": 2,
    "eval_every": 4,
    "eval_n": 1,
}


def grade(response: str, prompt: Prompt) -> float:
    return float("7" in response.split())


def trainer(run_dir: Path, *, callbacks: tuple[Callback, ...] = (), **settings: Any) -> OPDTrainer:
    """Make the trainer of the run in a directory; every one is the same."""
    return OPDTrainer(
        tiny_model(seed=0),
        tiny_model(seed=1),
        tokenizer=tiny_tokenizer(),
        prompts=PROMPTS,
        config=OPDConfig(**SETTINGS | settings),
        run_dir=run_dir,
        grader=grade,
        eval_prompts={"test": PROMPTS[:2]},
        callbacks=callbacks,
    )


def steps_of(run_dir: Path) -> dict[str, bytes]:
    """Read the files of recorded steps."""
    return {file.name: file.read_bytes() for file in sorted(run_dir.glob("steps/[0-9]*"))}


def lines_of(run_dir: Path, name: str) -> list[dict[str, Any]]:
    """Read whole lines of metrics or evaluations, without the seconds that a step took."""
    path = run_dir / name
    text = path.read_text() if path.exists() else ""
    lines = [json.loads(line) for line in text.split("\n")[:-1]]
    return [{k: v for k, v in line.items() if not k.startswith("seconds")} for line in lines]


def outcome(run_dir: Path) -> dict[str, Any]:
    """Gather all that two equal runs have in common, down to the bytes."""
    # A kill may have kept the one before from being deleted.
    checkpoint = max(run_dir.glob("checkpoints/[0-9]*"))
    weights = (checkpoint / "model.safetensors").read_bytes()
    return {
        "steps": steps_of(run_dir),
        "metrics": lines_of(run_dir, "metrics.jsonl"),
        "evaluations": lines_of(run_dir, "evaluations.jsonl"),
        "checkpoint": checkpoint.name,
        "weights": hashlib.sha256(weights).hexdigest(),
    }
