"""Coverage-guided fuzzing of what reads prompts and training logs.

    python tests/fuzz/fuzz_prompts.py -max_total_time=600 tests/fuzz/corpus/prompts

needs atheris; ``--seconds 600`` in place of both arguments does without. The first byte of an input
says what the rest is: the log of a trainer, or prompts in one of their forms.
"""

import logging
from pathlib import Path

import run_fuzzer

with run_fuzzer.instrumented():
    from opdprobe.errors import OPDProbeError
    from opdprobe.probes.logs import read_log
    from opdprobe.rollout.prompt_files import load_prompts, save_prompts

FOLDER = run_fuzzer.scratch()
KINDS = (".jsonl", ".parquet", ".json", ".csv", ".jsonl.gz", ".jsonl.zst")
SOURCES = ("verl", "trl", "slime", "prime-rl")  # one for each form


def one_input(data: bytes) -> None:
    """Read a file; what cannot be read must be an opdprobe error, what can be saved reads equal."""
    if not data:
        return
    kind, content = data[0] % 16, data[1:]
    file = Path(FOLDER, "given" + KINDS[max(kind // 2 - 2, 0)])
    file.write_bytes(content)
    said = ""
    try:
        if kind < 4:
            read_log(file, SOURCES[kind])
            return
        prompts = load_prompts(file, on_error="skip" if kind % 2 else "raise", repair_boxed=True)
        again = Path(FOLDER, "again.jsonl")
        save_prompts(prompts, again)
        assert load_prompts(again) == prompts
    except OPDProbeError as error:
        said = str(error)
    assert len(said) < 8000 + len(content), "a message far longer than its cause"


if __name__ == "__main__":
    logging.getLogger("opdprobe").setLevel(logging.ERROR)
    run_fuzzer.main(one_input, lambda: run_fuzzer.corpus("prompts"))
