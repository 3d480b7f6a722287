"""Sampling: the distribution of the draws, and their independence of the batch."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MptConfig,
    MptForCausalLM,
)

from opdprobe import NonFiniteError
from opdprobe.models.vocabulary import eos_ids, padding_id
from opdprobe.rollout import decode
from opdprobe.rollout import sample as rollout
from opdprobe.rollout.decode import left_pad
from opdprobe.rollout.exact import decoding_of
from opdprobe.rollout.sample import Rollouts, draw, sample, step_generator
from opdprobe.testing import tiny_model, tiny_tokenizer

PROMPTS = [[7], [9, 30, 8, 21, 60], [11, 12, 13]]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def target(logits, temperature, top_p):
    """Compute the distribution by definition: the fewest top tokens whose mass reaches top_p."""
    weights = np.exp(np.asarray(logits) / temperature)
    p = weights / weights.sum()
    kept, mass = [], 0.0
    for token in np.argsort(-p):
        if mass >= top_p:
            break
        kept.append(token)
        mass += p[token]
    out = np.zeros_like(p)
    out[kept] = p[kept] / p[kept].sum()
    return out


@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("top_p", [1.0, 0.75, 0.1])
def test_draw_follows_the_distribution(temperature, top_p):
    logits = [0.3, -torch.inf, 1.0, -1.0, 0.0, 2.0, 1.5, -torch.inf]
    rows = torch.tensor(logits).expand(20_000, -1)
    u = torch.rand(len(rows), generator=generator())
    tokens = draw(rows, u, temperature=temperature, top_p=top_p)
    counts = np.bincount(tokens, minlength=len(logits))
    p = target(logits, temperature, top_p)
    # Four standard deviations of each count; none where a token cannot be drawn.
    assert (np.abs(counts - len(rows) * p) <= 4 * np.sqrt(len(rows) * p * (1 - p)) + 1e-6).all()


@given(st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=9), st.floats(0, 0.99))
def test_temperature_zero_takes_the_most_probable(logits, u):
    rows = torch.tensor([logits])
    token = draw(rows, torch.tensor([u]), temperature=0, top_p=0.5)
    assert token.tolist() == [rows.argmax()]


@pytest.mark.parametrize("u", [0.0, 1 - 2**-24, 1.0])
@pytest.mark.parametrize("top_p", [1.0, 0.9])
@pytest.mark.parametrize("width", [1000, 5000])  # one running sum, and piles
def test_extreme_random_numbers_draw_no_impossible_token(u, top_p, width):
    logits = torch.full((1, width), -torch.inf)
    logits[0, 10 : width - 10] = torch.linspace(0, 1, width - 20)
    token = draw(logits, torch.tensor([u]), top_p=top_p)
    assert 10 <= token.item() < width - 10


@pytest.mark.parametrize("width", [1, 33, 1023, 1024, 3001])  # one running sum, and piles
def test_every_token_has_an_interval_of_its_probability(width):
    p = torch.randn(width, generator=generator()).softmax(0)
    n = 50_000
    u = (torch.arange(n) + 0.5) / n
    tokens = torch.cat([draw(p.log().expand(len(part), -1), part) for part in u.split(1000)])
    counts = torch.bincount(tokens, minlength=width)
    # Evenly spaced numbers hit an interval as often as is due, within one; the rest is rounding.
    torch.testing.assert_close(counts / n, p, rtol=0, atol=1.2 / n)


@pytest.mark.parametrize("temperature", [0, 1.0])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_row_that_is_not_finite_draws_no_token(temperature, bad):
    logits = torch.zeros(3, 8)
    logits[1, 2] = bad
    tokens = draw(logits, torch.full((3,), 0.5), temperature=temperature)
    assert (tokens < 0).tolist() == [False, True, False]


def test_what_a_rollout_draws_does_not_depend_on_when_others_end():
    model = tiny_model(64)
    ask = dict(num_generations=3, max_completion_length=12, pad_id=0)
    whole = sample(model, [[5, 6], [7, 8]], eos_ids=[], generator=generator(), **ask)
    cut = sample(model, [[5, 6], [7, 8]], eos_ids=range(32), generator=generator(), **ask)
    assert 0 < sum(map(len, cut.response_ids)) < sum(map(len, whole.response_ids))
    for long, short in zip(whole.response_ids, cut.response_ids, strict=True):
        assert long[: len(short)] == short


def test_left_pad():
    ids, mask = left_pad([[5, 6, 7], [8]], pad_id=3)
    assert ids.tolist() == [[5, 6, 7], [3, 3, 8]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]


def seeded(model_class, config):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return model_class(config).eval()


def gpt2():
    """Make a model with learnt absolute positions; relative ones would hide a shift by padding."""
    config = GPT2Config(
        vocab_size=64,
        n_embd=16,
        n_layer=2,
        n_head=2,
        n_positions=64,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=2,
    )
    return seeded(GPT2LMHeadModel, config)


def windowed():
    """Make a model with a sliding window, which counts padding."""
    config = MistralConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        sliding_window=6,
        initializer_range=0.3,
    )
    return seeded(MistralForCausalLM, config)


def mpt():
    """Make a model that counts columns rather than positions."""
    config = MptConfig(
        d_model=16,
        n_heads=2,
        n_layers=2,
        expansion_ratio=2,
        max_seq_len=64,
        vocab_size=64,
        initializer_range=0.3,
    )
    return seeded(MptForCausalLM, config)


BEGINNING = [17, 40, 3, 51, 29, 6, 33]


@pytest.mark.parametrize("prompts", [PROMPTS, [BEGINNING + p for p in ([], *PROMPTS)]])
@pytest.mark.parametrize(
    ("make_model", "eos"),
    [
        (lambda: tiny_model(seed=3), [5, 44, 58]),
        (gpt2, [21, 22, 57]),
        (windowed, [13, 50]),
        (mpt, [51]),
    ],
)
def test_greedy_rollouts_equal_generate_row_by_row(make_model, eos, prompts, monkeypatch):
    monkeypatch.setattr(decode, "_LEAST_SPARED", 1)
    model = make_model()
    got = sample(
        model,
        prompts,
        num_generations=2,
        max_completion_length=12,
        eos_ids=eos,
        pad_id=0,
        temperature=0,
        top_p=1.0,
    )
    want = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=12,
            eos_token_id=eos,
            pad_token_id=0,
        )
        want += [out[0, len(prompt) :].tolist()] * 2
    assert got.response_ids == want
    assert got.finished == [response[-1] in eos for response in want]
    assert len({len(response) for response in want}) > 1, "no row left the batch early"


@pytest.mark.parametrize(
    ("prompts", "seen"),
    [
        ([BEGINNING + p for p in PROMPTS], [(1, 7), (3, 5)]),
        ([BEGINNING, BEGINNING], [(1, 6), (2, 1)]),
        ([BEGINNING[:2], [*BEGINNING, 9]], [(1, 2), (2, 6)]),
        ([BEGINNING], [(1, 7)]),
        ([[1, *BEGINNING], [2, *BEGINNING]], [(2, 8)]),
    ],
)
def test_the_common_beginning_of_all_prompts_is_computed_once(prompts, seen, monkeypatch):
    monkeypatch.setattr(decode, "_LEAST_SPARED", 1)
    model, shapes = tiny_model(), []
    decoding_of(model)  # the check of its first use
    model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)),
        with_kwargs=True,
    )
    sample(
        model,
        prompts,
        num_generations=2,
        max_completion_length=1,
        eos_ids=[],
        pad_id=0,
        generator=generator(),
    )
    assert shapes == seen


@pytest.mark.parametrize("beginning", [[], BEGINNING])
def test_logits_do_not_depend_on_companions(beginning, monkeypatch):
    """At every step, the logits drawn from are those of the rollout alone in a plain forward."""
    monkeypatch.setattr(decode, "_LEAST_SPARED", 1)
    model = tiny_model(seed=1)
    seen = []

    def recording_draw(logits, u, **kwargs):
        tokens = draw(logits, u, **kwargs)
        seen.append((logits, tokens))
        return tokens

    monkeypatch.setattr(rollout, "draw", recording_draw)
    got = sample(
        model,
        [beginning + prompt for prompt in PROMPTS],
        num_generations=4,
        max_completion_length=10,
        eos_ids=range(0, 64, 4),
        pad_id=0,
        generator=generator(),
    )
    assert min(len(logits) for logits, _ in seen) < 12, "no row left the batch"
    for prompt, response in zip(got.prompt_ids, got.response_ids, strict=True):
        with torch.no_grad():
            alone = model(input_ids=torch.tensor([prompt + response])).logits[0]
        for t, token in enumerate(response):
            logits, tokens = seen[t]
            error = (logits[tokens == token] - alone[len(prompt) - 1 + t]).abs().amax(1)
            assert error.min() < 1e-5


def test_layout_of_the_result():
    got = sample(
        tiny_model(),
        PROMPTS,
        num_generations=3,
        max_completion_length=4,
        eos_ids=[],
        pad_id=0,
        generator=generator(),
    )
    assert got.prompt_index == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert got.prompt_ids == [PROMPTS[i] for i in got.prompt_index]
    assert [len(r) for r in got.response_ids] == [4] * 9
    assert len(got) == 9
    assert got.n_tokens == 36
    assert not any(got.finished)


def test_a_response_ends_with_its_end_token():
    got = sample(
        tiny_model(),
        PROMPTS,
        num_generations=8,
        max_completion_length=9,
        eos_ids=range(32),
        pad_id=0,
        generator=generator(),
    )
    for response, finished in zip(got.response_ids, got.finished, strict=True):
        assert all(token >= 32 for token in response[:-1])
        assert finished == (response[-1] < 32)
        assert finished or len(response) == 9


def test_only_the_first_width_tokens_are_sampled():
    model = tiny_model(vocab_size=128)
    got = sample(
        model,
        PROMPTS,
        num_generations=20,
        max_completion_length=5,
        eos_ids=[],
        pad_id=0,
        generator=generator(),
        width=16,
    )
    assert {token for response in got.response_ids for token in response} == set(range(16))


def test_the_generator_decides_and_the_global_one_is_left_alone():
    def responses(seed):
        return sample(
            tiny_model(),
            PROMPTS,
            num_generations=2,
            max_completion_length=6,
            eos_ids=[2],
            pad_id=0,
            generator=generator(seed),
        ).response_ids

    before = torch.get_rng_state()
    assert responses(0) == responses(0)
    assert responses(0) != responses(1)
    assert torch.equal(before, torch.get_rng_state())


def test_step_generators_depend_on_seed_and_step():
    states = [
        step_generator(seed, step, "cpu").initial_seed() for seed in (0, 1) for step in (0, 1)
    ]
    assert len(set(states)) == 4
    assert step_generator(1, 1, "cpu").initial_seed() == states[3]
    named = {step_generator(1, 1, "cpu", name=name).initial_seed() for name in ("a", "b")}
    assert len(named | set(states)) == len(states) + 2


def test_each_module_keeps_its_mode():
    model = tiny_model().train()
    model.model.norm.eval()
    modes = [module.training for module in model.modules()]
    arguments = {"max_completion_length": 2, "eos_ids": [2], "pad_id": 0}
    sample(model, PROMPTS, **arguments)
    assert [module.training for module in model.modules()] == modes
    model.lm_head.weight.data.fill_(torch.nan)
    with pytest.raises(NonFiniteError):
        sample(model, PROMPTS, **arguments)
    assert [module.training for module in model.modules()] == modes


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_non_finite_logits_name_the_prompt_and_position(bad, temperature):
    model = tiny_model()
    model.lm_head.weight.data[4] = bad
    with pytest.raises(NonFiniteError, match=r"LlamaForCausalLM .* prompt 0, response position 0"):
        sample(
            model,
            PROMPTS,
            num_generations=2,
            max_completion_length=2,
            eos_ids=[2],
            pad_id=0,
            temperature=temperature,
        )


def test_padding_id_without_a_padding_token():
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = "<unk>"
    assert padding_id(tokenizer) == 3
    tokenizer.pad_token = None
    assert padding_id(tokenizer) == 0


def test_eos_ids_are_the_models_and_the_tokenizers(caplog):
    model, tokenizer = tiny_model(), tiny_tokenizer()
    model.generation_config.eos_token_id = [9, 7]
    assert eos_ids(model, tokenizer) == [2, 7, 9]
    assert not caplog.records
    model.generation_config.eos_token_id = None
    tokenizer.eos_token = None
    for _ in range(2):
        assert eos_ids(model, tokenizer) == []
    (line,) = caplog.messages
    assert "LlamaForCausalLM: no end-of-sequence token, neither in its generation settings" in line
    eos_ids(tiny_model(), tokenizer)  # has settings of its own
    assert len(caplog.records) == 1


def test_no_rollouts():
    assert Rollouts([], [], [], []).n_tokens == 0


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "default"},
        {"rope_type": "dynamic", "factor": 2.0},
        {"rope_type": "yarn", "factor": 2.0},
        {"rope_type": "longrope", "short_factor": [1.0, 1.0], "long_factor": [2.0, 3.0]},
    ],
    ids=lambda rope: rope["rope_type"],
)
def test_a_model_that_keeps_tensors_of_its_forward_pass_can_be_trained_after_sampling(rope):
    # Dynamic RoPE replaces its frequencies in the pass that outgrows them: inference tensors then.
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=8,
        original_max_position_embeddings=8,
        rope_parameters={"rope_theta": 10_000.0, "original_max_position_embeddings": 8} | rope,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    fresh = copy.deepcopy(model)
    sample(
        model,
        [[3, 4, 5]],
        num_generations=2,
        max_completion_length=12,
        eos_ids=[],
        pad_id=0,
        generator=generator(),
    )
    for length in (4, 20):
        for one in (model, fresh):
            one.zero_grad()
            one(torch.arange(length)[None]).logits.square().sum().backward()
        for got, want in zip(model.parameters(), fresh.parameters(), strict=True):
            assert torch.equal(got.grad, want.grad)
