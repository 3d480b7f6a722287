"""The refitted readout: against the divergence by definition, and on teachers of known make."""

import numpy as np
import pytest
import torch

from opdprobe import Prompt
from opdprobe.models.load import weight_hash
from opdprobe.preflight.estimates import share_removed
from opdprobe.preflight.measure import recorded, sampled
from opdprobe.preflight.readout import Readout, States, fit_readout, reading_out, readouts
from opdprobe.preflight.workers import Alone
from opdprobe.rollout.continuation import Sampling
from opdprobe.rollout.pair import Pair
from opdprobe.rollout.prompts import encode_prompts
from opdprobe.testing import tiny_model, tiny_tokenizer

pytestmark = pytest.mark.slow

TOKENIZER = tiny_tokenizer()
PROMPTS = [Prompt(str(i), text=f"{i} {i + 1}") for i in range(8)]


def sharp(seed):
    model = tiny_model(seed=seed)
    model.lm_head.weight.data *= 20
    return model


def at_states_of(pair, n_hidden=10_000):
    prompts = encode_prompts(TOKENIZER, PROMPTS)
    work = Alone(pair)
    rollouts = sampled(work, pair, prompts, Sampling(12, width=pair.width), 8)()
    own = [PROMPTS[i] for i in rollouts.prompt_index]
    found = recorded(
        *(work, pair, rollouts, own, None),
        k=8, temperature=1.0, micro_batch_tokens=512, n_hidden=n_hidden,
    )  # fmt: skip
    return rollouts, *found


def turned(model):
    """A teacher whose habits differ: the same states, read out otherwise."""
    torch.manual_seed(0)
    weight = model.lm_head.weight
    dim = weight.shape[1]
    weight.data = weight.data @ (torch.eye(dim) + 0.3 * torch.randn(dim, dim) / dim**0.5)
    return model


@pytest.fixture
def pair():
    return Pair(sharp(0), turned(sharp(0)), TOKENIZER)


def test_hidden_states_are_those_of_the_states(pair):
    rollouts, step, states = at_states_of(pair)
    assert len(states.hidden) == step.sizes["state"]
    np.testing.assert_array_equal(states.tokens, np.unique(step["token_id"]))
    of_prompt = np.bincount(np.repeat(rollouts.prompt_index, step["length"].values))
    np.testing.assert_array_equal(np.bincount(states.prompt), of_prompt)
    with torch.no_grad():
        ids = torch.tensor([rollouts.prompt_ids[0] + rollouts.response_ids[0]])
        output = pair.student.model(input_ids=ids).last_hidden_state[0]
    own = states.hidden[states.prompt == rollouts.prompt_index[0]]
    first = output[len(rollouts.prompt_ids[0]) - 1]
    assert (own - first).abs().amax(-1).min() < 1e-5


def test_no_more_states_are_kept_than_asked_for(pair):
    _, step, states = at_states_of(pair, n_hidden=100)
    assert 60 < len(states.hidden) < 140 < step.sizes["state"]
    assert len(states.hidden) == len(states.teacher_hidden) == len(states.prompt)


def test_the_divergence_is_that_of_the_definition(pair):
    _, _, states = at_states_of(pair)
    fitted = fit_readout(pair, states, np.arange(8) < 4)
    assert np.isnan(fitted.before).tolist() == [True] * 4 + [False] * 4
    mine = states.prompt == 5
    for readout, got in ((lambda h: h, fitted.before), (fitted, fitted.after)):
        with torch.no_grad():
            p = pair.student.lm_head(readout(states.hidden[mine]))[:, states.tokens].log_softmax(-1)
            q = pair.teacher.lm_head(states.teacher_hidden[mine])[:, states.tokens].log_softmax(-1)
        assert got[5] == pytest.approx((p.exp() * (p - q)).sum(-1).mean().item(), rel=0.01)


def test_what_can_be_read_out_otherwise_is_learnt(pair):
    hashes = weight_hash(pair.student), weight_hash(pair.teacher)
    _, _, states = at_states_of(pair)
    fitted, learnt = readouts(pair, states, 8, temperature=1.0, seed=0)
    assert all(readout.moved for readout in fitted)
    assert learnt.value > 0.3
    assert np.isnan(learnt.low)  # of too few prompts
    assert (weight_hash(pair.student), weight_hash(pair.teacher)) == hashes
    assert all(p.grad is None for p in pair.student.parameters())


def test_what_prompts_do_not_share_is_not_learnt(pair):
    _, _, states = at_states_of(pair)
    # A teacher that says something else at every state: nothing carries over.
    torch.manual_seed(1)
    noise = torch.randn_like(states.hidden)
    same = Pair(sharp(0), sharp(0), TOKENIZER)
    other = States(states.hidden, states.hidden + 0.3 * noise, states.tokens, states.prompt)
    assert readouts(same, other, 8, temperature=1.0, seed=0)[1].value < 0.1
    alike = States(states.hidden, states.hidden, states.tokens, states.prompt)
    fitted, learnt = readouts(same, alike, 8, temperature=1.0, seed=0)
    assert not any(readout.moved for readout in fitted)
    assert np.isnan(learnt.value)


def test_the_student_speaks_through_it_and_is_given_back(pair):
    dim = pair.student.config.hidden_size
    ids = torch.tensor([[5, 6, 7]])
    before = pair.student(ids).logits
    readout = Readout(torch.eye(dim), torch.zeros(dim), 1.0, np.zeros(1), np.zeros(1))  # h + h
    with reading_out(pair.student, readout):
        torch.testing.assert_close(pair.student(ids).logits, 2 * before)
    assert torch.equal(pair.student(ids).logits, before)
    with pytest.raises(RuntimeError, match="stop"), reading_out(pair.student, readout):
        raise RuntimeError("stop")
    assert torch.equal(pair.student(ids).logits, before)


def test_the_map_is_relative_to_the_hidden_states_size():
    weight, bias = torch.tensor([[0.0, 1.0], [0.0, 0.0]]), torch.tensor([0.5, 0.0])
    readout = Readout(weight, bias, 4.0, np.zeros(1), np.zeros(1))
    assert readout(torch.tensor([1.0, 3.0])).tolist() == [1 + 3 + 4 * 0.5, 3]
    assert readout.moved
    assert not Readout(0 * weight, 0 * bias, 4.0, np.zeros(1), np.zeros(1)).moved


def test_one_prompt_has_no_other_half(pair):
    _, _, states = at_states_of(pair)
    one = states.prompt == 3
    few = States(states.hidden[one], states.teacher_hidden[one], states.tokens, states.prompt[one])
    fitted, learnt = readouts(pair, few, 8, temperature=1.0, seed=0)
    assert fitted == []
    assert np.isnan(learnt.value)


def test_the_share_that_is_gone():
    before, after = np.array([1.0, 3.0, np.nan]), np.array([1.0, 1.0, np.nan])
    found = share_removed(before, after)
    assert found.value == 0.5
    assert np.isnan([found.low, found.high]).all()  # two prompts
    before = np.linspace(1, 2, 64)
    found = share_removed(before, before * np.tile([0.4, 0.6], 32))
    assert found.value == pytest.approx(0.5, abs=0.01)
    assert 0.45 < found.low < found.value < found.high < 0.55
    assert np.isnan(share_removed(np.zeros(3), np.zeros(3)).value)
