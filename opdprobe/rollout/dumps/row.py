"""A row of a dump, of which nothing is trusted: its values are checked as they are read."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opdprobe.errors import RolloutError, shown
from opdprobe.store.safe_text import is_number, parse_json

# Engines round: a log-probability may be a little above 0.
_TOLERANCE = 1e-3
_MOST = 2**31 - 1


@dataclass(frozen=True)
class Row:
    """One row of a dump.

    Parameters
    ----------
    data
        Values by column.
    source
        Where it was read: ``FILE:LINE`` or ``FILE, row N``. Messages begin with it.
    given_step
        The step in the file's name, else the one that the caller gave, if any.
    """

    data: Mapping[str, Any]
    source: str
    given_step: int | None = None

    def fault(self, what: str) -> RolloutError:
        """Return the error that says what is wrong with this row."""
        return RolloutError(f"{self.source}: {what}")

    def at(self, data: Any, what: str) -> Row:
        """Return a part of this row as a row of its own."""
        if not isinstance(data, Mapping):
            raise self.fault(f"{what} is {shown(data)}; expected an object.")
        return Row(data, f"{self.source}, {what}", self.given_step)

    def need(self, name: str) -> Any:
        """Return a value that must be there."""
        if (value := self.data.get(name)) is None:
            has = ", ".join(sorted(map(str, self.data))[:20])
            raise self.fault(f"no {name!r}; expected it among the row's columns, which are {has}.")
        return value

    def text(self, name: str) -> str:
        """Return a text."""
        return self.as_text(self.need(name), name)

    def as_text(self, value: Any, name: str) -> str:
        """Check a text that was found under `name`."""
        if not isinstance(value, str):
            raise self.fault(f"{name!r} is {shown(value)}; expected a text.")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise self.fault(
                f"{name!r} holds half a surrogate pair; expected Unicode text."
            ) from None
        return value

    def messages(self, name: str) -> list[dict[str, str]]:
        """Return a conversation: messages of a role and a text."""
        found = self.need(name)
        if isinstance(found, np.ndarray):
            found = found.tolist()
        return self.as_messages(found, name)

    def as_messages(self, found: Any, name: str) -> list[dict[str, str]]:
        """Check a conversation that was found under `name`."""
        if not isinstance(found, list) or not found:
            raise self.fault(f"{name!r} is {shown(found)}; expected a list of messages.")
        return [self._message(message, name) for message in found]

    def _message(self, message: Any, name: str) -> dict[str, str]:
        content = message.get("content") if isinstance(message, Mapping) else None
        if isinstance(content, list):
            parts = [p.get("text") if isinstance(p, Mapping) else None for p in content]
            texts = [part for part in parts if isinstance(part, str)]
            content = "".join(texts) if len(texts) == len(parts) else None
        if not isinstance(content, str) or not isinstance(message.get("role"), str):
            raise self.fault(
                f"{name!r} has the message {shown(message)}; expected a role and a content, both "
                "texts."
            )
        for part in (message["role"], content):
            self.as_text(part, name)
        return {"role": message["role"], "content": content}

    def prompt(self, name: str) -> str | list[dict[str, str]]:
        """Return a text or a conversation."""
        return self.text(name) if isinstance(self.need(name), str) else self.messages(name)

    def ids(self, name: str) -> list[int]:
        """Return token ids."""
        return self.as_ids(self.need(name), name)

    def as_ids(self, value: Any, name: str) -> list[int]:
        """Check token ids that were found under `name`."""
        ids = _plain(value)
        if not isinstance(ids, list) or not set(map(type, ids)) <= {int}:
            raise self.fault(f"{name!r} is {_first_other(ids, int)}; expected token ids.")
        if ids and (min(ids) < 0 or max(ids) > _MOST):
            bad = next(i for i in ids if not 0 <= i <= _MOST)
            raise self.fault(f"{name!r} holds {shown(bad)}; expected token ids, from 0 on.")
        return ids

    def logps(self, name: str, length: int) -> NDArray[np.float32] | None:
        """Return log-probabilities of `length` tokens, NaN where null; None if there are none."""
        value = self.data.get(name)
        return None if value is None else self.as_logps(value, name, length)

    def as_logps(self, value: Any, name: str, length: int) -> NDArray[np.float32]:
        """Check log-probabilities that were found under `name`."""
        found = _plain(value)
        if not isinstance(found, list) or not set(map(type, found)) <= {float, int, type(None)}:
            raise self.fault(f"{name!r} is {_first_other(found, float)}; expected numbers.")
        if len(found) != length:
            raise self.fault(
                f"{name!r} has {len(found)} values; expected one for each of {length} tokens."
            )
        try:
            logp = np.array(found, np.float64)
        except OverflowError:
            raise self.fault(f"{name!r} holds a number too large; expected ones <= 0.") from None
        if (bad := logp[logp > _TOLERANCE]).size:
            raise self.fault(f"{name!r} holds {bad[0]:g}; expected log-probabilities, <= 0.")
        return np.minimum(logp, 0.0).astype(np.float32)

    def mask(self, name: str, length: int) -> NDArray[np.bool_] | None:
        """Return which of `length` tokens were drawn; None if the row does not say, or all were."""
        value = self.data.get(name)
        if value is None:
            return None
        found = _plain(value)
        if not isinstance(found, list) or any(v not in (0, 1) for v in found):
            raise self.fault(f"{name!r} is {shown(found)}; expected zeros and ones.")
        if len(found) != length:
            raise self.fault(
                f"{name!r} has {len(found)} values; expected one for each of {length} tokens."
            )
        mask = np.array(found, bool)
        return None if mask.all() else mask

    def whole(self, name: str) -> int | None:
        """Return a whole number from 0 on; None if there is none."""
        value = self.data.get(name)
        if isinstance(value, np.generic):
            value = value.item()
        if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 19:
            value = int(value)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MOST:
            raise self.fault(f"{name!r} is {shown(value)}; expected a whole number from 0 on.")
        return value

    def count(self, name: str, most: int) -> int:
        """Return a number of tokens, at most `most`."""
        self.need(name)
        value = self.whole(name)
        assert value is not None  # need() has raised
        if value > most:
            raise self.fault(f"{name!r} is {value}; expected at most {most}, the tokens there are.")
        return value

    def step(self, *names: str) -> int:
        """Return the step: the first of some columns that is there, else the given one."""
        for name in names:
            if (step := self.whole(name)) is not None:
                return step
        if self.given_step is None:
            raise self.fault(
                "neither the row nor the file's name says of which step it is: give it with "
                "--step N (step=)."
            )
        return self.given_step

    def grade(self, *names: str) -> float:
        """Return the first of some columns that holds a grade in [0, 1], else NaN."""
        for name in names:
            value = self.data.get(name)
            if isinstance(value, np.generic):
                value = value.item()
            if isinstance(value, bool | int | float) and 0 <= value <= 1:
                return float(value)
        return math.nan

    def labels(self, *names: str, **renamed: str) -> dict[str, str]:
        """Return columns that hold a text or a number, as texts, under our names."""
        found: dict[str, str] = {}
        for ours, theirs in {**{name: name for name in names}, **renamed}.items():
            value = self.data.get(theirs)
            if isinstance(value, str) and value:
                found[ours] = self.as_text(value, theirs)
            elif is_number(value):
                found[ours] = str(value)
        return found


def _plain(value: Any) -> Any:
    """A tensor's, array's or tuple's values as a list."""
    if hasattr(value, "tolist") and not isinstance(value, str):
        value = value.tolist()
    return list(value) if isinstance(value, tuple) else value


def _first_other(values: Any, kind: type) -> str:
    if not isinstance(values, list):
        return shown(values)
    kinds = (int, float, type(None)) if kind is float else (int,)
    other = next((i, v) for i, v in enumerate(values) if type(v) not in kinds)
    return f"a list with {shown(other[1])} at index {other[0]}"


def prompt_name(prompt: str | Sequence[Any]) -> str:
    """Name a prompt by what it says: the same in each step, whatever numbers a trainer gave it.

    Examples
    --------
    >>> prompt_name([1, 2, 3]) == prompt_name((1, 2, 3)) != prompt_name("1, 2, 3")
    True
    """
    if isinstance(prompt, str):
        text = prompt
    elif prompt and isinstance(prompt[0], Mapping):
        text = json.dumps([dict(message) for message in prompt], sort_keys=True)
    else:
        # As `opdprobe.capture` names them.
        text = repr(list(prompt))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def row_name(name: object, prompt: str | Sequence[Any]) -> str:
    """Name a prompt by its row in a data set and by what it says.

    Evaluations of several tasks each have a row 0.

    Examples
    --------
    >>> row_name(0, "2+2?") == row_name(0, "3+3?")
    False
    >>> row_name(0, "2+2?")
    '0-30ad20'
    """
    return f"{name}-{prompt_name(prompt)[:6]}"


def nested(row: Row, name: str) -> Any:
    """Return a value that a CSV file holds as JSON text."""
    value = row.need(name)
    if not isinstance(value, str):
        return value
    try:
        return parse_json(value)
    except ValueError as error:
        raise row.fault(f"{name!r} is not JSON ({error}): {shown(value)}.") from None
