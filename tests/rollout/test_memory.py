"""Memory that runs out: smaller parts, the same results."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from opdprobe.errors import OutOfMemoryError
from opdprobe.preflight import preflight
from opdprobe.rollout import memory
from opdprobe.rollout.exact import decoding_of
from opdprobe.rollout.memory import halving, sample_in_parts
from opdprobe.rollout.once import probe
from opdprobe.rollout.pair import Pair
from opdprobe.rollout.prompts import Prompt, encode_prompts
from opdprobe.rollout.sample import Rollouts, sample, step_generator
from opdprobe.testing import tiny_model, tiny_tokenizer

PROMPTS = [[7, 8], [9], [10, 11, 12], [13, 14]]
SETTINGS = {"num_generations": 3, "max_completion_length": 6, "eos_ids": [2], "pad_id": 0}
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def forgotten(monkeypatch):
    """No model is remembered from another test."""
    memory._fitted.clear()


@pytest.fixture(autouse=True)
def uncollected(monkeypatch):
    """Leave out the garbage collections, which take most of the time in a process of many tests."""
    monkeypatch.setattr("opdprobe.models.devices.gc", SimpleNamespace(collect=lambda: 0))


@contextmanager
def room(model, *, rows: float = float("inf"), scored: float = float("inf")) -> Iterator[list[int]]:
    """Let memory run out above a number of rows when sampling, or of tokens when scoring."""
    failed = []

    def check(_module, _args, kwargs):
        ids = kwargs["input_ids"]
        size, most = (ids.shape[0], rows) if kwargs["use_cache"] else (ids.numel(), scored)
        if size > most:
            failed.append(size)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    handle = model.base_model.register_forward_pre_hook(check, with_kwargs=True)
    try:
        yield failed
    finally:
        handle.remove()


@pytest.fixture
def model():
    model = tiny_model()
    model.lm_head.weight.data *= 20
    return model


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 6, 11, 12])
@pytest.mark.slow
def test_draws_do_not_depend_on_how_many_are_sampled_together(model, rows, caplog):
    want_source, source = (step_generator(0, 0, "cpu") for _ in range(2))
    want = sample(model, PROMPTS, generator=want_source, part=(1, 6), **SETTINGS)
    assert len({len(ids) for ids in want.response_ids}) > 1
    with room(model, rows=rows) as failed:
        got = sample_in_parts(model, PROMPTS, generator=source, part=(1, 6), **SETTINGS)
    assert got == want
    assert torch.equal(source.get_state(), want_source.get_state())
    assert len(failed) == len(caplog.records) == (0 if rows == 12 else len(failed))
    assert bool(failed) == (rows < 12)
    # The next call begins with the size that fitted.
    with room(model, rows=rows) as again:
        sample_in_parts(model, PROMPTS, generator=source, **SETTINGS)
    assert again == []


def test_draws_from_the_global_generator(model):
    torch.manual_seed(3)
    want, after = sample(model, PROMPTS, **SETTINGS), torch.get_rng_state()
    torch.manual_seed(3)
    with room(model, rows=2):
        assert sample_in_parts(model, PROMPTS, **SETTINGS) == want
    assert torch.equal(torch.get_rng_state(), after)


def test_what_is_said_of_sampling(model, caplog):
    with room(model, rows=7):
        sample_in_parts(model, PROMPTS, **SETTINGS)
    (said,) = caplog.messages
    assert said == (
        "Memory ran out while sampling 12 responses together (CUDA out of memory): 6 at a time "
        "from now on. They draw the same random numbers."
    )


def test_a_response_that_does_not_fit(model):
    with room(model, rows=0), pytest.raises(OutOfMemoryError) as raised:
        sample_in_parts(model, PROMPTS, **SETTINGS)
    assert str(raised.value) == (
        "sampling a single response of up to 6 tokens: memory ran out (CUDA out of memory); lower "
        "max_completion_length or max_prompt_length, or load the model in bfloat16."
    )


def test_other_errors_are_not_taken_for_it(model):
    def fail(*_):
        raise RuntimeError("shapes differ")

    decoding_of(model)  # the check of its first use
    with (
        model.register_forward_pre_hook(fail),
        pytest.raises(RuntimeError, match="shapes differ"),
    ):
        sample_in_parts(model, PROMPTS, **SETTINGS)
    rollouts = sample(tiny_model(), PROMPTS, **SETTINGS)
    with pytest.raises(ZeroDivisionError):
        halving(lambda n: 1 // 0, rollouts, micro_batch_tokens=9, device=CPU, doing="scoring")


def test_halving_begins_at_what_was_tried(caplog):
    """16384 tokens were allowed, but the one batch had 3 × 10."""
    rollouts = Rollouts([[1] * 5] * 3, [[1] * 6] * 3, [True] * 3, [0, 1, 2])
    tried = []

    def work(tokens: int) -> str:
        tried.append((tokens, torch.rand(1).item()))
        if tokens > 15:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")
        return "done"

    torch.manual_seed(0)
    first = torch.rand(1).item()
    torch.manual_seed(0)
    settings = {"micro_batch_tokens": 16384, "device": CPU, "doing": "scoring"}
    with caplog.at_level(logging.WARNING):
        assert halving(work, rollouts, **settings) == ("done", 15)
    # Each call draws the same random numbers, such as dropout's.
    assert tried == [(16384, first), (15, first)]
    (said,) = caplog.messages
    assert said.startswith(
        "Memory ran out while scoring 30 tokens together (DefaultCPUAllocator: can't allocate "
        "memory: you tried): micro_batch_tokens is 15 from now on."
    )


@pytest.fixture
def pair(model):
    return Pair(model, tiny_model(seed=1), tiny_tokenizer())


@pytest.fixture
def prompts():
    return [Prompt(str(i), text=" ".join(["7", "11", str(i)][i % 3 :])) for i in range(6)]


@pytest.mark.parametrize("which", ["student", "teacher"])
def test_a_probe_is_that_of_smaller_micro_batches(pair, prompts, which, caplog):
    encoded = encode_prompts(pair.tokenizer, prompts)
    settings = {"k": 4, "max_completion_length": 6}
    with room(getattr(pair, which), scored=40) as failed:
        got = probe(pair, encoded, **settings)
    assert failed
    fitted = int(caplog.messages[-1].partition("micro_batch_tokens is ")[2].split()[0])
    assert fitted <= 40
    assert got.identical(probe(pair, encoded, micro_batch_tokens=fitted, **settings))


def test_a_rollout_that_cannot_be_scored(pair, prompts):
    encoded = encode_prompts(pair.tokenizer, prompts)
    with room(pair.teacher, scored=1), pytest.raises(OutOfMemoryError, match=r"^scoring a single"):
        probe(pair, encoded, k=4, max_completion_length=6)


def test_a_preflight_in_little_memory(model, prompts):
    def result():
        found = preflight(
            *(model, tiny_model(seed=1), prompts),
            tokenizer=tiny_tokenizer(),
            k=4,
            max_completion_length=6,
        )
        return {name: number.value for name, number in found.states.items()}

    want = result()
    with room(model, rows=5, scored=30) as failed:
        got = result()
    assert failed
    assert got == pytest.approx(want, abs=1e-5)
