"""Divergences on both lists against the full vocabulary: exact at full length, bounds below."""

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from opdprobe import probes
from opdprobe.probes.evaluate import evaluate, evaluate_all
from opdprobe.probes.union import UNION_STATISTICS, union, union_statistics
from opdprobe.store.schema import match_tokens
from opdprobe.testing import synthetic_step

V = 12


def models(seed, sharpness=2.0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(2, V)) * sharpness
    p, q = np.exp(logits - np.log(np.exp(logits).sum(-1, keepdims=True)))
    return p, q


def stored(p, q, k):
    """What a store holds of two full distributions: (2, k) log-probabilities of each, match."""
    ids = [np.argsort(-x, kind="stable")[:k] for x in (p, q)]
    return (*(np.log(x)[np.array(ids)] for x in (p, q)), match_tokens(*ids)), ids


def kl(p, q):
    return sum(a * np.log(a / b) for a, b in zip(p, q, strict=True))


seeds = st.integers(0, 2**32 - 1)


@given(seeds, st.integers(1, V))
def test_the_union_holds_each_token_once(seed, k):
    p, q = models(seed)
    lists, ids = stored(p, q, k)
    both = union(*lists)
    tokens = sorted(set(ids[0]) | set(ids[1]))
    for found, rest, whole in (
        (both.student, both.student_rest, p),
        (both.teacher, both.teacher_rest, q),
    ):
        assert sorted(found[found > 0]) == pytest.approx(sorted(whole[tokens]))
        assert rest == pytest.approx(max(1 - whole[tokens].sum(), 1e-7), abs=1e-12)


@given(seeds)
def test_full_lists_give_the_divergences_of_the_vocabulary(seed):
    p, q = models(seed)
    lists, _ = stored(p, q, V)
    middle = (p + q) / 2
    want = {
        "forward_kl": kl(q, p),
        "jensen_shannon": (kl(p, middle) + kl(q, middle)) / 2,
        "bhattacharyya": np.sqrt(p * q).sum(),
    }
    for name, value in want.items():
        assert getattr(probes, name)(*lists) == pytest.approx(value, abs=1e-6), name


@given(seeds, st.integers(1, V - 1))
def test_shorter_lists_bound_them(seed, k):
    p, q = models(seed)
    lists, _ = stored(p, q, k)
    middle = (p + q) / 2
    slack = 1e-6
    assert probes.forward_kl(*lists) <= kl(q, p) + slack
    jsd = (kl(p, middle) + kl(q, middle)) / 2
    low, high = (probes.jensen_shannon(*lists, upper=u) for u in (False, True))
    assert low - slack <= jsd <= high + slack
    both = np.sqrt(p * q).sum()
    low, high = (probes.bhattacharyya(*lists, upper=u) for u in (False, True))
    assert low - slack <= both <= high + slack


@given(seeds, st.integers(1, V - 1))
def test_longer_lists_bound_them_closer(seed, k):
    p, q = models(seed)
    shorter, longer = (stored(p, q, n)[0] for n in (k, k + 1))
    for name in ("forward_kl", "jensen_shannon"):
        assert getattr(probes, name)(*shorter) <= getattr(probes, name)(*longer) + 1e-9


@given(seeds, st.integers(1, V))
def test_equal_models_do_not_differ(seed, k):
    p, _ = models(seed)
    lists, _ = stored(p, p, k)
    assert probes.forward_kl(*lists) == pytest.approx(0, abs=1e-12)
    assert probes.jensen_shannon(*lists) == pytest.approx(0, abs=1e-12)
    assert probes.bhattacharyya(*lists, upper=True) == pytest.approx(1)
    y = 0
    ier = probes.information_to_error(*lists, [np.log(p[y])] * 2, y not in np.argsort(-p)[:k])
    assert ier == pytest.approx(0, abs=1e-9)


def test_a_token_that_the_student_rules_out():
    p, q = np.array([0.6, 0.4, 0.0]), np.array([0.2, 0.3, 0.5])
    with np.errstate(divide="ignore"):
        lists, _ = stored(p, q, 2)
    assert probes.forward_kl(*lists) == np.inf
    assert 0 < probes.jensen_shannon(*lists) < np.log(2)


@given(seeds, st.integers(2, 6))
def test_information_to_error_by_its_definition(seed, k):
    p, q = models(seed, sharpness=5.0)  # some below the floor
    lists, ids = stored(p, q, k)
    y = int(np.random.default_rng(seed).integers(V))
    tokens = sorted(set(ids[0]) | set(ids[1]) | {y})
    a, b = (np.exp(np.maximum(np.log(x[tokens]), -12)) for x in (p, q))
    a, b = a / a.sum(), b / b.sum()
    c, weight = np.log(a / b), 1 / a - 1
    best = (a * c * weight).sum() / (a * weight).sum()
    variance = (a * (c - (a * c).sum()) ** 2).sum()
    error = (a * (c - best) ** 2 * weight).sum() - variance
    alone = y not in set(ids[0]) | set(ids[1])
    found = probes.information_to_error(*lists, np.log([p[y], q[y]]), alone)
    # The denominator is a small difference of equal numbers for few tokens.
    assert found == pytest.approx(variance / max(error, 1e-8), rel=1e-6, abs=1e-9)


@given(seeds, st.integers(1, V))
def test_all_at_once_are_each_by_itself(seed, k):
    p, q = models(seed, sharpness=5.0)
    lists, ids = stored(p, q, k)
    y = int(np.random.default_rng(seed).integers(V))
    drawn = np.log([p[y], q[y]]), y not in set(ids[0]) | set(ids[1])
    want = [getattr(probes, name)(*lists) for name in UNION_STATISTICS[:-1]]
    want.append(probes.information_to_error(*lists, *drawn))
    np.testing.assert_array_equal(union_statistics(*lists, *drawn), want)


def test_probes_that_are_asked_for_together_are_as_by_themselves():
    ds = synthetic_step(n_rollouts=3, length=700, k=8)  # more than a block
    names = ["jensen_shannon", "information_to_error", "entropy_gap", "forward_kl"]
    for name, found in zip(names, evaluate_all(names, ds), strict=True):
        xr.testing.assert_identical(found, evaluate(name, ds))
    xr.testing.assert_identical(ds.opd.union_statistics()["bhattacharyya"], ds.opd.bhattacharyya())
