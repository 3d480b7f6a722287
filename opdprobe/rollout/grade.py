"""Grade responses to mathematics problems with math-verify.

A `Grader` is any function that maps a response and its prompt to a score; trainers and evaluations
take one. `grade_math` is a grader.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from opdprobe.errors import ConfigError, PromptError
from opdprobe.rollout.prompt_files import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Grader", "grade_math", "grade_rollouts"]

Grader = Callable[[str, Prompt], float]

# Limits the time for a response such as 9^9^9^9, which math-verify would compute; its own default.
_SECONDS = 5

# "Answer: 34" on its own line, as the DAPO prompts ask for; also in bold.
_ANSWER_LINE = re.compile(
    r"^[\s*]*answer[\s*]*:[\s*]*(\S.*?)[\s*.]*$", re.IGNORECASE | re.MULTILINE
)


def grade_math(response: str, answer: Prompt | str) -> bool:
    r"""Return whether a response's final answer equals the reference.

    The final answer is the content of the last ``\boxed{}``; without one, the rest of the last
    line that begins with "Answer:"; without that, the last expression that math-verify finds
    anywhere. A response cut off in mid-thought is therefore judged by its last number: do not
    grade unfinished responses if that matters.

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
    >>> grade_math("", "3")
    False
    """
    if importlib.util.find_spec("math_verify") is None:
        raise ConfigError("grade_math needs math-verify: pip install 'opdprobe[math]'.")
    from math_verify import verify

    reference = answer.answer if isinstance(answer, Prompt) else answer
    if reference is None or not reference.strip():
        where = f"prompt {answer.id!r}" if isinstance(answer, Prompt) else f"the answer {answer!r}"
        raise PromptError(f"{where} gives nothing to grade against: load prompts with answers.")
    seconds = _time_limit()
    return verify(
        list(_parse_reference(reference)),
        _parse(_final_answer(response), seconds),
        timeout_seconds=seconds,
    )


def grade_rollouts(
    tokenizer: PreTrainedTokenizerBase,
    response_ids: Sequence[Sequence[int]],
    prompts: Sequence[Prompt],
    grader: Grader,
) -> list[float]:
    """Score each response's text against its own prompt.

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

    Returns
    -------
    list of float
        One score per response.
    """
    texts = tokenizer.batch_decode([list(ids) for ids in response_ids], skip_special_tokens=True)
    return [float(grader(text, prompt)) for text, prompt in zip(texts, prompts, strict=True)]


@functools.lru_cache(maxsize=4096)  # all rollouts of a problem share its reference
def _parse_reference(reference: str) -> tuple[Any, ...]:
    text = reference if r"\boxed" in reference else rf"\boxed{{{reference}}}"
    return tuple(_parse(text, _time_limit()))


def _parse(text: str, seconds: int | None) -> list[Any]:
    from math_verify import parse

    return parse(text, parsing_timeout=seconds)  # pyright: ignore[reportArgumentType] None = no limit


def _final_answer(response: str) -> str:
    if (start := response.rfind(r"\boxed")) >= 0:
        return response[start:]
    if lines := _ANSWER_LINE.findall(response):
        return rf"\boxed{{{lines[-1].strip('$')}}}"
    return response


def _time_limit() -> int | None:
    # math-verify keeps time with SIGALRM: main thread and POSIX only.
    signals = os.name == "posix" and threading.current_thread() is threading.main_thread()
    return _SECONDS if signals else None
