"""What every analysis takes, and the pieces that figures share: curves, accuracies, claims."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from analyses.estimate import (
    LEVEL,
    MIN_SEEDS,
    N_BOOT,
    Estimate,
    Probe,
    combine,
    interval_name,
    ratio,
    resample,
    window,
)
from analyses.experiments import EXPERIMENTS
from analyses.results import Claim, Meta, Panel, Reference, Series
from opdprobe import __version__
from opdprobe.probes import curve, gap_recovery_rate
from opdprobe.store import Run

# Ends of a run are averaged over this many recorded steps, or 1 % of them smooths nothing.
EDGE = 5


@dataclass(frozen=True)
class Evidence:
    """Recorded runs and the accuracies of the models that took part.

    Parameters
    ----------
    preset
        Name of the preset.
    models
        Role to the name of the model that plays it.
    runs
        Experiment to its runs, one a seed.
    scores
        Role to the mean score of every benchmark problem, ndarray (problems,), in the order of
        the runs' evaluations.
    """

    preset: str
    models: dict[str, str]
    runs: dict[str, list[Run]]
    scores: dict[str, NDArray[np.float64]]

    def accuracy(self, experiment: str, *, end: int = -1) -> list[Estimate]:
        """Accuracy of the student at the first (0) or last (-1) evaluation, one a seed."""
        return [
            resample(r.evaluation(BENCHMARK)["score"].values[end]) for r in self.runs[experiment]
        ]

    def role(self, role: str) -> Estimate:
        """Accuracy of an untrained model."""
        return resample(self.scores[role])

    def recovery(self, experiment: str) -> list[Estimate]:
        """Gap recovery rate (paper §3.2), one a seed; all three accuracies on the same problems."""
        teacher = self.role(EXPERIMENTS[experiment].teacher)
        return [
            before.map(after, teacher, by=gap_recovery_rate)
            for before, after in zip(
                self.accuracy(experiment, end=0), self.accuracy(experiment), strict=True
            )
        ]

    def edges(self, experiment: str, probe: Probe) -> tuple[list[Estimate], list[Estimate]]:
        """A probe's mean over the first and over the last recorded steps, one a seed."""
        runs = self.runs[experiment]
        first = [window(r, probe, r.steps[:EDGE]) for r in runs]
        last = [window(r, probe, r.steps[-EDGE:]) for r in runs]
        return first, last

    def change(self, experiment: str, probe: Probe) -> list[Estimate]:
        """Last minus first."""
        first, last = self.edges(experiment, probe)
        return [b.map(a, by=np.subtract) for a, b in zip(first, last, strict=True)]

    def remaining(self, experiment: str, probe: Probe) -> list[Estimate]:
        """Last divided by first: the share of a quantity that training left."""
        first, last = self.edges(experiment, probe)
        return [b.map(a, by=ratio) for a, b in zip(first, last, strict=True)]

    def meta(self, experiments: Sequence[str]) -> Meta:
        """Provenance of a results file."""
        runs = [run for name in experiments for run in self.runs[name]]
        tables = [run.rollouts() for run in runs]
        return Meta(
            preset=self.preset,
            seeds=sorted({int(run.attrs["seed"]) for run in runs}),
            k=int(runs[0].attrs["k"]),
            n_rollouts=sum(t.sizes["rollout"] for t in tables),
            n_states=sum(int(t["length"].sum()) for t in tables),
            interval=interval_name(len(self.runs[experiments[0]])),
            runs={
                name: {
                    "student": self.models[EXPERIMENTS[name].student],
                    "teacher": self.models[EXPERIMENTS[name].teacher],
                    "steps": len(self.runs[name][0].steps),
                    "states": sum(int(run.rollouts()["length"].sum()) for run in self.runs[name]),
                }
                for name in experiments
            },
            commit=str(runs[0].attrs.get("commit", "")),
            version=__version__,
        )


BENCHMARK = "test"


def accuracy_panel(
    evidence: Evidence,
    experiments: dict[str, str],
    references: dict[str, str],
    *,
    title: str = "Accuracy",
) -> Panel:
    """Accuracy by training step.

    Parameters
    ----------
    experiments
        Experiment to legend label; an experiment's name is also its plotting role.
    references
        Model role to label, drawn as horizontal lines.
    """
    series = []
    for name, label in experiments.items():
        runs = evidence.runs[name]
        scores = [run.evaluation(BENCHMARK)["score"] for run in runs]
        points = [combine([resample(s.values[i]) for s in scores]) for i in range(len(scores[0]))]
        value, low, high = zip(*points, strict=True)
        x = scores[0]["step"].values.tolist()
        series.append(Series(name, label, x=x, y=list(value), low=list(low), high=list(high)))
    lines = [
        Reference(role, label, evidence.role(role).value) for role, label in references.items()
    ]
    n = evidence.runs[next(iter(experiments))][0].config["eval_n"]
    return Panel(
        name="accuracy",
        title=title,
        x_label="training step",
        y_label=f"accuracy (avg@{n})",
        kind="line",
        series=series,
        references=lines,
    )


def curve_panel(
    evidence: Evidence, probe: str, experiments: dict[str, str], *, title: str, **arguments: str
) -> Panel:
    """Draw a probe's mean over states by training step, one line an experiment."""
    series = [
        curve_series(evidence.runs[name], probe, role=name, label=label, **arguments)
        for name, label in experiments.items()
    ]
    run = evidence.runs[next(iter(experiments))][0]
    sample = getattr(run.load(run.steps[0]).opd, probe)(**arguments)
    return Panel(
        name=probe,
        title=title,
        x_label="training step",
        y_label=axis_label(sample.attrs["long_name"], sample.attrs["units"]),
        kind="line",
        series=series,
    )


def curve_series(
    runs: Sequence[Run], probe: str, *, role: str, label: str, **arguments: str
) -> Series:
    """A probe by step: one run with its bootstrap band, or the mean of seeds with a t-interval."""

    def values(ds):
        return getattr(ds.opd, probe)(**arguments)

    values.__name__ = probe
    return stack([curve(run, values, n_boot=N_BOOT) for run in runs], role=role, label=label)


def metric_series(runs: Sequence[Run], name: str, *, role: str, label: str) -> Series:
    """A logged scalar by step; it has a band with three seeds or more only."""
    metrics = [run.metrics[name].dropna("step") for run in runs]
    value = np.array([m.values for m in metrics])
    low, high = _seed_interval(value)
    x = metrics[0]["step"].values.tolist()
    return Series(role, label, x=x, y=value.mean(0).tolist(), low=low.tolist(), high=high.tolist())


def stack(curves, *, role: str, label: str) -> Series:
    """Merge one curve a seed into one series."""
    value = np.array([c["value"].values for c in curves])
    if len(curves) >= MIN_SEEDS:
        low, high = _seed_interval(value)
    else:
        low = np.mean([c["low"].values for c in curves], axis=0)
        high = np.mean([c["high"].values for c in curves], axis=0)
    x = curves[0]["step"].values.tolist()
    return Series(role, label, x=x, y=value.mean(0).tolist(), low=low.tolist(), high=high.tolist())


def _seed_interval(value: NDArray) -> tuple[NDArray, NDArray]:
    n = len(value)
    if n < MIN_SEEDS:
        nan = np.full(value.shape[1], np.nan)
        return nan, nan
    half = stdtrit(n - 1, (1 + LEVEL) / 2) * value.std(0, ddof=1) / n**0.5
    return value.mean(0) - half, value.mean(0) + half


def axis_label(long_name: str, units: str) -> str:
    """Compose an axis label from a variable's attributes."""
    return long_name if units == "1" else f"{long_name} [{units}]"


def claim(
    name: str,
    text: str,
    *,
    paper: str,
    ours: Sequence[Estimate],
    test: str,
    holds: Callable[[float], bool],
    opposite: Callable[[float, float], bool] = lambda low, high: False,
    whole_interval: bool = False,
    unit: str = "",
) -> Claim:
    """Judge a claim by a test that stands in the code, its threshold included.

    Parameters
    ----------
    name
        ``figNN.what``.
    text, paper
        The claim, and the paper's number for it.
    ours
        The statistic, one estimate a seed.
    test
        The test in words.
    holds
        The test: takes the mean over seeds.
    opposite
        Whether the whole interval speaks for the opposite: takes its ends.
    whole_interval
        Whether the test has to hold at both ends of the interval too. For a claim that names a
        direction and no size: an estimate alone is on one side or the other by chance.
    """
    value, low, high = combine(ours)
    shown = holds(value) and (not whole_interval or (holds(low) and holds(high)))
    verdict = "shown" if shown else "opposite" if opposite(low, high) else "not shown"
    return Claim(
        id=name,
        claim=text,
        paper=paper,
        ours=value,
        low=low,
        high=high,
        unit=unit,
        test=test,
        verdict=verdict,
    )
