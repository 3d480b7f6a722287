"""What the teacher reads before a response, where it is not what the student read."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from opdprobe.errors import ConfigError, PromptError, shown
from opdprobe.rollout.prompt import SYSTEM_ROLES, EncodedPrompt, Prompt

TEMPLATES = ("student", "own")
_NAME = re.compile(r"\{([^\W\d]\w*)\}")


@dataclass(frozen=True)
class TeacherContext:
    """How the teacher's prompts differ from the student's.

    Both models score the same response tokens, each behind its own prompt. A row's own column
    `teacher_prompt` (a text or messages) precedes `prompt` here, and its
    `teacher_chat_template_kwargs` precede all other variables.

    Parameters
    ----------
    prompt : str, optional
        A wording for the last message, or for a plain text: ``{question}`` in it stands for what
        the student is asked, ``{answer}`` for the reference answer, and any other name in braces
        for that column of the row, such as a worked solution. Other braces are literal.
    system_prompt : str, optional
        The teacher's first message, in place of the student's system message. An empty text leaves
        the system message out.
    chat_template_kwargs : mapping, optional
        Variables for the chat template that differ from the student's.
    template : {"student", "own"}
        Whose chat template forms the teacher's prompts.

    Raises
    ------
    ConfigError
        A value is not of its kind, or `prompt` names nothing in braces.

    Examples
    --------
    >>> context = TeacherContext(prompt="{question} (The answer is {answer}.)")
    >>> context.of(Prompt("7", text="2+2=", answer="4")).text
    '2+2= (The answer is 4.)'
    """

    prompt: str | None = None
    system_prompt: str | None = None
    chat_template_kwargs: Mapping[str, Any] | None = None
    template: str = "student"

    def __post_init__(self) -> None:
        for name in ("prompt", "system_prompt"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise ConfigError(f"teacher_{name} = {shown(value)}; expected a text.")
        if self.template not in TEMPLATES:
            known = ", ".join(TEMPLATES)
            raise ConfigError(
                f"teacher_template = {shown(self.template)}; expected one of {known}."
            )
        if self.prompt is not None and not _NAME.search(self.prompt):
            raise ConfigError(
                f"teacher_prompt = {shown(self.prompt)}; expected {{question}} or another column's "
                "name in braces in it: the same text for all prompts asks nothing."
            )

    @property
    def is_shared(self) -> bool:
        """Whether nothing differs, apart from what a row has of its own."""
        return self == TeacherContext()

    def of(self, prompt: Prompt) -> Prompt:
        """Return what the teacher is asked in place of a prompt.

        Raises
        ------
        PromptError
            `prompt` here names a column that the row does not have, or that holds no text or
            number.
        """
        messages, text = prompt.messages, prompt.text
        if prompt.teacher is not None:
            own = prompt.teacher
            messages, text = ((), own) if isinstance(own, str) else (own, None)
        elif self.prompt is not None:
            wording = _filled(self.prompt, prompt)
            if text is None:
                messages = (*messages[:-1], {**messages[-1], "content": wording})
            else:
                text = wording
        if self.system_prompt is not None and messages and messages[0]["role"] in SYSTEM_ROLES:
            messages = messages[1:]
        meta = dict(prompt.meta)
        given = (
            meta.get("chat_template_kwargs"),
            self.chat_template_kwargs,
            meta.pop("teacher_chat_template_kwargs", None),
        )
        joined: dict[str, Any] = {}
        for variables in given:
            if variables is not None and not isinstance(variables, Mapping):
                raise PromptError(
                    f"teacher_chat_template_kwargs is {shown(variables)}; expected a mapping of "
                    "names to values."
                )
            joined |= variables or {}
        meta["chat_template_kwargs"] = joined
        return replace(prompt, messages=messages, text=text, meta=meta, teacher=None)


def teacher_prompts(
    prompts: Sequence[EncodedPrompt], prompt_index: Sequence[int]
) -> list[list[int]] | None:
    """Return each rollout's prompt as the teacher reads it; None if it is the student's."""
    if not prompts or prompts[0].teacher_ids is None:
        return None
    return [list(prompts[i].teacher_ids or ()) for i in prompt_index]


def _filled(wording: str, prompt: Prompt) -> str:
    known = {**prompt.meta, "answer": prompt.answer, "question": prompt.question}

    def value(match: re.Match[str]) -> str:
        found = known.get(match[1])
        if not isinstance(found, str | int | float) or isinstance(found, bool):
            has = ", ".join(sorted(shown(name) for name in known))
            raise PromptError(
                f"teacher_prompt names {match[0]}, which is {shown(found)} in this row; expected a "
                f"column with a text or a number, among {has}."
            )
        return str(found)

    return _NAME.sub(value, wording)
