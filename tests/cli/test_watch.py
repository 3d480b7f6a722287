"""``opdprobe watch``: what it prints of a run that grows, and when it ends."""

import io

import numpy as np
import pytest
from rich.console import Console

from opdprobe.cli import watch
from opdprobe.cli.parser import main
from opdprobe.store import RunWriter
from opdprobe.store.step_parts import step_path
from opdprobe.testing import synthetic_run, synthetic_step

FORM = {"n_rollouts": 3, "length": 4, "k": 4}


def add(writer, step):
    writer.write_step(step, synthetic_step(step, **FORM))
    writer.log_metrics(step, {"loss": 0.5, "seconds/score": 1.0})


def scripted(monkeypatch, *acts):
    """Let a part of the world happen in each pause; a pause too many fails."""
    pauses = iter(acts)
    monkeypatch.setattr(watch.time, "sleep", lambda seconds: next(pauses)())


def row(text, label):
    (line,) = (line for line in text.splitlines() if line.startswith(label + " "))
    return line.split()


def test_once(tmp_path, capsys):
    run = synthetic_run(tmp_path / "run [a]", steps=[0, 10], **FORM)
    writer = RunWriter(run.path, attrs=run.attrs, config=run.config, resume=True)
    for step in (0, 10, 20):
        writer.log_metrics(step, {"reverse_kl": step / 100, "mine": step})
    writer.log_evaluation(10, "test", ["a", "b"], [1, 0.5])
    assert main(["watch", str(run.path), "--once"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.startswith(f"{run.path} · last written")
    assert "step 20, 2 recorded steps" in out
    assert "? No clear sign." in out
    means = [float(np.mean(run.load(step).opd.entropy_gap())) for step in (0, 10)]
    bars = "▁█" if means[0] < means[1] else "█▁"
    want = ["[nats]", f"{means[0]:.4g}", bars, f"{means[1]:.4g}", "10"]
    assert row(out, "entropy gap")[2:] == want
    # Logged at more steps than are recorded.
    assert row(out, "reverse KL")[2:] == ["[nats]", "0", "▁▅█", "0.2", "20"]
    assert row(out, "mine") == ["mine", "0", "▁▅█", "20", "20"]
    assert row(out, "accuracy/test") == ["accuracy/test", "0.75", "▄", "0.75", "10"]


def test_once_there_must_be_a_run(tmp_path, capsys):
    assert main(["watch", str(tmp_path / "none"), "--once"]) == 1
    assert "none does not exist; expected the directory of a run" in capsys.readouterr().err


def test_from_before_the_run_to_its_end(tmp_path, monkeypatch, capsys):
    path, made = tmp_path / "run", []

    def begin():
        made.append(RunWriter(path, attrs={}, config={"max_steps": 2}, resume=False))

    scripted(
        monkeypatch,
        path.mkdir,
        begin,
        lambda: add(made[0], 0),
        lambda: None,
        lambda: add(made[0], 1),
        lambda: (path / "checkpoints/000002").mkdir(parents=True),
    )
    assert main(["watch", str(path), "--interval", "0.5"]) == 0
    out, err = capsys.readouterr()
    assert err.splitlines() == [
        f"waiting for {path}: it does not exist yet",
        f"waiting for {path}: it is not a run yet (no run.json)",
    ]
    pages = [line for line in out.splitlines() if line.startswith(("step ", "no step"))]
    assert pages == [
        "no step yet",
        "step 0 of 2, 1 recorded step",
        "step 1 of 2, 2 recorded steps",
    ]
    assert out.split()[-2:] == ["·", "ended"]  # a long path is a line of its own
    assert "seconds" not in out.split("One recorded step")[1].split("step 1 of 2")[0]


def test_ctrl_c(tmp_path, monkeypatch, capsys):
    def interrupt():
        raise KeyboardInterrupt

    scripted(monkeypatch, interrupt)
    assert main(["watch", str(tmp_path / "none")]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "interrupted."


def test_a_terminal_shows_the_page_in_place(tmp_path, monkeypatch):
    writer = RunWriter(tmp_path / "run", attrs={}, config={"max_steps": 2}, resume=False)
    shown = io.StringIO()
    terminal = Console(file=shown, force_terminal=True, width=100, height=60, color_system=None)
    monkeypatch.setattr(watch, "console", terminal)
    add(writer, 0)
    scripted(monkeypatch, lambda: (tmp_path / "run/checkpoints/000002").mkdir(parents=True))
    assert main(["watch", str(tmp_path / "run")]) == 0
    first, _, rest = shown.getvalue().partition("step 0 of 2")
    assert "reading" in first
    assert "1 of 1 new steps" in " ".join(first.split())
    assert "\x1b[1A" in rest  # the cursor goes back up over the page
    assert "ended" in rest


def test_a_terminal_without_bars(tmp_path, monkeypatch):
    run = synthetic_run(tmp_path / "run", steps=[0, 1], **FORM)
    raw = io.BytesIO()
    plain = Console(file=io.TextIOWrapper(raw, encoding="ascii", errors="replace"), width=100)
    monkeypatch.setattr(watch, "console", plain)
    assert main(["watch", str(run.path), "--once"]) == 0
    plain.file.flush()
    (line,) = (x for x in raw.getvalue().decode().splitlines() if x.startswith("finished"))
    assert len(line.split()) == 5  # two words, first, last, step


def test_what_cannot_be_read_is_named(tmp_path, capsys):
    run = synthetic_run(tmp_path / "run", steps=[0, 1, 2], **FORM)
    step_path(run.path, 1).write_bytes(b"\x1b[2J")
    assert main(["watch", str(run.path), "--once"]) == 0
    out = capsys.readouterr().out
    assert "step 1 is left out: " in out
    assert "step 2, 2 recorded steps" in out


@pytest.mark.parametrize("given", ["0", "-1", "nan", "soon", "1e9"])
def test_an_interval_that_is_none(given, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["watch", "run", f"--interval={given}"])
    assert ended.value.code == 2
    assert f"{given!r}; expected a number of seconds above 0" in capsys.readouterr().err


def test_many_values_share_a_bar():
    values = np.arange(100.0)
    drawn = watch.spark(values, width=5)
    assert drawn == "▁▃▅▆█"
    assert watch.spark(np.array([np.nan, 1.0, np.inf])) == " ▄ "
