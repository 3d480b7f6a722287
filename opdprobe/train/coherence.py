"""Do the gradients of different tokens add up, or cancel? (Paper §6.2.)

The gradient of a step is the sum over its tokens. If they point the same way, it is as long as its
parts together; if they point anywhere, far shorter. Both numbers are measured here, along with the
cosines between whole responses, within a prompt and between prompts.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from opdprobe.errors import ConfigError, NonFiniteError
from opdprobe.models.head import evaluating
from opdprobe.models.vocabulary import eos_ids
from opdprobe.probes.bootstrap import MIN_UNITS
from opdprobe.rollout.memory import sample_in_parts
from opdprobe.rollout.pair import Pair, Scored
from opdprobe.rollout.prompts import Prompt, encode_prompts, has_conversation
from opdprobe.rollout.sample import Rollouts, step_generator
from opdprobe.rollout.teacher_context import teacher_prompts
from opdprobe.train.config import OPDConfig
from opdprobe.train.losses import distillation_loss

# Gradients of more numbers than this are projected to as many, 1 MB each.
_WIDTH = 2**18
_SIGNS_SEED = 0
# Nats per token. Less is rounding, whose gradient points anywhere.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Coherence:
    """How far the gradients of a batch's tokens agree.

    A level is where gradients are added up: ``rollout`` over its tokens, ``prompt`` over all
    rollouts of a prompt, ``all`` over everything, as a training step does.

    Parameters
    ----------
    n_prompts, n_rollouts, n_tokens
        What was measured.
    token_norm
        Mean norm of the gradient of one token's loss by all trained parameters, nats.
    survives
        By level: sum of the norms of the sums, over the sum of the tokens' norms. 1 if all
        gradients point the same way, in [0, 1] up to the error of sampling tokens.
    by_chance
        By level: what would survive if all tokens' gradients were of the same sizes and orthogonal.
    cosine_within, cosine_between : (value, low, high)
        Mean cosine of the gradients of two rollouts of one prompt, and of two prompts, with a 95 %
        interval by the jackknife over prompts; NaN bounds below 16 prompts. Within is NaN with one
        rollout per prompt.
    spectrum : ndarray (n_prompts,)
        Eigenvalues of the cosines between the prompts' gradients, over their sum, largest first. A
        common direction shows as a first one far above the others.
    """

    n_prompts: int
    n_rollouts: int
    n_tokens: int
    token_norm: float
    survives: dict[str, float]
    by_chance: dict[str, float]
    cosine_within: tuple[float, float, float]
    cosine_between: tuple[float, float, float]
    spectrum: NDArray[np.float64]

    @property
    def effective_directions(self) -> float:
        """Inverse of the sum of the squared spectrum: 1 for one direction, n_prompts for none."""
        return float(1 / (self.spectrum**2).sum())


def coherence(
    student: nn.Module | str | Path,
    teacher: nn.Module | str | Path,
    prompts: Sequence[Prompt] | str | Path,
    *,
    config: OPDConfig | None = None,
    tokens_per_rollout: int | None = 8,
    tokenizer: PreTrainedTokenizerBase | None = None,
    device: str | torch.device = "auto",
) -> Coherence:
    """Sample a student, and measure whether its tokens' distillation gradients agree.

    Neither model is changed. The cost is a backward pass through one response for the response and
    for each of `tokens_per_rollout` of its tokens, and 1 MB a response.

    Parameters
    ----------
    student, teacher
        Models, or their names or paths.
    prompts
        Prompts, or a file of them; all of them are used. An interval needs 16.
    config
        Objective, k, temperature, rollouts per prompt, lengths, prompts and seed are read from it.
        By default Eq. 5 on the student's top 16, with two rollouts per prompt.
    tokens_per_rollout
        How many tokens of each response, drawn at random, stand for all in the sum of the tokens'
        norms; None: all. The sums of the gradients themselves are always over all tokens.
    tokenizer
        The student's, if it is given as a model.
    device
        Where the models go.

    Returns
    -------
    Coherence

    Raises
    ------
    ConfigError
        There are fewer than two prompts, the models are the same, an argument is out of range, or
        `config` selects tokens or teachers.
    ModelError, VocabularyError, PromptError, NonFiniteError
        As for `opdprobe.probe_checkpoints`.

    Notes
    -----
    Gradients of more than 262,144 numbers are projected to so many with random signs, which keeps
    inner products up to a standard error of 0.002 of the product of the norms. Norms of tokens are
    exact.

    References
    ----------
    Paper §6.2: signals that are large and cancel.
    """
    config = config or OPDConfig(num_generations=2)
    if tokens_per_rollout is not None and tokens_per_rollout < 1:
        raise ConfigError(
            f"tokens_per_rollout = {tokens_per_rollout}; expected a positive number, or None."
        )
    if config.token_selector is not None or config.teacher_by is not None:
        raise ConfigError(
            "token_selector or teacher_by; expected a loss of all tokens, and one teacher."
        )
    pair = Pair.load(student, teacher, tokenizer=tokenizer, device=device)
    encoded = encode_prompts(
        pair.tokenizer,
        prompts,
        max_prompt_length=config.max_prompt_length,
        chat_template_kwargs=config.chat_template_kwargs,
        system_prompt=config.system_prompt,
        teacher=config.teacher_context,
        teacher_tokenizer=pair.teacher_tokenizer,
    )
    if len(encoded) < 2:
        raise ConfigError(f"{len(encoded)} prompts; expected at least two to compare.")
    pair.check_teacher(encoded, config.max_completion_length)
    with evaluating(pair.student), evaluating(pair.teacher):
        rollouts = sample_in_parts(
            pair.student,
            [prompt.ids for prompt in encoded],
            num_generations=config.num_generations,
            max_completion_length=config.max_completion_length,
            eos_ids=eos_ids(pair.student, pair.tokenizer, conversations=has_conversation(encoded)),
            pad_id=pair.pad_id,
            temperature=config.temperature,
            top_p=config.top_p,
            generator=step_generator(config.seed, 0, pair.student.device),
            width=pair.width,
        )
        own = teacher_prompts(encoded, rollouts.prompt_index)
        rollouts = replace(rollouts, teacher_prompt_ids=own)
        return rollout_coherence(pair, rollouts, config, tokens_per_rollout=tokens_per_rollout)


def rollout_coherence(
    pair: Pair, rollouts: Rollouts, config: OPDConfig, *, tokens_per_rollout: int | None = None
) -> Coherence:
    """Measure rollouts that were sampled before; see `coherence`.

    Parameters
    ----------
    pair
        Both models in evaluation mode.
    rollouts
        Those of at least two prompts.
    config
        Objective, k, temperature and seed.
    tokens_per_rollout
        As for `coherence`; by default, all.
    """
    project = _Projection([p for p in pair.student.parameters() if p.requires_grad])
    draws = np.random.default_rng(config.seed)
    starts = np.cumsum([0, *(len(rollouts.states(i)) for i in range(len(rollouts)))])
    prompt, sums, lengths, squares = [], [], [], []
    apart = 0.0
    parts = pair.scored(rollouts, k=config.k, temperature=config.temperature, micro_batch_tokens=1)
    for part in parts:  # one rollout each
        n = len(part.batch.state)
        rollout = int(np.searchsorted(starts, part.batch.state[0].item(), side="right")) - 1
        chosen = np.arange(n)
        if tokens_per_rollout is not None and tokens_per_rollout < n:
            chosen = np.sort(draws.choice(n, tokens_per_rollout, replace=False))
        norms = np.array([project.norm(_gradient(part, pair, config, int(i))) for i in chosen])
        if not np.isfinite(norms).all():
            raise NonFiniteError(f"the gradient of rollout {rollout} is NaN or infinite.")
        apart += float(part.scores.reverse_kl.sum())
        prompt.append(rollouts.prompt_index[rollout])
        sums.append(project(_gradient(part, pair, config, None, last=True)))
        lengths.append(n * norms.mean())
        squares.append(n * (norms**2).mean())
    if apart <= _ROUNDING * starts[-1]:
        raise ConfigError(
            f"{starts[-1]} tokens with a reverse KL of {apart:.2g} nats in all: the models are the "
            "same, or all responses are empty; expected two models that differ."
        )
    return _summary(
        np.array(prompt), torch.stack(sums), np.array(lengths), np.array(squares), int(starts[-1])
    )


def _gradient(
    part: Scored, pair: Pair, config: OPDConfig, token: int | None, *, last: bool = False
) -> list[Tensor | None]:
    """Gradient of the loss of one of a part's tokens; None: of their sum."""
    if token is not None:
        rows = torch.zeros(len(part.batch.state), dtype=torch.bool)
        rows[token] = True
        part = part.select(rows)
    trained = [p for p in pair.student.parameters() if p.requires_grad]
    loss = distillation_loss(part, pair, config)
    return list(torch.autograd.grad(loss, trained, retain_graph=not last, allow_unused=True))


class _Projection:
    """Gradients as vectors of at most `_WIDTH` numbers, whose inner products stay.

    Number i of the gradient, with a random sign, is added to entry i mod the width.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self._sizes = [p.numel() for p in parameters]
        self.width = min(_WIDTH, sum(self._sizes))
        self._signs = None
        if sum(self._sizes) > _WIDTH:
            generator = torch.Generator().manual_seed(_SIGNS_SEED)
            self._signs = [
                torch.randint(0, 2, (n,), generator=generator, dtype=torch.int8).to(p.device)
                for n, p in zip(self._sizes, parameters, strict=True)
            ]

    def __call__(self, gradient: Sequence[Tensor | None]) -> Tensor:
        first = next(g for g in gradient if g is not None)
        vector, place = first.new_zeros(self.width, dtype=torch.float32), 0
        for i, (g, size) in enumerate(zip(gradient, self._sizes, strict=True)):
            if g is not None:
                flat = g.flatten().float()
                if self._signs is not None:
                    flat = flat * (2 * self._signs[i] - 1)
                offset = place % self.width
                rows = math.ceil((offset + size) / self.width)
                wide = flat.new_zeros(rows * self.width)
                wide[offset : offset + size] = flat
                vector += wide.view(rows, self.width).sum(0)
            place += size
        return vector.cpu()

    @staticmethod
    def norm(gradient: Sequence[Tensor | None]) -> float:
        """Norm of the gradient itself."""
        return math.sqrt(sum(float(g.float().square().sum()) for g in gradient if g is not None))


def _summary(
    prompt: NDArray[np.int64],
    sums: Tensor,
    lengths: NDArray[np.float64],
    squares: NDArray[np.float64],
    n_tokens: int,
) -> Coherence:
    _, group = np.unique(prompt, return_inverse=True)
    n = int(group.max()) + 1
    by_prompt = torch.zeros(n, sums.shape[1]).index_add_(0, torch.from_numpy(group), sums)
    of_prompts = np.bincount(group, weights=squares)
    whole = lengths.sum()
    levels = {"rollout": sums, "prompt": by_prompt, "all": by_prompt.sum(0, keepdim=True)}
    chance = {"rollout": squares, "prompt": of_prompts, "all": squares.sum(keepdims=True)}
    between = _cosines(by_prompt)
    np.fill_diagonal(between, np.nan)
    within = _cosines(sums)
    np.fill_diagonal(within, np.nan)
    within[group[:, None] != group] = np.nan
    spectrum = np.linalg.eigvalsh(np.nan_to_num(_cosines(by_prompt)))[::-1].clip(0)
    return Coherence(
        n_prompts=n,
        n_rollouts=len(sums),
        n_tokens=n_tokens,
        token_norm=float(whole / n_tokens),
        survives={name: float(v.norm(dim=1).sum()) / float(whole) for name, v in levels.items()},
        by_chance={name: float(np.sqrt(q).sum() / whole) for name, q in chance.items()},
        cosine_within=_jackknife(within, group),
        cosine_between=_jackknife(between, np.arange(n)),
        spectrum=spectrum / spectrum.sum(),
    )


def _cosines(vectors: Tensor) -> NDArray[np.float64]:
    """Cosines of every two rows; NaN for a row of zeros, which has no direction."""
    products = (vectors @ vectors.T).double().numpy()
    norms = np.sqrt(np.diag(products))
    with np.errstate(invalid="ignore"):
        return products / np.outer(norms, norms)


def _jackknife(pairs: NDArray[np.float64], group: NDArray[np.int64]) -> tuple[float, float, float]:
    """Mean over pairs that are not NaN, with Student's interval, leaving out a group at a time."""
    from scipy.special import stdtrit  # a fifth of what importing opdprobe takes

    known = ~np.isnan(pairs)
    if not known.any():
        return math.nan, math.nan, math.nan
    filled = np.where(known, pairs, 0)
    value = float(filled.sum() / known.sum())
    left = []
    for one in range(int(group.max()) + 1):
        keep = group != one
        count = known[np.ix_(keep, keep)].sum()
        if count:
            left.append(filled[np.ix_(keep, keep)].sum() / count)
    n = len(left)
    if n < MIN_UNITS:
        return value, math.nan, math.nan
    error = math.sqrt((n - 1) / n * np.var(left) * n)
    half = float(stdtrit(n - 1, 0.975)) * error
    return value, value - half, value + half
