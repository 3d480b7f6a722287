"""Writing a run: zarr's own encoding, a step on a thread, one process at a time."""

import errno
import gc
import json
import os
import subprocess
import sys
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import Mock

import numpy as np
import pytest
import xarray as xr
from zarr.codecs import BloscCodec
from zarr.storage import MemoryStore

from opdprobe import ConfigError, RunWriter, StoreError, open_run
from opdprobe.rollout.rows import thin
from opdprobe.store import step as step_file
from opdprobe.store import step_decode as archive
from opdprobe.store import step_encode as encode
from opdprobe.store.schema import Step, to_step
from opdprobe.testing import synthetic_step


def writer(path, resume=False):
    return RunWriter(path, attrs={"seed": 0}, config={}, resume=resume)


def by_zarr(ds, chunk):
    """Encode a step by xarray and zarr."""
    members, encoding = {}, {}
    for name, variable in list(ds.variables.items()):
        chunks = variable.shape
        if variable.ndim:
            chunks = (max(1, min(chunk, variable.shape[0])), *variable.shape[1:])
        encoding[name] = {"chunks": chunks}
        if variable.dtype.kind in "UT":
            ds[name] = variable.astype(object)
        else:
            codec = BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle")
            encoding[name] |= {"compressors": [codec], "_FillValue": None}
    ds.to_zarr(MemoryStore(members), zarr_format=3, consolidated=False, encoding=encoding)
    return {name: member.to_bytes() for name, member in members.items()}


@pytest.mark.skipif(
    tuple(map(int, xr.__version__.split(".")[:2])) < (2026, 9),
    reason="xarray wrote truth values as numbers; tests/compat reads such steps",
)
@pytest.mark.parametrize("chunk", [131_072, 7])
@pytest.mark.parametrize("step", [0, 3])  # a step number that is the fill value, and one that isn't
def test_members_are_those_that_zarr_writes(monkeypatch, chunk, step):
    monkeypatch.setattr(encode, "_CHUNK", chunk)
    ds = synthetic_step(step, k=4).assign_attrs(n_state=np.int64(32), missing=["teacher"])
    ds["correct"][:] = np.nan
    got, want = encode.step_members(ds, ds.attrs), by_zarr(ds.copy(), chunk)
    assert got.keys() == want.keys()
    for name, content in got.items():
        if name.endswith("zarr.json"):
            assert json.loads(content) == json.loads(want[name]), name
        else:
            assert content == want[name], name


def test_a_step_without_states_is_written_as_by_zarr():
    ds = synthetic_step(0, k=4)
    none = ds.isel(state=[], rollout=[], prompt_token=[], response_token=[])
    assert encode.step_members(none, {}).keys() == by_zarr(none.copy(), 131_072).keys()


def test_a_step_file_with_zip64_fields_can_be_read(tmp_path, monkeypatch):
    """From 2 GiB on; here, from 10 kB on."""
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 10_000)
    monkeypatch.setattr(archive, "_ZIP64_SIZE", 10_000)
    path = writer(tmp_path).write_step(0, synthetic_step(0))
    with zipfile.ZipFile(path) as file:
        assert any(member.extra for member in file.infolist())
    xr.testing.assert_identical(open_run(tmp_path).load(0)["match"], synthetic_step(0).match)


def test_submitted_steps_are_written_one_at_a_time_beside_the_caller(tmp_path, monkeypatch):
    started, may_end, active = threading.Event(), threading.Event(), []

    def slow(path, ds):
        active.append(path.name)
        started.set()
        assert len(active) == 1
        assert may_end.wait(60)
        active.pop()
        step_file.write_step_file(path, ds)

    monkeypatch.setattr("opdprobe.store.writer.write_step_file", slow)
    out = writer(tmp_path)
    out.submit_step(0, synthetic_step(0))
    assert started.wait(60)
    assert open_run(tmp_path).steps == []  # it is on its way
    may_end.set()
    out.submit_step(1, synthetic_step(1))
    assert 0 in open_run(tmp_path).steps
    out.flush()
    out.flush()
    assert open_run(tmp_path).steps == [0, 1]
    xr.testing.assert_identical(open_run(tmp_path).load(1)["token_id"], synthetic_step(1).token_id)


@pytest.mark.parametrize("by", ["flush", "submit"])
def test_an_error_on_the_thread_is_raised_by_the_next_call(tmp_path, by):
    out = writer(tmp_path)
    out.submit_step(5, synthetic_step(4))
    with pytest.raises(StoreError, match=r"step = \[4\] in the dataset; expected 5"):
        out.flush() if by == "flush" else out.submit_step(6, synthetic_step(6))
    assert open_run(tmp_path).steps == []
    out.submit_step(7, synthetic_step(7))  # raised only once
    out.flush()
    assert open_run(tmp_path).steps == [7]


def test_metrics_are_read_at_once_and_on_disk_after_their_step(tmp_path, monkeypatch):
    may_end = threading.Event()

    def slow(path, ds):
        assert may_end.wait(60)
        step_file.write_step_file(path, ds)

    monkeypatch.setattr("opdprobe.store.writer.write_step_file", slow)
    out = writer(tmp_path)
    out.submit_step(0, synthetic_step(0))
    out.submit_metrics(0, {"loss": 0.5})  # does not wait
    assert open_run(tmp_path).metrics["loss"].values.tolist() == [0.5]
    may_end.set()
    synced = []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(os.fstat(file).st_ino))
    out.flush()
    for step in (1, 2, 3):  # without steps between
        out.submit_metrics(step, {"loss": 0.5 - step})
    assert len(out._pending) <= 2
    out.flush()
    assert open_run(tmp_path).metrics["loss"].values.tolist() == [0.5, -0.5, -1.5, -2.5]
    assert synced.count((tmp_path / "metrics.jsonl").stat().st_ino) >= 3


def test_only_the_first_of_several_failures_is_raised(tmp_path, monkeypatch):
    out = writer(tmp_path)
    out.submit_step(5, synthetic_step(4))
    with monkeypatch.context() as patch:
        patch.setattr("opdprobe.store.writer._put_on_disk", lambda path: 1 / 0)
        out.submit_metrics(5, {"loss": 0.5})
        with pytest.raises(StoreError, match=r"step = \[4\] in the dataset; expected 5"):
            out.submit_metrics(6, {"loss": 0.5})
    out.submit_metrics(7, {"loss": 0.5})
    out.flush()
    assert open_run(tmp_path).metrics["step"].values.tolist() == [5, 7]


def test_an_interrupted_wait_can_be_repeated(tmp_path, monkeypatch):
    out = writer(tmp_path)
    out.submit_step(0, synthetic_step(0))
    with monkeypatch.context() as patch:
        patch.setattr(out._pending[0], "result", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            out.flush()
    out.flush()
    assert open_run(tmp_path).steps == [0]


def test_a_step_can_be_made_on_the_thread(tmp_path):
    out, threads = writer(tmp_path), []

    def step():
        threads.append(threading.current_thread())
        return to_step(synthetic_step(5))

    out.submit_step(5, step)
    out.flush()
    assert threads != [threading.current_thread()]
    assert open_run(tmp_path).steps == [5]
    out.submit_step(6, lambda: to_step(synthetic_step(length=[2, 3, 4])))
    with pytest.raises(ValueError, match="shape"):
        out.flush()
    assert open_run(tmp_path).steps == [5]


@pytest.mark.parametrize("fraction", [1, 0.3])
def test_a_step_is_the_same_on_disk_whether_it_was_checked_before_or_is_checked_now(
    tmp_path, fraction
):
    step = thin(to_step(synthetic_step(3, k=4)), fraction=fraction, max_positions=5, seed=(0, 3))
    now = writer(tmp_path / "now").write_step(3, step.to_dataset())
    out = writer(tmp_path / "before")
    out.submit_step(3, lambda: step)
    out.flush()
    assert (out.path / "steps" / now.name).read_bytes() == now.read_bytes()


def test_a_dataset_is_checked_when_written_and_a_step_when_made(tmp_path):
    bad = synthetic_step(0).assign(entropy=lambda ds: -ds["entropy"])
    out = writer(tmp_path)
    out.submit_step(0, bad)
    with pytest.raises(StoreError, match=r"entropy = -.*expected finite and >= 0"):
        out.flush()
    assert open_run(tmp_path).steps == []
    out.submit_step(0, lambda: Step(bad.variables, bad.attrs))
    out.flush()
    assert open_run(tmp_path).steps == [0]


HOLD = """
import sys, time
from opdprobe import RunWriter
writer = RunWriter(sys.argv[1], attrs={"seed": 0}, config={}, resume=True)
print("held", flush=True)
time.sleep(600)
"""


@pytest.mark.slow
def test_one_process_writes_a_run_at_a_time_and_a_killed_one_releases_it(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as other:
        try:
            assert other.stdout.readline() == "held\n"
            with pytest.raises(StoreError, match="is being written by another process: wait"):
                writer(tmp_path, resume=True)
            assert open_run(tmp_path).steps == []  # any process may read
        finally:
            other.kill()
    writer(tmp_path, resume=True).write_step(0, synthetic_step(0))


@pytest.mark.slow
def test_a_writer_made_by_a_thread_that_has_ended_lets_go(tmp_path):
    with ThreadPoolExecutor(1) as thread:
        made = thread.submit(writer, tmp_path).result()
    made.write_step(0, synthetic_step(0))
    del made
    gc.collect()
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as other:
        try:
            assert other.stdout.readline() == "held\n"
        finally:
            other.kill()


def test_a_process_may_continue_a_run_that_it_has_open(tmp_path):
    first = writer(tmp_path)
    first.write_step(0, synthetic_step(0))
    again = writer(tmp_path, resume=True)
    again.write_step(1, synthetic_step(1))
    assert open_run(tmp_path).steps == [0, 1]


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
def test_a_directory_that_may_not_be_written(tmp_path, monkeypatch, code):
    def refuse(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    out = writer(tmp_path)
    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(StoreError, match=r"no permission for writing .*000000"):
        out.write_step(0, synthetic_step(0))
    assert not list((tmp_path / "steps").iterdir())


def test_a_clock_that_is_set_back_changes_nothing(tmp_path, monkeypatch):
    out = writer(tmp_path)
    out.write_step(0, synthetic_step(0))
    first = (tmp_path / "steps" / "000000.zarr.zip").read_bytes()
    monkeypatch.setattr(time, "time", lambda: 0.0)
    writer(tmp_path, resume=True).write_step(1, synthetic_step(1))
    os.utime(tmp_path / "steps" / "000001.zarr.zip", (0, 0))
    assert open_run(tmp_path).steps == [0, 1]
    assert writer(tmp_path / "other").write_step(0, synthetic_step(0)).read_bytes() == first


def test_settings_and_attributes_that_an_older_run_lacks(tmp_path):
    def reopen(attrs, config, **more):
        RunWriter(tmp_path, attrs={"seed": 0, **attrs}, config=config, resume=True, **more)

    RunWriter(tmp_path, attrs={"seed": 0}, config={"k": 4}, resume=False)
    defaults = {"k": 16, "loud": None, "new": 2}
    template = {"chat_template": {"variables": {"x": 1}}, "on_error": "skip"}
    reopen(template, {"k": 4, "new": 2, "loud": None}, defaults=defaults)
    with pytest.raises(ConfigError, match="new: 2 before, 3 now"):
        reopen({}, {"k": 4, "new": 3, "loud": None}, defaults=defaults)
    with pytest.raises(ConfigError, match="new: absent before, 2 now"):
        reopen({}, {"k": 4, "new": 2})
    with pytest.raises(StoreError, match="width: absent before, 1 now"):
        reopen({"width": 1}, {"k": 4})


def test_the_form_of_the_prompts_is_compared_once_it_is_recorded(tmp_path):
    def template(value):
        return {"chat_template": {"variables": {"x": value}}, "max_prompt_length": value}

    RunWriter(tmp_path, attrs=template(1), config={}, resume=False)
    RunWriter(tmp_path, attrs=template(1) | {"max_prompt_length": 9}, config={}, resume=True)
    with pytest.raises(StoreError, match=r"chat_template\.variables\.x: 1 before, 2 now"):
        RunWriter(tmp_path, attrs=template(2), config={}, resume=True)


WIDE = [
    name
    for name, variable in synthetic_step(given=True).variables.items()
    if variable.dtype in (np.int32, np.float32)
]


@pytest.mark.parametrize("name", WIDE)
def test_numbers_of_another_width_are_stored_in_the_stores(name, tmp_path):
    """NumPy's own int64 and float64, as most code makes them, do not give an unreadable step."""
    ds = synthetic_step(3, given=True)
    wide = "int64" if ds[name].dtype.kind == "i" else "float64"
    given = ds.assign_coords if name in ds.coords else ds.assign
    back = []
    for folder, step in (("plain", ds), ("wide", given({name: ds[name].astype(wide)}))):
        writing = RunWriter(tmp_path / folder, attrs={"k": 4}, config={}, resume=False)
        writing.write_step(3, step)
        back.append(open_run(tmp_path / folder).load(3))
    assert back[1][name].dtype == ds[name].dtype
    xr.testing.assert_identical(*back)


def test_an_integer_that_does_not_fit_is_refused(tmp_path):
    ds = synthetic_step(3)
    ids = ds["sampled_id"].astype("int64")
    ids[2] = 2**31
    writing = RunWriter(tmp_path, attrs={"k": 4}, config={}, resume=False)
    with pytest.raises(StoreError, match=r"sampled_id = 2147483648 at index \(2,\) \(1 of "):
        writing.write_step(3, ds.assign(sampled_id=ids))
    assert open_run(tmp_path).steps == []
