"""How logits are cut into chunks of rows and tiles of the vocabulary."""

import pytest
import torch

from opdprobe.rollout.tiles import vocabulary_tiles


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("width", [2, 512, 5000, 151_936, 262_144])
@pytest.mark.parametrize("rows", [128, 256])
def test_tiles_cover_the_vocabulary_with_enough_rows(device, width, rows):
    n_rows, tiles = vocabulary_tiles(width, torch.device(device), rows)
    assert n_rows >= rows
    assert [i for tile in tiles for i in (tile.start, tile.stop)] == sorted(
        [0, width] + 2 * [tile.stop for tile in tiles[:-1]]
    )
    assert len(tiles) == 1 or device == "cpu"


def test_a_chunk_on_a_gpu_is_bounded():
    """At 151,936 tokens, 220 rows of two models' float32 logits: a quarter of a GiB."""
    n_rows, tiles = vocabulary_tiles(151_936, torch.device("cuda"), 128)
    assert n_rows == 220
    assert 2 * n_rows * 151_936 * 4 < 2**28
    assert tiles == [slice(0, 151_936)]
