"""`from_logits` and `score` against definitions in 60 digits, on logits that are hard."""

import numpy as np
import pytest
import torch
from error_bounds import LARGE_VOCABULARY, SCORES
from hard_logits import DTYPES, PAIRS, RULED_OUT, large_vocabulary, tensors
from mp_definitions import entropy, exact, kl, log_softmax, top_k

from opdprobe import ConfigError, NonFiniteError, from_logits
from opdprobe.models.head import Head
from opdprobe.rollout.score import score


def scored(student, teacher, *, k, temperature=1.0, sampled=0):
    """Token ids, log-probabilities, entropies, KL and sampled log-probabilities of one state."""
    head, n = Head(None, student.shape[-1]), len(student)
    ids = torch.full((n,), sampled)
    found = score(student, teacher, head, head, ids, k=k, temperature=temperature)
    return [np.asarray(column) for column in vars(found).values() if column is not None]


def from_arrays(student, teacher, *, k, temperature=1.0, sampled=0):
    ids = np.full(len(student), sampled)
    ds = from_logits(student, teacher, k=k, temperature=temperature, sampled_ids=ids)
    names = ("token_id", "logp", "entropy", "reverse_kl", "sampled_logp")
    return [ds[name].values for name in names]


def compare(found, where, logits, temperature, k, sampled):
    """Check everything about one state."""
    # What the lists are ordered by: float32 can divide two neighbours to one number.
    order = logits
    if where == "`score`, float32":
        order = np.array(logits, np.float32) / np.float32(temperature)
    bounds = SCORES[where]
    largest = max(abs(float(x)) for row in logits for x in row if abs(x) != np.inf)
    largest *= (temperature != 1) / temperature
    logs = [log_softmax(row, temperature) for row in logits]

    def check(name, got, want):
        if abs(want) == np.inf:
            assert got == float(want), name
        else:
            error = abs(float(got) - want)
            assert error <= bounds[name].at(want, largest), (name, float(got), float(want))

    ids, logp, entropies, reverse_kl, sampled_logp = (values[0] for values in found)
    for s in range(2):
        assert ids[s].tolist() == top_k(order[s], k)
        check("entropy", entropies[s], entropy(logs[s]))
        check("log-probability", sampled_logp[s], logs[s][sampled])
        for m in range(2):
            for rank, token in enumerate(ids[s]):
                check("log-probability", logp[m, s, rank], logs[m][token])
    assert reverse_kl >= 0
    check("reverse KL", reverse_kl, kl(*logs))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", PAIRS)
def test_scores(name, dtype, temperature):
    pair = tensors(PAIRS[name], dtype)
    logits = [exact(row[0].double()) for row in pair]
    width = len(logits[0])
    arithmetic = "float64" if dtype == "float64" else "float32"
    for k in {1, min(5, width), width}:
        asked = {"k": k, "temperature": temperature, "sampled": width - 1}
        compare(from_arrays(*pair, **asked), "`from_logits`", logits, **asked)
        compare(scored(*pair, **asked), f"`score`, {arithmetic}", logits, **asked)


@pytest.mark.parametrize("name", RULED_OUT)
def test_tokens_that_are_ruled_out(name):
    logits = [exact(row) for row in RULED_OUT[name]]
    for k in (1, 5, len(logits[0])):
        asked = {"k": k, "temperature": 1.0, "sampled": 1}
        pair = tensors(RULED_OUT[name], "float32")
        compare(from_arrays(*pair, **asked), "`from_logits`", logits, **asked)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [np.inf, np.nan, -np.inf])
@pytest.mark.parametrize("role", [0, 1])
def test_what_is_no_logit_is_refused_by_name(dtype, bad, role):
    pair = tensors(PAIRS["ordinary"], dtype)
    pair[role][0, 3] = bad
    who = ("student", "teacher")[role]
    with pytest.raises(NonFiniteError, match=f"the {who} gave NaN or infinite logits at row 0"):
        scored(*pair, k=2)
    if bad == -np.inf:
        return  # ruled out
    with pytest.raises(NonFiniteError, match=f"{who} logits have a maximum of {bad}"):
        from_arrays(*pair, k=2)


@pytest.mark.parametrize("name", ["one token", "two tokens", "ordinary"])
def test_k_is_at_most_the_vocabulary(name):
    pair = tensors(PAIRS[name], "float32")
    width = pair[0].shape[1]
    for function in (scored, from_arrays):
        with pytest.raises(
            ConfigError, match=rf"k = {width + 1}; expected .*\b{width}, .*vocabulary"
        ):
            function(*pair, k=width + 1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_mask_of_the_lowest_number_rules_out_as_minus_infinity_does(dtype):
    """Some models write ``finfo.min`` instead of -inf; divided by 0.5, it leaves its dtype."""
    pair = tensors(PAIRS["ordinary"], dtype)
    lowest, infinite = (
        [row.index_fill(1, torch.tensor([2, 5]), value) for row in pair]
        for value in (torch.finfo(DTYPES[dtype]).min, -np.inf)
    )
    if dtype == "float16":  # -65504 is a number like any other
        assert from_arrays(*lowest, k=24, temperature=0.5)[1].min() < -65504
        return
    got, want = (from_arrays(*both, k=24, temperature=0.5) for both in (lowest, infinite))
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", list(large_vocabulary()))
def test_a_large_vocabulary(name):
    student, teacher = large_vocabulary()[name]
    logs = [row.astype(np.longdouble) for row in (student, teacher)]
    logs = [x - x.max() - np.log(np.exp(x - x.max()).sum()) for x in logs]
    pair = [torch.tensor(row[None]) for row in (student, teacher)]
    ids, logp, entropies, reverse_kl, _ = (values[0] for values in scored(*pair, k=16))
    bound = LARGE_VOCABULARY["`score`: log-probability, entropy"]
    for s in range(2):
        assert ids[s].tolist() == np.lexsort((np.arange(len(student)), -pair[s][0]))[:16].tolist()
        assert abs(entropies[s] + (np.exp(logs[s]) * logs[s]).sum()) <= bound
        for m in range(2):
            np.testing.assert_allclose(logp[m, s], logs[m][ids[s]], rtol=0, atol=bound)
    want = (np.exp(logs[0]) * (logs[0] - logs[1])).sum()
    assert abs(reverse_kl - want) <= LARGE_VOCABULARY["`score`: reverse KL"]
