"""Hooks on other people's training: transformers' Trainer, a plain loop, saved checkpoints."""

import copy
import json
import logging
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import peft
import pytest
import torch
from torch import nn
from transformers import (
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from opdprobe import (
    ConfigError,
    NonFiniteError,
    ProbeCallback,
    Prompt,
    PromptError,
    StoreError,
    VocabularyError,
    open_run,
    probe_checkpoints,
    validate,
)
from opdprobe.cli.parser import main
from opdprobe.errors import ModelError
from opdprobe.hooks import find_checkpoints
from opdprobe.hooks.shared import undisturbed, unwrap
from opdprobe.models.load import load_model, weight_hash
from opdprobe.report.token_text import TokenTexts
from opdprobe.report.view import write_view
from opdprobe.rollout.mixture import Mixture
from opdprobe.rollout.once import probe
from opdprobe.rollout.prompts import encode_prompts
from opdprobe.rollout.teachers import load_pair
from opdprobe.store.prompt_form import prompt_form
from opdprobe.testing import tiny_model, tiny_tokenizer

pytestmark = pytest.mark.slow

PROMPTS = [Prompt("a", text="7 8"), Prompt("b", text="9"), Prompt("c", text="10 11 12 13")]
# PEFT 0.21 still calls a function that transformers 5.23 renamed.
OLD_NAMES = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")


def models():
    student, teacher = tiny_model(seed=0), tiny_model(seed=1)
    for model in (student, teacher):
        model.lm_head.weight.data *= 20
    return student, teacher


def save(model, folder, tokenizer=None):
    model.save_pretrained(folder)
    (tokenizer or tiny_tokenizer()).save_pretrained(folder)
    return folder


# --- ProbeCallback ---


def rows():
    ids = [[1, 6 + i, 7 + i, 8 + i, 2] for i in range(8)]
    return [{"input_ids": row, "labels": row, "attention_mask": [1] * 5} for row in ids]


def trainer_of(student, folder, callbacks, tokenizer=True, **more):
    settings = {
        "max_steps": 4,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "disable_tqdm": True,
    }
    return Trainer(
        student,
        TrainingArguments(str(folder / "out"), **settings | more),
        train_dataset=rows(),
        processing_class=tiny_tokenizer() if tokenizer else None,
        callbacks=callbacks,
    )


def watch(folder, teacher, every=2, **more):
    settings = {"k": 4, "num_generations": 1, "max_completion_length": 5, "every": every} | more
    return ProbeCallback(teacher, PROMPTS, folder / "run", **settings)


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_the_trainer_learns_the_same(tmp_path):
    student, teacher = models()
    for layer in student.model.layers:
        layer.self_attn.attention_dropout = 0.2
    other = copy.deepcopy(student)
    alone = trainer_of(student, tmp_path, [])
    alone.train()
    watched = trainer_of(other, tmp_path, [watch(tmp_path, teacher)])
    watched.train()
    assert losses(watched) == losses(alone)
    assert weight_hash(other) == weight_hash(student)
    run = open_run(tmp_path / "run")
    assert run.steps == [0, 2, 4]
    assert run.attrs["recorded_by"] == "ProbeCallback"
    assert run.attrs["student"]["weight_hash"] == weight_hash(models()[0])


def test_a_resumed_trainer_continues_the_run(tmp_path):
    student, teacher = models()
    saving = {"save_strategy": "steps", "save_steps": 2}
    trainer_of(student, tmp_path, [watch(tmp_path, teacher, every=1)], **saving).train()
    run = open_run(tmp_path / "run")
    want = {step: run.load(step).compute() for step in run.steps}
    metrics = run.metrics
    assert list(want) == [0, 1, 2, 3, 4]
    (
        tmp_path / "run/steps/000003.zarr.zip"
    ).unlink()  # so that the resumed run has to write it again
    written = (tmp_path / "run/steps/000002.zarr.zip").stat().st_mtime_ns

    again = trainer_of(models()[0], tmp_path, [watch(tmp_path, teacher, every=1)], **saving)
    again.train(resume_from_checkpoint=str(tmp_path / "out/checkpoint-2"))
    assert run.steps == [0, 1, 2, 3, 4]
    assert all(run.load(step).identical(dataset) for step, dataset in want.items())
    assert run.metrics.identical(metrics)
    assert (tmp_path / "run/steps/000002.zarr.zip").stat().st_mtime_ns == written

    with pytest.raises(ConfigError, match="every: 1 before, 2 now"):
        trainer_of(models()[0], tmp_path, [watch(tmp_path, teacher)]).train(
            resume_from_checkpoint=str(tmp_path / "out/checkpoint-2")
        )
    callback = watch(tmp_path, teacher, every=1)
    callback.prompts = PROMPTS[:2]
    with pytest.raises(StoreError, match=r"prompts\.count: 3 before, 2 now"):
        trainer_of(models()[0], tmp_path, [callback]).train(
            resume_from_checkpoint=str(tmp_path / "out/checkpoint-2")
        )


def test_a_run_is_not_overwritten(tmp_path):
    student, teacher = models()
    trainer_of(student, tmp_path, [watch(tmp_path, teacher)], max_steps=1).train()
    with pytest.raises(StoreError, match="holds a run already"):
        trainer_of(models()[0], tmp_path, [watch(tmp_path, teacher)], max_steps=1).train()
    assert open_run(tmp_path / "run").steps == [0, 1]


class StopAfter(TrainerCallback):
    """Early stopping, as on an evaluation: after on_step_end."""

    def __init__(self, step):
        self.step = step

    def on_log(self, args, state, control, **kwargs):
        control.should_training_stop |= state.global_step >= self.step


def test_the_last_student_is_probed_though_training_stops_early(tmp_path):
    student, teacher = models()
    callbacks = [watch(tmp_path, teacher, every=100), StopAfter(3)]
    trainer_of(student, tmp_path, callbacks).train()
    assert open_run(tmp_path / "run").steps == [0, 3]


def test_the_best_model_is_not_taken_for_the_last(tmp_path):
    student, teacher = models()
    callback = watch(tmp_path, teacher, every=100)
    trainer = trainer_of(student, tmp_path, [callback, StopAfter(3)])
    trainer.train()
    state, args = TrainerState(global_step=9), SimpleNamespace(load_best_model_at_end=True)
    callback.on_train_end(args, state, TrainerControl())
    assert open_run(tmp_path / "run").steps == [0, 3]


def test_only_the_main_process_probes(tmp_path):
    callback = watch(tmp_path, "no/such/teacher")
    state = TrainerState(is_world_process_zero=False, max_steps=1)
    for event in (callback.on_train_begin, callback.on_step_end, callback.on_train_end):
        args = SimpleNamespace(load_best_model_at_end=False)
        event(args, state, TrainerControl(), model=models()[0])
    callback.on_log(None, state, TrainerControl(), logs={"loss": 1.0})
    assert not (tmp_path / "run").exists()


def test_names_are_resolved_when_training_begins(tmp_path):
    student, teacher = models()
    save(teacher, tmp_path / "teacher")
    prompts = tmp_path / "prompts.jsonl"
    callback = ProbeCallback(
        str(tmp_path / "teacher"),
        prompts,
        tmp_path / "run",
        k=4,
        num_generations=1,
        max_completion_length=3,
    )
    prompts.write_text('{"prompt": "7 8"}\n{"prompt": "9"}\n')
    random_state = torch.get_rng_state()
    trainer_of(student, tmp_path, [callback], max_steps=1, seed=3).train()
    torch.set_rng_state(random_state)
    run = open_run(tmp_path / "run")
    assert run.load(0).sizes["rollout"] == 2
    assert run.attrs["teacher"]["name"] == str(tmp_path / "teacher")
    assert run.attrs["teacher"]["weight_hash"] == weight_hash(teacher)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"teacher": "./no/such/teacher"}, ModelError, "no such file or directory"),
        ({"prompts": "no-prompts.jsonl"}, PromptError, "no such file"),
        ({"prompts": []}, PromptError, "at least one prompt"),
        ({"k": 65}, ConfigError, "k = 65; expected at most 64, the size of the shared vocabulary"),
        ({"teacher_tokenizer": tiny_tokenizer(60)}, VocabularyError, "first at id 60"),
    ],
)
def test_what_cannot_be_probed_stops_training(change, error, message, tmp_path):
    student, teacher = models()
    arguments = {
        "teacher": teacher,
        "prompts": PROMPTS,
        "num_generations": 1,
        "max_completion_length": 3,
    } | change
    callback = ProbeCallback(run_dir=tmp_path / "run", **arguments)
    with pytest.raises(error, match=message):
        trainer_of(student, tmp_path, [callback]).train()


def test_a_trainer_without_tokenizer_needs_one(tmp_path):
    student, teacher = models()
    with pytest.raises(ConfigError, match="processing_class is NoneType"):
        trainer_of(student, tmp_path, [watch(tmp_path, teacher)], tokenizer=False).train()
    callback = watch(tmp_path, teacher, tokenizer=tiny_tokenizer())
    trainer_of(student, tmp_path, [callback], tokenizer=False, max_steps=1).train()
    assert open_run(tmp_path / "run").steps == [0, 1]


def test_teachers_of_one_family_may_end_and_chat_otherwise(tmp_path, caplog):
    student, teacher = models()
    other = tiny_tokenizer()
    other.eos_token = "<pad>"
    other.chat_template = "<bos>" + other.chat_template
    callback = watch(tmp_path, teacher, teacher_tokenizer=other)
    trainer_of(student, tmp_path, [callback], max_steps=1).train()
    assert "responses may never end" in caplog.text
    assert "chat template differs" in caplog.text
    assert "log_history" not in caplog.text  # there is no tracker to miss the scalars


def test_trackers_that_get_nothing_are_named(tmp_path, caplog):
    student, teacher = models()
    callback = watch(tmp_path, teacher)
    trainer = trainer_of(student, tmp_path, [callback], max_steps=1)
    trainer.args.report_to = ["tensorboard"]  # after the trainer has looked
    trainer.train()
    assert "not to tensorboard" in caplog.text
    assert ".attach(trainer)" in caplog.text


def test_a_student_gone_bad_stops_training(tmp_path):
    class Spoil(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            model.lm_head.weight.data.fill_(float("nan"))

    student, teacher = models()
    with pytest.raises(NonFiniteError, match=r"step 1: .*NaN or infinite logits"):
        trainer_of(student, tmp_path, [Spoil(), watch(tmp_path, teacher, every=1)]).train()
    assert open_run(tmp_path / "run").steps == [0]


def test_mixed_precision_is_that_of_training(tmp_path, caplog):
    student, teacher = models()
    trainer_of(student, tmp_path, [watch(tmp_path, teacher)], max_steps=1, bf16=True).train()
    assert "not a plain projection" not in caplog.text  # no slow path
    (tmp_path / "fp32").mkdir()
    plain = watch(tmp_path / "fp32", teacher)
    trainer_of(models()[0], tmp_path, [plain], max_steps=1).train()
    low, high = (open_run(tmp_path / name).load(0) for name in ("run", "fp32/run"))
    assert not np.array_equal(low.entropy, high.entropy)
    assert low.entropy.mean() == pytest.approx(float(high.entropy.mean()), rel=0.1)


def test_settings_out_of_range():
    for bad in (
        {"k": 0},
        {"num_generations": 0},
        {"max_completion_length": 0},
        {"temperature": 0},
        {"seed": -1},
    ):
        with pytest.raises(ConfigError, match=f"{next(iter(bad))} = "):
            ProbeCallback("teacher", PROMPTS, "run", **bad)


@pytest.fixture
def two_teachers(tmp_path):
    return {
        name: save(tiny_model(seed=i), tmp_path / name, tiny_tokenizer())
        for i, name in enumerate(("math", "code"), start=1)
    }


def watched_by(teacher, folder, **more):
    folder.mkdir()
    prompts = [
        replace(one, meta={"domain": domain})
        for one, domain in zip(PROMPTS, ("math", "code", "math"), strict=True)
    ]
    callback = watch(folder, teacher, every=1, **more)
    callback.prompts = prompts
    trainer_of(models()[0], folder, [callback], max_steps=1).train()
    return open_run(folder / "run")


@pytest.mark.parametrize("one_at_a_time", [False, True])
def test_each_prompt_has_its_teacher(tmp_path, two_teachers, one_at_a_time):
    run = watched_by(
        two_teachers, tmp_path / "two", teacher_by="domain", one_teacher_at_a_time=one_at_a_time
    )
    assert run.attrs["teacher"]["by"] == "domain"
    assert set(run.attrs["teacher"]["teachers"]) == {"math", "code"}
    alone = {name: watched_by(one, tmp_path / f"{name}-run") for name, one in two_teachers.items()}
    for step in run.steps:
        rows = run.to_dataframe(step, by="token")
        for rollout, name in enumerate(("math", "code", "math")):
            want = alone[name].to_dataframe(step, by="token")
            np.testing.assert_allclose(
                rows[rows.rollout == rollout].reverse_kl,
                want[want.rollout == rollout].reverse_kl,
                rtol=1e-5,
            )
    with pytest.raises(PromptError, match="domain is 'code'; expected one of 'math', 'c'"):
        watched_by(
            {"math": two_teachers["math"], "c": two_teachers["code"]},
            tmp_path / "unknown",
            teacher_by="domain",
        )


def test_a_mixture_is_one_teacher(tmp_path, two_teachers):
    mixed = Mixture(two_teachers, {"math": 3, "code": 1})
    run = watched_by(mixed, tmp_path / "mixed")
    assert run.attrs["teacher"]["name"] == "0.75 math + 0.25 code"
    path = save(models()[0], tmp_path / "student")
    pair = load_pair(path, mixed, by=None, device="cpu")
    sizes = {"num_generations": 1, "max_completion_length": 5, "k": 4}
    want = probe(pair, encode_prompts(pair.tokenizer, PROMPTS), **sizes)
    np.testing.assert_allclose(run.load(0).reverse_kl, want.reverse_kl, rtol=1e-4, atol=1e-6)
    with pytest.raises(ConfigError, match="2 teachers by name and no teacher_by"):
        watched_by(two_teachers, tmp_path / "no column")


# --- what is inside a student ---


def test_unwrap():
    student, _ = models()
    assert unwrap(student) is student
    assert unwrap(nn.DataParallel(student)) is student
    assert unwrap(torch.compile(student, backend="eager")) is student
    with pytest.raises(ConfigError, match="a Linear is not a transformers model"):
        unwrap(nn.Linear(2, 2))


def test_parts_of_students_of_deepspeed_zero_3_are_refused():
    student, _ = models()
    student.lm_head.weight.ds_numel = 64 * 16  # which it sets on every parameter
    student.lm_head.weight.data = torch.empty(0)
    with pytest.raises(ConfigError, match=r"sharded over processes, .* use probe_checkpoints"):
        unwrap(student)


@pytest.fixture
def one_process(tmp_path):
    """Make this process a distributed world of one."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/world", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("one_process")
@pytest.mark.filterwarnings("ignore:FSDP is switching to use `NO_SHARD`:UserWarning")
def test_students_sharded_by_fsdp_are_refused():
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

    cpu = torch.device("cpu")
    spread = [
        # transformers' default for FSDP 1 shows the original parameters.
        FullyShardedDataParallel(models()[0], device_id=cpu, use_orig_params=True),
        FullyShardedDataParallel(models()[0], device_id=cpu, use_orig_params=False),
        fully_shard(models()[0], mesh=init_device_mesh("cpu", (1,))),
    ]
    for student in spread:
        with pytest.raises(ConfigError, match="sharded over processes"):
            unwrap(student)
    whole = models()[0]
    assert unwrap(nn.parallel.DistributedDataParallel(whole)) is whole


def test_the_run_keeps_the_tokenizer(tmp_path):
    student, teacher = models()
    student.name_or_path = "some/hub-id"  # where no file is
    trainer_of(student, tmp_path, [watch(tmp_path, teacher)], max_steps=1).train()
    texts = TokenTexts(tmp_path / "run" / "tokenizer")
    assert texts[9].kind == "text"
    assert write_view(tmp_path / "view.html", [open_run(tmp_path / "run")]) == []


@OLD_NAMES
def test_adapters_count(tmp_path):
    peft = pytest.importorskip("peft")
    student, teacher = models()
    torch.manual_seed(0)
    adapted = peft.get_peft_model(student, peft.LoraConfig(target_modules=["q_proj", "v_proj"]))
    trainer_of(adapted, tmp_path, [watch(tmp_path, teacher)], learning_rate=0.1).train()
    run = open_run(tmp_path / "run")
    assert run.steps == [0, 2, 4]
    # At first, an adapter changes nothing; then only the adapter learns.
    plain = probe_checkpoints(
        save(models()[0], tmp_path / "student"),
        teacher,
        PROMPTS,
        tmp_path / "plain",
        k=4,
        num_generations=1,
        max_completion_length=5,
    )
    np.testing.assert_allclose(run.load(0).entropy, plain.load(0).entropy, rtol=1e-5)
    assert abs(run.load(4).entropy.mean() - run.load(0).entropy.mean()) > 1e-3


@OLD_NAMES
def test_learned_prompts_are_refused():
    peft = pytest.importorskip("peft")
    settings = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    with pytest.raises(ConfigError, match="learned prompt"):
        unwrap(peft.get_peft_model(models()[0], settings))


def test_undisturbed_restores_everything_after_an_error():
    student, _ = models()
    student.train()
    student.model.layers[0].eval()
    modes = [module.training for module in student.modules()]
    random_state = torch.get_rng_state(), repr(np.random.get_state())  # noqa: NPY002  # the global one

    def fail():
        assert not student.training
        torch.rand(1)
        np.random.rand()  # noqa: NPY002  # on purpose
        raise KeyError

    with pytest.raises(KeyError), undisturbed(student):
        fail()
    assert [module.training for module in student.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random_state[0])
    assert repr(np.random.get_state()) == random_state[1]  # noqa: NPY002  # the global one


# --- probe_checkpoints ---


@pytest.fixture
def saved(tmp_path):
    """Three checkpoints of a student, out of order, with other things beside them."""
    folder = tmp_path / "out"
    for step in (100, 20, 3):
        student, _ = models()
        student.lm_head.weight.data += 0.01 * step
        save(student, folder / f"checkpoint-{step}")
    (folder / "logs-7").mkdir()
    save(models()[0], folder / "final")
    return folder


SMALL = {"k": 4, "num_generations": 1, "max_completion_length": 4}


def test_checkpoints_become_a_run(saved, tmp_path):
    teacher = models()[1]
    progress = []
    run = probe_checkpoints(
        saved,
        save(teacher, tmp_path / "teacher"),
        PROMPTS,
        tmp_path / "run",
        grader=lambda text, prompt: float(prompt.id == "b"),
        on_progress=lambda done, total: progress.append((done, total)),
        **SMALL,
    )
    assert run.steps == [3, 20, 100]
    assert progress == [(0, 3), (1, 3), (2, 3), (3, 3)]
    for step in run.steps:
        dataset = run.load(step)
        validate(dataset)
        # Whatever its grade, a response that did not end is wrong.
        finished = dataset.finished.values
        assert dataset.correct.values.tolist() == (finished * np.array([0, 1, 0])).tolist()
        assert dataset.attrs["checkpoint"] == f"checkpoint-{step}"
    assert len({run.load(step).attrs["weight_hash"] for step in run.steps}) == 3
    assert run.metrics.overlap_ratio.notnull().all()
    assert run.attrs["student"] == {"name": str(saved)}


def test_probing_checkpoints_resumes(saved, tmp_path):
    teacher = models()[1]
    arguments = teacher, PROMPTS, tmp_path / "run"
    some = [saved / "checkpoint-3", saved / "checkpoint-100"]
    run = probe_checkpoints(some, *arguments, **SMALL)
    assert run.steps == [3, 100]
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run/steps").iterdir()}
    assert probe_checkpoints(saved, *arguments, **SMALL).steps == [3, 20, 100]
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    at_once = probe_checkpoints(saved, teacher, PROMPTS, tmp_path / "once", **SMALL)
    assert all(at_once.load(step).identical(run.load(step)) for step in at_once.steps)
    with pytest.raises(ConfigError, match="num_generations: 1 before, 2 now"):
        probe_checkpoints(saved, *arguments, **SMALL | {"num_generations": 2})
    with pytest.raises(StoreError, match="holds a different run: teacher"):
        probe_checkpoints(saved, models()[0], *arguments[1:], **SMALL)


def test_a_bad_checkpoint_is_named_and_the_others_stay(saved, tmp_path):
    broken, teacher = models()
    broken.lm_head.weight.data.fill_(float("nan"))
    broken.save_pretrained(saved / "checkpoint-20")
    with pytest.raises(NonFiniteError, match=r"checkpoint-20: .*NaN"):
        probe_checkpoints(saved, teacher, PROMPTS, tmp_path / "run", **SMALL)
    assert open_run(tmp_path / "run").steps == [3]


def test_which_checkpoints_are_found(saved, tmp_path):
    assert list(find_checkpoints(saved)) == [3, 20, 100]
    assert list(find_checkpoints([saved / "checkpoint-20"])) == [20]
    assert find_checkpoints(saved / "final") == {0: saved / "final"}
    for name, error, message in (
        ("nothing", ModelError, "nothing: no checkpoint there"),
        ("logs-7", ModelError, "no checkpoint there"),
    ):
        with pytest.raises(error, match=message):
            find_checkpoints(saved / name)
    with pytest.raises(ModelError, match="no checkpoints"):
        find_checkpoints([])
    with pytest.raises(ConfigError, match="does not end in a step"):
        find_checkpoints([saved / "checkpoint-3", saved / "final"])
    with pytest.raises(ConfigError, match="both step 3"):
        find_checkpoints([saved / "checkpoint-3", saved / "checkpoint-3"])


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
def test_checkpoints_of_adapters_become_a_run(tmp_path):
    """Those of TRL and ms-swift; a step's numbers are those of the adapted model."""
    student, teacher = models()
    base = save(student, tmp_path / "base")
    for step in (3, 20):
        adapted = peft.get_peft_model(
            load_model(base), peft.LoraConfig(r=2, target_modules=["q_proj"])
        )
        torch.manual_seed(step)
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_()
        adapted.save_pretrained(tmp_path / f"out/checkpoint-{step}")
    assert list(find_checkpoints(tmp_path / "out")) == [3, 20]
    run = probe_checkpoints(tmp_path / "out", teacher, PROMPTS, tmp_path / "run", **SMALL)
    merged = adapted.merge_and_unload()
    want = probe_checkpoints(
        [save(merged, tmp_path / "merged-20")], teacher, PROMPTS, tmp_path / "merged", **SMALL
    )
    assert run.load(20).attrs["checkpoint"] == "checkpoint-20"
    assert np.array_equal(run.load(20).token_id, want.load(20).token_id)
    np.testing.assert_allclose(run.load(20).logp, want.load(20).logp, atol=1e-5)
    assert run.load(3).attrs["weight_hash"] != run.load(20).attrs["weight_hash"]


def test_verls_checkpoints_are_found(tmp_path):
    for step in (5, 10):
        save(models()[0], tmp_path / f"out/global_step_{step}/actor/huggingface")
    folders = [tmp_path / f"out/global_step_{step}" for step in (5, 10)]
    assert find_checkpoints(tmp_path / "out") == {5: folders[0], 10: folders[1]}
    for inside in ("actor", "actor/huggingface"):
        paths = [folder / inside for folder in folders]
        assert find_checkpoints(paths) == {5: paths[0], 10: paths[1]}
    with pytest.raises(ModelError, match=r"did you mean .*/out\?"):
        find_checkpoints(tmp_path)


LONG = Prompt("long", text="5 " * 1100)


@pytest.mark.parametrize(
    ("more", "kept"), [({"max_prompt_length": 1100}, 1100), ({"on_error": "skip"}, None)]
)
def test_prompts_of_more_than_1024_tokens(saved, tmp_path, more, kept):
    student, teacher = models()
    settings = {"k": 4, "num_generations": 1, "max_completion_length": 2}
    checkpoint = [saved / "checkpoint-3"]
    with pytest.raises(PromptError, match=r"1100 tokens, .* raise max_prompt_length"):
        probe_checkpoints(checkpoint, teacher, [*PROMPTS, LONG], tmp_path / "no", **settings)
    run = probe_checkpoints(
        checkpoint, teacher, [*PROMPTS, LONG], tmp_path / "run", **settings, **more
    )
    callback = ProbeCallback(teacher, [*PROMPTS, LONG], tmp_path / "watched", **settings, **more)
    trainer_of(student, tmp_path / "out", [callback], max_steps=1).train()
    for recorded in (run.load(3), open_run(tmp_path / "watched").load(0)):
        lengths = dict(zip(recorded.prompt_id.values, recorded.prompt_length.values, strict=True))
        assert lengths.get("long") == kept
        assert len(lengths) == (4 if kept else 3)


def test_the_command_reads_prompts_as_told(saved, tmp_path, capsys):
    teacher = save(models()[1], tmp_path / "teacher")
    prompts = tmp_path / "prompts.csv"
    prompts.write_text("question,solution\n7 8,15\n" + "5 " * 1100 + ",\n,\n9 8 7,24\n")
    command = ["probe", str(saved / "checkpoint-3"), "--teacher", str(teacher)]
    command += ["--prompts", str(prompts), "--prompt-column", "question", "--k", "4"]
    command += ["--run-dir", str(tmp_path / "run"), "--num-generations", "1"]
    command += ["--max-completion-length", "2"]
    assert main([*command, "--on-error", "skip", "--max-prompt-length", "2"]) == 0
    assert open_run(tmp_path / "run").load(3).prompt_length.values.tolist() == [2]
    capsys.readouterr()
    assert main([*command, "--on-error", "skip", "--answer-column", "absent"]) == 1
    assert "no column 'absent'" in " ".join(capsys.readouterr().err.split())


def test_the_command(saved, tmp_path, capsys):
    logging.getLogger().handlers.clear()  # of a command before; basicConfig keeps them
    teacher = save(models()[1], tmp_path / "teacher")
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "7 8"}\n{"prompt": "9"}\n')
    command = ["probe", str(saved), "--teacher", str(teacher), "--prompts", str(prompts)]
    command += ["--run-dir", str(tmp_path / "run"), "--limit", "1", "--max-completion-length", "4"]
    assert main([*command, "--k", "4", "--num-generations", "2", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["steps"] == [3, 20, 100]
    assert 0 <= answer["overlap_ratio"] <= 1
    assert open_run(tmp_path / "run").load(3).sizes["rollout"] == 2
    assert main([*command, "--k", "4", "--num-generations", "2"]) == 0
    assert "overlap_ratio" in capsys.readouterr().out
    assert main([*command, "--k", "5"]) == 1


CHAT = [Prompt("a", messages=({"role": "user", "content": "7 8"},)), Prompt("b", text="9")]
THINKING = {
    "chat_template_kwargs": {"enable_thinking": True},
    "system_prompt": "5",
    "max_prompt_length": 16,
    "on_error": "skip",
}


def chatty():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template += "{% if enable_thinking %} 11{% else %} 12{% endif %}"
    return tokenizer


def asked(run):
    return {str(chatty().decode(ids)) for step in run.steps for ids in run.prompt_ids(step)}


def test_the_prompts_form_reaches_the_template_and_the_record(tmp_path):
    student, teacher = models()
    save(student, tmp_path / "checkpoint-0", chatty())
    settings = {"k": 4, "num_generations": 1, "max_completion_length": 2}
    plain = probe_checkpoints(tmp_path / "checkpoint-0", teacher, CHAT, tmp_path / "p", **settings)
    assert any(text.endswith("<user> 7 8 <assistant> 12") for text in asked(plain))
    rows = [{"id": "a", "prompt": [dict(CHAT[0].messages[0])]}, {"id": "b", "prompt": "9"}]
    rows.append({"id": "c", "prompt": "9 " * 17})
    found = probe_checkpoints(
        tmp_path / "checkpoint-0", teacher, rows, tmp_path / "c", **settings, **THINKING
    )
    callback = ProbeCallback(teacher, CHAT, tmp_path / "t", **settings, **THINKING)
    trainer = trainer_of(student, tmp_path, [callback], max_steps=1)
    callback.tokenizer = chatty()
    trainer.train()
    for run in (found, open_run(tmp_path / "t")):
        assert any(text.endswith("5 <user> 7 8 <assistant> 11") for text in asked(run))
        assert run.attrs["max_prompt_length"] == 16
        assert run.attrs["on_error"] == "skip"
        assert run.attrs["prompts"]["count"] == 2
        assert prompt_form(run.attrs) == "enable_thinking = True; system prompt '5'"
    assert prompt_form(plain.attrs) == "enable_thinking = False (default)"
    with pytest.raises(StoreError, match="enable_thinking: False before, True now"):
        probe_checkpoints(
            tmp_path / "checkpoint-0", teacher, CHAT, tmp_path / "p", **settings, **THINKING
        )


def test_the_command_takes_the_prompts_form(tmp_path):
    student, teacher = models()
    save(student, tmp_path / "student", chatty())
    save(teacher, tmp_path / "teacher", chatty())
    (tmp_path / "p.jsonl").write_text('{"prompt": [{"role": "user", "content": "7 8"}]}\n')
    words = ["probe", tmp_path / "student", "--teacher", tmp_path / "teacher", "--prompts"]
    words += [tmp_path / "p.jsonl", "--k", "4", "--max-completion-length", "2"]
    words += ["--system-prompt", "5", "--chat-template-kwargs"]
    for number, given in enumerate(("enable_thinking=true", '{"enable_thinking": true}')):
        run_dir = tmp_path / str(number)
        assert main([str(w) for w in (*words, given, "--run-dir", run_dir)]) == 0
        attrs = open_run(run_dir).attrs
        assert prompt_form(attrs) == "enable_thinking = True; system prompt '5'"
    assert main([str(w) for w in (*words, "thinking", "--run-dir", tmp_path / "no")]) == 1
