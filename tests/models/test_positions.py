"""Models with a table of positions are not run past its end."""

import pytest
import torch
from transformers import (
    BioGptConfig,
    BioGptForCausalLM,
    DogeConfig,
    DogeForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTJConfig,
    GPTJForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    RobertaConfig,
    RobertaForCausalLM,
)

from opdprobe.errors import ModelError, PromptError
from opdprobe.models.head import split_head
from opdprobe.models.positions import position_limit
from opdprobe.rollout.once import probe
from opdprobe.rollout.pair import Pair
from opdprobe.rollout.prompts import EncodedPrompt, Prompt
from opdprobe.rollout.sample import sample
from opdprobe.testing import tiny_model, tiny_tokenizer

LIMIT, PROMPT = 16, [7, 8, 9, 10, 11]
BERT_LIKE = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
GPT_LIKE = {"vocab_size": 64, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": LIMIT}
IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
TABLES = {
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**GPT_LIKE, **IDS)),
    "gptj": lambda: GPTJForCausalLM(GPTJConfig(**GPT_LIKE, **IDS, rotary_dim=4)),
    "opt": lambda: OPTForCausalLM(
        OPTConfig(
            **BERT_LIKE,
            **IDS,
            ffn_dim=16,
            word_embed_proj_dim=16,
            max_position_embeddings=LIMIT,
        )
    ),
    "biogpt": lambda: BioGptForCausalLM(
        BioGptConfig(**BERT_LIKE, **IDS, intermediate_size=16, max_position_embeddings=LIMIT)
    ),
}


def sampled(model, length):
    return sample(model, [PROMPT], max_completion_length=length, eos_ids=[], pad_id=0)


@pytest.mark.parametrize("family", TABLES)
def test_the_limit_is_where_the_model_itself_fails(family):
    torch.manual_seed(0)
    model = TABLES[family]().eval()
    assert position_limit(model) == LIMIT
    model(input_ids=torch.ones(1, LIMIT, dtype=torch.long))
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.ones(1, LIMIT + 1, dtype=torch.long))
    longest = LIMIT - len(PROMPT) + 1  # the last token is not fed
    assert sampled(model, longest).n_tokens == longest
    with pytest.raises(
        ModelError, match=r"16 positions, .* 5 tokens .* 13 needs 17: lower .* to 12"
    ):
        sampled(model, longest + 1)


@pytest.mark.parametrize("length", [1, 7])
def test_a_short_table_is_split_into_body_and_head(length):
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(**{**GPT_LIKE, **IDS, "n_positions": length})).eval()
    body, head = split_head(model)
    ids = torch.arange(1, length + 1)[None]
    found = head(body(input_ids=ids).last_hidden_state)
    torch.testing.assert_close(found, model(input_ids=ids).logits)


def test_a_prompt_beyond_the_table():
    with pytest.raises(ModelError, match="16 positions, but a prompt has 17 tokens: leave out"):
        sample(TABLES["gpt2"](), [PROMPT, [7] * 17], max_completion_length=1, eos_ids=[], pad_id=0)


def test_other_models_have_no_limit():
    assert position_limit(tiny_model()) is None


def test_the_teachers_limit_counts_before_sampling(monkeypatch):
    monkeypatch.setattr(
        "opdprobe.rollout.once.sample_in_parts", lambda *_, **__: pytest.fail("sampled")
    )
    pair = Pair(tiny_model(), TABLES["opt"]().eval(), tiny_tokenizer())
    with pytest.raises(ModelError, match=r"OPTForCausalLM has a table of 16 positions"):
        probe(
            pair,
            [EncodedPrompt(Prompt("a", text="1"), tuple(PROMPT))],
            num_generations=1,
            max_completion_length=13,
        )


def roberta():
    config = RobertaConfig(
        **BERT_LIKE, **IDS, intermediate_size=16, max_position_embeddings=LIMIT, is_decoder=True
    )
    return RobertaForCausalLM(config).eval()


def test_positions_that_begin_behind_that_of_padding():
    model = roberta()
    limit = LIMIT - 1 - IDS["pad_token_id"]
    assert position_limit(model) == limit
    model(input_ids=torch.full((1, limit), 7))
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.full((1, limit + 1), 7))
    assert sampled(model, limit - len(PROMPT) + 1).n_tokens == limit - len(PROMPT) + 1


@pytest.mark.parametrize("family", [tiny_model, *TABLES.values()])
def test_a_token_without_an_embedding_is_refused_with_its_prompt(family):
    model = family().eval()
    assert sample(model, [PROMPT, [63]], max_completion_length=1, eos_ids=[], pad_id=0).n_tokens
    with pytest.raises(PromptError, match=r"prompt 1 has token 64, but .* the ids 0 to 63 only"):
        sample(model, [PROMPT, [7, 64, 8]], max_completion_length=1, eos_ids=[], pad_id=0)


def test_the_teachers_embeddings_count_before_sampling(monkeypatch):
    monkeypatch.setattr(
        "opdprobe.rollout.once.sample_in_parts", lambda *_, **__: pytest.fail("sampled")
    )
    pair = Pair(tiny_model(80), tiny_model(), tiny_tokenizer())
    with pytest.raises(PromptError, match="prompt 0 has token 70"):
        probe(pair, [EncodedPrompt(Prompt("a", text="1"), (70,))], max_completion_length=2)


def test_attention_that_leaves_something_to_chance_is_used_below_its_length():
    config = DogeConfig(**BERT_LIKE, intermediate_size=16, keep_window_size=LIMIT)
    model = DogeForCausalLM(config).eval()
    longest = LIMIT - len(PROMPT) + 1
    assert sampled(model, longest).n_tokens == longest
    with pytest.raises(ModelError, match=r"by chance in texts of more than 16, .* needs 17"):
        sampled(model, longest + 1)
