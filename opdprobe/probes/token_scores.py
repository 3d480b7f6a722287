"""Which tokens teach: the scores that others select tokens by, and shares of the signal.

Each takes arrays over states, of one rollout, one step or a whole run as its text says; none looks
at a vocabulary. How sure a definition is stands with each: read in code, or from a note.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from opdprobe.errors import ConfigError
from opdprobe.probes.bootstrap import ratio


def tip_score(student_entropy: ArrayLike, divergence: ArrayLike) -> NDArray[np.float64]:
    """Score states by TIP: high where the student is unsure, or differs from the teacher, or both.

    Parameters
    ----------
    student_entropy : (state,) array_like of float
        In nats.
    divergence : (state,) array_like of float
        Reverse KL or another divergence, in nats.

    Returns
    -------
    (state,) ndarray of float64
        h + d - h d with both scaled to [0, 1] by their smallest and largest value here, so a score
        depends on which states are scored together. In [0, 1]. A constant is scaled to 0, an
        infinite divergence to 1.

    References
    ----------
    2604.14084, as read in HJSang/OPSD_OnPolicyDistillation.

    Examples
    --------
    >>> tip_score([0.0, 1.0, 2.0], [0.0, 0.5, 0.0])
    array([0., 1., 1.])
    """
    h, d = (_scaled(np.asarray(x, np.float64), 0, 1) for x in (student_entropy, divergence))
    return h + d - h * d


def _scaled(values: NDArray[np.float64], low: float, high: float) -> NDArray[np.float64]:
    """Clip at two quantiles of the finite values, and scale these to 0 and 1; infinity is 1."""
    finite = values[np.isfinite(values)]
    ends = np.quantile(finite, [low, high]) if finite.size else np.zeros(2)
    span = ends[1] - ends[0]
    return np.clip((values - ends[0]) / (span or 1), 0, 1)


def teachability(forward_kl: ArrayLike, coverage: ArrayLike) -> NDArray[np.float64]:
    """Score states by TA-OPD: high where the teacher differs within the student's reach.

    Parameters
    ----------
    forward_kl : (state,) array_like of float
        D = KL(q‖p), in nats; from lists it is a lower bound, see `opdprobe.probes.union`.
    coverage : (state,) array_like of float
        C: the teacher's mass on the student's top-16, ``ds.opd.topk_mass("teacher")``.

    Returns
    -------
    (state,) ndarray of float64
        The product of both, each clipped at its quantiles 0.05 and 0.95 here and scaled to [0, 1].

    References
    ----------
    2605.26844, as read in code. Its complement, the incompatible divergence, is D (1 - C).

    Examples
    --------
    >>> teachability([0.0, 1.0], [1.0, 0.0])
    array([0., 0.])
    """
    parts = (_scaled(np.asarray(x, np.float64), 0.05, 0.95) for x in (forward_kl, coverage))
    first, second = parts
    return first * second


def early_weights(
    sampled_reward: ArrayLike, rollout: ArrayLike, *, largest: float = 1.5
) -> NDArray[np.float64]:
    """Weigh states by IW-OPD: more before most of the rollout's difference has been seen.

    Parameters
    ----------
    sampled_reward : (state,) array_like of float
        log q(y) - log p(y), in nats, in the order of the positions.
    rollout : (state,) array_like of int
        Rollout of each state.
    largest : float, default 1.5
        Weight of a rollout's first state, at least 1.

    Returns
    -------
    (state,) ndarray of float64
        1 + (largest - 1) (1 - F), where F is the share of the rollout's sum of absolute rewards
        that lies before the state. In [1, largest]; `largest` throughout a rollout without any.

    Raises
    ------
    ConfigError
        `largest` is below 1.

    References
    ----------
    2606.22600, as read in YannX1e's ``dp_actor.py``.

    Examples
    --------
    >>> early_weights([1.0, -2.0, 1.0], [0, 0, 0])
    array([1.5  , 1.375, 1.125])
    """
    if largest < 1:
        raise ConfigError(f"largest = {largest!r}; expected at least 1.")
    size = np.abs(np.asarray(sampled_reward, np.float64))
    rows = np.unique(np.asarray(rollout), return_inverse=True)[1]
    infinite = np.isinf(size)
    if infinite.any():  # what is infinite is all of its rollout's sum
        size = np.where(np.bincount(rows, infinite)[rows] > 0, infinite, size)
    order = np.argsort(rows, kind="stable")
    running = np.cumsum(size[order])
    first = np.flatnonzero(np.diff(rows[order], prepend=-1))
    total = np.bincount(rows, size) if size.size else np.zeros(0)
    start = (running - size[order])[first]
    before = np.empty(size.size)
    before[order] = running - size[order] - start[rows[order]]
    share = np.nan_to_num(ratio(before, total[rows]))
    return 1 + (largest - 1) * (1 - np.clip(share, 0, 1))


def variance_ratio(sampled_reward: ArrayLike, reverse_kl: ArrayLike) -> float:
    """Compare the sampled reward's variance with and without the reverse KL as its baseline.

    Parameters
    ----------
    sampled_reward, reverse_kl : (state,) array_like of float
        log q(y) - log p(y) at the drawn token, and its expectation's negative, in nats.

    Returns
    -------
    float
        Var(r + KL) / Var(r): below 1 where the baseline helps. NaN if the reward does not vary.

    References
    ----------
    vOPD (2605.07865), by its abstract: the baseline is -KL(p‖q) at the state.

    Examples
    --------
    >>> round(variance_ratio([-1.0, -3.0], [1.0, 2.0]), 3)
    0.25
    """
    reward, kl = np.asarray(sampled_reward, np.float64), np.asarray(reverse_kl, np.float64)
    known = ~np.isnan(reward) & ~np.isnan(kl)
    if not known.any():
        return float("nan")
    return float(ratio(float(np.var(reward[known] + kl[known])), float(np.var(reward[known]))))


def informativeness(teacher_logp: ArrayLike, correct: ArrayLike) -> float:
    """Compare the teacher's probability of drawn tokens in correct and incorrect rollouts.

    Parameters
    ----------
    teacher_logp : (state,) array_like of float
        Teacher's log-probability of the drawn token, in nats.
    correct : (state,) array_like of float
        Correctness of the state's rollout, 1 or 0; others are left out.

    Returns
    -------
    float
        Mean of q(y) over states of correct rollouts minus that over states of incorrect ones, in
        [-1, 1]. NaN if either has no state. Long rollouts have more states, and so more weight.

    References
    ----------
    Eq. 4 of 2607.13399, by a note about the paper.

    Examples
    --------
    >>> round(informativeness(np.log([0.9, 0.7, 0.5]), [1, 1, 0]), 3)
    0.3
    """
    q, correct = np.exp(np.asarray(teacher_logp, np.float64)), np.asarray(correct, np.float64)
    known = ~np.isnan(q)
    right, wrong = q[known & (correct == 1)], q[known & (correct == 0)]
    return float(right.mean() - wrong.mean()) if right.size and wrong.size else float("nan")


def forking_share(student_entropy: ArrayLike, signal: ArrayLike, *, quantile: float = 0.8) -> float:
    """Return the share of a signal that lies in the states in which the student is least sure.

    Parameters
    ----------
    student_entropy : (state,) array_like of float
        In nats.
    signal : (state,) array_like of float
        Not negative: a divergence, or the size of a reward.
    quantile : float, default 0.8
        States with an entropy above this quantile are forking tokens; in (0, 1).

    Returns
    -------
    float
        In [0, 1]: more than ``1 - quantile`` where the signal is concentrated in forking tokens.
        NaN without any signal.

    Raises
    ------
    ConfigError
        `quantile` is not in (0, 1).

    Examples
    --------
    >>> forking_share([0, 0, 0, 0, 1], [1, 1, 1, 1, 4])
    0.5
    """
    if not 0 < quantile < 1:
        raise ConfigError(f"quantile = {quantile!r}; expected a number between 0 and 1.")
    entropy, signal = np.asarray(student_entropy, np.float64), np.asarray(signal, np.float64)
    known = ~np.isnan(entropy) & ~np.isnan(signal)
    if not known.any():
        return float("nan")
    entropy, signal = entropy[known], signal[known]
    forking = entropy > np.quantile(entropy, quantile)
    return float(ratio(float(signal[forking].sum()), float(signal.sum())))


def absorption(distances: ArrayLike) -> NDArray[np.float64]:
    """Return what part of a distance each step takes away.

    Parameters
    ----------
    distances : (step,) array_like of float
        Mean size of the sampled reward at each step, in nats.

    Returns
    -------
    (step - 1,) ndarray of float64
        (d - d') / d for each step and the next; negative where the models move apart, NaN where the
        distance is 0.

    References
    ----------
    v of 2609.04172, by a note about the paper.

    Examples
    --------
    >>> absorption([1.0, 0.5, 0.6])
    array([ 0.5, -0.2])
    """
    d = np.asarray(distances, np.float64)
    return np.atleast_1d(ratio(d[:-1] - d[1:], d[:-1]))


def reward_quantiles(
    sampled_reward: ArrayLike, quantiles: ArrayLike = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
) -> dict[str, float]:
    """Summarise the distribution of the sampled reward over states.

    Parameters
    ----------
    sampled_reward : (state,) array_like of float
        In nats; NaN and infinite values are left out.
    quantiles
        Quantiles, each in [0, 1].

    Returns
    -------
    dict of str to float
        ``positive``, the share of states with a positive reward; ``skewness``; and each quantile in
        nats by its name, such as ``0.05``. NaN without a state.

    References
    ----------
    2603.25562, by a note about the paper, for the first two.

    Examples
    --------
    >>> found = reward_quantiles([-3.0, -1.0, 1.0], [0.5])
    >>> {name: round(value, 3) for name, value in found.items()}
    {'positive': 0.333, 'skewness': 0.0, '0.5': -1.0}
    """
    reward = np.asarray(sampled_reward, np.float64)
    reward = reward[np.isfinite(reward)]
    wanted = np.atleast_1d(np.asarray(quantiles, np.float64))
    if not reward.size:
        return dict.fromkeys(["positive", "skewness", *map(str, wanted.tolist())], float("nan"))
    centred = reward - reward.mean()
    skewness = ratio(float((centred**3).mean()), float((centred**2).mean()) ** 1.5)
    values = np.quantile(reward, wanted).tolist()
    return {
        "positive": float((reward > 0).mean()),
        "skewness": float(skewness),
        **dict(zip(map(str, wanted.tolist()), values, strict=True)),
    }
