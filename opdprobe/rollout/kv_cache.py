"""A cache of keys and values whose buffers have room for more tokens.

transformers' own cache copies everything for each new token: sampling a response of T tokens moves
T²/2 tokens through memory where T would do.
"""

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer

# Each time the buffers grow, they grow by this share, and by at least this number of tokens.
_SHARE, _LEAST = 0.25, 64


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
