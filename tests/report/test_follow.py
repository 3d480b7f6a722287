"""A run followed while it grows: the same course as read at once, each step read once."""

import json
import shutil

import numpy as np
import pytest

from opdprobe import StoreError
from opdprobe.report import follow
from opdprobe.report.course import course
from opdprobe.report.course import sum_quantities as sums
from opdprobe.report.diagnosis import diagnose
from opdprobe.report.follow import Follower
from opdprobe.store import RunWriter, open_run
from opdprobe.store.step_parts import step_path
from opdprobe.testing import synthetic_run, synthetic_step

FORM = {"n_rollouts": 3, "length": [2, 0, 4], "k": 4, "given": True}


def begin(folder, steps=(0, 5), config=None):
    writer = RunWriter(folder, attrs={"seed": 0}, config=config or {}, resume=False)
    for step in steps:
        add(writer, step)
    return writer


def add(writer, step):
    writer.write_step(step, synthetic_step(step, **FORM))
    writer.log_metrics(step, {"loss": 1 / (1 + step)})
    writer.log_evaluation(step, "easy", ["a", "b"], [step / 10, 1])
    if step % 10 == 0:
        writer.log_evaluation(step, "hard", ["c"], [0.5])


def note_reading(monkeypatch, read):
    """Add the steps of each reading to a list."""
    monkeypatch.setattr(
        follow, "sum_quantities", lambda run, steps: read.append(list(steps)) or sums(run, steps)
    )


def assert_same(follower):
    got, want = follower.course(), course(open_run(follower.path))
    assert got.steps == want.steps
    for name in ("first", "unit", "length"):
        np.testing.assert_array_equal(getattr(got.sums, name), getattr(want.sums, name))
    assert got.sums.total.keys() == want.sums.total.keys()
    for name, total in want.sums.total.items():
        np.testing.assert_array_equal(got.sums.total[name], total, err_msg=name)
        np.testing.assert_array_equal(got.sums.n[name], want.sums.n[name], err_msg=name)
    assert got.metrics.identical(want.metrics)
    assert got.evaluated == want.evaluated
    for ours, theirs in zip(got.scores, want.scores, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert diagnose(got)[0] == diagnose(want)[0]


def test_a_course_that_grew_is_the_course_read_at_once(tmp_path, monkeypatch):
    writer = begin(tmp_path / "run")
    read = []
    note_reading(monkeypatch, read)
    follower = Follower(tmp_path / "run")
    told = []
    assert follower.look(lambda *done: told.append(done))
    assert told == [(2, 2)]
    assert_same(follower)
    assert not follower.look()
    for step in (10, 20):
        add(writer, step)
        assert follower.look()
        assert_same(follower)
    assert read == [[0, 5], [10], [20]]
    assert set(follower.evaluations) == {"easy", "hard"}


def test_a_step_that_is_being_copied_is_not_there_yet(tmp_path):
    writer = begin(tmp_path / "run", steps=(0,))
    follower = Follower(tmp_path / "run")
    follower.look()
    file = writer.write_step(5, synthetic_step(5, **FORM))
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    assert not follower.look()
    assert (follower.course().steps, follower.unreadable()) == ([0], {})
    # With a later step beside it, it is worth a word.
    writer.write_step(10, synthetic_step(10, **FORM))
    assert follower.look()
    assert follower.course().steps == [0, 10]
    (told,) = follower.unreadable().items()
    assert told[0] == 5
    assert file.name in told[1]
    file.write_bytes(whole)
    assert follower.look()
    assert follower.unreadable() == {}
    assert_same(follower)


def test_steps_that_come_together_with_a_torn_one_are_read(tmp_path, monkeypatch):
    begin(tmp_path / "run", steps=(0, 5, 10))
    read = []
    note_reading(monkeypatch, read)
    step_path(tmp_path / "run", 5).write_bytes(b"")
    follower = Follower(tmp_path / "run")
    assert follower.look()
    assert follower.course().steps == [0, 10]
    assert list(follower.unreadable()) == [5]
    assert read == [[0, 5, 10], [0], [5], [10]]
    assert not follower.look()  # an unchanged torn step is not tried again
    assert len(read) == 4


def test_half_a_line_is_not_there_yet(tmp_path):
    run = synthetic_run(tmp_path / "run", steps=[0], **FORM)
    follower = Follower(run.path)
    follower.look()
    line = json.dumps({"step": 1, "loss": 0.25})
    with open(run.path / "metrics.jsonl", "a") as file:
        file.write(line[:9])
        file.flush()
        assert not follower.look()
        file.write(line[9:] + "\n")
    assert follower.look()
    assert follower.course().metrics["loss"].sel(step=1) == 0.25


def test_a_run_that_is_rolled_back(tmp_path):
    writer = begin(tmp_path / "run", steps=(0, 5, 10))
    follower = Follower(tmp_path / "run")
    follower.look()
    writer.truncate_after(0)
    assert follower.look()
    assert follower.course().steps == [0]
    assert_same(follower)
    # A step of the same name with other content.
    other = synthetic_step(7, **FORM)
    writer.write_step(5, other.assign_coords(step=("state", np.full(6, 5, np.int32))))
    writer.log_metrics(5, {"loss": 3.0})
    assert follower.look()
    assert_same(follower)


def test_another_run_in_the_same_place(tmp_path):
    begin(tmp_path / "run", steps=(0, 5))
    follower = Follower(tmp_path / "run")
    follower.look()
    shutil.rmtree(tmp_path / "run")
    synthetic_run(tmp_path / "run", steps=[3], n_rollouts=2, length=2, k=4)
    assert follower.look()
    assert follower.evaluations == {}
    assert_same(follower)


def test_a_run_without_steps(tmp_path):
    writer = begin(tmp_path / "run", steps=())
    follower = Follower(tmp_path / "run")
    assert not follower.look()
    assert (follower.course().steps, follower.written) == ([], 0)
    writer.log_metrics(0, {"loss": 1.0})
    assert follower.look()
    assert follower.course().values("loss")[0] == [0]
    assert follower.written > 0


@pytest.mark.parametrize("planned", [None, True, "20", 20])
def test_only_the_last_checkpoint_says_that_a_run_has_ended(tmp_path, planned):
    begin(tmp_path / "run", config={"max_steps": planned})
    follower = Follower(tmp_path / "run")
    for checkpoint in ("000010", ".tmp-000020"):
        (tmp_path / "run" / "checkpoints" / checkpoint).mkdir(parents=True)
        follower.look()
        assert not follower.ended
    (tmp_path / "run" / "checkpoints" / "000020").mkdir()
    follower.look()
    assert follower.ended == (planned == 20 and planned is not True)


def test_other_problems_at_a_later_step(tmp_path):
    writer = begin(tmp_path / "run", steps=(0,))
    follower = Follower(tmp_path / "run")
    follower.look()
    writer.log_evaluation(5, "easy", ["a", "z"], [0, 1])
    with pytest.raises(StoreError, match="the problems of 'easy' differ between steps"):
        follower.look()
