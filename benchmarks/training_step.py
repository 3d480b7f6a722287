"""Training step, ours beside TRL's `DistillationTrainer`: tokens a second and peak memory.

    python benchmarks/training_step.py                  # all pairs, three rounds, about 10 minutes
    python benchmarks/training_step.py --pair tiny

Random models; equal prompts, batch, response length, temperature, learning rate and dtype. Ours
searches both models' top 16 at every state, takes Eq. 5 on the student's, and records everything;
TRL's has no top-k objective and takes the reverse KL over the full vocabulary. Contenders run in
turn, each round in fresh processes of one thread, so that drift of the machine falls on both; a
ratio is of the two runs of one round.
"""

import argparse
import itertools
import json
import logging
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PAIRS = {
    # vocabulary, student and teacher (width, layers), prompts a step, response length, steps
    "tiny": (512, (64, 2), (128, 4), 64, 48, 10),
    "large-vocabulary": (151_936, (64, 2), (64, 2), 16, 64, 4),
}
WARM_UP = 2


def build(name: str):
    """Make the pair's models, tokenizer and prompts."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from opdprobe.testing import tiny_tokenizer

    vocabulary, *sizes, batch, length, steps = PAIRS[name]
    models = [
        LlamaForCausalLM(
            LlamaConfig(
                vocab_size=vocabulary,
                hidden_size=width,
                intermediate_size=3 * width,
                num_hidden_layers=layers,
                num_attention_heads=4,
                num_key_value_heads=4,
                max_position_embeddings=512,
                tie_word_embeddings=False,
                bos_token_id=1,
                eos_token_id=2,
                pad_token_id=0,
            )
        )
        for width, layers in sizes
    ]
    tokenizer = tiny_tokenizer(vocabulary)
    words = [w for w in tokenizer.get_vocab() if not w.startswith("<")][:64]
    prompts = [f"{a} {b} {words[0]} {words[1]}" for a in words[:32] for b in words[:32]]
    return models, tokenizer, prompts, batch, length, steps


def ours(name: str, folder: str) -> list[float]:
    """Seconds of each step of `OPDTrainer`, recording included."""
    from opdprobe import Callback, OPDConfig, OPDTrainer, Prompt

    (student, teacher), tokenizer, prompts, batch, length, steps = build(name)
    times = [time.perf_counter()]

    class Clock(Callback):
        def on_step_end(self, trainer, step, metrics, dataset):
            times.append(time.perf_counter())

    OPDTrainer(
        student,
        teacher,
        tokenizer=tokenizer,
        prompts=[Prompt(str(i), text=text) for i, text in enumerate(prompts)],
        config=OPDConfig(
            batch_size=batch,
            num_generations=1,
            max_completion_length=length,
            learning_rate=1e-6,
            max_steps=steps,
        ),
        run_dir=f"{folder}/run",
        callbacks=[Clock()],
    ).train()
    return [b - a for a, b in itertools.pairwise(times)]


def trl(name: str, folder: str) -> list[float]:
    """Seconds of each step of TRL's trainer."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import DistillationConfig, DistillationTrainer

    (student, teacher), tokenizer, prompts, batch, length, steps = build(name)
    times = [time.perf_counter()]

    class Clock(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            times.append(time.perf_counter())

    DistillationTrainer(
        model=student,
        teacher_model=teacher,
        args=DistillationConfig(
            output_dir=f"{folder}/trl",
            per_device_train_batch_size=batch,
            max_completion_length=length,
            max_steps=steps,
            learning_rate=1e-6,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            logging_steps=1000,
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        processing_class=tokenizer,
        callbacks=[Clock()],
    ).train()
    return [b - a for a, b in itertools.pairwise(times)]


def measure(contender: str, name: str) -> None:
    """Run one contender in this process and print its numbers as JSON."""
    import torch

    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        steps = {"ours": ours, "trl": trl}[contender](name, folder)[WARM_UP:]
    _, _, _, batch, length, _ = PAIRS[name]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"tokens": batch * length / statistics.median(steps), "mib": peak}))


def fresh(contender: str, name: str) -> dict[str, float]:
    """Measure a contender in a process of its own."""
    command = [sys.executable, str(Path(__file__)), "--measure", contender, "--pair", name]
    shown = subprocess.run(command, capture_output=True, text=True)
    if shown.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{shown.stderr[-2000:]}")
    return json.loads(shown.stdout.splitlines()[-1])


def main() -> None:
    """Print one row a pair: medians over rounds, and the spread of the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pair", choices=PAIRS, action="append")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--measure", choices=["ours", "trl"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        return measure(arguments.measure, arguments.pair[0])
    print("| pair | ours, tokens/s | TRL, tokens/s | ratio (min–max) | ours, MiB | TRL, MiB |")
    print("|---|---|---|---|---|---|")
    for name in arguments.pair or PAIRS:
        rounds = [(fresh("ours", name), fresh("trl", name)) for _ in range(arguments.rounds)]
        ratios = [a["tokens"] / b["tokens"] for a, b in rounds]
        middle = [
            [statistics.median(r[i][k] for r in rounds) for i in (0, 1)] for k in ("tokens", "mib")
        ]
        print(
            f"| {name} | {middle[0][0]:,.0f} | {middle[0][1]:,.0f} "
            f"| {statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f}) "
            f"| {middle[1][0]:,.0f} | {middle[1][1]:,.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
