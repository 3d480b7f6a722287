"""Training in little memory: the same updates as with smaller micro-batches from the start."""

from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from opdprobe.errors import ConfigError, OutOfMemoryError
from opdprobe.models.head import evaluating, split_head
from opdprobe.models.load import weight_hash
from opdprobe.rollout.exact import check_scoring, decoding_of
from opdprobe.testing import tiny_model, tiny_tokenizer
from opdprobe.train.config import GRPOConfig, SFTConfig
from opdprobe.train.grpo import grpo
from opdprobe.train.optim import Optimization, refuse_float16
from opdprobe.train.sft import sft, shuffled


@pytest.fixture(autouse=True)
def uncollected(monkeypatch):
    """Leave out the garbage collections, which take most of the time in a process of many tests."""
    monkeypatch.setattr("opdprobe.models.devices.gc", SimpleNamespace(collect=lambda: 0))


@contextmanager
def little_room(model, tokens):
    """Let memory run out in passes of the student over more tokens, except when it is sampled."""
    failed = []

    def check(_module, _args, kwargs):
        if not kwargs["use_cache"] and kwargs["input_ids"].numel() > tokens:
            failed.append(kwargs["input_ids"].numel())
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you")

    # The checks of its first use are passes, too.
    with evaluating(model):
        decoding_of(model)
    check_scoring(model, *split_head(model))
    handle = model.base_model.register_forward_pre_hook(check, with_kwargs=True)
    try:
        yield failed
    finally:
        handle.remove()


def fitted(caplog):
    """The micro-batch that was found to fit."""
    return int(caplog.messages[-1].partition("micro_batch_tokens is ")[2].split()[0])


@pytest.mark.slow
def test_a_run_is_that_of_smaller_micro_batches(
    tmp_path, trainer_in, sharpened, assert_same_runs, caplog
):
    student, same = sharpened(0), sharpened(0)
    with little_room(student, 18) as failed:
        got = trainer_in(tmp_path / "got", student=student).train()
    tokens = fitted(caplog)
    assert failed
    assert tokens <= 18
    # Later steps begin with what fitted.
    assert len(failed) == len(caplog.messages) <= 3
    settings = {"micro_batch_tokens": tokens}
    want = trainer_in(tmp_path / "want", student=same, settings=settings).train()
    assert_same_runs(got, want)
    assert weight_hash(student) == weight_hash(same)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.slow
def test_a_backward_pass_that_fails_halfway_counts_nothing_twice(
    tmp_path, trainer_in, sharpened, assert_same_runs, caplog, dtype
):
    student, same = sharpened(0).to(dtype), sharpened(0).to(dtype)
    passes = []

    def fail_in_the_second_backward_pass(_module, _args, output):
        if torch.is_grad_enabled() and output.last_hidden_state.requires_grad:
            passes.append(output)
            if len(passes) == 2:
                # The layers above have their gradients by then.
                output.last_hidden_state.register_hook(fail)

    def fail(_grad):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    first = {"micro_batch_tokens": 20, "max_steps": 2}
    handle = student.base_model.register_forward_hook(fail_in_the_second_backward_pass)
    got = trainer_in(tmp_path / "got", student=student, settings=first).train()
    handle.remove()
    assert len(caplog.messages) == 1
    smaller = first | {"micro_batch_tokens": fitted(caplog)}
    want = trainer_in(tmp_path / "want", student=same, settings=smaller).train()
    assert_same_runs(got, want)
    assert weight_hash(student) == weight_hash(same)


def test_a_single_rollout_that_does_not_fit(tmp_path, trainer_in, sharpened):
    student = sharpened(0)
    trainer = trainer_in(tmp_path, student=student)
    with little_room(student, 1), pytest.raises(OutOfMemoryError) as raised:
        trainer.train()
    assert "training on a single rollout of" in str(raised.value)
    assert "lower max_completion_length or max_prompt_length" in str(raised.value)


def test_no_room_for_the_optimiser(monkeypatch):
    model = torch.nn.Linear(2, 1)
    optimization = Optimization(model, learning_rate=1e-3, total_steps=1)
    model(torch.ones(2)).backward()

    def full():
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(optimization.optimizers[0], "step", full)
    with pytest.raises(OutOfMemoryError, match=r"the optimiser's states: memory ran out \(CUDA ou"):
        optimization.step()


def dropping():
    model = tiny_model()
    for layer in model.base_model.layers:
        layer.mlp.register_forward_hook(
            lambda mlp, _, out: torch.nn.functional.dropout(out, training=mlp.training)
        )
    return model.train()


@pytest.mark.parametrize("make", [tiny_model, dropping])
def test_sft_is_that_of_smaller_micro_batches(make, caplog):
    examples = [([7 + i], [9 + i, 8, 2]) for i in range(8)]
    config = SFTConfig(max_steps=3, learning_rate=1e-3)

    def trained(model, config):
        torch.manual_seed(0)
        return list(sft(model, tiny_tokenizer(), *shuffled(examples, config), config))

    with little_room(model := make(), 12) as failed:
        got = trained(model, config)
    assert failed
    assert got == trained(make(), replace(config, micro_batch_tokens=fitted(caplog)))


def test_grpo_is_that_of_smaller_micro_batches(sharpened, caplog):
    from opdprobe.rollout.prompts import Prompt, encode_prompts

    prompts = encode_prompts(tiny_tokenizer(), [Prompt(str(i), text=str(i)) for i in range(4)])
    config = GRPOConfig(max_steps=2, max_completion_length=6, num_generations=4, learning_rate=1e-3)

    def trained(config, model):
        reward = lambda response, prompt: float(len(response) % 2)  # noqa: E731
        return list(grpo(model, tiny_tokenizer(), lambda step: prompts, reward, config))

    with little_room(model := sharpened(0), 30) as failed:
        got = trained(config, model)
    assert failed
    assert got == trained(replace(config, micro_batch_tokens=fitted(caplog)), sharpened(0))


def test_float16_is_not_trained(tmp_path, trainer_in, sharpened):
    with pytest.raises(ConfigError, match=r"^dtype = float16: the student is to be trained, and"):
        trainer_in(tmp_path, student=sharpened(0).half())
    with pytest.raises(ConfigError, match=r"expected float32 or bfloat16"):
        # Refused before the model, which is not there, is looked for.
        trainer_in(tmp_path, student="no/model", dtype="float16")
    refuse_float16("auto")
    refuse_float16(None)
