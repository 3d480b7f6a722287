"""A run from anybody: nothing in it is executed, obeyed by the terminal, or leads elsewhere."""

import json
import logging
import os
import pickle
import shutil
import zipfile

import numpy as np
import pytest
import yaml
import zarr
from numcodecs.vlen import VLenUTF8
from numcodecs.zstd import Zstd
from zarr.storage import ZipStore

from opdprobe.cli.parser import main
from opdprobe.errors import ConfigError, StoreError
from opdprobe.probes.logs import read_log
from opdprobe.store import RunWriter, open_run
from opdprobe.store.safe_text import parse_yaml
from opdprobe.store.verify import verify_run
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


@pytest.fixture
def outside(tmp_path):
    """A file and a directory that are no part of the run; a test may not change them."""
    folder = tmp_path / "outside"
    (folder / "old").mkdir(parents=True)
    (folder / "file").write_text("precious")
    (folder / "old/.tmp-file").write_text("precious")
    (folder / "old/000001").mkdir()
    before = sorted(folder.rglob("*"))
    yield folder
    assert sorted(folder.rglob("*")) == before
    assert (folder / "file").read_text() == (folder / "old/.tmp-file").read_text() == "precious"


def continued(run):
    attrs = {key: run.attrs[key] for key in ("student", "teacher")}
    return RunWriter(run.path, attrs=attrs, config=run.config, resume=True)


def planted(path, target):
    """Put a link in the place of what is there."""
    if path.exists():
        path.rename(path.with_name(f"former-{path.name}"))
    path.symlink_to(target)
    return f"{path} is a link to {target}, which is not followed"


@pytest.mark.parametrize(
    ("name", "target"),
    [
        *((name, "file") for name in ("run.json", "config.yaml", ".lock")),
        *((name, "file") for name in ("metrics.jsonl", "evaluations.jsonl")),
        *((name, "old") for name in ("steps", "checkpoints")),
        *((name, "absent") for name in ("metrics.jsonl", "steps", "checkpoints", ".lock")),
    ],
)
def test_a_run_with_a_link_in_it_is_not_continued(run, outside, name, target):
    message = planted(run.path / name, outside / target)
    before = sorted(run.path.rglob("*"))
    with pytest.raises(StoreError) as caught:
        continued(run)
    assert message in str(caught.value)
    assert sorted({*run.path.rglob("*")} - {run.path / ".lock"}) == sorted(
        {*before} - {run.path / ".lock"}
    )


@pytest.mark.parametrize("name", ["steps", "metrics.jsonl", ".lock"])
def test_a_run_is_not_begun_over_a_link(tmp_path, outside, name):
    (tmp_path / "new").mkdir()
    message = planted(tmp_path / "new" / name, outside / "absent")
    with pytest.raises(StoreError) as caught:
        RunWriter(tmp_path / "new", attrs={}, config={}, resume=False)
    assert message in str(caught.value) or f"{name} is in it" in str(caught.value)


def test_a_link_that_comes_later_is_not_followed(run, tmp_path, outside):
    writer = continued(run)
    message = planted(run.path / "metrics.jsonl", outside / "file")
    with pytest.raises(StoreError) as caught:
        writer.log_metrics(2, {"loss": 1.0})
    assert message in str(caught.value)
    message = planted(run.path / "evaluations.jsonl", outside / "absent")
    with pytest.raises(StoreError) as caught:
        writer.log_evaluation(2, "easy", ["a"], [1.0])
    assert message in str(caught.value)
    message = planted(run.path / "steps/000002.zarr.zip", outside / "file")
    other = synthetic_run(tmp_path / "other", [2], n_rollouts=2, length=2, k=4)
    with pytest.raises(StoreError) as caught:
        writer.write_step(2, other.load(2))
    assert message in str(caught.value)
    (run.path / "metrics.jsonl").unlink()
    (run.path / "evaluations.jsonl").unlink()
    writer.truncate_after(-1)  # deletes the link of the step, and not what it leads to


def test_a_lock_with_a_second_name_is_not_emptied(run, outside):
    (run.path / ".lock").unlink(missing_ok=True)
    os.link(outside / "file", run.path / ".lock")
    with pytest.raises(StoreError, match=r"\.lock has a second name"):
        continued(run)


@pytest.mark.parametrize("when", ["before", "after"])
def test_no_file_is_changed_that_has_a_second_name(run, tmp_path, when):
    """As in a copy by ``cp -al``, or in an archive that names a file outside."""
    outside = tmp_path / "outside"
    outside.mkdir()
    with (run.path / "evaluations.jsonl").open("a") as file:
        file.write('{"step": 0, "benchmark": "easy", "prompt_id": ["a"], "score": [0.5]}\n')
    writer = continued(run) if when == "after" else None
    other = synthetic_run(tmp_path / "other", [2], n_rollouts=2, length=2, k=4)
    shutil.copy(other.path / "steps/000002.zarr.zip", run.path / "steps")
    names = [p.relative_to(run.path) for p in run.path.rglob("*") if p.is_file()]
    names = [name for name in names if name.name != ".lock"]
    for name in names:
        os.link(run.path / name, outside / name.name)
    before = {file.name: file.read_bytes() for file in outside.iterdir()}
    writer = writer or continued(run)
    writer.log_metrics(2, {"loss": 1.0})
    writer.submit_metrics(2, {"grad_norm": 1.0})
    writer.log_evaluation(2, "easy", ["a"], [1.0])
    writer.write_step(2, other.load(2))
    writer.flush()
    writer.truncate_after(0)
    assert {file.name: file.read_bytes() for file in outside.iterdir()} == before
    writer.log_metrics(1, {"loss": 0.25})
    assert open_run(run.path).metrics.loss.values[-1] == 0.25
    assert open_run(run.path).evaluation("easy").score.values.tolist() == [[0.5]]
    assert {name.name for name in names} == before.keys()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs POSIX")
def test_a_pipe_among_a_runs_files_is_not_waited_for(run):
    (run.path / "evaluations.jsonl").unlink(missing_ok=True)
    os.mkfifo(run.path / "evaluations.jsonl")
    with pytest.raises(StoreError, match=r"evaluations\.jsonl is neither a file nor a directory"):
        continued(run)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs POSIX")
@pytest.mark.parametrize("odd", ["pipe", "device"])
@pytest.mark.parametrize(
    "name", ["run.json", "config.yaml", "metrics.jsonl", "evaluations.jsonl", "steps/step"]
)
def test_what_may_never_end_is_not_read(name, odd, run, capsys):
    path = next((run.path / "steps").iterdir()) if name == "steps/step" else run.path / name
    path.unlink(missing_ok=True)
    if odd == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    commands = [["inspect", "--verify"], ["report"]]
    if name != "evaluations.jsonl":  # inspect shows no evaluations
        commands.append(["inspect"])
    for words in commands:
        assert main([*words, str(run.path)]) in (1, 2), words
        told = capsys.readouterr()
        assert "is a pipe, a socket or a device" in " ".join((told.out + told.err).split()), words


def test_a_run_may_itself_be_reached_by_a_link(run, tmp_path):
    (tmp_path / "above").symlink_to(tmp_path)
    (tmp_path / "link").symlink_to(run.path)
    for path in (tmp_path / "link", tmp_path / "above/run"):
        attrs = {key: run.attrs[key] for key in ("student", "teacher")}
        writer = RunWriter(path, attrs=attrs, config=run.config, resume=True)
        writer.log_metrics(2, {"loss": 1.0})
        del writer
        assert main(["view", str(path)]) == 0
    assert open_run(run.path).metrics["loss"].sel(step=2) == 1.0
    assert (run.path / "view.html").is_file()


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["figures"], "curves.pdf"),
        (["figures"], "curves.png"),
        (["report", "--no-view"], "report.html"),
        (["report"], "report-view.html"),
        (["view"], "view.html"),
        (["inspect", "--figure", "curves.png"], "curves.png"),
        (["export", "--to", "csv"], "tokens.csv"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
@pytest.mark.parametrize("target", ["file", "absent"])
def test_no_command_writes_through_a_link_in_a_run(run, outside, capsys, words, name, target):
    message = planted(run.path / name, outside / target)
    command = [word if word != name else str(run.path / name) for word in words]
    assert main([command[0], str(run.path), *command[1:]]) == 1
    assert message in "".join(capsys.readouterr().err.split("\n"))


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


# --- what a small file may claim ---


def remade(run, change, step=0):
    """Change the members of a step's file, with checksums that are right."""
    file = run.path / f"steps/{step:06d}.zarr.zip"
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def field(members, name, **changes):
    meta = json.loads(members[name])
    members[name] = json.dumps(meta | changes).encode()


def chunk_of(*shape):
    return {"name": "regular", "configuration": {"chunk_shape": list(shape)}}


def without_chunk(variable, **changes):
    def change(members):
        for name in [name for name in members if name.startswith(f"{variable}/c/")]:
            members.pop(name)
        field(members, f"{variable}/zarr.json", **changes)

    return change


def claims(**counts):
    def change(members):
        attributes = json.loads(members["zarr.json"])["attributes"] | counts
        field(members, "zarr.json", attributes=attributes)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_chunk("entropy", chunk_grid=chunk_of(2**30, 2)), "entropy/zarr.json has chunk_gr"),
        (without_chunk("entropy", chunk_grid=chunk_of(4, 2**30)), "entropy/zarr.json has chunk_gr"),
        (without_chunk("prompt_id", chunk_grid=chunk_of(2**30)), "prompt_id/zarr.json has chunk_g"),
        (without_chunk("prompt_id", shape=[2**25], chunk_grid=chunk_of(2**25)), "take 26843"),
        (without_chunk("prompt_ids", shape=[10**6], chunk_grid=chunk_of(1)), "1000000 chunks, too"),
        (claims(n_rollout=2**31 - 1), "claims 4 states and 2147483647 rollouts, too many"),
        (claims(n_state=2**31 - 1), "claims 2147483647 states and 2 rollouts, too many"),
    ],
    ids=["rows", "columns", "texts", "absent texts", "chunks", "rollouts", "states"],
)
def test_a_step_that_claims_more_than_its_file_can_hold(run, change, message):
    remade(run, change)
    for read in (lambda: run.load(0), lambda: run.rollouts([0]), lambda: run.states([0])):
        with pytest.raises(StoreError) as caught:
            read()
        assert message in str(caught.value)


def test_the_counts_of_every_step_are_checked_before_rows_are_made(run):
    remade(run, claims(n_rollout=2**31 - 1), step=1)
    with pytest.raises(StoreError, match="claims 4 states and 2147483647 rollouts, too many"):
        run.rollouts()


def test_one_long_text_does_not_widen_all(run):
    n, long = 60_000, "x" * 30_000

    def change(members):
        texts = np.array([long, *["a"] * (n - 1)], object)
        members["label_name/c/0"] = bytes(Zstd().encode(VLenUTF8().encode(texts)))
        meta = json.loads(members["prompt_id/zarr.json"])
        meta |= {"shape": [n], "chunk_grid": chunk_of(n), "dimension_names": ["label_name"]}
        members["label_name/zarr.json"] = json.dumps(meta).encode()

    remade(run, change)
    with pytest.raises(StoreError, match=r"60000 texts and one of 30000 characters, too many"):
        run.load(0)


def lines_of(n, name):
    return "".join(f'{{"step": {i}, "{name(i)}": 1}}\n' for i in range(n))


def test_metrics_with_a_new_name_on_each_line(run):
    (run.path / "metrics.jsonl").write_text(lines_of(10_001, "m{}".format))
    with pytest.raises(StoreError, match=r"metrics\.jsonl has 10001 names .* at most 10000"):
        _ = run.metrics
    (run.path / "metrics.jsonl").write_text(lines_of(9000, "m{}".format))
    with pytest.raises(StoreError, match=r"9000 names of metrics at 9000 steps, and only 9000 "):
        _ = run.metrics
    log = run.path / "log.jsonl"
    log.write_text("".join(f'{{"step": {i}, "data": {{"m{i}": 1}}}}\n' for i in range(9000)))
    with pytest.raises(StoreError, match=r"log\.jsonl has 9000 names of metrics at 9000 steps"):
        read_log(log, source="verl")


def test_metrics_that_are_rare_are_read(run):
    """Each hundredth step logs 20 names of its own, and each step one."""
    lines = [{"step": i, "loss": 1.0} for i in range(3000)]
    for entry in lines[::100]:
        entry |= {f"benchmark{n}": 0.5 for n in range(20)}
    (run.path / "metrics.jsonl").write_text("".join(json.dumps(e) + "\n" for e in lines))
    assert run.metrics["benchmark7"].notnull().sum() == 30


def test_a_step_of_a_huge_number_is_not_counted_up_to(run):
    (run.path / "config.yaml").write_text("record_every: 1\n")
    steps = run.path / "steps"
    (steps / "000001.zarr.zip").rename(steps / "999999999.zarr.zip")
    faults = verify_run(run.path).faults
    assert sum("is missing" in fault.what for fault in faults) == 1000
    assert "lacks step 1001, too" in faults[-1].what
    (steps / "999999999.zarr.zip").unlink()
    (run.path / "checkpoints/999999999999").mkdir(parents=True)
    assert any("lacks step" in fault.what for fault in verify_run(run.path).faults)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("k: !!int 1" + ":59" * 100_000, "is not a number"),
        ("k: !!float 1" + ":59" * 100_000 + ".0", "is not a number"),
        ("k: &x " + "a" * 201 + "\nl: [" + "*x , " * 1000 + "]", "a text of 201 characters"),
        ("k: " + "9" * 5000, "4300"),
        ("# " + "x" * 2**20, "1048578 characters; expected at most 1048576"),
        ("k: !!binary aGVsbG8=", "could not determine a constructor"),
        ("k: !!set {a}", "could not determine a constructor"),
        ("k: !!timestamp 2026-13-01", "could not determine a constructor"),
    ],
    ids=["int", "float", "reference", "digits", "size", "bytes", "set", "date"],
)
def test_yaml_that_costs_more_than_it_says_or_is_not_plain(run, tmp_path, text, message):
    (run.path / "config.yaml").write_text(text)
    with pytest.raises(StoreError) as stored:
        open_run(run.path)
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ConfigError) as given:
        OPDConfig.from_yaml(tmp_path / "config.yaml")
    for caught in (stored, given):
        assert message in str(caught.value)
        assert len(str(caught.value)) < 1000


def test_numbers_of_base_60_and_dates_are_texts():
    long = "1" + ":59" * 100_000
    assert parse_yaml(f"a: {long}\nb: 1:30.5\nc: 2026-11-29") == {
        "a": long,
        "b": "1:30.5",
        "c": "2026-11-29",
    }


PLAIN = [0, 7, -3, 10**30, 1.5, -2e-7, 1e16, 0.1, float("inf"), -float("inf"), True, None, "", "a"]
LOOKALIKES = ["1", "1:30", "1:30.5", "2026-11-29", "0x1f", "1e5", ".inf", "yes", "null", "~", "<<"]


@pytest.mark.parametrize("value", [*PLAIN, *LOOKALIKES, "017", "0b1", "1_000", "=", "*x", "a: b"])
def test_what_is_written_as_yaml_is_read_as_it_was(value):
    text = yaml.safe_dump({"k": [value, {"l": value}]})
    read = parse_yaml(text)["k"]
    assert read == [value, {"l": value}] == yaml.safe_load(text)["k"]
    assert type(read[0]) is type(value)


@pytest.mark.parametrize(
    "text",
    ["7", "-7", "+7", "0", "017", "0x1f", "0b11", "1_000", "1.5", ".5", "-1.e+3", "1e5", "0o7"],
)
def test_plain_numbers_are_read_as_before(text):
    assert parse_yaml(f"k: {text}") == yaml.safe_load(f"k: {text}")


def test_a_config_that_could_not_be_read_is_not_written(tmp_path):
    with pytest.raises(ConfigError, match=r"characters of YAML; expected at most 1048576"):
        RunWriter(tmp_path / "run", attrs={}, config={"data": "x" * 2**20}, resume=False)
    assert not (tmp_path / "run").exists()
