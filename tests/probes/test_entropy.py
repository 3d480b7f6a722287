"""Entropies and their gaps."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import entropy as scipy_entropy

from opdprobe.probes import entropy_gap, entropy_gap_of_means, topk_entropy

entropies = hnp.arrays(float, (2, 6), elements=st.floats(0, 12))


@given(entropies)
def test_gap_laws(pair):
    student, teacher = pair
    gap = entropy_gap(student, teacher)
    np.testing.assert_array_equal(gap, [abs(t - s) for s, t in zip(student, teacher, strict=True)])
    np.testing.assert_array_equal(gap, entropy_gap(teacher, student))
    assert (entropy_gap(student, student) == 0).all()
    assert entropy_gap_of_means(student, teacher) <= gap.mean() + 1e-12
    assert math.isclose(
        entropy_gap_of_means(student, teacher), abs(student.mean() - teacher.mean()), abs_tol=1e-12
    )


def test_unknown_entropies_are_left_out_of_the_means():
    student, teacher = [1.0, np.nan, 2.0], [3.0, 5.0, np.nan]
    np.testing.assert_array_equal(entropy_gap(student, teacher), [2.0, np.nan, np.nan])
    assert entropy_gap_of_means(student, teacher) == 2.0
    assert math.isnan(entropy_gap_of_means([np.nan], [1.0]))
    assert math.isnan(entropy_gap_of_means([], []))


def test_float32_is_subtracted_in_float64():
    gap = entropy_gap(np.array([1e-8], np.float32), np.array([1.0], np.float32))
    assert gap.dtype == np.float64
    assert gap[0] < 1.0


@given(hnp.arrays(float, (4, 5), elements=st.floats(-20, 0)))
def test_topk_entropy_is_the_entropy_of_the_renormalised_list(logp):
    got = topk_entropy(logp)
    np.testing.assert_allclose(got, scipy_entropy(np.exp(logp), axis=-1), atol=1e-9)
    assert (got >= 0).all()
    assert (got <= math.log(5) + 1e-12).all()
    np.testing.assert_allclose(got, topk_entropy(logp[:, ::-1] - 2.0), atol=1e-9)


def test_topk_entropy_degenerate_lists():
    np.testing.assert_allclose(topk_entropy(np.full(8, -30.0)), math.log(8))
    np.testing.assert_array_equal(
        topk_entropy([[0.0, -np.inf], [-np.inf, -np.inf], [0.0, np.nan]]), [0.0, np.nan, np.nan]
    )
