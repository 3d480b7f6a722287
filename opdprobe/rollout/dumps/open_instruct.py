"""open-instruct's traces and tinker's capture: token ids with the sampler's log-probabilities."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from opdprobe.errors import shown
from opdprobe.rollout.dumps.format import Format, has
from opdprobe.rollout.dumps.row import Row, prompt_name
from opdprobe.rollout.rollout import Rollout

_ENDED = {"stop": True, "length": False}


def _traced(row: Row) -> Iterator[Rollout]:
    prompt, response = row.ids("prompt_tokens"), row.ids("response_tokens")
    yield Rollout(
        step=row.step("step"),
        # Its prompt_idx counts anew in each step.
        prompt_id=prompt_name(prompt),
        prompt_ids=prompt,
        response_ids=response,
        finished=_ENDED.get(str(row.data.get("finish_reason"))),
        correct=row.grade("reward"),
        labels=row.labels(data_source="dataset"),
        sampler_logp=row.logps("logprobs", len(response)),
        source=row.source,
    )


def _captured(row: Row) -> Iterator[Rollout]:
    """A request with its samples, or a row of one sample."""
    if row.data.get("kind", "sample") != "sample" or row.data.get("status") == "error":
        return
    if "samples" not in row.data:
        yield _sampled(row, row, "sampled_tokens", row.data)
        return
    samples = row.need("samples")
    if not isinstance(samples, list):
        raise row.fault(f"'samples' is {shown(samples)}; expected a list.")
    scope = row.data.get("scope")
    for number, sample in enumerate(samples):
        yield _sampled(
            row,
            row.at(sample, f"sample {number}"),
            "tokens",
            scope if isinstance(scope, Mapping) else {},
        )


def _sampled(row: Row, sample: Row, tokens: str, scope: Mapping[str, Any]) -> Rollout:
    prompt, response = row.ids("prompt_tokens"), sample.ids(tokens)
    metadata = sample.data.get("metadata")
    reason = sample.data.get("stop_reason")
    if reason is None and isinstance(metadata, Mapping):
        reason = metadata.get("stop_reason")
    place = Row(scope, sample.source, row.given_step)
    return Rollout(
        step=place.step("iteration"),
        prompt_id=prompt_name(prompt),
        prompt_ids=prompt,
        response_ids=response,
        finished=_ENDED.get(str(reason)),
        labels=place.labels("split"),
        sampler_logp=sample.logps("logprobs", len(response)),
        source=sample.source,
    )


def _is_capture(row: Mapping[str, Any], path: Path) -> bool:
    return "prompt_tokens" in row and bool({"samples", "sampled_tokens"} & row.keys())


OPEN_INSTRUCT = Format(
    "open-instruct",
    "B",
    "--save_traces: RUN_rollouts_SHARD.jsonl",
    (".jsonl",),
    has("prompt_tokens", "response_tokens"),
    _traced,
    "the teacher's log-probabilities",
)
TINKER = Format(
    "tinker",
    "B",
    "tinker-cookbook's capture: capture/sample.jsonl",
    (".jsonl",),
    _is_capture,
    _captured,
    "grades, the teacher's log-probabilities",
)
