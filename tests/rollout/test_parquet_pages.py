"""What a parquet file's pages claim: as pyarrow tells it, of every kind of sound file."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from opdprobe.rollout.parquet import parquet_rows
from opdprobe.rollout.parquet_pages import column_claims
from opdprobe.store.budget import most_bytes, most_unpacked

ROWS = [
    {
        "prompt": [{"role": "user", "content": f"question {i % 50} " * 20}] * (i % 3),
        "answer": str(i),
        "number": i,
        "even": i % 2 == 0,
        "part": i / 7,
        "absent": None,
        "ids": list(range(i % 9)),
        "extra": {"a": {"b": [str(i)]}},
    }
    for i in range(600)
]


@pytest.mark.parametrize("page", ["1.0", "2.0"])
@pytest.mark.parametrize("compression", ["none", "snappy", "zstd"])
def test_the_claims_of_sound_files(tmp_path, page, compression):
    path = tmp_path / "a.parquet"
    pq.write_table(
        pa.Table.from_pylist(ROWS),
        path,
        compression=compression,
        data_page_version=page,
        row_group_size=250,
        data_page_size=2000,
        write_page_index=True,
    )
    found = column_claims(path, 10**9)
    told = pq.ParquetFile(path).metadata
    parts = [
        told.row_group(group).column(column)
        for group in range(told.num_row_groups)
        for column in range(told.num_columns)
    ]
    assert len(found) == 3 * 9
    assert [one.path for one in found] == [part.path_in_schema for part in parts]
    assert [one.values for one in found] == [part.num_values for part in parts]
    for one, part in zip(found, parts, strict=True):
        # pyarrow's number is that of the headers, too.
        assert 0 <= part.total_uncompressed_size - one.unpacked < 100 + one.unpacked
        assert (one.dictionary > 0) == (one.entries > 0)
        assert one.dictionary == 0 or part.dictionary_page_offset is not None
        assert one.repeated == (".list." in one.path)
        assert not one.beginnings
    assert list(parquet_rows(path)) == ROWS


def test_texts_that_begin_as_the_one_before(tmp_path):
    """Told by the encoding of their pages."""
    table = pa.Table.from_pylist(ROWS).select(["answer"])
    encoding = {"answer": "DELTA_BYTE_ARRAY"}
    pq.write_table(table, tmp_path / "a.parquet", use_dictionary=False, column_encoding=encoding)
    found = column_claims(tmp_path / "a.parquet", 10**9)
    assert [(one.path, one.beginnings) for one in found] == [("answer", True)]
    assert [row["answer"] for row in parquet_rows(tmp_path / "a.parquet")] == [
        *map(str, range(600))
    ]


def test_reading_stops_at_the_budget(tmp_path):
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    found = column_claims(tmp_path / "a.parquet", 2000)
    assert sum(one.unpacked for one in found) > 2000
    assert len(found) < 9


def test_a_dictionary_counts_once_and_not_in_each_batch_of_rows(tmp_path):
    """Messages of which some are in every row, others in one: prompt files are like this."""
    draws = np.random.default_rng(0)
    system = {"role": "system", "content": "Solve the problem."}
    rows = [
        {"prompt": [{"role": "user", "content": draws.bytes(100).hex()}, system]}
        for _ in range(16000)
    ]
    file = tmp_path / "prompts.parquet"
    pq.write_table(pa.Table.from_pylist(rows), file, dictionary_pagesize_limit=2**26)
    columns = column_claims(file, most_unpacked(file.stat().st_size))
    # So much, were each text as long as the dictionary.
    assert max(c.values * c.dictionary for c in columns) > most_bytes(file.stat().st_size)
    assert list(parquet_rows(file, kept=True)) == rows
