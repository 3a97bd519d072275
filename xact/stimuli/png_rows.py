"""Check that a PNG file contains all rows of its picture. Pillow fills missing rows with black, without an error."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

N_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""{colour type in the header: samples per pixel} (PNG specification, 11.2.2)."""

PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""(first column, first row, step along a row, step down) of the passes of an interlaced picture (ibid., 8.2)."""

PIECE_NBYTES = 2**20
"""Most bytes that are decompressed at a time."""


def has_all_rows(data: bytes) -> bool:
    """Return True if a whole PNG file contains as many bytes of pixels as its header requires."""
    chunks = list(_list_chunks(data))
    needed = _count_nbytes(next(body for kind, body in chunks if kind == b"IHDR"))
    inflate = zlib.decompressobj()
    found = 0
    for body in (body for kind, body in chunks if kind == b"IDAT"):
        while body and found < needed and not inflate.eof:
            found += len(inflate.decompress(body, PIECE_NBYTES))
            body = inflate.unconsumed_tail
    return found + len(inflate.flush()) >= needed


def _list_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 8  # after the signature
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        yield data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        at += 12 + length


def _count_nbytes(header: bytes) -> int:
    """Return the number of bytes of all rows. Each row includes one byte for its filter."""
    width, height, depth, color, _, _, is_interlaced = struct.unpack_from(">IIBBBBB", header)
    grids = [(-(-(width - x) // dx), -(-(height - y) // dy)) for x, y, dx, dy in PASSES]
    bits = depth * N_CHANNELS[color]
    sizes = grids if is_interlaced else [(width, height)]
    return sum(rows * (1 + -(-columns * bits // 8)) for columns, rows in sizes if columns > 0 and rows > 0)
