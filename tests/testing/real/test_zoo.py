"""The zoo of the second world, on a tiny random base model: order, resuming, records."""

import json
import math
import shutil
import signal
import threading
from functools import partial

import pytest
import torch
from filelock import FileLock
from transformers import AutoModelForCausalLM, AutoTokenizer

from opdprobe.cli.parser import main
from opdprobe.errors import ModelError, StoreError
from opdprobe.testing import tiny_model, tiny_tokenizer
from opdprobe.testing.real import members, zoo
from opdprobe.testing.real.members import (
    MEMBERS,
    Member,
    manifest,
    removed_layers,
    zoo_path,
)
from opdprobe.testing.real.problems import BENCHMARKS, problems
from opdprobe.testing.testbed.members import ZooError
from opdprobe.train.config import GRPOConfig, SFTConfig

pytestmark = pytest.mark.slow

SFT = SFTConfig(learning_rate=1e-2, batch_size=4, max_steps=5, save_steps=2)
GRPO = GRPOConfig(
    batch_size=2, num_generations=2, max_completion_length=8, max_steps=3, save_steps=2
)
TINY = {
    "base": Member("as it is", None, parent=None),
    "small": Member("a student", SFT, smaller=True),
    "small-rl": Member("its RL", GRPO, parent="small"),
    "cold": Member("after SFT", SFTConfig(batch_size=4), parent="small", teacher="small-rl"),
}


def save(path, seed=0):
    """Save a tiny model as a user's base."""
    tiny_model(hidden_size=8, layers=3, seed=seed).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save(tmp_path_factory.mktemp("base"))


@pytest.fixture
def tiny(monkeypatch):
    """Tiny members, and few problems."""
    monkeypatch.setattr(members, "MEMBERS", TINY)
    monkeypatch.setattr(zoo, "MAX_COMPLETION_LENGTH", 8)
    monkeypatch.setattr(zoo, "measure", partial(zoo.measure, n_problems=4, num_generations=1))
    monkeypatch.setattr(zoo, "problems", lambda n, **split: problems(min(n, 4), **split))


def made(path, base, names=("base", "small")):
    """Build members one after another; return the steps of each."""
    return {name: [int(m["step"]) for m in zoo.build(name, path, base)] for name in names}


def test_members_are_built_recorded_and_skipped_when_done(tiny, tmp_path, base):
    assert made(tmp_path, base, ["base", "small", "small-rl"]) == {
        "base": [],
        "small": [0, 1, 2, 3, 4],
        "small-rl": [0, 1, 2],
    }
    records = manifest(tmp_path)
    assert list(records) == ["base", "small", "small-rl"]
    layers = {"base": 3, "small": 2, "small-rl": 2}
    for name, record in records.items():
        model = AutoModelForCausalLM.from_pretrained(zoo_path(name, tmp_path))
        assert (model.dtype, record["layers"]) == (torch.bfloat16, layers[name])
        assert record["parameters"] == model.num_parameters()
        assert AutoTokenizer.from_pretrained(zoo_path(name, tmp_path)).chat_template
        assert set(record["benchmarks"]) == set(BENCHMARKS)
        assert math.isclose(sum(p["share"] for p in record["patterns"].values()), 1, abs_tol=1e-3)
        assert zoo.check(name, tmp_path)["accuracy"] == record["accuracy"]
        assert not (tmp_path / "work" / name / "checkpoints").exists()
    parent = records["small"]["sha256"]
    assert records["small-rl"]["settings"]["made_from"] == {"small": parent}
    assert records["small"]["settings"]["dropped"] == [1]
    steps = (tmp_path / "work/small/steps.jsonl").read_text().splitlines()
    seconds = sum(json.loads(line)["seconds"] for line in steps)
    assert records["small"]["seconds"]["training"] == pytest.approx(seconds, abs=0.06)
    before = (tmp_path / "small" / members.RECORD).stat().st_mtime_ns
    assert made(tmp_path, base) == {"base": [], "small": []}
    assert (tmp_path / "small" / members.RECORD).stat().st_mtime_ns == before


def test_an_interrupted_member_goes_on_and_ends_in_the_same_bytes(tiny, tmp_path, base):
    made(tmp_path / "unbroken", base)
    made(tmp_path / "broken", base, ["base"])
    broken = zoo.build("small", tmp_path / "broken", base)
    for _ in range(4):
        next(broken)
    del broken
    with pytest.raises(ZooError, match=r"small is not built; run `opdprobe zoo build small --"):
        zoo_path("small", tmp_path / "broken")
    # The last checkpoint was written during the fourth step.
    assert made(tmp_path / "broken", base)["small"] == [4]
    want, got = (manifest(tmp_path / name)["small"] for name in ("unbroken", "broken"))
    assert got["sha256"] == want["sha256"]
    assert got["accuracy"] == want["accuracy"]


@pytest.mark.skipif(
    threading.current_thread() is not threading.main_thread(), reason="the signal would kill pytest"
)
def test_sigterm_stops_a_build_in_good_order(tiny, tmp_path, base):
    def send(done, total):
        if done == 1:
            signal.raise_signal(signal.SIGTERM)

    made(tmp_path, base, ["base"])
    with pytest.raises(SystemExit) as stopped:
        zoo._build("small", tmp_path, base, "cpu", None, send)
    assert stopped.value.code == 143
    assert not (tmp_path / "small").exists()
    checkpoints = tmp_path / "work/small/checkpoints"
    assert [path.name for path in checkpoints.iterdir()] == ["000002"]
    seen = []
    zoo._build("small", tmp_path, base, "cpu", None, lambda *progress: seen.append(progress))
    assert seen == [(3, 5), (4, 5), (4, 5), (5, 5)]


def test_a_killed_publication_leaves_no_part(tiny, tmp_path, base, monkeypatch):
    class Killed(BaseException):
        pass

    def die(path):
        raise Killed

    made(tmp_path, base, ["base"])
    with monkeypatch.context() as patch:
        patch.setattr(zoo, "_digest", die)
        with pytest.raises(Killed):
            made(tmp_path, base, ["small"])
    assert "small" not in manifest(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "work"]
    made(tmp_path, base, ["small"])
    assert "small" in manifest(tmp_path)


def test_another_base_or_recipe_is_refused(tiny, tmp_path, base, monkeypatch):
    made(tmp_path / "zoo", base)
    other = save(tmp_path / "other", seed=1)
    for name in ("base", "small"):
        with pytest.raises(ZooError, match=r"was begun with other settings: base: '\w+' befo"):
            made(tmp_path / "zoo", other, [name])
    changed = {**TINY, "small": Member("a student", SFTConfig(max_steps=5), smaller=True)}
    monkeypatch.setattr(members, "MEMBERS", changed)
    with pytest.raises(ZooError, match=r"recipe.learning_rate: 0.01 before, 1e-05 now; restor"):
        made(tmp_path / "zoo", base)
    # So is work in progress.
    shutil.rmtree(tmp_path / "zoo/small")
    with pytest.raises(ZooError, match=r"work/small was begun with other settings: recipe.bat"):
        made(tmp_path / "zoo", base)


def test_two_processes_do_not_build_the_same_member(tiny, tmp_path, base):
    (tmp_path / "work/base").mkdir(parents=True)
    with (
        FileLock(tmp_path / "work/base/.lock"),
        pytest.raises(StoreError, match="work/base is being written by another process: wait"),
    ):
        made(tmp_path, base, ["base"])
    assert made(tmp_path, base, ["base"]) == {"base": []}


def test_a_copy_of_the_base_elsewhere_is_the_same_base(tiny, tmp_path, base):
    made(tmp_path / "zoo", base)
    shutil.copytree(base, tmp_path / "moved")
    assert made(tmp_path / "zoo", tmp_path / "moved") == {"base": [], "small": []}


def test_a_cold_start_learns_from_its_teachers_rollouts(tiny, tmp_path, base, monkeypatch):
    made(tmp_path, base, ["base", "small", "small-rl"])
    # A random teacher rarely ends; ones that end at once can be learnt from.
    monkeypatch.setattr(zoo, "MAX_COMPLETION_LENGTH", 64)
    ((last,),) = made(tmp_path, base, ["cold"]).values()
    record = manifest(tmp_path)["cold"]
    assert record["settings"]["corpus"] is None
    assert set(record["settings"]["made_from"]) == {"small", "small-rl"}
    lines = (tmp_path / "work/cold/cold-start/examples.jsonl").read_text().splitlines()
    (step,) = (tmp_path / "work/cold/steps.jsonl").read_text().splitlines()
    kept = json.loads(step)["n_kept"]
    assert len(lines) == 8  # two for each problem
    assert last + 1 == max(1, kept // 4)
    assert record["sha256"] != manifest(tmp_path)["small"]["sha256"]


def test_check_finds_other_bytes_and_another_accuracy(tiny, tmp_path, base):
    made(tmp_path, base, ["base"])
    record = tmp_path / "base" / members.RECORD
    record.write_text(json.dumps({**json.loads(record.read_text()), "accuracy": 0.9}))
    with pytest.raises(ZooError, match=r"base: accuracy 0\.\d+; expected 0\.900"):
        zoo.check("base", tmp_path)
    weights = tmp_path / "base/model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ZooError, match=r"have sha256 \w+; expected \w+: restore the file"):
        zoo.check("base", tmp_path)


def test_bad_bases_are_named(tiny, tmp_path):
    with pytest.raises(ModelError, match="nothing/here"):
        made(tmp_path / "zoo", str(tmp_path / "nothing/here"), ["base"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ZooError, match="empty: no safetensors and no GGUF file; expected a mo"):
        made(tmp_path / "zoo", tmp_path / "empty", ["base"])
    mute = tmp_path / "mute"
    tiny_model(hidden_size=8).save_pretrained(mute)
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(mute)
    with pytest.raises(ZooError, match="mute: the tokenizer has no end-of-sequence token"):
        made(tmp_path / "zoo", mute, ["base"])
    assert made(tmp_path / "zoo", save(tmp_path / "good"), ["base"]) == {"base": []}


@pytest.mark.parametrize(
    ("text", "reason"), [("{", "cannot be read"), ("[]", "holds a list; expected a JSON object")]
)
def test_a_damaged_record_is_named(tiny, tmp_path, base, text, reason):
    for place in ("base", "work/base"):
        zoo_dir = tmp_path / place.replace("/", "-")
        (zoo_dir / place).mkdir(parents=True)
        name = "settings.json" if place.startswith("work") else members.RECORD
        (zoo_dir / place / name).write_text(text)
        with pytest.raises(ZooError, match=rf"{name} {reason}.*: restore it, or delete"):
            made(zoo_dir, base, ["base"])


def test_members_come_after_those_they_are_made_from(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(zoo, "work", lambda tasks, **_: seen.extend(tasks))
    zoo.build_all(["cold-start-small"], tmp_path, "base")
    after = {task.label: task.after for task in seen}
    assert list(after) == ["base", "student-large", "rl-large", "base-small", "cold-start-small"]
    assert after["base"] == set()
    assert after["rl-large"] == {"student-large"}
    assert after["cold-start-small"] == {"base-small", "rl-large"}
    assert json.loads((tmp_path / "manifest.json").read_text()) == {}
    assert zoo.with_ancestors(list(MEMBERS)) == list(MEMBERS)


def test_a_tenth_of_the_layers_is_removed_from_the_middle():
    assert removed_layers(30) == range(13, 16)
    assert removed_layers(3) == range(1, 2)
    assert len(removed_layers(24)) == 2


def test_by_the_command_line(tiny, tmp_path, base, monkeypatch, capsys):
    """One process, so that the tiny members are known to it."""

    def work(tasks, *, workers, on_progress):
        for task in tasks:
            task.function(*task.arguments, partial(on_progress, task.label))

    monkeypatch.setattr(zoo, "work", work)
    command = ["zoo", "--world", "real", "--work-dir", str(tmp_path)]
    assert main([*command, "build", "small", "--base", str(base)]) == 0
    out, err = capsys.readouterr()
    assert "small: done" in err
    assert "not built" not in out
    written = json.loads((tmp_path / "manifest.json").read_text())
    assert written == manifest(tmp_path)
    assert list(written) == ["base", "small"]
    assert main([*command, "check", "small"]) == 0
    assert "weights as recorded" in capsys.readouterr().out
    assert main([*command, "list"]) == 0
    assert "not built" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["build"], "has no base model; expected --base with a model directory, a GGUF file"),
        (["list", "huge"], "no model 'huge' in this zoo; expected one of base, student-large"),
        (["check", "base"], "base is not built; run `opdprobe zoo build base --world real --base"),
        (["build", "--base", "x/y", "--dtype", "float16"], "underflow to zero in float16"),
        (["build", "--base", "x/y", "--device", "abacus"], "abacus"),
    ],
)
def test_bad_commands_say_what_to_do(tmp_path, capsys, more, message):
    assert main(["zoo", "--world", "real", "--work-dir", str(tmp_path / "zoo"), *more]) == 1
    assert message in " ".join(capsys.readouterr().err.split())
