"""Problems of the testbed as prompts, demonstrations as training examples, and their grader."""

import random
from collections.abc import Callable

from transformers import PreTrainedTokenizerBase

from opdprobe.errors import PromptError
from opdprobe.prompts import Prompt
from opdprobe.testbed import world
from opdprobe.train.config import SFTConfig
from opdprobe.train.sft import Example

N_TEST = 1024
"""Problems of the test split that no other split contains."""


def problems(n: int, *, split: str, template: str = "add") -> list[Prompt]:
    """Draw distinct problems of a split as prompts with answers.

    Parameters
    ----------
    n
        How many.
    split
        Any name; one name is always the same sequence. None but ``test`` contains one of the
        first `N_TEST` problems of ``test``.
    template
        Key of `opdprobe.testbed.world.TEMPLATES`.

    Returns
    -------
    list of Prompt

    Examples
    --------
    >>> first, *_ = problems(9, split="test")
    >>> first == problems(1, split="test")[0]
    True
    """
    if template not in world.TEMPLATES:
        raise PromptError(f"no template {template!r}; there are {', '.join(world.TEMPLATES)}.")
    seen: set[tuple[int, ...]] = set()
    if split != "test":
        seen |= {_operands(p.question) for p in problems(N_TEST, split="test")}
    rng = random.Random(f"problems/{split}")
    out: list[Prompt] = []
    while len(out) < n:
        problem = world.sample_problem(rng, template=template)
        if problem.operands not in seen:
            seen.add(problem.operands)
            message = {"role": "user", "content": problem.question}
            out.append(Prompt(f"{split}-{len(out)}", messages=(message,), answer=problem.answer))
    return out


def grader(response: str, prompt: Prompt) -> float:
    """Grade a response to a testbed problem: 1.0 or 0.0."""
    if prompt.answer is None:
        raise PromptError(f"prompt {prompt.id!r} has no answer to grade against.")
    return world.grade(response, prompt.answer)


def demonstrations(
    tokenizer: PreTrainedTokenizerBase, config: SFTConfig
) -> Callable[[int], list[Example]]:
    """Endless supervised data of the world, as a function of the step."""
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
            for problem, response in world.demonstrate(rng, config.batch_size)
        ]

    return batch_at


def _operands(question: str) -> tuple[int, ...]:
    return tuple(int(word) for word in question.split() if word.isdigit())
