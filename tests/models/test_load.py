"""Models: loading, shared vocabulary, splitting body and head, identity."""

import contextlib
import json
import logging
import os
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from torch import nn
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    FalconH1Config,
    FalconH1ForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from opdprobe.errors import ConfigError, OPDProbeError, VocabularyError
from opdprobe.models.head import Head
from opdprobe.models.load import (
    ModelError,
    drop_layers,
    load_model,
    load_tokenizer,
    shared_vocabulary,
    shared_width,
    split_head,
    tokenizer_hash,
    weight_hash,
)

VOCAB = 40
SIZE = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    # Ten times the usual, so that caps and scales matter in the comparisons below.
    "initializer_range": 0.2,
}
PHI = {k: v for k, v in SIZE.items() if k not in ("head_dim", "num_key_value_heads")}
FAMILIES = {
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZE)),
    "qwen2-tied": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZE, tie_word_embeddings=True)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZE)),
    "phi-bias": lambda: PhiForCausalLM(PhiConfig(**PHI)),
    "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**SIZE, final_logit_softcapping=3.0)),
    "gemma3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**SIZE, final_logit_softcapping=2.0)),
    "cohere": lambda: CohereForCausalLM(CohereConfig(**SIZE, logit_scale=0.3)),
    "granite": lambda: GraniteForCausalLM(GraniteConfig(**SIZE, logits_scaling=4.0)),
}


def build(family, dtype=torch.float32):
    torch.manual_seed(0)
    model = FAMILIES[family]().to(dtype).eval()
    if model.get_output_embeddings().bias is not None:  # transformers starts it at zero
        nn.init.normal_(model.get_output_embeddings().bias)
    return model


@pytest.fixture(params=FAMILIES)
def model(request):
    return build(request.param)


def inputs():
    ids = torch.arange(3, 15).reshape(2, 6)
    mask = torch.ones_like(ids)
    mask[1, :2] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    return {"input_ids": ids, "attention_mask": mask, "position_ids": positions}


# --- head --------------------------------------------------------------------------------------


def test_head_of_body_is_the_model(model):
    body, head = split_head(model)
    assert head.projection is model.get_output_embeddings()
    want = model(**inputs()).logits
    torch.testing.assert_close(head(body(**inputs()).last_hidden_state), want)


def test_columns_are_the_head_at_ids(model):
    body, head = split_head(model, width=VOCAB - 3)
    hidden = body(**inputs()).last_hidden_state
    ids = torch.randint(head.width, (2, 6, 5), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(head.columns(hidden, ids), head(hidden).gather(-1, ids))


def test_width_cuts_the_last_logits(model):
    body, head = split_head(model, width=VOCAB - 3)
    got = head(body(**inputs()).last_hidden_state)
    torch.testing.assert_close(got, model(**inputs()).logits[..., : VOCAB - 3])


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("way", ["full", "columns"])
def test_gradients_are_the_models_own(model, way):
    body, head = split_head(model)
    ids = torch.randint(VOCAB, (2, 6, 5), generator=torch.Generator().manual_seed(0))
    weights = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(1))
    want = gradients(model, (model(**inputs()).logits.gather(-1, ids) * weights).sum())
    hidden = body(**inputs()).last_hidden_state
    picked = head.columns(hidden, ids) if way == "columns" else head(hidden).gather(-1, ids)
    got = gradients(model, (picked * weights).sum())
    assert got.keys() == want.keys()
    for name, gradient in want.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("trained", [(True, True), (True, False), (False, True)])
def test_gradients_of_columns_are_the_derivatives(trained):
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(4, 9, dtype=torch.float64)
    hidden = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64)
    ids = torch.randint(7, (2, 3, 5), generator=generator)  # some twice in a row
    hidden.requires_grad_(trained[0])
    layer.weight.requires_grad_(trained[1])

    def columns(hidden, weight):
        return Head(layer, 8, scale=0.5, softcap=3.0).columns(hidden, ids)

    assert torch.autograd.gradcheck(columns, (hidden, layer.weight))


def test_columns_keep_no_rows_for_the_backward_pass():
    layer = nn.Linear(32, 50, bias=False)
    hidden = torch.randn(6, 32, requires_grad=True)
    kept = []

    def keep(tensor):
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        Head(layer, 50).columns(hidden, torch.zeros(6, 40, dtype=torch.long)).sum()
    assert kept
    assert max(kept) < 6 * 40 * 32


def test_body_continues_from_its_cache(model):
    body, head = split_head(model)
    ids = inputs()["input_ids"]
    first = body(input_ids=ids[:, :4], use_cache=True)
    rest = body(input_ids=ids[:, 4:], past_key_values=first.past_key_values, use_cache=True)
    want = model(input_ids=ids).logits[:, 4:]
    torch.testing.assert_close(head(rest.last_hidden_state), want, rtol=1e-4, atol=1e-5)


def test_head_sees_updates(model):
    _, head = split_head(model)
    hidden = torch.ones(1, 16)
    before = head(hidden)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(2)
    assert not torch.allclose(head(hidden), before)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes(family, dtype):
    model = build(family, dtype)
    body, head = split_head(model)
    assert head.projection is not None
    ids = inputs()["input_ids"]  # no padding: Gemma2 itself gives NaN for it in float64
    got = head(body(input_ids=ids).last_hidden_state)
    assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    want = model(input_ids=ids).logits.to(got.dtype)
    tolerance = 8 * torch.finfo(dtype).eps
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


@settings(deadline=None, max_examples=50)
@given(
    rows=st.integers(0, 5),
    count=st.integers(0, 6),
    width=st.integers(1, 9),
    bias=st.booleans(),
    scale=st.floats(0.01, 10),
    softcap=st.none() | st.floats(0.5, 50),
    seed=st.integers(0, 99),
)
def test_head_is_its_formula(rows, count, width, bias, scale, softcap, seed):
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Linear(4, 9, bias=bias, dtype=torch.float64)
    head = Head(layer, width, scale, softcap)
    hidden = torch.randn(rows, 4, generator=generator, dtype=torch.float64)
    ids = torch.randint(width, (rows, count), generator=generator)
    want = scale * (hidden @ layer.weight.T + (layer.bias if bias else 0))[:, :width]
    if softcap is not None:
        want = softcap * torch.tanh(want / softcap)
    torch.testing.assert_close(head(hidden), want)
    torch.testing.assert_close(head.columns(hidden, ids), want.gather(-1, ids))
    tile = slice(width // 3, width - width // 4)
    torch.testing.assert_close(head(hidden, tile), want[:, tile])
    filled = torch.empty_like(want[:, tile])
    head.fill(filled, hidden, tile)
    torch.testing.assert_close(filled, want[:, tile])


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("scale", "softcap"), [(1.0, None), (0.3, None), (0.3, 2.0)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_pulling_gradients_back_tile_by_tile_equals_autograd(bias, scale, softcap, dtype):
    torch.manual_seed(0)
    head = Head(nn.Linear(4, 9, bias=bias, dtype=dtype), 7, scale, softcap)
    hidden = torch.randn(5, 4, dtype=dtype, requires_grad=True)
    logits = head(hidden)
    grad = torch.randn_like(logits)
    want = torch.autograd.grad(logits, [hidden, *head.parameters], grad)
    sums = [torch.zeros_like(w, dtype=logits.dtype) for w in want]
    for tile in (slice(0, 3), slice(3, 7)):
        head.pull_back(grad[:, tile], logits[:, tile], hidden, tile, sums[0], sums[1:])
    tolerance = {"rtol": 2e-2, "atol": 2e-2} if dtype == torch.bfloat16 else {}
    for got, expected in zip(sums, want, strict=True):
        torch.testing.assert_close(got.to(dtype), expected, **tolerance)


@pytest.mark.parametrize("bias", [False, True])
def test_filling_follows_autocast(bias):
    head, hidden = Head(nn.Linear(4, 9, bias=bias), 9), torch.randn(5, 4)
    got = torch.empty(5, 9)
    with torch.autocast("cpu", torch.bfloat16):
        head.fill(got, hidden, slice(0, 9))
        want = head(hidden)
    assert torch.equal(got, want)


class Doubling(LlamaForCausalLM):
    """Logits that are twice the projection, which no config says."""

    def forward(self, *args, **kwargs):
        out = super().forward(*args, **kwargs)
        out.logits = 2 * out.logits
        return out


class Adapter(nn.Linear):
    """An output layer that is more than its weight."""

    def forward(self, hidden):
        return super().forward(hidden) + hidden.sum(-1, keepdim=True)


def adapted():
    model = LlamaForCausalLM(LlamaConfig(**SIZE))
    model.set_output_embeddings(Adapter(16, VOCAB, bias=False))
    return model


FALCON = {"mamba_d_ssm": 16, "mamba_n_heads": 2, "mamba_d_head": 8, "mamba_d_state": 4}
SLOW = {
    "doubling": lambda: Doubling(LlamaConfig(**SIZE)),
    "adapter": adapted,
    "falcon-h1": lambda: FalconH1ForCausalLM(
        FalconH1Config(**SIZE, **FALCON, lm_head_multiplier=0.5)
    ),
}


@pytest.mark.parametrize("name", SLOW)
def test_slow_path_is_right_and_logged_once(name, caplog):
    torch.manual_seed(0)
    model = SLOW[name]().eval()
    caplog.clear()
    body, head = split_head(model, width=VOCAB - 3)
    logged = [r for r in caplog.records if r.name == "opdprobe"]
    assert len(logged) == 1
    assert type(model).__name__ in logged[0].getMessage()
    ids = inputs()["input_ids"]
    out = body(input_ids=ids, use_cache=True)
    want = model(input_ids=ids).logits[..., : VOCAB - 3]
    torch.testing.assert_close(head(out.last_hidden_state), want)
    columns = torch.tensor([[0, 5, 1]]).expand(2, 6, 3)
    torch.testing.assert_close(
        head.columns(out.last_hidden_state, columns), want.gather(-1, columns)
    )
    assert out.past_key_values is not None
    assert head.projection is None


class Capped(LlamaForCausalLM):
    """A cap that its config does not name."""

    def forward(self, *args, **kwargs):
        out = super().forward(*args, **kwargs)
        out.logits = 30 * torch.tanh(out.logits / 30)
        return out


def test_a_cap_shows_even_where_logits_are_tiny():
    # With weights this small, capped and uncapped logits agree to float32 precision.
    model = Capped(LlamaConfig(**SIZE | {"initializer_range": 1e-3})).eval()
    plain = LlamaForCausalLM(model.config).eval()
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(model(**inputs()).logits, plain(**inputs()).logits)
    assert split_head(plain)[1].projection is not None
    assert split_head(model)[1].projection is None


def test_split_leaves_no_trace(model):
    model.train()
    model.base_model.layers[0].eval()
    modes = [m.training for m in model.modules()]
    state = torch.get_rng_state()
    split_head(model)
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.get_output_embeddings()._forward_hooks
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("width", [0, VOCAB + 1])
def test_impossible_width(width):
    with pytest.raises(VocabularyError, match=f"width = {width}; expected 1 to {VOCAB}"):
        split_head(build("llama"), width=width)


# --- vocabulary --------------------------------------------------------------------------------


def make_tokenizer(size=VOCAB, eos=2, **renamed):
    names = [renamed.get(f"t{i}", f"t{i}") for i in range(size)]
    backend = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, names[0]))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token=names[0], eos_token=names[eos]
    )


def test_one_vocabulary(caplog):
    assert shared_vocabulary(make_tokenizer(), make_tokenizer()) == VOCAB
    assert not caplog.records


def test_first_differing_token_is_named():
    with pytest.raises(VocabularyError) as caught:
        shared_vocabulary(make_tokenizer(), make_tokenizer(t7="seven", t9="nine"))
    message = str(caught.value)
    assert (
        "differ at 2 of 40 ids, first at id 7: the student has 't7', the teacher 'seven'" in message
    )
    assert "choose a teacher" in message


def test_longer_vocabulary():
    with pytest.raises(VocabularyError, match="id 40: the student has no token, the teacher 't40'"):
        shared_vocabulary(make_tokenizer(), make_tokenizer(size=42))


def test_differing_special_tokens_are_named_as_such():
    teacher = make_tokenizer()
    teacher.add_special_tokens({"additional_special_tokens": ["<|think|>"]})
    with pytest.raises(VocabularyError, match="all of them added or special tokens"):
        shared_vocabulary(make_tokenizer(), teacher)


def test_end_tokens_that_differ_are_logged(caplog):
    assert shared_vocabulary(make_tokenizer(eos=2), make_tokenizer(eos=3)) == VOCAB
    assert "'t2' (id 2), the teacher with 't3' (id 3)" in caplog.text


def llama(vocab=VOCAB):
    return LlamaForCausalLM(LlamaConfig(**SIZE | {"vocab_size": vocab}))


@pytest.mark.parametrize(("student", "teacher"), [(40, 48), (48, 40), (48, 64), (48, 48)])
def test_padded_widths_are_cut_once(student, teacher, caplog):
    assert shared_width(llama(student), llama(teacher), make_tokenizer()) == 40
    assert len(caplog.records) == 1
    assert f"{student} (student) and {teacher} (teacher)" in caplog.text


def test_equal_widths_log_nothing(caplog):
    assert shared_width(llama(), llama(), make_tokenizer()) == 40
    assert not caplog.records


def test_too_few_logits():
    with pytest.raises(VocabularyError, match=r"The teacher has 32 logits, .* 40 tokens"):
        shared_width(llama(), llama(32), make_tokenizer())


@pytest.mark.parametrize(("student", "teacher"), [(40, 40), (40, 48), (48, 40)])
def test_an_added_token_without_a_logit_is_cut(student, teacher, caplog):
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    assert shared_width(llama(student), llama(teacher), tokenizer) == 40
    assert "has 40 logits, so the added tokens above ('<image>'), which" in caplog.text


def test_added_tokens_with_logits_stay(caplog):
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["<think>"])
    assert shared_width(llama(41), llama(41), tokenizer) == 41
    assert not caplog.records


def test_an_end_token_needs_a_logit():
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"eos_token": "<|im_end|>"})
    with pytest.raises(VocabularyError, match=r"'<\|im_end\|>', id 40, so no response can end"):
        shared_width(llama(), llama(), tokenizer)


def test_the_padding_of_a_gguf_vocabulary_is_no_token(caplog):
    padded = make_tokenizer(size=44, **{f"t{i}": f"[PAD{i}]" for i in range(40, 44)})
    assert shared_vocabulary(make_tokenizer(), padded) == 40
    assert shared_vocabulary(padded, make_tokenizer()) == 40
    assert shared_width(llama(40), llama(44), padded) == 40
    shifted = make_tokenizer(size=41, t40="[PAD41]")
    with pytest.raises(VocabularyError, match=r"the student has no token, the teacher '\[PAD41\]'"):
        shared_vocabulary(make_tokenizer(), shifted)


# --- layers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_the_right_layers_are_dropped(family):
    config = build(family).config
    config.num_hidden_layers = 5
    if getattr(config, "layer_types", None) is not None:
        config.layer_types = (config.layer_types * 5)[:5]
    torch.manual_seed(1)
    model = type(build(family))(config).eval()
    smaller = drop_layers(model, [1, 3])
    kept = [smaller.base_model.layers[i] for i in range(3)]
    for block, index in zip(kept, [0, 2, 4], strict=True):
        theirs = model.base_model.layers[index].state_dict()
        assert all(torch.equal(theirs[name], value) for name, value in block.state_dict().items())
    want = model(**inputs()).logits
    assert not torch.allclose(smaller(**inputs()).logits, want)
    assert smaller.config.num_hidden_layers == 3
    assert model.config.num_hidden_layers == len(model.base_model.layers) == 5
    torch.testing.assert_close(model(**inputs()).logits, want)


def test_dropping_identity_layers_changes_nothing():
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZE | {"num_hidden_layers": 4})).eval()
    for index in (1, 2):  # a block whose two branches end in zeros adds nothing
        nn.init.zeros_(model.model.layers[index].self_attn.o_proj.weight)
        nn.init.zeros_(model.model.layers[index].mlp.down_proj.weight)
    smaller = drop_layers(model, range(1, 3))
    torch.testing.assert_close(smaller(**inputs()).logits, model(**inputs()).logits)
    cached = smaller.generate(torch.tensor([[3, 4]]), max_new_tokens=5, do_sample=False)
    uncached = smaller.generate(
        torch.tensor([[3, 4]]), max_new_tokens=5, do_sample=False, use_cache=False
    )
    assert torch.equal(cached, uncached)


@pytest.mark.parametrize("family", ["qwen2-tied", "gemma3"])
def test_dropped_model_survives_saving(family, tmp_path):
    smaller = drop_layers(build(family), [0])
    smaller.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert weight_hash(loaded) == weight_hash(smaller)
    torch.testing.assert_close(loaded(**inputs()).logits, smaller(**inputs()).logits)


def test_layers_that_cannot_be_dropped():
    with pytest.raises(ConfigError, match=r"layers = \[-1, 2\]; expected 0 to 1"):
        drop_layers(build("llama"), [0, 2, -1])
    with pytest.raises(ConfigError, match="all 2 layers"):
        drop_layers(build("llama"), range(2))
    with pytest.raises(ModelError, match="GPT2LMHeadModel"):
        drop_layers(GPT2LMHeadModel(GPT2Config(vocab_size=8, n_embd=4, n_layer=1, n_head=1)), [0])


# --- identity ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weight_hash_survives_a_copy_and_sees_one_bit(dtype):
    one, two = build("qwen2-tied", dtype), build("qwen2-tied", dtype)
    assert weight_hash(one) == weight_hash(two)
    assert len(weight_hash(one)) == 64
    with torch.no_grad():
        weight = two.model.norm.weight
        weight[0] = torch.nextafter(weight[0], torch.tensor(9.0, dtype=dtype))
    assert weight_hash(one) != weight_hash(two)


def test_weight_hash_distinguishes_names_shapes_and_dtypes():
    def holder(name, value):
        module = nn.Module()
        module.register_parameter(name, nn.Parameter(value))
        return module

    values = [torch.zeros(2, 3), torch.zeros(3, 2), torch.zeros(6), torch.zeros(3).double()]
    modules = [holder("a", v) for v in values] + [holder("b", values[0]), nn.Module()]
    modules.append(holder("a", torch.tensor(0.0)))
    assert len({weight_hash(module) for module in modules}) == len(modules)


def test_tokenizer_hash():
    one, two = make_tokenizer(), make_tokenizer()
    assert tokenizer_hash(one) == tokenizer_hash(two)
    two.backend_tokenizer.enable_padding(length=9)
    two.backend_tokenizer.enable_truncation(4)
    assert tokenizer_hash(one) == tokenizer_hash(two)
    two.chat_template = "{{ messages }}"
    others = [two, make_tokenizer(t5="five"), make_tokenizer(eos=3)]
    assert len({tokenizer_hash(t) for t in [one, *others]}) == 4


# --- loading -----------------------------------------------------------------------------------


def test_load_model_and_tokenizer(tmp_path):
    model = build("llama")
    model.save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path))
    assert weight_hash(loaded) == weight_hash(model)
    assert not loaded.training
    assert {
        p.dtype for p in load_model(tmp_path, dtype=torch.bfloat16, device="cpu").parameters()
    } == {torch.bfloat16}
    assert tokenizer_hash(load_tokenizer(tmp_path)) == tokenizer_hash(load_tokenizer(str(tmp_path)))
    assert shared_vocabulary(load_tokenizer(tmp_path), make_tokenizer()) == VOCAB


def test_pickled_weights_are_refused(tmp_path):
    model = build("llama")
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"only pickled weights \(pytorch_model.bin\)"):
        load_model(tmp_path)


def test_missing_things_are_named(tmp_path):
    with pytest.raises(ModelError, match=r"no config\.json"):
        load_model(tmp_path)
    build("llama").config.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"no \*.safetensors file"):
        load_model(tmp_path)
    with pytest.raises(ModelError, match="the tokenizer does not load"):
        load_tokenizer(tmp_path)
    (tmp_path / "file.txt").write_text("")
    for name, reason in [
        (tmp_path / "gone", "no such file or directory"),
        ("./gone", "no such file or directory"),
        ("a/b/c", "no such file or directory"),
        (str(tmp_path / "file.txt"), "not a model"),
        (tmp_path / "gone.gguf", "no such file; expected a GGUF model"),
    ]:
        with pytest.raises(OPDProbeError, match=reason) as caught:
            load_model(name)
        assert str(name) in str(caught.value)


def test_unreachable_hub_id(monkeypatch):
    def unreachable(name, **kwargs):
        raise OSError(f"{name} is not a local folder and is not a valid model identifier")

    for loader in ("AutoConfig", "AutoModelForCausalLM"):
        monkeypatch.setattr(f"transformers.{loader}.from_pretrained", unreachable)
    with pytest.raises(ModelError, match="owner/name: the model does not load"):
        load_model("owner/name")


def test_torn_weights(tmp_path):
    build("llama").save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelError, match="the model does not load"):
        load_model(tmp_path)


@pytest.mark.parametrize("name", [7, [1], None])
def test_an_architecture_that_is_not_a_name_is_ignored_or_refused(tmp_path, name):
    model = build("llama")
    model.save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"architectures": name}))
    with contextlib.suppress(ModelError):  # raised by versions of transformers that read it
        assert weight_hash(load_model(tmp_path)) == weight_hash(model)


def test_incomplete_weights(tmp_path):
    model = build("llama")
    state = model.state_dict()
    del state["lm_head.weight"]
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(ModelError, match=r"1 of the weights .* the first is lm_head.weight"):
        load_model(tmp_path)


def test_tokenizer_without_a_model(tmp_path):
    make_tokenizer().save_pretrained(tmp_path)
    assert shared_vocabulary(load_tokenizer(tmp_path), make_tokenizer()) == VOCAB


def test_gguf_package_missing(tmp_path, monkeypatch):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    monkeypatch.setitem(sys.modules, "gguf", None)
    for load in (load_model, load_tokenizer):
        with pytest.raises(ModelError, match=r"pip install 'opdprobe\[gguf\]'"):
            load(tmp_path / "model.gguf")


def test_torn_gguf(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match="does not load"):
        load_model(tmp_path / "model.gguf")


@pytest.mark.real_model
@pytest.mark.skipif("OPDPROBE_SMOLLM2" not in os.environ, reason="set OPDPROBE_SMOLLM2")
def test_smollm2(tmp_path, caplog):
    (path,) = Path(os.environ["OPDPROBE_SMOLLM2"]).glob("*.gguf")
    teacher, tokenizer = load_model(path), load_tokenizer(path)
    width = shared_width(teacher, teacher, tokenizer)
    assert width == shared_vocabulary(tokenizer, tokenizer) == 49152
    body, head = split_head(teacher, width=width)
    assert head.projection is not None
    ids = torch.tensor([tokenizer("The capital of France is").input_ids])
    logits = head(body(input_ids=ids).last_hidden_state)
    torch.testing.assert_close(logits, teacher(input_ids=ids).logits)
    assert tokenizer.decode(logits[0, -1].argmax()) == " Paris"
    student = drop_layers(teacher, range(14, 16))
    student.save_pretrained(tmp_path)
    assert weight_hash(load_model(tmp_path)) == weight_hash(student)
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING and r.name == "opdprobe"]
