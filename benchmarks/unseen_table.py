"""What the predictions for unseen pairs were worth: pure functions of the two tables' lines."""

import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from opdprobe.preflight.expected import LEVEL, MATTERS
from opdprobe.preflight.verdict import HARMFUL, LIKELY, UNKNOWN, UNLIKELY
from opdprobe.report import style

Line = dict[str, Any]
WORDS = (LIKELY, UNLIKELY, HARMFUL, UNKNOWN)
OUTCOMES = ("helps", "neither", "harms")
BINS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
GAP, DIVERGENCE = 0.1, 0.2  # limits of the free rules, set before any of these pairs was trained


def outcome(gain: float) -> str:
    """Say what training did."""
    return "helps" if gain > MATTERS else "harms" if gain < -MATTERS else "neither"


def word_of(line: Line) -> str:
    """Return preflight's word."""
    return line["preflight"]["verdict"]["word"]


def by_gap(line: Line) -> str:
    """Return the word of the accuracy gap alone."""
    gap = _number(line["preflight"]["answers"]["gap"])
    return LIKELY if gap >= GAP else HARMFUL if gap <= -GAP else UNLIKELY


def by_gap_and_divergence(line: Line) -> str:
    """Return the word of the accuracy gap, where the models differ enough."""
    divergence = _number(line["preflight"]["states"]["reverse_kl"])
    word = by_gap(line)
    return UNLIKELY if word == LIKELY and divergence < DIVERGENCE else word


RULES: dict[str, Callable[[Line], str]] = {
    "preflight": word_of,
    f"accuracy gap of {GAP}": by_gap,
    f"accuracy gap of {GAP} and reverse KL of {DIVERGENCE}": by_gap_and_divergence,
}
RIGHT = {LIKELY: "helps", UNLIKELY: "neither", HARMFUL: "harms"}

NUMBERS: dict[str, Callable[[Line], float]] = {
    "gain of the refitted readout": lambda p: _number(p["preflight"]["answers"]["gain"]),
    "accuracy gap": lambda p: _number(p["preflight"]["answers"]["gap"]),
    "accuracy gap × reverse KL": lambda p: (
        _number(p["preflight"]["answers"]["gap"]) * _number(p["preflight"]["states"]["reverse_kl"])
    ),
    "reverse KL": lambda p: _number(p["preflight"]["states"]["reverse_kl"]),
    "share that the readout removes": lambda p: _number(p["preflight"]["learnt"]),
}


def _number(number: dict[str, float | None]) -> float:
    return math.nan if number["value"] is None else number["value"]


def rank_correlation(
    values: NDArray[np.float64],
    gains: NDArray[np.float64],
    units: Sequence[str],
    n_boot: int = 2000,
    less: NDArray[np.float64] | None = None,
) -> tuple[float, float, float]:
    """Spearman's correlation with a 95 % interval; bootstrap over units, such as lineages.

    Parameters
    ----------
    values, gains : ndarray (n,)
        Without NaN.
    units
        The unit that each belongs to, which is drawn as a whole.
    n_boot
        Replicates. Those in which one side is constant have no correlation and do not count.
    less : ndarray (n,), optional
        Other values, whose correlation is subtracted.
    """

    def correlation(rows: Any) -> float:
        found = float(spearmanr(values[rows], gains[rows]).statistic)
        return found if less is None else found - spearmanr(less[rows], gains[rows]).statistic

    names = sorted(set(units))
    rows = [np.flatnonzero(np.array(units) == name) for name in names]
    rng = np.random.default_rng(0)
    found = []
    for _ in range(n_boot):
        drawn = np.concatenate([rows[i] for i in rng.integers(len(rows), size=len(rows))])
        sides = [side for side in (values, gains, less) if side is not None]
        if all(len(set(side[drawn])) > 1 for side in sides):
            found.append(correlation(drawn))
    if not found:
        return math.nan, math.nan, math.nan
    value = correlation(slice(None))
    if len(names) < 2:
        return value, math.nan, math.nan
    low, high = np.quantile(found, (0.025, 0.975))
    return value, float(low), float(high)


def counts(lines: Sequence[Line], rule: Callable[[Line], str]) -> dict[str, Counter[str]]:
    """Count the outcomes of each word."""
    found = {word: Counter[str]() for word in WORDS}
    for line in lines:
        found[rule(line)][outcome(line["gain"])] += 1
    return found


def brier(stated: Sequence[Sequence[float]], outcomes: Sequence[str]) -> float:
    """Mean squared error of probabilities of the three outcomes, in [0, 2]; 2/3 for a third each.

    Parameters
    ----------
    stated
        Probabilities in the order of `OUTCOMES`.
    """
    happened = np.array([[o == name for name in OUTCOMES] for o in outcomes], float)
    return float(((np.array(stated) - happened) ** 2).sum(-1).mean())


def base_rates(lines: Sequence[Line], left_out: str) -> list[float]:
    """Return the outcomes' shares in the other lineages; one of each kind is added to them."""
    seen = Counter(outcome(line["gain"]) for line in lines if line["lineage"] != left_out)
    return [(seen[name] + 1) / (seen.total() + len(OUTCOMES)) for name in OUTCOMES]


def reliability(chances: Sequence[float], happened: Sequence[bool]) -> list[tuple[float, ...]]:
    """Return (low, high, number, mean stated, share that happened) of each bin that has pairs."""
    stated, came = np.array(chances, float), np.array(happened, float)
    found = []
    for low, high in itertools.pairwise(BINS):
        inside = (stated >= low) & ((stated < high) | ((high == 1) & (stated == 1)))
        if inside.any():
            found.append((low, high, inside.sum(), stated[inside].mean(), came[inside].mean()))
    return found


def expected(line: Line) -> dict[str, float] | None:
    """Return preflight's expected gain; None if it stated none."""
    return line["preflight"]["expected"]


def print_table(lines: Sequence[Line], figure: Path | None) -> None:
    """Print all tables, and draw the figure."""
    if not lines:
        raise SystemExit("no pair is trained yet.")
    lineages = Counter(line["lineage"] for line in lines)
    print(f"{len(lines)} pairs of {len(lineages)} lineages ({dict(lineages)})\n")
    _print_pairs(lines)
    _print_ranks(lines)
    _print_words(lines)
    _print_calibration(lines)
    if figure is not None:
        draw(lines, figure)


def _print_pairs(lines: Sequence[Line]) -> None:
    print("| student ← teacher | kind | gap | readout | expected | actual | word |")
    print("|---|---|---|---|---|---|---|")
    for line in sorted(lines, key=lambda line: -line["gain"]):
        gap, readout = NUMBERS["accuracy gap"](line), NUMBERS["gain of the refitted readout"](line)
        stated = expected(line)
        shown = (
            "–"
            if stated is None
            else f"{stated['value']:+.2f} [{stated['low']:+.2f}, {stated['high']:+.2f}]"
        )
        print(
            f"| {line['student']} ← {line['teacher']} | {line['kind']} | {gap:+.2f} "
            f"| {readout:+.2f} | {shown} | {line['gain']:+.2f} | {word_of(line)} |"
        )


def _print_ranks(lines: Sequence[Line]) -> None:
    print("\n| number | pairs | rank correlation | over students | over lineages | without each |")
    print("|---|---|---|---|---|---|")
    for name, of in NUMBERS.items():
        known = [line for line in lines if not math.isnan(of(line))]
        values = np.array([of(line) for line in known])
        gains = np.array([line["gain"] for line in known])
        value, *students = rank_correlation(values, gains, [line["student"] for line in known])
        lineages = [line["lineage"] for line in known]
        _, *whole = rank_correlation(values, gains, lineages)
        without = []
        for left_out in sorted(set(lineages)):
            rows = np.array([lineage != left_out for lineage in lineages])
            if len(set(values[rows])) > 1 and len(set(gains[rows])) > 1:
                without.append(f"{spearmanr(values[rows], gains[rows]).statistic:.2f}")
        print(
            f"| {name} | {len(known)} | {value:.2f} | {_bounds(students)} | {_bounds(whole)} "
            f"| {', '.join(without)} |"
        )

    readout, gap = NUMBERS["gain of the refitted readout"], NUMBERS["accuracy gap"]
    known = [line for line in lines if not math.isnan(readout(line) + gap(line))]
    gains, one, other = (
        np.array([of(line) for line in known]) for of in (lambda line: line["gain"], readout, gap)
    )
    value, *ends = rank_correlation(one, gains, [line["student"] for line in known], less=other)
    print(f"\nReadout minus accuracy gap, on the same pairs: {value:.2f} {_bounds(ends)}")


def is_right(line: Line, rule: Callable[[Line], str]) -> bool:
    """Whether a rule's word is what happened; *cannot tell* is not right."""
    return RIGHT.get(rule(line)) == outcome(line["gain"])


def _print_words(lines: Sequence[Line]) -> None:
    judged = [line for line in lines if word_of(line) != UNKNOWN]
    for name, rule in RULES.items():
        found = counts(lines, rule)
        right = sum(found[word][RIGHT[word]] for word in RIGHT)
        said = len(lines) - found[UNKNOWN].total()
        print(f"\n{name}: right on {right} of {said} pairs that it judges, of {len(lines)}\n")
        same = sum(is_right(line, rule) for line in judged)
        print(f"On the {len(judged)} pairs that preflight judges: right on {same}.\n")
        print(f"| word | {' | '.join(OUTCOMES)} |\n|---|---|---|---|")
        for word in WORDS:
            print(f"| {word} | {' | '.join(str(found[word][o]) for o in OUTCOMES)} |")


def _print_calibration(lines: Sequence[Line]) -> None:
    known = [line for line in lines if expected(line) is not None]
    if not known:
        return
    stated = [[expected(line)[name] for name in OUTCOMES] for line in known]
    came = [outcome(line["gain"]) for line in known]
    rates = [base_rates(lines, line["lineage"]) for line in known]
    inside = np.mean([_inside(expected(line), line["gain"]) for line in known])
    print(f"\nOf {len(known)} pairs, the {LEVEL:.0%} interval holds {inside:.0%} of the gains.")
    print(
        f"Brier score {brier(stated, came):.3f}; of the other lineages' base rates "
        f"{brier(rates, came):.3f}; of a third each {2 / 3:.3f}.\n"
    )
    print("| outcome | stated | pairs | mean stated | happened |\n|---|---|---|---|---|")
    for place, name in enumerate(OUTCOMES):
        chances = [row[place] for row in stated]
        for low, high, n, mean, share in reliability(chances, [o == name for o in came]):
            print(f"| {name} | {low:.1f}–{high:.1f} | {n} | {mean:.2f} | {share:.2f} |")


def _inside(stated: dict[str, float] | None, gain: float) -> bool:
    assert stated is not None
    return stated["low"] <= gain <= stated["high"]


def _bounds(ends: Sequence[float]) -> str:
    return "–" if math.isnan(ends[0]) else f"[{ends[0]:.2f}, {ends[1]:.2f}]"


LOOK = {
    LIKELY: (style.GREEN, "o"),
    UNLIKELY: (style.ORANGE, "s"),
    HARMFUL: (style.VERMILION, "v"),
    UNKNOWN: (style.GREY, "D"),
}


def draw(lines: Sequence[Line], path: Path) -> None:
    """Draw expected against actual gains, by preflight's word."""
    from matplotlib.figure import Figure

    known = [line for line in lines if expected(line) is not None]
    with style.style():
        figure = Figure(figsize=(style.SINGLE_COLUMN, style.SINGLE_COLUMN), layout="constrained")
        axes = figure.subplots()
        axes.axhspan(-MATTERS, MATTERS, color=style.GREY, alpha=0.2, linewidth=0)
        axes.axline((0, 0), slope=1, color=style.DARK, linewidth=0.6, linestyle=style.DOTTED)
        for word, (color, marker) in LOOK.items():
            some = [line for line in known if word_of(line) == word]
            if not some:
                continue
            stated = [line["preflight"]["expected"] for line in some]
            axes.errorbar(
                [one["value"] for one in stated],
                [line["gain"] for line in some],
                xerr=[
                    [one["value"] - one["low"] for one in stated],
                    [one["high"] - one["value"] for one in stated],
                ],
                fmt=marker,
                color=color,
                ecolor=color,
                elinewidth=0.3,
                markersize=3.5,
                label=f"{word} ({len(some)})",
            )
        axes.set_xlabel(f"expected gain of accuracy, {LEVEL:.0%} interval")
        axes.set_ylabel("gain of training")
        axes.legend(fontsize="x-small")
        figure.savefig(path, dpi=200)
