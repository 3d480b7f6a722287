"""Probability mass of a token set, and log-probabilities renormalised on it."""

import numpy as np
from numpy.typing import ArrayLike, NDArray


def overlap_mass(logp: ArrayLike, mask: ArrayLike) -> NDArray[np.float64]:
    """Add up the raw probability a model puts on the marked tokens.

    Parameters
    ----------
    logp : (..., k) array_like of float
        Full-vocabulary log-probabilities of the model on the student's top-k tokens, in nats.
        The student's own give Eq. 9, the teacher's give Eq. 10. -inf stands for probability 0.
    mask : (..., k) array_like of bool
        The tokens to add up, usually `overlap_mask`.

    Returns
    -------
    (...) ndarray of float64
        Mass on the set, unit 1, not renormalised: in [0, 1] up to the rounding of `logp`. 0 where
        the mask is empty. NaN only where a marked log-probability is NaN.

    See Also
    --------
    topk_mass : the mass of the full list, which verl and others log as their mass.

    References
    ----------
    Eq. 9 and 10, App. B.1: 97–99 % in the paper's runs. The result is deliberately not cut at 1:
    a mass well above 1 shows that `logp` was not normalised over the vocabulary.

    Examples
    --------
    >>> overlap_mass(np.log([0.6, 0.3, 0.1]), [True, False, True]).round(6)
    np.float64(0.7)
    >>> overlap_mass(np.log([0.6, 0.3, 0.1]), [False, False, False])
    np.float64(0.0)
    """
    return inside(np.asarray(logp, dtype=np.float64), np.asarray(mask, dtype=bool))[1]


def inside(
    logp: NDArray[np.float64], mask: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the probabilities, 0 off the mask, and their sum."""
    probability = np.exp(logp)
    marked = probability * mask  # three times as fast as a selection
    mass = rank_sum(marked)
    if np.isnan(mass).any():  # perhaps from a NaN off the mask
        marked = np.where(mask, probability, 0.0)
        mass = rank_sum(marked)
    return marked, mass


def topk_mass(logp: ArrayLike) -> NDArray[np.float64]:
    """Add up the raw probability a model puts on a full top-k list.

    Parameters
    ----------
    logp : (..., k) array_like of float
        Full-vocabulary log-probabilities of one model on one list of tokens, in nats.

    Returns
    -------
    (...) ndarray of float64
        Mass on the list, unit 1, in [0, 1] up to the rounding of `logp`. The rest up to 1
        is the tail that a renormalised top-k objective never sees. NaN where a log-probability is.

    References
    ----------
    Not in the paper. verl logs both models' mass on the teacher's list as their mass.

    Examples
    --------
    >>> topk_mass(np.log([[0.6, 0.3], [0.2, 0.1]])).round(6)
    array([0.9, 0.3])
    """
    return rank_sum(np.exp(np.asarray(logp, dtype=np.float64)))


def rank_sum(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sum over the last axis; for the short rank axis einsum is twice as fast as ``sum``."""
    return np.einsum("...k->...", values)


def log_renormalise(logp: ArrayLike, mask: ArrayLike | None = None) -> NDArray[np.float64]:
    """Renormalise log-probabilities on the marked tokens (on all of them without a mask).

    Returns -inf off the mask, and NaN throughout a row whose set is empty or has probability 0,
    because no distribution exists there.
    """
    marked = np.asarray(logp, dtype=np.float64)
    if mask is not None:
        # Before any arithmetic, so that NaN or inf off the mask cannot reach the result.
        marked = np.where(np.asarray(mask, dtype=bool), marked, -np.inf)
    with np.errstate(invalid="ignore"):  # -inf - -inf on an empty set: the NaN we document
        shifted = marked - marked.max(axis=-1, keepdims=True)
        return shifted - np.log(rank_sum(np.exp(shifted)))[..., None]
