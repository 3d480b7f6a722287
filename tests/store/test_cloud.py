"""Runs on object storage: fsspec's own store in memory, and S3 as moto serves it on loopback."""

import shutil
import warnings

import numpy as np
import pytest
import xarray as xr

from opdprobe.errors import StoreError
from opdprobe.probes import curves
from opdprobe.store import open_run
from opdprobe.testing import synthetic_run

pytestmark = pytest.mark.slow

fsspec = pytest.importorskip("fsspec")
pytest.importorskip("upath", reason="pip install opdprobe[cloud]")


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    return synthetic_run(tmp_path_factory.mktemp("cloud") / "run", [0, 7], k=4)


@pytest.fixture
def memory(local):
    files = fsspec.filesystem("memory")
    files.put(str(local.path), "/bucket/run", recursive=True)
    yield files
    files.rm("/bucket", recursive=True)


@pytest.fixture
def s3(local, monkeypatch):
    """An S3 server in this process, which s3fs is configured to use."""
    pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://{host}:{port}")
    files = fsspec.filesystem("s3", skip_instance_cache=True)
    files.mkdir("bucket")
    files.put(str(local.path), "bucket/run", recursive=True)
    yield files
    files.clear_instance_cache()
    running.stop()


def compare(remote, local):
    assert remote.config == local.config
    assert remote.attrs == local.attrs
    assert remote.steps == [0, 7]
    xr.testing.assert_identical(remote.metrics, local.metrics)
    xr.testing.assert_identical(remote.load(7).load(), local.load(7).load())
    xr.testing.assert_identical(remote.states().load(), local.states().load())
    xr.testing.assert_identical(curves(remote), curves(local))
    np.testing.assert_array_equal(remote.response_ids(7)[1], local.response_ids(7)[1])


def test_a_run_in_memory_is_the_run_on_disk(memory, local):
    compare(open_run("memory://bucket/run"), local)


def test_a_run_on_s3_is_the_run_on_disk(s3, local):
    with warnings.catch_warnings():
        # Warnings of botocore and of the server's web framework.
        warnings.simplefilter("ignore", DeprecationWarning)
        compare(open_run("s3://bucket/run"), local)
        with pytest.raises(StoreError, match=r"s3://bucket/none does not exist"):
            open_run("s3://bucket/none")


def test_missing_and_torn_remote_files_are_named(memory, tmp_path):
    run = open_run("memory://bucket/run")
    step = "/bucket/run/steps/000007.zarr.zip"
    with memory.open(step, "rb") as file:
        half = file.read()[:1000]
    memory.pipe(step, half)
    with pytest.raises(StoreError, match=r"memory://bucket/run/steps/000007.zarr.zip is torn"):
        run.load(7)
    memory.rm(step)
    assert run.steps == [0]
    memory.rm("/bucket/run/config.yaml")
    with pytest.raises(StoreError, match=r"memory://bucket/run is not a run: .* config\.yaml"):
        open_run("memory://bucket/run")
    for path, message in {
        "memory://bucket/none": "does not exist",
        "nonsense://bucket/run": "cannot be reached .*: check the address",
    }.items():
        with pytest.raises(StoreError, match=message):
            open_run(path)


def test_without_the_extra_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "upath", None)
    with pytest.raises(StoreError, match=r"install opdprobe\[cloud\] to read it there"):
        open_run("s3://bucket/run")


def test_a_path_that_only_looks_remote_stays_on_disk(local, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(local.path, tmp_path / "s3:" / "run")
    assert open_run("s3:/run").steps == [0, 7]
