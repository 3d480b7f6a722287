"""Score the same states with two models, at least one of them served."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from opdprobe.errors import ConfigError, NonFiniteError
from opdprobe.hooks.served.model import ServedModel, Told
from opdprobe.models.head import logit_width, split_head
from opdprobe.models.vocabulary import padding_id, tokens_with_logits
from opdprobe.rollout.batches import batches
from opdprobe.rollout.exact import check_scoring
from opdprobe.rollout.memory import halving
from opdprobe.rollout.sample import Rollouts
from opdprobe.rollout.score import Scores
from opdprobe.rollout.tiles import chunk_rows, log_softmax
from opdprobe.store.schema import MODELS, match_tokens


@dataclass(frozen=True)
class _View:
    """The part of `Scores` that is known of one model.

    At N states, with K tokens kept: `token_id` (N, K), the log-probabilities of these tokens `own`
    (N, K) and of the other model's `other` (N, K), `entropy` (N,), and the log-probability of the
    drawn token `sampled` (N,).
    """

    token_id: Tensor
    own: Tensor
    other: Tensor
    entropy: Tensor
    sampled: Tensor


def score_served(
    models: Mapping[str, PreTrainedModel | ServedModel],
    tokenizer: PreTrainedTokenizerBase,
    rollouts: Rollouts,
    *,
    k: int,
    micro_batch_tokens: int = 16384,
) -> Scores:
    """Score states with two models, one or both of them served.

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
        Rollout by rollout, on the host. A served model's entropy is NaN, and so is its
        log-probability of a token that only the other model lists, unless that token was drawn;
        ``reverse_kl`` is NaN throughout. All else is exact.

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
    sampled = torch.tensor([token for ids in rollouts.response_ids for token in ids])
    told = {
        role: model.tell(rollouts.read_by(role), k=k, width=width)
        for role, model in models.items()
        if isinstance(model, ServedModel)
    }
    views: dict[str, _View] = {}
    for role, model in models.items():
        other = MODELS[1 - MODELS.index(role)]
        if not isinstance(model, ServedModel):
            ids = torch.from_numpy(told[other].token_id)
            read = rollouts.read_by(role)
            views[role] = _local_view(
                model, padding_id(tokenizer), read, ids, width, k, micro_batch_tokens
            )
    for role in told:
        other = MODELS[1 - MODELS.index(role)]
        ids = views[other].token_id if other in views else torch.from_numpy(told[other].token_id)
        views[role] = _served_view(told[role], ids, sampled)
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
    )


def vocabulary_width(
    tokenizer: PreTrainedTokenizerBase, models: Mapping[str, PreTrainedModel | ServedModel]
) -> int:
    """Size of the vocabulary: tokens that the tokenizer and the local models have.

    Raises
    ------
    VocabularyError
        A local model has no logit for a token of text.
    """
    local = {role: m for role, m in models.items() if not isinstance(m, ServedModel)}
    return tokens_with_logits(tokenizer, {role: logit_width(m) for role, m in local.items()})


def _served_view(told: Told, other_ids: Tensor, sampled: Tensor) -> _View:
    """Look up the other model's tokens among those that the server reported."""
    logp = torch.from_numpy(told.logp)
    place = torch.from_numpy(match_tokens(other_ids.numpy(), told.token_id)).long()
    other = torch.where(place >= 0, logp.gather(1, place.clamp(min=0)), torch.nan)
    drawn = torch.from_numpy(told.sampled_logp)
    other = torch.where(other_ids == sampled[:, None], drawn[:, None], other)
    entropy = torch.full_like(drawn, torch.nan)
    return _View(torch.from_numpy(told.token_id), logp, other, entropy, drawn)


@torch.no_grad()
def _local_view(
    model: PreTrainedModel,
    pad_id: int,
    rollouts: Rollouts,
    other_ids: Tensor,
    width: int,
    k: int,
    micro_batch_tokens: int,
) -> _View:
    """Score one model, at its own top-k and at the other's."""
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
                columns = torch.cat([own, others[rows], batch.sampled_ids[rows, None]], 1)
                picked = logp.gather(1, columns).cpu()
                parts.append((own.cpu(), *picked.split([k, k, 1], 1), entropy.cpu()))
        return order, parts

    (order, parts), _ = halving(
        viewed,
        rollouts,
        micro_batch_tokens=micro_batch_tokens,
        device=model.device,
        doing="scoring",
    )
    back = torch.cat(order).argsort()
    token_id, own, other, drawn, entropy = (
        torch.cat(column)[back] for column in zip(*parts, strict=True)
    )
    return _View(token_id, own, other, entropy, drawn.squeeze(1))
