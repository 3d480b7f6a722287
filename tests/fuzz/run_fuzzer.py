"""What the fuzzers share: instrument the code, run a fuzzer, or run one input without any."""

import argparse
import atexit
import contextlib
import hashlib
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path

# Instrumented for coverage: our code, and the parsers it trusts.
MODULES = ["opdprobe", "analyses.presets", "json", "yaml", "zipfile"]

# What takes the place of a value of JSON, or stands somewhere.
ODD = [
    *(b"null", b"true", b"[]", b"{}", b'""', b"0", b"-1", b"1.5", b"1e400", b"-1e400", b"NaN"),
    *(b"Infinity", b"99999999999999999999", b"9" * 5000, b"2147483648", b"[" * 2000, b'"\\ud800"'),
    *(b'"\\u0000"', b'"a"', b'"' + b"a" * 5000 + b'"', b'{"a": 1}', b"[[1], 2]", b'["a", null]'),
    *(b"1:30.5", b"0x1f", b"2026-13-01", b"*x", b"&x", b"\xff\xfe", b"\x00", b"\x1b[2J", b"\n"),
]
_VALUE = re.compile(rb'"(?:[^"\\]|\\.)*"|-?[0-9][0-9.eE+-]*|true|false|null')


def instrumented():
    """Imports in this context count branches, where a fuzzer runs and not a test."""
    by_atheris = sys.argv[0].rpartition("/")[2].startswith("fuzz_") and "--seconds" not in sys.argv
    if "atheris" not in sys.modules and not by_atheris:
        return contextlib.nullcontext()
    import atheris

    return atheris.instrument_imports(include=MODULES)  # pyright: ignore[reportAttributeAccessIssue]


def scratch() -> str:
    """A folder that goes when the process ends."""
    folder = tempfile.mkdtemp(prefix="opdprobe-fuzz-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def corpus(name: str) -> list[bytes]:
    """What a fuzzer found before, in a fixed order."""
    folder = Path(__file__).parent / "corpus" / name
    return [path.read_bytes() for path in sorted(folder.glob("*"))]


def main(one_input: Callable[[bytes], None], seeds: Callable[[], Iterable[bytes]]) -> None:
    """Fuzz until the options say stop; an exception is a finding.

    With ``--seconds``, mutate seeds at random, under limits of time and memory; otherwise run
    atheris, with libFuzzer's options.
    """
    if "--seconds" in sys.argv:
        sys.exit(_mutate(one_input, [*seeds()]))
    import atheris

    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Change an input in one to four places; its first byte says what it is, and stays."""
    kind, content = data[:1], data[1:]
    for _ in range(rng.randint(1, 4)):
        start = rng.randint(0, len(content))
        stop = min(len(content), start + rng.choice((0, 1, 4, 64, 4096)))
        how = rng.random()
        if how < 0.5 and (values := [m.span() for m in _VALUE.finditer(content[:200_000])]):
            start, stop = rng.choice(values)
            new = rng.choice(ODD)
        elif how < 0.6:
            new = rng.choice(ODD)
        elif how < 0.7:
            new = content[start:stop] * rng.randint(0, 3)
        elif how < 0.8:
            new, stop = b"", rng.choice((stop, len(content)))
        else:
            new, stop = rng.randbytes(rng.choice((1, 1, 4))), min(start + 1, len(content))
        content = content[:start] + new + content[stop:]
    return kind + content


class TooLongError(BaseException):
    """An input took more time than it may."""


def _mutate(one_input: Callable[[bytes], None], seeds: list[bytes]) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, required=True, help="how long to fuzz")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--memory", type=int, default=2048, help="MiB that an input may take")
    parser.add_argument("--time", type=float, default=30, help="seconds that an input may compute")
    parser.add_argument("--out", type=Path, default=Path("findings"), help="folder for findings")
    given = parser.parse_args()
    for data in seeds:
        one_input(data)
    _limit_memory(given.memory)
    rng, end = random.Random(given.seed), time.monotonic() + given.seconds
    before = time.process_time()
    known: dict[str, bytes] = {}
    n = 0
    given.out.mkdir(exist_ok=True, parents=True)
    running = given.out / "running"  # stays where an input ends the process
    while time.monotonic() < end:
        data = mutated(rng.choice(seeds), rng)
        n += 1
        running.write_bytes(data)
        if (what := _finding(one_input, data, given.time)) and what not in known:
            known[what] = data
            file = given.out / hashlib.sha256(data).hexdigest()[:16]
            file.write_bytes(data)
            print(f"{file}: {what}", flush=True)
    running.unlink(missing_ok=True)
    computed = time.process_time() - before
    print(f"{n} inputs, {len(known)} findings, {computed:.0f} s of computing")
    return bool(known)


def _limit_memory(mib: int) -> None:
    import resource

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + mib * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _finding(one_input: Callable[[bytes], None], data: bytes, seconds: float) -> str | None:
    """Say what is wrong with how an input is read, and where; None if nothing is."""

    def stop(*_):
        raise TooLongError

    signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        one_input(data)
        return None
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # also a panic of a library in Rust
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if "/opdprobe/" in frame.filename] or frames
        return f"{type(error).__name__} at {Path(own[-1].filename).name}:{own[-1].lineno}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
