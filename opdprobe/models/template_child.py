"""The process in which chat templates run: a template is a program, from whoever made the model.

Run as a script, so that it imports transformers and nothing of opdprobe. It reads requests from its
input, each a length and a pickle, and answers each with a letter and a text.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import struct
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

LENGTH = struct.Struct("<Q")
TEXT, FAILED, TOO_LONG = b"T", b"F", b"L"
_MOST_REASON = 2000


def main() -> None:
    """Answer requests until there are no more."""
    # What libraries print must not get among the answers.
    asked, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    if hasattr(signal, "SIGPROF"):
        signal.signal(signal.SIGPROF, signal.SIG_DFL)  # ends the process, also within one operation
    from transformers import PreTrainedTokenizerBase

    taken = _memory()
    while request := read_frame(asked):
        wanted = pickle.loads(request)
        _limit(taken + wanted["memory"], wanted["seconds"])
        kind, text = _rendered(PreTrainedTokenizerBase, wanted)
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_PROF, 0)
        write_frame(answers, kind + text.encode("utf-8", "surrogatepass"))


def _rendered(base: Any, wanted: dict[str, Any]) -> tuple[bytes, str]:
    own = SimpleNamespace(
        get_chat_template=lambda *_: wanted["template"],
        special_tokens_map=wanted["special_tokens"],
    )
    try:
        text = base.apply_chat_template(own, wanted["messages"], tokenize=False, **wanted["given"])
        return (TEXT, text) if len(text) <= wanted["length"] else (TOO_LONG, str(len(text)))
    except MemoryError:
        return FAILED, f"it takes more than {wanted['memory']} bytes of memory"
    except Exception as error:  # a template may raise anything
        return FAILED, str(error)[:_MOST_REASON]


def _memory() -> int:
    """Bytes of address space that this process has; 0 where that cannot be told."""
    with contextlib.suppress(OSError):
        import resource

        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    return 0


def _limit(memory: int, seconds: float) -> None:
    """Let the process take so much memory in all, and compute for so long from now."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)
    if _memory():  # on Linux
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_AS)
        least = memory if most == resource.RLIM_INFINITY else min(memory, most)
        resource.setrlimit(resource.RLIMIT_AS, (least, most))


def read_frame(stream: BinaryIO) -> bytes:
    """Read what `write_frame` wrote; empty if the other side has ended."""
    head = stream.read(LENGTH.size)
    return stream.read(LENGTH.unpack(head)[0]) if len(head) == LENGTH.size else b""


def write_frame(stream: BinaryIO, content: bytes) -> None:
    """Write bytes after their number."""
    stream.write(LENGTH.pack(len(content)) + content)
    stream.flush()


if __name__ == "__main__":
    main()
