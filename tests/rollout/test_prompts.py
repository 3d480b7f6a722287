"""Encoding: variables of the chat template, system prompts, tokens that end a text."""

import pandas as pd
import pytest
from char_tokenizer import TEMPLATE, make

from opdprobe.errors import ConfigError, PromptError
from opdprobe.rollout.prompt_attrs import prompt_set, template_attrs
from opdprobe.rollout.prompts import Prompt, encode_prompts
from opdprobe.store.prompt_form import prompt_form


def user(content="2?", id="0", system=None, **meta):
    messages = ({"role": "user", "content": content},)
    if system is not None:
        messages = ({"role": "system", "content": system}, *messages)
    return Prompt(id, messages=messages, meta=meta)


def texts(tokenizer, prompts, **settings):
    encoded = encode_prompts(tokenizer, prompts, **settings)
    return ["".join(tokenizer.convert_ids_to_tokens(list(p.ids))) for p in encoded]


# --- variables of the chat template


@pytest.mark.parametrize(
    ("settings", "own", "end"),
    [
        ({}, None, "-"),
        ({"enable_thinking": True}, None, ""),
        ({"chat_template_kwargs": {"enable_thinking": True}}, None, ""),
        ({"chat_template_kwargs": {"enable_thinking": None}}, None, "-"),
        (
            {"chat_template_kwargs": {"enable_thinking": False}, "enable_thinking": True},
            None,
            "-",
        ),
        ({"chat_template_kwargs": {"enable_thinking": True}}, {"enable_thinking": False}, "-"),
        ({}, {"enable_thinking": True}, ""),
    ],
)
def test_rows_precede_the_command_which_precedes_the_default(settings, own, end):
    prompt = user(**({} if own is None else {"chat_template_kwargs": own}))
    assert texts(make(), [prompt], **settings) == [f"u:2?/a:{end}"]


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("enable_thinking=true", "is of type str; expected a mapping"),
        ({"tokenize": True}, "has 'tokenize'; expected names that the chat template reads"),
    ],
)
def test_variables_that_are_refused(given, reason):
    with pytest.raises(ConfigError, match=f"chat_template_kwargs {reason}"):
        encode_prompts(make(), [user()], chat_template_kwargs=given)


def test_variables_that_change_nothing_are_reported(caplog):
    encode_prompts(make(), [user()], chat_template_kwargs={"enable_thinking": True})
    assert not caplog.records
    encode_prompts(make(), [user(chat_template_kwargs={"loud": 1})])
    assert "the chat template does not read loud, which changes nothing; it reads " in caplog.text
    caplog.clear()
    encode_prompts(make(), [user()], chat_template_kwargs={"thinking": True})
    assert "the chat template does not read thinking" in caplog.text
    for tokenizer, prompt in ((make(None), user()), (make(), Prompt("0", text="2"))):
        caplog.clear()
        encode_prompts(tokenizer, [prompt], chat_template_kwargs={"enable_thinking": True})
        assert caplog.messages == [
            "chat_template_kwargs change nothing, since no prompt goes through a chat template."
        ]


# --- system prompts


def test_a_system_prompt_goes_first_unless_there_is_one(caplog):
    prompts = [
        user(),
        user(id="1", system="own"),
        Prompt(
            "2",
            messages=({"role": "developer", "content": "d"}, {"role": "user", "content": "2?"}),
        ),
    ]
    assert texts(make(), prompts, system_prompt="all") == [
        "s:all/u:2?/a:-",
        "s:own/u:2?/a:-",
        "d:d/u:2?/a:-",
    ]
    assert texts(make(), prompts[:1], system_prompt="") == ["s:/u:2?/a:-"]
    assert texts(make(None), prompts[:1], system_prompt="all") == [
        "<s>all\n\n2?".replace("\n", "<unk>")
    ]
    assert prompts[0].messages == user().messages
    assert not caplog.records


def test_the_wording_of_the_question_keeps_the_system_prompt():
    (text,) = texts(make(), [user()], system_prompt="all", template="Q: {question}")
    assert text == "s:all/u:Q: 2?/a:-"


def test_a_system_prompt_that_is_not_taken_is_reported(caplog):
    silent = TEMPLATE.replace("for m in messages", "for m in messages if m.role != 'system'")
    prompts = [user(), user(id="1"), Prompt("2", text="2")]
    texts(make(silent), prompts, system_prompt="all")
    assert "leaves out the system prompt in 2 prompts" in caplog.text
    assert "1 prompts are plain texts and get no system prompt" in caplog.text
    refusing = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('No system role') }}{% endif %}"
    )
    with pytest.raises(PromptError, match=r"2 of 3 rows .*the chat template fails: No system role"):
        texts(make(refusing + TEMPLATE), prompts, system_prompt="all")
    with pytest.raises(ConfigError, match="system_prompt = 7; expected a text"):
        texts(make(), prompts, system_prompt=7)


# --- tokens that end a text


@pytest.mark.parametrize(
    ("single", "text", "want", "appended"),
    [
        ("<s> $A </s>", "2=", "<s>2=", "</s>"),
        ("$A </s>", "2=", "2=", "</s>"),
        ("<s> $A <end>", "2=", "<s>2=", "<end>"),  # another end token than the tokenizer names
        ("<s> $A <end> </s>", "2=", "<s>2=", "<end> </s>"),
        ("<s> $A", "2=", "<s>2=", None),
        ("<s> $A", "2=</s>", "<s>2=</s>", None),  # as the text has it
        ("<s> $A </s>", "2=</s>", "<s>2=</s>", "</s>"),
        ("<s> $A </s>", "<s>2=", "<s><s>2=", "</s>"),
        ("$A", "2=", "2=", None),
    ],
)
def test_no_end_token_is_appended_to_a_plain_prompt(caplog, single, text, want, appended):
    tokenizer = make(single=single)
    prompts = [Prompt("0", text=text), user(id="1")]
    assert texts(tokenizer, prompts) == [want, "u:2?/a:-"]
    said = f"appends its end token {appended!r} to plain prompts; it is taken off 1 of them"
    assert (said in caplog.text) is (appended is not None)
    assert len(caplog.records) == (appended is not None)
    tokenizer.chat_template = None
    joined = texts(tokenizer, prompts)[1]
    assert joined == "<s>" * single.startswith("<s>") + "2?"


# --- what is recorded


def recorded(prompts, template=TEMPLATE, **settings):
    tokenizer = make(template)
    encoded = encode_prompts(tokenizer, prompts, **settings)
    return template_attrs(tokenizer, encoded, **settings)


@pytest.mark.parametrize(
    ("prompts", "settings", "text"),
    [
        ([user()], {}, "enable_thinking = False (default)"),
        (
            [user()],
            {"chat_template_kwargs": {"enable_thinking": True}},
            "enable_thinking = True",
        ),
        (
            [user(), user(id="1", chat_template_kwargs={"enable_thinking": True})],
            {},
            "enable_thinking = False (default); 1 of 2 prompts have their own values",
        ),
        (
            [user(), user(id="1", system="own")],
            {"system_prompt": "all"},
            "enable_thinking = False (default); system prompt 'all' "
            "(1 of 2 prompts have their own)",
        ),
        (
            [user(id="1", system="own")],
            {},
            "enable_thinking = False (default); 1 of 1 prompts have their own system prompt",
        ),
        ([Prompt("0", text="2")], {}, "no system prompt, no template variables"),
    ],
)
def test_the_form_of_the_prompts_is_described(prompts, settings, text):
    found = recorded(prompts, **settings)
    assert prompt_form({"chat_template": found}) == text


def test_variables_without_a_value_are_the_templates_own():
    found = recorded([user()], TEMPLATE + "{{ effort }}")
    assert found["variables"] == {"effort": None, "enable_thinking": False}
    assert prompt_form({"chat_template": found}) == (
        "effort = the chat template's own default, enable_thinking = False (default)"
    )
    assert recorded([user()], "{{ messages[0].content }}")["variables"] == {}
    assert recorded([user()], None)["variables"] == {}
    assert prompt_form({}) is None
    assert prompt_form({"chat_template": "torn"}) is None


def test_a_set_is_identified_by_its_ids_and_tokens():
    one, two = (encode_prompts(make(), [user(text)]) for text in ("1?", "2?"))
    assert prompt_set(one) == prompt_set(
        encode_prompts(
            make(), pd.DataFrame([{"id": "0", "prompt": [{"role": "user", "content": "1?"}]}])
        )
    )
    assert prompt_set(one)["hash"] != prompt_set(two)["hash"]
    assert prompt_set(one)["count"] == 1
