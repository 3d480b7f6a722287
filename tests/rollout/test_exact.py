"""The check of a model at its first use, and the slower ways of sampling."""

import logging

import pytest
import torch
import transformers
from torch import nn
from transformers import (
    BartConfig,
    BartForCausalLM,
    BertConfig,
    BertLMHeadModel,
    Lfm2Config,
    Lfm2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    OpenAIGPTConfig,
    OpenAIGPTLMHeadModel,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    XLMConfig,
    XLMWithLMHeadModel,
)

from opdprobe.errors import ModelError, NonFiniteError
from opdprobe.models.head import split_head
from opdprobe.rollout.decode import Decoding
from opdprobe.rollout.exact import check_scoring, decoding_of
from opdprobe.rollout.pair import Pair
from opdprobe.rollout.sample import sample
from opdprobe.testing import tiny_model, tiny_tokenizer

PROMPTS = [[7], [9, 30, 8, 21, 60], [11, 12, 13], [14, 15, 16]]
BERT_LIKE = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT = {
    **BERT_LIKE, "intermediate_size": 16, "num_key_value_heads": 2, "head_dim": 8,
    "initializer_range": 0.3,
}  # fmt: skip
VISION = {
    "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16,
}  # fmt: skip
IMAGE = {
    "image_token_id": 60, "video_token_id": 61, "vision_start_token_id": 62,
    "vision_end_token_id": 63,
}  # fmt: skip
WAYS = {
    "llama": (lambda: tiny_model(seed=3), Decoding.PADDED),
    "hybrid": (
        lambda: Lfm2ForCausalLM(
            Lfm2Config(
                **BERT_LIKE, intermediate_size=16, num_key_value_heads=2, initializer_range=0.3,
                layer_types=["conv", "full_attention"],
            )
        ),
        Decoding.PADDED,
    ),
    "experts": (
        lambda: Qwen3MoeForCausalLM(
            Qwen3MoeConfig(
                **BERT_LIKE, num_key_value_heads=2, head_dim=8, num_experts=8,
                num_experts_per_tok=2, moe_intermediate_size=16, intermediate_size=16,
                initializer_range=0.3,
            )
        ),
        Decoding.PADDED,
    ),
    "mamba": (
        lambda: MambaForCausalLM(
            MambaConfig(
                vocab_size=64, hidden_size=16, num_hidden_layers=2, state_size=8,
                initializer_range=0.3,
            )
        ),
        Decoding.UNPADDED,
    ),
    "positions that count padding": (
        lambda: BartForCausalLM(
            BartConfig(
                vocab_size=64, d_model=16, decoder_layers=2, decoder_attention_heads=2,
                decoder_ffn_dim=16, max_position_embeddings=64, init_std=0.3,
            )
        ),
        Decoding.UNPADDED,
    ),
    "vision, with a hybrid for text": (
        lambda: Qwen3_5ForConditionalGeneration(
            Qwen3_5Config(
                text_config=TEXT | {
                    "layer_types": ["linear_attention", "full_attention"],
                    "linear_key_head_dim": 8, "linear_value_head_dim": 8,
                    "linear_num_key_heads": 2, "linear_num_value_heads": 2,
                },
                vision_config=VISION, **IMAGE,
            )
        ),
        Decoding.PADDED,
    ),
    "vision": (
        lambda: Qwen3VLForConditionalGeneration(
            Qwen3VLConfig(
                text_config=TEXT | {
                    "rope_scaling": {"rope_type": "default", "mrope_section": [2, 1, 1]},
                },
                vision_config=VISION | {"deepstack_visual_indexes": [0]}, **IMAGE,
            )
        ),
        Decoding.PADDED,
    ),
    "no cache": (
        lambda: OpenAIGPTLMHeadModel(
            OpenAIGPTConfig(
                vocab_size=64, n_positions=64, n_embd=16, n_layer=2, n_head=2,
                initializer_range=0.3,
            )
        ),
        Decoding.RECOMPUTED,
    ),
}  # fmt: skip


def built(make):
    transformers.logging.set_verbosity_error()  # of kernels that are not installed
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make().eval()


def sampled(model, seed=0, **settings):
    settings = {"num_generations": 2, "max_completion_length": 9, "eos_ids": [5, 9, 44]} | settings
    generator = torch.Generator().manual_seed(seed)
    return sample(model, PROMPTS, pad_id=0, generator=generator, **settings)


@torch.no_grad()
def alone(model, text):
    return model(input_ids=torch.tensor([text]), use_cache=False).logits[0]


@pytest.mark.parametrize("kind", WAYS)
def test_greedy_responses_are_those_of_each_text_alone(kind):
    make, way = WAYS[kind]
    model = built(make)
    assert decoding_of(model) is way
    got = sampled(model, temperature=0.0, width=60)
    for prompt, response in zip(got.prompt_ids, got.response_ids, strict=True):
        best = alone(model, prompt + response)[len(prompt) - 1 : -1, :60].argmax(-1)
        assert response == best.tolist()


@pytest.mark.parametrize("decoding", Decoding)
def test_every_way_draws_the_same_rollouts(decoding, monkeypatch):
    """A rollout's random numbers do not depend on how the model is run, or on the part."""
    model = built(WAYS["llama"][0])
    wanted = sampled(model)
    assert len(set(map(len, wanted.response_ids))) > 1
    monkeypatch.setattr("opdprobe.rollout.sample.decoding_of", lambda *_: decoding)
    assert sampled(model) == wanted
    settings = {"num_generations": 2, "max_completion_length": 9, "eos_ids": [5, 9, 44]}
    half = sample(
        model, PROMPTS[2:], pad_id=0, generator=torch.Generator().manual_seed(0), part=(2, 4),
        **settings,
    )  # fmt: skip
    assert half.response_ids == wanted.response_ids[4:]


@pytest.mark.parametrize("kind", WAYS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_the_way_is_the_same_in_less_precision(kind, dtype):
    make, way = WAYS[kind]
    assert decoding_of(built(make).to(dtype)) is way


def test_autocast_counts():
    model = built(WAYS["llama"][0])
    with torch.autocast("cpu", torch.bfloat16):
        assert decoding_of(model) is Decoding.PADDED


def test_the_check_runs_once_and_leaves_the_random_state(caplog):
    model, passes = built(WAYS["mamba"][0]), []
    model.register_forward_hook(lambda *_: passes.append(1))
    before = torch.get_rng_state()
    with caplog.at_level(logging.WARNING, "opdprobe"):
        decoding_of(model)
        # Two texts alone; three passes with padding; without it, as many for each of two lengths.
        assert len(passes) == 2 + 3 + 6
        for _ in range(2):
            decoding_of(model)
            sampled(model)
    assert torch.equal(before, torch.get_rng_state())
    (line,) = [record.getMessage() for record in caplog.records if record.name == "opdprobe"]
    assert "MambaForCausalLM is sampled without padding" in line
    assert "padded: its logits then differ by" in line


def test_a_fast_model_takes_five_passes_and_says_nothing(caplog):
    model, passes = tiny_model(), []
    model.register_forward_hook(lambda *_: passes.append(1))
    decoding_of(model)
    assert len(passes) == 5
    decoding_of(model)
    assert len(passes) == 5
    assert not caplog.records


ENCODERS = {
    "bert": lambda: BertLMHeadModel(BertConfig(**BERT_LIKE, intermediate_size=16)),
    "xlm": lambda: XLMWithLMHeadModel(XLMConfig(vocab_size=64, emb_dim=16, n_layers=2, n_heads=2)),
}


@pytest.mark.parametrize("kind", ENCODERS)
def test_a_model_that_looks_ahead_is_refused(kind):
    model = built(ENCODERS[kind])
    with pytest.raises(ModelError, match=rf"{type(model).__name__} cannot be sampled: its logits"):
        sampled(model)
    with pytest.raises(ModelError, match=rf"{type(model).__name__} cannot be scored: its logits"):
        check_scoring(model, *split_head(model))
    for pair in ((tiny_model(), model), (model, tiny_model())):
        with pytest.raises(ModelError, match="depend on later tokens"):
            Pair(*pair, tiny_tokenizer())


class NeedsMore(nn.Module):
    """Stand for a model that text alone does not suffice for."""

    def forward(self, *_args, **_kwargs):
        raise ValueError("You must specify images")


def test_a_model_that_does_not_run_on_text_is_refused():
    model = tiny_model()
    model.model.layers[0] = NeedsMore()
    with pytest.raises(ModelError, match=r"LlamaForCausalLM does not run on a text alone \(Value"):
        sampled(model)


class Companions(nn.Module):
    """Add what the other rows of the batch hold: no way of sampling can undo that."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, *args, **kwargs):
        out = self.inner(*args, **kwargs)
        return out + out.mean(0, keepdim=True)


def test_a_model_whose_rows_are_not_independent_is_scored_row_by_row_and_not_sampled():
    model = tiny_model()
    model.model.layers[0].mlp = Companions(model.model.layers[0].mlp)
    with pytest.raises(ModelError, match="recomputed: its logits then differ"):
        sampled(model)
    body, head = split_head(model)
    with pytest.raises(ModelError, match="or on other rows"):
        check_scoring(model, body.body, head)
    assert body.alone
    check_scoring(model, body, head)


@pytest.mark.slow
def test_sampling_beyond_a_length_at_which_the_model_changes(caplog):
    """Each token is drawn after a pass over its text alone, at the text's own length."""
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10_000.0}
    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    size |= {"num_attention_heads": 2, "initializer_range": 0.35, "vocab_size": 64}
    model = LlamaForCausalLM(LlamaConfig(**size, max_position_embeddings=12, rope_parameters=rope))
    model.eval()
    settings = {"temperature": 0.0, "eos_ids": [], "pad_id": 0}
    sample(model, PROMPTS, max_completion_length=2, **settings)
    assert not caplog.messages  # no text is long enough
    model(torch.arange(1, 60)[None])  # grows the frequencies that the model keeps
    got = sample(model, PROMPTS, max_completion_length=15, **settings)
    (said,) = caplog.messages
    assert "is sampled without a cache" in said
    assert "depends on the length of the text" in said
    for prompt, response in zip(got.prompt_ids, got.response_ids, strict=True):
        for t, token in enumerate(response):
            torch.manual_seed(0)
            new = LlamaForCausalLM(model.config).eval()
            new.load_state_dict(model.state_dict())
            assert new(torch.tensor([prompt + response[:t]])).logits[0, -1].argmax() == token


def test_weights_that_are_not_finite_are_found_by_sampling():
    model = tiny_model()
    model.lm_head.weight.data[4] = torch.nan
    with pytest.raises(NonFiniteError):
        sampled(model)


def test_running_out_of_memory_is_no_reason_for_a_slower_way(monkeypatch):
    def full(*_args, **_kwargs):
        raise torch.OutOfMemoryError("no memory")

    model = tiny_model()
    monkeypatch.setattr("opdprobe.rollout.exact.prefill", full)
    with pytest.raises(torch.OutOfMemoryError):
        decoding_of(model)
