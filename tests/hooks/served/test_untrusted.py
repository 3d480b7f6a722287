"""A server from anybody: it gets the key and the prompts, and nobody else does."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from opdprobe import ConfigError
from opdprobe.errors import ModelError
from opdprobe.hooks.served import Connection, ServedModel
from opdprobe.hooks.served import connection as connection_module
from opdprobe.hooks.served.connection import API_KEY
from opdprobe.rollout.sample import Rollouts

KEY = "sk-precious/0123456789"
QUICK = Connection(timeout=20, tries=2, backoff=0)


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv(API_KEY, KEY)


def ask(model):
    return model.sample([[7]], num_generations=1, max_completion_length=1, seed=[0])


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_redirect_to_another_server_is_not_followed(serve, status, method):
    server, other = serve(), serve()
    model = ServedModel(server.address("teacher"), QUICK)
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    before = len(server.asked)
    target = other.address() + "/completions"
    server.faults = [(status, b"", {"Location": target})]
    with pytest.raises(ModelError) as caught:
        ServedModel(server.address("teacher"), QUICK) if method == "GET" else ask(model)
    assert other.asked == []
    assert len(server.asked) == before + 1  # nor is it asked again
    asked = "/models" if method == "GET" else "/completions"
    assert f"{server.address()}{asked} redirects to {target}: " in str(caught.value)


def with_host(address, host="localhost"):
    return address.replace("127.0.0.1", host)


@pytest.mark.parametrize(
    ("location", "shown"),
    [
        (lambda own: with_host(own), lambda own: with_host(own)),  # another name of the host
        (lambda own: own.replace("http:", "https:"), lambda own: own.replace("http:", "https:")),
        (lambda own: "//169.254.169.254/latest", lambda own: "http://169.254.169.254/latest"),
        (lambda own: "/v1/other", lambda own: own.removesuffix("/v1") + "/v1/other"),
        (lambda own: "file:///etc/passwd", lambda own: "file:///etc/passwd"),
        (lambda own: "http://[half", lambda own: "http://[half"),
    ],
    ids=["host", "scheme", "link-local", "path", "file", "none"],
)
def test_no_address_of_the_servers_choice_is_asked(serve, location, shown):
    server = serve()
    model = ServedModel(server.address("teacher"), QUICK)
    before = len(server.asked)
    server.faults = [(302, b"", {"Location": location(server.address())})]
    with pytest.raises(ModelError) as caught:
        ask(model)
    assert len(server.asked) == before + 1
    assert f" redirects to {shown(server.address())}: " in str(caught.value)


def test_a_redirect_that_leads_nowhere_is_an_error_of_the_server(serve):
    server = serve()
    model = ServedModel(server.address("teacher"), QUICK)
    server.faults = [(302, b"", {})]
    with pytest.raises(ModelError, match=r"answered 302 \(no message\)"):
        ask(model)


TOLD = json.dumps({"error": {"message": f"unknown key {KEY}"}}).replace("/", "\\/").encode()


@pytest.mark.parametrize(
    "fault",
    [
        (401, f"unknown key {KEY}".encode(), {}),
        (500, TOLD, {}),
        (302, b"", {"Location": f"http://elsewhere/?key={KEY}"}),
        (200, b" " * 60 + f"{KEY} is not the key".encode(), {}),
        (200, json.dumps({"choices": [{"finish_reason": KEY, "token_ids": [1]}]}).encode(), {}),
        (200, json.dumps({"choices": [{"finish_reason": "", "token_ids": [KEY]}]}).encode(), {}),
    ],
    ids=["refusal", "escaped", "redirect", "text", "reason", "token"],
)
def test_a_server_that_repeats_the_key_is_not_quoted(serve, fault, caplog):
    server = serve()
    model = ServedModel(server.address("teacher"), QUICK)
    assert KEY not in repr(model) + repr(vars(model))
    server.faults = [fault] * 2
    with pytest.raises(ModelError) as caught:
        ask(model)
    assert "sk-prec" not in str(caught.value) + caplog.text
    assert f"[{API_KEY}" in str(caught.value)


def test_a_model_that_is_called_as_the_key_is_not_recorded(serve, models):
    server = serve({KEY: models["student"]})
    with pytest.raises(ModelError, match="names its model with the key") as caught:
        ServedModel(server.address(), QUICK)
    with pytest.raises(ModelError, match=rf"it serves \[{API_KEY}\]\.") as other:
        ServedModel(server.address("student"), QUICK)
    assert KEY not in str(caught.value) + str(other.value)


@pytest.mark.parametrize("wrong", ["sk-precious\nX-Other: 1", "sk-précious", "sk precious"])
def test_a_key_that_no_header_can_carry(serve, monkeypatch, wrong):
    monkeypatch.setenv(API_KEY, wrong)
    server = serve()
    with pytest.raises(ConfigError, match=rf"{API_KEY}: character \d+ of \d+ is not") as caught:
        ServedModel(server.address("teacher"), QUICK)
    assert "precious" not in str(caught.value)
    assert server.asked == []


def test_the_line_break_after_a_key_is_not_part_of_it(serve, monkeypatch):
    monkeypatch.setenv(API_KEY, f"{KEY}\r\n")
    server = serve()
    ServedModel(server.address("teacher"), QUICK)
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"


# --- answers ---


@pytest.mark.parametrize("value", ["Infinity", "1e400", "[]", "{}"])
def test_a_context_that_is_no_number(serve, value):
    server = serve()
    said = f'{{"data": [{{"id": "teacher", "max_model_len": {value}}}]}}'
    server.faults = [(200, said.encode(), {})]
    with pytest.raises(ModelError, match="does not follow the protocol"):
        ServedModel(server.address("teacher"), QUICK)


class Dripping(BaseHTTPRequestHandler):
    """Answers with spaces, without end, until the client leaves."""

    piece, announced = b" ", None
    pause: threading.Event

    def log_message(self, format, *args):
        pass

    def do_GET(self):
        self.send_response(200)
        if self.announced:
            self.send_header("Content-Length", str(self.announced))
        self.end_headers()
        try:
            while not self.pause.wait(0.01):
                self.wfile.write(self.piece)
                if self.announced:
                    return
        except OSError:
            return


@pytest.fixture
def drip():
    stop = threading.Event()
    started = []

    def start(**changes):
        handler = type("Handler", (Dripping,), {"pause": stop, **changes})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        started.append((server, thread))
        return f"http://127.0.0.1:{server.server_address[1]}/v1"

    yield start
    stop.set()
    for server, thread in started:
        server.shutdown()
        thread.join(60)
        server.server_close()


def test_an_answer_that_drips_ends_with_the_time_limit(drip):
    with pytest.raises(ModelError, match=r"no answer within 0.2 s"):
        ServedModel(drip(), Connection(timeout=0.2))


def test_an_answer_without_end_is_cut(drip, monkeypatch):
    monkeypatch.setattr(connection_module, "LEAST", 10_000)
    with pytest.raises(ModelError, match=r"longer than 10000 bytes"):
        ServedModel(drip(piece=b" " * 4000), Connection(timeout=20))


def test_an_answer_shorter_than_announced_is_requested_again(drip):
    with pytest.raises(ModelError, match=r"IncompleteRead.*check that the server is up"):
        ServedModel(drip(announced=100), QUICK)


def test_a_log_probability_beyond_all_bounds(serve):
    server = serve()
    server.alter = lambda answer: answer["choices"][0].update(token_ids=[float("inf")])
    with pytest.raises(ModelError, match=r"does not follow the protocol .OverflowError"):
        ask(ServedModel(server.address("teacher"), QUICK))


def test_scores_of_an_endless_number(serve):
    server = serve()
    model = ServedModel(server.address("teacher"), QUICK)
    entry = {"9" * 5000: {"logprob": -1.0}}
    server.alter = lambda answer: answer["choices"][0].update(prompt_logprobs=[None, entry, entry])
    with pytest.raises(ModelError, match=r"does not follow the protocol .ValueError"):
        model.tell(Rollouts([[7]], [[8, 9]], [True], [0]), k=4, width=64)
