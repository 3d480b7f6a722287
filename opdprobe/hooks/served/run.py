"""Make a run with served models, as `opdprobe.probe_checkpoints` does with local ones."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
import xarray as xr
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from opdprobe.errors import ConfigError, VocabularyError
from opdprobe.hooks.checkpoints import find_checkpoints
from opdprobe.hooks.served.model import ServedModel
from opdprobe.hooks.served.scores import score_served, vocabulary_width
from opdprobe.hooks.served.steady import check_steady
from opdprobe.hooks.shared import ProbeConfig, encode, undisturbed
from opdprobe.models.devices import precision, resolve_device, resolve_dtype, teacher_default
from opdprobe.models.load import identity, load_model, load_tokenizer, weight_hash
from opdprobe.models.positions import check_prompts
from opdprobe.models.save import keep_tokenizer
from opdprobe.models.vocabulary import eos_ids, padding_id, shared_vocabulary, tokenizer_hash
from opdprobe.rollout.engine import check_sampler, sample_with
from opdprobe.rollout.grade import Grader, grade_rollouts
from opdprobe.rollout.memory import sample_in_parts
from opdprobe.rollout.prompts import EncodedPrompt, OnError, Prompt, has_conversation
from opdprobe.rollout.rows import record_dataset, step_metrics
from opdprobe.rollout.sample import Rollouts, step_generator
from opdprobe.rollout.teacher_context import TeacherContext, teacher_prompts
from opdprobe.store import Run, RunWriter, open_run

logger = logging.getLogger("opdprobe")

# Number of prompts on whose text the tokenizers are compared.
_COMPARED = 8


def probe_served(
    student: ServedModel | str | Path | Sequence[str | Path],
    teacher: ServedModel | PreTrainedModel | str | Path,
    prompts: Sequence[Prompt] | str | Path,
    run_dir: str | Path,
    *,
    k: int = 16,
    num_generations: int = 4,
    max_completion_length: int = 512,
    max_prompt_length: int = 1024,
    on_error: OnError = "raise",
    chat_template_kwargs: Mapping[str, Any] | None = None,
    system_prompt: str | None = None,
    teacher_context: TeacherContext | None = None,
    grader: Grader | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    seed: int = 0,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype | None = None,
    teacher_dtype: str | torch.dtype | None = None,
    attn_implementation: str | None = None,
    sampler: ServedModel | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Run:
    """Probe a pair of models, at least one of them served, into a run.

    What a server does not report is NaN in the run; each step names the served models in its
    attribute ``missing``. See `opdprobe.store.schema` and
    `opdprobe.hooks.served.scores.score_served`. A served student's own log-probabilities of what it
    drew are the run's ``sampler_logp``.

    Resumable, as `opdprobe.probe_checkpoints` is.

    Parameters
    ----------
    student
        A served model, which is step 0; or saved checkpoints, as for `opdprobe.probe_checkpoints`.
    teacher
        A served model; with a served student, it may be a local one.
    prompts, run_dir, k, num_generations, max_completion_length, max_prompt_length, on_error, \
    chat_template_kwargs, system_prompt, teacher_context, grader, seed, on_progress
        As for `opdprobe.probe_checkpoints`. Sampling and scores are at temperature 1: servers
        do not scale their log-probabilities.
    device, dtype, teacher_dtype, attn_implementation
        Where the local model goes, and how it computes; see `opdprobe.probe_checkpoints`.
    sampler
        As for `opdprobe.probe_checkpoints`, with a local student.
    tokenizer
        The tokenizer of both models; by default the one saved with the first checkpoint, or with
        the teacher if the student is served.

    Returns
    -------
    Run
        As from `opdprobe.probe_checkpoints`, and read in the same ways.

    Raises
    ------
    ConfigError
        Neither model is served, no tokenizer is given, or `k` is more than the server returns.
    ModelError
        A server fails, lacks what is needed, or answers otherwise each time
        (`opdprobe.hooks.served.steady.check_steady`); a model does not load.
    VocabularyError
        The models do not share a vocabulary.
    PromptError, StoreError, NonFiniteError
        As for `opdprobe.probe_checkpoints`.

    Examples
    --------
    >>> teacher = ServedModel("http://gpu:8000/v1")                            # doctest: +SKIP
    >>> run = probe_served("checkpoint-500", teacher, "probe.jsonl", "runs/x")  # doctest: +SKIP
    >>> run.load(500).attrs["missing"]                                         # doctest: +SKIP
    ['teacher']
    """
    if not isinstance(student, ServedModel) and not isinstance(teacher, ServedModel):
        raise ConfigError("neither model is served: use probe_checkpoints for local ones.")
    config = ProbeConfig(
        k=k, num_generations=num_generations, max_completion_length=max_completion_length, seed=seed
    )
    found: Mapping[int, ServedModel | Path]
    found = {0: student} if isinstance(student, ServedModel) else find_checkpoints(student)
    first = next(iter(found.values()))
    if sampler is not None and (isinstance(first, ServedModel) or len(found) > 1):
        raise ConfigError(
            f"{sampler} as sampler; expected one local checkpoint, whose weights it serves."
        )
    tokenizer = tokenizer or _tokenizer_beside(first, teacher)
    place = resolve_device(device)
    loading: dict[str, Any] = {"device": place, "attn_implementation": attn_implementation}
    resolve_dtype(dtype)
    theirs = None
    if not isinstance(teacher, ServedModel | PreTrainedModel):
        theirs = load_tokenizer(teacher)
        shared_vocabulary(tokenizer, theirs)
        teacher = load_model(teacher, dtype=teacher_default(place, dtype, teacher_dtype), **loading)
    encoded, described = encode(
        *(tokenizer, prompts, max_prompt_length, on_error, chat_template_kwargs, system_prompt),
        teacher_context=teacher_context,
        teacher_tokenizer=theirs,
    )
    width = vocabulary_width(tokenizer, {"teacher": teacher})
    read = [p.ids for p in encoded], [p.teacher_ids or p.ids for p in encoded]
    for model, ids in zip((first, teacher), read, strict=True):
        if isinstance(model, ServedModel):
            longest = max(map(len, ids)) + max_completion_length
            check_served(model, tokenizer, ids, longest, k, width)
        elif isinstance(model, PreTrainedModel):
            check_prompts(model, ids, max_completion_length)
    attrs = {
        "recorded_by": "probe_served",
        # For numbered checkpoints, their folder; each step names its own.
        "student": describe(first.parent if isinstance(first, Path) and max(found) else first),
        "teacher": describe(teacher),
        "tokenizer_hash": tokenizer_hash(tokenizer),
        "vocabulary": width,
        "k": k,
        "temperature": config.temperature,
        "top_p": 1.0,
        "seed": seed,
        **({} if sampler is None else {"sampler": {"name": sampler.name}}),
        **described,
    }
    if isinstance(teacher, PreTrainedModel):
        attrs |= precision({"teacher": teacher})
    elif isinstance(first, Path):
        attrs |= {
            "device": place.type,
            "dtype": {"student": str(resolve_dtype(dtype)).removeprefix("torch.")},
        }
    writer = RunWriter(run_dir, attrs=attrs, config=config.to_dict(), resume=True)
    keep_tokenizer(run_dir, tokenizer)
    recorded, steady = open_run(run_dir).steps, False
    for done, (step, one) in enumerate(found.items()):
        if on_progress:
            on_progress(done, len(found))
        if step in recorded:
            continue
        model = one if isinstance(one, ServedModel) else load_model(one, dtype=dtype, **loading)
        dataset = _step(
            *(step, model, teacher, tokenizer, encoded, config, grader),
            sampler=sampler,
            first=not steady,
        )
        steady = True
        if isinstance(one, Path) and isinstance(model, PreTrainedModel):
            dataset.attrs |= {"checkpoint": one.name, "weight_hash": weight_hash(model)}
        writer.write_step(step, dataset)
        writer.log_metrics(step, step_metrics(dataset))
    if on_progress:
        on_progress(len(found), len(found))
    return open_run(run_dir)


def _step(
    step: int,
    student: ServedModel | PreTrainedModel,
    teacher: ServedModel | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    encoded: Sequence[EncodedPrompt],
    config: ProbeConfig,
    grader: Grader | None,
    *,
    sampler: ServedModel | None,
    first: bool,
) -> xr.Dataset:
    """Sample the student and record both models' scores, as `opdprobe.rollout.once.probe` does."""
    ids = [prompt.ids for prompt in encoded]
    settings: dict[str, Any] = {
        "num_generations": config.num_generations,
        "max_completion_length": config.max_completion_length,
    }
    models = {"student": student, "teacher": teacher}
    with undisturbed(*(m for m in models.values() if isinstance(m, PreTrainedModel))):
        if isinstance(student, ServedModel):
            rollouts = student.sample(ids, seed=(config.seed, step), **settings)
        elif sampler is not None:
            width = vocabulary_width(tokenizer, models)
            rollouts = sample_with(
                sampler, ids, seed=(config.seed, step, 0), width=width, **settings
            )
        else:
            rollouts = sample_in_parts(
                student,
                ids,
                eos_ids=eos_ids(student, tokenizer, conversations=has_conversation(encoded)),
                pad_id=padding_id(tokenizer),
                generator=step_generator(config.seed, step, student.device),
                width=vocabulary_width(tokenizer, models),
                **settings,
            )
        rollouts = replace(
            rollouts, teacher_prompt_ids=teacher_prompts(encoded, rollouts.prompt_index)
        )
        own = [encoded[i].prompt for i in rollouts.prompt_index]
        correct = None
        if grader is not None:
            correct = grade_rollouts(
                tokenizer, rollouts.response_ids, own, grader, finished=rollouts.finished
            )
        if first:
            check_steady(models, tokenizer, rollouts, width=vocabulary_width(tokenizer, models))
        scores = score_served(models, tokenizer, rollouts, k=config.k)
        if sampler is not None:
            check_sampler(sampler, scores.sampled_logp[:, 0].numpy(), rollouts)
    missing = [role for role, model in models.items() if isinstance(model, ServedModel)]
    return record_dataset(step, rollouts, scores, own, correct, missing)


def _tokenizer_beside(
    first: ServedModel | Path, teacher: ServedModel | PreTrainedModel | str | Path
) -> PreTrainedTokenizerBase:
    """Load the tokenizer that was saved with the local model."""
    for model in (first, teacher):
        if isinstance(model, str | Path):
            return load_tokenizer(model)
    raise ConfigError(
        "no tokenizer: a server does not give out its own. Pass the models' tokenizer (tokenizer=, "
        "or --tokenizer DIR)."
    )


def check_served(
    model: ServedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    longest: int,
    k: int,
    width: int,
) -> None:
    """Check before any work that a server shares the tokenizer and reports enough.

    Parameters
    ----------
    model
        The served model.
    tokenizer
        The local tokenizer.
    prompts
        Token ids of some prompts.
    longest
        Tokens of the longest prompt with its response.
    k, width
        Tokens kept per state, and size of the vocabulary.
    """
    model.check_length(longest + 1)  # a server continues what it scores
    text = "\n".join(str(tokenizer.decode(list(ids))) for ids in prompts[:_COMPARED])
    theirs, ours = model.tokenize(text), tokenizer(text, add_special_tokens=False).input_ids
    if theirs is None:
        logger.warning("%s has no /tokenize, so its vocabulary is not compared.", model)
    elif theirs != ours:
        at = next(i for i, pair in enumerate(zip_longest(theirs, ours)) if pair[0] != pair[1])
        raise VocabularyError(
            f"{model} splits the prompts' text unlike the local tokenizer: token {at} is "
            f"{theirs[at : at + 1]} there and {ours[at : at + 1]} here. Choose models with one "
            "vocabulary, and the tokenizer that belongs to them."
        )
    ids = list(prompts[0])
    alone = Rollouts([ids[:1]], [ids[1:] or ids], [True], [0])
    told = model.tell(alone, k=k, width=width)
    if model.tell_at(alone, told.token_id) is None:
        logger.info(
            "%s cannot score given tokens (prompt_logprob_token_ids): its log-probabilities of "
            "tokens that only the other model lists will be missing.",
            model,
        )


def describe(model: ServedModel | PreTrainedModel | Path) -> dict[str, Any]:
    """How a run describes a model; a served one only by its name, since addresses change."""
    if isinstance(model, ServedModel):
        return {"name": model.name, "served": True}
    return {"name": str(model)} if isinstance(model, Path) else identity(model)
