"""Parallel processes: order, progress, errors, a process that dies."""

import importlib
import logging
import os
from pathlib import Path

import pytest

from opdprobe.errors import ConfigError, OPDProbeError
from opdprobe.train.pool import Task, work

pytestmark = pytest.mark.slow


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


def test_what_a_task_raises_is_raised_and_nothing_else_is_started(tmp_path, tasks):
    todo = [
        Task("fail", tasks.fail),
        Task("later", tasks.note, (tmp_path, "later", ()), frozenset({"fail"})),
    ]
    with pytest.raises(ConfigError, match="the third setting is wrong"):
        work(todo, workers=1)
    assert not (tmp_path / "later").exists()


def test_a_failure_is_logged_at_once_and_running_tasks_finish(tmp_path, tasks, caplog):
    """The running task ends only after the log has named the failure."""
    todo = [
        Task("second", tasks.fail_later, (tmp_path / "said",)),
        Task("first", tasks.fail),
        *(Task(f"later {i}", tasks.note, (tmp_path, f"later {i}", ())) for i in range(2)),
    ]

    class Said(logging.Handler):
        def emit(self, record):
            (tmp_path / "said").touch()

    said = Said()
    logging.getLogger("opdprobe").addHandler(said)
    try:
        with pytest.raises(ConfigError, match="the third setting"):
            work(todo, workers=2)
    finally:
        logging.getLogger("opdprobe").removeHandler(said)
    left = "not started: later 0, later 1."
    assert caplog.messages == [
        f"first failed (ConfigError: the third setting is wrong); still running: second; {left}",
        f"second failed (ValueError: two lines); still running: nothing; {left}",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["said"]


def test_a_killed_process_is_reported(tasks):
    with pytest.raises(OPDProbeError, match="a process was killed during die, perhaps because mem"):
        work([Task("die", tasks.die)], workers=1)


def test_tasks_that_wait_for_each_other_are_refused(tasks):
    todo = [
        Task("a", tasks.fail, (), frozenset({"b"})),
        Task("b", tasks.fail, (), frozenset({"a"})),
    ]
    with pytest.raises(ValueError, match="tasks wait for each other: a, b"):
        work(todo, workers=1)
