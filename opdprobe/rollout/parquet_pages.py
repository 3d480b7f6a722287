"""What the pages of a parquet file claim, read from the file itself before anything unpacks them.

The footer repeats what the pages' headers say, and may lie; pyarrow believes it, and ends the
process on some that are damaged. Both are in Thrift's compact protocol:
https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

_MAGIC = b"PAR1"
_DEEPEST = 32
_HEADER = 2**12  # bytes read for a page's header, which may hold statistics of any length
# Types of Thrift's compact protocol.
_TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = 1, 2, 3, 7, 8, 9, 10, 11, 12
_INTEGERS = (4, 5, 6)
_REPEATED = 2  # a kind of column
_REQUIRED = 0  # another
_DICTIONARY, _DATA_2 = 2, 3  # types of pages
_DELTA_LENGTH_BYTE_ARRAY, _DELTA_BYTE_ARRAY = 6, 7  # encodings
_BIT_PACKED = 4  # an old encoding of levels, which says no length


class DeltaPage(NamedTuple):
    """A page of texts whose lengths are packed as differences.

    Attributes
    ----------
    start, packed : int
        Where its content is in the file, and how many bytes.
    unpacked : int
        Bytes of the content, unpacked.
    codec : int
        How it is packed, as the format numbers codecs; 0 if it is not.
    values : int
        Values that its header claims.
    levels : int or None
        Bytes before its values, which are not packed; None if these say their lengths themselves.
    beginnings : bool
        Whether each text's length is one of two: of what it shares with the text before, too.
    """

    start: int
    packed: int
    unpacked: int
    codec: int
    values: int
    levels: int | None
    beginnings: bool


@dataclass
class ColumnClaims:
    """What the pages of one column's chunk claim.

    Attributes
    ----------
    path : str
        The column's name, with dots between levels.
    repeated : bool
        Whether a row may have many values.
    optional : bool
        Whether a value may be absent.
    unpacked : int
        Bytes of its pages, unpacked.
    values : int
        Values in its pages.
    entries : int
        Values in its dictionary.
    dictionary : int
        Bytes of its dictionary, unpacked; 0 if it has none.
    beginnings : bool
        Whether a text may begin with the one before it, which then stands in the file once.
    deltas : list of DeltaPage
        Pages whose lengths of texts are to be checked by `parquet_deltas`.
    """

    path: str
    repeated: bool
    optional: bool
    unpacked: int = 0
    values: int = 0
    entries: int = 0
    dictionary: int = 0
    beginnings: bool = False
    deltas: list[DeltaPage] = field(default_factory=list)


def column_claims(path: Path, most_pages: int) -> list[ColumnClaims]:
    """Read the headers of all pages of a parquet file.

    Parameters
    ----------
    path
        The file.
    most_pages
        Stop at the first page with which the pages unpack to more bytes.

    Raises
    ------
    ValueError, OSError
        The file is damaged, or its columns overlap.
    """
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        footer = _footer(file, size)
        leaves = _leaves(_list(footer, 2, dict))
        chunks = list(_chunks(footer))
        if any(number >= len(leaves) or n_bytes < 0 for number, _, n_bytes, _ in chunks):
            raise ValueError("it has more columns than its schema")
        if sum(n_bytes for _, _, n_bytes, _ in chunks) > size:
            raise ValueError("its columns overlap, or are not in the file")
        found, left = [], most_pages
        for number, start, n_bytes, codec in chunks:
            if not 0 < start <= size - n_bytes:
                raise ValueError("its columns overlap, or are not in the file")
            claims = ColumnClaims(*leaves[number])
            for place, page in _pages(file, start, n_bytes):
                _add(claims, page, place, codec)
                if claims.unpacked > left:
                    break
            found.append(claims)
            left -= claims.unpacked
            if left < 0:
                break
    return found


def _footer(file: BinaryIO, size: int) -> dict[int, Any]:
    if size < 12:
        raise ValueError("it is too short")
    file.seek(size - 8)
    (length,), magic = struct.unpack("<I", file.read(4)), file.read(4)
    if magic != _MAGIC:
        raise ValueError("it does not end as a parquet file")
    if length > size - 12:
        raise ValueError("its footer is longer than the file")
    file.seek(size - 8 - length)
    return _Compact(file.read(length)).struct()


def _chunks(footer: dict[int, Any]) -> Iterator[tuple[int, int, int, int]]:
    """Yield each chunk of a column: the column's number, first byte, number of bytes, codec."""
    for group in _list(footer, 4, dict):
        for number, chunk in enumerate(_list(group, 1, dict)):
            if 1 in chunk:
                raise ValueError("a column is in another file")
            meta = _struct(chunk, 3)
            start, dictionary = _number(meta, 9), _number(meta, 11)
            first = dictionary if 0 < dictionary < start else start
            yield number, first, _number(meta, 7), _number(meta, 4)


def _leaves(schema: list[dict[int, Any]]) -> list[tuple[str, bool, bool]]:
    """Name each column, and say whether a row may have many values of it, and absent ones.

    The schema is a tree, of which each element says how many of the following are its children.
    """
    found = []
    # Names, repetition, whether one may be absent, children that are still to come.
    above: list[tuple[str, bool, bool, int]] = []
    for element in schema[1:]:
        name = element.get(4)
        if not isinstance(name, bytes):
            raise ValueError("a column has no name")
        prefix, repeated, optional, _ = above[-1] if above else ("", False, False, 0)
        own = prefix + name.decode("utf-8", "replace")
        repeated |= _number(element, 3) == _REPEATED
        optional |= _number(element, 3) != _REQUIRED
        if above:
            above[-1] = (*above[-1][:3], above[-1][3] - 1)
        if (children := _number(element, 5)) > 0:
            above.append((f"{own}.", repeated, optional, children))
        else:
            found.append((own, repeated, optional))
        while above and above[-1][3] <= 0:
            above.pop()
        if len(above) > _DEEPEST:
            raise ValueError("its schema is nested too deeply")
    return found


def _pages(file: BinaryIO, start: int, n_bytes: int) -> Iterator[tuple[int, dict[int, Any]]]:
    """Yield the headers of a chunk's pages, each with where the page's content begins."""
    end = start + n_bytes
    while start < end:
        wanted = _HEADER
        while True:
            file.seek(start)
            header = _Compact(file.read(min(wanted, end - start)))
            try:
                page = header.struct()
                break
            except _CutOffError:
                if wanted >= end - start:
                    raise
                wanted *= 16
        packed = _number(page, 3)
        if packed < 0:
            raise ValueError("a page of a negative size")
        start += header.place
        yield start, page
        start += packed


def _add(claims: ColumnClaims, page: dict[int, Any], start: int, codec: int) -> None:
    unpacked = _number(page, 2)
    headers = [_struct(page, name) for name in (5, 7, 8) if name in page]
    values = [_number(header, 1) for header in headers]
    if unpacked < 0 or any(value < 0 for value in values):
        raise ValueError("a page of a negative size")
    claims.unpacked += unpacked
    if _number(page, 1) == _DICTIONARY:
        claims.dictionary += unpacked
        claims.entries += sum(values)
        return
    claims.values += sum(values)
    second = _number(page, 1) == _DATA_2
    header = _struct(page, 8 if second else 5)
    encoding = _number(header, 4 if second else 2)
    claims.beginnings |= encoding == _DELTA_BYTE_ARRAY
    if encoding not in (_DELTA_LENGTH_BYTE_ARRAY, _DELTA_BYTE_ARRAY):
        return
    levels = None
    if second:
        levels = _number(header, 5) + _number(header, 6)
        codec = codec if header.get(7, True) else 0
        if min(_number(header, 5), _number(header, 6)) < 0 or levels > unpacked:
            raise ValueError("a page of a negative size")
    elif _BIT_PACKED in (_number(header, 3), _number(header, 4)):
        raise ValueError("a page has an encoding of levels that is not supported")
    claims.deltas.append(
        DeltaPage(
            *(start, _number(page, 3), unpacked, codec, _number(header, 1), levels),
            beginnings=encoding == _DELTA_BYTE_ARRAY,
        )
    )


def _number(struct: dict[int, Any], name: int) -> int:
    value = struct.get(name, 0)
    if not isinstance(value, int):
        raise ValueError("a number of its footer is none")
    return value


def _struct(struct: dict[int, Any], name: int) -> dict[int, Any]:
    value = struct.get(name, {})
    if not isinstance(value, dict):
        raise ValueError("an entry of its footer is none")
    return value


def _list(struct: dict[int, Any], name: int, of: type) -> list[Any]:
    value = struct.get(name, [])
    if not isinstance(value, list) or not all(isinstance(one, of) for one in value):
        raise ValueError("a list of its footer is none")
    return value


class _CutOffError(ValueError):
    """There are fewer bytes than a value needs."""


class _Compact:
    """Reads Thrift's compact protocol: structs as dictionaries of their fields' numbers."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self.place = 0

    def struct(self, depth: int = 0) -> dict[int, Any]:
        fields: dict[int, Any] = {}
        name = 0
        while head := self._byte():
            name = name + (head >> 4) if head >> 4 else self._integer()
            kind = head & 15
            fields[name] = kind == _TRUE if kind in (_TRUE, _FALSE) else self._value(kind, depth)
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        if depth > _DEEPEST:
            raise ValueError("its footer is nested too deeply")
        if kind in _INTEGERS:
            return self._integer()
        if kind == _BINARY:
            return self._take(self._varint())
        if kind in (_LIST, _SET):
            head = self._byte()
            count, of = head >> 4, head & 15
            return self._values(self._varint() if count == 15 else count, of, depth)
        if kind == _STRUCT:
            return self.struct(depth + 1)
        if kind in (_TRUE, _FALSE, _BYTE):
            return self._byte()
        if kind == _DOUBLE:
            return self._take(8)
        if kind == _MAP:
            count = self._varint()
            kinds = self._byte() if count else 0
            return [
                (self._value(kinds >> 4, depth + 1), self._value(kinds & 15, depth + 1))
                for _ in range(self._fits(count))
            ]
        raise ValueError("its footer has a value of an unknown type")

    def _values(self, count: int, of: int, depth: int) -> list[Any]:
        return [self._value(of, depth + 1) for _ in range(self._fits(count))]

    def _fits(self, count: int) -> int:
        if count > len(self._content) - self.place:  # a value takes a byte at least
            raise _CutOffError("it is cut off")
        return count

    def _byte(self) -> int:
        if self.place >= len(self._content):
            raise _CutOffError("it is cut off")
        self.place += 1
        return self._content[self.place - 1]

    def _take(self, count: int) -> bytes:
        self.place += self._fits(count)
        return self._content[self.place - count : self.place]

    def _varint(self) -> int:
        value, self.place = varint(self._content, self.place)
        return value

    def _integer(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)


def varint(content: bytes, place: int) -> tuple[int, int]:
    """Read a number of seven bits a byte; return it, and the place after it.

    Raises
    ------
    ValueError
        It is cut off, or longer than 64 bits.
    """
    value = shift = 0
    while place < len(content):
        value |= (content[place] & 127) << shift
        place += 1
        if content[place - 1] < 128:
            return value, place
        shift += 7
        if shift > 63:
            raise ValueError("a number of its footer is too long")
    raise _CutOffError("it is cut off")
