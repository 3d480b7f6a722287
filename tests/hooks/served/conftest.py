"""A real HTTP server on loopback that serves tiny models by vLLM's protocol, or by SGLang's."""

import base64
import io
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from opdprobe.rollout.sample import sample
from opdprobe.testing import tiny_model, tiny_tokenizer

EOS, CAP, CONTEXT = 2, 20, 100


def tiny_models():
    found = {"student": tiny_model(seed=0), "teacher": tiny_model(seed=1)}
    for model in found.values():
        model.lm_head.weight.data *= 20
    return found


class Server(ThreadingHTTPServer):
    """The part of vLLM's server, or of SGLang's (`engine`), that the tests use.

    `faults` are answered first, each (status, body, headers) or a callable that runs before the
    true answer; `alter` changes true completions; `asked` holds the requests, `most` the largest
    number of concurrent ones; `noise` is the standard deviation of what is added to logits;
    `scores_given` says whether vLLM's server is new enough to score given tokens (None: it is, and
    they are disabled), and `dev` whether it is in its development mode; `busy` times it
    cannot empty its prefix cache; `version` names its weights (None: it has no such address);
    `kept` are those that it does not load.
    """

    def __init__(self, models, tokenizer=None, engine="vllm", port=0):
        super().__init__(("127.0.0.1", port), Handler)
        self.models, self.tokenizer, self.engine = models, tokenizer, engine
        self.scores_given, self.noise, self.random = False, 0.0, np.random.default_rng(0)
        self.dev, self.busy, self.version = False, 0, "default"
        self.kept: tuple[str, ...] = ()
        self.faults, self.asked, self.headers = [], [], []
        self.now = self.most = 0
        self.tells_context: int | None = CONTEXT
        self.lock = threading.Lock()
        self.alter: Callable[[dict], object] = lambda answer: None

    def address(self, name=None):
        return f"http://127.0.0.1:{self.server_address[1]}/v1" + (f"#{name}" if name else "")

    @torch.no_grad()
    def logp(self, model, ids):
        """Log-probabilities of what follows each token of a text."""
        logits = model(torch.tensor([ids])).logits[0]
        with self.lock:
            noise = self.random.normal(0, self.noise, logits.shape)
        return (logits + torch.from_numpy(noise).float()).log_softmax(-1)


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
            if status == 200 and self.path in ("/v1/completions", "/generate", SCORES):
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
        server = self.server
        models, tokenizer = server.models, server.tokenizer
        if self.path == "/v1/models":
            card = {"max_model_len": server.tells_context, "owned_by": server.engine}
            return 200, {"object": "list", "data": [{"id": name, **card} for name in models]}
        if self.path == "/tokenize" and tokenizer:
            ids = tokenizer(body["prompt"], add_special_tokens=body["add_special_tokens"]).input_ids
            return 200, {"count": len(ids), "max_model_len": 512, "tokens": ids}
        if self.path == "/generate" and server.engine == "sglang":
            return sglang_generate(server, body)
        if self.path == "/update_weights_from_disk" and server.engine == "sglang":
            return sglang_load(server, body)
        if self.path == SCORES and server.scores_given:
            return vllm_scores(server, body)
        if self.path == SCORES and server.scores_given is None:  # vLLM 0.32, as it starts
            return refusal(403, "Scale-out endpoints are disabled. Restart vllm serve with …")
        if self.path in NAMED and server.dev and server.version:
            server.version = body["new_version"] if body else server.version
            return 200, {"weight_version": server.version}
        if self.path in ("/collective_rpc", "/reset_prefix_cache") and server.dev:
            return vllm_dev(server, self.path, body)
        if self.path != "/v1/completions" or server.engine != "vllm":
            return 404, {"detail": "Not Found"}
        return vllm_completions(server, body)


SCORES = "/inference/v1/generate"
NAMED = ("/weight_info", "/update_weight_version")


def vllm_completions(server, body):
    models = server.models
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
    told = prompt_logprobs(server.logp(model, ids), ids, k) if k else None
    choices = []
    for index in range(body.get("n", 1)):
        # The defaults of the served model's generation_config.json.
        settings = {name: body.get(name, 0.1) for name in ("top_p", "temperature")}
        seed = body.get("seed", 0) + index
        tokens, finished, logp = draw(server, model, ids, max_tokens, seed=seed, **settings)
        choice = {
            "index": index,
            "text": "…",
            "finish_reason": "stop" if finished else "length",
            "prompt_logprobs": told,
            "token_ids": tokens if body.get("return_token_ids") else None,
            "logprobs": {"token_logprobs": logp} if body.get("logprobs") is not None else None,
        }
        choices.append(choice)
    return 200, {"model": body["model"], "choices": choices}


def vllm_scores(server, body):
    """Given tokens at each place of a text from a start on, as an .npy file in base64."""
    settings, ids = body["sampling_params"], body["token_ids"]
    rows, start = settings["prompt_logprob_token_ids"], settings["prompt_logprob_start"]
    if max(map(len, rows)) > CAP:
        return refusal(400, f"{max(map(len, rows))} candidates, more than max_logprobs {CAP}")
    if len(rows) != len(ids) - 1 - start:
        return refusal(400, "prompt_logprob_token_ids has another number of rows")
    logp = server.logp(server.models[body["model"]], ids)
    scores = [[float(logp[start + i, token]) for token in row] for i, row in enumerate(rows)]
    content = io.BytesIO()
    np.save(content, np.array(scores, np.float32))
    encoded = base64.b64encode(content.getvalue()).decode()
    return 200, {"choices": [{"index": 0}], "prompt_token_id_logprobs": encoded}


def vllm_dev(server, path, body):
    """Two addresses of vLLM's development mode; its answers do not say why a method failed."""
    if body is None:
        return 405, {"detail": "Method Not Allowed"}
    if path == "/reset_prefix_cache":
        server.busy -= 1
        return 200, {"success": server.busy < 0}
    assert body["method"] == "reload_weights"
    if why := load(server, body["kwargs"]["weights_path"]):
        return refusal(500, why)
    return 200, {"results": [None]}


def load(server, folder):
    """Replace the weights by those of a saved model, or return why not."""
    (model,) = server.models.values()
    try:
        weights = load_file(Path(folder) / "model.safetensors")
    except OSError:
        return f"no weights in {folder}"
    if weights["lm_head.weight"].shape != model.lm_head.weight.shape:
        return "Failed to update weights: a shape differs"
    weights |= {name: model.state_dict()[name] for name in server.kept}
    model.load_state_dict(weights)
    return None


def sglang_generate(server, body):
    """SGLang's lists: [log-probability, id, text]; the first place of a text has none."""
    (model,) = server.models.values()  # one on each server
    ids, settings = body["input_ids"], body["sampling_params"]
    if len(ids) >= CONTEXT or len(ids) + settings["max_new_tokens"] > CONTEXT:
        return refusal(400, f"Requested token count exceeds the model's context of {CONTEXT}")
    meta = {"id": "x", "finish_reason": {"type": "length", "length": 0}}
    if (start := body.get("logprob_start_len", -1)) >= 0:
        logp = server.logp(model, ids)
        places = range(start + 1, len(ids))
        last = model.config.vocab_size - 1
        shown = [0 if token == last else token for token in ids]  # SGLang hides the last token
        own = [[float(logp[at - 1, ids[at]]), shown[at], None] for at in places]
        meta["input_token_logprobs"] = [[None, shown[start], None], *own]
        if k := body.get("top_logprobs_num"):
            best = {at: logp[at - 1].topk(k) for at in places}
            top = [
                [[p, t, None] for p, t in zip(*map(torch.Tensor.tolist, best[at]), strict=True)]
                for at in places
            ]
            meta["input_top_logprobs"] = [None, *top]
        if wanted := body.get("token_ids_logprob"):
            rows = [[[float(logp[at - 1, t]), t, None] for t in wanted] for at in places]
            meta["input_token_ids_logprobs"] = [None, *rows]
    meta["output_token_logprobs"] = []
    if length := settings["max_new_tokens"]:
        with server.lock:
            seed = int(server.random.integers(2**31))
        # The defaults of the served model's generation_config.json.
        chosen = {name: settings.get(name, 0.1) for name in ("top_p", "temperature")}
        tokens, finished, logp = draw(server, model, ids, length, seed=seed, **chosen)
        pairs = zip(logp, tokens, strict=True)
        meta["output_token_logprobs"] = [[p, token, None] for p, token in pairs]
        reason = {"type": "stop", "matched": EOS} if finished else {"type": "length"}
        meta["finish_reason"] = reason
    return 200, {"text": "…", "meta_info": meta}


def sglang_load(server, body):
    why = load(server, body["model_path"])
    answer = {"success": why is None, "message": why or "Succeeded to update model weights."}
    return 400 if why else 200, {**answer, "num_paused_requests": 0}


def draw(server, model, ids, length, *, seed, **settings):
    """A response, whether it finished, and the log-probabilities that it was drawn with."""
    generator = torch.Generator().manual_seed(seed)
    rollouts = sample(
        *(model, [ids]),
        **{"max_completion_length": length, "eos_ids": [EOS], "pad_id": 0},
        generator=generator,
        **settings,
    )
    (tokens,) = rollouts.response_ids
    logp = server.logp(model, [*ids, *tokens])[len(ids) - 1 : -1]
    own = logp.gather(1, torch.tensor(tokens)[:, None]).squeeze(1).tolist()
    return tokens, rollouts.finished[0], own


def refusal(status, message):
    return status, {"error": {"message": message, "type": "BadRequestError", "code": status}}


def prompt_logprobs(logp, ids, k):
    """The text's own token, then the top-k; None at the first position, as in vLLM."""
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
    started = {}

    def start(served=None, tokenizer=None, **settings):
        server = Server(tiny_models() if served is None else served, tokenizer, **settings)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        started[server] = thread
        return server

    def stop(server):
        server.shutdown()
        started.pop(server).join(60)
        server.server_close()

    start.stop = stop
    yield start
    for server in list(started):
        stop(server)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folders = {}
    for role, model in tiny_models().items():
        folders[role] = tmp_path_factory.mktemp("models") / role
        model.save_pretrained(folders[role])
        tiny_tokenizer().save_pretrained(folders[role])
    return folders
