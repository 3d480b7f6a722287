"""Coherence of gradients against gradients that plain autograd forms one by one."""

import itertools

import numpy as np
import pytest
import torch

import opdprobe
from opdprobe import ConfigError, OPDConfig, Prompt
from opdprobe.rollout.pair import Pair
from opdprobe.rollout.sample import Rollouts
from opdprobe.testing import tiny_model, tiny_tokenizer
from opdprobe.train import coherence as module
from opdprobe.train.coherence import rollout_coherence

K = 5
CONFIG = OPDConfig(k=K, num_generations=2, max_completion_length=6, seed=3)
PROMPTS = [[5, 6, 7], [9, 8], [11, 12, 13, 14]]
RESPONSES = [[20, 21, 22], [23, 24], [25], [26, 27, 28, 29], [30, 31], [32, 33, 34]]
ROLLOUTS = Rollouts(
    prompt_ids=[PROMPTS[i // 2] for i in range(6)],
    response_ids=RESPONSES,
    finished=[False] * 6,
    prompt_index=[0, 0, 1, 1, 2, 2],
)


@pytest.fixture(scope="module")
def models():
    return tiny_model(seed=1), tiny_model(seed=2)


def pair_of(models):
    student, teacher = models
    return Pair(student, teacher, tiny_tokenizer())


@pytest.fixture(scope="module")
def gradients(models):
    """Eq. 5's gradient of every token, one row each, and the rollout of each row."""
    student, teacher = models
    rows, rollout = [], []
    for i, (prompt, response) in enumerate(
        zip(ROLLOUTS.prompt_ids, ROLLOUTS.response_ids, strict=True)
    ):
        ids = torch.tensor([prompt + response])
        for t in range(len(response)):
            place = len(prompt) - 1 + t
            z = student(ids).logits[0, place]
            with torch.no_grad():
                w = teacher(ids).logits[0, place]
            top = z.topk(K).indices
            p, q = z[top].log_softmax(-1), w[top].log_softmax(-1)
            loss = (p.exp() * (p - q)).sum()
            grads = torch.autograd.grad(loss, list(student.parameters()), allow_unused=True)
            rows.append(torch.cat([g.flatten() for g in grads]).double())
            rollout.append(i)
    return torch.stack(rows).numpy(), np.array(rollout)


def added(gradients, of):
    return np.stack([gradients[of == i].sum(0) for i in range(of.max() + 1)])


def cosine(a, b):
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def test_every_number_is_that_of_the_tokens_own_gradients(models, gradients):
    each, rollout = gradients
    found = rollout_coherence(pair_of(models), ROLLOUTS, CONFIG)
    norms = np.linalg.norm(each, axis=1)
    assert (found.n_prompts, found.n_rollouts, found.n_tokens) == (3, 6, len(each))
    assert found.token_norm == pytest.approx(norms.mean(), rel=1e-4)
    prompt = rollout // 2
    levels = {"rollout": rollout, "prompt": prompt, "all": np.zeros_like(prompt)}
    for name, of in levels.items():
        whole = np.linalg.norm(added(each, of), axis=1).sum()
        assert found.survives[name] == pytest.approx(whole / norms.sum(), rel=1e-4)
        squares = np.bincount(of, weights=norms**2)
        assert found.by_chance[name] == pytest.approx(
            np.sqrt(squares).sum() / norms.sum(), rel=1e-4
        )
    by_rollout, by_prompt = added(each, rollout), added(each, prompt)
    within = [cosine(by_rollout[2 * i], by_rollout[2 * i + 1]) for i in range(3)]
    between = [cosine(a, b) for a, b in itertools.combinations(by_prompt, 2)]
    assert found.cosine_within[0] == pytest.approx(np.mean(within), abs=1e-5)
    assert found.cosine_between[0] == pytest.approx(np.mean(between), abs=1e-5)
    assert np.isnan(found.cosine_between[1:]).all()  # three prompts are too few
    unit = by_prompt / np.linalg.norm(by_prompt, axis=1, keepdims=True)
    assert found.spectrum == pytest.approx(np.linalg.svd(unit)[1] ** 2 / 3, abs=1e-5)
    assert found.effective_directions == pytest.approx(1 / (found.spectrum**2).sum())


def test_a_projection_keeps_the_cosines(models, monkeypatch):
    pair = pair_of(models)
    exact = rollout_coherence(pair, ROLLOUTS, CONFIG)
    width = 512
    monkeypatch.setattr(module, "_WIDTH", width)
    found = rollout_coherence(pair, ROLLOUTS, CONFIG)
    assert found.token_norm == pytest.approx(exact.token_norm)
    for name in ("cosine_within", "cosine_between"):
        error = getattr(found, name)[0] - getattr(exact, name)[0]
        assert 0 < abs(error) < 4 * np.sqrt(2 / width)


def test_tokens_that_are_drawn_stand_for_all(models):
    pair = pair_of(models)
    exact = rollout_coherence(pair, ROLLOUTS, CONFIG)
    enough = rollout_coherence(pair, ROLLOUTS, CONFIG, tokens_per_rollout=4)
    assert enough.survives == exact.survives
    some = [
        rollout_coherence(
            pair, ROLLOUTS, OPDConfig(k=K, seed=seed), tokens_per_rollout=1
        ).token_norm
        for seed in range(12)
    ]
    assert np.mean(some) == pytest.approx(exact.token_norm, abs=4 * np.std(some) / np.sqrt(12))
    assert np.std(some) > 0


def test_orthogonal_gradients_leave_what_chance_leaves_and_equal_ones_all():
    n = 20
    prompt, ones = np.arange(n), np.ones(n)
    apart = module._summary(prompt, torch.eye(n), ones, ones, n)
    assert apart.survives == pytest.approx(apart.by_chance, rel=1e-6)
    assert apart.survives["all"] == pytest.approx(n**-0.5)
    assert apart.cosine_between == (0, 0, 0)
    assert apart.effective_directions == pytest.approx(n)
    same = module._summary(prompt, torch.ones(n, 3), ones * 3**0.5, ones * 3, n)
    assert same.survives == pytest.approx({"rollout": 1, "prompt": 1, "all": 1})
    assert same.cosine_between == pytest.approx((1, 1, 1))
    assert same.effective_directions == pytest.approx(1)


@pytest.mark.parametrize("common", [0.0, 0.5])
def test_the_interval_holds_the_cosine_of_the_population(common):
    draws, n, dim = np.random.default_rng(0), 24, 400
    inside = 0
    for _ in range(200):
        vectors = draws.normal(size=(n, dim)) + common
        found = module._summary(
            np.arange(n), torch.from_numpy(vectors).float(), np.ones(n), np.ones(n), n
        )
        _, low, high = found.cosine_between
        inside += low <= common**2 / (1 + common**2) <= high
    # The jackknife is conservative where all pairs are independent.
    assert inside >= 185


def test_a_sampled_student_and_its_own_settings(models):
    prompts = [Prompt(str(i), text=f"w{i} w{i + 1}") for i in range(3)]
    student, teacher = models
    before = [p.clone() for p in student.parameters()]
    found = opdprobe.coherence(
        *(student, teacher, prompts),
        config=CONFIG,
        tokenizer=tiny_tokenizer(),
        tokens_per_rollout=2,
    )
    assert (found.n_prompts, found.n_rollouts) == (3, 6)
    assert 0 < found.survives["all"] <= found.survives["prompt"] <= found.survives["rollout"]
    assert all(p.grad is None for model in models for p in model.parameters())
    assert all(map(torch.equal, before, student.parameters()))


def test_a_teacher_reads_its_own_prompt(models):
    """Behind other words the teacher says something else; behind the student's, the same."""

    def measured(words):
        prompts = [Prompt(str(i), text=f"w{i} w{i + 1}", teacher=words(i)) for i in range(2)]
        return opdprobe.coherence(
            models[0], models[1], prompts, config=CONFIG, tokenizer=tiny_tokenizer()
        ).token_norm

    shared = measured(lambda i: f"w{i} w{i + 1}")
    assert measured(lambda i: None) == pytest.approx(shared)
    assert measured(lambda i: "w9 w8 w7") != pytest.approx(shared, rel=1e-3)


@pytest.mark.parametrize("chosen", [{"token_selector": "entropy"}, {"teacher_by": "domain"}])
def test_settings_that_it_does_not_follow_are_refused(models, chosen):
    with pytest.raises(ConfigError, match="expected a loss of all tokens, and one teacher"):
        opdprobe.coherence(
            models[0], models[1], [], config=OPDConfig(**chosen), tokenizer=tiny_tokenizer()
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompts": [Prompt("a", text="w5")]}, "1 prompts; expected at least two"),
        ({"tokens_per_rollout": 0}, "tokens_per_rollout = 0; expected a positive number"),
        ({"teacher": tiny_model(seed=1)}, "the models are the same"),
    ],
)
def test_what_cannot_be_measured_is_refused(models, change, message):
    arguments = {
        "student": models[0],
        "teacher": models[1],
        "prompts": [Prompt("a", text="w5"), Prompt("b", text="w6")],
        "tokens_per_rollout": 1,
    } | change
    with pytest.raises(ConfigError, match=message):
        opdprobe.coherence(**arguments, config=CONFIG, tokenizer=tiny_tokenizer())
