"""Progress bars of other libraries, on terminals only."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging as transformers_logging


@contextmanager
def bars_on_terminals() -> Iterator[None]:
    """Switch transformers' progress bars off for the block, unless stderr is a terminal.

    In a file, each redrawing of a bar is one more line.
    """
    if sys.stderr.isatty() or not transformers_logging.is_progress_bar_enabled():
        yield
        return
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.enable_progress_bar()
