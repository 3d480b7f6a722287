"""Requests to a server: limited in time and number, and retried where that may help."""

import http.client
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from opdprobe.errors import ModelError, OPDProbeError
from opdprobe.store.safe_text import parse_json

API_KEY = "OPDPROBE_API_KEY"
"""Environment variable that holds the server's key, if it needs one."""

_LONGEST_PAUSE = 30.0  # seconds

_In = TypeVar("_In")
_Out = TypeVar("_Out")


class RefusedError(ModelError):
    """A server answered with an error; `status` is its HTTP status, the message its own."""

    def __init__(self, url: str, status: int, content: bytes):
        hint = f"; set the key in {API_KEY}" if status in (401, 403) else ""
        super().__init__(f"{url} answered {status} ({_server_message(content)}){hint}.")
        self.status = status


@dataclass(frozen=True)
class Connection:
    """How requests to a server are made.

    Parameters
    ----------
    timeout
        Seconds to wait for one answer.
    tries
        Most attempts at a request that the server is too busy for (429), fails (5xx) or drops.
    backoff
        Seconds before the second try, doubled for each further one, up to 30. A server's
        ``Retry-After`` replaces them, also up to 30.
    workers
        Most requests in flight at once.
    """

    timeout: float = 600.0
    tries: int = 5
    backoff: float = 0.5
    workers: int = 8

    def request(self, url: str, body: Any = None) -> Any:
        """Make a request and read its JSON answer.

        Parameters
        ----------
        url
            Address of the request.
        body
            Posted as JSON; without it, the request is a GET.

        Raises
        ------
        RefusedError
            The server answered with an error, to the last try if it was asked again.
        ModelError
            No server, no answer in time (which is not retried), or an answer that is not JSON.
        """
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(API_KEY):
            headers["Authorization"] = f"Bearer {key}"
        data = None if body is None else json.dumps(body).encode()
        for attempt in range(1, self.tries + 1):
            pause = self.backoff * 2 ** (attempt - 1)
            try:
                with urlopen(Request(url, data, headers), timeout=self.timeout) as response:
                    return _json(url, response.read())
            except HTTPError as error:
                with error:
                    problem = RefusedError(url, error.code, error.read())
                if error.code != 429 and error.code < 500:
                    raise problem from None
                asked = error.headers.get("Retry-After", "")  # seconds, or a date
                pause = float(asked) if asked.isdecimal() else pause
            except (OSError, http.client.HTTPException) as error:
                reason = error.reason if isinstance(error, URLError) else error
                if isinstance(reason, TimeoutError):
                    raise ModelError(
                        f"{url}: no answer within {self.timeout:g} s; check that the server is "
                        "alive, ask for shorter responses, or raise the timeout."
                    ) from error
                problem = ModelError(
                    f"{url}: {reason or type(reason).__name__}; check that the server is up, and "
                    "that this is its address."
                )
            if attempt == self.tries:
                raise problem
            time.sleep(min(pause, _LONGEST_PAUSE))
        raise AssertionError("unreachable: there is at least one try")

    def side_by_side(self, ask: Callable[[_In], _Out], items: Sequence[_In]) -> Iterator[_Out]:
        """Yield answers in the order of the items; after an error, no further item is started."""
        with ThreadPoolExecutor(self.workers) as pool:
            yield from pool.map(ask, items)  # when it ends, it cancels the rest


@contextmanager
def expected_form(url: str) -> Iterator[None]:
    """Raise a `ModelError` if the block finds that an answer does not follow the protocol.

    Raises
    ------
    ModelError
        A part is missing, or has another type.
    """
    try:
        yield
    except OPDProbeError:  # some are ValueErrors with a better message
        raise
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise ModelError(
            f"{url}: the answer does not follow the protocol ({type(error).__name__}: {error}); "
            "expected a server such as vLLM's."
        ) from error


def _json(url: str, content: bytes) -> Any:
    try:
        return parse_json(content)
    except ValueError as error:
        raise ModelError(
            f"{url}: the answer is not JSON ({error}); it begins {content[:80]!r}. Check that the "
            "server has the OpenAI-compatible protocol."
        ) from error


def _server_message(content: bytes) -> str:
    """Read a server's error message: in vLLM's two forms, in FastAPI's, or as plain text."""
    text = content.decode(errors="replace").strip()
    try:
        answer = parse_json(text)
    except ValueError:
        answer = None
    if isinstance(answer, dict):
        said = answer.get("error", answer)
        said = said.get("message", said.get("detail")) if isinstance(said, dict) else said
        text = str(said) if said else text
    return text[:500] or "no message"
