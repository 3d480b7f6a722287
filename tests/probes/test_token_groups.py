"""Groups of tokens, by loops over the states."""

import math
from collections import defaultdict
from statistics import mean, median

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opdprobe import ConfigError, probes
from opdprobe.errors import StoreError
from opdprobe.probes.token_groups import QUADRANTS
from opdprobe.testing import synthetic_run, synthetic_step

values = st.floats(0, 5)


@given(st.lists(st.tuples(values, values), min_size=1, max_size=30))
def test_quadrants_divide_the_states_at_both_medians(states):
    found = probes.quadrants(*zip(*states, strict=True))
    middle = [median(column) for column in zip(*states, strict=True)]
    names = {(True, True): 0, (True, False): 1, (False, True): 2, (False, False): 3}
    sums = defaultdict(lambda: [0, 0.0])
    for h, d in states:
        own = sums[QUADRANTS[names[h > middle[0], d > middle[1]]]]
        own[0] += 1
        own[1] += d
    total = sum(d for _, d in states)
    for name in QUADRANTS:
        n, part = sums[name]
        assert found[name]["states"] == pytest.approx(n / len(states))
        if total:
            assert found[name]["divergence"] == pytest.approx(part / total, abs=1e-12)


def test_quadrants_of_nothing():
    assert math.isnan(probes.quadrants([], [])["apart"]["states"])
    found = probes.quadrants([1, np.nan, 2], [1, 5, 3])
    assert found["unsure and apart"] == {"states": 0.5, "divergence": 0.75}


def test_rock_tokens_are_hard_before_and_after(tmp_path):
    run = synthetic_run(tmp_path / "run", steps=range(6), length=80, vocab_size=12, k=4)
    ends = []
    for steps in ([0, 1], [4, 5]):
        own = defaultdict(list)
        for step in steps:
            ds = run.load(step)
            for token, kl in zip(ds.sampled_id.values, ds.reverse_kl.values, strict=True):
                own[int(token)].append(float(kl))
        ends.append(own)
    first, last = ends
    threshold = median(min(mean(first[t]), mean(last[t])) for t in set(first) & set(last))
    found = probes.rock_tokens(run, steps=2, threshold=threshold, min_count=10)
    often = {t for t in first if len(first[t]) >= 10 and len(last[t]) >= 10}
    assert set(found.index) == often
    total = sum(map(sum, last.values()))
    for token, row in found.iterrows():
        assert row["count_first"] == len(first[token])
        assert row["mean_last"] == pytest.approx(mean(last[token]))
        assert row["share"] == pytest.approx(sum(last[token]) / total)
        hard = min(mean(first[token]), mean(last[token])) >= threshold
        assert row["persistent"] == hard
    assert found["persistent"].nunique() == 2
    assert found["share"].is_monotonic_decreasing


def test_what_has_no_rock_tokens(tmp_path):
    one = synthetic_run(tmp_path / "one", steps=[0])
    with pytest.raises(StoreError, match="has 1 steps; expected two"):
        probes.rock_tokens(one)
    with pytest.raises(ConfigError, match="min_count = 0"):
        probes.rock_tokens(one, min_count=0)


@pytest.mark.parametrize("bins", [1, 4, 10])
def test_calibration_by_a_loop(bins):
    ds = synthetic_step(n_rollouts=5, length=30, agreement=0.4, k=5)
    found = probes.calibration(ds, bins=bins)
    groups = defaultdict(list)
    for state in range(ds.sizes["state"]):
        p, q = np.exp(ds.logp.values[state, :, 0, 0].astype(float))
        groups[min(int(p * bins), bins - 1)].append((p, q))
    error = 0.0
    for i in range(bins):
        own = groups[i]
        assert int(found["states"][i]) == len(own)
        if own:
            p, q = map(mean, zip(*own, strict=True))
            assert float(found["student"][i]) == pytest.approx(p, rel=1e-6)
            assert float(found["teacher"][i]) == pytest.approx(q, rel=1e-6)
            error += len(own) * abs(p - q)
    assert float(found["ece"]) == pytest.approx(error / ds.sizes["state"], rel=1e-6)
    with pytest.raises(ConfigError, match="bins = 0"):
        probes.calibration(ds, bins=0)


@given(st.lists(st.tuples(st.floats(-3, 3), st.sampled_from([0, 1, 0.5]), st.booleans())))
def test_noise_counts_contradictions(states):
    found = probes.answer_noise(*([list(c) for c in zip(*states, strict=True)] or [[]] * 3))
    of_answer = [(r, c) for r, c, inside in states if inside and c in (0, 1)]
    if not of_answer:
        assert math.isnan(found)
    else:
        assert found == pytest.approx(mean(r < 0 if c == 1 else r > 0 for r, c in of_answer))
