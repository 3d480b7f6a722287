"""A real HTTP server on loopback that serves tiny models by vLLM's protocol."""

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from opdprobe.rollout.sample import sample
from opdprobe.testing import tiny_model, tiny_tokenizer

EOS, CAP, CONTEXT = 2, 20, 100


def tiny_models():
    found = {"student": tiny_model(seed=0), "teacher": tiny_model(seed=1)}
    for model in found.values():
        model.lm_head.weight.data *= 20
    return found


class Server(ThreadingHTTPServer):
    """The part of vLLM's server that the tests use.

    `faults` are answered first, each (status, body, headers) or a callable that runs before the
    true answer; `alter` changes true completions; `asked` holds the requests, `most` the largest
    number of concurrent ones.
    """

    def __init__(self, models, tokenizer=None):
        super().__init__(("127.0.0.1", 0), Handler)
        self.models, self.tokenizer = models, tokenizer
        self.faults, self.asked, self.headers = [], [], []
        self.now = self.most = 0
        self.tells_context: int | None = CONTEXT
        self.lock = threading.Lock()
        self.alter: Callable[[dict], object] = lambda answer: None

    def address(self, name=None):
        return f"http://127.0.0.1:{self.server_address[1]}/v1" + (f"#{name}" if name else "")


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, format, *args):
        pass

    def do_GET(self):
        self.answer(None)

    def do_POST(self):
        self.answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def answer(self, body):
        server = self.server
        with server.lock:
            server.asked.append((self.path, body))
            server.headers.append(dict(self.headers))
            server.now += 1
            server.most = max(server.most, server.now)
            fault = server.faults.pop(0) if server.faults else None
        try:
            if isinstance(fault, tuple):
                return self.send(*fault)
            if fault:
                fault()
            status, answer = self.truth(body)
            if status == 200 and self.path == "/v1/completions":
                server.alter(answer)
            self.send(status, json.dumps(answer).encode(), {})
        finally:
            with server.lock:
                server.now -= 1

    def send(self, status, content, headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def truth(self, body):
        models, tokenizer = self.server.models, self.server.tokenizer
        if self.path == "/v1/models":
            found = [{"id": name, "max_model_len": self.server.tells_context} for name in models]
            return 200, {"object": "list", "data": found}
        if self.path == "/tokenize" and tokenizer:
            ids = tokenizer(body["prompt"], add_special_tokens=body["add_special_tokens"]).input_ids
            return 200, {"count": len(ids), "max_model_len": 512, "tokens": ids}
        if self.path != "/v1/completions":
            return 404, {"detail": "Not Found"}
        k, ids = body.get("prompt_logprobs"), body["prompt"]
        if k and k > CAP:
            message = (
                f"Requested prompt logprobs of {k}, which is greater than max allowed: {CAP} "
                f"(parameter=prompt_logprobs, value={k})"
            )
            return refusal(400, message)
        if not ids:
            return refusal(400, "You must pass at least one prompt")
        if len(ids) > CONTEXT:
            message = f"This model's maximum context length is {CONTEXT} tokens. However, your "
            return refusal(400, f"{message}prompt contains {len(ids)} input tokens")
        # Responses are silently shortened to the rest of the context.
        max_tokens = min(body["max_tokens"], CONTEXT - len(ids))
        if max_tokens < 1:
            return refusal(400, f"max_tokens must be at least 1, got {max_tokens}.")
        if body["model"] not in models:
            return refusal(404, f"The model `{body['model']}` does not exist.")
        model = models[body["model"]]
        if max(ids) >= model.config.vocab_size:
            return refusal(400, f"Token id {max(ids)} is out of vocabulary")
        told = prompt_logprobs(model, ids, k) if k else None
        choices = []
        for index in range(body.get("n", 1)):
            rollouts = sample(
                model,
                [ids],
                max_completion_length=max_tokens,
                eos_ids=[EOS],
                pad_id=0,
                # The defaults of the served model's generation_config.json.
                top_p=body.get("top_p", 0.1),
                temperature=body.get("temperature", 0.1),
                generator=torch.Generator().manual_seed(body.get("seed", 0) + index),
            )
            choice = {
                "index": index,
                "text": "…",
                "finish_reason": "stop" if rollouts.finished[0] else "length",
                "prompt_logprobs": told,
                "token_ids": rollouts.response_ids[0] if body.get("return_token_ids") else None,
            }
            choices.append(choice)
        return 200, {"model": body["model"], "choices": choices}


def refusal(status, message):
    return status, {"error": {"message": message, "type": "BadRequestError", "code": status}}


@torch.no_grad()
def prompt_logprobs(model, ids, k):
    """The text's own token, then the top-k; None at the first position, as in vLLM."""
    logp = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    entries: list[dict | None] = [None]
    for row, token in zip(logp, ids[1:], strict=False):
        listed = [token, *row.topk(k).indices.tolist()]
        entries.append(
            {
                str(i): {
                    "logprob": max(float(row[i]), -9999.0),
                    "rank": int((row >= row[i]).sum()),
                    "decoded_token": str(i),
                }
                for i in dict.fromkeys(listed)
            }
        )
    return entries


@pytest.fixture
def models():
    """Local copies of the student and the teacher that a server has."""
    return tiny_models()


@pytest.fixture
def serve():
    started = []

    def start(served=None, tokenizer=None):
        server = Server(tiny_models() if served is None else served, tokenizer)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        started.append((server, thread))
        return server

    yield start
    for server, thread in started:
        server.shutdown()
        thread.join(60)
        server.server_close()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folders = {}
    for role, model in tiny_models().items():
        folders[role] = tmp_path_factory.mktemp("models") / role
        model.save_pretrained(folders[role])
        tiny_tokenizer().save_pretrained(folders[role])
    return folders
