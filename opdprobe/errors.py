"""The exceptions opdprobe raises on bad input.

Each message says what came, what was expected and what to do. The command line turns any
`OPDProbeError` into that message and exit code 1; everything else is a bug and shows a traceback.
"""

from opdprobe.text import printable


class OPDProbeError(Exception):
    r"""Base class of every error raised on purpose.

    A message quotes what came, which may be anything: what a terminal would obey is written out.

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
    """A model or tokenizer is missing, incomplete or of a kind that is not read."""


class NonFiniteError(OPDProbeError, ValueError):
    """A model produced NaN or infinite logits; names the model, the step and the row."""


class PromptError(OPDProbeError, ValueError):
    """A prompt is empty, too long or lacks a column; lists the rows."""


class ConfigError(OPDProbeError, ValueError):
    """A setting is out of range, or two settings contradict each other."""
