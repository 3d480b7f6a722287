"""The command line: what it prints, where, and its exit code."""

import json
import re
import subprocess
import sys
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from analyses.results import Claim, Meta, Results, save
from opdprobe import open_run
from opdprobe.cli import preflight as preflight_command
from opdprobe.cli import recipes as recipe_commands
from opdprobe.cli import runs as commands
from opdprobe.cli import viewing
from opdprobe.cli.parser import main
from opdprobe.models.load import load_model, load_tokenizer, weight_hash
from opdprobe.report.panel import Panel, Series
from opdprobe.store import RunWriter
from opdprobe.testing import synthetic_run, synthetic_step, tiny_model, tiny_tokenizer
from opdprobe.testing.testbed import members, zoo

MODELS = ["--student", "zoo:sft-small", "--teacher", "zoo:rl-small"]
SETTINGS = {"batch_size": 2, "max_completion_length": 8, "k": 4, "max_steps": 2, "eval_n": 1}
SET = [part for name, value in SETTINGS.items() for part in ("--set", f"{name}={value}")]


def train(run_dir, *extra, models=MODELS, prompts="zoo:train"):
    data = ["--prompts", str(prompts), "--limit", "4"]
    return main(["train", *models, *data, "--run-dir", str(run_dir), *extra])


def failed(capsys, code):
    """Return the reason that a failed command gave: one line on stderr, below that on memory."""
    assert code == 1
    out, err = capsys.readouterr()
    (line,) = (line for line in err.splitlines() if not line.startswith("memory: about "))
    assert line.startswith("error: ")
    assert "Traceback" not in err
    return line.removeprefix("error: "), out


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A run of two steps, evaluated, made by the command itself."""
    path = tmp_path_factory.mktemp("runs") / "run [a]"  # brackets are markup to a terminal library
    assert train(path, *SET, "--benchmark", "zoo:medium") == 0
    return path


# train


def test_train_records_a_run_and_shows_it(run_dir, capsys):
    run = open_run(run_dir)
    assert run.steps == [0, 1]
    assert {name: run.config[name] for name in SETTINGS} == SETTINGS
    assert run.evaluation("test").sizes == {"step": 2, "problem": 4}
    assert Path(run.attrs["student"]["name"]).name == "sft-small"
    # A finished run is only opened, and shown again.
    before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    assert train(run_dir, *SET, "--benchmark", "zoo:medium") == 0
    assert before == {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    out, err = capsys.readouterr()
    assert f"2 steps, recorded in {run_dir}; the store will take at most " in out
    assert "overlap_ratio" in out
    assert "accuracy/test" in out
    (line,) = err.splitlines()  # no bars where stderr is no terminal
    assert re.match(
        r"memory: about \d+ MB of .* free on cpu: weights 1 MB \(student float32, ", line
    )


def test_train_with_several_teachers(tmp_path, capsys):
    rows = [
        {"prompt": "add 1 2 3 4 5", "answer": "15", "domain": "easy"},
        {"prompt": "add 6 7 8 9 1", "answer": "31", "domain": "hard"},
    ]
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    named = ["--teacher", "easy=zoo:rl-small", "--teacher", "hard=zoo:sft-large"]
    models = ["--student", "zoo:sft-small", *named]
    by = ["--teacher-by", "domain"]
    assert train(tmp_path / "run", *SET, *by, models=models, prompts=path) == 0
    _, err = capsys.readouterr()
    assert re.search(r"memory: about .*, 2 teachers float32", err)
    run = open_run(tmp_path / "run")
    assert run.attrs["teacher"]["name"] == "easy: rl-small, hard: sft-large"
    assert set(run.load(0).label.values[:, 0].tolist()) == {"easy", "hard"}
    assert run.config["teacher_by"] == "domain"
    probed = ["probe", "zoo:sft-small", *named, *by, "--prompts", str(path), "--run-dir"]
    more = ["--one-teacher-at-a-time", "--num-generations", "1", "--max-completion-length", "8"]
    assert main([*probed, str(tmp_path / "probed"), *more]) == 0
    assert open_run(tmp_path / "probed").load(0).label.values[:, 0].tolist() == ["easy", "hard"]
    assert "2 teachers, one at a time, float32" in capsys.readouterr().err
    assert main(["report", str(tmp_path / "run"), "--out", str(tmp_path / "r.html")]) == 0
    assert "Overlap ratio, teacher hard" in (tmp_path / "r.html").read_text()
    capsys.readouterr()
    assert train(tmp_path / "no", *SET, models=models, prompts=path) == 1
    assert "2 teachers; expected one, or --teacher NAME=MODEL" in capsys.readouterr().err


def test_train_as_json(run_dir, capsys):
    assert train(run_dir, *SET, "--benchmark", "zoo:medium", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["run_dir"] == str(run_dir)
    assert printed["loss"] == open_run(run_dir).metrics.loss.sel(step=1).item()
    assert printed["accuracy/test"] == open_run(run_dir).metrics["accuracy/test"].values[-1]


def test_settings_come_from_the_file_and_set_overrides_them(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({**SETTINGS, "seed": 7, "max_steps": 5}))
    more = ["--config", str(config), "--set", "max_steps=1", "--set", "learning_rate=1e-5"]
    assert train(tmp_path / "run", *more, "--set", "record_max_positions=null") == 0
    run = open_run(tmp_path / "run")
    assert (run.config["seed"], run.config["max_steps"]) == (7, 1)
    assert run.config["learning_rate"] == 1e-5  # which YAML alone would read as text
    assert run.metrics.learning_rate.item() == pytest.approx(1e-5)


def test_an_interrupted_run_goes_on(run_dir, tmp_path, monkeypatch, capsys):
    from opdprobe.train.trainer import OPDTrainer

    settings, step = [*SET, "--benchmark", "zoo:medium", "--set", "save_steps=1"], OPDTrainer._step

    def interrupted(self, at, writer):
        if at == 1:
            raise KeyboardInterrupt
        return step(self, at, writer)

    with monkeypatch.context() as patch:
        patch.setattr(OPDTrainer, "_step", interrupted)
        assert train(tmp_path / "run", *settings) == 130
    assert "the same command resumes from the last checkpoint" in capsys.readouterr().err
    assert open_run(tmp_path / "run").steps == [0]
    assert train(tmp_path / "run", *settings) == 0
    for at in (0, 1):
        assert open_run(tmp_path / "run").load(at).identical(open_run(run_dir).load(at))


@pytest.mark.parametrize(
    ("arguments", "goes_on"),
    [
        (["view", "RUN"], False),
        (["preflight", "--student", "S", "--teacher", "T", "--prompts", "P"], False),
        (["zoo", "list"], False),
        (["zoo", "build"], True),
        (["reproduce"], True),
        (["probe", "C", "--teacher", "T", "--prompts", "P", "--run-dir", "R"], True),
        (["cold-start", "--student", "S", "--teacher", "T", "--prompts", "P", "--out", "O"], True),
    ],
)
def test_only_what_goes_on_says_so(monkeypatch, capsys, arguments, goes_on):
    def interrupted(_):
        raise KeyboardInterrupt

    name = arguments[0].replace("-", "_")
    elsewhere = {
        "cold_start": recipe_commands, "view": viewing, "preflight": preflight_command,
    }  # fmt: skip
    module = elsewhere.get(name, commands)
    monkeypatch.setattr(module, name, interrupted)
    assert main(arguments) == 130
    end = "; the same command resumes from the last checkpoint" if goes_on else ""
    assert " ".join(capsys.readouterr().err.split()) == f"interrupted{end}."


def test_dropped_layers_make_another_student(tmp_path):
    assert train(tmp_path / "run", *SET, "--drop-layers", "1-1", "--set", "max_steps=1") == 0
    attrs = open_run(tmp_path / "run").attrs
    whole = weight_hash(load_model(members.zoo_path("sft-small"), dtype=torch.float32))
    assert attrs["student"]["weight_hash"] != whole
    assert load_model(tmp_path / "run/checkpoints/000001").config.num_hidden_layers == 1


def test_models_and_prompts_of_ones_own(tmp_path):
    for name, seed in (("student", 0), ("teacher", 1)):
        tiny_model(seed=seed).save_pretrained(tmp_path / name)
        tiny_tokenizer().save_pretrained(tmp_path / name)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "7 11"}\n{"prompt": "3"}\n')  # without answers: not graded
    models = ["--student", str(tmp_path / "student"), "--teacher", str(tmp_path / "teacher")]
    assert train(tmp_path / "run", *SET, models=models, prompts=prompts) == 0
    run = open_run(tmp_path / "run")
    assert sorted(set(run.load(0).prompt_id.values)) == ["0", "1"]
    assert run.load(0).correct.isnull().all()


def test_bad_prompts_can_be_left_out(tmp_path, capsys):
    prompts = tmp_path / "prompts.jsonl"
    rows = [{"prompt": "add 1 2 3 4 5", "answer": 15}, {"prompt": "add " + 60 * "1 "}]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = [*SET, "--set", "max_prompt_length=9", "--set", "max_steps=1"]
    reason, _ = failed(capsys, train(tmp_path / "run", *settings, prompts=prompts))
    assert "row 1 (id '1'): 61 tokens, more than max_prompt_length 9" in reason
    assert train(tmp_path / "run", *settings, "--on-error", "skip", prompts=prompts) == 0
    assert set(open_run(tmp_path / "run").load(0).prompt_id.values) == {"0"}
    prompts.write_bytes(prompts.read_bytes() + b'{"prompt": \n')
    settings += ["--on-error", "skip", "--max-prompt-length", "61"]
    assert train(tmp_path / "long", *settings, prompts=prompts) == 0
    assert set(open_run(tmp_path / "long").load(0).prompt_id.values) == {"0", "1"}
    assert open_run(tmp_path / "long").config["max_prompt_length"] == 61


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--set", "lr=1"], r"--set 'lr=1'; expected NAME=VALUE with NAME one of batch_size, "),
        (["--set", "seed"], "--set 'seed'; expected NAME=VALUE"),
        (["--set", "seed=[1"], "--set 'seed=[1'; expected a value that YAML can read"),
        (["--set", "seed=one"], "seed = 'one' is of type str; expected int"),
        (["--set", "objective=kl"], "objective = 'kl'; expected one of topk, full, sampled"),
        (["--config", "absent.yaml"], "no configuration file at absent.yaml"),
        (["--config", "."], "ConfigError: . cannot be read (Is a directory)"),
        (["--drop-layers", "1"], "--drop-layers '1'; expected A-B"),
        (["--drop-layers", "one-two"], "--drop-layers 'one-two'; expected A-B"),
        (["--drop-layers", "²-³"], "--drop-layers '²-³'; expected A-B"),
        (["--drop-layers", "1-0"], "--drop-layers '1-0'; expected A-B with A ≤ B"),
        (["--drop-layers", "1-2"], "layers = [2]; expected 0 to 1"),
        (["--drop-layers", "0-1"], "all 2 layers would be dropped"),
        (["--report-to", "tensorbored"], "report_to = tensorbored: unknown tracker"),
        (["--benchmark", "absent.parquet"], "absent.parquet: no such file"),
        (["--prompts", "absent.jsonl"], "absent.jsonl: no such file"),
        (
            ["--student", "zoo:huge"],
            "no zoo model 'huge'; expected one of sft-small, rl-small",
        ),
    ],
)
def test_train_says_why_it_cannot(tmp_path, capsys, arguments, reason):
    found, _ = failed(capsys, train(tmp_path / "run", *SET, *arguments))
    assert reason in found


@pytest.mark.parametrize(
    ("teachers", "reason"),
    [
        (["--teacher", "./absent"], "./absent: no such file or directory"),
        # Not the last one in silence.
        (["--teacher", "zoo:rl-small", "--teacher", "./absent"], "2 teachers; expected one, or"),
    ],
)
def test_train_says_what_is_wrong_with_its_teacher(tmp_path, capsys, teachers, reason):
    models = ["--student", "zoo:sft-small", *teachers]
    found, _ = failed(capsys, train(tmp_path / "run", *SET, models=models))
    assert reason in found
    assert not (tmp_path / "run").exists()


def test_a_tracker_that_is_not_installed_is_an_error(tmp_path, capsys, monkeypatch):
    """Accelerate alone would leave it out without a word."""
    monkeypatch.setattr("accelerate.tracking._available_trackers", ["wandb"])
    code = train(tmp_path / "run", *SET, "--report-to", "wandb", "--report-to", "tensorboard")
    reason, _ = failed(capsys, code)
    assert "report_to = tensorboard: unknown tracker, or its package is not installed" in reason
    assert "available: wandb." in reason


def test_run_directories_that_do_not_fit_are_left_alone(run_dir, tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("x")
    reason, _ = failed(capsys, train(tmp_path, *SET))
    assert "is not empty (thesis.tex is in it) and not a run" in reason
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    reason, _ = failed(capsys, train(tmp_path / "thesis.tex", *SET))
    assert "is a file; expected a directory" in reason
    reason, _ = failed(capsys, train(run_dir, *SET, "--set", "support=union"))
    assert "was begun with another config: support: 'student' before, 'union' now" in reason
    other = ["--student", "zoo:rl-small", "--teacher", "zoo:sft-small"]
    reason, _ = failed(capsys, train(run_dir, *SET, models=other))
    assert "holds a different run" in reason
    reason, _ = failed(capsys, train(run_dir, *SET, "--no-resume"))
    assert "holds a run already (2 recorded steps)" in reason


# inspect


def test_inspect_summarises_and_checks_a_run(run_dir, capsys, monkeypatch):
    monkeypatch.setattr(commands.console, "width", 300)
    assert main(["inspect", str(run_dir)]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    n_states = open_run(run_dir).states().sizes["state"]
    assert ["steps", "2"] in rows
    assert ["states", str(n_states)] in rows
    assert ["valid", "True"] in rows
    (settings,) = (" ".join(row) for row in rows if row[:1] == ["settings"])
    assert settings == "settings k=4, batch_size=2, max_completion_length=8, max_steps=2, eval_n=1"


def test_inspect_as_json(run_dir, capsys):
    assert main(["inspect", str(run_dir), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    run = open_run(run_dir)
    assert printed["student"] == run.attrs["student"]["name"]
    assert printed["bytes"] == sum(p.stat().st_size for p in (run_dir / "steps").iterdir())
    assert printed["config"] == run.config
    assert printed["overlap_ratio"] == run.metrics.overlap_ratio.sel(step=1).item()


def test_inspect_takes_runs_without_metrics_and_of_other_writers(tmp_path, capsys):
    writer = RunWriter(tmp_path / "begun", attrs={}, config={}, resume=False)
    writer.write_step(0, synthetic_step())
    assert main(["inspect", str(tmp_path / "begun")]) == 0
    assert "metric" not in capsys.readouterr().out
    synthetic_run(tmp_path / "other")
    assert main(["inspect", str(tmp_path / "other"), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["student"], printed["steps"]) == ("synthetic student", 3)


def test_inspect_names_what_a_server_did_not_tell(tmp_path, capsys):
    attrs = {"student": {"name": "mine"}, "teacher": {"name": "my/teacher"}}
    writer = RunWriter(tmp_path / "served", attrs=attrs, config={}, resume=False)
    ds = synthetic_step().assign_attrs(missing=["teacher"])
    ds["entropy"][:, 1] = float("nan")
    writer.write_step(0, ds.assign(reverse_kl=ds["reverse_kl"] * float("nan")))
    assert main(["inspect", str(tmp_path / "served"), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["missing"] == "entropy, reverse KL of my/teacher (served)"
    # A server that cannot score given tokens leaves out those that only the student lists.
    logp, ids = ds["logp"].values.copy(), ds["token_id"].values
    logp[:, 1, 0][(ids[:, 0, :, None] != ids[:, 1, None]).all(-1)] = float("nan")
    ds = ds.assign(logp=ds["logp"].copy(data=logp), reverse_kl=ds["reverse_kl"] * float("nan"))
    stops = np.full((ds.sizes["state"], 2, 2), np.nan, np.float32)
    stops[:, 0, 0] = -3
    ds["stop_logp"] = ("state", "model", "support"), stops
    writer = RunWriter(tmp_path / "older", attrs=attrs, config={}, resume=False)
    writer.write_step(0, ds)
    assert main(["inspect", str(tmp_path / "older"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["missing"] == (
        "entropy, reverse KL, log-probabilities of some tokens that it does not list, "
        "stop-token mass of my/teacher (served)"
    )
    synthetic_run(tmp_path / "local")
    assert main(["inspect", str(tmp_path / "local"), "--json"]) == 0
    assert "missing" not in json.loads(capsys.readouterr().out)


def test_inspect_finds_what_is_no_run_and_what_is_torn(tmp_path, capsys):
    reason, _ = failed(capsys, main(["inspect", str(tmp_path)]))
    assert "is not a run: it has no run.json" in reason
    assert failed(capsys, main(["inspect", str(tmp_path), "--verify"])) == (reason, "")
    synthetic_run(tmp_path / "run", steps=[0, 1])
    step = tmp_path / "run/steps/000001.zarr.zip"
    step.write_bytes(step.read_bytes()[:-100])
    reason, out = failed(capsys, main(["inspect", str(tmp_path / "run")]))
    assert "000001.zarr.zip" in reason
    assert out == ""


# figures


def results(level):
    """A small results file of figure 5."""
    line = Series("reverse_small", "s", [0, 1], [0.9, level], [0.8, level], [1.0, level])
    panel = Panel("accuracy", "Accuracy", "training step", "accuracy", "line", [line])
    meta = Meta("quick", [0], 16, 4, 8, "95 % bootstrap", {}, "", "0")
    claim = Claim("fig05.x", "c", "p", level, level, level, 0.95, [level], "t", "supported")
    return Results("fig05", "Title", "3.3", "It falls.", meta, [panel], [claim])


@pytest.mark.slow
def test_figures_are_drawn_beside_the_results_and_checked(tmp_path, capsys):
    folder = tmp_path / "results"
    save(results(0.5), folder / "fig05.json")
    command = ["figures", "fig05", "--results", str(folder)]
    assert main(command) == 0
    *drawn, claims, gallery = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert [p.name for p in drawn] == ["fig05.pdf", "fig05.png", "captions.md"]
    assert gallery == tmp_path / "gallery.md"
    assert "figures/fig05.png" in gallery.read_text(encoding="utf-8")
    assert all(p.parent == tmp_path / "figures" and p.exists() for p in drawn)
    assert claims == tmp_path / "claims.md"
    assert "1 distinct claim: 1 supported" in claims.read_text(encoding="utf-8")
    assert main([*command, "--check"]) == 0
    assert (
        capsys.readouterr().out
        == f"{tmp_path / 'figures'} and the pages beside it are up to date.\n"
    )
    save(results(0.4), folder / "fig05.json")
    reason, _ = failed(capsys, main([*command, "--check"]))
    assert "fig05.pdf, fig05.png" in reason
    assert "draw again with `opdprobe figures" in reason
    reason, _ = failed(capsys, main([*command, "--check", "--out", str(tmp_path / "nowhere")]))
    assert "captions.md" in reason


def test_figures_without_name_or_results(tmp_path, capsys):
    reason, _ = failed(capsys, main(["figures", "fig99"]))
    assert "no figure fig99; expected one of fig01, fig02" in reason
    reason, _ = failed(capsys, main(["figures", "--results", str(tmp_path)]))
    assert "opdprobe reproduce" in reason
    reason, _ = failed(capsys, main(["figures", "fig06", "--results", str(tmp_path)]))
    assert "run `opdprobe reproduce --only fig06`" in reason


# zoo


def test_zoo_list_names_every_member(capsys, monkeypatch):
    monkeypatch.setattr(commands.console, "width", 200)
    assert main(["zoo", "list"]) == 0
    out = capsys.readouterr().out
    rows = {cells[1].strip(): cells for line in out.splitlines() if (cells := line.split("│"))[1:]}
    assert list(rows) == list(members.MEMBERS)
    for name, entry in members.manifest().items():
        assert rows[name][5].strip() == f"{entry['accuracy']:.3f}"


@pytest.mark.slow
def test_zoo_check_measures_what_is_named(capsys):
    """The bytes are those of the record, and so is the accuracy."""
    names = ["sft-small", "rl-small", "cold-start-small"]
    assert main(["zoo", "check", *names]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == names
    assert all(line.endswith("weights as recorded") for line in lines)


def do_here(tasks, *, workers, on_progress):
    for task in tasks:
        task.function(*task.arguments, partial(on_progress, task.label))


def test_zoo_build_trains_what_is_named(tmp_path, monkeypatch, capsys):
    from opdprobe.train.config import SFTConfig

    member = members.Member("x", SFTConfig(max_steps=2), size={"hidden_size": 16, "layers": 1})
    monkeypatch.setattr(members, "MEMBERS", {"tiny": member})
    monkeypatch.setattr(members, "ZOO", tmp_path / "zoo")
    monkeypatch.setattr(zoo, "measure", lambda *_: 0.25)
    # A process of its own would not know of this member.
    monkeypatch.setattr(zoo, "work", do_here)
    assert main(["zoo", "list"]) == 0
    assert "not built" in capsys.readouterr().out
    assert main(["zoo", "build", "--work-dir", str(tmp_path)]) == 0
    assert "0.250" in capsys.readouterr().out
    assert load_tokenizer(tmp_path / "zoo/tiny")("answer 3").input_ids


def test_an_unknown_member_lists_those_there_are(capsys):
    for action in ("list", "check", "build"):
        reason, _ = failed(capsys, main(["zoo", action, "huge"]))
        assert "no zoo model huge; expected one of sft-small, rl-small, " in reason


# Usage


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["fly"],
        ["train"],
        ["train", *MODELS, "--prompts", "zoo:train", "--run-dir", "x", "--limit", "0"],
        ["train", *MODELS, "--prompts", "zoo:train", "--run-dir", "x", "--limit", "many"],
        ["inspect"],
        ["zoo", "feed"],
        ["reproduce", "--preset", "huge"],
        ["reproduce", "--workers", "0"],
    ],
)
def test_bad_usage_exits_with_2(capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert (out, err.split()[0]) == ("", "usage:")


def test_version_and_help(capsys):
    for argument in ("--version", "--help"):
        with pytest.raises(SystemExit) as caught:
            main([argument])
        assert caught.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith(version("opdprobe") + "\n")
    for command in ("reproduce", "figures", "train", "inspect", "zoo"):
        assert f"\n    {command}" in out


def test_reproduce_refuses_an_unknown_figure(tmp_path, capsys):
    reason, _ = failed(capsys, main(["reproduce", "--only", "fig99", "--out", str(tmp_path)]))
    assert "no figure fig99; expected one of fig01, fig02, fig03" in reason
    assert not list(tmp_path.iterdir())


# As a process: exit codes, and no warning from import to exit


def process(*arguments, python=()):
    return subprocess.run(
        [sys.executable, "-W", "error", *python, *arguments],
        capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip


@pytest.mark.slow
def test_train_as_a_process_warns_of_nothing(tmp_path):
    done = process(
        "-m", "opdprobe.cli.parser", "train", *MODELS, "--prompts", "zoo:train", "--limit", "4",
        "--run-dir", str(tmp_path), *SET, "--json",
    )  # fmt: skip
    assert done.returncode == 0
    assert re.fullmatch(r"memory: about .* free on \w+: .*\.\n", done.stderr)
    assert json.loads(done.stdout)["run_dir"] == str(tmp_path)


def test_failures_as_a_process_have_no_traceback(tmp_path):
    done = process("-m", "opdprobe.cli.parser", "inspect", str(tmp_path / "absent"))
    assert done.returncode == 1
    assert done.stdout == ""
    reason = f"{tmp_path / 'absent'} does not exist; expected the directory of a run."
    assert done.stderr == f"error: StoreError: {reason}\n"
