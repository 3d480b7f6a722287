"""Read JSON and YAML from untrusted files.

The parsers fail in more ways than their documentation names, and YAML's references let one line of
text expand to gigabytes.
"""

import json
import re
from typing import Any

import yaml

from opdprobe.errors import shown
from opdprobe.store.budget import MOST_YAML


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
    """YAML of plain values: those that JSON has, too.

    Numbers of base 60 (``1:30``) and dates are texts, since the time that the former take grows
    with the square of their length.
    """

    def compose_node(self, parent: Any, index: Any) -> Any:
        alias = self.check_event(yaml.AliasEvent)
        node: Any = super().compose_node(parent, index)
        if alias and not isinstance(node, yaml.ScalarNode):
            # Nine lists of nine references each stand for a list of 387 million.
            raise yaml.YAMLError("a reference (*name) to a list or mapping; write it out")
        if alias and len(node.value) > _MOST_REFERRED:
            raise yaml.YAMLError(
                f"a reference (*name) to a text of {len(node.value)} characters; write it out"
            )
        return node

    def construct_scalar(self, node: Any) -> Any:
        value = super().construct_scalar(node)
        if node.tag in _NUMBERS and (":" in value or len(value) > _MOST_DIGITS):
            # Python writes no number of more than 4300 digits; it reads one that is not decimal.
            why = "is not a number" if ":" in value else "has more than 4300 characters"
            raise yaml.YAMLError(f"{shown(value)} {why}")
        if node.tag == _NUMBERS[0] and len(value) > _MOST_DIGITS // 2 and "x" in value.lower():
            raise yaml.YAMLError(f"{shown(value)} has too many digits")
        return value


_PREFIX = "tag:yaml.org,2002:"
_NUMBERS = (f"{_PREFIX}int", f"{_PREFIX}float")
_PLAIN = {_PREFIX + name for name in ("null", "bool", "int", "float", "str", "seq", "map")}
_MOST_DIGITS = 4300
_MOST_REFERRED = 200  # characters of a text that references stand for
_DECIMAL = {  # PyYAML's own forms, without those of base 60
    _NUMBERS[0]: re.compile(r"[-+]?(0b[01_]+|0x[0-9a-fA-F_]+|0[0-7_]*|[1-9][0-9_]*)\Z"),
    _NUMBERS[1]: re.compile(
        r"([-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)([eE][-+][0-9]+)?"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))\Z"
    ),
}
_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, _DECIMAL.get(tag, form))
        for tag, form in known
        if tag in _PLAIN or tag == f"{_PREFIX}merge"
    ]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.yaml_constructors = {
    tag: make
    for tag, make in yaml.SafeLoader.yaml_constructors.items()
    if tag in _PLAIN or tag is None
}


def parse_yaml(text: str) -> Any:
    """Read one YAML document: null, bool, numbers, str, lists and dicts; dates are str.

    Raises
    ------
    ValueError
        The text is not YAML, is longer than 2**20 characters, names a type (``!!python/…``), refers
        to a list, a mapping or a long text elsewhere in it, or is nested too deeply.

    Examples
    --------
    >>> parse_yaml("k: 16")
    {'k': 16}
    >>> parse_yaml("!!python/object/apply:os.getcwd []")
    Traceback (most recent call last):
    ...
    ValueError: could not determine a constructor for the tag 'tag:yaml.org,2002:python/...
    """
    if len(text) > MOST_YAML:
        raise ValueError(f"{len(text)} characters; expected at most {MOST_YAML}")
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
