r"""A prompt, its wording, and its token ids.

Two kinds, as in TRL: a *conversation* (a list of role and content) goes through the tokenizer's
chat template; a plain *text* reaches the model as it is.
"""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import jinja2

from opdprobe.errors import ConfigError, PromptError, shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "BOXED_TEMPLATE",
    "DAPO_TEMPLATE",
    "EncodedPrompt",
    "Prompt",
    "encode_prompts",
    "strip_instruction",
]

logger = logging.getLogger("opdprobe")

OnError = Literal["raise", "skip"]

BOXED_TEMPLATE = (
    "{question} Please reason step by step, and put your final answer within \\boxed{}."
)
DAPO_TEMPLATE = (
    "Solve the following math problem step by step. The last line of your response should be of "
    "the form Answer: $Answer (without quotes) where $Answer is the answer to the problem.\n\n"
    '{question}\n\nRemember to put your answer on its own line after "Answer:".'
)

# What str.format left of \boxed{} in dapo-math-17k-processed: the model reads both braces.
BROKEN_BOX, BOX = "\\boxed{{}}", "\\boxed{}"
# JSON may hold halves of surrogate pairs.
_LONE = re.compile("[\ud800-\udfff]")
_WRAPPERS = (BOXED_TEMPLATE, BOXED_TEMPLATE.replace(BOX, BROKEN_BOX), DAPO_TEMPLATE)


@dataclass(frozen=True)
class Prompt:
    """One problem.

    Attributes
    ----------
    id : str
        Identifies the prompt in a run's store.
    messages : tuple of {"role": str, "content": str}
        A conversation; empty if the prompt is a plain text.
    text : str or None
        A plain text, given to the model as it is.
    answer : str or None
        The reference answer, as the file has it.
    meta : mapping
        The row's other columns. `chat_template_kwargs` in it are passed to the chat template.

    Raises
    ------
    PromptError
        Both or neither of `messages` and `text` are given; a message lacks a role or a content;
        the question is blank; a field is not a str, or not Unicode text.

    Examples
    --------
    >>> Prompt("7", messages=({"role": "user", "content": "What is 2 + 2?"},)).question
    'What is 2 + 2?'
    >>> Prompt("8", text=" ")
    Traceback (most recent call last):
    ...
    opdprobe.errors.PromptError: prompt '8': empty prompt.
    """

    id: str
    messages: tuple[Mapping[str, str], ...] = ()
    text: str | None = None
    answer: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if reason := self._fault():
            raise PromptError(f"prompt {shown(self.id)}: {reason}.")

    def _fault(self) -> str | None:
        if not isinstance(self.id, str):
            return f"the id is of type {type(self.id).__name__}; expected str"
        if self.answer is not None and not isinstance(self.answer, str):
            return f"the answer is of type {type(self.answer).__name__}; expected str or None"
        texts = [self.id, self.answer or ""]
        if self.text is not None and not isinstance(self.text, str):
            return f"the text is of type {type(self.text).__name__}; expected str"
        if self.text is not None:
            if self.messages:
                return "both messages and a text; give one"
            texts.append(self.text)
        for message in self.messages:
            if not isinstance(message, Mapping) or not all(
                isinstance(message.get(key), str) for key in ("role", "content")
            ):
                return f"a message needs a role and a content, both str; got {shown(message)}"
            texts += message["role"], message["content"]
        if broken := next(filter(None, map(_LONE.search, texts)), None):
            # No tokenizer reads it, and no UTF-8 file can hold it.
            return f"half a surrogate pair, U+{ord(broken[0]):04X}, in the text; replace it"
        # The model answers the last turn: if that is blank, there is no question.
        asked = (self.text is not None or self.messages) and texts[-1].strip()
        return None if asked else "empty prompt"

    @property
    def question(self) -> str:
        """The text, or the last message's content."""
        return self.messages[-1]["content"] if self.text is None else self.text


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt and the token ids the model sees, chat template and special tokens included."""

    prompt: Prompt
    ids: tuple[int, ...]


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    *,
    max_prompt_length: int = 1024,
    template: str | None = None,
    enable_thinking: bool = False,
    on_error: OnError = "raise",
) -> list[EncodedPrompt]:
    r"""Turn prompts into token ids.

    A conversation goes through the tokenizer's chat template, up to where the answer begins. If
    the tokenizer has none, the messages' contents are joined by blank lines, without roles, and
    encoded as a plain text: with the special tokens that the tokenizer puts around any text. A
    warning is logged if one of them ends the text, since the model then sees a finished one.

    Parameters
    ----------
    tokenizer : transformers.PreTrainedTokenizerBase
        The student's.
    prompts : sequence of Prompt
        The prompts.
    max_prompt_length : int
        The longest prompt allowed, in tokens (paper Table 2: 1024). No prompt is truncated: half a
        question is another question.
    template : str, optional
        A wording that replaces the prompts' own: ``{question}`` in it stands for the question
        without the instructions it came with (`strip_instruction`). Other braces are literal.
        This is how student prompts take the form that the teacher was trained on (paper sect.
        5.2): `BOXED_TEMPLATE`, `DAPO_TEMPLATE`, or your own.
    enable_thinking : bool
        Passed to the chat template; the paper's Qwen3 runs have it off (paper sect. 4). A prompt's
        own column `chat_template_kwargs` (TRL's), such as {"enable_thinking": true}, precedes it.
    on_error : {"raise", "skip"}
        Whether an unusable prompt raises an error, or is left out and logged.

    Returns
    -------
    list of EncodedPrompt
        In the prompts' order, each with the prompt it came from.

    Raises
    ------
    PromptError
        Prompts are too long, have no tokens, or are refused by the chat template (listed by index,
        from 0), or no prompt is usable; the latter with "skip" too.
    ConfigError
        `template` does not contain ``{question}``, or `max_prompt_length` is below 1.
    """
    if template is not None and "{question}" not in template:
        raise ConfigError(f"template = {shown(template)}; expected {{question}} in it.")
    if max_prompt_length < 1:
        raise ConfigError(f"max_prompt_length = {max_prompt_length}; expected 1 or more.")
    encoded: list[EncodedPrompt] = []
    faults: list[str] = []
    too_long = False
    for number, prompt in enumerate(prompts):
        try:
            ids = _encode(tokenizer, prompt, template, enable_thinking)
            if not ids:
                raise PromptError("no tokens.")
            if len(ids) > max_prompt_length:
                too_long = True
                raise PromptError(
                    f"{len(ids)} tokens, more than max_prompt_length {max_prompt_length}."
                )
        except PromptError as error:
            faults.append(f"row {number} (id {shown(prompt.id)}): {error}".rstrip("."))
        else:
            encoded.append(EncodedPrompt(prompt, tuple(ids)))
    report_faults(
        "encode_prompts",
        faults,
        len(prompts),
        kept=len(encoded),
        on_error=on_error,
        cure=", raise max_prompt_length (--max-prompt-length)" if too_long else "",
    )
    end = tokenizer.eos_token
    ended = [
        prompt
        for prompt in encoded
        if isinstance(end, str)
        and prompt.ids[-1] == tokenizer.eos_token_id
        and (prompt.prompt.text is not None or tokenizer.chat_template is None)
        and not prompt.prompt.question.endswith(end)
    ]
    if ended:
        logger.warning(
            "The tokenizer appends its end token %r to %d plain prompts, so the models see "
            "finished texts: load one that does not (add_eos_token=False).",
            end,
            len(ended),
        )
    return encoded


def strip_instruction(text: str) -> str:
    r"""Remove the known instructions from a question, to compare questions (paper App. C.3).

    Parameters
    ----------
    text : str
        A prompt's wording: a question in `BOXED_TEMPLATE` (its broken ``\boxed{{}}`` too) or
        `DAPO_TEMPLATE`.

    Returns
    -------
    str
        The question; any other text is returned unchanged.

    Examples
    --------
    >>> strip_instruction(BOXED_TEMPLATE.replace("{question}", "What is 2 + 2?"))
    'What is 2 + 2?'
    >>> strip_instruction("What is 2 + 2?")
    'What is 2 + 2?'
    """
    for wrapper in _WRAPPERS:
        before, after = wrapper.split("{question}")
        if len(text) >= len(before + after) and text.startswith(before) and text.endswith(after):
            return text[len(before) : len(text) - len(after)]
    return text


def _encode(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, template: str | None, enable_thinking: bool
) -> list[int]:
    question = prompt.question
    if template is not None:
        question = template.replace("{question}", strip_instruction(question))
    if prompt.text is not None:
        return _tokens(tokenizer, question)
    options = {"enable_thinking": enable_thinking, **_own_options(tokenizer, prompt)}
    messages = [*prompt.messages[:-1], {**prompt.messages[-1], "content": question}]
    if tokenizer.chat_template is None:
        return _tokens(tokenizer, "\n\n".join(message["content"] for message in messages))
    try:
        text = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, **options
        )
    except (jinja2.TemplateError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        # A template is a program; it may refuse a role, or fail.
        raise PromptError(f"the chat template fails: {error}.") from error
    assert isinstance(text, str)  # tokenize=False
    # The chat template writes the special tokens itself.
    return _tokens(tokenizer, text, add_special_tokens=False)


def _own_options(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> dict[str, Any]:
    """Arguments that the prompt's row has for the chat template."""
    given = prompt.meta.get("chat_template_kwargs")
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise PromptError(
            f"chat_template_kwargs is of type {type(given).__name__}; expected a mapping of names "
            "to values."
        )
    # In a parquet file, each row has the names of all rows.
    options = {name: value for name, value in given.items() if value is not None}
    # The names that transformers takes itself would replace the template, or what it returns.
    kinds = inspect.signature(type(tokenizer).apply_chat_template).parameters.values()
    taken = {parameter.name for parameter in kinds if parameter.kind is not parameter.VAR_KEYWORD}
    if refused := sorted(shown(name) for name in options if name in taken or not _is_name(name)):
        raise PromptError(
            f"chat_template_kwargs has {', '.join(refused)}; expected names that the chat template "
            "reads, such as enable_thinking."
        )
    return options


def _is_name(name: object) -> bool:
    return isinstance(name, str) and name.isidentifier()


def _tokens(
    tokenizer: PreTrainedTokenizerBase, text: str, *, add_special_tokens: bool = True
) -> list[int]:
    if unknown := _unknown_words(tokenizer, text):
        raise PromptError(
            f"the tokenizer has no token for {shown(unknown)}, and none for unknown words."
        )
    return tokenizer(text, add_special_tokens=add_special_tokens).input_ids


def _unknown_words(tokenizer: PreTrainedTokenizerBase, text: str) -> list[str]:
    """Words on which a word-level tokenizer would raise a bare Exception."""
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    model = getattr(backend, "model", None)
    if type(model).__name__ != "WordLevel" or tokenizer.unk_token is not None:
        return []
    split = backend.pre_tokenizer
    words = [word for word, _ in split.pre_tokenize_str(text)] if split else [text]
    return [word for word in dict.fromkeys(words) if backend.token_to_id(word) is None]


def report_faults(
    source: str, faults: list[str], count: int, *, kept: int, on_error: OnError, cure: str = ""
) -> None:
    """Raise an error that lists the rows that cannot be used, or log them."""
    if count == 0:
        raise PromptError(f"{source}: no rows; expected at least one prompt.")
    if not faults:
        return
    listed = "; ".join(faults[:10]) + ("; …" if len(faults) > 10 else "")
    message = f"{source}: {len(faults)} of {count} rows cannot be used: {listed}."
    if on_error == "skip" and kept:
        logger.warning("%s They are left out.", message)
        return
    raise PromptError(
        f"{message} No usable row is left: correct them{cure}."
        if on_error == "skip"
        else f'{message} Correct them{cure}, or leave them out with on_error="skip".'
    )
