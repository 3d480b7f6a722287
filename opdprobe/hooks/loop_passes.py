"""What a forward pass of a plain loop held: its rows, its states, and what the teacher reads.

Shape suffixes: B sequences, T tokens per sequence with padding, N response tokens, D hidden size.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from opdprobe.errors import ConfigError, shown
from opdprobe.models.head import Body
from opdprobe.models.lengths import ApartBody
from opdprobe.rollout.pair import Pair

logger = logging.getLogger("opdprobe")


@dataclass(frozen=True)
class Pass:
    """A forward pass of the student: what went in, the last hidden states, and the precision."""

    input_ids: Tensor | None
    attention_mask: Tensor | None
    position_ids: Tensor | None
    hidden_BTD: Tensor | None
    autocast: torch.dtype | None


@dataclass(frozen=True)
class Row:
    """A recorded sequence: one rollout."""

    prompt_ids: list[int]
    response_ids: list[int]
    places: range  # positions of the response tokens in the pass
    is_state: Tensor  # which response tokens have a state, bool, on the host
    correct: float
    teacher_prompt_ids: list[int] | None = None


def row_of(ids_T: Tensor, real_T: Tensor, chosen_T: Tensor, correct: float) -> Row:
    """Split a sequence, given which of its tokens are real (not padding) and which are chosen."""
    chosen = chosen_T.nonzero()[:, 0]
    start, end = (int(chosen[0]), int(chosen[-1]) + 1) if len(chosen) else (len(ids_T),) * 2
    return Row(
        prompt_ids=ids_T[:start][real_T[:start]].tolist(),
        response_ids=ids_T[start:end].tolist(),
        places=range(start, end),
        is_state=chosen_T[start:end].cpu(),
        correct=correct,
    )


def teacher_prompts(given: Sequence[Sequence[int]], n: int, width: int) -> list[list[int]]:
    """Check what the teacher reads before each of `n` responses."""
    own = [[int(token) for token in ids] for ids in given]
    if len(own) != n:
        raise ConfigError(
            f"teacher_prompt_ids has {len(own)} prompts for {n} sequences; expected one each."
        )
    for row, ids in enumerate(own):
        if not ids or not 0 <= min(ids) <= max(ids) < width:
            raise ConfigError(
                f"teacher_prompt_ids[{row}] is {shown(ids)}; expected at least one token id, each "
                f"from 0 to {width - 1}, without padding."
            )
    return own


def known_prompts(prompts: list[list[int] | None]) -> list[list[int]] | None:
    """Return the teacher's prompts of a step's rows, which all have one, or none."""
    return [ids for ids in prompts if ids is not None] or None


def read_by_teacher(rows: Sequence[Row]) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
    """Pad the responses behind the teacher's prompts: ids and mask (B, T), row and time (N,).

    None if the teacher reads what the student read: the pass's own tokens serve then, and give the
    same numbers bit for bit.
    """
    if all(row.teacher_prompt_ids in (None, row.prompt_ids) for row in rows):
        return None
    texts = [(row.teacher_prompt_ids or []) + row.response_ids for row in rows]
    width = max(map(len, texts))
    ids_BT = torch.tensor([text + [0] * (width - len(text)) for text in texts])
    real_BT = torch.arange(width) < torch.tensor([[len(text)] for text in texts])
    states = [
        (b, len(row.teacher_prompt_ids or ()) - 1 + i)
        for b, row in enumerate(rows)
        for i in range(len(row.response_ids))
    ]
    row_N, time_N = torch.tensor(states).T
    return ids_BT, real_BT, row_N, time_N


def hidden_states(
    body: Body, ids_BT: Tensor, real_BT: Tensor, row_N: Tensor, time_N: Tensor
) -> Tensor:
    """Run a body over padded rows and pick the last hidden state at each state, (N, D)."""
    if isinstance(body, ApartBody):
        return body.hidden(ids_BT, row_N, time_N, real_BT)
    hidden_BTD = body(
        input_ids=ids_BT,
        attention_mask=real_BT.long(),
        position_ids=real_BT.long().cumsum(-1).sub(1).clamp(min=0),
        use_cache=False,
    ).last_hidden_state
    assert hidden_BTD is not None  # optional in the type only
    return hidden_BTD[row_N, time_N]


def warn_if_mixed(pair: Pair, real_BT: Tensor) -> None:
    """Say so if the loop's own pass has computed rows otherwise than alone."""
    body = pair.student_body
    if not isinstance(body, ApartBody):
        return
    if len({body.length_class(length) for length in real_BT.sum(-1).tolist()}) > 1:
        logger.warning(
            "%s: in a pass of the loop, rows change each other's distributions (a rope that "
            "depends on the longest row, say). They are recorded as the loop computed them, not as "
            "those of each text alone: give texts of different lengths passes of their own.",
            pair.student.name_or_path or type(pair.student).__name__,
        )


def tokens_of(seen: Pass) -> tuple[Tensor, Tensor]:
    """Return a pass's token ids and which are not padding, both (B, T), after checking them."""
    ids_BT, hidden = seen.input_ids, seen.hidden_BTD
    if ids_BT is None or hidden is None:
        missing = "input_ids" if ids_BT is None else "the output head's input"
        raise ConfigError(
            f"the forward pass gave no {missing} to record: call the student on input_ids, and "
            "let it compute its logits (a fused loss does not)."
        )
    if hidden.shape[:2] != ids_BT.shape:
        raise ConfigError(
            f"the output head saw hidden states of shape {tuple(hidden.shape)} for input_ids of "
            f"shape {tuple(ids_BT.shape)}; expected one per token: do not pass logits_to_keep."
        )
    mask = seen.attention_mask
    if mask is not None and mask.shape != ids_BT.shape:
        raise ConfigError(
            f"attention_mask has shape {tuple(mask.shape)}; expected {tuple(ids_BT.shape)}, with 1 "
            "at tokens and 0 at padding."
        )
    real_BT = torch.ones_like(ids_BT, dtype=torch.bool) if mask is None else mask.bool()
    if seen.position_ids is not None:
        both = real_BT[:, 1:] & real_BT[:, :-1]
        if (seen.position_ids.diff(dim=-1).expand_as(both)[both] != 1).any():
            raise ConfigError(
                "position_ids do not increase by 1: sequences packed into one row cannot be "
                "recorded; give each its own row."
            )
    return ids_BT, real_BT
