"""The tokenizer: one token a word, and the same after it was saved and loaded as any other is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from opdprobe.models.vocabulary import tokenizer_hash
from opdprobe.testing.testbed import world
from opdprobe.testing.testbed.members import MEMBERS, zoo_path
from opdprobe.testing.testbed.tokenizer import build_tokenizer

BUILT = build_tokenizer()
LOADED = {name: AutoTokenizer.from_pretrained(zoo_path(name)) for name in MEMBERS}
CHAT = [
    {"role": "user", "content": "add 7 12 3 19"},
    {"role": "assistant", "content": "well the total is 41 so answer 41"},
]


@pytest.mark.parametrize("name", list(MEMBERS))
def test_the_shipped_tokenizers_are_the_built_one(name):
    """A model type can make AutoTokenizer split numbers into digits, whatever the files say."""
    loaded, text = LOADED[name], " ".join(world.vocabulary())
    assert tokenizer_hash(loaded) == tokenizer_hash(BUILT)
    assert loaded(text).input_ids == list(range(len(world.vocabulary())))
    assert loaded.decode(range(len(world.vocabulary()))) == text
    specials = ["pad_token_id", "eos_token_id", "bos_token_id"]
    assert [getattr(loaded, s) for s in specials] == [getattr(BUILT, s) for s in specials]


@given(st.lists(st.sampled_from(world.vocabulary())))
def test_words_are_tokens_and_come_back(sequence):
    text, ids = " ".join(sequence), [world.vocabulary().index(word) for word in sequence]
    for tokenizer in (BUILT, *LOADED.values()):
        assert tokenizer(text).input_ids == ids
        assert tokenizer.decode(ids) == text
        kept = [word for word in sequence if word not in world.SPECIALS]
        assert tokenizer.decode(ids, skip_special_tokens=True) == " ".join(kept)


@pytest.mark.parametrize("name", list(MEMBERS))
def test_the_chat_template_survives(name):
    for tokenizer in (BUILT, LOADED[name]):
        whole = str(tokenizer.apply_chat_template(CHAT, tokenize=False))
        assert whole == (
            "<bos> <user> add 7 12 3 19 <assistant> well the total is 41 so answer 41 <eos>"
        )
        prompt = tokenizer.apply_chat_template(CHAT[:1], tokenize=False, add_generation_prompt=True)
        assert whole.startswith(str(prompt))


def test_an_unknown_word_is_an_error():
    for tokenizer in (BUILT, *LOADED.values()):
        with pytest.raises(Exception, match=r"Missing .*UNK"):  # tokenizers raises a bare Exception
            tokenizer("add seven")
