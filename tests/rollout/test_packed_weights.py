"""Products of a few rows from packed weights equal the layer's own, up to rounding."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from opdprobe.rollout import packed_weights as module
from opdprobe.rollout.exact import decoding_of
from opdprobe.rollout.packed_weights import packed_weights
from opdprobe.rollout.sample import sample
from opdprobe.testing import tiny_model

WIDE = (2048, 256)  # 2**19 weights

needs_onednn = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this build of torch has no oneDNN"
)


def layer(n_out: int, n_in: int, *, bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(n_in, n_out, bias=bias)


def is_packed(module: nn.Module) -> bool:
    return "forward" in vars(module)


@needs_onednn
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(8,), (4, 1), (32, 1), (8, 3), (1,)])
def test_a_packed_layer_gives_what_the_layer_gives(shape, bias):
    linear = layer(*WIDE, bias=bias)
    rows = torch.randn(*shape, WIDE[1])
    with torch.inference_mode(), packed_weights(linear, 8):
        assert is_packed(linear)
        packed = linear(rows)
    exact = nn.functional.linear(
        rows.double(), linear.weight.double(), linear.bias.double() if bias else None
    )
    # Each of 256 products and sums rounds by 2**-24 of at most the sum of absolute products.
    size = nn.functional.linear(rows.abs(), linear.weight.abs())
    assert ((packed - exact).abs() <= 256 * 2**-24 * size + 1e-6).all()


@needs_onednn
def test_the_layer_is_restored_and_uses_its_new_weights():
    linear = layer(*WIDE)
    rows = torch.randn(8, WIDE[1])
    with pytest.raises(RuntimeError, match="halfway"), packed_weights(linear, 8):
        raise RuntimeError("halfway")
    assert not is_packed(linear)
    linear.weight.data.zero_()
    linear.bias.data.fill_(3.0)
    with torch.no_grad(), packed_weights(linear, 8):
        assert linear(rows).eq(3).all()
    linear(rows).sum().backward()
    assert linear.weight.grad is not None


def test_what_does_not_pay_or_would_change_the_arithmetic_is_left_alone():
    linear = layer(*WIDE)
    for rows in (1, 33, 4096):
        with packed_weights(linear, rows):
            assert not is_packed(linear)
    with torch.autocast("cpu", torch.bfloat16), packed_weights(linear, 8):
        assert not is_packed(linear)
    for other in (layer(256, 256), layer(*WIDE).bfloat16(), layer(*WIDE).double()):
        with packed_weights(other, 8):
            assert not is_packed(other)

    class Scaled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    scaled = Scaled(*reversed(WIDE))
    with packed_weights(scaled, 8):
        assert not is_packed(scaled)


@needs_onednn
@pytest.mark.parametrize(("capability", "least"), [("AVX2", 2), ("AVX512", 4), ("DEFAULT", 4)])
def test_the_fewest_rows_depend_on_the_processor(monkeypatch, capability, least):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert [rows for rows in range(8) if module.packs(rows)] == list(range(least, 8))


def test_a_forward_replaced_by_other_code_stays():
    linear = layer(*WIDE)
    theirs = partial(nn.Linear.forward, linear)
    linear.forward = theirs
    with packed_weights(linear, 8):
        assert linear.forward is theirs
    assert linear.forward is theirs


@needs_onednn
def test_rollouts_are_the_same_with_and_without(monkeypatch):
    model = tiny_model(vocab_size=4096, hidden_size=64)  # its head is large enough
    arguments = {"num_generations": 4, "max_completion_length": 12, "eos_ids": [2], "pad_id": 0}
    packed_heads = []
    decoding_of(model)  # the check of its first use
    model.lm_head.register_forward_hook(
        lambda module, *_: packed_heads.append("forward" in vars(module))
    )

    def draws():
        return sample(
            model, [[5, 6, 7], [8, 9]], generator=torch.Generator().manual_seed(3), **arguments
        ).response_ids

    ours = draws()
    assert packed_heads[0] is False  # the prefill
    assert all(packed_heads[1:])
    monkeypatch.setattr("opdprobe.rollout.packed_weights._MIN_ELEMENTS", 2**40)
    assert draws() == ours


def refuse(*_):
    raise RuntimeError("expected 7 arguments\nDeclaration: …")


@needs_onednn
@pytest.mark.parametrize(
    ("operators", "why"),
    [
        (SimpleNamespace(), "AttributeError: "),
        (SimpleNamespace(_reorder_linear_weight=refuse), "RuntimeError: expected 7 arguments)"),
        (
            SimpleNamespace(
                _reorder_linear_weight=lambda weight, rows: weight,
                _linear_pointwise=lambda rows, packed, *_: rows @ packed.T,  # without the bias
            ),
            "a product is wrong",
        ),
    ],
)
def test_a_torch_without_the_operators_samples_without_packing(monkeypatch, caplog, operators, why):
    monkeypatch.setattr(torch.ops, "mkldnn", operators)
    module._works.cache_clear()
    try:
        linear = layer(*WIDE)
        for _ in range(2):
            with packed_weights(linear, 8):
                assert not is_packed(linear)
    finally:
        module._works.cache_clear()
    (message,) = caplog.messages
    assert "sampling from large models is slower" in message
    assert why in message
