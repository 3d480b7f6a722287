"""Report a full disk as an OSError when models and tokenizers are saved."""

from collections.abc import Iterator
from contextlib import contextmanager

from safetensors import SafetensorError


@contextmanager
def saving() -> Iterator[None]:
    """Raise an OSError where saving to a full disk raises something else.

    safetensors has an error of its own, torch.save raises a RuntimeError, and the Rust
    part of a tokenizer a bare Exception.
    """
    try:
        yield
    except (SafetensorError, RuntimeError) as error:
        raise OSError(str(error)) from error
    except Exception as error:
        if type(error) is Exception:
            raise OSError(str(error)) from error
        raise
