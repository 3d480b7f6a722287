"""The commands of the recipes: files in, files out, and which options go together."""

import json
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest

from opdprobe import ConfigError, PromptError
from opdprobe.cli import recipes as commands
from opdprobe.models.load import load_model
from opdprobe.rollout.prompt_files import load_prompts, save_prompts
from opdprobe.rollout.prompts import BOXED_TEMPLATE, DAPO_TEMPLATE, Prompt
from opdprobe.testing import tiny_model, tiny_tokenizer
from opdprobe.train.recipes import dedup
from opdprobe.train.recipes.select import mixed, template

# How prompt files are read; every command of the recipes has these options.
LOADING = dict.fromkeys(("device", "dtype", "teacher_dtype", "attn_implementation"))
READING = {"prompt_column": "prompt", "answer_column": None, "on_error": "raise"}


def write(path, texts, start=0):
    prompts = [Prompt(str(start + i), text=text) for i, text in enumerate(texts)]
    save_prompts(prompts, path)
    return prompts


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A student and a teacher that are easily told apart."""
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("student", "teacher")):
        model = tiny_model(seed=seed)
        model.lm_head.weight.data *= 5
        model.save_pretrained(folder / name)
        tiny_tokenizer().save_pretrained(folder / name)
    return {name: str(folder / name) for name in ("student", "teacher")}


@pytest.fixture
def prompts(tmp_path):
    return write(tmp_path / "prompts.jsonl", [f"{i} {i + 1}" for i in range(5)])


# cold-start


def cold_start(tmp_path, models, **changes):
    settings = {
        "prompts": str(tmp_path / "prompts.jsonl"),
        "out": tmp_path / "cold",
        "limit": 4,
        "num_generations": 3,
        "max_completion_length": 60,
        "set": ["max_steps=2", "learning_rate=1e-3"],
        "max_prompt_length": 1024,
        "chat_template_kwargs": None,
        "system_prompt": None,
        **READING,
        **LOADING,
        "json": True,
    }
    commands.cold_start(Namespace(**models | settings | changes))


def test_cold_start_reports_what_became_of_the_responses(tmp_path, models, prompts, capsys):
    cold_start(tmp_path, models)
    found = json.loads(capsys.readouterr().out)
    assert found["steps"] == 2
    assert found["kept"] + found["truncated"] + found["repetitive"] == 4 * 3
    load_model(found["model"])
    settings = json.loads((tmp_path / "cold" / "cold_start.json").read_text())
    assert settings["sft.learning_rate"] == 1e-3
    assert (settings["sampling.temperature"], settings["sampling.top_p"]) == (0.7, 0.95)
    cold_start(tmp_path, models, json=False)  # finished: shown again
    out = capsys.readouterr().out
    assert f"Teacher responses: {found['kept']} kept, {found['truncated']} truncated" in out
    assert f"next: opdprobe train --student {found['model']}" in out


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("max_steps", "--set 'max_steps'; expected NAME=VALUE"),
        ("max_steps=[", r"--set 'max_steps=\['; expected a value that YAML can read"),
        ("lr=1", "--set 'lr=1'; expected NAME=VALUE with NAME one of batch_size"),
        ("seed=one", "seed = 'one' is of type str"),
    ],
)
def test_cold_start_settings_that_are_none(tmp_path, models, prompts, setting, reason):
    with pytest.raises(ConfigError, match=reason):
        cold_start(tmp_path, models, set=[setting])
    assert not (tmp_path / "cold").exists()


# select


def select(tmp_path, strategy, **changes):
    settings = dict.fromkeys(
        [
            "other",
            "share",
            "template",
            "student",
            "teacher",
            "n_prompts",
            "num_generations",
            "max_completion_length",
            "max_prompt_length",
            *LOADING,
            "chat_template_kwargs",
            "system_prompt",
        ]
    )
    settings |= {
        "prompts": str(tmp_path / "prompts.jsonl"),
        "out": tmp_path / "chosen.jsonl",
        **READING,
        "seed": 0,
        "json": False,
    }
    commands.select(Namespace(strategy=strategy, **settings | changes))
    return load_prompts(tmp_path / "chosen.jsonl")


def test_content_takes_the_prompts_as_they_are(tmp_path, prompts, capsys):
    assert select(tmp_path, "content") == prompts
    assert (
        capsys.readouterr().out
        == f"5 prompts chosen by content, written to {tmp_path / 'chosen.jsonl'}.\n"
    )
    few = select(tmp_path, "content", n_prompts=3, seed=1)
    assert len(few) == 3
    assert {prompt.id for prompt in few} < {prompt.id for prompt in prompts}


@pytest.mark.parametrize(
    ("text", "wording"),
    [("boxed", BOXED_TEMPLATE), ("dapo", DAPO_TEMPLATE), ("{question} = ?", "{question} = ?")],
)
def test_template_rewords_the_same_prompts_as_content(tmp_path, prompts, text, wording):
    content = select(tmp_path, "content", n_prompts=3, seed=4)
    assert select(tmp_path, "template", template=text, n_prompts=3, seed=4) == template(
        content, wording
    )


def test_mixed_has_other_prompts_in_it(tmp_path, prompts, capsys):
    other = write(tmp_path / "other.jsonl", ["30 31", "32 33"])
    path = str(tmp_path / "other.jsonl")
    got = select(tmp_path, "mixed", other=path, n_prompts=4, seed=2)
    assert got == mixed(prompts, other, n_prompts=4, share=0.3, seed=2)
    got = select(tmp_path, "mixed", other=path, n_prompts=4, share=0.0, json=True)
    assert {prompt.id for prompt in got} < {prompt.id for prompt in prompts}
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found == {
        "strategy": "mixed",
        "read": 5,
        "read_other": 2,
        "written": 4,
        "out": str(tmp_path / "chosen.jsonl"),
    }


def test_max_divergence_writes_the_divergences_with_the_prompts(tmp_path, models, prompts, capsys):
    got = select(
        tmp_path, "max_divergence", **models, n_prompts=3, max_completion_length=5, json=True
    )
    found = json.loads(capsys.readouterr().out)["reverse_kl"]
    assert [prompt.meta["reverse_kl"] for prompt in got] == found == sorted(found, reverse=True)
    assert found[-1] > 0
    assert {prompt.text for prompt in got} < {prompt.text for prompt in prompts}
    select(tmp_path, "max_divergence", **models, n_prompts=3, max_completion_length=5)
    out = capsys.readouterr().out
    assert f"Mean reverse KL from {found[0]:.3g} down to {found[2]:.3g} nats per state" in out


def test_max_divergence_can_leave_out_bad_prompts(tmp_path, models):
    write(tmp_path / "prompts.jsonl", ["1 2", "3 " * 1100])
    with pytest.raises(PromptError, match="row 1"):
        select(tmp_path, "max_divergence", **models, n_prompts=1, max_completion_length=5)
    (got,) = select(
        tmp_path, "max_divergence", **models, n_prompts=1, max_completion_length=5, on_error="skip"
    )
    assert got.text == "1 2"
    length = {"max_prompt_length": 1100, "max_completion_length": 5}
    got = select(tmp_path, "max_divergence", **models, n_prompts=2, **length)
    assert {prompt.text for prompt in got} == {"1 2", "3 " * 1100}


@pytest.mark.parametrize("strategy", ["content", "mixed"])
def test_files_are_read_as_the_options_say(tmp_path, strategy):
    files = tmp_path / "prompts.jsonl", tmp_path / "other.jsonl"
    for number, file in enumerate(files):
        row = {"question": f"{number} 1", "solution": "2", "id": str(number)}
        file.write_text(json.dumps(row) + '\n{"question": \n')
    options = {"prompt_column": "question", "answer_column": "solution", "on_error": "skip"}
    if strategy == "mixed":
        options |= {"other": str(files[1]), "n_prompts": 1, "share": 1.0}
    (got,) = select(tmp_path, strategy, **options)
    text = "1 1" if strategy == "mixed" else "0 1"
    assert (got.text, got.answer) == (text, "2")


@pytest.mark.parametrize(
    ("strategy", "options", "reason"),
    [
        ("template", {}, "template also needs --template"),
        ("mixed", {"n_prompts": 2}, "mixed also needs --other"),
        ("mixed", {"other": "b.jsonl"}, "mixed also needs --n-prompts"),
        ("max_divergence", {"student": "s", "n_prompts": 2}, "max_divergence also needs --teacher"),
        ("content", {"share": 0.0}, "content does not use --share: leave"),
        (
            "template",
            {"template": "boxed", "max_completion_length": 3, "max_prompt_length": 9},
            "template does not use --max-completion-length, --max-prompt-length",
        ),
        (
            "mixed",
            {"other": "b.jsonl", "n_prompts": 2, "num_generations": 4},
            "does not use --num-generations",
        ),
        ("content", {"out": Path("chosen.parquet")}, r"chosen\.parquet; expected a \.jsonl file"),
        ("content", {"out": Path("absent/a.jsonl")}, "in a directory that exists"),
    ],
)
def test_select_checks_options_against_the_strategy(tmp_path, prompts, strategy, options, reason):
    with pytest.raises(ConfigError, match=reason):
        select(tmp_path, strategy, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["prompts.jsonl"]


def test_what_is_read_is_not_written_over(tmp_path, prompts, monkeypatch):
    before = (tmp_path / "prompts.jsonl").read_bytes()
    monkeypatch.chdir(tmp_path)  # the same file by another name
    with pytest.raises(ConfigError, match="prompts are read from this file"):
        select(tmp_path, "template", template="boxed", out=Path("prompts.jsonl"))
    with pytest.raises(ConfigError, match="prompts are read from this file"):
        deduplicate(tmp_path, against="prompts.jsonl", out=tmp_path / "prompts.jsonl")
    assert (tmp_path / "prompts.jsonl").read_bytes() == before


# dedup


def deduplicate(tmp_path, **changes):
    settings = {
        "prompts": str(tmp_path / "prompts.jsonl"),
        "against": str(tmp_path / "against.jsonl"),
        **READING,
        "semantic": False,
        "model": None,
        "threshold": None,
        "device": None,
        "dtype": None,
        "out": tmp_path / "left.jsonl",
        "json": False,
    }
    commands.dedup(Namespace(**settings | changes))
    return load_prompts(tmp_path / "left.jsonl")


@pytest.fixture
def sets(tmp_path):
    write(tmp_path / "against.jsonl", [DAPO_TEMPLATE.replace("{question}", "0 1"), "2 2 1"])
    return write(tmp_path / "prompts.jsonl", ["0 1", "1 2", "7 8"])


@pytest.fixture
def encoder(monkeypatch):
    """Numbers said, as directions."""
    asked = []

    def encode(texts):
        rows = np.zeros((len(texts), 9))
        for row, text in zip(rows, texts, strict=True):
            for word in text.split():
                row[int(word)] += 1
        return rows

    monkeypatch.setattr(dedup, "sentence_encoder", lambda model, **_: asked.append(model) or encode)
    return asked


def test_dedup_by_wording(tmp_path, sets, capsys):
    assert deduplicate(tmp_path) == sets[1:]
    left = tmp_path / "left.jsonl"
    assert (
        capsys.readouterr().out == f"3 prompts; removed: 1 by wording; 2 left, written to {left}.\n"
    )
    deduplicate(tmp_path, json=True)
    found = json.loads(capsys.readouterr().out)
    assert found == {"read": 3, "exact": 1, "left": 2, "out": str(left)}


def test_dedup_by_meaning_shows_the_nearest_pairs(tmp_path, sets, encoder, capsys):
    assert deduplicate(tmp_path, semantic=True) == sets[2:]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(
        "3 prompts; removed: 1 by wording, 1 by meaning; 1 left, written to "
    )
    assert [line.split() for line in lines[1:]] == [["0.95", "1", "2"], ["2", "2", "1"]]
    assert deduplicate(tmp_path, semantic=True, threshold=0.97, model="mine", json=True) == sets[1:]
    found = json.loads(capsys.readouterr().out)
    assert (found["semantic"], found["nearest"]) == (0, [])
    assert encoder == ["all-mpnet-base-v2", "mine"]


def test_dedup_that_leaves_nothing_is_an_error(tmp_path, sets, encoder):
    reason = "all 3 prompts of .* are in .*: 1 by wording, 2 by meaning; nothing was written"
    with pytest.raises(PromptError, match=reason):
        deduplicate(tmp_path, semantic=True, threshold=-1.0)
    assert not (tmp_path / "left.jsonl").exists()


@pytest.mark.parametrize("option", [{"model": "mine"}, {"threshold": 0.5}, {"device": "cpu"}])
def test_options_of_meaning_need_semantic(tmp_path, sets, option):
    with pytest.raises(ConfigError, match="--threshold, --device and --dtype need --semantic"):
        deduplicate(tmp_path, **option)
