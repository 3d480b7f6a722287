"""Logs of other trainers become metrics over step."""

import json
import subprocess
import sys

import numpy as np
import pytest

from opdprobe import ConfigError, StoreError
from opdprobe.probes.logs import read_log

ENTRIES = [
    (1, {"actor/distillation/overlap_ratio": 0.70, "actor/grad_norm": 1.5, "perf/mfu": 0.25}),
    (3, {"actor/distillation/overlap_ratio": 0.75, "val-core/AIME24/acc/mean@16": 0.3}),
]


@pytest.fixture
def write(tmp_path):
    def write(text, name="log.jsonl"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


def check_verl(metrics):
    assert metrics["step"].values.tolist() == [1, 3]
    assert set(metrics.data_vars) == {
        "overlap_ratio",
        "grad_norm",
        "perf/mfu",
        "val-core/AIME24/acc/mean@16",
    }
    assert metrics["overlap_ratio"].values.tolist() == [0.70, 0.75]
    np.testing.assert_array_equal(metrics["grad_norm"], [1.5, np.nan])
    assert all(v.dtype == np.float64 for v in metrics.data_vars.values())


def test_the_file_logger(write):
    lines = [json.dumps({"step": step, "data": data}) for step, data in ENTRIES]
    check_verl(read_log(write("\n".join(lines) + "\n"), "verl"))
    # Blank lines and an incomplete last line, as in the log of a run that is still writing.
    check_verl(read_log(write("\n\n".join(lines) + '\n{"step": 5, "da'), "verl"))


def test_the_console_logger(write):
    lines = ["INFO starting", "epoch 1: step:x - not:a number"]
    for step, data in ENTRIES:
        pairs = " - ".join(f"{key}:{value}" for key, value in data.items())
        lines.append(f"\x1b[36m(TaskRunner pid=7)\x1b[0m step:{step} - {pairs}")
    check_verl(read_log(write("\n".join(lines)), "verl"))


def test_console_values_printed_by_numpy_and_values_that_are_not_numbers(write):
    log = write("step:2 - actor/entropy:np.float64(0.5) - actor/lr:1e-06 - tag:none - a:b:3\n")
    metrics = read_log(log, "verl")
    assert {name: metrics[name].item() for name in metrics.data_vars} == {
        "student_entropy": 0.5,
        "learning_rate": 1e-6,
        "a:b": 3.0,
    }


def test_a_key_means_something_else_in_another_log(write):
    log = write('{"step": 1, "data": {"actor/pg_loss": 0.1, "val-topk/adv_intersection": -0.02}}\n')
    assert set(read_log(log, "thunlp").data_vars) == {
        "loss_thunlp",
        "overlap_token_advantage_thunlp",
    }
    assert set(read_log(log, "verl").data_vars) == {"actor/pg_loss", "val-topk/adv_intersection"}


def trainer_state(*entries, **other):
    return json.dumps({"epoch": 1.0, "log_history": entries, **other})


def test_trl(write):
    log = write(
        trainer_state(
            {"step": 10, "loss": 0.5, "grad_norm": 2.0, "entropy": 0.9, "epoch": 0.1},
            {"step": 20, "loss": None, "learning_rate": 1e-6, "name": "x"},
            {"step": 20, "eval_loss": 0.4},
        ),
        "trainer_state.json",
    )
    metrics = read_log(log, "trl")
    assert metrics["step"].values.tolist() == [10, 20]
    assert set(metrics.data_vars) == {
        "loss_trl",
        "grad_norm",
        "student_entropy",
        "epoch",
        "learning_rate",
        "eval_loss",
    }
    np.testing.assert_array_equal(metrics["loss_trl"], [0.5, np.nan])
    np.testing.assert_array_equal(metrics["eval_loss"], [np.nan, 0.4])


def test_a_step_logged_twice_keeps_the_later_values(write):
    log = write(trainer_state({"step": 1, "loss": 9.0}, {"step": 1, "loss": 1.0}))
    assert read_log(log, "ms-swift")["loss_ms-swift"].values.tolist() == [1.0]


@pytest.mark.parametrize(
    ("text", "source", "message"),
    [
        ("nothing here\n", "verl", "holds no logged step"),
        ("", "trl", "no readable log_history"),
        ("{}", "trl", "no readable log_history"),
        ('{"log_history": [{"loss": 1}]}', "trl", "entries with a step"),
        ('{"log_history": []}', "ms-swift", "holds no logged step"),
        ('{"step": 1, "data": {}}\n{"loss": 1}\n', "verl", "line 2"),
        ('{"step": 1\n{"step": 2, "data": {}}\n', "thunlp", "line 1"),
    ],
)
def test_text_that_is_not_a_log(write, text, source, message):
    with pytest.raises(StoreError, match=message):
        read_log(write(text), source)


def test_missing_file_binary_file_and_unknown_source(write, tmp_path):
    with pytest.raises(StoreError, match="is not a file"):
        read_log(tmp_path / "absent.jsonl", "verl")
    with pytest.raises(StoreError, match="is not a file"):
        read_log(tmp_path, "trl")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(StoreError, match="not UTF-8"):
        read_log(tmp_path / "binary", "verl")
    with pytest.raises(ConfigError, match="'nemo'"):
        read_log(write("step:1 - a:1"), "nemo")


@pytest.mark.slow
def test_torch_is_not_needed():
    script = "import sys; sys.modules['torch'] = None; import opdprobe.keys, opdprobe.probes.logs"
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


PRINTED = """\
(RolloutManager pid=7) [2026-08-21] rollout.py:266 - perf 0: {'rollout/response_len/mean': 212.5, \
'rollout/truncated_ratio': np.float64(0.25), 'rollout/name': 'x'}
(Train pid=9) step 0: {'train/loss': -0.5, 'train/opd_reverse_kl': nan, 'train/lr-pg_0': 1e-06}
step 1: {'train/loss': 1.5, 'train/step': 1}
step 2: what is no dictionary
"""


@pytest.mark.parametrize("source", ["slime", "miles"])
def test_what_slime_and_miles_print(source, write):
    metrics = read_log(write(PRINTED), source)
    assert metrics["step"].values.tolist() == [0, 1]
    assert metrics["completion_length"].values[0] == 212.5
    assert metrics[f"truncated_{source}"].values[0] == 0.25
    assert metrics[f"loss_{source}"].values.tolist() == [-0.5, 1.5]
    assert metrics["learning_rate"].values[0] == 1e-6
    assert np.isnan(metrics[f"sampled_kl_{source}"].values[0])
    assert "rollout/name" not in metrics


def test_metrics_by_line(write):
    lines = [
        '{"step": 0, "time": 7.5, "optim/lr": 1e-6}',
        '{"step": 0, "entropy/all/mean": 0.5, "ref_kl/mean": -0.25, "kind": "x"}',
        '{"step": 1, "optim/lr": 2e-6}',
    ]
    metrics = read_log(write("\n".join(lines) + '\n{"step": 2, "opt'), "prime-rl")
    assert metrics["learning_rate"].values.tolist() == [1e-6, 2e-6]
    assert metrics["student_entropy"].values[0] == 0.5
    assert metrics["sampled_reward_prime-rl"].attrs["differs"].startswith("log q(y) - log p(y)")
    assert read_log(write('{"step": 3, "teacher_kl": 0.5}'), "tinker")["sampled_kl"].item() == 0.5
    exported = write('{"_step": 3, "train/loss": 0.5}\n')  # W&B's history
    assert read_log(exported, "nemo-rl")["loss_nemo-rl"].item() == 0.5
    with pytest.raises(StoreError, match=r"line 1: .*expected \{'step': …, …\}, one object"):
        read_log(write('{"teacher_kl": 0.5}\n{}\n'), "tinker")


@pytest.mark.parametrize(
    "text",
    ["step 1: {" * 20_000, "step 1: {" + "}  " * 50_000 + "x", "step:1 - x " * 20_000],
    ids=["begun", "spaces", "console"],
)
@pytest.mark.parametrize("source", ["slime", "verl"])
def test_lines_that_begin_again_and_again(write, text, source):
    """Each beginning is tried once, not once for each end."""
    with pytest.raises(StoreError, match="holds no logged step"):
        read_log(write(text), source)
