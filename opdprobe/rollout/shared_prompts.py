"""Score the responses to a prompt behind one pass over the prompt.

The prompt of n responses is run once instead of n times, and its keys and values are repeated. A
state's hidden states differ from those of a pass over its whole text by rounding only.
"""

from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedConfig, PreTrainedModel

from opdprobe.models.head import Body, Head, evaluating
from opdprobe.models.lengths import ApartBody
from opdprobe.rollout.batches import pass_cost
from opdprobe.rollout.decode import Decoding, cache_name
from opdprobe.rollout.exact import agree, decoding_of, few_tokens
from opdprobe.rollout.kv_cache import RoomyLayer, repeat_rows, roomy_cache
from opdprobe.rollout.pair import Pair
from opdprobe.rollout.sample import Rollouts
from opdprobe.rollout.score import Scores, score

# Tokens of the prompt, and of the two responses, of a check.
_PROMPT, _RESPONSES = 4, (3, 5)

_checked: WeakKeyDictionary[PreTrainedModel, dict[Any, bool]] = WeakKeyDictionary()


def pays(rollouts: Rollouts, device: torch.device) -> bool:
    """Whether running each prompt once spares more than the two passes that each prompt takes."""
    prompt = np.array([len(ids) for ids in rollouts.prompt_ids])
    response = np.array([len(ids) for ids in rollouts.response_ids])
    spared = 0
    for rows in by_prompt(rollouts):
        longest = int(response[rows].max())
        padding = len(rows) * longest - int(response[rows].sum())
        spared += int(prompt[rows[0]]) * (len(rows) - 1) - padding - 2 * pass_cost(device)
    return spared > 0


def by_prompt(rollouts: Rollouts) -> list[list[int]]:
    """Indices of the rollouts of each prompt."""
    found: dict[int, list[int]] = {}
    for i, prompt in enumerate(rollouts.prompt_index):
        if rollouts.response_ids[i]:
            found.setdefault(prompt, []).append(i)
    return list(found.values())


def is_exact(pair: Pair, longest: int) -> bool:
    """Whether both models give their own logits this way, for texts of at most `longest` tokens.

    Each model is tried on a few tokens, once.
    """
    return _is_exact(pair.student, pair.student_body, pair.student_head, longest) and _is_exact(
        pair.teacher, pair.teacher_body, pair.teacher_head, longest
    )


def _is_exact(model: PreTrainedModel, body: Body, head: Head, longest: int) -> bool:
    with evaluating(model), torch.no_grad():
        if (
            isinstance(body, ApartBody)
            or cache_name(model) != "past_key_values"
            or decoding_of(model, longest) is not Decoding.PADDED
            # A sliding window drops keys that responses still need.
            or not all(type(layer) is RoomyLayer for layer in roomy_cache(model.config).layers)
        ):
            return False
        known = _checked.setdefault(model, {})
        if model.dtype not in known:
            tokens = few_tokens(model)
            prompt, rest = tokens[:_PROMPT], tokens[_PROMPT:]
            responses = [rest[:n] for n in _RESPONSES]
            found = behind(body, model.config, prompt, responses, model.device)
            texts = [torch.tensor([prompt + response[:-1]]) for response in responses]
            alone = [
                body(input_ids=ids.to(model.device), use_cache=False).last_hidden_state
                for ids in texts
            ]
            wanted = torch.cat([states[0, _PROMPT - 1 :] for states in alone if states is not None])
            known[model.dtype] = agree(model, head(found), head(wanted))
        return known[model.dtype]


def behind(
    body: Body,
    config: PreTrainedConfig,
    prompt: list[int],
    responses: list[list[int]],
    device: torch.device,
) -> Tensor:
    """Run a body over a prompt, and over responses behind it.

    Parameters
    ----------
    body, config
        The model.
    prompt
        Token ids.
    responses
        Token ids of each response, at least one.
    device
        Where the model is.

    Returns
    -------
    Tensor (N, D)
        Last hidden states that predict the responses' tokens, response by response.
    """
    cache = roomy_cache(config)
    ids = torch.tensor([prompt], device=device)
    first = body(input_ids=ids, past_key_values=cache, use_cache=True).last_hidden_state
    assert first is not None  # optional in the type only
    before = first[0, -1:]
    if max(map(len, responses)) == 1:
        return before.expand(len(responses), -1)
    repeat_rows(cache, len(responses))
    # No real token sees the padding behind it.
    texts = [torch.tensor(response[:-1], dtype=torch.long) for response in responses]
    padded = pad_sequence(texts, batch_first=True).to(device)
    place = torch.arange(len(prompt), len(prompt) + padded.shape[1], device=device)
    states = body(
        input_ids=padded,
        position_ids=place.expand_as(padded),
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state
    assert states is not None
    rows = zip(responses, states, strict=True)
    return torch.cat([piece for ids, row in rows for piece in (before, row[: len(ids) - 1])])


@torch.no_grad()
def scored(
    pair: Pair, rollouts: Rollouts, *, k: int, temperature: float, micro_batch_tokens: int
) -> Iterator[tuple[Tensor, Tensor, Tensor, Scores]]:
    """Score rollouts, one prompt after the other.

    Parameters
    ----------
    pair, rollouts, k, temperature
        As for `opdprobe.rollout.pair.Pair.scored`.
    micro_batch_tokens
        Most response tokens in a pass, padding included.

    Yields
    ------
    state : Tensor (N,)
        Index of each state among all states, rollout by rollout.
    hidden, teacher_hidden : Tensor (N, D), (N, D')
        Last hidden states.
    scores : Scores
        Of the same states.
    """
    device, stops = pair.student.device, pair.stop_ids()
    first = np.cumsum([0, *map(len, rollouts.response_ids)])
    theirs = rollouts.read_by("teacher").prompt_ids
    for rows in by_prompt(rollouts):
        longest = max(len(rollouts.response_ids[i]) for i in rows)
        most = max(1, micro_batch_tokens // longest)
        for some in (rows[i : i + most] for i in range(0, len(rows), most)):
            responses = [rollouts.response_ids[i] for i in some]
            asked = rollouts.prompt_ids[some[0]]
            student, teacher = pair.student, pair.teacher
            hidden = behind(pair.student_body, student.config, asked, responses, device)
            teacher_hidden = behind(
                pair.teacher_body, teacher.config, theirs[some[0]], responses, device
            )
            scores = score(
                hidden,
                teacher_hidden,
                pair.student_head,
                pair.teacher_head,
                torch.tensor([token for ids in responses for token in ids], device=device),
                k=k,
                temperature=temperature,
                stop_ids=stops,
            )
            state = np.concatenate([np.arange(first[i], first[i + 1]) for i in some])
            yield torch.as_tensor(state), hidden, teacher_hidden, scores
