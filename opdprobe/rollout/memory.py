"""Work that runs out of memory is tried again in smaller pieces, with the same results.

A model's passes take memory in proportion to the tokens, or to the responses, that they hold
together. Neither changes a result by more than rounding: each state is scored by itself, and each
response draws its own random numbers.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from transformers import PreTrainedModel

from opdprobe.models.devices import (
    is_out_of_memory,
    out_of_memory,
    random_state,
    reason_of,
    release,
    restore_random_state,
)
from opdprobe.rollout.batches import batches
from opdprobe.rollout.sample import Rollouts, sample

logger = logging.getLogger("opdprobe")

T = TypeVar("T")

# Tokens, in the cache's rows, that a model was last sampled with after memory had run out: the next
# call does not run into the same wall.
_fitted: WeakKeyDictionary[PreTrainedModel, int] = WeakKeyDictionary()


def halving(
    work: Callable[[int], T],
    rollouts: Rollouts,
    *,
    micro_batch_tokens: int,
    device: torch.device,
    doing: str,
) -> tuple[T, int]:
    """Do work on micro-batches; where memory runs out, all of it again with half the tokens.

    Parameters
    ----------
    work
        ``work(micro_batch_tokens)`` goes through `opdprobe.rollout.batches.batches` of `rollouts`.
        It is called anew, so it must first discard what an earlier call has summed up: a failed
        backward pass leaves part of a gradient behind.
    rollouts
        What is cut into micro-batches.
    micro_batch_tokens
        Most tokens in a micro-batch, at first.
    device
        Where the work is done. Its random state, and the CPU's, are those of the first call in
        every call.
    doing
        What the work is, for messages: "scoring".

    Returns
    -------
    result
        What `work` returned: the same as if it had been given the smaller micro-batches at once.
    micro_batch_tokens : int
        The number that it was given last.

    Raises
    ------
    OutOfMemoryError
        Memory ran out with a micro-batch of a single rollout.
    """
    state = random_state(device)
    while True:
        try:
            return work(micro_batch_tokens), micro_batch_tokens
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            reason = reason_of(error)
        # Outside the handler: until here the exception kept the failed pass's tensors alive.
        release(device)
        restore_random_state(device, state)
        cut = batches(rollouts, micro_batch_tokens=micro_batch_tokens, pad_id=0, device=device)
        rows, tokens = max((tuple(batch.input_ids.shape) for batch in cut), key=_product)
        if rows == 1:
            raise out_of_memory(
                f"{doing} a single rollout of {tokens} tokens",
                "lower max_completion_length or max_prompt_length, load the models in bfloat16, or "
                "take smaller ones; in training, gradient checkpointing or an adapter also help",
                reason,
            )
        before, micro_batch_tokens = rows * tokens, rows * tokens // 2
        logger.warning(
            "Memory ran out while %s %d tokens together (%s): micro_batch_tokens is %d from now "
            "on. Results change only by rounding.",
            *(doing, before, reason, micro_batch_tokens),
        )


def sample_in_parts(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    num_generations: int = 1,
    max_completion_length: int,
    generator: torch.Generator | None = None,
    part: tuple[int, int] | None = None,
    **settings: Any,
) -> Rollouts:
    """Sample as `opdprobe.rollout.sample.sample` does; where memory runs out, in smaller parts.

    Every response draws the same random numbers, however many are sampled together. After memory
    has run out once, later calls for the model start with the size that fitted.

    Parameters
    ----------
    model, prompts, num_generations, max_completion_length, generator, part, **settings
        As for `sample`.

    Returns
    -------
    Rollouts
        As from `sample`.

    Raises
    ------
    OutOfMemoryError
        Memory ran out while a single response was sampled.
    NonFiniteError, ModelError
        As from `sample`.
    """
    n, device = num_generations, model.device
    first, total = part or (0, len(prompts))
    state = _generator_state(generator)
    length = max((len(prompt) for prompt in prompts), default=0) + max_completion_length
    most = len(prompts) * n
    if model in _fitted:
        most = max(1, min(most, _fitted[model] // length))
    found, done, last = Rollouts([], [], [], []), 0, (0, state)
    while done < len(prompts) * n:
        prompt, rank = divmod(done, n)
        if most >= n and rank == 0:  # whole prompts, whose rollouts share one prefill
            some = prompts[prompt : prompt + most // n]
            each, place = n, (first + prompt, total)
        else:
            some = [prompts[prompt]] * min(most, n - rank)
            each, place = 1, (first * n + done, total * n)
        _restore(generator, state)
        try:
            got = sample(
                model,
                some,
                num_generations=each,
                max_completion_length=max_completion_length,
                generator=generator,
                part=place,
                **settings,
            )
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            reason = reason_of(error)
        else:
            drawn = max(map(len, got.response_ids))
            if drawn >= last[0]:
                last = drawn, _generator_state(generator)
            found.prompt_ids.extend(got.prompt_ids)
            found.response_ids.extend(got.response_ids)
            found.finished.extend(got.finished)
            found.prompt_index.extend((done + i) // n for i in range(len(got)))
            done += len(got)
            continue
        release(device)
        rows = len(some) * each
        if rows == 1:
            raise out_of_memory(
                f"sampling a single response of up to {max_completion_length} tokens",
                "lower max_completion_length or max_prompt_length, or load the model in bfloat16",
                reason,
            )
        most = rows // 2
        _fitted[model] = most * length
        logger.warning(
            "Memory ran out while sampling %d responses together (%s): %d at a time from now on. "
            "They draw the same random numbers.",
            *(rows, reason, most),
        )
    _restore(generator, last[1])  # as if all had been sampled together
    return found


def _generator_state(generator: torch.Generator | None) -> torch.Tensor:
    return torch.get_rng_state() if generator is None else generator.get_state()


def _restore(generator: torch.Generator | None, state: torch.Tensor) -> None:
    if generator is None:
        torch.set_rng_state(state)
    else:
        generator.set_state(state)


def _product(shape: tuple[int, ...]) -> int:
    return shape[0] * shape[1]
