"""What the distillation reward says about correctness, beside what the response's length says."""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from opdprobe.probes.bootstrap import Estimate, resample, resample_statistic
from opdprobe.probes.reward import pair_counts, reward_auroc

SIGNALS: Mapping[str, str] = {
    "reward": "AUROC of the sequence mean reward, all pairs",
    "reward_within": "AUROC of the sequence mean reward, pairs within a prompt",
    "length": "AUROC of brevity (baseline), all pairs",
    "length_within": "AUROC of brevity (baseline), pairs within a prompt",
}
"""What `reward_signal` gives, in words."""


def reward_signal(
    reward: ArrayLike, correct: ArrayLike, length: ArrayLike, prompt: ArrayLike
) -> dict[str, float]:
    """Measure how well the reward separates correct rollouts, with the baselines it has to beat.

    Parameters
    ----------
    reward, correct, length : (rollout,) array_like of float
        Sequence mean reward, correctness (1, 0, or NaN for unknown) and response length in tokens.
    prompt : (rollout,) array_like
        Name of each rollout's prompt. Rollouts of different steps should not share a name: the
        student has changed between them.

    Returns
    -------
    dict of str to float
        AUROCs in [0, 1], NaN without a pair (see `reward_auroc`):

        - ``reward``, ``reward_within``: of the reward, over all pairs and over those within a
          prompt. A reward that only tells easy prompts from hard ones has the first alone;
        - ``length``, ``length_within``: of minus the length; above 0.5 where shorter responses are
          more often correct, below where longer ones are. As far from 0.5 as the reward's, the
          reward may tell no more than the length does.

    Raises
    ------
    ValueError
        As `reward_auroc`.

    References
    ----------
    §6.2 and Fig. 14; the paper pools all rollouts.

    Examples
    --------
    Each prompt is all but easy or hard, and its rewards follow that, not correctness:

    >>> reward, correct = [-0.1, -0.1, -0.1, -0.9, -0.9, -0.9], [1, 1, 0, 1, 0, 0]
    >>> found = reward_signal(reward, correct, [5, 5, 9, 5, 9, 9], list("aaabbb"))
    >>> {name: round(value, 2) for name, value in found.items()}
    {'reward': 0.67, 'reward_within': 0.5, 'length': 1.0, 'length_within': 1.0}
    """
    shorter = -np.asarray(length, np.float64)
    return {
        "reward": reward_auroc(reward, correct),
        "reward_within": reward_auroc(reward, correct, prompt),
        "length": reward_auroc(shorter, correct),
        "length_within": reward_auroc(shorter, correct, prompt),
    }


def signal_estimates(
    reward: ArrayLike,
    correct: ArrayLike,
    length: ArrayLike,
    prompt: ArrayLike,
    cluster: ArrayLike | None = None,
    *,
    n_boot: int = 200,
) -> dict[str, Estimate]:
    """Estimate what `reward_signal` gives; the bootstrap draws prompts.

    Parameters
    ----------
    reward, correct, length, prompt
        As in `reward_signal`.
    cluster : (rollout,) array_like, optional
        What is drawn, where it is not `prompt`: the rollouts of one prompt at several steps are
        drawn together, though only those of one step form pairs.
    n_boot
        Replicates of an AUROC over all pairs. Each is a sort; 200 fix a bound to 0.01.
    """
    reward, correct = np.asarray(reward, np.float64), np.asarray(correct, np.float64)
    shorter, prompt = -np.asarray(length, np.float64), np.asarray(prompt)
    unit = np.unique(prompt if cluster is None else np.asarray(cluster), return_inverse=True)[1]
    first = np.unique(prompt, return_index=True)[1]
    of_prompt = unit[first]  # all rollouts of one prompt are in one cluster
    n_unit = int(unit.max(initial=-1)) + 1

    def pooled(score: NDArray[np.float64]) -> Estimate:
        statistic: Callable[[NDArray[np.intp]], float] = lambda rows: reward_auroc(  # noqa: E731
            score[rows], correct[rows]
        )
        return resample_statistic(statistic, unit, n_boot)

    def within(score: NDArray[np.float64]) -> Estimate:
        # A ratio of sums over prompts, so that a prompt drawn twice does not pair with itself.
        sums = (
            np.bincount(of_prompt, part, n_unit) for part in pair_counts(score, correct, prompt)
        )
        return resample(*sums, bounds=(0, 1))

    return {
        "reward": pooled(reward),
        "reward_within": within(reward),
        "length": pooled(shorter),
        "length_within": within(shorter),
    }
