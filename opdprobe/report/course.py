"""How the paper's quantities move while one run, or each of two, trains.

`course` reads a run's store once and keeps the sum of every quantity by rollout. These sums are
enough for curves, for means over several steps, and for their intervals.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from opdprobe.errors import StoreError
from opdprobe.probes.bootstrap import Estimate
from opdprobe.probes.quantities import QUANTITIES, axis_label, scalar
from opdprobe.probes.rollout_sums import RolloutSums, rollout_sums
from opdprobe.probes.sampler import SamplerComparison, compare_sampler
from opdprobe.report.estimate import exact
from opdprobe.report.panel import Panel, Series
from opdprobe.report.tail import HeavyTail, reverse_kl_tail
from opdprobe.store import Run
from opdprobe.store.schema import MODELS

_REPORTERS = ("sampler", *MODELS)
_MOST_STATES = 262_144  # that log-probabilities of rollouts are compared at

# Number of recorded steps that each end of a run is averaged over.
EDGE = 5
RUN_ROLES = ("first_run", "second_run")


# Name and quantities of each panel, in reading order.
_PANELS = {
    "correct": ("correct",),
    "overlap_ratio": ("overlap_ratio",),
    "overlap_token_advantage": ("overlap_token_advantage",),
    "entropy_gap": ("entropy_gap",),
    "overlap_mass": ("student_overlap_mass", "teacher_overlap_mass"),
    "entropy": ("student_entropy", "teacher_entropy"),
    "reverse_kl": ("reverse_kl",),
    "loss": ("loss",),
    "grad_norm": ("grad_norm",),
    "extreme_advantage_gap": ("extreme_advantage_gap",),
    "completion_length": ("completion_length",),
    "finished": ("finished",),
    "stop_token_mass": ("student_stop_token_mass", "teacher_stop_token_mass"),
    "sampled_reward": ("sampled_reward",),
    "sampler_gap": ("sampler_gap",),
}


@dataclass(frozen=True)
class Course:
    """A run's quantities, step by step; made by `course`.

    Parameters
    ----------
    label
        Name of the run.
    config
        Its settings.
    sums
        Sums by rollout of each of `QUANTITIES` that the run has.
    metrics
        Logged scalars over ``step``.
    evaluated
        Steps of the evaluations.
    scores
        One array (problem,) per evaluation: the mean score of each problem of all benchmarks.
    reported
        How log-probabilities that the rollouts of the last steps brought differ from the recomputed
        ones, by who reported them: ``"sampler"``, ``"student"``, ``"teacher"``.
    tail
        What few states contribute to the reverse KL of the last steps, if that was recorded.
    """

    label: str
    config: dict[str, Any] = field(repr=False)
    sums: RolloutSums = field(repr=False)
    metrics: xr.Dataset = field(repr=False)
    evaluated: list[int] = field(default_factory=list)
    scores: list[NDArray[np.float64]] = field(default_factory=list, repr=False)
    reported: dict[str, SamplerComparison] = field(default_factory=dict, repr=False)
    tail: HeavyTail | None = field(default=None, repr=False)

    @property
    def steps(self) -> list[int]:
        """Recorded steps, in order."""
        return self.sums.steps.tolist()

    def has(self, name: str) -> bool:
        """Whether a quantity has a value anywhere in the run."""
        return name in self.sums.n and bool(self.sums.n[name].any())

    @property
    def width(self) -> int:
        """Number of recorded steps that form an end of the run: 5, or a third of a short run."""
        return min(EDGE, max(1, len(self.steps) // 3))

    @property
    def first(self) -> slice:
        """Positions of the run's first steps in `steps`."""
        return slice(self.width)

    @property
    def last(self) -> slice:
        """Positions of the run's last steps in `steps`."""
        return slice(len(self.steps) - self.width, len(self.steps))

    def mean(self, name: str, where: slice) -> Estimate:
        """Estimate a quantity's mean over all states (or rollouts) of some steps.

        Parameters
        ----------
        name
            Key of `QUANTITIES`.
        where
            Positions in `steps`.

        Returns
        -------
        Estimate
            NaN if no state has a value. Units of the bootstrap are prompts.
        """
        return self.sums.mean(name, where) if self.has(name) else exact(np.nan)

    def values(self, name: str) -> tuple[list[int], NDArray[np.float64]]:
        """Steps and means of a quantity, or of a logged scalar."""
        if name in self.sums.n:
            return self.steps, self.sums.means(name)
        if name not in self.metrics:
            return [], np.zeros(0)
        known = self.metrics[name].dropna("step")
        return known["step"].values.tolist(), known.values

    def extreme(self, name: str, where: slice, sign: int) -> tuple[int, int]:
        """Find the rollout in which a quantity is highest (`sign` 1) or lowest (-1).

        Returns
        -------
        step, rollout
            Only rollouts of at least the median length count: a mean over few tokens varies widely.
        """
        best, found = -np.inf, (self.steps[where][-1], 0)
        if not self.has(name):
            return found
        for place in range(*where.indices(len(self.steps))):
            rows = self.sums.rows(slice(place, place + 1))
            n = self.sums.n[name][rows]
            total = self.sums.total[name][rows]
            mean = np.where(n >= max(np.median(n), 1), sign * total, -np.inf) / np.maximum(n, 1)
            if mean.size and mean.max() > best:
                best, found = mean.max(), (self.steps[place], int(mean.argmax()))
        return found


def course(run: Run, *, label: str | None = None) -> Course:
    """Read a run once and sum its quantities by step and rollout.

    Parameters
    ----------
    run
        A recorded run; memory holds one step at a time.
    label
        Name of the run. Default: the name of its directory.

    Returns
    -------
    Course
        Its quantities, metrics and evaluations.

    Raises
    ------
    StoreError
        No step was recorded.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> from opdprobe.testing import synthetic_run
    >>> with TemporaryDirectory() as folder:
    ...     found = course(synthetic_run(folder, steps=[0, 10], agreement=1.0), label="same")
    >>> found.steps, found.mean("overlap_ratio", found.last).value
    ([0, 10], 1.0)
    """
    if not run.steps:
        raise StoreError(f"{run.path} has no recorded step; record some (record_every).")
    evaluations = {name: run.evaluation(name)["score"] for name in run.benchmarks}
    evaluated, scores = join_scores(
        {name: dict(zip(e["step"].values.tolist(), e.values, strict=True))
         for name, e in evaluations.items()}
    )  # fmt: skip
    found = Course(
        label=label or run.path.resolve().name,
        config=run.config,
        sums=sum_quantities(run),
        metrics=run.metrics,
        evaluated=evaluated,
        scores=scores,
    )
    last = found.steps[found.last]
    return replace(found, reported=_compare_reported(run, last), tail=reverse_kl_tail(run, last))


def join_scores(
    scores: Mapping[str, Mapping[int, NDArray[np.float64]]],
) -> tuple[list[int], list[NDArray[np.float64]]]:
    """Join the scores of all benchmarks, by step, at the steps that ran them all.

    Accuracy is the mean over the problems of all benchmarks, so it needs all of them.
    """
    common = sorted(set.intersection(*map(set, scores.values()))) if scores else []
    return common, [np.concatenate([of[step] for of in scores.values()]) for step in common]


def planned_steps(config: dict[str, Any]) -> int | None:
    """Return the number of steps that a run's settings plan, or None if they do not say."""
    return _count(config, "max_steps")


def samples_per_problem(config: dict[str, Any]) -> int | None:
    """Return how many samples of a problem an evaluation averages, or None if nothing says so."""
    return _count(config, "eval_n")


def _count(config: dict[str, Any], name: str) -> int | None:
    count = config.get(name)
    known = isinstance(count, int) and not isinstance(count, bool) and 0 < count < 2**31
    return count if known else None


def sum_quantities(run: Run, steps: Collection[int] | None = None) -> RolloutSums:
    """Sum the per-state quantities by rollout, and add the per-rollout ones.

    Parameters
    ----------
    run
        A recorded run.
    steps
        Steps to read, at least one and of one form. Default: all.
    """
    first = run.load(min(steps) if steps else run.steps[0])
    known = {name: q for name, q in QUANTITIES.items() if q.needs in first}
    sums = rollout_sums([run], {name: name for name, q in known.items() if q.per == "state"}, steps)
    if of_rollouts := {name: q for name, q in known.items() if q.per == "rollout"}:
        tables = run.rollouts(steps)[[q.needs for q in of_rollouts.values()]].compute()
        for name, quantity in of_rollouts.items():
            values = quantity.compute(tables).values.astype(np.float64)
            sums.n[name] = (~np.isnan(values)).astype(np.int64)
            sums.total[name] = np.nan_to_num(values, nan=0.0)
    return sums


def line(found: Course, name: str, *, role: str, label: str) -> Series:
    """Return the curve of a quantity, or of a logged scalar, by step.

    Parameters
    ----------
    found
        A run's course.
    name
        Key of `QUANTITIES`, drawn with the 95 % interval of `opdprobe.curve`; or a metric, drawn
        without an interval.
    role, label
        As in `opdprobe.report.panel.Series`.
    """
    x, y = found.values(name)
    low, high = found.sums.band(name) if name in found.sums.n else np.full((2, len(x)), np.nan)
    return Series(role, label, x=x, y=y.tolist(), low=low.tolist(), high=high.tolist())


def course_panels(courses: Sequence[Course]) -> list[Panel]:
    """Return panels of all quantities of one run, or of two in the same axes.

    Parameters
    ----------
    courses
        One run, whose student and teacher share a panel for quantities of both; or two runs, with
        one panel per quantity and model.

    Returns
    -------
    list of Panel
        Panels of lines; without the quantities that no run has.
    """
    roles = RUN_ROLES[: len(courses)]
    panels = []
    for name, quantities in _PANELS.items():
        if len(courses) == 1 and len(quantities) > 1:
            known = {
                quantity: line(courses[0], quantity, role=model, label=model)
                for quantity, model in zip(quantities, MODELS, strict=True)
                if courses[0].has(quantity)
            }
            if known:
                first, *more = (scalar(quantity).title for quantity in known)
                # A single line has no legend that names its model.
                title = first.removeprefix("Student ").capitalize() if more else first
                panels.append(_panel(name, title, quantities[0], list(known.values())))
            continue
        for quantity in quantities:
            lines = [
                line(one, quantity, role=role, label=one.label)
                for one, role in zip(courses, roles, strict=True)
                if np.isfinite(one.values(quantity)[1]).any()
            ]
            if lines:
                panels.append(_panel(quantity, scalar(quantity).title, quantity, lines))
    return panels


def _panel(name: str, title: str, quantity: str, lines: list[Series]) -> Panel:
    label = axis_label(title[0].lower() + title[1:], scalar(quantity).units)
    return Panel(name, title, "training step", label, "line", lines)


def _compare_reported(run: Run, steps: Sequence[int]) -> dict[str, SamplerComparison]:
    """Compare what the rollouts of some steps brought with the recomputed log-probabilities.

    Parameters
    ----------
    run
        A recorded run.
    steps
        Some of its steps, read one at a time up to 262,144 states.

    Returns
    -------
    dict
        By who reported: ``"sampler"``, ``"student"``, ``"teacher"``; only those who did.
    """
    parts: dict[str, list[tuple[np.ndarray, ...]]] = {}
    n_states = n_rollouts = 0
    for step in steps:
        if n_states > _MOST_STATES:
            break
        ds = run.load(step)
        if not {"sampler_logp", "reported_logp"} & set(ds.variables):
            break  # all steps of a run have one form
        n_states += ds.sizes["state"]
        rollout = ds["rollout"].values + n_rollouts
        n_rollouts = int(rollout.max(initial=n_rollouts)) + 1
        for who in _REPORTERS:
            m = MODELS.index(who) if who in MODELS else 0  # the sampler is to be the student
            name = "reported_logp" if who in MODELS else "sampler_logp"
            if name not in ds:
                continue
            reported = ds[name].values.reshape(len(rollout), -1)[:, m]
            lists = ds["logp"].values[:, m, m] if "logp" in ds else np.zeros((len(reported), 0))
            columns = ds["sampled_logp"].values[:, m], reported, rollout, lists
            parts.setdefault(who, []).append(columns)
    found = {}
    for who, some in parts.items():
        logp, reported, rollout, lists = (
            np.concatenate(column) for column in zip(*some, strict=True)
        )
        one = compare_sampler(logp, reported, rollout, lists if lists.shape[1] else None)
        if one.n:
            found[who] = one
    return found
