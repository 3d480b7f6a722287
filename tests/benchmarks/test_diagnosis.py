"""benchmarks/diagnosis.py: what it cuts off, what counts as an outcome, what it prints."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from opdprobe import RunWriter, open_run
from opdprobe.report.course import course
from opdprobe.testing import synthetic_step

PATH = Path(__file__).parents[2] / "benchmarks/diagnosis.py"
N_STEPS = 12


@pytest.fixture(scope="module")
def module():
    spec = importlib.util.spec_from_file_location("diagnosis_benchmark", PATH)
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def write_run(path, accuracies, n_steps=N_STEPS):
    attrs = {"seed": 5, "k": 4}
    writer = RunWriter(path, attrs=attrs, config={"max_steps": N_STEPS}, resume=False)
    for step in range(n_steps):
        writer.write_step(step, synthetic_step(step, n_rollouts=6, length=3, k=4))
        writer.log_metrics(step, {"loss": 1.0})
    for step, accuracy in accuracies.items():
        right = round(100 * accuracy)
        scores = [1.0] * right + [0.0] * (100 - right)
        writer.log_evaluation(step, "test", list(map(str, range(100))), scores)
    return open_run(path)


def test_a_cut_course_is_that_of_a_run_that_stopped(module, tmp_path):
    accuracies = {0: 0.3, 6: 0.5, 12: 0.7}
    whole = course(write_run(tmp_path / "whole", accuracies))
    stopped = course(write_run(tmp_path / "stopped", {0: 0.3, 6: 0.5}, n_steps=6))
    cut = module.cut(whole, 6)
    assert cut.steps == stopped.steps
    assert cut.evaluated == stopped.evaluated == [0, 6]
    for name in ("overlap_ratio", "reverse_kl", "completion_length"):
        np.testing.assert_array_equal(cut.sums.means(name), stopped.sums.means(name))
    assert cut.metrics["step"].values.tolist() == list(range(6))


@pytest.mark.parametrize(
    ("accuracies", "outcome"),
    [
        ({0: 0.3, 6: 0.9, 9: 0.3, 12: 0.42}, "rises"),  # the last quarter: the mean of 9 and 12
        ({0: 0.3, 6: 0.9, 9: 0.3, 12: 0.38}, "stays"),
        ({0: 0.3, 6: 0.9, 9: 0.3, 12: 0.16}, "falls"),
    ],
)
def test_the_outcome_is_the_change_to_the_last_quarter(module, tmp_path, accuracies, outcome):
    assert module.outcome(course(write_run(tmp_path / "run", accuracies))) == outcome


def test_only_complete_runs_count(module, tmp_path, capsys):
    write_run(tmp_path / "one-s5", {0: 0.3, 12: 0.8})
    write_run(tmp_path / "one-s6", {0: 0.3, 12: 0.3})
    write_run(tmp_path / "part-s5", {0: 0.3}, n_steps=5)
    module.main(tmp_path)
    printed = capsys.readouterr().out
    (line,) = (line for line in printed.splitlines() if line.startswith("| one |"))
    assert line.count("1 ×") == 2
    assert {"rises", "stays"} <= {word.strip(" |,;") for word in line.split()}
    assert "| part |" not in printed
