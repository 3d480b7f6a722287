"""Rollout-level signals: the distillation reward, and how well it predicts."""

import numpy as np
from numpy.typing import ArrayLike, NDArray


def sequence_mean_reward(
    student_logp: ArrayLike, teacher_logp: ArrayLike, rollout: ArrayLike
) -> NDArray[np.float64]:
    """Average the sampled-token distillation reward over each rollout.

    Parameters
    ----------
    student_logp, teacher_logp : (n_state,) array_like of float
        Both models' log-probabilities of the tokens the student drew, in nats, flat over states.
    rollout : (n_state,) array_like of int
        Rollout each state belongs to, 0 or more.

    Returns
    -------
    (max(rollout) + 1,) ndarray of float64
        (1/T) Σ_t [log q_t(y_t) - log p_t(y_t)] over the recorded states of each rollout, in nats;
        higher if the teacher finds the rollout more likely. NaN for a rollout without states or
        with a NaN.

    Raises
    ------
    ValueError
        If the three differ in shape or are not one-dimensional, or if `rollout` does not hold
        integers >= 0.

    References
    ----------
    r̄(y), §6.2. ms-swift logs the mean of the same summand as its teacher gap.

    Examples
    --------
    >>> sequence_mean_reward([-1.0, -2.0, -0.5], [-1.5, -1.0, -0.5], [0, 0, 2])
    array([0.25,  nan, 0.  ])
    >>> sequence_mean_reward([], [], np.array([], int))
    array([], dtype=float64)
    """
    student = np.asarray(student_logp, dtype=np.float64)
    teacher = np.asarray(teacher_logp, dtype=np.float64)
    rollout = np.asarray(rollout)
    if not student.shape == teacher.shape == rollout.shape or rollout.ndim != 1:
        raise ValueError(
            f"student_logp, teacher_logp and rollout have shapes {student.shape}, {teacher.shape} "
            f"and {rollout.shape}; expected all three flat over states: ravel them first."
        )
    if not np.issubdtype(rollout.dtype, np.integer) or rollout.min(initial=0) < 0:
        raise ValueError(
            f"rollout has dtype {rollout.dtype} and minimum {rollout.min(initial=0)}; expected "
            "integers >= 0: number the rollouts with numpy.unique(return_inverse=True)."
        )
    with np.errstate(invalid="ignore"):  # -inf - -inf: NaN, as documented; 0/0 without states
        total = np.bincount(rollout, weights=teacher - student)
        return total / np.bincount(rollout)


def reward_auroc(reward: ArrayLike, correct: ArrayLike, group: ArrayLike | None = None) -> float:
    """Measure how well a reward separates correct from incorrect rollouts.

    Parameters
    ----------
    reward : (...) array_like of float
        One reward per rollout, in any unit; infinities are allowed.
    correct : (...) array_like of bool or float
        1 correct, 0 incorrect, NaN unknown.
    group : (...) array_like, optional
        Group of each rollout, such as its prompt: then only pairs within one group count.

    Returns
    -------
    float
        Probability that a random correct rollout has a higher reward than a random incorrect one,
        ties counting half, in [0, 1]: 0.5 is no signal. Over all pairs of a correct and an
        incorrect rollout; with groups, over the pairs within a group, all groups together.
        Rollouts with a NaN reward or unknown correctness are left out. NaN if there is no pair.

    Raises
    ------
    ValueError
        If the shapes differ or `correct` has values other than 0, 1 and NaN.

    Notes
    -----
    A reward that only tells easy prompts from hard ones, and says nothing about which response to
    a prompt is right, has a high AUROC over all pairs and one of 0.5 within prompts.

    See Also
    --------
    reward_signal : both, beside the same two of the response's length.

    References
    ----------
    §6.2 and Fig. 14. The Mann-Whitney U statistic over the number of pairs.

    Examples
    --------
    >>> reward_auroc([-0.1, -0.3, -0.2, -0.5], [1, 1, 0, 0])
    0.75
    >>> reward_auroc([0.0, 0.0], [True, False])
    0.5
    >>> reward_auroc([-0.1, -0.3, -0.2, -0.5], [1, 1, 0, 0], group=["a", "b", "a", "a"])
    1.0
    >>> reward_auroc([0.1, 0.2], [1, np.nan])
    nan
    """
    wins, pairs = pair_counts(reward, correct, group)
    return float(wins.sum() / pairs.sum()) if pairs.any() else float("nan")


def pair_counts(
    reward: ArrayLike, correct: ArrayLike, group: ArrayLike | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Count each group's pairs of a correct and an incorrect rollout.

    Parameters
    ----------
    reward, correct, group
        As in `reward_auroc`.

    Returns
    -------
    wins, pairs : (n_group,) ndarray of float64
        Pairs in which the correct rollout has the higher reward, ties counting half, and all pairs;
        in the order of the sorted groups, those without a pair included.

    Raises
    ------
    ValueError
        As `reward_auroc`.
    """
    reward = np.asarray(reward, dtype=np.float64)
    correct = np.asarray(correct, dtype=np.float64)
    group = np.zeros(reward.shape, int) if group is None else np.asarray(group)
    if not reward.shape == correct.shape == group.shape:
        raise ValueError(
            f"reward has shape {reward.shape}, correct {correct.shape}, group {group.shape}; "
            "expected one of each per rollout."
        )
    names, place = np.unique(group, return_inverse=True)
    known = ~(np.isnan(reward) | np.isnan(correct))
    reward, correct, place = reward[known], correct[known], place.reshape(group.shape)[known]
    if odd := sorted(set(np.unique(correct)) - {0.0, 1.0}):
        raise ValueError(
            f"correct has values such as {odd[0]}; expected 0, 1 or NaN: apply a threshold first."
        )
    order = np.argsort(place, kind="stable")
    n_known = np.bincount(place, minlength=names.size)
    n_good = np.bincount(place, correct, minlength=names.size)
    pairs: NDArray[np.float64] = (n_good * (n_known - n_good)).astype(np.float64)
    ends, wins = np.cumsum(n_known), np.zeros(names.size)
    for i in np.flatnonzero(pairs).tolist():  # there may be very many groups without a pair
        rows = order[ends[i] - n_known[i] : ends[i]]
        good, bad = reward[rows][correct[rows] == 1], np.sort(reward[rows][correct[rows] == 0])
        # Incorrect rollouts below each correct one, plus those below or equal: a tie counts half.
        below = np.searchsorted(bad, good, "left").sum()
        wins[i] = (below + np.searchsorted(bad, good, "right").sum()) / 2
    return wins, pairs
