"""Will this teacher teach this student? Measurements that need no training.

`preflight` measures, `opdprobe.preflight.verdict` judges; ``opdprobe preflight`` does both.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from opdprobe.errors import ConfigError
from opdprobe.models.adapters import causal_lm
from opdprobe.models.devices import precision
from opdprobe.preflight import measure
from opdprobe.preflight.answers import Answers, accuracies
from opdprobe.preflight.contexts import Contexts
from opdprobe.preflight.estimates import Number
from opdprobe.preflight.expected import Expected, expected_gain
from opdprobe.preflight.phases import Clock, Phases, wording_means
from opdprobe.preflight.readout import MAX_STATES, readouts
from opdprobe.preflight.verdict import WORTH, Evidence, Verdict, judge, obstacle, same
from opdprobe.preflight.workers import shared_work
from opdprobe.rollout.continuation import Sampling
from opdprobe.rollout.engine import Sampler, check_sampler
from opdprobe.rollout.grade import Grader
from opdprobe.rollout.pair import Pair
from opdprobe.rollout.prompt_attrs import template_attrs
from opdprobe.rollout.prompt_files import as_prompts
from opdprobe.rollout.prompts import OnError, Prompt, encode_prompts
from opdprobe.rollout.sample import Rollouts
from opdprobe.rollout.teacher_context import TeacherContext
from opdprobe.train.memory import Job


@dataclass(frozen=True)
class Sizes:
    """How much a preflight measures by default; see `preflight`."""

    n_prompts: int
    max_completion_length: int
    micro_batch_tokens: int

    @classmethod
    def of(cls, device: torch.device) -> "Sizes":
        """Return the sizes for a device: an accelerator measures more in the same time."""
        return cls(64, 64, 2048) if device.type == "cpu" else cls(256, 1024, 8192)


# Sampling holds this number of times as many tokens.
_SAMPLED = 8


@dataclass(frozen=True)
class Preflight:
    """What a preflight measured, and the verdict.

    Parameters
    ----------
    settings
        Models, sizes and sampling.
    states
        Means over the student's states, by the names of ``Run.metrics``: nats and shares.
    by_position
        The same by output position, one row per range.
    answers
        Accuracies and what depends on them; all unknown if no answers are known.
    learnt
        Share of the divergence that a refitted readout removes on held-out prompts.
    noise
        The same quantities between two passes of the student: rounding.
    responses, teacher_responses
        Mean length, and the shares that were cut off or repeat themselves. The teacher's are None
        if no answers are known.
    templates
        `states`, ``accuracy`` and ``finished`` under each prompt template; ``as given`` is the
        prompts' own wording. Empty without templates.
    contexts
        What it changes that the teacher reads prompts of its own; None if it reads the student's.
    cost
        Tokens, bytes and seconds per step of a recorded run at the paper's batch size. The seconds
        are NaN if the rollouts were given.
    seconds
        Duration of each part of the preflight.
    rollouts
        The student's. For a preflight of another teacher with the same settings, which then need
        not sample them again. `to_dict` leaves them out.
    """

    settings: Mapping[str, Any]
    states: Mapping[str, Number]
    by_position: Sequence[Mapping[str, float]]
    answers: Answers
    learnt: Number
    noise: Mapping[str, float]
    responses: Mapping[str, float]
    teacher_responses: Mapping[str, float] | None
    templates: Mapping[str, Mapping[str, Number]]
    contexts: Contexts | None
    cost: Mapping[str, float]
    seconds: Mapping[str, float]
    rollouts: Rollouts = field(repr=False)

    @cached_property
    def verdict(self) -> Verdict:
        """Verdict of `opdprobe.preflight.verdict.judge` on this evidence."""
        a = self.answers
        gains = a.continuation or {}
        ends = [depth for depth, gain in sorted(gains.items()) if depth > 0 and gain.high < WORTH]
        return judge(
            Evidence(
                overlap=self.states["overlap_ratio"],
                reverse_kl=self.states["reverse_kl"],
                noise=self.noise["reverse_kl"],
                learnt=self.learnt,
                accuracy=a.student,
                teacher_accuracy=a.teacher,
                gap=a.gap,
                gain=a.gain,
                tail=ends[0] if ends and a.gap.low > 0 else None,
                truncated=self.responses["truncated"],
                teacher_truncated=(self.teacher_responses or {}).get("truncated", 0.0),
                repetitive=self.responses["repetitive"],
                prompts=int(self.settings["n_prompts"]),
            )
        )

    @cached_property
    def expected(self) -> Expected | None:
        """Gain that training is expected to bring; None if it cannot be stated."""
        if same(self.states["reverse_kl"].value, self.noise["reverse_kl"]):
            return None
        rollouts = self.settings["n_prompts"] * self.settings["num_generations"]
        return expected_gain(self.answers.gain.value, rollouts)

    def to_dict(self) -> dict[str, Any]:
        """Return all numbers and the verdict as plain values; None for an unknown number."""
        values = asdict(replace(self, rollouts=Rollouts([], [], [], [])))
        del values["rollouts"]
        expected = None if self.expected is None else asdict(self.expected)
        return _jsonable(values | {"expected": expected, "verdict": asdict(self.verdict)})


def preflight(
    student: nn.Module | str | Path,
    teacher: nn.Module | str | Path,
    prompts: Sequence[Prompt],
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    teacher_tokenizer: PreTrainedTokenizerBase | None = None,
    grader: Grader | None = None,
    templates: Mapping[str, str] | None = None,
    n_prompts: int | None = None,
    num_generations: int = 4,
    k: int = 16,
    max_completion_length: int | None = None,
    temperature: float = 1.0,
    depths: Sequence[int] | None = None,
    max_prompt_length: int = 1024,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    system_prompt: str | None = None,
    teacher_context: TeacherContext | None = None,
    on_error: OnError = "raise",
    micro_batch_tokens: int | None = None,
    seed: int = 0,
    rollouts: Rollouts | None = None,
    sampler: Sampler | None = None,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype | None = None,
    teacher_dtype: str | torch.dtype | None = None,
    attn_implementation: str | None = None,
    workers: int = 1,
    on_progress: Callable[[int, int], None] | None = None,
) -> Preflight:
    """Measure, without training, whether a teacher suits a student.

    Samples the student and scores both models at its states; refits the student's readout to the
    teacher on one half of the prompts and tests it on the other; and, if answers are known, lets
    the teacher continue the student's prefixes. Neither model is changed, nor torch's global
    random state. With the defaults this takes less than ten minutes for models of 0.1 B parameters
    on two free cores; on a GPU, use larger sizes.

    Parameters
    ----------
    student, teacher : PreTrainedModel, peft.PeftModel, str or Path
        Causal LMs that share a vocabulary; a name or path is loaded, with its tokenizer. If the
        student has adapters and is also passed as the teacher, the teacher is the student without
        its adapters.
    prompts : sequence of Prompt
        As for training: prompts, what `opdprobe.load_prompts` reads, or rows.
    tokenizer, teacher_tokenizer
        The student's is required if the student is already loaded; the teacher's is compared with
        it.
    grader : callable, optional
        ``grader(response_text, prompt)`` in {0, 1}. Without it, accuracies and the gains that need
        them are unknown, and the verdict is *unlikely to help* or *cannot tell*.
    templates : mapping of str to str, optional
        Wordings to compare, by name, each containing ``{question}`` (see `encode_prompts`).
    n_prompts, num_generations
        Number of prompts, drawn at random, and of rollouts per prompt and model. To halve the
        intervals, use four times as many prompts rather than rollouts. By default 64 prompts on a
        CPU, and 256 on an accelerator.
    k
        Tokens compared per state.
    max_completion_length
        Longest response, in tokens. Accuracies are used only if most responses end before it. By
        default 64 on a CPU, and 1024 on an accelerator.
    temperature
        Temperature of sampling and of the compared distributions.
    depths : sequence of int, optional
        Prefix lengths of the continuation gain, in tokens. Default: a quarter and a half of the
        median response length.
    max_prompt_length, chat_template_kwargs, system_prompt, on_error
        Longest prompt, in tokens, how prompts go through the chat template, and what to do with
        one that cannot be used; see `encode_prompts`.
    teacher_context : TeacherContext, optional
        How the teacher's prompts differ from the student's. All numbers are then of the teacher in
        its own context, and what that changes is measured, too.
    micro_batch_tokens
        Most tokens in a scored micro-batch, padding included; sampling uses eight times as many.
        By default 2048 on a CPU, which is the most that a micro-batch holds there, and 8192 on an
        accelerator.
    seed
        Seed of the choice of prompts and of sampling.
    rollouts
        The student's, of a `Preflight` with another teacher and otherwise the same settings; they
        are not sampled again.
    sampler
        A server with the student's weights (`opdprobe.hooks.served.ServedModel`), which samples the
        student's rollouts, at temperature 1. Other samples, the teacher's and those under
        `templates` and in continuations, stay local.
    device, dtype, teacher_dtype, attn_implementation
        Where models that are given by name go, and how they compute; see
        `opdprobe.rollout.pair.Pair.load`.
    workers
        Number of processes that sample and score, on a CPU. The results are the same for any
        number, up to the rounding of torch's threads, which are divided among them. Each process
        imports the libraries and checks the models anew, which pays off for models of 0.1 B
        parameters or more. Models must be picklable, and a script needs
        ``if __name__ == "__main__":``.
    on_progress
        Called with (parts done, number of parts).

    Returns
    -------
    Preflight
        Its ``verdict`` holds the answer and the reasons.

    Raises
    ------
    VocabularyError
        The tokenizers differ; names the first token that differs.
    ConfigError
        A size is out of range, the tokenizer is missing, a model is not a causal LM, `rollouts`
        are of other prompts or another number of generations, or several processes are to share
        models that are not on a CPU or cannot be pickled.
    PromptError
        A prompt is empty or over-long.
    OPDProbeError
        One of several processes was killed.

    References
    ----------
    Quantities: §2.3 and App. B. Continuation gain and AUROC: §6.1 and §6.2. Refitting the readout
    is not in the paper: it turns §3's finding, that a student takes over the pattern and not the
    scale, into a measurement.

    Examples
    --------
    >>> from opdprobe.testing import tiny_model, tiny_tokenizer
    >>> twins = tiny_model(), tiny_model()
    >>> prompts = [Prompt("a", text="7 8"), Prompt("b", text="9")]
    >>> preflight(*twins, prompts, tokenizer=tiny_tokenizer(), max_completion_length=4).verdict.word
    'unlikely to help'
    """
    given_sizes = {
        "n_prompts": n_prompts,
        "max_completion_length": max_completion_length,
        "micro_batch_tokens": micro_batch_tokens,
    }
    given_sizes = {name: size for name, size in given_sizes.items() if size is not None}
    _check(num_generations=num_generations, k=k, workers=workers, **given_sizes)
    if not 0 < temperature < math.inf:
        raise ConfigError(f"temperature = {temperature}; expected a number above 0.")
    if seed < 0:
        raise ConfigError(f"seed = {seed}; expected 0 or more.")
    if isinstance(teacher, Mapping):
        raise ConfigError(
            f"{len(teacher)} teachers; expected one, which also answers the prompts: rank several "
            "with rank_teachers, or measure a mixture with probe_checkpoints."
        )
    names = [_name(student), _name(teacher)]
    pair = Pair.load(
        student,
        teacher,
        tokenizer=tokenizer,
        teacher_tokenizer=teacher_tokenizer,
        device=device,
        dtype=dtype,
        teacher_dtype=teacher_dtype,
        attn_implementation=attn_implementation,
    )
    tokenizer = pair.tokenizer
    sizes = replace(Sizes.of(pair.student.device), **given_sizes)
    if k > pair.width:
        raise ConfigError(
            f"k = {k}; expected at most {pair.width}, the size of the shared vocabulary."
        )
    prompts = as_prompts(prompts, on_error=on_error)
    order = np.random.default_rng(seed).permutation(len(prompts))[: sizes.n_prompts]
    chosen = [prompts[i] for i in sorted(order)]
    # Encode all wordings first, so that one that cannot be encoded fails before an hour is spent.
    encoded, *others = (
        encode_prompts(
            tokenizer,
            chosen,
            max_prompt_length=max_prompt_length,
            template=template,
            chat_template_kwargs=chat_template_kwargs,
            system_prompt=system_prompt,
            on_error=on_error,
            teacher=teacher_context,
            teacher_tokenizer=pair.teacher_tokenizer,
        )
        for template in (None, *(templates or {}).values())
    )
    sampling = Sampling(
        sizes.max_completion_length,
        temperature,
        seed=seed,
        width=pair.width,
        micro_batch_tokens=_SAMPLED * sizes.micro_batch_tokens,
    )
    own_context = encoded[0].teacher_ids is not None
    clock = Clock(4 + (grader is not None) + own_context + len(others), on_progress)

    given = rollouts is not None
    with shared_work(pair, workers) as work:
        phases = Phases(work, pair, grader, sampling, num_generations, k, sizes.micro_batch_tokens)
        with clock("sample"):
            own_rollouts = phases.sampled(encoded) if rollouts is None and sampler is None else None
            # Other processes go on with the teacher's once the student's are done.
            teacher_rollouts = phases.sampled(encoded, "teacher") if grader is not None else None
            if own_rollouts is not None:
                rollouts = own_rollouts()
            elif rollouts is not None:
                rollouts = measure.asked_again(rollouts, encoded, num_generations, pair.width)
            elif sampler is not None:
                rollouts = measure.sampled_by(sampler, pair, encoded, sampling, num_generations)
        assert rollouts is not None  # one of the three
        own = [encoded[i].prompt for i in rollouts.prompt_index]
        with clock("score"):
            step, states = phases.recorded(rollouts, own, n_hidden=MAX_STATES)
            if sampler is not None and not given:
                check_sampler(sampler, step["sampled_logp"].sel(model="student"), rollouts)
        with clock("noise floor"):
            noise = measure.noise_floor(pair, rollouts, k, temperature)
        with clock("readout"):
            fitted, learnt = readouts(
                pair, states, len(encoded), temperature=temperature, seed=seed
            )
        responses, teacher_responses = measure.texts(tokenizer, step), None
        found, theirs = Answers(), None
        if teacher_rollouts is not None:
            with clock("answers"):
                theirs = phases.graded(teacher_rollouts(), own)
                teacher_responses = measure.texts(tokenizer, theirs)
                found = accuracies(step, theirs)
                cut_off = responses["truncated"], teacher_responses["truncated"]
                if not obstacle(found.student, found.teacher, *cut_off):
                    found = phases.gains(found, step, own, encoded, fitted, depths)
        contexts = None
        if own_context:
            with clock("shared context"):
                contexts = phases.contexts(rollouts, encoded, own, step, theirs)
        compared = {"as given": wording_means(step)} if others else {}
        for name, asked in zip(templates or {}, others, strict=True):
            with clock(f"template {name}"):
                compared[name] = phases.template(asked)
    n_tokens = step.sizes["state"]
    return Preflight(
        settings={
            "student": names[0],
            "teacher": names[1],
            "vocabulary": pair.width,
            "n_prompts": len(encoded),
            "num_generations": num_generations,
            "k": k,
            "max_completion_length": sizes.max_completion_length,
            "temperature": temperature,
            "seed": seed,
            "max_prompt_length": max_prompt_length,
            "chat_template": template_attrs(
                tokenizer, encoded, chat_template_kwargs, system_prompt, teacher_context
            ),
            "states": n_tokens,
            **({} if sampler is None else {"sampler": sampler.name}),
            **precision({"student": pair.student, "teacher": pair.teacher}),
        },
        states=measure.means(step),
        by_position=measure.by_position(step),
        answers=found,
        learnt=learnt,
        noise=noise,
        responses=responses,
        teacher_responses=teacher_responses,
        templates=compared,
        contexts=contexts,
        cost=measure.run_cost(
            responses["mean_length"],
            k,
            math.nan if given else clock.seconds["sample"] / n_tokens,
            # A backward pass takes about as long as the two models' forward passes.
            2 * clock.seconds["score"] / n_tokens,
        ),
        seconds=clock.seconds,
        rollouts=rollouts,
    )


def planned(
    sizes: Sizes,
    num_generations: int,
    prompt_length: int,
    teacher_prompt_length: int | None = None,
) -> Job:
    """Return what a preflight of these sizes does, by which its memory is estimated before it."""
    length = max(prompt_length, teacher_prompt_length or 0) + sizes.max_completion_length
    at_once = _SAMPLED * sizes.micro_batch_tokens // (length * num_generations)
    return Job(
        rollouts=min(sizes.n_prompts, max(1, at_once)) * num_generations,
        prompt_length=prompt_length,
        max_completion_length=sizes.max_completion_length,
        micro_batch_tokens=sizes.micro_batch_tokens,
        sampled=("student", "teacher"),
        teacher_prompt_length=teacher_prompt_length,
    )


def _check(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ConfigError(f"{name} = {size}; expected a whole number above 0.")


def _name(model: nn.Module | str | Path) -> str:
    if isinstance(model, str | Path):
        return str(model)
    inner = causal_lm(model)
    return inner.config._name_or_path or type(inner).__name__


def _jsonable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
