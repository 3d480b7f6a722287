"""Attacks by files from anybody, besides what they cost: code, other files, names that collide."""

import io
import json
import os
import pickle
import shutil
import sys
import zipfile
from contextlib import suppress
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from numcodecs.vlen import VLenUTF8
from numcodecs.zstd import Zstd

from opdprobe.cli.parser import main
from opdprobe.errors import ModelError, OPDProbeError, PromptError, RolloutError, StoreError
from opdprobe.models import chat_template, template_process
from opdprobe.models.load import load_model, load_tokenizer
from opdprobe.probes import curve, curves
from opdprobe.rollout.dumps.read import read_dumps
from opdprobe.rollout.prompt_files import load_prompts
from opdprobe.store import open_run
from opdprobe.store.verify import verify_run
from opdprobe.testing import synthetic_run, tiny_model, tiny_tokenizer
from opdprobe.train.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from opdprobe.train.optim import Optimization


class Harm:
    """Makes a folder where it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.fixture
def run(tmp_path):
    return synthetic_run(tmp_path / "run", [0, 1], n_rollouts=2, length=2, k=4)


@pytest.fixture
def model_folder(tmp_path):
    tiny_model().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def changed(path, **entries):
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


# --- code ---


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_of_a_dump_runs_nothing(tmp_path, protocol):
    harm, file = tmp_path / "harm", tmp_path / "1.pkl"
    file.write_bytes(pickle.dumps({"samples": [Harm(harm)]}, protocol=protocol))
    with pytest.raises(RolloutError):
        list(read_dumps(file, "slime"))
    assert not harm.exists()


def test_an_optimizer_of_a_strangers_run_runs_nothing(tmp_path):
    model, harm = tiny_model(), tmp_path / "harm"
    steps = optimization(model)
    found = save_checkpoint(tmp_path, 1, model, tiny_tokenizer(), steps)
    torch.save({"optimization": Harm(harm), "rng": 0}, found.path / "optimizer.pt")
    rewrite_checksums(found.path, tmp_path)
    with pytest.raises(StoreError, match="cannot be read"):
        load_checkpoint(found, model, steps)
    assert not harm.exists()


def test_a_packed_optimizer_is_not_unpacked(tmp_path):
    model = tiny_model()
    steps = optimization(model)
    found = save_checkpoint(tmp_path, 1, model, tiny_tokenizer(), steps)
    stored = io.BytesIO((found.path / "optimizer.pt").read_bytes())
    packed = zipfile.ZipFile(found.path / "optimizer.pt", "w", zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(stored) as old, packed as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    rewrite_checksums(found.path, tmp_path)
    with pytest.raises(StoreError, match="its members are compressed"):
        load_checkpoint(Checkpoint(found.path, 1), model, steps)


def optimization(model):
    return Optimization(
        model,
        learning_rate=1e-3,
        weight_decay=0.0,
        max_grad_norm=1.0,
        schedule="constant",
        total_steps=2,
        warmup_steps=0,
    )


def rewrite_checksums(checkpoint, run_dir):
    from opdprobe.store.checksums import write_checksums

    (checkpoint / "checksums.json").unlink()
    write_checksums(checkpoint, run_dir)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_code_beside_a_model_is_not_run(model_folder, tmp_path, name):
    harm = tmp_path / "harm"
    (model_folder / "own.py").write_text(f"import os\nos.mkdir({str(harm)!r})\nclass Own: pass\n")
    classes = ["own.Own", None] if "token" in name else "own.Own"
    kind = "AutoTokenizer" if "token" in name else "AutoModelForCausalLM"
    changed(model_folder / name, auto_map={kind: classes, "AutoConfig": "own.Own"})
    for load in (load_tokenizer, partial(load_model, device="cpu")):
        with suppress(ModelError):
            load(model_folder)
    assert not harm.exists()


def test_an_adapter_that_names_a_path_of_weights_that_run_code(tmp_path):
    harm, base = tmp_path / "harm", tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text('{"model_type": "llama"}')
    (base / "pytorch_model.bin").write_bytes(pickle.dumps(Harm(harm)))
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "../base"}))
    with pytest.raises(ModelError, match="only pickled weights"):
        load_model(adapter, device="cpu")
    assert not harm.exists()


def test_a_tokenizer_whose_names_would_move_the_cursor(model_folder, capfd):
    token = {"content": "<x>", "special": True, "\x1b[2Jowned": True}
    changed(model_folder / "tokenizer_config.json", added_tokens_decoder={"64": token})
    with pytest.raises(ModelError, match=r"an entry is called '\\x1b\[2Jowned'"):
        load_tokenizer(model_folder)
    assert "\x1b" not in "".join(capfd.readouterr())


# --- chat templates ---

ASKED = [{"role": "user", "content": "7"}]


def with_template(text):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = text
    return tokenizer


@pytest.mark.parametrize(
    "text",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{{ (7 ** (messages|length * 10 ** 8)) % 3 }}",  # one operation
    ],
    ids=["loops", "power"],
)
@pytest.mark.skipif(os.name != "posix", reason="needs timers of POSIX")
def test_a_chat_template_without_end(monkeypatch, text):
    monkeypatch.setattr(chat_template, "_SECONDS", 0.2)
    with pytest.raises(PromptError, match=r"the chat template fails: it did not end within 0\.2 s"):
        chat_template.render(with_template(text), ASKED, {})
    monkeypatch.undo()
    assert chat_template.render(with_template("{{ messages[0].content }}"), ASKED, {}) == "7"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs limits of Linux")
@pytest.mark.parametrize(
    "text",
    [
        "{{ 'a' * 10 ** 9 }}",
        "{{ ('a' * 10 ** 6) * (messages|length * 5000) }}",
        "{{ [0] * 10 ** 10 }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ '{:>1000000000}'.format('a') }}",
        "{{ 'a' | center(10 ** 9) }}",
        "{{ (['a' * 10 ** 6] * 10 ** 6) | join }}",
        "{% set n = namespace(x='aaaaaaaa') %}{% for i in range(40) %}{% set n.x = n.x ~ n.x %}"
        "{% endfor %}{{ n.x }}",
    ],
    ids=["times", "late", "list", "percent", "format", "center", "join", "doubling"],
)
def test_a_chat_template_that_takes_gigabytes(text):
    with pytest.raises(PromptError, match=r"fails: it takes more than 672\d{5} bytes of memory"):
        chat_template.render(with_template(text), ASKED, {})


def test_a_chat_template_that_makes_a_text_without_end():
    with pytest.raises(PromptError, match=r"it makes 2000000 characters of a template and a conv"):
        chat_template.render(with_template("{{ 'a' * 2000000 }}"), ASKED, {})
    long = [{"role": "user", "content": "a" * 3_000_000}]
    text = chat_template.render(with_template("{{ messages[0].content * 2 }}"), long, {})
    assert len(text) == 6_000_000


def test_a_chat_template_is_rendered_as_transformers_does_it():
    text = (
        "{{ bos_token }}{% for m in messages %}\n  {{ m | tojson(indent=1) }}{% generation %}"
        "{{ strftime_now('%Y')[:2] }}{% endgeneration %}{% if loop.first %}"
        "{% continue %}{% endif %}{% endfor %}{{ add_generation_prompt }}"
        "{{ deep.a[0] }}{{ 'é\u0000\ud7ff' }}"
    )
    tokenizer = with_template(text)
    asked = [{"role": role, "content": "é\n\U0001f600"} for role in ("system", "user")]
    own = chat_template.render(tokenizer, asked, {"deep": {"a": [7]}})
    options = {"deep": {"a": [7]}, "add_generation_prompt": True}
    assert own == tokenizer.apply_chat_template(asked, tokenize=False, **options)


def test_a_process_of_templates_that_was_ended_is_replaced():
    tokenizer = with_template("{{ messages[0].content }}")
    assert chat_template.render(tokenizer, ASKED, {}) == "7"
    running = template_process._process._running
    assert running is not None
    running.kill()
    running.wait()
    assert chat_template.render(tokenizer, ASKED, {}) == "7"
    assert template_process._process._running.pid != running.pid


def test_a_template_sees_no_keys_of_its_user(monkeypatch):
    template_process._process.stop()
    monkeypatch.setenv("OPDPROBE_API_KEY", "precious")
    monkeypatch.setenv("HF_TOKEN", "precious")
    chat_template.render(with_template("{{ messages[0].content }}"), ASKED, {})
    running = template_process._process._running
    assert running is not None
    if sys.platform.startswith("linux"):
        assert b"precious" not in Path(f"/proc/{running.pid}/environ").read_bytes()


@pytest.mark.parametrize(
    "text",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{% for i in range(10**9) %}x{% endfor %}",
        "{{ raise_exception('no') }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ 1 // 0 }}",
        "{{",
        "{{ " + "[" * 2000,
        "{{ " + "9" * 5000 + " }}",
    ],
)
def test_a_chat_template_that_reaches_out_or_fails(text):
    with pytest.raises(PromptError, match="the chat template fails"):
        chat_template.render(with_template(text), ASKED, {})
    assert isinstance(chat_template.variables(with_template(text)), list)


# --- other files ---


@pytest.mark.parametrize("name", ["run.json", "config.yaml", "metrics.jsonl", "evaluations.jsonl"])
def test_a_link_out_of_a_run_is_not_read(run, tmp_path, capsys, name):
    secret = tmp_path / "secret"
    secret.write_text("token: precious\n" if name == "config.yaml" else '{"token": "precious"}\n')
    (run.path / name).unlink(missing_ok=True)
    (run.path / name).symlink_to(secret)
    for words in (["inspect", "--json"], ["inspect", "--verify"], ["report", "--no-view"]):
        code = main([words[0], str(run.path), *words[1:]])
        told = "".join(capsys.readouterr())
        assert "precious" not in told
        if name != "evaluations.jsonl" or words[0] == "report":
            assert code == 1
            assert "is a link out of its directory, which is not followed" in " ".join(told.split())
    assert not (run.path / "report.html").exists()


def test_a_link_inside_a_run_is_read(run):
    (run.path / "metrics.jsonl").rename(run.path / "metrics-all.jsonl")
    (run.path / "metrics.jsonl").symlink_to("metrics-all.jsonl")
    assert run.metrics["step"].size == 2


@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_step_of_another_run_is_not_read(run, tmp_path, capsys, what):
    other = synthetic_run(tmp_path / "other", [0, 1], n_rollouts=2, length=2, k=4)
    name = "steps/000001.zarr.zip" if what == "file" else "steps"
    (run.path / name).rename(tmp_path / "former")
    (run.path / name).symlink_to(other.path / name)
    for read in (lambda: run.load(1), lambda: run.rollouts().compute(), lambda: curves(run)):
        with pytest.raises(StoreError, match="link out of its directory, which is not followed"):
            read()
    for words in (["inspect", "--verify"], ["report", "--no-view"], ["view"]):
        assert main([words[0], str(run.path), *words[1:]]) == 1
        told = " ".join("".join(capsys.readouterr()).split())
        assert "link out of its directory, which is not followed" in told
    assert not list(run.path.glob("*.html"))


def test_a_step_that_is_a_link_inside_its_run_is_read(run):
    (run.path / "kept").mkdir()
    (run.path / "steps/000001.zarr.zip").rename(run.path / "kept/one")
    (run.path / "steps/000001.zarr.zip").symlink_to("../kept/one")
    assert run.load(1).sizes["rollout"] == 2


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "checksums.json", "."])
def test_a_checkpoints_files_that_are_elsewhere(run, tmp_path, name):
    model = tiny_model()
    steps = optimization(model)
    found = save_checkpoint(run.path, 1, model, tiny_tokenizer(), steps)
    shutil.copytree(found.path, tmp_path / "elsewhere")
    path = found.path / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    path.symlink_to(tmp_path / "elsewhere" / name)
    with pytest.raises(StoreError, match="link out of its directory, which is not followed"):
        load_checkpoint(found, model, steps)
    told = [fault.what for fault in verify_run(run.path).faults]
    assert any("link out of its directory, which is not followed" in what for what in told)


@pytest.mark.parametrize("name", ["tokenizer", "tokenizer/tokenizer.json"])
def test_a_tokenizer_of_a_run_that_is_elsewhere_is_not_shown(run, tmp_path, capsys, name):
    tiny_tokenizer().save_pretrained(tmp_path / "private/tokenizer")
    (run.path / name).parent.mkdir(exist_ok=True)
    (run.path / name).symlink_to(tmp_path / "private" / name)
    assert main(["view", str(run.path)]) == 1
    told = " ".join("".join(capsys.readouterr()).split())
    assert "link out of its directory, which is not followed" in told


def test_an_optimizer_that_claims_more_numbers_than_it_stores(tmp_path):
    model = tiny_model()
    steps = optimization(model)
    found = save_checkpoint(tmp_path, 1, model, tiny_tokenizer(), steps)
    state = torch.load(found.path / "optimizer.pt", weights_only=True)
    state["more"] = torch.zeros(1, dtype=torch.float64).expand(2**40)
    torch.save(state, found.path / "optimizer.pt")
    rewrite_checksums(found.path, tmp_path)
    with pytest.raises(StoreError, match=r"holds more than .* of values"):
        load_checkpoint(found, model, steps)


# --- names ---


def test_two_files_that_name_one_step(run):
    """The file of fewer parts is read; zeros before a number do not make another name of it."""
    before = run.load(1)
    whole = run.path / "steps/000001.zarr.zip"
    for part in (1, 2):
        shutil.copy(whole, run.path / f"steps/000001.{part}-of-2.zarr.zip")
    shutil.copy(run.path / "steps/000000.zarr.zip", run.path / "steps/0000001.zarr.zip")
    assert run.steps == [0, 1]
    assert run.load(1).identical(before)
    assert len(run.rollouts()["step"]) == 4


def test_an_id_that_ends_with_a_nul(run, tmp_path):
    file = run.path / "steps/000000.zarr.zip"
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    texts = np.array(["a", "a\0"], object)
    members["prompt_id/c/0"] = bytes(Zstd().encode(VLenUTF8().encode(texts)))
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    for read in (lambda: run.load(0), lambda: run.rollouts().compute(), lambda: curves(run)):
        with pytest.raises(StoreError, match="a text in it ends with a NUL"):
            read()
    (tmp_path / "p.jsonl").write_text('{"prompt": "7", "id": "a\\u0000"}\n')
    with pytest.raises(PromptError, match="ends with a NUL"):
        load_prompts(tmp_path / "p.jsonl")


# --- other libraries' exceptions ---


@pytest.mark.parametrize("name", [7, ["a"], {"name": ["a"]}, {"name": 7}, None, True, "a\0b"])
@pytest.mark.parametrize("words", [["inspect"], ["inspect", "--json"], ["view"]])
def test_a_model_whose_name_is_none(run, capsys, name, words):
    changed(run.path / "run.json", student=name)
    shutil.rmtree(run.path / "tokenizer", ignore_errors=True)
    assert main([words[0], str(run.path), *words[1:]]) == 0
    assert "\0" not in capsys.readouterr().out


ODD = """
1: 2
2.5: a
null: b
true: c
day: 2026-11-29
time: 1:30:00
bytes: "\\0\\x1b[2J"
eval_n: [1, {a: 2}]
max_steps: {a: b}
objective: [topk]
record_every: "often"
"""


@pytest.mark.parametrize(
    "words", [["inspect"], ["inspect", "--json"], ["inspect", "--verify"], ["report", "--no-view"]]
)
def test_settings_of_other_types(run, capsys, words):
    (run.path / "config.yaml").write_text(ODD)
    (run.path / "evaluations.jsonl").write_text(
        '{"step": 0, "benchmark": "b", "prompt_id": ["a"], "score": [1]}\n'
    )
    assert main([words[0], str(run.path), *words[1:]]) == 0
    assert "\x1b" not in capsys.readouterr().out


@pytest.mark.parametrize("number", ["0x" + "f" * 4000, "9" * 5000, "-0x" + "f" * 9000])
def test_settings_of_endless_numbers(run, number):
    (run.path / "config.yaml").write_text(f"k: {number}\n")
    with pytest.raises(StoreError, match=r"digits|4300"):
        open_run(run.path)


def test_a_step_with_counts_and_no_variables(run):
    file = run.path / "steps/000000.zarr.zip"
    with zipfile.ZipFile(file) as archive:
        group = archive.read("zarr.json")
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("zarr.json", group)
    for read in (
        lambda: curve(run, "overlap_ratio"),
        lambda: curves(run),
        lambda: run.load(0),
        lambda: run.states(),
        lambda: run.rollouts(),
    ):
        with pytest.raises(StoreError, match="is not in it"):
            read()


@pytest.mark.parametrize(
    "address",
    [
        "http://",
        "http://[::1",
        "http://a:b",
        "http://a:99999999",
        "http://\0",
        "http://a b/",
        "ftp://a",
    ],
)
def test_an_address_that_is_none(address, capsys):
    from opdprobe.hooks.served.connection import Connection
    from opdprobe.hooks.served.model import ServedModel

    with pytest.raises(OPDProbeError):
        ServedModel(address, Connection(timeout=1, tries=1))


def test_a_rollout_of_a_negative_number(run):
    file = run.path / "steps/000000.zarr.zip"
    from numcodecs.blosc import Blosc

    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    raw = np.frombuffer(Blosc().decode(members["rollout/c/0"]), np.int32).copy()
    raw[0] = -1
    members["rollout/c/0"] = bytes(Blosc("lz4", shuffle=Blosc.BITSHUFFLE).encode(raw))
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(StoreError, match="a state of rollout -1"):
        curves(run)


# --- markup ---


class _Parsed(HTMLParser):
    """Collects what a page would run or fetch."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(name, value) for name, value in attrs]


MARKUP = "\"'><script>alert(1)</script><img src=http://x/ onerror=alert(1)>&lt;b&gt;{{7*7}}`"


def test_markup_in_every_text_of_a_run(run, capsys):
    """Names of models, settings, metrics, benchmarks, problems, prompts, versions and tokens."""
    attrs = {name: {"name": MARKUP, "revision": MARKUP} for name in ("student", "teacher")}
    attrs |= {
        "versions": {MARKUP: MARKUP},
        "commit": MARKUP,
        "prompts": MARKUP,
        "positions": MARKUP,
    }
    changed(run.path / "run.json", **attrs)
    config = {MARKUP: MARKUP, "objective": MARKUP, "nested": {MARKUP: [MARKUP]}}
    (run.path / "config.yaml").write_text(json.dumps(config))
    (run.path / "metrics.jsonl").write_text(json.dumps({"step": 0, MARKUP: 1.0}) + "\n")
    score = {"step": 0, "benchmark": MARKUP, "prompt_id": [MARKUP], "score": [1]}
    (run.path / "evaluations.jsonl").write_text(json.dumps(score) + "\n")
    tokens = {"model": {"vocab": {f"{MARKUP}{i}": i for i in range(64)}}, "added_tokens": []}
    (run.path / "tokenizer").mkdir(exist_ok=True)
    (run.path / "tokenizer/tokenizer.json").write_text(json.dumps(tokens))
    assert main(["report", str(run.path)]) == 0
    pages = sorted(run.path.glob("*.html"))
    assert len(pages) == 2
    for page in pages:
        parsed = _Parsed(page.read_text(encoding="utf-8"))
        sources = [v for name, v in parsed.attributes if name in ("src", "href") and v]
        assert all(s.startswith(("data:", "#", "report-view.html")) for s in sources), page
        assert not [name for name, _ in parsed.attributes if name.startswith("on")]
        assert "alert" not in parsed.tags
        assert "<script>alert" not in page.read_text(encoding="utf-8")
