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
    teacher : str or tuple of messages, optional
        What the teacher reads in place of the text or the messages, such as a prompt with the
        solution; None: the same (`opdprobe.TeacherContext`).

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
    teacher: str | tuple[Mapping[str, str], ...] | None = None

    def __post_init__(self) -> None:
        if reason := self._fault():
            raise PromptError(f"prompt {shown(self.id)}: {reason}.")

    def _fault(self) -> str | None:
        if not isinstance(self.id, str):
            return f"the id is of type {type(self.id).__name__}; expected str"
        if self.id.endswith("\0"):
            return f"the id {shown(self.id)} ends with a NUL, which NumPy's texts lose"
        if self.answer is not None and not isinstance(self.answer, str):
            return f"the answer is of type {type(self.answer).__name__}; expected str or None"
        if self.text is not None and not isinstance(self.text, str):
            return f"the text is of type {type(self.text).__name__}; expected str"
        if self.text is not None and self.messages:
            return "both messages and a text; give one"
        if reason := _broken([self.id, self.answer or ""]):
            return reason
        reason = _asked_wrongly(self.messages if self.text is None else self.text)
        if reason is None and self.teacher is not None:
            reason = _asked_wrongly(self.teacher)
            return reason and f"the teacher's prompt: {reason}"
        return reason

    @property
    def has_own_teacher(self) -> bool:
        """Whether the row says itself what the teacher reads."""
        return self.teacher is not None or "teacher_chat_template_kwargs" in self.meta

    @property
    def question(self) -> str:
        """The text, or the last message's content."""
        return self.messages[-1]["content"] if self.text is None else self.text


def _asked_wrongly(asked: Any) -> str | None:
    """Say what is wrong with a text or a conversation that a model is to answer."""
    if isinstance(asked, str):
        texts = [asked]
    elif not isinstance(asked, tuple | list):
        return f"{shown(asked)} is of type {type(asked).__name__}; expected str or messages"
    else:
        texts = []
        for message in asked:
            if not isinstance(message, Mapping) or not all(
                isinstance(message.get(key), str) for key in ("role", "content")
            ):
                return f"a message needs a role and a content, both str; got {shown(message)}"
            texts += message["role"], message["content"]
        if asked and asked[-1]["role"] == "assistant":
            return "the last message is the assistant's, which the model is to write; leave it out"
    if reason := _broken(texts):
        return reason
    # The model answers the last turn: if that is blank, there is no question.
    return None if texts and texts[-1].strip() else "empty prompt"


def _broken(texts: list[str]) -> str | None:
    """Say which text no tokenizer reads, and no UTF-8 file can hold."""
    if broken := next(filter(None, map(_LONE.search, texts)), None):
        return f"half a surrogate pair, U+{ord(broken[0]):04X}, in the text; replace it"
    return None


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt and the token ids the model sees, chat template and special tokens included.

    Attributes
    ----------
    prompt, ids
        The prompt, and what the student sees of it.
    teacher_ids
        What the teacher sees; None: the same. Of prompts that were encoded together, all have it,
        or none.
    """

    prompt: Prompt
    ids: tuple[int, ...]
    teacher_ids: tuple[int, ...] | None = None


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
