"""Text becomes token ids again; what does not come back the same is counted."""

import copy

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from opdprobe.errors import RolloutError
from opdprobe.rollout.dumps.text import TextCounts, TextEncoder
from opdprobe.rollout.rollout import Rollout
from opdprobe.testing import tiny_tokenizer

CHATML = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nBe brief.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
    "{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer():
    """A tokenizer of single bytes with the special tokens and the template of ChatML."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytewise = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytewise.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=bytewise,
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
    )
    fast.chat_template = CHATML
    return fast


def encoder(tokenizer, **options):
    return TextEncoder(tokenizer, [tokenizer.eos_token_id], **options)


def rollout(prompt, response="4", **known):
    return Rollout(0, "a", prompt=prompt, response=response, source="here:1", **known)


ASKED = [{"role": "user", "content": "2+2?"}]
SYSTEM = {"role": "system", "content": "Count."}


ROUND = [*ASKED, {"role": "assistant", "content": "user: 4"}]
CONVERSATIONS = {
    "default system": ASKED,
    "system": [SYSTEM, *ASKED],
    "two rounds": [*ROUND, *ASKED],
    "four rounds after a system message": [SYSTEM, *ROUND, *ROUND, *ROUND, *ASKED],
}


@pytest.mark.parametrize("messages", CONVERSATIONS.values(), ids=CONVERSATIONS)
@pytest.mark.parametrize("thinking", [False, True, None])
def test_a_prompt_without_its_special_tokens_is_templated_anew(messages, thinking, tokenizer):
    """verl and TRL decode prompts without special tokens: the model did not read that text."""
    options = {} if thinking is None else {"enable_thinking": thinking}
    ids = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False, **options
    )
    text = tokenizer.decode(ids, skip_special_tokens=True)
    assert "<|im_start|>" not in text
    encode = encoder(tokenizer)
    assert encode(rollout(text)).prompt_ids == ids
    assert encode.counts == TextCounts(
        rows=1, prompts_templated=1, prompts_same=1, responses_same=1, ends_unknown=1
    )


def test_a_prompt_with_its_special_tokens_is_encoded_as_it_stands(tokenizer):
    ids = tokenizer.apply_chat_template(ASKED, add_generation_prompt=True, return_dict=False)
    encode = encoder(tokenizer)
    assert encode(rollout(tokenizer.decode(ids))).prompt_ids == ids
    assert (encode.counts.prompts_as_text, encode.counts.prompts_same) == (1, 1)


def test_messages_go_through_the_template_with_the_variables_given(tokenizer):
    for options in ({"enable_thinking": True}, {"enable_thinking": False}):
        ids = tokenizer.apply_chat_template(
            ASKED, add_generation_prompt=True, return_dict=False, **options
        )
        assert encoder(tokenizer, chat_template_kwargs=options)(rollout(ASKED)).prompt_ids == ids
    ids = tokenizer.apply_chat_template(ASKED, add_generation_prompt=True, return_dict=False)
    assert encoder(tokenizer)(rollout(ASKED)).prompt_ids == ids  # as trainers do, none


def test_another_text_is_a_plain_text(tokenizer):
    encode = encoder(tokenizer)
    text = "system\nuser\n2+2?\nassistant"  # near, but not what the template leaves
    assert tokenizer.decode(encode(rollout(text)).prompt_ids) == text
    assert (encode.counts.prompts_templated, encode.counts.prompts_as_text) == (0, 1)


def test_more_turns_than_can_be_told_apart_are_counted_as_plain(tokenizer):
    ids = tokenizer.apply_chat_template(
        [*ROUND * 4, *ASKED], add_generation_prompt=True, return_dict=False
    )
    encode = encoder(tokenizer)
    encode(rollout(tokenizer.decode(ids, skip_special_tokens=True)))
    assert (encode.counts.prompts_templated, encode.counts.prompts_as_text) == (0, 1)


def test_a_template_that_leaves_no_mark_is_not_guessed(tokenizer):
    """All its marks are special tokens: a plain text has the same form."""
    marked = copy.deepcopy(tokenizer)
    marked.chat_template = "{% for m in messages %}<|im_start|>{{ m.content }}{% endfor %}"
    encode = encoder(marked)
    assert marked.decode(encode(rollout("2+2?")).prompt_ids) == "2+2?"
    assert encode.counts.prompts_as_text == 1


@pytest.mark.parametrize(
    ("response", "finished", "ids", "is_finished", "counted"),
    [
        ("4", None, "4", None, {"ends_unknown": 1}),
        ("4", False, "4", False, {}),
        ("4", True, "4<|im_end|>", True, {"ends_appended": 1}),
        ("4<|im_end|>", None, "4<|im_end|>", True, {"ends_in_text": 1}),
        ("", None, "", None, {"ends_unknown": 1}),
    ],
)
def test_an_end_token_is_there_only_if_the_dump_tells(
    response, finished, ids, is_finished, counted, tokenizer
):
    encode = encoder(tokenizer)
    found = encode(rollout(ASKED, response, finished=finished))
    assert tokenizer.decode(found.response_ids) == ids
    assert found.finished is is_finished
    ends = {"ends_in_text": 0, "ends_appended": 0, "ends_unknown": 0, **counted}
    assert {name: getattr(encode.counts, name) for name in ends} == ends


def test_what_does_not_come_back_is_counted():
    encode = encoder(tiny_tokenizer())
    for response in ("7 8", "7  8", "7 word"):
        encode(rollout("7", response))
    assert (encode.counts.rows, encode.counts.responses_same) == (3, 1)
    assert encode.counts.prompts_same == 3


def test_token_ids_stay_and_tell_whether_they_end(tokenizer):
    encode, eos = encoder(tokenizer), tokenizer.eos_token_id
    for response, finished, expected in (
        ([7, eos], None, True),
        ([7], None, None),
        ([7, eos], False, False),
        ([], None, None),
    ):
        given = Rollout(0, "a", prompt_ids=[1], response_ids=response, finished=finished)
        found = encode(given)
        assert found.response_ids is response
        assert found.finished is expected
    assert encode.counts == TextCounts()


def test_what_cannot_be_encoded_is_named(tokenizer):
    with pytest.raises(RolloutError, match=r"here:1: .*empty prompt"):
        encoder(tokenizer)(rollout(" "))
    with pytest.raises(RolloutError, match="here:1: neither token ids nor text"):
        encoder(tokenizer)(Rollout(0, "a", source="here:1"))
    bare = tiny_tokenizer()
    bare.chat_template = None
    with pytest.raises(RolloutError, match=r"here:1: .*no chat template: load the tokenizer that"):
        encoder(bare)(rollout(ASKED))


def test_prompts_are_forgotten_one_by_one(tokenizer, monkeypatch):
    monkeypatch.setattr("opdprobe.rollout.dumps.text._REMEMBERED", 2)
    encode = encoder(tokenizer)
    ids = [encode(rollout(str(n))).prompt_ids for n in (1, 2, 3, 1)]
    assert ids[0] == ids[3]
    assert len(encode._prompts) == 2
