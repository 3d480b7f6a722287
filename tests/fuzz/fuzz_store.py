"""Coverage-guided fuzzing of the store's reader.

    python tests/fuzz/fuzz_store.py -max_total_time=600 tests/fuzz/corpus/store

needs atheris; ``--seconds 600`` in place of both arguments does without. The first byte of an input
says what the rest replaces in a sound run: one of its text files, a step's file, or some bytes of
one member of a step, with checksums made right again.
"""

import contextlib
import zipfile
from pathlib import Path

import run_fuzzer

with run_fuzzer.instrumented():
    import dask.config

    from opdprobe.errors import OPDProbeError
    from opdprobe.store import Run, open_run
    from opdprobe.store.schema import VARIABLES, validate
    from opdprobe.testing import synthetic_run

TEXTS = ("run.json", "config.yaml", "metrics.jsonl", "evaluations.jsonl")
FOLDER = run_fuzzer.scratch()
RUN = synthetic_run(Path(FOLDER, "run"), [0, 1], n_rollouts=2, length=[2, 1], k=2).path
STEP = RUN / "steps/000000.zarr.zip"
with zipfile.ZipFile(STEP) as found:
    MEMBERS = {name: found.read(name) for name in found.namelist()}
    NAMES = sorted(MEMBERS)
SOUND = {
    path: path.read_bytes() for path in (STEP, *(RUN / name for name in TEXTS)) if path.exists()
}


def one_input(data: bytes) -> None:
    """Damage a run and read it; whatever is wrong must be an opdprobe error."""
    if not data:
        return
    kind, rest = data[0] % 6, data[1:]
    path = RUN / TEXTS[kind] if kind < len(TEXTS) else STEP
    variable = "logp"
    if kind == 5 and len(rest) >= 4:
        member, content = _changed_member(rest)
        variable = member.partition("/")[0]
        with zipfile.ZipFile(STEP, "w") as archive:
            for name, sound in MEMBERS.items():
                archive.writestr(zipfile.ZipInfo(name), content if name == member else sound)
    else:
        path.write_bytes(rest)
    try:
        run = open_run(RUN)
        with dask.config.set(scheduler="synchronous"):
            for look in _TEXT_LOOKS if kind < len(TEXTS) else _STEP_LOOKS:
                with contextlib.suppress(OPDProbeError):
                    look(run, variable)
    except OPDProbeError:
        pass
    finally:
        path.unlink(missing_ok=True)
        if path in SOUND:
            path.write_bytes(SOUND[path])


def _changed_member(rest: bytes) -> tuple[str, bytes]:
    """One member of the step: bytes 1 and 2 say from where, byte 3 how many are replaced."""
    name = NAMES[rest[0] % len(NAMES)]
    sound = MEMBERS[name]
    start = int.from_bytes(rest[1:3], "big") % (len(sound) + 1)
    return name, sound[:start] + rest[4:] + sound[start + rest[3] :]


def _all_of(run: Run, variable: str) -> None:
    """One variable over all steps, of which the damaged one is the first."""
    dims = VARIABLES[variable].dims if variable in VARIABLES else ()
    table = {"state": run.states, "rollout": run.rollouts}.get(dims[0] if dims else "")
    if table and variable in (found := table()):
        _ = found[variable].values


_TEXT_LOOKS = (
    lambda run, _: run.metrics,
    lambda run, _: [run.evaluation(name) for name in run.benchmarks],
)
_STEP_LOOKS = (
    lambda run, _: validate(run.load(0)),
    _all_of,
    lambda run, _: run.response_ids(0),
)


if __name__ == "__main__":
    run_fuzzer.main(one_input, lambda: run_fuzzer.corpus("store"))
