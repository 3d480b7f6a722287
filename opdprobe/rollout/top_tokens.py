"""Find the most probable tokens of each state, in logits that are stored in tiles.

The tokens are dealt to piles, and the k largest logits lie in the k piles with the largest peaks.
Finding the peaks takes one pass, and the search among the peaks, then in k piles, costs a fraction
of `topk` over all tokens. Within a tile of q piles, column j belongs to pile j mod q, so that
taking peaks runs along memory. Each column left over is a pile of one.

In shapes, 2 runs over student and teacher, N over states, K over the tokens kept per state.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

# Most tokens in a pile; see `_pile_size`.
_PILE = 32
# On a CPU, rows up to this length are sorted completely to find the largest.
_SHORT = 256


class TopTokens:
    """A search for the k largest logits of each row.

    Parameters
    ----------
    tiles
        Tokens of each tile.
    k
        Number of logits to find; at most the size of the vocabulary.
    device
        Where the logits are.
    """

    def __init__(self, tiles: Sequence[slice], k: int, device: torch.device) -> None:
        self._k = k
        self._pile = _pile_size(tiles[-1].stop, k)
        self._members = torch.cat([_members(tile, self._pile) for tile in tiles]).to(device)

    def peaks(self, logits: Tensor) -> Tensor:
        """Largest logit of each pile of a tile.

        Parameters
        ----------
        logits : Tensor (..., C)
            A tile of C tokens.

        Returns
        -------
        Tensor (..., piles)
        """
        pile = self._pile
        if pile == 1:
            return logits
        q = logits.shape[-1] // pile
        peaks = logits[..., : q * pile].unflatten(-1, (pile, q)).amax(-2)
        if logits.shape[-1] % pile == 0:
            return peaks
        return torch.cat([peaks, logits[..., q * pile :]], -1)

    def find(self, logits: Tensor, peaks: Tensor) -> Tensor:
        """Ids of the k largest of each row, largest first, the lower id first among equals.

        Parameters
        ----------
        logits : Tensor (tiles, 2, N, tokens of a tile)
            As in `opdprobe.rollout.tiles.tile_buffer`; finite.
        peaks : Tensor (2, N, piles)
            Peaks of all tiles.

        Returns
        -------
        Tensor (2, N, K), int64
        """
        k = self._k
        peak, pile = _largest(peaks, k + 1)
        ids, values = self._tokens(logits, pile[..., :k])
        best, place = _largest(values, k + 1)
        ids = ids.gather(-1, place[..., :k])
        # 16-bit logits have many ties, and `topk` may return any of the tied tokens: rows with ties
        # are searched again.
        tied = (best[..., 1:] == best[..., :-1]).any(-1)
        tied |= (peak[..., k:] == peak[..., k - 1 : k]).any(-1)
        rows = tied.any(0).nonzero().squeeze(-1)
        if len(rows):
            ids[:, rows] = self._find_among_ties(logits[:, :, rows], peaks[:, rows])
        return ids

    def _find_among_ties(self, logits: Tensor, peaks: Tensor) -> Tensor:
        """Search every pile that ties for the last place, and order ties by id."""
        k, n_rows = self._k, logits.shape[2]
        last = peaks.topk(k).values[..., -1:]
        n_piles = int((peaks >= last).sum(-1).max())
        if n_piles > 4 * k and n_rows > 1:  # all logits may be equal: go row by row
            one_by_one = ((logits[:, :, [i]], peaks[:, [i]]) for i in range(n_rows))
            return torch.cat([self._find_among_ties(*row) for row in one_by_one], 1)
        ids, values = self._tokens(logits, peaks.topk(n_piles).indices)
        last = values.topk(k).values[..., -1:]
        # The k smallest keys: those of values above the last one, then of values equal to it by id.
        beyond = self._members.numel()  # more than any id
        key = torch.where(values > last, ids, torch.where(values == last, ids + beyond, 2 * beyond))
        place = key.topk(k, largest=False).indices
        ids, values = ids.gather(-1, place), values.gather(-1, place)
        return ids.gather(-1, values.argsort(dim=-1, descending=True, stable=True))

    def _tokens(self, logits: Tensor, piles: Tensor) -> tuple[Tensor, Tensor]:
        """Ids and logits of all tokens in some piles of each row; minus infinity for fillers."""
        ids = self._members[piles].flatten(-2)
        return ids, pick(logits, ids.clamp(min=0)).masked_fill_(ids < 0, -math.inf)


def pick(logits: Tensor, ids: Tensor) -> Tensor:
    """Logits of some tokens of each row.

    Parameters
    ----------
    logits : Tensor (tiles, 2, N, tokens of a tile)
    ids : Tensor (2, N, K)

    Returns
    -------
    Tensor (2, N, K)
    """
    if len(logits) == 1:  # cheaper than indexing by four tensors, two of them quotients
        return logits[0].gather(-1, ids)
    width, device = logits.shape[-1], logits.device
    model, row = torch.arange(2, device=device), torch.arange(logits.shape[2], device=device)
    return logits[ids // width, model[:, None, None], row[:, None], ids % width]


def _pile_size(width: int, k: int) -> int:
    size = _PILE
    while size > 1 and width // size < 8 * k:
        size //= 2
    return size


def _members(tile: slice, pile: int) -> Tensor:
    """Tokens of each pile of a tile, (piles, pile); -1 fills up the piles of one."""
    ids = torch.arange(tile.start, tile.stop)
    q = len(ids) // pile
    rest = ids[q * pile :, None]
    return torch.cat([ids[: q * pile].view(pile, q).T, F.pad(rest, (0, pile - 1), value=-1)])


def _largest(values: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Values and indices of the n largest, or of all if there are fewer, as `topk` gives them."""
    n = min(n, values.shape[-1])
    if values.device.type != "cpu" or values.shape[-1] > _SHORT:
        top = values.topk(n)
        return top.values, top.indices
    # NumPy sorts a short row in vector registers faster than `topk` finds the largest of it.
    place = torch.from_numpy(values.numpy().argsort(-1)[..., : -n - 1 : -1].copy())
    return values.gather(-1, place), place
