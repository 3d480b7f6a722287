"""What a row of the catalogue is, and what the rows share."""

import contextlib
import io
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import opdprobe.cli.parser

KINDS = (
    "Prompts",
    "Configurations",
    "Models",
    "Tokenizers",
    "Runs",
    "Rollouts",
    "Logits",
    "Training logs",
    "Dumps of rollouts",
    "Caches of a teacher's lists",
    "Engines",
    "Command line",
)
FOLDER = "FOLDER"


@dataclass(frozen=True)
class Case:
    """One way to fail.

    Parameters
    ----------
    kind
        One of `KINDS`.
    fed
        What was fed, as a reader is to understand it.
    feed
        Feeds it; is given an empty folder.
    error
        Class of what it raises.
    message
        The message, whole. ``FOLDER`` stands for that folder; ``…`` for what another library or
        version may word otherwise.
    """

    kind: str
    fed: str
    feed: Callable[[Path], object]
    error: type[BaseException]
    message: str

    def matches(self, error: BaseException, folder: Path) -> bool:
        """Say whether this is the message."""
        pattern = ".*".join(map(re.escape, self.message.split("…")))
        return re.fullmatch(pattern, told(error, folder), re.DOTALL) is not None


def told(error: BaseException, folder: Path) -> str:
    """An error's message with the folder's name taken out."""
    return str(error).replace(str(folder), FOLDER)


class Exit1(Exception):
    """The command line ended with code 1, and this on stderr."""


class Exit2(Exception):
    """The command line ended with code 2, and this as the last line on stderr."""


def run_command(*words: object) -> None:
    """Run the command line; raise what it says if it fails."""
    said = io.StringIO()
    logger = logging.getLogger()
    handlers, level = logger.handlers[:], logger.level
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            code = opdprobe.cli.parser.main([str(word) for word in words])
    except SystemExit as exit:
        raise Exit2(said.getvalue().strip().splitlines()[-1]) from exit
    finally:
        logger.handlers[:], logger.level = handlers, level
    if code:
        lines = said.getvalue().strip().splitlines()
        # What the job would take is said before what is wrong with it.
        raise Exit1("\n".join(line for line in lines if not line.startswith("memory: about ")))
