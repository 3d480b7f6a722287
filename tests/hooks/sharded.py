"""Trainings of TRL that `test_sharded` watches: in two processes, with FSDP2 and with full models.

All are forks of one process: importing the libraries takes longest.
"""

import json
import os
import runpy
import sys
from functools import partial
from pathlib import Path

import datasets
import torch
import trl
from accelerate import PartialState
from accelerate.state import AcceleratorState, DistributedType
from peft import LoraConfig
from torch.distributed.tensor import DTensor

from opdprobe import ProbeCallback, Prompt
from opdprobe.models.load import weight_hash
from opdprobe.testing import tiny_model, tiny_tokenizer

launch = runpy.run_path(str(Path(__file__).parents[1] / "two_processes.py"))["launch"]

PROMPTS = [Prompt("a", text="7 8"), Prompt("b", messages=({"role": "user", "content": "9"},))]
PROBING = {"k": 4, "every": 2, "num_generations": 2, "max_completion_length": 5}


def models(tie=False):
    student, teacher = (tiny_model(seed=i, tie=tie) for i in (0, 1))
    for model in (student, teacher):
        model.lm_head.weight.data *= 20
    for layer in student.model.layers:  # so that training depends on the random state
        layer.self_attn.attention_dropout = 0.2
    return student, teacher


def options(config, folder, **more):
    return config(
        str(folder / "out"),
        max_steps=2,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        disable_tqdm=True,
        max_completion_length=5,
        **{"bf16": False} | more,
    )


def prompts():
    return datasets.Dataset.from_dict({"prompt": [f"{i} {i + 1}" for i in range(12)]})


def distilled(student, teacher, folder, peft_config=None, **more):
    return trl.DistillationTrainer(
        student,
        teacher,
        args=options(trl.DistillationConfig, folder, **more),
        train_dataset=prompts(),
        processing_class=tiny_tokenizer(),
        peft_config=peft_config,
    )


def reinforced(student, _teacher, folder):
    return trl.GRPOTrainer(
        student,
        reward_funcs=lambda completions, **_: [float(len(text) % 3) for text in completions],
        args=options(trl.GRPOConfig, folder, num_generations=2),
        train_dataset=prompts(),
        processing_class=tiny_tokenizer(),
    )


def adapted(student, teacher, folder):
    settings = LoraConfig(target_modules=["q_proj", "v_proj"], lora_dropout=0.3)
    return distilled(student, teacher, folder, settings, bf16=True)


TRAININGS = {
    "distilled": (distilled, {}),
    "adapted": (adapted, {}),
    "reinforced": (reinforced, {"tie": True}),
}


def train(make, folder, watched, **kind):
    """Train once; return what the test compares."""
    torch.manual_seed(0)  # of the adapters
    student, teacher = models(**kind)
    trainer = make(student, teacher, folder)
    if watched:
        ProbeCallback(teacher, PROMPTS, folder / "run", **PROBING).attach(trainer)
    trainer.train()
    return {
        "losses": [
            [entry[name] for name in ("loss", "grad_norm")]
            for entry in trainer.state.log_history
            if "loss" in entry
        ],
        "weights": weight_hash(trainer.model),
        "sharded": sum(isinstance(p, DTensor) for p in trainer.model.parameters()),
    }


def main(folder):
    """Train all in shards, alone and watched; what full models are compared with, watched."""
    noted = {}
    for name, (make, kind) in TRAININGS.items():
        if "ACCELERATE_USE_FSDP" in os.environ:
            both = [train(make, folder / name, watched, **kind) for watched in (False, True)]
            noted[name] = both
        elif name != "adapted":
            train(make, folder / name, True, **kind)
    (folder / f"noted-{os.environ['RANK']}.json").write_text(json.dumps(noted))


def shard_on_cpus():
    """Make accelerate take FSDP on CPUs as it does on GPUs; it would ignore it."""
    init = AcceleratorState.__init__

    def with_fsdp(self, *args, fsdp_plugin=None, **kwargs):
        init(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            if self.mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self.mixed_precision)
            self.fsdp_plugin = fsdp_plugin
            self.distributed_type = DistributedType.FSDP
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = with_fsdp


def train_all(folder):
    """Do all trainings in this process, one of two."""
    if "ACCELERATE_USE_FSDP" in os.environ:
        shard_on_cpus()
    main(folder)


if __name__ == "__main__":
    for name, environment in json.loads(sys.argv[2]).items():
        Path(sys.argv[1], name).mkdir(parents=True)
        work = partial(train_all, Path(sys.argv[1], name))
        if failed := launch(work, environment, 500):
            sys.exit(f"{failed} failed in the launch with {name}.")
