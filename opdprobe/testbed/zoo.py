"""The zoo: the testbed's shipped models, how they are made, and a check of both.

Every member is an ordinary Hugging Face directory (bfloat16 safetensors, tokenizer, chat template),
so that nothing else in the library knows whether it runs on the testbed or on Qwen.
"""

import hashlib
import json
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from opdprobe.errors import OPDProbeError
from opdprobe.models import load_model, load_tokenizer
from opdprobe.prompts import EncodedPrompt, encode_prompts
from opdprobe.testbed.problems import demonstrations, grader, problems
from opdprobe.testbed.tokenizer import build_tokenizer
from opdprobe.train.config import GRPOConfig, SFTConfig
from opdprobe.train.evaluate import evaluate
from opdprobe.train.grpo import grpo
from opdprobe.train.sft import sft

ZOO = Path(__file__).parent / "models"
MANIFEST = ZOO / "zoo.json"

MAX_COMPLETION_LENGTH = 64
"""Longest response of the testbed, in tokens; the longest correct one has 46."""

_SMALL, _LARGE = {"hidden_size": 64, "layers": 2}, {"hidden_size": 128, "layers": 4}
_SFT = SFTConfig(
    learning_rate=4e-3,
    batch_size=128,
    max_steps=900,
    optimizer="muon",
    muon_learning_rate=2e-2,
    micro_batch_tokens=2048,
    save_steps=250,
)
_GRPO = GRPOConfig(
    learning_rate=3e-4,
    batch_size=32,
    num_generations=8,
    max_completion_length=MAX_COMPLETION_LENGTH,
    max_steps=1500,
    save_steps=50,
)


@dataclass(frozen=True)
class Member:
    """A model of the zoo.

    Parameters
    ----------
    analog
        The paper's model that it stands for.
    recipe
        How it was trained.
    size
        Width and depth, of a model trained from scratch.
    parent
        The member it was trained from, if any.
    """

    analog: str
    recipe: SFTConfig | GRPOConfig
    size: dict[str, int] | None = None
    parent: str | None = None


MEMBERS = {
    "sft-small": Member("DeepSeek-R1-Distill-Qwen-1.5B", _SFT, size=_SMALL),
    "sft-large": Member(
        "DeepSeek-R1-Distill-Qwen-7B",
        replace(_SFT, max_steps=3000, learning_rate=2e-3, muon_learning_rate=7e-3),
        size=_LARGE,
    ),
    "rl-small": Member("JustRL-DeepSeek-1.5B", _GRPO, parent="sft-small"),
}


class ZooError(OPDProbeError):
    """A zoo model is unknown, missing, or not what the manifest says."""


def zoo_path(name: str) -> Path:
    """Directory of a shipped model.

    Raises
    ------
    ZooError
        If there is no such model.
    """
    _member(name)
    if not (ZOO / name / "model.safetensors").exists():
        raise ZooError(f"{name} is not built; run `opdprobe zoo build {name}`.")
    return ZOO / name


def _member(name: str) -> Member:
    if name not in MEMBERS:
        raise ZooError(f"no zoo model {name!r}; there are {', '.join(MEMBERS)}.")
    return MEMBERS[name]


def measure(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, n_problems: int = 256, n: int = 4
) -> float:
    """Measure avg@n on the test split at temperature 0.7, top-p 0.95."""
    prompts = encode_prompts(tokenizer, problems(n_problems, split="test"))
    scores = evaluate(model, tokenizer, prompts, grader, n=n, max_new_tokens=MAX_COMPLETION_LENGTH)
    return float(scores.mean())


def build(name: str, work_dir: Path) -> Iterator[dict[str, float]]:
    """Train a member and put it into the zoo, yielding metrics a step; resumable.

    Parameters
    ----------
    name
        A member; its parent must be built.
    work_dir
        Where checkpoints go.

    Raises
    ------
    ZooError
        There is no such member, or its parent is not built.
    """
    member = _member(name)
    if member.parent is None:
        tokenizer = build_tokenizer()
        assert member.size is not None
        assert isinstance(member.recipe, SFTConfig)
        model = _new_model(tokenizer, **member.size)
        batch_at = demonstrations(tokenizer, member.recipe)
        assert member.recipe.max_steps is not None
        yield from sft(
            model, tokenizer, batch_at, member.recipe.max_steps, member.recipe, work_dir / name
        )
    else:
        assert isinstance(member.recipe, GRPOConfig)
        parent = zoo_path(member.parent)
        model = load_model(parent, dtype=torch.float32)
        tokenizer = load_tokenizer(parent)
        prompts = encode_prompts(tokenizer, problems(8192, split="rl"))
        size = member.recipe.batch_size

        def prompts_at(step: int) -> list[EncodedPrompt]:
            rng = random.Random(f"{member.recipe.seed}/{step}")
            return rng.sample(prompts, size)

        yield from grpo(model, tokenizer, prompts_at, grader, member.recipe, work_dir / name)
    _publish(name, model, tokenizer)


def check(name: str, *, tolerance: float = 0.03) -> dict[str, float | str]:
    """Check a shipped model against the manifest: the same bytes, and the same accuracy.

    Returns
    -------
    dict
        ``sha256``, ``accuracy`` measured now and ``recorded``.

    Raises
    ------
    ZooError
        The model is unknown, not built or not in the manifest; or its weights are not those the
        manifest names, or measure more than `tolerance` away from it.
    """
    path = zoo_path(name)
    entry = manifest().get(name)
    if entry is None:
        raise ZooError(f"{MANIFEST} has no entry {name}; run `opdprobe zoo build {name}`.")
    digest = _digest(path)
    if digest != entry["sha256"]:
        raise ZooError(
            f"{name}: model.safetensors has sha256 {digest}, the manifest says {entry['sha256']}; "
            f"restore the file or rebuild it with `opdprobe zoo build {name}`."
        )
    accuracy = measure(load_model(path, dtype=torch.float32), load_tokenizer(path))
    if abs(accuracy - entry["accuracy"]) > tolerance:
        raise ZooError(
            f"{name}: accuracy {accuracy:.3f}, the manifest says {entry['accuracy']:.3f} "
            f"(tolerance {tolerance})."
        )
    return {"sha256": digest, "accuracy": accuracy, "recorded": entry["accuracy"]}


def manifest() -> dict[str, dict]:
    """What is recorded of each built member: sha256, accuracy, parameters, recipe."""
    return json.loads(MANIFEST.read_text()) if MANIFEST.exists() else {}


def _publish(name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    target = ZOO / name
    if target.exists():
        shutil.rmtree(target)
    model.bfloat16().save_pretrained(target)
    tokenizer.save_pretrained(target)
    shipped = load_model(target, dtype=torch.float32)
    member = MEMBERS[name]
    entry = {
        "analog": member.analog,
        "parent": member.parent,
        "parameters": sum(p.numel() for p in shipped.parameters()),
        "sha256": _digest(target),
        "accuracy": round(measure(shipped, tokenizer), 4),
        "recipe": {"type": type(member.recipe).__name__, **member.recipe.to_dict()},
    }
    entries = {**manifest(), name: entry}
    MANIFEST.write_text(
        json.dumps({k: entries[k] for k in MEMBERS if k in entries}, indent=2) + "\n"
    )


def _new_model(tokenizer: PreTrainedTokenizerBase, *, hidden_size: int, layers: int):
    heads, ids = max(4, hidden_size // 32), tokenizer.get_vocab()
    # Llama, not Qwen2: AutoTokenizer gives a Qwen2 directory Qwen's own pre-tokeniser, which splits
    # numbers into digits, whatever the directory's tokenizer says.
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
    # Initial weights come from torch's global generator: set it here and put it back.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(np.random.SeedSequence([hidden_size, layers]).generate_state(1)[0].item())
        return LlamaForCausalLM(config)


def _digest(path: Path) -> str:
    return hashlib.sha256((path / "model.safetensors").read_bytes()).hexdigest()
