"""The line from which preflight states an expected gain, and how well it does on pairs left out.

    python benchmarks/expected_gain.py out/unseen   # with the pairs of benchmarks/unseen_pairs.py
    python benchmarks/expected_gain.py              # the testbed's thirteen pairs alone

The first prints the constants of `opdprobe.preflight.expected.FITS`. Both print scores of
predictions for the pairs of each lineage (of the testbed: of each student) from those of the
others: their mean squared error, the share inside the 80 % interval, and the Brier score of
*helps*, *neither*, *harms*; beside those of the teacher's accuracy minus the student's in the
readout's place, and of the base rates.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from preflight_pairs import PAIRS
from unseen_pairs import NUM_GENERATIONS, done, predictions_of
from unseen_table import NUMBERS, OUTCOMES, base_rates, brier, outcome

from opdprobe.preflight.expected import Expected, fit_line, predicted
from opdprobe.testing.testbed.members import manifest

Line = dict[str, Any]

READOUT = {
    ("sft-small", "rl-small"): ((0.26, 0.27), 0.24),
    ("sft-small", "rl-large"): ((0.25, 0.27), 0.21),
    ("post-small", "post-large-rl"): ((0.28, 0.26), 0.20),
    ("base-small", "base-large-rl"): ((0.29, 0.31), 0.29),
    ("base-small", "post-large-rl"): ((0.15, 0.23), 0.25),
    ("base-small", "post-large"): ((-0.04, 0.02), -0.07),
    ("sft-small", "sft-large"): ((0.01, 0.05), 0.00),
    ("post-small", "post-large"): ((0.07, -0.01), 0.00),
    ("cold-start-small", "post-large-rl"): ((-0.01, -0.04), -0.05),
    ("sft-large", "rl-large"): ((0.02, 0.03), -0.01),
    ("sft-large", "sft-extra-large"): ((0.00, 0.03), 0.00),
    ("rl-small", "sft-small"): ((-0.16, -0.15), -0.12),
    ("rl-small", "sft-large"): ((-0.16, -0.15), -0.13),
}
"""Gains of the refitted readout: in two draws of 128 prompts × 4 (the table of docs/verdicts.md),
and in one of 64 × 4 (`preflight_pairs.py --n-prompts 64`)."""

SIZES = (512, 256)
"""Rollouts of each of these."""


def known_pairs(rollouts: int) -> list[Line]:
    """Return the known pairs: gain of training, the student as lineage, what was measured."""
    size = SIZES.index(rollouts)
    accuracy = {name: entry["accuracy"] for name, entry in manifest().items()}
    return [
        {
            "lineage": student,
            "gain": training,
            "readout": float(np.mean(READOUT[student, teacher][size])),
            "gap": accuracy[teacher] - accuracy[student],
        }
        for (student, teacher), training in PAIRS.items()
    ]


def trained_pairs(folder: Path, rollouts: int) -> list[Line]:
    """Return the pairs of fresh zoos whose readout's gain is known, in the same form."""
    predicted = done(predictions_of(folder, rollouts // NUM_GENERATIONS))
    trained = done(folder / "gains.jsonl")
    found = [line | trained[name] for name, line in predicted.items() if name in trained]
    lines = [
        {
            "lineage": line["lineage"],
            "gain": line["gain"],
            "readout": NUMBERS["gain of the refitted readout"](line),
            "gap": NUMBERS["accuracy gap"](line),
        }
        for line in found
    ]
    return [line for line in lines if not np.isnan(line["readout"])]


def left_out(lines: Sequence[Line], number: str) -> list[Expected]:
    """Predict each pair from the pairs of all other students."""
    found = []
    for line in lines:
        others = [other for other in lines if other["lineage"] != line["lineage"]]
        fit = fit_line([other[number] for other in others], [other["gain"] for other in others])
        found.append(predicted(fit, line[number]))
    return found


def main(folder: Path | None) -> None:
    """Print the fit and the scores of each size."""
    for rollouts in SIZES:
        lines = known_pairs(rollouts)
        if folder is not None:
            lines += trained_pairs(folder, rollouts)
        fit = fit_line([one["readout"] for one in lines], [one["gain"] for one in lines])
        print(f"\n{rollouts}: {fit}")
        scores(lines)


def scores(lines: Sequence[Line]) -> None:
    """Print how well pairs that are left out are predicted."""
    gains = np.array([line["gain"] for line in lines])
    came = [outcome(gain) for gain in gains]
    print("\n| predicted from | squared error | inside | Brier score |\n|---|---|---|---|")
    for name in ("readout", "gap"):
        stated = left_out(lines, name)
        error = np.mean([(one.value - gain) ** 2 for one, gain in zip(stated, gains, strict=True)])
        inside = np.mean(
            [one.low <= gain <= one.high for one, gain in zip(stated, gains, strict=True)]
        )
        chances = [[getattr(one, o) for o in OUTCOMES] for one in stated]
        print(f"| {name} | {error:.4f} | {inside:.2f} | {brier(chances, came):.3f} |")
    others = [[o["gain"] for o in lines if o["lineage"] != line["lineage"]] for line in lines]
    means = np.array([np.mean(some) for some in others])
    rates = [base_rates(lines, line["lineage"]) for line in lines]
    print(f"| base rates | {np.mean((means - gains) ** 2):.4f} | | {brier(rates, came):.3f} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", help="of benchmarks/unseen_pairs.py")
    main(parser.parse_args().folder)
