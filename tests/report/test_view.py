"""The token viewer: one safe file, whole data, honest about what it leaves out, usable."""

import base64
import gzip
import hashlib
import html
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opdprobe.cli.parser import main
from opdprobe.errors import ConfigError, ModelError, StoreError
from opdprobe.probes.selectors import SELECTORS, select_states
from opdprobe.probes.sets import overlap_mask
from opdprobe.report.token_text import TokenText, TokenTexts, visible
from opdprobe.report.view import write_view
from opdprobe.report.view_data import VIEWED, level_bounds, pack_step
from opdprobe.store import RunWriter, open_run
from opdprobe.testing import synthetic_run, synthetic_step

HOSTILE = """<script>document.title="stolen"</script><img src=x onerror=alert(1)>"""
# Every second token is hostile, so that lists and text are full of them.
WORDS = [f"{HOSTILE}{i}" if i % 2 else f"</script>\u202e{i}" for i in range(64)]


def save_tokenizer(folder, pieces, *, decoder=None, added=(), unigram=False):
    folder.mkdir(parents=True, exist_ok=True)
    vocab = [[p, 0.0] for p in pieces] if unigram else {p: i for i, p in enumerate(pieces)}
    rules = {"model": {"vocab": vocab}, "decoder": decoder, "added_tokens": list(added)}
    (folder / "tokenizer.json").write_text(json.dumps(rules))
    return folder


def unpacked(text, element):
    block = re.search(rf'<script type="text/plain" id="{element}">([A-Za-z0-9+/=]*)</script>', text)
    assert block is not None
    return gzip.decompress(base64.b64decode(block[1]))


def index_of(path):
    return json.loads(unpacked(path.read_text(), "index"))


def arrays(data, header):
    """Read a block as the page does, straight from the layout that `PackedStep` documents."""
    n, k = header["n"], header["k"]
    shapes = [
        ("values", "<f4", (len(VIEWED), n)),
        ("position", "<i4", (n,)),
        ("token_id", "<i4", (n, 2, k)),
        ("prompt", "<i4", (sum(header["n_prompt"]),)),
        ("teacher_prompt", "<i4", (sum(header["n_teacher_prompt"]),)),
        ("response", "<i4", (sum(header["n_response"]),)),
        ("logp", "<u2", (n, 2, 2, k)),
        ("sampled", "<u2", (n, 2)),
        ("marks", "<u2", (n,)),
    ]
    found = {}
    for name, dtype, shape in shapes:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        found[name], data = np.frombuffer(data[:size], dtype).reshape(shape), data[size:]
    assert data == b""
    return found


# ---- the data


def test_a_block_holds_the_step(tmp_path):
    run = synthetic_run(tmp_path / "run", steps=[4], n_rollouts=3, length=[5, 0, 2], k=8)
    write_view(tmp_path / "view.html", [run])
    (step,) = index_of(tmp_path / "view.html")["runs"][0]["steps"]
    found = arrays(unpacked((tmp_path / "view.html").read_text(), step["block"]), step)
    ds = run.load(4)
    assert (step["step"], step["n_states"], step["n_response"]) == (4, [5, 0, 2], [5, 0, 2])
    assert step["prompt_id"] == ["prompt-0", "prompt-1", "prompt-2"]
    assert step["finished"] == ds.finished.values.tolist()
    assert step["correct"] == ds.correct.values.tolist()
    np.testing.assert_array_equal(found["position"], [0, 1, 2, 3, 4, 0, 1])
    np.testing.assert_array_equal(found["token_id"], ds.token_id)
    np.testing.assert_array_equal(found["prompt"], ds.prompt_ids)
    np.testing.assert_array_equal(found["response"], ds.response_ids)
    np.testing.assert_allclose(np.exp(-1e-3 * found["logp"]), np.exp(ds.logp), rtol=6e-4)
    np.testing.assert_allclose(np.exp(-1e-3 * found["sampled"]), np.exp(ds.sampled_logp), rtol=6e-4)
    expected = [
        ds.reverse_kl,
        ds.opd.overlap_token_advantage(),
        (ds.match >= 0).mean("rank"),
        ds.entropy.sel(model="student"),
        ds.entropy.sel(model="teacher"),
        ds.sampled_logp.sel(model="teacher") - ds.sampled_logp.sel(model="student"),
        np.full(7, np.nan),  # no log-probabilities of a sampler
    ]
    for row, values in zip(found["values"], expected, strict=True):
        np.testing.assert_allclose(row, values, rtol=1e-5, atol=1e-6)


def test_states_come_in_the_order_of_the_text():
    ds = synthetic_step(n_rollouts=3, length=4)
    shuffled = ds.isel(state=np.random.default_rng(0).permutation(ds.sizes["state"]))
    assert pack_step(shuffled, 2)[:2] == pack_step(ds, 2)[:2]
    assert pack_step(ds, 2).columns["n"] == 8


def test_an_impossible_token_is_the_lowest_number():
    ds = synthetic_step(n_rollouts=1, length=1, k=2)
    ds["logp"][0, 1, 0, 1] = -np.inf
    ds["sampled_logp"][0, 1] = -np.inf
    packed = pack_step(ds, 1)
    found = arrays(gzip.decompress(base64.b64decode(packed.block)), packed.columns)
    assert found["logp"][0, 1, 0, 1] == found["sampled"][0, 1] == 65534
    assert found["values"][5, 0] == -np.inf


def test_a_token_that_is_only_unlikely_is_not_an_impossible_one():
    ds = synthetic_step(n_rollouts=1, length=1, k=2)
    ds["logp"][0, 1, 0] = [-99.0, -np.inf]
    packed = pack_step(ds, 1)
    found = arrays(gzip.decompress(base64.b64decode(packed.block)), packed.columns)
    assert found["logp"][0, 1, 0].tolist() == [65533, 65534]


def test_marks_are_what_the_selectors_keep_of_the_whole_step():
    ds = synthetic_step(n_rollouts=6, length=[9, 3, 0, 7, 8, 5], k=4)
    packed = pack_step(ds, 4)
    marks = arrays(gzip.decompress(base64.b64decode(packed.block)), packed.columns)["marks"]
    assert len(marks) == 19
    for bit, name in enumerate(SELECTORS):
        kept = select_states(ds, name, 0.2)
        assert kept.sum() == 7
        np.testing.assert_array_equal((marks >> bit) & 1, kept[:19])


def test_the_page_names_the_selectors_only_where_their_marks_are_known(tmp_path):
    run = synthetic_run(tmp_path / "run", steps=[0], n_rollouts=2, length=3)
    write_view(tmp_path / "view.html", [run])
    assert [name for name, _ in index_of(tmp_path / "view.html")["selectors"]] == list(SELECTORS)
    lists = ["token_id", "logp", "entropy", "reverse_kl", "match", "stop_logp", "support"]
    bare = synthetic_step(n_rollouts=2, length=3).drop_vars(lists)
    writer = RunWriter(tmp_path / "bare", attrs={}, config={}, resume=False)
    writer.write_step(0, bare)
    write_view(tmp_path / "bare.html", [open_run(tmp_path / "bare")])
    assert index_of(tmp_path / "bare.html")["selectors"] == []
    packed = pack_step(bare, 2)
    found = arrays(gzip.decompress(base64.b64decode(packed.block)), packed.columns)
    assert not found["marks"].any()


def test_labels_and_the_samplers_log_probabilities_come_with_the_step():
    ds = synthetic_step(n_rollouts=3, length=2, given=True)
    ds["label"] = ds.label.dims, np.array([["a\u202e"], [""], ["b"]])
    packed = pack_step(ds, 2)
    assert packed.columns["labels"] == {"domain": ["a‹U+202E›", ""]}
    gap = ds.sampled_logp.values[:4, 0] - ds.sampler_logp.values[:4]
    np.testing.assert_allclose(packed.values[[*VIEWED].index("sampler_gap")], gap, atol=1e-6)


def test_what_the_teacher_read_comes_beside_what_the_student_read():
    ds = synthetic_step(n_rollouts=3, length=2, given=True)
    packed = pack_step(ds, 2)
    found = arrays(gzip.decompress(base64.b64decode(packed.block)), packed.columns)
    assert packed.columns["n_teacher_prompt"] == [5, 5]
    np.testing.assert_array_equal(found["teacher_prompt"], ds.teacher_prompt_ids[:10])
    np.testing.assert_array_equal(found["prompt"], ds.prompt_ids[:6])
    assert set(ds.teacher_prompt_ids.values[:10]) <= set(packed.ids)
    assert pack_step(synthetic_step(n_rollouts=2), 2).columns["n_teacher_prompt"] == [0, 0]


def test_what_is_not_known_is_no_zero():
    ds = synthetic_step(n_rollouts=1, length=1, k=2).assign_attrs(missing=["teacher"])
    ds["logp"][0, 1, 0, 1] = np.nan
    packed = pack_step(ds, 1)
    found = arrays(gzip.decompress(base64.b64decode(packed.block)), packed.columns)
    assert found["logp"][0, 1, 0, 1] == 65535
    assert (found["logp"] == 65535).sum() == 1


def test_a_step_without_texts_and_samples_shows_what_there_is():
    names = ["prompt_ids", "prompt_length", "response_ids", "length", "sampled_id", "sampled_logp"]
    bare = synthetic_step(n_rollouts=2, length=3).drop_vars([*names, "correct", "prompt_id"])
    packed = pack_step(bare.assign_coords(position=bare.position * 10), 2)
    found = arrays(gzip.decompress(base64.b64decode(packed.block)), packed.columns)
    assert found["response"].tolist() == [-1] * 6
    assert found["position"].tolist() == [0, 1, 2] * 2  # the states are the text
    assert packed.columns["n_prompt"] == [0, 0]
    assert packed.columns["prompt_id"] == packed.columns["correct"] == [None, None]
    assert np.isnan(found["values"][5]).all()


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1), st.sampled_from([*VIEWED.values()]))
def test_half_of_the_values_stay_plain(values, quantity):
    values = np.array(values, np.float32)
    bounds = level_bounds(quantity, values)
    worse = np.abs(values) if quantity.two_sided else quantity.worse * values
    first = bounds[0] if quantity.two_sided else quantity.worse * bounds[0]
    assert (worse <= first + 1e-5 * abs(first)).mean() >= 0.5
    signs = np.diff(bounds) * (1 if quantity.two_sided else quantity.worse)
    assert (signs > 0).all()


# ---- the text of a token


def test_byte_level_pieces_and_halves_of_a_character(tmp_path):
    folder = save_tokenizer(
        tmp_path,
        ["Ġthe", "Ċ", "â", "ĠâĤ¬", "\u2581odd"],
        decoder={"type": "ByteLevel"},
        added=[{"id": 9, "content": "<|end|>", "special": True}],
    )
    texts = TokenTexts(folder)
    assert [texts[i].text for i in (0, 1, 3, 4)] == [" the", "\n", " €", "▁odd"]
    assert texts[2] == TokenText("bytes", "E2")
    assert texts[9] == TokenText("special", "<|end|>")
    assert texts[5] == TokenText("id", "5")
    assert (texts.gap, texts.size, 5 in texts) == ("", 10, False)


def test_sentencepiece_wordpiece_and_word_tokenizers(tmp_path):
    replace = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    llama = {"type": "Sequence", "decoders": [replace, {"type": "ByteFallback"}, {"type": "Fuse"}]}
    texts = TokenTexts(save_tokenizer(tmp_path / "a", ["▁a", "<0x41>", "<0xE2>"], decoder=llama))
    assert [texts[i] for i in range(3)] == [("text", " a"), ("text", "A"), ("bytes", "E2")]
    metaspace = {"type": "Metaspace", "replacement": "▁"}
    t5 = save_tokenizer(tmp_path / "b", ["▁a", "b"], decoder=metaspace, unigram=True)
    assert [TokenTexts(t5)[i].text for i in range(2)] == [" a", "b"]
    bert = save_tokenizer(tmp_path / "c", ["a", "##b"], decoder={"type": "WordPiece"})
    assert [TokenTexts(bert)[i].text for i in range(2)] == [" a", "b"]
    assert TokenTexts(save_tokenizer(tmp_path / "d", ["a", "b"])).gap == " "


@given(st.binary(min_size=1, max_size=6))
def test_byte_level_text_is_what_the_bytes_say(raw):
    from opdprobe.report.token_text import _BYTES, _byte_level

    alphabet = {byte: character for character, byte in _BYTES.items()}
    assert len(alphabet) == 256
    shown = _byte_level("".join(alphabet[byte] for byte in raw))
    try:
        assert shown == ("text", visible(raw.decode()))
    except UnicodeDecodeError:
        assert shown == ("bytes", raw.hex(" ").upper())


@given(st.text(st.characters(exclude_categories=())))
def test_no_text_hides_or_turns_the_page(text):
    shown = visible(text)
    assert not set(shown) & {"\u202e", "\u200b", "\x00", "\u2028", "\x7f", "\ufeff"}
    shown.encode()  # no lone surrogates: the page can be written
    assert shown.count("\n") == text.count("\n")


@pytest.mark.parametrize("content", ["{", "[]", '{"model": {}}', '{"model": {"vocab": 3}}'])
def test_a_file_that_is_no_tokenizer(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ModelError, match=r"is not a tokenizer\.json"):
        TokenTexts(tmp_path)


# ---- the page


class Scripts(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found, self.attributes, self._open = {"script": [], "style": []}, [], None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.attributes += attrs
        if tag in self.found and "type" not in dict(attrs):
            self.found[tag].append("")
            self._open = tag

    def handle_endtag(self, tag):
        self._open = None

    def handle_data(self, data):
        if self._open:
            self.found[self._open][-1] += data


def hostile_run(folder, name="run", **kwargs):
    run = synthetic_run(folder / name, steps=[0, 5], k=4, **kwargs)
    save_tokenizer(run.path / "checkpoints" / "000005", WORDS)
    return run


def test_the_page_is_one_file_that_runs_its_own_script_only(tmp_path):
    run = hostile_run(tmp_path, name="<b>&'\"")
    assert write_view(tmp_path / "view.html", [run]) == []
    text = (tmp_path / "view.html").read_text()
    parsed = Scripts(text)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy is not None
    for tag in ("script", "style"):
        (content,) = parsed.found[tag]
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in html.unescape(policy[1])
    assert policy[1].startswith("default-src 'none'; ")
    assert "unsafe" not in policy[1]
    names = {name for name, _ in parsed.attributes}
    assert not names & {"src", "href", "style", "onclick", "onload"}
    assert "innerHTML" not in text
    assert "stolen" not in text  # a token's text lies in a block only
    assert "<b>" not in text
    described = index_of(tmp_path / "view.html")["runs"][0]
    assert described["token_text"] == [visible(WORDS[i]) for i in described["token_id"]]
    assert not list(tmp_path.glob("*.tmp"))


def test_equal_runs_give_equal_pages(tmp_path):
    run = hostile_run(tmp_path)
    for name in ("one", "two"):
        write_view(tmp_path / f"{name}.html", [run])
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "two.html").read_bytes()


def test_steps_and_rollouts_are_chosen(tmp_path):
    run = synthetic_run(tmp_path / "run", steps=[0, 5, 10])
    write_view(tmp_path / "view.html", [run], steps=[10, 0], rollouts=3)
    steps = index_of(tmp_path / "view.html")["runs"][0]["steps"]
    assert [(step["step"], len(step["n_states"])) for step in steps] == [(0, 3), (10, 3)]


def test_too_large_a_page_is_thinned_and_says_so(tmp_path):
    run = synthetic_run(tmp_path / "run", steps=range(0, 40), n_rollouts=8, length=10)
    whole = tmp_path / "whole.html"
    assert "The page shows" not in "".join(write_view(whole, [run]))
    fixed = len(whole.read_bytes()) - sum(
        len(block) for block in re.findall(r'id="block-\d+">([^<]*)', whole.read_text())
    )

    def thinned(share):
        limit = fixed + share * (len(whole.read_bytes()) - fixed)
        path = tmp_path / "view.html"
        notice = write_view(path, [run], max_mb=limit / 1e6)[0]
        assert path.stat().st_size <= limit
        assert index_of(path)["notices"][0] == notice
        steps = index_of(path)["runs"][0]["steps"]
        return notice, [step["step"] for step in steps], len(steps[0]["n_states"])

    notice, steps, rollouts = thinned(0.6)
    assert rollouts == 8
    assert f"{len(steps)} of 40 steps" in notice
    assert 12 < len(steps) < 40
    assert (steps[0], steps[-1]) == (0, 39)
    notice, steps, rollouts = thinned(0.15)
    assert len(steps) == 12
    assert f"12 of 40 steps, evenly spread and the first {rollouts} of 8 rollouts" in notice
    assert 1 <= rollouts < 8
    with pytest.raises(ConfigError, match="one rollout takes"):
        write_view(tmp_path / "view.html", [run], max_mb=0.001)


def test_what_something_links_to_is_not_thinned_away(tmp_path):
    runs = [synthetic_run(tmp_path / name, steps=range(30), length=10) for name in ("a", "b")]
    path = tmp_path / "view.html"
    (notice, *_) = write_view(path, runs, max_mb=0.2, keep=[[17, 16, 17], [23]])
    assert "evenly spread apart from those linked to" in notice
    first, second = ({step["step"] for step in run["steps"]} for run in index_of(path)["runs"])
    assert len(first) < 30
    assert {0, 16, 17, 29} <= first
    assert {0, 23, 29} <= second
    # Also where the runs do not share it.
    other = synthetic_run(tmp_path / "other", steps=[0, 5])
    write_view(path, [runs[0], other], keep=[[16], []])
    steps = [[step["step"] for step in run["steps"]] for run in index_of(path)["runs"]]
    assert steps == [[0, 5, 16], [0, 5]]


def test_without_a_tokenizer_ids_are_shown_and_it_says_so(tmp_path):
    run = synthetic_run(tmp_path / "run", steps=[0])
    (notice,) = write_view(tmp_path / "view.html", [run])
    assert "no tokenizer in the run or at 'synthetic student'" in notice
    index = index_of(tmp_path / "view.html")
    assert index["notices"] == [notice]
    assert set(index["runs"][0]["token_kind"]) == {"id"}
    assert index["runs"][0]["token_text"] == [str(i) for i in index["runs"][0]["token_id"]]


def test_a_tokenizer_of_another_size_is_pointed_out(tmp_path):
    writer = RunWriter(tmp_path / "run", attrs={"vocabulary": 64}, config={}, resume=False)
    writer.write_step(0, synthetic_step())
    save_tokenizer(tmp_path / "tokenizer", ["a", "b"])
    run = open_run(tmp_path / "run")
    (notice,) = write_view(tmp_path / "v.html", [run], tokenizer=tmp_path / "tokenizer")
    assert "has 2 tokens and the run's had 64" in notice


def test_the_tokenizer_kept_in_the_run_is_the_one(tmp_path):
    run = synthetic_run(tmp_path / "run", steps=[0])
    for name in ("checkpoints/000009", "tokenizer"):
        save_tokenizer(run.path / name, [f"{name}{i}" for i in range(64)])
    write_view(tmp_path / "view.html", [run])
    texts = index_of(tmp_path / "view.html")["runs"][0]["token_text"]
    assert all(text.startswith("tokenizer") for text in texts)


def test_the_tables_count_the_whole_run_and_have_the_texts_of_their_tokens(tmp_path):
    run = hostile_run(tmp_path)
    write_view(tmp_path / "view.html", [run], steps=[0], rollouts=1)
    described = index_of(tmp_path / "view.html")["runs"][0]
    tables, texts = (
        described["tokens"],
        dict(zip(described["token_id"], described["token_text"], strict=True)),
    )
    states = [run.load(step) for step in run.steps]
    assert (tables["by"], tables["n"]) == ("reverse_kl", 64)
    assert sum(n for _, _, n, _, _ in tables["rows"]) == 64
    assert {text for _, text, *_ in tables["rows"]} <= {visible(word) for word in WORDS}
    assert {step for _, step, *_ in tables["worst"]} == {0, 5}  # also of a step that is not shown
    largest = max(float(ds.reverse_kl.max()) for ds in states)
    assert tables["worst"][0][0] == pytest.approx(largest, rel=1e-5)
    for _, step, rollout, position, ids, at in tables["worst"]:
        assert ids[at] == run.response_ids(step)[rollout][position]
        assert all(texts[i] == visible(WORDS[i]) for i in ids)


def test_infinite_values_reach_the_tables(tmp_path):
    ds = synthetic_step(n_rollouts=1, length=4)
    ds["reverse_kl"][2] = np.inf
    RunWriter(tmp_path / "run", attrs={}, config={}, resume=False).write_step(0, ds)
    write_view(tmp_path / "view.html", [open_run(tmp_path / "run")])
    tables = index_of(tmp_path / "view.html")["runs"][0]["tokens"]
    assert (tables["infinite"], tables["worst"][0][0], tables["rows"][0][3]) == (1, "inf", "inf")


def test_two_runs_share_steps_and_keep_their_names(tmp_path):
    one = synthetic_run(tmp_path / "a" / "run", steps=[0, 5, 7])
    two = synthetic_run(tmp_path / "b" / "run", steps=[0, 7, 9], seed=1)
    *_, said = write_view(tmp_path / "view.html", [one, two])
    assert said == "Only steps that both runs have are shown; both have 2."
    first, second = index_of(tmp_path / "view.html")["runs"]
    assert first["label"] != second["label"]
    for run in (first, second):
        assert [step["step"] for step in run["steps"]] == [0, 7]
    blocks = [step["block"] for run in (first, second) for step in run["steps"]]
    assert blocks == ["block-0", "block-1", "block-2", "block-3"]
    *_, said = write_view(tmp_path / "view.html", [one, two], keep=[[5], []])
    assert said.startswith("Only steps that both runs have, and those linked to, are shown;")
    for runs, steps in (([one, one], None), ([one, two], [7])):  # nothing is left out unasked
        notices = write_view(tmp_path / "view.html", runs, steps=steps)
        assert not any("both runs have" in notice for notice in notices)


def test_where_a_model_lay_stays_private(tmp_path):
    attrs = {"student": {"name": "/home/me/secret/student"}, "teacher": {"name": "org/teacher"}}
    writer = RunWriter(tmp_path / "run", attrs=attrs, config={}, resume=False)
    writer.write_step(0, synthetic_step())
    write_view(tmp_path / "view.html", [open_run(tmp_path / "run")])
    run = index_of(tmp_path / "view.html")["runs"][0]
    assert (run["student"], run["teacher"]) == ("student", "org/teacher")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"rollouts": 0}, "rollouts = 0"), ({"max_mb": 0}, "max_mb = 0")],
)
def test_bad_numbers_are_refused(tmp_path, arguments, message):
    with pytest.raises(ConfigError, match=message):
        write_view(tmp_path / "view.html", [synthetic_run(tmp_path / "run")], **arguments)


def test_bad_runs_and_steps_are_refused(tmp_path):
    run = synthetic_run(tmp_path / "run", steps=[0, 2])
    with pytest.raises(ConfigError, match="0 runs"):
        write_view(tmp_path / "view.html", [])
    with pytest.raises(StoreError, match="has no step 1; it has 2 from 0 to 2"):
        write_view(tmp_path / "view.html", [run], steps=[0, 1])
    RunWriter(tmp_path / "empty", attrs={}, config={}, resume=False)
    with pytest.raises(StoreError, match="no recorded step"):
        write_view(tmp_path / "view.html", [open_run(tmp_path / "empty")])
    assert not (tmp_path / "view.html").exists()


def test_the_command(tmp_path, capsys):
    synthetic_run(tmp_path / "one", steps=[0, 5])
    synthetic_run(tmp_path / "two", steps=[0, 5], seed=1)
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    assert main(["view", one]) == 0
    assert "one/view.html" in capsys.readouterr().out.replace("\n", "")
    out = tmp_path / "page.html"
    assert main(["view", one, two, "--out", str(out), "--steps", "5", "--rollouts", "2"]) == 0
    assert "no tokenizer" in capsys.readouterr().err
    assert [len(run["steps"][0]["n_states"]) for run in index_of(out)["runs"]] == [2, 2]
    assert main(["view", one, "--steps", "3"]) == 1
    assert "has no step 3" in capsys.readouterr().err
    assert main(["view", one, f"{one}/../one"]) == 1
    assert "are the same run: give two different ones" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["view", one, "--steps", "x"])


def test_the_viewer_is_written_without_torch(tmp_path):
    run = hostile_run(tmp_path)
    script = f"""
import sys
for name in ("torch", "transformers", "tokenizers"):
    sys.modules[name] = None
from opdprobe.cli.parser import main
sys.exit(main(["view", {str(run.path)!r}, "--out", {str(tmp_path / "view.html")!r}]))
"""
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True, timeout=120)
    assert index_of(tmp_path / "view.html")["runs"][0]["token_kind"][0] == "text"


# ---- the script's rules, without a page

NODE = shutil.which("node")
needs_node = pytest.mark.skipif(NODE is None, reason="needs node on the PATH")


def evaluated(expression):
    """Give the value of an expression that uses the page's functions."""
    folder = files("opdprobe.report") / "templates"
    scripts = [(folder / name).read_text("utf-8") for name in ("view_data.js", "view_draw.js")]
    code = "".join(scripts) + f"console.log(JSON.stringify({expression}))"
    assert NODE is not None
    done = subprocess.run(
        [NODE, "-"], input=code, capture_output=True, text=True, check=True, timeout=120
    )
    return json.loads(done.stdout)


@needs_node
def test_the_page_marks_the_shared_tokens_that_the_probes_count():
    rng = np.random.default_rng(0)
    ids = np.array([[rng.permutation(8)[:5] for _ in range(2)] for _ in range(40)])
    logp = -np.sort(rng.exponential(5, (40, 2, 5)))
    logp[rng.random((40, 2, 5)) < 0.3] = -np.inf
    logp[0, 0, 0] = -90.0  # very unlikely, not impossible
    fixed = np.where(np.isinf(logp), 65534, np.minimum(-logp * 1000, 65533).astype(int))
    cases = [
        {"lists": lists.tolist(), "own": own.tolist()}
        for lists, own in zip(ids, fixed, strict=True)
    ]
    found = evaluated(
        f"{json.dumps(cases)}.map(({{lists, own}}) => "
        "[...sharedTokens(lists.map((one) => Int32Array.from(one)), own)])"
    )
    for one, lists, own in zip(found, ids, logp, strict=True):
        mask = overlap_mask(lists[0], lists[1], own[0], own[1])
        assert sorted(one) == sorted(lists[0][mask].tolist())


@needs_node
def test_a_state_is_marked_by_its_selectors_bit():
    marks = "Uint16Array.from([0, 5, 256])"
    found = evaluated(
        f"[0, 1, 2, -1].map((i) => [-1, 0, 1, 2, 8].map((s) => isKept({marks}, i, s)))"
    )
    none = [False] * 5
    assert found == [none, [False, True, False, True, False], [False] * 4 + [True], none]


@needs_node
def test_what_the_student_did_not_draw():
    states = "Int32Array.from([4, -1, -1, 5, 6, -1])"
    want = ["drawn", "given", "given", "drawn", "drawn", "none"]
    assert evaluated(f"origins({states})") == want
    assert evaluated("origins(Int32Array.from([-1, -1]))") == ["none", "none"]


@needs_node
@pytest.mark.parametrize(
    ("prompt", "starts"),
    [
        # ChatML, Llama 3's headers, a template whose marks come once, plain text, nothing.
        (["<s>", "user", "2+2", "<e>", "↵", "<s>", "assistant"], [0, 5]),
        (["<b>", "<h>", "user", "<h/>", "2", "<e>", "<h>", "assistant", "<h/>"], [0, 1, 6]),
        (["<u>", "2+2", "<a>"], [0]),
        (["2", "+", "2"], [0]),
        ([], [0]),
    ],
)
def test_the_turns_of_a_prompt(prompt, starts):
    ids = [sorted(set(prompt)).index(text) for text in prompt]
    kinds = [{"kind": "special" if "<" in text else "text"} for text in prompt]
    assert evaluated(f"turnStarts({ids}, {json.dumps(kinds)})") == starts


@needs_node
def test_a_text_is_searched_across_tokens_and_halves_of_a_character():
    tokens = [("text", "So"), ("text", " İs"), ("bytes", "E2 82"), ("bytes", "AC"), ("text", " 5")]
    given = json.dumps([{"kind": kind, "text": text} for kind, text in tokens])
    found = evaluated(
        f"(({{text, starts}}) => [text, starts, [...text].map((_, i) => tokenAt(starts, i))])"
        f"(searchable({given}, ''))"
    )
    # The capital I with a dot is longer in lower case.
    assert found[0] == "So i̇s€ 5"
    assert found[1] == [0, 2, 6, 6, 7]
    assert found[2] == [0, 0, 1, 1, 1, 1, 2, 4, 4]
    assert evaluated(f"searchable({given}, ' ').text") == "So  i̇s � �  5"


@needs_node
def test_both_sides_of_a_quantity_have_their_colours():
    quantity = {"worse": 0, "two_sided": True, "bounds": [0.1, 0.2, 0.3, 0.4, 0.5]}
    values = [0, 0.1, -0.15, 0.15, -9, 9]
    found = evaluated(f"{values}.map((value) => level({json.dumps(quantity)}, value))")
    assert found == ["", "", "bad1", "good1", "bad5", "good5"]


# ---- in a browser

CHROMIUM = shutil.which("chromium")
TOOLS = """(async () => {
const el = (id) => document.getElementById(id);
const wait = async (f) => { while (!f()) await new Promise((r) => setTimeout(r, 5)); };
const press = (key) => document.activeElement.dispatchEvent(
  new KeyboardEvent("keydown", {key, bubbles: true, cancelable: true}));
const out = document.createElement("output");
try {
  await wait(() => !el("status"));
  out.textContent = JSON.stringify(await (async () => { PLAY })());
} catch (error) { out.textContent = JSON.stringify(String(error)); }
document.body.append(out);
})();"""
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium on the PATH")


def browse(
    path: Path, address: str, folder: Path, *, play: str | None = None, width: int = 1280
) -> str:
    """Give the page's document once its script has run.

    `play` is the body of an async function that acts as a reader would; what it returns ends up
    in ``<output>``. It is added to a copy of the page, and to the copy's policy.
    """
    if play is not None:
        code = TOOLS.replace("PLAY", play)
        digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
        text = path.read_text().replace("script-src ", f"script-src 'sha256-{digest}' ")
        path = folder / "played.html"
        path.write_text(text.replace("</body>", f"<script>{code}</script></body>"))
    assert CHROMIUM is not None
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        f"--user-data-dir={folder / 'profile'}", f"--window-size={width},900",
        "--virtual-time-budget=10000", "--dump-dom", f"{path.as_uri()}#{address}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return done.stdout


def played(document: str):
    found = re.search(r"<output>(.*?)</output>", document, re.S)
    assert found is not None, "the page did not get so far"
    return json.loads(html.unescape(found[1]))


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser")
    runs = [hostile_run(folder, name=name, seed=seed) for seed, name in enumerate(("one", "two"))]
    write_view(folder / "view.html", runs)
    return folder / "view.html", runs


@needs_browser
def test_the_address_chooses_and_hostile_text_is_text(two_runs, tmp_path):
    path, (run, _) = two_runs
    ds = run.load(5)
    document = browse(path, "step=5&rollout=2&token=3&by=overlap", tmp_path)
    assert "<title>Tokens of one and two</title>" in document
    assert 'id="status"' not in document
    assert "<img" not in document
    response = run.response_ids(5)[2]
    tokens = re.findall(r"<span[^>]*data-token=\"\d+\"[^>]*>(.*?)</span>", document)
    assert [html.unescape(token) for token in tokens] == [visible(WORDS[i]) for i in response]
    selected = re.findall(r'<span[^>]*data-token="(\d+)"[^>]*aria-selected="true"', document)
    assert selected == ["3"]
    state = int(np.flatnonzero((ds.rollout == 2) & (ds.position == 3))[0])
    for support in ("student", "teacher"):
        table = re.search(rf'<table id="list-{support}">(.*?)</table>', document, re.S)
        assert table is not None
        ids = re.findall(r"\(id (\d+)\)", table[1])
        assert [int(i) for i in ids] == ds.token_id.sel(support=support).values[state].tolist()
        p = re.findall(r"<td class=\"own\"[^>]*>([^<]*)</td>", table[1])
        own = np.exp(ds.logp.sel(model=support, support=support).values[state])
        np.testing.assert_allclose([float(x) for x in p], own, atol=1e-3)
        assert table[1].count(" in both") == int((ds.match[state] >= 0).sum())


@needs_browser
def test_a_reader_clicks_hovers_and_types(two_runs, tmp_path):
    path, (run, _) = two_runs
    result = played(
        browse(path, "step=0&rollout=1&token=0", tmp_path, play="""
const at = () => document.querySelector("#pane-a [aria-selected=true]").dataset.token;
const where = () => el("detail-title").textContent;
const spans = [...document.querySelectorAll("#pane-a [data-token]")];
const seen = {};
spans[2].click();
seen.clicked = [at(), document.activeElement === spans[2], spans[2].tabIndex, spans[0].tabIndex];
press("ArrowRight"); seen.right = at();
press("ArrowLeft"); press("ArrowLeft"); seen.left = at();
press("End"); seen.end = at();
press("Home"); press("ArrowLeft"); seen.home = at();
seen.label = document.activeElement.getAttribute("aria-label");
spans[5].dispatchEvent(new PointerEvent("pointerover", {pointerType: "mouse", bubbles: true}));
seen.hover = [where().includes("token 5 of 8"), at()];
document.querySelector("#pane-a .response").dispatchEvent(new PointerEvent("pointerleave"));
seen.left_again = where().includes("token 0 of 8");
const order = [];
document.querySelector("#worst button").click(); order.push(at());
for (const key of "nnp") { press(key); order.push(at()); }
seen.order = order;
press("]");
await wait(() => el("title-a").textContent.endsWith("rollout 2"));
press("}");
await wait(() => el("title-a").textContent.includes("step 5"));
press("ArrowRight"); // a reader of the text stays in the text
seen.then = at();
await wait(() => location.hash.includes("step=5") && location.hash.includes("token=" + at()));
seen.address = location.hash;
return seen;""")
    )  # fmt: skip
    kl = run.load(0).reverse_kl.values[8:16]
    worst = [str(i) for i in np.argsort(-kl, kind="stable")]
    assert result["clicked"] == ["2", True, 0, -1]
    assert (result["right"], result["left"], result["end"], result["home"]) == ("3", "1", "7", "0")
    assert f", token 0, reverse KL {kl[0]:.3g} nats" in result["label"]
    assert result["hover"] == [True, "0"]
    assert result["left_again"]
    assert result["order"] == [worst[0], worst[1], worst[2], worst[1]]
    top = int(run.load(5).reverse_kl.values[16:24].argmax())
    assert result["then"] == str(min(top + 1, 7))
    assert result["address"].startswith("#run=0&step=5&rollout=2&")


@needs_browser
def test_a_narrow_screen_shows_all_and_has_room_for_fingers(two_runs, tmp_path):
    path, _ = two_runs
    result = played(
        browse(path, "step=0&rollout=1&by=reward&with=1.0.1", tmp_path, width=500, play="""
// A window itself is not narrower than 500.
Object.assign(document.body.style, {width: "400px", margin: "0"});
const box = (e) => e.getBoundingClientRect();
const all = (what) => [...document.querySelectorAll(what)];
const shown = (what) => all(what).filter((e) => e.getClientRects().length);
const name = (e) => e.id || e.outerHTML.slice(0, 80);
const seen = {};
seen.outside = shown("#app *").filter((e) => !e.closest("#detail") && box(e).right > 401).map(name);
const small = (e) => box(e).width < 40 || box(e).height < 40;
seen.small = shown("button, select").filter(small).map(name);
seen.buttons = shown("button").length;
const at = (pane) => document.querySelector(`#pane-${pane} [aria-selected=true]`)?.dataset.token;
document.querySelectorAll("#pane-b [data-token]")[6].click();
el("token-on").click(); el("token-on").click(); seen.end = at("b");
el("token-back").click(); seen.back = [at("b"), at("a") ?? null];
seen.detail = el("detail-title").textContent.includes("token 6 of 8");
return seen;""")
    )  # fmt: skip
    assert result["outside"] == result["small"] == []
    assert result["buttons"] > 10
    assert result["end"] == "7"
    assert result["back"] == ["6", None]
    assert result["detail"]


@needs_browser
def test_another_run_stands_beside_it_on_the_same_prompt(two_runs, tmp_path):
    path, _ = two_runs
    result = played(
        browse(path, "step=0&rollout=1", tmp_path, play="""
const choice = el("with");
const offered = [...choice.options].map((option) => option.value);
choice.value = "1.5.1";
choice.dispatchEvent(new Event("change"));
await wait(() => !el("pane-b").hidden && location.hash.includes("with=1.5.1"));
const beside = el("title-b").textContent;
const prompt = document.querySelector("#pane-b .facts").textContent;
el("rollout-on").click();
await wait(() => el("title-b").textContent.endsWith("rollout 2"));
return {offered, beside, prompt, follows: el("title-b").textContent};""")
    )  # fmt: skip
    # Of the same prompt there is one rollout at each of two steps in each of two runs.
    assert result["offered"] == ["", "1.0.1", "1.5.1", "0.5.1"]
    assert result["beside"] == "two, step 5, rollout 1"
    assert result["prompt"].startswith("prompt prompt-1 · ")
    assert result["follows"].startswith("two, step")


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """A page of two steps of three rollouts; the second has text that is not the student's."""
    folder = tmp_path_factory.mktemp("labelled")
    words = [f"w{i}." for i in range(64)]
    save_tokenizer(folder / "tokenizer", words, decoder={"type": "ByteLevel"})
    writer = RunWriter(folder / "run", attrs={}, config={}, resume=False)
    for number, labels in ((0, ["a", "b", "a"]), (5, ["b", "b", "b"])):
        ds = synthetic_step(number, n_rollouts=3, length=6, k=4, given=True)
        ds["label"] = ds.label.dims, np.array(labels)[:, None]
        masked = (ds.rollout == 1) & ds.position.isin([2, 3])
        writer.write_step(number, ds.isel(state=np.flatnonzero(~masked)))
    run = open_run(folder / "run")
    write_view(folder / "view.html", [run], tokenizer=folder / "tokenizer")
    return folder / "view.html", run


@needs_browser
def test_rollouts_are_chosen_by_their_labels(labelled, tmp_path):
    result = played(
        browse(labelled[0], "step=5&rollout=2", tmp_path, play="""
const only = el("only"), seen = {};
seen.offered = [...only.options].map((option) => option.textContent);
only.value = JSON.stringify(["domain", "a"]);
only.dispatchEvent(new Event("change"));
await wait(() => el("title-a").textContent.includes("step 0"));
seen.title = el("title-a").textContent;
seen.rollouts = [...el("rollout").options].map((option) => option.value);
el("rollout-back").click();
await wait(() => el("title-a").textContent.endsWith("rollout 0"));
seen.ends = [el("rollout-back").disabled, el("rollout-on").disabled];
await wait(() => location.hash.includes("rollout=0") && location.hash.includes("only="));
return seen;""")
    )  # fmt: skip
    assert {"all", "domain: a", "domain: b"} <= set(result["offered"])
    assert result["title"].endswith("step 0, rollout 2")  # as before, since it has that label
    assert result["rollouts"] == ["0", "2"]
    assert result["ends"] == [True, False]


@needs_browser
def test_the_text_is_searched(labelled, tmp_path):
    path, run = labelled
    ids = run.response_ids(5)[1].tolist()
    query = f"W{ids[3]}.w{ids[4]}"
    result = played(
        browse(path, "step=0", tmp_path, play="""
el("query").value = QUERY;
el("ask").click();
await wait(() => el("found-note").textContent.includes("rollouts"));
const found = [...document.querySelectorAll("#found li")].map((item) => item.textContent);
document.querySelector("#found button").click();
await wait(() => el("title-a").textContent.includes("step 5"));
await wait(() => document.querySelector("#pane-a [aria-selected=true]")?.dataset.token === "3");
return [found, el("title-a").textContent, el("found-note").textContent];
""".replace("QUERY", json.dumps(query)))
    )  # fmt: skip
    ((item,), title, note) = result
    assert item.startswith("step 5, rollout 1 ")
    assert query.lower() in item
    assert title.endswith("step 5, rollout 1")
    assert note == "1 times in 1 rollouts of the steps on this page."


@needs_browser
def test_what_a_selector_keeps_is_marked(two_runs, tmp_path):
    path, (run, _) = two_runs
    result = played(
        browse(path, "step=5&rollout=2&mark=tip", tmp_path, play="""
const spans = () => [...document.querySelectorAll("#pane-a .kept")];
const kept = () => spans().map((one) => Number(one.dataset.token));
const seen = [kept(), document.querySelector("#pane-a .facts").textContent,
              document.querySelector("#legend .kept").textContent];
el("mark").value = "5";
el("mark").dispatchEvent(new Event("change"));
await wait(() => document.querySelector("#legend .kept").textContent.includes("first"));
seen.push(kept());
el("mark").value = "-1";
el("mark").dispatchEvent(new Event("change"));
await wait(() => !document.querySelector("#legend .kept"));
return [...seen, kept()];""")
    )  # fmt: skip
    by_tip, facts, legend, early, nothing = result
    ds = run.load(5)
    mine = ds["rollout"].values == 2
    for found, name in ((by_tip, "tip"), (early, "early")):
        kept = select_states(ds, name, 0.2)[mine]
        assert found == ds["position"].values[mine][kept].tolist(), name
    assert f"{len(by_tip)} of {mine.sum()} kept" in facts
    assert legend == "kept: unsure or apart (TIP)"
    assert nothing == []


@needs_browser
def test_what_the_student_did_not_write_is_shaded(labelled, tmp_path):
    result = played(
        browse(labelled[0], "step=0&rollout=1", tmp_path, play="""
const given = [...document.querySelectorAll("#pane-a .given")].map((one) => one.dataset.token);
return [given, document.querySelector("#pane-a .facts").textContent,
        document.querySelector("#legend .given").textContent];""")
    )  # fmt: skip
    assert result[0] == ["2", "3"]
    assert "2 turns of the student" in result[1]
    assert result[2].startswith("not drawn by the student")


@needs_browser
def test_the_tables_of_the_run_lead_to_its_tokens(labelled, tmp_path):
    path, run = labelled
    result = played(
        browse(path, "step=0", tmp_path, play="""
el("whole").open = true;
const rows = () => [...document.querySelectorAll("#divergent tbody tr")];
await wait(() => rows().length);
const strings = [...document.querySelectorAll("#strings tbody tr")];
const seen = {n: rows().length, mark: rows()[0].querySelector("mark").textContent};
seen.first = [...strings[0].children].map((cell) => cell.textContent);
const there = rows()[0].querySelector("button");
there.click();
const [step, rollout, token] = there.textContent.match(/\\d+/g);
await wait(() => el("title-a").textContent.endsWith(`step ${step}, rollout ${rollout}`));
await wait(() => document.querySelector("#pane-a [aria-selected=true]")?.dataset.token === token);
seen.place = [step, rollout, token].map(Number);
return seen;""")
    )  # fmt: skip
    states = [(step, run.load(step)) for step in run.steps]
    kl = np.concatenate([ds.reverse_kl.values for _, ds in states])
    ids = np.concatenate([ds.sampled_id.values for _, ds in states])
    assert result["n"] == kl.size == 32
    step, ds = max(states, key=lambda one: float(one[1].reverse_kl.max()))
    at = int(ds.reverse_kl.values.argmax())
    assert result["place"] == [step, int(ds.rollout[at]), int(ds.position[at])]
    assert result["mark"] == f"w{int(ds.sampled_id[at])}."
    top = max(set(ids.tolist()), key=lambda i: kl[ids == i].sum())
    name, n, mean, share = result["first"]
    assert (name, n) == (f"w{top}.", str((ids == top).sum()))
    assert float(mean) == pytest.approx(kl[ids == top].mean(), rel=5e-3)
    assert float(share.split()[0]) == pytest.approx(100 * kl[ids == top].sum() / kl.sum(), rel=5e-3)


@needs_browser
def test_the_text_is_the_text_spaces_breaks_and_all(tmp_path):
    # The ids below 3 are a space, a line break and a piece of the word before; others are words.
    pieces = ["Ġ", "Ċ", "ing", *(f"Ġword{i}" for i in range(3, 64))]
    folder = save_tokenizer(tmp_path / "tokenizer", pieces, decoder={"type": "ByteLevel"})
    step = synthetic_step(n_rollouts=1, length=6)
    ids = np.array([3, 2, 0, 9, 1, 4], np.int32)
    step = step.assign(response_ids=("response_token", ids), sampled_id=("state", ids))
    RunWriter(tmp_path / "run", attrs={}, config={}, resume=False).write_step(0, step)
    write_view(tmp_path / "view.html", [open_run(tmp_path / "run")], tokenizer=folder)
    play = """return document.querySelector("#pane-a .response").textContent;"""
    shown = played(browse(tmp_path / "view.html", "", tmp_path, play=play))
    assert shown == " word3ing␣ word9↵\n word4"


@needs_browser
@pytest.mark.parametrize(
    "address", ["step=99&rollout=99&token=99&by=none&with=7.7.7", "%", "with=x"]
)
def test_an_address_that_leads_nowhere_shows_the_beginning(two_runs, tmp_path, address):
    document = browse(two_runs[0], address, tmp_path)
    assert 'id="status"' not in document
    assert f"one, step {5 if 'step=99' in address else 0}, rollout" in document
    said = "The link leads to step 99, rollout 99, which this page does not have" in document
    assert said == ("step=99" in address)


@needs_browser
def test_responses_without_a_token(tmp_path):
    run = synthetic_run(tmp_path / "run", steps=[0], n_rollouts=2, length=0)
    write_view(tmp_path / "view.html", [run])
    document = browse(tmp_path / "view.html", "rollout=1", tmp_path)
    assert 'id="status"' not in document
    assert "(no tokens)" in document


def test_the_form_of_the_prompts_is_stated(tmp_path):
    run = synthetic_run(tmp_path / "run", steps=[0])
    write_view(tmp_path / "older.html", [run])
    assert index_of(tmp_path / "older.html")["runs"][0]["prompts"] is None
    run.attrs["chat_template"] = {"variables": {"enable_thinking": False}}
    write_view(tmp_path / "view.html", [run])
    said = index_of(tmp_path / "view.html")["runs"][0]["prompts"]
    assert said == "enable_thinking = False (default)"
