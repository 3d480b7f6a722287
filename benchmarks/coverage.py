"""How often do the 95 % intervals hold the truth? The table of docs/statistics.md.

Each row draws prompts (or problems) again and again from a population whose mean is known,
computes the library's own interval, and counts. Populations are distributions, and recorded probes
of the built-in models: 600 prompts × 4 rollouts each, of which a row draws a few.

    python benchmarks/coverage.py            # the whole table, about an hour
    python benchmarks/coverage.py --smoke    # a few draws of each row, no models
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from opdprobe import open_run, reward_auroc
from opdprobe.cli.parser import main
from opdprobe.probes.bootstrap import (
    MIN_UNITS,
    Estimate,
    ratio,
    resample,
    resample_statistic,
)
from opdprobe.probes.quantities import fewest_prompts
from opdprobe.probes.rollout_sums import RolloutSums, rollout_sums

Interval = tuple[float, float]
Trial = Callable[[np.random.Generator], tuple[Interval, float]]
"""Draws a sample, and returns its interval and the truth."""

STATES = (
    "overlap_ratio",
    "overlap_token_advantage",
    "entropy_gap",
    "student_overlap_mass",
    "reverse_kl",
    "extreme_advantage_gap",
)
# On the first two the limits of `opdprobe.probes.bootstrap` were chosen, that of the AUROC on the
# first four; on the others nothing was.
PAIRS = {
    "success": ("sft-small", "rl-small"),
    "failure": ("sft-small", "sft-large"),
    "other lineage": ("base-small", "post-large-rl"),
    "larger": ("sft-large", "sft-extra-large"),
    "second family": ("post-small", "post-large-rl"),
    "accurate": ("rl-large", "sft-extra-large"),
}


def keys_of(rng: np.random.Generator, n: int) -> NDArray[np.uint64]:
    """Return keys that no trial before had."""
    return rng.integers(2**63, size=n).astype(np.uint64)


def invented(n: int, rollouts: int, draw: Callable[..., NDArray], truth: float) -> Trial:
    """Mean over states: prompts differ, their rollouts differ, lengths are geometric."""

    def trial(rng: np.random.Generator) -> tuple[Interval, float]:
        length = rng.geometric(1 / 12, (n, rollouts)).clip(1, 60)
        values = draw(rng, (n, rollouts))
        found = resample(
            (values * length).sum(1), length.sum(1), keys=keys_of(rng, n), least=MIN_UNITS
        )
        return found.interval(), truth

    return trial


def shared(rng: np.random.Generator, shape: tuple[int, int]) -> NDArray:
    """Standard normal numbers; rollouts of a prompt have a correlation of 1/2."""
    return (rng.normal(size=(shape[0], 1)) + rng.normal(size=shape)) / 2**0.5


def accuracies(rng: np.random.Generator, n: int, p: float, samples: int) -> NDArray:
    """Scores of problems of very different difficulty, with mean p."""
    difficulty = rng.beta(
        0.5 * p / (1 - p) if p < 0.5 else 0.5, 0.5 if p < 0.5 else 0.5 * (1 - p) / p, n
    )
    return rng.binomial(samples, difficulty) / samples


def accuracy(n: int, p: float, samples: int) -> Trial:
    """Accuracy over problems."""
    return lambda rng: (
        resample(accuracies(rng, n, p, samples), keys=keys_of(rng, n), bounds=(0, 1)).interval(),
        p,
    )


def accuracy_change(n: int, changed: float, samples: int) -> Trial:
    """Difference of two accuracies over the same problems, of which a share got better."""

    def trial(rng: np.random.Generator) -> tuple[Interval, float]:
        before = rng.beta(0.5, 0.5, n)
        better = rng.random(n) < changed
        after = np.where(better, 1 - (1 - before) / 2, before)
        difference = (rng.binomial(samples, after) - rng.binomial(samples, before)) / samples
        found = resample(difference, keys=keys_of(rng, n), bounds=(-1, 1))
        return found.interval(), changed / 4

    return trial


class Population:
    """A recorded step: sums by prompt."""

    def __init__(self, sums: RolloutSums, reward: NDArray, correct: NDArray, prompt: NDArray):
        self.sums = {
            name: (np.zeros(prompt.max() + 1), np.zeros(prompt.max() + 1)) for name in sums.total
        }
        for name, (total, n) in self.sums.items():
            np.add.at(total, prompt, sums.total[name])
            np.add.at(n, prompt, sums.n[name])
        self.reward, self.correct, self.prompt = reward, correct, prompt

    def truth(self, name: str) -> float:
        """The mean over all prompts."""
        total, n = self.sums[name]
        return total.sum() / n.sum()

    def mean(
        self, name: str, which: NDArray, keys: NDArray[np.uint64], least: int | None = None
    ) -> Estimate:
        """The library's estimate from some prompts."""
        total, n = self.sums[name]
        return resample(total[which], n[which], keys=keys, least=least or fewest_prompts(name))


def recorded(folder: Path) -> dict[str, Population]:
    """Probe both pairs, or open what a run before left in the folder."""
    found = {}
    for name, (student, teacher) in PAIRS.items():
        path = folder / name
        if not path.exists():
            probe = (
                f"probe zoo:{student} --teacher zoo:{teacher} --prompts zoo:train --limit 600 "
                "--num-generations 4 --max-completion-length 160 --run-dir"
            )
            main([*probe.split(), str(path)])
        run = open_run(path)
        step = run.load(run.steps[0])
        found[name] = Population(
            rollout_sums(
                [run],
                {one: one for one in STATES}
                | {"student_entropy": "student_entropy", "teacher_entropy": "teacher_entropy"},
            ),
            step.opd.sequence_mean_reward().values,
            step["correct"].values.astype(float),
            np.unique(step["prompt_id"].values, return_inverse=True)[1],
        )
    return found


def one_mean(of: Population, name: str, n: int, least: int | None = None) -> Trial:
    """A point of a curve, or a mean over some steps."""

    def trial(rng: np.random.Generator) -> tuple[Interval, float]:
        which = rng.integers(len(of.sums[name][0]), size=n)
        return of.mean(name, which, keys_of(rng, n), least).interval(), of.truth(name)

    return trial


def change(of: Population, to: Population, name: str, n: int, *, paired: bool) -> Trial:
    """The difference of two means, over the same prompts or over others."""

    def trial(rng: np.random.Generator) -> tuple[Interval, float]:
        size = len(of.sums[name][0])
        first, keys = rng.integers(size, size=n), keys_of(rng, n)
        last, other = (first, keys) if paired else (rng.integers(size, size=n), keys_of(rng, n))
        found = to.mean(name, last, other).map(of.mean(name, first, keys), by=np.subtract)
        return found.interval(), to.truth(name) - of.truth(name)

    return trial


def quotient(of: Population, n: int) -> Trial:
    """The ratio of the two models' entropies at the same states."""

    def trial(rng: np.random.Generator) -> tuple[Interval, float]:
        which, keys = rng.integers(len(of.sums["reverse_kl"][0]), size=n), keys_of(rng, n)
        student, teacher = (of.mean(f"{m}_entropy", which, keys) for m in ("student", "teacher"))
        truth = of.truth("student_entropy") / of.truth("teacher_entropy")
        return student.map(teacher, by=ratio).interval(), truth

    return trial


def auroc(of: Population, n: int) -> Trial:
    """The AUROC of the reward for correct rollouts."""
    rows = [np.flatnonzero(of.prompt == i) for i in range(of.prompt.max() + 1)]
    truth = reward_auroc(of.reward, of.correct)

    def trial(rng: np.random.Generator) -> tuple[Interval, float]:
        drawn = [rows[i] for i in rng.integers(len(rows), size=n)]
        every = np.concatenate(drawn)
        unit = np.repeat(np.arange(n), [len(one) for one in drawn])
        reward, correct = of.reward[every], of.correct[every]
        found = resample_statistic(lambda r: reward_auroc(reward[r], correct[r]), unit, n_boot=200)
        return found.interval(), truth

    return trial


def distributions() -> dict[str, Trial]:
    """Rows that need no models."""
    found: dict[str, Trial] = {}
    for n in (16, 32, 64, 256):
        for rollouts in (1, 4, 16):
            found[f"normal, {n} prompts × {rollouts}"] = invented(n, rollouts, shared, 0.0)
    for sigma, name in ((1.0, "lognormal, σ = 1"), (1.5, "lognormal, σ = 1.5")):
        for n in (16, 32, 64, 256):
            found[f"{name}, {n} prompts × 4"] = invented(
                n,
                4,
                lambda rng, shape, s=sigma: np.exp(s * shared(rng, shape)),
                np.exp(sigma**2 / 2),
            )
    for n in (16, 30, 240):
        for p in (0.02, 0.3, 0.9):
            for samples in (1, 4):
                found[f"accuracy {p}, {n} problems, avg@{samples}"] = accuracy(n, p, samples)
        for changed in (0.0, 0.05, 0.5):
            found[f"accuracy change, {changed:.0%} of {n} problems, avg@4"] = accuracy_change(
                n, changed, 4
            )
    return found


def measured(folder: Path) -> dict[str, Trial]:
    """Rows drawn from the recorded probes."""
    found: dict[str, Trial] = {}
    populations = recorded(folder)
    for pair, of in populations.items():
        for name in STATES:
            for n in (fewest_prompts(name), 64, 128):
                found[f"{pair}: {name}, {n} prompts × 4"] = one_mean(of, name, n)
        for name in ("reverse_kl", "student_overlap_mass"):
            for n in (16, 32):
                found[f"{pair}: {name}, {n} prompts × 4, were an interval given"] = one_mean(
                    of, name, n, least=n
                )
        for n in (16, 64):
            found[f"{pair}: entropy ratio, {n} prompts × 4"] = quotient(of, n)
            found[f"{pair}: AUROC, {n} prompts × 4"] = auroc(of, n)
        for name in ("overlap_ratio", "reverse_kl"):
            n = fewest_prompts(name)
            found[f"{pair}: no change of {name} (A/A), {n} + {n} prompts"] = change(
                of, of, name, n, paired=False
            )
    of, to = populations["success"], populations["failure"]  # one student, the same prompts
    for name in ("overlap_ratio", "reverse_kl"):
        n = fewest_prompts(name)
        found[f"change of {name}, same {n} prompts"] = change(of, to, name, n, paired=True)
    return found


def table(trials: dict[str, Trial], n_trials: int) -> None:
    """Print each row's coverage, and how often there was no interval."""
    print("| interval | coverage | below | above | none given |\n|---|---|---|---|---|")
    for row, (name, trial) in enumerate(trials.items()):
        rng = np.random.default_rng([row, 0])
        found = [trial(rng) for _ in range(n_trials)]
        ends = np.array([interval for interval, _ in found])
        truth = np.array([value for _, value in found])
        given = ~np.isnan(ends).any(axis=1)
        low, high = ends[given].T
        below, above = (np.mean(side) for side in (truth[given] < low, truth[given] > high))
        inside = 1 - below - above
        print(
            f"| {name} | {inside:.3f} | {below:.3f} | {above:.3f} | {1 - given.mean():.3f} |",
            flush=True,
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--runs", type=Path, help="where probes are kept for the next time")
    args = parser.parse_args()
    if args.smoke:
        table(distributions(), 5)
    else:
        table(distributions(), args.trials)
        with TemporaryDirectory() as folder:
            table(measured(args.runs or Path(folder)), args.trials)
