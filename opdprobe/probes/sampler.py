"""How far the engine that sampled and the model that is trained differ, at the drawn tokens."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

# States that a temperature is fitted to; lists that hold less than this have a tail that counts.
_FITTED = 4096
_WHOLE = 0.999
_TEMPERATURES = np.log([0.2, 5.0])


class SamplerComparison(NamedTuple):
    """How reported log-probabilities of drawn tokens differ from recomputed ones, in nats.

    A difference is recomputed minus reported; means are over tokens that have both.

    Attributes
    ----------
    n : int
        Number of these tokens.
    mean_abs, largest : float
        Mean and largest absolute difference.
    k1, k3 : float
        Estimates of KL(reported‖recomputed), if the reporting model drew the tokens: minus the mean
        difference, and the mean of `sampler_kl`.
    first : float
        Mean absolute difference at the first token of each rollout.
    temperature : float
        Temperature, in units of the recomputed distribution's, at which it comes closest to the
        reported one; NaN where that cannot be told.
    temperature_left : float
        Share of the mean absolute difference that is left at that temperature, over the tokens that
        it is fitted to.
    shift : int
        -1 or 1: which of the neighbouring tokens' reported log-probabilities comes closer.
    at_shift : float
        Mean absolute difference to those; NaN without neighbours.
    """

    n: int
    mean_abs: float
    largest: float
    k1: float
    k3: float
    first: float
    temperature: float
    temperature_left: float
    shift: int
    at_shift: float


def sampler_gap(student_logp: ArrayLike, sampler_logp: ArrayLike) -> NDArray[np.float64]:
    """Subtract the sampler's log-probability of each drawn token from the student's.

    Parameters
    ----------
    student_logp, sampler_logp : (...) array_like of float
        Log-probabilities of the drawn tokens, in nats: recomputed, and as the sampler has them.

    Returns
    -------
    (...) ndarray of float64
        log p(y) - log p_sampler(y), in nats; 0 if both agree. Minus its mean (k1) estimates
        KL(p_sampler‖p), since the sampler drew the tokens. NaN where either is.

    See Also
    --------
    sampler_kl : an estimate with less noise, which is never negative.

    References
    ----------
    Not in the paper. prime-rl, slime and verl log its mean or the ratio as the train-rollout
    mismatch.

    Examples
    --------
    >>> sampler_gap([-1.0, -2.0], [-1.5, float("nan")])
    array([0.5, nan])
    """
    return np.subtract(student_logp, sampler_logp, dtype=np.float64)


def sampler_kl(student_logp: ArrayLike, sampler_logp: ArrayLike) -> NDArray[np.float64]:
    """Estimate KL(p_sampler‖p) at each drawn token (k3).

    Parameters
    ----------
    student_logp, sampler_logp : (...) array_like of float
        As for `sampler_gap`.

    Returns
    -------
    (...) ndarray of float64
        r - 1 - log r for the ratio r = p(y) / p_sampler(y), in nats, at least 0. Its mean over
        tokens that the sampler drew has the expectation KL(p_sampler‖p), as that of -log r (k1).
        NaN where either is.

    References
    ----------
    k1 and k3: J. Schulman, *Approximating KL divergence*, 2020. verl, prime-rl and NeMo-RL log k3.

    Examples
    --------
    >>> sampler_kl([-1.0, -2.0], [-1.0, -1.0]).round(4)
    array([0.    , 0.3679])
    """
    gap = sampler_gap(student_logp, sampler_logp)
    with np.errstate(over="ignore"):
        return np.expm1(gap) - gap


def compare_sampler(
    logp: ArrayLike,
    reported: ArrayLike,
    rollout: ArrayLike,
    top_logp: ArrayLike | None = None,
) -> SamplerComparison:
    """Compare reported log-probabilities of drawn tokens with recomputed ones, and look for causes.

    Parameters
    ----------
    logp, reported : (n,) array_like of float
        Log-probabilities of the drawn tokens, in nats: recomputed, and as they were reported. NaN
        where unknown.
    rollout : (n,) array_like of int
        Rollout of each token; the tokens of a rollout are adjacent and in order.
    top_logp : (n, k) array_like of float, optional
        The recomputing model's log-probabilities of its own top-k list. A temperature is fitted
        where they hold nearly all probability. Drawn tokens alone do not tell one: it changes the
        normaliser by another amount at each state.

    Returns
    -------
    SamplerComparison
        All NaN, with n = 0, where nothing is known of any token.

    Raises
    ------
    ValueError
        The shapes differ.

    Examples
    --------
    >>> p = np.array([[0.5, 0.3, 0.2], [0.9, 0.08, 0.02]])
    >>> cold = p**2 / (p**2).sum(1, keepdims=True)   # temperature 1/2
    >>> found = compare_sampler(np.log(p[:, 1]), np.log(cold[:, 1]), [0, 0], np.log(p))
    >>> round(found.temperature, 3), round(found.temperature_left, 3), round(found.mean_abs, 2)
    (0.5, 0.0, 1.28)
    """
    logp, reported = np.asarray(logp, np.float64), np.asarray(reported, np.float64)
    rollout = np.asarray(rollout)
    if not logp.shape == reported.shape == rollout.shape or rollout.ndim != 1:
        raise ValueError(
            f"logp, reported and rollout have shapes {logp.shape}, {reported.shape} and "
            f"{rollout.shape}; expected all three flat over tokens."
        )
    with np.errstate(invalid="ignore"):
        gap = sampler_gap(logp, reported)
    known = np.isfinite(gap)
    nan = float("nan")
    if not known.any():
        return SamplerComparison(0, nan, nan, nan, nan, nan, nan, nan, 0, nan)
    first = np.ones(len(rollout), bool)
    first[1:] = rollout[1:] != rollout[:-1]
    shift, at_shift = _best_shift(logp, reported, rollout)
    temperature, left = _best_temperature(logp, reported, known, top_logp)
    size = np.abs(gap)
    return SamplerComparison(
        n=int(known.sum()),
        mean_abs=float(size[known].mean()),
        largest=float(size[known].max()),
        k1=float(-gap[known].mean()),
        k3=float(sampler_kl(logp[known], reported[known]).mean()),
        first=float(size[known & first].mean()) if (known & first).any() else nan,
        temperature=temperature,
        temperature_left=left,
        shift=shift,
        at_shift=at_shift,
    )


def _best_shift(
    logp: NDArray[np.float64], reported: NDArray[np.float64], rollout: NDArray[np.integer]
) -> tuple[int, float]:
    same = rollout[1:] == rollout[:-1]
    with np.errstate(invalid="ignore"):
        sizes = {
            1: np.abs(logp[:-1] - reported[1:])[same],
            -1: np.abs(logp[1:] - reported[:-1])[same],
        }
    means = {}
    for shift, size in sizes.items():
        finite = size[np.isfinite(size)]
        means[shift] = float(finite.mean()) if finite.size else np.inf
    shift = min(means, key=lambda one: means[one])
    return (shift, means[shift]) if np.isfinite(means[shift]) else (0, float("nan"))


def _best_temperature(
    logp: NDArray[np.float64],
    reported: NDArray[np.float64],
    known: NDArray[np.bool_],
    top_logp: ArrayLike | None,
) -> tuple[float, float]:
    """Fit a temperature; return it and the share of the mean absolute difference that is left."""
    nothing = float("nan"), float("nan")
    if top_logp is None:
        return nothing
    lists = np.asarray(top_logp, np.float64)
    whole = known & (np.exp(lists).sum(-1) >= _WHOLE)
    # A state with one certain token says nothing of a temperature.
    if (whole & (logp < -0.01)).sum() < max(1, min(16, known.sum() // 2)):
        return nothing
    return _fit(logp[whole], reported[whole], lists[whole])


def _fit(
    logp: NDArray[np.float64], reported: NDArray[np.float64], lists: NDArray[np.float64]
) -> tuple[float, float]:
    every = max(1, len(logp) // _FITTED)
    logp, reported, lists = logp[::every], reported[::every], lists[::every]
    rest = np.clip(1 - np.exp(lists).sum(-1), 0, 1)
    last = lists[:, -1]

    def left(log_temperature: float) -> float:
        power = float(np.exp(-log_temperature))
        with np.errstate(invalid="ignore", over="ignore"):
            # The tail, as if its tokens were as probable as the last one of the list.
            tail = np.where(rest > 1e-9, rest * np.exp((power - 1) * last), 0.0)
        total = np.exp(power * lists).sum(-1) + tail
        return float(np.abs(reported - (power * logp - np.log(total))).mean())

    from scipy.optimize import minimize_scalar  # a fifth of what importing opdprobe takes

    best = minimize_scalar(left, bounds=tuple(_TEMPERATURES), method="bounded")
    before = float(np.abs(reported - logp).mean())
    return float(np.exp(best.x)), float(best.fun) / before if before > 0 else 1.0
