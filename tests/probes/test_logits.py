"""`from_logits` against a softmax, a sort and sums in plain Python."""

import math

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from opdprobe.errors import ConfigError, NonFiniteError, VocabularyError
from opdprobe.probes import from_logits, logits
from opdprobe.store.schema import validate

B, T, V = 3, 5, 20


def pair(seed=0, shape=(B, T, V)):
    return np.random.default_rng(seed).normal(scale=3.0, size=(2, *shape))


def log_softmax(row):
    top = max(row)
    log_z = top + math.log(math.fsum(math.exp(x - top) for x in row))
    return [x - log_z for x in row]


@given(
    # Few distinct values, so that ties are common; -inf is a token ruled out.
    hnp.arrays(float, (2, 2, 6), elements=st.sampled_from([-np.inf, -20.0, -1.5, 0.0, 0.25, 4.0])),
    st.integers(1, 6),
    st.sampled_from([0.5, 1.0, 2.0]),
)
def test_every_number_follows_its_definition(both, k, temperature):
    both[..., 2] = 0.0  # no row without probability
    sampled = np.array([2, 5])
    ds = from_logits(both[0], both[1], k=k, sampled_ids=sampled, temperature=temperature)
    for t in range(2):
        logs = [log_softmax((both[m, t] / temperature).tolist()) for m in range(2)]
        p, q = ([math.exp(x) for x in row] for row in logs)
        for s in range(2):
            top = sorted(range(6), key=lambda v, s=s: (-both[s, t, v], v))[:k]
            assert ds.token_id.values[t, s].tolist() == top
            for m in range(2):
                np.testing.assert_allclose(
                    ds.logp.values[t, m, s], [logs[m][v] for v in top], rtol=1e-6, atol=1e-6
                )
        for m, row in enumerate((p, q)):
            entropy = -math.fsum(x * math.log(x) for x in row if x)
            np.testing.assert_allclose(ds.entropy.values[t, m], entropy, rtol=1e-6, atol=1e-6)
            np.testing.assert_allclose(
                ds.sampled_logp.values[t, m], logs[m][sampled[t]], rtol=1e-6, atol=1e-6
            )
        kl = math.fsum(
            p[v] * (logs[0][v] - logs[1][v]) if q[v] else math.inf for v in range(6) if p[v]
        )
        np.testing.assert_allclose(ds.reverse_kl.values[t], kl, rtol=1e-6, atol=1e-6)


def test_layout():
    student, teacher = pair()
    ids = np.arange(B * T).reshape(B, T)
    ds = from_logits(student, teacher, k=4, sampled_ids=ids)
    validate(ds)
    np.testing.assert_array_equal(ds["rollout"], np.repeat(np.arange(B), T))
    np.testing.assert_array_equal(ds.position, np.tile(np.arange(T), B))
    np.testing.assert_array_equal(ds.sampled_id, ids.ravel())
    np.testing.assert_array_equal(ds.length, [T] * B)
    assert (ds.step == 0).all()
    assert ds.attrs["k"] == 4
    assert "sampled_id" not in from_logits(student, teacher)


@pytest.mark.parametrize("shape", [(V,), (T, V), (2, B, T, V)])
def test_any_leading_shape(shape):
    student, teacher = pair(shape=shape)
    t = shape[-2] if len(shape) > 1 else 1
    mask = np.ones(shape[:-1], bool)
    ds = from_logits(student, teacher, k=3, mask=mask)
    flat = from_logits(student.reshape(-1, t, V), teacher.reshape(-1, t, V), k=3)
    xr.testing.assert_identical(ds, flat)


def test_mask_keeps_the_response_and_never_reads_the_rest():
    student, teacher = pair()
    mask = np.zeros((B, T), bool)
    mask[0, 2:], mask[2, 1:3] = True, True  # row 1 has no response
    ids = np.full((B, T), -100)
    ids[mask] = 7
    bare = from_logits(student, teacher, k=4, sampled_ids=ids, mask=mask)
    np.testing.assert_array_equal(bare["rollout"], [0, 0, 0, 2, 2])
    np.testing.assert_array_equal(bare.position, [0, 1, 2, 0, 1])
    np.testing.assert_array_equal(bare.length, [3, 0, 2])
    student[~mask], teacher[~mask] = np.nan, np.inf
    wider = [
        np.pad(x, ((0, 0), (4, 1), (0, 0)), constant_values=np.nan) for x in (student, teacher)
    ]
    sides = ((0, 0), (4, 1))
    padded = from_logits(*wider, k=4, sampled_ids=np.pad(ids, sides), mask=np.pad(mask, sides) * 1)
    xr.testing.assert_identical(bare, padded)


def test_nothing_kept_is_an_empty_step():
    ds = from_logits(*pair(), k=4, mask=np.zeros((B, T), bool))
    assert ds.sizes["state"] == 0
    assert ds.logp.shape == (0, 2, 2, 4)


@pytest.mark.parametrize("block", [1, V * 4, V * 100])
def test_blocks_change_nothing(monkeypatch, block):
    expected = from_logits(*pair(), k=4)
    monkeypatch.setattr(logits, "_BLOCK_VALUES", block)
    xr.testing.assert_identical(from_logits(*pair(), k=4), expected)


def test_torch_gives_what_numpy_gives():
    student, teacher = pair()
    mask, ids = student[..., 0] > -1, np.full((B, T), 3)
    expected = from_logits(student, teacher, k=4, mask=mask, sampled_ids=ids)
    tensor = torch.tensor(student, requires_grad=True)
    got = from_logits(
        tensor, torch.tensor(teacher), k=4, mask=torch.tensor(mask), sampled_ids=torch.tensor(ids)
    )
    xr.testing.assert_identical(got, expected)
    xr.testing.assert_identical(  # a shifted view, as in every causal model
        from_logits(tensor[:, :-1], torch.tensor(teacher)[:, :-1], k=4),
        from_logits(student[:, :-1], teacher[:, :-1], k=4),
    )
    low = [torch.tensor(x).bfloat16() for x in (student, teacher)]
    xr.testing.assert_identical(
        from_logits(*low, k=4), from_logits(*(x.double().numpy() for x in low), k=4)
    )


def test_equal_models():
    student, _ = pair()
    ds = from_logits(student, student + 5.0, k=4)  # a softmax does not see the shift
    assert (ds.match.values == np.arange(4)).all()
    np.testing.assert_allclose(ds.reverse_kl, 0, atol=1e-12)
    np.testing.assert_allclose(ds.entropy[:, 0], ds.entropy[:, 1], rtol=1e-6)


def test_large_logits_neither_overflow_nor_underflow():
    ds = from_logits([[1e4, 0.0]], [[-1e4, 0.0]], k=2)
    assert ds.reverse_kl.item() == 1e4
    assert (ds.entropy.values == 0).all()
    assert not np.signbit(ds.entropy.values).any()  # a table would show -0.0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("model", [0, 1])
def test_non_finite_logits_name_model_and_row(model, bad):
    both = pair()
    both[model, 1, 3, 9] = bad
    with pytest.raises(
        NonFiniteError, match=r"(student|teacher) logits .* rollout 1, column 3"
    ) as e:
        from_logits(*both)
    assert str(e.value).startswith(("student", "teacher")[model])


def test_a_row_without_probability_is_refused():
    student, teacher = pair()
    teacher[0, 2] = -np.inf
    with pytest.raises(NonFiniteError, match="teacher logits have a maximum of -inf at rollout 0"):
        from_logits(student, teacher)


def test_refusals():
    student, teacher = pair()
    with pytest.raises(VocabularyError, match="20 columns, teacher logits 18; expected one"):
        from_logits(student, teacher[..., :18])
    with pytest.raises(ValueError, match=r"\(3, 5, 20\), teacher logits \(3, 4, 20\)"):
        from_logits(student, teacher[:, :4])
    with pytest.raises(ValueError, match="vocabulary on the last axis"):
        from_logits(1.0, 2.0)
    for k in (0, V + 1):
        with pytest.raises(ConfigError, match="expected 1 <= k <= 20"):
            from_logits(student, teacher, k=k)
    for temperature in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ConfigError, match="expected a finite number > 0"):
            from_logits(student, teacher, temperature=temperature)
    with pytest.raises(ValueError, match=r"mask has shape \(5,\); expected \(3, 5\)"):
        from_logits(student, teacher, mask=np.ones(T, bool))
    with pytest.raises(ValueError, match="from -100 to -100 at the kept positions"):
        from_logits(student, teacher, sampled_ids=np.full((B, T), -100))
    with pytest.raises(ValueError, match="dtype float64; expected integer"):
        from_logits(student, teacher, sampled_ids=np.zeros((B, T)))
