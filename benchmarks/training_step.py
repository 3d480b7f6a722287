"""Training step, ours beside TRL's `DistillationTrainer`: tokens per second and peak memory.

    python benchmarks/training_step.py                  # all pairs, three rounds, about 15 minutes
    python benchmarks/training_step.py --pair tiny
    OPDPROBE_SMOLLM2=models/smollm2 python benchmarks/training_step.py --pair smollm2

Models, prompts, batch, longest response, temperature, learning rate and dtype are equal. Ours finds
both models' top 16 at every state, computes Eq. 5 on the student's, and records everything; TRL's
has no top-k objective and computes the reverse KL over the full vocabulary. Contenders run in turn,
each round in fresh processes of one thread, so that drift of the machine affects both; a ratio
compares the two runs of one round.

Pairs: `tiny` and `large-vocabulary` are random models, nine in ten of whose responses reach the
length limit; `zoo` is two models of the testbed, whose responses end with an end-of-sequence token;
`smollm2` is SmolLM2-135M-Instruct (`OPDPROBE_SMOLLM2` names its directory), with the same model
plus noise as teacher.
"""

import argparse
import itertools
import json
import logging
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from fresh import fresh


class Setting(NamedTuple):
    """Settings of both trainers."""

    batch: int
    length: int
    steps: int


SETTINGS = {
    "tiny": Setting(64, 48, 10),
    "zoo": Setting(64, 160, 10),
    "large-vocabulary": Setting(16, 64, 4),
    "smollm2": Setting(8, 48, 4),
}
WARM_UP = 2


def build(name: str):
    """Make the pair's models, tokenizer and prompts."""
    import torch

    from opdprobe import load_model, load_tokenizer

    if name == "zoo":
        from opdprobe.cli.names import resolve_model
        from opdprobe.testing.testbed.problems import problems

        models = [load_model(resolve_model(f"zoo:{which}")) for which in ("sft-small", "rl-large")]
        tokenizer = load_tokenizer(resolve_model("zoo:sft-small"))
        return models, tokenizer, [list(p.messages) for p in problems(1024, split="train")]
    if name == "smollm2":
        (weights,) = Path(os.environ["OPDPROBE_SMOLLM2"]).glob("*.gguf")
        models = [load_model(weights) for _ in range(2)]
        with torch.no_grad():
            for parameter in models[1].parameters():
                parameter += 0.01 * parameter.std() * torch.randn_like(parameter)
        tokenizer = load_tokenizer(weights)
        texts = [f"What is {a} + {b}? Explain." for a in range(8) for b in range(8)]
        return models, tokenizer, [[{"role": "user", "content": text}] for text in texts]

    from transformers import LlamaConfig, LlamaForCausalLM

    from opdprobe.testing import tiny_tokenizer

    vocabulary, *sizes = {
        "tiny": (512, (64, 2), (128, 4)),
        "large-vocabulary": (151_936, (64, 2), (64, 2)),
    }[name]
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
    return models, tokenizer, prompts


class Steps:
    """Seconds and response tokens of each step."""

    def __init__(self):
        self.times = [time.perf_counter()]
        self.tokens = []

    def add(self, tokens: float) -> None:
        """Record the end of a step and its number of response tokens."""
        import torch

        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())
        self.tokens.append(tokens)

    def speed(self) -> float:
        """Return tokens per second: the median over steps after the warm-up."""
        seconds = [b - a for a, b in itertools.pairwise(self.times)]
        return statistics.median(
            n / s for n, s in list(zip(self.tokens, seconds, strict=True))[WARM_UP:]
        )


def our_trainer(
    models, tokenizer, prompts, setting: Setting, folder: str, callbacks: Sequence = (), **options
):
    """Make an `OPDTrainer` that records; return it and what it notes of its steps."""
    from opdprobe import Callback, OPDConfig, OPDTrainer, Prompt

    steps = Steps()

    class Clock(Callback):
        def on_step_end(self, trainer, step, metrics, dataset):
            steps.add(metrics["completion_length"] * setting.batch)

    trainer = OPDTrainer(
        *models,
        tokenizer=tokenizer,
        prompts=[
            Prompt(str(i), text=p) if isinstance(p, str) else Prompt(str(i), messages=p)
            for i, p in enumerate(prompts)
        ],
        config=OPDConfig(
            batch_size=setting.batch,
            num_generations=1,
            max_completion_length=setting.length,
            learning_rate=1e-6,
            max_steps=setting.steps,
            **options,
        ),
        run_dir=f"{folder}/run",
        callbacks=[Clock(), *callbacks],
    )
    return trainer, steps


def ours(name: str, folder: str, callbacks: Sequence = (), **options) -> Steps:
    """Train with `OPDTrainer`, recording included."""
    from opdprobe.train.freed_memory import keep_freed_memory

    keep_freed_memory()  # as the command does
    trainer, steps = our_trainer(*build(name), SETTINGS[name], folder, callbacks, **options)
    trainer.train()
    return steps


def trl_trainer(models, tokenizer, prompts, setting: Setting, folder: str, **arguments):
    """Make TRL's trainer with the same settings; return it and what it notes of its steps."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import DistillationConfig, DistillationTrainer

    steps = Steps()

    class Clock(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            if "completions/mean_length" in logs:
                steps.add(logs["completions/mean_length"] * setting.batch)

    student, teacher = models
    trainer = DistillationTrainer(
        model=student,
        teacher_model=teacher,
        args=DistillationConfig(
            output_dir=f"{folder}/trl",
            per_device_train_batch_size=setting.batch,
            max_completion_length=setting.length,
            max_steps=setting.steps,
            learning_rate=1e-6,
            report_to="none",
            save_strategy="no",
            logging_steps=1,
            disable_tqdm=True,
            **arguments,
        ),
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        processing_class=tokenizer,
        callbacks=[Clock()],
    )
    return trainer, steps


def trl(name: str, folder: str) -> Steps:
    """Train with TRL's trainer."""
    trainer, steps = trl_trainer(
        *(*build(name), SETTINGS[name], folder),
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
    )
    trainer.train()
    assert len(steps.tokens) == SETTINGS[name].steps
    return steps


def measure(contender: str, name: str) -> None:
    """Run one contender in this process and print its numbers as JSON."""
    import torch

    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        steps = {"ours": ours, "trl": trl}[contender](name, folder)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"tokens": steps.speed(), "mib": peak}))


def main() -> None:
    """Print one row per pair: medians over rounds, and the spread of the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pair", choices=SETTINGS, action="append")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--measure", choices=["ours", "trl"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        return measure(arguments.measure, arguments.pair[0])
    print("| pair | ours, tokens/s | TRL, tokens/s | ratio (min–max) | ours, MiB | TRL, MiB |")
    print("|---|---|---|---|---|---|")
    for name in arguments.pair or SETTINGS:
        if name == "smollm2" and "OPDPROBE_SMOLLM2" not in os.environ:
            print("| smollm2 | skipped: OPDPROBE_SMOLLM2 does not name its directory | | | | |")
            continue
        rounds = [
            tuple(fresh(__file__, "--measure", c, "--pair", name) for c in ("ours", "trl"))
            for _ in range(arguments.rounds)
        ]
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
