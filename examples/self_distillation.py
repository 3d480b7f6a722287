"""Self-distillation with privileged context: one model twice, and the teacher reads the solution.

No model of the testbed reads a solution in its prompt, so the script first makes one that does: a
short fine-tuning on problems of which half are followed by worked steps. This *reader* is then
student and teacher. Three teachers: one reads the right solution of each problem, one reads the
solution of another problem, and one reads what the student reads.

The test was stated before the runs were looked at: after the last step, the accuracy with the right
solutions minus that with other problems' has a 95 % interval above 0, over seeds and problems.
"""

import argparse
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from opdprobe import OPDConfig, OPDTrainer, load_model, load_tokenizer
from opdprobe.cli.names import resolve_model, resolve_prompts
from opdprobe.probes.bootstrap import resample
from opdprobe.report.estimate import combine
from opdprobe.testing.testbed import world
from opdprobe.testing.testbed.problems import held_out
from opdprobe.train.config import SFTConfig
from opdprobe.train.sft import sft

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--seeds", type=int, default=5, help="runs of each teacher")
parser.add_argument("--steps", type=int, default=150, help="steps of a run")
parser.add_argument("--reader-steps", type=int, default=200, help="steps that make the reader")
parser.add_argument("--first-seed", type=int, default=0)
arguments = parser.parse_args()

READER, RUNS = Path("out/reader"), Path("runs/self-distillation")
CONTEXT = "{question} {solution}"
ARMS = {"right solution": CONTEXT, "solution of another problem": CONTEXT, "no solution": None}


def reader():
    """Fine-tune sft-small: half of the problems are followed by steps, which the answer repeats."""
    start = resolve_model("zoo:sft-small")
    model, tokenizer = load_model(start), load_tokenizer(start)

    def batch_at(step):
        rng, examples = random.Random(f"reader/{step}"), []
        for problem, answer in world.demonstrate(rng, 64, held_out=held_out()):
            asked = problem.question
            if rng.random() < 0.5:  # in other words, but by the same strategy
                asked += " " + steps(problem, world.strategy_of(" ".join(answer)), rng)
            texts = f"<bos> <user> {asked} <assistant>".split(), answer
            examples.append(tuple(tokenizer.convert_tokens_to_ids(text) for text in texts))
        return examples

    config = SFTConfig(
        learning_rate=2e-3,
        muon_learning_rate=1e-2,
        optimizer="muon",
        batch_size=64,
        max_steps=arguments.reader_steps,
        micro_batch_tokens=2048,
        save_steps=25,
    )
    for _ in sft(model, tokenizer, batch_at, arguments.reader_steps, config, Path("out/sft")):
        pass
    model.save_pretrained(READER)
    tokenizer.save_pretrained(READER)


def steps(problem, strategy, rng):
    """Write worked steps, without the token that ends a response."""
    return " ".join(world.solve(problem, strategy, rng)[:-1])


def solved(prompts, *, shift=0):
    """Give each prompt the column `solution`: running sums, of the prompt `shift` places on."""
    rng = random.Random("solutions")
    operands = [tuple(int(w) for w in p.question.split() if w.isdigit()) for p in prompts]
    texts = [steps(world.Problem(numbers), "stepwise", rng) for numbers in operands]
    texts = texts[shift:] + texts[:shift]
    return [
        replace(prompt, meta={**prompt.meta, "solution": text})
        for prompt, text in zip(prompts, texts, strict=True)
    ]


if not (READER / "config.json").exists():
    reader()
prompts, grader = resolve_prompts("zoo:train", 1024)
test, _ = resolve_prompts("zoo:medium", 128)
accuracy = {arm: [] for arm in ARMS}  # by run: (evaluated steps, problems)
for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
    for arm, context in ARMS.items():
        config = OPDConfig(
            max_steps=arguments.steps,
            batch_size=16,
            max_completion_length=64,
            learning_rate=3e-4,
            warmup_steps=min(5, arguments.steps),
            teacher_prompt=context,
            eval_every=50,
            eval_n=4,
            record_every=50,
            seed=seed,
        )
        run = OPDTrainer(
            READER,
            READER,
            prompts=solved(prompts, shift=int(arm == "solution of another problem")),
            config=config,
            run_dir=RUNS / f"{arm.replace(' ', '-')}-{seed}",
            grader=grader,
            eval_prompts={"medium": test},  # the student's prompts: it never reads a solution
        ).train()
        accuracy[arm].append(run.evaluation("medium")["score"])

figure = Figure(figsize=(3.8, 2.6), layout="constrained")
ax = figure.subplots()
for (arm, runs), marker in zip(accuracy.items(), "osD", strict=True):
    evaluated = runs[0]["step"].values
    y, low, high = np.transpose(
        [
            combine([resample(scores.values[i], bounds=(0, 1)) for scores in runs])
            for i in range(len(evaluated))
        ]
    )
    ax.plot(evaluated, y, marker=marker, markersize=4, label=arm)
    ax.fill_between(evaluated, low, high, alpha=0.2, linewidth=0)
    print(f"{arm}: accuracy {y[0]:.3f} before, {y[-1]:.3f} [{low[-1]:.3f}, {high[-1]:.3f}] after")
ax.set(xlabel="training step", ylabel="student's accuracy (avg@4)")
ax.legend(title="The teacher reads", fontsize="small", title_fontsize="small")
figure.savefig("self-distillation.png", dpi=200)

right, shuffled = (accuracy[arm] for arm in list(ARMS)[:2])
difference, low, high = combine(
    [
        resample(one.values[-1] - other.values[-1], bounds=(-1, 1))
        for one, other in zip(right, shuffled, strict=True)
    ]
)
print(f"right solution minus another's: {difference:+.3f} [{low:+.3f}, {high:+.3f}]")
