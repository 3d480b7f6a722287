"""What a chat template does: render a conversation, end a turn, read variables.

Nothing here knows a model by its name: everything is found by parsing and rendering the template.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension

from opdprobe.errors import ModelError, PromptError, shown
from opdprobe.models.in_time import in_time
from opdprobe.models.template_process import render_apart

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# What a template may raise: it is a program.
_FAILURES = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
    MemoryError,
)
_SLOWEST = 10_000  # characters that a tokenizer turns into tokens in a second; most do a million
_SECONDS = 10.0  # of computing, for one conversation: a template takes milliseconds
# What transformers and other libraries give to every template.
_STANDARD = {
    "messages",
    "conversation",
    "documents",
    "add_generation_prompt",
    "continue_final_message",
    "raise_exception",
    "strftime_now",
    "loop",
    *(f"{name}_token" for name in ("bos", "eos", "unk", "pad", "sep", "cls", "mask")),
}
# Values tried in place of a variable: a switch tells the first two apart, a text the others.
_TRIED = ((True, False), ("low", "high"))
# Stands for an assistant's answer.
_ANSWER = "opdprobe"


def render(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, str]],
    options: Mapping[str, Any],
    *,
    add_generation_prompt: bool = True,
) -> str:
    """Apply a tokenizer's chat template.

    Parameters
    ----------
    tokenizer : transformers.PreTrainedTokenizerBase
        Has a chat template.
    messages : sequence of {"role": str, "content": str}
        The conversation.
    options : mapping
        Variables for the template, besides those that transformers gives it.
    add_generation_prompt : bool
        Whether to open the assistant's turn.

    Returns
    -------
    str
        The text, with the special tokens that the template writes.

    Raises
    ------
    PromptError
        The template refuses the conversation, or fails.
    """
    from transformers import PreTrainedTokenizerBase  # prompt files are read without it

    given = {"add_generation_prompt": add_generation_prompt, **options}
    conversation = [dict(message) for message in messages]
    try:
        applies = getattr(type(tokenizer), "apply_chat_template", None)
        if applies is not PreTrainedTokenizerBase.apply_chat_template:
            # It applies no template of the model's files, or is the user's own.
            text = tokenizer.apply_chat_template(conversation, tokenize=False, **given)
        else:
            text = render_apart(
                tokenizer.get_chat_template(),
                {name: _plain(token) for name, token in tokenizer.special_tokens_map.items()},
                conversation,
                given,
                seconds=_SECONDS,
            )
    except _FAILURES as error:
        raise PromptError(f"the chat template fails: {error}.") from error
    assert isinstance(text, str)  # tokenize=False
    return text


def _plain(token: Any) -> Any:
    return [str(one) for one in token] if isinstance(token, list | tuple) else str(token)


def reserved_names(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """Names that transformers takes itself: they would replace the template, or what it returns."""
    parameters = inspect.signature(type(tokenizer).apply_chat_template).parameters.values()
    return {p.name for p in parameters if p.kind is not p.VAR_KEYWORD}


def variables(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Names that a tokenizer's chat template reads and that a user can give, sorted.

    Tools are left out: opdprobe's prompts have none. Names of the template's own may be among them.
    """
    return sorted(
        name
        for name in _names(_source(tokenizer))
        if name not in _STANDARD and not name.endswith("tools")
    )


def unread(tokenizer: PreTrainedTokenizerBase, names: Iterable[str]) -> list[str]:
    """Those of some names that a tokenizer's chat template does not read, sorted."""
    return sorted(set(names) - _names(_source(tokenizer)))


def changing_variables(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, str]],
    options: Mapping[str, Any],
) -> list[str]:
    """Find the template's variables on which a conversation's prompt depends.

    Each variable is tried with other values: True and False, and two texts.

    Parameters
    ----------
    tokenizer, messages, options
        As for `render`.

    Returns
    -------
    list of str
        Names, sorted: ``enable_thinking`` for a template that can switch thinking on and off.

    Examples
    --------
    >>> from opdprobe.testing import tiny_tokenizer
    >>> tokenizer = tiny_tokenizer()
    >>> tokenizer.chat_template += "{% if enable_thinking %} 7{% endif %}{% if loud %}{% endif %}"
    >>> changing_variables(tokenizer, [{"role": "user", "content": "8"}], {})
    ['enable_thinking']
    """

    def rendered(name: str, value: object) -> str | None:
        try:
            return render(tokenizer, messages, {**options, name: value})
        except PromptError:
            return None

    found = []
    for name in variables(tokenizer):
        for one, other in _TRIED:
            pair = rendered(name, one), rendered(name, other)
            if None not in pair and pair[0] != pair[1]:
                found.append(name)
                break
    return found


class TurnEnd(NamedTuple):
    """How a chat template ends an assistant's turn.

    Attributes
    ----------
    text : str
        What it writes after the answer, without blanks round it.
    ids : tuple of int
        The special tokens in it, in order, or its only token; empty if it is plain text.
    """

    text: str
    ids: tuple[int, ...]


def turn_end(tokenizer: PreTrainedTokenizerBase) -> TurnEnd | None:
    """Find what a tokenizer's chat template writes after an assistant's answer.

    Parameters
    ----------
    tokenizer : transformers.PreTrainedTokenizerBase
        A model that has learnt its template ends its answers in this way.

    Returns
    -------
    TurnEnd or None
        None if there is no template, it writes nothing there, or refuses a short conversation.

    Examples
    --------
    >>> from opdprobe.testing import tiny_tokenizer
    >>> tokenizer = tiny_tokenizer()
    >>> turn_end(tokenizer) is None
    True
    >>> tokenizer.chat_template = "{% for m in messages %}{{ m.content }} <eos> {% endfor %}"
    >>> turn_end(tokenizer)
    TurnEnd(text='<eos>', ids=(2,))
    """
    if _source(tokenizer) is None:
        return None
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _ANSWER}]
    try:
        text = render(tokenizer, messages, {}, add_generation_prompt=False)
        _, answer, end = text.rpartition(_ANSWER)
        end = end.strip()
        if not (answer and end):
            return None
        ids = tokens(tokenizer, end, add_special_tokens=False)
    except PromptError:
        return None
    special = set(tokenizer.added_tokens_decoder) | set(tokenizer.all_special_ids)
    special.discard(tokenizer.unk_token_id)
    found = [index for index in ids if index in special]
    alone = ids if len(ids) == 1 and ids[0] != tokenizer.unk_token_id else ()
    return TurnEnd(end, tuple(found or alone))


def tokens(
    tokenizer: PreTrainedTokenizerBase, text: str, *, add_special_tokens: bool = True
) -> list[int]:
    """Turn a text into token ids.

    Raises
    ------
    PromptError
        A word-level tokenizer has no token for a word, and none for unknown words; or its rules
        fail.
    ModelError
        It takes far more time than tokenizers do: a regular expression may try very many ways.
    """
    seconds = _SECONDS + len(text) / _SLOWEST
    try:
        ids, error = in_time(
            lambda: tokenizer(text, add_special_tokens=add_special_tokens), seconds
        )
    except TimeoutError as late:
        raise ModelError(
            f"the tokenizer took more than {seconds:.3g} s for one text: a rule of its "
            "tokenizer.json tries very many ways; take the tokenizer from the model's author."
        ) from late
    # After the tokenizer has shown that it takes no long time.
    if unknown := _unknown_words(tokenizer, text):
        raise PromptError(
            f"the tokenizer has no token for {shown(unknown)}, and none for unknown words."
        ) from error
    if error is None:
        return ids.input_ids
    # The Rust part raises a bare Exception, or panics where an expression tries too many ways.
    if type(error) is Exception or type(error).__name__ == "PanicException":
        reason = str(error).partition("\n")[0].rstrip(".")
        raise PromptError(f"the tokenizer fails: {reason}.") from error
    raise error


def _unknown_words(tokenizer: PreTrainedTokenizerBase, text: str) -> list[str]:
    """Words on which a word-level tokenizer would raise a bare Exception."""
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    model = getattr(backend, "model", None)
    if type(model).__name__ != "WordLevel" or tokenizer.unk_token is not None:
        return []
    split = backend.pre_tokenizer
    words = [word for word, _ in split.pre_tokenize_str(text)] if split else [text]
    return [word for word in dict.fromkeys(words) if backend.token_to_id(word) is None]


def _source(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The text of the template that transformers would apply."""
    given = tokenizer.chat_template
    if isinstance(given, dict):  # several by name
        given = given.get("default")
    return given if isinstance(given, str) else None


class _Generation(Extension):
    """Reads the tag by which transformers marks the assistant's text."""

    tags = {"generation"}  # noqa: RUF012  # as jinja2 declares it

    def parse(self, parser: Any) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@lru_cache(maxsize=64)
def _names(template: str | None) -> frozenset[str]:
    """Names that a template reads, functions of jinja2 left out; none without a template."""
    environment = jinja2.Environment(extensions=["jinja2.ext.loopcontrols", _Generation])
    try:
        tree = environment.parse(template or "")
        read = {name.name for name in tree.find_all(nodes.Name) if name.ctx == "load"}
    except _FAILURES:  # also of one that is nested too deeply, or has endless numbers
        return frozenset()  # reported when it is applied
    return frozenset(read - set(environment.globals))
