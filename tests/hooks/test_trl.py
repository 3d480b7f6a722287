"""ProbeCallback inside the real trainers of TRL: it records and does not change training."""

import logging
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

from opdprobe import ProbeCallback, Prompt, open_run, validate
from opdprobe.cli.parser import main
from opdprobe.models.load import weight_hash
from opdprobe.testing import tiny_model, tiny_tokenizer

trl = pytest.importorskip("trl")  # imports its trainers when they are first named
datasets = pytest.importorskip("datasets")

# TRL 1.16 still calls a function that transformers 5.23 renamed.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning"),
]

PROMPTS = [Prompt("a", text="7 8"), Prompt("b", messages=({"role": "user", "content": "9"},))]
SAME = ("loss", "grad_norm", "learning_rate", "num_tokens", "entropy", "reward", "step")


def models():
    student, teacher = tiny_model(seed=0), tiny_model(seed=1)
    for model in (student, teacher):
        model.lm_head.weight.data *= 20
    for layer in student.model.layers:  # so that training depends on the random state
        layer.self_attn.attention_dropout = 0.2
    return student, teacher


def options(config, folder, **more):
    return config(
        str(folder / "out"),
        **{
            "max_steps": 4,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "use_cpu": True,
            "bf16": False,
            "per_device_train_batch_size": 2,
            "learning_rate": 1e-2,
            "disable_tqdm": True,
        }
        | more,
    )


def prompts():
    return datasets.Dataset.from_dict({"prompt": [f"{i} {i + 1}" for i in range(8)]})


def conversations():
    def conversation(i):
        return [{"role": "user", "content": f"{i}"}, {"role": "assistant", "content": f"{i} {i}"}]

    return datasets.Dataset.from_dict({"messages": [conversation(i) for i in range(8)]})


def distillation(student, teacher, folder, callbacks, tokenizer=None, peft_config=None, **more):
    return trl.DistillationTrainer(
        student,
        teacher,
        args=options(trl.DistillationConfig, folder, max_completion_length=5, **more),
        train_dataset=prompts(),
        processing_class=tokenizer or tiny_tokenizer(),
        peft_config=peft_config,
        callbacks=callbacks,
    )


def generalised(student, teacher, folder, callbacks):
    # Takes seconds, and every test process imports this file.
    gkd = pytest.importorskip("trl.experimental.gkd")
    return gkd.GKDTrainer(
        student,
        teacher,
        args=options(gkd.GKDConfig, folder, max_new_tokens=5, max_length=32, lmbda=0.5),
        train_dataset=conversations(),
        processing_class=tiny_tokenizer(),
        callbacks=callbacks,
    )


def supervised(student, _teacher, folder, callbacks):
    return trl.SFTTrainer(
        student,
        args=options(trl.SFTConfig, folder, max_length=32),
        train_dataset=conversations(),
        processing_class=tiny_tokenizer(),
        callbacks=callbacks,
    )


def reinforced(student, _teacher, folder, callbacks):
    return trl.GRPOTrainer(
        student,
        reward_funcs=lambda completions, **_: [float(len(text) % 3) for text in completions],
        args=options(trl.GRPOConfig, folder, max_completion_length=5, num_generations=2),
        train_dataset=prompts(),
        processing_class=tiny_tokenizer(),
        callbacks=callbacks,
    )


TRAINERS = [distillation, generalised, supervised, reinforced]


def surroundings(callback_kwargs):
    """Everything a probe could disturb."""
    model, tokenizer = callback_kwargs["model"], callback_kwargs["processing_class"]
    return {
        "torch": torch.get_rng_state().tolist(),
        "python": random.getstate(),
        "numpy": repr(np.random.get_state()),  # noqa: NPY002  # the global state is watched
        "modes": [module.training for module in model.modules()],
        "hooks": [len(module._forward_hooks) for module in model.modules()],
        "grads": [None if p.grad is None else p.grad.tolist() for p in model.parameters()],
        "trainable": [p.requires_grad for p in model.parameters()],
        "generation": model.generation_config.to_dict(),
        "use_cache": model.config.use_cache,
        "sides": (tokenizer.padding_side, tokenizer.truncation_side),
        "tokenizer": tokenizer("7 8")["input_ids"],
        "gradient enabled": torch.is_grad_enabled(),
    }


class Checked(ProbeCallback):
    """Compares its surroundings before and after whatever it does."""

    def on_train_begin(self, args, state, control, **kwargs):
        before = surroundings(kwargs)
        super().on_train_begin(args, state, control, **kwargs)
        assert surroundings(kwargs) == before

    def on_step_end(self, args, state, control, **kwargs):
        before = surroundings(kwargs), control.should_log
        super().on_step_end(args, state, control, **kwargs)
        assert (surroundings(kwargs), control.should_log) == before


def random_grader(response, prompt):
    return float(random.random() + np.random.rand() + torch.rand(()) > 1.5)  # noqa: NPY002  # on purpose


def history(trainer):
    return [
        {name: entry[name] for name in SAME if name in entry}
        for entry in trainer.state.log_history
        if "loss" in entry
    ]


@pytest.fixture(scope="module", params=TRAINERS)
def alone(request, tmp_path_factory):
    """A trainer that has trained without a callback, and the function that builds its like."""
    trainer = request.param(*models(), tmp_path_factory.mktemp("alone"), [])
    trainer.train()
    assert len(history(trainer)) == 4
    return trainer, request.param


def test_training_is_the_same_and_the_run_is_complete(alone, tmp_path):
    alone, build = alone
    student, teacher = models()
    callback = Checked(
        teacher,
        PROMPTS,
        tmp_path / "run",
        4,
        2,
        num_generations=2,
        max_completion_length=5,
        grader=random_grader,
    )
    watched = build(student, teacher, tmp_path, [callback])
    watched.train()

    assert history(watched) == history(alone)
    assert weight_hash(watched.model) == weight_hash(alone.model)

    run = open_run(tmp_path / "run")
    assert run.steps == [0, 2, 4]
    for step in run.steps:
        dataset = run.load(step)
        validate(dataset)
        assert dataset.prompt_id.values.tolist() == ["a", "a", "b", "b"]
        assert dataset.correct.notnull().all()
    logged = {
        entry["step"]: entry for entry in watched.state.log_history if "opd/overlap_ratio" in entry
    }
    assert list(logged) == run.steps
    for step, entry in logged.items():
        stored = run.metrics.sel(step=step)
        assert entry["opd/reverse_kl"] == stored.reverse_kl
        assert entry["opd/reverse_kl"] == pytest.approx(run.load(step).reverse_kl.mean().item())
    losses = [entry["loss"] for entry in history(alone)]
    assert run.metrics.loss.sel(step=[1, 2, 3, 4]).values.tolist() == losses
    assert run.load(0).reverse_kl.mean() != run.load(4).reverse_kl.mean()


def padded(side):
    tokenizer = tiny_tokenizer()
    tokenizer.padding_side = side
    return {"tokenizer": tokenizer}


def with_adapters():
    peft = pytest.importorskip("peft")
    # Dropout inside the adapters also uses the random state.
    return {
        "peft_config": peft.LoraConfig(target_modules=["q_proj", "v_proj"], lora_dropout=0.3),
        "learning_rate": 0.1,
    }


@pytest.mark.parametrize(
    "change",
    [
        lambda: {"gradient_accumulation_steps": 3},
        lambda: {"bf16": True},
        lambda: padded("left"),
        lambda: padded("right"),
        with_adapters,
    ],
    ids=["accumulation", "bf16", "padding left", "padding right", "LoRA"],
)
def test_training_is_the_same_however_it_is_set_up(change, tmp_path):
    student, teacher = models()
    alone = distillation(student, teacher, tmp_path, [], **change())
    alone.train()
    student, teacher = models()
    callback = Checked(
        teacher, PROMPTS, tmp_path / "run", k=4, every=2, num_generations=2, max_completion_length=5
    )
    watched = distillation(student, teacher, tmp_path, [callback], **change())
    watched.train()
    assert len(history(alone)) == 4
    assert history(watched) == history(alone)
    before, after = alone.model.state_dict(), watched.model.state_dict()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    run = open_run(tmp_path / "run")
    assert run.steps == [0, 2, 4]
    assert abs(run.load(4).reverse_kl.mean() - run.load(0).reverse_kl.mean()) > 1e-4


def test_a_run_does_not_depend_on_the_side_of_padding(tmp_path):
    for side in ("left", "right"):
        folder = tmp_path / side
        student, teacher = models()
        callback = ProbeCallback(
            teacher, PROMPTS, folder / "run", k=4, num_generations=2, max_completion_length=5
        )
        trainer = distillation(student, teacher, folder, [callback], max_steps=1, **padded(side))
        trainer.train()
        assert trainer.processing_class.padding_side == side
    left, right = (open_run(tmp_path / side / "run").load(0) for side in ("left", "right"))
    assert left.identical(right)


def test_a_resumed_distillation_continues_run_and_losses(tmp_path):
    def trainer():
        student, teacher = models()
        callback = Checked(
            teacher,
            PROMPTS,
            tmp_path / "run",
            k=4,
            every=1,
            num_generations=1,
            max_completion_length=5,
        )
        saving = {"save_strategy": "steps", "save_steps": 2}
        return distillation(student, teacher, tmp_path, [callback], **saving)

    whole = trainer()
    whole.train()
    want = {step: open_run(tmp_path / "run").load(step).compute() for step in range(5)}
    again = trainer()
    again.train(resume_from_checkpoint=str(tmp_path / "out/checkpoint-2"))
    assert history(again) == history(whole)
    run = open_run(tmp_path / "run")
    assert run.steps == list(want)
    assert all(run.load(step).identical(dataset) for step, dataset in want.items())


class Careless(TrainerCallback):
    """Does what a hook must not do."""

    def on_step_end(self, args, state, control, **kwargs):
        torch.rand(1)


def test_a_careless_hook_would_be_seen(alone, tmp_path):
    alone, build = alone
    careless = build(*models(), tmp_path, [Careless()])
    careless.train()
    assert history(careless)[0] == history(alone)[0]
    assert history(careless) != history(alone)


class Tracker(TrainerCallback):
    """Keeps the scalars that trackers get."""

    def __init__(self):
        self.seen = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.seen.append((state.global_step, dict(logs)))


def test_attached_it_reaches_the_trackers_and_leaves_their_logs_alone(tmp_path):
    student, teacher = models()
    alone = distillation(student, teacher, tmp_path, [], logging_steps=2)
    alone.train()
    student, teacher = models()
    tracker = Tracker()  # ahead of the callback, as transformers' own are
    watched = distillation(student, teacher, tmp_path, [tracker], logging_steps=2)
    callback = Checked(
        teacher, PROMPTS, tmp_path / "run", k=4, every=1, num_generations=1, max_completion_length=5
    )
    callback.attach(watched)
    watched.train()
    ours = [step for step, logs in tracker.seen if "opd/overlap_ratio" in logs]
    assert ours == [0, 1, 2, 3, 4]
    # TRL averages its own metrics between two logs; they are neither reset nor cut short.
    assert history(watched) == history(alone)
    assert [step for step, logs in tracker.seen if "loss" in logs] == [2, 4]


TEN_LINES = """
from datasets import Dataset
from trl import DistillationConfig, DistillationTrainer
from opdprobe import ProbeCallback, Prompt
from opdprobe.testing import tiny_model, tiny_tokenizer
student, teacher = tiny_model(seed=0), tiny_model(seed=1)
data = Dataset.from_dict({"prompt": [f"{i} {i + 1}" for i in range(8)]})
args = DistillationConfig("out", max_steps=6, report_to="none", logging_steps=1, bf16=False)
lengths = {"num_generations": 16, "max_completion_length": 44}
probe = ProbeCallback(teacher, [Prompt("a", text="7 8")], "run", every=2, **lengths)
more = {"train_dataset": data, "processing_class": tiny_tokenizer(), "callbacks": [probe]}
trainer = DistillationTrainer(student, teacher, args=args, **more)
trainer.train()
"""


# Unless the script forbids it, TRL pins memory for a GPU that does not exist.
@pytest.mark.filterwarnings("ignore:'pin_memory'.*no accelerator is found:UserWarning")
def test_ten_lines_make_a_run_that_every_command_reads(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    losses = []
    for script in (TEN_LINES, TEN_LINES.replace("[probe]", "[]")):
        names = {}
        exec(script, names)
        losses.append([e["loss"] for e in names["trainer"].state.log_history if "loss" in e])
    assert losses[0] == losses[1]
    assert len(losses[0]) == 6
    assert open_run("run").steps == [0, 2, 4, 6]

    logging.getLogger().handlers.clear()  # of a command before; basicConfig keeps them
    capsys.readouterr()
    for command in ("figures", "view", "report", "inspect"):
        assert main([command, "run"]) == 0, command
        printed = capsys.readouterr()
        assert "tokenizer" not in printed.err  # tokens are shown as text
        assert "step" in printed.out if command in ("report", "inspect") else "run" in printed.out
    for name in ("curves.pdf", "curves.png", "view.html", "report.html", "report-view.html"):
        assert Path("run", name).stat().st_size > 10_000, name
    assert Path("run/report.html").read_text().count("<img") >= 11  # with loss and gradient norm


def test_the_trainers_own_records_survive_ten_lines(tmp_path):
    student, teacher = models()
    trainer = distillation(
        student,
        teacher,
        tmp_path,
        [
            ProbeCallback(
                teacher, PROMPTS, tmp_path / "run", k=4, num_generations=1, max_completion_length=5
            )
        ],
        save_strategy="steps",
        save_steps=4,
    )
    trainer.train()
    assert open_run(tmp_path / "run").steps == [0, 4]  # every=10: the first and the last
    assert (tmp_path / "out/checkpoint-4/trainer_state.json").read_text().count("opd/") > 10
