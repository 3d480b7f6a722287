"""The output head: `fill` writes what a call returns."""

import pytest
import torch
from torch import nn

from opdprobe.models.head import Head


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize(
    ("bias", "settings"),
    [
        (False, {}),
        (True, {}),
        (False, {"scale": 0.5}),
        (False, {"softcap": 3.0}),
        (True, {"scale": 0.5, "softcap": 3.0}),
    ],
)
def test_fill_writes_the_logits(dtype, bias, settings):
    torch.manual_seed(0)
    layer = nn.Linear(24, 40, bias=bias).to(dtype)
    head, hidden = Head(layer, 37, **settings), torch.randn(5, 24).to(dtype)
    for tile in (slice(0, 37), slice(8, 30)):
        want = head(hidden, tile)
        found = torch.empty_like(want)
        head.fill(found, hidden, tile)
        # In float32 and float64 one product is written in place, by another routine of BLAS.
        torch.testing.assert_close(found, want, rtol=1e-6, atol=1e-6)
        if dtype in (torch.bfloat16, torch.float16):
            assert torch.equal(found, want)


def test_fill_under_autocast_writes_the_logits_of_autocast():
    torch.manual_seed(0)
    head, hidden = Head(nn.Linear(24, 40, bias=False), 40), torch.randn(5, 24)
    with torch.autocast("cpu", torch.bfloat16):
        want = head(hidden)
        found = torch.empty_like(want)
        head.fill(found, hidden, slice(0, 40))
    assert torch.equal(found, want)
    assert not torch.equal(found, head(hidden))
