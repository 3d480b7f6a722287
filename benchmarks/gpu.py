"""On one GPU: equal scores, training beside TRL, sampling, recording, and long responses.

    python benchmarks/gpu.py --json gpu.json            # at most eight minutes
    python benchmarks/gpu.py --size 0.5b --batch 8      # a card of 24 GB
    python benchmarks/gpu.py --smoke                    # tiny models on the CPU: does it run?
    python benchmarks/gpu.py --engine http://127.0.0.1:8000/v1 --engine-models STUDENT TEACHER

Prints the tables of *GPU* in docs/performance.md. Everything is made on the device from a seed: a
student and a teacher of Qwen2's shape with random weights, 151,936 tokens, and prompts of random
tokens. A random model hardly ever samples the end-of-sequence token, so all responses reach the
length limit.

* scores: two layers of full width, the same weights on the device and on the CPU, in float32
  (without TF32) and in bfloat16. From the same hidden states, top-k lists, log-probabilities,
  entropies and KL must agree within the bounds of docs/numerics.md: twice those for 151,936 tokens,
  plus four roundings of the largest logit. The page has no bound for what is below the head, so
  hidden states are compared with a float64 run on the CPU: the device's may be at most four times
  as far from it as the CPU's of the same dtype.
* training: `OPDTrainer`, recording everything, beside TRL's `DistillationTrainer`, in turn, in
  processes of their own: models, prompts, batch, longest response, learning rate and dtype are
  equal. Both train the weights in the dtype that was loaded, with fused AdamW. Ours keeps float32
  copies of bfloat16 weights, since a step at 1e-6 would not change them; TRL does not.
* sampling: ours beside `generate`, four rollouts per prompt.
* recording: nothing, a tenth and everything recorded, in turn, in one run.
* long: one step on a few rollouts of 7,168 tokens, with gradient checkpointing.
* engine, if a server is named: `benchmarks/engine.py` with its student, after all else.

A part that does not fit into its time is cut, and says so; one that fails gives its reason, the
others go on, and the exit status is 1. Each job is a process of its own, synchronises with the
device before it reads the clock, and warms up first. With `--smoke`, all but TRL share a process,
which imports everything once: it takes half a minute.
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from fresh import ONE_THREAD, Failed, fresh

PARTS = Path(__file__).with_name("gpu_parts.py")
ENGINE = Path(__file__).with_name("engine.py")
# Seconds of each part if the whole takes eight minutes. What a part leaves over goes to the next.
SECONDS = {"scores": 50, "training": 140, "sampling": 45, "recording": 75, "long": 165}
MINUTES = 8.0


@dataclass(frozen=True)
class Settings:
    """Sizes of the models and of each part."""

    device: str = "cuda"
    dtype: str = "bfloat16"
    vocabulary: int = 151_936
    width: int = 1536
    mlp_width: int = 8960
    layers: int = 28
    heads: int = 12
    key_value_heads: int = 2
    compared_layers: int = 2
    prompt_length: int = 128
    batch: int = 32
    length: int = 128
    steps: int = 6
    rounds: int = 2
    turns: int = 2
    long_length: int = 7168
    long_rollouts: int = 4
    micro_batch_tokens: int = 16384
    gradient_checkpointing: bool = False


SIZES = {
    "1.5b": Settings(),
    "0.5b": Settings(width=896, mlp_width=4864, layers=24, heads=14),
}
SMOKE = Settings(
    device="cpu",
    vocabulary=512,
    width=32,
    mlp_width=64,
    layers=2,
    heads=4,
    prompt_length=8,
    batch=4,
    length=8,
    steps=3,
    rounds=1,
    turns=1,
    long_length=64,
    long_rollouts=2,
)


class Jobs:
    """Runs measurements in processes of their own within a time, and keeps what failed."""

    def __init__(self, settings: Settings, minutes: float, parts: Sequence[str]):
        self.settings = settings
        self.failures: list[str] = []
        self.machine: dict[str, Any] = {}
        self._known: dict[str, dict[str, Any]] = {}
        self._scale = minutes / MINUTES
        self._ends = time.monotonic() + 60 * minutes
        self._later = list(parts)

    def begin(self, part: str) -> None:
        """Begin a part: what is not kept for later parts is its time."""
        self._later.remove(part)
        kept = self._scale * sum(SECONDS[later] for later in self._later)
        self._part_ends = self._ends - kept

    @property
    def left(self) -> float:
        """Seconds left for the part."""
        return self._part_ends - time.monotonic()

    def run(self, job: str, seconds: float) -> dict[str, Any] | None:
        """Return what a job measured, or None if it failed."""
        if job not in self._known:
            self._measure([job], seconds)
        return self._known.pop(job, None)

    def run_together(self, names: Sequence[str], seconds: float) -> None:
        """Run jobs in one process, which imports everything once, for `run` to return."""
        self._measure(names, seconds)

    def _measure(self, names: Sequence[str], seconds: float) -> None:
        seconds = max(1.0, seconds)
        print(f"{', '.join(names)}: at most {seconds:.0f} seconds", file=sys.stderr, flush=True)
        settings = json.dumps(asdict(self.settings))
        # TRL would split a batch over all the GPUs that it sees.
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]
        environment = {"CUDA_VISIBLE_DEVICES": visible}
        if self.settings.device == "cpu":
            environment = ONE_THREAD | {"CUDA_VISIBLE_DEVICES": ""}
        try:
            found = fresh(
                *(str(PARTS), ",".join(names), settings, seconds),
                environment=environment,
                timeout=seconds,
            )
        except Failed as error:
            print(error, file=sys.stderr, flush=True)
            self.failures.append(f"{', '.join(names)}: {error.reason}")
        else:
            self.machine = found["machine"]
            self._known |= found["jobs"]


def scores(jobs: Jobs) -> dict[str, Any]:
    """Compare scores with the CPU's; any that are out of their bound are a failure."""
    found = jobs.run("scores", jobs.left) or {"rows": []}
    for row in found["rows"]:
        if not row["of_bound"] <= 1:
            jobs.failures.append(
                f"scores: {row['quantity']} in {row['dtype']} is {row['of_bound']:.3g} times its "
                "bound from the CPU's"
            )
    return found


def training(jobs: Jobs) -> dict[str, Any]:
    """Time both trainers in turn, while the time lasts and they work."""
    contenders = ["ours"] + ["trl"] * (importlib.util.find_spec("trl") is not None)
    found: dict[str, Any] = {"ours": [], "trl": [], "trl_installed": "trl" in contenders}
    longest = 0.0
    for n in range(jobs.settings.rounds):
        if jobs.left < longest:
            found["cut"] = f"{n} of {jobs.settings.rounds} rounds"
            break
        start = time.monotonic()
        measured = {
            contender: jobs.run(f"training-{contender}", jobs.left / (len(contenders) - i))
            for i, contender in enumerate(contenders)
        }
        for contender, numbers in measured.items():
            found[contender] += [] if numbers is None else [numbers]
        if None in measured.values():  # it would fail again; the rounds before count
            break
        longest = max(longest, time.monotonic() - start)
    steps = min((r["steps"] for r in found["ours"] + found["trl"]), default=jobs.settings.steps)
    if steps < jobs.settings.steps:
        found["cut"] = ", ".join(
            [found["cut"]] * ("cut" in found) + [f"{steps} of {jobs.settings.steps} steps a round"]
        )
    return found


def simple(part: str):
    """Return the function that runs a part of one job."""

    def run(jobs: Jobs) -> dict[str, Any]:
        return jobs.run(part, jobs.left) or {"rows": []}

    return run


RUN = {
    "scores": scores,
    "training": training,
    "sampling": simple("sampling"),
    "recording": simple("recording"),
    "long": simple("long"),
}


def table(head: str, rows: Sequence[Sequence[str]]) -> list[str]:
    """Lay out a Markdown table."""
    line = "|" + "---|" * (head.count("|") + 1)
    return [f"| {head} |", line, *(f"| {' | '.join(row)} |" for row in rows)]


def gib(value: float | None) -> str:
    """Show a size; the CPU does not count it."""
    return "not counted" if value is None else f"{value:.1f}"


def spread(values: Sequence[float]) -> str:
    """Show a median with its range."""
    return f"{statistics.median(values):.2f} ({min(values):.2f}–{max(values):.2f})"


def scores_table(found: dict[str, Any], s: Settings) -> list[str]:
    """Lay out how far each quantity is from the CPU's."""
    rows = [
        [r["dtype"], r["quantity"], f"{r['largest']:.1e}", f"{r['of_bound']:.2f}"]
        for r in found["rows"]
    ]
    return table("dtype | | largest difference from the CPU's | as a share of its bound", rows)


def training_table(found: dict[str, Any], s: Settings) -> list[str]:
    """Lay out both trainers."""
    names = {"ours": "ours, recording everything", "trl": "TRL"}
    both = list(zip(found["ours"], found["trl"], strict=False))
    rows = []
    for who, name in names.items():
        if found[who]:
            speeds = [r["tokens"] for r in found[who]]
            ratio = spread([r[who == "trl"]["tokens"] / r[1]["tokens"] for r in both] or [1.0])
            rows.append(
                [
                    name,
                    f"{statistics.median(speeds):,.0f} ({min(speeds):,.0f}–{max(speeds):,.0f})",
                    ratio if both else "",
                    gib(max((r["peak"] for r in found[who]), key=lambda peak: peak or 0)),
                ]
            )
    lines = table("| tokens/s (min–max) | against TRL (min–max) | peak GiB", rows)
    if not found["trl_installed"]:
        lines += ["", "TRL is not installed (`pip install 'opdprobe[trl]'`): not compared."]
    return lines


def sampling_table(found: dict[str, Any], s: Settings) -> list[str]:
    """Lay out both samplers."""
    rows = [
        [r["who"], f"{statistics.median(r['tokens']):,.0f}", spread(r["ratios"]), gib(r["peak"])]
        for r in found["rows"]
    ]
    return table("| tokens/s | against ours (min–max) | peak GiB", rows)


def recording_table(found: dict[str, Any], s: Settings) -> list[str]:
    """Lay out what recording costs."""
    rows = [
        [
            r["recorded"],
            f"{1e3 * r['seconds']:,.0f}",
            "" if r["recorded"] == "nothing" else spread([100 * cost for cost in r["costs"]]),
            "" if r["bytes"] is None else f"{r['bytes']:.0f}",
        ]
        for r in found["rows"]
    ]
    return table("recorded | step, ms | cost, % (min–max) | bytes per state", rows)


def long_table(found: dict[str, Any], s: Settings) -> list[str]:
    """Lay out the parts of the step on long responses."""
    rows = [[r["what"], f"{r['seconds']:.1f}", gib(r["peak"])] for r in found["rows"]]
    return table("| s | peak GiB", rows)


def titles(s: Settings) -> dict[str, str]:
    """Say what each table shows."""
    batch = f"{s.batch} prompts of up to {s.prompt_length} tokens, {s.length} tokens per response"
    return {
        "scores": f"Scores against the CPU's, {s.compared_layers} layers",
        "training": f"Training step: {batch}",
        "sampling": f"Sampling: {s.batch} rollouts, four per prompt, {s.length} tokens each",
        "recording": f"Recording: {batch}",
        "long": f"One step on {s.long_rollouts} responses of {s.long_length:,} tokens, with "
        "gradient checkpointing",
    }


def markdown(results: dict[str, Any], jobs: Jobs) -> str:
    """Lay out all results."""
    s, m = jobs.settings, jobs.machine
    shown = {
        "scores": scores_table,
        "training": training_table,
        "sampling": sampling_table,
        "recording": recording_table,
        "long": long_table,
    }
    lines = []
    if m:
        copies = "; ours updates float32 copies of the weights" if s.dtype == "bfloat16" else ""
        lines += [
            f"`python benchmarks/gpu.py` on {m['gpu']} ({m['gib']}, driver {m['driver']}), with "
            f"torch {m['torch']}, transformers {m['transformers']} and TRL {m['trl']}, on "
            f"{time.strftime('%Y-%m-%d')}. Student and teacher: {m['parameters'] / 1e9:.2f} "
            f"billion parameters each, V = {s.vocabulary:,}. Parameters in {s.dtype}, fused "
            f"AdamW{copies}."
        ]
    for part, found in results.items():
        lines += ["", f"### {titles(s)[part]}", "", *shown[part](found, s)]
        lines += ["", f"Cut to fit its time: {found['cut']}."] if "cut" in found else []
        lines += ["", *found["notes"]] if found.get("notes") else []
    if jobs.failures:
        lines += ["", "### Failed", "", *(f"- {failure}" for failure in jobs.failures)]
    return "\n".join(lines)


def engine(url: str, models: Sequence[str], s: Settings) -> bool:
    """Measure a server as sampler, print its table, and return whether that went well."""
    student, teacher = models
    options = {"teacher": teacher, "device": s.device, "dtype": s.dtype, "length": s.length}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    print("\n### An engine as sampler\n", flush=True)
    return not subprocess.run([sys.executable, str(ENGINE), url, student, *words]).returncode


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the tables, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="tiny models on the CPU")
    parser.add_argument("--size", choices=SIZES, default="1.5b")
    parser.add_argument("--part", choices=RUN, action="append", help="default: all")
    parser.add_argument("--minutes", type=float, default=MINUTES)
    parser.add_argument("--json", type=Path, help="also write the results here")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"])
    parser.add_argument("--engine", metavar="URL", help="also measure this server as sampler")
    parser.add_argument("--engine-models", nargs=2, metavar=("STUDENT", "TEACHER"))
    parser.add_argument("--gradient-checkpointing", action="store_true", default=None)
    numbers = ("batch", "length", "steps", "rounds", "turns", "layers", "long_length")
    for name in (*numbers, "long_rollouts", "micro_batch_tokens"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int)
    given = parser.parse_args(arguments)
    if given.engine and not given.engine_models:
        parser.error("--engine without --engine-models; expected the served student and a teacher")
    if not given.smoke:
        import torch

        if not torch.cuda.is_available():
            parser.error("torch finds no GPU; expected one, or --smoke")
    own = {f.name: getattr(given, f.name, None) for f in fields(Settings)}
    settings = replace(
        SMOKE if given.smoke else SIZES[given.size],
        **{name: value for name, value in own.items() if value is not None},
    )
    parts = [part for part in RUN if part in (given.part or RUN)]
    jobs = Jobs(settings, given.minutes, parts)
    if given.smoke:
        together = ["training-ours" if part == "training" else part for part in parts]
        jobs.run_together(together, 60 * given.minutes)
    results = {}
    for part in parts:
        jobs.begin(part)
        results[part] = RUN[part](jobs)
    print(markdown(results, jobs))
    if given.engine and not engine(given.engine, given.engine_models, settings):
        jobs.failures.append("engine: see its message")
    if given.json:
        everything = {
            "settings": asdict(settings),
            "machine": jobs.machine,
            "results": results,
            "failures": jobs.failures,
        }
        given.json.write_text(json.dumps(everything, indent=1) + "\n", encoding="utf-8")
    return int(bool(jobs.failures))


if __name__ == "__main__":
    sys.exit(main())
