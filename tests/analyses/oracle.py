"""Numbers of claims by plain loops over the raw arrays, apart from the code under test."""

import math
from collections import defaultdict
from functools import cache
from statistics import mean

import numpy as np
from scipy import stats

from analyses.experiments import EXPERIMENTS
from opdprobe import open_run
from opdprobe.probes.bootstrap import draw_units, unit_keys

BENCHMARKS = ("easy", "medium", "hard")


def state_numbers(ids, logp, entropy):
    """All that claims say about one state, from its two lists of tokens."""
    shared = [(i, r) for i, v in enumerate(ids[0]) for r, w in enumerate(ids[1]) if v == w]
    p = [math.exp(logp[0, 0, i]) for i, _ in shared]
    q = [math.exp(logp[1, 1, r]) for _, r in shared]
    a, b = [x / sum(p) for x in p], [x / sum(q) for x in q]
    advantages = [x * math.log(y / x) for x, y in zip(a, b, strict=True)]
    extreme = max(range(len(shared)), key=lambda i: abs(advantages[i]), default=None)
    return {
        "overlap": len(shared) / len(ids[0]),
        "student_mass": sum(p),
        "teacher_mass": sum(q),
        "advantage": sum(advantages) / len(shared) if shared else math.nan,
        "extreme": math.nan if extreme is None else abs(p[extreme] - q[extreme]),
        "gap": abs(entropy[1] - entropy[0]),
        "entropy": entropy[0],
    }


def by_step(run):
    """For each recorded step, the numbers of each of its states, with the state's prompt."""
    steps = []
    for step in run.steps:
        ds = run.load(step)
        arrays = [ds[name].values.astype(float) for name in ("token_id", "logp", "entropy")]
        prompts = ds["prompt_id"].values[ds["rollout"].values]
        steps.append(
            [
                state_numbers(*state) | {"prompt": prompt}
                for *state, prompt in zip(*arrays, prompts, strict=True)
            ]
        )
    return steps


def mean_of(steps, quantity):
    """Mean over all states of some steps that have a value."""
    return mean(v for step in steps for s in step if not math.isnan(v := s[quantity]))


def squared_error(states, quantity):
    """Squared standard error of a step's mean when prompts are drawn: a ratio of sums."""
    total, n = defaultdict(float), defaultdict(int)
    for state in states:
        if not math.isnan(state[quantity]):
            total[state["prompt"]] += state[quantity]
            n[state["prompt"]] += 1
    centre = sum(total.values()) / sum(n.values())
    squares = sum((total[prompt] - centre * n[prompt]) ** 2 for prompt in total)
    return len(total) / (len(total) - 1) * squares / sum(n.values()) ** 2


def unrest(steps, quantity):
    """Mean squared change from step to step, less what drawing prompts adds."""
    values = [mean_of([states], quantity) for states in steps]
    noise = [squared_error(states, quantity) for states in steps]
    return mean(
        (values[i] - values[i - 1]) ** 2 - noise[i] - noise[i - 1] for i in range(1, len(values))
    )


def weighted(steps, values, when):
    """One number for the values of some evaluations."""
    first, last = steps[0], steps[-1]
    if when == "start":
        return values[0]
    if when == "end":
        return mean(v for x, v in zip(steps, values, strict=True) if x >= last - (last - first) / 4)
    area = 0.0
    for i in range(1, len(steps)):
        area += (steps[i] - steps[i - 1]) * (values[i] + values[i - 1]) / 2
    return area / (last - first)


@cache
def scores_of(path, benchmark):
    """Steps, and the scores of each problem at each step."""
    score = open_run(path).evaluation(benchmark)["score"]
    return score["step"].values.tolist(), score.values.tolist()


def accuracy(run, when, benchmarks=BENCHMARKS):
    """Accuracy over all problems of some benchmarks: one problem counts as much as another."""
    steps, by_step = None, []
    for name in benchmarks:
        steps, scores = scores_of(run.path, name)
        by_step.append(scores)
    values = [mean(v for rows in by_step for v in rows[i]) for i in range(len(steps))]
    return weighted(steps, values, when)


class Seed:
    """The numbers of one seed's runs."""

    def __init__(self, evidence, seed):
        self.evidence, self.seed, self._steps = evidence, seed, {}

    def run(self, name):
        return self.evidence.runs[name][self.seed]

    def steps(self, name):
        if name not in self._steps:
            self._steps[name] = by_step(self.run(name))
        return self._steps[name]

    def accuracy(self, name, when="whole", benchmarks=BENCHMARKS):
        return accuracy(self.run(name), when, benchmarks)

    def final(self, a, b, when="whole", benchmarks=BENCHMARKS):
        return self.accuracy(a, when, benchmarks) - self.accuracy(b, when, benchmarks)

    def start(self, name):
        """Mean over the seeds, which all start from one model."""
        return mean(accuracy(run, "start") for run in self.evidence.runs[name])

    def gain(self, name):
        return self.accuracy(name, "end") - self.start(name)

    def role(self, role):
        scores = self.evidence.scores[role][self.seed]
        return mean(v for name in BENCHMARKS for v in scores[name].tolist())

    def recovery(self, name):
        return self.gain(name) / (self.role(EXPERIMENTS[name].teacher) - self.start(name))

    def first(self, name, quantity):
        return mean_of(self.steps(name)[:5], quantity)

    def last(self, name, quantity):
        return mean_of(self.steps(name)[-5:], quantity)

    def change(self, name, quantity):
        return self.last(name, quantity) - self.first(name, quantity)

    def left(self, name, quantity):
        return self.last(name, quantity) / self.first(name, quantity)

    def over_all(self, a, b, quantity):
        return mean_of(self.steps(a), quantity) - mean_of(self.steps(b), quantity)

    def unrest(self, name, quantity):
        return unrest(self.steps(name), quantity)


def seeds(evidence):
    """One `Seed` for each seed of the evidence."""
    return [Seed(evidence, i) for i in range(len(next(iter(evidence.runs.values()))))]


def claims_of(*results):
    """Claims by name."""
    return {claim.id: claim for result in results for claim in result.claims}


def drawn(names):
    """How often each of 1,000 replicates draws the units of these names, (1000, units)."""
    return draw_units(unit_keys(names))


def interval(values, samples, level=0.95):
    """Both half-widths in squares: Student's t over seeds, and the percentiles of the samples."""
    n = len(values)
    over_seeds = stats.t.ppf((1 + level) / 2, n - 1) * stats.sem(values)
    low, high = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2])
    half = math.hypot(over_seeds, (high - low) / 2)
    return mean(values) - half, mean(values) + half
