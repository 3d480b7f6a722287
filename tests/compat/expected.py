"""Write a run for the tests to keep, and what reading it gives: once, by the version it is of.

    python tests/compat/expected.py tests/compat/runs/NAME STEP …

A schema or a form of the files that is new gets a run of its own here; those there are stay as they
are.
"""

import json
import sys
from pathlib import Path

import numpy as np

from opdprobe import Run, RunWriter, open_run
from opdprobe.testing import synthetic_step


def write(path: Path, steps: list[int]) -> None:
    """Write a small run with everything that a run has, but for a checkpoint."""
    writer = RunWriter(
        path,
        attrs={"student": {"name": "a", "weight_hash": "0"}, "teacher": {"name": "b"}, "seed": 0},
        config={"k": 4, "record_every": 5},
        resume=False,
    )
    for step in steps:
        ds = synthetic_step(step, n_rollouts=2, length=[3, 2], k=4, given=True)
        writer.write_step(step, ds)
        writer.log_metrics(step, {"loss": float(ds.reverse_kl.mean()), "nothing": float("nan")})
        writer.log_evaluation(step, "test", ["a", "b"], [0.25, 1.0])


def read(run: Run) -> dict:
    """Read all that there is: a number or a list for each thing, exact in JSON."""
    states, rollouts = run.states().load(), run.rollouts().load()
    reward = [run.load(step).opd.sequence_mean_reward().values.tolist() for step in run.steps]
    return {
        "steps": run.steps,
        "config": run.config,
        "attrs": {name: run.attrs[name] for name in ("student", "teacher", "seed")},
        "loss": run.metrics["loss"].values.tolist(),
        "score": run.evaluation("test").score.values.tolist(),
        "states": {
            name: np.asarray(states[name], float).sum(axis=0).tolist()
            for name in sorted(set(states.variables) - {"model", "support"})
        },
        "prompt_id": rollouts.prompt_id.values.tolist(),
        "length": rollouts.length.values.tolist(),
        "correct": rollouts.correct.values.tolist(),
        "prompt_ids": [ids.tolist() for step in run.steps for ids in run.prompt_ids(step)],
        "response_ids": [ids.tolist() for step in run.steps for ids in run.response_ids(step)],
        "overlap_ratio": states.opd.overlap_ratio().values.tolist(),
        "overlap_mass": states.opd.overlap_mass(model="teacher").values.tolist(),
        "overlap_token_advantage": states.opd.overlap_token_advantage().values.tolist(),
        "entropy_gap": states.opd.entropy_gap().values.tolist(),
        "sequence_mean_reward": reward,
    } | ({"label": rollouts.label.values.tolist()} if "label" in rollouts else {})


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    write(folder, [int(step) for step in sys.argv[2:]])
    (folder / ".lock").unlink(missing_ok=True)
    text = json.dumps(read(open_run(folder)), indent=1)
    (folder / "expected.json").write_text(text + "\n")
