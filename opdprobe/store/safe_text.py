"""Read JSON and YAML from untrusted files.

The parsers fail in more ways than their documentation names, and YAML's references let one line of
text expand to gigabytes.
"""

import json
from typing import Any

import yaml


def parse_json(text: str | bytes) -> Any:
    """Read one JSON value.

    Raises
    ------
    ValueError
        The text is not JSON, is nested too deeply, or holds a number with too many digits.

    Examples
    --------
    >>> parse_json('{"step": 3}')
    {'step': 3}
    >>> parse_json("[" * 100_000)
    Traceback (most recent call last):
    ...
    ValueError: nested too deeply
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


class _Loader(yaml.SafeLoader):
    """YAML without tags that make objects, and without references to lists and mappings."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        alias = self.check_event(yaml.AliasEvent)
        node = super().compose_node(parent, index)
        if alias and not isinstance(node, yaml.ScalarNode):
            # Nine lists of nine references each stand for a list of 387 million.
            raise yaml.YAMLError("a reference (*name) to a list or mapping; write it out")
        return node


def parse_yaml(text: str) -> Any:
    """Read one YAML document: null, bool, numbers, str, dates, lists and dicts.

    Raises
    ------
    ValueError
        The text is not YAML, names a type (``!!python/…``), refers to a list or a mapping elsewhere
        in it, or is nested too deeply.

    Examples
    --------
    >>> parse_yaml("k: 16")
    {'k': 16}
    >>> parse_yaml("!!python/object/apply:os.getcwd []")
    Traceback (most recent call last):
    ...
    ValueError: could not determine a constructor for the tag 'tag:yaml.org,2002:python/...
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except (yaml.YAMLError, ValueError, AttributeError, LookupError, TypeError) as error:
        # PyYAML's constructors raise the last four for values such as 2026-13-01 or !!bool 7.
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error


def is_number(value: object) -> bool:
    """Return whether a parsed value is a number that a float can hold; NaN and infinities count.

    Examples
    --------
    >>> is_number(0.5), is_number(10**400), is_number(True), is_number("0.5")
    (True, False, False, False)
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        float(value)
    except OverflowError:
        return False
    return True
