"""What a change costs who reads and writes honest files: this tree in turns with another one.

    git worktree add --detach ../before COMMIT
    python benchmarks/checks.py ../before [--prompts FILE ...]      # about 10 minutes

Each tree has a process of one thread, which does a block of work whenever it is told to: the two do
the same block one after the other, and which is first alternates. A ratio is that of the CPU time
of the two blocks of one turn, this tree's to the other's. Shown are the median over turns with its
95 % bootstrap interval, the quartiles, and the CPU time of one call in this tree. The processes are
started anew several times, so that neither keeps a lucky place in memory. With this tree as the
other one, the table shows what the method alone makes of two equal trees.
"""

import argparse
import gzip
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from fresh import ONE_THREAD
from scipy.stats import bootstrap

ROOT = Path(__file__).parents[1]
LARGE = {"n_rollouts": 64, "length": 512, "k": 16}
SMALL = {"n_rollouts": 4, "length": 16, "k": 16}
MANY = 8
"""Steps of the run that is read as one."""


def cases(folder: Path, prompts: list[Path]) -> dict[str, tuple[int, Callable[[], object]]]:
    """Name each piece of work, with how often it is done in a block."""
    from opdprobe.rollout.prompt_files import load_prompts
    from opdprobe.store import RunWriter, open_run
    from opdprobe.testing import synthetic_run, synthetic_step

    large, small = synthetic_step(1, **LARGE), synthetic_step(1, **SMALL)
    writers = {
        name: RunWriter(folder / name, attrs={}, config={}, resume=False)
        for name in ("large", "small")
    }
    runs = {
        "large": synthetic_run(folder / "read-large", [1], **LARGE),
        "small": synthetic_run(folder / "read-small", [1], **SMALL),
        "many": synthetic_run(folder / "many", range(MANY), **SMALL),
    }
    made = [{"prompt": f"What is {i}?", "answer": str(i)} for i in range(2000)]
    lines = "".join(json.dumps(row) + "\n" for row in made).encode()
    (folder / "plain.jsonl").write_bytes(lines)
    (folder / "packed.jsonl.gz").write_bytes(gzip.compress(lines))

    def write(name, step):
        writers[name]._written.clear()  # a step cannot be changed: the writer forgets it
        writers[name].write_step(1, step)

    found = {
        "write a step of 32,768 states": (1, lambda: write("large", large)),
        "read a step of 32,768 states": (4, lambda: runs["large"].load(1)),
        "write a step of 64 states": (10, lambda: write("small", small)),
        "read a step of 64 states": (8, lambda: runs["small"].load(1)),
        f"read {MANY} of them as one run": (1, lambda: runs["many"].states().load()),
        "open a run, list its steps and metrics": (
            30,
            lambda: (open_run(folder / "many").steps, runs["many"].metrics),
        ),
        "append a line of metrics": (200, lambda: writers["small"].log_metrics(1, {"loss": 0.5})),
        "read 2000 prompts, plain": (2, lambda: load_prompts(folder / "plain.jsonl")),
        "read 2000 prompts, packed": (2, lambda: load_prompts(folder / "packed.jsonl.gz")),
    }
    for path in prompts:
        found[f"read {path.name}"] = (
            1 if path.stat().st_size > 2**20 else 4,
            lambda path=path: load_prompts(path, on_error="skip"),
        )
    return found


def serve(prompts: list[Path]) -> None:
    """Do the block that each line of the standard input names; answer with its CPU seconds."""
    with tempfile.TemporaryDirectory() as folder:
        todo = cases(Path(folder), prompts)
        print(json.dumps([*todo]), flush=True)
        for line in sys.stdin:
            times, once = todo[json.loads(line)]
            begun = time.process_time()
            for _ in range(times):
                once()
            print(json.dumps((time.process_time() - begun) / times), flush=True)


class Tree:
    """A process that works with the package of one tree."""

    def __init__(self, root: Path, prompts: list[Path]) -> None:
        command = [sys.executable, __file__, str(root), "--serve", "--prompts", *map(str, prompts)]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, **ONE_THREAD, "PYTHONPATH": str(root)},
        )
        self.cases = self._answer()

    def _answer(self):
        assert self._process.stdout
        if not (line := self._process.stdout.readline()):
            raise SystemExit("a process of the benchmark ended; run it with --serve to see why")
        return json.loads(line)

    def block(self, case: str) -> float:
        """CPU seconds of one call, the mean of a block."""
        assert self._process.stdin
        self._process.stdin.write(json.dumps(case) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def end(self) -> None:
        """Let the process end."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


def measure(other: Path, prompts: list[Path], only: str, starts: int, turns: int) -> None:
    """Print the table."""
    ratios: dict[str, list[float]] = {}
    here: dict[str, list[float]] = {}
    for _ in range(starts):
        trees = [Tree(ROOT, prompts), Tree(other, prompts)]
        for case in (case for case in trees[0].cases if only in case):
            for tree in trees:
                tree.block(case)  # what is imported and cached at the first time does not count
            for turn in range(turns):
                order = trees if turn % 2 else trees[::-1]
                spent = {tree: tree.block(case) for tree in order}
                ratios.setdefault(case, []).append(spent[trees[0]] / spent[trees[1]])
                here.setdefault(case, []).append(spent[trees[0]])
        for tree in trees:
            tree.end()
    print("| work | ratio of CPU time | 95 % interval | quartiles | here, ms |")
    print("|---|---|---|---|---|")
    for case, found in ratios.items():
        interval = bootstrap((found,), np.median, rng=np.random.default_rng(0)).confidence_interval
        low, high = np.quantile(found, (0.25, 0.75))
        print(
            f"| {case} | {np.median(found):.3f} | {interval.low:.3f} to {interval.high:.3f} | "
            f"{low:.3f} to {high:.3f} | {1e3 * np.median(here[case]):.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("other", type=Path, help="root of the other tree")
    parser.add_argument("--prompts", type=Path, nargs="*", default=[], help="prompt files to read")
    parser.add_argument("--only", default="", help="a part of the names of what is measured")
    parser.add_argument("--starts", type=int, default=4, help="how often processes are started")
    parser.add_argument("--turns", type=int, default=12, help="turns per start")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        serve(given.prompts)
    else:
        measure(given.other.resolve(), given.prompts, given.only, given.starts, given.turns)
