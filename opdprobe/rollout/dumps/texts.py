"""AReaL, SkyRL, thunlp/OPD, LlamaFactory: prompts and responses as text, one a row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from opdprobe.rollout.dumps.format import Format, has
from opdprobe.rollout.dumps.row import Row, prompt_name, row_name
from opdprobe.rollout.rollout import Rollout

_ENDED = {"stop": True, "length": False}
_LOSS = "whether a response ended; end tokens"


def _areal_version(path: Path) -> int | None:
    """Return the version that a file's folder is named by; the file itself is named by its task."""
    name = path.parent.name
    return int(name) if name.isdecimal() and len(name) < 10 else None


def _areal(row: Row) -> Iterator[Rollout]:
    prompt = row.text("prompt")
    yield Rollout(
        # The version that drew its last tokens; the folder is called so.
        step=row.step("tail_version"),
        prompt_id=prompt_name(prompt),
        prompt=prompt,
        response=row.text("completion"),
        correct=row.grade("reward"),
        source=row.source,
    )


def _skyrl(row: Row) -> Iterator[Rollout]:
    prompt = row.text("input_prompt")
    yield Rollout(
        step=row.step(),
        prompt_id=prompt_name(prompt),
        prompt=prompt,
        response=row.text("output_response"),
        finished=_ENDED.get(str(row.data.get("stop_reason"))),
        correct=row.grade("score"),
        labels=row.labels("data_source", environment="env_class"),
        source=row.source,
    )


def _asked(question: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}]


def _thunlp_eval(row: Row) -> Iterator[Rollout]:
    """`gen_vllm.py` puts the prompt through the chat template itself."""
    prompt = _asked(row.text("prompt"))
    yield Rollout(
        step=row.step(),
        prompt_id=row_name(row.need("example_id"), prompt),
        prompt=prompt,
        response=row.text("response"),
        source=row.source,
    )


def _thunlp_rollout(row: Row) -> Iterator[Rollout]:
    """`vllm_rollout.py`: a worker's record, or a conversation of the merged file."""
    if "messages" in row.data:
        messages = row.messages("messages")
        if len(messages) < 2 or messages[-1]["role"] != "assistant":
            raise row.fault("'messages' does not end with the assistant's; expected its response.")
        prompt, response = messages[:-1], messages[-1]["content"]
        name = prompt_name(prompt)
    else:
        prompt, response = _asked(row.text("instruction")), row.text("output")
        name = row_name(row.need("global_index"), prompt)
    yield Rollout(
        step=row.step(), prompt_id=name, prompt=prompt, response=response, source=row.source
    )


def _is_thunlp_rollout(row: Mapping[str, Any], path: Path) -> bool:
    return {"global_index", "rollout_index", "output"} <= row.keys() or set(row) == {"messages"}


def _llamafactory(row: Row) -> Iterator[Rollout]:
    prompt = row.text("prompt")
    yield Rollout(
        step=row.step(),
        prompt_id=prompt_name(prompt),
        prompt=prompt,
        response=row.text("predict"),
        source=row.source,
    )


AREAL = Format(
    "areal",
    "C",
    "rollout/VERSION/TASK.jsonl of the rollout controller's dumps",
    (".jsonl",),
    has("prompt", "completion", "prompt_len", "tail_version"),
    _areal,
    "nothing: special tokens are in the text",
    step_in=_areal_version,
)
SKYRL = Format(
    "skyrl",
    "C",
    "trainer.dump_eval_results: SOURCE.jsonl",
    (".jsonl",),
    has("input_prompt", "output_response"),
    _skyrl,
    "nothing: special tokens are in the text",
)
THUNLP_EVAL = Format(
    "thunlp-eval",
    "C",
    "gen_vllm.py of thunlp/OPD",
    (".jsonl",),
    has("example_id", "prompt", "response"),
    _thunlp_eval,
    _LOSS,
)
THUNLP_ROLLOUT = Format(
    "thunlp-rollout",
    "C",
    "vllm_rollout.py of thunlp/OPD",
    (".jsonl",),
    _is_thunlp_rollout,
    _thunlp_rollout,
    f"{_LOSS}; grades",
)
LLAMAFACTORY = Format(
    "llamafactory",
    "C",
    "generated_predictions.jsonl",
    (".jsonl",),
    has("prompt", "predict"),
    _llamafactory,
    f"{_LOSS}; grades",
)
