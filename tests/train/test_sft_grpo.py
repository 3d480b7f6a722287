"""The trainers that make teachers: they learn, batching is invisible, a resume is exact."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from opdprobe import ConfigError, NonFiniteError, Prompt
from opdprobe.models.vocabulary import eos_ids
from opdprobe.rollout.prompts import encode_prompts
from opdprobe.rollout.sample import sample, step_generator
from opdprobe.testing import tiny_model, tiny_tokenizer
from opdprobe.train.config import GRPOConfig, SFTConfig
from opdprobe.train.grpo import group_advantages, grpo
from opdprobe.train.sft import sft, shuffled

pytestmark = pytest.mark.slow

# The task: repeat the prompt's one word, then end.
COPY = [([1, word], [word, 2]) for word in range(10, 18)]
SFT = SFTConfig(learning_rate=1e-2, batch_size=8, max_steps=60, weight_decay=0.0)


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def assert_same_weights(got, want):
    for name, weight in weights(want).items():
        assert torch.equal(weights(got)[name], weight), name


# Supervised fine-tuning


def run_sft(model, config, run_dir=None, **more):
    return sft(model, tiny_tokenizer(), *shuffled(COPY, config), config, run_dir, **more)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_sft_learns_to_copy(optimizer):
    model = tiny_model(hidden_size=32)
    config = replace(SFT, optimizer=optimizer)
    metrics = list(run_sft(model, config))
    assert [line["step"] for line in metrics] == list(range(60))
    assert metrics[0]["loss"] == pytest.approx(np.log(64), abs=0.1)
    assert metrics[-1]["loss"] < 0.1
    prompts, responses = zip(*COPY, strict=True)
    answers = sample(model, prompts, max_completion_length=3, eos_ids=[2], pad_id=0, temperature=0)
    assert answers.response_ids == list(responses)


def test_the_sft_loss_is_the_token_mean():
    model = tiny_model()
    examples = [([5], [6, 7, 8, 2]), ([9, 10, 11], [12])]
    total = 0.0
    for prompt, response in examples:
        with torch.no_grad():
            logp = model(input_ids=torch.tensor([prompt + response])).logits[0].log_softmax(-1)
        for t, token in enumerate(response):
            total -= logp[len(prompt) - 1 + t, token].item()
    first = next(sft(model, tiny_tokenizer(), lambda step: examples, 1, SFTConfig()))
    assert first["loss"] == pytest.approx(total / 5, rel=1e-5)
    assert first["learning_rate"] == pytest.approx(1e-5)


@pytest.mark.parametrize("tokens", [1, 8])
def test_sft_micro_batches_change_nothing(tokens):
    plain, cut = tiny_model(), tiny_model()
    config = replace(SFT, max_steps=3)
    want = list(run_sft(plain, config))
    got = list(run_sft(cut, replace(config, micro_batch_tokens=tokens)))
    for a, b in zip(got, want, strict=True):
        assert a == pytest.approx(b, rel=1e-3)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_resumed_sft_equals_an_unbroken_one(tmp_path, optimizer):
    config = replace(SFT, max_steps=6, save_steps=2, batch_size=3, optimizer=optimizer)
    unbroken, resumed = tiny_model(), tiny_model()
    want = list(run_sft(unbroken, config))
    stopped = run_sft(tiny_model(), config, tmp_path)
    assert [next(stopped) for _ in range(3)] == want[:3]
    assert list(run_sft(resumed, config, tmp_path)) == want[2:]
    assert_same_weights(resumed, unbroken)
    assert not resumed.training


def test_dropout_acts_in_sft_and_a_resume_repeats_it(tmp_path):
    def model():
        made = tiny_model()
        for layer in made.model.layers:
            layer.self_attn.attention_dropout = 0.5
        return made

    config = replace(SFT, max_steps=4, save_steps=2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        want = list(run_sft(model(), config))
        assert want != list(run_sft(tiny_model(), config))
        torch.manual_seed(0)
        stopped = run_sft(model(), config, tmp_path)
        assert [next(stopped) for _ in range(3)] == want[:3]
        torch.manual_seed(1)  # a new process
        assert list(run_sft(model(), config, tmp_path)) == want[2:]


@given(st.integers(1, 12), st.integers(1, 15), st.integers(0, 3), st.integers(1, 3))
def test_every_epoch_covers_the_data_once(n, batch_size, seed, epochs):
    examples = [([i], [i]) for i in range(n)]
    config = SFTConfig(batch_size=batch_size, num_train_epochs=epochs, seed=seed)
    batch_at, n_steps = shuffled(examples, config)
    per_epoch = n_steps // epochs
    size = len(batch_at(0))
    assert size == min(n, batch_size)
    for epoch in range(epochs):
        steps = range(epoch * per_epoch, (epoch + 1) * per_epoch)
        seen = [prompt[0] for step in steps for prompt, _ in batch_at(step)]
        # Examples that do not fill a batch are left out, other ones in each epoch.
        assert len(seen) == len(set(seen)) == n - n % size


def test_epochs_have_orders_of_their_own():
    batch_at, n_steps = shuffled(COPY, SFTConfig(num_train_epochs=2))
    assert n_steps == 2
    assert batch_at(0) != batch_at(1)
    assert sorted(batch_at(0)) == sorted(batch_at(1)) == COPY
    other, _ = shuffled(COPY, SFTConfig(seed=1))
    assert batch_at(0) != other(0)


def test_max_steps_overrides_the_epochs():
    assert shuffled(COPY, SFTConfig(max_steps=7))[1] == 7


def test_no_examples():
    with pytest.raises(ConfigError, match="there are no examples to train on"):
        shuffled([], SFTConfig())


def test_sft_names_a_model_of_nan():
    model = tiny_model()
    model.lm_head.weight.data[5] = torch.nan
    with pytest.raises(NonFiniteError, match="gradient norm is nan"):
        next(run_sft(model, SFT))


# Group-relative policy optimisation

PROMPTS = [Prompt("a", text="7"), Prompt("b", text="8 9")]
GRPO = GRPOConfig(
    learning_rate=3e-2, batch_size=2, num_generations=8, max_completion_length=4, max_steps=15
)


def run_grpo(model, config, run_dir=None, grader=None, **more):
    tokenizer = tiny_tokenizer()
    encoded = encode_prompts(tokenizer, PROMPTS)
    return grpo(model, tokenizer, lambda step: encoded, grader or grade, config, run_dir, **more)


def grade(response, prompt):
    """Return the share of small numbers: half for a random model."""
    words = response.split()
    return sum(int(word) < 29 for word in words if word.isdigit()) / max(1, len(words))


@given(st.lists(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=4, max_size=4), min_size=1))
def test_group_advantages_are_standardised_in_each_group(rewards):
    got = group_advantages(torch.tensor(rewards))
    for row, reward in zip(got.tolist(), rewards, strict=True):
        mean, std = np.mean(reward), np.std(reward)
        if std == 0:
            assert row == [0.0] * 4
        else:
            assert row == pytest.approx([(r - mean) / std for r in reward], abs=1e-4)


def test_group_advantages_ignore_scale_and_offset():
    rewards = torch.tensor([[0.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
    torch.testing.assert_close(
        group_advantages(3 * rewards + 5), group_advantages(rewards), rtol=1e-4, atol=1e-4
    )


def test_reward_rises():
    metrics = list(run_grpo(tiny_model(), GRPO))
    assert [line["step"] for line in metrics] == list(range(15))
    reward = [line["reward"] for line in metrics]
    assert np.mean(reward[-3:]) > reward[0] + 0.3


def test_the_grpo_gradient_is_the_token_mean_of_advantage_times_score():
    """Against a plain forward of each rollout; one group's rewards are equal."""
    model = tiny_model()
    reference = copy.deepcopy(model)
    seen = []

    def noting(response, prompt):
        seen.append(response)
        return rewards_of(response, prompt)

    def rewards_of(response, prompt):
        return grade(response, prompt) if prompt.id == "a" else 1.0

    config = replace(GRPO, max_steps=1, micro_batch_tokens=12)
    (line,) = run_grpo(model, config, grader=noting)

    tokenizer = tiny_tokenizer()
    rollouts = rollouts_of_step_zero(reference, tokenizer, config)
    assert seen == tokenizer.batch_decode(rollouts.response_ids, skip_special_tokens=True)
    rewards = np.array([[grade(response, None) for response in seen[:8]], [1.0] * 8])
    advantages = np.zeros((2, 8))
    advantages[0] = (rewards[0] - rewards[0].mean()) / rewards[0].std()
    loss = 0.0
    texts = zip(rollouts.prompt_ids, rollouts.response_ids, advantages.flatten(), strict=True)
    for prompt, response, advantage in texts:
        logp = reference(input_ids=torch.tensor([prompt + response])).logits[0].log_softmax(-1)
        for t, token in enumerate(response):
            loss = loss - float(advantage) * logp[len(prompt) - 1 + t, token]
    (loss / rollouts.n_tokens).backward()
    norm = torch.cat([p.grad.flatten() for p in reference.parameters()]).norm().item()
    assert line["grad_norm"] == pytest.approx(norm, rel=1e-3)
    assert line["reward"] == pytest.approx(rewards.mean())
    assert line["completion_length"] == rollouts.n_tokens / 16


def rollouts_of_step_zero(model, tokenizer, config):
    return sample(
        model,
        [p.ids for p in encode_prompts(tokenizer, PROMPTS)],
        num_generations=config.num_generations,
        max_completion_length=config.max_completion_length,
        eos_ids=eos_ids(model, tokenizer),
        pad_id=0,
        generator=step_generator(config.seed, 0, "cpu"),
    )


def test_equal_rewards_change_nothing():
    model = tiny_model()
    before = copy.deepcopy(model)
    config = replace(GRPO, max_steps=2)
    for line in run_grpo(model, config, grader=lambda response, prompt: 1.0):
        assert line["grad_norm"] == 0
        assert line["reward"] == 1
    assert_same_weights(model, before)


def test_a_resumed_grpo_equals_an_unbroken_one(tmp_path):
    config = replace(GRPO, max_steps=6, save_steps=2)
    unbroken, resumed = tiny_model(), tiny_model()
    want = list(run_grpo(unbroken, config))
    stopped = run_grpo(tiny_model(), config, tmp_path)
    assert [next(stopped) for _ in range(3)] == want[:3]
    assert list(run_grpo(resumed, config, tmp_path)) == want[2:]
    assert_same_weights(resumed, unbroken)


def test_a_tokenizer_without_padding_trains():
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    encoded = encode_prompts(tokenizer, PROMPTS)
    config = replace(GRPO, max_steps=1)
    assert list(grpo(tiny_model(), tokenizer, lambda step: encoded, grade, config))
    assert list(sft(tiny_model(), tokenizer, lambda step: COPY, 1, SFT))


@pytest.mark.parametrize("run", [run_sft, run_grpo])
def test_asked_to_stop_they_write_a_checkpoint_to_resume_from(tmp_path, caplog, run):
    config = replace(SFT if run is run_sft else GRPO, max_steps=5, save_steps=2)
    unbroken, resumed = tiny_model(), tiny_model()
    want, got, asked = list(run(unbroken, config)), [], []

    def stopping():
        asked.append(len(asked))
        return len(asked) == 3

    with pytest.raises(SystemExit) as stopped:
        got.extend(run(tiny_model(), config, tmp_path, stopping=stopping))
    assert stopped.value.code == 143
    assert "stopped by SIGTERM after 3 of 5" in caplog.text
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["000003"]
    assert got + list(run(resumed, config, tmp_path)) == want
    assert_same_weights(resumed, unbroken)
    # Without a directory, there would be nothing to resume from.
    assert list(run(tiny_model(), config, stopping=lambda: True)) == want
