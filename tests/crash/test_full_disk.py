"""A disk that is full, at whatever write of a run: nothing half-written, and the run goes on."""

import builtins
import errno
import io
import os
import shutil
import subprocess
from contextlib import contextmanager
from pathlib import Path

import pytest
from tiny_training import outcome, trainer

from opdprobe import RunWriter, StoreError
from opdprobe.store.verify import verify_run
from opdprobe.testing import synthetic_step

pytestmark = pytest.mark.slow

_PAGE = 4096


def assert_nothing_half_written(run_dir):
    assert not list(run_dir.rglob(".tmp-*"))
    if (run_dir / "run.json").exists():
        assert verify_run(run_dir).faults == []


# --- a disk that really is full -------------------------------------------------------------------


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory):
    """A disk of a megabyte."""
    path = tmp_path_factory.mktemp("disk")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", path],
        capture_output=True,
        text=True,
        timeout=60,
    )
    if mounted.returncode != 0:
        pytest.skip(f"no disk can be mounted here: {mounted.stderr.strip()}")
    yield path
    subprocess.run(["umount", "-l", path], check=True, timeout=60)


def leave_free(disk, pages):
    """Fill a disk up but for so many pages; gives the file to remove."""
    filler = disk / "filler"
    found = os.statvfs(disk)
    filler.write_bytes(bytes((found.f_bavail - pages) * _PAGE))
    return filler


def assert_survives(disk, pages, unbroken):
    """Train with so much space; free some where it did not suffice, and go on."""
    run_dir = disk / "run"
    filler = leave_free(disk, pages)
    try:
        with pytest.raises(StoreError, match=r"disk full while|could not write"):
            trainer(run_dir).train()
        assert_nothing_half_written(run_dir)
    finally:
        filler.unlink()
    trainer(run_dir).train()
    assert outcome(run_dir) == outcome(unbroken)
    shutil.rmtree(run_dir)


# Pages of 4 kB, of which the run takes 108; every number of them has been tried.
@pytest.mark.parametrize("pages", [0, 3, 25, 47, 67, 107])
def test_a_run_on_a_full_disk(small_disk, pages, unbroken):
    assert_survives(small_disk, pages, unbroken)


# --- a disk that is full from a certain write on --------------------------------------------------


class FullDisk:
    """Lets so many writes and syncs of files in a directory pass; those after meet a full disk."""

    def __init__(self, monkeypatch, directory, writes):
        self.left, self.directory = writes, str(directory)
        self._open, self._fsync = builtins.open, os.fsync
        for module in (builtins, io):  # pathlib takes the one in io
            monkeypatch.setattr(module, "open", self.open)
        monkeypatch.setattr(os, "fsync", self.fsync)

    def take(self):
        self.left -= 1
        if self.left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fsync(self, file):
        self.take()
        self._fsync(file)

    def open(
        self, file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, *more, **named
    ):
        opener = named.get("opener")  # which may take the name as one in a directory of its own
        ours = isinstance(file, str | Path) and (opener or str(file).startswith(self.directory))
        if not ours or not set(mode) & set("wax"):
            return self._open(file, mode, buffering, encoding, errors, newline, *more, **named)
        raw = _File(self, file, mode.replace("b", "").replace("t", ""), opener)
        if buffering == 0:
            return raw
        buffered = io.BufferedWriter(raw)
        if "b" in mode:
            return buffered
        return io.TextIOWrapper(buffered, encoding, errors, newline)


class _File(io.FileIO):
    def __init__(self, disk, file, mode, opener):
        super().__init__(file, mode, opener=opener)
        inside = os.readlink(f"/proc/self/fd/{self.fileno()}").startswith(disk.directory)
        self._disk = disk if inside else None

    def write(self, data):
        try:
            if self._disk is not None:
                self._disk.take()
        except OSError:
            super().write(bytes(data)[: len(data) // 2])
            raise
        return super().write(data)


STEPS = [synthetic_step(step, n_rollouts=1, length=2, k=2) for step in range(2)]


def write_run(run_dir):
    """Write a run, or go on with it, as a trainer does."""
    writer = RunWriter(run_dir, attrs={"seed": 0}, config={"k": 16}, resume=True)
    writer.truncate_after(-1)
    try:
        for step, dataset in enumerate(STEPS):
            writer.log_evaluation(step, "test", ["a", "b"], [0.0, 1.0])
            writer.submit_step(step, dataset)
            writer.log_metrics(step, {"loss": 0.5})
    finally:
        writer.flush()


def recorded(run_dir):
    """All files but the one that holds the commit, which somebody may add to meanwhile."""
    found = [path for path in run_dir.rglob("*") if path.is_file() and path.name != "run.json"]
    return {path.name: path.read_bytes() for path in found}


@contextmanager
def filled(monkeypatch, directory, writes):
    with monkeypatch.context() as patch:
        yield FullDisk(patch, directory, writes)


def test_a_write_of_a_recorder(tmp_path, monkeypatch):
    with filled(monkeypatch, tmp_path, 10_000) as disk:
        write_run(tmp_path / "unbroken")
    n_writes = 10_000 - disk.left
    assert n_writes > 20
    want = recorded(tmp_path / "unbroken")
    for i in range(n_writes):
        run_dir = tmp_path / str(i)
        with (
            filled(monkeypatch, run_dir, i),
            pytest.raises(StoreError, match="disk full while"),
        ):
            write_run(run_dir)
        assert_nothing_half_written(run_dir)
        write_run(run_dir)
        assert recorded(run_dir) == want


@pytest.mark.parametrize("n", range(0, 55, 7))  # every write has been tried; there are 55
def test_a_write_of_a_training_run(tmp_path, monkeypatch, n):
    settings = {"max_steps": 2, "save_steps": 1}
    trainer(tmp_path / "unbroken", **settings).train()
    run_dir = tmp_path / "run"
    with (
        filled(monkeypatch, run_dir, n),
        pytest.raises(StoreError, match=r"disk full while|could not write"),
    ):
        trainer(run_dir, **settings).train()
    assert_nothing_half_written(run_dir)
    trainer(run_dir, **settings).train()
    assert outcome(run_dir) == outcome(tmp_path / "unbroken")
