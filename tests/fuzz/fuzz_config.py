"""Coverage-guided fuzzing of what reads YAML: configurations, presets, settings.

    python tests/fuzz/fuzz_config.py -max_total_time=600 tests/fuzz/corpus/config

needs atheris; ``--seconds 600`` in place of both arguments does without. An input is a YAML file;
its first byte says who reads it.
"""

from pathlib import Path

import run_fuzzer

with run_fuzzer.instrumented():
    from analyses.presets import PRESETS, own_preset
    from opdprobe.cli.runs import settings
    from opdprobe.errors import OPDProbeError
    from opdprobe.train.config import GRPOConfig, OPDConfig, SFTConfig

FOLDER = run_fuzzer.scratch()
FILE = Path(FOLDER, "given.yaml")


def one_input(data: bytes) -> None:
    """Read a file of settings; what cannot be read must be an opdprobe error."""
    if not data:
        return
    kind, text = data[0] % 5, data[1:]
    FILE.write_bytes(text)
    said = ""
    try:
        if kind < 3:
            config = (OPDConfig, SFTConfig, GRPOConfig)[kind].from_yaml(FILE)
            assert type(config).from_dict(config.to_dict()) == config
        elif kind == 3:
            own_preset(FILE, PRESETS["quick"])
        else:
            OPDConfig(**settings([text.decode(errors="surrogateescape")], OPDConfig))
    except OPDProbeError as error:
        said = str(error)
    assert len(said) < 2000 + 10 * len(text), "a message far longer than its cause"


if __name__ == "__main__":
    run_fuzzer.main(one_input, lambda: run_fuzzer.corpus("config"))
