"""The members of the second world's zoo: what each stands for and how it is made. Without torch."""

from dataclasses import dataclass, replace
from pathlib import Path

from opdprobe.store.files import regular
from opdprobe.store.safe_text import parse_json
from opdprobe.testing.testbed.members import ZooError
from opdprobe.train.config import GRPOConfig, SFTConfig

RECORD = "zoo.json"
"""File in a member's directory that records its recipe, hash and accuracy."""

MAX_COMPLETION_LENGTH = 72
"""Longest response, in tokens; of 8,000 demonstrations, SmolLM2's tokenizer gives none above 64."""

_SFT = SFTConfig(
    learning_rate=2e-4, batch_size=12, max_steps=80, micro_batch_tokens=2048, save_steps=20
)
# A model that lacks some of its layers: before it learnt the task, and after.
_REPAIR = replace(_SFT, learning_rate=4e-4)
_HEAL = replace(_SFT, max_steps=40)
_GRPO = GRPOConfig(
    learning_rate=4e-5,
    batch_size=4,
    num_generations=8,
    max_completion_length=MAX_COMPLETION_LENGTH,
    max_steps=26,
    warmup_steps=2,
    lr_scheduler_type="cosine",  # at a constant rate the reward collapsed after 25 steps
    micro_batch_tokens=2048,
    save_steps=10,
)


@dataclass(frozen=True)
class Member:
    """A model of the zoo.

    Parameters
    ----------
    analog
        The model of the paper that it stands for.
    recipe
        How it is trained; None: not at all.
    parent
        The member it is trained from; None: the base model that the user names.
    smaller
        Whether the parent's middle layers are removed first: `removed_layers`.
    corpus
        Key of `opdprobe.testing.real.world.CORPORA`: the data of supervised training.
    teacher
        Member whose rollouts supervised training uses instead of a corpus (§5.1).
    """

    analog: str
    recipe: SFTConfig | GRPOConfig | None
    parent: str | None = "base"
    smaller: bool = False
    corpus: str = "sft"
    teacher: str | None = None


MEMBERS = {
    "base": Member("a pre-trained model, unpacked as it is", None, parent=None),
    "student-large": Member("DeepSeek-R1-Distill-Qwen-7B", _SFT),
    "student-small": Member(
        "DeepSeek-R1-Distill-Qwen-1.5B", _HEAL, parent="student-large", smaller=True
    ),
    "rl-small": Member("JustRL-DeepSeek-1.5B", _GRPO, parent="student-small"),
    "rl-large": Member("Skywork-OR1-Math-7B", _GRPO, parent="student-large"),
    "base-small": Member("Qwen3-1.7B-Base", _REPAIR, smaller=True, corpus="pretraining"),
    "cold-start-small": Member(
        "Qwen3-1.7B-Base after a cold start",
        replace(_SFT, learning_rate=1e-4, max_steps=None),
        parent="base-small",
        teacher="rl-large",
    ),
}


def removed_layers(count: int) -> range:
    """Return the layers that a smaller member lacks: a tenth of all, from the middle.

    Examples
    --------
    >>> removed_layers(30)
    range(13, 16)
    """
    n = max(1, count // 10)
    first = (count - n) // 2
    return range(first, first + n)


def find_member(name: str) -> Member:
    """Look up a member.

    Raises
    ------
    ZooError
        There is no member of this name.
    """
    if name not in MEMBERS:
        raise ZooError(f"no model {name!r} in this zoo; expected one of {', '.join(MEMBERS)}.")
    return MEMBERS[name]


def zoo_path(name: str, zoo: Path) -> Path:
    """Return the directory of a member that is built.

    Raises
    ------
    ZooError
        There is no such member, or it is not built.
    """
    find_member(name)
    if not (zoo / name / RECORD).exists():
        raise ZooError(
            f"{zoo / name} is not built; run `opdprobe zoo build {name} --world real --base MODEL "
            f"--work-dir {zoo}`."
        )
    return zoo / name


def manifest(zoo: Path) -> dict[str, dict]:
    """Read the record of each built member: settings, hash, accuracies, seconds.

    Raises
    ------
    ZooError
        A record is damaged.
    """
    paths = {name: zoo / name / RECORD for name in MEMBERS}
    return {name: read_record(path) for name, path in paths.items() if path.exists()}


def read_record(path: Path) -> dict:
    """Read a JSON file of the zoo.

    Raises
    ------
    ZooError
        It cannot be read, or holds something else.
    """
    try:
        found = parse_json(regular(path).read_bytes())
    except (OSError, ValueError) as error:
        raise ZooError(
            f"{path} cannot be read ({error}): restore it, or delete {path.parent} to build it "
            "again."
        ) from error
    if not isinstance(found, dict):
        raise ZooError(
            f"{path} holds a {type(found).__name__}; expected a JSON object: restore it, or delete "
            f"{path.parent} to build it again."
        )
    return found
