"""Teacher-aligned prompts (paper §5.2): by wording, by content, or by where the models differ.

Alignment by *content* needs no function: it takes the prompts that the teacher was post-trained on.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from opdprobe.errors import ConfigError
from opdprobe.rollout.prompt_files import as_prompts
from opdprobe.rollout.prompts import OnError, Prompt, encode_prompts, strip_instruction

if TYPE_CHECKING:
    from opdprobe.rollout.pair import Pair

# Prompts sampled at once: bounds the memory. Not an option, since the random numbers depend on it.
CHUNK = 64


def template(prompts: Sequence[Prompt], wording: str) -> list[Prompt]:
    r"""Reword prompts as the teacher's were worded (§5.2, Fig. 9).

    Parameters
    ----------
    prompts : sequence of Prompt
        In any of the known wordings, which are removed (`strip_instruction`).
    wording : str
        The new wording, with ``{question}`` where the bare question goes; other braces are
        literal. `opdprobe.rollout.prompts.BOXED_TEMPLATE`, `DAPO_TEMPLATE`, or your own.

    Returns
    -------
    list of Prompt
        The same prompts with a new last message, or a new text.

    Raises
    ------
    ConfigError
        `wording` has no ``{question}``.

    Examples
    --------
    >>> template([Prompt("0", text="2 + 2?")], r"{question} Answer in \boxed{}.")[0].question
    '2 + 2? Answer in \\boxed{}.'
    """
    if "{question}" not in wording:
        raise ConfigError(f"template = {wording!r}; expected {{question}} in it.")
    return [_reworded(prompt, wording) for prompt in as_prompts(prompts)]


def _reworded(prompt: Prompt, wording: str) -> Prompt:
    question = wording.replace("{question}", strip_instruction(prompt.question))
    if prompt.text is not None:
        return replace(prompt, text=question)
    last = {**prompt.messages[-1], "content": question}
    return replace(prompt, messages=(*prompt.messages[:-1], last))


def mixed(
    aligned: Sequence[Prompt],
    other: Sequence[Prompt],
    *,
    n_prompts: int,
    share: float,
    seed: int = 0,
) -> list[Prompt]:
    """Mix teacher-aligned prompts with others, which keep the student's entropy up (§5.2).

    Parameters
    ----------
    aligned, other : sequence of Prompt
        Prompts that the teacher was post-trained on, and prompts that it was not.
    n_prompts : int
        Prompts chosen, from both sets together.
    share : float
        Share of other prompts, in [0, 1]; their number is rounded.
    seed : int
        Seed of the draw, which is without replacement, and of the order.

    Returns
    -------
    list of Prompt
        In random order. A prompt of `other` whose id an aligned one also has becomes "other-ID".

    Raises
    ------
    ConfigError
        `n_prompts` or `share` is out of range, or a set has too few prompts.

    Examples
    --------
    >>> known = [Prompt(str(i), text=f"{i} + {i}?") for i in range(10)]
    >>> new = [Prompt(str(i), text=f"{i} * {i}?") for i in range(10)]
    >>> [prompt.text for prompt in mixed(known, new, n_prompts=5, share=0.4)]
    ['8 + 8?', '6 * 6?', '1 * 1?', '7 + 7?', '9 + 9?']
    """
    if n_prompts < 1:
        raise ConfigError(f"n_prompts = {n_prompts}; expected 1 or more prompts.")
    if not 0 <= share <= 1:
        raise ConfigError(f"share = {share}; expected a number in [0, 1].")
    aligned, other = as_prompts(aligned), as_prompts(other)
    n_other = round(n_prompts * share)
    n_aligned = n_prompts - n_other
    for name, prompts, wanted in (("aligned", aligned, n_aligned), ("other", other, n_other)):
        if wanted > len(prompts):
            raise ConfigError(
                f"{wanted} {name} prompts are wanted, but there are {len(prompts)}: lower "
                f"n_prompts (now {n_prompts}) or change share (now {share})."
            )
    rng = random.Random(f"mixed/{seed}")
    chosen = rng.sample(aligned, n_aligned)
    taken = {prompt.id for prompt in (*aligned, *other)}
    shared = {prompt.id for prompt in aligned}
    for prompt in rng.sample(other, n_other):
        chosen.append(_renamed(prompt, taken) if prompt.id in shared else prompt)
    rng.shuffle(chosen)
    return chosen


def _renamed(prompt: Prompt, taken: set[str]) -> Prompt:
    """Give a prompt a new id, also in verl's field, from which it would be read again."""
    name = f"other-{prompt.id}"
    while name in taken:
        name = f"other-{name}"
    taken.add(name)
    meta = dict(prompt.meta)
    extra = meta.get("extra_info")
    if isinstance(extra, Mapping) and "index" in extra:
        meta["extra_info"] = {**extra, "index": name}
    return replace(prompt, id=name, meta=meta)


def max_divergence(
    pair: "Pair",
    prompts: Sequence[Prompt],
    *,
    n_prompts: int,
    num_generations: int = 2,
    max_completion_length: int,
    max_prompt_length: int = 1024,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    system_prompt: str | None = None,
    micro_batch_tokens: int = 16384,
    on_error: OnError = "raise",
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[list[Prompt], NDArray[np.float64]]:
    """Choose the prompts on which student and teacher differ most.

    This reads "selection" differently from the paper, which aligns prompts with what the teacher
    knows: it takes those where there is most to learn, or where the two can least agree.

    Parameters
    ----------
    pair : Pair
        Student and teacher.
    prompts : sequence of Prompt
        Candidates.
    n_prompts : int
        Prompts chosen.
    num_generations : int
        Student responses per prompt, at temperature 1 and top-p 1 (Table 2).
    max_completion_length : int
        Longest response. Divergence changes along a response: choose what training will use.
    max_prompt_length, chat_template_kwargs, system_prompt, on_error
        Longest prompt, in tokens, how prompts go through the chat template, and what happens to an
        unusable one; see `encode_prompts`.
    micro_batch_tokens : int
        Most tokens scored at once, padding included.
    seed : int
        Seed of the rollouts.
    on_progress : callable, optional
        Called with (prompts done, prompts in total).

    Returns
    -------
    chosen : list of Prompt
        The `n_prompts` with the largest divergence, largest first.
    divergence : ndarray (n_prompts,)
        Mean reverse KL(student‖teacher) over all states of a prompt's rollouts, full vocabulary,
        in nats, at least 0. A rollout's weight is its number of states.

    Raises
    ------
    ConfigError
        A number is below 1, or `n_prompts` is above the number of usable prompts.
    PromptError
        A prompt cannot be used.
    NonFiniteError
        A model's logits are NaN or infinite.
    """
    from opdprobe.rollout.once import probe

    for name, value in (
        ("n_prompts", n_prompts),
        ("num_generations", num_generations),
        ("max_completion_length", max_completion_length),
    ):
        if value < 1:
            raise ConfigError(f"{name} = {value}; expected 1 or more.")
    encoded = encode_prompts(
        pair.tokenizer,
        prompts,
        max_prompt_length=max_prompt_length,
        chat_template_kwargs=chat_template_kwargs,
        system_prompt=system_prompt,
        on_error=on_error,
    )
    if n_prompts > len(encoded):
        raise ConfigError(
            f"n_prompts = {n_prompts}; expected at most {len(encoded)}, the number of usable "
            "prompts."
        )
    means: list[float] = []
    for chunk, start in enumerate(range(0, len(encoded), CHUNK)):
        if on_progress:
            on_progress(start, len(encoded))
        some = encoded[start : start + CHUNK]
        ds = probe(
            pair,
            some,
            num_generations=num_generations,
            k=1,
            max_completion_length=max_completion_length,
            step=chunk,
            seed=seed,
            micro_batch_tokens=micro_batch_tokens,
        )
        # A prompt's rollouts are adjacent.
        owner = ds["rollout"].values // num_generations
        total = np.bincount(owner, ds["reverse_kl"].values.astype(np.float64), len(some))
        means += (total / np.bincount(owner, minlength=len(some))).tolist()
    if on_progress:
        on_progress(len(encoded), len(encoded))
    divergence = np.array(means)
    order = np.argsort(-divergence, kind="stable")[:n_prompts]
    return [encoded[i].prompt for i in order], divergence[order]
