"""Turn the text of a rollout into token ids again, and count how often that is exact."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from opdprobe.errors import PromptError, RolloutError
from opdprobe.models.chat_template import render, tokens, turn_end
from opdprobe.rollout.prompts import Prompt, encode_prompts
from opdprobe.rollout.rollout import Rollout

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Stands for what a message says, to find out what a template writes around it.
_SAID = "qopdprobe"
# Rounds before the question that are told apart in a text without special tokens.
_MOST_TURNS = 3
# A prompt is encoded once for all its rollouts; dumps keep those together.
_REMEMBERED = 1024


@dataclass
class TextCounts:
    """What became of the rows of text.

    Parameters
    ----------
    rows
        Number of rollouts.
    prompts_templated
        Prompts that the chat template formed anew: from messages, or from a text of which the
        special tokens had been taken out, and which the template gives again exactly.
    prompts_as_text
        Prompts encoded as they stand, special tokens in the text included.
    prompts_same, responses_same
        Those whose token ids decode to the text in the dump.
    ends_in_text
        Responses whose text ends with an end token.
    ends_appended
        Responses that ended by themselves, as the dump says, and got an end token.
    ends_unknown
        Responses of which the dump does not say whether they ended.
    """

    rows: int = 0
    prompts_templated: int = 0
    prompts_as_text: int = 0
    prompts_same: int = 0
    responses_same: int = 0
    ends_in_text: int = 0
    ends_appended: int = 0
    ends_unknown: int = 0


class TextEncoder:
    """Tokenises rollouts of text with the student's tokenizer.

    Parameters
    ----------
    tokenizer : transformers.PreTrainedTokenizerBase
        The student's.
    eos_ids : sequence of int
        The tokens that end a response.
    chat_template_kwargs : mapping, optional
        Variables for the chat template: those that the trainer used. By default none, as
        trainers do.

    Attributes
    ----------
    counts : TextCounts
        Of the rollouts encoded so far.

    Examples
    --------
    >>> from opdprobe.testing import tiny_tokenizer
    >>> tokenizer = tiny_tokenizer()
    >>> encoder = TextEncoder(tokenizer, [tokenizer.eos_token_id])
    >>> asked = [{"role": "user", "content": "7 8"}]
    >>> rollout = encoder(Rollout(0, "a", prompt=asked, response="9"))
    >>> tokenizer.decode(rollout.prompt_ids), rollout.response_ids, rollout.finished
    ('<bos> <user> 7 8 <assistant>', [15], None)
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        eos_ids: Sequence[int],
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ):
        self.counts = TextCounts()
        self._tokenizer, self._eos = tokenizer, set(eos_ids)
        given = chat_template_kwargs or {}
        self._options = {name: value for name, value in given.items() if value is not None}
        self._templates = _stripped_templates(tokenizer, self._options)
        self._special = [
            token for token in map(str, tokenizer.added_tokens_decoder.values()) if token.strip()
        ]
        end = turn_end(tokenizer)
        ended = [index for index in (end.ids if end else ()) if index in self._eos]
        self._end_of_turn = (ended or sorted(self._eos) or [None])[0]
        self._prompts: OrderedDict[Any, tuple[list[int], bool, bool]] = OrderedDict()

    def __call__(self, rollout: Rollout) -> Rollout:
        """Return the rollout with token ids.

        One that has them is returned as it is, but is finished if its last token is an end token.

        Raises
        ------
        RolloutError
            It has neither, or its prompt cannot be encoded.
        """
        if rollout.response_ids is not None:
            ended = rollout.finished is None and self._eos.intersection(rollout.response_ids[-1:])
            return replace(rollout, finished=True) if ended else rollout
        if rollout.prompt is None or rollout.response is None:
            raise RolloutError(
                f"{rollout.source}: neither token ids nor text; expected one of them."
            )
        try:
            prompt, is_templated, is_same = self._prompt(rollout.prompt)
            response = tokens(self._tokenizer, rollout.response, add_special_tokens=False)
        except PromptError as error:
            raise RolloutError(f"{rollout.source}: {error}") from error
        if not prompt:
            raise RolloutError(f"{rollout.source}: the prompt has no tokens; expected some.")
        counts = self.counts
        counts.rows += 1
        counts.prompts_templated += is_templated
        counts.prompts_as_text += not is_templated
        counts.prompts_same += is_same
        counts.responses_same += _decoded(self._tokenizer, response) == rollout.response
        finished = rollout.finished
        if response and response[-1] in self._eos:
            counts.ends_in_text += 1
            finished = True
        elif finished and self._end_of_turn is not None:
            counts.ends_appended += 1
            response = [*response, self._end_of_turn]
        counts.ends_unknown += finished is None
        return replace(
            rollout,
            prompt_ids=prompt,
            response_ids=response,
            finished=finished,
        )

    def _prompt(self, prompt: str | Sequence[Mapping[str, Any]]) -> tuple[list[int], bool, bool]:
        """Token ids; whether the template formed them; whether they decode to the dump's text."""
        key = prompt if isinstance(prompt, str) else repr(prompt)
        if key in self._prompts:
            self._prompts.move_to_end(key)
        else:
            self._prompts[key] = self._encoded(prompt)
            if len(self._prompts) > _REMEMBERED:
                self._prompts.popitem(last=False)
        return self._prompts[key]

    def _encoded(self, prompt: str | Sequence[Mapping[str, Any]]) -> tuple[list[int], bool, bool]:
        if not isinstance(prompt, str):
            return self._conversation(prompt), True, True
        if not any(token in prompt for token in self._special):
            for template in self._templates:
                if (messages := template.read(prompt)) is not None:
                    ids = self._conversation(messages, template.options)
                    if _decoded(self._tokenizer, ids, skip_special_tokens=True) == prompt:
                        return ids, True, True
            plain = [Prompt("0", text=prompt)]
            (encoded,) = encode_prompts(self._tokenizer, plain, max_prompt_length=10**9)
            ids = list(encoded.ids)
            return ids, False, _decoded(self._tokenizer, ids, skip_special_tokens=True) == prompt
        # The template's tokens are in the text, a first token among them.
        ids = tokens(self._tokenizer, prompt, add_special_tokens=False)
        return ids, False, _decoded(self._tokenizer, ids) == prompt

    def _conversation(
        self, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any] | None = None
    ) -> list[int]:
        options = self._options if options is None else options
        if self._tokenizer.chat_template is None:
            raise PromptError(
                "the prompt is a conversation, but the student's tokenizer has no chat template: "
                "load the tokenizer that the trainer used."
            )
        text = render(self._tokenizer, messages, options)
        return tokens(self._tokenizer, text, add_special_tokens=False)


@dataclass(frozen=True)
class _Stripped:
    """What is left of a template's prompt once its special tokens are taken out."""

    between: tuple[str, ...]  # before the first message, between messages, after the last
    roles: tuple[str, ...]
    options: Mapping[str, Any]
    answer: str  # what is between a question and its answer

    def read(self, text: str) -> list[dict[str, str]] | None:
        """Return the conversation that a text says, if it may have this form."""
        first, *inner, last = self.between
        if len(text) < len(first + last) or not (text.startswith(first) and text.endswith(last)):
            return None
        said = [text[len(first) : len(text) - len(last)]]
        for separator in inner:
            before, found, after = said[-1].partition(separator)
            if not found:
                return None
            said[-1:] = [before, after]
        # What begins an answer, inside a message, is another turn: more than are told apart.
        if any(self.answer in content for content in said):
            return None
        return [
            {"role": role, "content": content}
            for role, content in zip(self.roles, said, strict=True)
        ]


def _stripped_templates(
    tokenizer: PreTrainedTokenizerBase, options: Mapping[str, Any]
) -> list[_Stripped]:
    """Forms of a prompt without its special tokens, those of many turns first."""
    if tokenizer.chat_template is None:
        return []
    forms: list[_Stripped] = []
    # The text itself tells whether thinking was on.
    thinking = [{**options, "enable_thinking": value} for value in (False, True)]
    for chosen in (options, *thinking):
        for first in ((), ("system",)):
            longer: _Stripped | None = None
            for more in range(_MOST_TURNS, -1, -1):
                roles = (*first, "user", *("assistant", "user") * more)
                between = _between(tokenizer, roles, chosen)
                if between is not None:
                    answer = longer.answer if longer else between[len(first) + 1]
                    longer = _Stripped(between, roles, chosen, answer)
                    forms.append(longer)
    return sorted(forms, key=lambda form: -len(form.roles))


def _between(
    tokenizer: PreTrainedTokenizerBase, roles: tuple[str, ...], options: Mapping[str, Any]
) -> tuple[str, ...] | None:
    """What a template writes around the messages, special tokens left out."""
    said = [f"{_SAID}{i}x" for i in range(len(roles))]
    messages = [
        {"role": role, "content": content} for role, content in zip(roles, said, strict=True)
    ]
    try:
        text = render(tokenizer, messages, options)
        ids = tokens(tokenizer, text, add_special_tokens=False)
    except PromptError:  # a template may have no system message
        return None
    between: list[str] = [_decoded(tokenizer, ids, skip_special_tokens=True)]
    for word in said:
        between[-1:] = between[-1].split(word)
    # A template that leaves no mark fits any text: then nothing tells that it was used.
    if len(between) != len(said) + 1 or not all(part.strip() for part in between[1:]):
        return None
    return tuple(between)


def _decoded(
    tokenizer: PreTrainedTokenizerBase, ids: list[int], *, skip_special_tokens: bool = False
) -> str:
    text = tokenizer.decode(
        ids, skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
    )
    assert isinstance(text, str)  # one sequence was given
    return text
