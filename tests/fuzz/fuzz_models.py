"""Fuzzing of what reads directories of models and tokenizers.

    python tests/fuzz/fuzz_models.py --seconds 600

The first byte of an input says which file of a tiny model's directory the rest replaces.
"""

import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import run_fuzzer

with run_fuzzer.instrumented():
    from opdprobe.errors import OPDProbeError
    from opdprobe.models.chat_template import render, variables
    from opdprobe.models.load import load_model, load_tokenizer
    from opdprobe.report.token_text import TokenTexts
    from opdprobe.testing import tiny_model, tiny_tokenizer

FOLDER = Path(run_fuzzer.scratch(), "model")
tiny_model().save_pretrained(FOLDER)
tiny_tokenizer().save_pretrained(FOLDER)
SOUND = {path.name: path.read_bytes() for path in FOLDER.iterdir()}
NAMES = sorted(SOUND)
ASKED = [{"role": "user", "content": "7 8"}]


def seeds() -> Iterator[bytes]:
    """Each file of the directory."""
    for number, name in enumerate(NAMES):
        yield bytes([number]) + SOUND[name]


def one_input(data: bytes) -> None:
    """Load a model and its tokenizer; whatever is wrong must be an opdprobe error."""
    if not data:
        return
    name = NAMES[data[0] % len(NAMES)]
    of_tokenizer = "token" in name or "template" in name
    (FOLDER / name).write_bytes(data[1:])
    said = ""
    try:
        if of_tokenizer:
            TokenTexts(FOLDER)
            tokenizer = load_tokenizer(FOLDER)
            variables(tokenizer)
            render(tokenizer, ASKED, {})
        else:
            load_model(FOLDER, device="cpu")
    except OPDProbeError as error:
        said = str(error)
    finally:
        (FOLDER / name).write_bytes(SOUND[name])
    assert len(said) < 8000 + len(data), "a message far longer than its cause"


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    run_fuzzer.main(one_input, seeds)
