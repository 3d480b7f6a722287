"""The exceptions that opdprobe raises on bad input.

Each message says what was found, what was expected and what to do. The command line prints the
message of an `OPDProbeError` and exits with code 1; any other exception is a bug and shows its
traceback.
"""

import reprlib
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager

_TRAIN_EXTRA = {
    "accelerate",
    "psutil",
    "pyarrow",
    "safetensors",
    "tokenizers",
    "torch",
    "transformers",
}
"""What ``opdprobe[train]`` installs and opdprobe alone does not."""

# Control and format characters (including those that change the writing direction), unpaired
# surrogates, and line breaks that a terminal does not show.
_HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def printable(text: str) -> str:
    r"""Escape the characters that a terminal would obey or hide; line breaks stay.

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
    """Return a value's repr, short enough for a message however large the value is.

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


class OPDProbeError(Exception):
    r"""Base class of every error raised on purpose.

    A message may quote any input, so the characters that a terminal would obey are escaped.

    Examples
    --------
    >>> print(OPDProbeError("no prompt called \x1b[2J"))
    no prompt called \x1b[2J
    """

    def __str__(self) -> str:
        return printable(super().__str__())


class StoreError(OPDProbeError):
    """A run directory or a step file is missing, foreign, torn or of another schema."""


class VocabularyError(OPDProbeError, ValueError):
    """Two models or tokenizers do not share one vocabulary."""


class ModelError(OPDProbeError, ValueError):
    """A model or tokenizer is missing, incomplete or of an unsupported kind."""


class NonFiniteError(OPDProbeError, ValueError):
    """A model produced NaN or infinite logits; names the model, the step and the row."""


class PromptError(OPDProbeError, ValueError):
    """A prompt is empty, too long or lacks a column; lists the rows."""


class RolloutError(OPDProbeError, ValueError):
    """A rollout, or a dump of rollouts, cannot be used; names where it was read."""


class OutOfMemoryError(OPDProbeError, MemoryError):
    """Memory ran out, and no smaller piece of work is left to try; names what to lower."""


class ConfigError(OPDProbeError, ValueError):
    """A setting is out of range, or two settings contradict each other."""


class MissingExtraError(OPDProbeError, ImportError):
    """A package is needed that only ``opdprobe[train]`` installs."""


@contextmanager
def needs_train_extra(what: str) -> Iterator[None]:
    """Name the extra to install if the block fails to import one of its packages.

    Parameters
    ----------
    what : str
        What needs the package; the subject of the message.

    Raises
    ------
    MissingExtraError
        A package of the extra is not installed. Any other import error is raised unchanged.

    Examples
    --------
    >>> with needs_train_extra("opdprobe.OPDTrainer"):
    ...     raise ModuleNotFoundError("No module named 'torch'", name="torch")
    Traceback (most recent call last):
    ...
    opdprobe.errors.MissingExtraError: opdprobe.OPDTrainer needs torch, which is not installed: run
    pip install 'opdprobe[train]' first.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name not in _TRAIN_EXTRA:
            raise
        raise MissingExtraError(
            f"{what} needs {error.name}, which is not installed: "
            "run pip install 'opdprobe[train]' first."
        ) from error
