"""How two ranked lists of tokens agree: order, first choice, place of the drawn token.

All take ``match``, the place of each of the student's tokens in the teacher's list, as the store
has it and `opdprobe.store.schema.match_tokens` makes it; -1 stands for *not in the list*. Lists end
at k: what a full ranking would give is bounded where it can be.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from opdprobe.errors import ConfigError
from opdprobe.probes.mass import rank_sum
from opdprobe.probes.sets import mass_set_size


def jaccard(match: ArrayLike) -> NDArray[np.float64]:
    """Divide the number of shared tokens by that of all tokens in either list.

    Parameters
    ----------
    match : (..., k) array_like of int
        Place of each of the student's tokens in the teacher's list of the same length, or -1.

    Returns
    -------
    (...) ndarray of float64
        In [0, 1], unit 1: o / (2 - o) for an overlap ratio o, so it tells nothing that the overlap
        ratio does not.

    Examples
    --------
    >>> jaccard([1, 0, -1, -1])
    np.float64(0.3333333333333333)
    """
    match = np.asarray(match)
    shared = (match >= 0).sum(axis=-1)
    return shared / (2 * match.shape[-1] - shared)


def argmax_disagreement(match: ArrayLike) -> NDArray[np.float64]:
    """1 where the models' most probable tokens differ, else 0; its mean is a share of the states.

    Exact: the first token of a list needs no other.

    Examples
    --------
    >>> argmax_disagreement([[0, 1], [1, 0], [-1, 0]])
    array([0., 1., 1.])
    """
    return (np.asarray(match)[..., 0] != 0).astype(np.float64)


def top1_acceptance(match: ArrayLike, *, n: int = 5) -> NDArray[np.float64]:
    """1 where the student's most probable token is among the teacher's first n, else 0.

    Parameters
    ----------
    match : (..., k) array_like of int
        As in `jaccard`.
    n : int, default 5
        At most k.

    Raises
    ------
    ConfigError
        `n` is not in 1…k.

    References
    ----------
    The acceptance of SelecTKD (2510.24021), by a note about the paper: the formula was not read.

    Examples
    --------
    >>> top1_acceptance([[4, 0, 1, 2, 3, 5], [5, 0, 1, 2, 3, 4]])
    array([1., 0.])
    """
    first = np.asarray(match)[..., 0]
    k = np.asarray(match).shape[-1]
    if not 1 <= n <= k:
        raise ConfigError(f"n = {n}; expected 1 to {k}, the length of the lists.")
    return ((first >= 0) & (first < n)).astype(np.float64)


def drawn_rank(ids: ArrayLike, sampled_id: ArrayLike) -> NDArray[np.float64]:
    """Find the place of the drawn token in a list, from 0; k stands for *not in the list*.

    Parameters
    ----------
    ids : (..., k) array_like of int
        One model's list.
    sampled_id : (...) array_like of int
        The drawn token.

    Returns
    -------
    (...) ndarray of float64
        In 0…k. A mean is a lower bound where some are k; a quantile below k is exact.

    Examples
    --------
    >>> drawn_rank([[7, 3, 5], [7, 3, 5]], [5, 9])
    array([2., 3.])
    """
    ids = np.asarray(ids)
    here = ids == np.asarray(sampled_id)[..., None]
    return np.where(here.any(axis=-1), here.argmax(axis=-1), ids.shape[-1]).astype(np.float64)


def kendall_tau(match: ArrayLike) -> NDArray[np.float64]:
    """Correlate the order in which both models rank the tokens that they share.

    Parameters
    ----------
    match : (..., k) array_like of int
        As in `jaccard`.

    Returns
    -------
    (...) ndarray of float64
        Kendall's τ of the shared tokens, in [-1, 1]: pairs in the same order minus pairs in the
        other order, over all pairs. NaN with fewer than two shared tokens.

    Notes
    -----
    Shared tokens rank high in both lists, so their order agrees less than a full ranking's would.

    Examples
    --------
    >>> kendall_tau([[0, 1, 2], [2, 1, 0], [1, -1, 0], [0, -1, -1]])
    array([ 1., -1., -1., nan])
    """
    match = np.asarray(match)
    # Small integers, and ranks first, so that each operation runs along all states: five times as
    # fast. Places are at most 126 then, and so are differences and sums.
    small = np.int8 if match.shape[-1] <= 127 else np.int32
    places = np.ascontiguousarray(np.moveaxis(match, -1, 0).astype(small))
    there = (places >= 0).view(np.int8)
    total = np.zeros(match.shape[:-1], np.int32)
    for lag in range(1, len(places)):  # no (..., k, k) array in memory
        order = np.sign(places[lag:] - places[:-lag]) * there[lag:] * there[:-lag]
        total += order.sum(axis=0, dtype=small)
    n = there.sum(axis=0, dtype=np.int64)
    pairs = n * (n - 1) / 2
    return total / np.where(pairs == 0, np.nan, pairs)


def rank_biased_overlap(match: ArrayLike, *, persistence: float = 0.9) -> NDArray[np.float64]:
    """Average the overlap of the lists' beginnings, the first ranks with the most weight.

    Parameters
    ----------
    match : (..., k) array_like of int
        As in `jaccard`.
    persistence : float, default 0.9
        In (0, 1): the weight of each depth as a share of that of the depth before.

    Returns
    -------
    (...) ndarray of float64
        In [0, 1], unit 1: 1 for equal lists. The overlap at depth k is taken to go on beyond k.

    Raises
    ------
    ConfigError
        `persistence` is not in (0, 1).

    References
    ----------
    RBO_EXT of Webber, Moffat and Zobel, *A similarity measure for indefinite rankings* (2010).

    Examples
    --------
    >>> rank_biased_overlap([[0, 1, 2], [1, 0, 2], [-1, -1, -1]]).round(3)
    array([1. , 0.9, 0. ])
    """
    if not 0 < persistence < 1:
        raise ConfigError(f"persistence = {persistence!r}; expected a number between 0 and 1.")
    match = np.asarray(match)
    k = match.shape[-1]
    depth = np.arange(1, k + 1)
    terms = (1 - persistence) / persistence * persistence**depth / depth
    # What a token adds if it is in both beginnings from a depth on: all later depths count it.
    worth = np.append(np.cumsum(terms[::-1])[::-1] + persistence**k / k, 0.0)
    since = np.where(match >= 0, np.maximum(match, np.arange(k)), k)
    return rank_sum(worth[since])


def nucleus_overlap(
    student_logp: ArrayLike, teacher_logp: ArrayLike, match: ArrayLike, *, mass: float = 0.9
) -> NDArray[np.float64]:
    """Compare the smallest sets of tokens that hold a mass: shared tokens over all.

    Parameters
    ----------
    student_logp, teacher_logp : (..., k) array_like of float
        Each model's log-probabilities of its own list, in nats, in order.
    match : (..., k) array_like of int
        As in `jaccard`.
    mass : float, default 0.9
        Mass of a set, in (0, 1]: what top-p sampling would keep.

    Returns
    -------
    (...) ndarray of float64
        Jaccard index of both sets, in [0, 1], unit 1. NaN where a list holds less than `mass`: the
        set is then not known. Do not average over these as if they were absent at random: they are
        the uncertain states.

    Raises
    ------
    ConfigError
        `mass` is not in (0, 1].

    Examples
    --------
    One token holds 0.9 for the student, two do for the teacher:

    >>> nucleus_overlap(np.log([0.92, 0.05]), np.log([0.5, 0.45]), [1, 0])
    np.float64(0.5)
    """
    match = np.asarray(match)
    k = match.shape[-1]
    n_student, n_teacher = (
        mass_set_size(logp, mass=mass)[..., None] for logp in (student_logp, teacher_logp)
    )
    inside = (np.arange(k) < n_student) & (match >= 0) & (match < n_teacher)
    shared = inside.sum(axis=-1)
    sizes = (n_student + n_teacher)[..., 0]
    known = np.maximum(n_student, n_teacher)[..., 0] <= k
    return np.where(known, shared / (sizes - shared), np.nan)[()]
