"""Entropies of the models and the gap between them."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from opdprobe.probes.mass import log_renormalise, rank_sum


def entropy_gap(student_entropy: ArrayLike, teacher_entropy: ArrayLike) -> NDArray[np.float64]:
    """Compute the absolute difference of both models' entropies at every state.

    Parameters
    ----------
    student_entropy, teacher_entropy : (...) array_like of float
        Full-vocabulary entropies at the same states, in nats.

    Returns
    -------
    (...) ndarray of float64
        Absolute value of H(q) - H(p), in nats, at least 0, toward 0 as the models align. NaN
        where either entropy is.

    See Also
    --------
    entropy_gap_of_means : the gap of the means, which is smaller whenever signs differ.

    References
    ----------
    Eq. 8 (the paper averages this over states).

    Examples
    --------
    >>> entropy_gap([1.0, 2.0], [2.0, 1.0])
    array([1., 1.])
    """
    return np.abs(np.subtract(teacher_entropy, student_entropy, dtype=np.float64))


def entropy_gap_of_means(student_entropy: ArrayLike, teacher_entropy: ArrayLike) -> float:
    """Compute the absolute difference of both models' mean entropies. Not the paper's gap.

    Parameters
    ----------
    student_entropy, teacher_entropy : (...) array_like of float
        Entropies at the same states, in nats.

    Returns
    -------
    float
        Absolute value of mean H(q) - mean H(p) over the states where both are known, in nats, at
        least 0 and at most the mean of `entropy_gap`. NaN if there is no such state.

    References
    ----------
    The gap between the two mean entropies that thunlp/OPD logs, as opposed to Eq. 8.

    Examples
    --------
    >>> entropy_gap_of_means([1.0, 2.0], [2.0, 1.0])
    0.0
    """
    difference = np.subtract(teacher_entropy, student_entropy, dtype=np.float64)
    known = difference[~np.isnan(difference)]
    return float(abs(known.mean())) if known.size else float("nan")


def topk_entropy(logp: ArrayLike) -> NDArray[np.float64]:
    """Compute the entropy of a top-k list renormalised to 1. Not the full-vocabulary entropy.

    Parameters
    ----------
    logp : (..., k) array_like of float
        Log-probabilities of one model on one list of tokens, in nats.

    Returns
    -------
    (...) ndarray of float64
        In nats, in [0, log k]. NaN where the list has probability 0 or a log-probability is NaN.

    References
    ----------
    Not in the paper, whose entropies are over the full vocabulary. nano-opd and one branch of
    fw-ai's diagnostics build their entropy gap from this: ``entropy_gap(topk_entropy(student_logp),
    topk_entropy(teacher_logp))``, each model on its own list.

    Examples
    --------
    >>> topk_entropy(np.log([[0.4, 0.4], [0.3, 0.0001]])).round(3)
    array([0.693, 0.003])
    >>> topk_entropy([0.0])
    np.float64(0.0)
    """
    log_p = log_renormalise(logp)
    p = np.exp(log_p)
    with np.errstate(invalid="ignore"):  # 0 · -inf, replaced by its limit 0
        terms = np.where(p == 0, 0.0, -p * log_p)
    return rank_sum(terms) + 0.0  # + 0.0 turns a single token's -0.0 into 0.0
