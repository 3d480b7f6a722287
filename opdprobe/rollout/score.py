"""What both models say at each student-visited state, from hidden states, without gradient.

Logits exist for one chunk of rows at a time and only here: no (batch, time, vocabulary) tensor is
ever held, for either model.

Shape suffixes: N states, D hidden size, V vocabulary, K tokens kept a state; axes of size 2 run
over (student, teacher), the model first, whose top-k second.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional as F

from opdprobe.errors import ConfigError, NonFiniteError
from opdprobe.models.head import Head
from opdprobe.store.schema import MODELS

# Logits held at once, per model, where several columns of one row are needed: 32 MiB of float32.
_CHUNK_ELEMENTS = 2**23
# On a CPU the arithmetic goes tile by tile, half a MiB each, so that the dozen passes over a
# tile find it in the second-level cache: from main memory they would take four times as long as the
# matrix product. That product wants this many rows.
_TILE_ELEMENTS = 2**17
_TILE_ROWS = 128
# Rows up to this long are sorted whole on a CPU to find the largest.
_SHORT = 256
# Tokens in a pile, at most, when the largest are searched; see `_pile_size`.
_PILE = 32


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
        Of the full distributions, in nats.
    reverse_kl : Tensor (N,)
        KL(student‖teacher) over the full vocabulary, in nats.
    sampled_logp : Tensor (N, 2)
        Log-probability of the token the student drew, in nats.
    """

    token_id: Tensor
    logp: Tensor
    entropy: Tensor
    reverse_kl: Tensor
    sampled_logp: Tensor

    @classmethod
    def concatenate(cls, parts: Sequence["Scores"]) -> "Scores":
        """Join along the state axis."""
        return cls(*(torch.cat([getattr(p, f.name) for p in parts]) for f in fields(cls)))

    def select(self, rows: Tensor) -> "Scores":
        """Take some states, in the order of `rows`."""
        return Scores(*(getattr(self, f.name)[rows] for f in fields(self)))

    def cpu(self) -> "Scores":
        """Move to host memory."""
        return Scores(*(getattr(self, f.name).cpu() for f in fields(self)))


def chunk_rows(n_rows: int, width: int, *, times: int = 1) -> Iterator[slice]:
    """Slices of rows whose logits fill at most one chunk, or `times` as much."""
    step = max(1, times * _CHUNK_ELEMENTS // width)
    for start in range(0, n_rows, step):
        yield slice(start, min(start + step, n_rows))


def vocabulary_tiles(width: int, device: torch.device, rows: int) -> tuple[int, list[slice]]:
    """Choose how many rows of logits to hold, and the runs of tokens to compute them in.

    Parameters
    ----------
    width
        Tokens in the vocabulary.
    device
        Only a CPU has tiles narrower than the vocabulary.
    rows
        Rows a chunk, at least, on a CPU.

    Returns
    -------
    n_rows : int
    tiles : list of slice
        All of one width but the last.
    """
    if device.type == "cpu":
        n_rows = max(rows, _TILE_ELEMENTS // width)
        step = min(width, max(1, _TILE_ELEMENTS // n_rows))
    else:  # starting an operation costs more there than a pass over memory
        n_rows, step = max(1, _CHUNK_ELEMENTS // width), width
    return n_rows, [slice(c, min(c + step, width)) for c in range(0, width, step)]


def tile_buffer(hidden: Tensor, n_rows: int, tiles: Sequence[slice]) -> Tensor:
    """Room for both models' logits at a chunk of rows, (tiles, 2, n_rows, tokens of a tile).

    One buffer serves all chunks: fresh memory costs more than the arithmetic on it. A tile is
    contiguous, since in rows as long as the vocabulary each would lie on pages of its own.
    """
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    width = tiles[0].stop - tiles[0].start
    return hidden.new_empty((len(tiles), 2, min(n_rows, len(hidden)), width), dtype=dtype)


def sum_dtype(buffer: Tensor) -> torch.dtype:
    """What to add tiles up in: a sum of a thousand of them in float32 would lose the small ones.

    Elsewhere than on a CPU there is one tile, and not every accelerator has float64.
    """
    return torch.float64 if buffer.device.type == "cpu" else buffer.dtype


def log_softmax(head: Head, hidden: Tensor, temperature: float) -> Tensor:
    """Log-probabilities of a chunk of rows, (N, V) float32, in nats, with gradient."""
    logits = head(hidden)
    if temperature != 1:
        logits = logits / temperature
    return logits.log_softmax(-1)


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
) -> Scores:
    """Score states with both models in one pass over chunks of rows.

    Parameters
    ----------
    student_hidden, teacher_hidden : Tensor (N, D)
        Last hidden states at the states; the two models' D may differ.
    student_head, teacher_head
        Output heads of one common width.
    sampled_ids : Tensor (N,)
        The tokens the student drew there.
    k
        Tokens kept for either model.
    temperature
        Divides the logits of both models: the distribution the student sampled from.

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
        raise ConfigError(f"k = {k} is larger than the shared vocabulary of {width} tokens.")
    n_rows, tiles = vocabulary_tiles(width, student_hidden.device, _TILE_ROWS)
    logits = tile_buffer(student_hidden, n_rows, tiles)
    pile = _pile_size(width, k)
    members = torch.cat([_members(tile, pile) for tile in tiles]).to(student_hidden.device)
    parts = []
    for start in range(0, len(sampled_ids), n_rows):
        rows = slice(start, start + n_rows)
        sampled = sampled_ids[rows]
        x = logits[:, :, : len(sampled)]
        models = (student_head, student_hidden[rows]), (teacher_head, teacher_hidden[rows])
        # Everything follows from centred logits z and weights e^z, without a normalised copy:
        # H = log Z - E[z], KL = E_p[z_S - z_T] - log Z_S + log Z_T. The largest logit so far is
        # subtracted, and where it grows the sums so far follow. The operations are the same for
        # both models, so that equal models give exactly 0.
        largest = x.new_full((2, len(sampled)), torch.finfo(x.dtype).min)
        total = torch.zeros_like(largest, dtype=sum_dtype(x))
        mean, cross, peaks = torch.zeros_like(total), torch.zeros_like(total[0]), []
        for block, tile in zip(x, tiles, strict=True):
            z = block[..., : tile.stop - tile.start]
            for i, (head, hidden) in enumerate(models):
                head.fill(z[i], hidden, tile)
            if temperature != 1:
                z /= temperature
            peaks.append(_peaks(z, pile))
            before, largest = largest, torch.maximum(largest, peaks[-1].amax(-1))
            shift = before - largest
            shrink = shift.exp()
            mean = shrink * (mean + shift * total)
            cross = shrink[0] * (cross + shift[1] * total[0])
            z = z - largest[..., None]
            weight = z.exp()
            total = shrink * total + weight.sum(-1)
            cross += (weight[0] * z[1]).sum(-1)
            mean += z.mul_(weight).sum(-1)
        mean, cross, log_total = mean / total, cross / total[0], total.log()
        entropy = (log_total - mean).to(x.dtype)
        for who, values in zip(MODELS, entropy, strict=True):
            _check_finite(values, who)
        reverse_kl = (mean[0] - cross - log_total[0] + log_total[1]).to(x.dtype)

        ids = _top(x, torch.cat(peaks, -1), members, k).transpose(0, 1)  # (n, support, K)
        columns = torch.cat([ids.flatten(1), sampled[:, None]], 1)
        logp = _pick(x, columns.expand(2, -1, -1)) - largest[..., None] - log_total[..., None]
        logp = logp.to(x.dtype).transpose(0, 1)
        parts.append(
            Scores(
                token_id=ids,
                logp=logp[..., :-1].unflatten(-1, (2, k)),
                entropy=entropy.T,
                reverse_kl=reverse_kl.clamp(min=0),  # rounding alone can make it negative
                sampled_logp=logp[..., -1],
            )
        )
    return Scores.concatenate(parts)


def _check_finite(entropy: Tensor, who: str) -> None:
    # One NaN or infinite logit makes its row's entropy NaN: inf - inf for +inf, 0 · -inf for -inf.
    bad = torch.isnan(entropy)
    if bad.any():
        raise NonFiniteError(
            f"the {who} gave NaN or infinite logits at row {int(bad.nonzero()[0])} of "
            f"{len(bad)}. Check its weights and dtype (float16 overflows)."
        )


# The k largest tokens lie in the k piles with the largest peaks. Finding the peaks is one pass, and
# the search among peaks, then in k piles, costs a fraction of `topk` over everything. Within a tile
# of q piles, column j belongs to pile j mod q, so that taking peaks runs along memory. Columns left
# over are piles of one.


def _pile_size(width: int, k: int) -> int:
    size = _PILE
    while size > 1 and width // size < 8 * k:
        size //= 2
    return size


def _peaks(z: Tensor, pile: int) -> Tensor:
    """Largest of each pile of a tile, (..., C) -> (..., C // pile + C % pile)."""
    if pile == 1:
        return z
    q = z.shape[-1] // pile
    peaks = z[..., : q * pile].unflatten(-1, (pile, q)).amax(-2)
    return torch.cat([peaks, z[..., q * pile :]], -1) if z.shape[-1] % pile else peaks


def _members(tile: slice, pile: int) -> Tensor:
    """Tokens of each pile of a tile, (piles, pile); -1 fills the piles of one."""
    ids = torch.arange(tile.start, tile.stop)
    q = len(ids) // pile
    rest = ids[q * pile :, None]
    return torch.cat([ids[: q * pile].view(pile, q).T, F.pad(rest, (0, pile - 1), value=-1)])


def _top(x: Tensor, peaks: Tensor, members: Tensor, k: int) -> Tensor:
    """Ids of the k largest of each row of logits, largest first, (2, N, K).

    The lower id comes first among equals, of which logits of 16 bits have many. Which of them
    `topk` finds is up to it, so rows that have any are searched again.
    """
    peak, pile = _largest(peaks, k + 1)
    ids = members[pile[..., :k]].flatten(-2)
    values = _pick(x, ids.clamp(min=0)).masked_fill_(ids < 0, -math.inf)
    best, place = _largest(values, k + 1)
    tied = (best[..., 1:] == best[..., :-1]).any(-1)
    tied |= (peak[..., k:] == peak[..., k - 1 : k]).any(-1)
    ids = ids.gather(-1, place[..., :k])
    rows = tied.any(0).nonzero().squeeze(-1)
    if len(rows):
        ids[:, rows] = _top_of_ties(x[:, :, rows], peaks[:, rows], members, k)
    return ids


def _largest(x: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Values and places of the n largest, or of all if there are fewer, as `topk` gives them."""
    n = min(n, x.shape[-1])
    if x.device.type != "cpu" or x.shape[-1] > _SHORT:
        top = x.topk(n)
        return top.values, top.indices
    # NumPy sorts a short row in vector registers faster than `topk` finds the largest of it.
    place = torch.from_numpy(x.numpy().argsort(-1)[..., : -n - 1 : -1].copy())
    return x.gather(-1, place), place


def _top_of_ties(x: Tensor, peaks: Tensor, members: Tensor, k: int) -> Tensor:
    """Search every pile that ties for the last place, and put equals in the order of their ids."""
    last = peaks.topk(k).values[..., -1:]
    n_piles = int((peaks >= last).sum(-1).max())
    if n_piles > 4 * k and x.shape[2] > 1:  # a row of one value everywhere: not all rows at once
        rows = range(x.shape[2])
        return torch.cat([_top_of_ties(x[:, :, [i]], peaks[:, [i]], members, k) for i in rows], 1)
    ids = members[peaks.topk(n_piles).indices].flatten(-2)
    values = _pick(x, ids.clamp(min=0)).masked_fill_(ids < 0, -math.inf)
    last = values.topk(k).values[..., -1:]
    beyond = members.numel()  # more than any id
    order = torch.where(values > last, ids - beyond, torch.where(values == last, ids, beyond))
    ids = order.topk(k, largest=False).values % beyond
    return ids.gather(-1, _pick(x, ids).argsort(dim=-1, descending=True, stable=True))


def _pick(x: Tensor, ids: Tensor) -> Tensor:
    """Logits of some tokens of each row, (T, 2, N, C) tiles at (2, N, K) -> (2, N, K)."""
    if len(x) == 1:  # cheaper than indexing by four tensors, two of them quotients
        return x[0].gather(-1, ids)
    width = x.shape[-1]
    model, row = torch.arange(2, device=x.device), torch.arange(x.shape[2], device=x.device)
    return x[ids // width, model[:, None, None], row[:, None], ids % width]
