"""Zoos that nobody tuned on: their design follows from a seed, and their members are built cheaply.

The world's words and its task are the testbed's. New are the models: their sizes, the mixture of
strategies and accents that they were taught, how long they were taught, how much RL they had, and
all random numbers.
"""

import json
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from opdprobe.models.load import load_model, load_tokenizer
from opdprobe.models.save import saving
from opdprobe.rollout.prompts import EncodedPrompt, encode_prompts
from opdprobe.store.files import remove_directory, write_directory
from opdprobe.testing.testbed.members import MAX_COMPLETION_LENGTH
from opdprobe.testing.testbed.problems import demonstrations, grader, problems
from opdprobe.testing.testbed.tokenizer import build_tokenizer
from opdprobe.testing.testbed.world import Corpus
from opdprobe.testing.testbed.zoo import measure, new_model
from opdprobe.train.config import GRPOConfig, SFTConfig
from opdprobe.train.grpo import grpo
from opdprobe.train.sft import sft

RECORD = "member.json"


@dataclass(frozen=True)
class Member:
    """A model to build.

    Parameters
    ----------
    name
        Lineage and what it is in it, such as ``a-small``.
    steps
        Optimiser steps of supervised training, or of RL if there is no `corpus`.
    seed
        Of all its random numbers.
    size
        Width and number of layers; only for a model trained from scratch.
    parent
        The member that it is trained from, otherwise.
    corpus
        Data of supervised training; None: RL.
    """

    name: str
    steps: int
    seed: int
    size: tuple[int, int] | None = None
    parent: str | None = None
    corpus: Corpus | None = None


@dataclass(frozen=True)
class Case:
    """A student and a teacher.

    Parameters
    ----------
    student, teacher
        Names of members.
    kind
        How the two are related; see `KINDS`.
    """

    student: str
    teacher: str
    kind: str

    @property
    def name(self) -> str:
        """What the case is called in tables and directories."""
        return f"{self.student}--{self.teacher}"

    @property
    def lineage(self) -> str:
        """The student's lineage."""
        return self.student.split("-")[0]


# Round by round, so that a part of the cases has all lineages: (student, teacher) by kind. The
# teacher of a kind that begins with "other" is of the lineage before the student's.
KINDS = (
    {
        "its own RL": ("small", "small-rl"),
        "weaker, same pipeline": ("small", "early"),
        "before its RL": ("small-rl", "small"),
        "other pattern": ("small", "post"),
    },
    {
        "larger, same pipeline": ("small", "large"),
        "RL of its parent": ("post", "small-rl"),
        "stronger, same pipeline": ("early", "small"),
        "other lineage's RL": ("small", "small-rl"),
    },
    {
        "larger with RL": ("small", "large-rl"),
        "smaller with RL": ("large", "small-rl"),
        "larger, before RL": ("small-rl", "large"),
        "other lineage, larger": ("early", "large"),
    },
    {
        "its own RL, large": ("large", "large-rl"),
        "both with RL": ("small-rl", "large-rl"),
        "other pattern, larger with RL": ("post", "large-rl"),
        "other lineage, larger with RL": ("early", "large-rl"),
    },
)


def design(seed: int, lineages: int = 4) -> tuple[dict[str, Member], list[Case]]:
    """Draw zoos.

    Parameters
    ----------
    seed
        Decides everything.
    lineages
        Number of zoos, which share no model.

    Returns
    -------
    members : dict
        By name, parents first.
    cases : list of Case
        Distinct pairs, in the order in which they are to be run.
    """
    names = [chr(ord("a") + i) for i in range(lineages)]
    members: dict[str, Member] = {}
    for place, name in enumerate(names):
        rng = random.Random(f"unseen/{seed}/{place}")
        own, other = _corpus(rng), _corpus(rng)

        def member(
            what: str,
            steps: int,
            size: tuple[int, int] | None = None,
            parent: str | None = None,
            corpus: Corpus | None = None,
            *,
            name: str = name,
            rng: random.Random = rng,
        ) -> None:
            made_from = None if parent is None else f"{name}-{parent}"
            one = Member(f"{name}-{what}", steps, rng.randrange(1, 2**31), size, made_from, corpus)
            members[one.name] = one

        small = rng.choice(((48, 2), (48, 3), (64, 2)))
        large = rng.choice(((80, 3), (96, 2), (96, 3), (96, 4)))
        member("early", rng.choice((400, 500, 600)), small, corpus=own)
        member("small", rng.choice((300, 400, 500)), parent="early", corpus=own)
        member("small-rl", rng.choice((150, 200, 250)), parent="small")
        member("post", rng.choice((100, 150, 200)), parent="small", corpus=other)
        member("large", rng.choice((350, 450, 550)), large, corpus=own)
        member("large-rl", rng.choice((60, 100, 140)), parent="large")
    cases = []
    for kinds in KINDS:
        for kind, (student, teacher) in kinds.items():
            for place, name in enumerate(names):
                theirs = names[place - 1] if kind.startswith("other lineage") else name
                cases.append(Case(f"{name}-{student}", f"{theirs}-{teacher}", kind))
    # Within a round, no kind comes before another.
    size = lineages * len(KINDS[0])
    rng = random.Random(f"unseen/{seed}/order")
    rounds = [cases[i : i + size] for i in range(0, len(cases), size)]
    return members, [case for some in rounds for case in rng.sample(some, len(some))]


def _corpus(rng: random.Random) -> Corpus:
    """Draw a mixture of the strategies, an accent and how many answers have a slip."""
    direct = rng.uniform(0.3, 0.6)
    stepwise = (1 - direct) * rng.uniform(0.1, 0.9)
    return Corpus(
        (direct, stepwise, 1 - direct - stepwise),
        formal=rng.choice((0.0, 0.25, 0.75, 1.0)),
        noise=rng.choice((0.0, 0.0, 0.1, 0.2)),
    )


def recipe(member: Member) -> SFTConfig | GRPOConfig:
    """Return how a member is trained."""
    if member.corpus is None:
        return GRPOConfig(
            seed=member.seed,
            learning_rate=3e-4 if _small(member) else 2e-4,
            batch_size=32,
            num_generations=8,
            max_completion_length=MAX_COMPLETION_LENGTH,
            max_steps=member.steps,
            save_steps=20,
        )
    # The larger the model, and the more it has learnt before, the smaller the rates.
    rate = 4e-3 if _small(member) else 3e-3
    rate = rate / 2 if member.parent else rate
    return SFTConfig(
        seed=member.seed,
        learning_rate=rate,
        batch_size=64,
        max_steps=member.steps,
        optimizer="muon",
        muon_learning_rate=5 * rate if _small(member) else 4 * rate,
        micro_batch_tokens=2048,
        save_steps=50,
    )


def _small(member: Member) -> bool:
    return "large" not in member.name


def build(member: Member, zoo: Path) -> Iterator[int]:
    """Build a member, whose parent is built; resumable. Yields the step that was done."""
    path, settings = zoo / member.name, recipe(member)
    if (path / RECORD).exists():
        return
    if member.parent is None:
        assert member.size is not None
        tokenizer, (width, layers) = build_tokenizer(), member.size
        model = new_model(tokenizer, hidden_size=width, layers=layers, seed=member.seed)
    else:
        model = load_model(zoo / member.parent, device="cpu")
        tokenizer = load_tokenizer(zoo / member.parent)
    work = zoo / f"{member.name}.work"
    if isinstance(settings, SFTConfig):
        assert member.corpus is not None
        batch_at = demonstrations(tokenizer, settings, member.corpus)
        training = sft(model, tokenizer, batch_at, member.steps, settings, work)
    else:
        prompts = encode_prompts(tokenizer, problems(4096, split="rl"))

        def prompts_at(step: int) -> list[EncodedPrompt]:
            return random.Random(f"{settings.seed}/{step}").sample(prompts, settings.batch_size)

        training = grpo(model, tokenizer, prompts_at, grader, settings, work)
    for metrics in training:
        yield int(metrics["step"])
    with write_directory(path) as directory:
        with saving():
            model.bfloat16().save_pretrained(directory)
            tokenizer.save_pretrained(directory)
        shipped = load_model(directory, device="cpu")
        record = asdict(member) | {"accuracy": round(measure(shipped, tokenizer), 4)}
        record["recipe"] = {"type": type(settings).__name__, **settings.to_dict()}
        (directory / RECORD).write_text(json.dumps(record, indent=2) + "\n")
    if work.exists():
        remove_directory(work)
