"""A file from anybody costs what it is worth: a small one takes no gigabytes, whatever it says."""

import base64
import gzip
import io
import json
import pickle
import struct
import sys
import zipfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from opdprobe.cli.parser import main
from opdprobe.errors import ModelError, PromptError, RolloutError, StoreError
from opdprobe.models.chat_template import tokens
from opdprobe.models.claims import check_model_claims, check_tokenizer_claims
from opdprobe.models.load import load_tokenizer
from opdprobe.models.sizes import ModelSize, UnknownSizeError
from opdprobe.probes.bootstrap import draw_units, numbered_keys, resample, resample_statistic
from opdprobe.report.token_text import TokenTexts
from opdprobe.rollout.dumps.read import read_dumps
from opdprobe.rollout.prompt_files import load_prompts
from opdprobe.store.budget import LEAST, check_values, most_bytes, parsed_bytes
from opdprobe.store.verify import verify_run
from opdprobe.testing import synthetic_run, tiny_tokenizer

MIB = 2**20


@contextmanager
def at_most(n_bytes):
    """Fail if the process comes to need so much more memory in the block."""
    status, clear = Path("/proc/self/status"), Path("/proc/self/clear_refs")

    def memory(name):
        return int(status.read_text().partition(f"{name}:")[2].split()[0]) * 1024

    try:
        clear.write_text("5")  # the peak begins anew
        before = memory("VmRSS")
    except OSError:  # not Linux
        yield
        return
    yield
    assert memory("VmHWM") - before < n_bytes


# --- JSON, CSV and parquet ---

NESTED = b"[" + b"[]," * 1_000_000 + b"[]]"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl.gz", b'{"prompt": ' + NESTED + b"}\n"),
        ("a.json.gz", b'[{"prompt": ' + NESTED + b"}]"),
        ("a.jsonl.gz", b'{"prompt": "a"}\n' * 250_000),
        ("a.csv.gz", b"prompt,answer\n" + b"a,b\n" * 300_000),
    ],
    ids=["line", "whole", "lines", "csv"],
)
def test_a_packed_prompt_file_of_many_small_values(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(gzip.compress(content, 1))
    with (
        at_most(256 * MIB),
        pytest.raises(PromptError, match="far more rows and fields than its size accounts for"),
    ):
        load_prompts(path)


@pytest.mark.parametrize("name", ["1.jsonl.gz", "1.json.gz", "log.eval"])
def test_a_packed_dump_of_many_small_values(tmp_path, name):
    path = tmp_path / name
    content = b'{"input": ' + NESTED + b"}\n"
    if name == "log.eval":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            archive.writestr("samples/a_epoch_1.json", content)
    else:
        path.write_bytes(gzip.compress(content, 1))
    with at_most(256 * MIB), pytest.raises(RolloutError, match=r"JSON that take up to \d+ bytes"):
        list(read_dumps(path, "verl" if name == "1.jsonl.gz" else "inspect", step=1))


def test_a_log_whose_members_unpack_to_gigabytes(tmp_path):
    path = tmp_path / "log.eval"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for i in range(6):
            archive.writestr(f"samples/{i}_epoch_1.json", b" " * (LEAST // 2))
    with pytest.raises(RolloutError, match=r"unpacks to 201326592 bytes; expected at most"):
        list(read_dumps(path, "inspect", step=1))


def one_text(path, n_rows, length):
    """A parquet file with one text, which every row has."""
    table = pa.table(
        {"prompt": pa.DictionaryArray.from_arrays(pa.array([0] * n_rows), ["a" * length])}
    )
    pq.write_table(table, path, compression="zstd")
    return path


def test_a_text_that_stands_once_and_in_every_row(tmp_path):
    path = one_text(tmp_path / "1.parquet", 10_000, 8 * MIB)
    assert path.stat().st_size < 10_000
    with at_most(512 * MIB), pytest.raises(PromptError, match="too many for a file of"):
        load_prompts(path)
    with at_most(512 * MIB), pytest.raises(RolloutError, match="too many for a file of"):
        list(read_dumps(path, "verl-generation", step=1, on_error="skip"))


def test_a_parquet_file_that_unpacks_to_much(tmp_path):
    table = pa.table({"prompt": ["a" * (LEAST + 1_000_000)]})
    pq.write_table(table, tmp_path / "1.parquet", compression="zstd", use_dictionary=False)
    with pytest.raises(PromptError, match=r"it unpacks to \d+ bytes, more than"):
        load_prompts(tmp_path / "1.parquet")


def test_honest_parquet_files_are_read(tmp_path):
    """Rows that repeat their prompt, as a dump's do, and more of them than a batch holds."""
    rows = [{"prompt": f"prompt {i // 64} " * 50, "answer": str(i)} for i in range(1000)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "p.parquet", compression="zstd")
    found = load_prompts(tmp_path / "p.parquet")
    assert [prompt.text for prompt in found] == [row["prompt"] for row in rows]
    assert len(load_prompts(tmp_path / "p.parquet", limit=70)) == 70


def test_honest_packed_files_are_read(tmp_path):
    """Lists of token ids, packed to a fifth."""
    ids = np.random.default_rng(0).integers(0, 50_000, (50, 400)).tolist()
    lines = "".join(json.dumps({"prompt": f"p{i}", "ids": row}) + "\n" for i, row in enumerate(ids))
    (tmp_path / "p.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    assert len(load_prompts(tmp_path / "p.jsonl.gz")) == 50


@pytest.mark.parametrize(
    "value",
    [[], {}, [[]] * 3, {"a": 1, "b": [2.5, None]}, "é" * 100, [{"x": 1}, {"x": 2}], [1] * 1000],
)
def test_parsed_json_takes_no_more_than_is_estimated(value):
    def size(one):
        inner = [*one.values(), *one] if isinstance(one, dict) else one if type(one) is list else []
        return sys.getsizeof(one) + sum(map(size, inner))

    text = json.dumps(value, ensure_ascii=False)
    assert size(json.loads(text)) <= parsed_bytes(text.encode()) + 120


# --- pickles ---


def test_a_tensor_that_claims_more_numbers_than_it_stores(tmp_path):
    torch.save({"samples": [{"tokens": torch.zeros(1).expand(2**33)}]}, tmp_path / "1.pt")
    with at_most(256 * MIB), pytest.raises(RolloutError, match=r"holds more than .* of values"):
        list(read_dumps(tmp_path / "1.pt", "slime"))


def test_a_list_that_stands_in_many_places(tmp_path):
    one: list = [0]
    for _ in range(12):
        one = [one] * 10
    torch.save({"samples": [{"tokens": one}]}, tmp_path / "1.pt")
    assert (tmp_path / "1.pt").stat().st_size < 5000
    with at_most(256 * MIB), pytest.raises(RolloutError, match=r"holds more than .* of values"):
        list(read_dumps(tmp_path / "1.pt", "slime"))


def test_a_pickle_that_is_packed(tmp_path):
    stored = io.BytesIO()
    torch.save({"samples": [{"tokens": torch.zeros(2**20)}]}, stored)
    with zipfile.ZipFile(stored) as old, zipfile.ZipFile(tmp_path / "1.pt", "w", 8) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(RolloutError, match="its members are compressed"):
        list(read_dumps(tmp_path / "1.pt", "slime"))


def test_an_array_of_a_claimed_shape(tmp_path):
    class Array:
        def __reduce__(self):
            return np.ndarray, ((2**34,), "u1")

    (tmp_path / "1.pkl").write_bytes(pickle.dumps({"samples": [Array()]}, protocol=2))
    with at_most(256 * MIB), pytest.raises(RolloutError):
        list(read_dumps(tmp_path / "1.pkl", "slime"))


def test_values_as_large_as_their_file_pass(tmp_path):
    torch.save(
        {"samples": [{"tokens": list(range(1000)), "x": torch.ones(5000)}]}, tmp_path / "1.pt"
    )
    check_values(torch.load(tmp_path / "1.pt", weights_only=True), tmp_path / "1.pt")
    assert most_bytes(2 * 10**9) > 10**12  # the limit grows with the file


# --- steps and bootstraps ---


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_packed_member_of_a_step_is_not_unpacked(tmp_path, method):
    run = synthetic_run(tmp_path, [0], n_rollouts=2, length=2, k=4)
    file = run.path / "steps/000000.zarr.zip"
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["entropy/c/0/0"] = b"\0" * 2**24
    with zipfile.ZipFile(file, "w", method, compresslevel=1) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with at_most(64 * MIB):
        (fault,) = verify_run(run.path).faults
        with pytest.raises(StoreError, match="its members are compressed, or overlap"):
            run.load(0)
    assert "its members are compressed, or overlap" in fault.what


def test_the_bootstrap_of_very_many_units_takes_blocks():
    values = np.random.default_rng(0).normal(1.0, 1.0, 20_000)
    with at_most(256 * MIB):
        found = resample(values, keys=numbered_keys(values.size))
        low, high = found.interval()
    half = 1.96 * values.std() / values.size**0.5
    assert found.value == values.mean()
    assert (found.value - low, high - found.value) == pytest.approx((half, half), rel=0.2)


def test_blocks_change_nothing(monkeypatch):
    rng = np.random.default_rng(1)
    n, keys = rng.integers(0, 5, 300).astype(float), rng.permutation(300).astype(np.uint64)
    total = rng.normal(size=300) * n
    whole = resample(total, n, keys=keys).map(resample(n, keys=keys), by=lambda a, b: a / b)
    monkeypatch.setattr("opdprobe.probes.bootstrap._BLOCK", 7)
    cut = resample(total, n, keys=keys).map(resample(n, keys=keys), by=lambda a, b: a / b)
    drawn = draw_units(keys)
    assert np.allclose(cut.samples, (drawn @ total) / (drawn @ n) / ((drawn @ n) / drawn.sum(1)))
    assert np.allclose(cut.samples, whole.samples, rtol=1e-12)
    assert np.allclose(cut.interval(), whole.interval(), rtol=1e-9)


def test_a_jackknife_leaves_out_groups_of_very_many_units():
    called = []

    def statistic(rows):
        called.append(len(rows))
        return float(rows.mean())

    resample_statistic(statistic, np.arange(400_000), n_boot=3)
    assert len(called) < 100


# --- tokenizers and models ---

MULTIPLIES = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 5000}


def tokenizer(folder, **rules):
    content = {
        "model": {"type": "WordLevel", "vocab": {"a" * 5000: 0, "b": 1}, "unk_token": "b"},
        **rules,
    }
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return folder / "tokenizer.json"


def test_a_decoder_that_multiplies_in_the_viewer(tmp_path):
    file = tokenizer(tmp_path, decoder=MULTIPLIES)
    with at_most(64 * MIB), pytest.raises(ModelError, match="far more text than its size accounts"):
        TokenTexts(file)


@pytest.mark.parametrize(
    "rules",
    [
        {"decoder": {"type": "Sequence", "decoders": [{**MULTIPLIES, "content": "aa"}] * 40}},
        {"normalizer": MULTIPLIES},
        {"decoder": {"type": "Sequence", "decoders": [{"type": "Fuse"}] * 100_000}},
        {"normalizer": {"type": "Prepend", "prepend": "a" * 100_000}},
        {
            "normalizer": {
                "type": "Precompiled",
                "precompiled_charsmap": base64.b64encode(bytes(4) + b"x" * 5000 + b"\0").decode(),
            }
        },
        {
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [{"Sequence": {"id": "A", "type_id": 0}}] * 1000,
                "pair": [],
                "special_tokens": {},
            }
        },
        {
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "x", "type_id": 0}}] * 20,
                "pair": [],
                "special_tokens": {"x": {"id": "x", "ids": [0] * 1000, "tokens": ["b"] * 1000}},
            }
        },
    ],
    ids=["doubling", "replace", "rules", "prepend", "charsmap", "sequence", "special"],
)
def test_a_tokenizer_that_multiplies_a_text_is_not_loaded(tmp_path, rules):
    tokenizer(tmp_path, **rules)
    with pytest.raises(ModelError, match="expected at most"):
        load_tokenizer(tmp_path)


def replacing(pattern):
    return {"type": "Replace", "pattern": {"Regex": pattern}, "content": " "}


@pytest.mark.parametrize("pattern", ["(?:.|.|.){12}x", "(a+)+b", ".*.*.*x", r"[)]\)*a(bc)*d"])
@pytest.mark.parametrize("name", ["normalizer", "decoder"])
def test_a_regular_expression_that_tries_many_ways(tmp_path, name, pattern):
    tokenizer(tmp_path, **{name: {"type": "Sequence", f"{name}s": [replacing(pattern)]}})
    with pytest.raises(ModelError, match=f"the {name} has the regular expression"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "pattern", [" {2,}", r"\s+", r"\s{2,}|[\n\r\t]", "^▁+$", " +▁", r"[*+?(){}\]]+", r"\(\)\*(?=a)"]
)
def test_regular_expressions_of_real_normalizers(tmp_path, pattern):
    check_tokenizer_claims(tokenizer(tmp_path, normalizer=replacing(pattern)))


@pytest.mark.parametrize(
    ("pattern", "seconds", "error", "message"),
    [
        (r"(?:.|.|.|.){11}(?!)", 0.5, ModelError, r"took more than 0\.50\d s for one text"),
        (r"(a+)+b", 60, PromptError, "the tokenizer fails: Onig: .*retry-limit"),
    ],
    ids=["slow", "panic"],
)
def test_a_pre_tokenizer_that_tries_many_ways(
    tmp_path, monkeypatch, pattern, seconds, error, message
):
    """Oniguruma ends one search after ten million tries, which is too much at each character."""
    tiny_tokenizer().save_pretrained(tmp_path)
    file = tmp_path / "tokenizer.json"
    rules = json.loads(file.read_text())
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"}
    file.write_text(json.dumps(rules | {"pre_tokenizer": {**split, "invert": False}}))
    loaded = load_tokenizer(tmp_path)
    monkeypatch.setattr("opdprobe.models.chat_template._SECONDS", seconds)
    with pytest.raises(error, match=message):
        tokens(loaded, "a" * 40)
    monkeypatch.undo()
    assert tokens(loaded, "7") == tokens(tiny_tokenizer(), "7")


def test_usual_tokenizers_claim_nothing_odd(tmp_path):
    tiny_tokenizer().save_pretrained(tmp_path)
    check_tokenizer_claims(tmp_path / "tokenizer.json")
    check_tokenizer_claims(tmp_path / "absent.json")
    space = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    steps = [space, {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " "}]
    llama = tokenizer(
        tmp_path,
        normalizer={
            "type": "Sequence",
            "normalizers": [{"type": "Prepend", "prepend": "▁"}, space],
        },
        decoder={"type": "Sequence", "decoders": steps},
        post_processor={
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>"}}, {"Sequence": {"id": "A"}}],
            "pair": [{"Sequence": {"id": "A"}}, {"Sequence": {"id": "B"}}],
            "special_tokens": {"<s>": {"ids": [1]}},
        },
    )
    check_tokenizer_claims(llama)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[" * 100_000, "nested too deeply"),
        ("[]", "expected an object|indices must be"),
        ('{"model": {"vocab": {"a": "b"}}}', "a token's id is 'b'"),
        ('{"model": {"vocab": {"a": true}}}', "a token's id is True"),
        ('{"model": {"vocab": {"a": 1e400}}}', "a token's id is inf"),
        ('{"model": {"vocab": {"a": -1}}}', "a token's id is -1"),
        ('{"model": {"vocab": {"a": 99999999999}}}', "a token's id is 99999999999"),
        ('{"model": {"vocab": [7]}}', "not a tokenizer.json"),
        ('{"model": {"vocab": {}}, "decoder": [1]}', "not a tokenizer.json"),
        ('{"model": {"vocab": {}}, "added_tokens": [{"special": 1}]}', "not a tokenizer.json"),
        ('{"model": {"vocab": {"a": ' + "9" * 5000 + "}}}", "4300"),
    ],
)
def test_a_tokenizer_file_that_is_none(tmp_path, capsys, content, message):
    run = synthetic_run(tmp_path / "run", [0], n_rollouts=2, length=2, k=4)
    (run.path / "tokenizer").mkdir(exist_ok=True)
    (run.path / "tokenizer/tokenizer.json").write_text(content)
    with pytest.raises(ModelError, match=message):
        TokenTexts(run.path / "tokenizer")
    assert main(["view", str(run.path)]) == 1
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"num_hidden_layers": 10**9, "hidden_size": 8}, "claims 1000000000 layers"),
        ({"num_hidden_layers": 2, "hidden_size": 2**31}, "weights in norms"),
        ({"vocab_size": 2**31, "hidden_size": 64}, "weights in embeddings"),
        ({"intermediate_size": 2**31, "hidden_size": 64}, "weights in a layer"),
        ({"text_config": {"n_layer": 10**9}}, "claims 1000000000 layers"),
    ],
    ids=["layers", "width", "vocabulary", "inner", "nested"],
)
def test_a_configuration_of_a_model_that_is_not_there(tmp_path, config, message):
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes(bytes(1000))
    for check in (check_model_claims, ModelSize.of):
        with pytest.raises(ModelError, match=message):
            check(tmp_path)


def test_the_claims_of_real_models_pass(tmp_path):
    """Qwen3-235B's numbers beside 4-bit weights of the same size."""
    config = {"num_hidden_layers": 94, "hidden_size": 4096, "vocab_size": 151_936}
    (tmp_path / "config.json").write_text(json.dumps(config | {"intermediate_size": 12_288}))
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.truncate(117 * 10**9)
    check_model_claims(tmp_path)
    config = {"num_hidden_layers": 2, "hidden_size": 8, "vocab_size": 64}  # a test's tiny model
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes(bytes(5000))
    check_model_claims(tmp_path)


@pytest.mark.parametrize(
    "entry",
    [
        struct.pack("<Q", 2**62),
        struct.pack("<Q", 1) + b"a" + struct.pack("<IIQ", 9, 4, 2**62),
        struct.pack("<Q", 1) + b"a" + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 5000,
        struct.pack("<Q", 1) + b"a" + struct.pack("<I", 99),
    ],
    ids=["name", "array", "nested", "type"],
)
def test_a_gguf_header_that_claims_more_than_the_file(tmp_path, entry):
    path = tmp_path / "a.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + entry)
    with at_most(64 * MIB), pytest.raises(UnknownSizeError, match="the header of"):
        ModelSize.of(path)
