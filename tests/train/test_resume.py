"""A run that was stopped and resumed equals one that was never stopped."""

import pytest
import torch

from opdprobe import Callback, ConfigError, Prompt, StoreError, open_run

pytestmark = pytest.mark.slow


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def grade(response, prompt):
    return float("7" in response.split())


class Stop(Exception):
    """Stands for a kill."""


class StopAfter(Callback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, trainer, step, metrics, dataset):
        if step == self.step:
            raise Stop


@pytest.mark.parametrize("stop_after", [0, 1, 2, 3])
def test_a_resumed_run_equals_an_unbroken_one(
    tmp_path, stop_after, trainer_in, sharpened, assert_same_runs
):
    settings = {"save_steps": 2, "eval_every": 2, "eval_n": 2, "lr_scheduler_type": "cosine"}
    kwargs = {
        "settings": settings,
        "grader": grade,
        "eval_prompts": {"all": [Prompt("a", text="7 8"), Prompt("b", text="9")]},
    }
    unbroken = sharpened(0)
    want = trainer_in(tmp_path / "unbroken", student=unbroken, **kwargs).train()
    stopped = trainer_in(tmp_path / "run", callbacks=[StopAfter(stop_after)], **kwargs)
    with pytest.raises(Stop):
        stopped.train()
    resumed = sharpened(0)
    with torch.random.fork_rng():
        torch.manual_seed(stop_after)  # must not matter
        got = trainer_in(tmp_path / "run", student=resumed, **kwargs).train()
    assert_same_runs(got, want)
    assert got.evaluation("all").identical(want.evaluation("all"))
    for name, weight in weights(unbroken).items():
        assert torch.equal(weight, weights(resumed)[name])


def test_steps_after_the_checkpoint_are_dropped(tmp_path, trainer_in):
    settings = {"save_steps": 2}
    with pytest.raises(Stop):
        trainer_in(tmp_path, settings=settings, callbacks=[StopAfter(3)]).train()
    assert open_run(tmp_path).steps == [0, 1, 2, 3]
    with pytest.raises(Stop):
        trainer_in(tmp_path, settings=settings, callbacks=[StopAfter(2)]).train()
    assert open_run(tmp_path).steps == [0, 1, 2]
    assert open_run(tmp_path).metrics.step.values.tolist() == [0, 1, 2]


def test_the_same_trainer_resumes_after_an_interrupt(tmp_path, trainer_in, assert_same_runs):
    want = trainer_in(tmp_path / "unbroken", settings={"save_steps": 2}).train()
    trainer = trainer_in(
        tmp_path / "run", settings={"save_steps": 2}, callbacks=[StopAfter(step=2)]
    )
    with pytest.raises(Stop):
        trainer.train()
    trainer.student.lm_head.weight.grad = torch.ones(64, 16)  # as if within a backward pass
    trainer.callbacks.clear()
    assert_same_runs(trainer.train(), want)
    assert_same_runs(trainer.train(), want)


def test_the_same_trainer_does_not_start_over_with_a_trained_student(tmp_path, trainer_in):
    trainer = trainer_in(tmp_path, callbacks=[StopAfter(step=2)])
    with pytest.raises(Stop):
        trainer.train()
    with pytest.raises(StoreError, match="no checkpoint to resume from"):
        trainer.train()
    run = trainer_in(tmp_path).train()
    assert run.steps == [0, 1, 2, 3]


def test_a_finished_run_is_only_opened(tmp_path, trainer_in):
    trainer_in(tmp_path).train()
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.zarr.zip")}
    seen = []

    class Watch(Callback):
        def on_train_begin(self, trainer):
            seen.append("begin")

        def on_train_end(self, trainer, run):
            seen.append("end")

    run = trainer_in(tmp_path, callbacks=[Watch()]).train()
    assert seen == ["end"]
    assert run.steps == [0, 1, 2, 3]
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.zarr.zip")} == files


def test_a_finished_run_restores_its_student(tmp_path, trainer_in, sharpened):
    trained, again = sharpened(0), sharpened(0)
    trainer_in(tmp_path, student=trained).train()
    trainer_in(tmp_path, student=again).train()
    for name, weight in weights(trained).items():
        assert torch.equal(weight, weights(again)[name])


def test_other_settings_are_refused_with_the_difference(tmp_path, trainer_in):
    trainer_in(tmp_path).train()
    with pytest.raises(ConfigError, match=r"learning_rate: 0\.001 before, 0\.01 now"):
        trainer_in(tmp_path, settings={"learning_rate": 1e-2}).train()


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_other_models_are_refused(tmp_path, role, trainer_in, sharpened):
    trainer_in(tmp_path).train()
    with pytest.raises(StoreError, match=rf"{role}\.weight_hash: '\w+' before, '\w+' now"):
        trainer_in(tmp_path, **{role: sharpened(5)}).train()


def test_a_run_is_not_overwritten(tmp_path, trainer_in):
    trainer_in(tmp_path).train()
    with pytest.raises(StoreError, match="holds a run already"):
        trainer_in(tmp_path).train(resume=False)
