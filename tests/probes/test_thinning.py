"""Records without the later positions are named wherever they are averaged."""

import json

import numpy as np
import pytest

from opdprobe import heat_map, open_run
from opdprobe.cli.parser import main
from opdprobe.probes import thinned
from opdprobe.report.run_report import write_run_report
from opdprobe.report.view import write_view
from opdprobe.rollout.rows import thin
from opdprobe.store import RunWriter
from opdprobe.store.schema import to_step
from opdprobe.testing import synthetic_step

LENGTHS = [[4, 9, 0, 6], [12, 3, 3, 5]]  # of steps 0 and 1


def record(folder, *, max_positions=None, fraction=1.0, config=True):
    settings = {"record_max_positions": max_positions} if config else {}
    writer = RunWriter(folder, attrs={}, config=settings, resume=False)
    for step, length in enumerate(LENGTHS):
        ds = synthetic_step(step, n_rollouts=4, length=length)
        kept = thin(to_step(ds), fraction=fraction, max_positions=max_positions, seed=(0, step))
        writer.write_step(step, kept.to_dataset())
        writer.log_metrics(step, {"overlap_ratio": 0.5})
    return open_run(folder)


def test_the_share_is_that_of_all_tokens(tmp_path):
    run = record(tmp_path / "run", max_positions=5)
    kept, total = 4 + 5 + 5 + 5 + 3 + 3 + 5, sum(map(sum, LENGTHS))
    said = (
        f"only the first 5 positions of each response are recorded: {kept / total:.1%} of 42 tokens"
    )
    assert thinned(run) == (
        f"{said}; Run.metrics has the averages over all positions, under the same names"
    )
    step = run.load(1)
    assert thinned(step) == (
        f"only the first 5 positions of each response are recorded: {16 / 23:.1%} of 23 tokens"
    )
    # Another writer's record, whose settings say nothing.
    assert thinned(record(tmp_path / "other", max_positions=5, config=False)) == said


@pytest.mark.parametrize("settings", [{}, {"fraction": 0.5}, {"max_positions": 12}])
def test_what_is_not_cut_is_not_named(tmp_path, settings):
    run = record(tmp_path / "run", **settings)
    assert thinned(run) is None
    assert all(thinned(run.load(step)) is None for step in run.steps)
    assert "thinned" not in heat_map(run, "entropy").attrs
    assert "thinned" not in run.load(0).opd.sequence_mean_reward().attrs


def test_other_gaps_and_unknown_lengths():
    ds = synthetic_step(n_rollouts=2, length=4)
    middle = ds.isel(state=np.r_[0, 1, 3, 4, 6])
    assert thinned(middle) == (
        "not every position has a state (some are masked, or were left out): "
        "62.5% of 8 tokens have one"
    )
    assert thinned(ds.drop_vars("length")) is None
    assert thinned(ds.isel(state=slice(0))).endswith("0.0% of 8 tokens")


def test_some_steps_of_a_run_are_looked_at_alone(tmp_path):
    writer = RunWriter(tmp_path, attrs={}, config={}, resume=False)
    whole, other = (synthetic_step(step, n_rollouts=2, length=4) for step in (0, 1))
    writer.write_step(0, whole)
    writer.write_step(1, other.isel(state=other.position.values < 3))
    run = open_run(tmp_path)
    assert thinned(run, steps=[0]) is None
    assert "3 positions of each response are recorded: 75.0% of 8" in thinned(run, steps=[1])


def test_averages_and_pages_name_it(tmp_path, capsys):
    run = record(tmp_path / "run", max_positions=5)
    text = thinned(run)
    assert heat_map(run, "entropy").attrs["thinned"] == text
    step = run.load(0)
    assert step.opd.sequence_mean_reward().attrs["thinned"] == thinned(step)

    page = tmp_path / "report.html"
    write_run_report(page, [run], draw=lambda panels: [b""] * len(panels), view=False)
    assert page.read_text().count(text) == 2  # among the facts, and above the findings
    assert f"run: {text}." in write_view(tmp_path / "view.html", [run])

    assert main(["inspect", str(run.path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["positions"] == text


@pytest.mark.slow  # draws
def test_commands_that_draw_say_it(tmp_path, capsys):
    run = record(tmp_path / "run", max_positions=5)
    text = thinned(run)
    for command in (["report", str(run.path), "--no-view"], ["figures", str(run.path)]):
        assert main(command) == 0
        assert text in capsys.readouterr().err.replace("\n", "")


def test_pages_of_a_whole_record_are_silent(tmp_path, capsys):
    run = record(tmp_path / "run")
    page = tmp_path / "report.html"
    write_run_report(page, [run], draw=lambda panels: [b""] * len(panels), view=False)
    assert "part of the responses" not in page.read_text()
    assert main(["inspect", str(run.path), "--json"]) == 0
    assert "positions" not in json.loads(capsys.readouterr().out)
