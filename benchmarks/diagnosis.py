"""How often is the report's diagnosis right? Counted on recorded runs, whole and cut short.

    python benchmarks/diagnosis.py out/full/runs

Each run is diagnosed at several shares of its planned steps. The tables count what was said of its
alignment, and of its accuracy, against two outcomes that the diagnosis does not see: what is said
of the whole run, and the change of the accuracy from before training to the mean of the evaluations
in the last quarter of the steps. The diagnosis' limits were chosen on runs with the seeds 0 to 4;
use others.
"""

import argparse
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np

from opdprobe import open_run
from opdprobe.probes.rollout_sums import join_sums
from opdprobe.report.course import Course, course, planned_steps
from opdprobe.report.diagnosis import diagnose

SHARES = (0.0625, 0.125, 0.25, 0.5, 1.0)
MATTERS = 0.05  # change of accuracy
OUTCOMES = ("rises", "stays", "falls")


def cut(found: Course, n_steps: int) -> Course:
    """Return the course as it was after some steps."""
    kept = [i for i, step in enumerate(found.steps) if step < n_steps]
    evaluated = [step for step in found.evaluated if step <= n_steps]
    return replace(
        found,
        sums=join_sums([found.sums.at(i) for i in kept]),
        metrics=found.metrics.sel(step=found.metrics["step"] < n_steps),
        evaluated=evaluated,
        scores=found.scores[: len(evaluated)],
        tail=None,
    )


def outcome(found: Course) -> str:
    """Say what the accuracy did over the whole run."""
    steps, means = np.array(found.evaluated), np.array([s.mean() for s in found.scores])
    late = steps >= steps[0] + 0.75 * (steps[-1] - steps[0])
    gain = means[late].mean() - means[0]
    return "rises" if gain >= MATTERS else "falls" if gain <= -MATTERS else "stays"


def main(folder: Path) -> None:
    """Print the tables."""
    end: dict[str, Counter[tuple[str, str]]] = {f"{s:.0%}": Counter() for s in SHARES}
    accuracy: dict[str, Counter[tuple[str, str]]] = {f"{s:.0%}": Counter() for s in SHARES}
    on_accuracy: dict[str, Counter[tuple[str, str]]] = {f"{s:.0%}": Counter() for s in SHARES}
    by_experiment: dict[str, Counter[str]] = {}
    for path in sorted(folder.iterdir()):
        run = open_run(path)
        planned = planned_steps(run.config)
        if planned is None or run.steps[-1] + 1 < planned:
            continue  # a probe without training, or a run that is not complete
        found = course(run)
        findings = {s: diagnose(cut(found, max(2, round(s * planned)))) for s in SHARES}
        said = {share: some[0].name for share, some in findings.items()}
        experiment, _ = path.name.rsplit("-s", 1)
        by_experiment.setdefault(experiment, Counter())[f"{said[1.0]}, {outcome(found)}"] += 1
        for share, name in said.items():
            end[f"{share:.0%}"][name, said[1.0]] += 1
            accuracy[f"{share:.0%}"][name, outcome(found)] += 1
            names = [f.name for f in findings[share] if f.name.startswith("accuracy_")]
            on_accuracy[f"{share:.0%}"][(names or ["nothing"])[0], outcome(found)] += 1
    _table("At the end it says", end)
    _table("Accuracy", accuracy)
    _table("Accuracy, said of it", on_accuracy)
    print("\n| experiment | said at the end, accuracy |\n|---|---|")
    for experiment, names in sorted(by_experiment.items()):
        print(f"| {experiment} | {'; '.join(f'{n} × {name}' for name, n in names.items())} |")


def _table(title: str, counts: dict[str, Counter[tuple[str, str]]]) -> None:
    columns = sorted({truth for found in counts.values() for _, truth in found})
    print(f"\n| share of the steps | said | {' | '.join(f'{title}: {c}' for c in columns)} |")
    print("|---|---|" + "---|" * len(columns))
    for share, found in counts.items():
        for name in sorted({said for said, _ in found}):
            print(f"| {share} | {name} | {' | '.join(str(found[name, c]) for c in columns)} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("runs", type=Path, help="directory of runs, each named EXPERIMENT-sSEED")
    main(parser.parse_args().runs)
