"""A cache of keys and values whose buffers have room for more tokens.

transformers' own cache copies everything for each new token: sampling a response of T tokens moves
T²/2 tokens through memory where T would do.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicLayer

# Each time the buffers grow, they grow by this share, and by at least this number of tokens.
_SHARE, _LEAST = 0.25, 64

# transformers' layers of which all that they keep can be repeated, and dropped, by row.
_MOVABLE = {
    *("DynamicLayer", "DynamicSlidingWindowLayer", "DynamicIndexedLayer", "DummyLayer"),
    *("LinearAttentionLayer", "LinearAttentionAndFullAttentionLayer"),
    "LinearAttentionAndSlidingWindowAttentionLayer",
}


class RoomyLayer(DynamicLayer):
    """One layer's keys and values, (batch, heads, tokens, head size); they are views of buffers."""

    _buffers: tuple[Tensor, Tensor] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args, **kwargs
    ) -> tuple[Tensor, Tensor]:
        """Append keys and values; return all of them."""
        keys, values = self.keys, self.values
        if keys is None or values is None:
            self.lazy_initialization(key_states, value_states)
            keys, values = key_states[:, :, :0], value_states[:, :, :0]
        before, n = keys.shape[2], key_states.shape[2]
        total = before + n
        if self._buffers is None or total > self._buffers[0].shape[2]:
            room = total + max(_LEAST, int(_SHARE * total))
            self._buffers = _copied(keys, room), _copied(values, room)
        all_keys, all_values = self._buffers
        all_keys.narrow(2, before, n).copy_(key_states)
        all_values.narrow(2, before, n).copy_(value_states)
        keys, values = all_keys.narrow(2, 0, total), all_values.narrow(2, 0, total)
        self.keys, self.values = keys, values
        return keys, values

    def spread(self, shift: Tensor) -> None:
        """Repeat the single row once per entry of `shift`, copy i moved right by ``shift[i]``.

        Left padding moves tokens in the same way. The length stays the same; the freed positions
        hold arbitrary values and must be masked.
        """
        assert self.keys is not None
        assert self.values is not None
        token = torch.arange(self.keys.shape[2], device=shift.device) - shift[:, None]
        token.clamp_(min=0)  # (rows, tokens)
        self.keys, self.values = (x[0][:, token].transpose(0, 1) for x in (self.keys, self.values))
        self._buffers = None

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row `repeats` times."""
        super().batch_repeat_interleave(repeats)
        self._buffers = None

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows at `indices`."""
        super().batch_select_indices(indices)
        self._buffers = None


def _copied(tensor: Tensor, room: int) -> Tensor:
    batch, heads, tokens, size = tensor.shape
    buffer = tensor.new_empty(batch, heads, room, size)
    buffer[:, :, :tokens] = tensor
    return buffer


def roomy_cache(config: PreTrainedConfig) -> DynamicCache:
    """Make an empty cache for a model; layers of other kinds (sliding window) stay as they are."""
    cache = DynamicCache(config=config)
    cache.layers = [
        RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers
    ]
    return cache


def rows_can_move(model: PreTrainedModel) -> str | None:
    """Say why rows of a model's cache cannot be repeated and dropped; None if they can.

    Only what is known is moved: a layer of another kind may keep more than its class shows.
    """
    try:
        cache = roomy_cache(model.config)
    except Exception as error:  # a configuration that says nothing of its layers
        return f"no cache can be made for it ({type(error).__name__})"
    names = {type(layer).__name__ for layer in cache.layers if type(layer) is not RoomyLayer}
    other = sorted(names - _MOVABLE)
    return f"its cache is of an own form ({', '.join(other)})" if other else None


def repeat_rows(cache: DynamicCache, repeats: int) -> None:
    """Repeat each row of a cache `repeats` times."""
    layers: Any = cache.layers
    for layer in layers:
        if not hasattr(layer, "recurrent_states"):
            layer.batch_repeat_interleave(repeats)
        elif (state := _state(layer)) is not None:
            rows = torch.arange(len(state), device=state.device)
            layer.reorder_cache(rows.repeat_interleave(repeats))


def drop_rows(cache: DynamicCache, alive: Tensor) -> None:
    """Keep the rows (B,) of a cache that are alive."""
    layers: Any = cache.layers
    for layer in layers:
        if not hasattr(layer, "recurrent_states"):
            layer.batch_select_indices(alive)
        elif _state(layer) is not None:  # only `reorder_cache` moves both states and keys
            layer.reorder_cache(alive.nonzero().squeeze(1))


def _state(layer: Any) -> Tensor | None:
    """Any tensor of a layer with a state, (B, ...); None if it holds nothing yet."""
    states = [*layer.conv_states.values(), *layer.recurrent_states.values()]
    return next((state for state in states if state is not None), getattr(layer, "keys", None))
