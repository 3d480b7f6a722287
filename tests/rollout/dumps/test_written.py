"""Dumps that lm-evaluation-harness, inspect-ai and ms-swift themselves wrote, of sft-small.

The files in `written/` come from lm-eval 0.4.13, inspect-ai 0.3.285 and ms-swift 4.6.0, run on a
CPU in 2026 with a model of the zoo. Dates, paths and tracebacks were taken out; every field is as
its writer wrote it. While they ran, transformers' `generate` was wrapped: `drawn.json` holds what
the model was given and what it drew, as token ids, in the order in which the rollouts are read.
"""

import json
import math
import zipfile
from pathlib import Path

import pytest

from opdprobe.errors import RolloutError
from opdprobe.models.load import load_tokenizer
from opdprobe.rollout.dumps import read_dumps
from opdprobe.rollout.dumps.files import rows_of
from opdprobe.rollout.dumps.read import DumpReader
from opdprobe.rollout.dumps.text import TextEncoder
from opdprobe.testing.testbed.members import zoo_path

WRITTEN = Path(__file__).parent / "written"
# Of all but two, in which nothing was drawn: inspect's mockllm answered (inspect-choices.eval), and
# a server that always says the same (samples_sums_served, by lm-eval's local-chat-completions).
DRAWN = json.loads((WRITTEN / "drawn.json").read_text())


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(zoo_path("sft-small"))


def read(name, **options):
    return list(read_dumps(WRITTEN / name, **options))


@pytest.mark.parametrize("name", DRAWN)
def test_text_becomes_the_ids_that_the_model_was_given_and_drew(name, tokenizer):
    encode = TextEncoder(tokenizer, [tokenizer.eos_token_id])
    options = {} if name == "completions.jsonl" else {"step": 0}
    found = [encode(one) for one in read(name, **options, on_error="skip")]
    assert len(found) == len(DRAWN[name])
    for rollout, (prompt, response) in zip(found, DRAWN[name], strict=True):
        assert list(rollout.prompt_ids) == prompt
        # None of the three says whether a response ended: its end token is lost.
        assert rollout.finished is None
        assert list(rollout.response_ids) == [i for i in response if i != tokenizer.eos_token_id]
    assert encode.counts.prompts_same == encode.counts.responses_same == len(found)


NAN = math.nan
GRADES = {
    # Two filters wrote the same samples; the first looks for the last number.
    "samples_sums_2026-01-01T00-00-00.000000.jsonl": [0, 0, 0],
    "samples_sums_plain_2026-01-01T00-00-00.000000.jsonl": [0, 0, 0],
    "samples_sums_served_2026-01-01T00-00-00.000000.jsonl": [0, 0, 0],
    # "repeats: 2": the filter takes the first answer, and of the second there is no metric.
    "samples_sums_twice_2026-01-01T00-00-00.000000.jsonl": [NAN] * 6,
    "inspect-sampled.eval": [0, 0, 1, 1, 1, 0],
    "inspect-turned.json": [1, 0],
    "inspect-turned.eval": [0, 0],
    # "num_choices: 2": the score, which is C, is of the first answer.
    "inspect-choices.eval": [NAN, NAN],
    # The column "solution" is no reward.
    "completions.jsonl": [1, 0, 0, 0, 0, 0, 0, 0],
}


@pytest.mark.parametrize("name", GRADES)
def test_grades_are_those_of_the_response_that_was_graded(name):
    found = [rollout.correct for rollout in read(name, step=0, on_error="skip")]
    assert found == pytest.approx(GRADES[name], nan_ok=True)


def test_prompts_of_several_tasks_have_names_of_their_own():
    """Each task has a document 0: as text, in the chat template and as messages, it is another."""
    reader = DumpReader(WRITTEN, "lm-eval", step=0)
    assert [path.name.partition("_2026")[0] for path in reader.files] == [
        "samples_sums",
        "samples_sums_plain",
        "samples_sums_served",
        "samples_sums_twice",
    ]
    names = {}
    for rollout in reader:
        names.setdefault(rollout.prompt_id, set()).add(str(rollout.prompt))
    assert all(len(prompts) == 1 for prompts in names.values())
    documents = [name.partition("-")[0] for name in names]
    assert sorted(documents) == ["0"] * 3 + ["1"] * 3 + ["2"] * 3


def test_messages_that_lm_eval_sent_to_a_server_are_read():
    """It wraps them, as a text, in a list."""
    first, *_ = read("samples_sums_served_2026-01-01T00-00-00.000000.jsonl", step=0)
    assert first.prompt == [
        {"role": "system", "content": "7"},
        {"role": "user", "content": "add 7 12 3 19 4"},
    ]
    assert first.response == "the total means 45"


def test_an_answer_of_inspect_has_its_prompt_as_the_solvers_made_it():
    first, second = read("inspect-turned.json", step=0, on_error="skip")
    assert first.prompt == [
        {"role": "system", "content": "7"},
        {"role": "user", "content": "add 7 12 3 19 4"},
    ]
    assert second.prompt[1]["content"] == "add" + " 3" * 60


def test_a_sample_of_inspect_that_failed_is_named():
    with pytest.raises(RolloutError, match=r"row 1: the sample failed with .*ValueError\('no'\)"):
        read("inspect-turned.json", step=0)


def test_inspect_says_why_an_answer_ended_if_the_provider_does():
    assert [one.finished for one in read("inspect-choices.eval", step=0)] == [True, False]


def test_log_probabilities_of_inspect_are_not_of_the_tokens_that_were_drawn(tokenizer):
    """Why they are not read: the provider "hf" lists the most probable tokens."""
    rollouts = read("inspect-sampled.eval", step=0)
    assert all(rollout.sampler_logp is None for rollout in rollouts)
    (row,) = (
        row.data
        for row in rows_of(WRITTEN / "inspect-sampled.eval", 0)
        if row.source.endswith("a_epoch_1.json")
    )
    (choice,) = row["output"]["choices"]
    listed = [one["token"] for one in choice["logprobs"]["content"]]
    assert listed[:4] == ["today", "the", "total", "means"]
    assert choice["message"]["content"].split()[:4] == ["whereupon", "the", "total", "means"]


def test_the_batch_that_ms_swift_logs_again_at_the_end_is_read_once():
    written = (WRITTEN / "completions.jsonl").read_text().splitlines()
    assert written[1] == written[2]
    assert [rollout.step for rollout in read("completions.jsonl")] == [1] * 4 + [2] * 4
    assert [rollout.source.rpartition(":")[2] for rollout in read("completions.jsonl")] == [
        f"{line}, index {i}" for line in (1, 2) for i in range(4)
    ]


@pytest.mark.parametrize("at", ["start", "end"])
def test_a_damaged_log_of_inspect_is_named(at, tmp_path):
    """Its members are packed by zstd, which zipfile cannot read before Python 3.14."""
    with zipfile.ZipFile(WRITTEN / "inspect-choices.eval") as archive:
        member = archive.getinfo("samples/a_epoch_1.json")
        assert member.compress_type == 93
    log = bytearray((WRITTEN / "inspect-choices.eval").read_bytes())
    packed = member.header_offset + 30 + len(member.filename)
    place = packed if at == "start" else packed + member.compress_size - 5
    log[place] ^= 255
    damaged = tmp_path / "log.eval"
    damaged.write_bytes(log)
    with pytest.raises(RolloutError, match=r"log\.eval: not a readable (\.eval log|file)"):
        list(read_dumps(damaged, "inspect", step=0))
