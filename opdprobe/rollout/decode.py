"""Run a model token by token over a batch of rollouts, in one of three ways.

`Decoding.PADDED`, the fast one, holds all rows in one batch with one cache: a prompt is run once
for all of its rollouts, short prompts are padded on the left, and rows that have ended are dropped.
`Decoding.UNPADDED` gives prompts of one length a batch of their own and feeds the model's own cache
back untouched, so nothing depends on what the cache holds. `Decoding.RECOMPUTED` runs the model
over all tokens of every row for each token, without a cache. `opdprobe.rollout.exact` chooses.
"""

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import takewhile
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from opdprobe.models.lengths import as_new
from opdprobe.rollout.kv_cache import RoomyLayer, drop_rows, repeat_rows, roomy_cache

# The common beginning of all prompts is computed once if that spares at least this number of
# tokens: an extra pass through the model costs about as much as a hundred.
_LEAST_SPARED = 128

# What models call their memory of earlier tokens, as an argument and in their output.
_CACHES = ("past_key_values", "cache_params", "state", "mems", "past_buckets_states")


class Decoding(StrEnum):
    """How a model is run while it is sampled."""

    PADDED = "padded"
    UNPADDED = "unpadded"
    RECOMPUTED = "recomputed"


def cache_name(model: PreTrainedModel) -> str | None:
    """Name of the argument that takes a model's memory of earlier tokens, None if it has none."""
    takes = inspect.signature(model.forward).parameters
    return next((name for name in _CACHES if name in takes), None)


def left_pad(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Stack token lists with padding on the left.

    Returns
    -------
    ids : Tensor (B, T)
    mask : Tensor (B, T)
        1 at real tokens, 0 at padding; int64.
    """
    width = max(map(len, rows))
    ids = torch.tensor([[pad_id] * (width - len(r)) + list(r) for r in rows])
    mask = torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rows])
    return ids, mask


class _Part(Protocol):
    """Rows that are run together."""

    def feed(self, model: PreTrainedModel, token: Tensor) -> Tensor:
        """Append a token (B,) to each row; return the logits (B, V) after it."""
        ...

    def drop(self, alive: Tensor) -> Tensor:
        """Drop the rows that are not alive, or some of them; return which are kept (B,)."""
        ...


@dataclass
class _Padded:
    """Rows of any length, with one cache.

    Parameters
    ----------
    cache
        Keys and values, or states, of all tokens so far.
    cache_name
        The model's name for it.
    position : Tensor (B, 1)
        Position of the row's last token, not counting padding.
    mask : Tensor (B, T) or None
        1 at real tokens; None if there is no padding, since no mask is needed then.
    """

    cache: DynamicCache
    cache_name: str
    position: Tensor
    mask: Tensor | None

    def feed(self, model: PreTrainedModel, token: Tensor) -> Tensor:
        if self.mask is not None:
            self.mask = torch.cat([self.mask, self.mask.new_ones(len(token), 1)], 1)
        self.position = self.position + 1
        inputs = {self.cache_name: self.cache}
        out = model(
            input_ids=token[:, None],
            attention_mask=self.mask,
            position_ids=self.position,
            use_cache=True,
            **inputs,
        )
        return out.logits[:, -1]

    def drop(self, alive: Tensor) -> Tensor:
        drop_rows(self.cache, alive)
        self.position = self.position[alive]
        self.mask = None if self.mask is None else self.mask[alive]
        return alive


@dataclass
class _Unpadded:
    """Rows of one length. They stay until all have ended, since nothing is known of the cache.

    Parameters
    ----------
    cache
        What the model itself has returned.
    cache_name
        The model's name for it.
    """

    cache: Any
    cache_name: str

    def feed(self, model: PreTrainedModel, token: Tensor) -> Tensor:
        inputs = {self.cache_name: self.cache}
        out = model(input_ids=token[:, None], use_cache=True, **inputs)
        self.cache = out[self.cache_name]
        return out.logits[:, -1]

    def drop(self, alive: Tensor) -> Tensor:
        return alive.any().expand_as(alive)


@dataclass
class _Recomputed:
    """Rows of one length.

    Parameters
    ----------
    text : Tensor (B, T)
        All tokens of each row.
    """

    text: Tensor

    def feed(self, model: PreTrainedModel, token: Tensor) -> Tensor:
        self.text = torch.cat([self.text, token[:, None]], 1)
        with as_new(model):
            return model(input_ids=self.text, use_cache=False, logits_to_keep=1).logits[:, -1]

    def drop(self, alive: Tensor) -> Tensor:
        self.text = self.text[alive]
        return alive


class Live:
    """The batch while it is sampled: rollouts that have not ended, and a few that have.

    Parameters
    ----------
    parts
        Rows that are run together.
    rollout : sequence of Tensor (B,)
        For each part, the index of each row's rollout.

    Attributes
    ----------
    rollout : Tensor (B,)
        Index of each row's rollout.
    alive : Tensor (B,), bool
        Whether the row's rollout has not ended.
    """

    def __init__(self, parts: Sequence[_Part], rollout: Sequence[Tensor]):
        self._parts, self._sizes = list(parts), [len(part) for part in rollout]
        self.rollout = torch.cat(list(rollout))
        self.alive = torch.ones_like(self.rollout, dtype=torch.bool)

    def drop_ended(self, token: Tensor) -> Tensor:
        """Drop the rows that have ended; return the tokens (B,) of the others."""
        kept = [
            part.drop(alive)
            for part, alive in zip(self._parts, self.alive.split(self._sizes), strict=True)
        ]
        left = [(part, int(keep.sum())) for part, keep in zip(self._parts, kept, strict=True)]
        self._parts = [part for part, size in left if size]
        self._sizes = [size for _, size in left if size]
        rows = torch.cat(kept)
        self.rollout, self.alive = self.rollout[rows], self.alive[rows]
        return token[rows]

    def feed(self, model: PreTrainedModel, token: Tensor) -> Tensor:
        """Append a token (B,) to each row; return the logits (B, V) after it."""
        return torch.cat(
            [
                part.feed(model, own)
                for part, own in zip(self._parts, token.split(self._sizes), strict=True)
            ]
        )


def prefill(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    pad_id: int,
    num_generations: int,
    decoding: Decoding,
) -> tuple[Live, Tensor]:
    """Run a model over prompts.

    Parameters
    ----------
    model
        A causal LM in evaluation mode.
    prompts
        Token ids of each prompt.
    pad_id
        Pads short prompts on the left, if they are padded.
    num_generations
        Rows per prompt.
    decoding
        How the model is run.

    Returns
    -------
    live : Live
        A row per rollout.
    logits : Tensor (B, V)
        Logits after each row's prompt.
    """
    n = num_generations
    if decoding is Decoding.PADDED:
        part, logits = _prefill_padded(model, prompts, pad_id, n)
        return Live([part], [torch.arange(len(prompts) * n, device=model.device)]), logits
    parts, rollouts, logits = [], [], []
    for group in _of_one_length(prompts):
        text = torch.tensor([prompts[i] for i in group], device=model.device)
        text = text.repeat_interleave(n, 0)
        if decoding is Decoding.UNPADDED:
            name = cache_name(model)
            assert name is not None
            out = model(input_ids=text, use_cache=True, logits_to_keep=1)
            parts.append(_Unpadded(out[name], name))
        else:
            with as_new(model):
                out = model(input_ids=text, use_cache=False, logits_to_keep=1)
            parts.append(_Recomputed(text))
        rollouts.append(torch.tensor([i * n + j for i in group for j in range(n)]).to(text.device))
        logits.append(out.logits[:, -1])
    return Live(parts, rollouts), torch.cat(logits)


def _prefill_padded(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], pad_id: int, num_generations: int
) -> tuple[_Padded, Tensor]:
    device, name = model.device, cache_name(model)
    assert name is not None
    ids, mask = (t.to(device) for t in left_pad(prompts, pad_id))
    position = mask.cumsum(-1).sub_(1).clamp_(min=0)
    padded = not bool(mask.all())
    cache = roomy_cache(model.config)
    inputs = {name: cache}
    shared = _shared_tokens(prompts, cache)
    if shared:
        beginning = torch.tensor([list(prompts[0][:shared])], device=device)
        model(input_ids=beginning, use_cache=True, logits_to_keep=1, **inputs)
        for layer in cache.layers:
            assert isinstance(layer, RoomyLayer)
            layer.spread((mask == 0).sum(1))
    out = model(
        input_ids=ids[:, shared:],
        attention_mask=mask if padded else None,
        position_ids=position[:, shared:],
        use_cache=True,
        logits_to_keep=1,
        **inputs,
    )
    repeat_rows(cache, num_generations)
    part = _Padded(
        cache,
        name,
        position=position[:, -1:].repeat_interleave(num_generations, 0),
        mask=mask.repeat_interleave(num_generations, 0) if padded else None,
    )
    return part, out.logits[:, -1].repeat_interleave(num_generations, 0)


def _shared_tokens(prompts: Sequence[Sequence[int]], cache: DynamicCache) -> int:
    """Count the tokens that all prompts begin with (a system prompt, say); 0 if too few."""
    if not all(type(layer) is RoomyLayer for layer in cache.layers):
        # A sliding window has dropped keys that a shorter prompt, shifted right, still needs.
        return 0
    # What the first and the last in lexical order have in common, all have.
    rows = sorted(map(list, prompts))
    same = takewhile(lambda pair: pair[0] == pair[1], zip(rows[0], rows[-1], strict=False))
    # The last column is not shared: its logits are the first to be sampled from.
    n = min(sum(1 for _ in same), max(map(len, rows)) - 1)
    return n if n * (len(rows) - 1) >= _LEAST_SPARED else 0


def _of_one_length(prompts: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Indices of prompts, one list per length."""
    for length in sorted({len(prompt) for prompt in prompts}):
        yield [i for i, prompt in enumerate(prompts) if len(prompt) == length]
