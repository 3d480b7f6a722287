"""Responses scored behind one pass over their prompt: against passes over each whole text."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from opdprobe.rollout import shared_prompts
from opdprobe.rollout.pair import Pair, in_rollout_order
from opdprobe.rollout.sample import Rollouts
from opdprobe.testing import tiny_model, tiny_tokenizer

CPU = torch.device("cpu")
PAIR = Pair(tiny_model(seed=0).double(), tiny_model(seed=1).double(), tiny_tokenizer())
SETTINGS = {"k": 3, "temperature": 0.7}


def rollouts_of(prompt_lengths, response_lengths, seed=0):
    """As many responses to each prompt as `response_lengths` has rows; some may be empty."""
    draw = np.random.default_rng(seed)
    prompts = [draw.integers(5, 60, n).tolist() for n in prompt_lengths]
    own = [draw.integers(5, 60, n + 2).tolist() for n in prompt_lengths]
    index = [i for i in range(len(prompts)) for _ in response_lengths[i]]
    lengths = [n for some in response_lengths for n in some]
    return Rollouts(
        [prompts[i] for i in index],
        [draw.integers(5, 60, n).tolist() for n in lengths],
        [True] * len(index),
        index,
        teacher_prompt_ids=[own[i] for i in index],
    )


@given(
    st.lists(
        st.tuples(st.integers(1, 20), st.lists(st.integers(0, 7), min_size=1, max_size=4)),
        min_size=1, max_size=3,
    ).filter(lambda drawn: any(any(lengths) for _, lengths in drawn)),
    st.integers(1, 40),
)  # fmt: skip
def test_states_are_those_of_each_whole_text(drawn, most):
    rollouts = rollouts_of([n for n, _ in drawn], [lengths for _, lengths in drawn])
    parts: list[Any] = list(
        shared_prompts.scored(PAIR, rollouts, **SETTINGS, micro_batch_tokens=most)
    )
    order = torch.cat([state for state, *_ in parts]).argsort()
    hidden, theirs = (torch.cat([part[i] for part in parts])[order] for i in (1, 2))
    for role, body, found in (
        ("student", PAIR.student_body, hidden),
        ("teacher", PAIR.teacher_body, theirs),
    ):
        read = rollouts.read_by(role)
        wanted = []
        with torch.no_grad():
            for prompt, response in zip(read.prompt_ids, read.response_ids, strict=True):
                ids = torch.tensor([[*prompt, *response]])
                states: Any = body(input_ids=ids).last_hidden_state
                wanted.append(states[0, len(prompt) - 1 : -1])
        torch.testing.assert_close(found, torch.cat(wanted), rtol=1e-10, atol=1e-10)
    usual = PAIR.scored(rollouts, **SETTINGS, micro_batch_tokens=512)
    with torch.no_grad():
        wanted = in_rollout_order([(part.batch.state, part.scores) for part in usual])
    found = in_rollout_order([(state, scores) for state, *_, scores in parts])
    assert torch.equal(found.token_id, wanted.token_id)
    for name in ("logp", "entropy", "reverse_kl", "sampled_logp", "stop_logp"):
        torch.testing.assert_close(
            getattr(found, name), getattr(wanted, name), rtol=1e-9, atol=1e-9
        )


def test_it_pays_where_it_spares_tokens():
    # A pass costs as much as 100 tokens, and each prompt takes two.
    for prompt, lengths, wanted in (
        (67, [5, 5, 5, 5], True),  # spares 3 · 67 = 201 tokens
        (66, [5, 5, 5, 5], False),
        (67, [5, 5, 5, 4], False),  # padded by one token
        (500, [9], False),  # a single response
    ):
        assert shared_prompts.pays(rollouts_of([prompt], [lengths]), CPU) is wanted
    assert not shared_prompts.pays(rollouts_of([67], [[5] * 4]), torch.device("cuda"))


def test_only_models_that_keep_the_whole_prompt():
    assert shared_prompts.is_exact(PAIR, 100)
    size: dict[str, Any] = dict(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    config = MistralConfig(vocab_size=64, num_key_value_heads=2, sliding_window=4, **size)
    window = MistralForCausalLM(config)
    assert not shared_prompts.is_exact(Pair(window, window, tiny_tokenizer()), 100)
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    stretched = LlamaForCausalLM(
        LlamaConfig(vocab_size=64, max_position_embeddings=32, rope_parameters=rope, **size)
    )
    assert not shared_prompts.is_exact(Pair(stretched, stretched, tiny_tokenizer()), 100)


def test_a_model_that_is_wrong_this_way_is_found_out():
    model = tiny_model()
    pair = Pair(model, model, tiny_tokenizer())

    def other_text(module, args, kwargs):
        if kwargs["input_ids"].shape == (2, 4):  # the responses behind the prompt
            kwargs["input_ids"] = kwargs["input_ids"] + 1
        return args, kwargs

    model.base_model.register_forward_pre_hook(other_text, with_kwargs=True)
    assert not shared_prompts.is_exact(pair, 100)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_precisions(dtype):
    pair = Pair(tiny_model(seed=0).to(dtype), tiny_model(seed=1).to(dtype), tiny_tokenizer())
    assert shared_prompts.is_exact(pair, 100)
