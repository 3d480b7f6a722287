"""What the pages of a parquet file claim, read from the file itself before anything unpacks them.

The footer repeats what the pages' headers say, and may lie; pyarrow believes it, and ends the
process on some that are damaged. Both are in Thrift's compact protocol:
https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

_MAGIC = b"PAR1"
_DEEPEST = 32
_HEADER = 2**12  # bytes read for a page's header, which may hold statistics of any length
# Types of Thrift's compact protocol.
_TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = 1, 2, 3, 7, 8, 9, 10, 11, 12
_INTEGERS = (4, 5, 6)
_REPEATED = 2  # a kind of column
_DICTIONARY = 2  # a page's type
_DELTA_BYTE_ARRAY = 7  # an encoding


@dataclass
class ColumnClaims:
    """What the pages of one column's chunk claim.

    Attributes
    ----------
    path : str
        The column's name, with dots between levels.
    repeated : bool
        Whether a row may have many values.
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
    """

    path: str
    repeated: bool
    unpacked: int = 0
    values: int = 0
    entries: int = 0
    dictionary: int = 0
    beginnings: bool = False


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
        if any(number >= len(leaves) or n_bytes < 0 for number, _, n_bytes in chunks):
            raise ValueError("it has more columns than its schema")
        if sum(n_bytes for *_, n_bytes in chunks) > size:
            raise ValueError("its columns overlap, or are not in the file")
        found, left = [], most_pages
        for number, start, n_bytes in chunks:
            if not 0 < start <= size - n_bytes:
                raise ValueError("its columns overlap, or are not in the file")
            claims = ColumnClaims(*leaves[number])
            for page in _pages(file, start, n_bytes):
                _add(claims, page)
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


def _chunks(footer: dict[int, Any]) -> Iterator[tuple[int, int, int]]:
    """Yield each chunk of a column: the column's number, the chunk's first byte and its bytes."""
    for group in _list(footer, 4, dict):
        for number, chunk in enumerate(_list(group, 1, dict)):
            if 1 in chunk:
                raise ValueError("a column is in another file")
            meta = _struct(chunk, 3)
            start, dictionary = _number(meta, 9), _number(meta, 11)
            yield number, dictionary if 0 < dictionary < start else start, _number(meta, 7)


def _leaves(schema: list[dict[int, Any]]) -> list[tuple[str, bool]]:
    """Name each column, and say whether a row may have many values of it.

    The schema is a tree, of which each element says how many of the following are its children.
    """
    found = []
    above: list[tuple[str, bool, int]] = []  # names, repetition, children that are still to come
    for element in schema[1:]:
        name = element.get(4)
        if not isinstance(name, bytes):
            raise ValueError("a column has no name")
        prefix, repeated, _ = above[-1] if above else ("", False, 0)
        own = prefix + name.decode("utf-8", "replace")
        repeated |= _number(element, 3) == _REPEATED
        if above:
            above[-1] = (*above[-1][:2], above[-1][2] - 1)
        if (children := _number(element, 5)) > 0:
            above.append((f"{own}.", repeated, children))
        else:
            found.append((own, repeated))
        while above and above[-1][2] <= 0:
            above.pop()
        if len(above) > _DEEPEST:
            raise ValueError("its schema is nested too deeply")
    return found


def _pages(file: BinaryIO, start: int, n_bytes: int) -> Iterator[dict[int, Any]]:
    """Yield the headers of a chunk's pages."""
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
        yield page
        packed = _number(page, 3)
        if packed < 0:
            raise ValueError("a page of a negative size")
        start += header.place + packed


def _add(claims: ColumnClaims, page: dict[int, Any]) -> None:
    unpacked = _number(page, 2)
    headers = [_struct(page, name) for name in (5, 7, 8) if name in page]
    values = [_number(header, 1) for header in headers]
    if unpacked < 0 or any(value < 0 for value in values):
        raise ValueError("a page of a negative size")
    claims.unpacked += unpacked
    if _number(page, 1) == _DICTIONARY:
        claims.dictionary += unpacked
        claims.entries += sum(values)
    else:
        claims.values += sum(values)
    encodings = [_struct(page, name).get(place) for name, place in ((5, 2), (8, 4)) if name in page]
    claims.beginnings |= _DELTA_BYTE_ARRAY in encodings


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
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value
            if shift > 63:
                raise ValueError("a number of its footer is too long")

    def _integer(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)
