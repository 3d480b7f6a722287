"""What a run stores about its prompts: which they are, and how they were made into token ids."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from opdprobe.models.chat_template import changing_variables
from opdprobe.rollout.prompt import SYSTEM_ROLES, EncodedPrompt
from opdprobe.rollout.prompts import own_options, with_system_prompt
from opdprobe.rollout.teacher_context import TeacherContext
from opdprobe.store.prompt_form import DEFAULTS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def prompt_set(encoded: Sequence[EncodedPrompt]) -> dict[str, Any]:
    """Identify a set of prompts; a resumed run detects another one by that.

    Returns
    -------
    dict
        ``count``, and ``hash`` over ids and token ids.
    """
    own = any(prompt.teacher_ids is not None for prompt in encoded)
    text = repr([(p.prompt.id, p.ids, p.teacher_ids)[: 3 if own else 2] for p in encoded])
    return {"count": len(encoded), "hash": hashlib.sha256(text.encode()).hexdigest()}


def template_attrs(
    tokenizer: "PreTrainedTokenizerBase",
    encoded: Sequence[EncodedPrompt],
    chat_template_kwargs: Mapping[str, Any] | None = None,
    system_prompt: str | None = None,
    teacher: TeacherContext | None = None,
) -> dict[str, Any]:
    """Describe how prompts went through the chat template, for a run's attributes.

    Parameters
    ----------
    tokenizer
        The student's.
    encoded
        The prompts, as `encode_prompts` returned them.
    chat_template_kwargs, system_prompt, teacher
        As they were given to `encode_prompts`.

    Returns
    -------
    dict
        ``variables``: those that were given, and those on which the first conversation depends,
        with their values; None stands for the template's own default. ``system_prompt``.
        ``own_variables``, ``own_system_prompts``: number of prompts whose rows have their own.
        ``prompts``: number of prompts. ``teacher``, if it reads other prompts: its settings, and
        how many prompts differ. `opdprobe.store.prompt_form.prompt_form` says it in words.
    """
    given = {k: v for k, v in (chat_template_kwargs or {}).items() if v is not None}
    conversations = [prompt.prompt for prompt in encoded if prompt.prompt.text is None]
    variables: dict[str, Any] = {}
    own_variables = 0
    if conversations and tokenizer.chat_template is not None:
        options = {**DEFAULTS, **given}
        messages = with_system_prompt(conversations[0].messages, system_prompt)
        changing = changing_variables(tokenizer, messages, options)
        variables = {name: options.get(name) for name in sorted({*changing, *given})}
        own_variables = sum(bool(own_options(tokenizer, prompt)) for prompt in conversations)
    own_system = sum(prompt.messages[0]["role"] in SYSTEM_ROLES for prompt in conversations)
    own = sum(p.teacher_ids is not None and p.teacher_ids != p.ids for p in encoded)
    return {
        **({"teacher": {**_given(teacher), "prompts": own}} if own else {}),
        "variables": json.loads(json.dumps(variables, default=str)),
        "own_variables": own_variables,
        "system_prompt": system_prompt,
        "own_system_prompts": own_system,
        "prompts": len(encoded),
    }


def _given(teacher: TeacherContext | None) -> dict[str, Any]:
    """Name what differs by setting, and not by row."""
    given, shared = vars(teacher or TeacherContext()), vars(TeacherContext())
    found = {name: value for name, value in given.items() if value != shared[name]}
    return json.loads(json.dumps(found, default=str))
