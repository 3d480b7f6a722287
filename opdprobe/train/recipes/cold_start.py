"""Off-policy cold start (paper §5.1): SFT of the student on the teacher's filtered responses.

    sample      the teacher answers the prompts        examples.jsonl, one line per response
    filter      drop truncated and repetitive ones     its `outcome`
    train       SFT of the student on the rest         metrics.jsonl, checkpoints/
    save        an ordinary model directory            model/

On-policy distillation then starts from a student that is closer to its teacher: higher overlap
from the first step, a higher ceiling in the end (Fig. 8, Fig. 21).
"""

import json
import logging
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from opdprobe.errors import ConfigError, StoreError
from opdprobe.models.devices import precision, resolve_device, same_randomness
from opdprobe.models.load import identity, load_model
from opdprobe.models.processes import Processes
from opdprobe.models.save import saving
from opdprobe.models.vocabulary import eos_ids, tokenizer_hash
from opdprobe.rollout.pair import Pair
from opdprobe.rollout.prompt_attrs import prompt_set, template_attrs
from opdprobe.rollout.prompts import EncodedPrompt, OnError, Prompt, encode_prompts
from opdprobe.store.claim import differences, refuse_other_files
from opdprobe.store.files import (
    explain_unwritable,
    open_append,
    read_entries,
    refuse_links,
    write_directory,
    write_text,
)
from opdprobe.train.checkpoint import latest_checkpoint
from opdprobe.train.config import SFTConfig
from opdprobe.train.optim import refuse_float16
from opdprobe.train.recipes.teacher_responses import (
    BATCH_SIZE,
    KEPT,
    REPETITIVE,
    TRUNCATED,
    Progress,
    TeacherSampling,
    teacher_examples,
)
from opdprobe.train.sft import Example, sft, shuffled
from opdprobe.train.sigterm import EXIT_CODE, sigterm_noted

logger = logging.getLogger("opdprobe")

# The files of a cold start: its settings, the teacher's responses, the losses.
_SETTINGS, _EXAMPLES, _METRICS = "cold_start.json", "examples.jsonl", "metrics.jsonl"


@dataclass(frozen=True)
class ColdStart:
    """A finished cold start.

    Parameters
    ----------
    path
        The trained student and its tokenizer: what `OPDTrainer` or ``--student`` starts from.
    counts
        Teacher responses by outcome: ``kept``, ``truncated``, ``repetitive``.
    n_steps
        Optimiser steps of SFT.
    """

    path: Path
    counts: dict[str, int]
    n_steps: int


def cold_start(
    student: PreTrainedModel | str | Path,
    teacher: PreTrainedModel | str | Path,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    prompts: Sequence[Prompt],
    config: SFTConfig,
    out_dir: str | Path,
    num_generations: int = 1,
    max_completion_length: int = 12288,
    temperature: float = 0.7,
    top_p: float = 0.95,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
    max_prompt_length: int = 1024,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    system_prompt: str | None = None,
    teacher_tokenizer: PreTrainedTokenizerBase | None = None,
    on_error: OnError = "raise",
    device: str | torch.device = "auto",
    dtype: str | torch.dtype | None = None,
    teacher_dtype: str | torch.dtype | None = None,
    attn_implementation: str | None = None,
    on_progress: Progress | None = None,
) -> ColdStart:
    """Fine-tune a student on its teacher's responses, before on-policy distillation (§5.1).

    Resumable: after an interruption, the same call resumes, and gives the result of an unbroken one
    bit for bit. Responses are saved batch by batch, SFT every ``config.save_steps`` steps. SIGTERM
    stops it after the batch or step in flight, with the finished work on disk.

    Parameters
    ----------
    student, teacher : PreTrainedModel or str or Path
        Causal LMs with one vocabulary; a name or path is loaded. The student is trained in place.
        If the teacher ends its responses with a token that does not end the student's, the student
        learns that token, which is added to its generation settings.
    tokenizer : PreTrainedTokenizerBase, optional
        The student's. Read from `student` if that is a path.
    prompts : sequence of Prompt
        Prompts that the teacher answers.
    config : SFTConfig
        How the student is trained; the defaults are Table 3's.
    out_dir : str or Path
        Absent, empty, or begun by the same call. Gets the student in ``model``, every response in
        ``examples.jsonl`` and the losses in ``metrics.jsonl``.
    num_generations, max_completion_length, temperature, top_p, batch_size, seed
        How the teacher is sampled; see `TeacherSampling`.
    max_prompt_length : int
        Longest prompt, in tokens.
    chat_template_kwargs : mapping, optional
        Variables for the chat template, such as {"enable_thinking": True}; see `encode_prompts`.
    system_prompt : str, optional
        First message of every conversation that has no system message of its own.
    teacher_tokenizer : PreTrainedTokenizerBase, optional
        Compared with `tokenizer` if given; read from `teacher` if that is a path.
    on_error : {"raise", "skip"}
        An unusable prompt (empty or over-long) raises an error, or is skipped with a note in the
        log.
    device, dtype, teacher_dtype, attn_implementation
        Where both models go, and how those that are given by name compute; see
        `opdprobe.rollout.pair.Pair.load`. What the student's dtype means for training is told at
        `opdprobe.OPDTrainer`.
    on_progress : callable, optional
        Called with (stage, done, all); stages are "teacher responses" and "SFT step".

    Returns
    -------
    ColdStart
        A finished cold start is only opened; `student` has the trained weights either way.

    Raises
    ------
    ConfigError
        A setting is out of range, `out_dir` was begun with other settings (named, with both
        values), or no response can be used.
    VocabularyError, PromptError, ModelError
        The tokenizers differ; a prompt or a model cannot be used.
    StoreError
        `out_dir` holds something else, or the disk is full.
    NonFiniteError
        A model's logits or a gradient are NaN or infinite.
    SystemExit
        SIGTERM came; the same call resumes from there.

    Examples
    --------
    >>> made = cold_start("my/student", "my/teacher", prompts=prompts,      # doctest: +SKIP
    ...                   config=SFTConfig(save_steps=100), out_dir="runs/cold")
    >>> trainer = OPDTrainer(made.path, "my/teacher", prompts=prompts,      # doctest: +SKIP
    ...                      config=OPDConfig(), run_dir="runs/warm")
    """
    sampling = TeacherSampling(
        num_generations, max_completion_length, temperature, top_p, batch_size, seed
    )
    out_dir = Path(out_dir)
    refuse_float16(dtype)  # before any weights are read
    pair = Pair.load(
        student,
        teacher,
        tokenizer=tokenizer,
        teacher_tokenizer=teacher_tokenizer,
        device=resolve_device(device, Processes.launched()),
        dtype=dtype,
        teacher_dtype=teacher_dtype,
        attn_implementation=attn_implementation,
    )
    encoded = encode_prompts(
        pair.tokenizer,
        prompts,
        max_prompt_length=max_prompt_length,
        chat_template_kwargs=chat_template_kwargs,
        system_prompt=system_prompt,
        on_error=on_error,
    )
    form = template_attrs(pair.tokenizer, encoded, chat_template_kwargs, system_prompt)
    _claim(out_dir, _settings(pair, encoded, sampling, config) | {"chat_template": form})
    with sigterm_noted() as stopping:
        made = _carry_out(pair, encoded, sampling, config, out_dir, on_progress, stopping)
        if stopping():
            logger.warning("%s: finished; stopped by SIGTERM.", out_dir)
            raise SystemExit(EXIT_CODE)
    return made


def _carry_out(
    pair: Pair,
    encoded: Sequence[EncodedPrompt],
    sampling: TeacherSampling,
    config: SFTConfig,
    out_dir: Path,
    on_progress: Progress | None,
    stopping: Callable[[], bool],
) -> ColdStart:
    student, teacher, tokenizer = pair.student, pair.teacher, pair.tokenizer
    responses = teacher_examples(
        teacher,
        tokenizer,
        encoded,
        out_dir / _EXAMPLES,
        sampling,
        width=pair.width,
        on_progress=on_progress,
        stopping=stopping,
    )
    found = Counter(response.outcome for response in responses)
    counts = {outcome: found[outcome] for outcome in (KEPT, TRUNCATED, REPETITIVE)}
    logger.info("%s: teacher responses %s", out_dir, counts)
    if not counts[KEPT]:
        raise ConfigError(
            f"none of the teacher's {len(responses)} responses can be used: {counts[TRUNCATED]} "
            f"do not end within max_completion_length = {sampling.max_completion_length}, "
            f"{counts[REPETITIVE]} repeat "
            f"themselves. See {out_dir / _EXAMPLES}; sample into another directory."
        )
    examples: list[Example] = [
        (list(encoded[i // sampling.num_generations].ids), response.response_ids)
        for i, response in enumerate(responses)
        if response.outcome == KEPT
    ]
    batch_at, n_steps = shuffled(examples, config)
    path = out_dir / "model"
    if path.exists():
        student.load_state_dict(load_model(path, device="cpu", dtype=student.dtype).state_dict())
    else:
        _train(student, tokenizer, batch_at, n_steps, config, out_dir, on_progress, stopping)
    _share_ends(student, teacher, tokenizer)
    if not path.exists():
        with write_directory(path) as directory, saving():
            student.save_pretrained(directory)
            tokenizer.save_pretrained(directory)
        refuse_links(out_dir / "checkpoints")
        shutil.rmtree(out_dir / "checkpoints", ignore_errors=True)
    return ColdStart(path, counts, n_steps)


def _settings(
    pair: Pair, encoded: Sequence[EncodedPrompt], sampling: TeacherSampling, config: SFTConfig
) -> dict[str, Any]:
    """Everything that the result depends on, by dotted name."""
    groups = {
        "student": identity(pair.student),
        "teacher": identity(pair.teacher),
        "prompts": prompt_set(encoded),
        "sampling": sampling.to_dict(),
        "sft": config.to_dict(),
    }
    return (
        {"tokenizer_hash": tokenizer_hash(pair.tokenizer)}
        | {
            f"{group}.{name}": value
            for group, values in groups.items()
            for name, value in values.items()
        }
        | precision({"student": pair.student, "teacher": pair.teacher})
    )


def _claim(out_dir: Path, settings: dict[str, Any]) -> None:
    """Claim the directory for this cold start, or check that it belongs to it."""
    refuse_other_files(out_dir, _SETTINGS, "cold start")
    file = out_dir / _SETTINGS
    if not file.exists():
        with explain_unwritable(f"creating {out_dir}"):
            out_dir.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps(settings, indent=2) + "\n")
        return
    try:
        before = json.loads(file.read_text())
    except json.JSONDecodeError as error:
        raise StoreError(
            f"{file} is not JSON ({error}); delete {out_dir} to start again."
        ) from error
    # A cold start that began before a setting was known had its default; the form of its prompts
    # is in their hash.
    unknown = {f"sft.{name}": value for name, value in SFTConfig().to_dict().items()}
    unknown["chat_template"] = settings["chat_template"]
    if changes := differences(unknown | before, settings):
        raise ConfigError(
            f"{out_dir} was begun with other settings: {changes}; restore them, or choose another "
            "directory."
        )


def _train(
    student: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    batch_at: Callable[[int], list[Example]],
    n_steps: int,
    config: SFTConfig,
    out_dir: Path,
    on_progress: Progress | None,
    stopping: Callable[[], bool],
) -> None:
    checkpoint = latest_checkpoint(out_dir)
    first, file = checkpoint.step if checkpoint else 0, out_dir / _METRICS
    kept = [line for line in read_entries(file) if line["step"] < first]
    write_text(file, "".join(json.dumps(line) + "\n" for line in kept))
    # Dropout draws from torch's global random numbers: a fresh process must draw the same.
    with same_randomness(student), open_append(file, buffering=0) as log:
        torch.manual_seed(config.seed)
        for metrics in sft(student, tokenizer, batch_at, n_steps, config, out_dir, stopping):
            log.write(f"{json.dumps(metrics)}\n".encode())
            if on_progress:
                on_progress("SFT step", int(metrics["step"]) + 1, n_steps)


def _share_ends(
    student: PreTrainedModel, teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Add the teacher's end tokens to the student's: it has just learnt to emit them."""
    known = eos_ids(student, tokenizer, conversations=False)
    learnt = sorted({*known, *eos_ids(teacher, tokenizer, conversations=False)})
    if student.generation_config is not None and learnt != known:
        student.generation_config.eos_token_id = learnt
