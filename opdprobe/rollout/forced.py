"""Force a token at a state of a rollout, let the model go on, and see how often it succeeds."""

from collections.abc import Sequence

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from opdprobe.errors import ConfigError
from opdprobe.models.vocabulary import eos_ids
from opdprobe.rollout.continuation import Sampling, continued, token_rows
from opdprobe.rollout.grade import Grader, grade_rollouts
from opdprobe.rollout.prompts import Prompt


def forced_success(
    step: xr.Dataset,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    grader: Grader,
    sampling: Sampling,
    *,
    states: ArrayLike,
    tokens: ArrayLike,
    n: int,
) -> NDArray[np.float64]:
    """Grade continuations of rollouts that are cut at a state and go on with a chosen token.

    Parameters
    ----------
    step : Dataset
        A step of the model's rollouts in the store's schema, with all positions.
    model, tokenizer, prompts, grader, sampling
        As for `opdprobe.rollout.continuation.continued`. ``sampling.max_completion_length`` holds
        for the whole response.
    states : (state,) array_like of int
        Numbers of states of `step`.
    tokens : (state, token) array_like of int
        Tokens to force at each state, in place of the one that was drawn there.
    n : int
        Continuations of each.

    Returns
    -------
    (state, token, n) ndarray of float64
        Scores. A token that ends the response has n times the score of what stands before it.

    Raises
    ------
    ConfigError
        There is no state, `n` is below 1, or nothing may follow a state's token.
    PromptError
        A rollout's prompt is not among `prompts`.

    References
    ----------
    2605.10889: success after a forced token, of which the ideal gradient is made.
    """
    states, tokens = np.asarray(states), np.asarray(tokens)
    if states.size == 0 or n < 1:
        raise ConfigError(f"{states.size} states, n = {n}; expected at least one of each.")
    rollout = step["rollout"].values[states]
    position = step["position"].values[states]
    if (late := position + 1 >= sampling.max_completion_length).any():
        raise ConfigError(
            f"{late.sum()} states are at the end of the longest response; expected room for a "
            "token after the forced one."
        )
    starts, responses = token_rows(step, "prompt"), token_rows(step, "response")
    rows = [
        (int(r), [*responses[r][:p], int(token)])
        for r, p, some in zip(rollout, position, tokens, strict=True)
        for token in some
        for _ in range(n)
    ]
    # A token to be replaced, so that what follows the forced one is sampled.
    whole = [[*prefix, 0] for _, prefix in rows]
    names = step["prompt_id"].values
    cut = xr.Dataset(
        {
            "prompt_ids": ("prompt_token", np.concatenate([starts[r] for r, _ in rows])),
            "prompt_length": ("rollout", [len(starts[r]) for r, _ in rows]),
            "response_ids": ("response_token", np.concatenate(whole)),
            "length": ("rollout", [len(response) for response in whole]),
            "prompt_id": ("rollout", [names[r] for r, _ in rows]),
        }
    )
    ends = eos_ids(model, tokenizer, conversations=any(p.text is None for p in prompts))
    ended = np.array([prefix[-1] in ends for _, prefix in rows])
    # A response that has ended is not continued.
    lengths = np.array([len(prefix) for _, prefix in rows])
    scores = continued(
        cut,
        model,
        tokenizer,
        prompts,
        grader,
        sampling,
        cut=np.where(ended, lengths + 1, lengths),
    )
    by_id = {prompt.id: prompt for prompt in prompts}
    done = np.flatnonzero(ended)
    scores[done] = grade_rollouts(
        tokenizer,
        [rows[i][1] for i in done],
        [by_id[str(names[rows[i][0]])] for i in done],
        grader,
    )
    return scores.reshape(*tokens.shape, n)
