"""Caches of a teacher's top-k lists, of which nothing is trusted."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from case import Case

from opdprobe.errors import ConfigError, OPDProbeError, RolloutError, VocabularyError
from opdprobe.hooks.dumps import import_rollouts
from opdprobe.hooks.given import score_rollouts
from opdprobe.rollout.caches import TeacherCache
from opdprobe.rollout.rollout import Rollout
from opdprobe.testing import tiny_model, tiny_tokenizer

sys.path.append(str(Path(__file__).parents[1] / "hooks"))
import made_caches as made

_SKIP = "Correct it, or leave such rows out: --on-error skip (on_error='skip')."
_TEXT = [7, 8, 9, 10, 11]


def _case(fed: str, feed: Any, message: str, error: type[OPDProbeError] = RolloutError) -> Case:
    return Case("Caches of a teacher's lists", fed, feed, error, message)


def _distillkit(change: Callable[[Path, list[dict[str, Any]]], object], **settings: Any):
    def feed(folder: Path) -> object:
        cache = folder / "cache"
        rows = made.distillkit(cache, tiny_model(), [_TEXT], 4, 64, **settings)
        change(cache, rows)
        if rows:
            made.write_rows(cache, rows)
        return list(TeacherCache(cache).rollouts())

    return feed


def _longer(cache: Path, rows: list[dict[str, Any]]) -> None:
    rows[0]["input_ids"] = [*_TEXT, 12, 13]


def _logits(cache: Path, rows: list[dict[str, Any]]) -> None:
    made_up = torch.tensor([3.5, 2.0, 1.0, 0.5]).numpy().tobytes()
    rows[0]["compressed_logprobs"] = [list(made_up)] * 4


def _cut_off(cache: Path, rows: list[dict[str, Any]]) -> None:
    path = cache / "data_0.parquet"
    path.write_bytes(path.read_bytes()[:-40])
    rows.clear()


def _scored(k: int = 4, **tokens: int):
    def feed(folder: Path) -> object:
        vocabulary = tokens.get("d", 64)
        made.distillkit(folder / "cache", tiny_model(vocabulary), [_TEXT], 4, vocabulary)
        cache = TeacherCache(folder / "cache")
        tokenizer = tiny_tokenizer(64)
        return score_rollouts(
            tiny_model(64), cache, cache.rollouts(), folder / "run", k=k, tokenizer=tokenizer
        )

    return feed


def _megatron(change: Callable[[dict[str, Any], dict[str, Any]], object]):
    def feed(folder: Path) -> object:
        sample = (_TEXT, [True] * 4)
        made.megatron(folder / "cache", tiny_model(), [sample], 4, change=change)
        return list(TeacherCache(folder / "cache").rollouts())

    return feed


def _shift(inputs: dict[str, Any], targets: dict[str, Any]) -> None:
    inputs["labels"] = inputs["tokens"].clone()


def _another(inputs: dict[str, Any], targets: dict[str, Any]) -> None:
    targets["record_id"] = "h:dp0:0-1"


def _older(inputs: dict[str, Any], targets: dict[str, Any]) -> None:
    inputs["format_version"] = 2


def _no_targets(folder: Path) -> object:
    made.megatron(folder / "cache", tiny_model(), [(_TEXT, [True] * 4)], 4)
    (folder / "cache" / "dp0__0-1.targets.tar").unlink()
    return list(TeacherCache(folder / "cache").rollouts())


def _bomb(folder: Path) -> object:
    made.megatron(folder / "cache", tiny_model(), [(_TEXT, [True] * 4)], 4)
    packed = pa.compress(bytes(2**27), codec="zstd", asbytes=True)
    made.write_tar(folder / "cache" / "dp0__0-1.targets.tar", {"0-1.targets.pt.zst": packed})
    return list(TeacherCache(folder / "cache").rollouts())


class _Runs:
    def __reduce__(self):
        return print, ("the pickle ran",)


def _runs_code(inputs: dict[str, Any], targets: dict[str, Any]) -> None:
    inputs["cu_seqlens"] = _Runs()


def _named(name: str):
    def feed(folder: Path) -> object:
        (folder / name).write_bytes(b"")
        return TeacherCache(folder / name)

    return feed


def _rows(*rows: dict[str, Any], tokenizer: Any = None):
    def feed(folder: Path) -> object:
        (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        cache = TeacherCache(folder / "data.jsonl", tokenizer=tokenizer)
        return list(cache.rollouts())

    return feed


def _answer(n_lists: int, first: int = 7) -> dict[str, Any]:
    messages = [{"role": "user", "content": "5"}, {"role": "assistant", "content": "1 2 3"}]
    lists = [[{"token": f"token_id:{first + i}", "logprob": -0.5}] for i in range(n_lists)]
    return {"messages": messages, "logprobs": lists}


def _without_student(folder: Path) -> object:
    made.distillkit(folder / "cache", tiny_model(), [_TEXT], 4, 64)
    return import_rollouts(folder / "cache", folder / "run")


def _bare(folder: Path) -> object:
    made.distillkit(folder / "cache", tiny_model(), [_TEXT], 4, 64)
    cache, rows = TeacherCache(folder / "cache"), [Rollout(0, "a", [7], [8, 9])]
    tokenizer = tiny_tokenizer()
    return score_rollouts(tiny_model(), cache, rows, folder / "run", k=4, tokenizer=tokenizer)


CASES = [
    _case(
        "A file that is no cache",
        _rows({"prompt": "5"}),
        "FOLDER/data.jsonl: no cache of a teacher's lists; expected a run of opdprobe, or what "
        "DistillKit, axolotl or Megatron (version 3) wrote.",
    ),
    _case(
        "DistillKit's rows without their settings",
        _distillkit(lambda cache, rows: (cache / "compression_config.yaml").unlink()),
        "FOLDER/cache/compression_config.yaml: no such file; expected the settings that DistillKit "
        "writes beside its parquet files, without which their bytes cannot be read.",
    ),
    _case(
        "DistillKit's settings of another cache",
        _distillkit(lambda cache, rows: None, exact_dtype="float64"),
        "FOLDER/cache/data_0.parquet, row 0: 'compressed_logprobs' holds a list of 16 bytes; "
        "expected 32 bytes for each list, by its compression_config.yaml: is that of another "
        f"cache? {_SKIP}",
    ),
    _case(
        "DistillKit's settings with a number that is none",
        _distillkit(lambda cache, rows: None, exact_k="all"),
        "FOLDER/cache/compression_config.yaml: exact_k = 'all'; expected a whole number from 0 to "
        "4.",
    ),
    _case(
        "a DistillKit row with too few lists",
        _distillkit(_longer),
        "FOLDER/cache/data_0.parquet, row 0: 7 tokens, 4 lists of log-probabilities and 4 of ids; "
        "expected a list for each token but the first, or one more, for a token that was cut off. "
        f"{_SKIP}",
    ),
    _case(
        "logits in the place of log-probabilities",
        _distillkit(_logits),
        "FOLDER/cache/data_0.parquet, row 0: the list of token 0 holds 3.5; expected "
        f"log-probabilities, at most 0. {_SKIP}",
    ),
    _case(
        "a DistillKit file that is cut off",
        _distillkit(_cut_off),
        "FOLDER/cache/data_0.parquet: not a readable parquet file (…): check that it is complete.",
    ),
    _case(
        "DistillKit's older rows",
        _rows({"input_ids": [7], "packed_indices": [], "exact_values": [], "coeffs": []}),
        "FOLDER/data.jsonl:1: DistillKit's older rows, which hold logits, not log-probabilities: "
        "what the teacher gives to a token is lost; expected ('input_ids', 'compressed_logprobs', "
        "'bytepacked_indices').",
    ),
    _case(
        "a cache for a smaller vocabulary than the student's",
        _scored(d=32),
        "the cache's ids were packed for 32 tokens (compression_config.yaml, d), but the tokenizer "
        "has 64: give the tokenizer that the cache was made with (tokenizer=).",
        VocabularyError,
    ),
    _case(
        "a larger k than a cache has",
        _scored(k=5),
        "FOLDER/cache/data_0.parquet, row 0, token 0 of its response: the teacher's list has 4 "
        "tokens, but k = 5: use k = 4 or less.",
        ConfigError,
    ),
    _case(
        "Megatron's inputs without targets",
        _no_targets,
        "FOLDER/cache/dp0__0-1.inputs.tar: no dp0__0-1.targets.tar beside it; expected inputs and "
        "targets of the same samples: is the cache still being written?",
    ),
    _case(
        "Megatron's targets of another run",
        _megatron(_another),
        "FOLDER/cache/dp0__0-1.inputs.tar, 0-1.inputs.pt.zst: its record is 'g:dp0:0-1', and that "
        "of the targets 'h:dp0:0-1'; expected the same: the files are not of one run, or one of "
        "them is cut off.",
    ),
    _case(
        "Megatron's labels that are the tokens themselves",
        _megatron(_shift),
        "FOLDER/cache/dp0__0-1.inputs.tar, 0-1.inputs.pt.zst, sample 0: the label of token 0 is 7, "
        "and the next token 8; expected the same: the labels are shifted.",
    ),
    _case(
        "a record of another version in Megatron's tar",
        _megatron(_older),
        "FOLDER/cache/dp0__0-1.inputs.tar, 0-1.inputs.pt.zst: format_version = 2; expected 3.",
    ),
    _case(
        "a pickle that runs code, in Megatron's tar",
        _megatron(_runs_code),
        "FOLDER/cache/dp0__0-1.inputs.tar, 0-1.inputs.pt.zst: the pickle holds an object of "
        "…print; only plain values, tensors and NumPy arrays are read, since any other object can "
        "run code: save it without.",
    ),
    _case(
        "a record of zeros without end, in Megatron's tar",
        _bomb,
        "FOLDER/cache/dp0__0-1.targets.tar, 0-1.targets.pt.zst: unpacks to more than … bytes, too "
        "many for its size of ….",
    ),
    _case(
        "Megatron's cache of version 2",
        _named("cp0_dp0__800.tar"),
        "FOLDER/cp0_dp0__800.tar: an older cache of Megatron's, without token ids, or in its first "
        "layout of version 3; expected dpR__A-B.inputs.tar beside dpR__A-B.targets.tar "
        "(--logits-save-inputs).",
    ),
    _case(
        "a data set that axolotl has prepared",
        _rows({"input_ids": [7], "target_logprobs": [[0.0]], "target_token_ids": [[7]]}),
        "FOLDER/data.jsonl:1: a data set that axolotl has prepared (target_logprobs): its lists "
        "are normalised to 1 each, so what the teacher gives to a token is lost, and versions "
        "differ in the token that a list is of. Give the data set that it was prepared from.",
    ),
    _case(
        "axolotl's text without a tokenizer",
        _rows(_answer(3)),
        "FOLDER/data.jsonl: text, which needs the student's tokenizer: pass it (tokenizer=, "
        "--tokenizer).",
        ConfigError,
    ),
    _case(
        "axolotl's answer that another tokenizer splits",
        _rows(_answer(9), tokenizer=tiny_tokenizer()),
        "FOLDER/data.jsonl:1: the answer has 4 tokens with its end, and the cache 9 lists; "
        "expected one for each, with or without the end: the texts were made with another "
        f"tokenizer, or are split otherwise than they were drawn. {_SKIP}",
    ),
    _case(
        "axolotl's lists of other tokens",
        _rows(_answer(3, first=30), tokenizer=tiny_tokenizer()),
        "FOLDER/data.jsonl:1: 0 of 3 tokens are in the teacher's list at their place, and an "
        "engine lists each token that it draws: the lists are shifted, or the tokenizer is "
        f"another one. {_SKIP}",
    ),
    _case(
        "a cache without a student",
        _without_student,
        "FOLDER/cache: a cache of a teacher's lists, without a student; expected the student to "
        "score beside it (student=, --student).",
        ConfigError,
    ),
    _case(
        "rollouts that are not the cache's",
        _bare,
        "a rollout of step 0, prompt 'a': it has no lists of the teacher (teacher_lists); expected "
        "the rollouts of the cache that is the teacher.",
    ),
]
