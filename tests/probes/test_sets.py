"""Overlap and mass sets against sets in plain Python."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opdprobe.errors import ConfigError
from opdprobe.probes import mass_set_size, overlap_mask, overlap_ratio


@st.composite
def two_lists(draw, max_states=5, max_k=20):
    """Ids of both models, (n, k) each, without repeats within a list."""
    k = draw(st.integers(1, max_k))
    one = st.lists(st.integers(0, 30), min_size=k, max_size=k, unique=True)
    n = draw(st.integers(1, max_states))
    rows = [(draw(one), draw(one)) for _ in range(n)]
    return np.array([s for s, _ in rows]), np.array([t for _, t in rows])


@given(two_lists())
def test_overlap_is_set_intersection(lists):
    student, teacher = lists
    mask, ratio = overlap_mask(student, teacher), overlap_ratio(student, teacher)
    for s, t, row, share in zip(student.tolist(), teacher.tolist(), mask, ratio, strict=True):
        assert row.tolist() == [token in set(t) for token in s]
        assert share == len(set(s) & set(t)) / len(s)


@given(two_lists(), st.randoms(use_true_random=False))
def test_ratio_is_symmetric_and_ignores_order(lists, random):
    student, teacher = lists
    order = list(range(student.shape[1]))
    random.shuffle(order)
    ratio = overlap_ratio(student, teacher)
    np.testing.assert_array_equal(ratio, overlap_ratio(teacher, student))
    np.testing.assert_array_equal(ratio, overlap_ratio(student[:, order], teacher))
    np.testing.assert_array_equal(
        overlap_mask(student, teacher)[:, order], overlap_mask(student[:, order], teacher)
    )


@given(two_lists())
def test_equal_lists_overlap_fully_and_disjoint_ones_not_at_all(lists):
    student, _ = lists
    assert (overlap_ratio(student, student) == 1).all()
    assert (overlap_ratio(student, student + 100) == 0).all()


def test_leading_axes_are_kept():
    ids = np.arange(24).reshape(2, 3, 4)
    assert overlap_mask(ids, ids).shape == (2, 3, 4)
    assert overlap_ratio(ids, ids).shape == (2, 3)
    assert overlap_ratio([1, 2], [2, 3]) == 0.5
    assert overlap_ratio(np.zeros((0, 4), int), np.zeros((0, 4), int)).shape == (0,)


def test_mask_allows_lists_of_different_length_and_the_ratio_does_not():
    assert overlap_mask([1, 2, 3], [3]).tolist() == [False, False, True]
    with pytest.raises(ValueError, match=r"\(3,\) and \(1,\) tokens"):
        overlap_ratio([1, 2, 3], [3])
    with pytest.raises(ValueError, match="k >= 1"):
        overlap_ratio([], [])


@given(
    st.lists(st.floats(0.001, 1.0), min_size=1, max_size=12),
    st.floats(0.05, 1.0),
    st.floats(0.0, 0.2),
    st.randoms(use_true_random=False),
)
def test_mass_set_size_is_the_shortest_prefix(weights, mass, tail, random):
    p = [(1 - tail) * w / math.fsum(weights) for w in weights]
    random.shuffle(p)
    descending = sorted(p, reverse=True)
    sizes = [n for n in range(1, len(p) + 1) if math.fsum(descending[:n]) >= mass - 1e-6]
    expected = sizes[0] if sizes else len(p) + 1  # more than the list holds
    np.testing.assert_equal(float(mass_set_size(np.log(p), mass=mass)), float(expected))


def test_mass_set_size_degenerate_lists():
    sure, impossible = [0.0, -np.inf], [-np.inf, -np.inf]
    np.testing.assert_array_equal(mass_set_size([sure, impossible]), [1, 3])
    np.testing.assert_array_equal(mass_set_size([[np.log(0.99), np.nan]]), [np.nan])
    np.testing.assert_array_equal(mass_set_size([[np.nan, 0.0]]), [np.nan])
    # float32 puts this sum just below 0.97 or above it; on paper it is 0.97.
    assert mass_set_size(np.log([0.5, 0.47]).astype(np.float32)) == 2
    assert mass_set_size(np.log(np.full(7, 1 / 7)), mass=1.0) == 7


@pytest.mark.parametrize("mass", [0.0, -0.1, 1.01, float("nan")])
def test_mass_set_size_refuses_invalid_masses(mass):
    with pytest.raises(ConfigError, match=r"expected a probability in \(0, 1\]"):
        mass_set_size([0.0], mass=mass)
