"""Models with PEFT adapters (LoRA and similar); PEFT itself need not be installed.

Adapters sit inside the layers of a transformers model, so that model computes with them. The
PeftModel around it is needed only to switch them off, to save them and to load them.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, load_model
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from opdprobe.errors import ConfigError, ModelError
from opdprobe.models.head import Body, Head, split_head
from opdprobe.models.lengths import ApartBody
from opdprobe.models.quiet import bars_on_terminals
from opdprobe.models.sharding import is_sharded, load_parts, named_as_whole, on_main


def causal_lm(model: nn.Module) -> PreTrainedModel:
    """Return the transformers model inside a PeftModel; adapters in its layers stay active.

    Raises
    ------
    ConfigError
        The model is not a transformers model, or has a learned prompt.
    """
    inner: Any = model
    if is_adapted(model):
        if any(adapter.is_prompt_learning for adapter in inner.peft_config.values()):
            raise ConfigError(
                "the model has a learned prompt (PEFT prompt learning), which exists outside the "
                "model that is sampled and scored; use an adapter inside its layers, such as LoRA."
            )
        inner = inner.get_base_model()
    if not isinstance(inner, PreTrainedModel):
        raise ConfigError(
            f"a {type(model).__name__} is not a transformers model; expected a causal language "
            "model, with or without PEFT adapters."
        )
    return inner


@contextmanager
def switched_off(model: Any) -> Iterator[None]:
    """Switch a model's adapters off inside the block, then back on as they were."""
    trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        with model.disable_adapter():
            yield
    finally:
        for parameter, wanted in trained:  # PEFT makes all of an adapter trainable
            parameter.requires_grad_(wanted)


def without_adapters(model: Any, width: int) -> tuple[Body, Head]:
    """Split a model without its adapters into body and head, as `split_head` does.

    Parameters
    ----------
    model : peft.PeftModel
        The model. Its adapters are off only while the body runs.
    width
        Number of tokens kept.
    """
    with switched_off(model):
        body, head = split_head(causal_lm(model), width=width)

    def without(**inputs: Any) -> BaseModelOutputWithPast:
        with switched_off(model):
            return body(**inputs)

    if isinstance(body, ApartBody):
        return ApartBody(body.model, without, alone=body.alone), head
    return without, head


def gathered_weights(model: nn.Module) -> dict[str, Tensor] | None:
    """Gather in rank 0 what `save_weights` writes of a sharded model; None for other models.

    Every process must call this.
    """
    if not is_sharded(model):
        return None
    state: dict[str, Tensor] = model.state_dict(keep_vars=True)
    if is_adapted(model):  # base weights are large, and are not written
        base = {id(p) for _, p in base_weights(causal_lm(model)).named_parameters()}
        state = {name: tensor for name, tensor in state.items() if id(tensor) not in base}
    # Tied weights are one tensor under two names, and stay one.
    gathered = {key: on_main(t.detach()) for key, t in {id(t): t for t in state.values()}.items()}
    return {name: gathered[id(tensor)] for name, tensor in state.items()}


def save_weights(model: Any, directory: Path, weights: dict[str, Tensor] | None = None) -> None:
    """Write a model as a Hugging Face directory; if it has adapters, only the active one.

    Parameters
    ----------
    model, directory
        The model, and the directory to write it to.
    weights
        What `gathered_weights` returned; only rank 0 can write it.
    """
    given: dict[str, Any] = {} if weights is None else {"state_dict": weights}
    if is_adapted(model):
        # Embeddings are trained only as modules_to_save; PEFT's own check would ask the hub.
        given |= {"selected_adapters": [model.active_adapter], "save_embedding_layers": False}
    else:
        given |= {"max_shard_size": "1000GB"}
    with named_as_whole(causal_lm(model)), bars_on_terminals():
        model.save_pretrained(directory, **given)


def load_weights(model: Any, directory: Path) -> None:
    """Load what `save_weights` wrote, bit for bit.

    Raises
    ------
    OSError, ValueError, RuntimeError, safetensors.SafetensorError
        A file is missing, torn, or of another model.
    """
    if not is_adapted(model):
        file = directory / "model.safetensors"
        if is_sharded(model):
            load_parts(model.state_dict(keep_vars=True), load_file(file))
        else:
            load_model(model, file)
        return
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    name = model.active_adapter
    if name != "default":  # PEFT saves that one in the directory itself
        directory = directory / name
    weights = load_file(directory / "adapter_model.safetensors")
    expected = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    if differing := weights.keys() ^ expected.keys():
        raise ValueError(f"{min(differing)} is in one of checkpoint and adapter only")
    if is_sharded(model):
        load_parts(expected, weights)
    else:
        set_peft_model_state_dict(model, weights, adapter_name=name)


def merge_adapter(base: PreTrainedModel, directory: Path) -> PreTrainedModel:
    """Merge a saved adapter into its base model.

    Parameters
    ----------
    base : transformers.PreTrainedModel
        The base model. It is changed.
    directory : Path
        Holds `adapter_config.json` and `adapter_model.safetensors`.

    Returns
    -------
    transformers.PreTrainedModel
        The base with the adapter in its weights, and no trace of PEFT.

    Raises
    ------
    ModelError
        PEFT is not installed; the adapter is incomplete, pickled, of another base, or cannot be
        merged exactly.
    """
    try:
        import peft
    except ImportError as error:
        raise ModelError(
            f"{directory}: an adapter, which needs the peft package: pip install peft, or merge "
            "the adapter into its base and save the result."
        ) from error
    file = directory / "adapter_model.safetensors"
    if not file.is_file():
        raise ModelError(
            f"{directory}: an adapter without adapter_model.safetensors: complete the download, or "
            "save it with safe_serialization=True."
        )
    if getattr(base, "is_quantized", False):
        raise ModelError(
            f"{directory}: the adapter's base model is quantised, so merging would round the "
            f"adapter; name the unquantised base: {directory}@BASE."
        )
    try:
        config: Any = peft.PeftConfig.from_pretrained(str(directory))
        if config.is_prompt_learning:
            raise ModelError(
                f"{directory}: a learned prompt ({config.peft_type.value}), which cannot be merged "
                "into its base; expected an adapter inside the layers, such as LoRA."
            )
        config.base_model_name_or_path = base.name_or_path  # PEFT warns if they differ
        weights = load_file(file)
        _untie(base, config, weights)
        own = {name for name, _ in base.named_parameters(remove_duplicate=False)}
        with warnings.catch_warnings():
            # PEFT asks transformers for a property by its old name.
            warnings.filterwarnings("ignore", ".*gradient_checkpointing", FutureWarning)
            model: Any = peft.get_peft_model(base, config)
        expected = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
        if missing := sorted(expected.keys() - weights.keys()):
            raise ModelError(
                f"{directory}: {len(missing)} of the adapter's weights are not in {file.name}; the "
                f"first is {missing[0]}. Expected the complete adapter."
            )
        for key in sorted(weights.keys() - expected.keys()):
            # Trained embeddings are saved under the base's names.
            if key.removeprefix("base_model.model.").replace(".base_layer.", ".") not in own:
                raise ModelError(
                    f"{directory}: the base model has no place for {key} in {file.name}: the "
                    "adapter belongs to another base."
                )
        peft.set_peft_model_state_dict(model, weights)
        # PEFT froze the base; the merged model is one like any other, which can be trained.
        return model.merge_and_unload(safe_merge=True).requires_grad_(True)
    except ModelError:
        raise
    except (OSError, ValueError, LookupError, TypeError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(
            f"{directory}: the adapter does not fit its base model: {reason}; expected an adapter "
            "as PEFT's save_pretrained writes it, and the base that it was trained on."
        ) from error


def _untie(base: PreTrainedModel, config: Any, weights: dict[str, Tensor]) -> None:
    """Separate tied embeddings if the adapter changes only one of them."""
    tied: Any = base.get_input_embeddings()
    head: Any = base.get_output_embeddings()
    if head is None or tied.weight is not head.weight:
        return
    names = [name for name, module in base.named_modules() if module in (tied, head)]
    if any(f".{name}." in key for name in names for key in weights) and not getattr(
        config, "ensure_weight_tying", False
    ):
        head.weight = nn.Parameter(head.weight.detach().clone())
        base.config.get_text_config().tie_word_embeddings = False
        base.config.tie_word_embeddings = False


def is_adapted(model: nn.Module) -> bool:
    """Whether a model has PEFT adapters."""
    return hasattr(model, "get_base_model")


def check_trained(model: nn.Module) -> None:
    """Refuse a model that trains parameters outside its adapter, which are not saved.

    Raises
    ------
    ConfigError
        A parameter of the base model requires gradients.
    """
    if not is_adapted(model):
        return
    beside = [
        name
        for name, parameter in base_weights(causal_lm(model)).named_parameters()
        if parameter.requires_grad
    ]
    if beside:
        raise ConfigError(
            f"{beside[0]} is trained outside the adapter, but a checkpoint holds only the adapter: "
            "freeze it, or name its module in the adapter's modules_to_save."
        )


def base_weights(model: PreTrainedModel) -> nn.Module:
    """Wrap a model to list its parameters without the adapters', under their original names."""
    return _BaseWeights(model)


class _BaseWeights(nn.Module):
    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        added: set[int] = set()
        for layer in self.model.modules():
            # A layer's adapters, and the trained copies of layers that are trained in full.
            for name in (*getattr(layer, "adapter_layer_names", ()), "modules_to_save"):
                if isinstance(adapters := getattr(layer, name, None), nn.Module):
                    added.update(map(id, adapters.parameters()))
        for name, parameter in self.model.named_parameters(*args, **kwargs):
            if id(parameter) not in added:
                for wrapped in (".base_layer.", ".original_module."):
                    name = name.replace(wrapped, ".")
                yield name, parameter
