"""Preflight's verdicts on the pairs whose training is known: the tables of docs/verdicts.md.

    python benchmarks/preflight_pairs.py             # about 5 minutes
    python benchmarks/preflight_pairs.py --n-prompts 64

The gains of training are those of docs/verdicts.md, over five seeds. A verdict is right if it says
*likely to work* above +0.05, *harmful* below -0.05 and *unlikely to help* between. A teacher is
ranked first rightly if training under it gains most, or within 0.05 of that. The rule was chosen
with these pairs in view: the counts are no test of it.
"""

import argparse
import math

import numpy as np
from scipy.stats import spearmanr

from opdprobe.cli.names import resolve_model, resolve_prompts
from opdprobe.preflight import Preflight, preflight, rank_teachers
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
    """Print the verdict of each pair, each student's ranking, and what foretells the gain."""
    print("| student ← teacher | training | gain | share | verdict |\n|---|---|---|---|---|")
    counts = {"right": 0, "no answer": 0, "wrong": 0}
    prompts, grader = resolve_prompts("zoo:train", 256)
    found: dict[tuple[str, str], Preflight] = {}
    rankings = []
    for student in dict.fromkeys(student for student, _ in PAIRS):
        teachers = {t: resolve_model(f"zoo:{t}") for s, t in PAIRS if s == student}
        model, settings = resolve_model(f"zoo:{student}"), {"n_prompts": n_prompts}
        if len(teachers) == 1:
            (teacher,) = teachers
            one = preflight(model, teachers[teacher], prompts, grader=grader, **settings)
            found[student, teacher] = one
        else:
            ranking = rank_teachers(model, teachers, prompts, grader=grader, **settings)
            found |= {
                (student, t): one for t, one in zip(ranking.teachers, ranking.found, strict=True)
            }
            rankings.append((student, ranking))
        for teacher in teachers:
            one, training = found[student, teacher], PAIRS[student, teacher]
            word, gain, share = one.verdict.word, one.answers.gain, one.learnt
            truth = LIKELY if training > 0.05 else HARMFUL if training < -0.05 else UNLIKELY
            counts["right" if word == truth else "no answer" if word == UNKNOWN else "wrong"] += 1
            print(
                f"| {student} ← {teacher} | {training:+.2f} "
                f"| {gain.value:+.2f} [{gain.low:+.2f}, {gain.high:+.2f}] "
                f"| {share.value:.2f} [{share.low:.2f}, {share.high:.2f}] | {word} |",
                flush=True,
            )
    print(f"\n{', '.join(f'{n} {name}' for name, n in counts.items())}\n")
    print("| student | ranking, with the gains of training | first is best | |\n|---|---|---|---|")
    for student, ranking in rankings:
        gains = [PAIRS[student, teacher] for teacher in ranking.teachers]
        order = ", ".join(
            f"{teacher} ({gain:+.2f})"
            for teacher, gain in zip(ranking.teachers, gains, strict=True)
        )
        right = "right" if gains[0] >= max(gains) - 0.05 else "wrong"
        print(f"| {student} | {order} | {ranking.best[0]:.2f} | {right} |")
    print("\n| number | rank correlation with the gain of training |\n|---|---|")
    for name, of in FORETELL.items():
        values = np.array([of(found[pair]) for pair in PAIRS])
        known = ~np.isnan(values)
        truth = np.array(list(PAIRS.values()))[known]
        print(f"| {name} | {spearmanr(values[known], truth).statistic:.2f} ({known.sum()} pairs) |")


FORETELL = {
    "gain of the refitted readout": lambda p: p.answers.gain.value,
    "share that the readout removes": lambda p: p.learnt.value,
    "accuracy gap": lambda p: p.answers.gap.value,
    "reverse KL": lambda p: p.states["reverse_kl"].value,
    "accuracy gap × reverse KL": lambda p: p.answers.gap.value * p.states["reverse_kl"].value,
    "overlap ratio": lambda p: p.states["overlap_ratio"].value,
    "entropy gap": lambda p: p.states["entropy_gap"].value,
    "AUROC within prompts": lambda p: p.answers.auroc_within.value,
    "teacher's continuation gain": lambda p: max(
        (gain.value for gain in (p.answers.continuation or {}).values()), default=math.nan
    ),
}
"""What might foretell the gain of training, by name."""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Preflight on the pairs of docs/verdicts.md.")
    parser.add_argument("--n-prompts", type=int, default=128)
    main(parser.parse_args().n_prompts)
