"""Build the second world's zoo from one base model, and check it.

The user names the base model, any causal LM with a tokenizer that has an end-of-sequence token.
Nothing is shipped. The zoo is a directory:

    NAME/                 a finished member: bfloat16 safetensors, tokenizer, ``zoo.json``
    work/NAME/            a member in progress: its settings, ``steps.jsonl``, checkpoints
    manifest.json         the records of all finished members

A finished member is skipped. One in progress continues from its last checkpoint; only its
measurement starts again.
"""

import hashlib
import json
import platform
import random
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from opdprobe.models.load import drop_layers, load_model, load_tokenizer
from opdprobe.models.save import saving
from opdprobe.rollout.prompts import EncodedPrompt, Prompt, encode_prompts
from opdprobe.store.claim import differences
from opdprobe.store.files import open_append, read_entries, write_directory, write_text
from opdprobe.store.lock import lock_run
from opdprobe.testing.real import members, world
from opdprobe.testing.real.members import (
    MAX_COMPLETION_LENGTH,
    RECORD,
    find_member,
    manifest,
    read_record,
    removed_layers,
    zoo_path,
)
from opdprobe.testing.real.problems import BENCHMARKS, demonstrations, grader, problems
from opdprobe.testing.testbed.members import ZooError
from opdprobe.train.config import GRPOConfig, SFTConfig
from opdprobe.train.evaluate import evaluate
from opdprobe.train.grpo import grpo
from opdprobe.train.pool import Progress, Report, Task, work
from opdprobe.train.recipes.cold_start import cold_start
from opdprobe.train.sft import sft
from opdprobe.train.sigterm import EXIT_CODE, sigterm_noted

_LOG = "steps.jsonl"
_SETTINGS = "settings.json"
_N_COLD_START = 512


def measure(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    n_problems: int = 32,
    num_generations: int = 2,
) -> dict[str, Any]:
    """Measure avg@n at temperature 0.7, top-p 0.95, and the patterns of the answers.

    Returns
    -------
    dict
        ``accuracy``: mean over the benchmarks; ``benchmarks``: accuracy on each; ``patterns``: by
        pattern its ``share`` of all answers, and the ``accuracy`` of these. An answer that does not
        end counts as wrong, with the pattern ``unfinished``.
    """
    scores, graded = {}, defaultdict[str, list[float]](list)

    def note(response: str, prompt: Prompt) -> float:
        score = grader(response, prompt)
        graded[world.pattern_of(response)].append(score)
        return score

    for name in BENCHMARKS:
        prompts = encode_prompts(tokenizer, problems(n_problems, split=name))
        found = evaluate(
            model,
            tokenizer,
            prompts,
            note,
            num_generations=num_generations,
            max_completion_length=MAX_COMPLETION_LENGTH,
            benchmark=name,
        )
        scores[name] = round(float(found.mean()), 4)
    total = len(BENCHMARKS) * n_problems * num_generations
    if n_unfinished := total - sum(map(len, graded.values())):
        graded["unfinished"] = [0.0] * n_unfinished
    return {
        "accuracy": round(sum(scores.values()) / len(scores), 4),
        "benchmarks": scores,
        "patterns": {
            name: {
                "share": round(len(marks) / total, 4),
                "accuracy": round(sum(marks) / len(marks), 4),
            }
            for name, marks in sorted(graded.items())
        },
    }


def build(
    name: str,
    zoo: Path,
    base: str | Path,
    stopping: Callable[[], bool] = lambda: False,
    *,
    device: str = "cpu",
    dtype: str | None = None,
) -> Iterator[dict[str, float]]:
    """Make a member, yielding metrics per step; resumable. A finished member yields nothing.

    Parameters
    ----------
    name
        A member; those that it is made from must be built.
    zoo
        Directory of the zoo.
    base
        The base model, as for `opdprobe.load_model`.
    stopping
        Called after each step; if true, the build stops with a checkpoint to resume from.
    device, dtype
        Where the member is trained and in what its passes are computed, as for
        `opdprobe.load_model`. A model in bfloat16 is trained as a float32 copy.

    Raises
    ------
    ZooError
        There is no such member; what it is made from is not built; or the member, or the work on
        it, was begun with other settings or from another base model.
    StoreError
        Another process is building the member.
    SystemExit
        `stopping` returned true.
    """
    member, folder = find_member(name), zoo / "work" / name
    settings = _settings(name, zoo, base, dtype)
    if (zoo / name / RECORD).exists():
        _compare(zoo / name, read_record(zoo / name / RECORD)["settings"], settings)
        return
    folder.mkdir(parents=True, exist_ok=True)
    lock = lock_run(folder)  # for as long as this generator lives
    if (folder / _SETTINGS).exists():
        _compare(folder, read_record(folder / _SETTINGS), settings)
    parent = base if member.parent is None else zoo_path(member.parent, zoo)
    model = load_model(parent, device=device, dtype=dtype)
    tokenizer = load_tokenizer(parent)
    if tokenizer.eos_token_id is None:
        raise ZooError(
            f"{base}: the tokenizer has no end-of-sequence token; expected one, to end responses."
        )
    # Now that the models can be used: a wrong name of a base claims nothing.
    write_text(folder / _SETTINGS, json.dumps(settings, indent=2) + "\n")
    dropped: list[int] = []
    if member.smaller:
        dropped = list(removed_layers(model.config.num_hidden_layers))
        model = drop_layers(model, dropped)
    started = time.monotonic()
    for metrics in _trained(name, model, tokenizer, zoo, stopping, device):
        now = time.monotonic()
        line = {**metrics, "seconds": round(now - started, 3)}
        with open_append(folder / _LOG) as log:
            log.write(f"{json.dumps(line)}\n".encode())
        yield line
        started = time.monotonic()
    _publish(name, model, tokenizer, zoo, {**settings, "dropped": dropped}, device)
    del lock


def _trained(
    name: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    zoo: Path,
    stopping: Callable[[], bool],
    device: str,
) -> Iterator[dict[str, float]]:
    """Train a member in place, yielding metrics per step; a cold start counts as one."""
    member, folder = members.MEMBERS[name], zoo / "work" / name
    recipe = member.recipe
    if recipe is None:
        return
    if isinstance(recipe, GRPOConfig):
        pool = encode_prompts(tokenizer, problems(2048, split="rl"))

        def prompts_at(step: int) -> list[EncodedPrompt]:
            return random.Random(f"{recipe.seed}/{step}").sample(pool, recipe.batch_size)

        yield from grpo(model, tokenizer, prompts_at, grader, recipe, folder, stopping)
    elif member.teacher is None:
        assert recipe.max_steps is not None
        batch_at = demonstrations(tokenizer, recipe, member.corpus)
        yield from sft(model, tokenizer, batch_at, recipe.max_steps, recipe, folder, stopping)
    else:
        made = cold_start(
            model,
            zoo_path(member.teacher, zoo),
            tokenizer=tokenizer,
            prompts=problems(_N_COLD_START, split="train"),
            config=recipe,
            out_dir=folder / "cold-start",
            num_generations=2,
            max_completion_length=MAX_COMPLETION_LENGTH,
            device=device,
        )
        yield {"step": made.n_steps - 1, **{f"n_{k}": n for k, n in made.counts.items()}}


def build_all(
    names: Sequence[str],
    zoo: Path,
    base: str | Path,
    *,
    workers: int = 2,
    device: str = "cpu",
    dtype: str | None = None,
    on_progress: Progress = lambda name, done, total: None,
) -> None:
    """Build members, and those that they are made from, in parallel; write the manifest.

    Parameters
    ----------
    names
        Members.
    zoo, base, device, dtype
        As in `build`.
    workers
        Number of processes, one thread each.
    on_progress
        Called with a member's name, its steps done and its number of steps.

    Raises
    ------
    ZooError
        As in `build`.
    SystemExit
        SIGTERM was received; each member in progress has a checkpoint of its last step.
    """
    tasks = [
        Task(name, _build, (name, zoo, base, device, dtype), frozenset(made_from(name)))
        for name in with_ancestors(names)
    ]
    zoo.mkdir(parents=True, exist_ok=True)
    try:
        work(tasks, workers=workers, on_progress=on_progress)
    finally:
        write_text(zoo / "manifest.json", json.dumps(manifest(zoo), indent=2) + "\n")


def made_from(name: str) -> list[str]:
    """Return the members that a member is made from."""
    member = find_member(name)
    return [other for other in (member.parent, member.teacher) if other]


def with_ancestors(names: Sequence[str]) -> list[str]:
    """Add all that some members are made from, in the order of `members.MEMBERS`."""
    found = set[str]()
    left = list(names)
    while left:
        name = left.pop()
        found.add(name)
        left += made_from(name)
    return [name for name in members.MEMBERS if name in found]


def _build(
    name: str, zoo: Path, base: str | Path, device: str, dtype: str | None, report: Report
) -> None:
    recipe = members.MEMBERS[name].recipe
    total = (recipe.max_steps if recipe else None) or 1
    with sigterm_noted() as stopping:
        for metrics in build(name, zoo, base, stopping, device=device, dtype=dtype):
            # Until it is measured and published, a member is not done.
            report(min(int(metrics["step"]) + 1, total - 1), total)
        report(total, total)
        if stopping():  # SIGTERM arrived while the member was published
            raise SystemExit(EXIT_CODE)


def check(name: str, zoo: Path, *, tolerance: float = 0.05, device: str = "cpu") -> dict[str, Any]:
    """Check that a member has the bytes and the accuracy of its record.

    Returns
    -------
    dict
        ``sha256``, ``accuracy`` measured now and ``recorded``.

    Raises
    ------
    ZooError
        The member is unknown or not built, its weights differ from the recorded ones, or its
        accuracy differs by more than `tolerance`.
    """
    path = zoo_path(name, zoo)
    entry = manifest(zoo)[name]
    again = f"restore the file, or delete {path} and build it again."
    if (digest := _digest(path)) != entry["sha256"]:
        raise ZooError(
            f"{path}: the weights have sha256 {digest}; expected {entry['sha256']}: {again}"
        )
    accuracy = measure(load_model(path, device=device), load_tokenizer(path))["accuracy"]
    if abs(accuracy - entry["accuracy"]) > tolerance:
        raise ZooError(
            f"{path}: accuracy {accuracy:.3f}; expected {entry['accuracy']:.3f} ± {tolerance}: "
            f"{again}"
        )
    return {"sha256": digest, "accuracy": accuracy, "recorded": entry["accuracy"]}


def base_digest(base: str | Path) -> str:
    """Hash a base model: a file, or a directory's weights and tokenizer; a hub id is its own.

    Raises
    ------
    ZooError
        The directory holds no safetensors and no GGUF file.
    """
    path = Path(base).expanduser()
    if not path.exists():
        return str(base)
    if path.is_file():
        return _sha256([path])
    weights = [*path.glob("*.safetensors"), *path.glob("*.gguf")]
    if not weights:
        raise ZooError(
            f"{base}: no safetensors and no GGUF file; expected a model directory, a GGUF file or "
            "a hub id."
        )
    more = [path / "config.json", path / "tokenizer.json"]
    return _sha256(sorted([*weights, *(file for file in more if file.exists())]))


def _settings(name: str, zoo: Path, base: str | Path, dtype: str | None) -> dict[str, Any]:
    """Everything that a member depends on."""
    member = members.MEMBERS[name]
    recipe = member.recipe
    return {
        "base": base_digest(base),
        "made_from": {
            other: read_record(zoo_path(other, zoo) / RECORD)["sha256"] for other in made_from(name)
        },
        "corpus": member.corpus if isinstance(recipe, SFTConfig) and not member.teacher else None,
        "smaller": member.smaller,
        "recipe": {"type": type(recipe).__name__, **recipe.to_dict()} if recipe else None,
        "dtype": dtype or "float32",
    }


def _compare(folder: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    # How often progress is saved changes no result.
    if changes := differences(_unsaved(before), _unsaved(now), ignore=("dropped",)):
        raise ZooError(
            f"{folder} was begun with other settings: {changes}; restore them, delete it, or name "
            "another --work-dir."
        )


def _unsaved(settings: dict[str, Any]) -> dict[str, Any]:
    recipe = settings["recipe"]
    return {**settings, "recipe": recipe and {k: recipe[k] for k in recipe if k != "save_steps"}}


def _publish(
    name: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    zoo: Path,
    settings: dict[str, Any],
    device: str,
) -> None:
    """Measure a member and put it into the zoo atomically; drop its checkpoints."""
    folder = zoo / "work" / name
    steps = read_entries(folder / _LOG)
    with write_directory(zoo / name) as directory:
        with saving():
            model.bfloat16().save_pretrained(directory)
            tokenizer.save_pretrained(directory)
        shipped = load_model(directory, device=device)
        started = time.monotonic()
        found = measure(shipped, tokenizer)
        entry = {
            "analog": members.MEMBERS[name].analog,
            "settings": settings,
            "parameters": sum(p.numel() for p in shipped.parameters()),
            "layers": shipped.config.num_hidden_layers,
            "sha256": _digest(directory),
            **found,
            "seconds": {
                # Steps that an interruption undid were computed, too.
                "training": round(sum(line["seconds"] for line in steps), 1),
                "measurement": round(time.monotonic() - started, 1),
            },
            "device": f"{device} ({platform.machine()})",
        }
        (directory / RECORD).write_text(json.dumps(entry, indent=2) + "\n")
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def _digest(path: Path) -> str:
    return _sha256(sorted(path.glob("*.safetensors")))


def _sha256(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name}\n".encode() if len(files) > 1 else b"")
        with file.open("rb") as content:
            while block := content.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
