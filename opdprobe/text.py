"""Text from elsewhere: read without surprises, shown without harm.

A run, a configuration or a prompt file may come from anybody. The parsers of JSON and YAML have
more ways to fail than their documentation names, and YAML's references let a line of text stand for
gigabytes; a name can hold a sequence that repaints the terminal that shows it.
"""

import json
import reprlib
import unicodedata
from typing import Any

import yaml

# Control and format characters (among them those that turn the direction of writing), halves of
# surrogate pairs, and line breaks that are none in a terminal.
_HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def parse_json(text: str | bytes) -> Any:
    """Read one JSON value.

    Raises
    ------
    ValueError
        The text is no JSON, is nested too deeply, or holds a number of absurd length.

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
        The text is no YAML, names a type (``!!python/…``), refers to a list or a mapping elsewhere
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
        # PyYAML's constructors raise the last four for such values as 2026-13-01 or !!bool 7.
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error


def is_number(value: object) -> bool:
    """Say whether a parsed value is a number that a float can hold; NaN and infinities are.

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


def printable(text: str) -> str:
    r"""Write out what a terminal would obey or not show; line breaks stay.

    Examples
    --------
    >>> print(printable("\x1b[31mred\u202e"))
    \x1b[31mred\u202e
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        character.encode("unicode_escape").decode()
        if unicodedata.category(character) in _HIDDEN and character != "\n"
        else character
        for character in text
    )


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 120
_SHORT.maxdict = _SHORT.maxlist = _SHORT.maxtuple = 6
_SHORT.maxlevel = 3


def shown(value: object) -> str:
    """Give a value's repr, short enough for a message, however large the value.

    Examples
    --------
    >>> shown("text"), len(shown("x" * 10_000))
    ("'text'", 120)
    >>> shown(list(range(1000)))
    '[0, 1, 2, 3, 4, 5, ...]'
    """
    try:
        return _SHORT.repr(value)
    except ValueError:  # Python refuses to write an int of more than 4300 digits
        return f"a {type(value).__name__} too long to show"
