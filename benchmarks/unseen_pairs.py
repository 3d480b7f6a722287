"""Preflight against training, on zoos that nobody tuned on. Resumable: run it again after a stop.

    python benchmarks/unseen_pairs.py out/unseen             # hours: 24 models, 64 pairs
    python benchmarks/unseen_pairs.py out/unseen --table     # what is known so far, and a figure
    python benchmarks/unseen_pairs.py out/unseen --again 64  # predict trained pairs with 64 prompts

For each pair, preflight's prediction (128 prompts × 4 rollouts) is written to ``predictions.jsonl``
before the pair is trained; then the pair is trained for 96 steps of 16 prompts × 4 rollouts at the
rate of the testbed's experiments, 2e-4, and its gain is written to ``gains.jsonl``: the accuracy of
the evaluations in the last quarter minus that before training, over three benchmarks. Lines are
written whole; nothing that is written is computed again. Another ``--seed`` gives other zoos, and
needs another directory.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from unseen_table import print_table
from unseen_zoo import Case, Member, build, design

from opdprobe import OPDConfig, OPDTrainer, open_run
from opdprobe.models.load import load_tokenizer
from opdprobe.preflight import preflight
from opdprobe.rollout.prompts import Prompt
from opdprobe.store.files import read_lines, write_text
from opdprobe.testing.testbed.problems import BENCHMARKS, grader, problems

N_PROMPTS, NUM_GENERATIONS = 128, 4
N_PROBLEMS = 96
LATE = 0.75  # share of the steps after which evaluations count


def config(seed: int, **changes: Any) -> OPDConfig:
    """Return the settings of every run: those of the testbed's experiments, for 96 steps."""
    return OPDConfig(
        **{
            "batch_size": 16,
            "num_generations": 4,
            "max_prompt_length": 32,
            "max_completion_length": 64,
            "learning_rate": 2e-4,
            "max_steps": 96,
            "micro_batch_tokens": 2048,
            "eval_every": 24,
            "eval_n": 4,
            "eval_max_completion_length": 80,
            "save_steps": 24,
            "seed": seed,
            **changes,
        }
    )


def predict(case: Case, zoo: Path, seed: int, n_prompts: int = N_PROMPTS) -> dict[str, Any]:
    """Preflight a pair."""
    prompts, start = problems(2048, split="train"), time.process_time()
    found = preflight(
        zoo / case.student,
        zoo / case.teacher,
        prompts,
        grader=grader,
        n_prompts=n_prompts,
        num_generations=NUM_GENERATIONS,
        seed=seed,
        device="cpu",
    )
    return {"preflight": found.to_dict(), "cpu_seconds": round(time.process_time() - start, 1)}


def train(
    case: Case, zoo: Path, run_dir: Path, settings: OPDConfig, n_problems: int = N_PROBLEMS
) -> dict[str, Any]:
    """Train a pair to its end; resumable."""
    start = time.process_time()
    benchmarks: dict[str, list[Prompt]] = {
        name: problems(n_problems, split=name) for name in BENCHMARKS
    }
    trainer = OPDTrainer(
        zoo / case.student,
        zoo / case.teacher,
        tokenizer=load_tokenizer(zoo / case.student),
        prompts=problems(2048, split="train"),
        config=settings,
        run_dir=run_dir,
        grader=grader,
        eval_prompts=benchmarks,
        device="cpu",
    )
    trainer.train(resume=True)
    found = accuracies(run_dir)
    seconds = round(time.process_time() - start, 1)
    return {"gain": gain(found), "accuracy": found, "cpu_seconds": seconds}


def accuracies(run_dir: Path) -> dict[int, float]:
    """Return the mean accuracy over the benchmarks, by evaluated step."""
    metrics = open_run(run_dir).metrics
    mean = sum(metrics[f"accuracy/{name}"] for name in BENCHMARKS) / len(BENCHMARKS)
    known = mean.dropna("step")
    return {int(step): float(value) for step, value in zip(known["step"], known, strict=True)}


def gain(accuracy: dict[int, float]) -> float:
    """Mean of the evaluations in the last quarter of the steps, minus the one before training."""
    first, last = min(accuracy), max(accuracy)
    late = [value for step, value in accuracy.items() if step >= LATE * last]
    return sum(late) / len(late) - accuracy[first]


def add(path: Path, row: dict[str, Any]) -> None:
    """Add a line to a table; the file has the line as a whole or not at all."""
    lines = [*read_lines(path), row]
    write_text(path, "".join(f"{json.dumps(line)}\n" for line in lines))


def done(path: Path) -> dict[str, dict[str, Any]]:
    """Return the lines of a table by their case."""
    return {line["case"]: line for line in read_lines(path)}


def needed(members: dict[str, Member], *names: str) -> list[Member]:
    """Return members and all that they are made from, parents first."""
    found: dict[str, Member] = {}

    def include(name: str) -> None:
        if (parent := members[name].parent) is not None:
            include(parent)
        found[name] = members[name]

    for name in names:
        include(name)
    return list(found.values())


def run(folder: Path, seed: int, limit: int | None) -> None:
    """Predict and train the pairs that are not done yet, in the design's order."""
    members, cases = design(seed)
    zoo, predictions, gains = folder / "zoo", folder / "predictions.jsonl", folder / "gains.jsonl"
    for number, case in enumerate(cases[:limit]):
        if case.name in done(gains):
            continue
        for member in needed(members, case.student, case.teacher):
            start = time.process_time()
            for step in build(member, zoo):
                if step % 50 == 0:
                    spent = time.process_time() - start
                    print(
                        f"{member.name}: step {step} of {member.steps}, {spent:.0f} s", flush=True
                    )
        row = {"case": case.name, "kind": case.kind, "student": case.student}
        row |= {"teacher": case.teacher, "lineage": case.lineage, "seed": seed}
        if case.name not in done(predictions):
            add(predictions, row | predict(case, zoo, seed + number))
        found = train(case, zoo, folder / "runs" / case.name, config(seed + number))
        add(gains, row | found)
        print(
            f"{number + 1} of {len(cases)}: {case.name} ({case.kind}): {found['gain']:+.3f}, "
            f"{found['cpu_seconds']:.0f} s",
            flush=True,
        )


def predict_again(folder: Path, n_prompts: int) -> None:
    """Predict the trained pairs from another number of prompts: for a line of that size."""
    path = predictions_of(folder, n_prompts)
    before = done(folder / "predictions.jsonl")
    for number, name in enumerate(done(folder / "gains.jsonl")):
        if name not in done(path):
            row = {k: v for k, v in before[name].items() if k not in ("preflight", "cpu_seconds")}
            case = Case(row["student"], row["teacher"], row["kind"])
            # Other prompts and rollouts than those of the prediction from more.
            seed = row["seed"] + 1000 + number
            add(path, row | predict(case, folder / "zoo", seed, n_prompts))
            print(f"{name}, {n_prompts} prompts", flush=True)


def predictions_of(folder: Path, n_prompts: int) -> Path:
    """Return where the predictions from a number of prompts are."""
    return folder / ("predictions.jsonl" if n_prompts == N_PROMPTS else f"again-{n_prompts}.jsonl")


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=8000, help="decides the zoos; default 8000")
    parser.add_argument("--limit", type=int, help="pairs to run; default: all")
    parser.add_argument("--table", action="store_true", help="print what is known so far")
    parser.add_argument("--figure", type=Path, help="with --table: where the figure goes")
    parser.add_argument("--again", type=int, help="predict the trained pairs from so many prompts")
    arguments = parser.parse_args()
    if arguments.table:
        predicted = done(arguments.folder / "predictions.jsonl")
        trained = done(arguments.folder / "gains.jsonl")
        print_table([predicted[name] | line for name, line in trained.items()], arguments.figure)
        return
    arguments.folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(arguments.folder / "lock")
    try:
        with lock.acquire(timeout=0):
            if arguments.again is not None:
                predict_again(arguments.folder, arguments.again)
            else:
                run(arguments.folder, arguments.seed, arguments.limit)
    except Timeout:
        raise SystemExit(f"{arguments.folder} is in use by another process.") from None


if __name__ == "__main__":
    main()
