"""A model on a server with the OpenAI-compatible protocol and vLLM's extensions.

There are two kinds of requests, both in token ids: to sample from prompts, and to report the top-k
at every position of a text (``prompt_logprobs``, which also covers the text's own tokens).
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opdprobe.errors import ConfigError, ModelError, VocabularyError
from opdprobe.hooks.served.connection import (
    API_KEY,
    Connection,
    RefusedError,
    expected_form,
    split_address,
    without_key,
)
from opdprobe.rollout.sample import Rollouts

# How vLLM writes a log-probability of -inf, which JSON cannot represent.
_RULED_OUT = -9999.0
# Padding has no trained weights; models of another family give their own tokens most of the mass.
_MOST_PADDING = 0.5
_CAP = re.compile(r"max allowed:? (\d+)")
# Sent with every request, since the server's own defaults (a model's generation_config.json) may
# differ: rollouts must come from the student's unchanged distribution.
_UNCHANGED = {
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": -1,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}


class _TooFewError(Exception):
    """Padding took places in a list; `missing` is how many tokens are missing."""

    def __init__(self, missing: int):
        super().__init__(missing)
        self.missing = missing


@dataclass(frozen=True)
class Told:
    """What a server reports of a model at N states.

    Parameters
    ----------
    token_id : ndarray (N, K) of int64
        Its top-k, most probable first; ties go to the lower id.
    logp : ndarray (N, K) of float32
        Their log-probabilities over the full vocabulary, in nats.
    sampled_logp : ndarray (N,) of float32
        Log-probabilities of the text's own tokens, in nats.
    """

    token_id: NDArray[np.int64]
    logp: NDArray[np.float32]
    sampled_logp: NDArray[np.float32]


class ServedModel:
    """A model on a server, by name.

    Parameters
    ----------
    address
        The protocol's base URL, then ``#`` and the server's name for the model:
        ``http://host:8000/v1#my/model``. With a single model, the name may be left out.
    connection
        Timeout, tries and number of parallel requests.

    Raises
    ------
    ConfigError
        The address is invalid, or the server has several models and none is named.
    ModelError
        The server or the model does not exist; lists the models that the server has.

    Attributes
    ----------
    name
        The server's name for the model.
    context
        Most tokens of a text, prompt and response together; None if the server does not report it.

    Notes
    -----
    A key is read from the environment variable ``OPDPROBE_API_KEY``, and never stored.

    Examples
    --------
    >>> ServedModel("localhost:8000")
    Traceback (most recent call last):
    ...
    opdprobe.errors.ConfigError: localhost:8000: expected an address such as http://host:8000/v1...
    """

    def __init__(self, address: str, connection: Connection | None = None):
        parts = split_address(address)
        self.url = parts._replace(fragment="").geturl().rstrip("/")
        self.connection = connection or Connection()
        self.name, self.context = self._find(parts.fragment)

    def __repr__(self) -> str:
        return f"{self.url}#{self.name}"

    def check_length(self, tokens: int) -> None:
        """Raise if `tokens` do not fit; a server would silently shorten the response.

        Raises
        ------
        ModelError
            `tokens` is above the server's context.
        """
        if self.context is not None and tokens > self.context:
            raise ModelError(
                f"{self} has a context of {self.context} tokens, but a prompt with its response "
                f"needs {tokens} (one extra where it is scored): ask for shorter responses, or "
                "serve the model with a larger --max-model-len."
            )

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        num_generations: int,
        max_completion_length: int,
        seed: Sequence[int],
    ) -> Rollouts:
        """Sample `num_generations` responses per prompt, from the model's unchanged distribution.

        Parameters
        ----------
        prompts
            Token ids of each prompt.
        num_generations
            Rollouts per prompt.
        max_completion_length
            Longest response, in tokens.
        seed
            Seed of the random numbers. A server may still not reproduce its responses.

        Returns
        -------
        Rollouts
            As from `opdprobe.rollout.sample.sample`. The server decides which tokens end one.

        Raises
        ------
        ModelError
            The server fails, gives no token ids, or cannot hold prompt and response.
        """

        def ask(index: int) -> list[tuple[list[int], bool]]:
            answer = self._complete(
                prompts[index],
                n=num_generations,
                max_tokens=max_completion_length,
                # vLLM adds 1 for each further response.
                seed=int(np.random.SeedSequence([*seed, index]).generate_state(1)[0]),
                return_token_ids=True,
                **_UNCHANGED,
            )
            with expected_form(f"{self.url}/completions"):
                found = [
                    (
                        [int(token) for token in choice.get("token_ids") or []],
                        choice["finish_reason"],
                    )
                    for choice in answer["choices"]
                ]
            for tokens, _ in found:
                self._check_ids(tokens)
            if not all(tokens for tokens, _ in found):
                raise ModelError(
                    f"{self} returns no token ids with its responses (return_token_ids), and their "
                    "text does not determine them: use vLLM 0.10.2 or newer."
                )
            if len(found) != num_generations or any(
                reason not in ("stop", "length") for _, reason in found
            ):
                ends = without_key(", ".join(str(reason) for _, reason in found))[:200]
                raise ModelError(
                    f"{self} returned {len(found)} responses to prompt {index}, with finish "
                    f"reasons {ends or 'none'}; expected {num_generations}, each with stop or "
                    "length: see the server's log."
                )
            if cut := [
                len(t) for t, why in found if why == "length" and len(t) < max_completion_length
            ]:
                raise ModelError(
                    f"{self} cut a response to prompt {index} after {cut[0]} of "
                    f"{max_completion_length} tokens, where its context ends: ask for shorter "
                    "responses."
                )
            return [(tokens, reason == "stop") for tokens, reason in found]

        answers = self.connection.side_by_side(ask, range(len(prompts)))
        rows = [row for some in answers for row in some]
        return Rollouts(
            prompt_ids=[list(ids) for ids in prompts for _ in range(num_generations)],
            response_ids=[tokens for tokens, _ in rows],
            finished=[stopped for _, stopped in rows],
            prompt_index=[i for i in range(len(prompts)) for _ in range(num_generations)],
        )

    def tell(self, rollouts: Rollouts, *, k: int, width: int) -> Told:
        """Request the model's top-k at every state of some rollouts, at temperature 1.

        Parameters
        ----------
        rollouts
            The states are those of their responses, in order.
        k
            Tokens kept per state.
        width
            Size of the vocabulary.

        Raises
        ------
        ConfigError
            The server returns fewer than `k` tokens per state; names how many.
        ModelError
            The server fails, returns no ``prompt_logprobs``, or changes the text.
        VocabularyError
            A token outside the vocabulary was drawn, or the server gives such tokens more
            probability than padding gets. Elsewhere they are left out of the lists.
        """

        def ask(index: int, asked: int = k) -> Told:
            prompt, response = rollouts.prompt_ids[index], rollouts.response_ids[index]
            try:
                answer = self._complete(
                    [*prompt, *response], max_tokens=1, temperature=1.0, prompt_logprobs=asked
                )
            except ConfigError as error:
                if asked == k:
                    raise
                raise ConfigError(
                    f"{self} lists padding ids, beyond the tokenizer's {width} tokens, so {asked} "
                    f"log-probabilities are needed for k = {k}, which are more than it returns: "
                    f"use k = {2 * k - asked} or less, or serve the model with a larger "
                    "--max-logprobs."
                ) from error
            try:
                return read(answer, prompt, response)
            except _TooFewError as error:
                if asked >= 4 * k:
                    raise VocabularyError(
                        f"{self} lists more ids beyond the tokenizer's {width} tokens than within: "
                        "choose models of one family."
                    ) from error
                return ask(index, asked + error.missing)

        def read(answer: Any, prompt: list[int], response: list[int]) -> Told:
            with expected_form(f"{self.url}/completions"):
                entries = answer["choices"][0].get("prompt_logprobs")
                if entries is None:
                    raise ModelError(
                        f"{self} returns no prompt_logprobs: its server lacks this extension. "
                        "Serve the model with vLLM."
                    )
                if len(entries) != len(prompt) + len(response):
                    raise ModelError(
                        f"{self} was sent {len(prompt) + len(response)} tokens and reports "
                        f"{len(entries)}: its server cuts texts."
                    )
                return self._told(entries[len(prompt) :], response, k, width)

        parts = list(self.connection.side_by_side(ask, range(len(rollouts))))
        return Told(
            np.concatenate([part.token_id for part in parts]),
            np.concatenate([part.logp for part in parts]),
            np.concatenate([part.sampled_logp for part in parts]),
        )

    def tokenize(self, text: str) -> list[int] | None:
        """Token ids of a text by the server's tokenizer; None if it has no ``/tokenize``."""
        url = self.url.removesuffix("/v1") + "/tokenize"
        body = {"model": self.name, "prompt": text, "add_special_tokens": False}
        try:
            answer = self.connection.request(url, body)
        except RefusedError as error:
            if error.status in (404, 405):
                return None
            raise
        with expected_form(url):
            return [int(token) for token in answer["tokens"]]

    def _told(
        self, entries: Sequence[Mapping[str, Any]], response: Sequence[int], k: int, width: int
    ) -> Told:
        n = len(response)
        told = Told(np.empty((n, k), np.int64), np.empty((n, k), np.float32), np.empty(n, "f4"))
        for i, (entry, drawn) in enumerate(zip(entries, response, strict=True)):
            logp = {int(token): _nats(value["logprob"]) for token, value in entry.items()}
            if drawn not in logp:
                raise ModelError(
                    f"{self} was sent token {drawn} and reports {sorted(logp)[:5]} instead: its "
                    "server changes texts."
                )
            self._check_ids(logp)
            if drawn >= width:
                raise VocabularyError(
                    f"{self} drew token {drawn}, but the tokenizer has {width} tokens: either its "
                    "model has padded logits and gives them probability, or the models are not of "
                    "one family. Have the server draw only the tokenizer's tokens, or choose other "
                    "models."
                )
            # Ids beyond the tokenizer are padding of the logits, as in the Qwen family.
            padding = [token for token in logp if token >= width]
            if (mass := sum(np.exp(logp.pop(token)) for token in padding)) > _MOST_PADDING:
                raise VocabularyError(
                    f"{self} gives ids beyond the tokenizer's {width} tokens {mass:.0%} of the "
                    f"probability, as token {padding[0]}, which is more than padding gets; choose "
                    "models of one family."
                )
            best = sorted(logp, key=lambda token: (-logp[token], token))[:k]
            if len(best) < k and padding:
                raise _TooFewError(k - len(best))
            if len(best) < k:
                raise ConfigError(
                    f"{self} returns {len(best)} log-probabilities per token, but k = {k}: use "
                    f"k = {len(best)} or less."
                )
            told.token_id[i] = best
            told.logp[i] = [logp[token] for token in best]
            told.sampled_logp[i] = logp[drawn]
        return told

    def _check_ids(self, ids: Iterable[int]) -> None:
        if (lowest := min(ids, default=0)) < 0:
            raise ModelError(
                f"{self} reports token {lowest}; expected ids from 0: its server is faulty, see "
                "its log, or update it."
            )

    def _complete(self, prompt: Sequence[int], *, max_tokens: int, **settings: Any) -> Any:
        self.check_length(len(prompt) + max_tokens)
        body = {
            "model": self.name,
            "prompt": list(prompt),
            "max_tokens": max_tokens,
            **settings,
        }
        try:
            return self.connection.request(f"{self.url}/completions", body)
        except RefusedError as error:
            k = settings.get("prompt_logprobs")
            if k is not None and (cap := _CAP.search(str(error))):
                raise ConfigError(
                    f"{self} returns at most {cap[1]} log-probabilities per token, but k = {k}: "
                    f"use k = {cap[1]} or less, or serve the model with --max-logprobs {k}."
                ) from error
            raise

    def _find(self, name: str) -> tuple[str, int | None]:
        url = f"{self.url}/models"
        try:
            answer = self.connection.request(url)
        except RefusedError as error:
            if error.status == 404:
                raise ModelError(
                    f"{url}: not found; expected the protocol's base URL, which usually ends in "
                    "/v1."
                ) from error
            raise
        with expected_form(url):
            found = {
                str(model["id"]): None if (n := model.get("max_model_len")) is None else int(n)
                for model in answer["data"]
            }
        listed = without_key(", ".join(found))[:500] or "no model"
        if not name and len(found) != 1:
            raise ConfigError(f"{self.url} serves {listed}; name one: {self.url}#NAME.")
        if name and name not in found:
            raise ModelError(f"{self.url} has no model {name!r}; it serves {listed}.")
        name = name or next(iter(found))
        if without_key(name) != name:  # it would be recorded
            raise ModelError(f"{self.url} names its model with the key in {API_KEY}: rename it.")
        return name, found[name]


def _nats(logprob: Any) -> float:
    """Read a log-probability; rounding may have put it above 0."""
    value = float(logprob)
    if not value < 1e-3:
        raise ValueError(f"a log-probability of {value}")
    return -np.inf if value <= _RULED_OUT else min(value, 0.0)
