"""Repetition: against a plain count of n-grams, and over a run."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opdprobe.errors import ConfigError, StoreError
from opdprobe.probes import repeated_ngrams, repetition
from opdprobe.store import RunWriter, open_run
from opdprobe.testing import synthetic_step

# Rollouts, each a list of (token, whether its state was recorded).
ROLLOUTS = st.lists(st.lists(st.tuples(st.integers(0, 2), st.booleans()), max_size=12), max_size=5)


def flat(rollouts):
    rows = [
        (token, rollout, position)
        for rollout, tokens in enumerate(rollouts)
        for position, (token, kept) in enumerate(tokens)
        if kept
    ]
    return np.array(rows, int).reshape(-1, 3).T


def counted(tokens, n):
    """Count the n-grams of a rollout, one by one."""
    seen = [
        tuple(token for token, _ in tokens[i : i + n])
        for i in range(len(tokens) - n + 1)
        if all(kept for _, kept in tokens[i : i + n])
    ]
    return 1 - len(set(seen)) / len(seen) if seen else np.nan


@given(rollouts=ROLLOUTS, n=st.integers(1, 5))
def test_it_is_the_share_of_ngrams_that_occurred_before(rollouts, n):
    token, rollout, position = flat(rollouts)
    found = repeated_ngrams(token, rollout, position, n=n)
    want = [counted(tokens, n) for tokens in rollouts][: len(found)]
    np.testing.assert_allclose(found, want, rtol=0, atol=1e-12)
    assert len(found) == rollout.max(initial=-1) + 1


def test_large_vocabularies_do_not_overflow():
    rng = np.random.default_rng(0)
    token = rng.integers(2**31 - 1, size=1000)
    loop = np.tile(token[:100], 10)
    where = np.zeros(1000, int), np.arange(1000)
    assert repeated_ngrams(token, *where)[0] == 0
    assert repeated_ngrams(loop, *where)[0] == pytest.approx(1 - 100 / 997)


def test_an_n_below_1_is_refused():
    with pytest.raises(ConfigError, match="n = 0; expected a whole number above 0"):
        repeated_ngrams([1], [0], [0], n=0)


def test_over_a_run(tmp_path):
    writer = RunWriter(tmp_path, attrs={}, config={}, resume=False)
    varied, looping = (
        synthetic_step(step, n_rollouts=2, length=[8, 2]).drop_vars("response_ids")
        for step in (0, 1)
    )
    varied["sampled_id"].values[:] = np.arange(10)
    looping["sampled_id"].values[:] = 7
    for step, ds in enumerate((varied, looping)):
        writer.write_step(step, ds.assign(finished=("rollout", np.array([step == 0, True]))))
    found = repetition(open_run(tmp_path))
    assert found["repeated"].values.tolist() == [0, 0.8]  # one of 5 4-grams is new
    assert found["worst"].values.tolist() == [0, 0.8]
    assert found["truncated"].values.tolist() == [0, 0.5]
    assert found.attrs == {"n": 4}
    short = repetition(open_run(tmp_path), n=9)
    assert short["repeated"].isnull().all()


def test_without_drawn_tokens(tmp_path):
    writer = RunWriter(tmp_path, attrs={}, config={}, resume=False)
    writer.write_step(0, synthetic_step(0, n_rollouts=2).drop_vars(["sampled_id", "sampled_logp"]))
    with pytest.raises(StoreError, match="does not hold the drawn tokens"):
        repetition(open_run(tmp_path))
