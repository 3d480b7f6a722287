"""A step in parts, one from each process, reads like the same step in one file."""

import itertools
from functools import cache

import numpy as np
import pytest

import opdprobe
from opdprobe import StoreError, open_run
from opdprobe.report.view import write_view
from opdprobe.store import RunWriter
from opdprobe.store import stream as pieces
from opdprobe.store.step_parts import step_files
from opdprobe.testing import synthetic_step

STEPS = [0, 3, 4]
LENGTHS = [5, 0, 7, 3, 6]


def split(ds, cuts):
    """Cut a step at some rollouts."""
    bounds = [0, *cuts, ds.sizes["rollout"]]
    for first, stop in itertools.pairwise(bounds):
        kept = np.arange(ds.sizes["rollout"])
        kept = (kept >= first) & (kept < stop)
        part = ds.isel(
            rollout=kept,
            state=kept[ds["rollout"].values],
            prompt_token=np.repeat(kept, ds["prompt_length"]),
            response_token=np.repeat(kept, ds["length"]),
        )
        shifted = (part["rollout"].values - first).astype(ds["rollout"].dtype)
        yield part.assign_coords(rollout=("state", shifted, ds["rollout"].attrs))


def writers(path, size, *, resume=False):
    about = {"attrs": {"seed": 0}, "config": {"lr": 1e-6}}
    return [RunWriter(path, **about, resume=resume, part=(rank, size)) for rank in range(size)]


def write(path, cuts):
    some = writers(path, len(cuts) + 1)
    for step in STEPS:
        whole = synthetic_step(step, n_rollouts=5, length=LENGTHS, k=4)
        for writer, part in zip(some, split(whole, cuts), strict=True):
            writer.write_step(step, part)
            writer.log_metrics(step, {"loss": 1.0})
    return open_run(path)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return write(tmp_path_factory.mktemp("one") / "run", [])


@pytest.fixture(scope="module", params=[[2], [0], [5], [1, 2, 4]], ids=str)
def parted(request, tmp_path_factory):
    """Parts with some rollouts, with none, or with one that has no token."""
    return write(tmp_path_factory.mktemp("parted") / "run", request.param)


@pytest.fixture(scope="module")
def curve_of_one(one):
    return cache(lambda probe, by: opdprobe.curve(one, probe, by=by))


def test_a_step_is_its_parts_one_after_the_other(one, parted):
    assert parted.steps == one.steps
    for step in STEPS:
        assert parted.load(step).identical(one.load(step))
    assert parted.metrics.identical(one.metrics)


@pytest.mark.slow
def test_many_steps_line_up(one, parted):
    assert parted.states().compute().identical(one.states().compute())
    assert parted.rollouts([3, 4]).compute().identical(one.rollouts([3, 4]).compute())
    assert parted.states().chunks == one.states().chunks


@pytest.mark.parametrize("probe", ["overlap_ratio", lambda ds: ds.opd.entropy_gap()])
@pytest.mark.slow
def test_curves_are_the_same(curve_of_one, parted, monkeypatch, probe):
    monkeypatch.setattr(pieces, "PIECE", 8)  # so that a piece ends within a part
    for by in ("step", "position"):
        assert opdprobe.curve(parted, probe, by=by).identical(curve_of_one(probe, by))


def test_pieces_hold_the_tables_of_the_whole_step(one, parted):
    got, want = ([p.states.load() for p in pieces.pieces(run, [3])] for run in (parted, one))
    assert len(got) == 1
    assert got[0].identical(want[0])


def test_pages_are_the_same(one, parted, tmp_path):
    pages = []
    for run in (one, parted):
        write_view(tmp_path / "page.html", [run])
        pages.append((tmp_path / "page.html").read_text())
    assert pages[0] == pages[1]


def test_a_step_that_lacks_a_part_is_not_recorded(tmp_path):
    run = write(tmp_path / "run", [1, 2])
    files = run.files[3]
    files[1].unlink()
    assert run.steps == [0, 4]
    with pytest.raises(StoreError, match="no step 3; recorded steps: 0, 4"):
        run.load(3)
    assert opdprobe.curve(run, "overlap_ratio").step.values.tolist() == [0, 4]


def test_a_torn_part_is_named(tmp_path):
    run = write(tmp_path / "run", [2])
    run.files[3][1].write_bytes(b"torn")
    with pytest.raises(StoreError, match=r"000003\.2-of-2\.zarr\.zip is torn"):
        run.load(3)


def test_truncation_removes_all_parts_even_of_incomplete_steps(tmp_path):
    run = write(tmp_path / "run", [2])
    run.files[4][0].unlink()
    first, second = writers(run.path, 2, resume=True)
    second.truncate_after(0)
    assert run.steps == [0, 3]
    first.truncate_after(0)
    assert [path.name for path in sorted((run.path / "steps").iterdir())] == [
        "000000.1-of-2.zarr.zip",
        "000000.2-of-2.zarr.zip",
    ]
    assert run.metrics.step.values.tolist() == [0]


def test_only_rank_0_writes_metrics_and_evaluations(tmp_path):
    first, second = writers(tmp_path, 2)
    second.log_metrics(0, {"loss": 2.0})
    second.log_evaluation(0, "math", ["a"], [1.0])
    assert not (tmp_path / "metrics.jsonl").exists()
    assert open_run(tmp_path).benchmarks == []
    first.log_metrics(0, {"loss": 1.0})
    assert open_run(tmp_path).metrics.loss.values.tolist() == [1.0]


def test_other_ranks_need_the_run_that_rank_0_created(tmp_path):
    with pytest.raises(StoreError, match="expected the directory of a run"):
        RunWriter(tmp_path / "run", attrs={}, config={}, resume=True, part=(1, 2))


def test_files_with_other_names_are_ignored(tmp_path):
    (tmp_path / "steps").mkdir()
    for name in (
        "000001.1-of-1.zarr.zip",
        "000002.3-of-2.zarr.zip",
        "000002.1-of-2.zarr.zip",
        "000003.0-of-1.zarr.zip",
        "000004.1-of-2.zarr.zip",
        "000004.2-of-2.zarr.zip",
        "000004.zarr.zip",
        "000005.01-of-1.zarr.zip",
        ".tmp-000006.zarr.zip",
    ):
        (tmp_path / "steps" / name).touch()
    found = {step: [path.name for path in files] for step, files in step_files(tmp_path).items()}
    assert list(found) == [1, 4]
    assert found[4] == ["000004.zarr.zip"]
