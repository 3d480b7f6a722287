"""Make a run from rollouts that exist already, and sample rollouts without scoring them."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from opdprobe.errors import ConfigError, NonFiniteError
from opdprobe.hooks.cached import CachedTeacher
from opdprobe.hooks.served.model import ServedModel
from opdprobe.hooks.served.run import check_served, describe
from opdprobe.hooks.served.scores import score_served, vocabulary_width
from opdprobe.hooks.served.steady import check_steady
from opdprobe.hooks.shared import encode, make_pair, run_attrs, undisturbed
from opdprobe.models.adapters import causal_lm
from opdprobe.models.devices import precision, resolve_device, teacher_default
from opdprobe.models.head import logit_width
from opdprobe.models.load import identity, load_model, load_tokenizer
from opdprobe.models.processes import Processes
from opdprobe.models.save import keep_tokenizer
from opdprobe.models.vocabulary import (
    eos_ids,
    padding_id,
    shared_vocabulary,
    tokenizer_hash,
    tokens_with_logits,
)
from opdprobe.rollout.caches.cache import TeacherCache
from opdprobe.rollout.given import (
    Columns,
    Given,
    by_step,
    check_readable,
    gather,
    own_arrays,
    step_of_dump,
)
from opdprobe.rollout.grade import Grader, grade_rollouts
from opdprobe.rollout.memory import sample_in_parts
from opdprobe.rollout.mixture import Mixture
from opdprobe.rollout.prompts import OnError, Prompt, has_conversation
from opdprobe.rollout.rollout import Rollout
from opdprobe.rollout.rows import rollout_arrays, score_arrays, step_metrics
from opdprobe.rollout.sample import step_generator
from opdprobe.rollout.score import Scores
from opdprobe.rollout.teacher_context import TeacherContext
from opdprobe.store import Run, RunWriter, open_run
from opdprobe.store.schema import Step, build_step

Model = nn.Module | ServedModel | str | Path


def score_rollouts(
    student: Model | None,
    teacher: Model | TeacherCache | None,
    rollouts: Iterable[Rollout | None],
    run_dir: str | Path,
    *,
    k: int = 16,
    temperature: float = 1.0,
    micro_batch_tokens: int = 16384,
    tokenizer: PreTrainedTokenizerBase | None = None,
    teacher_tokenizer: PreTrainedTokenizerBase | None = None,
    grader: Grader | None = None,
    attrs: Mapping[str, Any] | None = None,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype | None = None,
    teacher_dtype: str | torch.dtype | None = None,
    attn_implementation: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> Run:
    """Score rollouts that exist already with both models, into a run; nothing is sampled.

    A step is written when all of its rollouts are scored; memory holds one step. Steps that the
    run already has are left as they are, so the same call resumes after an interruption. Under
    `accelerate launch`, processes share the rollouts of a step, and each writes its part.

    Parameters
    ----------
    student, teacher : model, ServedModel, str or Path, or None
        A loaded model, its directory or name, or a served one; the teacher may be a
        `opdprobe.rollout.mixture.Mixture` of models, or beside a local student a
        `opdprobe.rollout.caches.TeacherCache`, whose own rollouts are then to be given. The
        student should be the one that sampled the rollouts. None for both: the rollouts themselves
        hold both models' top lists, or log-probabilities of both for the drawn tokens.
    rollouts : iterable of Rollout
        With token ids, all rollouts of a step one after another. A step is scored when a rollout of
        the next one comes, or None, which says that it is complete. States are the tokens that the
        student drew (`Rollout.mask`). As with `opdprobe.capture`, a response begins with the first
        of them and ends with the last: tokens before belong to the prompt, those after are left
        out. A rollout without any is recorded and graded, but has no state.
    run_dir : str or Path
        The run, which is created or gets more steps.
    k : int
        Tokens kept per model and state.
    temperature : float
        Divides both models' logits: the temperature that the rollouts were sampled at.
    micro_batch_tokens : int
        Most tokens in a micro-batch, padding included.
    tokenizer : PreTrainedTokenizerBase, optional
        That of the rollouts' ids. By default the one saved with the student. Kept in the run.
    teacher_tokenizer : PreTrainedTokenizerBase, optional
        Compared with `tokenizer`; loaded with the teacher if that is a name or path.
    grader : callable, optional
        Grades the responses whose `correct` is NaN. Its prompt has the rollout's text, or its
        decoded ids, and as its answer the rollout's label ``answer``.
    attrs : mapping, optional
        More attributes of the run; they replace those of the same name.
    device, dtype, teacher_dtype, attn_implementation
        Where models that are given by name go, and how they compute; see
        `opdprobe.probe_checkpoints`.
    progress : callable, optional
        Called with the number of rollouts done, after each step.

    Returns
    -------
    Run
        Besides what `opdprobe.probe_checkpoints` records: `label`, and the log-probabilities that
        the rollouts bring, ``sampler_logp`` and ``reported_logp``. The first step decides which of
        these the run has. `finished` is NaN where a rollout does not say. A run without
        models, or with a served one, lists what is only partly known in its steps' attribute
        ``missing``; without top lists it has none of `opdprobe.store.schema.TOP_K`.

    Raises
    ------
    RolloutError, VocabularyError
        A rollout has no token ids, its parts do not fit together, or a model cannot read it;
        names where the rollout was read.
    ConfigError
        Only one model is given, or settings do not fit.
    ModelError, StoreError, NonFiniteError
        As for `opdprobe.probe_checkpoints`.

    Examples
    --------
    >>> rollout = Rollout(0, "a", prompt_ids=[5, 6], response_ids=[7, 2])
    >>> run = score_rollouts("my/student", "my/teacher", [rollout], "runs/x")   # doctest: +SKIP
    >>> run.load(0).reverse_kl                                                  # doctest: +SKIP
    """
    if isinstance(teacher, Mapping) and not isinstance(teacher, Mixture):
        raise ConfigError(
            f"{len(teacher)} teachers by name; expected one, or a Mixture: score the rollouts of "
            "each teacher's prompts by themselves, into a run of their own."
        )
    if (student is None) != (teacher is None):
        raise ConfigError("only one model is given; expected a student and a teacher, or neither.")
    settings = {"k": k, "temperature": float(temperature)}
    if k < 1 or micro_batch_tokens < 1 or not temperature > 0:
        raise ConfigError(
            f"k = {k}, micro_batch_tokens = {micro_batch_tokens}, temperature = {temperature}; "
            "expected numbers above 0."
        )
    processes = Processes.launched()
    with processes.together():
        models = _Models(settings, tokenizer)
        if student is not None and teacher is not None:
            served = isinstance(student, ServedModel) or isinstance(teacher, ServedModel)
            score: Any = _served if served else _local
            if isinstance(teacher, TeacherCache):
                score = _cached
            models = score(
                student,
                teacher,
                tokenizer,
                teacher_tokenizer,
                micro_batch_tokens=micro_batch_tokens,
                place=_place(device, (student, teacher), processes),
                dtype=dtype,
                teacher_dtype=teacher_dtype,
                attn_implementation=attn_implementation,
                **settings,
            )
        if grader is not None and models.tokenizer is None:
            raise ConfigError("a grader reads text: pass the rollouts' tokenizer (tokenizer=).")
        writer = processes.main_first(
            lambda: RunWriter(
                run_dir,
                attrs={"recorded_by": "score_rollouts", **models.attrs, **(attrs or {})},
                config=settings,
                resume=True,
                part=(processes.rank, processes.size),
            )
        )
        if processes.is_main and models.tokenizer is not None:
            keep_tokenizer(run_dir, models.tokenizer)
        recorded = open_run(run_dir).steps
        columns = Columns.of_step(open_run(run_dir).load(recorded[0])) if recorded else None
        done = 0
        for step, rows in by_step(rollouts):
            done += len(rows)
            if step not in recorded:
                columns = columns or Columns.of_rows(rows)
                columns.warn(rows)
                if len(rows) < processes.size:
                    raise ConfigError(
                        f"step {step} has {len(rows)} rollouts for {processes.size} processes; "
                        "expected at least one per process: start fewer processes."
                    )
                own = gather(rows[processes.share(len(rows))], columns)
                made = _step(step, own, models, columns, k, grader)
                writer.write_step(step, made.to_dataset())
                writer.log_metrics(step, step_metrics(made, processes))
            if progress and processes.is_main:
                progress(done)
    return open_run(run_dir)


@dataclass(frozen=True)
class _Models:
    """What scores the rollouts of a run, and how the run describes it.

    Parameters
    ----------
    attrs
        Attributes of the run.
    tokenizer
        That of the rollouts; None if nothing is known of it.
    score
        Scores every state of some rollouts, on the host; None if there is no model.
    missing
        Models that are only partly known.
    loaded
        The models that run here, by role.
    width
        Number of tokens that both models have logits for.
    """

    attrs: Mapping[str, Any]
    tokenizer: PreTrainedTokenizerBase | None
    score: Callable[[Given], Scores] | None = None
    missing: Sequence[str] = ()
    loaded: Mapping[str, PreTrainedModel] = field(default_factory=dict)
    width: int = 0


def _step(
    step: int,
    given: Given,
    models: _Models,
    columns: Columns,
    k: int,
    grader: Grader | None,
) -> Step:
    correct = _grades(given, models.tokenizer, grader)
    arrays = own_arrays(given, columns, correct)
    if models.score is None:
        return step_of_dump(step, given, arrays, k)
    check_readable(given, models.loaded, models.width)
    try:
        scores = models.score(given) if given.n_states else Scores.none(k)
    except NonFiniteError as error:
        raise NonFiniteError(f"step {step}: {error}") from error
    attrs = {"missing": list(models.missing)} if models.missing else None
    return build_step({"step": step, **arrays, **score_arrays(scores)}, attrs)


def _grades(
    given: Given, tokenizer: PreTrainedTokenizerBase | None, grader: Grader | None
) -> list[float]:
    """Return the rollouts' grades, and grade those that have none."""
    grades = [float(row.correct) for row in given.rows]
    places = [i for i, grade in enumerate(grades) if math.isnan(grade)]
    if grader is None or tokenizer is None or not places:
        return grades
    prompts = [_prompt(given.rows[i], tokenizer) for i in places]
    texts = [given.rollouts.response_ids[i] for i in places]
    # Wrong if it is known not to have ended; of the others, the text decides.
    ended = [given.rows[i].finished is None or bool(given.rows[i].finished) for i in places]
    graded = grade_rollouts(tokenizer, texts, prompts, grader, finished=ended)
    for i, grade in zip(places, graded, strict=True):
        grades[i] = grade
    return grades


def _prompt(row: Rollout, tokenizer: PreTrainedTokenizerBase) -> Prompt:
    answer = row.labels.get("answer")
    if row.prompt is not None and not isinstance(row.prompt, str):
        return Prompt(row.prompt_id, messages=tuple(row.prompt), answer=answer)
    text = row.prompt
    if text is None:
        text = str(tokenizer.decode(list(row.prompt_ids or ())))
    return Prompt(row.prompt_id, text=text, answer=answer)


def _place(device: str | torch.device, models: Sequence[Any], processes: Processes) -> torch.device:
    """Return the device of a loaded model, or the one that was asked for."""
    loaded = [model for model in models if isinstance(model, nn.Module)]
    if loaded and str(device) == "auto":
        return causal_lm(loaded[0]).device
    return resolve_device(device, processes)


def _local(
    student: Any,
    teacher: Any,
    tokenizer: PreTrainedTokenizerBase | None,
    teacher_tokenizer: PreTrainedTokenizerBase | None,
    *,
    k: int,
    temperature: float,
    micro_batch_tokens: int,
    place: torch.device,
    **loading: Any,
) -> _Models:
    tokenizer = _tokenizer(tokenizer, student)
    pair = make_pair(student, teacher, tokenizer, teacher_tokenizer, device=place, **loading)
    most = micro_batch_tokens

    @torch.no_grad()
    def scores(given: Given) -> Scores:
        nonlocal most
        with undisturbed(pair.student, pair.teacher):
            found, most = pair.all_scores(
                given.rollouts, k=k, temperature=temperature, micro_batch_tokens=most
            )
        return found

    attrs = run_attrs(
        pair,
        identity(pair.student),
        pair.teacher_identity(),
        recorded_by="score_rollouts",
        k=k,
        temperature=temperature,
    )
    loaded = {"student": pair.student, "teacher": pair.teacher}
    return _Models(attrs, tokenizer, scores, (), loaded, pair.width)


def _served(
    student: Any,
    teacher: Any,
    tokenizer: PreTrainedTokenizerBase | None,
    teacher_tokenizer: PreTrainedTokenizerBase | None,
    *,
    k: int,
    temperature: float,
    micro_batch_tokens: int,
    place: torch.device,
    dtype: Any,
    teacher_dtype: Any,
    attn_implementation: str | None,
) -> _Models:
    if temperature != 1:
        raise ConfigError(
            f"temperature = {temperature}; expected 1: servers do not scale log-probabilities."
        )
    tokenizer = _tokenizer(tokenizer, student, teacher)
    dtypes = {"student": dtype, "teacher": teacher_default(place, dtype, teacher_dtype)}
    models: dict[str, ServedModel | PreTrainedModel] = {}
    for role, model in (("student", student), ("teacher", teacher)):
        if isinstance(model, str | Path):
            shared_vocabulary(tokenizer, teacher_tokenizer or load_tokenizer(model))
            model = load_model(
                model,
                device=place,
                dtype=dtypes[role],
                attn_implementation=attn_implementation,
            )
        models[role] = model if isinstance(model, ServedModel) else causal_lm(model)
    width = vocabulary_width(tokenizer, models)
    loaded = {role: m for role, m in models.items() if not isinstance(m, ServedModel)}
    checked = False

    def scores(given: Given) -> Scores:
        nonlocal checked
        rollouts = given.rollouts
        for role, model in models.items():
            read = rollouts.read_by(role)
            texts = zip(read.prompt_ids, read.response_ids, strict=True)
            longest = max(len(prompt) + len(response) for prompt, response in texts)
            if isinstance(model, ServedModel) and not checked:
                check_served(model, tokenizer, read.prompt_ids, longest, k, width)
            elif isinstance(model, ServedModel):
                model.check_length(longest + 1)
        with undisturbed(*loaded.values()):
            if not checked:
                check_steady(models, tokenizer, rollouts, width=width)
                checked = True
            found = score_served(
                models,
                tokenizer,
                replace(rollouts, drawn=None),
                k=k,
                micro_batch_tokens=micro_batch_tokens,
            )
        if rollouts.drawn is None:
            return found
        arrays = rollout_arrays(rollouts)
        first = np.cumsum(arrays["length"]) - arrays["length"]
        return found.select(torch.from_numpy(first[arrays["rollout"]] + arrays["position"]))

    attrs = {
        **{role: describe(model) for role, model in models.items()},
        "tokenizer_hash": tokenizer_hash(tokenizer),
        "vocabulary": width,
        "k": k,
        "temperature": temperature,
        **(precision(loaded) if loaded else {}),
    }
    missing = [role for role, model in models.items() if isinstance(model, ServedModel)]
    return _Models(attrs, tokenizer, scores, missing, loaded, width)


def _cached(
    student: Any,
    teacher: TeacherCache,
    tokenizer: PreTrainedTokenizerBase | None,
    teacher_tokenizer: PreTrainedTokenizerBase | None,
    *,
    k: int,
    temperature: float,
    micro_batch_tokens: int,
    place: torch.device,
    dtype: Any,
    attn_implementation: str | None,
    **_: Any,
) -> _Models:
    if temperature != 1:
        raise ConfigError(
            f"temperature = {temperature}; expected 1: a list of k tokens cannot be put to another "
            "temperature."
        )
    if isinstance(student, ServedModel):
        raise ConfigError(f"{student} beside a cache; expected a local student.")
    tokenizer = _tokenizer(tokenizer, student)
    if teacher_tokenizer is not None:
        shared_vocabulary(tokenizer, teacher_tokenizer)
    teacher.check_tokenizer(tokenizer)
    if isinstance(student, str | Path):
        student = load_model(
            student, device=place, dtype=dtype, attn_implementation=attn_implementation
        )
    model = causal_lm(student)
    width = vocabulary_width(tokenizer, {"student": model})
    checked = False

    def scores(given: Given) -> Scores:
        nonlocal checked
        told = CachedTeacher(given)
        if not checked:
            told.check_places()
            checked = True
        with undisturbed(model):
            return score_served(
                {"student": model, "teacher": told},
                tokenizer,
                given.rollouts,
                k=k,
                micro_batch_tokens=micro_batch_tokens,
            )

    attrs = {
        "student": describe(model),
        "teacher": teacher.attrs,
        "tokenizer_hash": tokenizer_hash(tokenizer),
        "vocabulary": width,
        "k": k,
        "temperature": temperature,
        **precision({"student": model}),
    }
    return _Models(attrs, tokenizer, scores, ["teacher"], {"student": model}, width)


def _tokenizer(
    tokenizer: PreTrainedTokenizerBase | None, *models: Model
) -> PreTrainedTokenizerBase:
    """Return the tokenizer that was given, or the one saved with the first model on disk."""
    if tokenizer is not None:
        return tokenizer
    for model in models:
        if isinstance(model, str | Path):
            return load_tokenizer(model)
    raise ConfigError(
        "no tokenizer: a model that is loaded or served brings none. Pass that of the rollouts "
        "(tokenizer=)."
    )


def sample(
    student: nn.Module | ServedModel | str | Path,
    prompts: Sequence[Prompt] | str | Path,
    *,
    num_generations: int = 4,
    max_completion_length: int = 512,
    max_prompt_length: int = 1024,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
    step: int = 0,
    tokenizer: PreTrainedTokenizerBase | None = None,
    grader: Grader | None = None,
    on_error: OnError = "raise",
    chat_template_kwargs: Mapping[str, Any] | None = None,
    system_prompt: str | None = None,
    teacher_context: TeacherContext | None = None,
    teacher_tokenizer: PreTrainedTokenizerBase | None = None,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype | None = None,
    attn_implementation: str | None = None,
) -> list[Rollout]:
    """Sample rollouts of a student, without scoring them.

    Seed and step decide the responses: `opdprobe.probe_checkpoints` draws the same from a student
    whose vocabulary the teacher shares in full. Global random states are left alone.

    Parameters
    ----------
    student : model, ServedModel, str or Path
        A loaded model, its directory or name, or a served one (at temperature and top-p 1).
    prompts, num_generations, max_completion_length, max_prompt_length, temperature, seed, grader, \
    on_error, chat_template_kwargs, system_prompt
        As for `opdprobe.probe_checkpoints`.
    top_p : float
        Draw from the smallest set of most probable tokens whose mass reaches this; 1 draws from
        all.
    step : int
        Number of optimiser steps that the student has had.
    teacher_context : TeacherContext, optional
        What a teacher is to read in place of the prompts; goes into `Rollout.teacher_prompt_ids`.
    teacher_tokenizer : PreTrainedTokenizerBase, optional
        That teacher's, for its own chat template.
    tokenizer : PreTrainedTokenizerBase, optional
        The student's. By default the one saved with it.
    device, dtype, attn_implementation
        Where a student that is given by name goes, and how it computes; see
        `opdprobe.load_model`.

    Returns
    -------
    list of Rollout
        In the order of the prompts, with token ids; those of one prompt are adjacent.

    Raises
    ------
    ConfigError
        A loaded or served student has no `tokenizer`, or a setting does not fit.
    ModelError, PromptError, NonFiniteError
        As for `opdprobe.probe_checkpoints`.

    Examples
    --------
    >>> rollouts = sample("my/student", "prompts.jsonl", num_generations=2)     # doctest: +SKIP
    >>> score_rollouts("my/student", "my/teacher", rollouts, "runs/x")          # doctest: +SKIP
    """
    least = min(num_generations, max_completion_length)
    if not temperature >= 0 or not 0 < top_p <= 1 or least < 1:
        raise ConfigError(
            f"temperature = {temperature}, top_p = {top_p}, num_generations = {num_generations}, "
            f"max_completion_length = {max_completion_length}; expected a temperature from 0, "
            "top_p in (0, 1], and numbers from 1."
        )
    tokenizer = _tokenizer(tokenizer, student)
    encoded, _ = encode(
        *(tokenizer, prompts, max_prompt_length, on_error, chat_template_kwargs, system_prompt),
        teacher_context=teacher_context,
        teacher_tokenizer=teacher_tokenizer,
    )
    ids = [prompt.ids for prompt in encoded]
    numbers: dict[str, Any] = {
        "num_generations": num_generations,
        "max_completion_length": max_completion_length,
    }
    if isinstance(student, ServedModel):
        if (temperature, top_p) != (1, 1):
            raise ConfigError("a served model is sampled at temperature and top_p 1.")
        student.check_length(max(map(len, ids)) + max_completion_length)
        rollouts = student.sample(ids, seed=(seed, step), **numbers)
    else:
        if isinstance(student, str | Path):
            student = load_model(
                student, device=device, dtype=dtype, attn_implementation=attn_implementation
            )
        model = causal_lm(student)
        with undisturbed(model):
            rollouts = sample_in_parts(
                model,
                ids,
                eos_ids=eos_ids(model, tokenizer, conversations=has_conversation(encoded)),
                pad_id=padding_id(tokenizer),
                temperature=temperature,
                top_p=top_p,
                generator=step_generator(seed, step, model.device),
                width=tokens_with_logits(tokenizer, {"student": logit_width(model)}),
                **numbers,
            )
    own = [encoded[i].prompt for i in rollouts.prompt_index]
    correct = [math.nan] * len(own)
    if grader is not None:
        correct = grade_rollouts(
            tokenizer, rollouts.response_ids, own, grader, finished=rollouts.finished
        )
    return [
        Rollout(
            step,
            prompt.id,
            ids,
            response,
            finished=finished,
            correct=grade,
            teacher_prompt_ids=encoded[i].teacher_ids,
            sampler_logp=None if logp is None else np.asarray(logp, np.float32),
        )
        for prompt, i, ids, response, finished, grade, logp in zip(
            own,
            rollouts.prompt_index,
            rollouts.prompt_ids,
            rollouts.response_ids,
            rollouts.finished,
            correct,
            rollouts.sampler_logp or [None] * len(rollouts),
            strict=True,
        )
    ]
