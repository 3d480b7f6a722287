"""SIGTERM: the step in flight is finished, a checkpoint written, and the process ends with 143."""

import importlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from tiny_training import outcome, trainer

from opdprobe import Callback
from opdprobe.testing import tiny_model, tiny_tokenizer
from opdprobe.train.pool import Task, work
from opdprobe.train.sigterm import sigterm_noted

pytestmark = pytest.mark.skipif(
    threading.current_thread() is not threading.main_thread(), reason="the signal would kill pytest"
)


class SendAt(Callback):
    """Stands for a batch system that takes the machine back during a step."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, trainer, step, metrics, dataset):
        if step + 1 == self.step:  # what follows is the step in flight
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_stopped_run_goes_on_where_it_was(tmp_path, unbroken, caplog):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stopped:
        trainer(tmp_path, callbacks=(SendAt(4),)).train()  # checkpoints are due at 4 and 6
    assert stopped.value.code == 143
    assert signal.getsignal(signal.SIGTERM) == before
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["000005"]
    assert "stopped by SIGTERM after 5 of 8 steps; the same command, or train(resu" in caplog.text
    trainer(tmp_path).train()
    assert outcome(tmp_path) == outcome(unbroken)


def test_in_the_last_step_the_run_is_finished_first(tmp_path, unbroken, caplog):
    with pytest.raises(SystemExit) as stopped:
        trainer(tmp_path, callbacks=(SendAt(7),)).train()
    assert stopped.value.code == 143
    assert "finished; stopped by SIGTERM" in caplog.text
    assert outcome(tmp_path) == outcome(unbroken)


def test_a_handler_that_was_there_is_left_alone_in_other_threads(tmp_path):
    seen = []

    class Look(Callback):
        def on_step_end(self, trainer, step, metrics, dataset):
            seen.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(
        target=lambda: trainer(tmp_path, callbacks=(Look(),), max_steps=1).train()
    )
    thread.start()
    thread.join(120)
    assert seen == [before]


def test_a_handler_comes_back_after_an_error():
    def mine(number, frame):
        raise AssertionError("not while it is noted")

    def fail():
        with sigterm_noted() as stopping:
            assert not stopping()
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)
            assert stopping()
            raise ZeroDivisionError

    before = signal.signal(signal.SIGTERM, mine)
    try:
        with pytest.raises(ZeroDivisionError):
            fail()
        assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, before)


def models_and_prompts(tmp_path):
    for name, seed in (("student", 0), ("teacher", 1)):
        tiny_model(seed=seed).save_pretrained(tmp_path / name)
        tiny_tokenizer().save_pretrained(tmp_path / name)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "7 11"}\n{"prompt": "3"}\n')
    return "--student ./student --teacher ./teacher --prompts prompts.jsonl".split()


def terminated(command, folder, begun):
    """Start a command in a folder, send SIGTERM once it has begun; what it wrote to stderr."""
    with subprocess.Popen(
        [sys.executable, "-m", "opdprobe.cli.parser", *command],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            until = time.monotonic() + 120
            while process.poll() is None and not begun() and time.monotonic() < until:
                time.sleep(0.01)
            process.terminate()
            _, error = process.communicate(timeout=120)
        finally:
            process.kill()
    assert process.returncode == 143
    # The message is cut into lines where the terminal ends.
    return " ".join(error.split())


@pytest.mark.slow
def test_train_as_a_process(tmp_path):
    models = models_and_prompts(tmp_path)
    settings = "k=4 batch_size=2 max_completion_length=8 max_steps=100000".split()
    command = ["train", "--run-dir", "run", *models]
    command += [argument for setting in settings for argument in ("--set", setting)]
    steps = tmp_path / "run" / "steps"
    error = terminated(command, tmp_path, lambda: list(steps.glob("000002*")))
    (checkpoint,) = (tmp_path / "run" / "checkpoints").iterdir()
    said = f"stopped by SIGTERM after {int(checkpoint.name)} of 100000 steps; the same command"
    assert said in error
    assert len(list(steps.glob("0*"))) == int(checkpoint.name)


@pytest.mark.slow
def test_a_cold_start_as_a_process(tmp_path):
    command = [
        "cold-start",
        "--out",
        "cold",
        "--num-generations",
        "8",
        "--max-completion-length",
        "40",
    ]
    command += [*models_and_prompts(tmp_path), "--set", "max_steps=100000"]
    metrics = tmp_path / "cold" / "metrics.jsonl"
    error = terminated(command, tmp_path, lambda: metrics.exists() and metrics.stat().st_size)
    (checkpoint,) = (tmp_path / "cold" / "checkpoints").iterdir()
    done = int(checkpoint.name)
    assert f"stopped by SIGTERM after {done} of 100000 SFT steps; the same command" in error
    assert len(metrics.read_text().splitlines()) == done
    assert not (tmp_path / "cold" / "model").exists()


@pytest.mark.slow
def test_processes_side_by_side_each_finish_their_step(tmp_path, monkeypatch, caplog):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))  # spawned processes inherit the path
    tasks = importlib.import_module("sigterm_tasks")
    todo = [
        Task("steps", tasks.steps, (tmp_path,)),
        Task("later", tasks.later, (tmp_path,), frozenset({"steps"})),
    ]
    with pytest.raises(SystemExit) as stopped:
        work(todo, workers=1)
    assert stopped.value.code == 143
    assert "stopped by SIGTERM; the same command resumes the work" in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


@pytest.mark.slow  # starts two processes, one of them by the other
def test_no_locks_are_left_in_the_system(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from pathlib import Path\n"
        "from opdprobe.train.pool import Task, work\n"
        "import sigterm_tasks\n"
        "if __name__ == '__main__':\n"
        f"    work([Task('a', sigterm_tasks.locked, (Path({str(tmp_path)!r}),))], workers=1)\n"
    )
    paths = [str(Path(__file__).parent), *sys.path]
    ended = subprocess.run(
        [sys.executable, script],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (tmp_path / "locked").exists()
    assert ended.returncode == 143
    assert "leaked" not in ended.stderr
