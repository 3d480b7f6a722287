"""Candidate tokens: the overlap of two top-k lists, and the number of tokens that hold a mass."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from opdprobe.errors import ConfigError
from opdprobe.store.schema import match_tokens

# Log-probabilities reach us as float32, so a mass that is exactly 0.97 on paper may sum to
# 0.97 - 1e-7 here. Without slack such a list would be counted one token too long.
_MASS_SLACK = 1e-6


def overlap_mask(
    student_ids: ArrayLike,
    teacher_ids: ArrayLike,
    student_logp: ArrayLike | None = None,
    teacher_logp: ArrayLike | None = None,
    *,
    min_prob: float = 0.0,
) -> NDArray[np.bool_]:
    """Mark the student's top-k tokens that are also in the teacher's top-k.

    Parameters
    ----------
    student_ids, teacher_ids : (..., k) array_like of int
        Top-k token ids of both models at the same states, each id once per list.
    student_logp, teacher_logp : (..., k) array_like of float, optional
        Each model's log-probabilities of its own list, in nats. With them, a token that either
        model rules out (-inf: probability 0) is not shared: where fewer than k tokens are possible,
        the rest of a list is filled up by id, and two models may have filled it up alike.
    min_prob : float, default 0
        Probability in [0, 1) that a token must have under both models. Needs both
        log-probabilities.

    Returns
    -------
    (..., k) ndarray of bool
        True at the ranks of the student's list that lie in I = S ∩ T. Never missing: a
        log-probability of NaN, which is unknown, counts as large enough.

    Raises
    ------
    ConfigError
        If `min_prob` is not in [0, 1), or log-probabilities are missing.

    See Also
    --------
    overlap_ratio : the mean of the mask over rank.

    References
    ----------
    Overlap set I_t, §2.3.

    Examples
    --------
    >>> overlap_mask([7, 3, 5], [3, 9, 7])
    array([ True,  True, False])
    >>> overlap_mask([[1, 2], [3, 4]], [[5, 6], [4, 3]])
    array([[False, False],
           [ True,  True]])

    Both models rule out token 0, which only fills up their lists:

    >>> logp = np.log([0.7, 0.3, 1.0]) - [0, 0, np.inf]
    >>> overlap_mask([3, 5, 0], [5, 9, 0], logp, logp)
    array([False,  True, False])
    """
    match = match_tokens(np.asarray(student_ids), np.asarray(teacher_ids))
    return _shared(match, *_candidates(student_logp, teacher_logp, min_prob))


def overlap_ratio(
    student_ids: ArrayLike,
    teacher_ids: ArrayLike,
    student_logp: ArrayLike | None = None,
    teacher_logp: ArrayLike | None = None,
    *,
    min_prob: float = 0.0,
) -> NDArray[np.float64]:
    """Compute the share of the top-k that both models have in common.

    Parameters
    ----------
    student_ids, teacher_ids : (..., k) array_like of int
        Top-k token ids of both models at the same states, each id once per list.
    student_logp, teacher_logp, min_prob
        As in `overlap_mask`. With log-probabilities, a list ends where its tokens have probability
        0, or less than `min_prob`.

    Returns
    -------
    (...) ndarray of float64
        Size of S ∩ T over k, in [0, 1], unit 1; 1 means the same candidate set. Where the lists
        end before k, over the mean size of S and T. Symmetric in its arguments. NaN only where no
        token of either list reaches `min_prob`.

    Raises
    ------
    ValueError
        If the lists differ in length or in their leading axes, or are empty.
    ConfigError
        If `min_prob` is not in [0, 1), or log-probabilities are missing.

    Notes
    -----
    Eq. 6 counts every rank alike. Where a model is sure, most of the k ranks are tokens that are
    never drawn, and agreement among them moves the ratio as much as agreement on what is: a floor
    such as 1e-3 leaves them out. Lists end at k, so that a floor below 1/k does not extend them.

    References
    ----------
    Eq. 6; the paper averages it over all unmasked states. verl logs the same quantity.

    Examples
    --------
    >>> overlap_ratio([[7, 3, 5, 8], [1, 2, 3, 4]], [[3, 9, 7, 1], [4, 3, 2, 1]])
    array([0.5, 1. ])

    The student's list ends after one token that matters, the teacher's after two:

    >>> p, q = np.log([0.998, 5e-4, 5e-4]), np.log([0.8, 0.1998, 2e-4])
    >>> overlap_ratio([7, 3, 5], [7, 5, 3], p, q)
    np.float64(1.0)
    >>> overlap_ratio([7, 3, 5], [7, 5, 3], p, q, min_prob=1e-3).round(3)
    np.float64(0.667)
    """
    k, m = np.shape(student_ids)[-1:], np.shape(teacher_ids)[-1:]
    if k != m or k == (0,):
        raise ValueError(
            f"the lists hold {k} and {m} tokens; expected two lists of equal length k >= 1."
        )
    match = match_tokens(np.asarray(student_ids), np.asarray(teacher_ids))
    return ratio_of_match(match, student_logp, teacher_logp, min_prob=min_prob)


def mask_of_match(
    match: NDArray[np.integer], student_logp: ArrayLike, teacher_logp: ArrayLike
) -> NDArray[np.bool_]:
    """Compute `overlap_mask` from the places in the teacher's list that a step stores."""
    return _shared(match, *_candidates(student_logp, teacher_logp, 0.0))


def ratio_of_match(
    match: NDArray[np.integer],
    student_logp: ArrayLike | None = None,
    teacher_logp: ArrayLike | None = None,
    *,
    min_prob: float = 0.0,
) -> NDArray[np.float64]:
    """Compute `overlap_ratio` from the places in the teacher's list that a step stores."""
    student, teacher = _candidates(student_logp, teacher_logp, min_prob)
    mask = _shared(match, student, teacher)
    if student is None or teacher is None:
        return mask_share(mask)
    sizes = mask_count(student) + mask_count(teacher)
    with np.errstate(invalid="ignore"):  # 0/0: no candidate in either list
        return 2 * mask_count(mask) / sizes


def _shared(
    match: NDArray[np.integer],
    student: NDArray[np.bool_] | None,
    teacher: NDArray[np.bool_] | None,
) -> NDArray[np.bool_]:
    mask = match >= 0
    if student is not None and teacher is not None:
        mask &= student & np.take_along_axis(teacher, np.maximum(match, 0).astype(np.intp), -1)
    return mask


def _candidates(
    student_logp: ArrayLike | None, teacher_logp: ArrayLike | None, min_prob: float
) -> tuple[NDArray[np.bool_] | None, NDArray[np.bool_] | None]:
    """Mark each list's tokens that count; None twice if all do."""
    if not 0 <= min_prob < 1:
        raise ConfigError(f"min_prob = {min_prob!r}; expected a probability in [0, 1).")
    if student_logp is None or teacher_logp is None:
        if min_prob > 0 or student_logp is not teacher_logp:
            raise ConfigError(
                "student_logp or teacher_logp is missing; expected each model's log-probabilities "
                "of its own list, or neither and no min_prob."
            )
        return None, None
    logps = np.asarray(student_logp), np.asarray(teacher_logp)
    # Not >=: NaN stands for a probability that a server did not report.
    student, teacher = (
        ~(logp < np.log(min_prob)) if min_prob else logp != -np.inf for logp in logps
    )
    return (None, None) if student.all() and teacher.all() else (student, teacher)


def mask_share(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the mean of a mask over its last axis."""
    return mask_count(mask) / mask.shape[-1]


def mask_count(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Count over the last axis of a mask; an einsum is 3 times as fast as ``count_nonzero``."""
    return np.einsum("...k->...", mask, dtype=np.float64)


def mass_set_size(logp: ArrayLike, *, mass: float = 0.97) -> NDArray[np.float64]:
    """Count the most probable tokens that are needed to hold a given probability mass.

    Parameters
    ----------
    logp : (..., k) array_like of float
        Full-vocabulary log-probabilities of a model's own top-k tokens, in nats, in any order.
    mass : float, default 0.97
        Probability mass to reach, in (0, 1].

    Returns
    -------
    (...) ndarray of float64
        Smallest number of most probable tokens whose mass is at least `mass`, in 1…k; k + 1 where
        the k tokens together hold less. The list ends there, so k + 1 is a lower bound: a mean
        over such states is one, too, and depends on k. `mass_set_summary` counts these states.
        NaN only where a log-probability is NaN.

    Raises
    ------
    ConfigError
        If `mass` is not in (0, 1].

    See Also
    --------
    mass_set_summary : mean and quantiles by step, with the states that need more than k tokens.

    Notes
    -----
    Leaving out the states that need more than k tokens, instead, would make a mean the smaller the
    smaller k is: over the same states of the testbed 1.1 at k = 4, 4.9 at 16 and 10.3 at 64.

    Masses within 1e-6 of `mass` count as reaching it: float32 log-probabilities are not exact
    to more.

    Examples
    --------
    >>> logp = np.log([[0.90, 0.06, 0.02], [0.50, 0.47, 0.01], [0.40, 0.30, 0.20]])
    >>> mass_set_size(logp, mass=0.95)
    array([2., 2., 4.])
    """
    if not 0 < mass <= 1:
        raise ConfigError(f"mass = {mass!r}; expected a probability in (0, 1].")
    probability = np.exp(np.asarray(logp, dtype=np.float64))
    descending = probability
    if not (probability[..., 1:] <= probability[..., :-1]).all():  # not in the order of rank
        descending = np.flip(np.sort(probability, axis=-1), axis=-1)
    size = (np.cumsum(descending, axis=-1) < mass - _MASS_SLACK).sum(axis=-1) + 1.0
    return np.where(np.isnan(probability).any(axis=-1), np.nan, size)[()]
