"""Sample responses from a model.

One prefill serves all rollouts of a prompt, and rows that have ended leave the batch: the two
things `generate` does not do and on-policy distillation needs most.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from opdprobe.errors import NonFiniteError
from opdprobe.models.head import evaluating
from opdprobe.models.positions import check_prompts
from opdprobe.rollout.decode import prefill
from opdprobe.rollout.exact import decoding_of
from opdprobe.rollout.packed_weights import packed_weights

# Dropping rows copies the cache, so it waits until this share of the batch has ended.
_DROP_AT = 0.25

# Columns per pile when drawing: the piles' sums and the pile that is picked are both short then.
_PILE = 32


@dataclass(frozen=True)
class Rollouts:
    """Prompts and the responses sampled from them, one entry per rollout.

    Parameters
    ----------
    prompt_ids, response_ids
        Token ids without padding; a response that ended includes its end-of-sequence token.
    finished
        Whether the response ended with an end-of-sequence token, not at the length limit.
    prompt_index
        Index of each rollout's prompt in the list of prompts.
    drawn
        Places of the response tokens that the student drew, by rollout, increasing: its states. A
        tool or a user wrote the others. None: it drew all.
    teacher_prompt_ids
        What the teacher reads before each response; None: the same as the student.
    teachers
        Name of the teacher that scores each rollout; None: there is only one.
    sampler_logp
        Log-probability of each response token as an engine that sampled it reported it, in nats;
        None: no other engine did.
    """

    prompt_ids: list[list[int]]
    response_ids: list[list[int]]
    finished: list[bool]
    prompt_index: list[int]
    drawn: list[list[int]] | None = None
    teacher_prompt_ids: list[list[int]] | None = None
    teachers: list[str] | None = None
    sampler_logp: list[list[float]] | None = None

    def __len__(self) -> int:
        return len(self.response_ids)

    @property
    def n_tokens(self) -> int:
        """Number of response tokens in all rollouts."""
        return sum(map(len, self.response_ids))

    def read_by(self, role: str) -> "Rollouts":
        """Return the rollouts behind the prompts of the ``student``, or of the ``teacher``."""
        own = self.teacher_prompt_ids
        prompts = own if role == "teacher" and own is not None else self.prompt_ids
        return replace(self, prompt_ids=prompts, teacher_prompt_ids=None)

    def pick(self, chosen: Sequence[int]) -> "Rollouts":
        """Return some of the rollouts, in the order of their indices in `chosen`."""
        columns = {name: column for name, column in vars(self).items() if column is not None}
        return replace(self, **{name: [c[i] for i in chosen] for name, c in columns.items()})

    def states(self, rollout: int) -> Sequence[int]:
        """Places in a rollout's response that have a state."""
        return range(len(self.response_ids[rollout])) if self.drawn is None else self.drawn[rollout]


def draw(logits: Tensor, u: Tensor, *, temperature: float = 1.0, top_p: float = 1.0) -> Tensor:
    """Draw one token per row by inverting the cumulative distribution.

    This takes one uniform number per row, and two short searches instead of a sum over the full
    vocabulary: it is several times faster than `torch.multinomial` over 150,000 tokens.

    Parameters
    ----------
    logits : Tensor (N, V)
    u : Tensor (N,)
        Uniform random numbers in [0, 1).
    temperature
        Above 0; 0 takes the most probable token.
    top_p
        Keep the smallest set of most probable tokens whose mass reaches this; 1 keeps all.

    Returns
    -------
    Tensor (N,)
        Token ids, int64; -1 where the largest logit is NaN or infinite.
    """
    largest = logits.amax(-1, keepdim=True)
    if temperature == 0:
        return torch.where(largest.isfinite(), logits.argmax(-1, keepdim=True), -1).squeeze(-1)
    probs = logits.float() - largest
    if temperature != 1:
        probs /= temperature
    probs.exp_()  # up to the normaliser
    u = u.to(probs)[:, None]
    order = None
    if top_p < 1:
        probs, order = (probs / probs.sum(-1, keepdim=True)).sort(-1, descending=True)
        # A token stays while the mass before it is below top_p, so the first always stays.
        probs = probs.masked_fill(probs.cumsum(-1) - probs >= top_p, 0.0)
    column = _invert(probs, u)
    token = column if order is None else order.gather(-1, column)
    return torch.where(largest.isfinite(), token, -1).squeeze(-1)


def _invert(weights: Tensor, u: Tensor) -> Tensor:
    """Pick the column where a row's running sum passes u times its total, (N, V), (N, 1) -> (N, 1).

    The columns of a wide row are dealt to q piles of `_PILE` (column j goes to pile j mod q, so
    that summing the piles runs along memory); each of the few left over is a pile of one. First a
    pile is picked by the running sum of the piles, then a column in it.
    """
    q = weights.shape[1] // _PILE
    if q < _PILE:  # one short sum takes fewer operations than two shorter ones
        cdf = weights.cumsum(-1)
        return _first_above(cdf, u * cdf[:, -1:])
    dealt = weights[:, : q * _PILE].view(len(weights), _PILE, q)
    cdf = torch.cat([dealt.sum(1), weights[:, q * _PILE :]], 1).cumsum(-1)
    target = u * cdf[:, -1:]
    pile = _first_above(cdf, target)
    whole = pile < q
    before = torch.where(pile > 0, cdf.gather(1, (pile - 1).clamp(min=0)), 0)
    first = torch.where(whole, pile, pile - q + q * _PILE)
    # A pile of one is its column and _PILE - 1 repetitions of it with weight 0.
    rank = torch.arange(_PILE, device=weights.device)
    columns = first + torch.where(whole, q * rank, 0)
    inside = torch.where(whole | (rank == 0), weights.gather(1, columns), 0).cumsum(-1)
    return columns.gather(1, _first_above(inside, (target - before).clamp(min=0)))


def _first_above(cdf: Tensor, target: Tensor) -> Tensor:
    # right=True finds the first entry above the target, so a column of weight 0 is never picked.
    # u = 1 (on some devices) or rounding must not lead past the last column that has a weight.
    last = (cdf < cdf[:, -1:]).sum(-1, keepdim=True)
    return torch.minimum(torch.searchsorted(cdf, target, right=True), last)


@torch.inference_mode()
def sample(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    num_generations: int = 1,
    max_completion_length: int,
    eos_ids: Sequence[int],
    pad_id: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
    width: int | None = None,
    part: tuple[int, int] | None = None,
) -> Rollouts:
    """Sample `num_generations` responses per prompt.

    Parameters
    ----------
    model
        A causal LM; its modules' train/eval modes are restored afterwards.
    prompts
        Token ids of each prompt, of any lengths.
    num_generations
        Rollouts per prompt.
    max_completion_length
        Longest response, in tokens.
    eos_ids
        Tokens that end a response.
    pad_id
        Pads short prompts on the left; any id works, since it is masked.
    temperature, top_p
        Sampling distribution. On-policy distillation uses 1 and 1 (Table 2): with top-p below 1
        the sampled token no longer estimates the KL.
    generator
        Source of randomness on the model's device; None uses torch's global one.
    width
        Sample from the first `width` ids only (vocabulary shared with another model).
    part
        ``(first, total)``: `prompts` are those from index `first` on of `total`. A rollout draws
        the same random numbers as if all were sampled together, so parts can be sampled separately.

    Returns
    -------
    Rollouts
        In the order of `prompts`; the rollouts of a prompt are adjacent.

    Raises
    ------
    NonFiniteError
        The largest logit of a state is NaN or infinite.
    ModelError
        The model's table of positions is too short; or no way of sampling gives the logits that
        the model has for each text alone (`opdprobe.rollout.exact`).
    PromptError
        The model has no embedding for a token of a prompt.
    """
    check_prompts(model, prompts, max_completion_length)
    with evaluating(model):
        decoding = decoding_of(model, max(map(len, prompts), default=0) + max_completion_length)
        live, logits = prefill(model, prompts, pad_id, num_generations, decoding)
        device, n_rollouts = model.device, len(live.rollout)
        eos = torch.tensor(list(eos_ids), device=device)
        responses = torch.zeros(
            (n_rollouts, max_completion_length), dtype=torch.long, device=device
        )
        lengths = torch.full((n_rollouts,), max_completion_length, device=device)
        finished = torch.zeros(n_rollouts, dtype=torch.bool, device=device)
        source = generator.device if generator is not None else None
        first, total = part or (0, len(prompts))
        with packed_weights(model, n_rollouts):
            for t in range(max_completion_length):
                # One number per rollout, live or not, in this part or another: what a rollout draws
                # does not depend on the others.
                u = torch.rand(num_generations * total, generator=generator, device=source)
                u = u.to(device)[num_generations * first + live.rollout]
                token = draw(logits[:, :width], u, temperature=temperature, top_p=top_p)
                if (token < 0).any():
                    bad = first + int(live.rollout[token < 0][0]) // num_generations
                    raise NonFiniteError(
                        f"{type(model).__name__} gave NaN or infinite logits while sampling: "
                        f"prompt {bad}, response position {t}. Check the weights and the dtype "
                        "(float16 overflows)."
                    )
                responses[live.rollout, t] = token  # cut off below if the row has ended
                ended = live.alive & torch.isin(token, eos)
                if ended.any():
                    lengths[live.rollout[ended]] = t + 1
                    finished[live.rollout[ended]] = True
                    live.alive &= ~ended
                n_alive = int(live.alive.sum())
                if n_alive == 0 or t == max_completion_length - 1:
                    break
                if n_alive <= (1 - _DROP_AT) * len(live.alive):
                    token = live.drop_ended(token)
                logits = live.feed(model, token)
    return Rollouts(
        prompt_ids=[list(p) for p in prompts for _ in range(num_generations)],
        response_ids=[
            row[:length] for row, length in zip(responses.tolist(), lengths.tolist(), strict=True)
        ],
        finished=finished.tolist(),
        prompt_index=[i for i in range(len(prompts)) for _ in range(num_generations)],
    )


def step_generator(
    seed: int, step: int, device: torch.device | str, *, name: str = ""
) -> torch.Generator:
    """Return a step's generator: it depends on seed and step, so a resumed run draws the same.

    Generators with different names are independent of each other.
    """
    entropy = [seed, step, *([zlib.crc32(name.encode())] if name else [])]
    state = np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(state >> 1))
