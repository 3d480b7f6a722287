"""A model on a server: samples of it, and what it reports of its distribution.

The server speaks vLLM's protocol or SGLang's; both are asked in token ids.
"""

from collections.abc import Sequence
from pathlib import Path

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
from opdprobe.hooks.served.sglang import SGLang
from opdprobe.hooks.served.told import Drawn, Engine, Told, TooFewError, check_ids, read_told
from opdprobe.hooks.served.vllm import VLLM
from opdprobe.rollout.sample import Rollouts


class ServedModel:
    """A model on a server, by name.

    Parameters
    ----------
    address
        The protocol's base URL, then ``#`` and the server's name for the model:
        ``http://host:8000/v1#my/model``. With a single model, the name may be left out. The server
        says whether it is SGLang's; any other one is asked in vLLM's protocol.
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
        self.name, self.context, engine = self._find(parts.fragment)
        self.engine: Engine = engine(self.url, self.name, self.connection)

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

        def ask(index: int) -> list[Drawn]:
            self.check_length(len(prompts[index]) + max_completion_length)
            number = int(np.random.SeedSequence([*seed, index]).generate_state(1)[0])
            found = self.engine.draw(prompts[index], num_generations, max_completion_length, number)
            self._check_drawn(found, index, num_generations, max_completion_length)
            return found

        answers = self.connection.side_by_side(ask, range(len(prompts)))
        rows = [row for some in answers for row in some]
        logp = [row.logp for row in rows if row.logp is not None]
        return Rollouts(
            prompt_ids=[list(ids) for ids in prompts for _ in range(num_generations)],
            response_ids=[row.tokens for row in rows],
            finished=[row.reason == "stop" for row in rows],
            prompt_index=[i for i in range(len(prompts)) for _ in range(num_generations)],
            sampler_logp=logp if len(logp) == len(rows) else None,
        )

    def _check_drawn(self, found: Sequence[Drawn], index: int, n: int, length: int) -> None:
        for one in found:
            check_ids(self, one.tokens)
            if one.logp is not None and len(one.logp) != len(one.tokens):
                raise ModelError(
                    f"{self} reports {len(one.logp)} log-probabilities of {len(one.tokens)} drawn "
                    "tokens: its server is faulty, see its log, or update it."
                )
        ends = [one.reason for one in found]
        if len(found) != n or any(reason not in ("stop", "length") for reason in ends):
            raise ModelError(
                f"{self} returned {len(found)} responses to prompt {index}, with finish reasons "
                f"{without_key(', '.join(ends))[:200] or 'none'}; expected {n}, each with stop or "
                "length: see the server's log."
            )
        cut = [len(one.tokens) for one in found if one.reason == "length"]
        if cut and min(cut) < length:
            raise ModelError(
                f"{self} cut a response to prompt {index} after {min(cut)} of {length} tokens, "
                "where its context ends: ask for shorter responses."
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
            The server fails, returns no log-probabilities of a prompt, or changes the text.
        VocabularyError
            A token outside the vocabulary was drawn, or the server gives such tokens more
            probability than padding gets. Elsewhere they are left out of the lists.
        """

        def ask(index: int, asked: int = k) -> Told:
            prompt, response = rollouts.prompt_ids[index], rollouts.response_ids[index]
            self.check_length(len(prompt) + len(response) + 1)
            try:
                entries = self.engine.lists(prompt, response, asked)
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
                return read_told(self, entries, response, k, width)
            except TooFewError as error:
                if asked >= 4 * k:
                    raise VocabularyError(
                        f"{self} lists more ids beyond the tokenizer's {width} tokens than within: "
                        "choose models of one family."
                    ) from error
                return ask(index, asked + error.missing)

        parts = list(self.connection.side_by_side(ask, range(len(rollouts))))
        return Told(
            np.concatenate([part.token_id for part in parts]),
            np.concatenate([part.logp for part in parts]),
            np.concatenate([part.sampled_logp for part in parts]),
        )

    def tell_at(self, rollouts: Rollouts, ids: NDArray[np.integer]) -> NDArray[np.float32] | None:
        """Request the log-probabilities of given tokens at every state, at temperature 1.

        Parameters
        ----------
        rollouts
            The states are those of their responses, in order: N in all.
        ids : ndarray (N, M)
            Tokens of the vocabulary at each state.

        Returns
        -------
        ndarray (N, M) of float32, or None
            Over the full vocabulary, in nats; None if the server cannot tell.

        Raises
        ------
        ModelError
            The server fails.
        """
        ends = np.cumsum([len(response) for response in rollouts.response_ids])

        def ask(index: int) -> NDArray[np.float32] | None:
            prompt, response = rollouts.prompt_ids[index], rollouts.response_ids[index]
            end = int(ends[index])
            if not response:
                return np.empty((0, ids.shape[1]), np.float32)
            return self.engine.at(prompt, response, ids[end - len(response) : end])

        found = list(self.connection.side_by_side(ask, range(len(rollouts))))
        known = [part for part in found if part is not None]
        return np.concatenate(known) if len(known) == len(found) else None

    @property
    def loads_weights(self) -> bool:
        """Whether the server can load weights from a directory.

        SGLang's can, and vLLM's in its development mode, for which it is asked.
        """
        return self.engine.loads_weights

    def load_weights(self, directory: Path) -> None:
        """Have the server load the weights of a saved model, which its machine must see.

        Raises
        ------
        ModelError
            It does not load them.
        """
        self.engine.load(directory.resolve())

    def has_loaded(self) -> bool:
        """Whether the server still has the weights that it loaded last.

        A server that was started again has its first ones. True if the server cannot say: SGLang's,
        and older ones of vLLM's.
        """
        return self.engine.has_loaded()

    def tokenize(self, text: str) -> list[int] | None:
        """Token ids of a text by the server's tokenizer; None if it has no ``/tokenize``."""
        url = self.url.removesuffix("/v1") + "/tokenize"
        body = {"model": self.name, "prompt": text, "add_special_tokens": False}
        try:
            answer = self.connection.request(url, body, wait=True)
        except RefusedError as error:
            if error.status in (404, 405):
                return None
            raise
        with expected_form(url):
            return [int(token) for token in answer["tokens"]]

    def _find(self, name: str) -> tuple[str, int | None, type[VLLM | SGLang]]:
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
                str(model["id"]): (
                    None if (n := model.get("max_model_len")) is None else int(n),
                    SGLang if model.get("owned_by") == "sglang" else VLLM,
                )
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
        return name, *found[name]
