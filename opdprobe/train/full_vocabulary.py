"""Divergences over the full vocabulary, with their gradient formed in the forward pass.

Autograd would keep a copy of the logits for every operation, or compute them again in the backward
pass: six matrix products with the heads in all. The loss is a sum over states, so the gradient of
a few hundred of them can be formed while their logits are in memory: four products, and only the
gradients themselves are kept.

In shapes, N is the number of states, D the hidden size, V the vocabulary and C the number of tokens
in a tile.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from opdprobe.models.head import Head
from opdprobe.rollout.tiles import cut_tiles, fill_tile, sum_dtype, tile_buffer, vocabulary_tiles

# Each chunk of rows adds a gradient of the size of the head's weight to its sum, so more rows are
# held at once than for scoring.
_ROWS = 256


def full_divergence(
    hidden: Tensor,
    teacher_hidden: Tensor,
    head: Head,
    teacher_head: Head,
    *,
    kind: str = "reverse_kl",
    temperature: float = 1.0,
) -> Tensor:
    """Sum a full-vocabulary divergence over states.

    Parameters
    ----------
    hidden : Tensor (N, D)
        The student's last hidden states. They and the student's head receive gradients.
    teacher_hidden : Tensor (N, D')
        The teacher's.
    head, teacher_head
        Output heads of equal width.
    kind
        ``reverse_kl`` KL(p‖q), ``forward_kl`` KL(q‖p) or ``jsd``, their symmetric mean to the
        mixture (p + q) / 2.
    temperature
        Divides both models' logits.

    Returns
    -------
    Tensor ()
        Nats.

    Notes
    -----
    With u = log p, a divergence is a sum of terms f(u_j, v_j); its gradient with respect to the
    logits is f'_j - p_j Σ_i f'_i, f' being the derivative of a term in u.
    """
    return _FullDivergence.apply(
        kind, temperature, head, teacher_head, teacher_hidden, hidden, *head.parameters
    )


class _FullDivergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx,
        kind: str,
        temperature: float,
        head: Head,
        teacher_head: Head,
        teacher_hidden: Tensor,
        hidden: Tensor,
        *parameters: Tensor,
    ) -> Tensor:
        n_rows, tiles = vocabulary_tiles(head.width, hidden.device, _ROWS)
        buffer = tile_buffer(hidden, n_rows, tiles)
        needs = ctx.needs_input_grad[5:]
        # Sums in the buffer's dtype: in bfloat16 a sum of many chunks would lose the later ones.
        grads = [
            torch.zeros_like(x, dtype=buffer.dtype) if need else None
            for x, need in zip((hidden, *parameters), needs, strict=True)
        ]
        hidden_grad, *parameter_grads = grads
        loss = torch.zeros((), dtype=sum_dtype(buffer), device=buffer.device)
        for start in range(0, len(hidden), n_rows):
            rows = slice(start, start + n_rows)
            states = hidden[rows]
            blocks = cut_tiles(buffer, tiles, len(states))
            models = (head, states), (teacher_head, teacher_hidden[rows])
            log_z = _fill(blocks, models, tiles, temperature)
            slope = _add_terms(loss, blocks, log_z, kind)
            if hidden_grad is None:
                continue
            for block, tile in zip(blocks, tiles, strict=True):
                grad, logits = _logit_gradient(block, log_z, slope, kind), block[0]
                if temperature != 1:
                    grad, logits = grad / temperature, logits * temperature
                head.pull_back(grad, logits, states, tile, hidden_grad[rows], parameter_grads)
        ctx.grads = grads
        return loss.to(buffer.dtype)

    @staticmethod
    def backward(ctx, *grad_outputs: Tensor):
        (grad_output,) = grad_outputs
        # Handed over rather than saved: what autograd alone owns becomes .grad without a copy, and
        # the head's gradient is as large as its weight.
        grads, ctx.grads = ctx.grads, None
        grads = [None if g is None else g.mul_(grad_output) for g in grads]
        return None, None, None, None, None, *grads


def _fill(
    blocks: Sequence[Tensor],
    models: Sequence[tuple[Head, Tensor]],
    tiles: Sequence[slice],
    temperature: float,
) -> Tensor:
    """Compute both models' logits in tiles (2, N, C), and their normalisers log Z (2, N, 1)."""
    largest = blocks[0].new_full(blocks[0].shape[:2], torch.finfo(blocks[0].dtype).min)
    total = torch.zeros_like(largest, dtype=sum_dtype(blocks[0]))
    for block, tile in zip(blocks, tiles, strict=True):
        fill_tile(block, models, tile, temperature)
        before, largest = largest, torch.maximum(largest, block.amax(-1))
        total *= (before - largest).exp()
        total += (block - largest[..., None]).exp_().sum(-1)
    return (largest + total.log()).to(blocks[0].dtype)[..., None]


def _add_terms(loss: Tensor, blocks: Sequence[Tensor], log_z: Tensor, kind: str) -> Tensor:
    """Add all terms at a chunk of states to the loss; return Σ f'_i at each, (N, 1)."""
    slope = torch.zeros_like(log_z[0], dtype=loss.dtype)
    for block in blocks:
        u, v = block - log_z
        terms, slopes, _ = _terms(u, v, kind)
        loss += terms.sum()
        slope += slopes.sum(-1, keepdim=True)
    return slope.to(log_z.dtype)


def _logit_gradient(block: Tensor, log_z: Tensor, slope: Tensor, kind: str) -> Tensor:
    """Gradient f'_j - p_j Σ_i f'_i with respect to the student's logits of a tile, (N, C)."""
    u, v = block - log_z
    _, slopes, p = _terms(u, v, kind)
    return slopes.sub_(p.mul_(slope))


def _terms(u: Tensor, v: Tensor, kind: str) -> tuple[Tensor, Tensor, Tensor]:
    """Terms of a divergence at log p = u and log q = v, their derivatives in u, and p."""
    p = u.exp()
    if kind == "reverse_kl":
        terms = (u - v).mul_(p)
        return terms, terms + p, p
    q = v.exp()
    if kind == "forward_kl":
        return q * (v - u), -q, p
    log_mixture = torch.logaddexp(u, v) - math.log(2)  # p and q may both be too small for float32
    half = 0.5 * p * (u - log_mixture)
    return half + 0.5 * q * (v - log_mixture), half, p
