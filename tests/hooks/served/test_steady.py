"""Servers whose answers change, that go away, and that come back."""

import copy
import logging
import shutil
import threading
import time

import numpy as np
import pytest
import torch

from opdprobe import open_run
from opdprobe.errors import ModelError
from opdprobe.hooks.served import Connection, ServedModel, probe_served
from opdprobe.hooks.served.steady import check_steady
from opdprobe.rollout.prompt import Prompt
from opdprobe.rollout.sample import Rollouts, sample
from opdprobe.testing import tiny_model, tiny_tokenizer

WIDTH = 64
QUICK = Connection(timeout=20, backoff=0.001)
PROMPTS = [Prompt("a", text="7 8"), Prompt("b", text="9")]


@pytest.fixture(scope="module")
def rollouts():
    return sample(
        tiny_model(seed=0),
        [[7, 8], [9]],
        num_generations=2,
        max_completion_length=12,
        eos_ids=[2],
        pad_id=0,
        generator=torch.Generator().manual_seed(3),
    )


@pytest.fixture
def near(models):
    """A teacher that differs little from the student."""
    teacher = copy.deepcopy(models["student"])
    noise = torch.randn(teacher.lm_head.weight.shape, generator=torch.Generator().manual_seed(0))
    teacher.lm_head.weight.data += 0.05 * noise
    return {"student": models["student"], "teacher": teacher}


@torch.no_grad()
def signal(models, rollouts):
    """Root mean square of the difference of both log-probabilities of the drawn tokens."""
    total = []
    for prompt, response in zip(rollouts.prompt_ids, rollouts.response_ids, strict=True):
        ids = torch.tensor([[*prompt, *response]])
        student, teacher = (model(ids).logits[0].log_softmax(-1) for model in models.values())
        at = torch.tensor(response)[:, None]
        total += (teacher - student)[len(prompt) - 1 : -1].gather(1, at)[:, 0].tolist()
    return float(np.sqrt(np.square(total).mean()))


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
def test_a_server_noisier_than_the_signal_is_refused(serve, near, rollouts, kind):
    server = serve({"teacher": near["teacher"]}, engine=kind)
    mixed = {**near, "teacher": ServedModel(server.address(), QUICK)}
    check_steady(mixed, tiny_tokenizer(), rollouts, width=WIDTH)
    server.noise = 3 * signal(near, rollouts)
    with pytest.raises(ModelError, match=r"3 answers for the same \d+ tokens differ by") as caught:
        check_steady(mixed, tiny_tokenizer(), rollouts, width=WIDTH)
    assert "teacher and student by" in str(caught.value)
    assert "batch-invariant" in str(caught.value)


def test_noise_below_the_signal_is_a_warning_with_both_numbers(serve, near, rollouts, caplog):
    server = serve({"teacher": near["teacher"]})
    mixed = {**near, "teacher": ServedModel(server.address(), QUICK)}
    want = signal(near, rollouts)
    server.noise = 0.5 * want
    with caplog.at_level(logging.WARNING, "opdprobe"):
        check_steady(mixed, tiny_tokenizer(), rollouts, width=WIDTH)
    (record,) = caplog.records
    noise, share, said = (float(value) for value in record.args[1:])
    # A log-probability has the noise of its logit, and that of the normaliser.
    assert noise == pytest.approx(0.5 * want, rel=0.3)
    assert said == pytest.approx(want, rel=0.3)
    assert share == pytest.approx(100 * noise / said)


def test_equal_models_are_not_noise(serve, models, rollouts):
    server = serve({"teacher": models["student"]})
    mixed = {"student": models["student"], "teacher": ServedModel(server.address(), QUICK)}
    check_steady(mixed, tiny_tokenizer(), rollouts, width=WIDTH)


def test_without_a_response_there_is_nothing_to_compare(serve, models):
    server = serve({"teacher": models["teacher"]})
    mixed = {**models, "teacher": ServedModel(server.address(), QUICK)}
    before = len(server.asked)
    check_steady(mixed, tiny_tokenizer(), Rollouts([[7]], [[]], [True], [0]), width=WIDTH)
    assert len(server.asked) == before


@pytest.mark.slow
def test_nothing_of_a_noisy_server_is_recorded(serve, near, checkpoint, tmp_path):
    server = serve({"teacher": near["teacher"]}, tokenizer=tiny_tokenizer())
    server.noise = 1.0
    teacher = ServedModel(server.address(), QUICK)
    settings = {"k": 4, "num_generations": 2, "max_completion_length": 8}
    with pytest.raises(ModelError, match="nothing can be measured"):
        probe_served(checkpoint["student"], teacher, PROMPTS, tmp_path / "run", **settings)
    assert open_run(tmp_path / "run").steps == []


# --- servers that go away ---


def tell(model):
    return model.tell(Rollouts([[7, 8]], [[9, 10]], [True], [0]), k=4, width=WIDTH).logp


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
def test_a_server_that_is_started_again_is_waited_for(serve, models, caplog, kind):
    server = serve({"teacher": models["teacher"]}, engine=kind)
    connection = Connection(timeout=20, tries=2, backoff=0.02, patience=20)
    model = ServedModel(server.address(), connection)
    want = tell(model)
    port = server.server_address[1]
    serve.stop(server)
    back = threading.Timer(
        0.4, lambda: serve({"teacher": models["teacher"]}, engine=kind, port=port)
    )
    back.start()
    with caplog.at_level(logging.WARNING, "opdprobe"):
        np.testing.assert_array_equal(tell(model), want)
    back.join()
    assert "refused; check that the server is up" in caplog.text
    assert "Asking it again for 20 s" in caplog.text or "Asking it again for 19 s" in caplog.text


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_a_full_queue_is_waited_for(serve, models, status):
    server = serve({"teacher": models["teacher"]})
    model = ServedModel(server.address(), Connection(timeout=20, tries=2, backoff=0.001))
    want = tell(model)
    server.faults = [(status, b'{"error": {"message": "The request queue is full."}}', {})] * 7
    np.testing.assert_array_equal(tell(model), want)
    assert server.faults == []


def test_patience_ends(serve, models):
    server = serve({"teacher": models["teacher"]})
    connection = Connection(timeout=20, tries=2, backoff=0.01, patience=0.3)
    model = ServedModel(server.address(), connection)
    serve.stop(server)
    began = time.monotonic()
    with pytest.raises(ModelError, match="refused; check that the server is up"):
        tell(model)
    assert 0.3 <= time.monotonic() - began < 5


def test_a_server_that_was_never_there_is_not_waited_for(serve, models):
    server = serve({"teacher": models["teacher"]})
    address = server.address()
    serve.stop(server)
    began = time.monotonic()
    with pytest.raises(ModelError, match="refused"):
        ServedModel(address, Connection(tries=2, backoff=0.01))
    assert time.monotonic() - began < 5


@pytest.mark.slow
def test_a_run_whose_server_was_killed_is_resumed(serve, models, checkpoint, tmp_path):
    """It keeps the steps that it had, and ends as if nothing had happened."""
    served = {"teacher": models["teacher"]}
    server = serve(served, tokenizer=tiny_tokenizer())
    connection = Connection(timeout=20, tries=1, backoff=0.01, patience=0.05)
    teacher = ServedModel(server.address(), connection)
    folders = []
    for step in (500, 1000):
        folders.append(tmp_path / f"checkpoint-{step}")
        shutil.copytree(checkpoint["student"], folders[-1])
    settings = {"k": 4, "num_generations": 1, "max_completion_length": 4}

    def kill(done, total):
        if done == 1:
            serve.stop(server)

    with pytest.raises(ModelError, match="refused; check that the server is up"):
        probe_served(*(folders, teacher, PROMPTS, tmp_path / "run"), **settings, on_progress=kill)
    assert open_run(tmp_path / "run").steps == [500]
    again = serve(served, tokenizer=tiny_tokenizer(), port=server.server_address[1])
    run = probe_served(folders, teacher, PROMPTS, tmp_path / "run", **settings)
    whole = probe_served(
        *(folders, ServedModel(again.address(), QUICK), PROMPTS, tmp_path / "whole"), **settings
    )
    assert run.steps == whole.steps == [500, 1000]
    for step in run.steps:
        got, want = run.load(step), whole.load(step)
        np.testing.assert_array_equal(got.response_ids, want.response_ids)
        np.testing.assert_array_equal(got.logp, want.logp)
