"""Rotary positions whose frequencies depend on how long the text is.

Two kinds of rope choose their frequencies by the longest row of a pass. Dynamic NTK stretches them
ever further beyond the trained length, and keeps them for later passes. LongRoPE has one set up to
the trained length and one beyond. What such a model computes for a text depends on the text's own
length, and in a batch on that of the longest text as well.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


def depends_on_length(model: nn.Module) -> bool:
    """Whether a model's rope has other frequencies for long texts than for short ones.

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
    """Name the set of frequencies that a model has for a text.

    Texts of equal classes may share a pass: each then has the frequencies that it would have alone.

    Parameters
    ----------
    model
        A causal language model.
    length
        Length of a text, in tokens.

    Returns
    -------
    tuple of int
        Equal for lengths with equal frequencies, and not smaller for a longer text; empty if the
        frequencies do not depend on the length.

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
    classes = []
    for module, layer_type, kind in _ropes(model):
        if "dynamic" in kind:
            classes.append(max(length, int(module.original_max_seq_len)))
        elif kind == "longrope" or "long_mscale" in _parameters(module, layer_type):
            # Phi-3.5-MoE scales by length whatever its rope is.
            limit = _parameters(module, layer_type)["original_max_position_embeddings"]
            classes.append(int(length > limit))
    return tuple(classes)


@contextmanager
def new_rope(model: nn.Module) -> Iterator[None]:
    """Run the block as if the model had seen no text yet, then restore what it has kept.

    Dynamic NTK keeps the frequencies of the longest text so far until a text within the trained
    length resets them: a text in between would get those of an earlier, longer one.
    """
    kept: list[tuple[Any, str, Any, Any]] = []
    for module, layer_type, kind in _ropes(model):
        if "dynamic" in kind:
            prefix = "" if layer_type is None else f"{layer_type}_"
            kept.append(
                (
                    *(module, prefix, getattr(module, f"{prefix}inv_freq")),
                    vars(module).get(f"{prefix}max_seq_len_cached"),
                )
            )
            first = getattr(module, f"{prefix}original_inv_freq")
            _set(module, prefix, first, module.original_max_seq_len)
    try:
        yield
    finally:
        for state in kept:
            _set(*state)


def _set(module: Any, prefix: str, frequencies: Any, longest: Any) -> None:
    # As transformers does it: the buffer is replaced, since a pass may hold the old one.
    module.register_buffer(f"{prefix}inv_freq", frequencies, persistent=False)
    if longest is None:
        vars(module).pop(f"{prefix}max_seq_len_cached", None)
    else:
        setattr(module, f"{prefix}max_seq_len_cached", longest)


def _ropes(model: nn.Module) -> Iterator[tuple[Any, str | None, str]]:
    """Yield a model's rotary embeddings, for each type of layer if they differ, and their kinds."""
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
