"""Save models and tokenizers where the disk may be full."""

from collections.abc import Iterator
from contextlib import contextmanager

from safetensors import SafetensorError


@contextmanager
def saving() -> Iterator[None]:
    """Raise an OSError where saving to a full disk raises something else.

    safetensors has an error of its own, torch.save raises a RuntimeError, and the part of a
    tokenizer that is in Rust a bare Exception.
    """
    try:
        yield
    except (SafetensorError, RuntimeError) as error:
        raise OSError(str(error)) from error
    except Exception as error:
        if type(error) is Exception:
            raise OSError(str(error)) from error
        raise
