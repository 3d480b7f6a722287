"""Comparisons of ranked lists, against the definitions by loops over two lists of tokens."""

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from opdprobe import ConfigError, probes
from opdprobe.store.schema import match_tokens


@st.composite
def two_lists(draw, least=1):
    """Two lists of equal length from a few tokens, so that they share some."""
    k = draw(st.integers(least, 8))
    lists = st.permutations(range(12)).map(lambda tokens: tokens[:k])
    return draw(lists), draw(lists)


def match_of(lists):
    return match_tokens(*map(np.array, lists))


@given(two_lists())
def test_jaccard_and_first_choices(lists):
    s, t = lists
    match = match_of(lists)
    shared = len(set(s) & set(t))
    assert probes.jaccard(match) == shared / len(set(s) | set(t))
    ratio = probes.overlap_ratio(s, t)
    assert probes.jaccard(match) == pytest.approx(ratio / (2 - ratio))
    assert probes.argmax_disagreement(match) == (s[0] != t[0])
    for n in range(1, len(s) + 1):
        assert probes.top1_acceptance(match, n=n) == (s[0] in t[:n])


@given(two_lists(), st.floats(0.05, 0.95))
def test_rank_biased_overlap_is_webbers(lists, p):
    s, t = lists
    k = len(s)
    shared = [len(set(s[:d]) & set(t[:d])) for d in range(1, k + 1)]
    want = shared[-1] / k * p**k + (1 - p) / p * sum(
        x / d * p**d for d, x in enumerate(shared, start=1)
    )
    found = probes.rank_biased_overlap(match_of(lists), persistence=p)
    assert found == pytest.approx(want, abs=1e-12)


@given(two_lists())
def test_kendall_tau_is_scipys_on_the_shared_tokens(lists):
    s, t = lists
    shared = [v for v in s if v in t]
    found = probes.kendall_tau(match_of(lists))
    if len(shared) < 2:
        assert math.isnan(found)
        return
    places = [t.index(v) for v in shared]
    assert found == pytest.approx(stats.kendalltau(range(len(shared)), places).statistic)
    # The definition: pairs in the same order minus pairs in the other order.
    pairs = [1 if a < b else -1 for a, b in combinations(places, 2)]
    assert found == pytest.approx(sum(pairs) / len(pairs))


def test_kendall_tau_of_long_lists():
    match = np.random.default_rng(0).permutation(300)
    match[::7] = -1
    shared = match[match >= 0]
    want = stats.kendalltau(range(len(shared)), shared).statistic
    assert probes.kendall_tau(match) == pytest.approx(want)


@given(two_lists(), st.integers(0, 14))
def test_the_drawn_tokens_rank(lists, drawn):
    s, _ = lists
    assert probes.drawn_rank(s, drawn) == (s.index(drawn) if drawn in s else len(s))


@given(two_lists(), st.integers(0, 2**32 - 1), st.sampled_from([0.3, 0.5, 0.7]))
def test_nuclei_are_the_smallest_beginnings_that_hold_the_mass(lists, seed, mass):
    s, t = lists
    rng = np.random.default_rng(seed)
    logps = []
    sets = []
    for tokens in (s, t):
        p = np.sort(rng.dirichlet(np.ones(len(tokens))))[::-1] * rng.uniform(0.4, 1)
        logps.append(np.log(p))
        sizes = [n for n in range(1, len(p) + 1) if p[:n].sum() >= mass - 1e-6]
        sets.append(set(tokens[: sizes[0]]) if sizes else None)
    found = probes.nucleus_overlap(*logps, match_of(lists), mass=mass)
    if None in sets:
        assert math.isnan(found)
    else:
        assert found == len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def test_every_function_works_over_leading_axes():
    rng = np.random.default_rng(0)
    ids = np.array([[rng.permutation(9)[:5] for _ in range(2)] for _ in range(6)])
    match = match_tokens(ids[:, 0], ids[:, 1])
    for function in (
        probes.jaccard,
        probes.argmax_disagreement,
        probes.top1_acceptance,
        probes.kendall_tau,
        probes.rank_biased_overlap,
    ):
        together = function(match.reshape(2, 3, 5))
        assert together.shape == (2, 3)
        np.testing.assert_array_equal(together.ravel(), [function(row) for row in match])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: probes.top1_acceptance(m, n=0), "n = 0; expected 1 to 2"),
        (lambda m: probes.top1_acceptance(m, n=3), "n = 3; expected 1 to 2"),
        (lambda m: probes.rank_biased_overlap(m, persistence=1), "persistence = 1; expected"),
        (lambda m: probes.nucleus_overlap([0, 0], [0, 0], m, mass=0), "mass = 0"),
    ],
)
def test_settings_out_of_range_are_refused(call, message):
    with pytest.raises(ConfigError, match=message):
        call([0, 1])
