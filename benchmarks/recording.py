"""What recording costs: the training step with nothing, a tenth and everything recorded.

    python benchmarks/recording.py                      # three rounds, about 10 minutes

The pairs are those of `training_step`. Each contender runs in a fresh process of one thread (the
writer has a thread of its own), in turn. All do the same steps, so a cost is the median over steps
of what the same step took more than with nothing recorded, in the run of the same round: of the
clock, and of the process's CPU time, in which the writer's thread is counted whole and what else
the machine does hardly at all. Writing with nobody waiting is timed apart: the run's last step, as
the trainer writes it, and the bytes that a recorded state takes on disk.
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
    """Train in this process and print what each step took, as JSON."""
    import torch
    import training_step

    from opdprobe import RunWriter, open_run

    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    cpu = []

    class Steps(training_step.Steps):
        def add(self, tokens: float) -> None:
            super().add(tokens)
            cpu.append(time.process_time())

    training_step.Steps = Steps
    setting = training_step.SETTINGS[pair]
    training_step.SETTINGS[pair] = setting._replace(steps=PAIRS[pair])
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        steps = training_step.ours(pair, folder, **RECORDED[recorded])
        found["seconds"] = [b - a for a, b in itertools.pairwise(steps.times)][WARM_UP:]
        found["cpu"] = [b - a for a, b in itertools.pairwise(cpu)][WARM_UP - 1 :]
        run = open_run(f"{folder}/run")
        if run.steps:
            last = run.load(run.steps[-1])
            writer = RunWriter(f"{folder}/again", attrs={}, config={}, resume=False)
            times = []
            for _ in range(9):
                start = time.perf_counter()
                writer.submit_step(run.steps[-1], last, checked=True)
                writer.flush()
                times.append(time.perf_counter() - start)
                writer.truncate_after(-1)
            found["write"] = statistics.median(times)
        files = list(Path(f"{folder}/run/steps").glob("*.zip"))
        if files:
            found["bytes"] = sum(f.stat().st_size for f in files) / sum(
                run.load(step).sizes["state"] for step in run.steps
            )
    print(json.dumps(found))


def more(rounds: list[dict], recorded: str, clock: str) -> str:
    """Share that the same steps took longer, the median of them; over rounds, and its spread."""
    costs = [
        statistics.median(
            a / b - 1 for a, b in zip(r[recorded][clock], r["nothing"][clock], strict=True)
        )
        for r in rounds
    ]
    return f"{statistics.median(costs):+.1%} ({min(costs):+.1%} – {max(costs):+.1%})"


def main() -> None:
    """Print one row a pair and contender."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pair", choices=PAIRS, action="append")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--measure", choices=RECORDED, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        return measure(arguments.measure, arguments.pair[0])
    print(
        "| pair | recorded | step, ms | cost (rounds) | of CPU time | write, ms | bytes a state |"
    )
    print("|---|---|---|---|---|---|---|")
    for pair in arguments.pair or PAIRS:
        rounds = [
            {r: fresh(__file__, "--measure", r, "--pair", pair) for r in RECORDED}
            for _ in range(arguments.rounds)
        ]
        for recorded in RECORDED:
            step = statistics.median(s for r in rounds for s in r[recorded]["seconds"])
            row = f"| {pair} | {recorded} | {1e3 * step:,.0f} | "
            if recorded != "nothing":
                row += f"{more(rounds, recorded, 'seconds')} | {more(rounds, recorded, 'cpu')} | "
                row += f"{1e3 * statistics.median(r[recorded]['write'] for r in rounds):.1f} | "
                row += f"{rounds[0][recorded]['bytes']:.0f} |"
            else:
                row += " | | | |"
            print(row, flush=True)


if __name__ == "__main__":
    main()
