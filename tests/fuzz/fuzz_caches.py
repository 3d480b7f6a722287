"""Fuzzing of what reads caches of a teacher's lists.

    python tests/fuzz/fuzz_caches.py --seconds 600

The first byte of an input says which file of a cache, or which content of one before it is packed,
the rest replaces.
"""

import io
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import run_fuzzer

sys.path.append(str(Path(__file__).parent.parent / "hooks"))

with run_fuzzer.instrumented():
    import made_caches

    from opdprobe.errors import OPDProbeError
    from opdprobe.rollout.caches import TeacherCache
    from opdprobe.testing import tiny_model, tiny_tokenizer

FOLDER = Path(run_fuzzer.scratch())
TOKENIZER = tiny_tokenizer()
MODEL = tiny_model()
TEXTS = [[4, 9, 17, 20, 8], [5, 30, 31]]
ANSWERS = [("2+3=", [9, 12, TOKENIZER.eos_token_id])]
ROWS = made_caches.distillkit(FOLDER / "distillkit", MODEL, TEXTS, 4, 64)
SAMPLES = [(ids, [0, *[1] * (len(ids) - 2)]) for ids in TEXTS]
made_caches.megatron(FOLDER / "megatron", MODEL, SAMPLES[:1], 4)
RECORDS = made_caches.records(MODEL, SAMPLES[:1], 4, "g:dp0:0-1", made_caches.torch.float32)
for number, newer in enumerate((False, True)):
    made_caches.axolotl(
        FOLDER / f"axolotl_{number}/rows.jsonl", MODEL, TOKENIZER, ANSWERS, 4, newer=newer
    )

FILES = (
    "distillkit/compression_config.yaml",
    "distillkit/data_0.parquet",
    "megatron/dp0__0-1.inputs.tar",
    "axolotl_0/rows.jsonl",
    "axolotl_1/rows.jsonl",
)
SOUND = {name: (FOLDER / name).read_bytes() for name in (*FILES, "megatron/dp0__0-1.targets.tar")}
PACKED = ("rows", "inputs", "targets")


def _saved(record: dict) -> bytes:
    stream = io.BytesIO()
    made_caches.torch.save(record, stream)
    return stream.getvalue()


CONTENT = {
    "rows": json.dumps(ROWS).encode(),
    **{kind: _saved(record) for kind, record in zip(PACKED[1:], RECORDS, strict=True)},
}


def seeds() -> Iterator[bytes]:
    """Each file, and each content."""
    for number, content in enumerate([*(SOUND[name] for name in FILES), *CONTENT.values()]):
        yield bytes([number]) + content


def _pack(name: str, content: bytes) -> str | None:
    """Put a content into its file; return the file, or None if no such file can be written."""
    if name == "rows":
        try:
            table = pa.Table.from_pylist(json.loads(content))
            pq.write_table(table, FOLDER / FILES[1])
        except (ValueError, TypeError, RecursionError, OverflowError, pa.ArrowException):
            return None
        return FILES[1]
    file = f"megatron/dp0__0-1.{name}.tar"
    meta = json.dumps({"format_version": 3, "kind": name}).encode()
    packed = pa.compress(content, codec="zstd", asbytes=True)
    members = {"_meta.json": meta, f"0-1.{name}.pt.zst": packed}
    made_caches.write_tar(FOLDER / file, members)
    return file


def one_input(data: bytes) -> None:
    """Read a cache; whatever is wrong must be an opdprobe error."""
    if not data:
        return
    place = data[0] % (len(FILES) + len(PACKED))
    if place < len(FILES):
        file: str | None = FILES[place]
        (FOLDER / FILES[place]).write_bytes(data[1:])
    else:
        file = _pack(PACKED[place - len(FILES)], data[1:])
    said = ""
    try:
        if file is not None:
            cache = TeacherCache(
                FOLDER / file.partition("/")[0], tokenizer=TOKENIZER, on_error="skip"
            )
            cache.check_tokenizer(TOKENIZER)
            for rollout in cache.rollouts():
                assert rollout.teacher_lists is not None
                assert len(rollout.teacher_lists.logp) == len(rollout.response_ids)
    except OPDProbeError as error:
        said = str(error)
    finally:
        for name, content in SOUND.items():
            (FOLDER / name).write_bytes(content)
    assert len(said) < 8000 + len(data), "a message far longer than its cause"


if __name__ == "__main__":
    logging.getLogger("opdprobe").setLevel(logging.ERROR)
    run_fuzzer.main(one_input, seeds)
