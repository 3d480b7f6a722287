"""NeMo-RL: token ids with log-probabilities (GRPO, also asynchronous), or text (distillation)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from opdprobe.errors import shown
from opdprobe.rollout.dumps.format import Format, has
from opdprobe.rollout.dumps.prime_rl import whole_sequence
from opdprobe.rollout.dumps.row import Row, prompt_name
from opdprobe.rollout.rollout import Rollout


def _unwrapped(row: Row) -> Row:
    """A row is a batch of one: each value is in a list."""
    data = {
        name: value[0] if isinstance(value, list) and len(value) == 1 else value
        for name, value in row.data.items()
    }
    return Row(data, row.source, row.given_step)


def _trained(row: Row) -> Iterator[Rollout]:
    row = _unwrapped(row)
    tokens = row.ids("token_ids")
    n = len(tokens)
    row.need("token_loss_mask")
    drawn = row.mask("token_loss_mask", n)
    logps = {
        "sampler_logp": row.logps("generation_logprobs", n),
        "student_logp": row.logps("prev_logprobs", n),
    }
    length = row.count("input_lengths", n)
    yield whole_sequence(
        row,
        tokens[:length],
        None if drawn is None else drawn[:length],
        {name: None if logp is None else logp[:length] for name, logp in logps.items()},
        step=row.step(),
        correct=row.grade("rewards"),
    )


def _distilled(row: Row) -> Iterator[Rollout]:
    content: Any = _unwrapped(row).need("content")
    if not isinstance(content, list) or len(content) < 2:
        raise row.fault(
            f"'content' is {shown(content)}; expected the texts of prompt and response."
        )
    texts = [row.as_text(text, "content") for text in content]
    if len(texts) > 3:
        raise row.fault(
            f"'content' has {len(texts)} texts; expected prompt and response: several turns cannot "
            "be rebuilt from text."
        )
    # Each text holds what the template wrote around it.
    prompt = "".join(texts[:-1])
    yield Rollout(
        step=row.step(),
        prompt_id=prompt_name(prompt),
        prompt=prompt,
        response=texts[-1],
        source=row.source,
    )


NEMO_RL = Format(
    "nemo-rl",
    "B",
    "GRPO: train_data_stepN.jsonl",
    (".jsonl",),
    has("token_ids", "token_loss_mask", "input_lengths"),
    _trained,
    "the teacher's log-probabilities, and whether a response ended, unless its last token says so",
)
NEMO_RL_DISTILLATION = Format(
    "nemo-rl-distillation",
    "C",
    "distillation: train_data_stepN.jsonl",
    (".jsonl",),
    has("content", "input_lengths", without=("token_ids",)),
    _distilled,
    "grades, whether a response ended",
)
