"""The objectives of on-policy distillation (paper §2.2), as sums over states.

Every objective compares the student's distribution p with the teacher's q at student-visited
states. Three choices make an objective:

* *which tokens*: the sampled one, the full vocabulary, or a top-k support;
* *what happens to the mass outside the support* (`tail`): renormalise both on it (Eq. 5), put it
  into one bucket, or drop it;
* *which gradient*: ``direct`` differentiates the divergence; ``policy_gradient`` weights the
  gradient of log p with a detached advantage, which is what the paper's reference code does.

What it costs: a divergence renormalised on K tokens has exactly zero gradient on every other
logit, so its backward pass through the output head costs N·K·D. Everything that needs the
normaliser of the full vocabulary forms its gradient chunk by chunk during the forward pass
(`_chunked`, `full_divergence`), and never keeps logits.

In shapes, N is the number of states, D the hidden size, V the vocabulary, K the number of tokens
kept per state and M the size of a support.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from opdprobe.models.head import Head
from opdprobe.rollout.pair import Pair, Scored
from opdprobe.rollout.tiles import chunk_rows, log_softmax
from opdprobe.train.config import OPDConfig
from opdprobe.train.full_vocabulary import full_divergence

# Upper limit of a support's log-probability mass if its tail is a bucket: log(1 - e^x) has an
# infinite slope at x = 0, where the tail is below float32's resolution.
_MAX_LOG_MASS = -1e-7


def support_tokens(token_id: Tensor, support: str) -> tuple[Tensor, Tensor]:
    """Choose the tokens of a top-k objective.

    Parameters
    ----------
    token_id : Tensor (N, 2, K)
        Both models' top-k ids.
    support
        ``student`` S, ``teacher`` T, ``overlap`` S ∩ T, ``non_overlap`` S △ T, ``union`` S ∪ T.

    Returns
    -------
    column : Tensor (N, M)
        Index into the 2K tokens ``token_id.flatten(1)``; M is K or 2K.
    mask : Tensor (N, M)
        Which of them belong to the support; a row may be empty.
    """
    n, _, k = token_id.shape
    column = torch.arange(2 * k, device=token_id.device).expand(n, -1)
    if support in ("student", "teacher"):
        column = column[:, :k] if support == "student" else column[:, k:]
        return column, torch.ones_like(column, dtype=torch.bool)
    equal = token_id[:, 0, :, None] == token_id[:, 1, None, :]
    in_both = torch.cat([equal.any(2), equal.any(1)], 1)  # (N, 2K): S's tokens, then T's
    first = torch.arange(2 * k, device=token_id.device) < k
    if support == "overlap":
        return column[:, :k], in_both[:, :k]
    if support == "union":
        return column, first | ~in_both  # a shared token counts once, among S's
    return column, ~in_both


def restrict(logp: Tensor, mask: Tensor, tail: str) -> Tensor:
    """Make a distribution over the masked tokens out of full-vocabulary log-probabilities.

    Parameters
    ----------
    logp : Tensor (N, M)
        Log-probabilities; for ``renormalise`` any constant may be added to a row (raw logits).
    mask : Tensor (N, M)
        Tokens of the support.
    tail
        ``renormalise``: divide by the mass on the support. ``bucket``: append the mass outside it
        as one more outcome. ``drop``: leave the values as they are (no longer a distribution).

    Returns
    -------
    Tensor (N, M) or (N, M + 1)
        Log-probabilities, minus infinity outside the mask. A row with an empty mask is a point
        mass, the same for every model, so that its divergence and gradient are zero.
    """
    empty = ~mask.any(-1, keepdim=True)
    inside = logp.masked_fill(~mask, -math.inf)
    if tail == "drop":
        return inside
    point = torch.zeros_like(logp).index_fill_(1, torch.tensor([0], device=logp.device), 1).log()
    # `where` before the arithmetic: the log-sum of an empty set is -inf and its gradient NaN.
    inside = torch.where(empty, point, inside)
    if tail == "renormalise":
        return inside.log_softmax(-1)  # subtracts the largest first, so that a large logit is exact
    log_mass = inside.logsumexp(-1, keepdim=True).clamp(max=_MAX_LOG_MASS)
    log_tail = torch.log(-torch.expm1(log_mass))
    return torch.cat([inside, torch.where(empty, -math.inf, log_tail)], -1)


def divergence(logp: Tensor, logq: Tensor, kind: str, *, normalised: bool = True) -> Tensor:
    """Divergence of two restricted distributions, student first.

    Parameters
    ----------
    logp, logq : Tensor (N, M)
        Log-probabilities; minus infinity in both where a token is outside the support.
    kind
        ``reverse_kl`` KL(p‖q), ``forward_kl`` KL(q‖p) or ``jsd``, their symmetric mean to the
        mixture (p + q) / 2.
    normalised
        Whether p and q sum to 1. If not (``tail="drop"``), Σ q - Σ p is added to KL(p‖q): without
        it, equal p and q would have a gradient, which changes their mass.

    Returns
    -------
    Tensor (N,)
        Nats, at least 0, and 0 with gradient 0 where p = q.
    """
    outside = torch.isneginf(logp) & torch.isneginf(logq)
    logp, logq = logp.masked_fill(outside, 0), logq.masked_fill(outside, 0)

    def kl(a: Tensor, b: Tensor) -> Tensor:
        terms = a.exp() * (a - b)
        if not normalised:
            terms = terms + (b.exp() - a.exp())
        return torch.where(outside, 0, terms).sum(-1)

    if kind == "reverse_kl":
        return kl(logp, logq)
    if kind == "forward_kl":
        return kl(logq, logp)
    mixture = torch.logaddexp(logp, logq) - math.log(2)
    return 0.5 * (kl(logp, mixture) + kl(logq, mixture))


def distillation_loss(part: Scored, pair: Pair, config: OPDConfig) -> Tensor:
    """Sum the configured objective over the states of a micro-batch.

    Parameters
    ----------
    part
        Hidden states and scores, at ``config.temperature``; gradients reach ``part.hidden``.
    pair
        The models; gradients reach the student's head.
    config
        Objective, support, divergence, tail and estimator.

    Returns
    -------
    Tensor ()
        Sum over states in nats. For ``estimator="policy_gradient"`` its value is minus the sum of
        the advantages, log p - log q of the sampled token or Σ p̄ (log p - log q) on the support;
        its gradient is the estimator's.

    Notes
    -----
    ``direct`` with top-k, reverse KL and renormalisation is Eq. 5. The policy-gradient update of
    the reference code, with weights p̄(v)(log q(v) - log p(v)), is not its gradient: it equals
    ∇KL(p̄‖q̄) + [KL(p̄‖q̄) + log(P/Q)] ∇log P, with P and Q the two models' mass on the support.
    The second term also moves mass into or out of the support, and is the only one at k = 1. With
    ``tail="drop"`` the two updates are one.

    References
    ----------
    Paper §2.2, Eq. 3 to 5; §4.2 for the overlap supports.
    """
    tau = config.temperature
    hidden, scores, head = part.hidden, part.scores, pair.student_head
    if config.objective == "full":
        return full_divergence(
            hidden,
            part.teacher_hidden,
            head,
            part.teacher_head or pair.teacher_head,
            kind=config.divergence,
            temperature=tau,
        )

    if config.objective == "sampled":
        # Score function: the derivative of log p - log q itself has no teacher term (Eq. 3).
        advantage = (scores.sampled_logp[:, 1] - scores.sampled_logp[:, 0])[:, None]
        surrogate = weighted_nll(hidden, head, part.batch.sampled_ids[:, None], advantage, tau)
        return _with_value(surrogate, -advantage.sum())

    column, mask = support_tokens(scores.token_id, config.support)
    ids = scores.token_id.flatten(1).gather(1, column)
    logq = scores.logp[:, 1].flatten(1).gather(1, column)
    if config.estimator == "policy_gradient":
        old_logp = scores.logp[:, 0].flatten(1).gather(1, column)
        weight = restrict(old_logp, mask, config.tail).exp()
        advantage = torch.where(mask, weight * (logq - old_logp), 0)
        return _with_value(weighted_nll(hidden, head, ids, advantage, tau), -advantage.sum())

    q = restrict(logq, mask, config.tail)
    if config.tail == "renormalise":
        logits = head.columns(hidden, ids) / tau
        return divergence(restrict(logits, mask, "renormalise"), q, config.divergence).sum()

    def with_mass(rows: slice, h: Tensor) -> Tensor:
        logp = log_softmax(head, h, tau).gather(1, ids[rows])
        p = restrict(logp, mask[rows], config.tail)
        whole = config.tail == "bucket"
        return divergence(p, q[rows], config.divergence, normalised=whole).sum()

    return _chunked(with_mass, hidden, head)


def _with_value(surrogate: Tensor, value: Tensor) -> Tensor:
    """Give a value the gradient of a surrogate, whose own value means nothing."""
    return value + (surrogate - surrogate.detach())


def weighted_nll(
    hidden: Tensor, head: Head, ids: Tensor, weight: Tensor, temperature: float = 1.0
) -> Tensor:
    """Weighted negative log-likelihood of some tokens: the surrogate of every policy gradient.

    Parameters
    ----------
    hidden : Tensor (N, D)
        Last hidden states, with gradient.
    head
        Output head.
    ids : Tensor (N, M)
        Tokens of each row.
    weight : Tensor (N, M)
        Detached: 1 for supervised training, an advantage for a policy gradient.
    temperature
        Divides the logits.

    Returns
    -------
    Tensor ()
        ``-sum(weight * log p(ids))``.
    """

    def chunk(rows: slice, h: Tensor) -> Tensor:
        logp = log_softmax(head, h, temperature).gather(1, ids[rows])
        return -(weight[rows] * logp).sum()

    return _chunked(chunk, hidden, head)


class _SumOfChunks(torch.autograd.Function):
    """Sum a function over row chunks and form its gradient in the same pass.

    Keeping logits for the backward pass would take (N, V) memory, and recomputing them there a
    third matrix product; since the loss is a sum, each chunk can be differentiated at once.
    """

    @staticmethod
    def forward(ctx, fn, head: Head, hidden: Tensor, *parameters: Tensor) -> Tensor:
        # At least float32: a bfloat16 sum of thousands of chunks would lose the later ones.
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        grads = [torch.zeros_like(p, dtype=dtype) if p.requires_grad else None for p in parameters]
        hidden_grad = torch.empty_like(hidden)
        total = torch.zeros((), dtype=dtype, device=hidden.device)
        wanted = [p for p in parameters if p.requires_grad]
        kept = [g for g in grads if g is not None]
        # Larger chunks than for scoring: each one adds a gradient of the size of the head's weight.
        for rows in chunk_rows(len(hidden), head.width, times=4):
            with torch.enable_grad():
                h = hidden[rows].detach().requires_grad_()
                loss = fn(rows, h)
                h_grad, *w_grads = torch.autograd.grad(loss, [h, *wanted])
            hidden_grad[rows] = h_grad
            for total_grad, grad in zip(kept, w_grads, strict=True):
                total_grad += grad
            total += loss.detach()
        ctx.grads = [hidden_grad, *grads]
        return total

    @staticmethod
    def backward(ctx, *grad_outputs: Tensor):
        (grad_output,) = grad_outputs
        # Handed over rather than saved: what autograd alone owns becomes .grad without a copy.
        grads, ctx.grads = ctx.grads, None
        return None, None, *(None if g is None else g.mul_(grad_output) for g in grads)


def _chunked(fn: Callable[[slice, Tensor], Tensor], hidden: Tensor, head: Head) -> Tensor:
    if not torch.is_grad_enabled():
        return sum(
            (fn(r, hidden[r]) for r in chunk_rows(len(hidden), head.width)), hidden.new_zeros(())
        )
    return _SumOfChunks.apply(fn, head, hidden, *head.parameters)
