"""The output head of a causal language model, separate from its body.

Everything here serves one aim: to look at logits without ever holding a (batch, time, vocabulary)
tensor. `split_head` gives the body, which ends in hidden states, and a `Head` that turns any rows
of them into logits: over the full vocabulary, chunk by chunk, or at k given tokens only.

Shape suffixes: N rows (any leading axes), D hidden size, V vocabulary, K tokens per row.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from opdprobe.errors import VocabularyError
from opdprobe.models.lengths import as_new, kept_apart
from opdprobe.models.positions import position_limit

__all__ = ["Body", "Head", "evaluating", "logit_width", "split_head"]

logger = logging.getLogger("opdprobe")

# Called like the transformers base model: body(input_ids=, attention_mask=, position_ids=,
# past_key_values=, use_cache=) returns .last_hidden_state and .past_key_values.
Body = Callable[..., BaseModelOutputWithPast]

# Far outside any cap in use (Gemma: 30), so that a cap which was missed shows in the check.
_RAMP = 64.0


@dataclass(frozen=True)
class Head:
    """Map hidden states to logits: ``cap(scale * (hidden @ weight.T + bias))``.

    The product runs in the model's own dtype, which is what the model's `forward` does; scale,
    cap and everything later are float32 (a float64 model stays float64). Weights are read from
    `projection` at each call, so an optimiser's updates are seen.

    Attributes
    ----------
    projection : torch.nn.Linear or None
        The model's own output layer; None on the slow path of `split_head`, where the
        "hidden states" already are the model's logits.
    width : int
        Number of tokens kept: rows of the weight from `width` on are padding and never computed.
    scale : float
        Factor on the logits (Cohere's `logit_scale`, 1 / Granite's `logits_scaling`).
    softcap : float or None
        Gemma's `final_logit_softcapping` c: logits become ``c * tanh(logits / c)``.

    Examples
    --------
    >>> layer = nn.Linear(2, 4, bias=False)
    >>> _ = layer.weight.data.copy_(torch.tensor([[1., 0.], [0., 1.], [1., 1.], [9., 9.]]))
    >>> head = Head(layer, width=3)  # the fourth row is padding
    >>> hidden = torch.tensor([[1., 2.], [3., 4.]])
    >>> head(hidden).tolist()
    [[1.0, 2.0, 3.0], [3.0, 4.0, 7.0]]
    >>> head.columns(hidden, torch.tensor([[2], [0]])).tolist()
    [[3.0], [3.0]]
    >>> head(hidden[:0]).shape
    torch.Size([0, 3])
    """

    projection: nn.Linear | None
    width: int
    scale: float = 1.0
    softcap: float | None = None

    def __call__(self, hidden_ND: Tensor, tile: slice | None = None) -> Tensor:
        """Compute the logits of all tokens, or of a range of tokens.

        Parameters
        ----------
        hidden_ND : Tensor (..., D)
            Last hidden states. A call returns one (..., V) tensor: pass a chunk of rows.
        tile : slice, optional
            Range of token ids within ``0 … width``. Default: all.

        Returns
        -------
        Tensor (..., V)
            Logits, float32, differentiable in `hidden_ND` and the weights.
        """
        tile = slice(0, self.width) if tile is None else tile
        if self.projection is None:
            return _widen(hidden_ND[..., tile])
        return self._finish(_product(self.projection, hidden_ND, tile))

    @torch.no_grad()
    def fill(self, out_NC: Tensor, hidden_ND: Tensor, tile: slice) -> None:
        """Write the logits of a range of tokens into a tensor, without gradient.

        Parameters
        ----------
        out_NC : Tensor (N, C)
            Receives the logits.
        hidden_ND : Tensor (N, D)
            Last hidden states.
        tile : slice
            Range of C token ids within ``0 … width``.
        """
        layer = self.projection
        if layer is None or self.scale != 1 or self.softcap is not None:
            out_NC.copy_(self(hidden_ND, tile))
        elif (
            layer.bias is not None
            or not layer.weight.dtype == hidden_ND.dtype == out_NC.dtype
            or torch.is_autocast_enabled(out_NC.device.type)
        ):
            out_NC.copy_(_product(layer, hidden_ND, tile))  # widened on the way
        else:  # the product is written in place, which spares a pass over memory
            torch.mm(hidden_ND, layer.weight[tile].T, out=out_NC)

    @torch.no_grad()
    def pull_back(
        self,
        grad_NC: Tensor,
        logits_NC: Tensor,
        hidden_ND: Tensor,
        tile: slice,
        hidden_grad_ND: Tensor,
        parameter_grads: Sequence[Tensor | None],
    ) -> None:
        """Propagate a gradient of the logits of a range of tokens back, adding to the sums given.

        Parameters
        ----------
        grad_NC : Tensor (N, C)
            Derivative of a loss with respect to ``self(hidden, tile)``.
        logits_NC : Tensor (N, C)
            ``self(hidden, tile)``.
        hidden_ND : Tensor (N, D)
            Last hidden states.
        tile : slice
            Range of C token ids.
        hidden_grad_ND : Tensor (N, D)
            Gradient of the hidden states, added to in place.
        parameter_grads : sequence of Tensor or None
            Gradients of `parameters`, added to in place; None for one that needs none.
        """
        if self.softcap is not None:
            grad_NC = grad_NC * (1 - (logits_NC / self.softcap) ** 2)
        if self.scale != 1:
            grad_NC = grad_NC * self.scale
        if self.projection is None:
            hidden_grad_ND[:, tile] += grad_NC
            return
        weight_CD = self.projection.weight[tile]
        grad_NC = grad_NC.to(weight_CD.dtype)
        _add_product(hidden_grad_ND, grad_NC, weight_CD)
        weight_grad, *bias_grads = parameter_grads
        if weight_grad is not None:
            _add_product(weight_grad[tile], grad_NC.T, hidden_ND.to(weight_CD.dtype))
        for bias_grad in bias_grads:
            if bias_grad is not None:
                bias_grad[tile] += grad_NC.sum(0)

    @property
    def parameters(self) -> list[Tensor]:
        """Weight and bias of the projection, if it has them."""
        return [] if self.projection is None else list(self.projection.parameters())

    def columns(self, hidden_ND: Tensor, ids_NK: Tensor) -> Tensor:
        """Compute the logits of some tokens of each row, without the others.

        Forward and backward cost N·K·D instead of N·V·D (the gradient of the weight is still a
        dense (V, D) tensor).

        Parameters
        ----------
        hidden_ND : Tensor (..., D)
            Last hidden states.
        ids_NK : Tensor (..., K) of int64
            Token ids, each in [0, width). This is not checked.

        Returns
        -------
        Tensor (..., K)
            Logits, float32: ``self(hidden).gather(-1, ids)``, up to rounding.
        """
        if self.projection is None:
            return _widen(hidden_ND[..., : self.width].gather(-1, ids_NK))
        # The full weight, padding included: a slice would have a second dense gradient.
        logits_NK = _Columns.apply(hidden_ND, self.projection.weight, ids_NK)
        if self.projection.bias is not None:
            logits_NK = logits_NK + self.projection.bias[ids_NK]
        return self._finish(logits_NK)

    def _finish(self, logits: Tensor) -> Tensor:
        logits = _widen(logits)
        if self.scale != 1.0:  # a pass over (N, V) that most models do not need
            logits = logits * self.scale
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return logits


class _Columns(torch.autograd.Function):
    """Products of each hidden state with some rows of the weight.

    Autograd would keep these rows, K times the memory of the hidden states; `embedding_bag` sums
    them without materialising them, and is faster than the product that needs them.
    """

    @staticmethod
    def forward(ctx, hidden_ND: Tensor, weight_VD: Tensor, ids_NK: Tensor) -> Tensor:
        ctx.save_for_backward(hidden_ND, weight_VD, ids_NK)
        return (F.embedding(ids_NK, weight_VD) @ hidden_ND.unsqueeze(-1)).squeeze(-1)

    @staticmethod
    def backward(ctx, *grad_outputs: Tensor):
        hidden_ND, weight_VD, ids_NK = ctx.saved_tensors
        grad_NK = grad_outputs[0].to(weight_VD.dtype)
        hidden_grad = weight_grad = None
        if ctx.needs_input_grad[0]:
            bags, weights = (x.flatten(0, -2) for x in (ids_NK, grad_NK))
            sums = F.embedding_bag(bags, weight_VD, mode="sum", per_sample_weights=weights)
            hidden_grad = sums.view_as(hidden_ND).to(hidden_ND.dtype)
        if ctx.needs_input_grad[1]:  # what autograd does for `embedding`
            outer_NKD = grad_NK.unsqueeze(-1) * hidden_ND.unsqueeze(-2).to(weight_VD.dtype)
            weight_grad = torch.ops.aten.embedding_dense_backward(
                outer_NKD, ids_NK, len(weight_VD), -1, False
            )
        return hidden_grad, weight_grad, None


def split_head(model: PreTrainedModel, *, width: int | None = None) -> tuple[Body, Head]:
    """Split a causal language model into its body and its output head.

    The split is checked on one short input: the body's output must be what the model's own
    output layer receives, and the head must do to that layer's output what the model does. A model
    that fails the check (its head has an adapter, say) takes a slow path, with a warning in the
    log: the body returns the model's full logits and the head only cuts them.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        A causal language model. Neither its mode nor a random generator is changed.
    width : int, optional
        Keep the logits of tokens ``0 … width - 1`` only (`opdprobe.models.load.shared_width`).
        Default: all of the model's logits.

    Returns
    -------
    body : callable
        ``body(input_ids=, attention_mask=, position_ids=, past_key_values=, use_cache=)`` returns
        an output with `.last_hidden_state` (batch, time, D) and `.past_key_values`.
    head : Head
        Maps hidden states to logits.

    Raises
    ------
    VocabularyError
        `width` is not between 1 and the model's logit width.

    Examples
    --------
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> config = LlamaConfig(vocab_size=32, hidden_size=8, intermediate_size=8,
    ...                      num_hidden_layers=1, num_attention_heads=2)
    >>> model = LlamaForCausalLM(config).eval()
    >>> body, head = split_head(model, width=30)
    >>> ids = torch.tensor([[1, 5, 2]])
    >>> logits = head(body(input_ids=ids).last_hidden_state)
    >>> torch.allclose(logits, model(input_ids=ids).logits[..., :30], atol=1e-6)
    True
    """
    full = logit_width(model)
    if width is None:
        width = full
    if not 1 <= width <= full:
        raise VocabularyError(
            f"width = {width}; expected 1 to {full}, the number of logits of "
            f"{type(model).__name__}."
        )
    body, projection = model.base_model, model.get_output_embeddings()
    # Exactly nn.Linear: a subclass or wrapper (quantised, LoRA) computes more than weight and bias.
    if type(projection) is nn.Linear and body is not model:
        config = model.config.get_text_config()
        head = Head(
            projection,
            width,
            scale=getattr(config, "logit_scale", None)
            or 1.0 / (getattr(config, "logits_scaling", None) or 1.0),
            softcap=getattr(config, "final_logit_softcapping", None),
        )
        with as_new(model), evaluating(model):
            if _agrees(model, body, head):
                return kept_apart(model, body), head
    logger.warning(
        "%s: the output head is not a plain projection of the body's hidden states; its logits "
        "are computed in full (slower, and memory grows with the vocabulary).",
        type(model).__name__,
    )

    def logits_body(**inputs) -> BaseModelOutputWithPast:
        out = model(**inputs)
        return BaseModelOutputWithPast(
            last_hidden_state=out.logits, past_key_values=getattr(out, "past_key_values", None)
        )

    with evaluating(model):
        return kept_apart(model, logits_body), Head(None, width)


def logit_width(model: PreTrainedModel) -> int:
    """Count a model's logits per state, padding included.

    Examples
    --------
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> config = LlamaConfig(vocab_size=32, hidden_size=8, intermediate_size=8,
    ...                      num_hidden_layers=1, num_attention_heads=2)
    >>> logit_width(LlamaForCausalLM(config))
    32
    """
    projection = model.get_output_embeddings()
    if isinstance(projection, nn.Linear):
        return projection.weight.shape[0]
    return model.config.get_text_config().vocab_size


def _product(layer: nn.Linear, hidden: Tensor, tile: slice) -> Tensor:
    """Outputs `tile` of a layer, in its own dtype."""
    bias = None if layer.bias is None else layer.bias[tile]
    return F.linear(hidden, layer.weight[tile], bias)


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """``total += a @ b``, where the sum may be of a larger dtype than the product."""
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    else:
        total += a @ b


def _widen(logits: Tensor) -> Tensor:
    """Convert smaller dtypes to float32; float64 stays."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _agrees(model: PreTrainedModel, body: nn.Module, head: Head) -> bool:
    """Return whether the head on top of the body gives the model's logits.

    The output layer's result is swapped for a ramp while the model runs: with the true
    result, a missed cap would be invisible where logits are small, as in an untrained model.
    """
    assert head.projection is not None
    weight = head.projection.weight
    length = min(8, position_limit(model) or 8)
    ids = (torch.arange(1, length + 1, device=weight.device) % weight.shape[0])[None]  # no RNG
    ramp = torch.linspace(-_RAMP, _RAMP, weight.shape[0], device=weight.device, dtype=weight.dtype)
    received: list[Tensor] = []

    def swap(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        received.append(args[0])
        return ramp.expand_as(output)

    with torch.no_grad():
        hidden = getattr(body(input_ids=ids, use_cache=False), "last_hidden_state", None)
        handle = head.projection.register_forward_hook(swap)
        try:
            logits = model(input_ids=ids, use_cache=False).logits
        finally:
            handle.remove()
        if hidden is None or len(received) != 1 or received[0].shape != hidden.shape:
            return False
        want = head._finish(ramp[: head.width]).expand_as(logits[..., : head.width])
        return _close(hidden, received[0], weight.dtype) and _close(
            logits[..., : head.width], want, weight.dtype
        )


def _close(got: Tensor, want: Tensor, dtype: torch.dtype) -> bool:
    # Relative to the largest value; a few roundings of the model's own dtype are allowed, since
    # the model caps and scales in that dtype and the head in float32.
    tolerance = 8 * torch.finfo(dtype).eps * float(want.abs().max())
    return bool((got.float() - want.float()).abs().max() <= tolerance)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switch to evaluation mode (no dropout), then restore every module's own mode."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
