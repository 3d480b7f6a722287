r"""A prompt, its wording, and its token ids.

Two kinds, as in TRL: a *conversation* (a list of role and content) goes through the tokenizer's
chat template; a plain *text* reaches the model as it is.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from opdprobe.errors import ConfigError, PromptError, shown
from opdprobe.models.chat_template import render, reserved_names, tokens, unread, variables
from opdprobe.rollout.prompt import (
    BOXED_TEMPLATE,
    DAPO_TEMPLATE,
    SYSTEM_ROLES,
    EncodedPrompt,
    OnError,
    Prompt,
    report_faults,
    strip_instruction,
)
from opdprobe.rollout.teacher_context import TeacherContext
from opdprobe.store.prompt_form import DEFAULTS

if TYPE_CHECKING:
    from pathlib import Path

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


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt] | str | Path,
    *,
    max_prompt_length: int = 1024,
    template: str | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    system_prompt: str | None = None,
    enable_thinking: bool = DEFAULTS["enable_thinking"],
    on_error: OnError = "raise",
    teacher: TeacherContext | None = None,
    teacher_tokenizer: PreTrainedTokenizerBase | None = None,
) -> list[EncodedPrompt]:
    r"""Turn prompts into token ids.

    A conversation goes through the tokenizer's chat template, up to where the answer begins. If
    the tokenizer has none, the messages' contents are joined by blank lines, without roles, and
    encoded as a plain text: with the special tokens that the tokenizer puts before any text. Those
    that it puts after a text (an end token, under ``add_eos_token``) are taken off, with a note in
    the log: the models would see a finished text.

    Parameters
    ----------
    tokenizer : transformers.PreTrainedTokenizerBase
        The student's.
    prompts : sequence of Prompt, str or Path
        The prompts; or what `opdprobe.load_prompts` reads; or rows, as for `prompts_from_rows`.
    max_prompt_length : int
        The longest prompt allowed, in tokens (paper Table 2: 1024). No prompt is truncated: half a
        question is another question.
    template : str, optional
        A wording that replaces the prompts' own: ``{question}`` in it stands for the question
        without the instructions it came with (`strip_instruction`). Other braces are literal.
        This is how student prompts take the form that the teacher was trained on (paper sect.
        5.2): `BOXED_TEMPLATE`, `DAPO_TEMPLATE`, or your own.
    chat_template_kwargs : mapping, optional
        Variables for the chat template, as in TRL, such as {"enable_thinking": True}. A prompt's
        own column `chat_template_kwargs` precedes them.
    system_prompt : str, optional
        First message of every conversation that has no system message of its own. A plain text
        gets none.
    enable_thinking : bool
        The value for the chat template where neither of the above names it; the paper's Qwen3 runs
        have it off (paper sect. 4).
    on_error : {"raise", "skip"}
        Whether an unusable prompt raises an error, or is left out and logged.
    teacher : TeacherContext, optional
        How the teacher's prompts differ; by default, only in what rows have of their own. They may
        be longer than `max_prompt_length`.
    teacher_tokenizer : transformers.PreTrainedTokenizerBase, optional
        The teacher's, for its own chat template.

    Returns
    -------
    list of EncodedPrompt
        In the prompts' order, each with the prompt it came from. Where the teacher sees any prompt
        in another form, all have `teacher_ids`.

    Raises
    ------
    PromptError
        Prompts are too long, have no tokens, or are refused by the chat template (listed by index,
        from 0), or no prompt is usable; the latter with "skip" too.
    ConfigError
        `template` does not contain ``{question}``, `max_prompt_length` is below 1,
        `chat_template_kwargs` holds other names than variables, or `system_prompt` is no text; the
        teacher's own chat template is asked for, and `teacher_tokenizer` has none.
    """
    from opdprobe.rollout.prompt_files import as_prompts  # it imports this module

    prompts = as_prompts(prompts, on_error=on_error)
    if template is not None and "{question}" not in template:
        raise ConfigError(f"template = {shown(template)}; expected {{question}} in it.")
    if max_prompt_length < 1:
        raise ConfigError(f"max_prompt_length = {max_prompt_length}; expected 1 or more.")
    if system_prompt is not None and not isinstance(system_prompt, str):
        raise ConfigError(f"system_prompt = {shown(system_prompt)}; expected a text.")
    try:
        given = _options(tokenizer, chat_template_kwargs)
    except PromptError as error:
        raise ConfigError(str(error)) from error
    encode = _Encoder(
        tokenizer, template, {"enable_thinking": enable_thinking, **given}, system_prompt
    )
    context = TeacherContext() if teacher is None else teacher
    encode_own = _teacher_encoder(encode, context, teacher_tokenizer)
    encoded: list[EncodedPrompt] = []
    faults: list[str] = []
    too_long = False
    for number, prompt in enumerate(prompts):
        try:
            ids = encode(prompt)
            if not ids:
                raise PromptError("no tokens.")
            if len(ids) > max_prompt_length:
                too_long = True
                raise PromptError(
                    f"{len(ids)} tokens, more than max_prompt_length {max_prompt_length}."
                )
            own = tuple(ids)
            if not context.is_shared or prompt.has_own_teacher:
                own = tuple(encode_own(context.of(encode.asked(prompt))))
                if not own:
                    raise PromptError("no tokens in the teacher's prompt.")
        except PromptError as error:
            faults.append(f"row {number} (id {shown(prompt.id)}): {error}".rstrip("."))
        else:
            encoded.append(EncodedPrompt(prompt, tuple(ids), own))
    report_faults(
        "encode_prompts",
        faults,
        len(prompts),
        kept=len(encoded),
        on_error=on_error,
        cure=", raise max_prompt_length (--max-prompt-length)" if too_long else "",
    )
    encode.report(given, [prompt.prompt for prompt in encoded])
    if all(prompt.teacher_ids == prompt.ids for prompt in encoded):
        encoded = [replace(prompt, teacher_ids=None) for prompt in encoded]
        if not context.is_shared:
            logger.warning(
                "What was asked for the teacher's prompts changes none of them: both models read "
                "the same."
            )
    return encoded


def _teacher_encoder(
    student: _Encoder, context: TeacherContext, tokenizer: PreTrainedTokenizerBase | None
) -> _Encoder:
    """Return the encoder of the teacher's prompts; their wording is already the teacher's."""
    if context.template == "own":
        if tokenizer is None or tokenizer.chat_template is None:
            raise ConfigError(
                "teacher_template = 'own', but the teacher's tokenizer "
                f"{'is not known' if tokenizer is None else 'has no chat template'}; expected "
                "teacher_tokenizer= with one, or teacher_template = 'student'."
            )
    else:
        tokenizer = student.tokenizer
    try:
        _options(tokenizer, context.chat_template_kwargs)
    except PromptError as error:
        raise ConfigError(f"teacher_{error}") from error
    system = student.system_prompt if context.system_prompt is None else context.system_prompt
    return _Encoder(tokenizer, None, student.options, system or None)


def has_conversation(prompts: Iterable[EncodedPrompt]) -> bool:
    """Return whether any prompt is a conversation, which a chat template may have formed."""
    return any(prompt.prompt.text is None for prompt in prompts)


class _Encoder:
    """Encode one prompt after another, and count what is worth a note in the log."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: str | None,
        options: Mapping[str, Any],
        system_prompt: str | None,
    ):
        self.tokenizer, self.template = tokenizer, template
        self.options, self.system_prompt = options, system_prompt
        self.appended: Counter[str] = Counter()  # texts of the tokens that were taken off
        self.without_system = 0

    def asked(self, prompt: Prompt) -> Prompt:
        """Return a prompt in the wording that replaces its own, if any does."""
        if self.template is None:
            return prompt
        question = self.template.replace("{question}", strip_instruction(prompt.question))
        if prompt.text is not None:
            return replace(prompt, text=question)
        last = {**prompt.messages[-1], "content": question}
        return replace(prompt, messages=(*prompt.messages[:-1], last))

    def __call__(self, prompt: Prompt) -> list[int]:
        prompt = self.asked(prompt)
        if prompt.text is not None:
            return self._plain(prompt.text)
        messages = with_system_prompt(prompt.messages, self.system_prompt)
        options = {**self.options, **own_options(self.tokenizer, prompt)}
        if self.tokenizer.chat_template is None:
            return self._plain("\n\n".join(message["content"] for message in messages))
        text = render(self.tokenizer, messages, options)
        added = len(messages) > len(prompt.messages)
        self.without_system += added and messages[0]["content"].strip() not in text
        # The chat template writes the special tokens itself.
        return tokens(self.tokenizer, text, add_special_tokens=False)

    def _plain(self, text: str) -> list[int]:
        """Encode a text as the beginning of one: without special tokens that would end it."""
        ids = tokens(self.tokenizer, text)
        bare = tokens(self.tokenizer, text, add_special_tokens=False)
        starts = range(len(ids) - len(bare) + 1) if bare else ()
        start = next((i for i in starts if ids[i : i + len(bare)] == bare), None)
        if start is not None:
            end = start + len(bare)
        else:  # the tokenizer splits the text in another way between special tokens
            end = len(ids) - (ids[-1:] == [self.tokenizer.eos_token_id] != bare[-1:])
        if not set(ids[end:]) <= set(self.tokenizer.all_special_ids):
            return ids
        if ids[end:]:
            self.appended[str(self.tokenizer.decode(ids[end:]))] += 1
        return ids[:end]

    def report(self, given: Mapping[str, Any], prompts: Sequence[Prompt]) -> None:
        """Log what the prompts did not take over."""
        for end, count in self.appended.items():
            logger.warning(
                "The tokenizer appends its end token %r to plain prompts; it is taken off %d of "
                "them, since the models would see finished texts. A tokenizer with "
                "add_eos_token=False does not append it.",
                *(end, count),
            )
        if self.without_system:
            logger.warning(
                "The chat template leaves out the system prompt in %d prompts: put it into the "
                "questions.",
                self.without_system,
            )
        conversations = [prompt for prompt in prompts if prompt.text is None]
        plain = len(prompts) - len(conversations)
        if plain and self.system_prompt is not None:
            logger.warning(
                "%d prompts are plain texts and get no system prompt: give them as messages.", plain
            )
        templated = [] if self.tokenizer.chat_template is None else conversations
        if given and not templated:
            logger.warning(
                "chat_template_kwargs change nothing, since no prompt goes through a chat template."
            )
        names = {name for p in templated for name in own_options(self.tokenizer, p)}
        if useless := unread(self.tokenizer, names | (set(given) if templated else set())):
            logger.warning(
                "chat_template_kwargs: the chat template does not read %s, which changes nothing; "
                "it reads %s.",
                ", ".join(useless),
                ", ".join(variables(self.tokenizer)) or "no variables",
            )


def with_system_prompt(
    messages: Sequence[Mapping[str, str]], system_prompt: str | None
) -> list[Mapping[str, str]]:
    """Put a system prompt before a conversation that has none."""
    if system_prompt is None or messages[0]["role"] in SYSTEM_ROLES:
        return list(messages)
    return [{"role": "system", "content": system_prompt}, *messages]


def own_options(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> dict[str, Any]:
    """Variables that the prompt's row has for the chat template."""
    return _options(tokenizer, prompt.meta.get("chat_template_kwargs"))


def _options(tokenizer: PreTrainedTokenizerBase, given: object) -> dict[str, Any]:
    """Check variables for the chat template; one that is None is not given."""
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise PromptError(
            f"chat_template_kwargs is of type {type(given).__name__}; expected a mapping of names "
            "to values."
        )
    # In a parquet file, each row has the names of all rows.
    options = {name: value for name, value in given.items() if value is not None}
    taken = reserved_names(tokenizer)
    if refused := sorted(shown(name) for name in options if name in taken or not _is_name(name)):
        raise PromptError(
            f"chat_template_kwargs has {', '.join(refused)}; expected names that the chat template "
            "reads, such as enable_thinking."
        )
    return options


def _is_name(name: object) -> bool:
    return isinstance(name, str) and name.isidentifier()
