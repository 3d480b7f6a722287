"""How much memory a job will take, told before the weights are read.

The estimate counts what grows with the models and the sizes of a job; the libraries themselves are
in memory already. docs/scaling.md compares it with measured peaks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from opdprobe.errors import ModelError
from opdprobe.models.devices import free_bytes, resolve_dtype, teacher_default
from opdprobe.models.sizes import ModelSize, UnknownSizeError
from opdprobe.rollout.batches import most_tokens
from opdprobe.rollout.packed_weights import packs

# Share of a cache's buffers that is room for further tokens.
_ROOM = 1.25
# What the first steps load and keep: kernels, the writer's buffers. Measured with tiny models.
_OTHER = 6e7
# The libraries in a further process; 0.25 GB were measured as it began.
_PROCESS = 3e8
# Numbers per state that one chunk of the output head holds, in chunks of 2**23 logits.
_CHUNKS = 8 * 2**23 * 4


@dataclass(frozen=True)
class Job:
    """The sizes of what a command does with its models.

    Parameters
    ----------
    rollouts
        Responses that are sampled together.
    prompt_length, max_completion_length
        Tokens of the longest prompt, and of the longest response.
    micro_batch_tokens
        Tokens that are scored together.
    trained
        Whether the student is trained, or both models only run.
    sampled
        Which of the models are sampled.
    teacher_prompt_length
        Tokens of the longest prompt that the teacher reads; None: the student's.
    """

    rollouts: int
    prompt_length: int
    max_completion_length: int
    micro_batch_tokens: int = 16384
    trained: bool = False
    sampled: tuple[str, ...] = ("student",)
    teacher_prompt_length: int | None = None

    def length(self, role: str) -> int:
        """Tokens of the longest text that the ``student``, or the ``teacher``, runs over."""
        own = self.teacher_prompt_length
        prompt = own if role == "teacher" and own is not None else self.prompt_length
        return prompt + self.max_completion_length


@dataclass(frozen=True)
class Need:
    """Memory that a job takes, in bytes.

    Parameters
    ----------
    weights
        Of all models, as long as the job runs.
    optimizer
        AdamW's states, and the float32 copy of a bfloat16 student.
    sampling
        Keys, values and logits of the rollouts that are sampled together.
    scoring
        A micro-batch's activations and logits, with the gradients of a student in training.
    """

    weights: float
    optimizer: float
    sampling: float
    scoring: float

    @property
    def total(self) -> float:
        """Peak: sampling and scoring take turns."""
        return self.weights + self.optimizer + max(self.sampling, self.scoring) + _OTHER


def need(
    student: ModelSize,
    teacher: ModelSize,
    job: Job,
    *,
    device: torch.device,
    dtype: torch.dtype,
    teacher_dtype: torch.dtype,
) -> Need:
    """Estimate what a job takes.

    Parameters
    ----------
    student, teacher
        Sizes of the models.
    job
        What is done with them.
    device
        Where they are.
    dtype, teacher_dtype
        Dtypes of their weights.

    Returns
    -------
    Need
        Attention is taken to need no memory of its own, as with sdpa and flash attention.
    """
    wide, wide_teacher = dtype.itemsize, teacher_dtype.itemsize
    of = {"student": (student, dtype), "teacher": (teacher, teacher_dtype)}
    lengths = {role: job.length(role) for role in of}
    sampling = max(_sampling(*of[role], job, device, lengths[role]) for role in job.sampled)
    # A micro-batch holds the same rollouts for both models: the longer texts decide how many.
    longest = max(lengths.values())
    most = most_tokens(job.micro_batch_tokens, device)
    rows = max(1.0, min(most / longest, job.rollouts))
    one_layer = max(
        rows
        * lengths[role]
        * (6 * size.hidden + 5 * size.heads + 4 * size.intermediate)
        * its_dtype.itemsize
        for role, (size, its_dtype) in of.items()
    )
    scoring = one_layer + _logits(student, device)
    optimizer = 0.0
    if job.trained:
        copy = 0 if wide >= 4 else 4
        optimizer = (8 + copy) * student.parameters
        kept = 6 * student.hidden + 5 * student.heads + 4 * student.intermediate
        scoring += rows * lengths["student"] * student.layers * kept * wide
        scoring += (4 + (wide if copy else 0)) * student.parameters  # gradients
    return Need(
        wide * student.parameters + wide_teacher * teacher.parameters, optimizer, sampling, scoring
    )


def _sampling(
    size: ModelSize, dtype: torch.dtype, job: Job, device: torch.device, length: int
) -> float:
    """Keys and values, and the logits of one token: those of the last pass, and exponentials."""
    wide = dtype.itemsize
    cache = _ROOM * length * 2 * size.layers * size.kv * wide
    found = job.rollouts * (cache + size.vocabulary * (wide + 8))
    if packs(job.rollouts, device, dtype):
        found += wide * size.parameters  # a second copy of the weights
    return found


def _logits(size: ModelSize, device: torch.device) -> float:
    """Both models' logits of one chunk of states, and what is computed from them."""
    if device.type == "cpu":  # tile by tile: 128 rows
        return 2 * 128 * size.vocabulary * 4
    return _CHUNKS


def told(
    student: str | Path,
    teachers: Sequence[str | Path],
    job: Job,
    *,
    device: torch.device,
    dtype: str | None = None,
    teacher_dtype: str | None = None,
    together: bool = True,
    workers: int = 1,
) -> tuple[str, bool]:
    """Say in one line what a job will take, and what there is.

    Parameters
    ----------
    student, teachers
        Names or paths of the models.
    job, device
        As for `need`.
    dtype, teacher_dtype
        As for `opdprobe.rollout.pair.Pair.load`.
    together
        Whether all teachers are in memory, or one at a time.
    workers
        Number of processes that share the work; several share a second copy of the weights.

    Returns
    -------
    line : str
        The estimate, or why there is none; empty if there is no such model.
    short : bool
        Whether the device has less.
    """
    by_default = dtype is None and teacher_dtype is None and device.type != "cpu"
    try:
        sizes = [ModelSize.of(name) for name in (student, *teachers)]
    except ModelError:
        return "", False  # loading says why
    except UnknownSizeError as error:
        return f"memory: no estimate, since {error}.", False
    # The largest is the one that is run; the others are held, or come later.
    own, *others = sorted(sizes[1:], key=lambda size: -size.parameters)
    sizes = [sizes[0], own]
    precise = resolve_dtype(dtype), teacher_default(device, dtype, teacher_dtype)
    dtypes = [
        chosen if isinstance(chosen, torch.dtype) else size.saved or torch.float32
        for chosen, size in zip(precise, sizes, strict=True)
    ]
    found = need(sizes[0], sizes[1], job, device=device, dtype=dtypes[0], teacher_dtype=dtypes[1])
    if together:
        rest = dtypes[1].itemsize * sum(size.parameters for size in others)
        found = replace(found, weights=found.weights + rest)
    if workers > 1:
        found = replace(
            found,
            weights=2 * found.weights + workers * _PROCESS,
            sampling=workers * found.sampling,
            scoring=workers * found.scoring,
        )
    names = [str(one).removeprefix("torch.") for one in dtypes]
    held = "weights" if workers == 1 else f"weights and {workers} processes"
    whose = "teacher" if len(teachers) == 1 else f"{len(teachers)} teachers"
    if not together:
        whose += ", one at a time,"
    default = ", the default there" if by_default else ""
    pieces = [
        f"{held} {_gb(found.weights)} (student {names[0]}, {whose} {names[1]}{default})",
        f"AdamW {_gb(found.optimizer)}" if job.trained else "",
        f"sampling {workers * job.rollouts} responses {_gb(found.sampling)}",
        f"{'scoring and gradients' if job.trained else 'scoring'} {_gb(found.scoring)}",
    ]
    free = free_bytes(device)
    short = free is not None and found.total > free
    there = "" if free is None else f" of {_gb(free)} free"
    line = (
        f"memory: about {_gb(found.total)}{there} on {device}: "
        + ", ".join(filter(None, pieces))
        + (f"; {_advice(found)}." if short else ".")
    )
    return line, short


def _advice(found: Need) -> str:
    """Say what to lower."""
    parts: Mapping[str, float] = {
        "take smaller models, or --dtype bfloat16": found.weights + found.optimizer,
        "lower the number of rollouts that are sampled together, or --max-completion-length": (
            found.sampling
        ),
        "lower micro_batch_tokens": found.scoring,
    }
    largest = max(parts, key=lambda name: parts[name])
    return f"that is more than there is: {largest}"


def _gb(n: float) -> str:
    return f"{n / 1e9:.1f} GB" if n >= 1e8 else f"{n / 1e6:.0f} MB"
