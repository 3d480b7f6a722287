"""The cache with room for more tokens holds what transformers' own holds."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, MistralConfig
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from opdprobe.rollout import kv_cache as module
from opdprobe.rollout.kv_cache import RoomyLayer, roomy_cache

ACTIONS = st.one_of(
    st.tuples(st.just("append"), st.integers(1, 9)),
    st.tuples(st.just("repeat"), st.integers(1, 3)),
    st.tuples(st.just("keep"), st.integers(0, 2**6 - 1)),
)


@given(st.lists(ACTIONS, max_size=12), st.integers(1, 5))
def test_it_holds_the_same_tokens_as_transformers_own(actions, least):
    generator = torch.Generator().manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_LEAST", least)
        roomy, plain, batch = RoomyLayer(), DynamicLayer(), 3
        for action, n in [("append", 4), *actions]:
            if action == "append":
                new = torch.randn(2, batch, 2, n, 3, generator=generator)
                for got, want in zip(roomy.update(*new), plain.update(*new), strict=True):
                    assert torch.equal(got, want)
            elif action == "repeat":
                batch = min(batch * n, 12)
                n = batch // len(plain.keys)
                batch = n * len(plain.keys)
                for layer in (roomy, plain):
                    layer.batch_repeat_interleave(n)
            else:
                kept = torch.tensor([bool(n >> i % 6 & 1) for i in range(batch)])
                kept[0] = True
                batch = int(kept.sum())
                for layer in (roomy, plain):
                    layer.batch_select_indices(kept)
            assert roomy.get_seq_length() == plain.get_seq_length()
            assert torch.equal(roomy.keys, plain.keys)
            assert torch.equal(roomy.values, plain.values)


def test_appending_a_token_seldom_copies_the_others():
    layer = RoomyLayer()
    layer.update(*torch.randn(2, 1, 1, 5, 2))
    places = set()
    for _ in range(1000):
        places.add(layer.update(*torch.randn(2, 1, 1, 1, 2))[0].data_ptr())
    assert len(places) < 16


def test_rows_are_spread_as_left_padding_would():
    layer = RoomyLayer()
    keys, values = (x.clone() for x in layer.update(*torch.randn(2, 1, 2, 5, 3)))
    layer.spread(torch.tensor([0, 2, 7]))
    assert layer.keys.shape == layer.values.shape == (3, 2, 5, 3)
    for row, shift in enumerate([0, 2, 7]):
        assert torch.equal(layer.keys[row, :, shift:], keys[0, :, : max(5 - shift, 0)])
        assert torch.equal(layer.values[row, :, shift:], values[0, :, : max(5 - shift, 0)])
    assert layer.update(*torch.randn(2, 3, 2, 1, 3))[0].shape == (3, 2, 6, 3)


def test_layers_of_other_kinds_are_left_alone():
    plain = LlamaConfig(num_hidden_layers=2, hidden_size=8, num_attention_heads=2)
    window = MistralConfig(num_hidden_layers=2, hidden_size=8, num_attention_heads=2)
    window.sliding_window = 4
    assert [type(x) for x in roomy_cache(plain).layers] == [RoomyLayer] * 2
    assert [type(x) for x in roomy_cache(window).layers] == [DynamicSlidingWindowLayer] * 2
