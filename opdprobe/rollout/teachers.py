"""Several teachers of one student: a column of the prompts names which of them scores a rollout."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from opdprobe.errors import ConfigError, VocabularyError, shown
from opdprobe.models.devices import release
from opdprobe.models.load import identity
from opdprobe.models.positions import check_prompts
from opdprobe.rollout.mixture import Mixture, MixturePair
from opdprobe.rollout.pair import Pair, Scored
from opdprobe.rollout.prompt import EncodedPrompt, OnError, Prompt, report_faults
from opdprobe.rollout.sample import Rollouts

Teacher = nn.Module | str | Path

# What a pair has of its teacher.
_TEACHERS = ("teacher", "teacher_body", "teacher_head")


class TeacherPairs(Pair):
    """A student and several teachers: each scores the rollouts of the prompts that name it.

    It is used as a `Pair`: what a single teacher would add to it (`teacher`, `teacher_body`,
    `teacher_head`) is that of the first one, which is in memory unless another one's turn is now.

    Parameters
    ----------
    student : PreTrainedModel or peft.PeftModel or str or Path
        As for `Pair.load`.
    teachers : mapping of str to PreTrainedModel or str or Path
        The teachers by name.
    by : str
        Column of the prompts that holds the name of the teacher.
    one_at_a_time : bool
        Keep one teacher in memory, and read the next one's files when its turn comes: once for
        every teacher and step. Only for teachers that are given by name.
    own_template : bool
        Whether the prompts are formed by the teachers' own chat template, which must be one.
    **loading
        As for `Pair.load`.

    Raises
    ------
    ConfigError
        There are fewer than two teachers; a teacher that is already loaded, with `one_at_a_time`;
        the student is one of the teachers; or their own chat templates differ.
    ModelError, VocabularyError, OutOfMemoryError
        As for `Pair.load`; or the teachers share different numbers of tokens with the student.
    """

    def __init__(
        self,
        student: Teacher,
        teachers: Mapping[str, Teacher],
        *,
        by: str,
        one_at_a_time: bool = False,
        own_template: bool = False,
        **loading: Any,
    ):
        if len(teachers) < 2:
            raise ConfigError(
                f"{len(teachers)} teacher by name ({', '.join(map(shown, teachers))}); expected "
                "two or more: give a single one as it is."
            )
        if one_at_a_time and any(isinstance(one, nn.Module) for one in teachers.values()):
            raise ConfigError(
                "one teacher at a time is read from its files, and a teacher is already loaded; "
                "expected names or paths."
            )
        self.by, self._keep, self._own_template = by, not one_at_a_time, own_template
        self._pairs: dict[str, Pair] = {}
        self._models, self._files = dict(teachers), {}
        self.identities: dict[str, dict[str, Any]] = {}
        self._load: dict[str, Callable[[], Pair]] = {}
        for name, teacher in teachers.items():
            self._files[name] = _stamp(teacher)
            pair = Pair.load(student, teacher, **loading)
            if pair.teacher is pair.student:
                raise ConfigError(
                    f"teacher {shown(name)} is the student itself; expected models that training "
                    "does not change."
                )
            if not self.identities:  # the student is loaded once, and serves all teachers
                student, loading = pair.outer_student, {**loading, "tokenizer": pair.tokenizer}
                loading.pop("teacher_tokenizer", None)  # the others have their own
                own = {key: value for key, value in vars(pair).items() if key not in _TEACHERS}
                vars(self).update(own)
            if pair.width != self.width:
                raise VocabularyError(
                    f"teacher {shown(self.names[0])} shares {self.width} tokens with the student, "
                    f"and {shown(name)} {pair.width}; expected teachers of one vocabulary."
                )
            self._check_template(name, pair)
            self._load[name] = partial(Pair.load, student, teacher, **loading)
            self.identities[name] = identity(pair.teacher)
            self._pairs[name] = self._frozen(pair)
            if not self._keep:
                self._pairs.clear()
                del pair
                release(self.student.device)
        self.of(self.names[0])
        self._show(self.names[0])

    def _check_template(self, name: str, pair: Pair) -> None:
        own = getattr(pair.teacher_tokenizer, "chat_template", None)
        first = getattr(self.teacher_tokenizer, "chat_template", None)
        if self._own_template and own != first:
            raise ConfigError(
                f"teacher_template = 'own', and the chat templates of teachers "
                f"{shown(next(iter(self.identities)))} and {shown(name)} differ; expected one, or "
                "prompts with a column teacher_prompt."
            )

    @property
    def names(self) -> list[str]:
        """Names of the teachers, in the order in which they were given."""
        return list(self.identities)

    def of(self, name: str) -> Pair:
        """Return the student with one of the teachers, which is read from its files if need be.

        Raises
        ------
        ConfigError
            The files hold other weights than before.
        """
        if name not in self._pairs:
            self._pairs.clear()
            for attribute in _TEACHERS:
                vars(self).pop(attribute, None)
            release(self.student.device)
            files = _stamp(self._models[name])
            pair = self._load[name]()
            if files is None or files != self._files[name]:  # hashing takes as long as reading
                if identity(pair.teacher)["weight_hash"] != self.identities[name]["weight_hash"]:
                    raise ConfigError(
                        f"the files of teacher {shown(name)} have changed since the run began; "
                        "expected the same weights at each step."
                    )
                self._files[name] = files
            self._pairs[name] = self._frozen(pair)
            self._show(name)
        return self._pairs[name]

    def _show(self, name: str) -> None:
        for attribute in _TEACHERS:
            setattr(self, attribute, getattr(self._pairs[name], attribute))

    @staticmethod
    def _frozen(pair: Pair) -> Pair:
        pair.teacher.eval().requires_grad_(False)
        return pair

    def teachers_of(self, prompts: Sequence[Prompt]) -> list[str]:
        """Name the teacher of each prompt."""
        return [str(prompt.meta[self.by]) for prompt in prompts]

    def taught(self, prompts: Sequence[Prompt], on_error: OnError = "raise") -> list[Prompt]:
        """Return the prompts, each of which names a teacher; see `taught`."""
        return taught(prompts, self.by, self.names, on_error)

    @property
    def reusable(self) -> dict[str, PreTrainedModel] | None:
        """The teachers, already loaded, for another student; None if only one is in memory."""
        return {name: one.teacher for name, one in self._pairs.items()} if self._keep else None

    def check_teacher(self, prompts: Sequence[EncodedPrompt], longest: int) -> None:
        """Do nothing: a teacher is asked when its turn comes, with the rollouts that it scores."""

    def teacher_identity(self) -> dict[str, Any]:
        """Name the teachers, as a run records them."""
        named = (f"{name}: {Path(one['name']).name}" for name, one in self.identities.items())
        return {"name": ", ".join(named), "by": self.by, "teachers": self.identities}

    def scored(
        self,
        rollouts: Rollouts,
        *,
        k: int,
        temperature: float = 1.0,
        micro_batch_tokens: int = 16384,
    ) -> Iterator[Scored]:
        """Run the models over rollouts as `Pair.scored` does, one teacher's after the other's."""
        assert rollouts.teachers is not None
        counts = [len(rollouts.states(i)) for i in range(len(rollouts))]
        first = torch.tensor([0, *counts]).cumsum(0).tolist()
        for name in self.names:
            chosen = [i for i, own in enumerate(rollouts.teachers) if own == name]
            if not any(counts[i] for i in chosen):
                continue
            some, pair = rollouts.pick(chosen), self.of(name)
            longest = max(map(len, some.response_ids))
            check_prompts(pair.teacher, some.read_by("teacher").prompt_ids, longest)
            places = torch.tensor([j for i in chosen for j in range(first[i], first[i + 1])])
            for part in pair.scored(
                some, k=k, temperature=temperature, micro_batch_tokens=micro_batch_tokens
            ):
                batch = replace(part.batch, state=places[part.batch.state])
                yield replace(part, batch=batch)


def _stamp(teacher: Teacher) -> tuple[tuple[str, int, int], ...] | None:
    """Name, size and time of a model's files; None where they cannot be listed (the hub)."""
    if isinstance(teacher, nn.Module) or not Path(teacher).is_dir():
        return None
    found = ((file.name, file.stat()) for file in sorted(Path(teacher).iterdir()))
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in found)


def taught(
    prompts: Sequence[Prompt], by: str, names: Sequence[str], on_error: OnError = "raise"
) -> list[Prompt]:
    """Return the prompts whose column `by` names one of the teachers.

    Raises
    ------
    PromptError
        A prompt has no such column, or names no teacher; with "skip", all do.
    """
    kept, faults = [], []
    expected = ", ".join(map(shown, names))
    for number, prompt in enumerate(prompts):
        named = prompt.meta.get(by)
        if str(named) in names:
            kept.append(prompt)
            continue
        has = ", ".join(sorted(map(shown, prompt.meta))) or "none"
        fault = f"{by} is {shown(named)}; expected one of {expected}"
        if named is None:
            fault = f"no column {shown(by)} to choose a teacher by; its columns: {has}"
        faults.append(f"row {number} (id {shown(prompt.id)}): {fault}")
    report_faults(
        "teacher_by",
        faults,
        len(prompts),
        kept=len(kept),
        on_error=on_error,
        cure=", name a teacher for each",
    )
    return kept


def load_pair(
    student: Teacher,
    teacher: Teacher | Mapping[str, Teacher],
    *,
    by: str | None,
    one_at_a_time: bool = False,
    own_template: bool = False,
    **loading: Any,
) -> Pair:
    """Load a student with one teacher, with several by name, or with a mixture of several.

    Parameters
    ----------
    student, teacher, **loading
        As for `Pair.load`, or `TeacherPairs`.
    by, one_at_a_time, own_template
        As for `TeacherPairs`; `by` is None with a single teacher.

    Raises
    ------
    ConfigError
        There are several teachers and no column to choose by, or the other way round.
    """
    if isinstance(teacher, Mixture):
        if by is not None or one_at_a_time:
            raise ConfigError(
                "a mixture of teachers beside teacher_by, or one teacher at a time; expected "
                "teachers by name, each for its prompts, or a mixture that is in memory."
            )
        return MixturePair(student, teacher, own_template=own_template, **loading)
    if isinstance(teacher, Mapping):
        if by is None:
            raise ConfigError(
                f"{len(teacher)} teachers by name and no teacher_by; expected the column of the "
                "prompts that names the teacher (--teacher-by)."
            )
        several = {"by": by, "one_at_a_time": one_at_a_time, "own_template": own_template}
        return TeacherPairs(student, teacher, **several, **loading)
    if by is not None or one_at_a_time:
        raise ConfigError(
            f"teacher_by = {shown(by)} with a single teacher; expected teachers by name "
            "(--teacher NAME=MODEL, repeated)."
        )
    return Pair.load(student, teacher, **loading)
