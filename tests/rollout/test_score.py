"""Scores equal float64 log-softmax and sort, however they are batched."""

import copy

import numpy as np
import pytest
import torch

from opdprobe import ConfigError, NonFiniteError
from opdprobe.models.head import Head
from opdprobe.rollout import score, tiles
from opdprobe.rollout.pair import Pair, in_rollout_order
from opdprobe.rollout.sample import Rollouts
from opdprobe.rollout.score import Scores
from opdprobe.testing import tiny_model, tiny_tokenizer

K, TEMPERATURE = 5, 0.7
ROLLOUTS = Rollouts(
    prompt_ids=[[7, 8], [9], [10, 11, 12], [13]],
    response_ids=[[20, 21, 22], [], [30], [40, 41, 42, 43, 2]],
    finished=[False, False, False, True],
    prompt_index=[0, 1, 2, 3],
)


def sharpened(seed, vocab_size=64):
    """Make a tiny model with probabilities far from uniform."""
    model = tiny_model(vocab_size, seed=seed)
    model.lm_head.weight.data *= 30
    return model


@pytest.fixture
def pair():
    # The widths differ by padding.
    return Pair(sharpened(0, 64), sharpened(1, 80), tiny_tokenizer(60))


def scored(pair, rollouts=ROLLOUTS, *, k=K, temperature=TEMPERATURE, micro_batch_tokens=10_000):
    with torch.no_grad():
        parts = pair.scored(
            rollouts, k=k, temperature=temperature, micro_batch_tokens=micro_batch_tokens
        )
        return in_rollout_order([(part.batch.state, part.scores) for part in parts])


def close(got: Scores, want: Scores):
    assert torch.equal(got.token_id, want.token_id)
    for name in ("logp", "entropy", "reverse_kl", "sampled_logp"):
        torch.testing.assert_close(getattr(got, name), getattr(want, name), rtol=1e-5, atol=1e-5)


def test_scores_follow_from_the_full_logits(pair):
    got = scored(pair)
    row = 0
    for prompt, response in zip(ROLLOUTS.prompt_ids, ROLLOUTS.response_ids, strict=True):
        logs = []
        for model in (pair.student, pair.teacher):
            with torch.no_grad():
                logits = model.double()(input_ids=torch.tensor([prompt + response])).logits[0]
            logits = logits[:, :60] / TEMPERATURE
            logs.append(logits - logits.exp().sum(-1, keepdim=True).log())
        for t, token in enumerate(response):
            p, q = (log[len(prompt) - 1 + t].numpy() for log in logs)
            for s, own in enumerate((p, q)):
                ids = np.argsort(-own)[:K]
                np.testing.assert_array_equal(got.token_id[row, s], ids)
                np.testing.assert_allclose(got.logp[row, 0, s], p[ids], atol=1e-4)
                np.testing.assert_allclose(got.logp[row, 1, s], q[ids], atol=1e-4)
                entropy = -sum(np.exp(x) * x for x in own)
                np.testing.assert_allclose(got.entropy[row, s], entropy, atol=1e-4)
            kl = sum(np.exp(x) * (x - y) for x, y in zip(p, q, strict=True))
            np.testing.assert_allclose(got.reverse_kl[row], kl, rtol=1e-4)
            np.testing.assert_allclose(got.sampled_logp[row], [p[token], q[token]], atol=1e-4)
            row += 1
    assert row == len(got.reverse_kl) == ROLLOUTS.n_tokens


@pytest.mark.parametrize(("rows", "columns"), [(1, 60), (1, 32), (4, 33), (100, 59), (3, 1)])
def test_tiles_change_nothing(pair, monkeypatch, rows, columns):
    want = scored(pair)
    monkeypatch.setattr(score, "_TILE_ROWS", rows)
    monkeypatch.setattr(tiles, "_TILE_ELEMENTS", rows * columns)
    close(scored(pair), want)


@pytest.mark.parametrize("micro_batch_tokens", [1, 8, 13])
def test_micro_batches_change_nothing(pair, micro_batch_tokens):
    close(scored(pair, micro_batch_tokens=micro_batch_tokens), scored(pair))


def test_the_order_of_rollouts_changes_nothing(pair):
    order = [3, 1, 0, 2]
    columns = (column for column in vars(ROLLOUTS).values() if column is not None)
    permuted = Rollouts(*([column[i] for i in order] for column in columns))
    lengths = [len(r) for r in ROLLOUTS.response_ids]
    states = torch.arange(sum(lengths)).split(lengths)
    rows = torch.cat([states[i] for i in order])
    close(scored(pair, permuted), scored(pair).select(rows))


def test_padding_changes_nothing(pair):
    want = scored(pair)
    pair.pad_id = 33
    close(scored(pair), want)


def test_equal_models_have_exactly_equal_scores():
    model = sharpened(0)
    got = scored(Pair(model, copy.deepcopy(model), tiny_tokenizer()))
    assert torch.equal(got.token_id[:, 0], got.token_id[:, 1])
    assert torch.equal(got.logp[:, 0], got.logp[:, 1])
    assert torch.equal(got.entropy[:, 0], got.entropy[:, 1])
    assert torch.equal(got.sampled_logp[:, 0], got.sampled_logp[:, 1])
    assert (got.reverse_kl == 0).all()


def test_reverse_kl_is_never_negative():
    model = sharpened(0)
    other = copy.deepcopy(model)
    other.lm_head.weight.data *= 1 + 1e-7
    assert (scored(Pair(model, other, tiny_tokenizer())).reverse_kl >= 0).all()


@pytest.mark.parametrize("role", ["student", "teacher"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_non_finite_logits_name_the_model_and_the_row(pair, role, bad):
    hidden = torch.ones(3, 16)
    broken = hidden.clone()
    broken[1] = bad
    states = {"student": hidden, "teacher": hidden} | {role: broken}
    heads = pair.student_head, pair.teacher_head
    with pytest.raises(NonFiniteError, match=f"the {role} gave NaN or infinite logits at row 1 of"):
        score.score(states["student"], states["teacher"], *heads, torch.zeros(3, dtype=int), k=2)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_probability_of_stopping_is_that_of_all_stop_tokens(temperature):
    logits = 3 * torch.randn(2, 5, 40, generator=torch.Generator().manual_seed(0)).double()
    head, stops = Head(None, 40), ([3], [5, 39, 0])
    sampled = torch.zeros(5, dtype=int)
    settings = {"k": 2, "temperature": temperature}
    got = score.score(*logits, head, head, sampled, stop_ids=stops, **settings)
    p = (logits / temperature).softmax(-1)
    want = torch.stack([p[..., ids].sum(-1) for ids in stops], -1).transpose(0, 1)
    torch.testing.assert_close(got.stop_logp.exp(), want)
    without = score.score(*logits, head, head, sampled, **settings)
    assert without.stop_logp is None
    for name, column in vars(without).items():
        assert column is None or torch.equal(column, getattr(got, name))
    # A model that never stops by itself.
    got = score.score(*logits, head, head, sampled, stop_ids=([3], []), **settings)
    assert (got.stop_logp[..., 1] == -torch.inf).all()


def test_a_logit_of_minus_infinity_is_refused():
    identity = Head(None, 3)
    logits = torch.tensor([[0.0, 1.0, 2.0], [0.0, -torch.inf, 2.0]])
    with pytest.raises(NonFiniteError, match="student gave NaN or infinite logits at row 1 of 2"):
        score.score(logits, logits, identity, identity, torch.zeros(2, dtype=int), k=2)


@pytest.mark.parametrize("width", [40, 512, 5000])  # piles of 1, 4 and 32
@pytest.mark.parametrize("columns", [64, 1000, 8192])
def test_the_largest_are_those_of_a_sort(width, columns, monkeypatch):
    monkeypatch.setattr(score, "_TILE_ROWS", 4)
    monkeypatch.setattr(tiles, "_TILE_ELEMENTS", 4 * columns)
    z = torch.randn(2, 7, width, generator=torch.Generator().manual_seed(0))
    head = Head(None, width)
    found = score.score(z[0], z[1], head, head, torch.zeros(7, dtype=int), k=16)
    assert torch.equal(found.token_id, z.argsort(-1, descending=True)[..., :16].transpose(0, 1))


def test_k_is_at_most_the_shared_vocabulary(pair):
    assert scored(pair, k=60).token_id.shape == (ROLLOUTS.n_tokens, 2, 60)
    with pytest.raises(ConfigError, match="k = 61; expected at most 60"):
        scored(pair, k=61)
