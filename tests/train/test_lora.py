"""Students with trained adapters, in few bits, or with recomputed activations."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from torch import nn

from opdprobe import Callback, ConfigError, StoreError, open_run
from opdprobe.models.adapters import base_weights, without_adapters
from opdprobe.models.load import weight_hash
from opdprobe.rollout.pair import Pair, recomputing
from opdprobe.rollout.sample import Rollouts
from opdprobe.testing import tiny_tokenizer
from opdprobe.train.optim import Optimization

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning"),
    pytest.mark.slow,
]
IDS = torch.tensor([[1, 7, 9, 30, 11, 5]])


def adapted(model, seed=0, **settings):
    torch.manual_seed(seed)
    settings = {"r": 2, "target_modules": ["q_proj", "v_proj"]} | settings
    return get_peft_model(model, LoraConfig(init_lora_weights=False, **settings))


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


class Stop(Exception):
    """Stands for a kill."""


class StopAfter(Callback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, trainer, step, metrics, dataset):
        if step == self.step:
            raise Stop


# Adapters


def test_only_the_adapter_is_trained_and_towards_the_base(tmp_path, trainer_in, sharpened):
    base = sharpened(0)
    student = adapted(sharpened(0))
    before = weights(student)
    settings = {"max_steps": 12, "learning_rate": 3e-2, "k": 16, "batch_size": 4}
    trainer = trainer_in(tmp_path / "run", student=student, teacher=student, settings=settings)
    run = trainer.train()
    for name, weight in weights(student).items():
        assert torch.equal(weight, before[name]) == ("lora_" not in name)
    assert student.base_model.model.lm_head.weight.grad is None
    kl = run.metrics.reverse_kl.values
    assert kl[-2:].mean() < 0.5 * kl[0]
    assert run.attrs["teacher"]["weight_hash"] == weight_hash(base)
    assert run.attrs["student"]["weight_hash"] not in (weight_hash(base), weight_hash(student))


@pytest.mark.parametrize("settings", [{}, {"objective": "full"}, {"tail": "bucket"}])
def test_the_teacher_of_one_model_is_the_student_without_its_adapter(
    tmp_path, settings, trainer_in, sharpened, assert_same_runs
):
    student, apart = adapted(sharpened(0)), adapted(sharpened(0))
    got = trainer_in(tmp_path / "one", student=student, teacher=student, settings=settings).train()
    want = trainer_in(
        tmp_path / "two", student=apart, teacher=sharpened(0), settings=settings
    ).train()
    assert_same_runs(got, want)
    assert got.attrs == want.attrs | {"versions": got.attrs["versions"]}


def test_the_base_inside_the_student_is_the_same_teacher(
    tmp_path, trainer_in, sharpened, assert_same_runs
):
    """Its layers are the student's with their adapters, which is easily overlooked."""
    base, settings = sharpened(0), {"max_steps": 1}
    inside = trainer_in(
        tmp_path / "inside", student=adapted(base), teacher=base, settings=settings
    ).train()
    apart = trainer_in(
        tmp_path / "apart", student=adapted(sharpened(0)), teacher=sharpened(0), settings=settings
    ).train()
    assert_same_runs(inside, apart)
    assert inside.metrics.reverse_kl[0] > 0.01  # and not the student against itself


def test_an_adapter_on_the_head_takes_the_slow_path_to_the_same_losses(
    tmp_path, trainer_in, sharpened
):
    """At first, an adapter on the head changes nothing."""
    settings = {"max_steps": 1, "k": 16}
    teacher = sharpened(1)
    want = trainer_in(tmp_path / "want", teacher=teacher, settings=settings).train()
    student = get_peft_model(sharpened(0), LoraConfig(r=2, target_modules=["lm_head"]))
    got = trainer_in(tmp_path / "got", student=student, teacher=teacher, settings=settings).train()
    np.testing.assert_allclose(got.metrics.loss, want.metrics.loss, rtol=1e-4)
    assert any(p.abs().sum() > 0 for name, p in weights(student).items() if "lora_B" in name)


def test_a_checkpoint_holds_the_adapter_and_a_run_resumes_from_it(
    tmp_path, trainer_in, sharpened, assert_same_runs
):
    def trainer(folder, student, callbacks=()):
        settings = {"save_steps": 2}
        return trainer_in(
            tmp_path / folder,
            student=student,
            teacher=student,
            settings=settings,
            callbacks=callbacks,
        )

    unbroken, resumed = adapted(sharpened(0)), adapted(sharpened(0))
    want = trainer("unbroken", unbroken).train()
    with pytest.raises(Stop):
        trainer("run", adapted(sharpened(0)), [StopAfter(2)]).train()
    assert_same_runs(trainer("run", resumed).train(), want)
    for name, weight in weights(unbroken).items():
        assert torch.equal(weight, weights(resumed)[name])
    checkpoint = tmp_path / "run" / "checkpoints" / "000004"
    assert [file.name for file in checkpoint.glob("*.safetensors")] == ["adapter_model.safetensors"]
    loaded = PeftModel.from_pretrained(sharpened(0), str(checkpoint)).eval()
    torch.testing.assert_close(loaded(IDS).logits, unbroken(IDS).logits)


def test_a_checkpoint_of_another_adapter_is_refused(tmp_path, trainer_in, sharpened):
    settings = {"max_steps": 1, "batch_size": 1}
    student = adapted(sharpened(0))
    trainer_in(tmp_path, student=student, settings=settings).train()
    other = adapted(sharpened(0), target_modules=["q_proj"])
    trainer = trainer_in(tmp_path, student=other, settings=settings)
    trainer._attrs = open_run(tmp_path).attrs
    with pytest.raises(StoreError, match="is in one of checkpoint and adapter only"):
        trainer.train()


def test_weights_of_the_base_are_known_by_their_old_names(sharpened):
    want = weights(sharpened(0))
    model = adapted(sharpened(0), modules_to_save=["lm_head"]).get_base_model()
    got = dict(base_weights(model).named_parameters())
    assert got.keys() == want.keys()
    assert all(torch.equal(got[name], want[name]) for name in want)


def test_the_adapter_is_on_again_when_the_teacher_has_run(sharpened):
    student = adapted(sharpened(0)).eval()
    with_adapter = student(IDS).logits
    body, head = without_adapters(student, 64)
    torch.testing.assert_close(
        head(body(input_ids=IDS).last_hidden_state), sharpened(0)(IDS).logits
    )
    assert torch.equal(student(IDS).logits, with_adapter)
    assert all(p.requires_grad == ("lora_" in name) for name, p in student.named_parameters())


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda m: m.requires_grad_(False), "no trainable parameter"),
        (
            lambda m: m.get_base_model().lm_head.requires_grad_(True),
            r"lm_head.weight is trained outside the adapter",
        ),
    ],
)
def test_students_that_would_not_be_trained_or_saved_are_refused(
    tmp_path, spoil, message, trainer_in, sharpened
):
    student = adapted(sharpened(0))
    spoil(student)
    with pytest.raises(ConfigError, match=message):
        trainer_in(tmp_path, student=student)


def test_one_model_cannot_be_both_without_an_adapter(tmp_path, trainer_in, sharpened):
    model = sharpened(0)
    with pytest.raises(ConfigError, match="student and teacher are the same LlamaForCausalLM"):
        trainer_in(tmp_path, student=model, teacher=model)


def test_learned_prompts_and_other_modules_are_refused(sharpened):
    settings = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    for student, message in (
        (get_peft_model(sharpened(0), settings), "learned prompt"),
        (nn.Linear(2, 2), "a Linear is not a transformers model"),
    ):
        with pytest.raises(ConfigError, match=message):
            Pair(student, sharpened(1), tiny_tokenizer())


# bfloat16


def gradients(student, trainer):
    optimization = trainer.optimization
    trainer._score_and_backward(rollouts_of())
    found = [p.grad.clone() for p in optimization.collect()]
    optimization.zero_grad()
    return found


def rollouts_of():
    generator = torch.Generator().manual_seed(0)
    lengths = [3, 9, 5, 7]
    return Rollouts(
        [[1, 7, 8]] * 4,
        [torch.randint(6, 60, (n,), generator=generator).tolist() for n in lengths],
        [True] * 4,
        [0, 0, 1, 1],
    )


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"objective": "full"},
        {"tail": "bucket"},
        {"objective": "sampled", "estimator": "policy_gradient"},
    ],
)
@pytest.mark.parametrize("how", ["weights", "autocast"])
def test_gradients_in_bfloat16_are_those_in_float32_within_its_error(
    tmp_path, monkeypatch, settings, how, trainer_in, sharpened
):
    settings = settings | {"k": 16}
    plain = sharpened(0)
    want = gradients(plain, trainer_in(tmp_path / "plain", student=plain, settings=settings))
    student, teacher = sharpened(0), sharpened(1)
    if how == "weights":
        student, teacher = student.to(torch.bfloat16), teacher.to(torch.bfloat16)
    trainer = trainer_in(tmp_path / "run", student=student, teacher=teacher, settings=settings)
    if how == "autocast":
        monkeypatch.setattr(trainer, "_autocast", lambda: torch.autocast("cpu", torch.bfloat16))
    got = gradients(student, trainer)
    for one, other in zip(got, want, strict=True):
        assert one.dtype == torch.float32
        assert (one - other).norm() < 0.1 * other.norm()
    assert any(not torch.equal(one, other) for one, other in zip(got, want, strict=True))


def test_steps_below_the_last_bit_add_up(sharpened):
    """At a rate of 1e-4, no weight around 1 moves in bfloat16; its copy in float32 does."""
    model = nn.Linear(4, 1, bias=False).to(torch.bfloat16)
    nn.init.ones_(model.weight)
    optimization = Optimization(model, learning_rate=1e-4, total_steps=100)
    for _ in range(60):
        model(torch.ones(1, 4, dtype=torch.bfloat16)).sum().backward()
        optimization.step()
    # 1 - 0.006 lies between 0.9922 and 0.9961 in bfloat16.
    assert model.weight.tolist() == [[0.9921875] * 4]
    (copied,) = optimization.collect()
    torch.testing.assert_close(copied, torch.full((1, 4), 1 - 60e-4), rtol=0, atol=1e-5)


def test_gradients_of_micro_batches_add_up_in_float32():
    model = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    optimization = Optimization(model, learning_rate=1.0, total_steps=1)
    for _ in range(300):  # in bfloat16, 256 + 1 is 256
        model(torch.ones(1, 1, dtype=torch.bfloat16)).sum().backward()
        (copied,) = optimization.collect()
    assert copied.grad.item() == 300
    assert model.weight.grad is None
    optimization.zero_grad()
    assert copied.grad is None


def test_a_run_in_bfloat16_resumes_bit_for_bit(tmp_path, trainer_in, sharpened, assert_same_runs):
    settings = {"save_steps": 2, "learning_rate": 1e-4}

    def trainer(folder, student, callbacks=()):
        return trainer_in(
            tmp_path / folder,
            student=student.to(torch.bfloat16),
            teacher=sharpened(1).to(torch.bfloat16),
            settings=settings,
            callbacks=callbacks,
        )

    unbroken = trainer("unbroken", sharpened(0))
    want = unbroken.train()
    with pytest.raises(Stop):
        trainer("run", sharpened(0), [StopAfter(2)]).train()
    resumed = trainer("run", sharpened(0))
    assert_same_runs(resumed.train(), want)
    for one, other in zip(
        resumed.optimization.collect(), unbroken.optimization.collect(), strict=True
    ):
        assert torch.equal(one, other)
    assert want.load(0).attrs == open_run(tmp_path / "run").load(0).attrs


@pytest.mark.parametrize("kind", ["fp16", "fp8"])
def test_other_mixed_precision_is_refused(tmp_path, monkeypatch, kind, trainer_in):
    monkeypatch.setattr(Accelerator, "mixed_precision", kind)
    with pytest.raises(ConfigError, match=f"mixed precision {kind}; expected bf16 or no"):
        trainer_in(tmp_path)


# Gradient checkpointing


def counted(model):
    """Count how often each layer runs, and in which mode its parts are."""
    calls, modes = [], set()

    for layer in model.model.layers:

        def note(module, args, layer=layer):
            calls.append(module)
            modes.update(part.training for part in layer.modules())

        layer.mlp.register_forward_pre_hook(note)
    return calls, modes


@pytest.mark.parametrize("adapter", [False, True])
def test_checkpointed_layers_compute_twice_and_give_the_same_gradients(
    tmp_path, adapter, trainer_in, sharpened
):
    def trainer(folder, model):
        student = adapted(model) if adapter else model
        return trainer_in(tmp_path / folder, student=student, settings={"micro_batch_tokens": 20})

    plain, saving = sharpened(0), sharpened(0)
    for layer in saving.model.layers:
        layer.self_attn.attention_dropout = 0.5  # which stays off
    enable = getattr(saving, "activation_checkpointing_enable", None)
    (enable or saving.gradient_checkpointing_enable)()
    first, second = trainer("plain", plain), trainer("saving", saving)
    want = gradients(plain, first)
    calls, modes = counted(saving)
    got = gradients(saving, second)
    n_batches = len(list(second.pair.scored(rollouts_of(), k=4, micro_batch_tokens=20)))
    del calls[-n_batches * len(saving.model.layers) :]
    assert len(calls) == 2 * n_batches * len(saving.model.layers)
    assert modes == {False}
    assert not any(module.training for module in saving.modules())
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other)


def test_layers_are_left_as_they_were_whatever_happens(sharpened):
    model = sharpened(0)
    enable = getattr(model, "activation_checkpointing_enable", None)
    (enable or model.gradient_checkpointing_enable)()
    model.eval()
    functions = [layer._gradient_checkpointing_func for layer in model.model.layers]

    def stop():
        with recomputing(model):
            assert all(layer.training for layer in model.model.layers)
            raise Stop

    with pytest.raises(Stop):
        stop()
    assert not any(module.training for module in model.modules())
    assert [layer._gradient_checkpointing_func for layer in model.model.layers] == functions
    with torch.no_grad(), recomputing(model):
        assert not any(module.training for module in model.modules())
