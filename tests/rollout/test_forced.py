"""Forced tokens: what follows equals a loop that picks the most probable token."""

import numpy as np
import pytest
import torch

from opdprobe import ConfigError, Prompt
from opdprobe.preflight.measure import rollout_dataset
from opdprobe.rollout.continuation import Sampling
from opdprobe.rollout.forced import forced_success
from opdprobe.rollout.sample import sample
from opdprobe.testing import tiny_model, tiny_tokenizer

PROMPTS = [Prompt("a", text="7 8"), Prompt("b", text="9")]
TOKENIZER = tiny_tokenizer()
EOS = TOKENIZER.eos_token_id
LENGTH = 8
GREEDY = Sampling(LENGTH, temperature=0, unfinished="graded")


@pytest.fixture(scope="module")
def model():
    found = tiny_model(seed=0)
    found.lm_head.weight.data *= 20
    return found


@pytest.fixture(scope="module")
def step(model):
    ids = [TOKENIZER(p.text).input_ids for p in PROMPTS]
    settings = {"eos_ids": [EOS], "pad_id": 0, "temperature": 0}
    rollouts = sample(model, ids, max_completion_length=LENGTH, **settings)
    found = rollout_dataset(rollouts, PROMPTS)
    lengths = found["length"].values
    return found.assign_coords(
        rollout=("state", np.repeat(np.arange(2), lengths)),
        position=("state", np.concatenate([np.arange(n) for n in lengths])),
    )


def text_score(text, prompt):
    """A number that tells texts apart."""
    return float(sum(i * ord(c) for i, c in enumerate(text, 1)) % 9973)


@torch.no_grad()
def test_a_forced_token_takes_the_drawn_ones_place(model, step):
    lengths = step["length"].values
    states = [2, int(lengths[0])]  # third token of the first response, first of the second
    tokens = [[3, EOS, 11], [5, 12, EOS]]
    found = forced_success(
        step, model, TOKENIZER, PROMPTS, text_score, GREEDY, states=states, tokens=tokens, n=2
    )
    assert found.shape == (2, 3, 2)
    starts = np.cumsum([0, *lengths])
    for i, (rollout, position) in enumerate(((0, 2), (1, 0))):
        before = step["response_ids"].values[starts[rollout] :][:position].tolist()
        start = TOKENIZER(PROMPTS[rollout].text).input_ids
        for j, token in enumerate(tokens[i]):
            whole = [*before, token]
            while whole[-1] != EOS and len(whole) < LENGTH:
                whole.append(int(model(torch.tensor([start + whole])).logits[0, -1].argmax()))
            text = TOKENIZER.decode(whole, skip_special_tokens=True)
            assert found[i, j].tolist() == [text_score(text, None)] * 2


@pytest.mark.parametrize(
    ("states", "n", "message"),
    [([], 1, "0 states, n = 1"), ([0], 0, "1 states, n = 0"), ([7], 1, "1 states are at the end")],
)
def test_what_cannot_be_forced_is_refused(model, step, states, n, message):
    late = step.assign_coords(position=("state", [LENGTH - 1] * step.sizes["state"]))
    with pytest.raises(ConfigError, match=message):
        forced_success(
            late, model, TOKENIZER, PROMPTS, text_score, GREEDY, states=states,
            tokens=[[3]] * len(states), n=n,
        )  # fmt: skip
