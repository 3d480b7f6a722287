"""The full loop on tiny models: what is recorded, what is learnt, what is refused."""

import copy
import itertools

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from opdprobe import (
    Callback,
    ConfigError,
    NonFiniteError,
    OPDConfig,
    OPDTrainer,
    Prompt,
    PromptError,
    VocabularyError,
    load_tokenizer,
    open_run,
    validate,
)
from opdprobe.rollout import score, tiles
from opdprobe.rollout.sample import sample
from opdprobe.testing import tiny_model, tiny_tokenizer
from opdprobe.train import full_vocabulary

PROBLEMS = [Prompt("a", text="7 8"), Prompt("b", text="9"), Prompt("c", text="10 11 12")]


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def grade(response, prompt):
    return float("7" in response.split())


# What is recorded


def test_a_run_holds_every_step_and_its_settings(tmp_path, trainer_in):
    trainer = trainer_in(tmp_path, grader=grade)
    run = trainer.train()
    assert run.steps == [0, 1, 2, 3]
    assert run.config == trainer.config.to_dict()
    assert run.attrs["k"] == 4
    assert run.attrs["vocabulary"] == 64
    for step in run.steps:
        ds = run.load(step)
        validate(ds)
        assert ds.sizes["rollout"] == 4
        assert ds.sizes["rank"] == 4
        texts = trainer.tokenizer.batch_decode(run.response_ids(step), skip_special_tokens=True)
        ended = ds.finished.values.tolist()  # what has not ended is wrong
        assert ds.correct.values.tolist() == [
            grade(text, None) * end for text, end in zip(texts, ended, strict=True)
        ]
        assert run.metrics.correct.sel(step=step) == pytest.approx(float(ds.correct.mean()))
        assert run.metrics.completion_length.sel(step=step) == float(ds.length.mean())
    assert run.metrics.learning_rate.values.tolist() == [1e-3] * 4


def test_a_run_keeps_its_tokenizer_and_template_from_its_start(tmp_path, trainer_in):
    class Look(Callback):
        def on_train_begin(self, trainer):
            kept = load_tokenizer(tmp_path / "tokenizer")
            assert kept.get_vocab() == trainer.tokenizer.get_vocab()
            assert kept.chat_template == template
            assert not (tmp_path / "checkpoints").exists()
            self.looked = True

    look = Look()
    trainer = trainer_in(tmp_path, settings={"max_steps": 1}, callbacks=[look])
    trainer.tokenizer.chat_template = template = "{{ messages[0].content }}"
    trainer.train()
    assert look.looked
    first = (tmp_path / "tokenizer" / "tokenizer.json").stat().st_ino
    trainer.train(resume=True)
    assert (tmp_path / "tokenizer" / "tokenizer.json").stat().st_ino == first


def test_unfinished_responses_are_graded_where_the_settings_say_so(tmp_path, trainer_in):
    settings = {"unfinished": "graded", "max_steps": 1, "eval_n": 2}
    options = {"grader": lambda text, prompt: 1.0, "eval_prompts": {"some": PROBLEMS}}
    run = trainer_in(tmp_path / "graded", settings=settings, **options).train()
    assert not run.load(0).finished.values.all()
    assert (run.load(0).correct.values == 1).all()
    assert (run.evaluation("some")["score"] == 1).all()
    assert run.evaluation("some").attrs == {"unfinished": "graded"}
    assert run.config["unfinished"] == "graded"

    settings["unfinished"] = "wrong"
    run = trainer_in(tmp_path / "wrong", settings=settings, **options).train()
    np.testing.assert_array_equal(run.load(0).correct.values, run.load(0).finished.values)
    assert (run.evaluation("some")["score"] < 1).any()
    assert run.evaluation("some").attrs == {"unfinished": "wrong"}


def test_step_zero_is_of_the_untrained_student(tmp_path, trainer_in, sharpened):
    student, teacher = sharpened(0), sharpened(1)
    untouched = copy.deepcopy(student)
    run = trainer_in(tmp_path, student=student, teacher=teacher).train()
    ds = run.load(0)
    row = 0
    prompts, responses = run.prompt_ids(0), run.response_ids(0)
    for prompt, response in zip(prompts, responses, strict=True):
        ids = torch.tensor([[*prompt.tolist(), *response.tolist()]])
        for m, model in enumerate((untouched, teacher)):
            with torch.no_grad():
                logp = model(input_ids=ids).logits[0].log_softmax(-1)
            for t, token in enumerate(response.tolist()):
                got = ds.sampled_logp[row + t, m].item()
                assert got == pytest.approx(logp[len(prompt) - 1 + t, token].item(), abs=1e-4)
        row += len(response)
    assert row == ds.sizes["state"]


def test_the_loss_is_the_recorded_divergence(tmp_path, trainer_in):
    """The token mean of Eq. 5, from the store alone."""
    run = trainer_in(tmp_path, settings={"max_steps": 1}).train()
    own = run.load(0).logp.sel(support="student").values.astype(float)
    p, q = (own[:, m] - np.log(np.exp(own[:, m]).sum(-1, keepdims=True)) for m in (0, 1))
    want = (np.exp(p) * (p - q)).sum(-1).mean()
    assert run.metrics.loss.item() == pytest.approx(want, rel=2e-3)  # the store rounds logp


def test_prompts_are_shuffled_and_none_is_left_out(tmp_path, trainer_in):
    run = trainer_in(tmp_path, settings={"max_steps": None, "num_train_epochs": 2}).train()
    assert run.steps == list(range(6))
    seen = [run.load(step).prompt_id.values.tolist() for step in run.steps]
    for epoch in (seen[:3], seen[3:]):
        assert sorted(itertools.chain(*epoch)) == sorted("001122334455")
    assert seen[:3] != seen[3:]


def test_a_batch_larger_than_the_data_is_the_data(tmp_path, trainer_in):
    run = trainer_in(tmp_path, settings={"batch_size": 64, "max_steps": None}).train()
    assert run.steps == [0]
    assert run.load(0).sizes["rollout"] == 12


@pytest.mark.parametrize(
    ("settings", "steps", "rollouts", "positions"),
    [
        ({"record_every": 2}, [0, 2], 4, 6),
        ({"record_every": 0}, [], 4, 6),
        ({"record_fraction": 0.5}, [0, 1, 2, 3], 2, 6),
        ({"record_fraction": 0.01}, [0, 1, 2, 3], 1, 6),
        ({"record_max_positions": 2}, [0, 1, 2, 3], 4, 2),
    ],
)
@pytest.mark.slow
def test_thinning_changes_the_record_and_nothing_else(
    tmp_path, settings, steps, rollouts, positions, trainer_in
):
    plain = trainer_in(tmp_path / "plain")
    thin = trainer_in(tmp_path / "thin", settings=settings)
    want, got = plain.train(), thin.train()
    assert got.steps == steps
    for step in steps:
        ds = got.load(step)
        assert ds.sizes["rollout"] == rollouts
        assert ds.position.max() < positions
        assert ds.sizes["state"] == np.minimum(ds.length, positions).sum()
    for name in ("loss", "grad_norm", "reverse_kl", "overlap_ratio"):
        np.testing.assert_array_equal(got.metrics[name], want.metrics[name])
    if not steps:
        assert thin.expected_bytes() == 0
    else:
        assert thin.expected_bytes() < plain.expected_bytes()


@pytest.mark.slow
def test_evaluation_at_first_last_and_every(tmp_path, trainer_in):
    run = trainer_in(
        tmp_path,
        grader=grade,
        eval_prompts={"two": PROBLEMS[:2], "all": PROBLEMS},
        settings={"eval_every": 3, "eval_n": 4},
    ).train()
    for name, n in (("two", 2), ("all", 3)):
        evaluation = run.evaluation(name)
        assert evaluation.step.values.tolist() == [0, 3, 4]
        assert evaluation.prompt_id.values.tolist() == [p.id for p in PROBLEMS[:n]]
        accuracy = run.metrics[f"accuracy/{name}"]
        assert accuracy.sel(step=[0, 3, 4]).values == pytest.approx(
            evaluation.score.mean("problem").values
        )
        assert np.isnan(accuracy.sel(step=[1, 2])).all()


# What is trained


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"objective": "full"},
        {"objective": "sampled", "estimator": "policy_gradient"},
        {"estimator": "policy_gradient"},
        {"support": "teacher", "tail": "bucket", "divergence": "jsd"},
        {"support": "union", "tail": "drop", "divergence": "forward_kl"},
        {"support": "overlap"},
        {"support": "non_overlap"},
    ],
)
@pytest.mark.slow
def test_micro_batches_change_nothing(tmp_path, settings, trainer_in, sharpened, assert_same_runs):
    runs, students = [], []
    for tokens in (10_000, 12, 1):
        student = sharpened(0)
        trainer = trainer_in(
            tmp_path / str(tokens),
            student=student,
            settings=settings
            | {"micro_batch_tokens": tokens, "max_steps": 2, "k": 16, "record_every": 0},
        )
        runs.append(trainer.train())
        students.append(weights(student))
    before = weights(sharpened(0))
    assert any(not torch.equal(before[name], students[0][name]) for name in before)
    for run, student in zip(runs[1:], students[1:], strict=True):
        assert_same_runs(run, runs[0], rtol=2e-4)
        for name, weight in student.items():
            # AdamW turns rounding into steps where a gradient is nearly zero, of at most the rate.
            torch.testing.assert_close(weight, students[0][name], rtol=0, atol=2e-3)
            assert (weight - students[0][name]).abs().mean() < 1e-5


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"objective": "full"},
        {"tail": "bucket"},
        {"estimator": "policy_gradient"},
        {"support": "teacher", "divergence": "forward_kl", "tail": "bucket"},
    ],
)
@pytest.mark.slow
def test_training_lowers_the_reverse_kl(tmp_path, settings, trainer_in):
    run = trainer_in(
        tmp_path,
        settings=settings | {"max_steps": 12, "learning_rate": 1e-2, "k": 16, "record_every": 0},
    ).train()
    kl = run.metrics.reverse_kl.values
    assert kl[-3:].mean() < 0.7 * kl[0]


@pytest.mark.parametrize("settings", [{}, {"objective": "full"}, {"estimator": "policy_gradient"}])
@pytest.mark.slow
def test_a_student_that_is_the_teacher_stays(tmp_path, settings, trainer_in, sharpened):
    student = sharpened(0)
    before = weights(student)
    # AdamW makes a full step out of a gradient that is only rounding, so the weights do move, by
    # the paper's rate of 1e-6 per step at most; from there the gradient leads back.
    trainer = trainer_in(
        tmp_path,
        student=student,
        teacher=copy.deepcopy(student),
        settings=settings | {"learning_rate": 1e-6},
    )
    metrics = trainer.train().metrics
    assert metrics.overlap_ratio[0] == 1
    assert metrics.overlap_token_advantage[0] == 0
    assert metrics.reverse_kl[0] == 0
    assert metrics.grad_norm[0] < 1e-5
    np.testing.assert_allclose(metrics.loss, 0, atol=1e-5)
    for name, weight in weights(student).items():
        torch.testing.assert_close(weight, before[name], rtol=0, atol=5e-6)


def test_the_teacher_does_not_change(tmp_path, trainer_in, sharpened):
    teacher = sharpened(1)
    before = weights(teacher)
    trainer_in(tmp_path, teacher=teacher, settings={"max_steps": 2}).train()
    assert all(torch.equal(before[name], weight) for name, weight in weights(teacher).items())
    assert all(p.grad is None for p in teacher.parameters())


@pytest.mark.slow
def test_padded_vocabularies_of_different_widths(tmp_path, trainer_in, sharpened):
    """Neither model's padding is sampled, compared or recorded."""
    trainer = trainer_in(
        tmp_path,
        student=sharpened(0, vocab_size=72),
        teacher=sharpened(1, vocab_size=96),
        settings={"objective": "full", "max_steps": 2, "k": 64},
        grader=grade,
        eval_prompts={"all": PROBLEMS},
    )
    run = trainer.train()
    for step in run.steps:
        ds = run.load(step)
        assert ds.token_id.max() == 63
        assert ds.sampled_id.max() < 64
        np.testing.assert_allclose(np.exp(ds.logp).sum("rank"), 1, rtol=1e-3)


class LargestTensor(TorchDispatchMode):
    """Note the largest tensor that any operation returns, also in the backward pass."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **kwargs or {})
        sizes = [x.numel() for x in tree_leaves(out) if isinstance(x, torch.Tensor)]
        self.largest = max([self.largest, *sizes])
        return out


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"tail": "bucket"},
        {"estimator": "policy_gradient"},
        {"objective": "full"},
        {"objective": "sampled", "estimator": "policy_gradient"},
    ],
)
@pytest.mark.slow
def test_no_tensor_spans_batch_time_and_vocabulary(
    tmp_path, monkeypatch, settings, trainer_in, sharpened
):
    vocabulary, rows = 4096, 4
    monkeypatch.setattr(tiles, "_CHUNK_ELEMENTS", rows * vocabulary)
    monkeypatch.setattr(score, "_TILE_ROWS", rows)
    monkeypatch.setattr(tiles, "_TILE_ELEMENTS", rows * 1024)
    monkeypatch.setattr(full_vocabulary, "_ROWS", rows)
    trainer = trainer_in(
        tmp_path,
        student=sharpened(0, vocabulary),
        teacher=sharpened(1, vocabulary),
        tokenizer=tiny_tokenizer(vocabulary),
        settings=settings | {"batch_size": 6, "max_completion_length": 8},
    )
    prompts = trainer._prompts_at(0)
    rollouts = sample(
        trainer.student,
        [p.ids for p in prompts],
        num_generations=2,
        max_completion_length=8,
        eos_ids=[],
        pad_id=0,
    )
    with LargestTensor() as seen:
        trainer._score_and_backward(rollouts)
    weight = vocabulary * trainer.student.config.hidden_size
    assert seen.largest == weight  # the head and its gradient; a chunk of logits is smaller
    assert rollouts.n_tokens * vocabulary > 5 * weight


# Callbacks, progress, bad input


def test_callbacks_are_called_in_order(tmp_path, trainer_in):
    calls = []

    class Watch(Callback):
        def __init__(self, name):
            self.name = name

        def on_train_begin(self, trainer):
            calls.append((self.name, "begin"))

        def on_step_end(self, trainer, step, metrics, dataset):
            assert dataset.step[0] == step
            assert metrics["loss"] == open_run(tmp_path).metrics.loss.sel(step=step)
            calls.append((self.name, step))

        def on_train_end(self, trainer, run):
            assert run.steps == [0, 1]
            calls.append((self.name, "end"))

    trainer = trainer_in(
        tmp_path, callbacks=[Watch("a"), Callback(), Watch("b")], settings={"max_steps": 2}
    )
    progress = []
    trainer.train(on_progress=lambda done, total: progress.append((done, total)))
    assert calls == [(name, event) for event in ("begin", 0, 1, "end") for name in "ab"]
    assert progress == [(0, 2), (1, 2), (2, 2)]


def test_a_callback_sees_all_states_whatever_is_recorded(tmp_path, trainer_in):
    sizes = []

    class Watch(Callback):
        def on_step_end(self, trainer, step, metrics, dataset):
            sizes.append(dataset.sizes["rollout"])

    trainer_in(
        tmp_path, callbacks=[Watch()], settings={"record_fraction": 0.5, "record_every": 3}
    ).train()
    assert sizes == [4, 4, 4, 4]


@pytest.mark.slow
def test_dropout_is_off(tmp_path, trainer_in, sharpened, assert_same_runs):
    student = sharpened(0).train()
    for layer in student.model.layers:
        layer.self_attn.attention_dropout = 0.5
    run = trainer_in(tmp_path / "run", student=student).train()
    assert_same_runs(run, trainer_in(tmp_path / "plain").train())


def test_a_teacher_of_nan_is_named_with_the_step(tmp_path, trainer_in, sharpened):
    teacher = sharpened(1)
    teacher.lm_head.weight.data[3] = torch.nan
    with pytest.raises(NonFiniteError, match="step 0: the teacher gave NaN or infinite logits"):
        trainer_in(tmp_path, teacher=teacher).train()
    assert open_run(tmp_path).steps == []


def test_a_student_that_diverges_is_named_with_the_step(tmp_path, trainer_in):
    class Spoil(Callback):
        def on_step_end(self, trainer, step, metrics, dataset):
            if step == 1:
                trainer.student.lm_head.weight.data[3] = torch.nan

    with pytest.raises(NonFiniteError, match="step 2: LlamaForCausalLM gave NaN"):
        trainer_in(tmp_path, callbacks=[Spoil()]).train()
    assert open_run(tmp_path).steps == [0, 1]


def test_bad_prompts_stop_the_run_unless_they_may_be_skipped(tmp_path, trainer_in):
    settings = {"max_prompt_length": 2, "max_steps": None, "batch_size": 1}
    with pytest.raises(PromptError, match=r"row 0 .*: 3 tokens, more than max_prompt_length 2"):
        trainer_in(tmp_path, settings=settings)
    trainer = trainer_in(tmp_path, settings=settings, on_error="skip")
    assert [p.prompt.id for p in trainer.prompts] == ["1", "2", "4", "5"]
    assert trainer.n_steps == 4


def test_k_is_at_most_the_vocabulary(tmp_path, trainer_in):
    with pytest.raises(ConfigError, match="k = 65; expected at most 64, the size"):
        trainer_in(tmp_path, settings={"k": 65})


def test_the_sampled_token_without_the_tail_is_warned_of(tmp_path, trainer_in, caplog):
    settings = {"objective": "sampled", "estimator": "policy_gradient"}
    trainer_in(tmp_path / "whole", settings=settings)
    assert not caplog.messages
    trainer_in(tmp_path / "cut", settings=settings | {"top_p": 0.8})
    (message,) = caplog.messages
    assert message.startswith("objective='sampled' with top_p = 0.8: tokens outside")


def test_tokenizers_must_agree(tmp_path, trainer_in):
    other = tiny_tokenizer(63)
    with pytest.raises(VocabularyError, match="first at id 63"):
        trainer_in(tmp_path, teacher_tokenizer=other)


def test_evaluation_needs_a_grader(tmp_path, trainer_in):
    with pytest.raises(ConfigError, match="evaluation needs a grader"):
        trainer_in(tmp_path, eval_prompts={"all": PROBLEMS})


def test_a_loaded_student_needs_its_tokenizer(tmp_path):
    with pytest.raises(ConfigError, match="pass tokenizer="):
        OPDTrainer(
            tiny_model(), tiny_model(), prompts=PROBLEMS, config=OPDConfig(), run_dir=tmp_path
        )


@pytest.mark.slow
def test_models_by_path(tmp_path, trainer_in, sharpened, assert_same_runs):
    for role, seed in (("student", 0), ("teacher", 1)):
        sharpened(seed).save_pretrained(tmp_path / role)
        tiny_tokenizer().save_pretrained(tmp_path / role)
    paths = {"student": tmp_path / "student", "teacher": str(tmp_path / "teacher")}
    run = trainer_in(tmp_path / "run", tokenizer=None, **paths).train()
    assert run.attrs["student"]["name"] == str(tmp_path / "student")
    # For a directory of a Qwen2 model, transformers uses Qwen's own pre-tokenizer.
    tokenizer = load_tokenizer(tmp_path / "student")
    assert_same_runs(run, trainer_in(tmp_path / "other", tokenizer=tokenizer).train())


def test_rollouts_depend_on_the_seed(tmp_path, trainer_in):
    a = trainer_in(tmp_path / "a", settings={"max_steps": 1}).train()
    b = trainer_in(tmp_path / "b", settings={"max_steps": 1, "seed": 1}).train()
    assert not np.array_equal(a.load(0).response_ids, b.load(0).response_ids)
