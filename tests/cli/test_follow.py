"""``view --follow``: a page that grows with its run."""

import gzip
import json
import re
from base64 import b64decode

import pytest

from opdprobe.cli import viewing
from opdprobe.cli.parser import main
from opdprobe.report.run_tokens import RunTokens
from opdprobe.store import RunWriter
from opdprobe.store.step_parts import step_path
from opdprobe.testing import synthetic_step

FORM = {"n_rollouts": 3, "length": 4, "k": 4}


def index_of(page):
    block = re.search(r'id="index">([A-Za-z0-9+/=]*)<', page.read_text())
    assert block is not None
    return json.loads(gzip.decompress(b64decode(block[1])))["runs"][0]


def steps_of(page):
    return [step["step"] for step in index_of(page)["steps"]]


def scripted(monkeypatch, *acts):
    """Let a part of the world happen in each pause; a pause too many fails."""
    pauses = iter(acts)
    monkeypatch.setattr(viewing.time, "sleep", lambda seconds: next(pauses)())


def test_the_page_grows_with_the_run(tmp_path, monkeypatch, capsys):
    path, page, made, seen = tmp_path / "run", tmp_path / "run" / "view.html", [], []

    def begin():
        made.append(RunWriter(path, attrs={}, config={"max_steps": 3}, resume=False))

    def add(step):
        if page.exists():
            seen.append((steps_of(page), index_of(page)["tokens"]["n"]))
        made[0].write_step(step, synthetic_step(step, **FORM))

    def still():
        before = page.stat()
        seen.append((steps_of(page), index_of(page)["tokens"]["n"]))
        return before

    stats = []
    scripted(
        monkeypatch,
        begin,
        lambda: add(0),
        lambda: add(1),
        lambda: stats.append(still()),
        lambda: made[0].log_metrics(1, {"loss": 1.0}),  # no other step: no other page
        lambda: stats.append(still()),
        lambda: add(2),
        lambda: (path / "checkpoints" / "000003").mkdir(parents=True),
    )
    assert main(["view", str(path), "--follow"]) == 0
    out, err = capsys.readouterr()
    assert seen == [([0], 12), ([0, 1], 24), ([0, 1], 24), ([0, 1], 24)]
    assert stats[0].st_ino == stats[1].st_ino
    assert steps_of(page) == [0, 1, 2]
    assert out.count("open it in a browser") == 3
    assert err.splitlines()[0] == f"waiting for {path}: it does not exist yet"
    assert err.count("no tokenizer") == 1  # said once


def test_a_step_that_is_being_copied_is_not_on_the_page_yet(tmp_path, monkeypatch):
    writer = RunWriter(tmp_path, attrs={}, config={"max_steps": 2}, resume=False)
    writer.write_step(0, synthetic_step(0, **FORM))
    writer.write_step(1, synthetic_step(1, **FORM))
    file = step_path(tmp_path, 1)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    seen = []
    scripted(
        monkeypatch,
        lambda: (seen.append(steps_of(tmp_path / "view.html")), file.write_bytes(whole)),
        lambda: (tmp_path / "checkpoints" / "000002").mkdir(parents=True),
    )
    assert main(["view", str(tmp_path), "--follow"]) == 0
    assert seen == [[0]]
    assert steps_of(tmp_path / "view.html") == [0, 1]


def test_a_run_that_is_rolled_back_between_two_reads(tmp_path, monkeypatch):
    writer = RunWriter(tmp_path, attrs={}, config={"max_steps": 2}, resume=False)
    for step in (0, 1):
        writer.write_step(step, synthetic_step(step, **FORM))
    update = RunTokens.update

    def late(self, run, versions):
        step_path(tmp_path, 1).unlink(missing_ok=True)
        update(self, run, versions)

    monkeypatch.setattr(RunTokens, "update", late)
    scripted(
        monkeypatch,
        lambda: None,
        lambda: (tmp_path / "checkpoints" / "000002").mkdir(parents=True),
    )
    assert main(["view", str(tmp_path), "--follow"]) == 0
    assert steps_of(tmp_path / "view.html") == [0]


def test_chosen_steps_are_waited_for(tmp_path, monkeypatch):
    writer = RunWriter(tmp_path, attrs={}, config={"max_steps": 3}, resume=False)
    writer.write_step(0, synthetic_step(0, **FORM))
    page = tmp_path / "view.html"
    scripted(
        monkeypatch,
        lambda: (
            writer.write_step(2, synthetic_step(2, **FORM)),
            page.exists() and pytest.fail("a page of other steps"),
        ),
        lambda: (tmp_path / "checkpoints" / "000003").mkdir(parents=True),
    )
    assert main(["view", str(tmp_path), "--follow", "--steps", "2,9"]) == 0
    assert steps_of(page) == [2]


def test_two_runs_are_not_followed(tmp_path, capsys):
    assert main(["view", str(tmp_path), str(tmp_path / "b"), "--follow"]) == 1
    assert "--follow with two runs; expected one" in capsys.readouterr().err
