"""Read how many texts a page of a parquet file claims whose lengths are packed as differences.

pyarrow takes the memory for their lengths from this number, which is none of the page's header:
https://github.com/apache/parquet-format/blob/master/Encodings.md
"""

from __future__ import annotations

from pathlib import Path

from opdprobe.rollout.parquet_pages import ColumnClaims, DeltaPage, varint

_CODECS = {1: "snappy", 2: "gzip", 4: "brotli", 6: "zstd", 7: "lz4_raw"}
_LEAST_BLOCK, _LEAST_MINIBLOCK = 128, 32  # values; a block's size is a multiple of it


def check_deltas(path: Path, columns: list[ColumnClaims]) -> None:
    """Check that no page says it has more lengths of texts than values.

    Parameters
    ----------
    path
        The file.
    columns
        What its pages claim, which has been checked: pages are unpacked here.

    Raises
    ------
    ValueError, OSError, pyarrow.ArrowException
        A page has more, or is damaged.
    """
    if not any(column.deltas for column in columns):
        return
    with open(path, "rb") as file:
        for column in columns:
            for page in column.deltas:
                file.seek(page.start)
                content = file.read(page.packed)
                place, content = _values(content, page, column)
                if place == len(content):  # only absent values
                    continue
                if page.beginnings:
                    place = _check(content, place, page.values, last=False)
                _check(content, place, page.values, last=True)


def _values(content: bytes, page: DeltaPage, column: ColumnClaims) -> tuple[int, bytes]:
    """Unpack a page; return where its values begin, and the page."""
    if page.levels is not None:  # stands before what is packed
        content, unpacked = content[page.levels :], page.unpacked - page.levels
        return 0, _unpacked(content, page.codec, unpacked)
    content = _unpacked(content, page.codec, page.unpacked)
    place = 0
    for level in (column.repeated, column.optional):
        if level:
            if place + 4 > len(content):
                raise ValueError("a page is cut off")
            place += 4 + int.from_bytes(content[place : place + 4], "little")
    if place > len(content):
        raise ValueError("a page is cut off")
    return place, content


def _unpacked(content: bytes, codec: int, size: int) -> bytes:
    import pyarrow as pa

    if codec == 0 or not content:
        return content
    if codec not in _CODECS:
        raise ValueError("its lengths of texts are packed by a codec that is not supported")
    return pa.Codec(_CODECS[codec]).decompress(content, size).to_pybytes()


def _check(content: bytes, place: int, values: int, *, last: bool) -> int:
    """Check the numbers that are packed at a place; return where they end, unless they are last."""
    per_block, place = varint(content, place)
    n_parts, place = varint(content, place)
    left, place = varint(content, place)
    _, place = varint(content, place)  # the first value
    if left > values:
        raise ValueError(f"a page has {left} lengths of {values} texts")
    if per_block < _LEAST_BLOCK or per_block % _LEAST_BLOCK or not n_parts:
        raise ValueError("a page's blocks of lengths have an odd size")
    per_part = per_block // n_parts
    if per_part < _LEAST_MINIBLOCK or per_part % _LEAST_MINIBLOCK:
        raise ValueError("a page's blocks of lengths have an odd size")
    left -= 1
    while left > 0 and not last:
        _, place = varint(content, place)  # the least difference
        widths = content[place : place + n_parts]
        used = min(n_parts, -(-left // per_part))
        place += n_parts + sum(widths[:used]) * per_part // 8
        left -= per_block
    return place
