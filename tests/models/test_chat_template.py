"""Chat templates of the known families, on word tokenizers: turn ends, variables, end tokens."""

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from opdprobe.errors import PromptError
from opdprobe.models.chat_template import changing_variables, render, turn_end, unread, variables
from opdprobe.models.vocabulary import eos_ids
from opdprobe.testing import tiny_model

ASKED = [{"role": "user", "content": "a"}]

# As in Qwen3: thinking is on unless it is switched off, and an answer's thoughts are left out.
QWEN = (
    "{%- for m in messages %}<|im_start|> {{ m.role }} "
    "{{ m.content.split('</think>')[-1] }} <|im_end|> {% endfor %}"
    "{%- if add_generation_prompt %}<|im_start|> assistant"
    "{%- if enable_thinking is defined and enable_thinking is false %} <think> </think>{% endif %}"
    "{%- endif %}"
)
# As in DeepSeek V3.1: off unless it is switched on, by another name.
DEEPSEEK = (
    "{% if not thinking is defined %}{% set thinking = false %}{% endif %}"
    "{% set ns = namespace(seen=false) %}{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'user' %} <User> {{ m.content }}{% set ns.seen = true %}"
    "{% else %} <Assistant> </think> {{ m.content }} <|eos|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %} <Assistant> "
    "{% if thinking %}<think>{% else %}</think>{% endif %}{% endif %}"
)
# As in Gemma: the assistant is called model, and a system message is refused.
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}{% for m in messages %}"
    " <start_of_turn> {{ 'model' if m.role == 'assistant' else m.role }} {{ m.content | trim }}"
    " <end_of_turn>\n{% endfor %}{% if add_generation_prompt %} <start_of_turn> model{% endif %}"
)
# As in Llama 3.2: today's date is in the prompt.
LLAMA = (
    "{% if not date_string is defined %}{% if strftime_now is defined %}"
    "{% set date_string = strftime_now('%d %b %Y') %}{% endif %}{% endif %}"
    "{% if not tools_in_user_message is defined %}{% set tools_in_user_message = true %}{% endif %}"
    "{% if custom_tools is defined %}{% set tools = custom_tools %}{% endif %}"
    "{{ bos_token }} {{ date_string }}{% for m in messages %} <|header|> {{ m.role }}"
    " {{ m.content | trim }} <|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %} <|header|> assistant{% endif %}"
)
# As in Phi 3: the end token follows the turn's end.
PHI = (
    "{% for m in messages %}<|{{ m.role }}|> {{ m.content }} <|end|> {% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% else %}{{ eos_token }}{% endif %}"
)
# As in SmolLM3, with the tag that marks the assistant's text.
SMOL = (
    "{%- if enable_thinking is not defined %}{% set enable_thinking = true %}{% endif %}"
    "{%- set mode = '/think' if enable_thinking else '/no_think' %}{{ mode }}"
    "{% for m in messages %} <|im_start|> {{ m.role }} {% generation %}{{ m.content }}"
    " <|im_end|>{% endgeneration %}{% endfor %}"
)
PLAIN_END = "{% for m in messages %}{{ m.role }} {{ m.content }} ### End {% endfor %}"
ENDS = {
    "qwen": (QWEN, "<|im_end|>"),
    "deepseek": (DEEPSEEK, "<|eos|>"),
    "gemma": (GEMMA, "<end_of_turn>"),
    "llama": (LLAMA, "<|eot_id|>"),
    "phi": (PHI, "<|end|>"),
    "smol": (SMOL, "<|im_end|>"),
}
SPECIAL = ["<|im_start|>", "<|im_end|>", "<end_of_turn>", "<|eot_id|>", "<|end|>", "<|eos|>"]


def tokenizer_of(template, eos="<|eos|>"):
    words = [*SPECIAL, "<|endoftext|>", "<bos>", "<unk>", "user", "assistant", "a", "opdprobe"]
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, "<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=eos, bos_token="<bos>", unk_token="<unk>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL})
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize("family", ENDS)
def test_the_turn_end_is_the_first_special_token_after_an_answer(family):
    template, end = ENDS[family]
    tokenizer = tokenizer_of(template, eos="<|endoftext|>")
    found = turn_end(tokenizer)
    assert tokenizer.convert_ids_to_tokens(found.ids[0]) == end
    assert found.text.split()[0] == end


def test_no_turn_end():
    for template in (None, "{% for m in messages %}{{ m.content }}\n{% endfor %}"):
        assert turn_end(tokenizer_of(template)) is None
    refusing = "{{ raise_exception('never') }}"
    assert turn_end(tokenizer_of(refusing)) is None
    assert turn_end(tokenizer_of(PLAIN_END)) == ("### End", ())


CHANGING = {
    "qwen": (QWEN, ["enable_thinking"]),
    "deepseek": (DEEPSEEK, ["thinking"]),
    "gemma": (GEMMA, []),
    "llama": (LLAMA, ["date_string"]),
    "smol": (SMOL, ["enable_thinking"]),
    "effort": (
        "{% if effort is not defined %}{% set effort = 'medium' %}{% endif %}{{ 'R: ' + effort }}",
        ["effort"],
    ),
    "budget": ("{% if thinking_budget > 0 %}x{% endif %}y", ["thinking_budget"]),
    "none": ("{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}", []),
}


@pytest.mark.parametrize("family", CHANGING)
def test_the_variables_that_change_a_prompt_are_found_by_rendering(family):
    template, names = CHANGING[family]
    assert changing_variables(tokenizer_of(template), ASKED, {}) == names


def test_a_variable_of_past_turns_matters_only_where_there_are_some():
    past = "{% for m in messages[:-1] %}{% if keep %}{{ m.content }}{% endif %}{% endfor %}"
    tokenizer = tokenizer_of(past)
    assert changing_variables(tokenizer, ASKED, {}) == []
    assert changing_variables(tokenizer, ASKED * 2, {}) == ["keep"]


def test_names_that_the_template_reads():
    tokenizer = tokenizer_of(QWEN)
    assert "enable_thinking" in variables(tokenizer)
    assert "messages" not in variables(tokenizer)
    assert unread(tokenizer, ["enable_thinking", "thinking", "bos_token"]) == [
        "bos_token",
        "thinking",
    ]
    assert unread(tokenizer_of(None), ["x"]) == ["x"]
    assert variables(tokenizer_of("{% if %}")) == []  # an error when it is applied


def test_several_templates_by_name():
    tokenizer = tokenizer_of({"default": QWEN, "tool_use": GEMMA})
    assert tokenizer.convert_ids_to_tokens(turn_end(tokenizer).ids[0]) == "<|im_end|>"
    assert changing_variables(tokenizer, ASKED, {}) == ["enable_thinking"]


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('no system') }}",
        "{{ messages[0].content.a.b }}",
        "{{ 1 / 0 }}",
        "{{ messages[7] + 1 }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{% if %}",
    ],
)
def test_whatever_a_template_raises_is_a_fault_of_the_row(template):
    with pytest.raises(PromptError, match="the chat template fails"):
        render(tokenizer_of(template), ASKED, {})


# --- end-of-sequence tokens against turn ends


def named(model, *tokens, tokenizer):
    ids = [tokenizer.convert_tokens_to_ids(token) for token in tokens]
    model.generation_config.eos_token_id = ids if len(ids) > 1 else ids[0]
    return model


@pytest.mark.parametrize("family", ENDS)
@pytest.mark.parametrize("where", ["tokenizer", "one", "list"])
def test_no_word_where_the_turn_end_is_an_end_token(family, where, caplog):
    template, end = ENDS[family]
    tokenizer = tokenizer_of(template, eos=end if where == "tokenizer" else "<|endoftext|>")
    names = {"tokenizer": ["<|endoftext|>"], "one": [end], "list": ["<|endoftext|>", end]}[where]
    model = named(tiny_model(), *names, tokenizer=tokenizer)
    assert tokenizer.convert_tokens_to_ids(end) in eos_ids(model, tokenizer)
    assert not caplog.records


@pytest.mark.parametrize("family", ["qwen", "deepseek", "gemma", "llama", "smol"])
def test_a_turn_end_that_is_no_end_token_is_reported_once(family, caplog):
    template, end = ENDS[family]
    tokenizer = tokenizer_of(template, eos="<|endoftext|>")
    model = named(tiny_model(), "<|endoftext|>", tokenizer=tokenizer)
    for _ in range(2):
        assert eos_ids(model, tokenizer) == [tokenizer.eos_token_id]
    (line,) = caplog.messages
    number = tokenizer.convert_tokens_to_ids(end)
    assert f"ends turns with {end!r} (id {number}), which is not among" in line
    assert f"Set tokenizer.eos_token = {end!r}" in line
    tokenizer.eos_token = end  # as the message says
    assert number in eos_ids(model, tokenizer)
    assert len(caplog.records) == 1


def test_an_end_token_later_in_the_turns_end_ends_the_response_too(caplog):
    tokenizer = tokenizer_of(PHI, eos="<|endoftext|>")
    eos_ids(named(tiny_model(), "<|endoftext|>", tokenizer=tokenizer), tokenizer)
    assert not caplog.records


def test_a_turn_end_that_is_no_token_is_reported(caplog):
    tokenizer = tokenizer_of(PLAIN_END)
    eos_ids(named(tiny_model(), "<|eos|>", tokenizer=tokenizer), tokenizer)
    assert "ends turns with the text '### End', which is no token" in caplog.text


def test_plain_prompts_have_no_turns(caplog):
    tokenizer = tokenizer_of(QWEN, eos="<|endoftext|>")
    model = named(tiny_model(), "<|endoftext|>", tokenizer=tokenizer)
    eos_ids(model, tokenizer, conversations=False)
    assert not caplog.records
