"""What can go wrong in a run, one row each: the error names what came and what to do.

The modules' own tests look closer; here everything goes through what a user calls.
"""

import errno
import json
import logging
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from opdprobe import (
    ConfigError,
    NonFiniteError,
    OPDConfig,
    OPDProbeError,
    OPDTrainer,
    Prompt,
    PromptError,
    StoreError,
    VocabularyError,
    load_model,
    load_prompts,
    open_run,
    validate,
)
from opdprobe.errors import ModelError
from opdprobe.store.schema import SCHEMA_VERSION
from opdprobe.store.step_encode import write_zip
from opdprobe.testing import tiny_model, tiny_tokenizer

PROMPTS = [Prompt("a", text="3 1"), Prompt("b", text="4 1 5")]
SETTINGS: dict[str, Any] = {
    "k": 4,
    "batch_size": 2,
    "num_generations": 2,
    "max_completion_length": 4,
}


def trainer(path: Path, settings: dict[str, Any] | None = None, **changes) -> OPDTrainer:
    arguments = {
        "student": tiny_model(seed=0),
        "teacher": tiny_model(seed=1),
        "tokenizer": tiny_tokenizer(),
        "prompts": PROMPTS,
        "config": OPDConfig(**SETTINGS | {"max_steps": 2} | (settings or {})),
    }
    return OPDTrainer(run_dir=path / "run", **arguments | changes)


def poisoned(value: float):
    """A model with one weight of the head that is no number."""
    model = tiny_model(seed=2)
    model.lm_head.weight.data[5, 0] = value
    return model


def ending_at_once():
    """A student that answers every prompt with the end token alone."""
    model = tiny_model(seed=3)
    bias = torch.zeros(model.config.vocab_size)
    bias[tiny_tokenizer().eos_token_id] = 100.0
    model.lm_head.bias = torch.nn.Parameter(bias)
    return model


# Before anything is written


@dataclass(frozen=True)
class Row:
    """One way to fail: how, with what error, and what its message says."""

    name: str
    act: Any
    error: type[OPDProbeError]
    message: str


def _prompt_file(path: Path, *lines: Any) -> Path:
    file = path / "prompts.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


BEFORE = [
    Row(
        "tokenizers that differ",
        lambda p: trainer(p, teacher_tokenizer=tiny_tokenizer(60)),
        VocabularyError,
        r"differ at 4 of 64 ids, first at id 60: the student has '54', the teacher no token; .*"
        r"choose a teacher",
    ),
    Row(
        "fewer logits than tokens",
        lambda p: trainer(p, teacher=tiny_model(60)),
        VocabularyError,
        "The teacher has 60 logits, but the tokenizer has 64 tokens; load the tokenizer that",
    ),
    Row(
        "k larger than the vocabulary",
        lambda p: trainer(p, {"k": 65}),
        ConfigError,
        "k = 65; expected at most 64, the size of the shared vocabulary",
    ),
    Row(
        "an empty prompt",
        lambda p: load_prompts(_prompt_file(p, {"prompt": "3"}, {"prompt": " "})),
        PromptError,
        r"prompts\.jsonl: 1 of 2 rows cannot be used: row 1: .*empty prompt.*on_error=\"skip\"",
    ),
    Row(
        "an over-long prompt",
        lambda p: trainer(p, {"max_prompt_length": 2}),
        PromptError,
        r"1 of 2 rows cannot be used: row 1 \(id 'b'\): 3 tokens, more than max_prompt_length 2",
    ),
    Row(
        "no prompt",
        lambda p: trainer(p, prompts=[]),
        PromptError,
        "no rows; expected at least one prompt",
    ),
    Row(
        "no room for a response",
        lambda p: trainer(p, {"max_completion_length": 0}),
        ConfigError,
        "max_completion_length = 0; expected a number above 0",
    ),
    Row(
        "a combination that cannot learn",
        lambda p: trainer(p, {"estimator": "scalar_policy_gradient"}),
        ConfigError,
        "zero expected gradient on-policy.* Use estimator='policy_gradient'",
    ),
    Row(
        "missing prompts",
        lambda p: load_prompts(p / "absent.parquet"),
        PromptError,
        r"absent\.parquet: no such file; expected a \.parquet, \.jsonl, ",
    ),
    Row(
        "a missing model",
        lambda p: load_model(p / "absent"),
        ModelError,
        "absent: no such file or directory; expected a model directory",
    ),
    Row(
        "a missing config",
        lambda p: OPDConfig.from_yaml(p / "absent.yaml"),
        ConfigError,
        r"no configuration file at .*absent\.yaml",
    ),
    Row(
        "a missing run",
        lambda p: open_run(p / "absent"),
        StoreError,
        "absent does not exist; expected the directory of a run",
    ),
]


@pytest.mark.parametrize("row", BEFORE, ids=lambda row: row.name)
def test_bad_input_is_refused_before_anything_is_written(row, tmp_path):
    with pytest.raises(row.error, match=row.message):
        row.act(tmp_path)
    assert not (tmp_path / "run").exists()


def test_bad_prompts_are_left_out_only_if_asked(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        run = trainer(tmp_path, {"max_prompt_length": 2}, on_error="skip").train()
    assert set(run.rollouts().prompt_id.values) == {"a"}
    (record,) = (r for r in caplog.records if "cannot be used" in r.message)
    assert (
        "row 1 (id 'b'): 3 tokens, more than max_prompt_length 2. They are left out."
        in record.message
    )


def test_padded_logits_are_cut_to_the_vocabulary_once_with_a_note(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        run = trainer(tmp_path, student=tiny_model(72), teacher=tiny_model(80)).train()
    (record,) = (r for r in caplog.records if "Logit widths" in r.message)
    assert (
        "72 (student) and 80 (teacher); both are cut to the 64 tokens that they share"
        in record.message
    )
    assert run.attrs["vocabulary"] == 64
    assert run.states().token_id.values.max() < 64


# While a run goes on


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("role", "message"),
    [
        ("teacher", r"step 0: the teacher gave NaN or infinite logits at row \d+ of \d+\. Check"),
        ("student", r"step 0: LlamaForCausalLM gave NaN or .* prompt \d, response position 0"),
    ],
)
def test_logits_that_are_no_numbers_name_model_step_and_row(tmp_path, role, message, value):
    with pytest.raises(NonFiniteError, match=message):
        trainer(tmp_path, **{role: poisoned(value)}).train()
    assert open_run(tmp_path / "run").steps == []


def test_a_response_always_has_a_token(tmp_path):
    """One that ends at once is the end token: one state, with a distribution like any other."""
    run = trainer(tmp_path, student=ending_at_once()).train()
    ds = run.load(0)
    validate(ds)
    assert ds.length.values.tolist() == [1] * 4
    assert ds.finished.all()
    assert ds.sizes["state"] == 4
    assert set(ds.sampled_id.values) == {tiny_tokenizer().eos_token_id}
    assert np.isfinite(run.metrics["loss"]).all()


def test_a_full_disk_stops_the_run_and_it_goes_on_when_there_is_room(tmp_path, monkeypatch):
    files = []

    def until_full(members, file):
        files.append(members)
        if len(files) == 1:
            write_zip(members, file)
            return
        write_zip(dict(list(members.items())[:5]), file)
        raise OSError(errno.ENOSPC, "No space left on device")

    settings = {"max_steps": 3, "save_steps": 1}
    with monkeypatch.context() as patch:
        patch.setattr("opdprobe.store.step.write_zip", until_full)
        with pytest.raises(StoreError, match=r"disk full while writing .*zip .*free some space"):
            trainer(tmp_path, settings).train()
    run = open_run(tmp_path / "run")
    assert run.steps == [0]
    assert [p.name for p in (run.path / "steps").iterdir()] == ["000000.zarr.zip"]
    validate(run.load(0))
    assert trainer(tmp_path, settings).train().steps == [0, 1, 2]


# What is there already


@pytest.fixture
def run(tmp_path):
    return trainer(tmp_path).train()


def _newer(run):
    attrs = json.loads((run.path / "run.json").read_text())
    (run.path / "run.json").write_text(json.dumps(attrs | {"schema_version": SCHEMA_VERSION + 1}))
    return open_run(run.path)


def _truncated(run):
    file = run.path / "steps/000001.zarr.zip"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    return run.load(1)


def _torn(run):
    """A byte in the middle of the step has changed: found when the variable is read."""
    file = run.path / "steps/000001.zarr.zip"
    with zipfile.ZipFile(file) as archive:
        largest = max(archive.infolist(), key=lambda member: member.file_size)
    content = bytearray(file.read_bytes())
    content[largest.header_offset + 30 + len(largest.filename) + largest.file_size // 2] ^= 1
    file.write_bytes(content)
    return run.load(1).compute()


AFTER = [
    Row(
        "the run of another student",
        lambda run: trainer(run.path.parent, student=tiny_model(seed=9)).train(),
        StoreError,
        r"holds a different run: student\.weight_hash: '\w+' before, '\w+' now; choose",
    ),
    Row(
        "a resume with another config",
        lambda run: trainer(run.path.parent, {"learning_rate": 0.5, "support": "union"}).train(),
        ConfigError,
        r"learning_rate: 1e-06 before, 0\.5 now; support: 'student' before, 'union' now; restore",
    ),
    Row(
        "a run that is not to be resumed",
        lambda run: trainer(run.path.parent).train(resume=False),
        StoreError,
        r"holds a run already \(2 recorded steps\): resume it, or choose another directory",
    ),
    Row("a newer schema", _newer, StoreError, f"schema_version = {SCHEMA_VERSION + 1}; .* upgrade"),
    Row("a truncated step", _truncated, StoreError, r"000001\.zarr\.zip is torn"),
    Row("a torn step", _torn, StoreError, r"000001\.zarr\.zip is torn"),
    Row(
        "a step that is not there",
        lambda run: run.load(7),
        StoreError,
        "has no step 7; recorded steps: 0, 1",
    ),
]


@pytest.mark.parametrize("row", AFTER, ids=lambda row: row.name)
@pytest.mark.slow
def test_what_is_there_is_checked_and_kept(row, run):
    before = (run.path / "steps/000000.zarr.zip").read_bytes()
    with pytest.raises(row.error, match=row.message):
        row.act(run)
    assert (run.path / "steps/000000.zarr.zip").read_bytes() == before


def test_a_directory_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/thesis.tex").write_text("x")
    with pytest.raises(StoreError, match=r"not empty \(thesis\.tex is in it\) and not a run"):
        trainer(tmp_path).train()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.tex"]


def test_every_error_is_the_librarys():
    """So that one except clause catches what was raised on purpose."""
    for error in (ConfigError, ModelError, NonFiniteError, PromptError, StoreError):
        assert issubclass(error, OPDProbeError)
    assert issubclass(VocabularyError, OPDProbeError)
