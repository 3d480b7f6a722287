"""AUROCs over all pairs and within prompts, against loops over pairs."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opdprobe import reward_auroc, reward_signal
from opdprobe.probes.signal import SIGNALS, signal_estimates
from opdprobe.report.course import course
from opdprobe.report.reward_signal import signal_rows
from opdprobe.store import RunWriter, open_run
from opdprobe.testing import synthetic_step

rows = st.lists(
    st.tuples(
        st.sampled_from([-2.0, -0.5, 0.0, 3.0]),
        st.sampled_from([0.0, 1.0, math.nan]),
        st.integers(1, 4),
        st.sampled_from("abc"),
    ),
    min_size=1,
    max_size=25,
)


def pairs(data, score, *, within):
    """The share of pairs that the correct one wins, by a loop."""
    wins = [
        1.0 if score(good) > score(bad) else 0.5 if score(good) == score(bad) else 0.0
        for good, bad in itertools.product(data, data)
        if good[1] == 1 and bad[1] == 0 and (not within or good[3] == bad[3])
    ]
    return math.fsum(wins) / len(wins) if wins else math.nan


@given(rows)
def test_signal_counts_pairs(data):
    found = reward_signal(*map(list, zip(*data, strict=True)))
    assert found.keys() == SIGNALS.keys()
    for within, suffix in ((False, ""), (True, "_within")):
        want = {
            "reward" + suffix: pairs(data, lambda row: row[0], within=within),
            "length" + suffix: pairs(data, lambda row: -row[2], within=within),
        }
        for name, value in want.items():
            np.testing.assert_allclose(found[name], value)


def test_a_reward_of_the_prompt_alone_says_nothing_within_prompts():
    """Prompts differ in difficulty and the reward follows it: 0.8 of the pairs, and 0.5 within."""
    rng = np.random.default_rng(0)
    prompt = np.repeat(np.arange(200), 8)
    ease = rng.random(200)[prompt]
    correct = (rng.random(1600) < ease).astype(float)
    found = reward_signal(ease, correct, np.full(1600, 7), prompt)
    assert found["reward"] > 0.8
    assert found["reward_within"] == found["length"] == found["length_within"] == 0.5


def test_group_shapes_and_missing_groups():
    assert math.isnan(reward_auroc([1.0, 2.0], [1, 0], ["a", "b"]))
    assert reward_auroc([[1.0, 2.0], [0.0, 3.0]], [[1, 0], [0, 1]], [[0, 0], [1, 1]]) == 0.5
    with pytest.raises(ValueError, match=r"group \(1,\)"):
        reward_auroc([1.0, 2.0], [1, 0], ["a"])


def test_estimates_draw_whole_prompts():
    rng = np.random.default_rng(2)
    n_prompt, n = 40, 6
    prompt = np.repeat(np.arange(n_prompt), n)
    correct = (rng.random(n_prompt * n) < 0.5).astype(float)
    # Within a prompt all pairs agree; half of the prompts have the reward upside down.
    sign = np.repeat(rng.permutation([1, -1] * (n_prompt // 2)), n)
    found = signal_estimates(sign * correct, correct, np.ones(n_prompt * n), prompt)
    values = reward_signal(sign * correct, correct, np.ones(n_prompt * n), prompt)
    for name, one in found.items():
        assert one.value == values[name]
    # Each prompt is 0 or 1: the error of their mean, with the scatter of their pairs.
    assert np.std(found["reward_within"].samples) == pytest.approx(0.5 / n_prompt**0.5, rel=0.15)
    clusters = signal_estimates(
        sign * correct, correct, np.ones(n_prompt * n), prompt, cluster=prompt // 2
    )
    assert clusters["reward_within"].value == values["reward_within"]


def graded(step, correct, prompt):
    n = len(correct)
    ds = synthetic_step(step, n_rollouts=n, length=[3, 5] * (n // 2))
    return ds.assign(
        correct=("rollout", np.asarray(correct, np.float32)),
        prompt_id=("rollout", np.asarray(prompt)),
    )


def run_of(folder, *steps):
    writer = RunWriter(folder, attrs={}, config={}, resume=False)
    for step, ds in enumerate(steps):
        writer.write_step(step, ds)
    return open_run(folder)


def test_the_report_lists_them_at_both_ends(tmp_path):
    prompt = [f"p{i // 2}" for i in range(128)]
    first = graded(0, [1, 0] * 64, prompt)  # of each prompt's two responses the shorter is right
    last = graded(1, [1, 0, 0, 1] * 32, prompt)
    run = run_of(tmp_path / "run", first, last)
    table = dict(signal_rows([run], [course(run)]))
    assert table.keys() == set(SIGNALS.values())
    ((start, end),) = table[SIGNALS["length_within"]]
    assert start.startswith("1 [0.")
    assert end.startswith("0.5 [")
    ((start, end),) = table[SIGNALS["reward"]]
    want = [reward_auroc(ds.opd.sequence_mean_reward(), ds["correct"]) for ds in (first, last)]
    assert [float(one.split()[0]) for one in (start, end)] == pytest.approx(want, abs=5e-4)


def test_few_prompts_and_partial_grades(tmp_path):
    few = run_of(tmp_path / "few", graded(0, [1, 0] * 80, [f"p{i % 63}" for i in range(160)]))
    cells = [pair for _, pairs in signal_rows([few], [course(few)]) for pair in pairs]
    pooled = dict(signal_rows([few], [course(few)]))[SIGNALS["reward"]]
    assert all("no interval" in text for pair in pooled for text in pair)
    assert cells
    partial = run_of(tmp_path / "partial", graded(0, [0.5] * 40, ["p"] * 40))
    assert signal_rows([partial], [course(partial)]) == []
    both = dict(signal_rows([few, partial], [course(few), course(partial)]))
    assert all(pairs[1] == ("–", "–") for pairs in both.values())
