import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from opdprobe.errors import StoreError
from opdprobe.store.schema import (
    REQUIRED,
    SCHEMA_VERSION,
    VARIABLES,
    match_tokens,
    step_dataset,
    validate,
)
from opdprobe.testing import synthetic_step


def match_oracle(student, teacher):
    """Straight from the definition: the first index of each token in the other list, or -1."""
    return [teacher.index(token) if token in teacher else -1 for token in student]


@settings(deadline=None)  # a busy machine is no failure
@given(st.data(), st.integers(0, 5), st.integers(0, 6), st.integers(0, 6))
def test_match_tokens_is_the_first_index(data, n, k, m):
    ids = st.integers(0, 8)  # few ids, so that hits and repeats are common
    student = data.draw(hnp.arrays(np.int32, (n, k), elements=ids))
    teacher = data.draw(hnp.arrays(np.int32, (n, m), elements=ids))
    match = match_tokens(student, teacher)
    assert match.dtype == np.int8
    assert match.shape == (n, k)
    rows = zip(student.tolist(), teacher.tolist(), strict=True)
    assert match.tolist() == [match_oracle(s, t) for s, t in rows]


def test_match_tokens_keeps_leading_axes_and_crosses_blocks():
    rng = np.random.default_rng(0)
    student, teacher = rng.permuted(np.tile(np.arange(20), (2, 3, 5000, 1)), axis=-1)[..., :4]
    match = match_tokens(student, teacher)
    assert match.shape == (3, 5000, 4)
    hits = student[..., :, None] == teacher[..., None, :]
    np.testing.assert_array_equal(match, np.where(hits.any(-1), hits.argmax(-1), -1))


def test_match_tokens_of_long_lists_does_not_overflow():
    ids = np.arange(300)
    match = match_tokens(ids, ids)
    assert match.dtype == np.int16
    np.testing.assert_array_equal(match, ids)


def test_match_tokens_refuses_lists_that_no_index_fits():
    ids = np.arange(32_768)
    with pytest.raises(ValueError, match="have 32768 tokens; expected at most 32767"):
        match_tokens(ids[:1], ids)


@pytest.mark.parametrize(("student", "teacher"), [([[1]], [1]), ([[1], [2]], [[1]]), (1, 1)])
def test_match_tokens_rejects_other_leading_axes(student, teacher):
    with pytest.raises(ValueError, match=r"expected .* with equal leading axes"):
        match_tokens(student, teacher)


def test_step_dataset_has_the_schemas_form():
    ds = synthetic_step(n_rollouts=3, length=[2, 0, 5], k=4, given=True)
    assert set(ds.variables) == set(VARIABLES)
    assert ds.attrs["schema_version"] == SCHEMA_VERSION
    for name, variable in VARIABLES.items():
        assert ds[name].dims == variable.dims
        assert ds[name].attrs == {"units": variable.units, "long_name": variable.long_name}
        if variable.dtype == "str":
            assert ds[name].dtype.kind == "U"
        else:
            assert ds[name].dtype == variable.dtype


def test_the_rollout_coordinate_lives_beside_the_rollout_dimension():
    ds = synthetic_step(n_rollouts=3, length=[2, 0, 5], k=4)
    assert ds["rollout"].dims == ("state",)
    assert ds.isel(rollout=[2]).sizes["state"] == 7  # picks rows of the tables, not states
    assert ds.isel(state=slice(2)).sizes["rollout"] == 3
    per_rollout = ds["entropy"].groupby("rollout").mean()
    assert per_rollout["rollout"].values.tolist() == [0, 2]
    np.testing.assert_array_equal(
        ds["length"].isel(rollout=ds["rollout"].variable).values, [2, 2, 5, 5, 5, 5, 5]
    )


def minimal(**changes):
    arrays = {
        "token_id": [[[3, 1], [1, 0]], [[0, 1], [0, 1]]],
        "logp": np.full((2, 2, 2, 2), -1.0),
        "entropy": [[1.2, 1.1], [0.4, 0.0]],
        "reverse_kl": [0.3, 0.0],
        "rollout": [0, 7],
        "position": [5, 0],
    }
    return arrays | changes


def test_rollout_tables_and_sampled_tokens_are_optional():
    ds = step_dataset(**minimal())
    assert set(ds.variables) == set(REQUIRED)
    assert ds["match"].values.tolist() == [[-1, 0], [0, 1]]


def test_probability_zero_and_a_step_without_states_are_valid():
    logp = np.full((2, 2, 2, 2), -1.0)
    logp[..., 1] = -np.inf
    validate(step_dataset(**minimal(logp=logp, reverse_kl=[np.inf, 0.0])))
    empty = synthetic_step(n_rollouts=2, length=0)
    assert empty.sizes["state"] == 0
    validate(empty)
    validate(synthetic_step(n_rollouts=0))


def test_attrs_and_a_step_per_state_are_kept():
    ds = step_dataset(**minimal(step=[3, 4]), attrs={"student": "x"})
    assert ds.attrs["student"] == "x"
    assert ds["step"].values.tolist() == [3, 4]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"token_id": [[1, 2]]}, r"token_id has shape \(1, 2\); expected \(states, 2, k\)"),
        ({"token_id": [[[3.0, 1.5]] * 2] * 2}, "token_id has dtype float64; expected int32"),
        ({"token_id": [[[2**31, 1]] * 2] * 2}, "token_id holds 2147483648, which does not fit"),
        ({"entropy": [1.0, 2.0]}, r"entropy has shape \(2,\); expected one axis for each of"),
        ({"reverse_kl": [0.1, 0.1, 0.1]}, "arrays of a step disagree: .*state"),
        ({"sampled_id": [1, 1]}, "only one of sampled_id, sampled_logp"),
        ({"response_ids": [1]}, "response_ids is present without length"),
    ],
)
def test_step_dataset_says_which_array_is_wrong(changes, message):
    with pytest.raises(StoreError, match=message):
        step_dataset(**minimal(**changes))


def changed(name, index, value):
    def change(ds):
        values = ds[name].values.copy()
        values[index] = value
        return ds.assign({name: ds[name].copy(data=values)})

    return change


def swapped_ranks(ds):
    return ds.assign(logp=ds["logp"].copy(data=ds["logp"].values[..., ::-1]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda ds: ds.drop_vars("logp"), "logp is missing; expected dims"),
        (lambda ds: ds.drop_vars("rollout"), "rollout is missing"),
        (lambda ds: ds.reset_coords("position"), "position is a data variable"),
        (lambda ds: ds.transpose("rank", ...), r"token_id has dims \('rank', 'state', 'support'\)"),
        (lambda ds: ds.assign(entropy=ds.entropy.astype(int)), "entropy has dtype int64; expected"),
        (lambda ds: ds.assign(prompt_id=ds.length), "prompt_id has dtype int32; expected str"),
        (lambda ds: ds.isel(model=[1, 0]), r"model = \('teacher', 'student'\); expected"),
        (changed("token_id", (1, 0, 2), -5), r"token_id = -5 at index \(1, 0, 2\)"),
        (changed("logp", (0, 1, 1, 3), np.nan), r"logp = nan at index \(0, 1, 1, 3\)"),
        (changed("logp", (0, 0, 1, 3), 0.5), "logp = 0.5 .* expected a log-probability"),
        (changed("logp", (0, 0), -0.1), "probability mass of logp .* normalise over all"),
        (changed("sampled_logp", (2, 1), np.nan), r"sampled_logp = nan at index \(2, 1\)"),
        (changed("entropy", (2, 1), np.inf), r"entropy = inf at index \(2, 1\)"),
        (changed("entropy", (2, 1), -1), "entropy = -1.0"),
        (changed("reverse_kl", 2, np.nan), "reverse_kl = nan"),
        (changed("reverse_kl", 2, -0.2), "reverse_kl = -0.2"),
        (changed("correct", 0, 1.5), "correct = 1.5 .* expected 0 to 1"),
        (changed("match", (0, 0), 3), "match = 3 .* expected match_tokens"),
        (changed("match", (0, 0), -2), "match = -2 .* expected match_tokens"),
        (swapped_ranks, "logp of support student .* expected most probable first"),
        (changed("rollout", 0, 4), "rollout = 4 .* expected < 4"),
        (changed("rollout", 0, -1), "rollout = -1 .* expected >= 0"),
        (changed("position", 0, 8), "position = 8 .* less than the response's length"),
        (changed("length", 0, 9), "response_ids holds 32 tokens; expected .* = 33"),
        (changed("prompt_length", 0, 4), "prompt_ids holds 12 tokens; expected .* = 13"),
        (changed("sampled_id", 5, 60), r"sampled_id = 60 at index \(5,\)"),
        (lambda ds: ds.drop_vars("sampled_logp"), "only one of sampled_id, sampled_logp"),
        (lambda ds: ds.drop_attrs(deep=False), "schema_version = None"),
        (
            lambda ds: ds.assign_attrs(schema_version=99),
            f"schema_version = 99; expected at most {SCHEMA_VERSION}: upgrade",
        ),
    ],
)
def test_validate_names_what_is_wrong(change, message):
    ds = synthetic_step(k=4)
    validate(ds)
    with pytest.raises(StoreError, match=message):
        validate(change(ds))


def test_validate_finds_a_repeated_id_in_one_support():
    ds = synthetic_step(k=4)
    values = ds["token_id"].values.copy()
    values[4, 1, 3] = values[4, 1, 0]
    with pytest.raises(StoreError, match=r"token_id of support teacher .* ids without repeats"):
        validate(ds.assign(token_id=ds["token_id"].copy(data=values)))


def test_validate_loads_lazy_variables_and_ignores_foreign_ones():
    ds = synthetic_step(k=4).chunk(state=3).assign(mine=("state", np.zeros(32)))
    validate(ds)


@settings(deadline=None)  # a busy machine is no failure
@given(st.integers(0, 3), st.floats(0, 1), st.lists(st.integers(0, 4), min_size=1, max_size=3))
def test_a_synthetic_step_is_one_pair_of_distributions(seed, agreement, lengths):
    size = 6  # k equal to the vocabulary: then the stored top-k is all there is
    shape = {"n_rollouts": len(lengths), "length": lengths, "k": size, "vocab_size": size}
    ds = synthetic_step(**shape, agreement=agreement, seed=seed)
    logp = ds["logp"].values[:, :, 0].astype(float)  # (state, model, rank), on the student's list
    p, log_ratio = np.exp(logp), logp[:, 0] - logp[:, 1]
    np.testing.assert_allclose(p.sum(-1), np.ones(ds["entropy"].shape), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(ds["entropy"], -(p * logp).sum(-1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        ds["reverse_kl"], (p[:, 0] * log_ratio).sum(-1), rtol=1e-4, atol=1e-5
    )
    drawn = match_tokens(ds["sampled_id"].values[:, None], ds["token_id"].values[:, 0])
    sampled_logp = np.take_along_axis(logp, drawn[:, None, :].astype(int), axis=-1)[..., 0]
    np.testing.assert_allclose(ds["sampled_logp"], sampled_logp, rtol=1e-4, atol=1e-5)


def test_synthetic_agreement_orders_overlap():
    overlap = [
        float((synthetic_step(length=100, agreement=a)["match"] >= 0).mean()) for a in (0, 0.8, 1)
    ]
    assert overlap[0] < overlap[1] < overlap[2] == 1.0
