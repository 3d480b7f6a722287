"""Divergences on the tokens of either list, S ∪ T, with all other tokens in one bucket.

Merging tokens makes two distributions no easier to tell apart, so each divergence here is at most
that of the full vocabulary; where an upper bound exists, it is given.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from opdprobe.probes.mass import rank_sum

# The sum of a list's probabilities is known to the rounding of float32 log-probabilities; a rest
# below this is not distinguished from it.
_RESOLUTION = 1e-7
_TINY = np.finfo(np.float64).tiny


class Union(NamedTuple):
    """Both models on S ∪ T.

    Attributes
    ----------
    here : ndarray of bool (..., 2k)
        Places of the student's list, then those of the teacher's list that the student's lacks.
    student_log, teacher_log : ndarray (..., 2k)
        Log-probabilities, in nats; 0 elsewhere.
    student, teacher : ndarray (..., 2k)
        Probabilities; 0 elsewhere.
    student_rest, teacher_rest : ndarray (...)
        Probability of all other tokens, at least 1e-7.
    """

    here: NDArray[np.bool_]
    student_log: NDArray[np.float64]
    teacher_log: NDArray[np.float64]
    student: NDArray[np.float64]
    teacher: NDArray[np.float64]
    student_rest: NDArray[np.float64]
    teacher_rest: NDArray[np.float64]


def union(student_logp: ArrayLike, teacher_logp: ArrayLike, match: ArrayLike) -> Union:
    """Put both lists side by side, each token once.

    Parameters
    ----------
    student_logp, teacher_logp : (..., 2, k) array_like of float
        Each model's log-probabilities, in nats, of the student's list and of the teacher's list.
    match : (..., k) array_like of int
        Place of each of the student's tokens in the teacher's list, or -1.
    """
    match = np.asarray(match).astype(np.intp)
    k = match.shape[-1]
    # One more place for the tokens that are not shared. Flat indices: put_along_axis takes twice
    # the time.
    only = np.ones((*match.shape[:-1], k + 1), bool)
    starts = np.arange(0, only.size, k + 1).reshape(*match.shape[:-1], 1)
    only.reshape(-1)[starts + np.where(match < 0, k, match)] = False
    only = only[..., :k]
    here = np.concatenate([np.ones(match.shape, bool), only], axis=-1)
    logs, parts = [], []
    for logp in (student_logp, teacher_logp):
        log = np.array(logp, np.float64).reshape(here.shape)
        log[..., k:] = np.where(only, log[..., k:], 0.0)
        part = np.exp(log)
        part[..., k:] *= only
        logs.append(log)
        parts.append(part)
    student, teacher = parts
    rests = (np.maximum(1 - rank_sum(p), _RESOLUTION) for p in parts)
    return Union(here, logs[0], logs[1], student, teacher, *rests)


def forward_kl(
    student_logp: ArrayLike, teacher_logp: ArrayLike, match: ArrayLike
) -> NDArray[np.float64]:
    """Compute KL(q‖p) of the teacher from the student on S ∪ T and a bucket for the rest.

    Parameters
    ----------
    student_logp, teacher_logp, match
        As in `union`.

    Returns
    -------
    (...) ndarray of float64
        In nats, at least 0 up to rounding, and at most the full vocabulary's: a lower bound. There
        is no upper bound, since the student may rule out a token of the rest. Infinite where it
        rules out one of the teacher's list.

    Examples
    --------
    Equal models, and a teacher whose first choice is the student's second:

    >>> p, q = np.log([0.7, 0.2]), np.log([0.2, 0.7])
    >>> forward_kl([p, p], [p, p], [0, 1]).round(6)
    np.float64(0.0)
    >>> forward_kl([p, p[::-1]], [q, q[::-1]], [1, 0]).round(4)
    np.float64(0.6264)
    """
    return _forward_kl(union(student_logp, teacher_logp, match))


def _forward_kl(both: Union) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore"):  # 0 · -inf, replaced by its limit 0
        terms = both.teacher * (both.teacher_log - both.student_log)
    if np.isnan(terms).any():
        terms = np.where(both.teacher > 0, terms, 0.0)
    return rank_sum(terms) + both.teacher_rest * np.log(both.teacher_rest / both.student_rest)


def jensen_shannon(
    student_logp: ArrayLike, teacher_logp: ArrayLike, match: ArrayLike, *, upper: bool = False
) -> NDArray[np.float64]:
    """Compute the Jensen–Shannon divergence on S ∪ T and a bucket for the rest.

    Parameters
    ----------
    student_logp, teacher_logp, match
        As in `union`.
    upper
        Whether to give the upper bound instead: no token of the rest is then shared.

    Returns
    -------
    (...) ndarray of float64
        In nats, in [0, log 2]. The full vocabulary's is between this and the upper bound, which is
        larger by at most log 2 times the mean of both rests.

    Examples
    --------
    >>> p, q = np.log([0.7, 0.2]), np.log([0.2, 0.7])
    >>> logps = [p, p[::-1]], [q, q[::-1]]
    >>> jensen_shannon(*logps, [1, 0]).round(4), jensen_shannon(*logps, [1, 0], upper=True).round(4)
    (np.float64(0.1471), np.float64(0.2164))
    """
    return _jensen_shannon(union(student_logp, teacher_logp, match), upper=upper)


def _jensen_shannon(both: Union, *, upper: bool = False) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore"):
        # A least number keeps empty places finite, so that what follows is for the rare -inf alone.
        middle = np.log(np.maximum((both.student + both.teacher) / 2, _TINY))
        terms = both.student * (both.student_log - middle)
        terms += both.teacher * (both.teacher_log - middle)
    unlikely = np.isnan(terms)
    if unlikely.any():  # one of both is 0
        halves = (both.student + both.teacher) * np.log(2)
        terms = np.where(unlikely, halves, terms)
    inside = rank_sum(terms) / 2
    rest = (both.student_rest + both.teacher_rest) / 2
    if upper:
        return inside + rest * np.log(2)
    outside = sum(r * np.log(r / rest) for r in (both.student_rest, both.teacher_rest))
    return inside + np.asarray(outside) / 2


def bhattacharyya(
    student_logp: ArrayLike, teacher_logp: ArrayLike, match: ArrayLike, *, upper: bool = False
) -> NDArray[np.float64]:
    """Add up √(p q) over S ∪ T: how much of both distributions is in the same place.

    Parameters
    ----------
    student_logp, teacher_logp, match
        As in `union`.
    upper
        Whether to give the upper bound instead, with the rest as if equally distributed.

    Returns
    -------
    (...) ndarray of float64
        In [0, 1], unit 1; 1 for equal models. The full vocabulary's coefficient is between this and
        the upper bound (Cauchy–Schwarz).

    References
    ----------
    A proxy of TA-OPD (2605.26844), read in code.

    Examples
    --------
    >>> p, q = np.log([0.7, 0.2]), np.log([0.2, 0.7])
    >>> bhattacharyya([p, p[::-1]], [q, q[::-1]], [1, 0]).round(4)
    np.float64(0.7483)
    """
    return _bhattacharyya(union(student_logp, teacher_logp, match), upper=upper)


def _bhattacharyya(both: Union, *, upper: bool = False) -> NDArray[np.float64]:
    shared = rank_sum(np.sqrt(both.student * both.teacher))
    return shared + np.sqrt(both.student_rest * both.teacher_rest) if upper else shared


_FLOOR, _EPS = -12.0, 1e-8


def information_to_error(
    student_logp: ArrayLike,
    teacher_logp: ArrayLike,
    match: ArrayLike,
    sampled_logp: ArrayLike,
    alone: ArrayLike,
) -> NDArray[np.float64]:
    """Compute IER: how much of a state's sampled gradient is signal rather than noise.

    Parameters
    ----------
    student_logp, teacher_logp, match
        As in `union`.
    sampled_logp : (..., 2) array_like of float
        Student's and teacher's log-probability of the drawn token, in nats.
    alone : (...) array_like of bool
        Whether the drawn token is in neither list and has to be added to them.

    Returns
    -------
    (...) ndarray of float64
        Unit 1, at least 0. On U = S ∪ T ∪ {y}, log-probabilities are floored at -12 and
        renormalised; with c = log(p/q), L = 1/p - 1 and b = E_p[cL] / E_p[L] it is

        Var_p c / max(E_p[(c - b)² L] - Var_p c, 1e-8).

    References
    ----------
    2609.24432, as read in BruceSheng1202/IER-OPD. The floor and U are theirs, so no bound is
    needed: the quantity is defined on the lists.

    Examples
    --------
    >>> p, q, order = np.log([0.6, 0.3, 0.1]), np.log([0.5, 0.2, 0.3]), [0, 2, 1]
    >>> lists = [p, p[order]], [q, q[order]]
    >>> information_to_error(*lists, [0, 2, 1], [p[0], q[0]], False).round(4)
    np.float64(0.2088)
    """
    both = union(student_logp, teacher_logp, match)
    return _information_to_error(both, np.asarray(sampled_logp), np.asarray(alone))


def _information_to_error(
    both: Union, sampled_logp: NDArray[np.floating], alone: NDArray[np.bool_]
) -> NDArray[np.float64]:
    drawn = np.maximum(sampled_logp.astype(np.float64), _FLOOR)
    here, alone = both.here, alone.astype(bool)
    # The drawn token is kept apart, as a copy of all lists with one more place takes longer.
    p, q = (np.maximum(x, np.exp(_FLOOR)) * here for x in (both.student, both.teacher))
    p_drawn, q_drawn = (np.exp(drawn[..., i]) * alone for i in range(2))
    p_sum, q_sum = rank_sum(p) + p_drawn, rank_sum(q) + q_drawn
    p /= p_sum[..., None]
    p_drawn = p_drawn / p_sum
    shift = np.log(p_sum / q_sum)
    c = np.maximum(both.student_log, _FLOOR) - np.maximum(both.teacher_log, _FLOOR)
    c -= shift[..., None]
    c_drawn = drawn[..., 0] - drawn[..., 1] - shift
    noise, noise_drawn = (1 - p) * here, (1 - p_drawn) * alone  # p L

    def total(weight: NDArray, weight_drawn: NDArray, less: NDArray) -> NDArray[np.float64]:
        squares = np.einsum("...k,...k->...", weight, (c - less[..., None]) ** 2)
        return squares + weight_drawn * (c_drawn - less) ** 2

    mean = np.einsum("...k,...k->...", p, c) + p_drawn * c_drawn
    best = np.einsum("...k,...k->...", noise, c) + noise_drawn * c_drawn
    best = best / np.maximum(rank_sum(noise) + noise_drawn, _EPS)
    variance = total(p, p_drawn, mean)
    return variance / np.maximum(total(noise, noise_drawn, best) - variance, _EPS)


UNION_STATISTICS = ("forward_kl", "jensen_shannon", "bhattacharyya", "information_to_error")


def union_statistics(
    student_logp: ArrayLike,
    teacher_logp: ArrayLike,
    match: ArrayLike,
    sampled_logp: ArrayLike,
    alone: ArrayLike,
) -> NDArray[np.float64]:
    """Compute all of `UNION_STATISTICS` at once.

    Parameters
    ----------
    student_logp, teacher_logp, match, sampled_logp, alone
        As in `information_to_error`.

    Returns
    -------
    (..., 4) ndarray of float64
        Exactly what the four functions give, from one pass over the lists.

    Examples
    --------
    >>> p, q, order = np.log([0.6, 0.3, 0.1]), np.log([0.5, 0.2, 0.3]), [0, 2, 1]
    >>> lists = [p, p[order]], [q, q[order]]
    >>> union_statistics(*lists, [0, 2, 1], [p[0], q[0]], False).round(4)
    array([0.1573, 0.0335, 0.9659, 0.2088])
    """
    both = union(student_logp, teacher_logp, match)
    error = _information_to_error(both, np.asarray(sampled_logp), np.asarray(alone))
    found = (_forward_kl(both), _jensen_shannon(both), _bhattacharyya(both), error)
    return np.stack(found, axis=-1)
