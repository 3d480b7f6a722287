"""Refit the student's readout: what it can take over from the teacher without new knowledge.

To copy the teacher's habits the student needs no better computation, only other choices among what
its last hidden states already hold. So a small map in front of the student's output head is
distilled on the student's rollouts for one half of the prompts, and tested on the other half. The
models themselves do not change.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from opdprobe.models.head import Head
from opdprobe.preflight.estimates import UNKNOWN, Number, share_removed
from opdprobe.rollout.pair import Pair

MAX_STATES = 16384
"""Maximum number of states whose hidden states are kept; if there are more, a random sample."""

# Adam steps, states per step, and steps between two looks at the other half. On the testbed the
# divergence levels off after half of the steps.
_STEPS, _BATCH, _LOOK = 240, 256, 20
# Adam moves every entry by about its rate, and D entries add up in one output. The rate is divided
# by D, so that a step is this large relative to the hidden state's size for any D.
_RATE = 0.1
# Number of states of the other half that decide which map is kept.
_HELD_OUT = 4096


@dataclass(frozen=True)
class States:
    """Both models' last hidden states at some of the student's states.

    Parameters
    ----------
    hidden : Tensor (N, D)
        The student's states.
    teacher_hidden : Tensor (N, D')
        The teacher's states.
    tokens : Tensor (C,) of int64
        Every token that is in either model's top-k at some state, sorted.
    prompt : (N,) ndarray of int
        Row of the prompt list that each state belongs to.
    """

    hidden: Tensor
    teacher_hidden: Tensor
    tokens: Tensor
    prompt: NDArray[np.intp]


@dataclass(frozen=True)
class Readout:
    """A map of last hidden states, h + size · (W (h / size) + b).

    Parameters
    ----------
    weight : Tensor (D, D)
        W.
    bias : Tensor (D,)
        b.
    size : float
        Root mean square of the student's hidden states.
    before, after : (P,) ndarray
        Mean divergence, in nats, at the states of each held-out prompt, without the map and with
        it; NaN for the prompts that the map was fitted on.
    """

    weight: Tensor
    bias: Tensor
    size: float
    before: NDArray[np.float64]
    after: NDArray[np.float64]

    @property
    def moved(self) -> bool:
        """Whether the map lowered the divergence on held-out prompts."""
        return bool(self.weight.any() or self.bias.any())

    def __call__(self, hidden: Tensor) -> Tensor:
        """Map hidden states, (..., D) -> (..., D)."""
        weight, bias = self.weight.to(hidden), self.bias.to(hidden)
        return hidden + hidden @ weight.T + self.size * bias


def fit_readout(
    pair: Pair,
    states: States,
    prompts: NDArray[np.bool_],
    *,
    temperature: float = 1.0,
    seed: int = 0,
) -> Readout:
    """Distil the teacher into a map in front of the student's head.

    Minimises KL(student‖teacher) (Eq. 4) at the states of some prompts, over the tokens that are in
    either model's top-k at any state. The result is the map, from the identity on, with the lowest
    divergence on all other prompts.

    Parameters
    ----------
    pair
        The models, whose heads are used.
    states
        The states to fit on and to test on.
    prompts : (P,) ndarray of bool
        Which prompts to fit on.
    temperature
        Divides both models' logits.
    seed
        Seed of the order of the states.

    Returns
    -------
    Readout

    References
    ----------
    A student takes over patterns, not scale (§3). The map is not in the paper: it can change which
    pattern is chosen, but hardly what the student is able to compute.
    """
    student, teacher = (
        _restricted(head, states.tokens) for head in (pair.student_head, pair.teacher_head)
    )
    hidden, teacher_hidden = states.hidden.float(), states.teacher_hidden
    size = float(hidden.square().mean().sqrt())
    dim, device = hidden.shape[1], hidden.device
    weight = torch.zeros(dim, dim, device=device, requires_grad=True)
    bias = torch.zeros(dim, device=device, requires_grad=True)
    generator = torch.Generator().manual_seed(seed)

    def divergence(rows: Tensor) -> Tensor:
        h = hidden[rows]
        h = (h + h @ weight.T + size * bias).to(states.hidden.dtype)
        logp = (student(h) / temperature).log_softmax(-1)
        with torch.no_grad():
            logq = (teacher(teacher_hidden[rows]) / temperature).log_softmax(-1)
        return (logp.exp() * (logp - logq)).sum(-1)

    chosen = torch.as_tensor(prompts[states.prompt])
    own, other = chosen.nonzero()[:, 0], (~chosen).nonzero()[:, 0]
    other = other[torch.randperm(len(other), generator=generator)[:_HELD_OUT]]

    @torch.no_grad()
    def held_out() -> Tensor:
        found = torch.cat([divergence(rows.to(device)) for rows in other.split(_BATCH)])
        return found.clamp(min=0)  # rounding can make it negative

    optimizer = torch.optim.Adam([weight, bias], lr=_RATE / dim)
    before = best = held_out()
    kept = weight.detach().clone(), bias.detach().clone()
    with torch.enable_grad():
        for step in range(1, _STEPS + 1):
            rows = own[torch.randint(len(own), (_BATCH,), generator=generator)]
            optimizer.zero_grad()
            divergence(rows.to(device)).mean().backward()
            optimizer.step()
            if step % _LOOK == 0 and (now := held_out()).mean() < best.mean():
                best, kept = now, (weight.detach().clone(), bias.detach().clone())
    place = states.prompt[other.numpy()]
    by_prompt = [_prompt_means(values, place, len(prompts)) for values in (before, best)]
    return Readout(*kept, size, *by_prompt)


def readouts(
    pair: Pair, states: States, n_prompts: int, *, temperature: float, seed: int
) -> tuple[list[Readout], Number]:
    """Refit the student's readout on every second prompt, and on the others.

    Parameters
    ----------
    n_prompts
        Number of prompts, P.
    temperature, seed
        As for `fit_readout`.

    Returns
    -------
    list of Readout
        Empty if there is a single prompt, or no head to fit in front of.
    Number
        Share of the divergence, in [0, 1], that each removes on the prompts of the other.
    """
    heads = (pair.student_head.projection, pair.teacher_head.projection)
    if len(np.unique(states.prompt % 2)) < 2 or None in heads:
        return [], UNKNOWN
    fitted = [
        fit_readout(
            pair, states, np.arange(n_prompts) % 2 == half, temperature=temperature, seed=seed
        )
        for half in (0, 1)
    ]
    one, two = fitted
    held_out = np.isnan(one.before)  # the second was not fitted on the prompts of the first
    return fitted, share_removed(
        np.where(held_out, two.before, one.before), np.where(held_out, two.after, one.after)
    )


@contextmanager
def reading_out(student: PreTrainedModel, readout: Readout) -> Iterator[None]:
    """Make the student use a refitted readout for the duration of the block."""
    projection = student.get_output_embeddings()
    assert projection is not None  # there was a head to fit in front of
    handle = projection.register_forward_pre_hook(lambda _, args: (readout(args[0]), *args[1:]))
    try:
        yield
    finally:
        handle.remove()


def _restricted(head: Head, tokens: Tensor) -> Head:
    """Return a frozen head for some tokens only."""
    whole = head.projection
    assert whole is not None  # checked by the caller of `fit_readout`
    layer = nn.Linear(1, 1, bias=whole.bias is not None, device="meta")
    layer.weight = nn.Parameter(whole.weight.detach()[tokens], requires_grad=False)
    if whole.bias is not None:
        layer.bias = nn.Parameter(whole.bias.detach()[tokens], requires_grad=False)
    return replace(head, projection=layer, width=len(tokens))


def _prompt_means(values: Tensor, prompt: NDArray[np.intp], n: int) -> NDArray[np.float64]:
    total = np.bincount(prompt, values.cpu().double().numpy(), minlength=n)
    count = np.bincount(prompt, minlength=n)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
