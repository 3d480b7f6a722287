"""Would one prompt's update also be another's? Cosines between gradients of groups of prompts."""

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from opdprobe.errors import ConfigError
from opdprobe.models.head import evaluating
from opdprobe.rollout.continuation import token_rows
from opdprobe.rollout.pair import Pair
from opdprobe.rollout.sample import Rollouts
from opdprobe.train.config import OPDConfig
from opdprobe.train.losses import distillation_loss

# Coordinates of the gradient that are kept: all of a small model's, a random sample of a large
# one's, whose cosines are then off by some 1/sqrt(_COORDINATES). Eight whole gradients of a model
# of 1.5 B parameters would take 48 GB.
_COORDINATES = 2**20


def gradient_cosines(
    pair: Pair,
    step: xr.Dataset,
    *,
    groups: int = 8,
    config: OPDConfig | None = None,
    micro_batch_tokens: int = 4096,
) -> NDArray[np.float64]:
    """Compare the gradients that disjoint groups of prompts give for one and the same student.

    Parameters
    ----------
    pair
        The student, whose parameters that require a gradient are looked at, and the teacher.
        Neither is changed, nor is a gradient that the student holds.
    step : Dataset
        Rollouts that this student has sampled, in the store's schema.
    groups
        Into how many groups the step's prompts are dealt, in turn; no more than there are prompts.
    config
        Objective; the paper's top-k by default (Eq. 5).
    micro_batch_tokens
        Most tokens in a micro-batch, padding included. The default is below that of `OPDConfig`, to
        take less memory.

    Returns
    -------
    (groups, groups) ndarray of float64
        Cosines in [-1, 1], symmetric, 1 on the diagonal. NaN where a gradient is exactly 0;
        those of two models that are the same are rounding, and their cosines mean nothing.

    Raises
    ------
    ConfigError
        Fewer than 2 groups, or a student without a parameter to train.

    Notes
    -----
    A cosine near 1 off the diagonal says that all prompts ask for the same change: a habit, such as
    a thinking pattern. Near 0, each prompt asks for a change of its own, and the sum over a batch
    is mostly cancelled. Larger groups average more noise away: compare pairs of models at one group
    size only.

    References
    ----------
    §6.2 supposes that a failing teacher's per-token signals are large but cancel when summed into a
    gradient, and leaves it untested.
    """
    config = config or OPDConfig()
    if groups < 2:
        raise ConfigError(f"groups = {groups}; two or more are needed to compare.")
    parameters = [p for p in pair.student.parameters() if p.requires_grad]
    if not parameters:
        raise ConfigError("no parameter of the student requires a gradient; unfreeze it first.")
    places = _places([p.numel() for p in parameters])
    names, prompt = np.unique(step["prompt_id"].values, return_inverse=True)
    starts, responses = token_rows(step, "prompt"), token_rows(step, "response")
    gradients = []
    with evaluating(pair.student), evaluating(pair.teacher):
        for group in range(min(groups, len(names))):
            rows = np.flatnonzero(prompt % groups == group).tolist()
            own = Rollouts(
                [starts[i] for i in rows],
                [responses[i] for i in rows],
                [bool(step["finished"].values[i]) for i in rows],
                rows,
            )
            gradients.append(_gradient(pair, own, parameters, places, config, micro_batch_tokens))
    stacked = torch.stack(gradients).double().numpy()
    with np.errstate(invalid="ignore"):  # 0/0 without a gradient: NaN, as documented
        unit = stacked / np.linalg.norm(stacked, axis=1, keepdims=True)
    return unit @ unit.T


def _gradient(
    pair: Pair,
    rollouts: Rollouts,
    parameters: list[torch.nn.Parameter],
    places: list[Tensor | None],
    config: OPDConfig,
    micro_batch_tokens: int,
) -> Tensor:
    """Kept coordinates of the gradient of the mean loss over the rollouts' states."""
    total: Tensor | None = None
    with torch.enable_grad():
        scored = pair.scored(
            rollouts,
            k=config.k,
            temperature=config.temperature,
            micro_batch_tokens=micro_batch_tokens,
        )
        for part in scored:
            loss = distillation_loss(part, pair, config) / rollouts.n_tokens
            found = torch.autograd.grad(loss, parameters, allow_unused=True)
            kept = [
                _kept(torch.zeros_like(p) if g is None else g, place)
                for g, p, place in zip(found, parameters, places, strict=True)
            ]
            flat = torch.cat(kept).float().cpu()
            total = flat if total is None else total + flat
    assert total is not None  # a rollout has at least one token
    return total


def _kept(gradient: Tensor, place: Tensor | None) -> Tensor:
    flat = gradient.flatten()
    return flat if place is None else flat[place.to(flat.device)]


def _places(sizes: list[int]) -> list[Tensor | None]:
    """Which coordinates of each parameter are kept; None for all."""
    share = _COORDINATES / sum(sizes)
    if share >= 1:
        return [None] * len(sizes)
    rng = np.random.default_rng(0)
    return [torch.as_tensor(rng.integers(0, n, max(1, round(n * share)))) for n in sizes]
