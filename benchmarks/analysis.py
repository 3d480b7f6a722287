"""The six main curves of a recorded run: states per second, beside naive code and the limits.

    python benchmarks/analysis.py                   # both stores, three rounds, about 4 minutes
    python benchmarks/analysis.py --store small

Two synthetic runs are written to a temporary directory (0.5 GB): 64 rollouts per step, k = 16, ids
from a vocabulary of 151,936, and 3,008 or 100,032 states per step. Contenders run in turn, each
round in fresh processes; all but the last two use one core. A first pass warms the page cache and
is not counted. Memory is the peak of the process itself.

- ours: `opdprobe.curves`, with intervals;
- a curve at a time: six calls of `opdprobe.curve`;
- xarray: the same means and intervals, written without opdprobe, one probe at a time;
- decoding alone: reading, checking and decompressing the bytes that the six curves need;
- memory: adding up as many bytes as are decoded, which no analysis can beat;
- two processes: ours on a `ProcessPoolExecutor`; on a `distributed` cluster of two workers.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import xarray as xr
from fresh import fresh

import opdprobe
from opdprobe.probes.averages import MAIN, curves
from opdprobe.store import Run, RunWriter
from opdprobe.store.schema import step_dataset
from opdprobe.store.step_parts import open_step, step_path

STORES = {"small": (200, 47), "large": (12, 1563)}  # steps, tokens per rollout
ROLLOUTS, K = 64, 16
NEEDED = ("logp", "match", "entropy", "reverse_kl", "rollout")
BYTES = 4 * 4 * K + K + 4 * (2 + 1 + 1)  # per state, decoded


def write(path: Path, n_steps: int, length: int) -> None:
    """Write a run of random steps: 32 likely tokens at each state, on which the models differ."""
    rng = np.random.default_rng(0)
    n = ROLLOUTS * length
    writer = RunWriter(path, attrs={}, config={"states": n_steps * n}, resume=False)
    for step in range(n_steps):
        student, noise = 3 * rng.standard_normal((2, n, 32), np.float32)
        logits = np.stack([student, 0.8 * student + 0.6 * noise], axis=1)
        logp = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        p = np.exp(logp)
        place = np.argsort(-logp, axis=-1)[..., :K]
        ids = place * 4729 + rng.integers(0, 4000, (n, 1, 1))
        on_lists = [np.take_along_axis(logp, place[:, [s]], -1) for s in (0, 1)]
        ds = step_dataset(
            token_id=ids,
            logp=np.stack(on_lists, axis=2),
            entropy=-(p * logp).sum(axis=-1),
            reverse_kl=(p[:, 0] * (logp[:, 0] - logp[:, 1])).sum(axis=-1).clip(0),
            rollout=np.repeat(np.arange(ROLLOUTS), length),
            position=np.tile(np.arange(length), ROLLOUTS),
            step=step,
            length=np.full(ROLLOUTS, length),
        )
        writer.write_step(step, ds)


def xarray_alone(run: Run, steps: list[int]) -> None:
    """Each probe from the definitions, in xarray's own operations."""

    def mask(ds):
        theirs = ds.token_id.sel(support="teacher").rename(rank="other")
        return (ds.token_id.sel(support="student") == theirs).any("other")

    def mass(ds, model):
        return np.exp(ds.logp.sel(support="student", model=model)).where(mask(ds), 0).sum("rank")

    def advantage(ds):
        logp = ds.logp.sel(support="student").astype(float).where(mask(ds))
        logp = logp - np.log(np.exp(logp).sum("rank"))
        p, q = logp.sel(model="student"), logp.sel(model="teacher")
        return (np.exp(p) * (q - p)).sum("rank") / mask(ds).sum("rank")

    probes = [
        lambda ds: mask(ds).mean("rank"),
        partial(mass, model="student"),
        partial(mass, model="teacher"),
        advantage,
        lambda ds: abs(ds.entropy.sel(model="teacher") - ds.entropy.sel(model="student")),
        lambda ds: ds.reverse_kl,
    ]
    for probe in probes:
        for step in steps:
            url = f"zip::{step_path(run.path, step)}"
            ds = xr.open_dataset(url, engine="zarr", consolidated=False)
            by_rollout = probe(ds).groupby("rollout")
            total, n = by_rollout.sum().values, by_rollout.count().values
            share = np.full(n.size, 1 / n.size)
            drawn = np.random.default_rng(step).multinomial(n.size, share, size=1000)
            np.quantile((drawn @ total) / (drawn @ n), [0.025, 0.975])


def decode(run: Run) -> None:
    """Read and decompress what the curves need."""
    for step in run.steps:
        with open_step(run.path, step) as archive:
            for name in NEEDED:
                archive.rows(name)


def one_at_a_time(run: Run) -> None:
    """Draw the six curves in six passes."""
    for name in MAIN:
        opdprobe.curve(run, name)


def seconds(work: Callable[[], object]) -> float:
    """Time the second of two passes."""
    work()
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(contender: str, path: str) -> None:
    """Run one contender in this process and print states per second and peak memory as JSON."""
    run = opdprobe.open_run(path)
    n_states = run.config["states"]
    if contender not in ("two processes", "two workers"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    if contender == "memory":
        numbers = np.ones(2**26, np.float32)
        rate = numbers.nbytes / seconds(numbers.sum) / BYTES
    elif contender == "two processes":
        with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
            rate = n_states / seconds(lambda: curves(run, map=pool.map))
    elif contender == "two workers":
        from distributed import Client, LocalCluster

        with (
            LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
            Client(cluster) as client,
        ):
            rate = n_states / seconds(lambda: curves(run, map=client.get_executor().map))
    elif contender == "xarray":  # too slow for all steps
        steps = run.steps[: max(1, len(run.steps) // 20)]
        share = len(steps) / len(run.steps)
        rate = n_states * share / seconds(lambda: xarray_alone(run, steps))
    else:
        work = {"ours": curves, "a curve at a time": one_at_a_time, "decoding alone": decode}[
            contender
        ]
        rate = n_states / seconds(lambda: work(run))
    # Not ru_maxrss: a process starts with its parent's.
    peak = next(x for x in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in x)
    print(json.dumps({"rate": rate, "mib": int(peak.split()[1]) / 1024}))


CONTENDERS = (
    *("ours", "a curve at a time", "xarray", "decoding alone", "memory"),
    *("two processes", "two workers"),
)


def main() -> None:
    """Print one row per store and contender: median over rounds, spread, peak memory."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", choices=STORES, action="append")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        return measure(*arguments.measure)
    print("| states per step | contender | million states/s (min–max) | peak MiB |")
    print("|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for store in arguments.store or STORES:
            path = Path(folder) / store
            write(path, *STORES[store])
            rounds = [
                {c: fresh(__file__, "--measure", c, path) for c in CONTENDERS}
                for _ in range(arguments.rounds)
            ]
            for contender in CONTENDERS:
                rates = [one[contender]["rate"] / 1e6 for one in rounds]
                mib = statistics.median(one[contender]["mib"] for one in rounds)
                print(
                    f"| {ROLLOUTS * STORES[store][1]:,} | {contender} "
                    f"| {statistics.median(rates):.2f} ({min(rates):.2f}–{max(rates):.2f}) "
                    f"| {mib:,.0f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
