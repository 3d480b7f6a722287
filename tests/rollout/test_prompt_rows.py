"""Rows as data sets have them: turns, system prompts, columns of other names."""

from decimal import Decimal

import pytest

from opdprobe.errors import PromptError
from opdprobe.rollout.prompt_files import as_prompts, load_prompts, prompts_from_rows, save_prompts
from opdprobe.rollout.prompts import Prompt

USER = {"role": "user", "content": "2+2?"}
ASSISTANT = {"role": "assistant", "content": "4"}
SYSTEM = {"role": "system", "content": "Be brief."}


def test_an_assistants_last_turn_is_left_out(caplog):
    rows = [
        {"messages": [USER, ASSISTANT]},
        {"messages": [SYSTEM, USER, ASSISTANT, USER, ASSISTANT, ASSISTANT]},
        {"messages": [USER]},
    ]
    found = [p.messages for p in prompts_from_rows(rows, prompt_column="messages")]
    assert found == [(USER,), (SYSTEM, USER, ASSISTANT, USER), (USER,)]
    assert "2 conversations end in an assistant's turn, which is left out" in caplog.text
    with pytest.raises(PromptError, match="row 0: prompt '0': empty prompt"):
        prompts_from_rows([{"prompt": [ASSISTANT]}])
    with pytest.raises(PromptError, match="the last message is the assistant's, which the model"):
        Prompt("0", messages=(USER, ASSISTANT))


def test_sharegpt_turns():
    turns = [
        {"from": "system", "value": "Be brief."},
        {"from": "human", "value": "2+2?"},
        {"from": "gpt", "value": "4"},
    ]
    (prompt,) = prompts_from_rows([{"conversations": turns}], prompt_column="conversations")
    assert prompt.messages == (SYSTEM, USER)


@pytest.mark.parametrize("column", ["system", "system_prompt"])
def test_a_rows_own_system_prompt(tmp_path, caplog, column):
    rows = [
        {"prompt": [USER], column: "Be brief."},
        {"prompt": [{**SYSTEM, "role": "developer"}, USER], column: "Be long."},
        {"prompt": [USER], column: None},
        {"prompt": [USER], column: ""},
    ]
    prompts = prompts_from_rows(rows)
    assert [p.messages[0]["role"] for p in prompts] == ["system", "developer", "user", "user"]
    assert prompts[0].messages[0] == SYSTEM
    assert prompts[1].meta == {column: "Be long."}
    save_prompts(prompts, tmp_path / "saved.jsonl")
    assert load_prompts(tmp_path / "saved.jsonl") == prompts
    assert not caplog.records
    (prompt,) = prompts_from_rows([{"prompt": "2+2=", column: "Be brief."}])
    assert (prompt.text, prompt.meta) == ("2+2=", {column: "Be brief."})
    assert "1 rows have a system prompt that a plain text cannot take" in caplog.text


@pytest.mark.parametrize(
    ("row", "what", "likely"),
    [
        ({"question": "?", "level": 1}, "prompt", "question"),
        ({"Problem": "?", "solution": "4"}, "prompt", "Problem"),
        ({"text": "?", "messages": []}, "prompt", "messages"),
        ({"prompt": "?", "solution": "4"}, "answer", "solution"),
        ({"prompt": "?", "final_answer": "4", "solution": "…"}, "answer", "final_answer"),
        ({"level": 1}, "prompt", None),
    ],
)
def test_a_missing_column_lists_those_there_are_and_a_likely_one(row, what, likely):
    column = {"answer_column": "answer"} if what == "answer" else {}
    with pytest.raises(PromptError) as caught:
        prompts_from_rows([row] * 3, **column, on_error="skip")
    message = str(caught.value)
    assert f"no column '{what}' among {sorted(row)!r} in any row" in message
    assert f"with {what}_column (--{what}-column)" in message
    assert (f"; is it {likely!r}?" in message) is (likely is not None)


def test_many_columns_are_listed():
    row = {f"c{number:02}": 1 for number in range(30)}
    with pytest.raises(PromptError, match=r"'c00', .*'c19', …] in any row"):
        prompts_from_rows([row])


@pytest.mark.parametrize(
    ("answer", "text"), [(Decimal("1E+16"), "1" + 16 * "0"), (Decimal("0.10"), "0.10"), (7, "7")]
)
def test_a_decimal_answer_is_written_in_digits(answer, text):
    assert prompts_from_rows([{"prompt": "?", "answer": answer}])[0].answer == text


def test_an_answer_of_bytes_is_refused():
    with pytest.raises(PromptError, match="row 0: the answer is b'4'; expected a text or a number"):
        prompts_from_rows([{"prompt": "?", "answer": b"4"}])


def test_prompts_in_any_form(tmp_path):
    rows = [{"prompt": "1"}, {"prompt": "2"}]
    want = prompts_from_rows(rows)
    save_prompts(want, tmp_path / "p.jsonl")
    for given in (want, tuple(want), rows, tmp_path / "p.jsonl", str(tmp_path / "p.jsonl")):
        assert as_prompts(given) == want
    assert as_prompts([]) == []
    assert as_prompts([*rows, {"prompt": ""}], on_error="skip") == want
    with pytest.raises(PromptError, match="row 1: a Prompt; expected a mapping"):
        as_prompts([rows[0], want[0]])
