"""What groups of tokens say: quadrants, tokens that stay hard, calibration, noise in answers."""

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from opdprobe.errors import ConfigError, StoreError
from opdprobe.probes.bootstrap import ratio

if TYPE_CHECKING:
    import pandas

    from opdprobe.store import Run

QUADRANTS = ("unsure and apart", "unsure", "apart", "neither")


def quadrants(entropy: ArrayLike, divergence: ArrayLike) -> dict[str, dict[str, float]]:
    """Divide states at the medians of the student's entropy and of a divergence.

    Parameters
    ----------
    entropy, divergence : (state,) array_like of float
        In nats; a state with NaN is left out.

    Returns
    -------
    dict
        By quadrant of `QUADRANTS`: ``states``, its share of the states, and ``divergence``, its
        share of the sum. *Apart* without *unsure* are the confident errors: TIP's Q3. A value equal
        to the median is below it.

    References
    ----------
    TIP, 2604.14084 (code).

    Examples
    --------
    >>> found = quadrants([0.1, 0.2, 1.0, 2.0], [3.0, 0.1, 0.2, 4.0])
    >>> found["apart"]["states"], round(found["unsure and apart"]["divergence"], 2)
    (0.25, 0.55)
    """
    h, d = np.asarray(entropy, np.float64), np.asarray(divergence, np.float64)
    known = ~(np.isnan(h) | np.isnan(d))
    h, d = h[known], d[known]
    if not h.size:
        return {name: {"states": np.nan, "divergence": np.nan} for name in QUADRANTS}
    unsure, apart = h > np.median(h), d > np.median(d)
    masks = (unsure & apart, unsure & ~apart, ~unsure & apart, ~unsure & ~apart)
    return {
        name: {
            "states": float(mask.mean()),
            "divergence": float(ratio(float(d[mask].sum()), float(d.sum()))),
        }
        for name, mask in zip(QUADRANTS, masks, strict=True)
    }


def rock_tokens(
    run: "Run", *, steps: int = 5, threshold: float = 1.0, min_count: int = 5
) -> "pandas.DataFrame":
    """Find the drawn tokens whose divergence stays large from the run's beginning to its end.

    Parameters
    ----------
    run : Run
        A run with the reverse KL and the drawn tokens.
    steps : int
        Number of steps at either end that are pooled.
    threshold : float
        Reverse KL in nats from which a token counts as hard.
    min_count : int
        States that a token needs at either end.

    Returns
    -------
    DataFrame
        A row a token id drawn often enough at both ends, the largest share first: ``count_first``,
        ``count_last``, ``mean_first``, ``mean_last`` (nats), ``share``, its part of the sum of the
        reverse KL at the end, and ``persistent``: hard before and after.

    Raises
    ------
    StoreError
        The run has fewer than two steps, or lacks the reverse KL or the drawn tokens.
    ConfigError
        A number is out of range.

    References
    ----------
    2605.09253, by a note about the paper: mean loss of a token times its frequency; persistent
    where it is at least the threshold before and after.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> from opdprobe.testing import synthetic_run
    >>> with TemporaryDirectory() as folder:
    ...     run = synthetic_run(f"{folder}/run", steps=range(4), length=200, vocab_size=16)
    ...     rock_tokens(run, steps=1, threshold=0.1).columns.tolist()
    ['count_first', 'count_last', 'mean_first', 'mean_last', 'share', 'persistent']
    """
    import pandas as pd  # which xarray needs; takes half as long to import as everything else

    for name, value in {"steps": steps, "min_count": min_count}.items():
        if value < 1:
            raise ConfigError(f"{name} = {value}; expected 1 or more.")
    if len(run.steps) < 2:
        raise StoreError(f"{run.path} has {len(run.steps)} steps; expected two or more.")
    width = min(steps, len(run.steps) // 2)
    first, last = (_by_token(run, part) for part in (run.steps[:width], run.steps[-width:]))
    both = pd.concat({"first": first, "last": last}, axis=1, join="inner")
    table = pd.DataFrame(
        {
            "count_first": both["first"]["count"],
            "count_last": both["last"]["count"],
            "mean_first": both["first"]["sum"] / both["first"]["count"],
            "mean_last": both["last"]["sum"] / both["last"]["count"],
            "share": both["last"]["sum"] / last["sum"].sum(),
        }
    )
    table = table[table[["count_first", "count_last"]].min(axis=1) >= min_count]
    hard = table[["mean_first", "mean_last"]].min(axis=1) >= threshold
    return table.assign(persistent=hard).sort_values("share", ascending=False, kind="stable")


def _by_token(run: "Run", steps: list[int]) -> "pandas.DataFrame":
    import pandas as pd

    parts = []
    for step in steps:
        ds = run.load(step)
        if missing := [name for name in ("reverse_kl", "sampled_id") if name not in ds]:
            raise StoreError(f"step {step} of {run.path} has no {missing[0]}; expected it.")
        kl = ds["reverse_kl"].values.astype(np.float64)
        known = np.isfinite(kl)
        parts.append(pd.DataFrame({"id": ds["sampled_id"].values[known], "kl": kl[known]}))
    grouped = pd.concat(parts).groupby("id")["kl"]
    return pd.DataFrame({"count": grouped.size(), "sum": grouped.sum()})


def calibration(ds: xr.Dataset, *, bins: int = 10) -> xr.Dataset:
    """Compare how sure the student is of its first choice with what the teacher gives that token.

    Parameters
    ----------
    ds : Dataset
        States in the store's schema, with top-k lists.
    bins : int
        Number of equal ranges of the student's probability.

    Returns
    -------
    Dataset
        Over ``bin``: ``states``, ``student`` and ``teacher``, the mean probabilities of the
        student's first choice. ``ece``, the expected calibration error: the mean size of their
        difference, weighted by states. A teacher that does not list the token still has its
        probability in the store.

    Raises
    ------
    ConfigError
        `bins` is below 1.

    Examples
    --------
    >>> from opdprobe.testing import synthetic_step
    >>> float(calibration(synthetic_step(agreement=1.0))["ece"].round(6))
    0.0
    """
    if bins < 1:
        raise ConfigError(f"bins = {bins}; expected 1 or more.")
    first = ds["logp"].sel(support="student").isel(rank=0).transpose("state", "model")
    student, teacher = np.exp(first.values.astype(np.float64)).T
    known = ~np.isnan(teacher)
    student, teacher = student[known], teacher[known]
    place = np.minimum((student * bins).astype(int), bins - 1)
    n = np.bincount(place, minlength=bins)
    sums = [np.bincount(place, values, minlength=bins) for values in (student, teacher)]
    means = [ratio(total, n) for total in sums]
    gaps = np.abs(sums[0] - sums[1])
    return xr.Dataset(
        {
            "states": ("bin", n),
            "student": ("bin", means[0]),
            "teacher": ("bin", means[1]),
            "ece": ratio(float(gaps.sum()), float(n.sum())),
        },
        {"bin": (np.arange(bins) + 0.5) / bins},
    )


def answer_noise(sampled_reward: ArrayLike, correct: ArrayLike, in_answer: ArrayLike) -> float:
    r"""Return how often the reward of an answer's tokens contradicts the grade.

    Parameters
    ----------
    sampled_reward : (state,) array_like of float
        log q(y) - log p(y), in nats.
    correct : (state,) array_like of float
        The grade of each state's rollout: 0 or 1; states with another grade are left out.
    in_answer : (state,) array_like of bool
        Whether the token belongs to the answer, such as what is inside ``\boxed{}``.

    Returns
    -------
    float
        Share of the answer's tokens with a negative reward in a correct rollout, or a positive one
        in an incorrect rollout; NaN without such tokens. A reward of 0 contradicts nothing.

    References
    ----------
    2608.31046, by a note about the paper.

    Examples
    --------
    >>> answer_noise([1.0, -1.0, 2.0, 5.0], [1, 1, 0, 0], [True, True, True, False])
    0.6666666666666666
    """
    reward, grade = np.asarray(sampled_reward, np.float64), np.asarray(correct, np.float64)
    chosen: NDArray[np.bool_] = np.asarray(in_answer, bool) & np.isin(grade, (0, 1))
    chosen &= ~np.isnan(reward)
    wrong = np.where(grade == 1, reward < 0, reward > 0)
    return float(ratio(float((wrong & chosen).sum()), float(chosen.sum())))
