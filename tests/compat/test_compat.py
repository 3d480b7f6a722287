"""Runs that earlier versions wrote: they open, are valid, mean the same, and go on."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from expected import read

from opdprobe import RunWriter, open_run, validate
from opdprobe.store.schema import SCHEMA_VERSION
from opdprobe.store.verify import verify_run
from opdprobe.testing import synthetic_step

RUNS = sorted(Path(__file__).parent.glob("runs/*"))


def assert_close(got, want, where=""):
    """Compare what was read: numbers up to the order of adding them up, everything else exactly."""
    assert type(got) is type(want), where
    if isinstance(want, dict):
        assert got.keys() == want.keys(), where
        for name in want:
            assert_close(got[name], want[name], f"{where}/{name}")
    elif isinstance(want, list):
        assert len(got) == len(want), where
        for i, value in enumerate(want):
            assert_close(got[i], value, f"{where}/{i}")
    elif isinstance(want, float):
        np.testing.assert_allclose(got, want, rtol=1e-9, err_msg=where)
    else:
        assert got == want, where


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.name)
def test_it_reads_as_it_did(path):
    run = open_run(path)
    assert_close(read(run), json.loads((path / "expected.json").read_text()))
    for step in run.steps:
        validate(run.load(step))
    finished = [run.load(step).finished.values for step in run.steps]
    assert run.rollouts().finished.dtype == bool
    np.testing.assert_array_equal(run.rollouts().finished, np.concatenate(finished))
    assert np.isnan(run.metrics["nothing"]).all()
    assert verify_run(path).faults == []


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.name)
def test_plain_xarray_reads_it(path):
    for step in open_run(path).steps:
        url = f"zip::{path}/steps/{step:06d}.zarr.zip"
        ds = xr.open_dataset(url, engine="zarr", consolidated=False)
        np.testing.assert_array_equal(ds.logp, open_run(path).load(step).logp)


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.name)
def test_it_goes_on(path, tmp_path):
    run_dir = shutil.copytree(path, tmp_path / "run")
    run = open_run(run_dir)
    before = run.steps
    own = {name: run.attrs[name] for name in ("student", "teacher", "seed")}
    writer = RunWriter(run_dir, attrs=own, config=run.config, resume=True)
    step = synthetic_step(10, n_rollouts=2, length=[3, 2], k=4, given=True)
    younger = set(step.variables) - set(run.load(before[0]).variables)
    writer.write_step(10, step.drop_vars(younger))
    assert run.steps == [*before, 10]
    assert run.states().sizes["state"] == 5 * len(run.steps)
    assert (run_dir / "metrics.jsonl").read_bytes() == (path / "metrics.jsonl").read_bytes()


def test_every_schema_has_a_run():
    found = {open_run(path).attrs["schema_version"] for path in RUNS}
    assert found == set(range(1, SCHEMA_VERSION + 1))
