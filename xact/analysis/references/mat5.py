"""Variables of a MATLAB file of version 5: numbers, texts, cells of texts, structs. Other kinds are left out.

scipy reads such files too, but a damaged one can end the process (1.17: a struct with one wrong byte). Here every
length is checked against the bytes that are left before it is used.
"""

from __future__ import annotations

import struct
import zlib
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from xact.analysis.references.base import MAX_NBYTES, refuse_large
from xact.errors import RequestError

HEAD_NBYTES = 128
TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
"""{type of the stored numbers: dtype}."""

ENCODINGS = {2: "latin-1", 4: "utf-16", 16: "utf-8", 17: "utf-16", 18: "utf-32"}
"""{type of the stored characters: encoding}."""

MATRIX, COMPRESSED = 14, 15
CELL, STRUCT, CHAR = 1, 2, 4
NUMBERS = range(6, 16)
"""Classes of arrays."""

COMPLEX = 0x800
MAX_DEPTH = 8
PIECE_NBYTES = 2**20


class _DamagedError(Exception):
    """Raised where the bytes do not follow the format."""


class _Element(NamedTuple):
    type: int
    data: memoryview


class _Reader:
    """Elements one after the other."""

    def __init__(self, data: memoryview, order: str) -> None:
        self.data = data
        self.order = order
        self.at = 0

    def read(self) -> _Element:
        """Return the next element: a tag of 8 bytes with its type and length, or both and up to 4 bytes of data."""
        if self.at + 8 > len(self.data):
            raise _DamagedError("it ends early")
        kind, length = struct.unpack_from(f"{self.order}II", self.data, self.at)
        start = self.at + 8
        if kind >> 16:
            kind, length, start = kind & 0xFFFF, kind >> 16, self.at + 4
            self.at += 8
            if length > 4:
                raise _DamagedError("a short element is too long")
        else:
            self.at = start + length + (0 if kind == COMPRESSED else -length % 8)
        if start + length > len(self.data):
            raise _DamagedError("it ends early")
        return _Element(kind, self.data[start : start + length])

    def read_numbers(self) -> np.ndarray:
        """Return the numbers of the next element."""
        element = self.read()
        if element.type not in TYPES:
            raise _DamagedError(f"numbers of an unknown type {element.type}")
        dtype = np.dtype(self.order + TYPES[element.type])
        if len(element.data) % dtype.itemsize:
            raise _DamagedError("a number is cut")
        return np.frombuffer(element.data, dtype)


def load_variables(file: Path) -> dict[str, Any]:
    """Return {variable: array of numbers, of texts, or list of structs}."""
    data = file.read_bytes()
    order = {b"IM": "<", b"MI": ">"}.get(data[HEAD_NBYTES - 2 : HEAD_NBYTES])
    if order is None:
        raise RequestError(f"{file} is not a MATLAB file of version 5 or 7.3", hint="save('FILE.mat', 'rdm', '-v7')")
    reader = _Reader(memoryview(data)[HEAD_NBYTES:], order)
    found: dict[str, Any] = {}
    nbytes = 0
    try:
        while reader.at < len(reader.data):
            element = reader.read()
            if element.type == COMPRESSED:
                inflated = _inflate(element.data, file, nbytes)
                nbytes += len(inflated)
                element = _Reader(memoryview(inflated), order).read()
            name, value = _read_matrix(element, order, MAX_DEPTH)
            if value is not None:
                found[name] = value
    except (_DamagedError, zlib.error) as error:
        raise RequestError(f"{file} cannot be read as MATLAB v5: {error}") from None
    return found


def _inflate(data: memoryview, file: Path, nbytes: int) -> bytes:
    """Return a decompressed element; refuse it as soon as all of them are too large."""
    inflater, pieces, left = zlib.decompressobj(), [], bytes(data)
    while left and not inflater.eof:
        pieces.append(inflater.decompress(left, PIECE_NBYTES))
        nbytes += len(pieces[-1])
        if nbytes > MAX_NBYTES:
            refuse_large(nbytes, file)
        left = inflater.unconsumed_tail
    return b"".join([*pieces, inflater.flush()])  # what was read but not yet given, a few kilobytes at most


def _read_matrix(element: _Element, order: str, depth: int) -> tuple[str, Any]:
    """Return the name and the value of an array; None for a kind that holds no RDM."""
    if element.type != MATRIX:
        raise _DamagedError(f"an element of type {element.type} in place of an array")
    if not depth:
        raise _DamagedError("arrays in arrays, too deep")
    if not element.data:
        return "", None  # an empty cell
    reader = _Reader(element.data, order)
    flags, shape = reader.read_numbers(), reader.read_numbers()
    kind = int(flags[0]) & 0xFF if len(flags) else 0
    dims = tuple(shape.tolist())
    name = bytes(reader.read().data).decode("utf-8", "replace")
    if not all(isinstance(length, int) and length >= 0 for length in dims) or not 1 <= len(dims) <= MAX_DEPTH:
        raise _DamagedError(f"a shape of {dims}")
    if kind in NUMBERS and not int(flags[0]) & COMPLEX:
        values = reader.read_numbers()
        if len(values) != prod(dims):
            raise _DamagedError(f"{len(values)} numbers for a shape of {dims}")
        return name, values.reshape(dims, order="F")
    if kind == CHAR:
        return name, _read_texts(reader, dims)
    if kind == CELL:
        return name, _read_cells(reader, prod(dims), depth)
    return name, _read_structs(reader, prod(dims), depth) if kind == STRUCT else None


def _read_texts(reader: _Reader, dims: tuple[int, ...]) -> np.ndarray:
    """Return the rows of an array of characters as texts, without blanks at their ends."""
    element = reader.read()
    encoding = ENCODINGS.get(element.type)
    if encoding is None or len(dims) != 2:
        raise _DamagedError("characters of an unknown type")
    ending = {"<": "-le", ">": "-be"}[reader.order] if encoding in ("utf-16", "utf-32") else ""
    text = bytes(element.data).decode(encoding + ending, "replace")
    if len(text) != prod(dims):
        raise _DamagedError(f"{len(text)} characters for a shape of {dims}")
    n_rows = min(dims[0], len(text))
    return np.array([text[row :: dims[0]].rstrip() for row in range(n_rows)], dtype=str)


def _read_cells(reader: _Reader, n_cells: int, depth: int) -> np.ndarray | None:
    """Return the texts of a cell array of texts, or None."""
    texts: list[str] = []
    for _ in range(n_cells):
        _, value = _read_matrix(reader.read(), reader.order, depth - 1)
        if not isinstance(value, np.ndarray) or value.dtype.kind != "U" or len(value) != 1:
            return None
        texts.append(str(value[0]))
    return np.array(texts, dtype=str) if texts else None


def _read_structs(reader: _Reader, n_items: int, depth: int) -> list[dict[str, Any]]:
    """Return the elements of an array of structs."""
    (length,), names = reader.read_numbers()[:1].tolist() or [0], bytes(reader.read().data)
    if length <= 0 or len(names) % length:
        raise _DamagedError("names of fields that do not fit")
    fields = [names[at : at + length].split(b"\0")[0].decode("utf-8", "replace") for at in range(0, len(names), length)]
    items: list[dict[str, Any]] = []
    for _ in range(n_items if fields else 0):
        read = [_read_matrix(reader.read(), reader.order, depth - 1)[1] for _ in fields]
        items.append(dict(zip(fields, read, strict=True)))
    return items
