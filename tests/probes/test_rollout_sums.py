"""The standard error of a step's mean, by loops and by drawing prompts again and again."""

import math

import numpy as np
import pytest

from opdprobe.probes.bootstrap import unit_keys
from opdprobe.probes.rollout_sums import RolloutSums, rollout_sums
from opdprobe.testing import synthetic_step


def sums_of(steps):
    """Sums of steps given as (prompt, sum, number of states) per rollout."""
    rows = [row for step in steps for row in step]
    n = np.array([n for _, _, n in rows])
    return RolloutSums(
        steps=np.arange(len(steps)),
        first=np.cumsum([0, *map(len, steps)]),
        unit=unit_keys(prompt for prompt, _, _ in rows),
        length=n,
        total={"x": np.array([total for _, total, _ in rows], float)},
        n={"x": n},
    )


def error(step):
    """Standard error of a ratio of sums over prompts, linearised."""
    total, n = {}, {}
    for prompt, value, count in step:
        total[prompt] = total.get(prompt, 0.0) + value
        n[prompt] = n.get(prompt, 0) + count
    prompts = [p for p in n if n[p] > 0]
    if len(prompts) < 2:
        return math.nan
    states = sum(n.values())
    centre = sum(total.values()) / states
    squares = sum((total[p] - centre * n[p]) ** 2 for p in prompts)
    return math.sqrt(len(prompts) / (len(prompts) - 1) * squares) / states


def test_of_equal_prompts_it_is_the_standard_error_of_the_mean():
    step = [("a", 1, 1), ("b", 3, 1), ("c", 8, 1), ("d", 0, 1)]
    (found,) = sums_of([step]).errors("x")
    assert found == pytest.approx(np.std([1, 3, 8, 0], ddof=1) / 2)


@pytest.mark.parametrize("seed", range(3))
def test_a_prompts_rollouts_are_one_unit_and_count_by_their_states(seed):
    rng = np.random.default_rng(seed)
    steps = [
        [(f"p{rng.integers(6)}", rng.normal(), int(rng.integers(0, 5))) for _ in range(15)]
        for _ in range(4)
    ]
    # A rollout without a state has no sum.
    steps = [[(p, v if n else 0.0, n) for p, v, n in step] for step in steps]
    assert sums_of(steps).errors("x") == pytest.approx([error(step) for step in steps])


def test_prompts_without_a_value_do_not_count():
    step = [("a", 1, 1), ("b", 3, 1)]
    with_empty = [*step, ("c", 0, 0), ("d", 0, 0)]
    assert sums_of([with_empty]).errors("x") == pytest.approx([1.0])
    assert sums_of([step, with_empty]).errors("x") == pytest.approx([1.0, 1.0])


def test_without_two_prompts_there_is_none():
    steps = [[("a", 1, 1), ("a", 5, 2)], [("a", 1, 1), ("b", 0, 0)], [], [("a", 0, 0)]]
    assert np.isnan(sums_of(steps).errors("x")).all()
    assert sums_of([[("a", 2, 1), ("b", 4, 2)]]).errors("x") == pytest.approx([0.0])  # they agree


def test_it_is_how_far_means_of_other_prompts_lie_apart():
    """Its square is right on average, for prompts whose length goes with their value."""
    rng = np.random.default_rng(0)
    means, squares = [], []
    for _ in range(500):
        n = rng.integers(1, 6, 40)
        total = n * (rng.normal(0, 1, 40) + 0.2 * n)
        sums = sums_of([list(zip(map(str, range(40)), total, n.tolist(), strict=True))])
        means.append(sums.means("x")[0])
        squares.append(sums.errors("x")[0] ** 2)
    assert np.mean(squares) == pytest.approx(np.var(means), rel=0.15)


def test_of_a_recorded_step():
    ds = synthetic_step(n_rollouts=6, length=[3, 0, 5, 2, 4, 1], k=4)
    ds["prompt_id"].values[:] = ["a", "a", "b", "c", "b", "c"]
    found = rollout_sums([ds], {"entropy": lambda ds: ds.opd.entropy("student")}).errors("entropy")
    entropy = ds["entropy"].values[:, 0].astype(float)
    step = [
        (prompt, entropy[ds["rollout"].values == i].sum(), int((ds["rollout"].values == i).sum()))
        for i, prompt in enumerate(["a", "a", "b", "c", "b", "c"])
    ]
    assert found == pytest.approx([error(step)])
