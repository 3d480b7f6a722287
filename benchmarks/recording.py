"""What recording costs: the training step with nothing, a tenth and everything recorded.

    python benchmarks/recording.py                      # about 8 minutes

The pairs are those of `training_step`, each in a process of one thread (plus the writer's thread).
Its run records nothing for some steps, then a tenth of the rollouts, then all, and so on in turn,
so that drift of the machine and the training itself affect all three alike. A cost is how much
longer a block of steps took than the block of the same turn with nothing recorded: the median over
turns, with a 95 % bootstrap interval. The first step of a block does not count, because the last
step of the block before is written during it. Costs are given in wall time and in the process's
CPU time, which includes the writer's thread. The CPU time of that thread per step (without
recording, it writes the line of metrics) is what recording would cost in wall time if nothing ran
in parallel. The last column is the bytes per recorded state on disk.
"""

import argparse
import itertools
import json
import logging
import statistics
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from fresh import fresh
from scipy.stats import bootstrap

RECORDED = {
    "nothing": {"record_every": 0, "record_fraction": 1.0},
    "a tenth": {"record_every": 1, "record_fraction": 0.1},
    "everything": {"record_every": 1, "record_fraction": 1.0},
}
BLOCK = 4  # steps
TURNS = {"tiny": 50, "zoo": 50, "large-vocabulary": 4}


def way(step: int, block: int = BLOCK) -> str:
    """Return what is recorded of a step: a key of RECORDED."""
    return list(RECORDED)[step // block % len(RECORDED)]


def measure(pair: str) -> None:
    """Train in this process and print the seconds of each step as JSON."""
    import torch
    import training_step

    from opdprobe import Callback

    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    cpu, writing = [time.process_time()], [0.0]

    class Switch(Callback):
        def on_step_end(self, trainer, step, metrics, dataset):
            cpu.append(time.process_time())
            (thread,) = (t for t in threading.enumerate() if t.name.startswith("opdprobe-writer"))
            writing.append(time.clock_gettime(time.pthread_getcpuclockid(thread.ident)))
            trainer.config = replace(trainer.config, **RECORDED[way(step + 1)])

    n_steps = len(RECORDED) * BLOCK * (TURNS[pair] + 1)
    training_step.SETTINGS[pair] = training_step.SETTINGS[pair]._replace(steps=n_steps)
    found: dict = {}
    with tempfile.TemporaryDirectory() as folder:
        steps = training_step.ours(pair, folder, callbacks=[Switch()], **RECORDED[way(0)])
        found["seconds"] = [b - a for a, b in itertools.pairwise(steps.times)]
        found["cpu"] = [b - a for a, b in itertools.pairwise(cpu)]
        found["writing"] = [b - a for a, b in itertools.pairwise(writing)]
        found["bytes"] = bytes_per_state(f"{folder}/run")
    print(json.dumps(found))


def bytes_per_state(run_dir: str, block: int = BLOCK) -> dict[str, float]:
    """Bytes on disk per recorded state, by what was recorded."""
    from opdprobe import open_run

    run, found = open_run(run_dir), {}
    files = dict(zip(run.steps, sorted(Path(run_dir, "steps").glob("*.zip")), strict=True))
    for recorded in list(RECORDED)[1:]:
        own = [step for step in run.steps if way(step, block) == recorded]
        states = sum(run.load(step).sizes["state"] for step in own)
        found[recorded] = sum(files[step].stat().st_size for step in own) / states
    return found


def blocks(seconds: list[float], recorded: str, block: int = BLOCK) -> np.ndarray:
    """Median seconds per step in each block of a kind, without the first turn, which warms up."""
    first = list(RECORDED).index(recorded) * block
    turn = len(RECORDED) * block
    starts = range(turn + first, len(seconds), turn)
    return np.array([statistics.median(seconds[s + 1 : s + block]) for s in starts])


def more(seconds: list[float], recorded: str) -> str:
    """How much longer blocks took than those with nothing recorded, with its interval."""
    costs = blocks(seconds, recorded) / blocks(seconds, "nothing") - 1
    interval = bootstrap((costs,), np.median, rng=0).confidence_interval
    return f"{np.median(costs):+.1%} ({interval.low:+.1%} – {interval.high:+.1%})"


def main() -> None:
    """Print one row per pair and way of recording."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pair", choices=TURNS, action="append")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        return measure(arguments.pair[0])
    print("| pair | recorded | step, ms | cost | of CPU time | thread, ms | bytes per state |")
    print("|---|---|---|---|---|---|---|")
    for pair in arguments.pair or TURNS:
        found = fresh(__file__, "--measure", "--pair", pair)
        for recorded in RECORDED:
            step = 1e3 * np.median(blocks(found["seconds"], recorded))
            thread = 1e3 * np.median(blocks(found["writing"], recorded))
            more_of = [
                more(found[clock], recorded) if recorded != "nothing" else ""
                for clock in ("seconds", "cpu")
            ]
            size = f"{found['bytes'][recorded]:.0f}" if recorded != "nothing" else ""
            print(
                f"| {pair} | {recorded} | {step:,.0f} | {more_of[0]} | {more_of[1]} "
                f"| {thread:.1f} | {size} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
