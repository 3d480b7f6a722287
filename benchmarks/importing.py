"""Importing a dump: states per second beside scoring alone, and peak memory by the dump's size.

    python benchmarks/importing.py                  # about 15 minutes, 1.2 GB of disk
    python benchmarks/importing.py --megabytes 100  # less: a dump of 100 MB

*Speed*: rollouts of the student of the zoo pair (see `training_step`), in the form of
open-instruct's traces (level B). *scoring* does with the same rollouts what `opdprobe probe` does
once it has sampled: scores them and writes the step. *importing* reads the dump, too. They run in
turn in one process of one thread (plus the writer's), after a round that does not count; the
models are loaded. A ratio is of the CPU time of one round.

*Memory*: dumps with both top-16 lists, in CSV (a token bank, level A) and with token ids (traces
with a long record of the environment, level B), of the size given and of a tenth of it, each
imported in a process of its own. Its peak includes torch and, for level B, the two models.
"""

import argparse
import csv
import json
import resource
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from fresh import fresh

STEPS, PROMPTS, N = 6, 64, 4
ROUNDS, K = 6, 16
WAYS = ("scoring", "importing")
# Student and teacher of the second table.
MODELS = ("sft-small", "rl-small")
LISTS = ("student_top_ids", "student_top_logps", "teacher_top_ids", "teacher_top_logps")


def trace(step: int, prompt: list[int], response: list[int], environment: str = "") -> str:
    """One line of open-instruct's traces."""
    row = {
        "step": step,
        "prompt_tokens": prompt,
        "response_tokens": response,
        "reward": 0.0,
        "advantage": 0.0,
        "finish_reason": "stop",
        "dataset": "testbed",
        "request_info": {"output": environment},
        "logprobs": [-0.123456789] * len(response),
    }
    return json.dumps(row) + "\n"


def speed() -> None:
    """Score and import the same rollouts in turn; print the states a CPU second as JSON."""
    import torch
    import training_step

    import opdprobe
    from opdprobe.rollout.pair import Pair
    from opdprobe.rollout.rescore import rescore
    from opdprobe.rollout.rows import step_metrics
    from opdprobe.store import RunWriter

    torch.set_num_threads(1)
    (student, teacher), tokenizer, asked = training_step.build("zoo")
    prompts = [{"prompt": messages} for messages in asked[:PROMPTS]]
    sampling = {"num_generations": N, "max_completion_length": 80, "tokenizer": tokenizer}
    steps = [
        opdprobe.sample(student, prompts, seed=step, step=step, **sampling) for step in range(STEPS)
    ]
    models = {"student": student, "teacher": teacher, "tokenizer": tokenizer}
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        dump = Path(folder, "run_rollouts_000000.jsonl")
        with open(dump, "w") as file:
            file.writelines(
                trace(s, list(r.prompt_ids), list(r.response_ids))
                for s, rollouts in enumerate(steps)
                for r in rollouts
            )
        run = opdprobe.import_rollouts(dump, f"{folder}/first", **models).run
        contexts = [run.load(step) for step in run.steps]
        states = sum(step.sizes["state"] for step in contexts)
        pair = Pair(student, teacher, tokenizer=tokenizer)
        for number in range(ROUNDS + 1):
            start = time.process_time()
            writer = RunWriter(f"{folder}/scored-{number}", attrs={}, config={}, resume=False)
            for step, recorded in enumerate(contexts):
                scored = rescore(pair, recorded, k=K, step=step)
                writer.write_step(step, scored)
                writer.log_metrics(step, step_metrics(scored))
            middle = time.process_time()
            opdprobe.import_rollouts(dump, f"{folder}/{number}", **models)
            end = time.process_time()
            if number:
                seconds["scoring"].append(middle - start)
                seconds["importing"].append(end - middle)
    print(json.dumps({"states": states, **seconds}))


def write_bank(path: Path, size: int) -> None:
    """Write a token bank of about `size` bytes, 64 rollouts of 200 tokens a step."""
    rng = np.random.default_rng(0)
    names = (
        "schema_version", "rollout_id", "sample_index", "group_index", "sample_ordinal", "tok_pos",
        "prompt_len", "resp_len", "truncated", "token_id", "student_logp_sampled",
        "teacher_logp_sampled", *LISTS,
    )  # fmt: skip
    with open(path, "w", newline="") as file:
        table = csv.DictWriter(file, names)
        table.writeheader()
        step = 0
        while file.tell() < size:
            table.writerows(bank_rows(rng, step))
            step += 1


def bank_rows(rng: np.random.Generator, step: int) -> Iterator[dict[str, object]]:
    """Rows of one step of a token bank."""
    for sample in range(64):
        for place in range(200):
            logp = -np.sort(rng.exponential(2, (2, K)) + 3)
            ids = [(rng.permutation(32)[:K] + 100 * place).tolist() for _ in range(2)]
            yield {
                **{"schema_version": 2, "rollout_id": step, "sample_index": sample},
                **{"group_index": sample // 4, "sample_ordinal": sample % 4, "tok_pos": place},
                **{"prompt_len": 5, "resp_len": 200, "truncated": 0, "token_id": ids[0][0]},
                **{"student_logp_sampled": logp[0, 0], "teacher_logp_sampled": -4.5},
                **dict(zip(LISTS, map(json.dumps, _lists(ids, logp)), strict=True)),
            }


def _lists(ids: list[list[int]], logp: np.ndarray) -> list[list[float]]:
    return [ids[0], logp[0].tolist(), ids[1], logp[1].tolist()]


def write_traces(path: Path, size: int) -> None:
    """Write traces of about `size` bytes, 64 rollouts of 50 tokens and 100 kB a step."""
    rng = np.random.default_rng(0)
    with open(path, "w") as file:
        step = 0
        while file.tell() < size:
            for _ in range(64):
                ids = rng.integers(20, 200, 60).tolist()
                file.write(trace(step, ids[:10], ids[10:], "the tool said this. " * 5_000))
            step += 1


def peak(level: str, dump: str) -> None:
    """Import a dump in this process; print its rows, seconds and peak memory as JSON."""
    import torch

    import opdprobe
    from opdprobe.testing.testbed.members import zoo_path

    torch.set_num_threads(1)
    models = dict(zip(("student", "teacher"), map(zoo_path, MODELS), strict=True))
    start = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        opdprobe.import_rollouts(dump, f"{folder}/r", **(models if level == "B" else {}))
    seconds = time.process_time() - start
    mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "MiB": mib}))


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--measure", nargs="*", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure is not None:
        return peak(*arguments.measure) if arguments.measure else speed()
    found = fresh(__file__, "--measure")
    ratios = [s / i for s, i in zip(found["scoring"], found["importing"], strict=True)]
    rates = {way: found["states"] / statistics.median(found[way]) for way in WAYS}
    print("| states | scoring, states/s | importing, states/s | ratio (min–max) |")
    print("|---|---|---|---|")
    print(
        f"| {found['states']:,} | {rates['scoring']:,.0f} | {rates['importing']:,.0f} "
        f"| {statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f}) |\n",
        flush=True,
    )
    print("| dump | size, MB | CPU time, s | peak, MiB |")
    print("|---|---|---|---|")
    for level, name, write in (
        ("A", "token-bank.csv", write_bank),
        ("B", "run_rollouts_000000.jsonl", write_traces),
    ):
        for megabytes in (arguments.megabytes // 10, arguments.megabytes):
            with tempfile.TemporaryDirectory() as folder:
                dump = Path(folder, name)
                write(dump, megabytes * 1_000_000)
                found = fresh(__file__, "--measure", level, dump)
                size = dump.stat().st_size / 1e6
            print(
                f"| level {level} | {size:,.0f} | {found['seconds']:.0f} | {found['MiB']:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
