"""Several teachers at once: their distributions are mixed by weight, q = Σ wᵢ qᵢ.

A mixture is scored as one teacher. Its "hidden states" are those of all teachers side by side, with
log wᵢ - log Zᵢ of each; its head makes log q of them, token by token, so that no teacher's logits
are held longer than a tile.
"""

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from opdprobe.errors import ConfigError, VocabularyError, shown
from opdprobe.models.head import Head
from opdprobe.models.lengths import ApartBody
from opdprobe.models.load import identity
from opdprobe.models.positions import check_prompts
from opdprobe.rollout.batches import Batch
from opdprobe.rollout.pair import Pair
from opdprobe.rollout.prompt import EncodedPrompt
from opdprobe.rollout.tiles import chunk_rows


class Mixture(dict[str, Any]):
    """Teachers by name, and how much each counts.

    Parameters
    ----------
    teachers : mapping of str to PreTrainedModel or str or Path
        Two or more, by the name under which a run lists them.
    weights : mapping of str to float
        Of the same names, above 0; they are divided by their sum.

    Raises
    ------
    ConfigError
        There are fewer than two teachers, or a weight is missing or no number above 0.

    Examples
    --------
    >>> Mixture({"a": "my/a", "b": "my/b"}, {"a": 3, "b": 1}).weights
    {'a': 0.75, 'b': 0.25}
    """

    def __init__(self, teachers: Mapping[str, Any], weights: Mapping[str, float]):
        super().__init__(teachers)
        if len(teachers) < 2 or set(weights) != set(teachers):
            raise ConfigError(
                f"a mixture of {len(teachers)} teachers ({', '.join(map(shown, teachers))}) with "
                f"weights of {', '.join(map(shown, weights)) or 'none'}; expected two or more "
                "teachers, and a weight of each."
            )
        for name, weight in weights.items():
            if not 0 < weight < math.inf:
                raise ConfigError(
                    f"weight {weight} of teacher {shown(name)}; expected a number above 0."
                )
        total = sum(weights.values())
        self.weights = {name: weights[name] / total for name in teachers}


@dataclass(frozen=True)
class MixtureHead(Head):
    """Make log q of a mixture's hidden states; see the module.

    Attributes
    ----------
    parts : tuple of (Head, int)
        Head and hidden size of each teacher.
    """

    parts: tuple[tuple[Head, int], ...] = ()

    def __call__(self, hidden_ND: Tensor, tile: slice | None = None) -> Tensor:
        """Compute log q of all tokens, or of a range of tokens, (..., V)."""
        return _mixed(head(own, tile) + shift for head, own, shift in self._each(hidden_ND))

    @torch.no_grad()
    def fill(self, out_NC: Tensor, hidden_ND: Tensor, tile: slice) -> None:
        """Write log q of a range of tokens into a tensor (N, C)."""
        out_NC.copy_(self(hidden_ND, tile))

    def columns(self, hidden_ND: Tensor, ids_NK: Tensor) -> Tensor:
        """Compute log q of some tokens of each row, (..., K)."""
        each = self._each(hidden_ND)
        return _mixed(head.columns(own, ids_NK) + shift for head, own, shift in each)

    def _each(self, hidden: Tensor) -> Iterator[tuple[Head, Tensor, Tensor]]:
        """Cut rows of a mixture: each teacher's head, hidden states, and log w - log Z (..., 1)."""
        *own, shifts = hidden.split([*(size for _, size in self.parts), len(self.parts)], -1)
        for i, ((head, _), states) in enumerate(zip(self.parts, own, strict=True)):
            weight = None if head.projection is None else head.projection.weight
            # They were widened without loss to stand beside the shifts.
            yield head, states if weight is None else states.to(weight.dtype), shifts[..., i, None]


def _mixed(parts: Iterator[Tensor]) -> Tensor:
    total = next(parts)
    for part in parts:
        total = torch.logaddexp(total, part)
    return total


class MixturePair(Pair):
    """A student and a mixture of teachers, used as a `Pair`.

    Where a pair has one teacher (`teacher`, its tokenizer), this has the first one.

    Parameters
    ----------
    student : PreTrainedModel or peft.PeftModel or str or Path
        As for `Pair.load`.
    mixture : Mixture
        All its teachers are in memory.
    own_template : bool
        Whether the prompts are formed by the teachers' own chat template, which must be one.
    **loading
        As for `Pair.load`.

    Raises
    ------
    ConfigError
        The student is one of the teachers, or their own chat templates differ.
    ModelError, VocabularyError, OutOfMemoryError
        As for `Pair.load`; or the teachers share different numbers of tokens with the student.
    """

    def __init__(
        self, student: Any, mixture: Mixture, *, own_template: bool = False, **loading: Any
    ):
        self.weights = mixture.weights
        self.pairs: dict[str, Pair] = {}
        for name, teacher in mixture.items():
            pair = Pair.load(student, teacher, **loading)
            if pair.teacher is pair.student:
                raise ConfigError(
                    f"teacher {shown(name)} is the student itself; expected models that training "
                    "does not change."
                )
            first = next(iter(self.pairs.values()), pair)
            if pair.width != first.width:
                raise VocabularyError(
                    f"teacher {shown(next(iter(mixture)))} shares {first.width} tokens with the "
                    f"student, and {shown(name)} {pair.width}; expected teachers of one vocabulary."
                )
            templates = [_template(one) for one in (first, pair)]
            if own_template and templates[0] != templates[1]:
                raise ConfigError(
                    f"teacher_template = 'own', and the chat templates of teachers "
                    f"{shown(next(iter(mixture)))} and {shown(name)} differ; expected one, or "
                    "prompts with a column teacher_prompt."
                )
            pair.teacher.eval().requires_grad_(False)
            if not self.pairs:  # the student is loaded once
                student, loading = pair.outer_student, {**loading, "tokenizer": pair.tokenizer}
                loading.pop("teacher_tokenizer", None)
            self.pairs[name] = pair
        vars(self).update(vars(next(iter(self.pairs.values()))))
        parts = tuple((pair.teacher_head, _size(pair.teacher_head)) for pair in self.pairs.values())
        self.teacher_head = MixtureHead(None, self.width, parts=parts)

    @property
    def reusable(self) -> Mixture:
        """The mixture of the loaded teachers, for another student."""
        return Mixture({name: one.teacher for name, one in self.pairs.items()}, self.weights)

    def with_each_teacher(self) -> list[Pair]:
        """Return the pairs of the student and one teacher."""
        return list(self.pairs.values())

    def length_class(self, student: int, teacher: int) -> Hashable:
        """Name what all the models compute; see `Pair.length_class`."""
        bodies = [(self.student_body, student)]
        bodies += [(pair.teacher_body, teacher) for pair in self.pairs.values()]
        return tuple(b.length_class(n) for b, n in bodies if isinstance(b, ApartBody))

    def stop_ids(self) -> tuple[list[int], list[int]]:
        """Return the tokens with which the student, and any of the teachers, ends a response."""
        student, _ = next(iter(self.pairs.values())).stop_ids()
        each = [pair.stop_ids()[1] for pair in self.pairs.values()]
        return student, sorted({token for ids in each for token in ids})

    def check_teacher(self, prompts: Sequence[EncodedPrompt], longest: int) -> None:
        """Refuse prompts and responses for which a teacher has no embeddings or no positions."""
        for pair in self.pairs.values():
            check_prompts(pair.teacher, [p.teacher_ids or p.ids for p in prompts], longest)

    def teacher_identity(self) -> dict[str, Any]:
        """Name the teachers with their weights, as a run records them."""
        named = " + ".join(f"{weight:.3g} {name}" for name, weight in self.weights.items())
        each = {
            name: {**identity(pair.teacher), "weight": self.weights[name]}
            for name, pair in self.pairs.items()
        }
        return {"name": named, "teachers": each}

    def teacher_states(self, batch: Batch) -> Tensor:
        """Run all teachers over a batch; their hidden states side by side, and the shifts."""
        states, shifts = [], []
        for name, pair in self.pairs.items():
            hidden = batch.teacher_hidden(pair.teacher_body)
            log_z = [
                pair.teacher_head(hidden[rows]).logsumexp(-1)
                for rows in chunk_rows(len(hidden), self.width)
            ]
            shifts.append(math.log(self.weights[name]) - torch.cat([*log_z, hidden.new_zeros(0)]))
            states.append(hidden[:, : _size(pair.teacher_head)])
        wide = torch.promote_types(states[0].dtype, torch.float32)
        columns = [*states, torch.stack(shifts, -1)]
        return torch.cat([column.to(wide) for column in columns], -1)


def _template(pair: Pair) -> Any:
    return getattr(pair.teacher_tokenizer, "chat_template", None)


def _size(head: Head) -> int:
    """Size of what a head reads; without a projection, its "hidden states" are logits."""
    return head.width if head.projection is None else head.projection.in_features
