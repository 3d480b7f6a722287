"""Save models and tokenizers: a full disk is an OSError, bars appear on terminals only."""

from collections.abc import Iterator
from contextlib import contextmanager

from safetensors import SafetensorError

from opdprobe.models.quiet import bars_on_terminals


@contextmanager
def saving() -> Iterator[None]:
    """Raise an OSError where saving to a full disk raises something else; no bars in files.

    safetensors has an error of its own, torch.save raises a RuntimeError, and the Rust
    part of a tokenizer a bare Exception.
    """
    try:
        with bars_on_terminals():
            yield
    except (SafetensorError, RuntimeError) as error:
        raise OSError(str(error)) from error
    except Exception as error:
        if type(error) is Exception:
            raise OSError(str(error)) from error
        raise
