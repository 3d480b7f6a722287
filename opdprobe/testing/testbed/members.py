"""The members of the zoo: what each stands for, how it is made, where it is. Without torch."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

from opdprobe.errors import OPDProbeError
from opdprobe.train.config import GRPOConfig, SFTConfig

ZOO = Path(__file__).parent / "models"
RECORD = "zoo.json"
"""File in a member's directory that records its recipe, hash and accuracy."""

MAX_COMPLETION_LENGTH = 64
"""Longest response to a short problem, in tokens; the longest correct one has 46."""

_SMALL = {"hidden_size": 64, "layers": 2}
_LARGE = {"hidden_size": 128, "layers": 4}
_EXTRA_LARGE = {"hidden_size": 160, "layers": 6}


def _sft(max_steps: int, learning_rate: float, muon_learning_rate: float) -> SFTConfig:
    return SFTConfig(
        learning_rate=learning_rate,
        batch_size=128,
        max_steps=max_steps,
        optimizer="muon",
        muon_learning_rate=muon_learning_rate,
        micro_batch_tokens=2048,
        save_steps=100,
    )


def _grpo(max_steps: int, learning_rate: float, seed: int = 0) -> GRPOConfig:
    return GRPOConfig(
        seed=seed,
        learning_rate=learning_rate,
        batch_size=32,
        num_generations=8,
        max_completion_length=MAX_COMPLETION_LENGTH,
        max_steps=max_steps,
        save_steps=50,
    )


# The larger the model, the smaller Muon's rate.
_SFT_SMALL = _sft(1000, 4e-3, 2e-2)


@dataclass(frozen=True)
class Member:
    """A model of the zoo.

    Parameters
    ----------
    analog
        The model of the paper that it stands for.
    recipe
        How it was trained.
    size
        Width and depth; only for a model trained from scratch.
    parent
        The member it was trained from, if any.
    corpus
        Key of `opdprobe.testing.testbed.world.CORPORA`: the data of supervised training.
    teacher
        Member whose rollouts supervised training uses instead of a corpus (§5.1).
    """

    analog: str
    recipe: SFTConfig | GRPOConfig
    size: dict[str, int] | None = None
    parent: str | None = None
    corpus: str = "sft"
    teacher: str | None = None


MEMBERS = {
    "sft-small": Member("DeepSeek-R1-Distill-Qwen-1.5B", _SFT_SMALL, size=_SMALL),
    "rl-small": Member("JustRL-DeepSeek-1.5B", _grpo(2000, 3e-4), parent="sft-small"),
    # The same RL with other prompts and rollouts: how much of a result is this one teacher's?
    **{
        f"rl-small-s{seed}": Member(
            f"JustRL-DeepSeek-1.5B, seed {seed}", _grpo(2000, 3e-4, seed), parent="sft-small"
        )
        for seed in range(1, 5)
    },
    # Stopped early, so that RL has something to gain.
    "sft-large": Member("DeepSeek-R1-Distill-Qwen-7B", _sft(800, 2e-3, 7e-3), size=_LARGE),
    "rl-large": Member("Skywork-OR1-Math-7B", _grpo(1500, 2e-4), parent="sft-large"),
    "sft-extra-large": Member(
        "DeepSeek-R1-Distill-Qwen-14B", _sft(1000, 1.5e-3, 5e-3), size=_EXTRA_LARGE
    ),
    "base-small": Member("Qwen3-1.7B-Base", _SFT_SMALL, size=_SMALL, corpus="pretraining"),
    "base-large": Member(
        "Qwen3-4B-Base", _sft(1400, 2e-3, 7e-3), size=_LARGE, corpus="pretraining"
    ),
    "base-large-rl": Member("Qwen3-4B-Base-GRPO", _grpo(300, 2e-4), parent="base-large"),
    "post-small": Member("Qwen3-1.7B", _sft(400, 2e-3, 1e-2), parent="base-small", corpus="post"),
    "post-large": Member("Qwen3-4B", _sft(500, 1e-3, 4e-3), parent="base-large", corpus="post"),
    "post-large-rl": Member("Qwen3-4B-Non-Thinking-RL-Math", _grpo(300, 2e-4), parent="post-large"),
    "cold-start-small": Member(
        "Qwen3-1.7B-Base after a cold start",
        replace(_sft(128, 2e-3, 1e-2), max_steps=None),
        parent="base-small",
        teacher="post-large-rl",
    ),
}


class ZooError(OPDProbeError):
    """A zoo model is unknown, missing, or differs from its manifest."""


def zoo_path(name: str) -> Path:
    """Return the directory of a shipped model.

    Raises
    ------
    ZooError
        There is no such model, or it is not built.
    """
    find_member(name)
    if not (ZOO / name / "model.safetensors").exists():
        raise ZooError(f"{name} is not built; run `opdprobe zoo build {name}`.")
    return ZOO / name


def find_member(name: str) -> Member:
    """Look up a member.

    Raises
    ------
    ZooError
        There is no member of this name.
    """
    if name not in MEMBERS:
        raise ZooError(f"no zoo model {name!r}; expected one of {', '.join(MEMBERS)}.")
    return MEMBERS[name]


def manifest() -> dict[str, dict]:
    """Read the record of each built member: sha256, accuracy, parameters, recipe."""
    paths = {name: ZOO / name / RECORD for name in MEMBERS}
    return {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}
