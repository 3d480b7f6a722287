"""What the student can take over without new knowledge: refit what it reads out of its own states.

A copy of the teacher's habits needs no better computation, only other choices among what the
student's last hidden states hold already. So a small map in front of the student's output head is
distilled on the student's rollouts, on one half of the prompts, and tried on the other half. The
models themselves are not touched.
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
"""Most states whose hidden states are kept; beyond, a random sample of them."""

# Adam steps of so many states each, and how often the other half is looked at: on the testbed the
# divergence has levelled off after half of them.
_STEPS, _BATCH, _LOOK = 240, 256, 20
# Adam moves every entry by about its rate, and D entries add up in one output: relative to the
# hidden state's size a step is this large whatever D is.
_RATE = 0.1
# States of the other half that decide when to stop.
_HELD_OUT = 4096


@dataclass(frozen=True)
class States:
    """Both models' last hidden states at some of the student's states.

    Parameters
    ----------
    hidden : Tensor (N, D)
        The student's.
    teacher_hidden : Tensor (N, D')
        The teacher's.
    tokens : Tensor (C,) of int64
        Every token that is among either model's top-k somewhere, sorted.
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
        Mean divergence, in nats, at the states of each prompt that was held out, without the map
        and with it; NaN for the prompts that the map was fitted on.
    """

    weight: Tensor
    bias: Tensor
    size: float
    before: NDArray[np.float64]
    after: NDArray[np.float64]

    @property
    def moved(self) -> bool:
        """Whether any map lowered the divergence on held-out prompts."""
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

    Minimises KL(student‖teacher) (Eq. 4), over the tokens that are among either model's top-k
    anywhere, at the states of some prompts. Of the maps on the way, beginning with none, the one
    with the least divergence on all other prompts is kept.

    Parameters
    ----------
    pair
        The models, whose heads are read.
    states
        Where.
    prompts : (P,) ndarray of bool
        Which prompts to fit on.
    temperature
        Divides both models' logits.
    seed
        Of the order of the states.

    Returns
    -------
    Readout

    References
    ----------
    A student takes over patterns, not scale (§3). Not in the paper: the map can change which
    pattern is chosen, and hardly what the student is able to compute.
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
        return found.clamp(min=0)  # rounding alone can make it negative

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
        P.
    temperature, seed
        As for `fit_readout`.

    Returns
    -------
    list of Readout
        None at all if there is a single prompt, or no head to fit in front of.
    Number
        Share of the divergence that either takes away on the prompts of the other, in [0, 1].
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
    held_out = np.isnan(one.before)  # those that the first was fitted on, the second was not
    return fitted, share_removed(
        np.where(held_out, two.before, one.before), np.where(held_out, two.after, one.after)
    )


@contextmanager
def reading_out(student: PreTrainedModel, readout: Readout) -> Iterator[None]:
    """Let the student speak through a refitted readout, then give it back as it was."""
    projection = student.get_output_embeddings()
    assert projection is not None  # there was a head to fit in front of
    handle = projection.register_forward_pre_hook(lambda _, args: (readout(args[0]), *args[1:]))
    try:
        yield
    finally:
        handle.remove()


def _restricted(head: Head, tokens: Tensor) -> Head:
    """Make a frozen head of some tokens only."""
    whole = head.projection
    assert whole is not None  # `fit_readout`'s caller has looked
    layer = nn.Linear(1, 1, bias=whole.bias is not None, device="meta")
    layer.weight = nn.Parameter(whole.weight.detach()[tokens], requires_grad=False)
    if whole.bias is not None:
        layer.bias = nn.Parameter(whole.bias.detach()[tokens], requires_grad=False)
    return replace(head, projection=layer, width=len(tokens))


def _prompt_means(values: Tensor, prompt: NDArray[np.intp], n: int) -> NDArray[np.float64]:
    total = np.bincount(prompt, values.double().cpu().numpy(), minlength=n)
    count = np.bincount(prompt, minlength=n)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
