"""A server samples a student that is trained, and follows its weights."""

import copy
import json

import numpy as np
import pytest
import torch
import xarray as xr

from opdprobe import ConfigError, OPDConfig, OPDTrainer, Prompt, open_run, validate
from opdprobe.cli.parser import main
from opdprobe.errors import ModelError
from opdprobe.hooks.served import Connection, ServedModel
from opdprobe.testing import tiny_model, tiny_tokenizer

pytestmark = pytest.mark.slow

PROMPTS = [Prompt(str(i), text=f"{i} {i + 1}") for i in range(4)]
QUICK = Connection(timeout=20, tries=1, backoff=0.001, patience=0.05)
# Steps so large that the weights of the step before are another model.
SETTINGS = {
    **{"max_steps": 4, "batch_size": 2, "num_generations": 2, "max_completion_length": 6},
    **{"k": 4, "learning_rate": 0.05, "warmup_steps": 0, "record_every": 1, "save_steps": 1},
}


LOADS = {"sglang": "/update_weights_from_disk", "vllm": "/collective_rpc"}


def engine(serve, model, kind="sglang", dev=True, **settings):
    server = serve({"student": copy.deepcopy(model)}, engine=kind, **settings)
    server.dev = dev
    return server, ServedModel(server.address(), QUICK)


def trainer(models, run_dir, sampler, **changes):
    config = OPDConfig(**{**SETTINGS, **changes})
    student, teacher = (copy.deepcopy(model) for model in models.values())
    return OPDTrainer(
        student,
        teacher,
        tokenizer=tiny_tokenizer(),
        prompts=PROMPTS,
        config=config,
        run_dir=run_dir,
        sampler=sampler,
    )


@pytest.mark.parametrize("kind", LOADS)
def test_the_engine_follows_the_student(serve, models, tmp_path, kind):
    server, sampler = engine(serve, models["student"], kind)
    one = trainer(models, tmp_path / "run", sampler)
    run = one.train()
    assert run.steps == [0, 1, 2, 3]
    for step in run.steps:
        ds = run.load(step)
        validate(ds)
        assert "missing" not in ds.attrs
        own = ds.sampled_logp.sel(model="student")
        np.testing.assert_allclose(ds.sampler_logp, own, atol=1e-3)
    folder = str(tmp_path / "run" / "sampler")
    want = {
        "sglang": {"model_path": folder},
        "vllm": {"method": "reload_weights", "kwargs": {"weights_path": folder}},
    }
    loads = [body for path, body in server.asked if path == LOADS[kind] and body]
    assert loads == [want[kind]] * 4
    # The student did change, and the engine has the weights of the last step's beginning.
    before = models["student"].lm_head.weight
    assert (one.student.lm_head.weight - before).abs().max() > 0.1
    assert not torch.equal(server.models["student"].lm_head.weight, before)
    assert run.attrs["sampler"] == {"name": "student"}


def test_an_engine_that_keeps_old_weights_stops_the_run(serve, models, tmp_path):
    """It says that it loaded them, and does not."""
    _, sampler = engine(serve, models["student"])
    sampler.load_weights = lambda directory: None
    with pytest.raises(ModelError, match=r"expected less than 0\.05, which rounding explains"):
        trainer(models, tmp_path / "run", sampler).train()
    assert open_run(tmp_path / "run").steps == [0]


SMALL = {"learning_rate": 1e-3, "max_steps": 3}


def test_an_engine_that_takes_a_part_of_the_weights_stops_the_run(serve, models, tmp_path):
    """A small step changes the student by less than what rounding explains elsewhere."""
    server, sampler = engine(serve, models["student"], "vllm")
    server.kept = ("lm_head.weight",)
    with pytest.raises(ModelError, match=r"and was \S+ in the run's first step; .*all of the wei"):
        trainer(models, tmp_path / "run", sampler, **SMALL).train()
    run = open_run(tmp_path / "run")
    assert run.steps == [0]
    assert float(run.metrics["sampler_kl"][0]) < 1e-9


def test_how_close_the_engine_was_at_first_is_known_after_a_restart(serve, models, tmp_path):
    server, sampler = engine(serve, models["student"], "vllm")

    def kill(done, total):
        if done == 2:
            serve.stop(server)

    with pytest.raises(ModelError, match="refused; check that the server is up"):
        trainer(models, tmp_path / "run", sampler, **SMALL).train(on_progress=kill)
    new, _ = engine(serve, models["student"], "vllm", port=server.server_address[1])
    new.kept = ("lm_head.weight",)
    with pytest.raises(ModelError, match=r"and was \S+ in the run's first step"):
        trainer(models, tmp_path / "run", sampler, **SMALL).train()
    assert open_run(tmp_path / "run").steps == [0, 1]


def test_vllm_forgets_its_prefix_cache_with_the_weights(serve, models, tmp_path):
    server, sampler = engine(serve, models["student"], "vllm")
    server.busy = 2  # its cache is in use twice
    models["teacher"].save_pretrained(tmp_path)
    sampler = ServedModel(server.address(), Connection(timeout=20, backoff=0.001))
    sampler.load_weights(tmp_path)
    asked = [path for path, body in server.asked if body is not None]
    assert asked == [
        *("/update_weight_version", "/collective_rpc"),  # one that is lost between has no name
        *["/reset_prefix_cache"] * 3,
    ]
    assert torch.equal(server.models["student"].lm_head.weight, models["teacher"].lm_head.weight)
    server.busy = 100
    with pytest.raises(ModelError, match=r"keeps its prefix cache .*--no-enable-prefix-caching"):
        sampler.load_weights(tmp_path)


@pytest.mark.parametrize("kind", LOADS)
def test_a_run_whose_engine_was_killed_is_resumed(serve, models, tmp_path, kind):
    server, sampler = engine(serve, models["student"], kind)
    one = trainer(models, tmp_path / "run", sampler)

    def kill(done, total):
        if done == 2:
            serve.stop(server)

    with pytest.raises(ModelError, match="refused; check that the server is up"):
        one.train(on_progress=kill)
    assert open_run(tmp_path / "run").steps == [0, 1]
    # The new server has the weights that it was started with, until it is told others.
    engine(serve, models["teacher"], kind, port=server.server_address[1])
    run = trainer(models, tmp_path / "run", sampler).train()
    assert run.steps == [0, 1, 2, 3]
    for step in run.steps:
        ds = run.load(step)
        own = ds.sampled_logp.sel(model="student")
        np.testing.assert_allclose(ds.sampler_logp, own, atol=1e-3)


@pytest.mark.parametrize("when", ["load", "draw", "has_loaded"])
def test_a_step_whose_engine_was_started_again_is_sampled_again(
    serve, models, tmp_path, caplog, when
):
    """The new server has its first weights; the run is that of a server that stayed up."""
    first = copy.deepcopy(models["student"].state_dict())
    kept = trainer(models, tmp_path / "kept", engine(serve, models["student"], "vllm")[1]).train()
    server, sampler = engine(serve, models["student"], "vllm")
    asks, calls = getattr(sampler.engine, when), iter(range(100))

    def start_again():
        if next(calls) == 3:
            server.version = "default"
            server.models["student"].load_state_dict(first)

    def ask(*given):
        if when != "load":
            start_again()
        answer = asks(*given)
        if when == "load":
            start_again()
        return answer

    setattr(sampler.engine, when, ask)
    run = trainer(models, tmp_path / "run", sampler).train()
    assert caplog.text.count("was restarted while it sampled") == 1
    assert run.steps == [0, 1, 2, 3]
    for step in run.steps:
        xr.testing.assert_equal(run.load(step).load(), kept.load(step).load())


def test_an_engine_that_never_keeps_its_weights(serve, models, tmp_path):
    server, sampler = engine(serve, models["student"], "vllm")
    sampler.engine.has_loaded = lambda: False
    with pytest.raises(ModelError, match=r"lost the weights that it had loaded 3 times in"):
        trainer(models, tmp_path / "run", sampler).train()
    assert sum(path == "/collective_rpc" and body is not None for path, body in server.asked) == 3


def test_an_older_vllm_does_not_name_its_weights(serve, models, tmp_path):
    server, sampler = engine(serve, models["student"], "vllm")
    server.version = None
    assert trainer(models, tmp_path / "run", sampler, max_steps=1).train().steps == [0]
    assert "/weight_info" not in {path for path, _ in server.asked}


def test_the_command_line(serve, models, checkpoint, tmp_path, capsys):
    server, _ = engine(serve, models["student"])
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": p.text}) + "\n" for p in PROMPTS))
    words = ["train", "--student", checkpoint["student"], "--teacher", checkpoint["teacher"]]
    words += ["--prompts", prompts, "--run-dir", tmp_path / "run", "--sampler", server.address()]
    for name, value in (SETTINGS | {"max_steps": 1}).items():
        words += ["--set", f"{name}={value}"]
    assert main([str(word) for word in [*words, "--json"]]) == 0
    assert json.loads(capsys.readouterr().out)["sampler_kl"] < 1e-4
    assert any(path == "/update_weights_from_disk" for path, _ in server.asked)


@pytest.mark.parametrize("kind", LOADS)
def test_weights_that_do_not_fit_the_engine(serve, models, tmp_path, kind):
    _, sampler = engine(serve, tiny_model(32), kind)
    with pytest.raises(ModelError, match=r"did not load .*sampler \(.*Failed to update weights"):
        trainer(models, tmp_path / "run", sampler).train()
    with pytest.raises(ModelError, match=r"did not load .*no weights in"):
        sampler.load_weights(tmp_path)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("vllm", {}, r"does not take a trained .* development mode \(VLLM_SERVER_DEV_MODE=1\)"),
        ("sglang", {"temperature": 0.7}, r"temperature = 0\.7 and top_p = 1.* expected 1 for both"),
        ("sglang", {"top_p": 0.9}, r"top_p = 0\.9 with an engine as sampler"),
    ],
)
def test_engines_and_settings_that_do_not_fit(serve, models, tmp_path, kind, changes, message):
    server, sampler = engine(serve, models["student"], kind, dev=False)
    with pytest.raises(ConfigError, match=message):
        trainer(models, tmp_path / "run", sampler, **changes)
    assert {path for path, body in server.asked if body is not None} == set()
    assert not (tmp_path / "run").exists()
