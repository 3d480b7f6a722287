"""How far the engine that sampled and the model that is trained differ, at the drawn tokens."""

import numpy as np
from numpy.typing import ArrayLike, NDArray


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
