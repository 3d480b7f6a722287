"""Grade responses to mathematics problems with math-verify.

A `Grader` is any function that maps a response and its prompt to a score; trainers and evaluations
take one. `grade_math` is a grader.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from opdprobe.errors import ConfigError, PromptError
from opdprobe.rollout.final_answer import find_answer, without_words
from opdprobe.rollout.prompt_files import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from opdprobe.rollout.same_answer import Answer

__all__ = ["Grader", "counted", "grade_math", "grade_rollouts"]

Grader = Callable[[str, Prompt], float]


def grade_math(response: str, answer: Prompt | str) -> bool:
    r"""Return whether a response's final answer equals the reference.

    The final answer is the content of the last ``\boxed{}`` that is not empty; without one, what
    ``<answer>`` tags hold; without those, what follows the last "Answer:", "Final answer" or "the
    answer is", on the line or the next one. A number that ends in "!" there is an exclamation,
    unless the reference has a factorial. If words, a unit or a modulus are round the one value
    there, that value is judged as well. A response that marks no answer is judged by the last
    expression in it, one cut off in mid-thought therefore by its last number; `grade_rollouts`
    does not ask for a grade of those.

    Numbers are compared exactly where they are rational, to 100 digits where they are not. A
    decimal of at least six places (and four digits that are not leading zeros) may be rounded.

    Parameters
    ----------
    response : str
        The student's text. A response without a readable answer is incorrect, and so is one on
        which math-verify fails or takes longer than 5 s (it does not raise then). The time limit
        uses signals, so it works only in the main thread on POSIX; elsewhere there is none.
    answer : Prompt or str
        The reference: LaTeX or a number, bare or in ``\boxed{}``, or a prompt that has it.

    Returns
    -------
    bool
        True if equal as mathematics: "142.0" and 142, 1/2 and 0.5, the sets {1, -2} and {-2, 1}.
        Numbers of more than 200,000 bits are equal only if they are written alike.

    Raises
    ------
    PromptError
        The prompt has no answer, or the answer is blank.
    ConfigError
        math-verify is not installed.

    Examples
    --------
    >>> grade_math(r"So the sum is \boxed{142}.", "142.0")
    True
    >>> grade_math("Adding up:\nAnswer: 34", r"\boxed{34}")
    True
    >>> grade_math(r"\boxed{\frac{2}{4}}", "0.5")
    True
    >>> grade_math(r"First \boxed{3}, no: \boxed{4}", "3")
    False
    >>> grade_math("**Final Answer:** 73 residents own all four.", "73")
    True
    >>> grade_math(r"\boxed{\frac{1}{2006!}}", r"\frac{1}{2004!}")
    False
    >>> grade_math("", "3")
    False
    """
    if importlib.util.find_spec("math_verify") is None:
        raise ConfigError("grade_math needs math-verify: pip install 'opdprobe[math]'.")
    from opdprobe.rollout.same_answer import read_answer, read_response, same_answer

    reference = answer.answer if isinstance(answer, Prompt) else answer
    if reference is None or not reference.strip():
        where = f"prompt {answer.id!r}" if isinstance(answer, Prompt) else f"the answer {answer!r}"
        raise PromptError(f"{where} gives nothing to grade against: load prompts with answers.")
    gold = _read_reference(reference)
    found = find_answer(response, factorial="!" in reference)
    if found is None:
        return same_answer(gold, read_response(response))
    if same_answer(gold, read_answer(found)):
        return True
    value = without_words(found)
    return value is not None and value != found and same_answer(gold, read_answer(value))


def grade_rollouts(
    tokenizer: PreTrainedTokenizerBase,
    response_ids: Sequence[Sequence[int]],
    prompts: Sequence[Prompt],
    grader: Grader,
    *,
    finished: Sequence[bool] | None = None,
) -> list[float]:
    """Score each response's text against its own prompt; an unfinished response is wrong.

    Parameters
    ----------
    tokenizer
        Turns ids into text; special tokens are left out.
    response_ids
        Token ids of each response.
    prompts
        The prompt of each response.
    grader
        Maps text and prompt to a score.
    finished
        Whether each response ended with an end-of-sequence token. One that reached the length limit
        scores 0 without being graded: it has given no answer, and a grader would take the last
        number of a text cut off in mid-thought for one. None: grade them all.

    Returns
    -------
    list of float
        One score per response.
    """
    ended = [True] * len(response_ids) if finished is None else finished
    whole = [list(ids) for ids, end in zip(response_ids, ended, strict=True) if end]
    texts = iter(tokenizer.batch_decode(whole, skip_special_tokens=True) if whole else ())
    return [
        float(grader(next(texts), prompt)) if end else 0.0
        for prompt, end in zip(prompts, ended, strict=True)
    ]


def counted(finished: Sequence[bool], unfinished: str) -> Sequence[bool] | None:
    """Turn a setting ``unfinished`` into what `grade_rollouts` takes as `finished`.

    Raises
    ------
    ConfigError
        It is neither "wrong" nor "graded".
    """
    if unfinished not in ("wrong", "graded"):
        raise ConfigError(f"unfinished = {unfinished!r}; expected 'wrong' or 'graded'.")
    return finished if unfinished == "wrong" else None


@functools.lru_cache(maxsize=4096)  # all rollouts of a problem share its reference
def _read_reference(reference: str) -> Answer:
    from opdprobe.rollout.same_answer import read_answer

    boxed = find_answer(reference) if r"\boxed" in reference else None
    return read_answer(boxed or reference)
