"""Processes that share a preflight's work: the same results for any number, and clean ends."""

import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from argparse import Namespace
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model

from opdprobe.cli.parser import main
from opdprobe.cli.preflight import _workers
from opdprobe.errors import ConfigError, NonFiniteError, OPDProbeError
from opdprobe.preflight import preflight, workers
from opdprobe.preflight.measure import recorded, sampled
from opdprobe.preflight.procedure import Sizes, planned
from opdprobe.preflight.workers import Alone, Shared, shared_work
from opdprobe.rollout import shared_prompts
from opdprobe.rollout.batches import batches
from opdprobe.rollout.continuation import Sampling
from opdprobe.rollout.pair import Pair
from opdprobe.rollout.prompts import Prompt, encode_prompts
from opdprobe.rollout.sample import Rollouts
from opdprobe.rollout.teacher_context import TeacherContext
from opdprobe.testing import tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
PROMPTS = [Prompt(str(i), text=f"{i} {i + 1} " * (1 + i % 3), answer="1") for i in range(10)]


def sharp(seed):
    model = tiny_model(seed=seed)
    model.lm_head.weight.data *= 20
    return model


def even(text, prompt):
    return float(len(text) % 2 == 0)


# ---- the division ----


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1), st.integers(4, 300))
def test_a_micro_batch_stays_whole_when_it_is_cut_again(lengths, most):
    rollouts = Rollouts(
        [[1] * prompt for prompt, _ in lengths],
        [[2] * response for _, response in lengths],
        [True] * len(lengths),
        list(range(len(lengths))),
    )
    row_of = [i for i, (_, response) in enumerate(lengths) for _ in range(response)]
    for batch in batches(rollouts, micro_batch_tokens=most, pad_id=0):
        rows = list(dict.fromkeys(row_of[i] for i in batch.state.tolist()))
        (again,) = batches(rollouts.pick(rows), micro_batch_tokens=most, pad_id=0)
        assert torch.equal(again.input_ids, batch.input_ids)


class HerePool(ProcessPoolExecutor):
    """A pool whose only process is this one."""

    def submit(self, fn, /, *args, **kwargs):
        done = Future()
        done.set_result(fn(*args, **kwargs))
        return done


@pytest.mark.parametrize("repeats", [1, 40])  # so long that each prompt is run once
@settings(max_examples=4)
@given(n=st.integers(3, 4), most=st.integers(4, 40), seed=st.integers(0, 9))
def test_parts_give_what_all_gives_at_once(repeats, n, most, seed):
    workers._pair = pair = Pair(sharp(0), sharp(1), TOKENIZER)
    asked = [replace(prompt, text=prompt.text * repeats) for prompt in PROMPTS]
    prompts = encode_prompts(TOKENIZER, asked)
    sampling = Sampling(6, seed=seed, width=pair.width, micro_batch_tokens=8 * most)
    found = []
    for work in (Alone(pair), Shared(pair, HerePool())):
        rollouts = sampled(work, pair, prompts, sampling, n)()
        teachers = sampled(work, pair, prompts, sampling, n, "teacher")()
        assert shared_prompts.pays(rollouts, pair.student.device) is (repeats > 1)
        own = [PROMPTS[i] for i in rollouts.prompt_index]
        step, states = recorded(
            *(work, pair, rollouts, own, even),
            k=4, temperature=1.0, micro_batch_tokens=most, n_hidden=20,
        )  # fmt: skip
        found.append((rollouts, teachers, step, states))
    (*ours, step, states), (*theirs, same_step, same_states) = found
    assert ours == theirs
    assert step.identical(same_step)
    for name, values in vars(states).items():
        np.testing.assert_array_equal(values, getattr(same_states, name))


# ---- real processes ----


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")  # PEFT's
def test_two_processes_give_what_one_gives():
    student = get_peft_model(sharp(0), LoraConfig(target_modules=["q_proj"], r=2))
    for name, parameter in student.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(0))
    found = [
        preflight(
            student, student, PROMPTS, tokenizer=TOKENIZER, grader=even, num_generations=2, k=4,
            max_completion_length=6, micro_batch_tokens=16, workers=n,
            templates={"more": "7 {question}"},
            teacher_context=TeacherContext(prompt="5 {question}"),
        ).to_dict()
        for n in (1, 2)
    ]  # fmt: skip
    for one in found:
        del one["seconds"], one["cost"]
    assert found[0]["states"]["reverse_kl"]["value"] > 0
    assert found[0]["answers"]["teacher"]["value"] is not None
    assert found[0] == found[1]


def twice(pair, n):
    return 2 * n, pair.width


def failing(pair):
    raise NonFiniteError("not finite; expected numbers.")


def dying(pair):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_errors_of_processes(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    pair = Pair(sharp(0), sharp(1), TOKENIZER)

    def share():
        with shared_work(pair, 2) as work:
            assert work.start(twice, [(1,), (2,)])() == [(2, pair.width), (4, pair.width)]
            with pytest.raises(NonFiniteError, match="not finite; expected numbers"):
                work.start(failing, [()])()
            assert work.start(twice, [(3,)])() == [(6, pair.width)]
            assert len(list(tmp_path.iterdir())) == 1
            work.start(dying, [()])()

    with pytest.raises(OPDProbeError, match="one of 2 processes was killed, perhaps because mem"):
        share()
    assert not multiprocessing.active_children()
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_shared():
    pair = Pair(sharp(0), sharp(1), TOKENIZER)
    vars(pair.student)["own"] = lambda: None
    refused = pytest.raises(ConfigError, match="cannot be passed to other processes")
    with refused, shared_work(pair, 2):
        pass
    elsewhere: Any = SimpleNamespace(student=SimpleNamespace(device=torch.device("cuda")))
    refused = pytest.raises(ConfigError, match="workers = 2 with models on cuda; expected 1")
    with refused, shared_work(elsewhere, 2):
        pass
    with pytest.raises(ConfigError, match="workers = 0; expected a whole number above 0"):
        preflight("S", "T", PROMPTS, workers=0)


# ---- the command ----

COMMAND = [
    "preflight", "--student", "zoo:rl-small", "--teacher", "zoo:sft-small",
    "--prompts", "zoo:medium", "--num-generations", "2",
]  # fmt: skip


def test_how_many_processes_by_default(monkeypatch):
    pair = Namespace(student="zoo:rl-small", teacher="zoo:sft-small")
    options = {"device": "cpu", "dtype": None, "teacher_dtype": None}
    job = planned(Sizes.of(torch.device("cpu")), 4, 30)

    def chosen(threads, tokens, free=10**12):
        monkeypatch.setattr("torch.get_num_threads", lambda: threads)
        monkeypatch.setattr("opdprobe.train.memory.free_bytes", lambda device: free)
        return _workers(pair, options, job, tokens)

    much = 10**9  # tokens for models of some 100,000 parameters
    assert [chosen(threads, much) for threads in (1, 2, 4, 64)] == [1, 2, 4, 4]
    assert chosen(2, 256 * 64) == 1
    assert chosen(2, much, free=10**8) == 1


@pytest.mark.slow
def test_the_command_shares_its_work(capsys):
    found = []
    for n in ("1", "2"):
        assert main([*COMMAND, "--n-prompts", "8", "--workers", n, "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out))
        del found[-1]["seconds"], found[-1]["cost"]
    assert found[0]["answers"]["gain"]["value"] is not None  # through refitted readouts
    assert found[0] == found[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGKILL"])
def test_no_process_outlives_the_command(tmp_path, name):
    with subprocess.Popen(
        [sys.executable, "-m", "opdprobe", *COMMAND, "--workers", "2", "--n-prompts", "2000"],
        env=os.environ | {"TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as command:
        end = time.monotonic() + 480
        while len(started := workers_of(command.pid)) < 2:
            assert time.monotonic() < end
            assert command.poll() is None
            time.sleep(0.1)
        command.send_signal(getattr(signal, name))
        _, said = command.communicate(timeout=60)
        assert command.returncode == (143 if name == "SIGTERM" else -signal.SIGKILL)
    while any(Path(f"/proc/{process}").exists() for process in started):
        assert time.monotonic() < end
        time.sleep(0.1)
    assert "Traceback" not in said
    if name == "SIGTERM":
        assert not list(tmp_path.glob("opdprobe-*"))


def workers_of(process):
    """Children whose models are loaded, so that they watch over their parent."""
    children = Path(f"/proc/{process}/task/{process}/children")
    found = children.read_text().split() if children.exists() else []
    return [child for child in found if re.search(r"opdprobe-\w+/models", maps_of(child))]


def maps_of(process):
    try:
        return Path(f"/proc/{process}/maps").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
