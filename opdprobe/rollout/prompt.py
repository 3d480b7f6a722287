"""A prompt, and the instructions that it may come with."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from opdprobe.errors import PromptError, shown

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

SYSTEM_ROLES = ("system", "developer")

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
        the last one is the assistant's; the question is blank; a field is not a str, or not
        Unicode text.

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
        if self.messages and self.messages[-1]["role"] == "assistant":
            return "the last message is the assistant's, which the model is to write; leave it out"
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
