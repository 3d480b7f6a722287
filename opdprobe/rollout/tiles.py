"""Logits by chunks of rows, and on a CPU by tiles of the vocabulary.

In shapes, N is the number of states, D the hidden size and V the vocabulary.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from opdprobe.models.head import Head

# Logits held at once, per model, where several columns of one row are needed: 32 MiB of float32.
_CHUNK_ELEMENTS = 2**23
# The same for scoring on other devices, 128 MiB: each chunk reads both heads' weights, so that with
# a quarter of the rows a GPU would read longer than it computes.
_CHUNK_ELEMENTS_DEVICE = 2**25
# On a CPU the arithmetic works tile by tile, half a MiB each, so that the dozen passes over a
# tile find it in the second-level cache: from main memory they would take four times as long as the
# matrix product.
_TILE_ELEMENTS = 2**17


def chunk_rows(n_rows: int, width: int, *, times: int = 1) -> Iterator[slice]:
    """Yield slices of rows whose logits fill at most `times` chunks."""
    step = max(1, times * _CHUNK_ELEMENTS // width)
    for start in range(0, n_rows, step):
        yield slice(start, min(start + step, n_rows))


def vocabulary_tiles(width: int, device: torch.device, rows: int) -> tuple[int, list[slice]]:
    """Choose the number of rows of logits to hold, and the ranges of tokens to compute.

    Parameters
    ----------
    width
        Tokens in the vocabulary.
    device
        Only a CPU has tiles narrower than the vocabulary.
    rows
        Least number of rows per chunk.

    Returns
    -------
    n_rows : int
    tiles : list of slice
        All of equal width except the last.
    """
    if device.type == "cpu":
        n_rows = max(rows, _TILE_ELEMENTS // width)
        step = min(width, max(1, _TILE_ELEMENTS // n_rows))
    else:  # starting an operation costs more there than a pass over memory
        n_rows, step = max(rows, _CHUNK_ELEMENTS_DEVICE // width), width
    return n_rows, [slice(c, min(c + step, width)) for c in range(0, width, step)]


def tile_buffer(hidden: Tensor, n_rows: int, tiles: Sequence[slice]) -> Tensor:
    """Allocate both models' logits at a chunk of rows, (tiles, 2, n_rows, tokens of a tile).

    One buffer serves all chunks: fresh memory costs more than the arithmetic on it. A tile is
    contiguous: in rows as long as the vocabulary, each of its rows would lie on different pages.
    """
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    width = tiles[0].stop - tiles[0].start
    return hidden.new_empty((len(tiles), 2, min(n_rows, len(hidden)), width), dtype=dtype)


def cut_tiles(buffer: Tensor, tiles: Sequence[slice], n_rows: int) -> list[Tensor]:
    """Views of a tile buffer for a chunk of `n_rows` rows, each (2, n_rows, tokens of its tile)."""
    return [
        block[:, :n_rows, : tile.stop - tile.start]
        for block, tile in zip(buffer, tiles, strict=True)
    ]


def sum_dtype(buffer: Tensor) -> torch.dtype:
    """Dtype to add tiles up in: a float32 sum of a thousand tiles would lose the small ones.

    Other devices than a CPU have one tile, and not every accelerator has float64.
    """
    return torch.float64 if buffer.device.type == "cpu" else buffer.dtype


def fill_tile(
    logits: Tensor, models: Sequence[tuple[Head, Tensor]], tile: slice, temperature: float
) -> None:
    """Compute both models' logits at a tile, divided by the temperature, in place.

    Parameters
    ----------
    logits : Tensor (2, N, tokens of the tile)
        Filled in place.
    models
        Output head and last hidden states (N, D) of the student, then of the teacher.
    tile
        The tokens.
    temperature
        Divides the logits.
    """
    for one, (head, hidden) in zip(logits, models, strict=True):
        head.fill(one, hidden, tile)
    if temperature != 1:
        logits /= temperature


def log_softmax(head: Head, hidden: Tensor, temperature: float) -> Tensor:
    """Log-probabilities of a chunk of rows, (N, V) float32, in nats, with gradient."""
    logits = head(hidden)
    if temperature != 1:
        logits = logits / temperature
    return logits.log_softmax(-1)
