"""Foretold, then seen: preflight and diagnosis on a real language model. Resumable.

    python benchmarks/real_pairs.py out/real success-s1 --foretell   # predict, and commit that
    python benchmarks/real_pairs.py out/real success-s1 failure-s1   # predict what is not, train
    python benchmarks/real_pairs.py out/real --table                 # what is known so far
    python benchmarks/real_pairs.py out/real --changes               # what each kind of run did
    python benchmarks/real_pairs.py out/real --where                 # where the divergence lies

Each run is one of the preset *real*: an experiment and a seed. `FORETOLD` gets what preflight says
of its pair of models before the pair's first run begins; it is to be committed then. `SEEN` gets,
after the run, what the diagnosis says of its first quarter alone, and what the accuracy did: the
mean of the evaluations in the last quarter of the steps minus the one before training. Nothing that
is written is computed again. Several such processes may share a directory, each with other runs.
"""

import argparse
import json
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from diagnosis import cut
from filelock import FileLock

from analyses.evidence import FIRST, LAST
from analyses.experiments import EXPERIMENTS
from analyses.presets import Preset, real_preset
from opdprobe import open_run
from opdprobe.cli import jobs
from opdprobe.preflight import preflight
from opdprobe.probes.bootstrap import resample
from opdprobe.report.course import course, planned_steps
from opdprobe.report.diagnosis import diagnose
from opdprobe.report.estimate import combine
from opdprobe.report.view import token_texts
from opdprobe.store.files import read_lines
from opdprobe.testing.real.members import MAX_COMPLETION_LENGTH
from opdprobe.testing.real.problems import grader, problems

_RESULTS = Path(__file__).parents[1] / "figures/results/real"
FORETOLD, SEEN = _RESULTS / "foretold.jsonl", _RESULTS / "seen.jsonl"
QUARTER = 0.25
N_PROMPTS, NUM_GENERATIONS = 24, 4
# No run trains on these: a run's prompts are the first of the split, as many as the preset says.
_OWN_PROMPTS = slice(2048, 2048 + 256)


def pair_of(name: str, preset: Preset) -> tuple[str, str]:
    """Return the student's and the teacher's names in an experiment."""
    made = EXPERIMENTS[name.rsplit("-s", 1)[0]]
    student, teacher = (
        preset.model(role, preset.seeds[0]) for role in (made.student, made.teacher)
    )
    return Path(student).name, Path(teacher).name


def foretell(name: str, preset: Preset, zoo: Path) -> dict[str, Any]:
    """Preflight the pair of a run."""
    student, teacher = pair_of(name, preset)
    start = time.process_time()
    found = preflight(
        zoo / student,
        zoo / teacher,
        problems(_OWN_PROMPTS.stop, split="train")[_OWN_PROMPTS],
        grader=grader,
        n_prompts=N_PROMPTS,
        num_generations=NUM_GENERATIONS,
        max_completion_length=MAX_COMPLETION_LENGTH,
        device=preset.device,
    )
    named = replace(found, settings={**found.settings, "student": student, "teacher": teacher})
    return {
        "student": student,
        "teacher": teacher,
        "preflight": named.to_dict(),
        "cpu_seconds": round(time.process_time() - start, 1),
    }


def see(name: str, run_dir: Path) -> dict[str, Any]:
    """Diagnose a quarter of a run, and say what it did to the accuracy."""
    run = open_run(run_dir)
    planned, found = planned_steps(run.config), course(run)
    assert planned is not None
    steps = found.evaluated
    means = [float(scores.mean()) for scores in found.scores]
    late = steps[0] + 0.75 * (steps[-1] - steps[0])
    after = [mean for step, mean in zip(steps, means, strict=True) if step >= late]
    return {
        "run": name,
        "steps": planned,
        "quarter": [finding.name for finding in diagnose(cut(found, round(QUARTER * planned)))],
        "end": [finding.name for finding in diagnose(found)],
        "accuracy": dict(zip(map(int, steps), means, strict=True)),
        "gain": sum(after) / len(after) - means[0],
    }


def add(path: Path, row: dict[str, Any]) -> None:
    """Add a line to a table."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(f"{json.dumps(row)}\n")


def run(names: list[str], folder: Path, *, train: bool = True) -> None:
    """Predict and, unless told not to, train what is not done yet."""
    preset = real_preset(folder / "zoo")
    for name in names:
        if any(line["run"] == name for line in read_lines(SEEN)):
            continue
        pair = pair_of(name, preset)
        if all((line["student"], line["teacher"]) != pair for line in read_lines(FORETOLD)):
            row = foretell(name, preset, folder / "zoo")
            with FileLock(folder / "lock"):
                add(FORETOLD, row)
            print(f"{' from '.join(pair)}: {row['preflight']['verdict']['word']}", flush=True)
        if not train:
            continue
        experiment, seed = name.rsplit("-s", 1)

        def report(step: int, total: int, name: str = name) -> None:
            print(f"{name}: {step} of {total}", flush=True)

        jobs.train(experiment, int(seed), preset, folder, report)
        row = see(name, jobs.run_dir(folder, experiment, int(seed)))
        with FileLock(folder / "lock"):
            add(SEEN, row)
        print(f"{name}: {row['gain']:+.3f}, {row['quarter']}", flush=True)


def table(folder: Path) -> None:
    """Print what was foretold and what was seen."""
    preset = real_preset(folder / "zoo")
    print(
        "| student ← teacher | preflight | run | after a quarter | at the end | accuracy | change |"
    )
    print("|---|---|---|---|---|---|---|")
    said = {(line["student"], line["teacher"]): line["preflight"] for line in read_lines(FORETOLD)}
    for line in sorted(read_lines(SEEN), key=lambda line: line["run"]):
        pair = pair_of(line["run"], preset)
        word = said[pair]["verdict"]["word"] if pair in said else "not asked"
        course_of = " → ".join(f"{mean:.2f}" for mean in line["accuracy"].values())
        print(
            f"| {' ← '.join(pair)} | {word} | {line['run']} | {line['quarter'][0]} | "
            f"{line['end'][0]} | {course_of} | {line['gain']:+.3f} |"
        )


def where(folder: Path, n_steps: int = 3) -> None:
    """Print the first steps' reverse KL by kind of token, all seeds of some experiments."""
    print("| run | states | first token | number | word | sign | other |")
    print("|---|---|---|---|---|---|---|")
    for experiment in ("success", "large_rl", "large_success", "failure"):
        total: Counter[str] = Counter()
        states = 0
        paths = sorted((folder / "runs").glob(f"{experiment}-s*"))
        if not paths:
            continue
        for path in paths:
            run = open_run(path)
            kinds = token_texts(run)[0].classes()
            for step in run.steps[:n_steps]:
                ds = run.load(step)
                states += ds.sizes["state"]
                of_state = zip(
                    ds["position"].values.tolist(),
                    ds["sampled_id"].values.tolist(),
                    ds["reverse_kl"].values.tolist(),
                    strict=True,
                )
                for position, token, kl in of_state:
                    total["first" if position == 0 else kinds.get(token, "other")] += kl
        named = [total[name] / total.total() for name in ("first", "number", "word", "sign")]
        shares = " | ".join(f"{share:.0%}" for share in (*named, 1 - sum(named)))
        print(f"| {experiment} | {states} | {shares} |")


def changes(folder: Path) -> None:
    """Print what the runs of an experiment did, and how two experiments differ at their end.

    Intervals are those of the figures: over seeds and problems. Means over a run are of its first
    five steps and its last five.
    """
    runs = {
        name: [open_run(path) for path in sorted((folder / "runs").glob(f"{name}-s*"))]
        for name in EXPERIMENTS
    }
    scores = {
        name: [course(run).scores for run in some]
        for name, some in runs.items()
        if some and EXPERIMENTS[name].train
    }
    shown = ("completion_length", "overlap_ratio", "likely_overlap_ratio", "reverse_kl")
    print(f"| runs | seeds | change of accuracy | {' | '.join(shown)} |")
    print("|---|---|---|" + "---|" * len(shown))
    for name, found in scores.items():
        change = _interval([one[-1] - one[0] for one in found])
        means = []
        for quantity in shown:
            values = [run.metrics[quantity].dropna("step").values for run in runs[name]]
            first, last = (np.mean([v[ends].mean() for v in values]) for ends in (FIRST, LAST))
            means.append(f"{first:.3g} → {last:.3g}")
        print(f"| {name} | {len(found)} | {change} | {' | '.join(means)} |")
    for one, other in (("success", "failure"), ("large_rl", "large_same")):
        if one in scores and other in scores:
            both = zip(scores[one], scores[other], strict=True)
            print(f"{one} − {other} at the end: {_interval([a[-1] - b[-1] for a, b in both])}")


def _interval(of_seeds: list[np.ndarray]) -> str:
    value, low, high = combine([resample(one, bounds=(-1, 1)) for one in of_seeds])
    return f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="output of `opdprobe reproduce --preset real`")
    parser.add_argument("runs", nargs="*", help="EXPERIMENT-sSEED, in this order")
    parser.add_argument("--foretell", action="store_true", help="predict, and do not train")
    parser.add_argument("--table", action="store_true", help="print what is known so far")
    parser.add_argument("--changes", action="store_true", help="print what the runs did")
    parser.add_argument("--where", action="store_true", help="print where the divergence lies")
    arguments = parser.parse_args()
    if arguments.where:
        where(arguments.folder)
    elif arguments.changes:
        changes(arguments.folder)
    elif arguments.table:
        table(arguments.folder)
    else:
        run(arguments.runs, arguments.folder, train=not arguments.foretell)
