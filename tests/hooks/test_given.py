"""Rollouts that exist already give the run that sampling them would have given."""

import numpy as np
import pytest
import xarray as xr

import opdprobe
from opdprobe import OPDConfig, OPDTrainer, Prompt, Rollout
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


def rollouts_of(ds, step):
    """The rows of a recorded step, from its tables alone."""
    ends = np.cumsum(ds.length.values), np.cumsum(ds.prompt_length.values)
    for i in range(ds.sizes["rollout"]):
        yield Rollout(
            step,
            str(ds.prompt_id.values[i]),
            ds.prompt_ids.values[ends[1][i] - ds.prompt_length.values[i] : ends[1][i]],
            ds.response_ids.values[ends[0][i] - ds.length.values[i] : ends[0][i]],
            finished=bool(ds.finished.values[i]),
            correct=float(ds.correct.values[i]),
        )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Three steps that a trainer sampled and scored, with a student that stays as it is."""
    student, teacher = models()
    config = OPDConfig(
        k=4, num_generations=2, max_completion_length=6, max_steps=3, seed=5, learning_rate=1e-30
    )
    trainer = OPDTrainer(
        student,
        teacher,
        tokenizer=tiny_tokenizer(),
        prompts=PROMPTS,
        config=config,
        run_dir=tmp_path_factory.mktemp("trained") / "run",
        grader=lambda response, prompt: float(len(response.split()) % 2),
    )
    return trainer.train()


def scored(rows, run_dir, **settings):
    given = {"tokenizer": tiny_tokenizer(), "k": 4} | settings
    return opdprobe.score_rollouts(*models(), rows, run_dir, **given)


def test_a_trainers_rollouts_give_its_store_bit_for_bit(trained, tmp_path):
    rows = [row for step in trained.steps for row in rollouts_of(trained.load(step), step)]
    run = scored(rows, tmp_path / "run")
    assert run.steps == trained.steps == [0, 1, 2]
    for step in run.steps:
        xr.testing.assert_identical(run.load(step), trained.load(step))
        assert run.files[step][0].read_bytes() == trained.files[step][0].read_bytes()
    names = set(run.metrics.data_vars)
    assert {"overlap_ratio", "student_stop_token_mass", "correct"} <= names
    xr.testing.assert_identical(run.metrics, trained.metrics[sorted(names)][list(run.metrics)])


def test_sampling_and_scoring_is_probing(tmp_path):
    student, teacher = models()
    tokenizer = tiny_tokenizer()
    settings = {"num_generations": 2, "max_completion_length": 5, "temperature": 0.8, "seed": 3}
    rows = opdprobe.sample(student, PROMPTS, step=7, tokenizer=tokenizer, **settings)
    assert [row.prompt_id for row in rows] == ["a", "a", "b", "b", "c", "c"]
    run = scored(rows, tmp_path / "run", temperature=0.8)
    encoded = encode_prompts(tokenizer, PROMPTS)
    want = probe(Pair(student, teacher, tokenizer), encoded, step=7, k=4, **settings)
    got = run.load(7)
    np.testing.assert_allclose(got.logp, want.logp, rtol=2**-13)  # the store's rounding
    assert got.drop_vars("logp").equals(want.drop_vars("logp"))
