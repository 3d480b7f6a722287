"""Prompts: reading them, listing what is wrong, and encoding them."""

import csv
import gzip
import json
import math
import os
import string
import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numcodecs import Zstd
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from opdprobe.errors import ConfigError, PromptError
from opdprobe.rollout.prompt_files import (
    BOXED_TEMPLATE,
    DAPO_TEMPLATE,
    Prompt,
    encode_prompts,
    load_prompts,
    prompts_from_rows,
    save_prompts,
    strip_instruction,
)
from opdprobe.store import budget

DATA = Path(os.environ.get("OPDPROBE_DATA", Path(__file__).parents[3] / "shared" / "data"))
needs_data = pytest.mark.skipif(
    not (DATA / "MATH-500.parquet").is_file(),
    reason="needs the public prompt files: set OPDPROBE_DATA to their directory",
)
ZSTD = Zstd()
BROKEN = BOXED_TEMPLATE.replace("{}.", "{{}}.")


def verl_row(content="What is 2 + 2?", index=0, answer="4"):
    return {
        "data_source": "toy",
        "prompt": [{"role": "user", "content": content}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": answer},
        "extra_info": {"index": index, "split": "test"},
    }


def user(content, id="0"):
    return Prompt(id, messages=({"role": "user", "content": content},))


@pytest.fixture
def tokenizer():
    """One token per character; any text begins with <s>; the chat template adds its own marks."""
    vocab = {token: i for i, token in enumerate(["<unk>", "<s>", "</s>", *string.printable, "²"])}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}"
        "{% endif %}<s>{{ m.role[0] }}:{{ m.content }}</s>{% endfor %}"
        "{% if add_generation_prompt %}<s>a:{% endif %}"
        "{% if enable_thinking %}*{% endif %}"
    )
    return tokenizer


def text_of(tokenizer, ids):
    return "".join(tokenizer.convert_ids_to_tokens(list(ids)))


# --- Prompt ------------------------------------------------------------------------------------


def test_question_is_the_last_message():
    messages = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"})
    assert Prompt("0", messages=messages).question == "Why?"
    assert Prompt("0", text="Once upon").question == "Once upon"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, "empty prompt"),
        ({"text": " \n"}, "empty prompt"),
        ({"messages": ({"role": "user", "content": ""},)}, "empty prompt"),
        (
            {"messages": ({"role": "user", "content": "a"},), "text": "a"},
            "both messages and a text",
        ),
        ({"messages": ({"role": "user"},)}, "a role and a content"),
        ({"messages": ({"role": "user", "content": None},)}, "a role and a content"),
    ],
)
def test_prompt_refuses(fields, reason):
    with pytest.raises(PromptError, match=reason):
        Prompt("x7", **fields)


# --- rows --------------------------------------------------------------------------------------


def test_verl_row():
    (prompt,) = prompts_from_rows([verl_row(index="AIME24-0", answer="\\boxed{204}")])
    assert prompt.id == "AIME24-0"
    assert prompt.messages == ({"role": "user", "content": "What is 2 + 2?"},)
    assert prompt.answer == "\\boxed{204}"  # as the file has it; grading reads both
    assert prompt.meta["data_source"] == "toy"
    assert prompt.meta["extra_info"] == {"index": "AIME24-0", "split": "test"}


def test_simple_rows_and_ids():
    rows = [
        {"prompt": "1+1=", "answer": 2, "id": "a"},
        {"prompt": [{"role": "user", "content": "1+2?"}], "answer": None},
        {"prompt": "1+3="},
    ]
    prompts = prompts_from_rows(rows)
    assert [p.id for p in prompts] == ["a", "1", "2"]
    assert [p.answer for p in prompts] == ["2", None, None]
    assert [p.text for p in prompts] == ["1+1=", None, "1+3="]


def test_rows_are_not_changed():
    row = verl_row(BROKEN.replace("{question}", "Q"))
    before = json.dumps(row)
    prompts_from_rows([row], repair_boxed=True)
    assert json.dumps(row) == before


def test_answer_column():
    row = verl_row() | {"solution": "four"}
    (prompt,) = prompts_from_rows([row], answer_column="solution")
    assert prompt.answer == "four"
    assert "solution" not in prompt.meta
    assert prompt.meta["reward_model"] == {"style": "rule", "ground_truth": "four"}
    with pytest.raises(PromptError, match=r"row 1: no column 'solution' among \['ability'"):
        prompts_from_rows([row, verl_row(index=1)], answer_column="solution")


BAD_ROWS = [
    verl_row(),
    verl_row("  ", index=1),
    {"question": "?"},
    verl_row(index=0),
    {"prompt": 3},
    {"prompt": []},
    verl_row(index=6),
]


def test_bad_rows_are_all_listed():
    with pytest.raises(PromptError) as caught:
        prompts_from_rows(BAD_ROWS, source="toy.jsonl")
    message = str(caught.value)
    assert message.startswith("toy.jsonl: 5 of 7 rows cannot be used: ")
    for part in [
        "row 1: prompt '1': empty prompt",
        "row 2: no column 'prompt' among ['question']",
        "row 3: id '0' repeats row 0",
        "row 4: 'prompt' is of type int; expected str or list of messages",
        "row 5: prompt '5': empty prompt",
        'on_error="skip"',
    ]:
        assert part in message


def test_bad_rows_are_skipped_only_if_asked(caplog):
    prompts = prompts_from_rows(BAD_ROWS, on_error="skip")
    assert [p.id for p in prompts] == ["0", "6"]
    assert "5 of 7 rows cannot be used" in caplog.text
    with pytest.raises(PromptError, match="No usable row is left"):
        prompts_from_rows([{"prompt": ""}], on_error="skip")


def test_many_bad_rows_are_cut_short():
    with pytest.raises(PromptError, match=r"row 9: .*; …") as caught:
        prompts_from_rows([{"prompt": ""}] * 500)
    assert "row 10" not in str(caught.value)


def test_no_rows():
    with pytest.raises(PromptError, match="no rows"):
        prompts_from_rows([])


@pytest.mark.parametrize("repair", [False, True])
def test_broken_box_is_logged_and_repaired_on_request(repair, caplog):
    rows = [verl_row(BROKEN.replace("{question}", q), index=q) for q in "AB"] + [verl_row()]
    prompts = prompts_from_rows(rows, repair_boxed=repair)
    want = (BOXED_TEMPLATE if repair else BROKEN).replace("{question}", "A")
    assert prompts[0].question == want
    assert "2 prompts have a literal \\boxed{{}}" in caplog.text
    assert ("repaired to" if repair else "repair_boxed=True") in caplog.text


def parts(*contents):
    return [{"role": "user", "content": [*contents]}]


def text_part(text):
    return {"type": "text", "text": text}


def test_content_in_text_parts_is_joined():
    rows = [{"prompt": parts(text_part("What is "), text_part("2+2?"))}]
    before = json.dumps(rows)
    (prompt,) = prompts_from_rows(rows)
    assert prompt.messages == ({"role": "user", "content": "What is 2+2?"},)
    assert json.dumps(rows) == before
    broken = BROKEN.replace("{question}", "Q")
    (prompt,) = prompts_from_rows([{"prompt": parts(text_part(broken))}], repair_boxed=True)
    assert prompt.question == BOXED_TEMPLATE.replace("{question}", "Q")


@pytest.mark.parametrize(
    ("part", "named"),
    [
        ({"type": "image"}, "a part of type 'image'"),
        ({"type": "image_url", "image_url": {"url": "data:,"}}, "a part of type 'image_url'"),
        ({"type": "text", "text": None}, r"a part \{'text': None, 'type': 'text'\}"),
        ({"text": "2+2?"}, r"a part \{'text': '2\+2\?'\}"),
        ("2+2?", r"a part '2\+2\?'"),
    ],
)
def test_any_other_part_is_refused_by_name(part, named):
    row = {"prompt": parts(text_part("Look: "), part)}
    with pytest.raises(PromptError, match=rf"row 0: a message has {named}; expected parts of text"):
        prompts_from_rows([row])
    (prompt,) = prompts_from_rows([row, {"prompt": "2+2="}], on_error="skip")
    assert prompt.text == "2+2="


# Float, and the digits of its shortest decimal.
NUMBERS = [(34.0, "34"), (1e16, "1" + 16 * "0"), (3e23, "3" + 23 * "0"), (2.5e-7, "0.00000025")]
NUMBERS += [(-0.5, "-0.5"), (-7.0, "-7")]


@pytest.mark.parametrize(("value", "text"), NUMBERS)
def test_a_float_answer_is_written_in_digits(value, text):
    for number in (value, np.float64(value), np.array(value)):
        rows = [{"prompt": "?", "answer": number, "id": number}]
        rows.append({"prompt": "?", "reward_model": {"ground_truth": number}})
        first, second = prompts_from_rows(rows)
        assert first.answer == second.answer == first.id == text


def test_a_single_precision_answer_keeps_its_digits():
    (prompt,) = prompts_from_rows([{"prompt": "?", "answer": np.float32(0.1)}])
    assert prompt.answer == "0.1"


@pytest.mark.parametrize("gap", [None, math.nan, np.nan, np.float32("nan"), pd.NA, pd.NaT])
def test_a_gap_is_no_answer(gap):
    rows = [{"prompt": "?", "answer": gap, "id": gap, "level": gap}]
    rows.append({"prompt": "?", "reward_model": {"ground_truth": gap}, "answer": 3})
    first, second = prompts_from_rows(rows)
    assert (first.id, first.answer, first.meta) == ("0", None, {"level": None})
    assert second.answer == "3"
    with pytest.raises(PromptError, match="row 0: column 'answer' is empty"):
        prompts_from_rows(rows, answer_column="answer")
    with pytest.raises(PromptError, match="row 0: column 'prompt' is empty"):
        prompts_from_rows([{"prompt": gap}])


@pytest.mark.parametrize(
    ("given", "answer"),
    [
        ("Half of 48 is 24, and 48 + 24 = 72.\n#### 72", "72"),
        ("So:\n#### 1,450 \n", "1,450"),
        ("#### 3\n#### 4", "4"),
        ("72", "72"),
        ("#### Steps\nadd", "#### Steps\nadd"),
        ("blank ####", "blank ####"),
    ],
)
def test_gsm8k_answers_end_in_the_number(given, answer):
    (prompt,) = prompts_from_rows([{"prompt": "?", "answer": given}])
    assert prompt.answer == answer


def test_rows_of_pandas_and_numpy_are_those_of_python(tmp_path):
    rows = [verl_row(f"{n} + 1?", index=n, answer=n + 1) | {"level": [n, 0.5]} for n in range(3)]
    want = prompts_from_rows(rows)
    pd.DataFrame(rows).to_parquet(tmp_path / "p.parquet")
    frame = pd.read_parquet(tmp_path / "p.parquet")
    assert isinstance(frame.prompt[0], np.ndarray)
    for some in (frame, frame.to_dict("records"), [row for _, row in frame.iterrows()]):
        got = prompts_from_rows(some)
        assert got == want
        save_prompts(got, tmp_path / "saved.jsonl")
        assert load_prompts(tmp_path / "saved.jsonl") == want


def test_prompts_can_be_in_another_column(tmp_path):
    rows = [{"question": "2+2=", "answer": "4", "solution": "four", "prompt": "unused"}]
    (prompt,) = prompts_from_rows(rows, prompt_column="question")
    assert (prompt.text, prompt.answer, prompt.meta) == ("2+2=", "4", {"solution": "four"})
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps(rows[0]))
    (prompt,) = load_prompts(path, prompt_column="question", answer_column="solution")
    assert (prompt.text, prompt.answer) == ("2+2=", "four")
    save_prompts([prompt], path)
    assert load_prompts(path) == [prompt]
    reason = r"no column 'query' among \['answer', .* in any row: name .* with prompt_column"
    with pytest.raises(PromptError, match=reason):
        prompts_from_rows(rows * 2, prompt_column="query", on_error="skip")


def test_a_row_nested_too_deeply_is_refused():
    level = []
    for _ in range(5000):
        level = [level]
    with pytest.raises(PromptError, match="row 0: nested too deeply"):
        prompts_from_rows([{"prompt": "?", "deep": level}])


# --- files -------------------------------------------------------------------------------------


def test_parquet_and_jsonl_agree(tmp_path):
    rows = [verl_row(f"{n} + 1?", index=n, answer=str(n + 1)) for n in range(5)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "p.parquet")
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    want = prompts_from_rows(rows)
    assert load_prompts(tmp_path / "p.parquet") == want
    assert load_prompts(str(tmp_path / "p.jsonl")) == want
    assert load_prompts(tmp_path / "p.parquet", limit=2) == want[:2]
    assert load_prompts(tmp_path / "p.jsonl", limit=2) == want[:2]
    assert load_prompts(tmp_path / "p.jsonl", limit=99) == want


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("gone.parquet", None, "no such file"),
        ("torn.parquet", b"PAR1 and then nothing", "not a readable parquet file"),
        ("list.jsonl", b"[1, 2]\n", "line 1 is not a JSON object"),
        ("torn.jsonl", b'{"prompt": "a"}\n{"prompt"', "line 2 is not JSON"),
        ("latin.jsonl", b'{"prompt": "caf\xe9"}', "line 1 is not UTF-8 text"),
        ("empty.jsonl", b"\n", "no rows"),
        ("latin.csv", b"prompt\ncaf\xe9\n", "line 2 ends a row that is not UTF-8 text: save it"),
        ("head.csv", b"pr\xe9mpt\n1\n", "the header is not UTF-8 text: save the file as UTF-8"),
        ("latin.json", b'[{"prompt": "caf\xe9"}]', "not a readable UTF-8 text"),
        ("wide.jsonl", '{"prompt": "a"}'.encode("utf-16"), "a text in UTF-16: save it as UTF-8"),
        ("table.xlsx", b"PK", r"expected a .parquet, .*, got '.xlsx'"),
        ("rows.parquet.gz", b"", r"expected a .parquet, .*, got '.gz'"),
        (
            "packed.jsonl",
            gzip.compress(b"{}", mtime=0),
            "compressed by gzip; expected a name .* in .gz",
        ),
        ("plain.jsonl.gz", b'{"prompt": "a"}\n', "not a readable file"),
        ("torn.jsonl.gz", gzip.compress(b'{"prompt": "a"}\n', mtime=0)[:-9], "not a readable file"),
        ("plain.jsonl.zst", b'{"prompt": "a"}\n', "not a readable file"),
        ("torn.jsonl.zst", ZSTD.encode(b'{"prompt": "a"}\n')[:-4], "not a readable file"),
        ("torn.json", b'[{"prompt": "a"}, {"prom', "not JSON"),
        ("list.json", b'[["a"]]', "row 0: a list; expected a mapping"),
        ("twice.csv", b"prompt,id,prompt\na,1,b\n", r"more than one column .*\['prompt'\]"),
        ("quote.csv", b'prompt\n"a\n', "not a readable CSV file"),
        ("empty.csv", b"", "no rows"),
    ],
)
def test_unusable_files(tmp_path, name, content, reason):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(PromptError, match=reason) as caught:
        load_prompts(tmp_path / name)
    assert name in str(caught.value)


ROWS = [{"prompt": "1 + 1?", "answer": "2"}, {"prompt": "Où, «là»?", "answer": None}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
LIST = json.dumps(ROWS, indent=1).encode()
CSV = 'prompt,answer\r\n1 + 1?,2\r\n"Où, «là»?",\r\n'.encode()


@pytest.mark.parametrize("mark", [b"", "\ufeff".encode()])
@pytest.mark.parametrize(
    ("kind", "content"),
    [(".jsonl", LINES), (".json", LINES), (".json", LIST), (".csv", CSV), (".JSONL", LINES)],
)
def test_kinds_of_files_agree(tmp_path, kind, content, mark):
    want = prompts_from_rows(ROWS)
    packers = {"": bytes, ".gz": gzip.compress, ".zst": ZSTD.encode}
    for ending, packed in packers.items():
        path = tmp_path / f"p{kind}{ending}"
        path.write_bytes(packed(mark + content))
        assert load_prompts(path) == want
        assert load_prompts(path, limit=1) == want[:1]


def test_compressed_files_may_have_several_frames(tmp_path):
    first, second = LINES.splitlines(keepends=True)
    (tmp_path / "p.jsonl.zst").write_bytes(ZSTD.encode(first) + ZSTD.encode(second))
    (tmp_path / "p.jsonl.gz").write_bytes(gzip.compress(first) + gzip.compress(second))
    assert load_prompts(tmp_path / "p.jsonl.zst") == prompts_from_rows(ROWS)
    assert load_prompts(tmp_path / "p.jsonl.gz") == prompts_from_rows(ROWS)


@pytest.mark.parametrize(("ending", "pack"), [(".gz", gzip.compress), (".zst", ZSTD.encode)])
@pytest.mark.parametrize("kind", [".jsonl", ".json", ".csv"])
def test_a_file_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch, kind, ending, pack):
    monkeypatch.setattr(budget, "LEAST", 1000)
    path = tmp_path / f"p{kind}{ending}"
    path.write_bytes(pack(b"[" + b"0" * 10**6))
    most = 1000 + 100 * path.stat().st_size
    tracemalloc.start()
    with pytest.raises(PromptError, match=f"unpacks to more than {most} bytes"):
        load_prompts(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 800_000


def test_a_long_csv_text_keeps_its_lines(tmp_path):
    text = 'Say "no",\nthen 1,\r\n2.'
    with (tmp_path / "p.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["id", "prompt"], ["a", text], [], ["b", "?"]])
    first, second = load_prompts(tmp_path / "p.csv")
    assert (first.id, first.text, second.id) == ("a", text, "b")


def test_every_kind_of_bad_row_is_skipped_if_asked(tmp_path, caplog):
    lines = [
        b'{"prompt": "1+1="}',
        b'{"prompt": ',
        b'{"prompt": "caf\xe9"}',
        b"[]",
        b"",
        b"null",
        b"NaN",
        b"[" * 100_000,
        json.dumps({"prompt": parts({"type": "image"})}).encode(),
        b'{"prompt": "2+2=", "id": "0"}',
        b'{"prompt": "3+3=", "answer": {}}',
        b'{"prompt": NaN}',
        b'{"prompt": "4+4="}',
    ]
    path = tmp_path / "p.jsonl"
    path.write_bytes(b"\n".join(lines))
    prompts = load_prompts(path, on_error="skip")
    assert [(p.id, p.text) for p in prompts] == [("0", "1+1="), ("11", "4+4=")]
    assert "10 of 12 rows cannot be used: row 1: line 2 is not JSON" in caplog.text
    assert "row 4: line 6 is not a JSON object: 'null" in caplog.text  # after a blank line
    with pytest.raises(PromptError, match="10 of 12 rows cannot be used"):
        load_prompts(path)
    path = tmp_path / "p.csv"
    path.write_text(
        "prompt,answer\n1+1=,2\n2+2=\n3+3=,6,7\n,8\n"
        "\"[{'role': 'user', 'content': '?'}]\",9\n5+5=,\n"
    )
    prompts = load_prompts(path, on_error="skip")
    assert [(p.text, p.answer) for p in prompts] == [("1+1=", "2"), ("5+5=", None)]
    for fault in (
        "line 3 ends a row of 1 fields; expected 2",
        "line 4 ends a row of 3 fields; expected 2",
        "column 'prompt' is empty",
        "line 6 ends a row with a list of messages written as text",
    ):
        assert fault in caplog.text


def test_limit_below_one(tmp_path):
    with pytest.raises(ConfigError, match="limit = 0; expected 1 or more"):
        load_prompts(tmp_path / "any.jsonl", limit=0)


# --- encoding ----------------------------------------------------------------------------------


def test_conversation_goes_through_the_chat_template(tokenizer):
    (encoded,) = encode_prompts(tokenizer, [user("2+2?")])
    assert text_of(tokenizer, encoded.ids) == "<s>u:2+2?</s><s>a:"  # one <s>: the template's own
    assert encoded.prompt == user("2+2?")


def test_enable_thinking_reaches_the_template(tokenizer):
    (encoded,) = encode_prompts(tokenizer, [user("2+2?")], enable_thinking=True)
    assert text_of(tokenizer, encoded.ids).endswith("a:*")


def asked(options, id="0"):
    meta = {"chat_template_kwargs": options}
    return Prompt(id, messages=({"role": "user", "content": "2+2?"},), meta=meta)


@pytest.mark.parametrize("everywhere", [False, True])
def test_a_rows_own_template_arguments_precede(tokenizer, tmp_path, everywhere):
    given = [{"enable_thinking": True}, {"enable_thinking": False}, {}, None]
    rows = [
        {"prompt": [{"role": "user", "content": "2+2?"}], "chat_template_kwargs": options}
        for options in given
    ]
    # In a parquet file, a row without the argument has it as null.
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "p.parquet")
    for prompts in (prompts_from_rows(rows), load_prompts(tmp_path / "p.parquet")):
        encoded = encode_prompts(tokenizer, prompts, enable_thinking=everywhere)
        ends = [text_of(tokenizer, prompt.ids).endswith("a:*") for prompt in encoded]
        assert ends == [True, False, everywhere, everywhere]


def test_any_argument_of_the_template_can_be_given(tokenizer):
    tokenizer.chat_template += "{{ reasoning_effort }}"
    (encoded,) = encode_prompts(tokenizer, [asked({"reasoning_effort": "low"})])
    assert text_of(tokenizer, encoded.ids).endswith("a:low")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ('{"enable_thinking": true}', "is of type str; expected a mapping of names to values"),
        ({"tokenize": True}, r"has 'tokenize'; expected names that the chat template reads"),
        ({"chat_template": "{{ 1 }}"}, "has 'chat_template'; expected names"),
        ({"conversation": [], "a b": 1}, "has 'a b', 'conversation'; expected names"),
        ({7: True}, "has 7; expected names"),
    ],
)
def test_template_arguments_that_are_refused(tokenizer, options, reason):
    prompts = [asked(options), user("2+2?", "1")]
    with pytest.raises(PromptError, match=rf"row 0 \(id '0'\): chat_template_kwargs {reason}"):
        encode_prompts(tokenizer, prompts)
    (encoded,) = encode_prompts(tokenizer, prompts, on_error="skip")
    assert encoded.prompt.id == "1"


def test_plain_text_is_not_templated(tokenizer):
    (encoded,) = encode_prompts(tokenizer, [Prompt("0", text="2+2=")])
    assert text_of(tokenizer, encoded.ids) == "<s>2+2="


def test_without_chat_template_contents_are_joined(tokenizer):
    tokenizer.chat_template = None
    prompt = Prompt(
        "0", messages=({"role": "system", "content": "Add."}, {"role": "user", "content": "2+2?"})
    )
    (encoded,) = encode_prompts(tokenizer, [prompt])
    assert text_of(tokenizer, encoded.ids) == "<s>Add.\n\n2+2?"


def test_overlong_prompts_are_listed_and_skipped_on_request(tokenizer, caplog):
    prompts = [user("a", "p"), user("a" * 30, "q"), user("b", "r"), user("c" * 40, "s")]
    with pytest.raises(PromptError) as caught:
        encode_prompts(tokenizer, prompts, max_prompt_length=20)
    assert "2 of 4 rows cannot be used" in str(caught.value)
    assert "row 1 (id 'q'): 37 tokens, more than max_prompt_length 20" in str(caught.value)
    assert "row 3 (id 's'): 47 tokens, more than max_prompt_length 20" in str(caught.value)
    assert "raise max_prompt_length (--max-prompt-length), or leave" in str(caught.value)
    encoded = encode_prompts(tokenizer, prompts, max_prompt_length=20, on_error="skip")
    assert [e.prompt.id for e in encoded] == ["p", "r"]
    assert "They are left out" in caplog.text


def test_max_length_is_inclusive(tokenizer):
    (encoded,) = encode_prompts(tokenizer, [user("abc")])
    encode_prompts(tokenizer, [user("abc")], max_prompt_length=len(encoded.ids))
    with pytest.raises(PromptError, match="more than"):
        encode_prompts(tokenizer, [user("abc")], max_prompt_length=len(encoded.ids) - 1)


def test_a_template_that_refuses_a_role(tokenizer):
    prompt = Prompt(
        "0", messages=({"role": "system", "content": "Add."}, {"role": "user", "content": "2+2?"})
    )
    with pytest.raises(PromptError, match=r"row 0 .*no system"):
        encode_prompts(tokenizer, [prompt])


def test_template_replaces_the_wording_and_keeps_braces(tokenizer):
    prompts = [user(DAPO_TEMPLATE.replace("{question}", "2+2?")), Prompt("1", text="2+2?")]
    encoded = encode_prompts(tokenizer, prompts, template=BOXED_TEMPLATE)
    wording = BOXED_TEMPLATE.replace("{question}", "2+2?")
    assert text_of(tokenizer, encoded[0].ids) == f"<s>u:{wording}</s><s>a:"
    assert text_of(tokenizer, encoded[1].ids) == f"<s>{wording}"
    assert encoded[0].prompt == prompts[0]


def test_bad_settings(tokenizer):
    with pytest.raises(ConfigError, match=r"template = 'Think!'; expected \{question\} in it"):
        encode_prompts(tokenizer, [user("a")], template="Think!")
    with pytest.raises(ConfigError, match="max_prompt_length = 0; expected 1 or more"):
        encode_prompts(tokenizer, [user("a")], max_prompt_length=0)
    with pytest.raises(PromptError, match="no rows"):
        encode_prompts(tokenizer, [])


# --- instructions ------------------------------------------------------------------------------


@given(st.text(), st.sampled_from([BOXED_TEMPLATE, BROKEN, DAPO_TEMPLATE]))
def test_strip_inverts_the_templates(question, template):
    assert strip_instruction(template.replace("{question}", question)) == question


@given(st.text())
def test_strip_leaves_a_bare_question(question):
    assert strip_instruction(question) == question


def test_strip_needs_both_ends():
    before, after = DAPO_TEMPLATE.split("{question}")
    assert strip_instruction(before + "2+2?") == before + "2+2?"
    assert strip_instruction(before[:-1] + after) == before[:-1] + after


# --- writing -----------------------------------------------------------------------------------

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=4,
)
said = st.text(min_size=1).filter(str.strip)


@given(
    st.lists(
        st.builds(
            Prompt,
            st.text(),
            messages=st.just(()),
            text=said,
            answer=st.none() | st.text(),
            meta=st.dictionaries(st.sampled_from(["level", "source"]), json_values),
        )
        | st.builds(
            lambda id, system, asked: Prompt(
                id, messages=(*system, {"role": "user", "content": asked})
            ),
            st.text(),
            st.lists(st.fixed_dictionaries({"role": st.text(), "content": st.text()}), max_size=2),
            said,
        ),
        min_size=1,
        max_size=3,
        unique_by=lambda prompt: prompt.id,
    )
)
def test_saved_prompts_are_read_back_equal(tmp_path_factory, prompts):
    path = tmp_path_factory.mktemp("saved") / "prompts.jsonl"
    save_prompts(prompts, path)
    assert load_prompts(path) == prompts


def test_verl_rows_survive_saving(tmp_path):
    prompts = prompts_from_rows([verl_row(index="a"), verl_row("Why?", 1, "5")])
    save_prompts(prompts, tmp_path / "saved.jsonl")
    assert load_prompts(tmp_path / "saved.jsonl") == prompts
    assert [path.name for path in tmp_path.iterdir()] == ["saved.jsonl"]


@pytest.mark.parametrize(
    ("prompts", "reason"),
    [
        ([], "no prompts to write"),
        ([user("a"), user("b")], "two prompts have the id '0'"),
        (
            [Prompt("0", text="a", meta={"seen": {1, 2}})],
            r"'0' cannot be written as JSON \(.*set.*\): correct its messages or meta",
        ),
        ([Prompt("0", text="a", meta={"pair": (1, 2)})], r"its meta is .*\(1, 2\).* but would be"),
        (
            [Prompt("0", text="a", meta={"extra_info": {"index": 7}})],
            r"its id is '0', but would be '7'; correct its meta, which has \['extra_info'\]",
        ),
        (
            [Prompt("0", text="a", answer="4", meta={"reward_model": {"ground_truth": "5"}})],
            "its answer is '4', but would be '5'",
        ),
        ([Prompt("0", text="a", meta={"prompt": "b"})], "its text is 'a', but would be 'b'"),
    ],
)
def test_prompts_that_would_not_be_read_back_are_not_written(tmp_path, prompts, reason):
    with pytest.raises(PromptError, match=reason):
        save_prompts(prompts, tmp_path / "saved.jsonl")
    assert not list(tmp_path.iterdir())


def test_prompts_are_saved_as_json_lines_only(tmp_path):
    with pytest.raises(PromptError, match=r"expected a path that ends in \.jsonl"):
        save_prompts([user("a")], tmp_path / "saved.parquet")


# --- the public files --------------------------------------------------------------------------

SIZES = {"AIME24": 30, "AIME25": 30, "AMC23": 40, "MATH-500": 500}


@needs_data
@pytest.mark.parametrize("name", SIZES)
def test_benchmarks_load(name):
    prompts = load_prompts(DATA / f"{name}.parquet")
    assert len(prompts) == SIZES[name]
    assert all(p.answer and p.question for p in prompts)
    assert len({p.id for p in prompts}) == len(prompts)


@needs_data
def test_a_public_file_survives_saving(tmp_path):
    prompts = load_prompts(DATA / "DeepMath_deduped.parquet", limit=300)
    save_prompts(prompts, tmp_path / "saved.jsonl")
    assert load_prompts(tmp_path / "saved.jsonl") == prompts


@needs_data
def test_dapo_files_hold_the_same_questions(caplog):
    processed = load_prompts(DATA / "dapo-math-17k-processed.parquet", limit=300)
    assert "300 prompts have a literal \\boxed{{}}" in caplog.text
    original = load_prompts(DATA / "dapo-math-17k.parquet", limit=300)
    for a, b in zip(processed, original, strict=True):
        assert a.question != b.question
        assert strip_instruction(a.question) == strip_instruction(b.question)
        assert (a.id, a.answer) == (b.id, b.answer)


@needs_data
def test_deepmath_question_without_instruction():
    # Not always equal: where a question itself held a \boxed, the prompt was cut there.
    prompts = load_prompts(DATA / "DeepMath_deduped.parquet", limit=300)
    questions = [p.meta["extra_info"]["question"] for p in prompts]
    bare = [strip_instruction(p.question) for p in prompts]
    assert all(q.startswith(b.rstrip()) for q, b in zip(questions, bare, strict=True))
    assert sum(q == b for q, b in zip(questions, bare, strict=True)) > 290
