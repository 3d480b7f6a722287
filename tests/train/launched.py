"""Runs that `test_processes` trains in one process and, by torchrun, in two."""

import json
import os
import runpy
import sys
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model

from opdprobe import Callback, OPDProbeError, Prompt, PromptError
from opdprobe.hooks import probe_checkpoints
from opdprobe.models import weight_hash

CONFTEST = runpy.run_path(str(Path(__file__).with_name("conftest.py")))
make_trainer, make_model = CONFTEST["make_trainer"], CONFTEST["make_model"]

PROBLEMS = {"three": [Prompt("a", text="7 8"), Prompt("b", text="9"), Prompt("c", text="7 7 7")]}


class Stop(Exception):
    """Stands for a kill."""


class StopAfterStep1(Callback):
    def on_step_end(self, trainer, step, metrics, dataset):
        if step == 1:
            raise Stop


def process():
    return int(os.environ.get("RANK", "0"))


def grade(response, prompt):
    return float("7" in response.split())


def fail_on_process_1(response, prompt):
    if process() == 1:
        raise PromptError("this one has no answer")
    return 0.0


def adapted(seed=0):
    torch.manual_seed(seed)
    settings = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    return get_peft_model(make_model(0), settings)


def whole(folder, **kwargs):
    """Three prompts a step, which two processes share unevenly, and an evaluation."""
    settings = {"batch_size": 3, "eval_every": 2, "eval_n": 2, "save_steps": 2}
    return make_trainer(folder, settings=settings, grader=grade, eval_prompts=PROBLEMS, **kwargs)


def thinned(folder):
    """One rollout a step is kept, so that a process has none."""
    settings = {"record_fraction": 0.25, "record_max_positions": 3, "max_steps": 3}
    return make_trainer(folder, settings=settings)


def adapter(folder):
    student = adapted()
    settings = {"objective": "full", "max_steps": 2}
    return make_trainer(folder, student=student, teacher=student, settings=settings)


def probed(run_dir, folder):
    """A run's last checkpoint on prompts of three lengths."""
    return probe_checkpoints(
        run_dir / "checkpoints",
        make_model(1),
        CONFTEST["PROMPTS"][:5],
        folder,
        k=4,
        n=2,
        max_new_tokens=6,
        grader=grade,
    )


RUNS = {"whole": whole, "thinned": thinned, "adapter": adapter}


def stop_after_step_1(folder):
    try:
        whole(folder, callbacks=[StopAfterStep1()]).train()
    except Stop:
        return
    raise AssertionError("the run was not stopped")


def main(folder):
    """Train all runs in this process's share; note what cannot be seen in them."""
    rank = process()
    noted = {}
    for name, make in RUNS.items():
        trainer = make(folder / name)
        trainer.train()
        noted[name] = weight_hash(trainer.student)
    whole(folder / "begun by one").train()
    stop_after_step_1(folder / "begun by two")
    probed(folder / "whole", folder / "probed")
    trainers = {
        "failing": make_trainer(folder / "failing", grader=fail_on_process_1),
        "disagreeing": make_trainer(folder / "disagreeing", student=make_model(rank)),
    }
    for name, trainer in trainers.items():
        try:
            trainer.train()
        except OPDProbeError as error:
            noted[name] = [type(error).__name__, str(error)]
    (folder / f"noted-{rank}.json").write_text(json.dumps(noted))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
