"""Load a student or a teacher, drop layers of a model, identify a model by its weights.

Weights come from safetensors or GGUF files only: a pickle can run code when it is read.
"""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from opdprobe.errors import ConfigError, ModelError
from opdprobe.models.adapters import merge_adapter
from opdprobe.models.claims import check_model_claims, check_tokenizer_claims
from opdprobe.models.devices import resolve_device, resolve_dtype
from opdprobe.models.files import (
    adapter_base,
    check_not_cache,
    is_adapter,
    model_directory,
    saved_model,
    wrapper,
)
from opdprobe.models.gguf_once import parsed_once
from opdprobe.models.head import Body, Head, split_head
from opdprobe.models.quiet import bars_on_terminals, without_load_report
from opdprobe.models.sharding import full
from opdprobe.models.unreadable import UNREADABLE, check_attention, explained, first_line
from opdprobe.models.vocabulary import shared_vocabulary, shared_width, tokenizer_hash

__all__ = [
    "Body",
    "Head",
    "ModelError",
    "drop_layers",
    "identity",
    "load_model",
    "load_tokenizer",
    "shared_vocabulary",
    "shared_width",
    "split_head",
    "tokenizer_hash",
    "weight_hash",
]

_HUB_ID = re.compile(r"\w[\w.-]*(/[\w.-]+)?")
# Weights that no logit depends on: layers that predict further tokens, buffers that old releases
# saved, value heads.
_UNUSED = re.compile(
    r"(^|[._])mtp[._]|(^|\.)v_head\.|rotary_emb\.inv_freq$|\.masked_bias$|(^|\.)position_ids$"
)
# Parts of a vision-language or audio model that text does not pass.
_OTHER_SENSES = re.compile(r"(^|[._])(vision|visual|image|audio|multi_modal|mm)[._]")


def load_model(
    name_or_path: str | Path,
    *,
    device: str | torch.device | None = "auto",
    dtype: str | torch.dtype | None = None,
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
    base: str | Path | None = None,
) -> PreTrainedModel:
    """Load a causal language model, in evaluation mode.

    Parameters
    ----------
    name_or_path : str or Path
        A `.gguf` file, a hub id, or a directory: with `config.json` and safetensors weights; with
        an adapter, which is merged into the base that its `adapter_config.json` names (a path,
        also relative to the adapter, or a hub id); or verl's `global_step_N`, merged. Of a
        vision-language model, text passes the language model alone. ``ADAPTER@BASE`` also names the
        base of an adapter, wherever a model is named.
    device : str or torch.device, optional
        Where the model goes: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``, ``"xpu"``; ``"auto"``
        is the machine's accelerator, or the CPU if there is none. In one of several processes
        that a launcher started, ``"auto"`` is the CPU: what runs the model moves it.
    dtype : str or torch.dtype, optional
        The weights' dtype: ``"float32"`` (default), which is right for a student in training and
        on a CPU, ``"bfloat16"``, ``"float16"``, or ``"auto"``, the one they were saved in. GGUF
        weights are dequantised to it.
    attn_implementation : str, optional
        How attention is computed, by transformers' names: ``"sdpa"``, ``"eager"``,
        ``"flash_attention_2"``, …; by default, transformers chooses.
    trust_remote_code : bool
        Run modelling code that comes with the weights.
    base : str or Path, optional
        The base model of an adapter, if not the one that `adapter_config.json` names.

    Returns
    -------
    transformers.PreTrainedModel
        The model; every weight comes from the checkpoint.

    Raises
    ------
    ModelError
        `name_or_path` does not exist or has only pickled weights; the weights are torn,
        incomplete, or not all used; they are those of a wrapped model; an adapter's base is not
        found, or `base` is given for a model that is no adapter; a package is missing (`gguf`,
        `peft`, or the one that unpacks quantised weights).
    ConfigError
        The machine has no such device, or a dtype or way of attention is unknown or cannot be
        used.
    OutOfMemoryError
        The model does not fit into the device's memory.

    Notes
    -----
    An adapter is merged in `dtype`. In bfloat16, no way was the closest for both of two adapters
    (SmolLM2-135M, rank 8): the KL divergence from the float32 model was 1.2e-3 and 1.4e-3 nats
    when merged in bfloat16, 0.8e-3 and 1.8e-3 when merged in float32 and then rounded,
    and 1.0e-3 with the adapter beside its layers in bfloat16.

    Examples
    --------
    >>> load_model("./no/such/model")
    Traceback (most recent call last):
    ...
    opdprobe.errors.ModelError: ./no/such/model: no such file or directory; expected ...
    """
    place, precision = resolve_device(device), resolve_dtype(dtype)
    check_attention(attn_implementation, precision)
    explain = explained(name_or_path, place, attn_implementation)
    with explain, bars_on_terminals(), without_load_report(), parsed_once():
        model = _loaded(name_or_path, base, precision, attn_implementation, trust_remote_code)
        return model.to(place).eval()  # pyright: ignore[reportArgumentType]  # transformers' stub of `to`


def _loaded(
    name_or_path: str | Path,
    base: str | Path | None,
    dtype: torch.dtype | str,
    attn_implementation: str | None,
    trust_remote_code: bool,
) -> PreTrainedModel:
    """Load a model on the CPU."""
    named, base = named_base(name_or_path, base)
    name, extra = source(named, weights=True)
    if base is not None and (extra or not is_adapter(Path(name))):
        raise ModelError(f"{named}: not an adapter, so it has no base model: leave out {base}.")
    how = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    gguf_config = getattr(transformers, "GgufConfig", None)
    if "gguf_file" in extra and gguf_config is not None:
        # Newer transformers may keep the weights packed; those can be neither trained nor sliced.
        extra["quantization_config"] = gguf_config(extra["gguf_file"], dequantize=True)
    if not extra and is_adapter(Path(name)):
        model: Any = _adapted(Path(name), base, dtype, attn_implementation, trust_remote_code)
        # A run should name the adapter, not its base.
        model.config._name_or_path = model.name_or_path = str(name_or_path)
        return model
    options: dict[str, Any] = {
        "dtype": dtype,
        "use_safetensors": True,
        "ignore_mismatched_sizes": True,  # listed in `info`, and refused below
        "trust_remote_code": trust_remote_code,
        "output_loading_info": True,
        **how,
        **extra,
    }
    if not extra and Path(name).is_dir():
        check_model_claims(Path(name))
    loaded: Any = auto_class(name, trust_remote_code, extra).from_pretrained(name, **options)
    model, info = loaded
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ModelError(
            f"{name_or_path}: an adapter on the hub; download it and give its directory."
        )
    _check_weights(name_or_path, model, info)
    if _has_other_senses(model.config) and not _reads_text(model):
        raise ModelError(
            f"{name_or_path}: {type(model).__name__}, a vision-language model, which does not "
            "compute a text's logits from the text alone; expected a causal language model: save "
            "its language model by itself."
        )
    return model


def auto_class(name: str, trust_remote_code: bool, extra: Mapping[str, Any]) -> Any:
    """Choose what loads a model: for some vision-language models, not AutoModelForCausalLM."""
    if extra:
        return AutoModelForCausalLM
    config = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
    known: Any = AutoModelForCausalLM
    if type(config) in known._model_mapping or not _has_other_senses(config):
        return AutoModelForCausalLM
    return AutoModelForImageTextToText


def _has_other_senses(config: Any) -> bool:
    return any(getattr(config, f"{sense}_config", None) for sense in ("vision", "audio"))


def _check_weights(name: str | Path, model: PreTrainedModel, info: Mapping[str, Any]) -> None:
    """Refuse a model if the weights in the file are not exactly the weights that it has."""
    unused = sorted(key for key in info["unexpected_keys"] if not _ignored(model, key))
    if advice := wrapper(unused):
        raise ModelError(f"{name}: the weights' names are those of {advice}.")
    if wrong := sorted(info["mismatched_keys"]):
        weight, came, expected = wrong[0]
        raise ModelError(
            f"{name}: {len(wrong)} of the weights do not have the shape that config.json "
            f"gives them; the first is {weight}: {tuple(came)}, expected {tuple(expected)}. Take "
            "both from one checkpoint."
        )
    if masked := re.search(r"\w+ForMaskedLM\b", str(model.config.architectures)):
        raise ModelError(
            f"{name}: {masked[0]} attends to the full text; expected a causal language "
            "model, which attends only to earlier tokens."
        )
    if missing := sorted(info["missing_keys"]):
        # transformers fills these with random numbers and continues; a probe must not.
        raise ModelError(
            f"{name}: {len(missing)} of the weights of {type(model).__name__} are not in "
            f"the checkpoint; the first is {missing[0]}. Expected the complete checkpoint of a "
            "causal language model."
        )
    if unused:
        # transformers leaves these out and continues, with another model than the one saved.
        cause = (
            "they are scales of quantised weights, so config.json lacks its quantization_config"
            if any(re.search(r"scale(_inv)?$|absmax|qzeros|quant_", key) for key in unused)
            else "config.json describes another model than the one saved"
        )
        raise ModelError(
            f"{name}: {len(unused)} of the weights in the checkpoint have no place in "
            f"{type(model).__name__}; the first is {unused[0]}: {cause}. Take both from one "
            "checkpoint."
        )


def _ignored(model: PreTrainedModel, key: str) -> bool:
    """Whether no logit of a text depends on a weight that is in the file but not in the model."""
    config: Any = model.config.get_text_config()
    if _UNUSED.search(key) or (_has_other_senses(model.config) and _OTHER_SENSES.search(key)):
        return True
    # Layers behind the last one that predict further tokens (DeepSeek, GLM).
    ahead = getattr(config, "num_nextn_predict_layers", None) or 0
    layer = re.search(r"\.layers\.(\d+)\.", key)
    return layer is not None and 0 <= int(layer[1]) - config.num_hidden_layers < ahead


@torch.no_grad()
def _reads_text(model: PreTrainedModel) -> bool:
    """Whether a vision-language model computes on text alone, as a causal language model does."""
    ids = torch.arange(1, 9)[None] % model.config.get_text_config().vocab_size
    positions = torch.arange(8)[None]
    try:
        whole, part = (
            model.eval()(input_ids=ids[:, :n], position_ids=positions[:, :n]).logits[:, :4].float()
            for n in (8, 4)
        )
    except UNREADABLE:
        return False
    tolerance = 64 * torch.finfo(model.dtype).eps
    return torch.allclose(whole, part, rtol=tolerance, atol=tolerance * float(part.abs().max()))


def named_base(name: str | Path, base: str | Path | None) -> tuple[str | Path, str | Path | None]:
    """Split ``ADAPTER@BASE``, unless a file has that name or `base` is given."""
    if base is not None or not isinstance(name, str) or "@" not in name or Path(name).exists():
        return name, base
    adapter, _, base = name.partition("@")
    return adapter, base


def _adapted(
    directory: Path,
    base: str | Path | None,
    dtype: torch.dtype | str,
    attn_implementation: str | None,
    trust_remote_code: bool,
) -> PreTrainedModel:
    """Load an adapter's base on the CPU and merge the adapter into it."""
    named = adapter_base(directory) if base is None else base
    try:
        model = load_model(
            named,
            device="cpu",
            dtype=dtype,
            attn_implementation=attn_implementation,
            trust_remote_code=trust_remote_code,
        )
    except ModelError as error:
        raise ModelError(
            f"{directory}: an adapter, and its base model does not load: {error} If the base is "
            f"elsewhere, name it: {directory}@BASE."
        ) from error
    return merge_adapter(model, directory)


def load_tokenizer(
    name_or_path: str | Path, *, trust_remote_code: bool = False, base: str | Path | None = None
) -> PreTrainedTokenizerBase:
    """Load the tokenizer that comes with a model.

    Parameters
    ----------
    name_or_path : str or Path
        As for `load_model`: a directory, a `.gguf` file, or a hub id. An adapter without a
        tokenizer has its base's.
    trust_remote_code : bool
        Run tokenizer code that comes with the files.
    base : str or Path, optional
        As for `load_model`.

    Returns
    -------
    transformers.PreTrainedTokenizerBase
        The tokenizer.

    Raises
    ------
    ModelError
        `name_or_path` does not exist or has no tokenizer, or the `gguf` package is missing.
    """
    named, base = named_base(name_or_path, base)
    name, extra = source(named, weights=False)
    directory = Path(name)
    if not extra and not any(directory.glob("tokenizer*")) and is_adapter(directory):
        base = adapter_base(directory) if base is None else base
        return load_tokenizer(base, trust_remote_code=trust_remote_code)
    if not extra:
        check_tokenizer_claims(directory / "tokenizer.json")
    try:
        with parsed_once():
            return AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code, **extra)
    except BaseException as error:
        # The tokenizer's Rust part raises a bare Exception for a damaged tokenizer.json, or panics.
        panicked = type(error).__name__ == "PanicException"
        known = isinstance(error, (*UNREADABLE, MemoryError))
        if not known and type(error) is not Exception and not panicked:
            raise
        if Path(name).is_dir() and not extra and not (Path(name) / "tokenizer.json").is_file():
            reason = "no tokenizer.json in this directory"
        else:
            reason = first_line(error)
        raise ModelError(
            f"{name_or_path}: the tokenizer does not load: {reason}; expected a tokenizer as "
            "save_pretrained writes it, beside the model."
        ) from error


def drop_layers(model: PreTrainedModel, layers: Iterable[int]) -> PreTrainedModel:
    """Copy a model without some of its decoder layers.

    The remaining weights are unchanged. Without a few middle layers, a model is weaker but keeps
    its tokenizer: a student for which the full model can be the teacher.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        A decoder whose base model keeps its blocks in `layers` (Llama, Qwen, Gemma and
        similar). It is not changed.
    layers : iterable of int
        Indices of the layers to leave out, from 0.

    Returns
    -------
    transformers.PreTrainedModel
        A deep copy with the remaining layers and a matching config; it can be saved and loaded.

    Raises
    ------
    ConfigError
        An index is out of range, or no layer would remain.
    ModelError
        The model has no `layers`.

    Examples
    --------
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> config = LlamaConfig(vocab_size=32, hidden_size=8, intermediate_size=8,
    ...                      num_hidden_layers=4, num_attention_heads=2)
    >>> model = LlamaForCausalLM(config)
    >>> drop_layers(model, range(1, 3)).config.num_hidden_layers
    2
    >>> model.config.num_hidden_layers
    4
    """
    blocks = getattr(model.base_model, "layers", None)
    if not isinstance(blocks, nn.ModuleList):
        raise ModelError(
            f"{type(model).__name__} has no list of decoder layers in `layers`; "
            "expected a Llama-like model."
        )
    dropped, count = set(layers), len(blocks)
    if outside := sorted(dropped - set(range(count))):
        raise ConfigError(f"layers = {outside}; expected 0 to {count - 1}, the model's layers.")
    kept = [index for index in range(count) if index not in dropped]
    if not kept:
        raise ConfigError(f"all {count} layers would be dropped; keep at least one.")

    smaller = copy.deepcopy(model)
    smaller_blocks: Any = smaller.base_model.layers
    smaller.base_model.layers = nn.ModuleList(smaller_blocks[index] for index in kept)
    for index, block in enumerate(smaller.base_model.layers):
        module: Any
        for module in block.modules():
            if hasattr(module, "layer_idx"):  # the block's place in the key-value cache
                module.layer_idx = index
    config = smaller.config.get_text_config()
    config.num_hidden_layers = len(kept)
    if getattr(config, "layer_types", None) is not None:
        config.layer_types = [config.layer_types[index] for index in kept]
    # A run of this student should not be recorded under the full model's name.
    smaller.config._name_or_path = f"{model.name_or_path} without layers {sorted(dropped)}"
    return smaller


def identity(model: PreTrainedModel, recorded: Any = None) -> dict[str, Any]:
    """Name, revision and weight hash of a model.

    Parameters
    ----------
    model
        The model.
    recorded
        What a run recorded for the model. Its weight hash is kept: for a student in training it
        identifies the weights that the run began with.
    """
    known = recorded.get("weight_hash") if isinstance(recorded, Mapping) else None
    return {
        "name": model.config._name_or_path or type(model).__name__,
        "revision": getattr(model.config, "_commit_hash", None),
        "weight_hash": known or weight_hash(model),
    }


def weight_hash(model: nn.Module) -> str:
    """Identify a model by its weights.

    Parameters
    ----------
    model : torch.nn.Module
        The model. Each parameter counts once, tied ones too, so a hash survives saving, loading
        and moving between devices; a change of dtype changes it. If the model is sharded, every
        process must call this.

    Returns
    -------
    str
        SHA-256, 64 hexadecimal digits, over the parameters in the order of their names: name,
        dtype, shape and bytes.

    Examples
    --------
    >>> layer = nn.Linear(2, 1)
    >>> _ = nn.init.zeros_(layer.weight), nn.init.zeros_(layer.bias)
    >>> weight_hash(layer)[:8]
    'f622ac50'
    """
    digest = hashlib.sha256()
    for name, weight in sorted(model.named_parameters()):
        digest.update(f"{name}\0{weight.dtype}\0{tuple(weight.shape)}\0".encode())
        # Through uint8, since numpy has no bfloat16; flat, since a scalar has no byte view.
        raw = full(weight.detach()).cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(raw.numpy().data)
    return digest.hexdigest()


def source(name_or_path: str | Path, *, weights: bool) -> tuple[str, dict[str, Any]]:
    """Resolve to the name and extra arguments that transformers loads from, or raise."""
    name, path = os.fspath(name_or_path), Path(name_or_path).expanduser()
    check_not_cache(path)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelError(f"{name}: no such file; expected a GGUF model.")
        if importlib.util.find_spec("gguf") is None:
            raise ModelError(
                f"{name}: GGUF files need the gguf package: pip install 'opdprobe[gguf]'."
            )
        return str(path.parent), {"gguf_file": path.name}
    if not path.is_dir():
        if isinstance(name_or_path, str) and re.match("https?://", name):
            raise ModelError(
                f"{name}: a served model, which does not report all that is needed here; expected "
                "a model directory, a .gguf file or a hub id (owner/name). probe takes a served "
                "model, and the student's server may sample (--sampler)."
            )
        if isinstance(name_or_path, Path) or path.exists() or not _HUB_ID.fullmatch(name):
            found = "not a model" if path.exists() else "no such file or directory"
            raise ModelError(
                f"{name}: {found}; expected a model directory, a .gguf file or a hub id "
                "(owner/name)."
            )
        return name, {}
    if weights:
        return str(saved_model(path)), {}
    return str(model_directory(path) or path), {}
