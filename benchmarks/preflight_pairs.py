"""Preflight's verdicts on the pairs whose training is known: the table of docs/preflight.md.

    python benchmarks/preflight_pairs.py             # about 5 minutes
    python benchmarks/preflight_pairs.py --n-prompts 64

The gains of training are those of docs/preflight.md, over five seeds. A verdict is right if it says
*likely to work* above +0.05, *harmful* below -0.05 and *unlikely to help* between. The rule was
chosen with these pairs in view: the count is no test of it.
"""

import argparse

from opdprobe.cli.names import resolve_model, resolve_prompts
from opdprobe.preflight import preflight
from opdprobe.preflight.verdict import HARMFUL, LIKELY, UNKNOWN, UNLIKELY

PAIRS = {
    ("sft-small", "rl-small"): 0.32,
    ("sft-small", "rl-large"): 0.29,
    ("post-small", "post-large-rl"): 0.33,
    ("base-small", "base-large-rl"): 0.32,
    ("base-small", "post-large-rl"): 0.26,
    ("base-small", "post-large"): 0.10,
    ("sft-small", "sft-large"): -0.01,
    ("post-small", "post-large"): 0.00,
    ("cold-start-small", "post-large-rl"): 0.00,
    ("sft-large", "rl-large"): -0.01,
    ("sft-large", "sft-extra-large"): -0.27,
    ("rl-small", "sft-small"): -0.40,
    ("rl-small", "sft-large"): -0.47,
}


def main(n_prompts: int) -> None:
    """Print a row a pair, and how many verdicts are right."""
    print("| student ← teacher | training | gain | share | verdict |\n|---|---|---|---|---|")
    counts = {"right": 0, "no answer": 0, "wrong": 0}
    prompts, grader = resolve_prompts("zoo:train", 256)
    for (student, teacher), training in PAIRS.items():
        models = resolve_model(f"zoo:{student}"), resolve_model(f"zoo:{teacher}")
        found = preflight(*models, prompts, grader=grader, n_prompts=n_prompts)
        word, gain, share = found.verdict.word, found.answers.gain, found.learnt
        truth = LIKELY if training > 0.05 else HARMFUL if training < -0.05 else UNLIKELY
        counts["right" if word == truth else "no answer" if word == UNKNOWN else "wrong"] += 1
        print(
            f"| {student} ← {teacher} | {training:+.2f} "
            f"| {gain.value:+.2f} [{gain.low:+.2f}, {gain.high:+.2f}] "
            f"| {share.value:.2f} [{share.low:.2f}, {share.high:.2f}] | {word} |",
            flush=True,
        )
    print(f"\n{', '.join(f'{n} {name}' for name, n in counts.items())}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Preflight on the pairs of docs/preflight.md.")
    parser.add_argument("--n-prompts", type=int, default=128)
    main(parser.parse_args().n_prompts)
