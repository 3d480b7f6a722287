"""Requests in SGLang's own protocol: ``/generate``, in token ids.

With ``logprob_start_len`` S, ``meta_info`` lists the text's tokens from place S on. The first of
them has no log-probability there; that of each further one is given what stands before it. So a
response is read by starting at the last token of its prompt.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opdprobe.errors import ModelError
from opdprobe.hooks.served.connection import Connection, RefusedError, expected_form, without_key
from opdprobe.hooks.served.told import UNCHANGED, Drawn, nats

# SGLang reports one list of tokens at all places of a text. Where each place has tokens of its own,
# their union is asked for, piece by piece of the response, with at most so many numbers a piece.
_MOST_NUMBERS = 200_000


class SGLang:
    """A model on an SGLang server.

    Parameters
    ----------
    url
        Base URL of the server's OpenAI-compatible protocol, which ends in /v1.
    name
        The server's name for the model.
    connection
        Timeout, tries and number of parallel requests.
    """

    loads_weights = True

    def __init__(self, url: str, name: str, connection: Connection):
        self.url, self.name, self.connection = url, name, connection
        self._root = url.removesuffix("/v1")
        self._generate = f"{self._root}/generate"

    def __repr__(self) -> str:
        return f"{self.url}#{self.name}"

    def draw(self, prompt: Sequence[int], n: int, length: int, seed: int) -> list[Drawn]:
        """Sample `n` responses; SGLang takes no seed, unless it computes deterministically."""
        found = []
        for _ in range(n):  # its own documentation advises against several in a request
            answer = self._ask(prompt, length)
            with expected_form(self._generate):
                meta = answer["meta_info"]
                rows = [(nats(row[0]), int(row[1])) for row in meta["output_token_logprobs"]]
                reason = meta["finish_reason"]
                reason = str(reason["type"] if isinstance(reason, dict) else reason)
                found.append(
                    Drawn([token for _, token in rows], reason, [logp for logp, _ in rows])
                )
        return found

    def lists(
        self, prompt: Sequence[int], response: Sequence[int], k: int
    ) -> list[dict[int, float]]:
        """Ask for the top-k at each token of the response."""
        answer = self._ask(
            [*prompt, *response], 0, logprob_start_len=len(prompt) - 1, top_logprobs_num=k
        )
        with expected_form(self._generate):
            meta = answer["meta_info"]
            own, top = meta["input_token_logprobs"], meta["input_top_logprobs"]
            self._check_length(len(response), len(own), len(top))
            # It writes 0 in place of the last token of its vocabulary.
            if any(
                int(row[1]) not in (token, 0) for row, token in zip(own[1:], response, strict=True)
            ):
                raise ModelError(
                    f"{self} reports other tokens than it was sent: its server changes texts."
                )
            return [
                {**_by_token(listed), token: nats(row[0])}
                for row, listed, token in zip(own[1:], top[1:], response, strict=True)
            ]

    def at(
        self, prompt: Sequence[int], response: Sequence[int], ids: NDArray[np.integer]
    ) -> NDArray[np.float32]:
        """Ask for given tokens at each token of the response."""
        found = np.empty(ids.shape, np.float32)
        for start, end in _pieces(ids):
            wanted = np.unique(ids[start:end])
            answer = self._ask(
                [*prompt, *response[:end]],
                0,
                logprob_start_len=len(prompt) + start - 1,
                token_ids_logprob=wanted.tolist(),
            )
            with expected_form(self._generate):
                rows = answer["meta_info"]["input_token_ids_logprobs"]
                self._check_length(end - start, len(rows))
                for i, row in enumerate(rows[1:], start):
                    logp = _by_token(row)
                    found[i] = [logp[token] for token in ids[i].tolist()]
        return found

    def load(self, directory: Path) -> None:
        """Have the server load the weights of a saved model; it then forgets its prefix cache."""
        url = f"{self._root}/update_weights_from_disk"
        why = None
        try:
            answer = self.connection.request(url, {"model_path": str(directory)}, wait=True)
            with expected_form(url):
                if answer["success"] is not True:
                    why = without_key(str(answer["message"]))
        except RefusedError as error:
            why = str(error)
        if why is not None:
            raise ModelError(
                f"{self} did not load {directory} ({why[:500]}); expected a server of this model, "
                "on a machine that sees that directory."
            )

    def has_loaded(self) -> bool:
        """True: it is not asked; the comparison of log-probabilities finds other weights."""
        return True

    def _ask(self, ids: Sequence[int], length: int, **settings: Any) -> Any:
        body = {
            "input_ids": list(ids),
            "sampling_params": {"max_new_tokens": length, **UNCHANGED},
            "return_logprob": True,
            **settings,
        }
        return self.connection.request(self._generate, body, wait=True)

    def _check_length(self, wanted: int, *found: int) -> None:
        if wrong := [n for n in found if n != wanted + 1]:
            raise ModelError(
                f"{self} was asked for {wanted} tokens and reports {wrong[0] - 1}: its server cuts "
                "texts, or its cache took them (start it with --disable-radix-cache)."
            )


def _by_token(rows: Any) -> dict[int, float]:
    return {int(row[1]): nats(row[0]) for row in rows}


def _pieces(ids: NDArray[np.integer]) -> list[tuple[int, int]]:
    """Cut a response where places times different tokens would pass the limit."""
    pieces, start, seen = [], 0, set[int]()
    for place, row in enumerate(ids.tolist()):
        union = seen.union(row)
        if place > start and (place + 1 - start) * len(union) > _MOST_NUMBERS:
            pieces.append((start, place))
            start, union = place, set(row)
        seen = union
    return [*pieces, (start, len(ids))]
