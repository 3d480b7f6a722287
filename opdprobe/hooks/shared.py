"""What the hooks share: finding and naming the models, and running them without side effects."""

import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from accelerate.utils import extract_model_from_parallel
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from opdprobe.errors import ConfigError
from opdprobe.models.adapters import causal_lm
from opdprobe.models.devices import precision, same_randomness
from opdprobe.models.head import evaluating
from opdprobe.models.vocabulary import tokenizer_hash
from opdprobe.rollout.pair import Pair
from opdprobe.rollout.prompt_attrs import prompt_set, template_attrs
from opdprobe.rollout.prompts import EncodedPrompt, OnError, Prompt, encode_prompts
from opdprobe.rollout.teacher_context import TeacherContext
from opdprobe.rollout.teachers import load_pair
from opdprobe.store import open_run
from opdprobe.train.config import Config

logger = logging.getLogger("opdprobe")

# Attributes of a parameter of which this process holds only a part: FSDP 2 and tensor parallelism;
# FSDP 1, whether it shows its flat parameters or the original ones.
_SHARDED = ("device_mesh", "_fsdp_flattened")


@dataclass(frozen=True)
class ProbeConfig(Config):
    """How a student is probed; a run of probes stores it as its settings.

    Parameters
    ----------
    k
        Tokens kept per model and state.
    num_generations
        Rollouts per prompt.
    max_completion_length
        Longest response, in tokens.
    temperature
        Temperature of sampling and of the recorded distributions.
    seed
        Seed of the rollouts, which depend on seed and step.
    every
        Steps between two probes; None if the checkpoints decide.
    """

    k: int = 16
    num_generations: int = 4
    max_completion_length: int = 512
    temperature: float = 1.0
    seed: int = 0
    every: int | None = None

    _positive: ClassVar = ("k", "num_generations", "max_completion_length", "temperature", "every")
    _not_negative: ClassVar = ("seed",)

    def sampling(self) -> dict[str, Any]:
        """Arguments of `opdprobe.rollout.once.probe`."""
        return {name: value for name, value in self.to_dict().items() if name != "every"}


def innermost(model: nn.Module) -> PreTrainedModel:
    """Find the transformers model inside a trainer's wrappers, whether or not it is sharded."""
    return causal_lm(extract_model_from_parallel(model, keep_torch_compile=False))


def unwrap(model: nn.Module) -> PreTrainedModel:
    """Find the transformers model inside a trainer's wrappers.

    Parameters
    ----------
    model : torch.nn.Module
        A model, compiled, in DistributedDataParallel, or under PEFT adapters. Adapters in its
        layers (LoRA and similar) stay active.

    Raises
    ------
    ConfigError
        Its parameters are sharded over processes, it has a learned prompt, or it is not a
        transformers model.
    """
    if any(map(_is_part, model.parameters())):
        raise ConfigError(
            "the student's parameters are sharded over processes, so one process cannot run it "
            "alone. ProbeCallback gathers a student under FSDP 2 (fsdp_version: 2) and DeepSpeed "
            "ZeRO-3; otherwise save checkpoints and use probe_checkpoints on them."
        )
    return innermost(model)


def _is_part(parameter: Any) -> bool:
    """Whether this process holds only a part of a parameter, which is not gathered now."""
    if hasattr(parameter, "ds_numel"):  # DeepSpeed ZeRO-3
        return parameter.numel() < parameter.ds_numel
    return any(hasattr(parameter, mark) for mark in _SHARDED)


@contextmanager
def loading_whole_models() -> Iterator[None]:
    """Have transformers load full models inside the block, though it trains with ZeRO-3.

    It would partition a model that only one process loads, and wait for the others.
    """
    settings: Any = import_module("transformers.integrations.deepspeed")
    before = getattr(settings, "_hf_deepspeed_config_weak_ref", None)
    if before is None:  # no ZeRO-3
        yield
        return
    settings.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        settings._hf_deepspeed_config_weak_ref = before


@contextmanager
def undisturbed(*models: nn.Module) -> Iterator[None]:
    """Run the block in evaluation mode, then restore modes and global random states.

    The states are Python's, numpy's and torch's (of the CPU and of the models' devices), whatever
    draws from them: a grader, a model's initialisation.
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002  # the global state is restored
    with same_randomness(*models), ExitStack() as modes:
        for model in models:
            modes.enter_context(evaluating(model))
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)  # noqa: NPY002  # as above


def make_pair(
    student: PreTrainedModel | str | Path,
    teacher: PreTrainedModel | str | Path | Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    teacher_tokenizer: PreTrainedTokenizerBase | None,
    *,
    device: str | torch.device = "auto",
    teacher_by: str | None = None,
    one_teacher_at_a_time: bool = False,
    **loading: Any,
) -> Pair:
    """Load the models that are names, move both to one device, compare vocabularies.

    Parameters
    ----------
    device
        By default, the student's if it is loaded.
    teacher_by, one_teacher_at_a_time
        As for `opdprobe.rollout.teachers.load_pair`, with several teachers by name.
    **loading
        ``dtype``, ``teacher_dtype`` and ``attn_implementation``, as for `Pair.load`, and
        ``own_template``, as for `opdprobe.rollout.teachers.load_pair`.

    Raises
    ------
    ModelError
        The teacher or its tokenizer does not load.
    VocabularyError
        The tokenizers differ; names the first differing token.
    """
    return load_pair(
        student,
        teacher,
        by=teacher_by,
        one_at_a_time=one_teacher_at_a_time,
        tokenizer=tokenizer,
        teacher_tokenizer=teacher_tokenizer,
        device=student.device if device == "auto" and isinstance(student, nn.Module) else device,
        **loading,
    )


def encode(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt] | str | Path,
    max_prompt_length: int = 1024,
    on_error: OnError = "raise",
    chat_template_kwargs: Mapping[str, Any] | None = None,
    system_prompt: str | None = None,
    teacher_context: TeacherContext | None = None,
    teacher_tokenizer: PreTrainedTokenizerBase | None = None,
) -> tuple[list[EncodedPrompt], dict[str, Any]]:
    """Encode prompts, and describe them for the run's attributes.

    A resumed run detects another set by that.
    """
    encoded = encode_prompts(
        tokenizer,
        prompts,
        max_prompt_length=max_prompt_length,
        on_error=on_error,
        chat_template_kwargs=chat_template_kwargs,
        system_prompt=system_prompt,
        teacher=teacher_context,
        teacher_tokenizer=teacher_tokenizer,
    )
    own = getattr(teacher_tokenizer, "chat_template", None)
    asked = teacher_context or TeacherContext()
    if asked.template == "student" and own is not None and own != tokenizer.chat_template:
        logger.warning(
            "The teacher's chat template differs from the student's; both models see the "
            "prompts in the student's, as in on-policy distillation. `opdprobe preflight "
            "--teacher-template own` measures what the teacher's own changes."
        )
    return encoded, {
        "prompts": prompt_set(encoded),
        "chat_template": template_attrs(
            tokenizer, encoded, chat_template_kwargs, system_prompt, teacher_context
        ),
        "max_prompt_length": max_prompt_length,
        "on_error": on_error,
    }


def recorded_attrs(run_dir: Path) -> dict[str, Any]:
    """Attributes of the run in a directory; none where there is no run."""
    return open_run(run_dir).attrs if (run_dir / "run.json").exists() else {}


def run_attrs(
    pair: Pair,
    student: Mapping[str, Any],
    teacher: Mapping[str, Any],
    *,
    recorded_by: str,
    k: int,
    temperature: float,
    mixed_precision: str = "no",
    **more: Any,
) -> dict[str, Any]:
    """Attributes of a run, named as in `opdprobe.OPDTrainer`."""
    return {
        "recorded_by": recorded_by,
        "student": dict(student),
        "teacher": dict(teacher),
        "tokenizer_hash": tokenizer_hash(pair.tokenizer),
        "vocabulary": pair.width,
        "k": k,
        "temperature": temperature,
        **precision({"student": pair.student, "teacher": pair.teacher}, mixed_precision),
        **more,
    }
