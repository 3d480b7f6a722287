"""Sampling: ours beside `model.generate` and transformers' continuous batching.

    python benchmarks/sampling.py                       # three rounds, a few minutes

The students and prompts are those of `training_step`, with four rollouts per prompt at temperature
1. All contenders run in turn, in one process of one thread; a ratio compares the runs of one round.
Only response tokens count, the end-of-sequence token included.
"""

import argparse
import logging
import os
import statistics
import time

import torch
import training_step
from transformers import GenerationConfig

from opdprobe.models.vocabulary import eos_ids, padding_id
from opdprobe.rollout.decode import left_pad
from opdprobe.rollout.sample import sample, step_generator

N = 4
ROUNDS = {"tiny": 5, "tiny, long": 2, "zoo": 5, "large-vocabulary": 2, "smollm2": 1}
LONG = 440  # tokens; the model's context is 512


def for_pair(pair: str):
    """Return the contenders for a pair's student."""
    (student, _), tokenizer, prompts = training_step.build(pair.removesuffix(", long"))
    student.eval()
    setting = training_step.SETTINGS[pair.removesuffix(", long")]
    if pair.endswith("long"):
        setting = setting._replace(length=LONG)
    found = contenders(student, tokenizer, prompts, setting)
    if pair.endswith("long"):
        found.pop("continuous batching")  # takes minutes
    return found


def contenders(student, tokenizer, prompts, setting: training_step.Setting):
    """Return each contender's name and a function that returns how many tokens it sampled."""
    ids = [
        tokenizer(p)["input_ids"]
        if isinstance(p, str)
        else tokenizer.apply_chat_template(p, add_generation_prompt=True, return_dict=False)
        for p in prompts[: setting.batch // N]
    ]
    device = student.device
    ends, pad = eos_ids(student, tokenizer), padding_id(tokenizer)
    config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=setting.length,
        eos_token_id=ends,
        pad_token_id=pad,
        num_return_sequences=N,
    )

    def ours() -> int:
        return sample(
            student,
            ids,
            num_generations=N,
            max_completion_length=setting.length,
            eos_ids=ends,
            pad_id=pad,
            generator=step_generator(0, 0, device),
        ).n_tokens

    def generate() -> int:
        padded, mask = (tensor.to(device) for tensor in left_pad(ids, pad))
        with torch.no_grad():
            out = student.generate(padded, attention_mask=mask, generation_config=config)
        out = out[:, padded.shape[1] :]
        ended = torch.isin(out, torch.tensor(ends, device=device)).cumsum(1)
        first = torch.tensor([0], device=device)
        return int((ended.roll(1, 1).index_fill(1, first, 0) == 0).sum())

    def continuous() -> int:
        single = GenerationConfig(**{**config.to_dict(), "num_return_sequences": 1})
        with torch.no_grad():
            out = student.generate_batch(
                [row for row in ids for _ in range(N)], generation_config=single, progress_bar=False
            )
        return sum(len(result.generated_tokens) for result in out.values())

    return {"ours": ours, "generate": generate, "continuous batching": continuous}


def main() -> None:
    """Print one row per student and contender."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pair", choices=ROUNDS, action="append")
    parser.add_argument("--rounds", type=int)
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    print("| student | | tokens/s | against ours (min–max) |")
    print("|---|---|---|---|")
    for pair in arguments.pair or ROUNDS:
        if pair == "smollm2" and "OPDPROBE_SMOLLM2" not in os.environ:
            print("| smollm2 | skipped: OPDPROBE_SMOLLM2 does not name its directory | | |")
            continue
        torch.manual_seed(0)
        rounds: list[dict[str, float]] = []
        found = for_pair(pair)
        for _ in range((arguments.rounds or ROUNDS[pair]) + 1):
            rounds.append({})
            for name, run in found.items():
                start = time.perf_counter()
                tokens = run()
                rounds[-1][name] = tokens / (time.perf_counter() - start)
        for name in found:
            speeds = [r[name] for r in rounds[1:]]  # the first round warms up
            ratios = [r[name] / r["ours"] for r in rounds[1:]]
            print(
                f"| {pair} | {name} | {statistics.median(speeds):,.0f} | "
                f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f}) |",
                flush=True,
            )


if __name__ == "__main__":
    main()
