"""Rollouts as padded micro-batches of similar lengths."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from opdprobe.models.head import Body
from opdprobe.models.lengths import ApartBody
from opdprobe.rollout.sample import Rollouts

# Fixed cost of a forward and backward pass through both models, in tokens. On a CPU it is 5.5 ms
# for the tiny pair of `benchmarks/step_parts.py`, whose tokens take 55 µs each; for accelerators it
# is an estimate.
_PASS_CPU, _PASS = 100, 1024
# On a CPU, more tokens than this leave the cache between one layer and the next.
_MOST_TOKENS_CPU = 2048


@dataclass(frozen=True)
class Batch:
    """Some rollouts as one padded batch, and the places of its states.

    Parameters
    ----------
    input_ids : Tensor (B, T)
        Prompt and response, padded on the right, without the response's last token, which predicts
        nothing. No attention mask is needed: attention is causal, so a real token never sees the
        padding behind it.
    row, time : Tensor (N,)
        The positions that predict a response token, in rollout order within the batch.
    sampled_ids : Tensor (N,)
        The response tokens they predicted.
    state : Tensor (N,)
        Index of each state among all states of the step, rollout by rollout.
    teacher : Batch, optional
        The same responses behind the teacher's own prompts, if it has any: its states are the same,
        one by one.
    """

    input_ids: Tensor
    row: Tensor
    time: Tensor
    sampled_ids: Tensor
    state: Tensor
    teacher: "Batch | None" = None

    def teacher_hidden(self, body: Body) -> Tensor:
        """Run the teacher's body behind its own prompts; see `hidden`."""
        return (self.teacher or self).hidden(body)

    def hidden(self, body: Body) -> Tensor:
        """Run a body over the batch and pick the last hidden state at each state, (N, D).

        Each row's are those of the row alone: see `opdprobe.models.lengths`.
        """
        if isinstance(body, ApartBody):
            return body.hidden(self.input_ids, self.row, self.time)
        output_BTD = body(input_ids=self.input_ids, use_cache=False).last_hidden_state
        assert output_BTD is not None  # optional in the type only
        return output_BTD[self.row, self.time]


def batches(
    rollouts: Rollouts,
    *,
    micro_batch_tokens: int,
    pad_id: int,
    device: torch.device | str = "cpu",
    apart: Callable[[int, int], Hashable] = lambda student, teacher: None,
) -> Iterator[Batch]:
    """Divide rollouts into micro-batches of similar length at the least cost, longest first.

    Parameters
    ----------
    rollouts
        What the student sampled.
    micro_batch_tokens
        Most tokens a micro-batch may hold, padding included (on a CPU it may hold fewer); a single
        longer rollout gets a micro-batch of its own.
    pad_id
        Token id for the padding.
    device
        Where the tensors go.
    apart
        Class of a row by the lengths of its texts for the student and for the teacher; rows of
        different classes share no micro-batch (`opdprobe.rollout.pair.Pair.length_class`).

    Yields
    ------
    Batch
        Rollouts without states, such as those with an empty response, are left out.
    """
    prompts = [rollouts.prompt_ids]
    if rollouts.teacher_prompt_ids is not None:
        prompts.append(rollouts.teacher_prompt_ids)
    # Of the longer text, if the teacher has its own: both have to fit.
    n_inputs = [
        max(map(len, both)) + len(response) - 1
        for *both, response in zip(*prompts, rollouts.response_ids, strict=True)
    ]
    places = [rollouts.states(i) for i in range(len(rollouts))]
    first_state = torch.tensor([0, *map(len, places)]).cumsum(0).tolist()
    # The longest come first, so that a batch that does not fit in memory fails at once.
    order = sorted((i for i, some in enumerate(places) if some), key=lambda i: -n_inputs[i])
    cost = pass_cost(device)
    micro_batch_tokens = most_tokens(micro_batch_tokens, device)
    start = 0

    def length_class(i: int) -> Hashable:
        n = len(rollouts.response_ids[i]) - 1
        return apart(len(prompts[0][i]) + n, len(prompts[-1][i]) + n)

    # The rows of a class are adjacent, since a class is a range of lengths; if the teacher has
    # texts of its own, a class may come back, and has several batches.
    classes = groupby(order, key=length_class)
    sizes = [
        size
        for _, rows in classes
        for size in _sizes([n_inputs[i] for i in rows], micro_batch_tokens, cost)
    ]
    for size in sizes:
        chosen = order[start : start + size]
        start += size
        batch = None
        for some in reversed(prompts):  # the teacher's first
            batch = _padded(
                some, rollouts.response_ids, places, first_state, chosen, pad_id, device, batch
            )
        assert batch is not None
        yield batch


def _padded(
    prompts: Sequence[list[int]],
    responses: Sequence[list[int]],
    places: Sequence[Sequence[int]],
    first_state: Sequence[int],
    chosen: Sequence[int],
    pad_id: int,
    device: torch.device | str,
    teacher: Batch | None,
) -> Batch:
    """Put the chosen rollouts behind some prompts into one batch."""
    width = max(len(prompts[i]) + len(responses[i]) for i in chosen) - 1
    ids, row, time, sampled, state = [], [], [], [], []
    for b, i in enumerate(chosen):
        text = prompts[i] + responses[i][:-1]
        ids.append(text + [pad_id] * (width - len(text)))
        row += [b] * len(places[i])
        time += [len(prompts[i]) - 1 + place for place in places[i]]
        sampled += [responses[i][place] for place in places[i]]
        state += range(first_state[i], first_state[i + 1])
    return Batch(
        input_ids=torch.tensor(ids, device=device),
        row=torch.tensor(row, device=device),
        time=torch.tensor(time, device=device),
        sampled_ids=torch.tensor(sampled, device=device),
        state=torch.tensor(state),
        teacher=teacher,
    )


def pass_cost(device: torch.device | str) -> int:
    """Return the fixed cost of a pass on a device, in tokens."""
    return _PASS_CPU if torch.device(device).type == "cpu" else _PASS


def most_tokens(micro_batch_tokens: int, device: torch.device | str) -> int:
    """Return the most tokens that a micro-batch of several rollouts holds on a device."""
    on_cpu = torch.device(device).type == "cpu"
    return min(micro_batch_tokens, _MOST_TOKENS_CPU) if on_cpu else micro_batch_tokens


def _sizes(lengths: Sequence[int], micro_batch_tokens: int, cost: int) -> list[int]:
    """Choose the sizes of batches for which passes and tokens, padding included, cost least.

    Parameters
    ----------
    lengths
        Lengths of the rows, longest first.
    micro_batch_tokens
        Most tokens in a batch of several rows.
    cost
        Cost of a pass, in tokens.
    """
    # From the last row to the first: best[i] is the least cost of the rows from i on, and size[i]
    # the size of the batch that starts with row i and attains it.
    n = len(lengths)
    best, size, rows = np.zeros(n + 1), [0] * n, np.arange(1, n + 1)
    for i in reversed(range(n)):
        most = min(n - i, max(1, micro_batch_tokens // lengths[i]))
        costs = rows[:most] * lengths[i] + best[i + 1 : i + 1 + most]
        least = int(costs.argmin())
        size[i], best[i] = least + 1, cost + costs[least]
    sizes, i = [], 0
    while i < n:
        sizes.append(size[i])
        i += sizes[-1]
    return sizes
