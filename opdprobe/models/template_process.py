"""Render chat templates in a process of their own, which has little memory and time."""

from __future__ import annotations

import atexit
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from opdprobe.models import template_child
from opdprobe.models.template_child import FAILED, TEXT, read_frame, write_frame
from opdprobe.store.budget import most_bytes

# Most characters of a prompt: a million, and 16 for each byte of the conversation.
_LEAST, _TIMES = 2**20, 16
# Names of environment variables that a template has no use for, were it to leave its sandbox.
_SECRET = re.compile("KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)


class TemplateError(ValueError):
    """A chat template failed, or took more than it may."""


class _Process:
    """The process, which starts with the first conversation and ends with this one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: subprocess.Popen[bytes] | None = None

    def ask(self, wanted: Mapping[str, Any]) -> bytes:
        """Return the answer, or raise `TemplateError` if the process ends without one."""
        with self._lock:
            if self._running is not None and self._running.poll() is not None:
                self._end()  # something else ended it
            process = self._running = self._running or _started()
            try:
                write_frame(_stream(process.stdin), pickle.dumps(dict(wanted)))
                if answer := read_frame(_stream(process.stdout)):
                    return answer
            except BrokenPipeError:
                pass
            except BaseException:
                self._end()  # an answer that nobody reads would be taken for the next one
                raise
            raise TemplateError(self._end(wanted["seconds"]))

    def stop(self) -> None:
        """End the process, if there is one."""
        with self._lock:
            if self._running is not None:
                self._end()

    def _end(self, seconds: float = 0) -> str:
        process, self._running = self._running, None
        assert process is not None
        if not seconds:
            process.kill()
        code = process.wait()
        for stream in (process.stdin, process.stdout):
            with suppress(BrokenPipeError):
                _stream(stream).close()
        if hasattr(signal, "SIGPROF") and code == -signal.SIGPROF:
            return f"it did not end within {seconds:g} s"
        return f"its process ended with code {code}"


def _started() -> subprocess.Popen[bytes]:
    environment = {name: v for name, v in os.environ.items() if not _SECRET.search(name)}
    environment |= {
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        # More threads take address space, which is limited.
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    return subprocess.Popen(
        [sys.executable, "-P", str(Path(template_child.__file__))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        start_new_session=True,  # Ctrl-C is for this process
    )


def _stream(stream: IO[bytes] | None) -> Any:
    assert stream is not None
    return stream


_process = _Process()
atexit.register(lambda: _process.stop())


def _forget() -> None:
    global _process
    _process = _Process()  # two processes cannot share one pipe


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def render_apart(
    template: str,
    special_tokens: Mapping[str, Any],
    messages: Sequence[Mapping[str, str]],
    given: Mapping[str, Any],
    *,
    seconds: float,
) -> str:
    """Apply a chat template as transformers does, in another process.

    Parameters
    ----------
    template
        Its text.
    special_tokens
        The tokenizer's, by name.
    messages
        The conversation.
    given
        Further arguments of ``apply_chat_template``.
    seconds
        How long it may compute; on Windows, there is no limit.

    Returns
    -------
    str
        The text.

    Raises
    ------
    TemplateError
        The template fails, takes more memory than its size and the conversation's account for, or
        more time, or makes a text that is far longer.
    """
    size = len(template) + len(pickle.dumps((messages, given)))
    most = _LEAST + _TIMES * size
    answer = _process.ask(
        {
            "template": template,
            "special_tokens": special_tokens,
            "messages": [dict(message) for message in messages],
            "given": dict(given),
            "seconds": seconds,
            "memory": most_bytes(size),
            "length": most,
        }
    )
    kind, text = answer[:1], answer[1:].decode("utf-8", "surrogatepass")
    if kind == TEXT:
        return text
    if kind == FAILED:
        raise TemplateError(text)
    raise TemplateError(
        f"it makes {text} characters of a template and a conversation of {size}; expected at most "
        f"{most}"
    )
