"""TRL's and ms-swift's logs of completions: text."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from opdprobe.errors import shown
from opdprobe.rollout.dumps.format import Format, Rows, has
from opdprobe.rollout.dumps.row import Row, prompt_name
from opdprobe.rollout.rollout import Rollout

# ms-swift's rows have other columns beside the rewards: of these, some may hold numbers.
_NO_REWARDS = {
    "step",
    "gen_step",
    "prompt",
    "completion",
    "advantage",
    "advantages",
    "entropy",
    "solution",
    "num_turns",
}


def _rollouts(row: Row) -> Iterator[Rollout]:
    prompt = row.prompt("prompt")
    # A reward is a number, or null where its function gave none.
    rewards = [
        name
        for name, value in row.data.items()
        if name not in _NO_REWARDS and not isinstance(value, str | list | Mapping)
    ]
    yield Rollout(
        step=row.step("step", "gen_step"),
        prompt_id=prompt_name(prompt),
        prompt=prompt,
        response=_completion(row),
        # A single reward may be a grade; of several, none is the grade.
        correct=row.grade(*rewards) if len(rewards) == 1 else row.grade("reward"),
        source=row.source,
    )


def _completion(row: Row) -> str:
    """Return the text, or that of the only message: what tools wrote in between is not rebuilt."""
    if isinstance(row.need("completion"), str):
        return row.text("completion")
    messages = row.messages("completion")
    if len(messages) != 1 or messages[0]["role"] != "assistant":
        raise row.fault(
            f"'completion' has {len(messages)} messages; expected the assistant's alone: turns "
            "with tools cannot be rebuilt from text."
        )
    return messages[0]["content"]


def _columns(row: Row) -> Iterator[Rollout]:
    """One rollout, or a logging step of them: a list a column."""
    row.need("prompt")
    if not _is_table(row):
        yield from _rollouts(row)
        return
    n = len(row.data["prompt"])
    for name, values in row.data.items():
        if not isinstance(values, list) or len(values) != n:
            raise row.fault(f"{name!r} is {shown(values)}; expected a list of {n}, as 'prompt' is.")
    for i in range(n):
        one = {name: values[i] for name, values in row.data.items()}
        yield from _rollouts(Row(one, f"{row.source}, index {i}", row.given_step))


def _is_table(row: Row) -> bool:
    """Whether a row has a list a column; a conversation is one prompt."""
    prompt = row.data.get("prompt")
    return isinstance(prompt, list) and not (prompt and isinstance(prompt[0], Mapping))


def _logged_once(rows: Rows) -> Rows:
    """Leave out the last batch's repeat: GRPO logs it once more when training ends."""
    before: list[Any] | None = None
    for row in rows:
        if isinstance(row, Row) and _is_table(row):
            said = [row.data.get(name) for name in ("step", "gen_step", "prompt", "completion")]
            if said == before:
                continue
            before = said
        yield row


def _of_swift(row: Mapping[str, Any], path: Path) -> bool:
    return {"prompt", "completion"} <= row.keys() and bool({"step", "gen_step"} & row.keys())


_LOSS = "whether a response ended; end tokens and special tokens"
TRL = Format(
    "trl",
    "C",
    "log_completions: completions/completions_STEP.parquet",
    (".parquet",),
    has("step", "prompt", "completion"),
    _rollouts,
    _LOSS,
)
MS_SWIFT = Format(
    "ms-swift",
    "C",
    "log_completions: completions.jsonl",
    (".jsonl",),
    _of_swift,
    _columns,
    _LOSS,
    _logged_once,
)
