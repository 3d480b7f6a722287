"""A model on a server: requests, reading of answers, and what can go wrong."""

import socket
import threading
import time

import numpy as np
import pytest
import torch

from opdprobe import ConfigError, VocabularyError
from opdprobe.errors import ModelError
from opdprobe.hooks.served import Connection, ServedModel
from opdprobe.hooks.served.connection import API_KEY
from opdprobe.rollout.sample import Rollouts
from opdprobe.testing import tiny_model

EOS, WIDTH, CONTEXT = 2, 64, 100
ROWS = [[7, 8], [9], [10, 11, 12, 13]]
QUICK = Connection(timeout=20, backoff=0.001)


# --- rollouts ---


def test_rollouts_come_from_the_distribution_itself(serve, models):
    """With the server's own defaults, it would always return the most probable token."""
    student = models["student"]
    served = ServedModel(serve({"student": student}).address(), QUICK)
    n = 200
    drawn = served.sample([[7, 8]], num_generations=n, max_completion_length=1, seed=[0])
    with torch.no_grad():
        p = student(torch.tensor([[7, 8]])).logits[0, -1].softmax(-1).numpy()
    seen = np.bincount([row[0] for row in drawn.response_ids], minlength=WIDTH)
    error = (seen - n * p) / np.sqrt(n * p * (1 - p))
    assert np.abs(error[n * p > 5]).max() < 4
    assert np.isin(seen.argmax(), p.argsort()[-3:])


def test_rollouts_are_laid_out_as_those_of_a_local_model(serve):
    served = ServedModel(serve().address("student"), QUICK)
    got = served.sample(ROWS, num_generations=2, max_completion_length=6, seed=[1, 0])
    assert got.prompt_ids == [row for row in ROWS for _ in range(2)]
    assert got.prompt_index == [0, 0, 1, 1, 2, 2]
    for response, finished in zip(got.response_ids, got.finished, strict=True):
        assert finished == (response[-1] == EOS)
        assert EOS not in response[:-1]
        assert 1 <= len(response) <= 6
    assert served.sample(ROWS, num_generations=2, max_completion_length=6, seed=[1, 0]) == got
    assert served.sample(ROWS, num_generations=2, max_completion_length=6, seed=[1, 1]) != got
    twice = served.sample([[7, 8], [7, 8]], num_generations=1, max_completion_length=6, seed=[1])
    assert twice.response_ids[0] != twice.response_ids[1]


def test_ties_go_to_the_lower_id_and_what_is_ruled_out_has_no_probability(serve):
    server = serve()
    entry = {t: {"logprob": p} for t, p in {"9": -2.0, "5": -0.7, "3": -0.7, "8": -9999.0}.items()}
    server.alter = lambda answer: answer["choices"][0].update(prompt_logprobs=[None, entry])
    told = ServedModel(server.address("teacher"), QUICK).tell(
        Rollouts([[1]], [[8]], [True], [0]), k=4, width=WIDTH
    )
    assert told.token_id.tolist() == [[3, 5, 9, 8]]
    assert told.logp[0, 3] == told.sampled_logp[0] == -np.inf
    np.testing.assert_allclose(told.logp[0, :3], [-0.7, -0.7, -2.0])


# --- what can go wrong ---


def tell(model):
    return model.tell(Rollouts([[7, 8]], [[9, 10]], [True], [0]), k=4, width=WIDTH)


BUSY = (429, b'{"error": {"message": "too many"}}', {"Retry-After": "0"})
BROKEN = (500, b"Internal Server Error", {})


@pytest.mark.parametrize("faults", [[BUSY], [BROKEN], [BUSY, BROKEN, (503, b"", {}), BROKEN]])
def test_a_server_that_recovers_is_asked_again(serve, faults):
    server = serve()
    model = ServedModel(server.address("teacher"), QUICK)
    want = tell(model)
    server.faults = list(faults)
    np.testing.assert_array_equal(tell(model).logp, want.logp)
    assert not server.faults


def test_a_request_on_a_dropped_connection_is_retried(serve):
    server = serve()

    def drop():
        raise ConnectionResetError

    server.handle_error = lambda request, client_address: None
    model = ServedModel(server.address("teacher"), QUICK)
    want = tell(model)
    server.faults = [drop, drop]
    np.testing.assert_array_equal(tell(model).logp, want.logp)


def test_a_server_that_stays_broken_is_given_up(serve):
    server = serve()
    model = ServedModel(server.address("teacher"), Connection(tries=3, backoff=0))
    before = len(server.asked)
    server.faults = [BROKEN] * 9
    with pytest.raises(ModelError, match=r"answered 500 \(Internal Server Error\)"):
        model.sample([[7]], num_generations=1, max_completion_length=1, seed=[0])
    assert len(server.asked) - before == 3


def test_no_server():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(
        ModelError, match="refused; check that the server is up, and that this is its address"
    ):
        ServedModel(f"http://127.0.0.1:{port}/v1#x", Connection(tries=2, backoff=0))


def test_a_slow_server_is_not_asked_again(serve):
    server = serve()
    answered = threading.Event()
    model = ServedModel(server.address("teacher"), Connection(timeout=0.2))
    before = len(server.asked)
    server.faults = [lambda: answered.wait(10)] * 2
    server.handle_error = lambda request, client_address: None  # no client is left
    with pytest.raises(ModelError, match=r"no answer within 0.2 s; .* shorter responses"):
        model.sample([[7]], num_generations=1, max_completion_length=1, seed=[0])
    answered.set()
    assert len(server.asked) - before == 1


def answers(**changes):
    return lambda answer: answer["choices"][0].update(changes)


def logprobs(change):
    return lambda answer: change(answer["choices"][0]["prompt_logprobs"])


@pytest.mark.parametrize(
    ("alter", "error", "message"),
    [
        (answers(prompt_logprobs=None), ModelError, "returns no prompt_logprobs"),
        (logprobs(lambda told: told.pop()), ModelError, "was sent 4 tokens and reports 3"),
        (
            logprobs(lambda told: told[3].pop("10")),
            ModelError,
            r"was sent token 10 and reports \[",
        ),
        (
            logprobs(lambda told: told[2].update({"64": {"logprob": -0.1}})),
            VocabularyError,
            "beyond the tokenizer's 64 tokens 90% of the probability, as token 64",
        ),
        (
            logprobs(lambda told: told[2].update({"-1": {"logprob": -9}})),
            ModelError,
            "v1#teacher reports token -1; expected ids from 0",
        ),
        (
            logprobs(lambda told: told.__setitem__(2, {"9": {"logprob": -1}})),
            ConfigError,
            "returns 1 log-probabilities per token, but k = 4: use k = 1 or less",
        ),
        (
            logprobs(lambda told: told[2].update({"3": {"logprob": None}})),
            ModelError,
            "does not follow the protocol .TypeError",
        ),
        (
            logprobs(lambda told: told[2].update({"3": {"logprob": 0.7}})),
            ModelError,
            "a log-probability of 0.7",
        ),
        (
            logprobs(lambda told: told[2].update({"3": {"logprob": np.nan}})),
            ModelError,
            "a log-probability of nan",
        ),
        (lambda answer: answer["choices"].clear(), ModelError, "follow the protocol .IndexError"),
    ],
)
def test_scores_of_another_form(serve, alter, error, message):
    server = serve()
    model = ServedModel(server.address("teacher"), QUICK)
    server.alter = alter
    with pytest.raises(error, match=message):
        tell(model)


@pytest.mark.parametrize(
    ("alter", "message"),
    [
        (answers(token_ids=None), "returns no token ids .* use vLLM 0.10.2 or newer"),
        (answers(token_ids=[5, -1]), "v1#teacher reports token -1; expected ids from 0"),
        (answers(finish_reason="abort"), "1 responses to prompt 0, with finish reasons abort"),
        (lambda answer: answer["choices"].clear(), "returned 0 responses .* finish reasons none"),
        (lambda answer: answer.pop("choices"), "follow the protocol .KeyError"),
    ],
)
def test_responses_of_another_form(serve, alter, message):
    server = serve()
    model = ServedModel(server.address("teacher"), QUICK)
    server.alter = alter
    with pytest.raises(ModelError, match=message):
        model.sample([[7]], num_generations=1, max_completion_length=1, seed=[0])


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ((200, b"<html>hello</html>", {}), "the answer is not JSON .* begins b'<html>hello"),
        (
            (401, b'{"error": "Unauthorized"}', {}),
            rf"answered 401 \(Unauthorized\); .* {API_KEY}\.$",
        ),
        ((422, b'{"detail": "no"}', {}), r"answered 422 \(no\)\.$"),
        ((400, b"", {}), r"answered 400 \(no message\)"),
    ],
)
def test_a_refusal_shows_what_the_server_said(serve, fault, message):
    server = serve()
    model = ServedModel(server.address("teacher"), QUICK)
    server.faults = [fault]
    with pytest.raises(ModelError, match=message):
        model.sample([[7]], num_generations=1, max_completion_length=1, seed=[0])


def test_a_text_longer_than_the_server_holds(serve):
    server = serve()
    model = ServedModel(server.address("teacher"), QUICK)
    assert model.context == CONTEXT
    before = len(server.asked)
    with pytest.raises(ModelError, match=r"context of 100 tokens, but .* needs 101 \(one"):
        model.sample([[7]], num_generations=1, max_completion_length=100, seed=[0])
    with pytest.raises(ModelError, match=r"context of 100 tokens, but .* needs 101 \(one"):
        model.tell(Rollouts([[7] * 50], [[9] * 50], [True], [0]), k=4, width=WIDTH)
    assert len(server.asked) == before
    assert len(model.sample([[7]], num_generations=1, max_completion_length=99, seed=[0])) == 1


@pytest.mark.slow
def test_a_response_that_the_server_cuts_unasked(serve, models):
    """As vLLM does; this server does not report the length of its context."""
    models["student"].lm_head.weight.data[EOS] *= 0  # makes responses long
    server = serve({"student": models["student"]})
    server.tells_context = None
    model = ServedModel(server.address(), QUICK)
    assert model.context is None
    with pytest.raises(ModelError, match=r"cut a response to prompt 1 after 3 of 4 tokens"):
        model.sample([[7] * 96, [7] * 97], num_generations=40, max_completion_length=4, seed=[0])
    with pytest.raises(ModelError, match=r"answered 400 \(max_tokens must be at least 1, got 0"):
        model.tell(Rollouts([[7] * 50], [[9] * 50], [True], [0]), k=4, width=WIDTH)
    with pytest.raises(ModelError, match=r"answered 400 \(.* maximum context length is 100 tokens"):
        model.tell(Rollouts([[7] * 50], [[9] * 51], [True], [0]), k=4, width=WIDTH)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [([], "must pass at least one prompt"), ([7, WIDTH], "Token id 64 is out of vocabulary")],
)
def test_a_prompt_that_no_model_has(serve, prompt, message):
    model = ServedModel(serve().address("student"), QUICK)
    with pytest.raises(ModelError, match=rf"answered 400 \(.*{message}"):
        model.sample([prompt], num_generations=1, max_completion_length=2, seed=[0])


@pytest.mark.parametrize(
    ("address", "error", "message"),
    [
        ("v1#tutor", ModelError, "no model 'tutor'; it serves student, teacher"),
        ("v1", ConfigError, r"serves student, teacher; name one: http.*/v1#NAME"),
        ("#teacher", ModelError, "/models: not found; .* ends in /v1"),
    ],
)
def test_a_model_that_does_not_exist(serve, address, error, message):
    with pytest.raises(error, match=message):
        ServedModel(serve().address().removesuffix("v1") + address, QUICK)


@pytest.mark.parametrize(
    "address",
    [
        *("localhost:8000", "file:///etc/passwd", "http://", "host"),
        *("http://[::1", "http://host:port/v1", "http://host:99999/v1"),
    ],
)
def test_no_address(address):
    with pytest.raises(ConfigError, match="expected an address such as http://host:8000/v1"):
        ServedModel(address)


@pytest.mark.parametrize(
    "address",
    ["ftp://me:secret@host", "http://:secret@[host/v1", "me:secret@host", "http://h/v1?key=secret"],
)
def test_an_address_with_a_password_is_not_shown(address):
    with pytest.raises(ConfigError, match=API_KEY) as caught:
        ServedModel(address)
    assert "secret" not in str(caught.value)


# --- padded logits ---


PADDED = 70  # logits, of which the tokenizer has WIDTH


@pytest.fixture
def padded(serve):
    """A server whose model gives padding some probability everywhere."""
    torch.manual_seed(5)
    model = tiny_model(PADDED)
    model.lm_head.weight.data *= 20
    return serve({"teacher": model}), model


def test_padding_is_left_out_of_the_lists(padded):
    server, model = padded
    got = ServedModel(server.address(), QUICK).tell(
        Rollouts([[7, 8]], [[9, 10, 11]], [True], [0]), k=8, width=WIDTH
    )
    with torch.no_grad():
        logp = model(torch.tensor([[7, 8, 9, 10, 11]])).logits[0, 1:4].log_softmax(-1)
    assert (logp.topk(8).indices >= WIDTH).any()  # padding is among the most probable
    want = logp[:, :WIDTH].topk(8)
    np.testing.assert_array_equal(got.token_id, want.indices)
    np.testing.assert_allclose(got.logp, want.values, rtol=1e-5)


def test_padding_that_leaves_too_few(padded):
    server, _ = padded
    model = ServedModel(server.address(), QUICK)
    with pytest.raises(ConfigError, match=r"lists padding ids, .* for k = 20, .* use k = 1\d or"):
        model.tell(Rollouts([[7, 8]], [[9, 10, 11]], [True], [0]), k=20, width=WIDTH)


def test_padding_that_was_drawn(padded):
    server, _ = padded
    model = ServedModel(server.address(), QUICK)
    with pytest.raises(VocabularyError, match=r"drew token 66, but the tokenizer has 64 tokens"):
        model.tell(Rollouts([[7, 8]], [[9, 66]], [True], [0]), k=4, width=WIDTH)


# --- in parallel ---


def test_requests_run_in_parallel_up_to_the_limit(serve):
    server = serve()
    model = ServedModel(server.address("teacher"), Connection(timeout=20, workers=2))
    together = threading.Barrier(2, timeout=10)  # breaks, and with it the test, if one waits alone
    server.faults = [together.wait] * 8
    got = model.sample([[7]] * 8, num_generations=1, max_completion_length=1, seed=[0])
    assert len(got) == 8
    assert server.most == 2


def test_no_request_starts_after_an_error(serve):
    server = serve()
    model = ServedModel(server.address("teacher"), Connection(timeout=20, workers=1))
    before = len(server.asked)
    # The second may have started when the first one's error is seen.
    server.faults = [(400, b"no", {}), lambda: time.sleep(0.5)]
    with pytest.raises(ModelError, match=r"answered 400 \(no\)"):
        model.sample([[7]] * 50, num_generations=1, max_completion_length=1, seed=[0])
    assert len(server.asked) - before <= 2
