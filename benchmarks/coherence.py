"""Do the gradients of a failing teacher cancel? The table of docs/diagnostics.md.

    python benchmarks/coherence.py                  # about 20 minutes
    python benchmarks/coherence.py --n-prompts 16
    python benchmarks/coherence.py --unseen out/unseen   # pairs of unseen_pairs.py that gain

Measures `opdprobe.coherence` before training, for the pairs of the testbed whose training is known.
The paper's §6.2 supposes that a teacher fails although its signals are large, because they cancel.
If so, less of the tokens' gradients survives addition, against what chance leaves, and the cosine
between prompts is lower where training moves the accuracy by less than 0.05 than where it moves it
by more, up or down. Beside it: is the gradient of a failing teacher simply small?

With ``--unseen``, the statement that the notebook made of these pairs is tested: where the interval
of the cosine between prompts holds 0, training does not raise the accuracy by more than 0.05. Only
pairs that gain more can contradict it, so only these are measured.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from preflight_pairs import PAIRS
from scipy.stats import spearmanr
from unseen_pairs import done

import opdprobe
from opdprobe import OPDConfig
from opdprobe.cli.names import resolve_model, resolve_prompts
from opdprobe.train.coherence import Coherence

MOVES = 0.05


def number(value: tuple[float, float, float]) -> str:
    """Show a mean with its interval."""
    return f"{value[0]:.3f} [{value[1]:.3f}, {value[2]:.3f}]"


def main(n_prompts: int, unseen: Path | None) -> None:
    """Print a row per pair; for the testbed's, how the numbers order all of them, too."""
    if unseen is None:
        found = measured(PAIRS, "zoo:", n_prompts)
        print_order(found)
        return
    lines = done(unseen / "predictions.jsonl"), done(unseen / "gains.jsonl")
    gains = {
        (lines[0][name]["student"], lines[0][name]["teacher"]): line["gain"]
        for name, line in lines[1].items()
        if line["gain"] > MOVES
    }
    found = measured(gains, f"{unseen / 'zoo'}/", n_prompts)
    held = sum(one.cosine_between[1] <= 0 <= one.cosine_between[2] for one in found.values())
    print(f"\nOf {len(found)} pairs that gain more than {MOVES}, {held} have an interval with 0.")


def measured(
    pairs: Mapping[tuple[str, str], float], place: str, n_prompts: int
) -> dict[tuple[str, str], Coherence]:
    """Measure pairs of models, whose names are completed by `place`, and print a row for each."""
    prompts, _ = resolve_prompts("zoo:train", n_prompts)
    config = OPDConfig(num_generations=2, max_completion_length=64)
    print(
        "| student ← teacher | training | gradient of a token | survives | by chance | ratio | "
        "cosine within a prompt | between prompts | directions |\n|" + "---|" * 9
    )
    found: dict[tuple[str, str], Coherence] = {}
    for (student, teacher), gain in pairs.items():
        one = opdprobe.coherence(
            resolve_model(f"{place}{student}"),
            resolve_model(f"{place}{teacher}"),
            prompts,
            config=config,
        )
        found[student, teacher] = one
        left, chance = one.survives["all"], one.by_chance["all"]
        print(
            f"| {student} ← {teacher} | {gain:+.2f} | {one.token_norm:.3f} | {left:.3f} | "
            f"{chance:.3f} | {left / chance:.1f} | {number(one.cosine_within)} | "
            f"{number(one.cosine_between)} | {one.effective_directions:.1f} of {one.n_prompts} |",
            flush=True,
        )
    return found


def print_order(found: Mapping[tuple[str, str], Coherence]) -> None:
    """Print how each number orders the testbed's pairs."""
    moved = np.abs(list(PAIRS.values()))
    print("\n| number | rank correlation with the size of the change | moves | does not |")
    print("|---|---|---|---|")
    numbers = {
        "gradient of a token": lambda c: c.token_norm,
        "what survives, over chance": lambda c: c.survives["all"] / c.by_chance["all"],
        "cosine within a prompt": lambda c: c.cosine_within[0],
        "cosine between prompts": lambda c: c.cosine_between[0],
    }
    for name, of in numbers.items():
        values = np.array([of(one) for one in found.values()])
        means = values[moved > MOVES].mean(), values[moved <= MOVES].mean()
        print(f"| {name} | {spearmanr(values, moved)[0]:+.2f} | {means[0]:.3f} | {means[1]:.3f} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--n-prompts", type=int, default=64)
    parser.add_argument("--unseen", type=Path, help="directory of benchmarks/unseen_pairs.py")
    arguments = parser.parse_args()
    main(arguments.n_prompts, arguments.unseen)
