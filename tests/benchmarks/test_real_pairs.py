"""benchmarks/real_pairs.py: what it sees of a run, and its table."""

import importlib
import json
from pathlib import Path

import pytest

from analyses.presets import real_preset
from opdprobe import RunWriter
from opdprobe.testing import synthetic_step

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def pairs(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(BENCHMARKS)
    module = importlib.import_module("real_pairs")
    monkeypatch.setattr(module, "FORETOLD", tmp_path / "new" / "foretold.jsonl")
    monkeypatch.setattr(module, "SEEN", tmp_path / "new" / "seen.jsonl")
    return module


@pytest.mark.parametrize(
    ("run", "pair"),
    [
        ("success-s1", ("student-small", "rl-small")),
        ("reverse_large-s10", ("rl-small", "student-large")),
    ],
)
def test_the_models_of_a_run(pairs, run, pair, tmp_path):
    assert pairs.pair_of(run, real_preset(tmp_path)) == pair


def test_predictions_are_made_once_and_train_nothing(pairs, monkeypatch, tmp_path):
    asked = []

    def foretell(name, preset, zoo):
        asked.append(name)
        student, teacher = pairs.pair_of(name, preset)
        said = {"verdict": {"word": "cannot tell"}}
        return {"student": student, "teacher": teacher, "preflight": said}

    monkeypatch.setattr(pairs, "foretell", foretell)
    for _ in range(2):
        pairs.run(["success-s1", "success-s2", "failure-s1"], tmp_path, train=False)
    assert asked == ["success-s1", "failure-s1"]
    assert not pairs.SEEN.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lock", "new"]


def test_the_change_is_that_of_the_late_evaluations(pairs, tmp_path):
    writer = RunWriter(
        tmp_path / "run", attrs={"seed": 1, "k": 4}, config={"max_steps": 16}, resume=False
    )
    for step in range(16):
        writer.write_step(step, synthetic_step(step, n_rollouts=6, length=3, k=4))
    for step, right in ((0, 3), (8, 9), (12, 4), (16, 6)):
        scores = [1.0] * right + [0.0] * (10 - right)
        writer.log_evaluation(step, "easy", list(map(str, range(10))), scores)
    found = pairs.see("success-s1", tmp_path / "run")
    assert found["accuracy"] == {0: 0.3, 8: 0.9, 12: 0.4, 16: 0.6}
    assert (found["steps"], found["gain"]) == (16, pytest.approx(0.2))
    assert found["quarter"] != found["end"]


def test_changes_are_over_seeds_and_problems(pairs, tmp_path, capsys):
    right = {"success": [(3, 6), (2, 6), (3, 7)], "failure": [(3, 2), (2, 1), (3, 3)]}
    for name, of_seeds in right.items():
        for seed, ends in enumerate(of_seeds):
            folder = tmp_path / "runs" / f"{name}-s{seed}"
            writer = RunWriter(
                folder, attrs={"seed": seed, "k": 4}, config={"max_steps": 2}, resume=False
            )
            for step in range(2):
                writer.write_step(step, synthetic_step(step, n_rollouts=6, length=3, k=4))
                values = {"completion_length": 10.0 + 5 * step, "overlap_ratio": 0.5}
                values |= {"likely_overlap_ratio": 0.75, "reverse_kl": 0.25}
                writer.log_metrics(step, values)
            for step, n in zip((0, 2), ends, strict=True):
                scores = [1.0] * n + [0.0] * (10 - n)
                writer.log_evaluation(step, "easy", list(map(str, range(10))), scores)
    pairs.changes(tmp_path)
    _, _, success, failure, difference = capsys.readouterr().out.splitlines()
    assert success.startswith("| success | 3 | +0.367 [")
    assert success.endswith("] | 12.5 → 12.5 | 0.5 → 0.5 | 0.75 → 0.75 | 0.25 → 0.25 |")
    assert failure.startswith("| failure | 3 | -0.067 [")
    assert difference.startswith("success − failure at the end: +0.433 [")


def test_the_table_has_what_was_said_and_seen(pairs, tmp_path, capsys):
    verdict = {"verdict": {"word": "cannot tell"}}
    pairs.add(
        pairs.FORETOLD, {"student": "student-small", "teacher": "rl-small", "preflight": verdict}
    )
    for run, gain in (("success-s2", 0.125), ("failure-s1", -0.25)):
        row = {"run": run, "quarter": ["too_early", "accuracy_flat"], "end": ["mixed"]}
        pairs.add(pairs.SEEN, row | {"accuracy": {"0": 0.5, "20": 0.5 + gain}, "gain": gain})
    pairs.table(tmp_path)
    *_, failure, success = capsys.readouterr().out.splitlines()
    assert failure == (
        "| student-small ← student-large | not asked | failure-s1 | too_early | mixed | "
        "0.50 → 0.25 | -0.250 |"
    )
    assert "| cannot tell | success-s2 | too_early | mixed | 0.50 → 0.62 | +0.125 |" in success


def test_the_committed_tables_belong_together(pairs):
    folder = BENCHMARKS.parent / "figures/results/real"
    told = [json.loads(line) for line in (folder / "foretold.jsonl").read_text().splitlines()]
    seen = [json.loads(line) for line in (folder / "seen.jsonl").read_text().splitlines()]
    asked = {(line["student"], line["teacher"]) for line in told}
    assert len(asked) == len(told)
    assert {pairs.pair_of(line["run"], real_preset(Path())) for line in seen} <= asked
    for line in seen:
        first, *_, last = line["accuracy"].values()
        assert line["gain"] == pytest.approx(last - first)
