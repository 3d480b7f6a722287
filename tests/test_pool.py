"""Processes side by side: order, progress, errors, a process that dies."""

import importlib
import os
from pathlib import Path

import pytest

from opdprobe.errors import ConfigError, OPDProbeError
from opdprobe.pool import Task, work


@pytest.fixture(autouse=True)
def tasks(monkeypatch):
    """The module of tasks, found by child processes too: they inherit the path."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    return importlib.import_module("pool_tasks")


@pytest.mark.parametrize("workers", [1, 2])
def test_tasks_wait_for_those_they_come_after(tmp_path, tasks, workers):
    needs = {"d": ("b", "c"), "c": ("a",), "b": (), "a": ()}
    todo = [
        Task(name, tasks.note, (tmp_path, name, before), frozenset(before) | {"not among them"})
        for name, before in needs.items()
    ]
    seen = []
    work(todo, workers=workers, on_progress=lambda *state: seen.append(state))
    assert {path.name for path in tmp_path.iterdir()} == set(needs)
    assert {state for state in seen if state[1] == 1} <= {(name, 1, 1) for name in needs}
    assert str(os.getpid()) not in {path.read_text() for path in tmp_path.iterdir()}


def test_what_a_task_raises_comes_through_and_nothing_else_is_started(tmp_path, tasks):
    todo = [
        Task("fail", tasks.fail),
        Task("later", tasks.note, (tmp_path, "later", ()), frozenset({"fail"})),
    ]
    with pytest.raises(ConfigError, match="the third setting is wrong"):
        work(todo, workers=1)
    assert not (tmp_path / "later").exists()


def test_what_has_started_is_finished_when_another_task_fails(tmp_path, tasks):
    with pytest.raises(ConfigError, match="the third setting"):
        work([Task("slow", tasks.slow, (tmp_path,)), Task("fail", tasks.fail)], workers=2)
    assert (tmp_path / "slow").exists()


def test_a_killed_process_is_reported(tasks):
    with pytest.raises(OPDProbeError, match="a process was killed, perhaps for want of memory"):
        work([Task("die", tasks.die)], workers=1)


def test_tasks_that_wait_for_each_other_are_refused(tasks):
    todo = [
        Task("a", tasks.fail, (), frozenset({"b"})),
        Task("b", tasks.fail, (), frozenset({"a"})),
    ]
    with pytest.raises(ValueError, match="tasks wait for each other: a, b"):
        work(todo, workers=1)
