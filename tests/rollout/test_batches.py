"""Micro-batches: every state once, within the limit, at the least cost."""

import itertools

import torch
from hypothesis import given
from hypothesis import strategies as st

from opdprobe.rollout import batches as module
from opdprobe.rollout.batches import batches
from opdprobe.rollout.sample import Rollouts

ROLLOUTS = Rollouts(
    prompt_ids=[[7, 8], [9], [10, 11, 12], [13]],
    response_ids=[[20, 21, 22], [], [30], [40, 41, 42, 43, 2]],
    finished=[False, False, False, True],
    prompt_index=[0, 1, 2, 3],
)


def shapes(lengths, micro_batch_tokens=10_000):
    """Shapes of the batches of rollouts whose inputs have these lengths."""
    rollouts = Rollouts(
        prompt_ids=[[7]] * len(lengths),
        response_ids=[[5] * n for n in lengths],
        finished=[True] * len(lengths),
        prompt_index=list(range(len(lengths))),
    )
    return [
        tuple(b.input_ids.shape)
        for b in batches(rollouts, micro_batch_tokens=micro_batch_tokens, pad_id=0)
    ]


def test_batches_end_where_padding_would_cost_more_than_another():
    assert shapes([100] * 10 + [97] * 3 + [60] * 20 + [10] * 5) == [(13, 100), (20, 60), (5, 10)]
    assert shapes([20] * 3 + [5]) == [(4, 20)]  # too little to be worth a pass of its own


@given(st.lists(st.integers(1, 20), min_size=1, max_size=7), st.integers(1, 60), st.integers(0, 30))
def test_no_other_cut_costs_less(lengths, micro_batch_tokens, cost):
    lengths.sort(reverse=True)

    def price(sizes):
        ends = list(itertools.accumulate(sizes, initial=0))
        tokens = [n * lengths[first] for n, first in zip(sizes, ends[:-1], strict=True)]
        allowed = all(t <= micro_batch_tokens or n == 1 for t, n in zip(tokens, sizes, strict=True))
        return sum(tokens) + cost * len(sizes) if allowed else float("inf")

    n = len(lengths)
    cuts = itertools.chain.from_iterable(itertools.combinations(range(1, n), r) for r in range(n))
    best = min(price([b - a for a, b in itertools.pairwise([0, *cut, n])]) for cut in cuts)
    found = module._sizes(lengths, micro_batch_tokens, cost)
    assert sum(found) == n
    assert price(found) == best


def test_batches_hold_every_state_once_and_keep_to_the_limit():
    found = list(batches(ROLLOUTS, micro_batch_tokens=8, pad_id=0))
    assert torch.cat([b.state for b in found]).sort().values.tolist() == list(range(9))
    flat = [token for response in ROLLOUTS.response_ids for token in response]
    whole = [p + r for p, r in zip(ROLLOUTS.prompt_ids, ROLLOUTS.response_ids, strict=True)]
    texts = [text for text, r in zip(whole, ROLLOUTS.response_ids, strict=True) for _ in r]
    for batch in found:
        assert batch.input_ids.numel() <= 8 or len(batch.input_ids) == 1
        assert batch.sampled_ids.tolist() == [flat[i] for i in batch.state]
        for row, time, sampled, i in zip(
            *(x.tolist() for x in (batch.row, batch.time, batch.sampled_ids, batch.state)),
            strict=True,
        ):
            before = batch.input_ids[row, : time + 1].tolist()
            assert [*before, sampled] == texts[i][: time + 2]
    lengths = [batch.input_ids.shape[1] for batch in found]
    assert lengths == sorted(lengths, reverse=True)


def test_empty_responses_make_no_batch():
    assert list(batches(Rollouts([[1]], [[]], [False], [0]), micro_batch_tokens=8, pad_id=0)) == []
