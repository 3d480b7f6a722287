"""Parsing a GGUF file once changes nothing but the time."""

import os

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from opdprobe.errors import ModelError
from opdprobe.models.load import load_model

gguf = pytest.importorskip("gguf")
WIDTH, HEADS, INNER, VOCABULARY = 8, 2, 16, 12


def write(path, seed):
    """Write a Llama of one layer with random weights."""
    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(32)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(VOCABULARY)
    square = ["attn_q", "attn_k", "attn_v", "attn_output"]
    shapes = {
        "token_embd": (VOCABULARY, WIDTH),
        "output": (VOCABULARY, WIDTH),
        "output_norm": (WIDTH,),
        "blk.0.attn_norm": (WIDTH,),
        "blk.0.ffn_norm": (WIDTH,),
        "blk.0.ffn_gate": (INNER, WIDTH),
        "blk.0.ffn_up": (INNER, WIDTH),
        "blk.0.ffn_down": (WIDTH, INNER),
        **{f"blk.0.{name}": (WIDTH, WIDTH) for name in square},
    }
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", rng.normal(size=shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def parses(monkeypatch):
    """Count how often a file is parsed."""
    counted = []
    build = gguf.GGUFReader.__init__

    def init(self, path, *args):
        counted.append(path)
        build(self, path, *args)

    monkeypatch.setattr(gguf.GGUFReader, "__init__", init)
    return counted


def test_a_file_is_parsed_once_and_gives_the_same_weights(tmp_path, parses):
    path = tmp_path / "model.gguf"
    write(path, seed=0)
    expected = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name)
    without = len(parses)
    assert without >= 2  # else this module has lost its purpose

    parses.clear()
    for _ in range(2):
        found = load_model(path, dtype="float32").state_dict()
        assert found.keys() == expected.state_dict().keys()
        for name, weight in expected.state_dict().items():
            assert torch.equal(found[name], weight), name
    assert len(parses) == 1


def test_a_changed_file_is_parsed_again(tmp_path, parses):
    path = tmp_path / "model.gguf"
    write(path, seed=0)
    first = load_model(path, dtype="float32").state_dict()
    write(tmp_path / "other.gguf", seed=1)
    os.replace(tmp_path / "other.gguf", path)
    second = load_model(path, dtype="float32").state_dict()
    assert not torch.equal(first["lm_head.weight"], second["lm_head.weight"])
    assert len(parses) == 2


def test_a_model_does_not_change_when_its_file_is_read_again(tmp_path):
    # The parsed file is kept: a model must own its weights.
    path = tmp_path / "model.gguf"
    write(path, seed=0)
    trained, fresh = load_model(path, dtype="float32"), load_model(path, dtype="float32")
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.zero_()
    assert all(bool(weight.any()) for weight in fresh.parameters())
    assert all(bool(weight.any()) for weight in load_model(path, dtype="float32").parameters())


def test_the_package_is_as_before_after_a_failure(tmp_path):
    before = gguf.GGUFReader, gguf.get_tensor_name_map
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match="does not load"):
        load_model(tmp_path / "model.gguf")
    assert (gguf.GGUFReader, gguf.get_tensor_name_map) == before
