"""Micro-batches: every state once, and within the limit."""

import torch

from opdprobe.batches import batches
from opdprobe.rollout import Rollouts

ROLLOUTS = Rollouts(
    prompt_ids=[[7, 8], [9], [10, 11, 12], [13]],
    response_ids=[[20, 21, 22], [], [30], [40, 41, 42, 43, 2]],
    finished=[False, False, False, True],
    prompt_index=[0, 1, 2, 3],
)


def test_batches_end_where_padding_would_cost_more_than_another():
    lengths = [100] * 10 + [90] * 3 + [60] * 20 + [10] * 5
    rollouts = Rollouts(
        prompt_ids=[[7]] * len(lengths),
        response_ids=[[5] * (n - 1) for n in lengths],
        finished=[True] * len(lengths),
        prompt_index=list(range(len(lengths))),
    )
    found = [tuple(b.input_ids.shape) for b in batches(rollouts, max_tokens=10_000, pad_id=0)]
    assert found == [(13, 100), (20, 60), (5, 10)]
    few = [tuple(b.input_ids.shape) for b in batches(ROLLOUTS, max_tokens=10_000, pad_id=0)]
    assert few == [(3, 6)]  # too little to be worth a pass of its own


def test_batches_hold_every_state_once_and_keep_to_the_limit():
    found = list(batches(ROLLOUTS, max_tokens=8, pad_id=0))
    assert torch.cat([b.state for b in found]).sort().values.tolist() == list(range(9))
    flat = [token for response in ROLLOUTS.response_ids for token in response]
    for batch in found:
        assert batch.input_ids.numel() <= 8 or len(batch.input_ids) == 1
        assert batch.sampled_ids.tolist() == [flat[i] for i in batch.state]
        assert torch.equal(batch.input_ids[batch.row, batch.time + 1], batch.sampled_ids)
    lengths = [batch.input_ids.shape[1] for batch in found]
    assert lengths == sorted(lengths, reverse=True)


def test_batches_of_empty_responses_are_none():
    assert list(batches(Rollouts([[1]], [[]], [False], [0]), max_tokens=8, pad_id=0)) == []
