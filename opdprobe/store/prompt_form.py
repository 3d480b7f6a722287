"""Say in words what a run's prompts depend on besides their texts."""

from collections.abc import Mapping
from typing import Any

# The paper's, which differs from that of Qwen3's chat template.
DEFAULTS = {"enable_thinking": False}
"""Variables that every chat template gets unless a setting or a row names them."""


def prompt_form(attrs: Mapping[str, Any]) -> str | None:
    """Describe how a run's prompts went through the chat template.

    Parameters
    ----------
    attrs : mapping
        A run's attributes, or a preflight's settings. Reads `chat_template`, which
        `opdprobe.rollout.prompt_attrs` makes.

    Returns
    -------
    str or None
        None if nothing was recorded: the run is older, or does not make its prompts.

    Examples
    --------
    >>> prompt_form({"chat_template": {"variables": {"enable_thinking": False}}})
    'enable_thinking = False (default)'
    >>> prompt_form({"chat_template": {"variables": {"effort": None}, "system_prompt": "Add."}})
    "effort = the chat template's own default; system prompt 'Add.'"
    >>> prompt_form({"chat_template": {"variables": {"x": 1}, "own_variables": 2, "prompts": 64}})
    'x = 1; 2 of 64 prompts have their own values'
    >>> prompt_form({"chat_template": {"prompts": 2, "teacher": {"prompts": 2, "template": "own"}}})
    'no system prompt, no template variables; the teacher reads 2 of 2 prompts in another form, its
    own chat template'
    """
    found = attrs.get("chat_template")
    if not isinstance(found, Mapping):
        return None
    total = found.get("prompts", 0)
    parts = []
    variables = found.get("variables")
    if isinstance(variables, Mapping) and variables:
        parts.append(", ".join(_value(str(name), value) for name, value in variables.items()))
    if own := found.get("own_variables"):
        parts.append(f"{own} of {total} prompts have their own values")
    own = found.get("own_system_prompts")
    some = f"{own} of {total} prompts have their own" if own else ""
    if (system := found.get("system_prompt")) is not None:
        parts.append(f"system prompt {system!r}" + (f" ({some})" if some else ""))
    elif some:
        parts.append(f"{some} system prompt")
    text = "; ".join(parts) or "no system prompt, no template variables"
    teacher = found.get("teacher")
    return f"{text}; {_teacher(teacher, total)}" if isinstance(teacher, Mapping) else text


def _teacher(found: Mapping[str, Any], total: object) -> str:
    """Say how the teacher's prompts differ."""
    parts = [f"the teacher reads {found.get('prompts')} of {total} prompts in another form"]
    if found.get("template") == "own":
        parts.append("its own chat template")
    if (prompt := found.get("prompt")) is not None:
        parts.append(f"worded {prompt!r}")
    if (system := found.get("system_prompt")) is not None:
        parts.append(f"system prompt {system!r}" if system else "no system prompt")
    given = found.get("chat_template_kwargs")
    if isinstance(given, Mapping):
        parts += [f"{name} = {value!r}" for name, value in given.items()]
    return ", ".join(parts)


def _value(name: str, value: object) -> str:
    if value is None:
        return f"{name} = the chat template's own default"
    default = name in DEFAULTS and value == DEFAULTS[name]
    return f"{name} = {value!r}" + (" (default)" if default else "")
