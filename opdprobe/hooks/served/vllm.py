"""Requests in vLLM's protocol: OpenAI's completions with vLLM's extensions, in token ids.

``prompt_logprobs`` reports the top-k at every position of a text, and the text's own tokens. Newer
servers have ``/inference/v1/generate`` too, which scores given tokens at each position
(``prompt_logprob_token_ids``; docs/training/prompt_token_id_logprobs.md in vLLM's repository).

In its development mode (``VLLM_SERVER_DEV_MODE=1``) a server runs methods of its workers
(``/collective_rpc``); ``reload_weights`` reads a saved model. Newer ones keep a name of their
weights, too (``/update_weight_version``, ``/weight_info``); a server that is started again has lost
it.
"""

import base64
import io
import logging
import re
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opdprobe.errors import ConfigError, ModelError
from opdprobe.hooks.served.connection import Connection, RefusedError, expected_form
from opdprobe.hooks.served.told import UNCHANGED, Drawn, nats

logger = logging.getLogger("opdprobe")

_CAP = re.compile(r"max allowed:? (\d+)")
# vLLM's own limit on the tokens that it scores at a position (--max-logprobs), unless it is raised.
_COLUMNS = 20
# How servers answer where they do not know a field or an address, have it disabled (403, unless
# vLLM is started with --enable-scale-out), or fail at it.
_UNKNOWN = (400, 403, 404, 405, 422, 500, 501)


class VLLM:
    """A model on a vLLM server.

    Parameters
    ----------
    url
        The protocol's base URL, which ends in /v1.
    name
        The server's name for the model.
    connection
        Timeout, tries and number of parallel requests.
    """

    def __init__(self, url: str, name: str, connection: Connection):
        self.url, self.name, self.connection = url, name, connection
        self._root = url.removesuffix("/v1")
        self._scores_given: bool | None = None  # not asked yet
        self._columns = _COLUMNS
        self._version: str | None = None  # what the loaded weights were named, if the server can

    def __repr__(self) -> str:
        return f"{self.url}#{self.name}"

    def draw(self, prompt: Sequence[int], n: int, length: int, seed: int) -> list[Drawn]:
        """Sample `n` responses."""
        answer = self._complete(
            prompt,
            n=n,
            max_tokens=length,
            seed=seed,  # vLLM adds 1 for each further response
            return_token_ids=True,
            logprobs=1,
            **UNCHANGED,
        )
        with expected_form(f"{self.url}/completions"):
            found = [
                Drawn(
                    [int(token) for token in choice.get("token_ids") or []],
                    str(choice["finish_reason"]),
                    _sampler_logp(choice.get("logprobs")),
                )
                for choice in answer["choices"]
            ]
        if not all(one.tokens for one in found):
            raise ModelError(
                f"{self} returns no token ids with its responses (return_token_ids), and their "
                "text does not determine them: use vLLM 0.10.2 or newer."
            )
        return found

    def lists(
        self, prompt: Sequence[int], response: Sequence[int], k: int
    ) -> list[dict[int, float]]:
        """Ask for the top-k at each token of the response."""
        text = [*prompt, *response]
        answer = self._complete(text, max_tokens=1, temperature=1.0, prompt_logprobs=k)
        self._columns = max(self._columns, k)  # it did not refuse
        with expected_form(f"{self.url}/completions"):
            entries = answer["choices"][0].get("prompt_logprobs")
            if entries is None:
                raise ModelError(
                    f"{self} returns no prompt_logprobs: its server lacks this extension. Serve "
                    "the model with vLLM or SGLang."
                )
            if len(entries) != len(text):
                raise ModelError(
                    f"{self} was sent {len(text)} tokens and reports {len(entries)}: its server "
                    "cuts texts."
                )
            return [
                {int(token): nats(value["logprob"]) for token, value in entry.items()}
                for entry in entries[len(prompt) :]
            ]

    def at(
        self, prompt: Sequence[int], response: Sequence[int], ids: NDArray[np.integer]
    ) -> NDArray[np.float32] | None:
        """Ask for given tokens at each token of the response; None from older servers."""
        if self._scores_given is False:
            return None
        url = f"{self._root}/inference/v1/generate"
        parts = []
        for start in range(0, ids.shape[1], self._columns):
            part = ids[:, start : start + self._columns]
            body = {
                "model": self.name,
                "token_ids": [*prompt, *response],
                "sampling_params": {
                    "max_tokens": 1,
                    "temperature": 1.0,
                    "prompt_logprob_start": len(prompt) - 1,
                    "prompt_logprob_token_ids": part.tolist(),
                },
            }
            try:
                answer = self.connection.request(url, body, wait=True)
            except RefusedError as error:
                if self._scores_given or error.status not in _UNKNOWN:
                    raise
                first, self._scores_given = self._scores_given is None, False
                if first and error.status == 403:  # a newer one, which says how to enable it
                    logger.warning("%s Until then, its scores of given tokens are missing.", error)
                answer = {}
            with expected_form(url):
                found = answer.get("prompt_token_id_logprobs")
                if found is None and not self._scores_given:
                    self._scores_given = False
                    return None
                parts.append(_matrix(found, part.shape))
            self._scores_given = True
        return np.concatenate(parts, axis=1)

    @property
    def loads_weights(self) -> bool:
        """Whether the server is in its development mode, where it takes other weights."""
        try:
            self.connection.request(f"{self._root}/collective_rpc")
        except RefusedError as error:
            if error.status in (404, 405):
                return error.status == 405  # the address exists, and wants a POST
            raise
        return False  # no server of vLLM's answers this

    def load(self, directory: Path) -> None:
        """Have the server load the weights of a saved model, and forget its prefix cache."""
        self._name_weights()
        body = {"method": "reload_weights", "kwargs": {"weights_path": str(directory)}}
        try:
            self.connection.request(f"{self._root}/collective_rpc", body, wait=True)
        except RefusedError as error:
            raise ModelError(
                f"{self} did not load {directory} ({str(error)[:500]}); expected a "
                "server of this model in its development mode (VLLM_SERVER_DEV_MODE=1), on a "
                "machine that sees that directory. Its log has the cause; start it again, since "
                "half of the weights may be loaded."
            ) from error
        self._forget()

    def has_loaded(self) -> bool:
        """Whether the weights are still those of the last `load`, as far as the server can say."""
        if self._version is None:
            return True
        url = f"{self._root}/weight_info"
        answer = self.connection.request(url, wait=True)
        with expected_form(url):
            return answer["weight_version"] == self._version

    def _name_weights(self) -> None:
        """Give the weights that are loaded next a new name.

        Before they are loaded: a server that is started again in between has no name, while one
        that is named afterwards might have the name and other weights.
        """
        version = uuid.uuid4().hex
        body = {"new_version": version}
        try:
            self.connection.request(f"{self._root}/update_weight_version", body, wait=True)
        except RefusedError as error:
            if error.status not in (404, 405):
                raise
            version = None
        self._version = version

    def _forget(self) -> None:
        """Empty the prefix cache, whose entries are of the weights before."""
        url = f"{self._root}/reset_prefix_cache"
        for attempt in range(self.connection.tries):
            answer = self.connection.request(url, {}, wait=True)
            with expected_form(url):
                if answer["success"] is True:
                    return
            time.sleep(self.connection.backoff * 2**attempt)
        raise ModelError(
            f"{self} keeps its prefix cache of the weights before; expected a server that answers "
            "no one else while it loads weights, or one without a prefix cache "
            "(--no-enable-prefix-caching)."
        )

    def _complete(self, prompt: Sequence[int], *, max_tokens: int, **settings: Any) -> Any:
        body = {"model": self.name, "prompt": list(prompt), "max_tokens": max_tokens, **settings}
        try:
            return self.connection.request(f"{self.url}/completions", body, wait=True)
        except RefusedError as error:
            k = settings.get("prompt_logprobs")
            if k is not None and (cap := _CAP.search(str(error))):
                raise ConfigError(
                    f"{self} returns at most {cap[1]} log-probabilities per token, but k = {k}: "
                    f"use k = {cap[1]} or less, or serve the model with --max-logprobs {k}."
                ) from error
            raise


def _sampler_logp(logprobs: Any) -> list[float] | None:
    return None if logprobs is None else [nats(value) for value in logprobs["token_logprobs"]]


def _matrix(encoded: Any, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Read the base64 of an .npy file of log-probabilities.

    Raises
    ------
    ValueError
        It is none, or has another shape.
    """
    content = io.BytesIO(base64.b64decode(str(encoded), validate=True))
    if np.lib.format.read_magic(content) != (1, 0):
        raise ValueError("scores that are no .npy file of version 1.0")
    claimed, _, dtype = np.lib.format.read_array_header_1_0(content)
    if (claimed, dtype) != (shape, np.dtype("<f4")):
        raise ValueError(
            f"scores of shape {claimed} and type {dtype}, expected {shape} and float32"
        )
    found = np.frombuffer(content.read(), "<f4").reshape(shape)
    if not (found < 1e-3).all():
        raise ValueError("a score that is no log-probability")
    return np.minimum(found, 0)
