"""Make a run from saved checkpoints: one step per checkpoint."""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import xarray as xr
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from opdprobe.errors import ConfigError, ModelError, NonFiniteError, StoreError
from opdprobe.hooks.shared import (
    ProbeConfig,
    encode,
    make_pair,
    run_attrs,
    undisturbed,
)
from opdprobe.models.devices import resolve_device
from opdprobe.models.files import model_directory
from opdprobe.models.load import load_tokenizer, weight_hash
from opdprobe.models.processes import Processes
from opdprobe.models.save import keep_tokenizer
from opdprobe.rollout.engine import Sampler
from opdprobe.rollout.grade import Grader
from opdprobe.rollout.mixture import MixturePair
from opdprobe.rollout.once import probe
from opdprobe.rollout.prompt_files import as_prompts
from opdprobe.rollout.prompts import EncodedPrompt, OnError, Prompt
from opdprobe.rollout.rescore import rescore
from opdprobe.rollout.rows import step_metrics
from opdprobe.rollout.teacher_context import TeacherContext
from opdprobe.rollout.teachers import TeacherPairs, taught
from opdprobe.store import Run, RunWriter, open_run

# checkpoint-500, global_step_500, 000500; not smollm2
_STEP = re.compile(r"(?:.*[-_])?(\d+)")


def find_checkpoints(checkpoints: str | Path | Sequence[str | Path]) -> dict[int, Path]:
    """Find the checkpoints and their steps.

    Parameters
    ----------
    checkpoints : str, Path or sequence of them
        A directory that holds one directory per checkpoint; or the checkpoints themselves, each a
        directory whose name ends in its step ("checkpoint-500"; verl's "global_step_500"), with a
        model or an adapter. A single model without a number is step 0.

    Returns
    -------
    dict of int to Path
        In the order of the steps.

    Raises
    ------
    ModelError
        There is no checkpoint.
    ConfigError
        One of several names has no step, or two have the same step.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     for name in ("checkpoint-1000", "checkpoint-500", "logs"):
    ...         Path(folder, name).mkdir()
    ...     for name in ("checkpoint-1000", "checkpoint-500"):
    ...         _ = Path(folder, name, "config.json").write_text("{}")
    ...     list(find_checkpoints(folder))
    [500, 1000]
    """
    given = [checkpoints] if isinstance(checkpoints, str | Path) else list(checkpoints)
    paths: list[Path] = []
    for path in map(Path, given):
        if model_directory(path):
            paths.append(path)
            continue
        inside = [child for child in sorted(path.glob("*")) if model_directory(child)]
        # A folder of checkpoints may hold a final model beside them, which has no step.
        if not (numbered := [child for child in inside if _STEP.fullmatch(child.name)]):
            deeper = next((child.name for child in path.glob("*") if _numbered(child)), None)
            raise ModelError(
                f"{path}: no checkpoint there; expected a saved model (config.json and "
                "safetensors), an adapter (adapter_config.json), or a directory of them whose "
                "names end in a step (checkpoint-500)"
                + (f": did you mean {path / deeper}?" if deeper else ".")
            )
        paths += numbered
    if not paths:
        raise ModelError(
            "no checkpoints given; expected a directory of them, or at least one path."
        )
    found: dict[int, Path] = {}
    for path in paths:
        match = _STEP.fullmatch(_named_by_step(path.resolve()))
        if match is None and len(paths) > 1:
            raise ConfigError(
                f"{path}: the name does not end in a step; expected one like checkpoint-500, since "
                f"{len(paths)} checkpoints were given."
            )
        step = int(match[1]) if match else 0
        if step in found:
            raise ConfigError(f"{found[step]} and {path} are both step {step}; leave one out.")
        found[step] = path
    return dict(sorted(found.items()))


def _numbered(path: Path) -> bool:
    """Whether a directory holds a checkpoint."""
    return any(_STEP.fullmatch(child.name) and model_directory(child) for child in path.glob("*"))


def _named_by_step(path: Path) -> str:
    """Name of the directory that has the step; above global_step_N/actor/huggingface, of verl."""
    for inside in ("huggingface", "actor"):
        if path.name == inside:
            path = path.parent
    return path.name


def probe_checkpoints(
    checkpoints: str | Path | Sequence[str | Path],
    teacher: PreTrainedModel | str | Path | Mapping[str, PreTrainedModel | str | Path],
    prompts: Sequence[Prompt] | str | Path | None,
    run_dir: str | Path,
    *,
    fixed_contexts: Run | str | Path | None = None,
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
    teacher_tokenizer: PreTrainedTokenizerBase | None = None,
    seed: int = 0,
    temperature: float = 1.0,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype | None = None,
    teacher_dtype: str | torch.dtype | None = None,
    attn_implementation: str | None = None,
    teacher_by: str | None = None,
    one_teacher_at_a_time: bool = False,
    sampler: Sampler | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Run:
    """Probe every checkpoint of a student on the same prompts, into one run.

    Resumable: steps that the run already holds are left as they are, so that the same call resumes
    after an interruption, and adds checkpoints that were saved since. Under `accelerate launch`,
    processes share the prompts, and each writes its part of every step.

    Parameters
    ----------
    checkpoints : str, Path or sequence of them
        See `find_checkpoints`.
    teacher, prompts, run_dir, k, num_generations, max_completion_length, max_prompt_length, \
    on_error, chat_template_kwargs, system_prompt, teacher_context, grader, seed, temperature
        As for `opdprobe.ProbeCallback`.
        `prompts` is None with `fixed_contexts`, which also leaves out what only sampling needs.
    fixed_contexts : Run, str or Path, optional
        A recorded run. Instead of sampling from each checkpoint, score the rollouts of the run's
        first recorded step with each. Then a curve shows how the models change at the same states,
        and not that the student visits other ones. The grades are those of these rollouts.
    tokenizer : PreTrainedTokenizerBase, optional
        The students'; by default the one saved with the first checkpoint.
    teacher_tokenizer : PreTrainedTokenizerBase, optional
        Compared with the students'; loaded with the teacher if that is a name or path.
    device, dtype, teacher_dtype, attn_implementation
        Where models go, and how they compute; see `opdprobe.rollout.pair.Pair.load`. The students
        have `dtype`. By default, a teacher that is already loaded stays where it is, and the
        students go there.
    teacher_by : str, optional
        With a mapping of names to teachers: column of the prompts that names the teacher of each.
    one_teacher_at_a_time : bool
        Of several teachers, keep one in memory, and read the next one's files when its turn comes.
    sampler : ServedModel, optional
        A server with the weights of the one checkpoint that is given: it samples, at temperature 1,
        and local models score. What it says of the tokens that it drew is compared with the
        student's scores (`opdprobe.rollout.engine.check_sampler`).
    on_progress : callable, optional
        Called with (checkpoints done, checkpoints in total).

    Returns
    -------
    Run
        One step per checkpoint, which the step's attributes `checkpoint` and `weight_hash`
        identify.

    Raises
    ------
    ModelError, VocabularyError, PromptError, ConfigError
        A model, the tokenizers, a prompt or a setting cannot be used; the sampler fails, or has
        other weights than the student.
    StoreError
        `run_dir` holds something else, or `fixed_contexts` no texts.
    NonFiniteError
        A model's logits are NaN or infinite; names the checkpoint.

    Examples
    --------
    >>> run = probe_checkpoints("out", "my/teacher", "probe.jsonl", "runs/x")   # doctest: +SKIP
    >>> run.steps                                                               # doctest: +SKIP
    [500, 1000, 1500]
    """
    config = ProbeConfig(
        k=k,
        num_generations=num_generations,
        max_completion_length=max_completion_length,
        seed=seed,
        temperature=float(temperature),
    )
    found = find_checkpoints(checkpoints)
    first = next(iter(found.values()))
    if sampler is not None and (len(found) > 1 or fixed_contexts is not None):
        what = "fixed_contexts" if fixed_contexts is not None else f"{len(found)} checkpoints"
        raise ConfigError(
            f"{sampler} as sampler beside {what}; expected one checkpoint, whose weights it "
            "serves, and prompts."
        )
    tokenizer = tokenizer or load_tokenizer(first)
    encoded: list[EncodedPrompt] = []
    contexts: xr.Dataset | None = None
    if fixed_contexts is not None:
        if teacher_context is not None and not teacher_context.is_shared:
            raise ConfigError(
                "teacher_context is given beside fixed_contexts, which have what the teacher read; "
                "expected one of the two."
            )
        contexts, described = _contexts(fixed_contexts, prompts)
        if isinstance(teacher, Mapping):
            raise ConfigError(
                "several teachers beside fixed_contexts, whose prompts are not known; expected one "
                "teacher, or prompts."
            )
    elif prompts is None:
        raise ConfigError("prompts = None; expected prompts, or a run as fixed_contexts.")
    else:
        own = next(iter(teacher.values()), "") if isinstance(teacher, Mapping) else teacher
        if isinstance(own, str | Path):
            teacher_tokenizer = teacher_tokenizer or load_tokenizer(own)
        if isinstance(teacher, Mapping) and teacher_by is not None:
            given = as_prompts(prompts, on_error=on_error)
            prompts = taught(given, teacher_by, [*teacher], on_error)
        encoded, described = encode(
            *(tokenizer, prompts, max_prompt_length, on_error, chat_template_kwargs, system_prompt),
            teacher_context=teacher_context,
            teacher_tokenizer=teacher_tokenizer,
        )
    processes = Processes.launched()
    with processes.together():
        if device == "auto" and isinstance(teacher, PreTrainedModel):
            place = teacher.device
        else:
            place = resolve_device(device, processes)
        writer: RunWriter | None = None
        recorded: list[int] = []
        for done, (step, path) in enumerate(found.items()):
            if on_progress and processes.is_main:
                on_progress(done, len(found))
            if step in recorded:
                continue
            pair = make_pair(
                path,
                teacher,
                tokenizer,
                teacher_tokenizer,
                device=place,
                dtype=dtype,
                teacher_dtype=teacher_dtype,
                attn_implementation=attn_implementation,
                teacher_by=teacher_by,
                one_teacher_at_a_time=one_teacher_at_a_time,
                own_template=teacher_context is not None and teacher_context.template == "own",
            )
            student = pair.student
            if isinstance(pair, TeacherPairs | MixturePair):  # once, unless there is room for one
                teacher = pair.reusable or teacher
            else:
                teacher, teacher_tokenizer = pair.teacher, pair.teacher_tokenizer
            if writer is None:
                attrs = run_attrs(
                    pair,
                    # Their folder, not one model: each step names its own.
                    {"name": str(first.parent if _STEP.fullmatch(first.name) else first)},
                    pair.teacher_identity(),
                    recorded_by="probe_checkpoints",
                    k=k,
                    temperature=config.temperature,
                    top_p=1.0,
                    seed=seed,
                    **({} if sampler is None else {"sampler": {"name": sampler.name}}),
                    **described,
                )
                writer = processes.main_first(
                    partial(
                        RunWriter,
                        run_dir,
                        attrs=attrs,
                        config=config.to_dict()
                        if contexts is None
                        else {"k": k, "temperature": config.temperature},
                        resume=True,
                        part=(processes.rank, processes.size),
                    )
                )
                if processes.is_main:
                    keep_tokenizer(run_dir, tokenizer)
                recorded = open_run(run_dir).steps
                if step in recorded:
                    continue
            try:
                with undisturbed(student, pair.teacher):
                    if contexts is None:
                        dataset = probe(
                            pair,
                            encoded,
                            step=step,
                            grader=grader,
                            processes=processes,
                            sampler=sampler,
                            **config.sampling(),
                        )
                    else:
                        dataset = rescore(
                            pair,
                            contexts,
                            k=k,
                            temperature=config.temperature,
                            step=step,
                            processes=processes,
                        )
            except NonFiniteError as error:
                raise NonFiniteError(f"{path}: {error}") from error
            identified = {"checkpoint": _named_by_step(path), "weight_hash": weight_hash(student)}
            writer.write_step(step, dataset.assign_attrs(identified))
            writer.log_metrics(step, step_metrics(dataset, processes))
    if on_progress and processes.is_main:
        on_progress(len(found), len(found))
    return open_run(run_dir)


def _contexts(
    fixed: Run | str | Path, prompts: Sequence[Prompt] | str | Path | None
) -> tuple[xr.Dataset, dict[str, Any]]:
    """Load the first recorded step of a run, and describe it for the new run's attributes."""
    run = fixed if isinstance(fixed, Run) else open_run(fixed)
    if prompts is not None:
        raise ConfigError(
            f"prompts were given beside fixed_contexts = {run.path}, which has its own; expected "
            "one of the two."
        )
    if not run.steps:
        raise StoreError(f"{run.path} has no recorded step to take contexts from.")
    step = run.steps[0]
    contexts = run.load(step)
    texts = b"".join(
        contexts[name].values.astype("<i8").tobytes()
        for name in (
            *("prompt_ids", "response_ids", "prompt_length", "length"),
            *("teacher_prompt_ids", "teacher_prompt_length"),
        )
        if name in contexts
    )
    described: dict[str, Any] = {
        "fixed_contexts": {
            "run": run.path.resolve().name,
            "step": step,
            "rollouts": contexts.sizes.get("rollout", 0),
            "sha256": hashlib.sha256(texts).hexdigest(),
        }
    }
    if "chat_template" in run.attrs:
        described["chat_template"] = run.attrs["chat_template"]
    return contexts, described
