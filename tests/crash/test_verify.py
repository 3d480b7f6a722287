"""`verify_run` names every file that is not as it was written, whichever bit of it was flipped."""

import json
import random
import zipfile

import pytest
from tiny_training import trainer

from opdprobe import RunWriter, StoreError, open_run, validate
from opdprobe.cli.parser import main
from opdprobe.store.checksums import CHECKSUMS
from opdprobe.store.verify import verify_run
from opdprobe.testing import synthetic_run, synthetic_step

FILES = [
    "run.json", "config.yaml", "metrics.jsonl", "evaluations.jsonl", "steps/000001.zarr.zip",
    "checkpoints/000002/model.safetensors", "checkpoints/000002/optimizer.pt",
    "checkpoints/000002/config.json", "checkpoints/000002/tokenizer.json",
    "tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json",
]  # fmt: skip


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A finished run; each test puts back what it changes."""
    path = tmp_path_factory.mktemp("verify") / "run"
    trainer(path, max_steps=2).train()
    return path


@pytest.fixture
def changed(run_dir):
    """Change a file of the run until the test's end."""
    kept = {}

    def change(name, content):
        path = run_dir / name
        kept.setdefault(path, path.read_bytes())
        if content is None:
            path.unlink()
        else:
            path.write_bytes(content)
        return path

    yield change
    for path, content in kept.items():
        path.write_bytes(content)


def flipped(content, bit):
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def faults(run_dir):
    return {str(f.path.relative_to(run_dir)): f.what for f in verify_run(run_dir).faults}


def test_a_run_as_it_was_written(run_dir):
    found = verify_run(str(run_dir))
    assert found.faults == found.unproven == []
    on_disk = [p for p in run_dir.rglob("*") if p.is_file()]
    # But for the lock, and the checksums themselves.
    assert found.n_files == len(on_disk) - 2


@pytest.mark.parametrize("name", [name for name in FILES if not name.endswith(".zip")])
def test_a_flipped_bit_is_found(run_dir, changed, name):
    content = (run_dir / name).read_bytes()
    rng = random.Random(name)
    for bit in rng.sample(range(8 * len(content)), 3):
        changed(name, flipped(content, bit))
        assert faults(run_dir).keys() == {name}, bit


def test_a_flipped_bit_of_a_step_is_found_or_harmless(run_dir, changed):
    """Harmless ones are in what the zip's headers say besides: dates, attributes, versions."""

    def read():
        try:
            found = open_run(run_dir).load(1).load()
            validate(found)
        except StoreError:
            return None
        return found

    name, whole, rng = "steps/000001.zarr.zip", read(), random.Random(0)
    content = (run_dir / name).read_bytes()
    with zipfile.ZipFile(run_dir / name) as step:
        directory = step.start_dir
    bits = rng.sample(range(8 * directory), 60)
    bits += rng.sample(range(8 * directory, 8 * len(content)), 60)
    found = []
    for bit in bits:
        changed(name, flipped(content, bit))
        found.append(read())
        assert found[-1] is None or found[-1].identical(whole), bit
    assert found.count(None) > len(bits) / 2


def test_a_comment_does_not_hide_a_member(run_dir, changed):
    """A bit makes the directory's entry of 64 bytes a comment of the entry before."""
    name = "steps/000001.zarr.zip"
    content = (run_dir / name).read_bytes()
    hidden = b"sampled_logp/c/0/0"
    with zipfile.ZipFile(run_dir / name) as step:
        place = content.index(hidden, step.start_dir) - 46
        before = content.rindex(b"PK\x01\x02", 0, place)
    assert 46 + len(hidden) == 64
    changed(name, flipped(content, 8 * (before + 32) + 6))
    with zipfile.ZipFile(run_dir / name) as step:
        assert hidden.decode() not in step.namelist()
    assert "its members carry comments" in faults(run_dir)[name]


def test_a_flipped_bit_of_the_checksums_is_found_or_harmless(run_dir, changed):
    name = f"checkpoints/000002/{CHECKSUMS}"
    content = (run_dir / name).read_bytes()
    for bit in random.Random(0).sample(range(8 * len(content)), 10):
        changed(name, flipped(content, bit))
        # What the sums no longer fit is named, or they are; white space may be flipped to another.
        assert faults(run_dir) or json.loads((run_dir / name).read_bytes()) == json.loads(content)


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_cut_off_or_missing_is_named(run_dir, changed, name):
    content = (run_dir / name).read_bytes()
    for size in (0, len(content) - 1):
        changed(name, content[:size])
        assert faults(run_dir).keys() == {name}
    changed(name, None)
    assert faults(run_dir).keys() == {name}


def test_a_checkpoint_without_checksums_is_a_fault_and_not_trained_on(run_dir, changed):
    name = f"checkpoints/000002/{CHECKSUMS}"
    changed(name, None)
    found = verify_run(run_dir)
    assert [fault.path.name for fault in found.faults] == [CHECKSUMS]
    assert [path.name for path in found.unproven] == FILES[:4]
    with pytest.raises(StoreError, match=rf"000002 cannot be read \({CHECKSUMS} .*is missing"):
        trainer(run_dir, max_steps=2).train()


def test_a_checkpoint_that_is_not_as_it_was_written_is_not_trained_on(run_dir, changed):
    name = "checkpoints/000002/model.safetensors"
    content = (run_dir / name).read_bytes()
    changed(name, flipped(content, 8 * len(content) - 20))  # a weight
    with pytest.raises(StoreError, match=r"000002 cannot be read \(model.safetensors is not as it"):
        trainer(run_dir, max_steps=2).train()


def test_what_was_logged_after_the_checkpoint_is_no_fault(run_dir, changed):
    content = (run_dir / "metrics.jsonl").read_bytes()
    changed("metrics.jsonl", content + b'{"step": 9, "loss": 0.5}\n')
    assert faults(run_dir) == {}
    changed("metrics.jsonl", content + b'{"step": 9, "lo')
    assert faults(run_dir) == {"metrics.jsonl": "ends in half a line: resume the run to drop it"}


def test_a_missing_step_is_named(tmp_path):
    """The trainer's config says which steps there are; of other runs, what was logged does."""
    run = synthetic_run(tmp_path / "irregular", steps=[0, 7, 9])
    assert faults(run.path) == {}
    writer = RunWriter(tmp_path / "hooked", attrs={}, config={"every": 2}, resume=False)
    for step in (0, 2, 3, 6):
        writer.log_metrics(step, {"overlap_ratio": 0.5} if step != 3 else {"loss": 1.0})
        if step in (0, 6):
            writer.write_step(step, synthetic_step(step))
    missing = "is missing: resume the run from a checkpoint before it"
    assert faults(tmp_path / "hooked") == {"steps/000002.zarr.zip": missing}
    writer = RunWriter(tmp_path / "sparse", attrs={}, config={"record_every": 3}, resume=False)
    for step in (0, 3, 9):
        writer.write_step(step, synthetic_step(step))
    assert faults(tmp_path / "sparse") == {"steps/000006.zarr.zip": missing}
    RunWriter(tmp_path / "none", attrs={}, config={"record_every": 0}, resume=False)
    assert faults(tmp_path / "none") == {}


def test_checkpoints_without_sums_of_the_runs_tokenizer_are_no_fault(run_dir, changed):
    """As those of older versions; and a file that is not among the sums is named."""
    name = f"checkpoints/000002/{CHECKSUMS}"
    sums = json.loads((run_dir / name).read_bytes())
    changed("tokenizer/tokenizer.json", b"{}")
    whole = verify_run(run_dir).n_files
    own = [name for name in sums if name.startswith("tokenizer/")]
    older = {name: entry for name, entry in sums.items() if name not in own}
    changed(name, json.dumps(older).encode())
    found = verify_run(run_dir)
    assert (found.faults, found.n_files) == ([], whole - len(own))
    del sums["tokenizer/tokenizer.json"]
    changed(name, json.dumps(sums).encode())
    assert faults(run_dir) == {"tokenizer/tokenizer.json": "does not belong to the run's tokenizer"}


@pytest.mark.parametrize("name", ["tokenizer/..", "tokenizer/a\0b", "tokenizer/../../../x"])
def test_checksums_of_files_elsewhere_are_faults(run_dir, changed, name):
    file = f"checkpoints/000002/{CHECKSUMS}"
    sums = json.loads((run_dir / file).read_bytes())
    sums[name] = {"bytes": 1, "sha256": ""}
    changed(file, json.dumps(sums).encode())
    assert len(faults(run_dir)) == 1


def test_a_step_under_another_name_is_named(run_dir, changed):
    changed("steps/000001.zarr.zip", (run_dir / "steps/000000.zarr.zip").read_bytes())
    assert faults(run_dir) == {"steps/000001.zarr.zip": "holds step 0: rename the file to match"}


def test_a_part_without_the_others_is_named(tmp_path):
    run = synthetic_run(tmp_path / "run", steps=[0, 1])
    (run.path / "steps/000001.zarr.zip").rename(run.path / "steps/000001.1-of-2.zarr.zip")
    what = "is part 1 of 2 of a step whose other parts are missing"
    assert faults(run.path) == {"steps/000001.1-of-2.zarr.zip": what}


def test_the_command_names_every_bad_file_and_fails(run_dir, changed, capsys):
    assert main(["inspect", str(run_dir), "--verify"]) == 0
    assert " files match their checksums" in capsys.readouterr().out
    for name in ("steps/000001.zarr.zip", "metrics.jsonl", "config.yaml"):
        path = changed(name, (run_dir / name).read_bytes().replace(b"0", b"1", 1))
        assert path.exists()
    assert main(["inspect", str(run_dir), "--verify", "--json"]) == 1
    out, error = capsys.readouterr()
    printed = json.loads(out)
    assert printed["valid"] is False
    names = {str(run_dir / n) for n in ("steps/000001.zarr.zip", "metrics.jsonl", "config.yaml")}
    assert printed["faults"].keys() == names
    assert all(name in error for name in names)
    assert "has missing or changed files (3)" in error


def test_the_command_says_what_no_checksum_covers(tmp_path, capsys):
    synthetic_run(tmp_path / "run")
    assert main(["inspect", str(tmp_path / "run"), "--verify", "--json"]) == 0
    verified = json.loads(capsys.readouterr().out)["verified"]
    assert verified.endswith("without a checksum: run.json, config.yaml, metrics.jsonl")
    assert main(["inspect", str(tmp_path / "absent"), "--verify"]) == 1
    assert "absent is not a directory; expected the directory of a run." in capsys.readouterr().err
