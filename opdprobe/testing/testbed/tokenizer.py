"""The testbed's tokenizer: one token per word, with a chat template."""

from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from opdprobe.testing.testbed import world

CHAT_TEMPLATE = (
    "<bos>{% for m in messages %}"
    "{% if m.role == 'user' %} <user> {{ m.content }}"
    "{% elif m.role == 'assistant' %} <assistant> {{ m.content }} <eos>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %} <assistant>{% endif %}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Make the tokenizer of the testbed world.

    Returns
    -------
    PreTrainedTokenizerFast
        Splits on white space; an unknown word is an error rather than an ``<unk>``.

    Examples
    --------
    >>> tok = build_tokenizer()
    >>> chat = [{"role": "user", "content": "add 7 12 3 19"}]
    >>> tok.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    '<bos> <user> add 7 12 3 19 <assistant>'
    """
    vocab = {token: i for i, token in enumerate(world.vocabulary())}
    backend = Tokenizer(WordLevel(vocab))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[reportAttributeAccessIssue]  # tokenizers has no stubs for its setters
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        additional_special_tokens=["<user>", "<assistant>"],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
