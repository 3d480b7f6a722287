"""Kill training processes at random moments, and compare the runs with one that was never broken.

    python tests/crash/kill_harness.py --kills 50 --seed 0

A run is killed (SIGKILL), begun again from what it left on disk, and killed again, until it is
finished. Some kills come at any moment of the process's life; others as a step is being written, or
a checkpoint, or the run's text. What a kill leaves must be whole up to the step in flight, and the
finished run must be the unbroken one: the same steps to the byte, metrics but for the seconds they
took, evaluations and final weights.

Processes are forked from one that has loaded the libraries and has done nothing else: it has no
threads, which a fork would lose.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from tiny_training import SETTINGS, lines_of, outcome, steps_of, trainer

from opdprobe.store.verify import verify_run

# What a kill aims at: the files whose appearance it waits for, and how long writing them takes.
AIMS = {
    "any moment": (None, None),
    "a step's file": ("steps/.tmp-*", 0.004),
    "a checkpoint": ("checkpoints/.tmp-[0-9]*", 0.03),
    "the run's text": (".tmp-*", 0.002),  # as it is created, or gone on with
}
_HUNG = 300.0  # seconds


def forked(work: Callable[[], object]) -> int:
    """Do something in a process of its own; gives its id at once."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return child


def ended(child: int, seconds: float) -> int | None:
    """Wait for a process; its exit status, or None if it still runs then."""
    until = time.monotonic() + seconds
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= until:
            return None
        time.sleep(0.0005)


def finish(work: Callable[[], object], what: str) -> None:
    """Do something in a process of its own, and wait for it."""
    child = forked(work)
    status = ended(child, _HUNG)
    if status is None:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    if status != 0:
        raise AssertionError(f"{what}: exit status {status}")


def kill(child: int, run_dir: Path, aim: str, moment: float, nth: int) -> bool:
    """Kill a training process; False if it ended by itself before the moment came.

    Parameters
    ----------
    child
        Its id.
    run_dir
        Where it trains.
    aim
        One of `AIMS`.
    moment
        Seconds: since its begin, or since the aimed-at file was there.
    nth
        Which of such files.
    """
    pattern, _ = AIMS[aim]
    seen: set[str] = set()
    until = time.monotonic() + _HUNG
    while pattern and len(seen) < nth:
        if ended(child, 0) is not None:
            return False
        if time.monotonic() >= until:
            os.kill(child, signal.SIGKILL)
            raise AssertionError(f"no {aim} within {_HUNG:g} seconds")
        seen |= {path.name for path in run_dir.glob(pattern)}
    if ended(child, moment) is not None:
        return False
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def hit(run_dir: Path) -> str:
    """Say what a kill interrupted, by what it left."""
    if not (run_dir / "run.json").exists():
        return "creation"
    if list(run_dir.glob("checkpoints/.tmp-old-*")):
        return "an old checkpoint's removal"
    if list(run_dir.glob("checkpoints/.tmp-*")):
        return "a checkpoint"
    if list(run_dir.glob("steps/.tmp-*")):
        return "a step's file"
    if list(run_dir.glob(".tmp-*")):
        return "the run's text"
    return "between files"


def check_remains(run_dir: Path, whole: dict) -> int:
    """See that what a kill left is a beginning of the unbroken run; the number of steps in it."""
    if not (run_dir / "run.json").exists():
        return 0
    steps, metrics = steps_of(run_dir), lines_of(run_dir, "metrics.jsonl")
    assert steps.items() <= whole["steps"].items(), f"{run_dir}: a step has other bytes"
    assert [*steps] == [*whole["steps"]][: len(steps)], f"{run_dir}: a step is missing"
    assert metrics == whole["metrics"][: len(metrics)], f"{run_dir}: metrics are others"
    evaluations = lines_of(run_dir, "evaluations.jsonl")
    assert evaluations == whole["evaluations"][: len(evaluations)]
    # One step may be on its way to disk while the next is being computed.
    assert len(metrics) <= len(steps) + 1, f"{run_dir}: {len(metrics)} metrics, {len(steps)} steps"

    def verify() -> None:
        faults = verify_run(run_dir).faults
        assert not [fault for fault in faults if "half a line" not in fault.what], faults

    finish(verify, f"verifying {run_dir}")
    return len(steps)


def survive(folder: Path, kills: int, seed: int, show: Callable[[str], object] = print) -> Counter:
    """Kill training so many times.

    Parameters
    ----------
    folder
        Where the runs are kept.
    kills
        How often.
    seed
        Of the moments.
    show
        Called with a line on each kill, and one at the end.

    Returns
    -------
    Counter
        What the kills hit.

    Raises
    ------
    AssertionError
        Something was lost; says what.
    """
    rng = random.Random(seed)
    start = time.monotonic()
    finish(lambda: trainer(folder / "unbroken").train(), "the unbroken run")
    life = time.monotonic() - start
    whole = outcome(folder / "unbroken")
    assert len(whole["steps"]) == SETTINGS["max_steps"]
    hits: Counter = Counter()
    n_runs, done = 0, 0
    while done < kills:
        n_runs += 1
        run_dir = folder / f"run-{n_runs}"
        while done < kills and not (run_dir / f"checkpoints/{SETTINGS['max_steps']:06d}").exists():
            aim = [*AIMS][done % len(AIMS)]
            moment = rng.uniform(0, AIMS[aim][1] or 1.1 * life)
            child = forked(lambda path=run_dir: trainer(path).train())
            if not kill(child, run_dir, aim, moment, nth=rng.randint(1, 3)):
                continue
            done += 1
            what = hit(run_dir)
            hits[what] += 1
            n_steps = check_remains(run_dir, whole)
            show(f"kill {done}: aimed at {aim}, hit {what}; run {n_runs} has {n_steps} steps")
        finish(lambda path=run_dir: trainer(path).train(), f"going on with {run_dir}")
        assert outcome(run_dir) == whole, f"{run_dir} is not the unbroken run"
    show(
        f"{done} of {kills} survived, nothing lost ({n_runs} runs; hit: "
        + ", ".join(f"{what} {n}" for what, n in hits.most_common())
        + ")"
    )
    return hits


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        survive(Path(folder), arguments.kills, arguments.seed)


if __name__ == "__main__":
    sys.exit(main())
