"""Several teachers: each rollout is scored by the one that its prompt names."""

from shutil import copytree

import numpy as np
import pytest
import torch

from opdprobe import (
    Callback,
    ConfigError,
    OPDConfig,
    OPDTrainer,
    Prompt,
    PromptError,
    VocabularyError,
    curves,
    open_run,
    probe_checkpoints,
    validate,
)
from opdprobe.models.load import identity
from opdprobe.report.by_teacher import teacher_rows
from opdprobe.report.course import course
from opdprobe.rollout import teachers as teachers_module
from opdprobe.rollout.once import probe
from opdprobe.rollout.pair import Pair
from opdprobe.rollout.prompts import encode_prompts
from opdprobe.rollout.teachers import TeacherPairs
from opdprobe.testing import tiny_model, tiny_tokenizer

PROMPTS = [
    Prompt(name, text=text, meta={"domain": domain})
    for name, text, domain in [
        ("a", "7 8", "math"),
        ("b", "9", "code"),
        ("c", "10 11 12 13", "math"),
        ("d", "3 4", "code"),
    ]
]
SAMPLING = {"num_generations": 2, "k": 4, "max_completion_length": 6}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A student and two teachers on disk."""
    paths = {}
    for seed, name in enumerate(("student", "math", "code")):
        path = tmp_path_factory.mktemp("models") / name
        model = tiny_model(seed=seed)
        model.lm_head.weight.data *= 20
        model.save_pretrained(path)
        tiny_tokenizer().save_pretrained(path)
        paths[name] = path
    return paths


def teachers(saved):
    return {name: saved[name] for name in ("math", "code")}


def several(saved, **settings):
    return TeacherPairs(saved["student"], teachers(saved), by="domain", device="cpu", **settings)


@pytest.mark.parametrize("one_at_a_time", [False, True])
@pytest.mark.parametrize("context", [None, {"teacher": ("21 22", "23", None, "24")}])
def test_each_rollout_is_scored_by_its_own_teacher(saved, one_at_a_time, context):
    """The oracle: the prompts of a teacher, probed with this teacher alone."""
    prompts = PROMPTS
    if context:
        prompts = [
            Prompt(p.id, text=p.text, meta=p.meta, teacher=own)
            for p, own in zip(PROMPTS, context["teacher"], strict=True)
        ]
    pair = several(saved, one_at_a_time=one_at_a_time)
    encoded = encode_prompts(pair.tokenizer, prompts)
    step = probe(pair, encoded, micro_batch_tokens=24, **SAMPLING)
    validate(step)
    assert step.label.values[:, 0].tolist() == [
        name for name in ("math", "code", "math", "code") for _ in range(2)
    ]
    for name, path in teachers(saved).items():
        alone = probe(Pair.load(saved["student"], path, device="cpu"), encoded, **SAMPLING)
        own = step.label.values[step.rollout.values, 0] == name
        assert own.any()
        for variable in ("token_id", "sampled_id", "position"):
            np.testing.assert_array_equal(step[variable][own], alone[variable][own])
        for variable in ("logp", "entropy", "reverse_kl", "sampled_logp", "stop_logp"):
            np.testing.assert_allclose(
                step[variable][own], alone[variable][own], rtol=1e-4, atol=1e-5
            )


def train(saved, path, prompts=PROMPTS, **settings):
    more = {"callbacks": settings.pop("callbacks", [])}
    if settings.pop("one_at_a_time", False):
        more["one_teacher_at_a_time"] = True
    given = settings.pop("teacher", teachers(saved))
    config = OPDConfig(
        **{
            "teacher_by": "domain", "k": 4, "batch_size": 4, "num_generations": 2,
            "max_completion_length": 5, "max_steps": 3, "learning_rate": 1e-3, **settings,
        }
    )  # fmt: skip
    trainer = OPDTrainer(
        saved["student"], given, prompts=prompts, config=config, run_dir=path, device="cpu", **more
    )
    return trainer, trainer.train()


def weights(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.student.parameters()])


@pytest.mark.parametrize("objective", ["topk", "full"])
def test_where_all_prompts_name_one_teacher_the_run_is_its_own(saved, tmp_path, objective):
    same = [Prompt(p.id, text=p.text, meta={"domain": "code"}) for p in PROMPTS]
    two, run = train(saved, tmp_path / "two", same, objective=objective)
    one, alone = train(
        saved, tmp_path / "one", same, objective=objective, teacher=saved["code"], teacher_by=None
    )
    assert torch.equal(weights(one), weights(two))
    for step in run.steps:
        left = run.load(step).drop_vars(["label", "label_name"])
        assert left.identical(alone.load(step))


def test_the_gradient_is_the_sum_of_both_teachers(saved, tmp_path):
    """A step of both is not that of either, in memory together or one after the other."""
    both, run = train(saved, tmp_path / "both", max_steps=1)
    lazy, again = train(saved, tmp_path / "lazy", max_steps=1, one_at_a_time=True)
    assert torch.equal(weights(both), weights(lazy))
    assert run.load(0).identical(again.load(0))
    for name in teachers(saved):
        alone = [Prompt(p.id, text=p.text, meta={"domain": name}) for p in PROMPTS]
        assert not torch.equal(weights(train(saved, tmp_path / name, alone, max_steps=1)[0]),
                               weights(both))  # fmt: skip


def test_the_run_names_its_teachers(saved, tmp_path):
    _, run = train(saved, tmp_path, max_steps=1)
    recorded = open_run(tmp_path).attrs["teacher"]
    assert recorded["name"] == "math: math, code: code"
    assert recorded["by"] == "domain"
    assert set(recorded["teachers"]) == {"math", "code"}
    frame = run.to_dataframe(0, by="rollout")
    assert frame.label_teacher.tolist()[:8:2] == [
        str(p.meta["domain"])
        for p in sorted(PROMPTS, key=lambda p: list(run.load(0).prompt_id.values[::2]).index(p.id))
    ]


@pytest.mark.parametrize("one_at_a_time", [False, True])
def test_a_resumed_run_is_the_same(saved, tmp_path, one_at_a_time):
    class Stop(Callback):
        def on_step_end(self, trainer, step, metrics, dataset):
            if step == 1:
                raise KeyboardInterrupt

    whole, run = train(saved, tmp_path / "whole", save_steps=1, one_at_a_time=one_at_a_time)
    with pytest.raises(KeyboardInterrupt):
        train(
            saved, tmp_path / "cut", save_steps=1, one_at_a_time=one_at_a_time, callbacks=[Stop()]
        )
    resumed, again = train(saved, tmp_path / "cut", save_steps=1, one_at_a_time=one_at_a_time)
    assert torch.equal(weights(whole), weights(resumed))
    for step in run.steps:
        assert run.load(step).identical(again.load(step))


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ({}, r"row 1 \(id 'x'\): no column 'domain' to choose a teacher by; its columns: none"),
        ({"domain": "law"}, "domain is 'law'; expected one of 'math', 'code'"),
    ],
)
def test_a_prompt_that_names_no_teacher(saved, meta, message):
    pair = several(saved)
    rows = [PROMPTS[0], Prompt("x", text="5", meta=meta)]
    with pytest.raises(PromptError, match=message):
        pair.taught(rows)
    assert pair.taught(rows, "skip") == [PROMPTS[0]]


def test_teachers_that_cannot_be(saved, tmp_path):
    with pytest.raises(ConfigError, match="2 teachers by name and no teacher_by; expected the col"):
        train(saved, tmp_path, teacher_by=None)
    with pytest.raises(ConfigError, match="teacher_by = 'domain' with a single teacher"):
        train(saved, tmp_path, teacher=saved["math"])
    with pytest.raises(ConfigError, match=r"1 teacher by name .'math'.; expected two or more"):
        train(saved, tmp_path, teacher={"math": saved["math"]})
    loaded = {"math": saved["math"], "code": tiny_model(seed=2)}
    with pytest.raises(ConfigError, match="a teacher is already loaded; expected names or paths"):
        train(saved, tmp_path, teacher=loaded, one_at_a_time=True)


def test_files_that_changed_under_a_run(saved, tmp_path, monkeypatch):
    paths = {name: tmp_path / name for name in ("math", "code")}
    for name, path in paths.items():
        tiny_model(seed=5).save_pretrained(path)
        tiny_tokenizer().save_pretrained(path)
        assert name
    pair = TeacherPairs(saved["student"], paths, by="domain", one_at_a_time=True, device="cpu")
    hashed = []
    monkeypatch.setattr(teachers_module, "identity", lambda m: hashed.append(m) or identity(m))
    pair.of("code")
    pair.of("math")
    assert not hashed  # the files are as they were
    (paths["code"] / "model.safetensors").touch()
    pair.of("code")
    assert len(hashed) == 1  # written again with the same weights
    pair.of("math")
    tiny_model(seed=6).save_pretrained(paths["code"])
    with pytest.raises(ConfigError, match="the files of teacher 'code' have changed"):
        pair.of("code")


def test_every_teacher_has_its_own_tokenizer(saved, tmp_path):
    """The first one's, given by the caller, is not taken for the others'."""
    other = tmp_path / "code"
    tiny_model(seed=2, vocab_size=64).save_pretrained(other)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "<bos>" + tokenizer.chat_template
    tokenizer.save_pretrained(other)
    given = {"math": saved["math"], "code": other}
    first = {"teacher_tokenizer": tiny_tokenizer(), "device": "cpu", "by": "domain"}
    with pytest.raises(ConfigError, match="the chat templates of teachers 'math' and 'code' diff"):
        TeacherPairs(saved["student"], given, own_template=True, **first)
    tiny_tokenizer(60).save_pretrained(other)
    with pytest.raises(VocabularyError, match="first at id 60"):
        TeacherPairs(saved["student"], given, **first)


def test_curves_and_report_by_teacher(saved, tmp_path):
    """Each teacher's curve is that of its rollouts alone."""
    _, run = train(saved, tmp_path / "run")
    for by, bins in (("step", None), ("position", None), ("position", 2)):
        found = curves(run, ["overlap_ratio", "reverse_kl"], by=by, bins=bins, label="teacher")
        assert found.teacher.values.tolist() == ["code", "math"]
        together = curves(run, ["overlap_ratio", "reverse_kl"], by=by, bins=bins)
        np.testing.assert_array_equal(found.n.sum("teacher"), together.n)
        np.testing.assert_array_equal(found.n_rollouts.sum("teacher"), together.n_rollouts)
    found = curves(run, ["overlap_ratio", "reverse_kl"], label="teacher")
    for step in run.steps:
        ds = run.load(step)
        for name in ("math", "code"):
            own = ds.label.values[ds.rollout.values, 0] == name
            here = found.value.sel(step=step, teacher=name)
            assert here.sel(probe="reverse_kl") == pytest.approx(ds.reverse_kl.values[own].mean())
            overlap = ds.opd.overlap_ratio().values[own].mean()
            assert here.sel(probe="overlap_ratio") == pytest.approx(overlap)
    rows = dict(teacher_rows([run], [course(run)]))
    assert len(rows) == 6  # two teachers, and no grades
    first = found.value.sel(probe="overlap_ratio", teacher="math").values[0]
    ((shown, _),) = rows["Overlap ratio, teacher math"]
    assert float(shown.split()[0]) == pytest.approx(first, abs=6e-3)


def test_a_label_that_a_run_does_not_have(saved, tmp_path):
    _, run = train(saved, tmp_path / "run", max_steps=1)
    with pytest.raises(ConfigError, match=r"label = 'domain'; expected one of .*: 'teacher'"):
        curves(run, ["reverse_kl"], label="domain")
    with pytest.raises(ConfigError, match="label = 'teacher' with a Dataset; expected a run"):
        curves(run.load(0), ["reverse_kl"], label="teacher")


@pytest.mark.parametrize("one_at_a_time", [False, True])
def test_checkpoints_are_probed_with_several(saved, tmp_path, one_at_a_time):
    folders = [tmp_path / f"checkpoint-{step}" for step in (1, 2)]
    for folder, name in zip(folders, ("student", "math"), strict=True):
        copytree(saved[name], folder)
    run = probe_checkpoints(
        folders, teachers(saved), PROMPTS, tmp_path / "run",
        teacher_by="domain", one_teacher_at_a_time=one_at_a_time, device="cpu", **SAMPLING,
    )  # fmt: skip
    assert run.steps == [1, 2]
    step = run.load(2)
    own = step.label.values[step.rollout.values, 0] == "math"
    assert float(abs(step.reverse_kl[own]).max()) < 1e-6  # the checkpoint is this teacher itself
    assert float(step.reverse_kl[~own].mean()) > 0.1
    with pytest.raises(ConfigError, match="several teachers beside fixed_contexts"):
        probe_checkpoints(
            folders, teachers(saved), None, tmp_path / "fixed", fixed_contexts=run, device="cpu"
        )
