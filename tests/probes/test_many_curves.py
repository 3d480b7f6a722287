"""Curves of many probes in one pass against one at a time, however the run is cut and spread."""

from functools import partial

import dask
import numpy as np
import pytest
import xarray as xr

from opdprobe.errors import ConfigError, StoreError
from opdprobe.probes import curve, curves
from opdprobe.probes.averages import MAIN
from opdprobe.probes.rollout_sums import step_sums
from opdprobe.store.step import write_step_file
from opdprobe.store.stream import batches, pieces
from opdprobe.testing import synthetic_run, synthetic_step

STEPS = [0, 3, 10, 11]
LENGTHS = 2 * [5, 1, 8, 3, 0, 8]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("curves") / "run"
    return synthetic_run(path, STEPS, n_rollouts=12, length=LENGTHS, agreement=0.3, k=6)


def finished(ds):
    """A function that uses a rollout table, which only a complete step has."""
    return ds.opd.entropy("teacher").where(ds["finished"].values[ds["rollout"].values])


@pytest.mark.parametrize("by", ["step", "position"])
@pytest.mark.parametrize("lazy", [True, False])
def test_each_is_what_curve_gives(run, by, lazy):
    source = run if lazy else run.states().load()
    probes = {name: name for name in MAIN} | {"mine": lambda ds: ds.opd.mass_set_size(mass=0.5)}
    together = curves(source, probes, by=by, n_boot=200, seed=3)
    assert together["probe"].values.tolist() == [*MAIN, "mine"]
    for name, probe in probes.items():
        alone = curve(source, probe, by=by, n_boot=200, seed=3)
        one = together.sel(probe=name)
        for variable in alone.data_vars:
            np.testing.assert_allclose(one[variable], alone[variable], rtol=1e-12)
        for about in ("units", "long_name"):
            assert one[about].item() == alone.attrs[about] == alone["value"].attrs[about]


def test_names_may_say_the_model(run):
    def teacher(ds):
        return ds.opd.overlap_mass("teacher")

    xr.testing.assert_identical(curve(run, "teacher_overlap_mass"), curve(run, teacher))


def test_a_function_sees_the_rollouts_of_its_step(run):
    values = {step: finished(run.load(step)).values for step in run.steps}
    found = curves(run, {"all": "teacher_entropy", "finished": finished}).sel(probe="finished")
    np.testing.assert_allclose(found["value"], [np.nanmean(v) for v in values.values()])
    assert found["n_missing"].values.tolist() == [np.isnan(v).sum() for v in values.values()]


@pytest.mark.parametrize("chunk", [131_072, 4])
@pytest.mark.slow
def test_a_step_in_parts_gives_what_it_gives_whole(run, tmp_path, monkeypatch, chunk):
    whole = curves(run), curves(run, by="position", bins=3)
    monkeypatch.setattr("opdprobe.store.step_encode._CHUNK", chunk)
    for step in STEPS:
        write_step_file(run.path / "steps" / f"{step:06d}.zarr.zip", run.load(step).load())
    monkeypatch.setattr("opdprobe.store.stream.PIECE", 7)
    cut = [piece for piece in pieces(run, run.steps)]
    assert [sum(n for *_, n in piece.parts) for piece in cut] == [*[7] * 7, 1] * 4
    for before, now in zip(whole, (curves(run), curves(run, by="position", bins=3)), strict=True):
        xr.testing.assert_allclose(now, before, rtol=1e-12)


def test_small_steps_are_read_together(run, monkeypatch):
    assert batches(run) == [STEPS]
    assert batches(run, joined=False) == [[step] for step in STEPS]
    piece = next(pieces(run, STEPS))
    assert piece.parts == [(step, 12, 50) for step in STEPS]
    size = (run.path / "steps" / "000000.zarr.zip").stat().st_size
    monkeypatch.setattr("opdprobe.store.stream._BATCH_BYTES", 3 * size)
    assert [len(batch) for batch in batches(run)] in ([2, 2], [3, 1])
    monkeypatch.setattr("opdprobe.store.stream._BATCH_STEPS", 1)
    assert batches(run) == [[step] for step in STEPS]


def test_a_piece_holds_what_the_steps_hold(run):
    expected = xr.concat(
        [run.load(s).drop_dims(["rollout", "prompt_token", "response_token"]) for s in STEPS],
        "state",
        combine_attrs="drop_conflicts",
    )
    for piece in pieces(run, STEPS):
        states = piece.states.load()
        xr.testing.assert_identical(states, expected.assign_attrs(states.attrs))
    for piece in pieces(run, [3]):
        xr.testing.assert_equal(piece.states.load(), run.load(3))


def test_a_step_without_states_has_its_place(tmp_path):
    run = synthetic_run(tmp_path, [0, 1, 2], length=0)
    write_step_file(run.path / "steps" / "000001.zarr.zip", synthetic_step(1))
    found = curves(run)
    assert found["n"].values.tolist() == [[0, 32, 0]] * len(MAIN)
    assert np.isfinite(found["value"].isel(step=1)).all()
    assert np.isnan(found[["value", "low", "high"]].isel(step=[0, 2]).to_array()).all()


def test_steps_that_do_not_belong_together_are_named(tmp_path):
    run = synthetic_run(tmp_path, [0, 1], k=5)
    file = run.path / "steps" / "000001.zarr.zip"
    write_step_file(file, synthetic_step(1, k=4))
    with pytest.raises(StoreError, match=r"000001\.zarr\.zip: a row of match has shape \(4,\)"):
        curves(run)
    write_step_file(file, synthetic_step(1, k=5).drop_vars("reverse_kl"))
    with pytest.raises(StoreError, match=r"000001\.zarr\.zip is torn .*reverse_kl is not in it"):
        curves(run)
    odd = synthetic_step(1, k=5)
    write_step_file(file, odd.assign_coords(rollout=odd["rollout"] + 9))
    with pytest.raises(StoreError, match="step 1 has a state of rollout 12, but 4 rollouts"):
        curves(run)
    file.write_bytes(b"PK")
    with pytest.raises(StoreError, match="torn"):
        curves(run)


def test_sums_are_those_of_the_states(run):
    (found,) = step_sums(run, ["entropy_gap"], list)
    for sums in found:
        assert sums.attrs == [{"units": "nats", "long_name": "entropy gap"}]
        ds = run.load(sums.step)
        gap = ds.opd.entropy_gap().values
        assert sums.length.tolist() == LENGTHS
        assert sums.n[0, :, 0].tolist() == LENGTHS
        expected = [gap[ds["rollout"].values == r].sum() for r in range(12)]
        np.testing.assert_allclose(sums.total[0, :, 0], expected)
        assert not sums.n_missing.any()


def test_refusals(run):
    for bad in ("overlap_ratio", [], {}):
        with pytest.raises(ConfigError, match="expected a list of names, or a dict of probes"):
            curves(run, bad)
    for bad in ("teacher_reverse_kl", "nobody_entropy", "student__get"):
        with pytest.raises(ConfigError, match="with 'student_' or 'teacher_' before overlap_mass"):
            curves(run, [bad])


_PATIENCE = 240  # seconds; without a limit, a cluster that lost its workers is awaited forever


@pytest.fixture(scope="module")
def cluster():
    """Two worker processes; a client, and its settings, for the tests below only."""
    distributed = pytest.importorskip("distributed")
    with (
        dask.config.set({"distributed.worker.memory.terminate": False}),
        distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            dashboard_address=None,
        ) as started,
        distributed.Client(started) as client,
    ):
        yield client


def test_a_cluster_gives_the_curves_of_one_thread(run, cluster, monkeypatch):
    monkeypatch.setattr("opdprobe.store.stream._BATCH_STEPS", 1)  # else one batch has all
    on_cluster = partial(cluster.get_executor().map, timeout=_PATIENCE)
    for by in ("step", "position"):
        spread = curves(run, by=by, map=on_cluster)
        xr.testing.assert_identical(spread, curves(run, by=by))


def test_a_cluster_gives_the_probes_of_one_thread(run, cluster):
    lazy = run.states().opd.overlap_token_advantage()
    with dask.config.set(scheduler="synchronous"):
        alone = lazy.compute()
    xr.testing.assert_identical(cluster.compute(lazy).result(timeout=_PATIENCE), alone)
