"""The measurements of `gpu.py`: each runs in a process of its own and prints JSON.

    python benchmarks/gpu_parts.py JOBS SETTINGS SECONDS

JOBS are keys of `JOBS`, with commas between, SETTINGS is a `gpu.Settings` as JSON, and SECONDS the
time after which the process is killed: a job begins nothing that it expects to end later.
"""

import contextlib
import copy
import importlib.metadata
import importlib.util
import itertools
import json
import logging
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import recording as recording_benchmark
import sampling as sampling_benchmark
import torch
import training_step
from gpu import Settings
from torch import Tensor
from transformers import AutoModelForCausalLM, Qwen2Config

from opdprobe import Callback, OPDConfig, Prompt
from opdprobe.models.head import split_head
from opdprobe.models.vocabulary import eos_ids
from opdprobe.rollout.pair import Pair, in_rollout_order
from opdprobe.rollout.rows import record_step
from opdprobe.rollout.sample import Rollouts, sample, step_generator
from opdprobe.rollout.score import Scores, score
from opdprobe.testing import tiny_tokenizer
from opdprobe.train.losses import distillation_loss
from opdprobe.train.optim import Optimization

START = time.perf_counter()
# Share of the time after which nothing new begins.
SOFT = 0.85
# Seconds that the step on long responses is expected to take after sampling.
REST = 10.0
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
K = 16

# From docs/numerics.md: sums over 151,936 tokens, relative errors, and one rounding to the dtype.
ABSOLUTE = {"log-probability": 2e-6, "entropy": 2e-6, "reverse KL": 3e-6}
RELATIVE = {"log-probability": 1.2e-7, "entropy": 2.4e-7, "reverse KL": 4.8e-7}
ROUNDING = {"float32": 2.0**-24, "bfloat16": 2.0**-8}
# How much farther from a float64 run the device's hidden states may be than the CPU's.
FARTHER = 4.0


class Enough(Exception):
    """Ends a training run that has been timed, before it writes its checkpoint of 20 GB."""


def make_model(s: Settings, seed: int, *, dtype: str, layers: int | None = None):
    """Make a random model of Qwen2's shape on the device."""
    config = Qwen2Config(
        vocab_size=s.vocabulary,
        hidden_size=s.width,
        intermediate_size=s.mlp_width,
        num_hidden_layers=layers or s.layers,
        num_attention_heads=s.heads,
        num_key_value_heads=s.key_value_heads,
        max_position_embeddings=32768,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(seed)
    with torch.device(s.device):
        # Not `to(dtype)`, which would round the frequencies of the positions, too.
        return AutoModelForCausalLM.from_config(config, dtype=DTYPES[dtype]).eval()


def make_pair(s: Settings):
    """Make models, tokenizer and prompts."""
    models = [make_model(s, seed, dtype=s.dtype) for seed in (0, 1)]
    tokenizer = tiny_tokenizer(s.vocabulary)
    words = [word for word in tokenizer.get_vocab() if not word.startswith("<")]
    draw = torch.Generator().manual_seed(0)

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high, (1,), generator=draw))

    prompts = [
        " ".join(
            words[number(0, len(words))]
            for _ in range(number(max(1, s.prompt_length // 2), s.prompt_length + 1))
        )
        for _ in range(8 * s.batch)
    ]
    return models, tokenizer, prompts


def synchronize() -> None:
    """Wait for the device."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def reset_peak() -> None:
    """Forget the peak of memory so far."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak() -> float | None:
    """Most memory that tensors took on the device, in GiB."""
    return torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None


def late(seconds: float, expected: float = 0.0) -> bool:
    """Return whether work of an expected length should not begin any more."""
    return time.perf_counter() - START + expected > SOFT * seconds


def allowed(quantity: str, value: Tensor, largest_logit: float, dtype: str) -> Tensor:
    """How far apart two computations of a quantity may be, in nats (docs/numerics.md)."""
    own = ABSOLUTE[quantity] + RELATIVE[quantity] * value.abs()
    return 2 * own + 4 * ROUNDING[dtype] * largest_logit


def compare_scores(got: Scores, want: Scores, logits: Tensor, dtype: str) -> dict[str, Any]:
    """Compare a device's scores with the CPU's, from the same hidden states.

    Parameters
    ----------
    got, want
        On the CPU, of N states.
    logits : Tensor (2, N, V)
        Both models' logits on the CPU.
    dtype
        Of the models.

    Returns
    -------
    dict
        For each quantity, the largest difference and the largest share of its bound. A list that
        differs from the CPU's may only hold tokens that are as probable as the CPU's last, within
        the bound of a log-probability; other states' log-probabilities are compared.
    """
    largest = float(logits.abs().max())
    logp = logits.double().log_softmax(-1).transpose(0, 1)  # (N, 2, V)
    found = {}
    # Lists: the gap between the CPU's last token and the least probable of the device's.
    last = logp.gather(-1, want.token_id).amin(-1)
    least = logp.gather(-1, got.token_id).amin(-1)
    gap = (last - least).clamp(min=0)
    limit = allowed("log-probability", last, largest, dtype)
    found["top-k lists"] = _farthest(gap, limit)
    (mine, order), (theirs, order_cpu) = (x.token_id.sort(-1) for x in (got, want))
    same = (mine == theirs).all(-1).all(-1)
    found["top-k lists"]["equal"] = float(same.double().mean())
    pairs = {
        "log-probability": (
            _by_token(got.logp, order)[same],
            _by_token(want.logp, order_cpu)[same],
        ),
        "log-probability of the sampled token": (got.sampled_logp, want.sampled_logp),
        "entropy": (got.entropy, want.entropy),
        "reverse KL": (got.reverse_kl, want.reverse_kl),
    }
    for name, (a, b) in pairs.items():
        quantity = name.removesuffix(" of the sampled token")
        a, b = a.double(), b.double()
        found[name] = _farthest((a - b).abs(), allowed(quantity, b, largest, dtype))
    return found


def _by_token(logp: Tensor, order: Tensor) -> Tensor:
    """Put log-probabilities (N, 2, 2, K) into the order of their lists' tokens (N, 2, K).

    As in `Scores`, the first axis of size 2 runs over the models, the second over the lists.
    """
    return logp.gather(-1, order[:, None].expand_as(logp))


def _farthest(difference: Tensor, limit: Tensor) -> dict[str, float]:
    if not difference.numel():
        return {"largest": 0.0, "of_bound": 0.0}
    # NaN must not look like equality: the maximum of a tensor with NaN is NaN, which fails.
    return {"largest": float(difference.max()), "of_bound": float((difference / limit).max())}


def scores(s: Settings, seconds: float) -> dict[str, Any]:
    """Compare hidden states and scores with the CPU's."""
    torch.set_float32_matmul_precision("highest")  # no TF32
    torch.backends.cudnn.allow_tf32 = False
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(6, s.vocabulary, (4, 12), generator=draw)
    sampled = torch.randint(6, s.vocabulary, (ids.numel(),), generator=draw)
    rows = []
    for dtype in ("float32", "bfloat16"):
        hidden, heads, device_heads, farthest = [], [], [], {"largest": 0.0, "of_bound": 0.0}
        for seed in (0, 1):
            model = make_model(s, seed, dtype=dtype, layers=s.compared_layers)
            on_cpu = copy.deepcopy(model).cpu()
            exact = _hidden(copy.deepcopy(on_cpu).double(), ids)
            own, theirs = _hidden(on_cpu, ids), _hidden(model, ids)
            far, far_cpu = (
                ((h.double() - exact).norm(dim=-1) / exact.norm(dim=-1)).max()
                for h in (theirs, own)
            )
            farthest = max(
                (farthest, {"largest": float(far), "of_bound": float(far / (FARTHER * far_cpu))}),
                key=lambda one: one["of_bound"],
            )
            hidden.append(own)
            heads.append(split_head(on_cpu)[1])
            device_heads.append(split_head(model)[1])
        want = score(*hidden, *heads, sampled, k=K)
        there = (h.to(s.device) for h in hidden)
        got = score(*there, *device_heads, sampled.to(s.device), k=K).cpu()
        with torch.no_grad():
            logits = torch.stack([head(h) for head, h in zip(heads, hidden, strict=True)])
        found = {"hidden states, relative": farthest} | compare_scores(got, want, logits, dtype)
        rows += [{"dtype": dtype, "quantity": name} | one for name, one in found.items()]
    equal = [f"{r['equal']:.1%} in {r['dtype']}" for r in rows if "equal" in r]
    return {
        "rows": rows,
        "notes": [f"Lists equal in {' and '.join(equal)} of {len(sampled)} states."],
    }


def _hidden(model: Any, ids: Tensor) -> Tensor:
    with torch.no_grad():
        out = model.base_model(input_ids=ids.to(model.device), use_cache=False)
    return out.last_hidden_state.flatten(0, 1).cpu()


def _setting(s: Settings, **changes: int) -> training_step.Setting:
    return training_step.Setting(s.batch, s.length, s.steps)._replace(**changes)


def training_ours(s: Settings, seconds: float) -> dict[str, Any]:
    """Train with `OPDTrainer`."""
    pair = make_pair(s)
    if s.gradient_checkpointing:
        pair[0][0].gradient_checkpointing_enable()

    class Stop(Callback):
        def on_step_end(self, trainer, step, metrics, dataset):
            if step == s.steps - 1 or (step >= training_step.WARM_UP and late(seconds)):
                raise Enough

    with tempfile.TemporaryDirectory() as folder:
        trainer, steps = training_step.our_trainer(
            *(*pair, _setting(s), folder, [Stop()]), micro_batch_tokens=s.micro_batch_tokens
        )
        reset_peak()
        with contextlib.suppress(Enough):
            trainer.train()
    return {"tokens": steps.speed(), "steps": len(steps.tokens), "peak": peak()}


def training_trl(s: Settings, seconds: float) -> dict[str, Any]:
    """Train with TRL's trainer."""
    from transformers import TrainerCallback

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step > training_step.WARM_UP and late(seconds):
                control.should_training_stop = True

    with tempfile.TemporaryDirectory() as folder:
        trainer, steps = training_step.trl_trainer(
            *(*make_pair(s), _setting(s), folder),
            gradient_checkpointing=s.gradient_checkpointing,
            bf16=s.dtype == "bfloat16",
            use_cpu=s.device == "cpu",
        )
        trainer.add_callback(Stop())
        reset_peak()
        trainer.train()
    return {"tokens": steps.speed(), "steps": len(steps.tokens), "peak": peak()}


def sampling(s: Settings, seconds: float) -> dict[str, Any]:
    """Sample with ours and with `generate`, in turn; the first round warms up."""
    (student, _), tokenizer, prompts = make_pair(s)
    found = sampling_benchmark.contenders(student, tokenizer, prompts, _setting(s))
    speeds: dict[str, list[float]] = {"ours": [], "generate": []}
    peaks: dict[str, float | None] = {}
    longest = 0.0
    for n in range(s.rounds + 1):
        if n > 1 and late(seconds, longest):
            break
        begin = time.perf_counter()
        for name, own in speeds.items():
            reset_peak()
            synchronize()
            start = time.perf_counter()
            tokens = found[name]()
            synchronize()
            own.append(tokens / (time.perf_counter() - start))
            peaks[name] = peak()
        longest = time.perf_counter() - begin
    rows = [
        {
            "who": name,
            "tokens": own[1:],
            "ratios": [a / b for a, b in zip(own[1:], speeds["ours"][1:], strict=True)],
            "peak": peaks[name],
        }
        for name, own in speeds.items()
    ]
    n = len(rows[0]["tokens"])
    return {"rows": rows} | ({"cut": f"{n} of {s.rounds} rounds"} if n < s.rounds else {})


def recording(s: Settings, seconds: float) -> dict[str, Any]:
    """Train while nothing, a tenth and everything is recorded, in turn; the first turn warms up."""
    block, ways = 2, recording_benchmark.RECORDED
    turn, notes = block * len(ways), []
    n_steps = turn * (s.turns + 1)

    class Switch(Callback):
        def on_step_end(self, trainer, step, metrics, dataset):
            done, now = step + 1, time.perf_counter()
            if done == n_steps:
                raise Enough
            if done % turn == 0:
                if done > turn and late(seconds, now - self.turn_began):
                    notes.append(f"{done // turn - 1} of {s.turns} turns")
                    raise Enough
                self.turn_began = now
            trainer.config = replace(trainer.config, **ways[way(done)])

        turn_began = 0.0

    def way(step: int) -> str:
        return recording_benchmark.way(step, block)

    with tempfile.TemporaryDirectory() as folder:
        trainer, steps = training_step.our_trainer(
            *(*make_pair(s), _setting(s, steps=n_steps), folder, [Switch()]),
            micro_batch_tokens=s.micro_batch_tokens,
            **ways[way(0)],
        )
        with contextlib.suppress(Enough):
            trainer.train()
        sizes = recording_benchmark.bytes_per_state(f"{folder}/run", block)
    times = [b - a for a, b in itertools.pairwise(steps.times)]
    blocks = {name: recording_benchmark.blocks(times, name, block) for name in ways}
    rows = [
        {
            "recorded": name,
            "seconds": statistics.median(own.tolist()),
            "costs": (own / blocks["nothing"] - 1).tolist(),
            "bytes": sizes.get(name),
        }
        for name, own in blocks.items()
    ]
    return {"rows": rows} | ({"cut": notes[0]} if notes else {})


def long(s: Settings, seconds: float) -> dict[str, Any]:
    """Do one training step on a few long responses; what cannot be sampled in time is made up."""
    models, tokenizer, prompts = make_pair(s)
    student, teacher = models
    student.gradient_checkpointing_enable()
    teacher.requires_grad_(False)
    pair, config = Pair(student, teacher, tokenizer), OPDConfig(k=K)
    prompts = prompts[: s.long_rollouts]
    optimization = Optimization(student, learning_rate=1e-6, total_steps=10)
    rows = []

    def clock(what: str, work: Callable[[], Any]) -> Any:
        reset_peak()
        synchronize()
        start = time.perf_counter()
        result = work()
        synchronize()
        rows.append({"what": what, "seconds": time.perf_counter() - start, "peak": peak()})
        return result

    def sampled(length: int) -> Rollouts:
        return sample(
            student,
            [tokenizer(prompt)["input_ids"] for prompt in prompts],
            max_completion_length=length,
            eos_ids=eos_ids(student, tokenizer),
            pad_id=pair.pad_id,
            generator=step_generator(0, 0, student.device),
            width=pair.width,
        )

    def update(rollouts: Rollouts) -> Scores:
        parts = []
        for part in pair.scored(rollouts, k=K, micro_batch_tokens=s.micro_batch_tokens):
            (distillation_loss(part, pair, config) / rollouts.n_tokens).backward()
            optimization.collect()
            parts.append((part.batch.state, part.scores.cpu()))
        return in_rollout_order(parts)

    few = min(32, s.long_length)
    update(sampled(few))  # warms up, and leaves AdamW its state
    optimization.step()
    synchronize()
    start = time.perf_counter()
    sampled(few)
    # Attention to thousands of tokens takes a little longer; the rest of the step, some seconds.
    each = 1.15 * (time.perf_counter() - start) / few
    left = SOFT * seconds - REST - (time.perf_counter() - START)
    in_time = max(few, int(left / each))
    length = min(s.long_length, in_time)
    rollouts = clock(f"sampling {length:,} tokens per response", lambda: sampled(length))
    found: dict[str, Any] = {"rows": rows}
    if length < s.long_length:
        draw = torch.Generator().manual_seed(0)
        for response in rollouts.response_ids:
            more = torch.randint(6, s.vocabulary, (s.long_length - length,), generator=draw)
            response += more.tolist()
        found["cut"] = f"after {length:,} tokens, responses go on with random ones"
    scored = clock("scores and gradients", lambda: update(rollouts))
    clock("update", optimization.step)
    own = [Prompt(str(i), text="none") for i in range(len(prompts))]
    clock("laying out the record", lambda: record_step(0, rollouts, scored, own))
    rows.append(
        {
            "what": "the step",
            "seconds": sum(row["seconds"] for row in rows),
            "peak": max((row["peak"] for row in rows), key=lambda size: size or 0),
        }
    )
    return found


JOBS: dict[str, Callable[[Settings, float], dict[str, Any]]] = {
    "scores": scores,
    "training-ours": training_ours,
    "training-trl": training_trl,
    "sampling": sampling,
    "recording": recording,
    "long": long,
}


def version(package: str) -> str:
    """Version of an installed package."""
    if importlib.util.find_spec(package) is None:
        return "(not installed)"
    return importlib.metadata.version(package)


def machine(s: Settings) -> dict[str, Any]:
    """Say where this was measured."""
    found = {"gpu": "a CPU", "gib": "no GPU", "driver": "none"}
    if torch.cuda.is_available() and s.device != "cpu":
        properties = torch.cuda.get_device_properties(s.device)
        found = {
            "gpu": properties.name,
            "gib": f"{properties.total_memory / 2**30:.0f} GiB",
            "driver": "unknown",
        }
        if shutil.which("nvidia-smi"):
            query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
            shown = subprocess.run(query, capture_output=True, text=True, check=True)
            found["driver"] = shown.stdout.split()[0]
    parameters = make_model(replace(s, device="meta"), 0, dtype=s.dtype).num_parameters()
    return found | {
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "trl": version("trl"),
        "parameters": parameters,
    }


def main() -> None:
    """Run jobs and print their numbers as JSON."""
    jobs, settings, seconds = sys.argv[1:]
    logging.disable(logging.WARNING)
    s = Settings(**json.loads(settings))
    found = {job: JOBS[job](s, float(seconds)) for job in jobs.split(",")}
    print(json.dumps({"jobs": found, "machine": machine(s)}))


if __name__ == "__main__":
    main()
