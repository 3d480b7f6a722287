"""Build the zoo, the testbed's shipped models, and check them.

Every member is an ordinary Hugging Face directory (bfloat16 safetensors, tokenizer, chat template),
so that the rest of the library does not know whether it runs on the testbed or on Qwen.
"""

import hashlib
import json
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from opdprobe.models.devices import resolve_device
from opdprobe.models.load import load_model, load_tokenizer
from opdprobe.models.save import saving
from opdprobe.rollout.prompts import EncodedPrompt, encode_prompts
from opdprobe.store.files import write_directory
from opdprobe.testing.testbed import members
from opdprobe.testing.testbed.members import (
    MAX_COMPLETION_LENGTH,
    RECORD,
    ZooError,
    find_member,
    manifest,
    zoo_path,
)
from opdprobe.testing.testbed.problems import BENCHMARKS, demonstrations, grader, problems
from opdprobe.testing.testbed.tokenizer import build_tokenizer
from opdprobe.train.config import GRPOConfig, SFTConfig
from opdprobe.train.evaluate import evaluate
from opdprobe.train.grpo import grpo
from opdprobe.train.pool import Progress, Report, Task, work
from opdprobe.train.recipes.cold_start import cold_start
from opdprobe.train.sft import sft
from opdprobe.train.sigterm import EXIT_CODE, sigterm_noted


def measure(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    n_problems: int = 128,
    num_generations: int = 4,
) -> float:
    """Measure avg@n at temperature 0.7, top-p 0.95, averaged over the benchmarks."""
    held_out = [p for name in BENCHMARKS for p in problems(n_problems, split=name)]
    prompts = encode_prompts(tokenizer, held_out)
    scores = evaluate(
        model,
        tokenizer,
        prompts,
        grader,
        num_generations=num_generations,
        max_completion_length=MAX_COMPLETION_LENGTH,
    )
    return float(scores.mean())


def build(
    name: str,
    work_dir: Path,
    stopping: Callable[[], bool] = lambda: False,
    device: str = "cpu",
) -> Iterator[dict[str, float]]:
    """Train a member and put it into the zoo, yielding metrics per step; resumable.

    Parameters
    ----------
    name
        A member; its parent must be built.
    work_dir
        Directory of the checkpoints.
    stopping
        Called after each step; if true, the build stops with a checkpoint to resume from.
    device
        Where the member is trained, as for `opdprobe.load_model`; in float32.

    Raises
    ------
    ZooError
        There is no such member, or its parent is not built.
    SystemExit
        `stopping` returned true.
    """
    member = find_member(name)
    recipe = member.recipe
    if member.parent is None:
        tokenizer = build_tokenizer()
        assert member.size is not None
        model = new_model(tokenizer, **member.size)
        model.to(resolve_device(device))  # pyright: ignore[reportArgumentType]  # transformers' stub of `to`
    else:
        parent = zoo_path(member.parent)
        model = load_model(parent, device=device)
        tokenizer = load_tokenizer(parent)
    if member.teacher is not None:
        assert isinstance(recipe, SFTConfig)
        made = cold_start(
            model,
            zoo_path(member.teacher),
            tokenizer=tokenizer,
            prompts=problems(8192, split="train"),
            config=recipe,
            out_dir=work_dir / name,
            num_generations=2,
            max_completion_length=MAX_COMPLETION_LENGTH,
            device=device,
            teacher_dtype="float32",
        )
        yield {"step": made.n_steps - 1}
    elif isinstance(recipe, SFTConfig):
        assert recipe.max_steps is not None
        batch_at = demonstrations(tokenizer, recipe, member.corpus)
        n_steps, run_dir = recipe.max_steps, work_dir / name
        yield from sft(model, tokenizer, batch_at, n_steps, recipe, run_dir, stopping)
    else:
        prompts = encode_prompts(tokenizer, problems(8192, split="rl"))

        def prompts_at(step: int) -> list[EncodedPrompt]:
            return random.Random(f"{recipe.seed}/{step}").sample(prompts, recipe.batch_size)

        yield from grpo(model, tokenizer, prompts_at, grader, recipe, work_dir / name, stopping)
    _publish(name, model, tokenizer, device)


def build_all(
    names: Sequence[str],
    work_dir: Path,
    *,
    workers: int = 2,
    device: str = "cpu",
    on_progress: Progress = lambda name, done, total: None,
) -> None:
    """Build members in parallel, parents first; resumable.

    Parameters
    ----------
    names
        Members. A parent that is not among them must be built already.
    work_dir
        Directory of the checkpoints.
    workers
        Number of processes, one thread each.
    device
        Where members are trained, as for `opdprobe.load_model`.
    on_progress
        Called with a member's name, its steps done and its number of steps.

    Raises
    ------
    SystemExit
        SIGTERM was received; each member in progress has a checkpoint of its last step.
    """
    tasks = []
    for name in names:
        member = find_member(name)
        before = {other for other in (member.parent, member.teacher) if other}
        tasks.append(Task(name, _build, (name, work_dir, device), frozenset(before)))
    work(tasks, workers=workers, on_progress=on_progress)


def _build(name: str, work_dir: Path, device: str, report: Report) -> None:
    total = members.MEMBERS[name].recipe.max_steps or 0
    with sigterm_noted() as stopping:
        for metrics in build(name, work_dir, stopping, device):
            report(int(metrics["step"]) + 1, total)
        if stopping():  # SIGTERM arrived while the member was published
            raise SystemExit(EXIT_CODE)


def check(name: str, *, tolerance: float = 0.03, device: str = "cpu") -> dict[str, float | str]:
    """Check that a shipped model has the bytes and the accuracy of its manifest.

    The accuracy is measured in float32, on `device`.

    Returns
    -------
    dict
        ``sha256``, ``accuracy`` measured now and ``recorded``.

    Raises
    ------
    ZooError
        The model is unknown, not built or not in the manifest, its weights differ from the
        manifest's, or its accuracy differs by more than `tolerance`.
    """
    path = zoo_path(name)
    entry = manifest().get(name)
    if entry is None:
        raise ZooError(f"{path / RECORD} is missing; run `opdprobe zoo build {name}`.")
    digest = _digest(path)
    if digest != entry["sha256"]:
        raise ZooError(
            f"{name}: model.safetensors has sha256 {digest}; expected {entry['sha256']}: "
            f"restore the file or rebuild it with `opdprobe zoo build {name}`."
        )
    accuracy = measure(load_model(path, device=device), load_tokenizer(path))
    if abs(accuracy - entry["accuracy"]) > tolerance:
        raise ZooError(
            f"{name}: accuracy {accuracy:.3f}; expected {entry['accuracy']:.3f} ± {tolerance}: "
            f"rebuild it with `opdprobe zoo build {name}`."
        )
    return {"sha256": digest, "accuracy": accuracy, "recorded": entry["accuracy"]}


def _publish(
    name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, device: str
) -> None:
    """Measure a member and put it into the zoo atomically."""
    member = members.MEMBERS[name]
    with write_directory(members.ZOO / name) as directory:
        with saving():
            model.bfloat16().save_pretrained(directory)
            tokenizer.save_pretrained(directory)
        shipped = load_model(directory, device=device)
        entry = {
            "analog": member.analog,
            "parent": member.parent,
            "parameters": sum(p.numel() for p in shipped.parameters()),
            "sha256": _digest(directory),
            "accuracy": round(measure(shipped, tokenizer), 4),
            "teacher": member.teacher,
            "corpus": None
            if member.teacher or isinstance(member.recipe, GRPOConfig)
            else member.corpus,
            "recipe": {"type": type(member.recipe).__name__, **member.recipe.to_dict()},
        }
        # One record per member, so that two can be built at the same time.
        (directory / RECORD).write_text(json.dumps(entry, indent=2) + "\n")


def new_model(
    tokenizer: PreTrainedTokenizerBase, *, hidden_size: int, layers: int, seed: int = 0
) -> LlamaForCausalLM:
    """Return an untrained model of the testbed; `seed` decides its weights."""
    heads, ids = max(4, hidden_size // 32), tokenizer.get_vocab()
    # Llama, not Qwen2: AutoTokenizer replaces the pre-tokeniser of a Qwen2 directory with Qwen's
    # own, which splits numbers into digits.
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=3 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        bos_token_id=ids["<bos>"],
        eos_token_id=ids["<eos>"],
        pad_token_id=ids["<pad>"],
    )
    # Initial weights come from torch's global generator: seed it here and restore it.
    with torch.random.fork_rng(devices=[]):
        entropy = [hidden_size, layers, *([seed] if seed else [])]
        torch.manual_seed(np.random.SeedSequence(entropy).generate_state(1)[0].item())
        return LlamaForCausalLM(config)


def _digest(path: Path) -> str:
    return hashlib.sha256((path / "model.safetensors").read_bytes()).hexdigest()
