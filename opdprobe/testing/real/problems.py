"""Word problems as prompts, demonstrations as training examples, and their grader."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from itertools import islice
from typing import TYPE_CHECKING, Any

from opdprobe.errors import PromptError
from opdprobe.rollout.prompts import Prompt, encode_prompts
from opdprobe.testing.real import world
from opdprobe.train.config import SFTConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from opdprobe.train.sft import Example

N_TEST = 1024
"""Number of problems at the head of each benchmark that nothing else contains."""

BENCHMARKS = {"easy": (2, 2), "medium": (3, 3), "hard": (4, 4)}
"""Held-out problems by their number of changes, fewest and most."""

SPLITS = {
    **{name: (changes, "things") for name, changes in BENCHMARKS.items()},
    "train": (world.N_CHANGES, "things"),
    "rl": (world.N_CHANGES, "things"),
    "other": (world.N_CHANGES, "riders"),
    "riders": (world.N_CHANGES, "riders"),
}
"""Problem sets by name, with numbers of changes and kind of story: three benchmarks; training
problems of the students; those of the RL teachers; problems of the kind that these were not trained
on; and a benchmark of that kind."""

DATA_SOURCE = "real"
"""Value of the prompts' column ``data_source``; identifies a file of these prompts."""

_HELD_OUT = (*BENCHMARKS, "riders")


def problems(n: int, *, split: str, wording: str = "plain") -> list[Prompt]:
    """Draw distinct problems of a split as prompts with answers.

    Parameters
    ----------
    n
        Number of problems.
    split
        Key of `SPLITS`; always the same sequence. Only benchmarks contain any of the first
        `N_TEST` problems of a benchmark.
    wording
        One of `opdprobe.testing.real.world.WORDINGS`.

    Returns
    -------
    list of Prompt

    Raises
    ------
    PromptError
        There is no such split or wording.

    Examples
    --------
    >>> first, *_ = problems(9, split="easy")
    >>> first == problems(1, split="easy")[0]
    True
    """
    if split not in SPLITS:
        names = ", ".join(f"real:{name}" for name in SPLITS)
        raise PromptError(f"no word problems real:{split}; expected one of {names}.")
    if wording not in world.WORDINGS:
        raise PromptError(f"no wording {wording!r}; expected one of {', '.join(world.WORDINGS)}.")
    return [
        _prompt(f"{split}-{i}", replace(problem, wording=wording))
        for i, problem in enumerate(islice(_drawn(split), n))
    ]


def _prompt(name: str, problem: world.Problem) -> Prompt:
    message = {"role": "user", "content": problem.question}
    meta = {"data_source": DATA_SOURCE}
    return Prompt(name, messages=(message,), answer=problem.answer, meta=meta)


@cache
def held_out() -> frozenset[tuple[int, ...]]:
    """Return the numbers of the problems that models are tested on."""
    return frozenset(
        problem.numbers for name in _HELD_OUT for problem in islice(_drawn(name), N_TEST)
    )


def _drawn(split: str) -> Iterator[world.Problem]:
    """Yield distinct problems without end."""
    seen = set() if split in _HELD_OUT else set(held_out())
    rng = random.Random(f"real/{split}")
    n_changes, kind = SPLITS[split]
    while True:
        problem = world.sample_problem(rng, n_changes=n_changes, kind=kind)
        if problem.numbers not in seen:
            seen.add(problem.numbers)
            yield problem


def grader(response: str, prompt: Prompt) -> float:
    """Grade a response to a word problem: 1.0 or 0.0."""
    if prompt.answer is None:
        raise PromptError(f"prompt {prompt.id!r} has no answer to grade against.")
    return world.grade(response, prompt.answer)


def demonstrations(
    tokenizer: PreTrainedTokenizerBase, config: SFTConfig, corpus: str = "sft"
) -> Callable[[int], list[Example]]:
    """Return a function of the step that gives a corpus' batch of examples, without end.

    The problems and the texts are the same for every tokenizer. Prompts go through its chat
    template; a response ends with its end-of-sequence token.
    """
    eos: Any = tokenizer.eos_token_id

    def batch_at(step: int) -> list[Example]:
        rng = random.Random(f"{config.seed}/{step}")
        drawn = world.demonstrate(
            rng, config.batch_size, world.CORPORA[corpus], held_out=held_out()
        )
        prompts = [_prompt(f"sft-{i}", problem) for i, (problem, _) in enumerate(drawn)]
        encoded = encode_prompts(tokenizer, prompts)
        texts = [response for _, response in drawn]
        ids: Any = tokenizer(texts, add_special_tokens=False)["input_ids"]
        return [
            (list(prompt.ids), [*response, eos])
            for prompt, response in zip(encoded, ids, strict=True)
        ]

    return batch_at
