"""What recording costs: the training step with nothing, a tenth and everything recorded.

    python benchmarks/recording.py                      # three rounds, about 10 minutes

The pairs are those of `training_step`. Each contender runs in a fresh process of one thread (the
writer has a thread of its own), in turn; a cost is of the runs of one round, from the median step.
Writing with nobody waiting is timed apart: `write_step` of the run's last step, and the bytes that
a recorded state takes on disk.
"""

import argparse
import itertools
import json
import logging
import statistics
import tempfile
import time
from pathlib import Path

from fresh import fresh

RECORDED = {
    "nothing": {"record_every": 0},
    "a tenth": {"record_fraction": 0.1},
    "everything": {},
}
PAIRS = {"tiny": 40, "zoo": 40, "large-vocabulary": 8}
WARM_UP = 2


def measure(recorded: str, pair: str) -> None:
    """Train in this process and print the median step, as JSON."""
    import torch
    import training_step

    from opdprobe import RunWriter, open_run

    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    setting = training_step.SETTINGS[pair]
    training_step.SETTINGS[pair] = setting._replace(steps=PAIRS[pair])
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        steps = training_step.ours(pair, folder, **RECORDED[recorded])
        seconds = [b - a for a, b in itertools.pairwise(steps.times)][WARM_UP:]
        found["seconds"] = statistics.median(seconds)
        run = open_run(f"{folder}/run")
        if run.steps:
            last = run.load(run.steps[-1])
            writer = RunWriter(f"{folder}/again", attrs={}, config={}, resume=False)
            times = []
            for _ in range(9):
                start = time.perf_counter()
                writer.write_step(run.steps[-1], last)
                times.append(time.perf_counter() - start)
                writer.truncate_after(-1)
            found["write"] = statistics.median(times)
        files = list(Path(f"{folder}/run/steps").glob("*.zip"))
        if files:
            found["bytes"] = sum(f.stat().st_size for f in files) / sum(
                run.load(step).sizes["state"] for step in run.steps
            )
    print(json.dumps(found))


def main() -> None:
    """Print one row a pair and contender."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pair", choices=PAIRS, action="append")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--measure", choices=RECORDED, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        return measure(arguments.measure, arguments.pair[0])
    print("| pair | recorded | step, ms | cost (min–max) | write alone, ms | bytes a state |")
    print("|---|---|---|---|---|---|")
    for pair in arguments.pair or PAIRS:
        rounds = [
            {r: fresh(__file__, "--measure", r, "--pair", pair) for r in RECORDED}
            for _ in range(arguments.rounds)
        ]
        for recorded in RECORDED:
            step = statistics.median(r[recorded]["seconds"] for r in rounds)
            costs = [r[recorded]["seconds"] / r["nothing"]["seconds"] - 1 for r in rounds]
            row = f"| {pair} | {recorded} | {1e3 * step:,.0f} | "
            if recorded != "nothing":
                row += f"{statistics.median(costs):+.1%} ({min(costs):+.1%} – {max(costs):+.1%}) | "
                row += f"{1e3 * statistics.median(r[recorded]['write'] for r in rounds):.1f} | "
                row += f"{rounds[0][recorded]['bytes']:.0f} |"
            else:
                row += " | | |"
            print(row, flush=True)


if __name__ == "__main__":
    main()
