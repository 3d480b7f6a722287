import errno
import json
import os
import subprocess
import sys
import time
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from opdprobe import store
from opdprobe.errors import ConfigError, StoreError
from opdprobe.store import RunWriter, estimate_bytes, open_run
from opdprobe.store.schema import RAGGED, SCHEMA_VERSION, VARIABLES, step_dataset, validate
from opdprobe.store.step import round_mantissa, write_step_file
from opdprobe.testing import synthetic_run, synthetic_step

ATTRS = {"student": "a", "teacher": {"name": "b", "layers": (1, 2)}, "seed": 0, "commit": "c0"}
CONFIG = {"lr": 1e-6, "sampling": {"temperature": 1.0, "top_p": 1.0}, "steps": [1, 2]}


def writer(path, *, resume=False, attrs=ATTRS, config=CONFIG):
    return RunWriter(path, attrs=attrs, config=config, resume=resume)


def names(path):
    return sorted(file.name for file in path.iterdir())


# --- one step -------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [8, [3, 0, 5], 0])
def test_a_step_comes_back_exactly_but_for_rounded_logp(tmp_path, length):
    ds = synthetic_step(12, n_rollouts=3, length=length, k=5)
    path = writer(tmp_path).write_step(12, ds)
    assert path == tmp_path / "steps" / "000012.zarr.zip"
    back = open_run(tmp_path).load(12)
    xr.testing.assert_identical(back.drop_vars("logp"), ds.drop_vars("logp"))
    assert list(back.data_vars) == [name for name in VARIABLES if name in ds.data_vars]
    np.testing.assert_allclose(back["logp"], ds["logp"], rtol=2**-13)
    assert {name: v.dtype for name, v in back.variables.items() if name != "prompt_id"} == {
        name: v.dtype for name, v in ds.variables.items() if name != "prompt_id"
    }
    validate(back)


def test_a_step_without_rollout_tables_comes_back(tmp_path):
    ds = step_dataset(
        token_id=[[[3], [1]]], logp=np.full((1, 2, 2, 1), -np.inf), entropy=[[0, 1]],
        reverse_kl=[np.inf], rollout=[4], position=[0], attrs={"note": "é"},
    )  # fmt: skip
    writer(tmp_path).write_step(0, ds)
    run = open_run(tmp_path)
    xr.testing.assert_identical(run.load(0), ds)
    assert run.rollouts().sizes["rollout"] == 5  # counted, though nothing is known of them
    with pytest.raises(StoreError, match="response_ids was not recorded"):
        run.response_ids(0)


finite = st.floats(-100, 0, width=32)


@settings(deadline=None)  # a busy machine is no failure
@given(hnp.arrays(np.float32, 20, elements=finite | st.just(float("-inf"))))
def test_rounding_is_close_monotone_and_done_once(values):
    rounded = round_mantissa(values)
    normal = np.abs(values) >= np.finfo(np.float32).tiny
    np.testing.assert_allclose(rounded[normal], values[normal], rtol=2**-13)
    assert (np.diff(rounded[np.argsort(values)][np.isfinite(np.sort(values))]) >= 0).all()
    np.testing.assert_array_equal(round_mantissa(rounded), rounded)


def test_equal_steps_give_equal_bytes(tmp_path):
    first = writer(tmp_path / "1").write_step(0, synthetic_step())
    again = writer(tmp_path / "2").write_step(0, synthetic_step())
    assert first.read_bytes() == again.read_bytes()


def test_many_chunks_per_step(tmp_path, monkeypatch):
    monkeypatch.setattr("opdprobe.store.step_encode._CHUNK", 7)
    ds = synthetic_step(k=4)
    writer(tmp_path).write_step(0, ds)
    run = open_run(tmp_path)
    xr.testing.assert_identical(run.load(0)["token_id"], ds["token_id"])
    np.testing.assert_array_equal(run.states()["token_id"], ds["token_id"])


def test_a_lazily_loaded_step_can_be_written_again(tmp_path):
    run = synthetic_run(tmp_path / "1", steps=[3])
    writer(tmp_path / "2").write_step(3, run.load(3))
    xr.testing.assert_identical(open_run(tmp_path / "2").load(3), run.load(3))


PLAIN_XARRAY = """
import sys
sys.modules["opdprobe"] = None
import xarray as xr
ds = xr.open_dataset("zip::run_dir/steps/000120.zarr.zip", engine="zarr", consolidated=False)
logp = ds.logp.sel(model="teacher", support="student")
print(float(logp.sum()), ds.rollout.dims, ds.entropy.units)
"""


@pytest.mark.slow
def test_plain_xarray_reads_a_step_without_warnings(tmp_path):
    line = next(x for x in PLAIN_XARRAY.splitlines() if "open_dataset" in x)
    assert line.removeprefix("ds = ") in str(store.__doc__)  # the documented line is tested
    run = synthetic_run(tmp_path / "run_dir", steps=[120])
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PLAIN_XARRAY],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.stderr == ""
    total, *rest = done.stdout.split(maxsplit=1)
    logp = run.load(120)["logp"].sel(model="teacher", support="student")
    assert float(total) == float(logp.sum())
    assert rest == ["('state',) nats\n"]


@pytest.mark.parametrize("k", [4, 16, 64])
def test_the_estimate_is_near_the_truth(tmp_path, k):
    path = writer(tmp_path).write_step(0, synthetic_step(length=50, k=k, vocab_size=8000))
    assert path.stat().st_size == pytest.approx(estimate_bytes(200, k), rel=0.3)


# --- many steps -----------------------------------------------------------------------------------


def test_states_and_rollouts_line_up_all_steps(tmp_path):
    write = writer(tmp_path)
    lengths = {0: [3, 0], 10: [0, 0], 7: [2, 4]}
    steps = {
        s: synthetic_step(s, n_rollouts=2, length=n, k=4, given=True) for s, n in lengths.items()
    }
    for step, ds in steps.items():
        write.write_step(step, ds)
    run = open_run(tmp_path)
    assert run.steps == [0, 7, 10]
    states, rollouts = run.states(), run.rollouts()

    assert all(states[name].chunks is not None for name in (*states.data_vars, "rollout", "step"))
    loaded = [run.load(step) for step in run.steps]
    for name in states.data_vars:
        assert states[name].attrs == loaded[0][name].attrs
        np.testing.assert_array_equal(states[name], np.concatenate([ds[name] for ds in loaded]))
    assert set(states.variables) | set(rollouts.variables) | set(RAGGED) == set(VARIABLES)
    assert states["step"].values.tolist() == [0] * 3 + [7] * 6
    assert rollouts["step"].values.tolist() == [0, 0, 7, 7, 10, 10]
    # The rollout coordinate is the row of the rollouts.
    row = states["rollout"].values
    np.testing.assert_array_equal(rollouts["step"].values[row], states["step"].values)
    assert (states["position"].values < rollouts["length"].values[row]).all()
    assert rollouts["length"].values.tolist() == [3, 0, 2, 4, 0, 0]
    assert rollouts["prompt_id"].values.tolist() == ["prompt-0", "prompt-1"] * 3
    assert states.sel(model="teacher", support="student").sizes["state"] == 9

    some = run.states(iter([10, 7, 7]))
    assert some["step"].values.tolist() == [7] * 6
    assert some["rollout"].values.tolist() == [0] * 2 + [1] * 4


def test_tokens_come_back_by_row(tmp_path):
    run = synthetic_run(tmp_path, steps=[1], n_rollouts=3, length=[2, 0, 3])
    ds, responses = run.load(1), run.response_ids(1)
    assert [len(row) for row in responses] == [2, 0, 3]
    assert np.concatenate(responses).tolist() == ds["sampled_id"].values.tolist()
    assert [len(row) for row in run.prompt_ids(1)] == [3, 3, 3]


@pytest.mark.skipif(not Path("/dev/fd").exists(), reason="counts open files in /dev/fd")
def test_reading_keeps_no_file_open(tmp_path):
    run = synthetic_run(tmp_path, steps=range(5))
    before = len(os.listdir("/dev/fd"))
    kept = [run.load(step) for step in run.steps], run.states(), run.rollouts()
    kept[1].compute()
    assert len(os.listdir("/dev/fd")) == before


def test_a_run_without_steps_says_so(tmp_path):
    writer(tmp_path)
    run = open_run(tmp_path)
    assert run.steps == []
    assert run.metrics.sizes["step"] == 0
    with pytest.raises(StoreError, match="has no recorded step to read"):
        run.states()
    with pytest.raises(StoreError, match="has no step 3; recorded steps: none so far"):
        run.load(3)


def test_a_missing_step_lists_the_recorded_ones(tmp_path):
    run = synthetic_run(tmp_path, steps=[1, 4])
    with pytest.raises(StoreError, match="has no step 3; recorded steps: 1, 4"):
        run.states([1, 3])


# --- metrics --------------------------------------------------------------------------------------


def test_metrics_merge_lines_and_fill_gaps(tmp_path):
    write = writer(tmp_path)
    write.log_metrics(0, {"loss": 0.5, "step": 0})
    write.log_metrics(20, {"loss": float("inf")})
    write.log_metrics(10, {"accuracy": 1})
    write.log_metrics(10, {"loss": 0.25, "accuracy": 0.5})
    metrics = open_run(tmp_path).metrics
    assert metrics["step"].values.tolist() == [0, 10, 20]
    np.testing.assert_array_equal(metrics["loss"], [0.5, 0.25, np.inf])
    np.testing.assert_array_equal(metrics["accuracy"], [np.nan, 0.5, np.nan])


def test_an_incomplete_last_line_is_left_out_and_repaired(tmp_path):
    writer(tmp_path).log_metrics(0, {"loss": 1.0})
    file = tmp_path / "metrics.jsonl"
    whole = file.read_text()
    file.write_text(whole + '{"step": 1, "lo')
    assert open_run(tmp_path).metrics["step"].values.tolist() == [0]
    writer(tmp_path, resume=True).log_metrics(1, {"loss": 2.0})
    assert file.read_text() == whole + '{"step": 1, "loss": 2.0}\n'


def test_a_broken_line_in_the_middle_is_an_error(tmp_path):
    writer(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n{"st\n{"step": 2}\n')
    with pytest.raises(StoreError, match=r"metrics\.jsonl, line 2: .*; remove the line"):
        _ = open_run(tmp_path).metrics


# --- creating and continuing ----------------------------------------------------------------------


def test_a_run_keeps_its_attributes_and_its_config(tmp_path):
    writer(tmp_path / "new" / "run", resume=True)  # nothing to resume: creates the run
    run = open_run(str(tmp_path / "new" / "run"))
    assert run.config == CONFIG
    assert run.attrs["teacher"] == {"name": "b", "layers": [1, 2]}
    assert run.attrs["schema_version"] == SCHEMA_VERSION
    assert run.attrs["versions"]["numpy"] == np.__version__
    assert names(run.path) == [".lock", "config.yaml", "run.json", "steps"]


def test_resuming_continues_and_replaces_a_step(tmp_path):
    write = writer(tmp_path)
    for step in (0, 1, 2):
        write.write_step(step, synthetic_step(step))
        write.log_metrics(step, {"loss": step})
    with pytest.raises(StoreError, match="step 2 was already written"):
        write.write_step(2, synthetic_step(2))
    (tmp_path / "steps" / ".tmp-000003.zarr.zip").write_bytes(b"half")
    (tmp_path / ".tmp-run.json").write_bytes(b"half")

    write = writer(tmp_path, resume=True, attrs=ATTRS | {"commit": "c1"})
    write.truncate_after(1)
    run = open_run(tmp_path)
    assert run.steps == run.metrics["step"].values.tolist() == [0, 1]
    assert names(tmp_path / "steps") == ["000000.zarr.zip", "000001.zarr.zip"]
    assert ".tmp-run.json" not in names(tmp_path)
    write.write_step(1, synthetic_step(1, seed=5))
    expected = synthetic_step(1, seed=5)["sampled_id"]
    np.testing.assert_array_equal(run.load(1)["sampled_id"], expected)


def test_truncating_lets_the_same_writer_write_again(tmp_path):
    write = writer(tmp_path)
    write.write_step(4, synthetic_step(4))
    write.truncate_after(3)
    write.write_step(4, synthetic_step(4))
    assert open_run(tmp_path).steps == [4]


def test_a_run_is_not_overwritten(tmp_path):
    writer(tmp_path).write_step(0, synthetic_step())
    with pytest.raises(StoreError, match=r"holds a run already \(1 recorded steps\): resume it"):
        writer(tmp_path)


def test_resuming_with_another_config_prints_the_difference(tmp_path):
    writer(tmp_path)
    config = {"lr": 1e-5, "sampling": {"temperature": 1.0}, "steps": [1, 2], "k": 16}
    with pytest.raises(ConfigError) as caught:
        writer(tmp_path, resume=True, config=config)
    assert (
        "k: absent before, 16 now; lr: 1e-06 before, 1e-05 now; "
        "sampling.top_p: 1.0 before, absent now;" in str(caught.value)
    )


def test_resuming_a_different_run_is_refused(tmp_path):
    writer(tmp_path)
    attrs = ATTRS | {"teacher": {"name": "x", "layers": [1, 2]}}
    with pytest.raises(StoreError, match=r"a different run: teacher\.name: 'b' before, 'x' now;"):
        writer(tmp_path, resume=True, attrs=attrs)


def test_another_path_to_the_same_model_is_the_same_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("model", "other"):
        Path(name).mkdir()
    Path("link").symlink_to("model")
    attrs = ATTRS | {"teacher": {"name": "model", "weight_hash": "1"}}
    writer(tmp_path / "run", attrs=attrs)
    for name in (str(tmp_path / "model"), "link", "./model/"):
        again = attrs | {"teacher": {"name": name, "weight_hash": "1"}}
        writer(tmp_path / "run", resume=True, attrs=again)
        other = attrs | {"teacher": {"name": name, "weight_hash": "2"}}
        with pytest.raises(StoreError, match=r"teacher\.weight_hash"):
            writer(tmp_path / "run", resume=True, attrs=other)
    for name in ("other", "absent", "m" * 5000, "mod\0el"):
        other = attrs | {"teacher": {"name": name, "weight_hash": "1"}}
        with pytest.raises(StoreError, match=r"teacher\.name"):
            writer(tmp_path / "run", resume=True, attrs=other)


def test_a_directory_with_other_files_is_refused_untouched(tmp_path):
    (tmp_path / "thesis.tex").write_text("...")
    with pytest.raises(StoreError, match=r"is not empty \(thesis\.tex is in it\) and not a run"):
        writer(tmp_path)
    assert names(tmp_path) == ["thesis.tex"]
    with pytest.raises(StoreError, match="is a file; expected a directory"):
        writer(tmp_path / "thesis.tex")


def test_a_run_killed_while_it_was_created_can_be_created_again(tmp_path):
    (tmp_path / "steps").mkdir()
    (tmp_path / "config.yaml").write_text("lr: 1\n")
    (tmp_path / ".tmp-run.json").write_text("{")
    writer(tmp_path)
    assert open_run(tmp_path).config == CONFIG
    assert names(tmp_path) == [".lock", "config.yaml", "run.json", "steps"]


def test_a_config_that_yaml_cannot_hold_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot be written as YAML"):
        writer(tmp_path / "run", config={"model": object()})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("step", "ds", "message"),
    [
        (1, synthetic_step(2), r"step = \[2\] in the dataset; expected 1 throughout"),
        (-1, synthetic_step(0).assign_coords(step=("state", np.full(32, -1))), "step = -1"),
        (1, synthetic_step(1, k=4), "differs from the run's earlier steps: k: 16 before, 4 now"),
        (1, synthetic_step(1).drop_vars("correct"), "correct: 'present' before, absent now"),
        (1, synthetic_step(1).assign(mine=("state", [0] * 32)), r"mine is not a variable of the"),
        (1, synthetic_step(1).drop_vars("logp"), "logp is missing"),
    ],
)
@pytest.mark.parametrize("resume", [False, True])
def test_a_step_that_does_not_belong_is_refused(tmp_path, step, ds, message, resume):
    write = writer(tmp_path)
    write.write_step(0, synthetic_step(0))
    if resume:
        write = writer(tmp_path, resume=True)
    with pytest.raises(StoreError, match=message):
        write.write_step(step, ds)
    assert open_run(tmp_path).steps == [0]


# --- what can go wrong on disk --------------------------------------------------------------------


@pytest.mark.parametrize("replaced", [False, True])
def test_a_full_disk_leaves_nothing_half_written(tmp_path, monkeypatch, replaced):
    write = writer(tmp_path)
    write.write_step(0, synthetic_step(0))
    write.log_metrics(0, {"loss": 1.0})
    if replaced:
        write = writer(tmp_path, resume=True)
    before = (tmp_path / "steps" / "000000.zarr.zip").read_bytes()

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        step = 0 if replaced else 1
        with pytest.raises(StoreError, match=f"disk full while writing .*{step:06d}") as caught:
            write.write_step(step, synthetic_step(step))
        assert isinstance(caught.value.__cause__, OSError)
        with pytest.raises(StoreError, match=r"disk full while writing to .*metrics.jsonl"):
            write.log_metrics(1, {"loss": 2.0})
    assert names(tmp_path / "steps") == ["000000.zarr.zip"]
    assert (tmp_path / "steps" / "000000.zarr.zip").read_bytes() == before
    write.write_step(1, synthetic_step(1))  # and continues once there is space
    write.log_metrics(2, {"loss": 3.0})
    assert open_run(tmp_path).metrics["step"].values.tolist() == [0, 2]


def test_another_disk_error_is_not_disguised(tmp_path, monkeypatch):
    write = writer(tmp_path)

    def broken(_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="Input/output error"):
        write.write_step(0, synthetic_step())
    assert names(tmp_path / "steps") == []


def test_a_write_that_stops_halfway_is_taken_back(tmp_path):
    resource = pytest.importorskip("resource", reason="limits the size of a file")
    write = writer(tmp_path)
    write.log_metrics(0, {"loss": 1.0})
    line = (tmp_path / "metrics.jsonl").read_text()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(line) + 5, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            write.log_metrics(1, {"loss": 2.0})
        with pytest.raises(OSError, match="File too large"):
            write.write_step(0, synthetic_step())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "metrics.jsonl").read_text() == line
    assert names(tmp_path / "steps") == []
    write.log_metrics(1, {"loss": 2.0})
    assert open_run(tmp_path).metrics["loss"].values.tolist() == [1.0, 2.0]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_step_is_named(tmp_path, share):
    run = synthetic_run(tmp_path, steps=[0, 1])
    file = tmp_path / "steps" / "000001.zarr.zip"
    whole = file.read_bytes()
    file.write_bytes(whole[: int(share * len(whole))])
    message = r"000001\.zarr\.zip is torn or not a step .*delete it to read the run without"
    with pytest.raises(StoreError, match=message):
        run.load(1)
    with pytest.raises(StoreError, match=message):
        run.states()
    assert run.load(0).sizes["state"] == 32


def test_a_flipped_byte_is_found_lazily_too(tmp_path):
    run = synthetic_run(tmp_path, steps=[0])
    file = tmp_path / "steps" / "000000.zarr.zip"
    states = run.states()
    data = bytearray(file.read_bytes())
    data[data.index(b"logp/c/0") + 100] ^= 0xFF
    file.write_bytes(data)
    for read in (lambda: run.load(0), lambda: states["logp"].compute()):
        with pytest.raises(StoreError, match=r"000000\.zarr\.zip is torn .*CRC"):
            read()
    file.unlink()
    with pytest.raises(StoreError, match="is missing: it was removed"):
        states["entropy"].compute()


def test_a_foreign_zip_is_not_a_step(tmp_path):
    run = synthetic_run(tmp_path, steps=[0])
    with zipfile.ZipFile(tmp_path / "steps" / "000000.zarr.zip", "w") as archive:
        archive.writestr("hello.txt", "hello")
    with pytest.raises(StoreError, match="not a step"):
        run.load(0)


def test_a_newer_schema_asks_for_an_upgrade(tmp_path):
    run = synthetic_run(tmp_path, steps=[0])
    newer = synthetic_step().assign_attrs(schema_version=SCHEMA_VERSION + 1)
    write_step_file(tmp_path / "steps" / "000000.zarr.zip", newer)
    message = f"schema_version = {SCHEMA_VERSION + 1}; expected at most {SCHEMA_VERSION}: upgrade"
    with pytest.raises(StoreError, match=message):
        run.load(0)
    root = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps(root | {"schema_version": SCHEMA_VERSION + 1}))
    with pytest.raises(StoreError, match=message):
        open_run(tmp_path)


@pytest.mark.parametrize("broken", ["run.json", "config.yaml"])
def test_a_directory_that_is_not_a_run_is_refused(tmp_path, broken):
    with pytest.raises(StoreError, match=r"is not a run: it has no run\.json"):
        open_run(tmp_path)
    writer(tmp_path / "run")
    (tmp_path / "run" / broken).write_text("{")
    with pytest.raises(StoreError, match=r"cannot be read \((?s:.*): restore the file"):
        open_run(tmp_path / "run")
    (tmp_path / "run" / broken).unlink()
    with pytest.raises(StoreError, match=f"is not a run: it has no {broken}"):
        open_run(tmp_path / "run")
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="is not a run"):
        open_run(tmp_path / "file")


# Forks a writer, kills it, ten times: half of the kills aim at a file being written, the others
# come at a random moment. The parent never touches zarr, so that its threads cannot be lost in a
# fork.
KILLED_WRITER = """
import os, random, signal, sys, time, traceback
from pathlib import Path
from opdprobe.store import RunWriter, open_run
from opdprobe.testing import synthetic_step

path = Path(sys.argv[1])

def write_until_killed():
    writer = RunWriter(path, attrs={}, config={}, resume=True)
    step = max(open_run(path).steps, default=-1)
    while True:
        step += 1
        writer.write_step(step, synthetic_step(step, length=50))
        writer.log_metrics(step, {"loss": 1.0})

def steps_on_disk():
    return len(list(path.glob("steps/0*")))

def wait_for(there):
    until = time.monotonic() + 60
    while not there():
        if os.waitpid(child, os.WNOHANG) != (0, 0):
            raise SystemExit("the writer ended before it was killed")
        if time.monotonic() > until:
            os.kill(child, signal.SIGKILL)
            raise SystemExit("the writer wrote nothing for a minute")
        time.sleep(0.0002)

random.seed(0)
for kill in range(6):
    before = steps_on_disk()
    child = os.fork()
    if child == 0:
        try:
            write_until_killed()
        finally:
            traceback.print_exc()
            os._exit(1)
    wait_for(lambda: steps_on_disk() != before)
    if kill % 2:
        wait_for(lambda: list(path.glob("steps/.tmp-*")))
    else:
        time.sleep(random.uniform(0, 0.1))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), status
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks the writer that it kills")
@pytest.mark.slow
def test_a_killed_writer_leaves_complete_steps_and_never_disturbs_a_reader(tmp_path):
    path = tmp_path / "run"
    polls = 0
    with subprocess.Popen(
        [sys.executable, "-c", KILLED_WRITER, path], stderr=subprocess.PIPE, text=True
    ) as process:
        while process.poll() is None:
            time.sleep(0.005)
            if not (path / "run.json").exists():
                continue
            run = open_run(path)
            if run.steps:
                validate(run.load(run.steps[-1]))
                assert set(run.metrics["step"].values) <= set(run.steps)
                polls += 1
        assert process.stderr is not None
        assert process.stderr.read() == ""
    assert process.returncode == 0
    assert polls > 0

    run = open_run(path)
    assert run.steps == list(range(len(run.steps)))
    assert len(run.steps) >= 6
    for step in run.steps:
        ds = run.load(step)
        validate(ds)
        np.testing.assert_array_equal(ds["sampled_id"], synthetic_step(step, length=50).sampled_id)
    assert set(run.metrics["step"].values) <= set(run.steps)
    RunWriter(path, attrs={}, config={}, resume=True)
    assert not list(path.rglob(".tmp-*"))


def test_opening_gives_no_warning(tmp_path):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = synthetic_run(tmp_path, steps=[0, 1])
        run.load(1).load()
        run.states().compute()
        run.rollouts().compute()
    assert [str(warning.message) for warning in caught] == []
