"""Fuzzing of what reads the dumps of trainers and evaluations.

    python tests/fuzz/fuzz_dumps.py --seconds 600

The first byte of an input says in which format's dump the rest replaces the first file.
"""

import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import run_fuzzer

sys.path.append(str(Path(__file__).parent.parent / "rollout/dumps"))

with run_fuzzer.instrumented():
    import made_dumps

    from opdprobe.errors import OPDProbeError
    from opdprobe.rollout.dumps.files import kind_of
    from opdprobe.rollout.dumps.read import FORMATS, read_dumps

FOLDER = Path(run_fuzzer.scratch())
NAMES = list(FORMATS)


def _first_file(name: str) -> Path:
    folder = FOLDER / name
    if not folder.exists():
        made_dumps.MAKERS[name](folder)
    files = [path for path in folder.rglob("*") if path.is_file() and kind_of(path)]
    return max(sorted(files), key=lambda path: path.stat().st_size)


FILES = {name: _first_file(name) for name in NAMES if name in made_dumps.MAKERS}
SOUND = {name: path.read_bytes() for name, path in FILES.items()}
KNOWN = sorted(FILES)


def seeds() -> Iterator[bytes]:
    """The first file of each format's dump."""
    for number, name in enumerate(KNOWN):
        yield bytes([number]) + SOUND[name]


def one_input(data: bytes) -> None:
    """Read a dump; whatever is wrong must be an opdprobe error."""
    if not data:
        return
    name = KNOWN[data[0] % len(KNOWN)]
    path = FILES[name]
    path.write_bytes(data[1:])
    said = ""
    try:
        for rollout in read_dumps(path, name, step=1, on_error="skip"):
            assert rollout.step >= 0
        if not path.suffix.startswith(".p"):
            list(read_dumps(path, step=1, on_error="skip"))
    except OPDProbeError as error:
        said = str(error)
    finally:
        path.write_bytes(SOUND[name])
    assert len(said) < 8000 + len(data), "a message far longer than its cause"


if __name__ == "__main__":
    logging.getLogger("opdprobe").setLevel(logging.ERROR)
    run_fuzzer.main(one_input, seeds)
