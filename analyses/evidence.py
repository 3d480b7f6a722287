"""The input of every analysis, and the pieces that figures share: curves, accuracies, claims."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.special import stdtrit

from analyses.experiments import EXPERIMENTS
from analyses.results import Claim, Meta
from analyses.sums import add_up
from opdprobe import __version__
from opdprobe.probes.bootstrap import LEVEL, Estimate, ratio, resample
from opdprobe.probes.quantities import scalar
from opdprobe.probes.rollout_sums import RolloutSums
from opdprobe.report.course import EDGE
from opdprobe.report.estimate import MIN_SEEDS, combine, interval_name
from opdprobe.report.panel import Panel, Reference, Series
from opdprobe.store import Run

FIRST, LAST, EVERY = slice(EDGE), slice(-EDGE, None), slice(None)


@dataclass(frozen=True)
class Evidence:
    """Recorded runs and the accuracies of the models that took part.

    Parameters
    ----------
    preset
        Name of the preset.
    models
        Role to the name of its model.
    runs
        Experiment to its runs, one per seed.
    scores
        Role and benchmark to the mean score of every problem, ndarray (problems,), in the order of
        the runs' evaluations.
    continuations
        Experiment to the teacher's continuations of its rollouts' prefixes, one Dataset per seed
        from `opdprobe.rollout.continuation.continuation_gain`.
    sums
        Directory of a run to its sums by rollout; filled on first use.
    """

    preset: str
    models: dict[str, str]
    runs: dict[str, list[Run]]
    scores: dict[str, dict[str, NDArray[np.float64]]]
    continuations: dict[str, list[xr.Dataset]] = field(default_factory=dict)
    sums: dict[Path, RolloutSums] = field(default_factory=dict)

    def sums_of(self, run: Run) -> RolloutSums:
        """Return the sums of a run's probes by rollout; computed on first use."""
        if run.path not in self.sums:
            self.sums[run.path] = add_up(run)
        return self.sums[run.path]

    @property
    def benchmarks(self) -> list[str]:
        """Names of the benchmarks, in the preset's order."""
        return list(next(iter(self.scores.values())))

    def evaluations(self, run: Run, benchmark: str | None = None) -> tuple[list[int], NDArray]:
        """Return the steps of a run's evaluations, and scores (steps, problems).

        By default the problems of all its benchmarks; their mean is the accuracy of figures that
        name no benchmark.
        """
        names = run.benchmarks if benchmark is None else [benchmark]
        found = [run.evaluation(name)["score"] for name in names]
        return found[0]["step"].values.tolist(), np.concatenate([s.values for s in found], axis=1)

    def accuracy(
        self, experiment: str, *, end: int = -1, benchmark: str | None = None
    ) -> list[Estimate]:
        """Accuracy of the student at the first (0) or last (-1) evaluation, one per seed."""
        return [
            resample(self.evaluations(run, benchmark)[1][end], bounds=(0, 1))
            for run in self.runs[experiment]
        ]

    def role(self, role: str, *, benchmark: str | None = None) -> Estimate:
        """Accuracy of an untrained model."""
        names = self.benchmarks if benchmark is None else [benchmark]
        return resample(np.concatenate([self.scores[role][name] for name in names]), bounds=(0, 1))

    def recovery(self, experiment: str, *, benchmark: str | None = None) -> list[Estimate]:
        """Gap recovery rate (§3.2), one per seed; all three accuracies on the same problems.

        The bare ratio, also where the gap is small: `opdprobe.gap_recovery` calls that undefined,
        but a comparison of two arms is about the arm whose gap is large. `analyses.reasons` names
        the figures whose gap is not clearly above `opdprobe.probes.recovery.MIN_GAP`.
        """
        teacher = self.role(EXPERIMENTS[experiment].teacher, benchmark=benchmark)
        return [
            before.map(after, teacher, by=_recovered)
            for before, after in zip(
                self.accuracy(experiment, end=0, benchmark=benchmark),
                self.accuracy(experiment, benchmark=benchmark),
                strict=True,
            )
        ]

    def mean(self, experiment: str, probe: str, steps: slice) -> list[Estimate]:
        """A probe's mean over all states of some recorded steps, one per seed.

        Probes are those of `analyses.sums.PROBES`.
        """
        return [self.sums_of(run).mean(probe, steps) for run in self.runs[experiment]]

    def by_step(self, experiment: str, probe: str) -> list[NDArray[np.float64]]:
        """A probe's mean at each recorded step, one array per seed."""
        return [self.sums_of(run).means(probe) for run in self.runs[experiment]]

    def change(self, experiment: str, probe: str) -> list[Estimate]:
        """A probe's mean over the last recorded steps minus that over the first."""
        first, last = (self.mean(experiment, probe, end) for end in (FIRST, LAST))
        return differences(last, first)

    def remaining(self, experiment: str, probe: str) -> list[Estimate]:
        """A probe's mean over the last recorded steps divided by that over the first."""
        first, last = (self.mean(experiment, probe, end) for end in (FIRST, LAST))
        return ratios(last, first)

    def meta(self, experiments: Sequence[str]) -> Meta:
        """Provenance of a results file."""
        runs = [run for name in experiments for run in self.runs[name]]
        lengths = {
            name: [self.sums_of(run).length for run in self.runs[name]] for name in experiments
        }
        every = [length for some in lengths.values() for length in some]
        common = _common([run.config for run in runs])
        return Meta(
            preset=self.preset,
            seeds=sorted({int(run.attrs["seed"]) for run in runs}),
            k=int(runs[0].attrs["k"]),
            n_rollouts=sum(length.size for length in every),
            n_states=sum(int(length.sum()) for length in every),
            interval=interval_name(len(self.runs[experiments[0]])),
            runs={
                name: {
                    "student": self.models[EXPERIMENTS[name].student],
                    "teacher": self.models[EXPERIMENTS[name].teacher],
                    "steps": len(self.runs[name][0].steps),
                    "states": sum(int(length.sum()) for length in lengths[name]),
                    "settings": ", ".join(
                        f"{key} = {value}"
                        for key, value in self.runs[name][0].config.items()
                        if key not in common and key != "seed"
                    ),
                }
                for name in experiments
            },
            commit=", ".join(sorted({str(run.attrs.get("commit") or "") for run in runs} - {""})),
            version=__version__,
            config=common,
        )


def _recovered(before: NDArray, after: NDArray, teacher: NDArray) -> NDArray:
    return ratio(after - before, teacher - before)


def _common(configs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the settings that all configurations share."""
    first, *others = configs
    return {
        key: value
        for key, value in first.items()
        if all(key in config and config[key] == value for config in others)
    }


def differences(of: Sequence[Estimate], to: Sequence[Estimate]) -> list[Estimate]:
    """Subtract the second from the first, seed by seed."""
    return [a.map(b, by=np.subtract) for a, b in zip(of, to, strict=True)]


def ratios(of: Sequence[Estimate], to: Sequence[Estimate]) -> list[Estimate]:
    """Divide the first by the second, seed by seed; NaN where the second is 0."""
    return [a.map(b, by=ratio) for a, b in zip(of, to, strict=True)]


def accuracy_panel(
    evidence: Evidence,
    experiments: Mapping[str, str],
    references: Mapping[str, str],
    *,
    title: str = "Accuracy",
    benchmark: str | None = None,
) -> Panel:
    """Return a panel of accuracy by training step.

    Parameters
    ----------
    experiments
        Experiment to legend label; an experiment's name is also its plotting role.
    references
        Model role to label; drawn as horizontal lines.
    benchmark
        Name of one benchmark. Default: all.
    """
    series = []
    for name, label in experiments.items():
        found = [evidence.evaluations(run, benchmark) for run in evidence.runs[name]]
        x = found[0][0]
        points = [
            combine([resample(scores[i], bounds=(0, 1)) for _, scores in found])
            for i in range(len(x))
        ]
        value, low, high = zip(*points, strict=True)
        series.append(Series(name, label, x=x, y=list(value), low=list(low), high=list(high)))
    lines = [
        Reference(role, label, evidence.role(role, benchmark=benchmark).value)
        for role, label in references.items()
    ]
    n = evidence.runs[next(iter(experiments))][0].config["eval_n"]
    return Panel(
        name="accuracy" if benchmark is None else f"accuracy_{benchmark}",
        title=title,
        x_label="training step",
        y_label=f"accuracy (avg@{n})",
        kind="line",
        series=series,
        references=lines,
    )


def curve_panel(evidence: Evidence, probe: str, experiments: Mapping[str, str]) -> Panel:
    """Draw a quantity's mean over states by training step, one line per experiment."""
    return Panel(
        name=probe,
        title=scalar(probe).title,
        x_label="training step",
        y_label=scalar(probe).label,
        kind="line",
        series=[
            curve_series(evidence, name, probe, role=name, label=label)
            for name, label in experiments.items()
        ],
    )


def curve_series(
    evidence: Evidence, experiment: str, probe: str, *, role: str, label: str
) -> Series:
    """A probe by step: mean of seeds, with a t-interval or, for few seeds, a bootstrap band."""
    every = [evidence.sums_of(run) for run in evidence.runs[experiment]]
    value = np.array([sums.means(probe) for sums in every])
    if len(every) >= MIN_SEEDS:
        low, high = _seed_interval(value)
    else:
        bands = [sums.band(probe) for sums in every]
        low, high = np.mean(bands, axis=0)
    x = every[0].steps.tolist()
    return Series(role, label, x=x, y=value.mean(0).tolist(), low=low.tolist(), high=high.tolist())


def metric_series(runs: Sequence[Run], name: str, *, role: str, label: str) -> Series:
    """A logged scalar by step; it has a band only for three or more seeds."""
    metrics = [run.metrics[name].dropna("step") for run in runs]
    value = np.array([m.values for m in metrics])
    low, high = _seed_interval(value)
    x = metrics[0]["step"].values.tolist()
    return Series(role, label, x=x, y=value.mean(0).tolist(), low=low.tolist(), high=high.tolist())


def _seed_interval(value: NDArray) -> tuple[NDArray, NDArray]:
    n = len(value)
    if n < MIN_SEEDS:
        nan = np.full(value.shape[1], np.nan)
        return nan, nan
    half = stdtrit(n - 1, (1 + LEVEL) / 2) * value.std(0, ddof=1) / n**0.5
    return value.mean(0) - half, value.mean(0) + half


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
    """Judge a claim by a test that the code fixes, including its threshold.

    Parameters
    ----------
    name
        ``figNN.what``.
    text, paper
        The claim, and the paper's number for it.
    ours
        The statistic, one estimate per seed.
    test
        The test in words.
    holds
        The test; takes the mean over seeds.
    opposite
        Takes both ends of the interval; whether all of it supports the opposite.
    whole_interval
        Whether the test must also hold at both ends of the interval. For a claim that names a
        direction but no size: an estimate alone is on one side or the other by chance.
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


def at_least(
    name: str, text: str, *, paper: str, ours: Sequence[Estimate], statistic: str, limit: float
) -> Claim:
    """Judge a claim that a difference is at least `limit`; `statistic` says what `ours` is.

    The opposite holds if the whole interval is below 0.
    """
    return claim(
        name,
        text,
        paper=paper,
        ours=ours,
        test=f"{statistic} ≥ {limit:.2f}",
        holds=lambda value: value >= limit,
        opposite=lambda low, high: high < 0,
    )


def above(
    name: str, text: str, *, paper: str, ours: Sequence[Estimate], statistic: str, limit: float = 0
) -> Claim:
    """Judge a claim that names a direction but no size: a difference > 0, a ratio > 1."""
    return claim(
        name,
        text,
        paper=paper,
        ours=ours,
        test=f"{statistic} > {limit:g}, whole interval",
        holds=lambda value: value > limit,
        opposite=lambda low, high: high < limit,
        whole_interval=True,
    )


def below(
    name: str, text: str, *, paper: str, ours: Sequence[Estimate], statistic: str, limit: float = 0
) -> Claim:
    """Judge the other direction: a difference < 0, a ratio < 1."""
    return claim(
        name,
        text,
        paper=paper,
        ours=ours,
        test=f"{statistic} < {limit:g}, whole interval",
        holds=lambda value: value < limit,
        opposite=lambda low, high: low > limit,
        whole_interval=True,
    )
