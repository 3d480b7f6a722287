"""verl, as it writes rollouts: text, of which special tokens have been taken out."""

from collections.abc import Iterator

from opdprobe.rollout.dumps.format import Format, has
from opdprobe.rollout.dumps.row import Row, prompt_name
from opdprobe.rollout.rollout import Rollout


def _rollouts(row: Row) -> Iterator[Rollout]:
    prompt = row.text("input")
    # Its uid is new in every step; a prompt's text is the same.
    yield Rollout(
        step=row.step("step"),
        prompt_id=prompt_name(prompt),
        prompt=prompt,
        response=row.text("output"),
        correct=row.grade("acc", "score"),
        labels=row.labels("data_source"),
        source=row.source,
    )


def _generated(row: Row) -> Iterator[Rollout]:
    prompt = row.prompt("prompt")
    responses = row.need("responses")
    if not isinstance(responses, list):
        raise row.fault(f"'responses' is {type(responses).__name__}; expected a list of texts.")
    for response in responses:
        yield Rollout(
            step=row.step(),
            prompt_id=prompt_name(prompt),
            prompt=prompt,
            response=row.as_text(response, "responses"),
            labels=row.labels("data_source"),
            source=row.source,
        )


VERL = Format(
    "verl",
    "C",
    "trainer.rollout_data_dir and validation_data_dir: STEP.jsonl",
    (".jsonl",),
    has("input", "output", "score", "gts"),
    _rollouts,
    "special tokens: the chat template's, and whether a response ended",
)
VERL_GENERATION = Format(
    "verl-generation",
    "C",
    "main_generation: a parquet file with responses",
    (".parquet",),
    has("prompt", "responses"),
    _generated,
    "special tokens, and whether a response ended",
)
