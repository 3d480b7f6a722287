"""Parquet files whose footer, pages or values claim more than the file holds."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_budget import MIB, at_most

from opdprobe.errors import PromptError, RolloutError
from opdprobe.rollout.dumps.read import read_dumps
from opdprobe.rollout.parquet import parquet_rows
from opdprobe.rollout.prompt_files import load_prompts
from opdprobe.store.budget import LEAST


def varint(value, length=0):
    """A number as Thrift writes it, or in more bytes than it needs."""
    value, found = value << 1, bytearray()
    while value > 127 or len(found) < length - 1:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])


def replaced(path, old, new, count=1):
    content = path.read_bytes()
    assert content.count(old) == count
    path.write_bytes(content.replace(old, new))
    return path


def written(path, rows, **options):
    pq.write_table(pa.Table.from_pylist(rows), path, compression="zstd", **options)
    return path


def refused(path, message):
    with at_most(100 * MIB):
        with pytest.raises(PromptError, match=message):
            load_prompts(path)
        with pytest.raises(RolloutError, match=message):
            list(read_dumps(path, "verl-generation", step=1, on_error="skip"))


def test_a_footer_that_hides_how_much_a_page_unpacks_to(tmp_path):
    table = pa.table({"prompt": ["a" * (2 * LEAST)]})
    path = tmp_path / "1.parquet"
    pq.write_table(table, path, compression="zstd", use_dictionary=False, write_statistics=False)
    del table
    assert path.stat().st_size < MIB
    told = pq.ParquetFile(path).metadata.row_group(0).column(0).total_uncompressed_size
    old = varint(told)
    # The footer's two numbers (of the group of rows, too) say that it unpacks to one byte.
    replaced(path, old, varint(1, len(old)), count=2)
    assert pq.ParquetFile(path).metadata.row_group(0).column(0).total_uncompressed_size == 1
    refused(path, r"it unpacks to \d{9} bytes, more than")


def test_one_row_that_has_one_long_text_very_often(tmp_path):
    value = pa.DictionaryArray.from_arrays(pa.array([0] * 100_000, pa.int32()), ["a" * 8 * MIB])
    table = pa.table({"prompt": pa.ListArray.from_arrays([0, 100_000], value)})
    pq.write_table(table, tmp_path / "1.parquet", compression="zstd", store_schema=False)
    assert (tmp_path / "1.parquet").stat().st_size < 10_000
    refused(tmp_path / "1.parquet", r"rows take more than \d+ bytes, too many for a file of")


def test_one_row_of_very_many_values(tmp_path):
    table = pa.table({"prompt": pa.array([[None] * 12_000_000], pa.list_(pa.bool_()))})
    pq.write_table(table, tmp_path / "1.parquet", compression="zstd")
    del table
    assert (tmp_path / "1.parquet").stat().st_size < 10_000
    refused(tmp_path / "1.parquet", "it has 12000000 values, too many for a file of")


def test_texts_that_begin_as_the_one_before_and_are_long(tmp_path):
    long = "a" * 30_000
    path = written(
        tmp_path / "1.parquet",
        [{"prompt": [f"{long}{i}" for i in range(3000)]}],
        use_dictionary=False,
        column_encoding="DELTA_BYTE_ARRAY",
    )
    assert path.stat().st_size < 50_000
    refused(path, r"the texts of 'prompt\.list\.element' may take \d+ bytes, too many for a file")


def test_columns_that_are_the_same_bytes(tmp_path):
    path = written(tmp_path / "1.parquet", [{"prompt": "a" * 5000, "answer": "b" * 5000}])
    column = pq.ParquetFile(path).metadata.row_group(0).column(1)
    old = varint(column.total_compressed_size)
    replaced(path, old, varint(path.stat().st_size - 100, len(old)), count=2)
    refused(path, "its columns overlap, or are not in the file")


@pytest.mark.parametrize("name", ["content", "answer"])
def test_a_footer_on_which_pyarrow_ends_the_process(tmp_path, name):
    """Of a column that says it is never absent, with statistics of one that may be."""
    rows = [{"prompt": [{"role": "user", "content": "q"}], "answer": "a"}] * 30
    path = written(tmp_path / "1.parquet", rows)
    mark = b"\x18" + bytes([len(name)]) + name.encode()
    replaced(path, b"\x25\x02" + mark, b"\x25\x00" + mark)
    refused(path, "histogram size mismatch")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PAR1", "too short"),
        (b"PAR1" + b"\x00" * 20, "does not end as a parquet file"),
        (b"PAR1" + b"\x00" * 8 + b"\xff\xff\xff\x7fPAR1", "footer is longer than the file"),
        (b"PAR1" + b"\x1c" * 40 + b"\x28\x00\x00\x00PAR1", "nested too deeply"),
        (b"PAR1\x19" + b"\x19" * 999 + b"\xe8\x03\x00\x00PAR1", "nested too deeply"),
        (b"PAR1\x19\xfc\xff\xff\xff\xff\x0f\x06\x00\x00\x00PAR1", "cut off|footer"),
        (b"PAR1" + b"\x16" + b"\xff" * 12 + b"\x0d\x00\x00\x00PAR1", "too long"),
    ],
    ids=["short", "end", "length", "depth", "lists", "list", "number"],
)
def test_a_footer_that_is_none(tmp_path, content, message):
    (tmp_path / "1.parquet").write_bytes(content)
    refused(tmp_path / "1.parquet", message)


@pytest.mark.parametrize("encoding", ["DELTA_LENGTH_BYTE_ARRAY", "DELTA_BYTE_ARRAY"])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("codec", ["none", "snappy", "zstd"])
@pytest.mark.parametrize("nullable", [True, False])
def test_texts_with_packed_lengths_are_read(tmp_path, encoding, version, codec, nullable):
    """Of honest files: with absent texts, empty ones, and blocks that are whole and cut off."""
    texts = [f"{i % 37 * 'ab'}{i}" for i in range(1001)]
    absent = [None, *texts[1:]] if nullable else texts
    fields = [
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("meta", pa.string(), nullable=nullable),
        pa.field("many", pa.list_(pa.string())),
    ]
    rows = {"prompt": texts, "meta": absent, "many": [texts[i : i + i % 3] for i in range(1001)]}
    path = tmp_path / "1.parquet"
    pq.write_table(
        pa.Table.from_pydict(rows, pa.schema(fields)),
        path,
        use_dictionary=False,
        column_encoding=dict.fromkeys(("prompt", "meta", "many.list.element"), encoding),
        compression=codec,
        data_page_version=version,
        data_page_size=4000,
    )
    assert [*parquet_rows(path)] == pq.read_table(path).to_pylist()


@pytest.mark.parametrize(
    ("encoding", "place"),
    [("DELTA_LENGTH_BYTE_ARRAY", 0), ("DELTA_BYTE_ARRAY", 0), ("DELTA_BYTE_ARRAY", 1)],
)
@pytest.mark.parametrize(("block", "parts"), [(2**31 - 128, 1), (128, 4)])
def test_a_page_that_claims_very_many_lengths(tmp_path, encoding, place, block, parts):
    """pyarrow takes 4 bytes for each that is claimed, and fills them from a block of no bits."""
    path = tmp_path / "1.parquet"
    texts = [f"{i:02d}{'x' * 40}{i}" for i in range(60)]
    pq.write_table(
        pa.Table.from_pydict(
            {"prompt": texts}, pa.schema([pa.field("prompt", pa.string(), nullable=False)])
        ),
        path,
        use_dictionary=False,
        column_encoding={"prompt": encoding},
        compression="none",
        write_statistics=False,
    )
    content = path.read_bytes()
    assert load_prompts(path)[59].text == texts[59]
    head = bytes([128, 1, 4, 60])  # blocks of 128 numbers in four parts; 60 numbers
    start = content.index(head)
    if place:
        start = content.index(head, start + 1)
    lie = _unsigned(block) + bytes([parts]) + _unsigned(2**31 - 1) + bytes(1 + 1 + parts)
    path.write_bytes(content[:start] + lie + content[start + len(lie) :])
    refused(path, "a page has 2147483647 lengths of 60 texts")


def _unsigned(value):
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])
