"""All diagnostics of docs/diagnostics.md at once: states a second on one core, and what takes it.

    python benchmarks/diagnostics.py

A synthetic step in memory, k = 16; the best of five rounds of CPU time, so that other work on the
machine slows the numbers, but hardly their ratios. *At once* is what `opdprobe.curves` does.
"""

import time
from collections.abc import Callable
from functools import partial

from opdprobe.probes.evaluate import evaluate, evaluate_all
from opdprobe.probes.quantities import MAIN
from opdprobe.testing import synthetic_step

NAMES = (
    "jaccard",
    "rank_biased_overlap",
    "kendall_tau",
    "nucleus_overlap",
    "argmax_disagreement",
    "top1_acceptance",
    "student_drawn_rank",
    "teacher_drawn_rank",
    "student_effective_support",
    "teacher_effective_support",
    "teacher_unsure",
    "forward_kl",
    "jensen_shannon",
    "bhattacharyya",
    "information_to_error",
    "positive_reward",
)


def seconds(work: Callable[[], object], rounds: int = 5) -> float:
    """Return the least CPU time of some rounds, after one that is not counted."""
    work()
    found = []
    for _ in range(rounds):
        start = time.process_time()
        work()
        found.append(time.process_time() - start)
    return min(found)


def main() -> None:
    """Print a row per diagnostic, then all one by one, and all at once."""
    ds = synthetic_step(n_rollouts=64, length=256, k=16)
    n = ds.sizes["state"]
    print("| diagnostic | states a second | µs a state |\n|---|---|---|")
    times = {name: seconds(partial(evaluate, name, ds)) for name in NAMES}
    rows = times | {
        "one by one": sum(times.values()),
        "at once": seconds(partial(evaluate_all, NAMES, ds)),
        "the paper's main ones at once": seconds(partial(evaluate_all, MAIN, ds)),
    }
    for name, taken in rows.items():
        print(f"| {name} | {n / taken:,.0f} | {1e6 * taken / n:.2f} |")
    print(f"\nAt once: {rows['one by one'] / rows['at once']:.1f} times as fast.")


if __name__ == "__main__":
    main()
