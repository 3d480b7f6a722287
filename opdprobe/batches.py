"""Rollouts as padded micro-batches of similar lengths."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from opdprobe.head import Body
from opdprobe.rollout import Rollouts

# A micro-batch that holds so many tokens ends where the next rollout would fill less of its row:
# padding costs as much as a token, and a further pass through the models has a cost of its own.
_LEAST_TOKENS, _LEAST_TOKENS_CPU = 8192, 1024
_LEAST_FILLED = 0.8
# On a CPU, more tokens than this leave the cache between one layer and the next.
_MOST_TOKENS_CPU = 2048


@dataclass(frozen=True)
class Batch:
    """Some rollouts as one padded batch, and where its states are.

    Parameters
    ----------
    input_ids : Tensor (B, T)
        Prompt and response, padded on the right. No attention mask is needed: attention is
        causal, so a real token never sees the padding behind it.
    row, time : Tensor (N,)
        The positions that predict a response token, in rollout order within the batch.
    sampled_ids : Tensor (N,)
        The response tokens they predicted.
    state : Tensor (N,)
        Index of each state among all states of the step, rollout by rollout.
    """

    input_ids: Tensor
    row: Tensor
    time: Tensor
    sampled_ids: Tensor
    state: Tensor

    def hidden(self, body: Body) -> Tensor:
        """Run a body over the batch and pick the last hidden state at each state, (N, D)."""
        output_BTD = body(input_ids=self.input_ids, use_cache=False).last_hidden_state
        assert output_BTD is not None  # optional in the type only
        return output_BTD[self.row, self.time]


def batches(
    rollouts: Rollouts, *, max_tokens: int, pad_id: int, device: torch.device | str = "cpu"
) -> Iterator[Batch]:
    """Cut rollouts into micro-batches of similar length, longest first, with little padding.

    Parameters
    ----------
    rollouts
        What the student sampled.
    max_tokens
        Most tokens a micro-batch may hold, padding included (on a CPU it may hold fewer); a single
        longer rollout gets a micro-batch of its own.
    pad_id
        Filler.
    device
        Where the tensors go.

    Yields
    ------
    Batch
        Rollouts with an empty response have no states and are left out.
    """
    lengths = [
        len(p) + len(r) for p, r in zip(rollouts.prompt_ids, rollouts.response_ids, strict=True)
    ]
    first_state = torch.tensor([0, *map(len, rollouts.response_ids)]).cumsum(0).tolist()
    # The longest come first, so that a batch that does not fit in memory fails at once.
    order = sorted((i for i, r in enumerate(rollouts.response_ids) if r), key=lambda i: -lengths[i])
    least = _LEAST_TOKENS
    if torch.device(device).type == "cpu":
        least, max_tokens = _LEAST_TOKENS_CPU, min(max_tokens, _MOST_TOKENS_CPU)
    start = 0
    while start < len(order):
        width = lengths[order[start]]
        chosen = order[start : start + max(1, max_tokens // width)]
        too_short = (
            b
            for b, i in enumerate(chosen)
            if b * width >= least and lengths[i] < _LEAST_FILLED * width
        )
        chosen = chosen[: next(too_short, len(chosen))]
        start += len(chosen)
        ids, row, time, state = [], [], [], []
        for b, i in enumerate(chosen):
            prompt, response = rollouts.prompt_ids[i], rollouts.response_ids[i]
            ids.append(prompt + response + [pad_id] * (width - lengths[i]))
            row += [b] * len(response)
            time += range(len(prompt) - 1, lengths[i] - 1)
            state += range(first_state[i], first_state[i] + len(response))
        input_ids = torch.tensor(ids)
        row_N, time_N = torch.tensor(row), torch.tensor(time)
        yield Batch(
            input_ids=input_ids.to(device),
            row=row_N.to(device),
            time=time_N.to(device),
            sampled_ids=input_ids[row_N, time_N + 1].to(device),
            state=torch.tensor(state),
        )
