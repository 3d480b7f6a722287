"""Where a training step's time goes, and the limits of the machine.

    python benchmarks/step_parts.py                     # tiny and large vocabulary, two minutes
    OPDPROBE_SMOLLM2=models/smollm2 python benchmarks/step_parts.py --pair smollm2

Times each part of `OPDTrainer`'s step, for the pairs of `training_step`: one thread, medians of
five steps. Also measures the speed of one large matrix product, of reading memory, and of products
with one and with eight rows, as in decoding, in GB of weights read per second; with eight rows,
also from packed weights.
"""

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
import training_step

from opdprobe import OPDConfig, Prompt
from opdprobe.models.vocabulary import eos_ids
from opdprobe.rollout.batches import batches
from opdprobe.rollout.packed_weights import packed_weights
from opdprobe.rollout.pair import Pair, Scored, in_rollout_order
from opdprobe.rollout.rows import record_step, step_metrics
from opdprobe.rollout.sample import sample, step_generator
from opdprobe.rollout.score import score
from opdprobe.train.freed_memory import keep_freed_memory
from opdprobe.train.losses import distillation_loss
from opdprobe.train.optim import Optimization

STEPS, WARM_UP = 5, 2


def timed(work: Callable[[], object], n: int = 7) -> float:
    """Return the median seconds of `n` calls, after one that warms up."""
    times = []
    for _ in range(n + 1):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def limits() -> None:
    """Measure and print the limits of the machine."""
    a, b, out = torch.randn(256, 576), torch.randn(4096, 576), torch.empty(256, 4096)
    speed = 2 * 256 * 576 * 4096 / timed(lambda: torch.mm(a, b.T, out=out)) / 1e9
    memory = torch.randn(2**26)
    read = memory.numel() * 4 / timed(memory.sum) / 1e9
    layers = torch.nn.ModuleList(torch.nn.Linear(576, 1536, bias=False) for _ in range(60))
    size = sum(w.numel() * 4 for w in layers.parameters())  # 212 MB: more than a cache
    rows = {n: torch.randn(n, 576) for n in (1, 8)}
    with torch.no_grad():
        one, eight = (
            size / timed(lambda x=x: [layer(x) for layer in layers]) / 1e9 for x in rows.values()
        )
        with packed_weights(layers, 8):
            packed = size / timed(lambda: [layer(rows[8]) for layer in layers]) / 1e9
    print(f"one large matrix product: {speed:.0f} GFLOP/s; reading memory: {read:.1f} GB/s")
    print(f"a product with 1 row: {one:.1f} GB/s of weights; with 8 rows: {eight:.1f}")
    print(f"with 8 rows from packed weights: {packed:.1f}\n")


def parts(name: str) -> dict[str, list[float]]:
    """Run some steps; return the seconds of each part in each step."""
    (student, teacher), tokenizer, prompts = training_step.build(name)
    setting = training_step.SETTINGS[name]
    student.eval()
    teacher.eval().requires_grad_(False)
    pair = Pair(student, teacher, tokenizer)
    config = OPDConfig()
    ids = [
        tokenizer(p)["input_ids"]
        if isinstance(p, str)
        else tokenizer.apply_chat_template(p, add_generation_prompt=True, return_dict=False)
        for p in prompts[: setting.batch]
    ]
    own = [Prompt(str(i), text="none") for i in range(setting.batch)]
    optimization = Optimization(student, learning_rate=1e-6, total_steps=1000)
    found: dict[str, list[float]] = defaultdict(list)
    for step in range(STEPS + WARM_UP):
        spent: dict[str, float] = defaultdict(float)

        def clock(part: str, work: Callable[[], Any], spent: dict[str, float] = spent) -> Any:
            start = time.perf_counter()
            result = work()
            spent[part] += time.perf_counter() - start
            return result

        rollouts = clock(
            "sampling",
            lambda step=step: sample(
                student,
                ids,
                max_completion_length=setting.length,
                eos_ids=eos_ids(student, tokenizer),
                pad_id=pair.pad_id,
                generator=step_generator(0, step, "cpu"),
                width=pair.width,
            ),
        )
        scored = []
        cut = batches(rollouts, micro_batch_tokens=config.micro_batch_tokens, pad_id=pair.pad_id)
        for batch in clock("cutting into batches", lambda cut=cut: list(cut)):
            hidden = clock("student forward", lambda b=batch: b.hidden(pair.student_body))
            with torch.no_grad():
                theirs = clock("teacher forward", lambda b=batch: b.hidden(pair.teacher_body))
            heads = pair.student_head, pair.teacher_head
            scores = clock(
                "top 16, entropies and KL of both",
                lambda h=hidden, t=theirs, b=batch, w=heads: score(h, t, *w, b.sampled_ids, k=16),
            )
            part = Scored(batch, hidden, theirs, scores)
            loss = clock("loss", lambda p=part: distillation_loss(p, pair, config))
            clock("backward", (loss / rollouts.n_tokens).backward)
            scored.append((batch.state, scores.cpu()))
        clock("optimiser", optimization.step)
        dataset = clock(
            "laying out the record",
            lambda s=scored, r=rollouts, i=step: record_step(i, r, in_rollout_order(s), own),
        )
        clock("averages to log", lambda d=dataset: step_metrics(d))
        for what, seconds in spent.items():
            found[what].append(seconds)
    return found


def main() -> None:
    """Print the limits and one row per part."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pair", choices=training_step.SETTINGS, action="append")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    keep_freed_memory()
    limits()
    names = arguments.pair or ["tiny", "large-vocabulary"]
    print("| pair | part | ms | share |")
    print("|---|---|---|---|")
    for name in names:
        medians = {what: statistics.median(s[WARM_UP:]) for what, s in parts(name).items()}
        total = sum(medians.values())
        for what, seconds in medians.items():
            print(f"| {name} | {what} | {1e3 * seconds:,.1f} | {seconds / total:.0%} |")
        print(f"| {name} | total | {1e3 * total:,.1f} | |", flush=True)


if __name__ == "__main__":
    main()
