"""Find the model in a directory as a trainer leaves it, or say what to do with what is there."""

import re
from collections.abc import Collection
from pathlib import Path

from opdprobe.errors import ModelError
from opdprobe.store.files import regular
from opdprobe.store.safe_text import parse_json

_CONFIG, _ADAPTER = "config.json", "adapter_config.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
# verl saves step N of the actor as global_step_N/actor/huggingface.
_INSIDE = (".", "huggingface", "actor/huggingface")
# Files of a run, and of what DistillKit and Megatron keep of a teacher.
_CACHES = re.compile(r"run\.json|compression_config\.yaml|.*\.(inputs|targets)\.tar")
_WRAPPERS = {
    r"(^|\.)base_model\.model\.|\.base_layer\.|\.lora_[AB]\.": (
        "a model under PEFT adapters (base_model.model., base_layer, lora_A): merge them with "
        "model.merge_and_unload() before saving, or save the adapter alone with the PEFT model's "
        "save_pretrained"
    ),
    r"_fsdp_wrapped_module\.|_flat_param|(^|\.)_fpw_module\.": (
        "a model wrapped by FSDP (_fsdp_wrapped_module.): gather the full state dict "
        "(FullStateDictConfig, or accelerator.get_state_dict) and pass it to the inner model's "
        "save_pretrained"
    ),
    r"(^|\.)_orig_mod\.": (
        "a model compiled by torch.compile (_orig_mod.): save model._orig_mod with save_pretrained"
    ),
    r"^module\.": (
        "a model wrapped by DistributedDataParallel or DeepSpeed (module.): save model.module "
        "with save_pretrained"
    ),
    r"^pretrained_model\.": (
        "a model wrapped with a value head (pretrained_model.): save model.pretrained_model with "
        "save_pretrained"
    ),
}


def model_directory(path: Path) -> Path | None:
    """Return the directory in `path` that holds a model or an adapter: `path` itself, or verl's.

    None if there is no such directory.
    """
    for inside in _INSIDE:
        if any((path / inside / name).is_file() for name in (_CONFIG, _ADAPTER)):
            return path / inside
    return None


def is_adapter(directory: Path) -> bool:
    """Whether a directory holds an adapter without its base model.

    Raises
    ------
    ModelError
        It holds both an adapter and a model.
    """
    if not (directory / _ADAPTER).is_file():
        return False
    if (directory / _CONFIG).is_file() and _weights(directory):
        raise ModelError(
            f"{directory}: both a model ({_CONFIG}) and an adapter ({_ADAPTER}), and nothing says "
            "whether the model already contains the adapter: move one to another directory."
        )
    return True


def adapter_base(directory: Path) -> str | Path:
    """Return the base model that an adapter names: a path if it is found here, else the name.

    Raises
    ------
    ModelError
        The adapter's configuration is damaged, or names no base or itself.
    """
    try:
        config = parse_json(regular(directory / _ADAPTER).read_bytes())
    except (OSError, ValueError) as error:
        raise ModelError(f"{directory}: {_ADAPTER} cannot be read: {error}.") from error
    named = config.get("base_model_name_or_path") if isinstance(config, dict) else None
    if not isinstance(named, str) or not named:
        raise ModelError(
            f"{directory}: an adapter whose {_ADAPTER} names no base model; name it: "
            f"{directory}@BASE."
        )
    for path in (directory / named, Path(named).expanduser()):
        if path.exists():
            if path.resolve() == directory.resolve():
                raise ModelError(
                    f"{directory}: an adapter whose {_ADAPTER} names itself as the base model; "
                    f"name it: {directory}@BASE."
                )
            return path
    return named


def saved_model(path: Path) -> Path:
    """Return the directory in `path` that holds a model with safetensors weights, or an adapter.

    Raises
    ------
    ModelError
        There is none; says how to make one from what is there.
    """
    found = model_directory(path)
    if found is not None and (is_adapter(found) or _weights(found)):
        return found
    if advice := _shards(path):
        raise ModelError(f"{path}: {advice}")
    if found is None:
        raise ModelError(f"{path}: no {_CONFIG} in this directory; expected a saved model.")
    pickles = sorted(file.name for kind in _PICKLES for file in found.glob(kind))
    raise ModelError(
        f"{path}: only pickled weights ({pickles[0]}), which can run code when read: "
        "if you trust them, convert them to safetensors (save_pretrained writes it)."
        if pickles
        else f"{path}: no *.safetensors file in this directory: complete the download."
    )


def check_not_cache(path: Path) -> None:
    """Refuse a run of ours or a cache of a teacher's lists in the place of a model.

    Raises
    ------
    ModelError
        It is one, by the names of its files.
    """
    files = [path] if path.is_file() else path.glob("*") if path.is_dir() else []
    if model_directory(path) is None and any(map(_CACHES.fullmatch, (f.name for f in files))):
        raise ModelError(
            f"{path}: a run or a cache of a teacher's lists, not a model. Its texts are fixed, and "
            "it says nothing of the new ones that a student writes in training, preflight and "
            f"probes. To score a student on the cache's own texts: opdprobe import {path} "
            "--student MODEL --run-dir RUN."
        )


def wrapper(keys: Collection[str]) -> str | None:
    """Say what wrapped the model whose weights have these names, and how to save it without.

    Examples
    --------
    >>> wrapper(["module.lm_head.weight"])[:45]
    'a model wrapped by DistributedDataParallel or'
    >>> wrapper(["lm_head.weight"])
    """
    for pattern, advice in _WRAPPERS.items():
        if any(re.search(pattern, key) for key in keys):
            return advice
    return None


def _weights(directory: Path) -> list[Path]:
    return [
        file for file in directory.glob("*.safetensors") if not file.name.startswith("adapter_")
    ]


def _shards(path: Path) -> str | None:
    """Say how to merge the parts of a checkpoint that several processes wrote."""
    places = [path, path / "actor", *([path.parent] if path.name == "huggingface" else [])]
    for place in places:
        merge = f"--local_dir {place} --target_dir {place / 'huggingface'}"
        if any(place.glob("model_world_size_*_rank_*.pt")):
            return (
                "the weights are in verl's FSDP shards (model_world_size_….pt); merge them first: "
                f"python -m verl.model_merger merge --backend fsdp {merge}"
            )
        if (place / "dist_ckpt").is_dir():
            return (
                "the weights are in verl's Megatron shards (dist_ckpt); merge them first: "
                f"python -m verl.model_merger merge --backend megatron {merge}"
            )
        if (place / "zero_to_fp32.py").is_file():
            return (
                "the weights are in DeepSpeed's ZeRO shards; merge them first: "
                f"python {place / 'zero_to_fp32.py'} {place} {place} --safe_serialization"
            )
        if parts := sorted(place.glob("**/*.distcp")):
            return (
                "the weights are in FSDP shards (.distcp); merge them first: "
                f"accelerate merge-weights {parts[0].parent} {place}"
            )
    return None
