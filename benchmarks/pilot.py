"""Would a pilot have foretold what training gives? Counted on recorded runs of the testbed.

    python benchmarks/pilot.py out/full/runs

A pilot is the beginning of a run. Each pair of models is one case: the change of its accuracy after
a part of the steps, against that to the mean of the evaluations in the last quarter, both averaged
over the pair's seeds.
"""

import argparse
from pathlib import Path

import numpy as np
import xarray as xr
from scipy.stats import spearmanr

from analyses.experiments import EXPERIMENTS
from opdprobe import open_run

SHARES = (0.125, 0.25, 0.5)
WIDTH = 5  # steps that a mean is over
# One experiment for each pair of models, with the standard objective, prompts and learning rate.
PAIRS = (
    *("success", "failure", "reverse_small", "reverse_large", "base_rl", "base_post", "large_rl"),
    *("post_same", "post_rl", "cold_start", "no_cold_start", "large_success", "large_failure"),
)


def accuracy(path: Path) -> xr.DataArray:
    """Mean accuracy over the benchmarks, by evaluated step."""
    metrics = open_run(path).metrics
    benchmarks = [metrics[f"accuracy/{name}"] for name in ("easy", "medium", "hard")]
    return xr.concat(benchmarks, "benchmark").mean("benchmark", skipna=False).dropna("step")


def divergence_removed(path: Path, steps: list[int]) -> list[float]:
    """Share of the first steps' reverse KL that is gone around each of some steps."""
    of_step = open_run(path).metrics["reverse_kl"].dropna("step").values
    first = of_step[:WIDTH].mean()
    return [float(1 - of_step[step - WIDTH : step].mean() / first) for step in steps]


def main(folder: Path) -> None:
    """Print a row a pair, and the rank correlations."""
    print("| pair | end |" + "".join(f" after {share:.0%} |" for share in SHARES))
    print("|---|---|" + "---|" * len(SHARES))
    gains, early, removed = [], [], []
    for name in PAIRS:
        paths = sorted(folder.glob(f"{name}-s*"))
        if not paths:
            raise SystemExit(f"{folder} has no run {name}-sSEED.")
        found = sum(accuracy(path) for path in paths) / len(paths)
        change = found - found[0]
        last = int(change["step"][-1])
        gains.append(float(change.sel(step=slice(0.75 * last, None)).mean()))
        steps = [round(share * last) for share in SHARES]
        at = [float(change.sel(step=step)) if step in change["step"] else np.nan for step in steps]
        early.append(at)
        removed.append(np.mean([divergence_removed(path, steps) for path in paths], axis=0))
        pair = f"{EXPERIMENTS[name].student} ← {EXPERIMENTS[name].teacher}"
        shown = "".join(f" {value:+.2f} |" if value == value else " – |" for value in at)
        print(f"| {pair} | {gains[-1]:+.2f} |{shown}")
    print("\n| pilot | rank correlation with the end: accuracy's change | reverse KL removed |")
    print("|---|---|---|")
    for share, *both in zip(SHARES, np.array(early).T, np.array(removed).T, strict=True):
        known = [~np.isnan(values) for values in both]
        ranks = [
            f"{spearmanr(values[k], np.array(gains)[k]).statistic:.2f} ({k.sum()} pairs)"
            for values, k in zip(both, known, strict=True)
        ]
        print(f"| {share:.0%} of the steps | {' | '.join(ranks)} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("runs", type=Path, help="directory of runs, each named EXPERIMENT-sSEED")
    main(parser.parse_args().runs)
