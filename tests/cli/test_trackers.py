"""``opdprobe log``: what a tracker of accelerate gets."""

import json

import pytest
from accelerate import tracking
from accelerate.utils import LoggerType

from opdprobe.cli.parser import main
from opdprobe.store import RunWriter
from opdprobe.testing import synthetic_run

FORM = {"n_rollouts": 2, "length": 3, "k": 4}


@pytest.fixture
def stand_in(monkeypatch):
    """Put a tracker in the place of one of accelerate's; return what it was called with."""

    def put(name, *, folder=False, error=None):
        calls = {"logged": [], "finished": 0}

        class StandIn(tracking.GeneralTracker):
            requires_logging_directory = folder

            def __init__(self, run_name, *args, **kwargs):
                super().__init__()
                if error:
                    raise error
                calls["made"] = (run_name, *args, kwargs)

            @property
            def tracker(self):
                return None

            def store_init_configuration(self, values):
                calls["config"] = values

            def log(self, values, step=None, **kwargs):
                calls["logged"].append((step, values))

            def finish(self):
                calls["finished"] += 1

        StandIn.name = name
        monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, name, StandIn)
        monkeypatch.setattr(tracking, "_available_trackers", [LoggerType(name)])
        return calls

    return put


def write(folder):
    config = {"lr": 1e-6, "seed": 3, "kwargs": {"a": 1}, "max_steps": None}
    writer = RunWriter(folder, attrs={}, config=config, resume=False)
    writer.log_metrics(10, {"overlap_ratio": 0.75, "loss": float("nan")})
    writer.log_metrics(0, {"overlap_ratio": 0.5, "loss": 2.0, "grad_norm": float("inf")})
    writer.log_metrics(10, {"learning_rate": 1e-6})
    writer.log_evaluation(10, "test", ["a", "b"], [1, 0.5])
    writer.log_evaluation(20, "test", ["a", "b"], [1, 1])
    return writer


@pytest.mark.parametrize("to", ["wandb", "trackio"])
def test_a_tracker_gets_every_step_in_order(stand_in, tmp_path, capsys, to):
    write(tmp_path / "mine")
    calls = stand_in(to)
    assert main(["log", str(tmp_path / "mine"), "--to", to, "--project", "distil"]) == 0
    assert calls["made"] == ("distil", {"name": "mine"})
    assert calls["logged"] == [
        (0, {"overlap_ratio": 0.5, "loss": 2.0}),
        (10, {"overlap_ratio": 0.75, "learning_rate": 1e-6, "accuracy/test": 0.75}),
        (20, {"accuracy/test": 1.0}),
    ]
    assert calls["config"] == {"lr": 1e-6, "seed": 3, "kwargs": "{'a': 1}"}
    assert calls["finished"] == 1
    out = capsys.readouterr().out
    assert out == f"mine: 3 steps, 6 values sent to {to}; 2 that are not finite were left out\n"


def test_tensorboard_gets_a_folder_in_the_run_once(stand_in, tmp_path, capsys):
    write(tmp_path / "mine")
    calls = stand_in("tensorboard", folder=True)
    words = ["log", str(tmp_path / "mine"), "--to", "tensorboard"]
    assert main([*words, "--name", "first"]) == 0
    name, folder, more = calls["made"]
    assert (name, str(folder), more) == ("opdprobe/first", str(tmp_path / "mine"), {})
    log = tmp_path / "mine/opdprobe/first"
    assert capsys.readouterr().out.startswith(f"{log}: 3 steps")
    log.mkdir(parents=True)
    (log / "events").touch()
    assert main([*words, "--name", "first"]) == 1
    assert f"{log} exists already; expected a new --name" in capsys.readouterr().err
    assert calls["finished"] == 1
    assert main([*words, "--name", "second"]) == 0


def test_a_run_without_metrics_gives_its_recorded_means(stand_in, tmp_path):
    run = synthetic_run(tmp_path / "run", steps=[0, 5], **FORM)
    calls = stand_in("wandb")
    assert main(["log", str(run.path), "--to", "wandb"]) == 0
    (_, first), (step, last) = calls["logged"]
    assert step == 5
    assert first.keys() == last.keys() > {"overlap_ratio", "completion_length", "loss"}
    want = float(run.load(5).opd.entropy_gap().mean())
    assert last["entropy_gap"] == pytest.approx(want, rel=1e-6)
    assert last["completion_length"] == 3
    assert json.dumps(last)


def test_a_package_that_is_missing(tmp_path, monkeypatch, capsys):
    write(tmp_path / "run")
    monkeypatch.setattr(tracking, "_available_trackers", [LoggerType.WANDB])
    assert main(["log", str(tmp_path / "run"), "--to", "trackio"]) == 1
    assert "run pip install -U trackio accelerate first" in capsys.readouterr().err


def test_a_tracker_that_fails(stand_in, tmp_path, capsys):
    write(tmp_path / "run")
    stand_in("wandb", error=OSError("no route to host"))
    assert main(["log", str(tmp_path / "run"), "--to", "wandb"]) == 1
    err = capsys.readouterr().err
    assert "wandb did not take the run (OSError: no route to host); check that wandb works" in err


def test_nothing_to_send(stand_in, tmp_path, capsys):
    RunWriter(tmp_path / "run", attrs={}, config={}, resume=False)
    calls = stand_in("wandb")
    assert main(["log", str(tmp_path / "run"), "--to", "wandb"]) == 1
    assert "has no metrics, evaluations or recorded steps to send" in capsys.readouterr().err
    assert calls["logged"] == []
