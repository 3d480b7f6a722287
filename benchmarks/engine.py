"""An engine as sampler, beside our own sampler and `model.generate`.

    VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --dtype float32 --max-model-len 512
    python benchmarks/engine.py http://127.0.0.1:8000/v1 MODEL --teacher TEACHER --prompts FILE
    python benchmarks/engine.py … --device cuda --dtype bfloat16       # where there is a GPU

The server holds MODEL's weights. Sampling: the same prompts and lengths for all three, in turn;
only response tokens count. Steps: two runs of `OPDTrainer`, in turn, that differ in the sampler; an
engine's sampling includes saving the student and loading its weights. A step with `generate` is a
step of ours with the sampling time of `generate`. On CPUs, server and trainer share the processors.
Ratios compare the measurements of one round.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from opdprobe import Callback, OPDConfig, OPDTrainer
from opdprobe.cli.names import resolve_model, resolve_prompts
from opdprobe.hooks.served import ServedModel
from opdprobe.models.load import load_model, load_tokenizer
from opdprobe.models.vocabulary import eos_ids, padding_id
from opdprobe.rollout.decode import left_pad
from opdprobe.rollout.prompts import Prompt, encode_prompts
from opdprobe.rollout.sample import sample, step_generator

N = 4
OURS, GENERATE, ENGINE = "ours", "generate", "engine"


def samplers(
    model: Any, tokenizer: Any, served: ServedModel, ids: Sequence[Sequence[int]], length: int
) -> dict[str, Callable[[], int]]:
    """Return each contender, a function that samples and returns its number of tokens."""
    ends, pad, device = eos_ids(model, tokenizer), padding_id(tokenizer), model.device
    sizes = {"num_generations": N, "max_completion_length": length}
    config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=length,
        eos_token_id=ends,
        pad_token_id=pad,
        num_return_sequences=N,
    )

    def ours() -> int:
        generator = step_generator(0, 0, device)
        found = sample(model, ids, eos_ids=ends, pad_id=pad, generator=generator, **sizes)
        return found.n_tokens

    def generate() -> int:
        padded, mask = (tensor.to(device) for tensor in left_pad(ids, pad))
        with torch.no_grad():
            out = model.generate(padded, attention_mask=mask, generation_config=config)
        out = out[:, padded.shape[1] :]
        ended = torch.isin(out, torch.tensor(ends, device=device)).cumsum(1)
        first = torch.tensor([0], device=device)
        return int((ended.roll(1, 1).index_fill(1, first, 0) == 0).sum())

    def engine() -> int:
        return served.sample(ids, seed=[0], **sizes).n_tokens

    return {OURS: ours, GENERATE: generate, ENGINE: engine}


class _Clock(Callback):
    """Keeps the seconds of each step but the first, which warms up."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []

    def on_step_end(self, trainer: OPDTrainer, step: int, metrics: dict, dataset: object) -> None:
        if step:
            self.steps.append({part: metrics[f"seconds_{part}"] for part in PARTS})


PARTS = ("sample", "update", "record")


def steps(
    names: tuple[str | Path, str | Path],
    prompts: Sequence[Prompt],
    served: ServedModel | None,
    config: OPDConfig,
    loading: dict[str, Any],
) -> dict[str, float]:
    """Train a few steps and return the median seconds of their parts."""
    clock = _Clock()
    with tempfile.TemporaryDirectory() as folder:
        OPDTrainer(
            *names,
            prompts=prompts,
            config=config,
            run_dir=Path(folder) / "run",
            callbacks=[clock],
            sampler=served,
            **loading,
        ).train()
    return {part: statistics.median(step[part] for step in clock.steps) for part in PARTS}


def measure(address: str, model: str, teacher: str, prompts: str, **given: Any) -> dict[str, Any]:
    """Measure every contender in every round.

    Parameters
    ----------
    address
        The server's.
    model, teacher
        Directories, or zoo:NAME; `model` is the one that is served.
    prompts
        A file, or zoo:SPLIT.
    **given
        The other options of the command line.
    """
    loading = {"device": given["device"], "dtype": given["dtype"]}
    names = resolve_model(model), resolve_model(teacher)
    served = ServedModel(address)
    student, tokenizer = load_model(names[0], **loading), load_tokenizer(names[0])
    chosen, _ = resolve_prompts(prompts, given["batch"] // N)
    ids = [prompt.ids for prompt in encode_prompts(tokenizer, chosen)]
    config = OPDConfig(
        batch_size=len(chosen),
        num_generations=N,
        max_completion_length=given["length"],
        max_steps=given["steps"] + 1,
        learning_rate=1e-6,  # the responses keep their lengths
        warmup_steps=0,
    )
    # The trained engine is not the student of the start any more, and the next round samples it.
    student.save_pretrained(start := Path(tempfile.mkdtemp()) / "start")
    rounds: list[dict[str, Any]] = []
    for _ in range(given["rounds"] + 1):
        found: dict[str, Any] = {"tokens/s": {}, "step": {}}
        for name, work in samplers(student, tokenizer, served, ids, given["length"]).items():
            before = time.perf_counter()
            tokens = work()
            found["tokens/s"][name] = tokens / (time.perf_counter() - before)
            found.setdefault("tokens", {})[name] = tokens
        rounds.append(found)
    for found in rounds[1:]:
        for name, sampler in ((OURS, None), (ENGINE, served)):
            found["step"][name] = steps(names, chosen, sampler, config, loading)
        served.load_weights(start)
        slower = found["tokens/s"][OURS] / found["tokens/s"][GENERATE]
        ours = found["step"][OURS]
        found["step"][GENERATE] = ours | {"sample": ours["sample"] * slower}
    about = {"prompts": len(ids), "threads": torch.get_num_threads()}
    return {**given, **about, "rounds": rounds[1:]}


def table(found: dict[str, Any]) -> list[str]:
    """Lay out what was measured as a table in Markdown."""

    def against(values: dict[str, list[float]], name: str) -> str:
        ratios = [one / ours for one, ours in zip(values[name], values[OURS], strict=True)]
        return f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"

    names = (OURS, GENERATE, ENGINE)
    speed = {name: [r["tokens/s"][name] for r in found["rounds"]] for name in names}
    step = {name: [sum(r["step"][name].values()) for r in found["rounds"]] for name in names}
    lines = [
        "| | tokens/s | against ours (min–max) | sampling in a step, s | step, s | against ours |",
        "|---|---|---|---|---|---|",
    ]
    for name in names:
        drawing = statistics.median(r["step"][name]["sample"] for r in found["rounds"])
        lines.append(
            f"| {name} | {statistics.median(speed[name]):,.0f} | {against(speed, name)} "
            f"| {drawing:.2f} | {statistics.median(step[name]):.2f} | {against(step, name)} |"
        )
    return lines


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("address", help="http://HOST:8000/v1#NAME")
    parser.add_argument("model", help="the directory that is served, or zoo:NAME")
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--prompts", default="zoo:train", help="zoo:SPLIT or a file")
    parser.add_argument("--batch", type=int, default=32, help="rollouts a step")
    parser.add_argument("--length", type=int, default=64, help="longest response, in tokens")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=1)
    given = vars(parser.parse_args())
    torch.set_num_threads(given.pop("threads"))
    found = measure(**given)
    tokens = found["rounds"][0]["tokens"]
    print(f"{found['prompts']} prompts × {N}, at most {found['length']} tokens: {tokens}\n")
    print("\n".join(table(found)))


if __name__ == "__main__":
    main()
