"""Masses and renormalisation against sums in plain Python."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from opdprobe.probes import overlap_mass, topk_mass
from opdprobe.probes.mass import log_renormalise


@st.composite
def listed(draw):
    """Full-vocabulary log-probabilities of k of 12 tokens, and a mask over them."""
    logits = draw(hnp.arrays(float, (3, 12), elements=st.floats(-40, 40)))
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    k = draw(st.integers(1, 12))
    return logp[:, :k], draw(hnp.arrays(bool, (3, k)))


@given(listed())
def test_mass_is_the_sum_over_the_set(case):
    logp, mask = case
    for row, inside, mass, whole in zip(
        logp, mask, overlap_mass(logp, mask), topk_mass(logp), strict=True
    ):
        expected = math.fsum(math.exp(x) for x, i in zip(row, inside, strict=True) if i)
        assert math.isclose(mass, expected, rel_tol=1e-12)
        assert math.isclose(whole, math.fsum(map(math.exp, row)), rel_tol=1e-12)
        assert 0 <= mass <= whole + 1e-12 <= 1 + 2e-12


@given(listed())
def test_set_and_complement_add_up(case):
    logp, mask = case
    np.testing.assert_allclose(
        overlap_mass(logp, mask) + overlap_mass(logp, ~mask), topk_mass(logp), rtol=1e-12
    )


def test_nan_counts_only_inside_the_mask():
    logp = [[np.log(0.5), np.nan], [np.nan, -np.inf]]
    mask = [[True, False], [False, True]]
    np.testing.assert_allclose(overlap_mass(logp, mask), [0.5, 0.0])
    assert np.isnan(overlap_mass(logp, np.ones((2, 2), bool))).all()
    assert np.isnan(topk_mass(logp)).all()


@given(listed())
def test_renormalised_probabilities_sum_to_one_on_the_set(case):
    logp, mask = case
    mask[:, 0] = True
    renormalised = log_renormalise(logp, mask)
    np.testing.assert_allclose(np.exp(renormalised).sum(-1), 1.0)
    assert (renormalised[~mask] == -np.inf).all()
    # Ratios inside the set are untouched.
    shift = np.where(mask, logp - renormalised, np.nan)
    np.testing.assert_allclose(shift - shift[:, :1], np.where(mask, 0.0, np.nan), atol=1e-9)


def test_renormalising_tiny_masses_does_not_underflow():
    np.testing.assert_allclose(log_renormalise([-2000.0, -2000.0]), np.log([0.5, 0.5]))


def test_nothing_to_renormalise_on_is_nan():
    assert np.isnan(log_renormalise([0.0, -1.0], [False, False])).all()
    assert np.isnan(log_renormalise([-np.inf, -np.inf])).all()
