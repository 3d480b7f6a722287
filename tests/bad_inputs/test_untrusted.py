"""A run from anybody: nothing in it is executed, obeyed by the terminal, or leads elsewhere."""

import json
import logging
import os
import pickle
import zipfile

import pytest
import yaml
import zarr
from zarr.storage import ZipStore

from opdprobe.cli.parser import main
from opdprobe.errors import ConfigError, StoreError
from opdprobe.store import RunWriter, open_run
from opdprobe.store.safe_text import parse_yaml
from opdprobe.testing import synthetic_run
from opdprobe.train.config import OPDConfig


@pytest.fixture
def run(tmp_path):
    return synthetic_run(tmp_path / "run", [0, 1], n_rollouts=2, length=2, k=4)


class Harm:
    """Makes a folder where it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_pickle_in_a_step_is_not_loaded(run, tmp_path, monkeypatch):
    """A filter of zarr format 2 may unpickle, and zarr still obeys it."""
    # Its newest codecs ask first; older ones do as they are told.
    monkeypatch.setattr("numcodecs.pickles.ALLOW_UNSAFE_PICKLE_DECODE", True, raising=False)
    harm, file = tmp_path / "harm", run.path / "steps/000000.zarr.zip"
    array = {
        "zarr_format": 2,
        "shape": [1],
        "chunks": [1],
        "dtype": "|O",
        "fill_value": "",
        "order": "C",
        "filters": [{"id": "vlen-utf8"}, {"id": "pickle"}],
        "compressor": None,
    }
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("zarr.json", "{}")
        archive.writestr(".zgroup", json.dumps({"zarr_format": 2}))
        archive.writestr("entropy/.zarray", json.dumps(array))
        archive.writestr("entropy/0", pickle.dumps(Harm(harm)))
    # The file does what it is made for: zarr alone falls for it.
    with ZipStore(file, mode="r") as store, pytest.raises(TypeError):
        zarr.open_array(store, path="entropy", mode="r", zarr_format=2)[:]
    assert harm.exists()
    harm.rmdir()

    with pytest.raises(StoreError, match="a member called"):
        run.load(0)
    with pytest.raises(StoreError, match="a member called"):
        run.states()
    assert not harm.exists()


def test_a_yaml_tag_is_not_obeyed(run, tmp_path):
    harm = tmp_path / "harm"
    text = f"k: !!python/object/apply:os.mkdir ['{harm}']\n"
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ConfigError, match="not readable as YAML"):
        OPDConfig.from_yaml(tmp_path / "config.yaml")
    (run.path / "config.yaml").write_text(text)
    with pytest.raises(StoreError, match="cannot be read"):
        open_run(run.path)
    assert not harm.exists()
    yaml.unsafe_load(text)
    assert harm.exists()


def test_a_reference_in_yaml_may_stand_for_one_value_only():
    assert parse_yaml("a: &x 7\nb: *x\n") == {"a": 7, "b": 7}
    with pytest.raises(ValueError, match=r"a reference \(\*name\) to a list or mapping"):
        parse_yaml("a: &x [7]\nb: *x\n")
    with pytest.raises(ValueError, match="a reference"):
        parse_yaml("a: &x {k: 7}\nb: {<<: *x}\n")


@pytest.mark.parametrize(
    "name", [".tmp-metrics.jsonl", ".tmp-config.yaml", "steps/.tmp-000002.zarr.zip"]
)
def test_writing_does_not_follow_a_link(run, tmp_path, name):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (run.path / name).symlink_to(victim)
    writer = RunWriter(
        run.path,
        attrs={key: run.attrs[key] for key in ("student", "teacher")},
        config=run.config,
        resume=True,
    )
    (run.path / name).unlink(missing_ok=True)
    (run.path / name).symlink_to(victim)  # once more, behind the writer's back
    writer.truncate_after(0)
    writer.write_step(
        2, synthetic_run(tmp_path / "other", [2], n_rollouts=2, length=2, k=4).load(2)
    )
    assert victim.read_text() == "precious"


def test_what_a_run_calls_itself_is_shown_and_not_obeyed(run, capsys):
    attrs = json.loads((run.path / "run.json").read_text())
    name = "\x1b]0;owned\x07\x1b[2Jmodel\u202e[red]"
    (run.path / "run.json").write_text(json.dumps(attrs | {"student": name}))
    (run.path / "config.yaml").write_text('k: "\\e[31m[bold]16"\n')
    (run.path / "metrics.jsonl").write_text('{"step": 0, "\\u001b[31mloss": 1.0}\n')
    assert main(["inspect", str(run.path)]) == 0
    shown = capsys.readouterr().out
    assert not set(shown) & {"\x1b", "\x07", "\u202e"}
    assert "[red]" in shown
    assert "\\x1b[31m[bold]16" in shown


def test_what_the_log_quotes_is_shown_and_not_obeyed(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    file = tmp_path / "\x1b[2J[red]prompts.jsonl"
    file.write_text(json.dumps({"prompt": r"What is 2 + 2? \boxed{{}}"}) + "\n")
    words = [str(word) for word in ("dedup", file, "--against", "zoo:easy", "--out")]
    assert main([*words, str(tmp_path / "out.jsonl")]) == 0
    said = "".join(capsys.readouterr())
    assert "\\x1b[2J[red]prompts.jsonl" in "".join(said.split())
    assert "\x1b" not in said
