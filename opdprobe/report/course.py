"""One run by itself, or beside another: how do the paper's quantities move while it trains?

`course` reads a run's store once and keeps, of every quantity, a sum a rollout and step: enough for
curves, for means over several steps, and for their intervals.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import NDArray

import opdprobe.probes.accessor  # noqa: F401  # registers ds.opd
from opdprobe.errors import StoreError
from opdprobe.report.estimate import LEVEL, N_BOOT, Estimate, ratio, resample
from opdprobe.report.panel import Panel, Series, axis_label
from opdprobe.store import Run
from opdprobe.store.schema import MODELS

# Ends of a run are averaged over this many recorded steps, or 1 % of them smooths nothing.
EDGE = 5
RUN_ROLES = ("first_run", "second_run")


class Quantity(NamedTuple):
    """What is followed through a run.

    Attributes
    ----------
    title : str
        What it is called.
    units : str
        ``"nats"``, ``"tokens"``, or ``"1"`` for everything without a unit.
    needs : str
        The step's variable without which there is no such number.
    compute : callable
        From a step to one value a state, or one a rollout.
    """

    title: str
    units: str
    needs: str
    compute: Callable[[xr.Dataset], xr.DataArray]


QUANTITIES = {
    "overlap_ratio": Quantity("Overlap ratio", "1", "match", lambda ds: ds.opd.overlap_ratio()),
    "overlap_token_advantage": Quantity(
        "Overlap-token advantage", "nats", "logp", lambda ds: ds.opd.overlap_token_advantage()
    ),
    "entropy_gap": Quantity("Entropy gap", "nats", "entropy", lambda ds: ds.opd.entropy_gap()),
    "student_overlap_mass": Quantity(
        "Student mass on the overlap", "1", "logp", lambda ds: ds.opd.overlap_mass("student")
    ),
    "teacher_overlap_mass": Quantity(
        "Teacher mass on the overlap", "1", "logp", lambda ds: ds.opd.overlap_mass("teacher")
    ),
    "student_entropy": Quantity(
        "Student entropy", "nats", "entropy", lambda ds: ds.opd.entropy("student")
    ),
    "teacher_entropy": Quantity(
        "Teacher entropy", "nats", "entropy", lambda ds: ds.opd.entropy("teacher")
    ),
    "reverse_kl": Quantity("Reverse KL", "nats", "reverse_kl", lambda ds: ds.opd.reverse_kl()),
    "extreme_advantage_gap": Quantity(
        "Extreme-advantage gap", "1", "logp", lambda ds: ds.opd.extreme_advantage_gap()
    ),
    "completion_length": Quantity("Response length", "tokens", "length", lambda ds: ds["length"]),
    "finished": Quantity("Responses that end", "1", "finished", lambda ds: ds["finished"]),
    "correct": Quantity("Correct rollouts", "1", "correct", lambda ds: ds["correct"]),
}
LOGGED = {"loss": ("Loss", "nats"), "grad_norm": ("Gradient norm", "1")}
# Name and quantities of each panel, in the order of reading.
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
}


@dataclass(frozen=True)
class Course:
    """What a run's quantities did, step by step; made by `course`.

    Parameters
    ----------
    label
        Name of the run.
    config
        Its settings.
    steps
        Recorded steps, in order.
    sums, counts
        One array (rollout, quantity) a step: the sum of each of `QUANTITIES` over a rollout's
        states, and how many of them have a value; 0 where the run lacks what it needs.
    metrics
        Logged scalars over ``step``.
    evaluated
        Steps of the evaluations.
    scores
        One array (problem,) an evaluation: the mean score of each problem, of all benchmarks.
    """

    label: str
    config: dict[str, Any] = field(repr=False)
    steps: list[int]
    sums: list[NDArray[np.float64]] = field(repr=False)
    counts: list[NDArray[np.float64]] = field(repr=False)
    metrics: xr.Dataset = field(repr=False)
    evaluated: list[int] = field(default_factory=list)
    scores: list[NDArray[np.float64]] = field(default_factory=list, repr=False)

    def has(self, name: str) -> bool:
        """Whether a quantity has a value anywhere in the run."""
        column = list(QUANTITIES).index(name)
        return any(bool(counts[:, column].any()) for counts in self.counts)

    @property
    def width(self) -> int:
        """Recorded steps that count as an end of the run: 5, or a third of a short one."""
        return min(EDGE, max(1, len(self.steps) // 3))

    @property
    def first(self) -> slice:
        """Places of the run's first steps in `steps`."""
        return slice(self.width)

    @property
    def last(self) -> slice:
        """Places of its last steps."""
        return slice(len(self.steps) - self.width, len(self.steps))

    def mean(self, name: str, where: slice) -> Estimate:
        """Estimate a quantity's mean over all states (or rollouts) of some steps.

        Parameters
        ----------
        name
            Key of `QUANTITIES`.
        where
            Places in `steps`.

        Returns
        -------
        Estimate
            NaN where nothing has a value. Units of the bootstrap are rollouts.
        """
        column = list(QUANTITIES).index(name)
        sums, counts = (
            np.concatenate([step[:, column] for step in some[where]])
            for some in (self.sums, self.counts)
        )
        return resample(sums, counts)

    def values(self, name: str) -> tuple[list[int], NDArray[np.float64]]:
        """Steps and means of a quantity, or of a logged scalar."""
        if name in QUANTITIES:
            column = list(QUANTITIES).index(name)
            sums, counts = (
                np.array([step[:, column].sum() for step in some])
                for some in (self.sums, self.counts)
            )
            return self.steps, np.atleast_1d(ratio(sums, counts))
        if name not in self.metrics:
            return [], np.zeros(0)
        known = self.metrics[name].dropna("step")
        return known["step"].values.tolist(), known.values

    def extreme(self, name: str, where: slice, sign: int) -> tuple[int, int]:
        """Find the rollout to look at: where a quantity is highest (`sign` 1) or lowest (-1).

        Returns
        -------
        step, rollout
            Of those of at least the median length: the mean of a few tokens may be anything.
        """
        column = list(QUANTITIES).index(name)
        best, found = -np.inf, (self.steps[where][-1], 0)
        for step, sums, counts in zip(
            self.steps[where], self.sums[where], self.counts[where], strict=True
        ):
            n = counts[:, column]
            mean = np.where(n >= max(np.median(n), 1), sign * sums[:, column], -np.inf)
            mean = mean / np.maximum(n, 1)
            if mean.size and mean.max() > best:
                best, found = mean.max(), (step, int(mean.argmax()))
        return found


def course(run: Run, *, label: str | None = None) -> Course:
    """Read a run once and sum its quantities up by step and rollout.

    Parameters
    ----------
    run
        A recorded run; one step at a time is held in memory.
    label
        Name to give it; that of its directory by default.

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
    steps = run.steps
    if not steps:
        raise StoreError(f"{run.path} has no recorded step; record some (record_every)")
    found = [by_rollout(run.load(step)) for step in steps]
    evaluations = [run.evaluation(name)["score"] for name in run.benchmarks]
    # Accuracy is the mean over the problems of all benchmarks: at steps that evaluated them all.
    evaluated = [set(e["step"].values.tolist()) for e in evaluations]
    common = sorted(set.intersection(*evaluated)) if evaluated else []
    return Course(
        label=label or run.path.resolve().name,
        config=run.config,
        steps=steps,
        sums=[sums for sums, _ in found],
        counts=[counts for _, counts in found],
        metrics=run.metrics,
        evaluated=common,
        scores=[np.concatenate([e.sel(step=step).values for e in evaluations]) for step in common],
    )


def by_rollout(ds: xr.Dataset) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sum every quantity of a step up by rollout, for `Course.sums` and `Course.counts`."""
    rollout = ds["rollout"].values
    n = ds.sizes.get("rollout", int(rollout.max(initial=-1)) + 1)
    sums, counts = np.zeros((2, n, len(QUANTITIES)))
    for column, quantity in enumerate(QUANTITIES.values()):
        if quantity.needs not in ds:
            continue
        found = quantity.compute(ds)
        values = found.values.astype(np.float64)
        row = rollout if found.dims == ("state",) else np.arange(n)
        known = ~np.isnan(values)
        sums[:, column] = np.bincount(row, np.where(known, values, 0), minlength=n)
        counts[:, column] = np.bincount(row, known, minlength=n)
    return sums, counts


def line(found: Course, name: str, *, role: str, label: str) -> Series:
    """Draw a quantity, or a logged scalar, by step.

    Parameters
    ----------
    found
        A run's course.
    name
        Key of `QUANTITIES`, with the 95 % interval of `opdprobe.curve`; or a metric, without one.
    role, label
        As in `analyses.results.Series`.
    """
    x, y = found.values(name)
    low, high = np.full((2, len(x)), np.nan)
    if name in QUANTITIES:
        column = list(QUANTITIES).index(name)
        for i, step in enumerate(x):
            sums, counts = found.sums[i][:, column], found.counts[i][:, column]
            if (counts > 0).sum() < 2:
                continue  # one rollout drawn again and again shows no spread
            n = len(sums)
            rng = np.random.default_rng([0, step])
            drawn = rng.multinomial(n, np.full(n, 1 / n), size=N_BOOT).astype(float)
            with np.errstate(invalid="ignore"):  # 0 draws of an infinite sum
                replicates = ratio(drawn @ sums, drawn @ counts)
                bounds = np.nanquantile(replicates, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
            low[i], high[i] = bounds
    return Series(role, label, x=x, y=y.tolist(), low=low.tolist(), high=high.tolist())


def course_panels(courses: Sequence[Course]) -> list[Panel]:
    """Draw everything known of a run, or of two in the same axes.

    Parameters
    ----------
    courses
        One run, whose student and teacher share a panel where both have a number; or two, where
        each has a panel.

    Returns
    -------
    list of Panel
        Of lines; without what no run has.
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
                first, *more = (title_of(quantity) for quantity in known)
                # A line by itself has no legend to say whose it is.
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
                panels.append(_panel(quantity, title_of(quantity), quantity, lines))
    return panels


def title_of(name: str) -> str:
    """Look up what a quantity or a logged scalar is called."""
    return QUANTITIES[name].title if name in QUANTITIES else LOGGED[name][0]


def _panel(name: str, title: str, quantity: str, lines: list[Series]) -> Panel:
    units = QUANTITIES[quantity].units if quantity in QUANTITIES else LOGGED[quantity][1]
    label = axis_label(title.lower().replace("kl", "KL"), units)
    return Panel(name, title, "training step", label, "line", lines)
