"""A state's score depends on its rollout alone: not on the micro-batch, its order or padding."""

import logging

import pytest
import torch
import transformers as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from opdprobe.models.head import split_head
from opdprobe.models.lengths import ApartBody
from opdprobe.rollout.batches import batches
from opdprobe.rollout.pair import Pair, in_rollout_order
from opdprobe.rollout.sample import Rollouts
from opdprobe.testing import tiny_tokenizer

SIZE = dict(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=2,
    initializer_range=0.35,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)
TRAINED = 16  # length up to which the ropes are as they were trained
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}
PLAIN = {"rope_type": "default", "rope_theta": 1e4}


def llama(**rope):
    return tf.LlamaForCausalLM(
        tf.LlamaConfig(
            **SIZE, max_position_embeddings=TRAINED, rope_parameters={"rope_theta": 1e4, **rope}
        )
    )


def phi3():
    rope = {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "short_factor": [1.0] * 8,
        "long_factor": [1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 9.0, 10.0],
        "factor": 8.0,
    }
    return tf.Phi3ForCausalLM(
        tf.Phi3Config(
            **SIZE,
            max_position_embeddings=8 * TRAINED,
            original_max_position_embeddings=TRAINED,
            rope_parameters=rope,
        )
    )


def gemma3():
    """Two ropes, one for each type of layer, of which one grows."""
    return tf.Gemma3ForCausalLM(
        tf.Gemma3TextConfig(
            **SIZE,
            head_dim=16,
            query_pre_attn_scalar=16,
            max_position_embeddings=TRAINED,
            sliding_window=8,
            layer_types=["sliding_attention", "full_attention"],
            rope_parameters={"sliding_attention": PLAIN, "full_attention": DYNAMIC},
        )
    )


def deepseek():
    """An indexer with two heads gives many keys the same score, 0."""
    return tf.DeepseekV32ForCausalLM(
        tf.DeepseekV32Config(
            **{**SIZE, "num_attention_heads": 4, "num_key_value_heads": 4},
            moe_intermediate_size=16,
            n_routed_experts=4,
            num_experts_per_tok=2,
            n_group=1,
            topk_group=1,
            first_k_dense_replace=1,
            kv_lora_rank=8,
            q_lora_rank=8,
            qk_rope_head_dim=8,
            qk_nope_head_dim=8,
            v_head_dim=8,
            index_topk=4,
            index_n_heads=2,
            index_head_dim=8,
        )
    )


def doge():
    return tf.DogeForCausalLM(tf.DogeConfig(**SIZE, keep_window_size=6))


def mistral():
    return tf.MistralForCausalLM(tf.MistralConfig(**SIZE, sliding_window=8))


def mixtral():
    return tf.MixtralForCausalLM(
        tf.MixtralConfig(**SIZE, num_local_experts=4, num_experts_per_tok=2)
    )


class Rounded(torch.nn.Module):
    """A layer whose inputs are rounded to 8 bits by one scale for all rows, as int8 layers do."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        scale = x.abs().max() / 127
        return self.layer((x / scale).round() * scale)


def quantised():
    model = llama()
    for layer in model.model.layers:
        layer.mlp.up_proj = Rounded(layer.mlp.up_proj)
    return model


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": TRAINED,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": TRAINED}
KINDS = {
    "default": llama,
    "linear": lambda: llama(rope_type="linear", factor=4.0),
    "yarn": lambda: llama(**YARN),
    "llama3": lambda: llama(**LLAMA3),
    "dynamic": lambda: llama(**DYNAMIC),
    "longrope": phi3,
    "per-layer": gemma3,
    "window": mistral,
    "experts": mixtral,
    "indexer": deepseek,
    "dynamic-mask": doge,
    "common-scale": quantised,
}
APART = {"dynamic", "longrope", "per-layer", "indexer", "dynamic-mask"}
ALONE = {"common-scale"}
# On both sides of the trained length, at it, and equal lengths of different texts.
LENGTHS = [(4, 8), (3, 40), (5, 12), (2, 15), (6, 14), (1, 20), (4, 17), (9, 1)]


def tokens(n, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, 60, (n,), generator=generator).tolist()


TEXTS = [(tokens(p, i), tokens(r, 100 + i)) for i, (p, r) in enumerate(LENGTHS)]


@pytest.fixture(scope="module", params=list(KINDS))
def case(request):
    """A model that has seen other texts, and each text's logits from a new copy of it."""
    torch.manual_seed(0)
    model = KINDS[request.param]().eval()
    want = []
    with torch.no_grad():
        for prompt, response in TEXTS:
            torch.manual_seed(0)
            new = KINDS[request.param]().eval()  # the same weights again
            ids = torch.tensor([prompt + response[:-1]])
            want.append(new(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 :])
        model(input_ids=torch.tensor([tokens(50, 7)]), use_cache=False)
    return request.param, model, *split_head(model), want


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    order=st.permutations(range(len(TEXTS))),
    n=st.integers(1, len(TEXTS)),
    tokens=st.integers(1, 400),
)
@pytest.mark.slow
def test_scores_are_those_of_each_text_alone(case, order, n, tokens):
    body, head, want = case[2:]
    chosen = order[:n]
    prompts, responses = zip(*(TEXTS[i] for i in chosen), strict=True)
    rollouts = Rollouts(list(prompts), list(responses), [True] * n, list(range(n)))
    found = {}
    for batch in batches(rollouts, micro_batch_tokens=tokens, pad_id=0):
        with torch.no_grad():
            logits = head(batch.hidden(body))
        found |= dict(zip(batch.state.tolist(), logits, strict=True))
    got = torch.stack([found[i] for i in range(len(found))])
    largest = float((got - torch.cat([want[i] for i in chosen])).abs().max())
    assert largest < 2e-4


def test_only_models_that_need_it_run_their_rows_apart(case):
    name, model, body, _, _ = case
    assert isinstance(body, ApartBody) == (name in APART | ALONE)
    assert getattr(body, "alone", False) == (name in ALONE)
    if name in ("dynamic", "longrope", "per-layer"):
        assert body.length_class(TRAINED) == body.length_class(1)
        assert body.length_class(TRAINED + 1) != body.length_class(TRAINED)
    if name not in APART | ALONE and name != "experts":
        assert body is model.base_model


def test_the_reason_is_said_once(caplog):
    model = KINDS["dynamic"]().eval()
    with caplog.at_level(logging.WARNING, "opdprobe"):
        split_head(model)
        split_head(model)
    said = [r.getMessage() for r in caplog.records]
    assert len(said) == 1
    assert "depends on the longest text of the batch" in said[0]


@pytest.fixture(scope="module")
def pair():
    torch.manual_seed(1)
    return Pair(KINDS["dynamic"]().eval(), KINDS["longrope"]().eval(), tiny_tokenizer())


@pytest.mark.parametrize("tokens", [1, 60, 10**6])
def test_a_pair_keeps_apart_what_either_model_would_confuse(pair, tokens):
    prompts, responses = zip(*TEXTS, strict=True)
    rollouts = Rollouts(list(prompts), list(responses), [True] * len(TEXTS), [])
    parts, shapes = [], []
    for part in pair.scored(rollouts, k=4, micro_batch_tokens=tokens):
        parts.append((part.batch.state, part.scores))
        shapes.append(part.batch.input_ids.shape)
    got = in_rollout_order(parts)
    # Within the trained length, texts share passes; beyond it, dynamic NTK has one set a length.
    if tokens == 10**6:
        inputs = [p + r - 1 for p, r in LENGTHS]
        within = sum(n <= TRAINED for n in inputs)
        beyond = {n: inputs.count(n) for n in inputs if n > TRAINED}
        assert {(rows, width) for rows, width in shapes if width > TRAINED} == {
            (rows, n) for n, rows in beyond.items()
        }
        assert sum(rows for rows, width in shapes if width <= TRAINED) == within
    one = []
    for prompt, response in TEXTS:
        single = Rollouts([prompt], [response], [True], [0])
        one += [part.scores for part in pair.scored(single, k=4)]
    want = type(got).concatenate(one)
    assert torch.equal(got.token_id, want.token_id)
    torch.testing.assert_close(got.logp, want.logp, rtol=0, atol=1e-4)
    torch.testing.assert_close(got.reverse_kl, want.reverse_kl, rtol=1e-4, atol=1e-4)


def test_gradients_do_not_depend_on_the_cut(pair):
    prompts, responses = zip(*TEXTS, strict=True)
    rollouts = Rollouts(list(prompts), list(responses), [True] * len(TEXTS), [])

    def gradient(tokens):
        pair.student.zero_grad()
        for part in pair.scored(rollouts, k=4, micro_batch_tokens=tokens):
            pair.student_head(part.hidden).log_softmax(-1)[:, 5].sum().backward()
        return pair.student.model.embed_tokens.weight.grad.clone()

    want = gradient(1)
    torch.testing.assert_close(gradient(10**6), want, rtol=0, atol=1e-5 * float(want.abs().max()))


def test_a_model_keeps_what_its_owner_has_fed_it():
    """A pass of the owner's own afterwards gives what it would have given without ours."""
    torch.manual_seed(0)
    model, ids = KINDS["dynamic"]().eval(), torch.tensor([tokens(20, 3)])
    with torch.no_grad():
        model(input_ids=torch.tensor([tokens(50, 4)]))
        before = model(input_ids=ids).logits
        body, _ = split_head(model)
        body(input_ids=torch.tensor([tokens(70, 5)]))
        torch.testing.assert_close(model(input_ids=ids).logits, before, rtol=0, atol=0)
