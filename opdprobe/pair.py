"""A student and a teacher that speak one vocabulary, ready to be scored at the same states."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from opdprobe.head import split_head
from opdprobe.rollout import Rollouts, padding_id
from opdprobe.score import Batch, Scores, batches, score
from opdprobe.vocabulary import shared_vocabulary, shared_width


@dataclass(frozen=True)
class Scored:
    """One micro-batch: its states, both models' hidden states there, and what they say.

    Parameters
    ----------
    batch
        The padded rollouts and the N states in them.
    hidden : Tensor (N, D)
        The student's last hidden states; with gradient if gradients are enabled.
    teacher_hidden : Tensor (N, D')
        The teacher's, without.
    scores
        Top-k, entropies and divergence at the same states, without gradient.
    """

    batch: Batch
    hidden: Tensor
    teacher_hidden: Tensor
    scores: Scores


class Pair:
    """A student and a teacher of one vocabulary.

    Parameters
    ----------
    student, teacher : PreTrainedModel
        Causal LMs on one device. Logits beyond the shared vocabulary are cut, with a note.
    tokenizer : PreTrainedTokenizerBase
        The student's.
    teacher_tokenizer : PreTrainedTokenizerBase, optional
        Compared with `tokenizer` if given.

    Raises
    ------
    VocabularyError
        The tokenizers differ; names the first differing token.
    """

    def __init__(
        self,
        student: PreTrainedModel,
        teacher: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        teacher_tokenizer: PreTrainedTokenizerBase | None = None,
    ):
        if teacher_tokenizer is not None:
            shared_vocabulary(tokenizer, teacher_tokenizer)
        self.student = student
        self.teacher = teacher
        self.tokenizer = tokenizer
        self.width = shared_width(student, teacher, tokenizer)
        self.pad_id = padding_id(tokenizer)
        self.student_body, self.student_head = split_head(student, width=self.width)
        self.teacher_body, self.teacher_head = split_head(teacher, width=self.width)

    def scored(
        self, rollouts: Rollouts, *, k: int, temperature: float = 1.0, max_tokens: int = 16384
    ) -> Iterator[Scored]:
        """Run both models over rollouts, one micro-batch of similar lengths at a time.

        Parameters
        ----------
        rollouts
            What the student sampled.
        k
            Tokens kept for either model.
        temperature
            Divides both models' logits.
        max_tokens
            Most tokens a micro-batch may hold, padding included.

        Yields
        ------
        Scored
        """
        device = self.student.device
        for batch in batches(rollouts, max_tokens=max_tokens, pad_id=self.pad_id, device=device):
            hidden = batch.hidden(self.student_body)
            with torch.no_grad():
                teacher_hidden = batch.hidden(self.teacher_body)
            scores = score(
                hidden,
                teacher_hidden,
                self.student_head,
                self.teacher_head,
                batch.sampled_ids,
                k=k,
                temperature=temperature,
            )
            yield Scored(batch, hidden, teacher_hidden, scores)


def in_rollout_order(parts: list[tuple[Tensor, Scores]]) -> Scores:
    """Put micro-batches' scores back into the order of the rollouts, on the host.

    Parameters
    ----------
    parts
        ``(batch.state, scores)`` of every micro-batch.
    """
    order = torch.cat([state for state, _ in parts]).argsort()
    return Scores.concatenate([scores for _, scores in parts]).select(order)
