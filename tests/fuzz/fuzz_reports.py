"""Fuzzing of what the commands show of a run: inspect, view, report, curves.

    python tests/fuzz/fuzz_reports.py --seconds 600

The first byte of an input says which text of a run, or which of its steps' metadata, the rest
replaces, and which command looks at it. matplotlib takes two thirds of a report's time, so all
figures are made, but only those of one input in eight are drawn: which, its content decides.
"""

import contextlib
import io
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import run_fuzzer
from matplotlib.figure import Figure

with run_fuzzer.instrumented():
    from opdprobe.cli.parser import main
    from opdprobe.errors import OPDProbeError
    from opdprobe.probes import curves
    from opdprobe.store import open_run
    from opdprobe.testing import synthetic_run, tiny_tokenizer

RUN = synthetic_run(
    Path(run_fuzzer.scratch(), "run"), [0, 1], n_rollouts=2, length=[2, 1], k=2
).path
tiny_tokenizer().save_pretrained(RUN / "tokenizer")
(RUN / "metrics.jsonl").write_text('{"step": 0, "loss": 0.5}\n{"step": 1, "loss": 0.25}\n')
(RUN / "evaluations.jsonl").write_text(
    '{"step": 0, "benchmark": "easy", "prompt_id": ["a", "b"], "score": [0.5, 1.0]}\n'
)
(RUN / "config.yaml").write_text(
    "max_steps: 2\nrecord_every: 1\neval_n: 4\nobjective: topk\nlearning_rate: 1.0e-06\n"
)
TEXTS = (
    "run.json",
    "config.yaml",
    "metrics.jsonl",
    "evaluations.jsonl",
    "tokenizer/tokenizer.json",
)
STEP = RUN / "steps/000000.zarr.zip"
with zipfile.ZipFile(STEP) as found:
    MEMBERS = {name: found.read(name) for name in found.namelist()}
    GROUP = "zarr.json"
SOUND = {name: (RUN / name).read_bytes() for name in (*TEXTS, "steps/000000.zarr.zip")}
DRAW = Figure.savefig
COMMANDS = (["inspect", "--json"], ["inspect", "--verify"], ["view"], ["report", "--no-view"], None)


def seeds() -> Iterator[bytes]:
    """Each text and the step's attributes, with each command."""
    for number, _ in enumerate(COMMANDS):
        for place, content in enumerate([*(SOUND[name] for name in TEXTS), MEMBERS[GROUP]]):
            yield bytes([number * (len(TEXTS) + 1) + place]) + content


def one_input(data: bytes) -> None:
    """Change a run and look at it; whatever is wrong must be an opdprobe error."""
    if not data:
        return
    number, place = divmod(data[0], len(TEXTS) + 1)
    command = COMMANDS[number % len(COMMANDS)]
    name = TEXTS[place] if place < len(TEXTS) else "steps/000000.zarr.zip"
    if place < len(TEXTS):
        (RUN / name).write_bytes(data[1:])
    else:
        with zipfile.ZipFile(STEP, "w") as archive:
            for member, sound in MEMBERS.items():
                archive.writestr(zipfile.ZipInfo(member), data[1:] if member == GROUP else sound)
    said = io.StringIO()
    Figure.savefig = DRAW if zlib.crc32(data) % 8 == 0 else lambda *_, **__: None
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            if command is None:
                curves(open_run(RUN))
            else:
                assert main([command[0], str(RUN), *command[1:]]) in (0, 1)
    except OPDProbeError:
        assert command is None
    finally:
        Figure.savefig = DRAW
        (RUN / name).write_bytes(SOUND[name])
        for page in RUN.glob("*.html"):
            page.unlink()
    assert "\x1b" not in said.getvalue(), "an escape sequence"


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    run_fuzzer.main(one_input, seeds)
