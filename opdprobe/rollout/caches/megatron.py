"""Megatron-LM's offline distillation, version 3: inputs and targets in pairs of tar files.

The layout is that of `docs` and `megatron/training/distillation/v3_*.py` in AAnoosheh/Megatron-LM
at f4f90e9, which is not in NVIDIA's repository yet: ``dpR__A-B.inputs.tar`` beside
``dpR__A-B.targets.tar``, each with ``_meta.json`` and a member ``START-END.inputs.pt.zst`` or
``START-END.targets.pt.zst`` for each iteration of the teacher. List i is what the teacher predicts
after token i, so for ``labels[i]``. Versions 1 and 2 hold no token ids.
"""

from __future__ import annotations

import re
import tarfile
import tempfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opdprobe.errors import RolloutError, needs_train_extra, shown
from opdprobe.rollout.caches.lists import teacher_lists
from opdprobe.rollout.dumps.pickled import load
from opdprobe.rollout.rollout import Rollout
from opdprobe.store.budget import most_unpacked
from opdprobe.store.files import regular

NAME = re.compile(r"dp(\d{1,9})__(\d{1,18})-(\d{1,18})\.(inputs|targets)\.tar")
OLDER = re.compile(r"(cp\d+_)?dp\d+__\d+\.tar|dp\d+__\d+-\d+\.tar")
_MEMBER = re.compile(r"\d{1,18}-\d{1,18}\.(inputs|targets)\.pt\.zst")
_PART = 2**20
_TOKENS = ("tokens", "labels", "position_ids", "loss_mask")
# What stands for no token: -1e3 or -1e4. No list of a model's best tokens goes so low.
_NO_TOKEN = -900.0


def pairs(files: list[Path]) -> list[tuple[Path, Path]]:
    """Put the files of inputs and of targets together, by the samples that they hold.

    Raises
    ------
    RolloutError
        One of a pair is not there.
    """
    found = sorted({_stem(path) for path in files}, key=lambda path: _order(path.name))
    both = [
        (path.with_name(f"{path.name}.inputs.tar"), path.with_name(f"{path.name}.targets.tar"))
        for path in found
    ]
    for pair in both:
        for path, other in (pair, pair[::-1]):
            if not path.is_file():
                raise RolloutError(
                    f"{other}: no {path.name} beside it; expected inputs and targets of the same "
                    "samples: is the cache still being written?"
                )
    return both


def _stem(path: Path) -> Path:
    return path.with_name(path.name.rsplit(".", 2)[0])


def _order(name: str) -> list[int]:
    rank, start, end = map(int, re.findall(r"\d+", name))
    return [start, end, rank]


def rollouts(inputs: Path, targets: Path) -> Iterator[Rollout]:
    """Yield the texts of a pair of files.

    Raises
    ------
    RolloutError
        A file is torn or not of version 3, or the two do not belong together.
    """
    told = _members(targets, "targets")
    for name, given in _members(inputs, "inputs"):
        other, lists = next(told, (None, None))
        where = f"{targets}, {other}"
        if lists is None or given["record_id"] != lists["record_id"]:
            raise RolloutError(
                f"{inputs}, {name}: its record is {shown(given['record_id'])}, and that of the "
                f"targets {shown(lists['record_id']) if lists else 'missing'}; expected the same: "
                "the files are not of one run, or one of them is cut off."
            )
        yield from _texts(f"{inputs}, {name}", given, *_lists(where, lists))
    if (more := next(told, None)) is not None:
        raise RolloutError(f"{targets}: {more[0]} has no inputs in {inputs}; expected them.")


def _members(path: Path, kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the names and the contents of a tar's members."""
    try:
        with tarfile.open(regular(path), "r:") as archive:
            for info in archive:
                found = _MEMBER.fullmatch(info.name)
                if found is None and info.name != "_meta.json":
                    raise RolloutError(
                        f"{path}: a member {shown(info.name)}; expected START-END.{kind}.pt.zst."
                    )
                if found is None:
                    continue
                if found[1] != kind or not info.isreg() or info.issparse():
                    raise RolloutError(
                        f"{path}: {shown(info.name)} is no file of {kind}; expected "
                        f"START-END.{kind}.pt.zst."
                    )
                stream = archive.extractfile(info)
                assert stream is not None  # it is a file
                yield info.name, _content(f"{path}, {info.name}", stream.read(), kind)
    except (OSError, EOFError, tarfile.TarError) as error:
        raise RolloutError(
            f"{path}: not a readable tar file ({error}): check that it is complete."
        ) from error


def _content(name: str, packed: bytes, kind: str) -> dict[str, Any]:
    with needs_train_extra(f"reading {name}"):
        import pyarrow as pa
    most, content = most_unpacked(len(packed)), bytearray()
    try:
        with pa.CompressedInputStream(pa.BufferReader(packed), "zstd") as stream:
            # In parts: Arrow takes memory for all bytes that are asked for.
            while len(content) <= most and (part := stream.read(_PART)):
                content += part
    except OSError as error:
        raise RolloutError(f"{name}: not readable as zstd ({error}).") from error
    if len(content) > most:
        raise RolloutError(
            f"{name}: unpacks to more than {most} bytes, too many for its size of {len(packed)}."
        )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "member.pt")
        path.write_bytes(content)
        found = load(path, name)
    if not isinstance(found, dict) or found.get("format_version") != 3:
        has = shown(found.get("format_version") if isinstance(found, dict) else type(found))
        raise RolloutError(f"{name}: format_version = {has}; expected 3.")
    wanted = ("values", "indices_low", "bit_17") if kind == "targets" else (*_TOKENS,)
    for key in ("record_id", *wanted, *(("sample_offsets",) if kind == "inputs" else ())):
        if found.get(key) is None:
            raise RolloutError(f"{name}: no {key}; expected it in every record of {kind}.")
    return found


def _array(name: str, record: dict[str, Any], key: str, kinds: str, ndim: int = 1) -> NDArray[Any]:
    """Return a tensor's values."""
    value = record[key]
    try:
        found = (value.float() if str(value.dtype) == "torch.bfloat16" else value).numpy()
    except (AttributeError, TypeError, RuntimeError):
        raise RolloutError(f"{name}: {key} is {shown(type(value))}; expected a tensor.") from None
    if found.ndim != ndim or found.dtype.kind not in kinds:
        raise RolloutError(
            f"{name}: {key} has shape {found.shape} and dtype {found.dtype}; expected {ndim} "
            f"{'axis' if ndim == 1 else 'axes'}{' of whole numbers' if kinds == 'iu' else ''}."
        )
    return found


def _lists(name: str, record: dict[str, Any]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return ids and log-probabilities (tokens, K)."""
    logp = _array(name, record, "values", "f", 2).astype(np.float64)
    low = _array(name, record, "indices_low", "iu", 2).astype(np.int64)
    bits = _array(name, record, "bit_17", "iu").astype(np.uint8)
    if low.shape != logp.shape or len(bits) != (low.size + 7) // 8:
        raise RolloutError(
            f"{name}: values {logp.shape}, indices_low {low.shape} and {len(bits)} bytes of bit_17 "
            "do not fit; expected one of each for every entry of a list."
        )
    high = np.unpackbits(bits, count=low.size).reshape(low.shape).astype(np.int64)
    none = logp <= _NO_TOKEN
    return np.where(none, -1, low | high << 16), np.where(none, -np.inf, logp)


def _texts(
    name: str, record: dict[str, Any], token_id: NDArray[np.int64], logp: NDArray[np.float64]
) -> Iterator[Rollout]:
    offsets = _array(name, record, "sample_offsets", "iu").astype(np.int64)
    columns = {
        key: _array(name, record, key, "iu" if key != "loss_mask" else "biuf") for key in _TOKENS
    }
    n = len(token_id)
    sizes = {key: len(values) for key, values in columns.items()}
    if len(offsets) < 2 or offsets[0] != 0 or offsets[-1] != n or (np.diff(offsets) < 1).any():
        raise RolloutError(f"{name}: sample_offsets is {shown(offsets.tolist())} of {n} lists.")
    if wrong := {key: size for key, size in sizes.items() if size != n}:
        raise RolloutError(f"{name}: {shown(wrong)} values; expected one for each of {n} lists.")
    for sample, (start, end) in enumerate(pairwise(offsets)):
        edges = start + _boundaries(name, record, sample, int(end - start))
        for text, (first, last) in enumerate(pairwise(edges)):
            rows = slice(int(first), int(last))
            source = f"{name}, sample {sample}" + (f", text {text}" if len(edges) > 2 else "")
            found = _text(
                source, {k: v[rows] for k, v in columns.items()}, token_id[rows], logp[rows]
            )
            if found is not None:
                yield found


def _boundaries(name: str, record: dict[str, Any], sample: int, n: int) -> NDArray[np.int64]:
    """Where the texts that a sample was packed from begin and end."""
    both = [record.get("cu_seqlens"), record.get("cu_seqlens_padded")]
    rows: list[NDArray[np.int64]] = []
    for given in both:
        if given is None:
            continue
        if not isinstance(given, list) or len(given) <= sample:
            raise RolloutError(f"{name}: cu_seqlens is {shown(type(given))}; expected a list.")
        row = _array(f"{name}, sample {sample}", {"cu_seqlens": given[sample]}, "cu_seqlens", "iu")
        row = row.astype(np.int64)
        if len(row) < 2 or row[0] != 0 or row[-1] != n or (np.diff(row) < 1).any():
            raise RolloutError(f"{name}: cu_seqlens is {shown(row.tolist())} of {n} tokens.")
        rows.append(row)
    if len(rows) == 2 and not np.array_equal(rows[0], rows[1]):
        raise RolloutError(
            f"{name}: cu_seqlens_padded differs from cu_seqlens; expected texts without padding "
            "between them."
        )
    return rows[0] if rows else np.array([0, n])


def _text(
    source: str,
    columns: dict[str, NDArray[Any]],
    token_id: NDArray[np.int64],
    logp: NDArray[np.float64],
) -> Rollout | None:
    tokens, labels, positions = columns["tokens"], columns["labels"], columns["position_ids"]
    n, scored = len(tokens), columns["loss_mask"] > 0
    if not scored.any():
        return None
    if (positions != np.arange(n)).any():
        raise RolloutError(
            f"{source}: position_ids starts anew, or counts otherwise; expected 0 to {n - 1}: "
            "texts that were joined without boundaries (cu_seqlens) cannot be told apart."
        )
    # After the last token, the label alone says what was predicted.
    response = np.append(tokens[1:], labels[-1] if scored[-1] else 0).astype(np.int64)
    if (other := scored & (response != labels)).any():
        at = int(np.argmax(other))
        raise RolloutError(
            f"{source}: the label of token {at} is {labels[at]}, and the next token "
            f"{response[at]}; expected the same: the labels are shifted."
        )
    if min(int(tokens.min()), int(response.min())) < 0:
        raise RolloutError(f"{source}: a negative token id; expected ids from 0.")
    end = n if scored[-1] else n - 1
    return Rollout(
        0,
        source.rpartition("/")[2],
        tokens[:1].tolist(),
        response[:end].tolist(),
        mask=scored[:end],
        teacher_lists=teacher_lists(source, token_id[:end], logp[:end]),
        source=source,
    )
