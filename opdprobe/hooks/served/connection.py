"""Requests to a server: limited in time and number, and retried where that may help."""

import http.client
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from typing import Any, NoReturn, TypeVar
from urllib.error import HTTPError, URLError
from urllib.parse import SplitResult, urljoin, urlsplit
from urllib.request import HTTPRedirectHandler, OpenerDirector, Request, build_opener

from opdprobe.errors import ConfigError, ModelError, OPDProbeError
from opdprobe.store.budget import LEAST, check_parsed
from opdprobe.store.safe_text import parse_json

API_KEY = "OPDPROBE_API_KEY"
"""Environment variable that holds the server's key, if it needs one."""

logger = logging.getLogger("opdprobe")

_LONGEST_PAUSE = 30.0  # seconds
_AWAY = (429, 502, 503, 504)  # busy, or behind a proxy that does not reach it
# Limits in bytes: of each number that is asked for (a token with its log-probability takes about 90
# as JSON), and of an error's text.
_OF_NUMBER, _MOST_SAID = 250, 2**20
# Fields of requests that say how many tokens are listed at each place.
_ASKED_LISTS = ("prompt_logprobs", "logprobs", "top_logprobs_num")
# JSON takes more memory when it is parsed: honest answers 6 times their size, others 60.
_PARSED = 10

_In = TypeVar("_In")
_Out = TypeVar("_Out")


class RefusedError(ModelError):
    """A server answered with an error; `status` is its HTTP status, the message its own."""

    def __init__(self, url: str, status: int, content: bytes):
        hint = f"; set the key in {API_KEY}" if status in (401, 403) else ""
        said = without_key(_server_message(content))
        super().__init__(f"{url} answered {status} ({said[:500] or 'no message'}){hint}.")
        self.status = status


class _NoRedirects(HTTPRedirectHandler):
    """Follow no redirect, which would take the key and the prompts to an address unseen."""

    def http_error_302(self, req: Request, fp: Any, code: int, msg: Any, headers: Any) -> None:
        if (location := headers.get("Location")) is None:
            return  # urllib raises an HTTPError
        fp.close()
        with suppress(ValueError):  # else it is shown as the server wrote it
            location = urljoin(req.full_url, location)
        raise ModelError(
            f"{req.full_url} redirects to {without_key(location)[:500]}: opdprobe follows no "
            "redirect, which would take prompts and key there. If you trust that address, give it "
            "instead."
        )

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302  # pyright: ignore[reportAssignmentType]


@cache
def _opener() -> OpenerDirector:
    return build_opener(_NoRedirects)


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
    patience
        Seconds for which a request that failed `tries` times is repeated, if the server was there
        before and is now busy (429) or away (502 to 504, no connection): long enough to start it
        again.
    """

    timeout: float = 600.0
    tries: int = 5
    backoff: float = 0.5
    workers: int = 8
    patience: float = 600.0

    def request(self, url: str, body: Any = None, *, wait: bool = False) -> Any:
        """Make a request and read its JSON answer.

        Parameters
        ----------
        url
            Address of the request.
        body
            Posted as JSON; without it, the request is a GET.
        wait
            Have patience: the server was there before.

        Raises
        ------
        RefusedError
            The server answered with an error, to the last try if it was asked again.
        ModelError
            No server, no answer in time (which is not retried), a redirect, or an answer that is
            not JSON or without end.
        ConfigError
            The key holds characters that a header cannot.
        """
        headers = {"Content-Type": "application/json"}
        if key := _key():
            headers["Authorization"] = f"Bearer {key}"
        data = None if body is None else json.dumps(body).encode()
        most, began = most_of_answer(body), time.monotonic()
        attempt = 0
        while True:
            attempt += 1
            pause, away = self.backoff * 2 ** min(attempt - 1, 60), True
            try:
                return _json(url, self._answer(Request(url, data, headers), most), most)
            except HTTPError as error:
                problem = RefusedError(url, error.code, _said(error))
                if error.code != 429 and error.code < 500:
                    raise problem from None
                away = error.code in _AWAY
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
            left = began + self.patience - time.monotonic() if wait and away else 0
            if attempt >= self.tries and left <= 0:
                raise problem
            if attempt == self.tries:
                logger.warning("%s Asking it again for %.0f s.", problem, left)
            time.sleep(min(pause, _LONGEST_PAUSE))

    def _answer(self, request: Request, most: int) -> bytes:
        """Read one answer to its end; the time limit is of all of it, not of each of its pieces."""
        until = time.monotonic() + self.timeout
        content = bytearray()
        with _opener().open(request, timeout=self.timeout) as response:
            while piece := response.read1(2**20):
                content += piece
                if len(content) > most:
                    _endless(request.full_url, most)
                if time.monotonic() > until:
                    raise TimeoutError
            if response.length:  # bytes that were announced and did not come
                raise http.client.IncompleteRead(b"", response.length)
        return bytes(content)

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
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ModelError(
            f"{url}: the answer does not follow the protocol ({type(error).__name__}: "
            f"{without_key(str(error))[:500]}); expected a server such as vLLM's."
        ) from error


def without_key(text: str) -> str:
    """Take the key out of what a server said: some repeat the key that they refuse.

    Examples
    --------
    >>> without_key("no such model")
    'no such model'
    """
    key = os.environ.get(API_KEY, "").strip()
    return text.replace(key, f"[{API_KEY}]") if key else text


def split_address(address: str) -> SplitResult:
    """Take a model's address apart.

    Raises
    ------
    ConfigError
        It is none, or holds a user name or a query; the message leaves out what may be a password.
    """
    host, at, _ = address.partition("#")[0].split("//", 1)[-1].partition("/")[0].rpartition("@")
    if at:
        raise ConfigError(
            f"{address.replace(host + at, '')}: the address holds a user name; set a key in the "
            f"environment variable {API_KEY} instead."
        )
    parts = None
    with suppress(ValueError):  # half an IPv6 address, or a port that is none
        if (split := urlsplit(address)).hostname and split.port != 0:
            parts = split
    if parts is None or parts.scheme not in ("http", "https"):
        raise ConfigError(
            f"{address}: expected an address such as http://host:8000/v1, followed by #NAME "
            "if the server has several models."
        )
    if parts.query:
        raise ConfigError(
            f"the address on {parts.hostname} has a query (?…); expected none: set a key in the "
            f"environment variable {API_KEY}."
        )
    return parts


def _key() -> str:
    """Read the key, "" if there is none; http.client would quote one that it cannot send."""
    key = os.environ.get(API_KEY, "").strip()
    for place, character in enumerate(key, start=1):
        if not "!" <= character <= "~":
            raise ConfigError(
                f"{API_KEY}: character {place} of {len(key)} is not allowed in a key; expected "
                "ASCII letters, digits and punctuation, without spaces: set it again."
            )
    return key


def _said(error: HTTPError) -> bytes:
    """Read the beginning of an error's text, which is longer than any message shows."""
    with error:
        try:
            return error.read(_MOST_SAID)
        except (OSError, http.client.HTTPException):
            return b""  # the status says enough


def most_of_answer(body: Any) -> int:
    """Bytes that an answer may have: as many as the numbers that the request asks for need.

    Parameters
    ----------
    body
        The request as JSON, or None.

    Examples
    --------
    >>> most_of_answer(None), most_of_answer({"prompt": [1] * 1000, "prompt_logprobs": 98})
    (67108864, 92358864)
    """
    if not isinstance(body, dict):
        return LEAST
    asked = body.get("prompt") or body.get("input_ids") or body.get("token_ids") or ()
    length = body.get("sampling_params", {}).get("max_new_tokens", 0) or body.get("max_tokens", 0)
    tokens = len(asked) + body.get("n", 1) * length
    lists = 3 + sum(body.get(name) or 0 for name in _ASKED_LISTS)
    lists += len(body.get("token_ids_logprob", ()))
    return LEAST + _OF_NUMBER * tokens * lists


def _endless(url: str, most: int) -> NoReturn:
    raise ModelError(
        f"{url}: the answer is longer than {most} bytes, far more than what was asked for; check "
        "that this is a model's server."
    )


def _json(url: str, content: bytes, most: int) -> Any:
    try:
        check_parsed(content, _PARSED * most)
        return parse_json(content)
    except ValueError as error:
        raise ModelError(
            f"{url}: the answer is not JSON ({error}); it begins {_beginning(content)!r}. Check "
            "that the server has the OpenAI-compatible protocol."
        ) from error


def _beginning(content: bytes) -> bytes:
    text = content[:_MOST_SAID].decode("latin-1")  # one character a byte
    return without_key(text)[:80].encode("latin-1")


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
    return text
