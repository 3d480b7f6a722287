"""The input of every analysis, and the pieces that figures share: curves, accuracies, claims."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from analyses.experiments import CROSSED, EXPERIMENTS
from analyses.results import Claim, Meta, Verdict
from analyses.sums import add_up
from opdprobe import __version__
from opdprobe.probes.bootstrap import LEVEL, Estimate, ratio, resample, unit_keys
from opdprobe.probes.quantities import bounds_of, scalar
from opdprobe.probes.rollout_sums import RolloutSums
from opdprobe.report.course import EDGE
from opdprobe.report.estimate import MIN_SEEDS, combine, exact, interval_name
from opdprobe.report.panel import Panel, Reference, Series
from opdprobe.store import Run

When = Literal["start", "end", "whole"]

TOST = 0.90
"""Level of the interval that two one-sided tests at 5 % amount to."""

FIRST, LAST, EVERY = slice(EDGE), slice(-EDGE, None), slice(None)


@dataclass(frozen=True)
class Evidence:
    """Recorded runs and the accuracies of the models that took part.

    Parameters
    ----------
    preset
        Name of the preset.
    models
        Role to the name of its model, or to the names of one model per seed.
    runs
        Experiment to its runs, one per seed.
    scores
        Role to the mean score of every problem by benchmark, ndarray (problems,), in the order of
        the runs' evaluations; one dict per seed.
    continuations
        Experiment to the teacher's continuations of its rollouts' prefixes, one Dataset per seed
        from `opdprobe.rollout.continuation.continuation_gain`.
    measured
        Name of a measurement and experiment to what was found, one per seed; see
        `opdprobe.cli.measures`.
    sums
        Directory of a run to its sums by rollout; filled on first use.
    evaluated
        Directory of a run and name of a benchmark to the scores; filled on first use.
    """

    preset: str
    models: Mapping[str, str | tuple[str, ...]]
    runs: dict[str, list[Run]]
    scores: dict[str, list[dict[str, NDArray[np.float64]]]]
    continuations: dict[str, list[xr.Dataset]] = field(default_factory=dict)
    measured: dict[tuple[str, str], list[dict[str, Any]]] = field(default_factory=dict)
    sums: dict[Path, RolloutSums] = field(default_factory=dict)
    evaluated: dict[tuple[Path, str], xr.DataArray] = field(default_factory=dict)

    def sums_of(self, run: Run) -> RolloutSums:
        """Return the sums of a run's probes by rollout; computed on first use."""
        if run.path not in self.sums:
            self.sums[run.path] = add_up(run)
        return self.sums[run.path]

    @property
    def benchmarks(self) -> list[str]:
        """Names of the benchmarks, in the preset's order."""
        return list(next(iter(self.scores.values()))[0])

    def evaluations(self, run: Run, benchmark: str | None = None) -> tuple[list[int], NDArray]:
        """Return the steps of a run's evaluations, and scores (steps, problems).

        By default the problems of all its benchmarks but those of other prompt roles; their mean is
        the accuracy of figures that name no benchmark.
        """
        found = self._evaluated(run, _names(run, benchmark))
        steps = found[0]["step"].values.tolist()
        return steps, np.concatenate([scores.values for scores in found], axis=1)

    def _evaluated(self, run: Run, names: Sequence[str]) -> list[xr.DataArray]:
        """Return a run's scores on some benchmarks; each is read once, and used by many claims."""
        for name in names:
            if (run.path, name) not in self.evaluated:
                self.evaluated[run.path, name] = run.evaluation(name)["score"]
        return [self.evaluated[run.path, name] for name in names]

    def accuracy(
        self, experiment: str, when: When = "whole", *, benchmark: str | None = None
    ) -> list[Estimate]:
        """Accuracy of the student, one per seed; NaN if a run lacks the benchmark.

        Parameters
        ----------
        when
            ``"start"``: before training. ``"end"``: mean of the evaluations in the last quarter of
            the steps. ``"whole"``: mean over all of training, by the trapezoidal rule: the area
            under the curve, for which no step has to be chosen.
        """
        found = []
        for run in self.runs[experiment]:
            if benchmark is not None and benchmark not in run.benchmarks:
                found.append(exact(np.nan))
                continue
            steps, scores = self.evaluations(run, benchmark)
            names = _names(run, benchmark)
            sizes = (of.sizes["problem"] for of in self._evaluated(run, names))
            keys = _problem_keys(dict(zip(names, sizes, strict=True)))
            found.append(resample(_weights(steps, when) @ scores, keys=keys, bounds=(0, 1)))
        return found

    def start(self, experiment: str, *, benchmark: str | None = None) -> list[Estimate]:
        """Accuracy before training, one per seed.

        An untrained student is the same model with every seed, but is evaluated anew with each:
        then each seed has the mean of all.
        """
        found = self.accuracy(experiment, "start", benchmark=benchmark)
        if not isinstance(self.models[EXPERIMENTS[experiment].student], str):
            return found
        first, *others = found
        return [first.map(*others, by=lambda *values: np.mean(values, axis=0))] * len(found)

    def gain(self, experiment: str) -> list[Estimate]:
        """Accuracy at the end of training minus that before it, one per seed."""
        return differences(self.accuracy(experiment, "end"), self.start(experiment))

    def role(self, role: str, *, benchmark: str | None = None) -> list[Estimate]:
        """Accuracy of an untrained model, one per seed: equal ones unless the models differ."""
        found = []
        for scores in self.scores[role]:
            names = self.benchmarks if benchmark is None else [benchmark]
            keys = _problem_keys({name: len(scores[name]) for name in names})
            values = np.concatenate([scores[name] for name in names])
            found.append(resample(values, keys=keys, bounds=(0, 1)))
        return found

    def recovery(self, experiment: str, *, benchmark: str | None = None) -> list[Estimate]:
        """Gap recovery rate (§3.2), one per seed; all three accuracies on the same problems.

        The bare ratio, also where the gap is small: `opdprobe.gap_recovery` calls that undefined,
        but a comparison of two arms is about the arm whose gap is large. `analyses.reasons` names
        the figures whose gap is not clearly above `opdprobe.probes.recovery.MIN_GAP`.
        """
        return [
            before.map(after, teacher, by=_recovered)
            for before, after, teacher in zip(
                self.start(experiment, benchmark=benchmark),
                self.accuracy(experiment, "end", benchmark=benchmark),
                self.role(EXPERIMENTS[experiment].teacher, benchmark=benchmark),
                strict=True,
            )
        ]

    def mean(self, experiment: str, probe: str, steps: slice) -> list[Estimate]:
        """A probe's mean over all states of some recorded steps, one per seed.

        Probes are those of `analyses.sums.PROBES`.
        """
        return [self.sums_of(run).mean(probe, steps) for run in self.runs[experiment]]

    def change(self, experiment: str, probe: str) -> list[Estimate]:
        """A probe's mean over the last recorded steps minus that over the first.

        NaN for a run in which first and last steps are the same ones in part.
        """
        return differences(*self._ends(experiment, probe))

    def remaining(self, experiment: str, probe: str) -> list[Estimate]:
        """A probe's mean over the last recorded steps divided by that over the first.

        NaN for a run in which first and last steps are the same ones in part.
        """
        return ratios(*self._ends(experiment, probe))

    def _ends(self, experiment: str, probe: str) -> tuple[list[Estimate], list[Estimate]]:
        """Return the means over the last steps and over the first ones."""
        runs = self.runs[experiment]
        if any(len(self.sums_of(run).steps) < 2 * EDGE for run in runs):
            unknown = [exact(np.nan) for _ in runs]
            return unknown, unknown
        last, first = (self.mean(experiment, probe, end) for end in (LAST, FIRST))
        return last, first

    def unrest(self, experiment: str, probe: str) -> list[Estimate]:
        """Mean squared change of a probe from step to step, beyond what drawing prompts explains.

        Two steps draw prompts independently, so that their means differ by chance alone: by both
        squared standard errors on average, which are subtracted. A trend adds little, since it
        moves little in one step. 0 for a curve without unrest; negative by chance. NaN for fewer
        than two steps.
        """
        found = []
        for run in self.runs[experiment]:
            sums = self.sums_of(run)
            value, error = sums.means(probe), sums.errors(probe)
            beyond = np.diff(value) ** 2 - error[1:] ** 2 - error[:-1] ** 2
            found.append(exact(float(beyond.mean()) if beyond.size else np.nan))
        return found

    def crossed_panels(
        self, experiments: Mapping[str, str], titles: Mapping[str, str]
    ) -> list[Panel]:
        """Panels of accuracy on problems like those of other prompt roles, as far as tested."""
        return [
            accuracy_panel(self, experiments, {}, title=title, benchmark=role)
            for role, title in titles.items()
            if all(role in run.benchmarks for name in experiments for run in self.runs[name])
        ]

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
                    "student": _model_names(self.models[EXPERIMENTS[name].student]),
                    "teacher": _model_names(self.models[EXPERIMENTS[name].teacher]),
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


def _names(run: Run, benchmark: str | None) -> list[str]:
    return (
        [name for name in run.benchmarks if name not in CROSSED]
        if benchmark is None
        else [benchmark]
    )


def _problem_keys(sizes: Mapping[str, int]) -> NDArray[np.uint64]:
    """Return keys of problems by benchmark and place: the same in runs and in models' scores."""
    return unit_keys(f"{name}/{i}" for name, size in sizes.items() for i in range(size))


def _weights(steps: Sequence[int], when: When) -> NDArray[np.float64]:
    """Return the weight of each evaluation in an accuracy; they add up to 1."""
    at = np.array(steps, np.float64)
    weights = np.zeros(at.size)
    if when == "start" or at.size == 1:
        weights[0] = 1
    elif when == "end":
        weights[at >= at[0] + 0.75 * (at[-1] - at[0])] = 1
    else:
        weights[:-1] += np.diff(at)
        weights[1:] += np.diff(at)
    return weights / weights.sum()


def _model_names(names: str | tuple[str, ...]) -> str:
    return names if isinstance(names, str) else ", ".join(names)


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
        Reference(role, label, combine(evidence.role(role, benchmark=benchmark))[0])
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
    low, high = np.clip([low, high], *bounds_of(probe))
    x = every[0].steps.tolist()
    return Series(role, label, x=x, y=value.mean(0).tolist(), low=low.tolist(), high=high.tolist())


def metric_series(runs: Sequence[Run], name: str, *, role: str, label: str) -> Series:
    """A logged scalar by step; it has a band only for three or more seeds."""
    metrics = [run.metrics[name].dropna("step") for run in runs]
    value = np.array([m.values for m in metrics])
    low, high = np.clip(_seed_interval(value), *bounds_of(name))
    x = metrics[0]["step"].values.tolist()
    return Series(role, label, x=x, y=value.mean(0).tolist(), low=low.tolist(), high=high.tolist())


def _seed_interval(value: NDArray) -> tuple[NDArray, NDArray]:
    n = len(value)
    if n < MIN_SEEDS:
        nan = np.full(value.shape[1], np.nan)
        return nan, nan
    from scipy.special import stdtrit  # a fifth of what importing opdprobe takes

    half = stdtrit(n - 1, (1 + LEVEL) / 2) * value.std(0, ddof=1) / n**0.5
    return value.mean(0) - half, value.mean(0) + half


def claim(
    name: str,
    text: str,
    *,
    paper: str,
    ours: Sequence[Estimate],
    statistic: str,
    above: float = -np.inf,
    below: float = np.inf,
    relative_to: Sequence[Estimate] | None = None,
    repeats: str = "",
) -> Claim:
    """Judge a claim: where does the interval of a statistic lie, against limits set beforehand?

    Parameters
    ----------
    name
        ``figNN.what``.
    text, paper
        The claim, and the paper's number for it.
    ours
        The statistic, one estimate per seed.
    statistic
        What it is, in words.
    above, below
        The claim says that the statistic is above the first and below the second. With both it
        claims an equivalence, judged by two one-sided tests at 5 %: by the 90 % interval.
    relative_to
        For a statistic that is a share of a change: that change. Of one that is not clearly above
        0, a share says nothing, whatever it is.
    repeats
        Name of a claim of another figure about the same comparison; counted only there.

    Returns
    -------
    Claim
        Supported if the whole interval is between the limits, refuted if none of it is, and
        inconclusive otherwise, or without an interval, or if `relative_to` is not above 0.
    """
    level = TOST if np.isfinite(above) and np.isfinite(below) else LEVEL
    value, low, high = combine(ours, level)
    meaningful = relative_to is None or combine(relative_to)[1] > 0
    verdict: Verdict = "inconclusive"
    if meaningful and low > above and high < below:
        verdict = "supported"
    elif meaningful and (high <= above or low >= below):
        verdict = "refuted"
    return Claim(
        id=name,
        claim=text,
        paper=paper,
        ours=value,
        low=low,
        high=high,
        level=level,
        seeds=[e.value for e in ours],
        test=_test(statistic, above, below),
        verdict=verdict,
        repeats=repeats,
    )


def _test(statistic: str, above: float, below: float) -> str:
    if np.isinf(below):
        return f"{statistic} > {_limit(above)}"
    if np.isinf(above):
        return f"{statistic} < {_limit(below)}"
    if above == -below:
        return f"|{statistic}| < {_limit(below)}"
    return f"{statistic} between {_limit(above)} and {_limit(below)}"


def _limit(value: float) -> str:
    return f"{value:g}".replace("-", "−")
