"""What both models say at each student-visited state, from hidden states, without gradient.

Logits exist for one chunk of rows at a time and only here: no (batch, time, vocabulary) tensor is
ever held, for either model.

Shape suffixes: N states, D hidden size, V vocabulary, K tokens kept a state; axes of size 2 run
over (student, teacher), the model first, whose top-k second.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from opdprobe.errors import ConfigError, NonFiniteError
from opdprobe.head import Body, Head
from opdprobe.rollout import Rollouts

# Logits held at once, per model: 32 MiB of float32, far below the memory of a backward pass. With a
# vocabulary of 152k, half of it is slower by a third (each chunk reads the head's weights), and
# twice or four times as much is no faster (it leaves the cache).
_CHUNK_ELEMENTS = 2**23
# Tokens in a pile when the largest are searched; see `_top`.
_PILE = 32


@dataclass(frozen=True)
class Scores:
    """Both models' distributions at N states, cut to what analysis needs (paper §2.3).

    Parameters
    ----------
    token_id : Tensor (N, 2, K), int64
        Top-k ids of the student and of the teacher, most probable first.
    logp : Tensor (N, 2, 2, K)
        Log-probability over the full vocabulary that each model gives to each of those tokens,
        in nats.
    entropy : Tensor (N, 2)
        Of the full distributions, in nats.
    reverse_kl : Tensor (N,)
        KL(student‖teacher) over the full vocabulary, in nats.
    sampled_logp : Tensor (N, 2)
        Log-probability of the token the student drew, in nats.
    """

    token_id: Tensor
    logp: Tensor
    entropy: Tensor
    reverse_kl: Tensor
    sampled_logp: Tensor

    @classmethod
    def concatenate(cls, parts: Sequence["Scores"]) -> "Scores":
        """Join along the state axis."""
        return cls(*(torch.cat([getattr(p, f.name) for p in parts]) for f in fields(cls)))

    def select(self, rows: Tensor) -> "Scores":
        """Take some states, in the order of `rows`."""
        return Scores(*(getattr(self, f.name)[rows] for f in fields(self)))

    def cpu(self) -> "Scores":
        """Move to host memory."""
        return Scores(*(getattr(self, f.name).cpu() for f in fields(self)))


def chunk_rows(n_rows: int, width: int, *, times: int = 1) -> Iterator[slice]:
    """Slices of rows whose logits fill at most one chunk, or `times` as much."""
    step = max(1, times * _CHUNK_ELEMENTS // width)
    for start in range(0, n_rows, step):
        yield slice(start, min(start + step, n_rows))


def log_softmax(head: Head, hidden: Tensor, temperature: float) -> Tensor:
    """Log-probabilities of a chunk of rows, (N, V) float32, in nats, with gradient."""
    logits = head(hidden)
    if temperature != 1:
        logits = logits / temperature
    return logits.log_softmax(-1)


@torch.no_grad()
def score(
    student_hidden: Tensor,
    teacher_hidden: Tensor,
    student_head: Head,
    teacher_head: Head,
    sampled_ids: Tensor,
    *,
    k: int = 16,
    temperature: float = 1.0,
) -> Scores:
    """Score states with both models in one pass over chunks of rows.

    Parameters
    ----------
    student_hidden, teacher_hidden : Tensor (N, D)
        Last hidden states at the states; the two models' D may differ.
    student_head, teacher_head
        Output heads of one common width.
    sampled_ids : Tensor (N,)
        The tokens the student drew there.
    k
        Tokens kept for either model.
    temperature
        Divides the logits of both models: the distribution the student sampled from.

    Returns
    -------
    Scores

    Raises
    ------
    ConfigError
        If `k` is larger than the vocabulary.
    NonFiniteError
        If a model's logits hold NaN or infinity.
    """
    width = student_head.width
    if k > width:
        raise ConfigError(f"k = {k} is larger than the shared vocabulary of {width} tokens.")
    parts = []
    # Two buffers serve all chunks: with a large vocabulary, fresh memory for each temporary costs
    # more than the arithmetic on it.
    weight = product = student_hidden.new_empty(0)
    for rows in chunk_rows(len(student_hidden), width):
        z_S = _centred(student_head, student_hidden[rows], temperature)
        z_T = _centred(teacher_head, teacher_hidden[rows], temperature)
        if weight.shape != z_S.shape:
            weight, product = torch.empty_like(z_S), torch.empty_like(z_S)
        # Everything follows from the centred logits z and weights e^z, without a normalised copy:
        # H = log Z - E[z], KL = E_p[z_S - z_T] - log Z_S + log Z_T. The order is the same for both
        # models, so that equal models give exactly 0.
        torch.exp(z_T, out=weight)
        total_T = weight.sum(-1)
        entropy_T = total_T.log() - torch.mul(weight, z_T, out=product).sum(-1) / total_T
        torch.exp(z_S, out=weight)
        total_S = weight.sum(-1)
        mean_S = torch.mul(weight, z_S, out=product).sum(-1) / total_S
        cross = torch.mul(weight, z_T, out=product).sum(-1) / total_S
        entropy_S = total_S.log() - mean_S
        reverse_kl = mean_S - cross - total_S.log() + total_T.log()
        for who, entropy in (("student", entropy_S), ("teacher", entropy_T)):
            _check_finite(entropy, who)

        ids = torch.stack([_top(z_S, k), _top(z_T, k)], 1)  # (n, support, K)
        columns = torch.cat([ids.flatten(1), sampled_ids[rows, None]], 1)
        logp_S = z_S.gather(1, columns) - total_S.log()[:, None]
        logp_T = z_T.gather(1, columns) - total_T.log()[:, None]
        logp = torch.stack([logp_S, logp_T], 1)
        parts.append(
            Scores(
                token_id=ids,
                logp=logp[..., :-1].unflatten(-1, (2, k)),
                entropy=torch.stack([entropy_S, entropy_T], 1),
                reverse_kl=reverse_kl.clamp(min=0),  # rounding alone can make it negative
                sampled_logp=logp[..., -1],
            )
        )
    return Scores.concatenate(parts)


def _check_finite(entropy: Tensor, who: str) -> None:
    # One NaN or infinite logit makes its row's entropy NaN: inf - inf for +inf, 0 · -inf for -inf.
    bad = torch.isnan(entropy)
    if bad.any():
        raise NonFiniteError(
            f"the {who} gave NaN or infinite logits at row {int(bad.nonzero()[0])} of "
            f"{len(bad)}. Check its weights and dtype (float16 overflows)."
        )


def _centred(head: Head, hidden: Tensor, temperature: float) -> Tensor:
    """Logits minus their largest, (N, V): no e^z overflows, and small ones keep their precision."""
    logits = head(hidden)
    if temperature != 1:
        logits = logits / temperature
    largest = logits.amax(-1, keepdim=True)
    # Without a projection the logits are the caller's own tensor.
    return logits - largest if head.projection is None else logits.sub_(largest)


def _top(z: Tensor, k: int) -> Tensor:
    """Ids of the k largest of each row, largest first, (N, V) -> (N, K).

    A large vocabulary is dealt out to piles first: the k largest tokens lie in the k piles with the
    largest maxima, and searching those costs a quarter of `topk` over everything.
    """
    n, width = z.shape
    q = width // _PILE
    if q < 8 * k:
        return z.topk(k).indices
    best = z[:, : q * _PILE].view(n, _PILE, q).amax(1).topk(k).indices
    dealt = (best[:, None] + q * torch.arange(_PILE, device=z.device)[:, None]).flatten(1)
    rest = torch.arange(q * _PILE, width, device=z.device).expand(n, -1)
    columns = torch.cat([dealt, rest], 1)
    return columns.gather(1, z.gather(1, columns).topk(k).indices)


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
    """Cut rollouts into micro-batches of similar length, longest first.

    Parameters
    ----------
    rollouts
        What the student sampled.
    max_tokens
        Most tokens a micro-batch may hold, padding included; a single longer rollout gets a
        micro-batch of its own.
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
    start = 0
    while start < len(order):
        size = max(1, max_tokens // lengths[order[start]])
        chosen = order[start : start + size]
        start += size
        width = lengths[chosen[0]]
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
