"""The same numbers whatever the call, the threads, the tiles, the batches and the way in."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from error_bounds import LOSSES, ROUNDING, SCORES
from hard_logits import DTYPES, PAIRS, tensors
from torch import nn

from opdprobe import OPDConfig, from_logits
from opdprobe.models.head import Head
from opdprobe.probes.accessor import OPDAccessor  # noqa: F401  # registers ds.opd
from opdprobe.rollout import score, tiles
from opdprobe.rollout.pair import Pair, Scored, in_rollout_order
from opdprobe.rollout.prompts import Prompt
from opdprobe.rollout.rows import record_dataset, step_metrics
from opdprobe.rollout.sample import Rollouts
from opdprobe.testing import tiny_model, tiny_tokenizer
from opdprobe.train.losses import distillation_loss

pytestmark = pytest.mark.slow

EOS = 2
# A response that is the end-of-sequence token alone, one other token alone, and a longer one.
ROLLOUTS = Rollouts(
    prompt_ids=[[7, 8], [9], [10, 11, 12], [13, 14]],
    response_ids=[[EOS], [30], [40, 41, 42, 43, EOS], []],
    finished=[True, False, True, False],
    prompt_index=[0, 1, 2, 3],
)


def few_values(width, rows=6, seed=0):
    """Two models' logits of so few values that the top-k is decided by ids."""
    rng = np.random.default_rng(seed)
    logits = np.round(rng.normal(scale=1.5, size=(2, rows, width)))
    logits[:, 0] = 2.0  # one value everywhere
    logits[:, 1] = 0.0
    logits[:, 1, -1] = 1.0  # the largest is the last
    return torch.tensor(logits)


def by_sort(logits, k):
    order = np.lexsort((np.broadcast_to(np.arange(logits.shape[-1]), logits.shape), -logits))
    return order[..., :k].transpose(1, 0, 2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [2, 40, 512, 5000])  # piles of 1, 1, 4 and 32
@pytest.mark.parametrize("tile", [7, 1000, 2**17])
def test_of_equal_logits_the_lower_id_comes_first(width, tile, dtype, monkeypatch):
    monkeypatch.setattr(score, "_TILE_ROWS", 4)
    monkeypatch.setattr(tiles, "_TILE_ELEMENTS", 4 * tile)
    logits, k = few_values(width).to(DTYPES[dtype]), min(16, width)
    want = by_sort(logits.double().numpy(), k)
    head, sampled = Head(None, width), torch.zeros(logits.shape[1], dtype=torch.long)
    for temperature in (1.0, 0.7):
        found = score.score(*logits, head, head, sampled, k=k, temperature=temperature)
        np.testing.assert_array_equal(found.token_id, want)
        ds = from_logits(*logits, k=k, temperature=temperature)
        np.testing.assert_array_equal(ds["token_id"], want)


def test_the_order_is_that_of_the_logits_not_of_what_is_left_of_them():
    """Beside 1e4, 1e-20 and 2e-20 are one number once they are normalised."""
    row = np.array([0.0, 1e-20, 2e-20, 1e4])
    assert from_logits(row, row, k=4)["token_id"][0, 0].values.tolist() == [3, 2, 1, 0]


def linear_heads(width, dtype):
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        layer = nn.Linear(16, width, bias=False)
        layer.weight.data = torch.randn(width, 16, generator=generator).to(dtype)
        hidden = torch.randn(70, 16, generator=generator).to(dtype)
        yield Head(layer, width), hidden


def all_at(threads, dtype, width=4000):
    """Scores, loss and gradient with so many threads; large enough for torch to use them."""
    (student, hidden), (teacher, teacher_hidden) = linear_heads(width, dtype)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        sampled = torch.arange(len(hidden))
        scores = score.score(hidden, teacher_hidden, student, teacher, sampled, k=16)
        found = {}
        for objective in ("full", "topk"):
            leaf = hidden.clone().requires_grad_()
            student.projection.weight.grad = None
            loss = loss_of(leaf, teacher_hidden, scores, student, teacher, objective)
            loss.backward()
            found[objective] = loss.item(), leaf.grad, student.projection.weight.grad
        return scores, found
    finally:
        torch.set_num_threads(before)


def loss_of(hidden, teacher_hidden, scores, head, teacher_head, objective):
    part = Scored(SimpleNamespace(), hidden, teacher_hidden, scores)
    pair = SimpleNamespace(student_head=head, teacher_head=teacher_head)
    return distillation_loss(part, pair, OPDConfig(objective=objective, k=16))


def assert_same_scores(got, want, dtype, largest_logit=20):
    """Within twice the bounds, since either may be off, and as much for each logit.

    A logit is a sum of 16 products or more, in an order that depends on the processor as well.
    """
    bounds = SCORES["`score`, float64" if dtype == "float64" else "`score`, float32"]
    rounding = 8 * ROUNDING[dtype] * largest_logit
    exactly = dtype in ("float32", "float64")
    names = {"logp": "log-probability", "entropy": "entropy", "reverse_kl": "reverse KL"}
    if exactly:
        assert torch.equal(got.token_id, want.token_id)
    for name, quantity in names.items():
        a, b = getattr(got, name).double(), getattr(want, name).double()
        if name == "logp" and not exactly:  # of tokens that may have changed places
            a, b = a.sort(-1).values, b.sort(-1).values
        bound = bounds[quantity]
        allowed = 2 * (bound.absolute + bound.relative * b.abs()) + rounding
        assert ((a - b).abs() <= allowed).all(), name


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_threads_change_nothing(dtype):
    (one, losses), (two, losses_two) = (all_at(n, DTYPES[dtype]) for n in (1, 2))
    assert_same_scores(two, one, dtype)
    bounds = LOSSES["float64" if dtype == "float64" else "float32"]
    for objective, (loss, *grads) in losses.items():
        n_states, size = len(one.entropy), max(1.0, abs(loss))
        assert abs(loss - losses_two[objective][0]) <= n_states * bounds["loss"].at(0, 0)
        for got, want in zip(losses_two[objective][1:], grads, strict=True):
            allowed = (
                16 * bounds["gradient"].at(0, 0, size) + 4 * ROUNDING[dtype] * want.abs().max()
            )
            assert (got - want).abs().max() <= allowed


def test_calls_are_equal_bit_for_bit():
    (first, losses), (again, losses_again) = (all_at(1, torch.float32) for _ in range(2))
    recorded = {name: value for name, value in vars(first).items() if value is not None}
    for name, value in recorded.items():
        assert torch.equal(value, getattr(again, name))
    for objective in losses:
        assert losses[objective][0] == losses_again[objective][0]
        for a, b in zip(losses[objective][1:], losses_again[objective][1:], strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize(("rows", "columns"), [(1, 4000), (3, 7), (16, 333), (70, 4000)])
def test_tiles_change_scores_within_their_bounds(rows, columns, dtype, monkeypatch):
    (student, hidden), (teacher, teacher_hidden) = linear_heads(400, DTYPES[dtype])
    arguments = hidden, teacher_hidden, student, teacher, torch.arange(len(hidden))
    want = score.score(*arguments, k=16)
    monkeypatch.setattr(score, "_TILE_ROWS", rows)
    monkeypatch.setattr(tiles, "_TILE_ELEMENTS", rows * columns)
    assert_same_scores(score.score(*arguments, k=16), want, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", PAIRS)
def test_equal_models_are_equal_exactly(name, dtype):
    row = tensors(PAIRS[name], dtype)[0]
    head, k = Head(None, row.shape[1]), min(5, row.shape[1])
    found = score.score(row, row.clone(), head, head, torch.tensor([0]), k=k, temperature=0.7)
    assert found.reverse_kl.item() == 0
    assert torch.equal(found.entropy[:, 0], found.entropy[:, 1])
    assert torch.equal(found.token_id[:, 0], found.token_id[:, 1])
    ds = from_logits(row, row, k=k, temperature=0.7)
    assert ds["reverse_kl"].item() == 0
    assert ds.opd.overlap_ratio().item() == 1


def scored(dtype, micro_batch_tokens):
    models = [tiny_model(seed=seed).to(DTYPES[dtype]) for seed in (0, 1)]
    pair = Pair(*models, tiny_tokenizer())
    with torch.no_grad():
        parts = pair.scored(ROLLOUTS, k=5, temperature=0.7, micro_batch_tokens=micro_batch_tokens)
        return models, in_rollout_order([(part.batch.state, part.scores) for part in parts])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("micro_batch_tokens", [1, 7])
def test_micro_batches_change_scores_within_their_bounds(dtype, micro_batch_tokens):
    (_, got), (_, want) = scored(dtype, micro_batch_tokens), scored(dtype, 10_000)
    assert_same_scores(got, want, dtype)  # the body's products round differently as well


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_response_of_one_token_is_a_state_like_any_other(dtype):
    models, scores = scored(dtype, 10_000)
    prompts = [Prompt(id=str(i), text="1 + 1") for i in range(4)]
    step = record_dataset(0, ROLLOUTS, scores, prompts, correct=[1, 0, 1, 0])
    assert step["length"].values.tolist() == [1, 1, 5, 0]
    reward = step.opd.sequence_mean_reward().values
    for row, (prompt, response) in enumerate(
        itertools.islice(zip(ROLLOUTS.prompt_ids, ROLLOUTS.response_ids, strict=True), 2)
    ):
        logs = []
        for model in models:
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([prompt + response])).logits[
                    0, len(prompt) - 1
                ]
            logs.append((logits.double() / 0.7).log_softmax(-1))
        tolerance = 1e-5 + 16 * (ROUNDING[dtype] if dtype == "bfloat16" else 0)
        np.testing.assert_allclose(
            reward[row], logs[1][response[0]] - logs[0][response[0]], rtol=0, atol=tolerance
        )
    assert np.isnan(reward[3])
    assert all(np.isfinite(value) for value in step_metrics(step).values())
