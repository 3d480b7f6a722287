"""Save models and tokenizers: a full disk is an OSError, bars appear on terminals only."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from transformers import PreTrainedTokenizerBase

from opdprobe.models.quiet import bars_on_terminals
from opdprobe.store.files import write_directory


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


def keep_tokenizer(run_dir: str | Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Keep the tokenizer and its chat template in a run that has none yet.

    Its tokens can then be shown as text from the first step on, wherever the run is read: the
    student's name may be a hub id, a path of another machine, or name nothing that was saved.

    Raises
    ------
    StoreError
        It cannot be written.
    """
    folder = Path(run_dir) / "tokenizer"
    if not folder.exists():
        with write_directory(folder) as directory, saving():
            tokenizer.save_pretrained(directory)
