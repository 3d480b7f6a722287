"""Problems of the testbed as prompts, demonstrations as training examples, and their grader."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from itertools import islice
from typing import TYPE_CHECKING

from opdprobe.errors import PromptError
from opdprobe.rollout.prompts import Prompt
from opdprobe.testing.testbed import world
from opdprobe.train.config import SFTConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from opdprobe.train.sft import Example

N_TEST = 1024
"""Number of problems at the head of each benchmark that nothing else contains."""

BENCHMARKS = {
    "easy": world.Size((5, 6), 20),
    "medium": world.Size((7, 7), 20),
    "hard": world.Size((8, 8), 20),
}
"""Held-out problems of graded difficulty (the paper: AMC23, AIME24, AIME25)."""

SPLITS = {
    **BENCHMARKS,
    "train": world.SHORT,
    "rl": world.SHORT,
    "other": world.Size((9, 12), 8),
    "long": world.Size((18, 24), 8),
    "deep": world.Size((9, 12), 8),
}
"""Problem sets by name: three benchmarks; training problems of the students; training problems of
the RL teachers; problems of a kind that these teachers were not trained on; long problems; and a
benchmark whose answers are longer than the RL teachers were trained to give."""

DATA_SOURCE = "testbed"
"""Value of the prompts' column ``data_source``; identifies a file of testbed prompts."""

_HELD_OUT = (*BENCHMARKS, "deep")


def problems(n: int, *, split: str, template: str = "add") -> list[Prompt]:
    """Draw distinct problems of a split as prompts with answers.

    Parameters
    ----------
    n
        Number of problems.
    split
        Key of `SPLITS`; always the same sequence. Only benchmarks contain any of the first
        `N_TEST` problems of a benchmark.
    template
        Key of `opdprobe.testing.testbed.world.TEMPLATES`.

    Returns
    -------
    list of Prompt

    Raises
    ------
    PromptError
        There is no such split or template.

    Examples
    --------
    >>> first, *_ = problems(9, split="easy")
    >>> first == problems(1, split="easy")[0]
    True
    """
    if split not in SPLITS:
        names = ", ".join(f"zoo:{name}" for name in SPLITS)
        raise PromptError(f"no testbed problems zoo:{split}; expected one of {names}.")
    if template not in world.TEMPLATES:
        raise PromptError(
            f"no template {template!r}; expected one of {', '.join(world.TEMPLATES)}."
        )
    out: list[Prompt] = []
    for problem in islice(_drawn(split), n):
        worded = replace(problem, template=template)
        message = {"role": "user", "content": worded.question}
        out.append(
            Prompt(
                f"{split}-{len(out)}",
                messages=(message,),
                answer=worded.answer,
                meta={"data_source": DATA_SOURCE},
            )
        )
    return out


@cache
def held_out() -> frozenset[tuple[int, ...]]:
    """Return the operands of the problems that models are tested on."""
    return frozenset(
        problem.operands for name in _HELD_OUT for problem in islice(_drawn(name), N_TEST)
    )


def _drawn(split: str) -> Iterator[world.Problem]:
    """Yield distinct problems without end."""
    seen = set() if split in _HELD_OUT else set(held_out())
    rng = random.Random(f"problems/{split}")
    while True:
        problem = world.sample_problem(rng, size=SPLITS[split])
        if problem.operands not in seen:
            seen.add(problem.operands)
            yield problem


def grader(response: str, prompt: Prompt) -> float:
    """Grade a response to a testbed problem: 1.0 or 0.0."""
    if prompt.answer is None:
        raise PromptError(f"prompt {prompt.id!r} has no answer to grade against.")
    return world.grade(response, prompt.answer)


def demonstrations(
    tokenizer: PreTrainedTokenizerBase, config: SFTConfig, corpus: str | world.Corpus = "sft"
) -> Callable[[int], list[Example]]:
    """Return a function of the step that gives a corpus' batch of examples, without end."""
    drawn = world.CORPORA[corpus] if isinstance(corpus, str) else corpus
    ids = tokenizer.get_vocab()
    chat = [{"role": "user", "content": "QUESTION"}]
    text = str(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True))
    before, after = text.split("QUESTION")

    def batch_at(step: int) -> list[Example]:
        rng = random.Random(f"{config.seed}/{step}")
        return [
            (
                [ids[word] for word in (before + problem.question + after).split()],
                [ids[word] for word in response],
            )
            for problem, response in world.demonstrate(
                rng, config.batch_size, drawn, held_out=held_out()
            )
        ]

    return batch_at
