"""How large a model is, known before its weights are read: from its configuration alone."""

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from transformers import AutoConfig

from opdprobe.models.claims import check_model_claims
from opdprobe.models.files import adapter_base, is_adapter
from opdprobe.models.load import auto_class, named_base, source
from opdprobe.models.quiet import bars_on_terminals

_GGUF_TYPES = "BbHhIif?__Qqd"  # by number; strings and arrays have no fixed size
_STRING, _ARRAY = 8, 9


class UnknownSizeError(ValueError):
    """A model's size cannot be told from its configuration."""


@dataclass(frozen=True)
class ModelSize:
    """The sizes that memory depends on.

    Parameters
    ----------
    parameters
        Number of weights; tied ones count once.
    layers, hidden, intermediate
        Number of decoder layers, width of the hidden states, width inside a feed-forward block (of
        all the experts that a token reaches).
    heads, kv
        Width of the queries of all heads of a layer together, and of their keys.
    vocabulary
        Number of logits.
    saved
        The dtype that the weights were saved in; None if the configuration does not say.
    """

    parameters: int
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv: int
    vocabulary: int
    saved: torch.dtype | None = None

    @classmethod
    def of(cls, name_or_path: str | Path) -> "ModelSize":
        """Read a model's configuration.

        Parameters
        ----------
        name_or_path
            As for `opdprobe.load_model`; an adapter has the size of its base.

        Raises
        ------
        ModelError
            There is no such model, or its configuration is that of a far larger one.
        UnknownSizeError
            Modelling code is unknown, the file is damaged, or the weights are quantised.
        """
        named, base = named_base(name_or_path, None)
        name, extra = source(named, weights=True)
        path = Path(name)
        if "gguf_file" in extra:
            return _from_gguf(path / extra["gguf_file"])
        if is_adapter(path):
            return cls.of(base or adapter_base(path))
        if path.is_dir():
            check_model_claims(path)
        try:
            with bars_on_terminals():
                config: Any = AutoConfig.from_pretrained(name)
                if getattr(config, "quantization_config", None) is not None:
                    raise UnknownSizeError(f"{name_or_path} has quantised weights")
                # On torch's "meta" device, weights have shapes and no memory.
                with torch.device("meta"):
                    model = auto_class(name, False, extra).from_config(config)
        except UnknownSizeError:
            raise
        except Exception as error:  # any failure here is one more reason for no estimate
            raise UnknownSizeError(
                f"the configuration of {name_or_path} does not tell ({type(error).__name__})"
            ) from error
        text = config.get_text_config()
        heads = text.num_attention_heads
        size = getattr(text, "head_dim", None) or text.hidden_size // heads
        inner = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
        if each := getattr(text, "moe_intermediate_size", None):
            inner = each * getattr(text, "num_experts_per_tok", 1)
        return cls(
            parameters=sum(weight.numel() for weight in model.parameters()),
            layers=text.num_hidden_layers,
            hidden=text.hidden_size,
            intermediate=inner,
            heads=heads * size,
            kv=(getattr(text, "num_key_value_heads", None) or heads) * size,
            vocabulary=text.vocab_size,
            saved=config.dtype if isinstance(config.dtype, torch.dtype) else None,
        )


def _from_gguf(path: Path) -> ModelSize:
    """Read the header of a GGUF file.

    transformers reads the vocabulary as well, which takes a third of a minute.
    """
    try:
        with open(path, "rb") as file:
            values, parameters = _gguf_header(file)
        architecture = values["general.architecture"]
        found = {
            name.removeprefix(f"{architecture}."): value
            for name, value in values.items()
            if name.startswith(f"{architecture}.")
        }
        heads, hidden = found["attention.head_count"], found["embedding_length"]
        size = found.get("attention.key_length", hidden // heads)
        return ModelSize(
            parameters=parameters,
            layers=found["block_count"],
            hidden=hidden,
            intermediate=found["feed_forward_length"],
            heads=heads * size,
            kv=found.get("attention.head_count_kv", heads) * size,
            vocabulary=values["tokenizer.ggml.tokens"],
        )
    except (
        OSError,
        LookupError,
        TypeError,
        ValueError,
        struct.error,
        ArithmeticError,
        RecursionError,
    ) as error:
        raise UnknownSizeError(
            f"the header of {path} does not tell ({type(error).__name__})"
        ) from error


def _gguf_header(file: BinaryIO) -> tuple[dict[str, Any], int]:
    """Return the metadata, an array as its length alone, and the number of weights."""
    size = file.seek(0, 2)
    file.seek(0)

    def number(kind: str) -> Any:
        (value,) = struct.unpack(f"<{kind}", file.read(struct.calcsize(f"<{kind}")))
        return value

    def text() -> str:
        length = number("Q")
        if length > size - file.tell():
            raise ValueError("a text is longer than the file")
        return file.read(length).decode("utf-8", "replace")

    def value(kind: int) -> Any:
        if kind == _STRING:
            return text()
        if kind != _ARRAY:
            return number(_GGUF_TYPES[kind])
        of, count = number("I"), number("Q")
        if of in (_STRING, _ARRAY):
            for _ in range(count):
                value(of)
        else:
            file.seek(count * struct.calcsize(f"<{_GGUF_TYPES[of]}"), 1)
        return count

    if file.read(4) != b"GGUF":
        raise ValueError("not a GGUF file")
    number("I")  # version
    n_tensors, n_values = number("Q"), number("Q")
    values = {}
    for _ in range(n_values):
        name = text()
        values[name] = value(number("I"))
    parameters = 0
    for _ in range(n_tensors):
        text()
        parameters += math.prod(number("Q") for _ in range(number("I")))
        file.seek(12, 1)  # type and place
    return values, parameters
