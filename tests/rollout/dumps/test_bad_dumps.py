"""What is wrong in a dump is named with its file and line, whatever it is."""

import contextlib
import gzip
import json
import logging
import os
import pickle
import zipfile

import made_dumps as made
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_dumps import ASKED, LOGP, MAKERS, PICKLED, PROMPT, RESPONSE, TEXT

from opdprobe.errors import ConfigError, RolloutError
from opdprobe.rollout.dumps import FORMATS, read_dumps
from opdprobe.rollout.dumps import files as dump_files
from opdprobe.rollout.dumps.format import Format
from opdprobe.rollout.dumps.row import Row

TRACE = {
    "step": 1,
    "prompt_tokens": PROMPT,
    "response_tokens": RESPONSE,
    "logprobs": LOGP,
    "reward": 1.0,
}
VERL = {"input": "7", "output": "8", "gts": "9", "score": 1, "step": 1}

ROWS = [
    ("an id below 0", {**TRACE, "response_tokens": [1, -1, 2]}, "holds -1; expected token ids"),
    ("an id too large", {**TRACE, "response_tokens": [2**31, 1, 2]}, "holds 2147483648; expected"),
    (
        "an id that is no whole number",
        {**TRACE, "prompt_tokens": [1, 2.0]},
        "'prompt_tokens' is a list with 2.0 at index 1; expected token ids",
    ),
    ("an id that is a bool", {**TRACE, "prompt_tokens": [True, 2]}, "list with True at index 0"),
    ("ids in a text", {**TRACE, "prompt_tokens": "[1, 2]"}, "is '[1, 2]'; expected token ids"),
    ("a probability", {**TRACE, "logprobs": [0.5, 0, 0]}, "holds 0.5; expected log-probabilities"),
    (
        "too few log-probabilities",
        {**TRACE, "logprobs": [-1]},
        "has 1 values; expected one for each",
    ),
    ("a log-probability in words", {**TRACE, "logprobs": [-1, "x", 0]}, "with 'x' at index 1"),
    ("a huge number", {**TRACE, "logprobs": [-1, 10**400, 0]}, "holds a number too large"),
    ("no column", {"prompt_tokens": PROMPT, "response_tokens": None}, "no 'response_tokens'"),
    ("a step below 0", {**TRACE, "step": -3}, "'step' is -3; expected a whole number from 0 on"),
    ("a step of half", {**TRACE, "step": 0.5}, "'step' is 0.5; expected a whole number"),
    ("no step", {**TRACE, "step": None}, "of which step it is: give it with --step N"),
    ("text that is none", {**VERL, "output": 3}, "'output' is 3; expected a text"),
    ("half a surrogate pair", {**VERL, "output": "\ud800"}, "half a surrogate pair"),
    (
        "messages without roles",
        {"step": 1, "messages": [{"content": "7"}]},
        "expected a role and a content",
    ),
    (
        "columns of several lengths",
        {"step": [1, 1], "prompt": ["7", "8"], "completion": ["9"]},
        "'completion' is ['9']; expected a list of 2",
    ),
    (
        "turns with tools",
        {"step": 1, "prompt": ASKED, "completion": [*ASKED, *ASKED]},
        "'completion' has 2 messages",
    ),
]
BY = {"prompt_tokens": "open-instruct", "input": "verl", "messages": "thunlp-rollout"}


@pytest.mark.parametrize(("row", "message"), [row[1:] for row in ROWS], ids=[r[0] for r in ROWS])
def test_a_bad_row_is_named(row, message, tmp_path):
    name = next((BY[key] for key in row if key in BY), "ms-swift")
    path = made.lines(tmp_path / "rows.jsonl", [row])
    with pytest.raises(RolloutError) as caught:
        list(read_dumps(path, name))
    assert str(caught.value).startswith(f"{path}:1")
    assert message in str(caught.value)


LINES = [
    (b'{"step": 1, "prompt_tok', "not JSON (Unterminated", "is it still being written?"),
    (b'{"step": "\xff"}\n', "not UTF-8 text", "save it as UTF-8"),
    (b"[" * 100_000 + b"\n", "not JSON (nested too deeply)", "expected a JSON object per line"),
    (b"3\n", "not a JSON object: '3", "expected a JSON object per line"),
    (b"[3]\n", "not a JSON object", "expected a JSON object per line"),
    (b"1" * 5000 + b"\n", "not JSON (Exceeds the limit", "expected a JSON object per line"),
]


@pytest.mark.parametrize(("line", "reason", "advice"), LINES, ids=[row[1] for row in LINES])
def test_a_bad_line_is_named_and_can_be_left_out(line, reason, advice, tmp_path, caplog):
    path = tmp_path / "run_rollouts_000000.jsonl"
    path.write_bytes(json.dumps(TRACE).encode() + b"\n\n" + line)
    with pytest.raises(RolloutError) as caught:
        list(read_dumps(path))
    assert str(caught.value).startswith(f"{path}:3: {reason}")
    assert advice in str(caught.value)
    with caplog.at_level(logging.WARNING):
        assert len(list(read_dumps(path, on_error="skip"))) == 1
    assert "It is left out." in caplog.text


def test_a_line_without_end_is_not_read_into_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(dump_files, "MOST_LINE", 1000)
    path = tmp_path / "1.jsonl"
    path.write_bytes(json.dumps(VERL).encode() + b"\n" + b"x" * 5000)
    with pytest.raises(RolloutError, match=r"1\.jsonl:2: a line of more than 1000 bytes"):
        list(read_dumps(path))


def broken(folder):
    """Files that are no dumps, by name."""
    (folder / "a.parquet").write_bytes(b"PAR1")
    (folder / "a.eval").write_bytes(b"PK")
    (folder / "a.pt").write_bytes(b"PK\x03\x04")
    (folder / "a.json").write_text('{"samples": [')
    (folder / "a.csv").write_text('a,b\n"1')
    (folder / "utf16.jsonl").write_bytes('{"step": 1}'.encode("utf-16"))
    (folder / "zipped.jsonl").write_bytes(gzip.compress(b'{"step": 1}'))
    (folder / "torn.jsonl.gz").write_bytes(gzip.compress(b'{"step": 1}' * 1000)[:-9])
    (folder / "empty.jsonl").write_text("")
    (folder / "a.txt").write_text("7")
    (folder / "columns.jsonl").write_text('{"a": 1}\n')
    (folder / "a.xml").mkdir()


BROKEN = {
    "a.parquet": "not a readable parquet file",
    "a.eval": "not a readable .eval log",
    "a.pt": "a pickle, which can run code when it is read; .* name its format: --format slime or",
    "a.json": "not JSON",
    "a.csv": r"a\.csv:2: not CSV",
    "utf16.jsonl": "a text in UTF-16",
    "zipped.jsonl": "compressed by gzip; expected a name that ends in .gz",
    "torn.jsonl.gz": "not a readable file",
    "empty.jsonl": "no row that can be read, as no known format has",
    "a.txt": "a file of kind '.txt'; expected .jsonl",
    "columns.jsonl": r"the columns \['a'\], as no known format has",
    "a.xml": "a directory without dumps",
    "none.jsonl": "no such file or directory, and no dump fits it as a pattern",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_named(name, tmp_path):
    broken(tmp_path)
    with pytest.raises(RolloutError, match=BROKEN[name]) as caught:
        list(read_dumps(tmp_path / name))
    assert str(tmp_path / name) in str(caught.value)


class Shell:
    def __reduce__(self):
        return os.system, ("touch ran",)


@pytest.mark.parametrize("kind", ["torch", "pickle"])
def test_a_pickle_runs_nothing(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    value = {"rollout_id": 0, "samples": [Shell()]}
    if kind == "torch":
        torch.save(value, "0.pt")
    else:
        (tmp_path / "0.pt").write_bytes(pickle.dumps(value))
    what = r"of (posix|nt)\.system" if kind == "torch" else "that torch.save does not write"
    with pytest.raises(RolloutError, match=rf"^0\.pt: .*{what}.*can run code"):
        list(read_dumps("0.pt", "slime"))
    assert not (tmp_path / "ran").exists()


def test_arrays_in_a_pickle_are_read(tmp_path):
    sample = made._sample(
        tokens=np.array(PROMPT + RESPONSE), response_length=np.int64(3), loss_mask=np.ones(3, int)
    )
    path = made.saved(tmp_path / "0.pt", {"rollout_id": 0, "samples": [sample]})
    (rollout,) = read_dumps(path, "slime")
    assert (rollout.prompt_ids, rollout.response_ids) == (PROMPT, RESPONSE)


@pytest.mark.parametrize("value", [{"rollout_id": 0}, [1], {"samples": 3}, {"samples": [3]}])
def test_another_torch_file_is_named(value, tmp_path):
    path = made.saved(tmp_path / "0.pt", value)
    with pytest.raises(RolloutError, match="expected a dict"):
        list(read_dumps(path, "slime"))


def test_dumps_of_several_formats_are_not_mixed(tmp_path):
    made.verl(tmp_path)
    made.open_instruct(tmp_path)
    with pytest.raises(RolloutError, match=r"dumps of several formats: .*verl .*open-instruct"):
        read_dumps(tmp_path)
    assert len(list(read_dumps(tmp_path, "verl"))) == 4
    with pytest.raises(RolloutError, match="2 files, none of the format verl"):
        read_dumps(made.trl(tmp_path / "other"), "verl")
    with pytest.raises(ConfigError, match="format = 'vrl'; expected one of verl, "):
        read_dumps(tmp_path, "vrl")


def test_a_step_that_comes_back_is_named(tmp_path):
    rows = [{**TRACE, "step": step} for step in (1, 2, 1)]
    path = made.lines(tmp_path / "run_rollouts_000000.jsonl", rows)
    with pytest.raises(RolloutError, match=r"jsonl:3: step 1 again, after step 2; expected each"):
        list(read_dumps(path))


def test_files_are_read_in_the_order_of_steps(tmp_path):
    for step in (10, 9, 100):
        made.lines(tmp_path / f"{step}.jsonl", [{**VERL, "step": step}])
    assert [rollout.step for rollout in read_dumps(tmp_path)] == [9, 10, 100]
    assert [rollout.step for rollout in read_dumps(tmp_path / "1*.jsonl")] == [10, 100]


def test_a_zip_that_unpacks_to_much_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(dump_files, "MOST_LINE", 1000)
    path = tmp_path / "log.eval"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("samples/a_epoch_1.json", "[" * 10_000)
    with pytest.raises(RolloutError, match="10000 bytes; expected at most 1000"):
        list(read_dumps(path, "inspect", step=0))


def test_a_bank_without_lists_says_which_switch_keeps_them(tmp_path):
    folder = made.token_bank(tmp_path, "jsonl")
    path = folder / "rollout_000000.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    made.lines(path, [{**row, "student_top_ids": ""} for row in rows])
    with pytest.raises(RolloutError, match=r"000000\.jsonl:1: .*--opd-token-bank-raw-topk keeps"):
        list(read_dumps(path))
    made.lines(path, rows[:2] + rows[3:])
    with pytest.raises(RolloutError, match="'resp_len' is 3, but 2 rows follow"):
        list(read_dumps(path))


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 2**33)
    | st.floats()
    | st.text(max_size=3)
    | st.sampled_from(["7", TEXT]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "nodes", "0"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def real_rows(tmp_path_factory):
    """A row of each format as it is written."""
    folder = tmp_path_factory.mktemp("dumps")
    found = {}
    for name, make in MAKERS.items():
        path = make(folder / name)
        files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
        for file in files:
            if dump_files.kind_of(file) in FORMATS[name].kinds:
                row = next(FORMATS[name].grouped(dump_files.rows_of(file, 0)))
                if name in PICKLED or FORMATS[name].fits(row.data, file):
                    found[name] = dict(row.data)
                    break
    return found


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=12)  # of each format
@given(data=st.data())
def test_whatever_a_row_holds_there_is_no_other_error(name, real_rows, data):
    row = dict(real_rows[name])
    changed = data.draw(st.sampled_from(sorted(row)))
    row[changed] = data.draw(JSON)
    if isinstance(real_rows[name][changed], dict) and data.draw(st.booleans()):
        inner = dict(real_rows[name][changed])
        if inner:
            inner[data.draw(st.sampled_from(sorted(inner)))] = data.draw(JSON)
        row[changed] = inner
    found: Format = FORMATS[name]
    if name == "token-bank" and changed == "tokens":
        return  # what the reader itself has put there
    with contextlib.suppress(RolloutError):
        for rollout in found.rollouts(Row(row, "here:1", 0)):
            assert rollout.source.startswith("here:1")
            assert rollout.step >= 0
