"""What other libraries print while a model loads: bars on terminals only, no report."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from transformers import modeling_gguf_pytorch_utils
from transformers.utils import logging as transformers_logging


@contextmanager
def bars_on_terminals() -> Iterator[None]:
    """Switch transformers' progress bars off for the block, unless stderr is a terminal.

    In a file, each redrawing of a bar is one more line. The bar over a GGUF file's weights is
    tqdm's own, which transformers' switch does not reach; it follows the same rule, and that switch
    if it is off.
    """
    enabled = transformers_logging.is_progress_bar_enabled()
    if sys.stderr.isatty() and enabled:
        yield
        return
    gguf: Any = modeling_gguf_pytorch_utils
    bar = gguf.tqdm
    gguf.tqdm = partial(bar, disable=True)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        gguf.tqdm = bar
        if enabled:
            transformers_logging.enable_progress_bar()


@contextmanager
def without_load_report() -> Iterator[None]:
    """Leave out transformers' table of weights that do not fit: our refusal names one."""

    def wanted(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    places = [f"transformers.{name}" for name in ("modeling_utils", "utils.loading_report")]
    for place in places:
        logging.getLogger(place).addFilter(wanted)
    try:
        yield
    finally:
        for place in places:
            logging.getLogger(place).removeFilter(wanted)
