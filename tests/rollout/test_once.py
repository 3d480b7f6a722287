"""`probe` gives what the trainer would record, and changes nothing."""

import numpy as np
import pytest
import torch

from opdprobe import OPDConfig, OPDTrainer, Prompt, validate
from opdprobe.errors import ConfigError
from opdprobe.models.load import weight_hash
from opdprobe.rollout.once import probe
from opdprobe.rollout.pair import Pair
from opdprobe.rollout.prompts import encode_prompts
from opdprobe.testing import tiny_model, tiny_tokenizer

PROMPTS = [Prompt("a", text="7 8"), Prompt("b", text="9"), Prompt("c", text="10 11 12 13")]


def models():
    student, teacher = tiny_model(seed=0), tiny_model(seed=1)
    for model in (student, teacher):
        model.lm_head.weight.data *= 20
    return student, teacher


def look(pair, **settings):
    encoded = encode_prompts(pair.tokenizer, PROMPTS)
    return probe(
        pair, encoded, **{"num_generations": 2, "k": 4, "max_completion_length": 5} | settings
    )


@pytest.fixture
def pair():
    return Pair(*models(), tiny_tokenizer())


def test_nothing_is_changed(pair):
    pair.student.train()
    hashes = weight_hash(pair.student), weight_hash(pair.teacher)
    random_state = torch.get_rng_state()
    look(pair)
    assert (weight_hash(pair.student), weight_hash(pair.teacher)) == hashes
    assert torch.equal(torch.get_rng_state(), random_state)
    assert pair.student.training
    assert all(p.grad is None and p.requires_grad for p in pair.student.parameters())


def test_the_result_is_a_valid_step(pair):
    ds = look(pair, step=3, grader=lambda response, prompt: float(prompt.id == "b"))
    validate(ds)
    assert set(ds.step.values) == {3}
    assert ds.prompt_id.values.tolist() == ["a", "a", "b", "b", "c", "c"]
    assert ds.correct.values.tolist() == [0, 0, 1, 1, 0, 0]
    assert look(pair).correct.isnull().all()


def test_the_seed_and_the_step_decide(pair):
    assert look(pair, seed=1).identical(look(pair, seed=1))
    for other in ({"seed": 2}, {"seed": 1, "step": 1}):
        assert not np.array_equal(look(pair, seed=1).response_ids, look(pair, **other).response_ids)


def test_the_rollouts_do_not_depend_on_the_teacher(pair):
    other = Pair(pair.student, tiny_model(seed=7), pair.tokenizer)
    a, b = look(pair), look(other)
    np.testing.assert_array_equal(a.response_ids, b.response_ids)
    np.testing.assert_array_equal(a.entropy.sel(model="student"), b.entropy.sel(model="student"))
    assert (a.reverse_kl != b.reverse_kl).any()


def test_micro_batches_change_nothing(pair):
    whole, cut = look(pair), look(pair, micro_batch_tokens=1)
    np.testing.assert_array_equal(whole.token_id, cut.token_id)
    np.testing.assert_allclose(whole.logp, cut.logp, atol=1e-5)


def test_it_sees_what_the_trainer_records(tmp_path):
    student, teacher = models()
    settings = {"k": 4, "num_generations": 2, "max_completion_length": 5, "max_steps": 1, "seed": 5}
    trainer = OPDTrainer(
        student,
        teacher,
        tokenizer=tiny_tokenizer(),
        prompts=PROMPTS,
        config=OPDConfig(**settings, temperature=0.8),
        run_dir=tmp_path,
    )
    prompts = trainer._prompts_at(0)
    want = trainer.train().load(0)
    got = probe(
        Pair(*models(), tiny_tokenizer()),
        prompts,
        num_generations=2,
        k=4,
        max_completion_length=5,
        temperature=0.8,
        seed=5,
    )
    np.testing.assert_allclose(got.logp, want.logp, rtol=2**-13)  # the store's rounding
    assert got.drop_vars("logp").equals(want.drop_vars("logp"))


def test_dropout_is_off_and_draws_no_random_numbers(pair):
    for layer in pair.student.model.layers:
        layer.self_attn.attention_dropout = 0.5
    want = look(pair)
    pair.student.train()
    random_state = torch.get_rng_state()
    assert look(pair).identical(want)
    assert torch.equal(torch.get_rng_state(), random_state)


def test_an_unfinished_rollout_is_wrong_unless_it_is_to_be_graded(pair):
    settings = {"num_generations": 8, "max_completion_length": 3, "grader": lambda *_: 1.0}
    ds = look(pair, **settings)
    assert not ds["finished"].values.all()
    np.testing.assert_array_equal(ds["correct"], ds["finished"])
    assert (look(pair, unfinished="graded", **settings)["correct"] == 1).all()
    with pytest.raises(ConfigError, match="unfinished = 'right'; expected 'wrong' or 'graded'"):
        look(pair, unfinished="right", **settings)
