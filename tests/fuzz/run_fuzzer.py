"""What the fuzzers share: instrument the code, run libFuzzer, or run one input without either."""

import atexit
import contextlib
import shutil
import sys
import tempfile
from collections.abc import Callable

# Instrumented for coverage: our code, and the parsers it trusts.
MODULES = ["opdprobe", "analyses.presets", "json", "yaml", "zipfile"]


def instrumented():
    """Imports in this context count branches, where a fuzzer runs and not a test."""
    if "atheris" not in sys.modules and not sys.argv[0].rpartition("/")[2].startswith("fuzz_"):
        return contextlib.nullcontext()
    import atheris

    return atheris.instrument_imports(include=MODULES)  # pyright: ignore[reportAttributeAccessIssue]


def scratch() -> str:
    """A folder that goes when the process ends."""
    folder = tempfile.mkdtemp(prefix="opdprobe-fuzz-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def main(one_input: Callable[[bytes], None]) -> None:
    """Fuzz until libFuzzer's options say stop; an exception is a finding."""
    import atheris

    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
