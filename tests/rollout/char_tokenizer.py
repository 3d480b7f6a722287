"""A tokenizer with one token per character, and a chat template that says all that it is given."""

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

TEMPLATE = (
    "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}/{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
    "{% if enable_thinking is defined and not enable_thinking %}-{% endif %}"
)


def make(template=TEMPLATE, single="<s> $A"):
    """One token per character."""
    words = ["<unk>", "<s>", "</s>", "<end>", *map(chr, range(32, 127))]
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[("<s>", 1), ("</s>", 2), ("<end>", 3)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<end>"]})
    tokenizer.chat_template = template
    return tokenizer
