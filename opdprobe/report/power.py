"""How many prompts, rollouts and seeds a difference between two runs needs, from what was measured.

Needs neither models nor torch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from opdprobe.errors import ConfigError
from opdprobe.probes.bootstrap import LEVEL
from opdprobe.report.course import Course, samples_per_problem

ROLLOUTS = (1, 2, 4, 8, 16)
"""Rollouts a prompt for which a plan names the number of prompts."""
MIN_RUNS = 3
"""Fewest runs whose spread is taken for the spread between seeds."""
_MOST_SEEDS = 1000


@dataclass(frozen=True)
class Spread:
    """How a quantity varies within one run.

    Parameters
    ----------
    quantity
        Its name.
    value
        Its mean.
    prompts, rollouts
        Number of prompts (or problems), and mean number of rollouts (or samples) of each.
    between, within
        Standard deviation between prompts, and between the rollouts of one prompt. `within` is NaN
        where no prompt has two rollouts; `between` then holds both.
    """

    quantity: str
    value: float
    prompts: int
    rollouts: float
    between: float
    within: float

    def error(self, prompts: float, rollouts: float) -> float:
        """Standard error of the mean over some prompts with some rollouts each."""
        within = 0.0 if math.isnan(self.within) else self.within
        return math.sqrt((self.between**2 + within**2 / rollouts) / prompts)


@dataclass(frozen=True)
class Plan:
    """What a difference between two runs needs, or shows.

    Parameters
    ----------
    spread
        How the quantity varies in the first run.
    difference, power
        The difference to show, and the chance of showing it at a level of 5 %.
    smallest
        Smallest difference that two runs of this size show, each on prompts of its own.
    prompts
        Prompts that each run needs, by number of rollouts a prompt.
    seeds_spread
        Standard deviation between runs; NaN for fewer than three runs.
    seeds
        Runs that each of two settings needs; None if unknown.
    """

    spread: Spread
    difference: float
    power: float
    smallest: float
    prompts: dict[int, int] = field(default_factory=dict)
    seeds_spread: float = math.nan
    seeds: int | None = None


def plan(
    courses: Sequence[Course], *, quantity: str | None = None, difference: float, power: float = 0.8
) -> Plan:
    """Plan a comparison of two settings from runs of one of them.

    Parameters
    ----------
    courses
        One run; or several that differ in their seeds alone, three or more for the number of seeds.
    quantity
        ``"accuracy"`` of the last evaluation, or a key of `opdprobe.probes.quantities.QUANTITIES`,
        over the last recorded steps. Default: the accuracy, or what the run has of correct
        responses and overlap ratio.
    difference
        The difference to show, in the quantity's unit.
    power
        The chance of showing it.

    Returns
    -------
    Plan

    Raises
    ------
    ConfigError
        A run does not have the quantity, has fewer than two prompts, or a number is out of range.

    Notes
    -----
    Normal theory, two-sided at 5 %: 80 % need 2.8 standard errors of the difference. Prompts that
    two runs share need fewer; the table does not count on it.
    """
    if difference <= 0 or not 0.05 < power < 1:
        raise ConfigError(
            f"difference = {difference}, power = {power}; expected a difference above 0 and a "
            "power between 0.05 and 1."
        )
    from scipy.special import ndtri  # a fifth of what importing opdprobe takes

    name = quantity or _usual(courses[0])
    spreads = [spread(course, name) for course in courses]
    first = spreads[0]
    factor = float(ndtri((1 + LEVEL) / 2) + ndtri(power))
    numbers = ROLLOUTS[:1] if math.isnan(first.within) else ROLLOUTS
    apart, seeds = math.nan, None
    if len(spreads) >= MIN_RUNS:
        apart = float(np.std([one.value for one in spreads], ddof=1))
        seeds = _seeds(difference / apart, power) if apart > 0 else 2
    return Plan(
        spread=first,
        difference=difference,
        power=power,
        smallest=factor * math.sqrt(2) * first.error(first.prompts, first.rollouts),
        prompts={
            n: max(2, math.ceil(2 * (factor * first.error(1, n) / difference) ** 2))
            for n in numbers
        },
        seeds_spread=apart,
        seeds=seeds,
    )


def spread(course: Course, quantity: str) -> Spread:
    """Measure how a quantity varies between prompts and within them."""
    if quantity == "accuracy":
        if not course.scores:
            raise ConfigError(
                f"{course.label} has no evaluations; expected a run with benchmarks, or a quantity "
                "of its rollouts, such as correct."
            )
        return _of_scores(course.scores[-1], samples_per_problem(course.config) or 1)
    if not course.has(quantity):
        known = [name for name in course.sums.n if course.has(name)]
        raise ConfigError(
            f"{course.label} has no {quantity!r}; expected accuracy, or one of {', '.join(known)}."
        )
    rows = course.sums.rows(course.last)
    total, n = course.sums.total[quantity][rows], course.sums.n[quantity][rows]
    _, prompt = np.unique(course.sums.unit[rows][n > 0], return_inverse=True)
    return _of_rollouts(quantity, total[n > 0], n[n > 0], prompt)


def _usual(course: Course) -> str:
    if course.scores:
        return "accuracy"
    return "correct" if course.has("correct") else "overlap_ratio"


def _of_scores(scores: NDArray[np.float64], samples: int) -> Spread:
    """Take means of `samples` grades of 0 or 1 apart."""
    _check(len(scores), "problems")
    whole, value = scores.var(ddof=1), float(scores.mean())
    if samples == 1:
        return Spread("accuracy", value, len(scores), 1, math.sqrt(whole), math.nan)
    within = (scores * (1 - scores)).mean() * samples / (samples - 1)
    between = math.sqrt(max(whole - within / samples, 0))
    return Spread("accuracy", value, len(scores), samples, between, math.sqrt(within))


def _of_rollouts(
    quantity: str,
    total: NDArray[np.float64],
    n: NDArray[np.int64],
    prompt: NDArray[np.intp],
) -> Spread:
    """Estimate variance components of a mean over states, by rollout (unbalanced ANOVA)."""
    size = np.bincount(prompt)
    _check(size.size, "prompts")
    value = float(total.sum() / n.sum())
    # A rollout's weight in the mean is its number of states.
    moved = (total - value * n) / n.mean()
    mean = np.bincount(prompt, moved) / size
    between = (size * (mean - moved.mean()) ** 2).sum() / (size.size - 1)
    spare = len(moved) - size.size
    rollouts = float(size.mean())
    if spare == 0:
        return Spread(quantity, value, size.size, 1, math.sqrt(between), math.nan)
    within = ((moved - mean[prompt]) ** 2).sum() / spare
    usual = (len(moved) - (size**2).sum() / len(moved)) / (size.size - 1)
    apart = math.sqrt(max(between - within, 0) / usual)
    return Spread(quantity, value, size.size, rollouts, apart, math.sqrt(within))


def _check(n: int, what: str) -> None:
    if n < 2:
        raise ConfigError(f"{n} {what}; expected two or more, to see how much they differ.")


def _seeds(effect: float, power: float) -> int | None:
    """Return how many runs a setting needs, by the t-test of two samples; None beyond 1000."""
    from scipy.special import nctdtr, stdtrit

    for n in range(2, _MOST_SEEDS):
        limit = stdtrit(2 * n - 2, (1 + LEVEL) / 2)
        if 1 - nctdtr(2 * n - 2, effect * math.sqrt(n / 2), limit) >= power:
            return n
    return None
