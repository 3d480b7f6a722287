"""Score the same states with two models, at least one of them served or in a cache."""

from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from opdprobe.errors import ConfigError, NonFiniteError
from opdprobe.hooks.served.told import Teller, Told
from opdprobe.models.head import logit_width, split_head
from opdprobe.models.vocabulary import padding_id, stop_ids, tokens_with_logits
from opdprobe.rollout.batches import batches
from opdprobe.rollout.exact import check_scoring
from opdprobe.rollout.memory import halving
from opdprobe.rollout.rows import rollout_arrays
from opdprobe.rollout.sample import Rollouts
from opdprobe.rollout.score import Scores
from opdprobe.rollout.tiles import chunk_rows, log_softmax
from opdprobe.store.schema import MODELS, match_tokens


@dataclass(frozen=True)
class _View:
    """The part of `Scores` that is known of one model.

    At N states, with K tokens kept: `token_id` (N, K), the log-probabilities of these tokens `own`
    (N, K) and of the other model's `other` (N, K), `entropy` (N,), and the log-probabilities of the
    drawn token `sampled` (N,) and of the local models' stop tokens `stops` (N, S).
    """

    token_id: Tensor
    own: Tensor
    other: Tensor
    entropy: Tensor
    sampled: Tensor
    stops: Tensor


def score_served(
    models: Mapping[str, PreTrainedModel | Teller],
    tokenizer: PreTrainedTokenizerBase,
    rollouts: Rollouts,
    *,
    k: int,
    micro_batch_tokens: int = 16384,
) -> Scores:
    """Score states with two models, one or both of them served, or one in a cache.

    Parameters
    ----------
    models
        ``"student"`` and ``"teacher"``.
    tokenizer
        The tokenizer of both models.
    rollouts
        The rollouts whose states are scored.
    k
        Tokens kept per model.
    micro_batch_tokens
        Most tokens in a micro-batch of a local model, padding included.

    Returns
    -------
    Scores
        Rollout by rollout, on the host. A served model's entropy is NaN, and ``reverse_kl``
        throughout. If its server cannot score given tokens (`Teller.tell_at`), NaN stands too
        for its log-probabilities of tokens that only the other model lists, unless they were drawn,
        and of stop tokens. Which tokens a served model stops at is not known; ``stop_logp`` is None
        if both are served. All else is exact. A cache may lack drawn tokens, too.

    Raises
    ------
    ConfigError
        `k` is more than the vocabulary has, or than the server returns.
    ModelError, VocabularyError, NonFiniteError
        A model cannot be used.
    """
    width = vocabulary_width(tokenizer, models)
    if k > width:
        raise ConfigError(f"k = {k}; expected at most {width}, the size of the shared vocabulary.")
    sampled = torch.from_numpy(rollout_arrays(rollouts)["sampled_id"]).long()
    told = {
        role: model.tell(rollouts.read_by(role), k=k, width=width)
        for role, model in models.items()
        if not isinstance(model, PreTrainedModel)
    }
    stops = torch.tensor(
        [
            token
            for model in models.values()  # at most one is local
            if isinstance(model, PreTrainedModel)
            for token in stop_ids(model, tokenizer)
            if token < width
        ],
        dtype=torch.long,
    )
    views: dict[str, _View] = {}
    for role, model in models.items():
        other = MODELS[1 - MODELS.index(role)]
        if isinstance(model, PreTrainedModel):
            ids = torch.from_numpy(told[other].token_id)
            read = rollouts.read_by(role)
            views[role] = _local_view(
                *(model, padding_id(tokenizer), read, ids, stops),
                *(width, k, micro_batch_tokens),
            )
    for role, model in models.items():
        other = MODELS[1 - MODELS.index(role)]
        if not isinstance(model, PreTrainedModel):
            ids = (
                views[other].token_id
                if other not in told
                else torch.from_numpy(told[other].token_id)
            )
            wanted = torch.cat([ids, stops.expand(len(ids), -1)], 1)
            at = model.tell_at(rollouts.read_by(role), wanted.numpy())
            views[role] = _served_view(told[role], ids, sampled, at, len(stops))
    student, teacher = (views[role] for role in MODELS)
    return Scores(
        token_id=torch.stack([student.token_id, teacher.token_id], 1),
        logp=torch.stack(
            [
                torch.stack([student.own, student.other], 1),
                torch.stack([teacher.other, teacher.own], 1),
            ],
            1,
        ),
        entropy=torch.stack([student.entropy, teacher.entropy], 1),
        reverse_kl=torch.full((len(sampled),), torch.nan),
        sampled_logp=torch.stack([student.sampled, teacher.sampled], 1),
        stop_logp=None if len(told) == 2 else _stop_logp(views, told),
    )


def _stop_logp(views: Mapping[str, _View], served: Container[str]) -> Tensor:
    """Add up stop tokens as `Scores.stop_logp`; a server does not say which tokens it stops at."""
    logp = torch.stack([views[model].stops for model in MODELS], 1)
    together = logp.logsumexp(-1).clamp(max=0)
    unknown = torch.full_like(together, torch.nan)
    return torch.stack([unknown if of in served else together for of in MODELS], 2)


def vocabulary_width(
    tokenizer: PreTrainedTokenizerBase, models: Mapping[str, PreTrainedModel | Teller]
) -> int:
    """Size of the vocabulary: tokens that the tokenizer and the local models have.

    Raises
    ------
    VocabularyError
        A local model has no logit for a token of text.
    """
    local = {role: m for role, m in models.items() if isinstance(m, PreTrainedModel)}
    return tokens_with_logits(tokenizer, {role: logit_width(m) for role, m in local.items()})


def _served_view(
    told: Told,
    other_ids: Tensor,
    sampled: Tensor,
    at: NDArray[np.float32] | None,
    n_stops: int,
) -> _View:
    """Look up the other model's tokens in what the server reported: listed, drawn, or asked for."""
    n, k = other_ids.shape
    asked = torch.full((n, k + n_stops), torch.nan) if at is None else torch.from_numpy(at)
    other, stops = asked.split([k, n_stops], 1)
    logp = torch.from_numpy(told.logp)
    # A token in both lists has one log-probability, that of the model's own list.
    place = torch.from_numpy(match_tokens(other_ids.numpy(), told.token_id)).long()
    other = torch.where(place >= 0, logp.gather(1, place.clamp(min=0)), other)
    drawn = torch.from_numpy(told.sampled_logp)
    other = torch.where(
        (other_ids == sampled[:, None]) & ~drawn.isnan()[:, None], drawn[:, None], other
    )
    entropy = torch.full_like(drawn, torch.nan)
    if told.entropy is not None:
        entropy = torch.from_numpy(told.entropy)
    return _View(torch.from_numpy(told.token_id), logp, other, entropy, drawn, stops)


@torch.no_grad()
def _local_view(
    model: PreTrainedModel,
    pad_id: int,
    rollouts: Rollouts,
    other_ids: Tensor,
    stops: Tensor,
    width: int,
    k: int,
    micro_batch_tokens: int,
) -> _View:
    """Score one model, at its own top-k, at the other's and at its stop tokens."""
    body, head = split_head(model, width=width)
    check_scoring(model, body, head)

    def viewed(tokens: int) -> tuple[list[Any], ...]:
        order, parts = [], []
        for batch in batches(
            rollouts, micro_batch_tokens=tokens, pad_id=pad_id, device=model.device
        ):
            hidden = batch.hidden(body)
            others = other_ids[batch.state].to(model.device)
            order.append(batch.state)
            for rows in chunk_rows(len(hidden), width):
                logp = log_softmax(head, hidden[rows], 1.0)
                entropy = -(logp.exp() * logp).sum(-1)
                if entropy.isnan().any():
                    name = model.config._name_or_path or type(model).__name__
                    raise NonFiniteError(
                        f"{name} gave NaN or infinite logits. Check its weights and dtype "
                        "(float16 overflows)."
                    )
                own = logp.topk(k).indices
                drawn = batch.sampled_ids[rows, None]
                stopping = stops.to(model.device).expand(len(own), -1)
                columns = torch.cat([own, others[rows], drawn, stopping], 1)
                picked = logp.gather(1, columns).cpu()
                sizes = [k, k, 1, len(stops)]
                parts.append((own.cpu(), *picked.split(sizes, 1), entropy.cpu()))
        return order, parts

    (order, parts), _ = halving(
        viewed,
        rollouts,
        micro_batch_tokens=micro_batch_tokens,
        device=model.device,
        doing="scoring",
    )
    back = torch.cat(order).argsort()
    token_id, own, other, drawn, stopping, entropy = (
        torch.cat(column)[back] for column in zip(*parts, strict=True)
    )
    return _View(token_id, own, other, entropy, drawn.squeeze(1), stopping)
