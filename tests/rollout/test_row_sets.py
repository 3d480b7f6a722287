"""Directories of prompt files, and data sets of `datasets`."""

import json
import sys

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from opdprobe.errors import MissingExtraError, PromptError
from opdprobe.rollout.prompt_files import load_prompts, prompts_from_rows

ROWS = [
    {"prompt": [{"role": "user", "content": f"{n}+1?"}], "answer": f"{n + 1}"} for n in range(5)
]
WANT = prompts_from_rows(ROWS)


def parquet(path, rows=ROWS):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def lines(path, rows=ROWS):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


# --- directories of files


@pytest.mark.parametrize(
    "names",
    [
        ("train-00000-of-00002.parquet", "train-00001-of-00002.parquet"),
        ("data/0000.parquet", "data/0001.parquet"),
        ("part-0.parquet", "part-1.parquet"),
    ],
)
def test_shards_are_read_in_order(tmp_path, names):
    parquet(tmp_path / names[1], ROWS[3:])
    parquet(tmp_path / names[0], ROWS[:3])
    (tmp_path / "README.md").write_text("a card")
    lines(tmp_path / ".cache" / "old.jsonl")
    (tmp_path / "dataset_infos.json").write_text("{}")
    assert load_prompts(tmp_path) == WANT
    assert load_prompts(str(tmp_path), limit=4) == WANT[:4]
    assert load_prompts(tmp_path, limit=2) == WANT[:2]


def test_a_directory_of_json_lines(tmp_path):
    lines(tmp_path / "a.jsonl", ROWS[:3])
    lines(tmp_path / "b.jsonl", ROWS[3:])
    assert load_prompts(tmp_path) == WANT
    (tmp_path / "b.jsonl").write_text('{"prompt": "1"}\n{"prom')
    with pytest.raises(PromptError, match=r"1 of 5 rows .*: row 4: b\.jsonl, line 2 is not JSON"):
        load_prompts(tmp_path)
    assert len(load_prompts(tmp_path, on_error="skip")) == 4


def test_an_id_in_two_shards_is_refused(tmp_path):
    lines(tmp_path / "a.jsonl", [{"prompt": "1", "id": "x"}])
    lines(tmp_path / "b.jsonl", [{"prompt": "2", "id": "x"}])
    with pytest.raises(PromptError, match="row 1: id 'x' repeats row 0"):
        load_prompts(tmp_path)


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train.parquet", "test.parquet"),
        ("data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"),
        ("training/0.parquet", "eval/0.parquet"),
    ],
)
def test_a_split_is_named_after_a_colon(tmp_path, train, test):
    parquet(tmp_path / train)
    parquet(tmp_path / test, ROWS[:2])
    assert load_prompts(f"{tmp_path}:train") == WANT
    assert load_prompts(f"{tmp_path}:test") == WANT[:2]
    reason = r"the splits \['test', 'train'\]; name one, such as .*:test, or a file"
    with pytest.raises(PromptError, match=reason):
        load_prompts(tmp_path)
    with pytest.raises(PromptError, match=r":dev: the directory has the splits \['test', 'train'"):
        load_prompts(f"{tmp_path}:dev")


def test_shards_named_for_a_split_of_another_name(tmp_path):
    parquet(tmp_path / "AIME24-00000-of-00001.parquet", ROWS[:2])
    parquet(tmp_path / "AIME25-00000-of-00001.parquet")
    assert load_prompts(f"{tmp_path}:AIME25") == WANT


def test_directories_that_are_not_one_set(tmp_path):
    with pytest.raises(PromptError, match="a directory without prompt files; expected"):
        load_prompts(tmp_path)
    parquet(tmp_path / "main" / "train.parquet")
    parquet(tmp_path / "socratic" / "train.parquet")
    with pytest.raises(PromptError, match=r"in several directories, .*main.*: name one of them"):
        load_prompts(tmp_path)
    assert load_prompts(tmp_path / "main") == WANT
    lines(tmp_path / "main" / "more.jsonl")
    with pytest.raises(PromptError, match=r"a directory of \.jsonl, \.parquet files"):
        load_prompts(tmp_path / "main")
    with pytest.raises(PromptError, match=r"main/train\.parquet is a file, which has no splits"):
        load_prompts(f"{tmp_path}/main/train.parquet:train")
    with pytest.raises(PromptError, match="is a directory, which has no configurations"):
        load_prompts(f"{tmp_path}:main:train")


# --- what datasets saved


def test_a_saved_dataset(tmp_path):
    saved = datasets.Dataset.from_list(ROWS)
    saved.with_format("numpy").save_to_disk(tmp_path / "saved", num_shards=2)
    assert load_prompts(tmp_path / "saved") == WANT
    assert load_prompts(tmp_path / "saved", limit=3) == WANT[:3]
    with pytest.raises(PromptError, match="saved:test: the data set has no splits; leave test out"):
        load_prompts(f"{tmp_path}/saved:test")
    (tmp_path / "saved" / "state.json").write_text("{")
    with pytest.raises(PromptError, match=r"saved: not a readable data set .*check that it is com"):
        load_prompts(tmp_path / "saved")


def test_a_saved_dataset_with_splits(tmp_path):
    both = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict(train=both, test=both.select([0])).save_to_disk(tmp_path / "two")
    assert load_prompts(f"{tmp_path}/two:train") == WANT
    with pytest.raises(PromptError, match=r"two: a data set with the splits \['test', 'train'\]; "):
        load_prompts(tmp_path / "two")
    datasets.DatasetDict(train=both).save_to_disk(tmp_path / "one")
    assert load_prompts(tmp_path / "one") == WANT


# --- the Hub


@pytest.fixture
def hub(monkeypatch):
    """The Hub, as load_dataset shows it; what was asked for."""
    asked = []
    split = datasets.Dataset.from_list(ROWS)

    def load_dataset(path, name=None, *, split=None):
        asked.append((path, name, split))
        if path == "gone/away":
            raise datasets.exceptions.DatasetNotFoundError("Dataset 'gone/away' doesn't exist")
        data = datasets.DatasetDict(train=data_of, test=data_of.select([0]))
        return data if split is None else data["train"]

    data_of = split
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("openai/gsm8k:main:test", ("openai/gsm8k", "main", "test")),
        ("openai/gsm8k:train", ("openai/gsm8k", None, "train")),
        ("o/d.v2:train[:10%]+test[-3:]", ("o/d.v2", None, "train[:10%]+test[-3:]")),
        ("o/d:2024-10:train[5:8]", ("o/d", "2024-10", "train[5:8]")),
        ("gsm8k:main:test", ("gsm8k", "main", "test")),
    ],
)
def test_a_hub_name_goes_to_datasets(hub, name, asked):
    assert load_prompts(name) == WANT
    assert hub == [asked]


def test_hub_names_that_cannot_be_read(hub, tmp_path, monkeypatch):
    with pytest.raises(PromptError, match=r"openai/gsm8k: .* the splits \['test', 'train'\]; name"):
        load_prompts("openai/gsm8k")
    with pytest.raises(
        PromptError, match=r"nor a data set that can be loaded \(Dataset 'gone/away"
    ):
        load_prompts("gone/away")
    hub.clear()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for name in ("data/prompts", "prompts.jsonl", "o/prompts.jsonl", "prompts", "a/b/c:train"):
        with pytest.raises(PromptError, match=f"{name}: no such file; expected"):
            load_prompts(name)
    assert not hub


def test_without_datasets_its_package_is_named(tmp_path, monkeypatch):
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    parquet(tmp_path / "shards" / "0.parquet")
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert load_prompts(tmp_path / "shards") == WANT
    for name in (f"{tmp_path}/saved", "openai/gsm8k:main:test"):
        with pytest.raises(MissingExtraError, match=r"needs datasets, .*run pip install datasets"):
            load_prompts(name)


# --- objects of other libraries


def test_rows_of_other_libraries():
    data = datasets.Dataset.from_list(ROWS)
    for rows in (
        pa.Table.from_pylist(ROWS),
        pa.RecordBatch.from_pylist(ROWS),
        pd.DataFrame(ROWS),
        data,
        data.to_iterable_dataset(),
        *(data.with_format(kind) for kind in ("numpy", "pandas", "arrow")),
    ):
        assert prompts_from_rows(rows) == WANT


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ({"prompt": ["1", "2"]}, r"a dict of \['prompt'\]; expected rows: a list of mappings"),
        (datasets.DatasetDict(), "a DatasetDict of .*one split of a data set"),
        ("2+2=", "'2\\+2=' is of type str; expected rows"),
        (7, "7 is of type int; expected rows"),
    ],
    ids=["columns", "splits", "text", "number"],
)
def test_what_is_no_collection_of_rows(rows, reason):
    with pytest.raises(PromptError, match=reason):
        prompts_from_rows(rows)
