"""How far the models differ on the tokens they share: overlap-token advantage and related gaps."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from opdprobe.errors import ConfigError
from opdprobe.probes.mass import inside, log_renormalise, rank_sum
from opdprobe.probes.sets import mask_count

DEFINITIONS = ("paper", "sum", "thunlp", "verl")

# Far from where float64 underflows, so that every token that matters still has full precision.
_LEAST_MASS = 1e-200


def overlap_token_advantage(
    student_logp: ArrayLike, teacher_logp: ArrayLike, mask: ArrayLike, *, definition: str = "paper"
) -> NDArray[np.float64]:
    """Measure how well the teacher's preferences match the student's on the shared tokens.

    p is the student, q the teacher, S the student's top-k and I the set of the n marked tokens:

    ========== ======================================================== ===================
    definition value at a state                                         logged by
    ========== ======================================================== ===================
    "paper"    (1/n) Σ_I p̄ (log q̄ - log p̄) = -KL(p̄‖q̄) / n, bars on I     the paper, nano-opd
    "sum"      Σ_I p̄ (log q̄ - log p̄) = -KL(p̄‖q̄), bars on I              FiRe-OPD
    "thunlp"   (1/n) Σ_I p̄ (log q - log p), p̄ renormalised on all of S   thunlp/OPD
    "verl"     (1/n) Σ_I q (log p - log q), nothing renormalised         verl
    ========== ======================================================== ===================

    Parameters
    ----------
    student_logp, teacher_logp : (..., k) array_like of float
        Both models' full-vocabulary log-probabilities on the student's top-k tokens, in nats.
        -inf stands for probability 0.
    mask : (..., k) array_like of bool
        The shared tokens I, from `overlap_mask`.
    definition : {"paper", "sum", "thunlp", "verl"}, default "paper"
        Whose definition to follow.

    Returns
    -------
    (...) ndarray of float64
        In nats. "paper" and "sum" are at most 0, and 0 means that the models agree on I; the
        other two can have either sign, since neither log-ratio is one of two distributions on I.
        NaN where I is empty (leave those states out of a mean and count them, as `curve` does)
        or where a model has no probability on the set it is renormalised on. -inf where the
        teacher ("verl": the student) rules out a single token of I that the other does not.

    Raises
    ------
    ConfigError
        If `definition` is not one of the four.

    Notes
    -----
    thunlp/OPD pools over states *and* tokens, so each state counts n times. Its logged
    ``val-topk/adv_intersection`` is the weighted mean, exactly::

        shared = mask.sum(-1)
        np.average(np.nan_to_num(advantage), weights=shared)   # an empty I has weight 0

    nano-opd counts an empty I as 0 instead of leaving it out: ``np.nan_to_num(advantage).mean()``.
    verl clamps log-probabilities from below where ``log_prob_min_clamp`` is set; clamp the inputs
    to reproduce it.

    References
    ----------
    Eq. 7. For the others: ``val-topk/adv_intersection`` in thunlp/OPD's ``ray_trainer.py``; verl's
    ``distillation/fsdp/losses.py``; FiRe-OPD's ``rethinking_opd_probe.py``.

    Examples
    --------
    The models disagree on two shared tokens, (3/4, 1/4) against (1/4, 3/4) once renormalised, so
    KL = ½ log 3 and the advantage is half of it, negative:

    >>> p, q = np.log([0.6, 0.2, 0.1]), np.log([0.2, 0.6, 0.1])
    >>> overlap_token_advantage(p, q, [True, True, False]).round(4)
    np.float64(-0.2747)
    >>> overlap_token_advantage(p, q, [True, True, False], definition="sum").round(4)
    np.float64(-0.5493)

    One shared token leaves nothing to disagree on; none leaves nothing to measure:

    >>> overlap_token_advantage([p, p], [q, q], [[True, False, False], [False, False, False]])
    array([ 0., nan])
    """
    student = np.asarray(student_logp, dtype=np.float64)
    teacher = np.asarray(teacher_logp, dtype=np.float64)
    mask = np.asarray(mask, dtype=bool)
    shared = mask_count(mask)
    if definition in ("paper", "sum"):
        total = _negative_kl(student, teacher, mask, shared)[0]
    elif definition == "thunlp":
        total = rank_sum(_terms(log_renormalise(student), teacher, student, mask))
    elif definition == "verl":
        total = rank_sum(_terms(teacher, student, teacher, mask))
    else:
        raise ConfigError(
            f"definition = {definition!r}; expected one of {', '.join(map(repr, DEFINITIONS))}."
        )
    return _per_token(total, np.minimum(shared, 1) if definition == "sum" else shared)


def extreme_advantage_gap(
    student_logp: ArrayLike, teacher_logp: ArrayLike, mask: ArrayLike | None = None
) -> NDArray[np.float64]:
    """Compare raw probabilities at the token with the most extreme advantage.

    Parameters
    ----------
    student_logp, teacher_logp : (..., k) array_like of float
        Both models' full-vocabulary log-probabilities on the student's top-k tokens, in nats.
    mask : (..., k) array_like of bool, optional
        Tokens to consider, usually `overlap_mask`. Default: all stored tokens.

    Returns
    -------
    (...) ndarray of float64
        p(v*) - q(v*), in [-1, 1], unit 1, toward 0 as the models align; positive where the student
        is more confident. NaN where the mask is empty or a renormalised distribution does
        not exist (see `overlap_token_advantage`).

    Notes
    -----
    v* is the token whose advantage p̄(v) (log q̄(v) - log p̄(v)), the summand of Eq. 7, is the largest
    in absolute value, with both models renormalised on the tokens considered; the lowest rank wins
    a tie. A token the teacher rules out has an infinite advantage, so it is v*.

    References
    ----------
    App. B.2.

    Examples
    --------
    >>> p, q = np.log([0.6, 0.2, 0.1]), np.log([0.2, 0.6, 0.1])
    >>> extreme_advantage_gap(p, q).round(6)
    np.float64(0.4)
    >>> extreme_advantage_gap(p, q, [False, False, True]).round(6)
    np.float64(0.0)
    """
    student = np.asarray(student_logp, dtype=np.float64)
    teacher = np.asarray(teacher_logp, dtype=np.float64)
    mask = np.ones(student.shape, bool) if mask is None else np.asarray(mask, dtype=bool)
    size = np.where(mask, np.abs(_eq7_terms(student, teacher, mask)), -1.0)
    star = size.argmax(axis=-1, keepdims=True)  # the first of equals; a NaN if there is one
    gap = np.exp(np.take_along_axis(student, star, -1)) - np.exp(
        np.take_along_axis(teacher, star, -1)
    )
    defined = np.take_along_axis(size, star, -1) >= 0  # false for an empty mask and for NaN
    return np.where(defined, gap, np.nan)[..., 0]


def overlap_statistics(
    student_logp: ArrayLike, teacher_logp: ArrayLike, mask: ArrayLike
) -> NDArray[np.float64]:
    """Compute both overlap masses and the overlap-token advantage at once.

    Parameters
    ----------
    student_logp, teacher_logp, mask : (..., k) array_like
        As in `overlap_token_advantage`.

    Returns
    -------
    (..., 3) ndarray of float64
        `overlap_mass` of the student and of the teacher, and `overlap_token_advantage`: exactly
        these, in the time that the last one takes alone.

    Examples
    --------
    >>> p, q = np.log([0.6, 0.2, 0.1]), np.log([0.2, 0.6, 0.1])
    >>> overlap_statistics(p, q, [True, True, False]).round(4)
    array([ 0.8   ,  0.8   , -0.2747])
    """
    student = np.asarray(student_logp, dtype=np.float64)
    teacher = np.asarray(teacher_logp, dtype=np.float64)
    mask = np.asarray(mask, dtype=bool)
    shared = mask_count(mask)
    total, *masses = _negative_kl(student, teacher, mask, shared)
    return np.stack([*masses, _per_token(total, shared)], axis=-1)


def _per_token(total: NDArray[np.float64], shared: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(shared > 0, total / np.maximum(shared, 1), np.nan)[()]


def _negative_kl(
    student: NDArray[np.float64],
    teacher: NDArray[np.float64],
    mask: NDArray[np.bool_],
    shared: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Sum Eq. 7, four times as fast as term by term; also return both masses.

    With P and Q the models' mass on the mask, the sum is Σ p (log q - log p) / P + log P - log Q:
    no term has to be renormalised. Where that is undefined or about to underflow, the terms are
    summed.
    """
    p, p_mass = inside(student, mask)
    _, q_mass = inside(teacher, mask)
    with np.errstate(invalid="ignore", divide="ignore"):  # replaced by the sum of the terms below
        mean_log_ratio = np.einsum("...k,...k->...", p, teacher - student) / p_mass
        total = np.asarray(mean_log_ratio + np.log(p_mass) - np.log(q_mass))
    odd = ~np.isfinite(total) | ~(np.minimum(p_mass, q_mass) > _LEAST_MASS)
    if odd.any():
        rows = (array[odd] for array in np.broadcast_arrays(student, teacher, mask))
        total[odd] = rank_sum(_eq7_terms(*rows))
    # Rounding can leave ±1e-16 where the models agree, as they must on a single token; a KL is
    # never negative.
    alone = ~odd & (shared == 1)
    return np.where(alone, 0.0, np.minimum(total, 0.0)), p_mass, q_mass


def _eq7_terms(
    student: NDArray[np.float64], teacher: NDArray[np.float64], mask: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Summands of Eq. 7, p̄(v) (log q̄(v) - log p̄(v)), both renormalised on the mask; 0 off it."""
    log_p = log_renormalise(student, mask)
    return _terms(log_p, log_renormalise(teacher, mask), log_p, mask)


def _terms(
    log_weight: NDArray[np.float64],
    log_above: NDArray[np.float64],
    log_below: NDArray[np.float64],
    mask: NDArray[np.bool_],
) -> NDArray[np.float64]:
    """Compute w (log a - log b) on the mask and 0 off it, with 0 · anything = 0 where w is 0."""
    weight = np.exp(log_weight)
    with np.errstate(invalid="ignore"):  # -inf - -inf and 0 · inf are replaced just below
        terms = weight * (log_above - log_below)
    return np.where(mask & (weight != 0), terms, 0.0)
