"""Runs that `test_processes` trains in one process and in two, as torchrun would start them.

Each of the two has full models, or shards of them if accelerate uses FSDP. All are forks of one
process: importing the libraries takes longest.
"""

import json
import os
import runpy
import sys
from functools import partial
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from torch.distributed.tensor import DTensor

from opdprobe import Callback, NonFiniteError, OPDProbeError, Prompt, PromptError
from opdprobe.hooks import probe_checkpoints
from opdprobe.models.load import weight_hash
from opdprobe.rollout.mixture import Mixture

CONFTEST = runpy.run_path(str(Path(__file__).with_name("conftest.py")))
make_trainer, make_model = CONFTEST["make_trainer"], CONFTEST["make_model"]
launch = runpy.run_path(str(Path(__file__).parents[1] / "two_processes.py"))["launch"]

PROBLEMS = {"three": [Prompt("a", text="7 8"), Prompt("b", text="9"), Prompt("c", text="7 7 7")]}


class Stop(Exception):
    """Stands for a kill."""


class StopAfterStep1(Callback):
    def on_step_end(self, trainer, step, metrics, dataset):
        if step == 1:
            raise Stop


class Keep(Callback):
    """Save every student, and note its logits on one text."""

    def __init__(self, folder):
        self.folder = folder
        self.said = []

    def on_step_end(self, trainer, step, metrics, dataset):
        trainer.save_student(self.folder / f"{step}")
        with trainer.whole_student():  # as often as the process likes
            for _ in range(1 + process()):
                logits = trainer.pair.student(input_ids=torch.tensor([[7, 8]])).logits
        self.said.append(logits.sum().item())


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
    # Rank 3, which two processes do not divide evenly.
    settings = LoraConfig(r=3, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    return get_peft_model(make_model(0), settings)


def whole(folder, **kwargs):
    """Three prompts per step, which two processes share unevenly, and an evaluation."""
    settings = {"batch_size": 3, "eval_every": 2, "eval_n": 2, "save_steps": 2}
    return make_trainer(folder, settings=settings, grader=grade, eval_prompts=PROBLEMS, **kwargs)


def thinned(folder, **kwargs):
    """One rollout per step is kept, so that a process has none."""
    settings = {"record_fraction": 0.25, "record_max_positions": 3, "max_steps": 3}
    return make_trainer(folder, settings=settings, **kwargs)


def adapter(folder):
    student = adapted()
    settings = {"objective": "full", "max_steps": 2}
    return make_trainer(folder, student=student, teacher=student, settings=settings)


def cut_up(folder):
    """One process has two micro-batches, the other one; the backward pass recomputes layers."""
    settings = {"batch_size": 3, "micro_batch_tokens": 1, "num_generations": 1}
    student = make_model(0)
    student.gradient_checkpointing_enable()
    return make_trainer(folder, student=student, settings=settings)


def small(folder, **kwargs):
    """Weights in bfloat16, which are trained as copies in float32."""
    student, teacher = (make_model(i).bfloat16() for i in (0, 1))
    settings = {"max_steps": 3, "save_steps": 2}
    return make_trainer(folder, student=student, teacher=teacher, settings=settings, **kwargs)


def probed(run_dir, folder):
    """A run's last checkpoint on prompts of three lengths."""
    return probe_checkpoints(
        run_dir / "checkpoints",
        make_model(1),
        CONFTEST["PROMPTS"][:5],
        folder,
        k=4,
        num_generations=2,
        max_completion_length=6,
        grader=grade,
    )


def mixed(folder):
    """Two teachers that score as one."""
    teacher = Mixture({"a": make_model(1), "b": make_model(2)}, {"a": 0.7, "b": 0.3})
    settings = {"batch_size": 3, "objective": "full", "max_steps": 2}
    return make_trainer(folder, teacher=teacher, settings=settings)


RUNS = {"mixed": mixed, "whole": whole, "thinned": thinned, "adapter": adapter, "cut_up": cut_up}


def stop_after_step_1(folder, make=whole):
    try:
        make(folder, callbacks=[StopAfterStep1()]).train()
    except Stop:
        return
    raise AssertionError("the run was not stopped")


def held(trainer):
    """Count the elements that this process keeps, and those of all processes, by kind."""
    moments = [
        moment
        for state in trainer.optimization.optimizers[0].state.values()
        for name, moment in state.items()
        if name != "step"
    ]
    tensors = {
        "student": list(trainer.student.parameters()),
        "teacher": list(trainer.teacher.parameters()),
        "optimizer": moments,
    }
    return {
        what: [sum(own(t).numel() for t in some), sum(t.numel() for t in some)]
        for what, some in tensors.items()
    }


def own(tensor):
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def fail_in_process_1(trainer):
    """Make process 1 fail in a step after both models ran, until `scored` is deleted again."""
    scored = trainer.pair.scored

    def failing(*args, **kwargs):
        for part in scored(*args, **kwargs):
            if process() == 1:
                raise NonFiniteError("the teacher gave infinite logits")
            yield part

    trainer.pair.scored = failing


def main(folder):
    """Train this process's share of all runs; note what the runs do not show."""
    rank = process()
    noted = {}
    for name, make in RUNS.items():
        trainer = make(folder / name)
        trainer.train()
        noted[name] = weight_hash(trainer.student)
    noted["held"] = held(trainer)
    whole(folder / "begun by one").train()
    stop_after_step_1(folder / "begun by two")
    small(folder / "small").train()
    stop_after_step_1(folder / "small resumed", small)
    small(folder / "small resumed").train()
    probed(folder / "whole", folder / "probed")
    keep = Keep(folder / "kept")
    thinned(folder / "watched", callbacks=[keep]).train()
    noted["said"] = keep.said
    recovered = whole(folder / "recovered")
    fail_in_process_1(recovered)
    trainers = {
        "recovered": recovered,
        "failing": make_trainer(folder / "failing", grader=fail_on_process_1),
        "disagreeing": make_trainer(folder / "disagreeing", student=make_model(rank)),
    }
    for name, trainer in trainers.items():
        try:
            trainer.train()
        except OPDProbeError as error:
            noted[name] = [type(error).__name__, str(error)]
    del recovered.pair.scored
    recovered.train()
    (folder / f"noted-{rank}.json").write_text(json.dumps(noted))


if __name__ == "__main__":
    for name, environment in json.loads(sys.argv[2]).items():
        if failed := launch(partial(main, Path(sys.argv[1], name)), environment, 130):
            sys.exit(f"{failed} failed in the launch with {name}.")
