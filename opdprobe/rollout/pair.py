"""A student and a teacher that share one vocabulary, ready to be scored at the same states."""

import logging
import os
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_layers import GradientCheckpointingLayer

from opdprobe.errors import ConfigError
from opdprobe.models.adapters import causal_lm, is_adapted, without_adapters
from opdprobe.models.devices import resolve_device, resolve_dtype, teacher_default
from opdprobe.models.head import Head, split_head
from opdprobe.models.lengths import ApartBody
from opdprobe.models.load import identity, load_model, load_tokenizer
from opdprobe.models.positions import check_prompts
from opdprobe.models.vocabulary import padding_id, shared_vocabulary, shared_width, stop_ids
from opdprobe.rollout.batches import Batch, batches
from opdprobe.rollout.exact import check_scoring
from opdprobe.rollout.memory import halving
from opdprobe.rollout.prompt import EncodedPrompt, OnError, Prompt
from opdprobe.rollout.sample import Rollouts
from opdprobe.rollout.score import Scores, score

logger = logging.getLogger("opdprobe")


@dataclass(frozen=True)
class Scored:
    """One micro-batch: its states, and both models' hidden states and scores there.

    Parameters
    ----------
    batch
        The padded rollouts and the N states in them.
    hidden : Tensor (N, D)
        The student's last hidden states; with gradient if gradients are enabled.
    teacher_hidden : Tensor (N, D')
        The teacher's last hidden states, without gradient.
    scores
        Top-k, entropies and divergence at the same states, without gradient.
    teacher_head
        What makes logits of the teacher's hidden states; None: that of the only teacher.
    """

    batch: Batch
    hidden: Tensor
    teacher_hidden: Tensor
    scores: Scores
    teacher_head: Head | None = None

    def select(self, rows: Tensor) -> "Scored":
        """Keep some of the states: those that a mask (N,) marks."""
        batch = self.batch
        columns = {
            name: getattr(batch, name)[rows.to(getattr(batch, name).device)]
            for name in ("row", "time", "sampled_ids", "state")
        }
        rows = rows.to(self.hidden.device)
        return Scored(
            replace(batch, **columns, teacher=None),
            self.hidden[rows],
            self.teacher_hidden[rows],
            self.scores.select(rows),
            self.teacher_head,
        )


class Pair:
    """A student and a teacher that share one vocabulary.

    Parameters
    ----------
    student, teacher : PreTrainedModel or peft.PeftModel
        Causal LMs on one device. Logits beyond the shared vocabulary are cut, with a note in
        the log. If both are the same adapted model, the teacher is that model without its adapters.
    tokenizer : PreTrainedTokenizerBase
        The student's.
    teacher_tokenizer : PreTrainedTokenizerBase, optional
        Compared with `tokenizer` if given.

    Attributes
    ----------
    student, teacher : PreTrainedModel
        The causal LMs; adapters are in their layers.
    outer_student : torch.nn.Module
        The student as it was given: with the PeftModel around it, if it has adapters.
    tokenizer, teacher_tokenizer
        As given.

    Raises
    ------
    VocabularyError
        The tokenizers differ; names the first differing token.
    ConfigError
        A model is not a transformers model, or has a learned prompt.
    ModelError
        A model's logits depend on later tokens.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        teacher_tokenizer: PreTrainedTokenizerBase | None = None,
    ):
        if teacher_tokenizer is not None:
            shared_vocabulary(tokenizer, teacher_tokenizer)
        self.student = causal_lm(student)
        self.teacher = causal_lm(teacher)
        self.outer_student = student
        self.tokenizer, self.teacher_tokenizer = tokenizer, teacher_tokenizer
        self.width = shared_width(self.student, self.teacher, tokenizer)
        self.pad_id = padding_id(tokenizer)
        self.student_body, self.student_head = split_head(self.student, width=self.width)
        if self.teacher is self.student and is_adapted(student):
            self.teacher_body, self.teacher_head = without_adapters(student, self.width)
        else:
            self.teacher_body, self.teacher_head = split_head(self.teacher, width=self.width)
        check_scoring(self.student, self.student_body, self.student_head)
        check_scoring(self.teacher, self.teacher_body, self.teacher_head)

    def length_class(self, student: int, teacher: int) -> Hashable:
        """Name what the models compute for a text of `student` and one of `teacher` tokens.

        Texts of different classes must not share a pass (`opdprobe.models.lengths`).
        """
        bodies = (self.student_body, student), (self.teacher_body, teacher)
        return tuple(b.length_class(n) for b, n in bodies if isinstance(b, ApartBody))

    def stop_ids(self) -> tuple[list[int], list[int]]:
        """Return the tokens with which the student, and the teacher, ends a response.

        Those that the models share; the settings of a model may name others.
        """
        tokenizers = self.tokenizer, self.teacher_tokenizer or self.tokenizer
        student, teacher = (
            [token for token in stop_ids(model, tokenizer) if token < self.width]
            for model, tokenizer in zip((self.student, self.teacher), tokenizers, strict=True)
        )
        return student, teacher

    def with_each_teacher(self) -> list["Pair"]:
        """Return a pair for each teacher whose hidden states this one has: here, itself."""
        return [self]

    def teachers_of(self, prompts: Sequence[Prompt]) -> list[str] | None:
        """Name the teacher of each prompt; None: there is only one teacher."""

    def taught(self, prompts: Sequence[Prompt], on_error: OnError = "raise") -> Sequence[Prompt]:
        """Return the prompts for which there is a teacher: here, all."""
        return prompts

    def check_teacher(self, prompts: Sequence[EncodedPrompt], longest: int) -> None:
        """Refuse prompts and responses for which the teacher has no embeddings or no positions.

        Raises
        ------
        PromptError, ModelError
            As `opdprobe.models.positions.check_prompts`.
        """
        check_prompts(self.teacher, [p.teacher_ids or p.ids for p in prompts], longest)

    def teacher_identity(self) -> dict[str, Any]:
        """Name, revision and weight hash of the teacher, as a run records it."""
        return identity(self.teacher)

    @classmethod
    def load(
        cls,
        student: nn.Module | str | Path,
        teacher: nn.Module | str | Path,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        teacher_tokenizer: PreTrainedTokenizerBase | None = None,
        device: str | torch.device | None = "auto",
        dtype: str | torch.dtype | None = None,
        teacher_dtype: str | torch.dtype | None = None,
        attn_implementation: str | None = None,
    ) -> "Pair":
        """Load models that are given by name or path, and make a pair.

        The tokenizers are compared before any weights are read.

        Parameters
        ----------
        student, teacher
            A model, or its name or path.
        tokenizer
            The student's. Read from `student` if that is a name or path.
        teacher_tokenizer
            Compared with `tokenizer` if given. Read from `teacher` if that is a name or path.
        device
            Where both models go. By default ("auto"), a model that is already loaded stays where it
            is, and the other goes there; if neither is loaded, both go to the machine's
            accelerator, or stay on the CPU if there is none.
        dtype
            Dtype of a model that is given by name, as for `opdprobe.load_model`; float32 by
            default, but bfloat16 for a teacher on an accelerator.
        teacher_dtype
            The teacher's, if it is given by name; by default as `dtype` says.
        attn_implementation
            How models that are given by name compute attention, as for `opdprobe.load_model`.

        Raises
        ------
        ModelError
            A model or tokenizer does not load.
        ConfigError
            The student is already loaded, and `tokenizer` is missing; or the machine has no such
            device.
        VocabularyError
            The tokenizers differ; names the first differing token.
        OutOfMemoryError
            A model does not fit into the device's memory.
        """
        if isinstance(teacher, os.PathLike):  # a TeacherCache, too, which is then refused
            teacher = Path(teacher)
        loaded = [model for model in (student, teacher) if isinstance(model, nn.Module)]
        if loaded and (device is None or str(device) == "auto"):
            place, stays = causal_lm(loaded[0]).device, len(loaded) == 2
        else:
            place, stays = resolve_device(device), False
        theirs = teacher_default(place, dtype, teacher_dtype)
        resolve_dtype(dtype)
        if isinstance(student, str | Path):
            tokenizer = tokenizer or load_tokenizer(student)
        if isinstance(teacher, str | Path):
            teacher_tokenizer = teacher_tokenizer or load_tokenizer(teacher)
        if tokenizer is None:
            raise ConfigError("pass tokenizer= along with a student that is already loaded.")
        if teacher_tokenizer is not None:
            shared_vocabulary(tokenizer, teacher_tokenizer)
        if isinstance(student, str | Path):
            student = load_model(
                student, device=place, dtype=dtype, attn_implementation=attn_implementation
            )
        if isinstance(teacher, str | Path):
            if dtype is None and teacher_dtype is None and theirs is torch.bfloat16:
                logger.info("%s is loaded in bfloat16, the default on %s.", teacher, place)
            teacher = load_model(
                teacher, device=place, dtype=theirs, attn_implementation=attn_implementation
            )
        models: tuple[Any, Any] = student, teacher
        for model in models:
            if not stays and causal_lm(model).device != place:
                model.to(place)
        pair = cls(student, teacher, tokenizer)
        pair.teacher_tokenizer = teacher_tokenizer  # compared above
        return pair

    def teacher_states(self, batch: Batch) -> Tensor:
        """Return what `teacher_head` reads at the states of a batch, (N, D')."""
        return batch.teacher_hidden(self.teacher_body)

    def all_scores(
        self, rollouts: Rollouts, *, k: int, temperature: float, micro_batch_tokens: int
    ) -> tuple[Scores, int]:
        """Score every state of some rollouts, in smaller micro-batches where memory runs out.

        Returns
        -------
        scores
            In rollout order, on the host.
        micro_batch_tokens
            The most tokens that fitted, for the next call.
        """
        parts, micro_batch_tokens = halving(
            lambda tokens: [
                (part.batch.state, part.scores.cpu())
                for part in self.scored(
                    rollouts, k=k, temperature=temperature, micro_batch_tokens=tokens
                )
            ],
            rollouts,
            micro_batch_tokens=micro_batch_tokens,
            device=self.student.device,
            doing="scoring",
        )
        return in_rollout_order(parts), micro_batch_tokens

    def scored(
        self,
        rollouts: Rollouts,
        *,
        k: int,
        temperature: float = 1.0,
        micro_batch_tokens: int = 16384,
    ) -> Iterator[Scored]:
        """Run both models over rollouts, one micro-batch of similar lengths at a time.

        Parameters
        ----------
        rollouts
            What the student sampled.
        k
            Number of top tokens kept per model.
        temperature
            Divides both models' logits.
        micro_batch_tokens
            Most tokens a micro-batch may hold, padding included.

        Yields
        ------
        Scored
        """
        device, stops = self.student.device, self.stop_ids()
        for batch in batches(
            rollouts,
            micro_batch_tokens=micro_batch_tokens,
            pad_id=self.pad_id,
            device=device,
            apart=self.length_class,
        ):
            with recomputing(self.student):
                hidden = batch.hidden(self.student_body)
            with torch.no_grad():
                teacher_hidden = self.teacher_states(batch)
            scores = score(
                hidden,
                teacher_hidden,
                self.student_head,
                self.teacher_head,
                batch.sampled_ids,
                k=k,
                temperature=temperature,
                stop_ids=stops,
            )
            yield Scored(batch, hidden, teacher_hidden, scores, self.teacher_head)


@contextmanager
def recomputing(model: PreTrainedModel) -> Iterator[None]:
    """Make layers that are marked for gradient checkpointing do it in evaluation mode, too.

    transformers does it only in training mode, which also switches dropout on: the trained
    distribution would then differ from the sampled one. So each layer is in training mode when it
    decides whether to checkpoint, and in evaluation mode when it computes.
    """
    layers: list[Any] = [
        layer
        for layer in model.modules()
        if torch.is_grad_enabled()
        and isinstance(layer, GradientCheckpointingLayer)
        and layer.gradient_checkpointing
        and not layer.training
    ]
    functions = [layer._gradient_checkpointing_func for layer in layers]
    for layer, function in zip(layers, functions, strict=True):
        layer.training = True
        layer._gradient_checkpointing_func = _evaluating(layer, function)
    try:
        yield
    finally:
        for layer, function in zip(layers, functions, strict=True):
            layer.training = False
            layer._gradient_checkpointing_func = function


def _evaluating(layer: nn.Module, function: Callable[..., Any]) -> Callable[..., Any]:
    def checkpoint(*args: Any, **kwargs: Any) -> Any:
        layer.training = False
        return function(*args, **kwargs)

    return checkpoint


def in_rollout_order(parts: list[tuple[Tensor, Scores]]) -> Scores:
    """Put micro-batches' scores back into the order of the rollouts, on the host.

    Parameters
    ----------
    parts
        ``(batch.state, scores)`` of every micro-batch.
    """
    order = torch.cat([state for state, _ in parts]).argsort()
    return Scores.concatenate([scores for _, scores in parts]).select(order)
