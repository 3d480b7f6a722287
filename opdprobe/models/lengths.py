"""Models that compute a text differently next to another text than alone.

Two kinds of rope choose their frequencies by the longest row of a pass. Dynamic NTK stretches them
ever further beyond the trained length, and keeps them for later passes. LongRoPE has one set up to
the trained length and one beyond. Where an indexer picks the keys that attention sees, the width of
the pass decides between equal scores (DeepSeek-V3.2), or later tokens count as well (Doge). What
such a model computes for a text depends on the text's own length, and in a batch on the longest
text as well.

A text's scores are those that the model computes for the text alone. So texts of different *length
classes* share no pass.
"""

import logging
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers.modeling_outputs import BaseModelOutputWithPast

from opdprobe.models.positions import position_limit

logger = logging.getLogger("opdprobe")

_told: WeakSet[nn.Module] = WeakSet()
_mixing: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()  # found out once a model

# How much a row's hidden states may change with the row beside them, relative to their size.
# Rounding stays far below, even where it sends tokens to other experts; a common scale does not.
_ALIKE = {torch.float64: 1e-6, torch.float32: 1e-3}
_ALIKE_SHORT = 0.1  # of bfloat16 and float16
_PROBED = 16  # rows, of which one probably has larger activations than the first


def depends_on_length(model: nn.Module) -> bool:
    """Whether a model computes a text differently when a longer one is in the batch.

    Examples
    --------
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> size = dict(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
    ...             num_attention_heads=1)
    >>> depends_on_length(LlamaForCausalLM(LlamaConfig(**size)))
    False
    >>> rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    >>> depends_on_length(LlamaForCausalLM(LlamaConfig(**size, rope_parameters=rope)))
    True
    """
    return bool(length_class(model, 0))


def length_class(model: nn.Module, length: int) -> tuple[int, ...]:
    """Name what a model computes for a text of a given length.

    Texts of equal classes may share a pass: each is then computed as it would be alone.

    Parameters
    ----------
    model
        A causal language model.
    length
        Number of the text's tokens that the model gets.

    Returns
    -------
    tuple of int
        Never smaller for a longer text; empty if the length makes no difference.

    Examples
    --------
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    >>> config = LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
    ...     num_attention_heads=1, max_position_embeddings=16, rope_parameters=rope)
    >>> model = LlamaForCausalLM(config)
    >>> [length_class(model, length) for length in (4, 16, 17, 18)]
    [(16,), (16,), (17,), (18,)]
    """
    return _class(_limits(model), length)


def changes_within(model: nn.Module, length: int) -> bool:
    """Whether a token's rope, and so what is cached of it, changes while a text grows to `length`.

    Examples
    --------
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    >>> config = LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
    ...     num_attention_heads=1, max_position_embeddings=16, rope_parameters=rope)
    >>> [changes_within(LlamaForCausalLM(config), length) for length in (16, 17)]
    [False, True]
    """
    return any(length > limit for limit, _ in _rope_limits(model))


def _class(limits: Sequence[tuple[int, bool]], length: int) -> tuple[int, ...]:
    return tuple(max(length, limit) if grows else int(length > limit) for limit, grows in limits)


def _limits(model: nn.Module) -> list[tuple[int, bool]]:
    """Find the lengths beyond which a model computes otherwise: at each length, or at all alike."""
    limits = _rope_limits(model)
    for module in model.modules():
        # Up to so many keys, all are taken.
        for name in ("index_topk", "keep_window_size"):
            if isinstance(limit := getattr(module, name, None), int):
                limits.add((limit, True))
    return sorted(limits)


def _rope_limits(model: nn.Module) -> set[tuple[int, bool]]:
    limits = set()
    for module, layer_type, kind in _ropes(model):
        if "dynamic" in kind:
            limits.add((int(module.original_max_seq_len), True))
        elif kind == "longrope" or "long_mscale" in _parameters(module, layer_type):
            # Phi-3.5-MoE scales by length, whatever its rope is.
            limit = _parameters(module, layer_type)["original_max_position_embeddings"]
            limits.add((int(limit), False))
    return limits


@contextmanager
def as_new(model: nn.Module) -> Iterator[None]:
    """Run the block as if the model had seen no text yet, then restore what it had kept.

    Dynamic NTK keeps the frequencies of the longest text so far until a text within the trained
    length resets them: a text in between would get those of an earlier, longer one.
    """
    kept: list[tuple[Any, str, Any, Any]] = []
    for module, layer_type, kind in _ropes(model):
        if "dynamic" in kind:
            prefix = "" if layer_type is None else f"{layer_type}_"
            frequencies = getattr(module, f"{prefix}inv_freq")
            longest = vars(module).get(f"{prefix}max_seq_len_cached")
            kept.append((module, prefix, frequencies, longest))
            first = getattr(module, f"{prefix}original_inv_freq")
            _set(module, prefix, first, module.original_max_seq_len)
    try:
        yield
    finally:
        for state in kept:
            _set(*state)


def _set(module: Any, prefix: str, frequencies: Tensor, longest: Any) -> None:
    # As transformers does it: the buffer is replaced, not written.
    module.register_buffer(f"{prefix}inv_freq", frequencies, persistent=False)
    if longest is None:
        vars(module).pop(f"{prefix}max_seq_len_cached", None)
    else:
        setattr(module, f"{prefix}max_seq_len_cached", longest)


def _ropes(model: nn.Module) -> Iterator[tuple[Any, str | None, str]]:
    """Yield a model's rotary embeddings and their kinds, for each type of layer if these differ."""
    for module in model.modules():
        kinds = getattr(module, "rope_type", None)
        if isinstance(kinds, str):
            yield module, None, kinds
        elif isinstance(kinds, dict):
            for layer_type, kind in kinds.items():
                yield module, layer_type, kind


def _parameters(module: Any, layer_type: str | None) -> dict[str, Any]:
    parameters = module.config.rope_parameters
    return parameters if layer_type is None else parameters[layer_type]


class ApartBody:
    """The body of a model in which texts of different length classes share no pass.

    Parameters
    ----------
    model
        The causal language model.
    body
        Called as `opdprobe.models.head.Body`.
    alone
        No two texts share a pass.
    """

    def __init__(
        self,
        model: nn.Module,
        body: Callable[..., BaseModelOutputWithPast],
        *,
        alone: bool = False,
    ):
        self.model, self.body, self.alone = model, body, alone
        self._limits = _limits(model)

    def __call__(self, **inputs: Any) -> BaseModelOutputWithPast:
        """Run the body over one batch, as if it had seen no text before."""
        with as_new(self.model):
            return self.body(**inputs)

    def length_class(self, length: int) -> Hashable:
        """Name what the model computes for a text of a given length, as `length_class` does."""
        return object() if self.alone else _class(self._limits, length)

    def hidden(
        self, ids_BT: Tensor, row_N: Tensor, time_N: Tensor, real_BT: Tensor | None = None
    ) -> Tensor:
        """Run padded texts, each as if it were alone, and pick hidden states.

        Parameters
        ----------
        ids_BT : Tensor (B, T)
            Token ids. What follows the last place that is picked from a row is not run.
        row_N, time_N : Tensor (N,)
            Places of the states: row by row, in each row from left to right.
        real_BT : Tensor (B, T), bool, optional
            Which tokens are not padding; by default, all before the last place of each row.

        Returns
        -------
        Tensor (N, D)
            The last hidden states there.
        """
        ends = dict(zip(row_N.tolist(), time_N.tolist(), strict=True))
        texts, places = {}, {}
        for row, end in ends.items():
            text, time = ids_BT[row, : end + 1], time_N[row_N == row]
            if real_BT is not None:
                real = real_BT[row, : end + 1]
                text, time = text[real], real.cumsum(0)[time] - 1
            texts[row], places[row] = text, time
        found: dict[int, Tensor] = {}
        order = sorted(texts, key=lambda row: -len(texts[row]))
        for _, group in groupby(order, key=lambda row: self.length_class(len(texts[row]))):
            rows = list(group)
            # A real token never sees the padding behind it, so any id will do.
            output = self(
                input_ids=pad_sequence([texts[row] for row in rows], batch_first=True),
                use_cache=False,
            )
            assert output.last_hidden_state is not None  # optional in the type only
            for row, states in zip(rows, output.last_hidden_state, strict=True):
                found[row] = states[places[row]]
        return torch.cat([found[row] for row in ends])


def kept_apart(
    model: nn.Module, body: Callable[..., BaseModelOutputWithPast]
) -> Callable[..., BaseModelOutputWithPast]:
    """Return a model's body, as an `ApartBody` if texts must be kept apart; this is logged once."""
    if depends_on_length(model):
        say_once(
            model,
            "what it computes for a text depends on the longest text of the batch (dynamic or long "
            "rope, or attention to the keys that an indexer picks). Texts for which this makes a "
            "difference are scored in separate passes, which takes longer.",
        )
        return ApartBody(model, body)
    if model not in _mixing:
        _mixing[model] = _mixes_texts(model, body)
    if _mixing[model]:
        say_once(
            model,
            "what it computes for a token depends on the other texts of the batch (as with "
            "activations that are quantised by a common scale, or experts of limited capacity). "
            "Each text is scored in a pass of its own, which takes longer.",
        )
        return ApartBody(model, body, alone=True)
    return body


def say_once(model: nn.Module, message: str) -> None:
    """Log a warning about a model, unless one was logged before."""
    if model not in _told:
        _told.add(model)
        name = getattr(model, "name_or_path", "") or type(model).__name__
        logger.warning("%s: %s", name, message)


@torch.no_grad()
def _mixes_texts(model: Any, body: Callable[..., BaseModelOutputWithPast]) -> bool:
    """Whether a text's hidden states depend on the other texts of the batch."""
    width = model.config.get_text_config().vocab_size
    column = torch.arange(_PROBED, device=model.device)[:, None]
    place = torch.arange(1, min(8, position_limit(model) or 8) + 1, device=model.device)
    mixed_ids = (place * (2 * column + 1) + 31 * column) % width
    # Passes of one shape, so that they round alike.
    same, mixed = (
        body(input_ids=ids, use_cache=False).last_hidden_state
        for ids in (mixed_ids[:1].repeat(_PROBED, 1), mixed_ids)
    )
    if same is None or mixed is None:  # no base model that ends in hidden states
        return False
    short = torch.is_autocast_enabled(model.device.type)
    limit = _ALIKE_SHORT if short else _ALIKE.get(model.dtype, _ALIKE_SHORT)
    return bool((same[0] - mixed[0]).double().norm() > limit * same[0].double().norm())
