"""From a dump to a run, a report and a page of tokens, by the command line."""

import json
import math
import re
import signal

import made_dumps as made
import numpy as np
import pytest

import opdprobe
from opdprobe import ConfigError, RolloutError, import_rollouts, open_run
from opdprobe.cli import importing
from opdprobe.cli.parser import main
from opdprobe.report.run_report import write_run_report
from opdprobe.testing import tiny_model, tiny_tokenizer

TEXTS = [
    "verl",
    "verl-generation",
    "trl",
    "ms-swift",
    "nemo-rl-distillation",
    "areal",
    "skyrl",
    "thunlp-eval",
    "thunlp-rollout",
    "lm-eval",
    "inspect",
    "llamafactory",
]
# Both models' top-k lists, or both models' log-probabilities: no model is needed.
ALONE = ["miles", "token-bank", "slime-train"]
IDS = [name for name in made.MAKERS if name not in (*TEXTS, *ALONE)]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Options that name a student and a teacher on disk."""
    words = []
    for seed, role in enumerate(("student", "teacher")):
        folder = tmp_path_factory.mktemp("models") / role
        tiny_model(seed=seed).save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)
        words += [f"--{role}", str(folder)]
    return words


def options(name):
    return [word for key, value in made.options(name).items() for word in (f"--{key}", str(value))]


def imported(name, folder, *more):
    """Import a format's dump by the command line; return what it printed, as JSON."""
    dump = made.MAKERS[name](folder / "dump")
    return main(
        ["import", str(dump), "--run-dir", str(folder / "run"), *options(name), "--json", *more]
    )


@pytest.mark.parametrize("name", made.MAKERS)
def test_every_format_becomes_a_run(name, models, tmp_path, capsys):
    given = [] if name in ALONE else [*models, "--k", "2"]
    assert imported(name, tmp_path, *given) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["format"] == name
    assert told["level"] == ("A" if name in ALONE[:2] else "C" if name in TEXTS else "B")
    run = open_run(tmp_path / "run")
    assert len(run.steps) == told["steps"]
    rollouts = sum(run.load(step).sizes["rollout"] for step in run.steps)
    assert rollouts == told["rows"] > 0
    assert (told["text"] is not None) == (name in TEXTS)
    assert run.attrs["dump"] == name
    for step in run.steps:
        opdprobe.validate(run.load(step))
    write_run_report(
        tmp_path / "report.html", [run], draw=lambda panels: [b""] * len(panels), view=False
    )
    assert main(["view", str(tmp_path / "run")]) == 0


@pytest.mark.slow  # draws three reports
@pytest.mark.parametrize("name", ["token-bank", "open-instruct", "verl"])
def test_a_level_goes_on_to_a_report_and_a_page(name, models, tmp_path, capsys):
    """One format of each level: lists, token ids, text."""
    given = [] if name in ALONE else [*models, "--k", "2"]
    dump, run = made.MAKERS[name](tmp_path / "dump"), tmp_path / "run"
    words = ["import", str(dump), "--run-dir", str(run), *options(name), *given]
    if name in ALONE:
        words += ["--tokenizer", models[1]]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert f"next: opdprobe report {run}; opdprobe view {run}" in out
    assert main(["report", str(run), "--no-view"]) == 0
    assert main(["view", str(run)]) == 0
    assert main(["inspect", str(run)]) == 0
    page = (run / "view.html").read_text()
    assert "10" in page
    assert (run / "report.html").stat().st_size > 1000


def test_token_ids_and_what_came_with_them_are_recorded(models, tmp_path, capsys):
    assert imported("open-instruct", tmp_path, *models, "--k", "2") == 0
    step = open_run(tmp_path / "run").load(1)
    np.testing.assert_array_equal(step["prompt_ids"], made.PROMPT * 2)
    np.testing.assert_array_equal(step["response_ids"], made.RESPONSE * 2)
    np.testing.assert_array_equal(step["finished"], [True, False])
    np.testing.assert_array_equal(step["correct"], [math.nan, 0])
    np.testing.assert_array_equal(step["sampler_logp"], made.LOGP * 2)


def test_lists_are_recorded_as_they_are(tmp_path, capsys):
    assert imported("miles", tmp_path) == 0
    told = json.loads(capsys.readouterr().out)
    step = open_run(tmp_path / "run").load(0)
    assert step.sizes["rank"] == 2
    np.testing.assert_array_equal(step["token_id"][:3, 0], [[15, 17], [18, 16], [2, 15]])
    np.testing.assert_array_equal(step["sampled_logp"][:3, 0], made.LOGP)
    np.testing.assert_array_equal(step["sampled_logp"][:3, 1], made.TEACHER)
    assert told["untold"] == {"grade": 4}


def test_text_is_tokenised_and_what_is_lost_is_told(models, tmp_path, capsys):
    dump, run = made.areal(tmp_path / "dump"), tmp_path / "run"
    assert main(["import", str(dump), "--run-dir", str(run), *models, "--k", "2"]) == 0
    out, err = capsys.readouterr()
    assert "4 rollouts of 2 steps, from areal (text, tokenised anew)" in out
    assert "0 of 4 prompts were formed by the student's chat template, 4 encoded as" in out
    assert "4 of 4 prompts and 4 of 4 responses decode to the text in the dump" in out
    assert "end token, of 4 responses: 4 have it in the text" in out
    assert "not in the dump: the sampler's log-probabilities, the trained student's" in out
    assert "eval-rollout/1/3.jsonl: of an evaluation; name it to read it" in err
    step = open_run(run).load(1)
    np.testing.assert_array_equal(step["prompt_ids"], made.PROMPT * 2)
    np.testing.assert_array_equal(step["response_ids"], made.RESPONSE * 2)


def test_the_same_command_adds_what_was_dumped_since(models, tmp_path, capsys):
    dump, run = made.areal(tmp_path / "dump"), tmp_path / "run"
    words = ["import", str(dump), "--run-dir", str(run), *models, "--k", "2"]
    last = dump / "rollout" / "2" / "7.jsonl"
    later = last.read_text()
    last.unlink()
    assert main(words) == 0
    assert open_run(run).steps == [1]
    first = (run / "steps" / "000001.zarr.zip").read_bytes()
    last.parent.mkdir(exist_ok=True)
    last.write_text(later)
    capsys.readouterr()
    assert main(words) == 0
    assert "1 of the steps were in the run already, and stay." in capsys.readouterr().out
    assert open_run(run).steps == [1, 2]
    assert (run / "steps" / "000001.zarr.zip").read_bytes() == first


def test_a_dump_is_imported_as_it_grows(tmp_path, monkeypatch, capsys):
    source = made.slime_train(tmp_path / "made")
    files = sorted(source.rglob("*.pt"))
    dump, run = tmp_path / "dump" / files[0].parent.name, tmp_path / "run"
    words = ["import", str(tmp_path / "dump"), "--format", "slime-train", "--run-dir", str(run)]
    seen = []

    def copy(number):
        def act():
            dump.mkdir(parents=True, exist_ok=True)
            (dump / files[number].name).write_bytes(files[number].read_bytes())

        return act

    acts = [
        copy(0),
        lambda: (seen.append((run / "run.json").exists()), copy(1)()),
        lambda: (seen.append(open_run(run).steps), signal.raise_signal(signal.SIGINT)),
    ]

    class Pauses:
        """An event that is set by the signal alone."""

        def __init__(self):
            self.came = False

        def set(self):
            self.came = True

        def wait(self, seconds):
            acts.pop(0)()
            return self.came

    monkeypatch.setattr(importing.threading, "Event", Pauses)
    before = signal.getsignal(signal.SIGINT)
    assert main([*words, "--follow", "--interval", "1"]) == 0
    out, err = capsys.readouterr()
    first, second = (int(re.findall(r"\d+", file.stem)[0]) for file in files[:2])
    assert seen == [False, [first]]
    assert open_run(run).steps == [first, second]
    assert "of 2 steps, from slime-train" in out
    assert "waiting for a step to be complete" in err
    assert err.count("importing what is left; Ctrl-C again ends at once") == 1
    assert f"read up to step {first}: waiting for more" in err
    assert acts == []
    assert signal.getsignal(signal.SIGINT) is before


def test_a_bad_row_stops_the_command_or_is_left_out(models, tmp_path, capsys):
    dump, run = made.areal(tmp_path / "dump"), tmp_path / "run"
    with (dump / "rollout" / "2" / "7.jsonl").open("a") as stream:
        stream.write('{"prompt": ')
    words = ["import", str(dump), "--run-dir", str(run), *models, "--k", "2"]
    assert main(words) == 1
    err = capsys.readouterr().err
    assert "7.jsonl:3: not JSON" in err
    assert "leave such rows out: --on-error skip" in err
    assert main([*words, "--on-error", "skip"]) == 0
    assert "1 rows could not be used, and are left out." in capsys.readouterr().out
    assert open_run(run).steps == [1, 2]


MISSING = [
    ("verl", [], "1.jsonl:1: text; expected models that score it: give --student and --teacher"),
    ("tinker", [], "token ids, without log-probabilities of both models; expected models"),
    ("token-bank", ["both"], "the dump has no prompts, so no model can score its responses"),
    ("verl", ["student"], "only one of student and teacher is given; expected both, or neither"),
]


@pytest.mark.parametrize(("name", "given", "message"), MISSING)
def test_models_are_asked_for_where_they_are_needed(name, given, message, models, tmp_path, capsys):
    words = {"both": models, "student": models[:2]}
    assert imported(name, tmp_path, *(word for key in given for word in words[key])) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_loaded_student_needs_a_tokenizer_for_text(tmp_path):
    student, teacher = tiny_model(seed=0), tiny_model(seed=1)
    dump = made.areal(tmp_path / "dump")
    with pytest.raises(ConfigError, match="brings no tokenizer: give it with --tokenizer"):
        import_rollouts(dump, tmp_path / "run", student=student, teacher=teacher)
    found = import_rollouts(
        dump, tmp_path / "run", student=student, teacher=teacher, tokenizer=tiny_tokenizer(), k=2
    )
    assert found.run.steps == [1, 2]
    assert found.text is not None
    assert found.text.ends_in_text == 4


def test_an_empty_dump_is_named(tmp_path):
    path = made.lines(tmp_path / "1.jsonl", [])
    with pytest.raises(RolloutError, match=r"1\.jsonl: no rollout; expected trainer\.rollout_data"):
        import_rollouts(path, tmp_path / "run", format="verl")
