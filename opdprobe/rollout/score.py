"""Score both models at each student-visited state, from hidden states, without gradient.

Logits exist for one chunk of rows at a time and only here: no (batch, time, vocabulary) tensor is
ever held, for either model.

In shapes, N is the number of states, D the hidden size, V the vocabulary and K the tokens kept per
state; axes of size 2 run over (student, teacher): the first over the models, the second over whose
top-k it is.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from opdprobe.errors import ConfigError, NonFiniteError
from opdprobe.models.head import Head
from opdprobe.rollout.tiles import cut_tiles, fill_tile, sum_dtype, tile_buffer, vocabulary_tiles
from opdprobe.rollout.top_tokens import TopTokens, pick
from opdprobe.store.schema import MODELS

# The matrix product of a tile on a CPU needs this many rows to be efficient.
_TILE_ROWS = 128


@dataclass(frozen=True)
class Scores:
    """Both models' distributions at N states, cut to what analysis needs (paper §2.3).

    Parameters
    ----------
    token_id : Tensor (N, 2, K), int64
        Top-k ids of the student and of the teacher, most probable first; the lower id first
        among equals.
    logp : Tensor (N, 2, 2, K)
        Log-probability over the full vocabulary that each model gives to each of those tokens,
        in nats.
    entropy : Tensor (N, 2)
        Entropy of the full distributions, in nats.
    reverse_kl : Tensor (N,)
        KL(student‖teacher) over the full vocabulary, in nats.
    sampled_logp : Tensor (N, 2)
        Log-probability of the token the student drew, in nats.
    stop_logp : Tensor (N, 2, 2), optional
        Log of the probability, in nats, that each model gives to all the tokens together with which
        the student, then the teacher, ends a response; None if not asked for.
    """

    token_id: Tensor
    logp: Tensor
    entropy: Tensor
    reverse_kl: Tensor
    sampled_logp: Tensor
    stop_logp: Tensor | None = None

    @classmethod
    def none(cls, k: int) -> "Scores":
        """Scores of no states."""
        shapes = (0, 2, k), (0, 2, 2, k), (0, 2), (0,), (0, 2), (0, 2, 2)
        ids, *rest = (torch.zeros(shape) for shape in shapes)
        return cls(ids.long(), *rest)

    @classmethod
    def concatenate(cls, parts: Sequence["Scores"]) -> "Scores":
        """Join along the state axis."""
        known = [name for name, column in vars(parts[0]).items() if column is not None]
        return cls(**{name: torch.cat([getattr(part, name) for part in parts]) for name in known})

    def select(self, rows: Tensor) -> "Scores":
        """Take some states, in the order of `rows`."""
        return self._each(lambda column: column[rows])

    def cpu(self) -> "Scores":
        """Move to host memory."""
        return self._each(lambda column: column.cpu())

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Scores":
        known = {name: column for name, column in vars(self).items() if column is not None}
        return Scores(**{name: change(column) for name, column in known.items()})


@torch.no_grad()
def score(
    student_hidden: Tensor,
    teacher_hidden: Tensor,
    student_head: Head,
    teacher_head: Head,
    sampled_ids: Tensor,
    *,
    k: int = 16,
    temperature: float = 1.0,
    stop_ids: tuple[Sequence[int], Sequence[int]] | None = None,
) -> Scores:
    """Score states with both models in one pass over chunks of rows.

    Parameters
    ----------
    student_hidden, teacher_hidden : Tensor (N, D)
        Last hidden states at the states; the two models' D may differ.
    student_head, teacher_head
        Output heads of equal width.
    sampled_ids : Tensor (N,)
        The tokens the student drew there.
    k
        Number of top tokens kept per model.
    temperature
        Divides the logits of both models; use the one the student sampled with.
    stop_ids
        Tokens with which the student, and those with which the teacher ends a response.

    Returns
    -------
    Scores

    Raises
    ------
    ConfigError
        If `k` is larger than the vocabulary.
    NonFiniteError
        If a model's logits hold NaN or infinity.
    """
    width = student_head.width
    if k > width:
        raise ConfigError(f"k = {k}; expected at most {width}, the size of the shared vocabulary.")
    n_rows, tiles = vocabulary_tiles(width, student_hidden.device, _TILE_ROWS)
    buffer = tile_buffer(student_hidden, n_rows, tiles)
    top = TopTokens(tiles, k, student_hidden.device)
    stops = torch.tensor(_flat(stop_ids), dtype=torch.long, device=student_hidden.device)
    parts = []
    for start in range(0, len(sampled_ids), n_rows):
        rows = slice(start, start + n_rows)
        sampled = sampled_ids[rows]
        logits = buffer[:, :, : len(sampled)]
        models = (student_head, student_hidden[rows]), (teacher_head, teacher_hidden[rows])
        sums, peaks = _RunningSums(logits), []
        for block, tile in zip(cut_tiles(buffer, tiles, len(sampled)), tiles, strict=True):
            fill_tile(block, models, tile, temperature)
            peaks.append(top.peaks(block))
            sums.add(block, peaks[-1].amax(-1))
        entropy, reverse_kl = sums.finish()
        for who, values in zip(MODELS, entropy, strict=True):
            _check_finite(values, who)
        ids = top.find(logits, torch.cat(peaks, -1)).transpose(0, 1)  # (N, 2, K)
        wanted = [ids.flatten(1), sampled[:, None], stops.expand(len(sampled), -1)]
        wanted = torch.cat(wanted, 1).expand(2, -1, -1)
        logp = sums.log_probabilities(pick(logits, wanted)).transpose(0, 1)
        lists, drawn, stopping = logp.tensor_split([2 * k, 2 * k + 1], -1)
        parts.append(
            Scores(
                token_id=ids,
                logp=lists.unflatten(-1, (2, k)),
                entropy=entropy.T,
                reverse_kl=reverse_kl,
                sampled_logp=drawn.squeeze(-1),
                stop_logp=None if stop_ids is None else _together(stopping, stop_ids),
            )
        )
    return Scores.concatenate(parts)


def _flat(stop_ids: tuple[Sequence[int], Sequence[int]] | None) -> list[int]:
    return [] if stop_ids is None else [*stop_ids[0], *stop_ids[1]]


def _together(logp: Tensor, stop_ids: tuple[Sequence[int], Sequence[int]]) -> Tensor:
    """Add the probabilities of each model's stop tokens up, (N, 2, tokens) -> (N, 2, 2) in nats."""
    groups = logp.split([len(ids) for ids in stop_ids], -1)
    return torch.stack([group.logsumexp(-1).clamp(max=0) for group in groups], -1)


class _RunningSums:
    """Sums over the vocabulary at a chunk of N states, tile by tile, for both models.

    Entropy and divergence follow from centred logits z and weights e^z, without a normalised copy:
    H = log Z - E[z], KL = E_p[z_S - z_T] - log Z_S + log Z_T. The largest logit so far is
    subtracted; when it grows, the sums so far are rescaled. The operations are the same for both
    models, so that equal models give exactly 0.

    Attributes
    ----------
    largest : Tensor (2, N)
        Largest logit so far.
    total : Tensor (2, N)
        Z, the sum of e^z.
    mean : Tensor (2, N)
        Sum of e^z z, both of the same model.
    cross : Tensor (N,)
        Sum of e^z of the student times z of the teacher.
    """

    def __init__(self, logits: Tensor) -> None:
        self._dtype = logits.dtype
        self.largest = logits.new_full(logits.shape[1:3], torch.finfo(logits.dtype).min)
        self.total = torch.zeros_like(self.largest, dtype=sum_dtype(logits))
        self.mean, self.cross = torch.zeros_like(self.total), torch.zeros_like(self.total[0])

    def add(self, logits: Tensor, largest: Tensor) -> None:
        """Add a tile of logits (2, N, tokens); `largest` (2, N) holds the largest of each row."""
        before, self.largest = self.largest, torch.maximum(self.largest, largest)
        shift = before - self.largest
        shrink = shift.exp()
        self.mean = shrink * (self.mean + shift * self.total)
        self.cross = shrink[0] * (self.cross + shift[1] * self.total[0])
        z = logits - self.largest[..., None]
        weight = z.exp()
        self.total = shrink * self.total + weight.sum(-1)
        self.cross += (weight[0] * z[1]).sum(-1)
        self.mean += z.mul_(weight).sum(-1)

    def finish(self) -> tuple[Tensor, Tensor]:
        """Return the entropy of both models (2, N) and KL(student‖teacher) (N,), in nats."""
        mean, cross, log_total = self.mean / self.total, self.cross / self.total[0], self._log_total
        entropy = log_total - mean
        reverse_kl = mean[0] - cross - log_total[0] + log_total[1]
        # Rounding alone can make a divergence negative.
        return entropy.to(self._dtype), reverse_kl.to(self._dtype).clamp(min=0)

    def log_probabilities(self, logits: Tensor) -> Tensor:
        """Normalise some logits of each row, (2, N, tokens)."""
        logp = logits - self.largest[..., None] - self._log_total[..., None]
        return logp.to(self._dtype)

    @property
    def _log_total(self) -> Tensor:
        return self.total.log()


def _check_finite(entropy: Tensor, who: str) -> None:
    # One NaN or infinite logit makes its row's entropy NaN: inf - inf for +inf, 0 · -inf for -inf.
    bad = torch.isnan(entropy)
    if bad.any():
        raise NonFiniteError(
            f"the {who} gave NaN or infinite logits at row {int(bad.nonzero()[0])} of "
            f"{len(bad)}. Check its weights and dtype (float16 overflows)."
        )
