"""An engine samples in the student's place: it must be the student, and local models score."""

import json

import numpy as np
import pytest

from opdprobe import ConfigError, Prompt, VocabularyError, open_run, validate
from opdprobe.cli.parser import main
from opdprobe.errors import ModelError
from opdprobe.hooks import probe_checkpoints
from opdprobe.hooks.served import Connection, ServedModel, probe_served
from opdprobe.preflight import preflight
from opdprobe.rollout.engine import check_sampler, sample_with
from opdprobe.testing import tiny_model, tiny_tokenizer

WIDTH = 64
QUICK = Connection(timeout=20, backoff=0.001)
PROMPTS = [Prompt("a", text="7 8"), Prompt("b", text="9")]
SETTINGS = {"num_generations": 3, "max_completion_length": 6}


def sampler(serve, model, kind="vllm", **changes):
    server = serve({"student": model}, engine=kind)
    for name, value in changes.items():
        setattr(server, name, value)
    return server, ServedModel(server.address(), QUICK)


def drawn(engine, **settings):
    return sample_with(engine, [[7, 8], [9]], **SETTINGS, seed=(0,), width=WIDTH, **settings)


def log_probabilities(model, rollouts):
    """The model's own, token by token, from ServedModel's independent scoring."""
    return model.tell(rollouts, k=1, width=WIDTH).sampled_logp


# --- is it the student? ---


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
def test_the_students_own_engine_passes(serve, models, kind):
    _, engine = sampler(serve, models["student"], kind)
    rollouts = drawn(engine)
    check_sampler(engine, log_probabilities(engine, rollouts), rollouts)


@pytest.mark.parametrize(("shift", "fine"), [(0.04, True), (-0.04, True), (0.06, False)])
def test_the_limit_is_on_the_mean_difference(serve, models, shift, fine):
    _, engine = sampler(serve, models["student"])
    rollouts = drawn(engine)
    logp = log_probabilities(engine, rollouts) + shift
    if fine:
        check_sampler(engine, logp, rollouts)
        return
    with pytest.raises(ModelError, match=r"by 0.06 nats on average .*expected less than 0.05"):
        check_sampler(engine, logp, rollouts)


@pytest.mark.parametrize(
    ("shift", "first", "fine"),
    [
        (1e-3, 1e-12, True),  # two libraries in float32
        (3e-3, 1e-12, False),
        (0.04, 9e-9, False),
        (0.04, 1e-7, True),  # an engine in bfloat16, and a student that was sure of its tokens
        (0.04, None, True),
    ],
)
def test_an_exact_engine_of_a_student_in_training_stays_exact(serve, models, shift, first, fine):
    _, engine = sampler(serve, models["student"])
    rollouts = drawn(engine)
    logp = log_probabilities(engine, rollouts)
    logp += shift * np.sign(np.arange(logp.size) % 2 - 0.5)  # KL: half of the square
    if fine:
        check_sampler(engine, logp, rollouts, first_kl=first)
        return
    message = f"is {shift**2 / 2:.2g} nats, and was {first:.2g} in the run's first step; .* 1e-06"
    with pytest.raises(ModelError, match=message):
        check_sampler(engine, logp, rollouts, first_kl=first)


def test_another_models_engine_is_refused_with_the_numbers(serve, models):
    """The student gives what the engine drew nothing at all, at worst."""
    _, engine = sampler(serve, models["teacher"])
    rollouts = drawn(engine)
    _, student = sampler(serve, models["student"])
    logp = log_probabilities(student, rollouts)
    gap = np.abs(logp - log_probabilities(engine, rollouts)).mean()
    with pytest.raises(ModelError, match=f"{rollouts.n_tokens} tokens .* by {gap:.3g} nats on"):
        check_sampler(engine, logp, rollouts)
    with pytest.raises(ModelError, match="expected less than"):
        check_sampler(engine, np.full(rollouts.n_tokens, -np.inf), rollouts)


@pytest.mark.parametrize(
    ("changes", "settings", "error", "message"),
    [
        ({}, {"temperature": 0.7}, ConfigError, "temperature = 0.7 with an engine .* expected 1"),
        (
            {"alter": lambda answer: answer["choices"][0].update(logprobs=None)},
            {},
            ModelError,
            "does not report the log-probabilities that it drew tokens with",
        ),
        (
            {"alter": lambda answer: answer["choices"][0]["token_ids"].__setitem__(0, WIDTH)},
            {},
            VocabularyError,
            "drew token 64, and student and teacher share 64 tokens",
        ),
        (
            {"alter": lambda answer: answer["choices"][0]["logprobs"]["token_logprobs"].pop()},
            {},
            ModelError,
            r"reports \d log-probabilities of \d drawn tokens",
        ),
    ],
    ids=["temperature", "silent", "padding", "short"],
)
def test_engines_that_cannot_sample(serve, models, changes, settings, error, message):
    _, engine = sampler(serve, models["student"], **changes)
    with pytest.raises(error, match=message):
        drawn(engine, **settings)


# --- probing with one ---


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["vllm", "sglang"])
def test_a_probe_with_an_engine_lacks_nothing(serve, models, checkpoint, tmp_path, kind):
    server, engine = sampler(serve, models["student"], kind)
    run = probe_checkpoints(
        *(checkpoint["student"], checkpoint["teacher"], PROMPTS, tmp_path / "run"),
        k=4,
        **SETTINGS,
        sampler=engine,
    )
    assert run.attrs["sampler"] == {"name": "student"}
    ds = run.load(0)
    validate(ds)
    assert "missing" not in ds.attrs
    assert np.isfinite(ds.reverse_kl).all()
    np.testing.assert_allclose(ds.sampler_logp, ds.sampled_logp.sel(model="student"), atol=1e-4)
    assert abs(float(run.metrics["sampler_gap"].values[-1])) < 1e-4
    asked = [path for path, _ in server.asked if path != "/v1/models"]
    assert len(asked) == (len(PROMPTS) if kind == "vllm" else len(PROMPTS) * 3)


@pytest.mark.slow
def test_nothing_of_another_model_is_recorded(serve, models, checkpoint, tmp_path):
    _, engine = sampler(serve, models["teacher"])
    where = (checkpoint["student"], checkpoint["teacher"], PROMPTS, tmp_path / "run")
    with pytest.raises(ModelError, match=r"expected less than 0\.05"):
        probe_checkpoints(*where, k=4, **SETTINGS, sampler=engine)
    assert open_run(tmp_path / "run").steps == []


@pytest.mark.slow
def test_an_engine_samples_and_another_scores(serve, models, checkpoint, tmp_path):
    _, engine = sampler(serve, models["student"])
    teacher = ServedModel(serve({"teacher": models["teacher"]}).address(), QUICK)
    where = (checkpoint["student"], teacher, PROMPTS, tmp_path / "run")
    ds = probe_served(*where, k=4, **SETTINGS, sampler=engine).load(0)
    validate(ds)
    assert ds.attrs["missing"] == ["teacher"]
    np.testing.assert_allclose(ds.sampler_logp, ds.sampled_logp.sel(model="student"), atol=1e-4)
    with pytest.raises(ConfigError, match="as sampler; expected one local checkpoint"):
        probe_served(engine, *where[1:], k=4, sampler=engine)


@pytest.mark.slow
def test_an_engine_holds_the_weights_of_one_checkpoint(serve, models, checkpoint, tmp_path):
    _, engine = sampler(serve, models["student"])
    folders = [tmp_path / f"checkpoint-{step}" for step in (1, 2)]
    for folder in folders:
        tiny_model().save_pretrained(folder)
    with pytest.raises(ConfigError, match="as sampler beside 2 checkpoints; expected one"):
        probe_checkpoints(folders, checkpoint["teacher"], PROMPTS, tmp_path / "run", sampler=engine)


@pytest.mark.slow
def test_a_preflight_with_an_engine(serve, models):
    server, engine = sampler(serve, models["student"])
    settings = {"tokenizer": tiny_tokenizer(), "k": 4, **SETTINGS}
    found = preflight(*models.values(), PROMPTS, sampler=engine, **settings)
    assert found.rollouts.sampler_logp is not None
    assert found.settings["sampler"] == "student"
    assert any(path == "/v1/completions" for path, _ in server.asked)
    _, other = sampler(serve, models["teacher"])
    with pytest.raises(ModelError, match=r"expected less than 0\.05"):
        preflight(*models.values(), PROMPTS, sampler=other, **settings)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["probe", "preflight"])
def test_the_command_line(serve, models, checkpoint, tmp_path, capsys, command):
    server, _ = sampler(serve, models["student"])
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": p.text}) + "\n" for p in PROMPTS))
    student = [str(checkpoint["student"])]
    rest = ["--run-dir", str(tmp_path / "run")] if command == "probe" else []
    student = student if command == "probe" else ["--student", *student]
    sizes = ["--k", "4", "--num-generations", "2", "--max-completion-length", "5", "--json"]
    rest += ["--teacher", str(checkpoint["teacher"]), "--prompts", str(prompts), *sizes]
    assert main([command, *student, *rest, "--sampler", server.address()]) == 0
    found = json.loads(capsys.readouterr().out)
    assert any(path == "/v1/completions" for path, _ in server.asked)
    if command == "probe":
        assert abs(found["sampler_gap"]) < 1e-4
        assert main([command, server.address(), *rest, "--sampler", server.address()]) == 1
        assert "--sampler with a served student" in capsys.readouterr().err
