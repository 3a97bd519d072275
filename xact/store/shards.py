"""Encode a whole shard of a Zarr v3 array (codec `sharding_indexed`), and read parts of a shard.

A shard holds inner chunks, each compressed and followed by its crc32c. At the end is an index: (offset, nbytes) of
every inner chunk in C order, followed by the crc32c of the index (Zarr v3 specification, codec `sharding_indexed` 1.0).
A chunk that holds only the fill value NaN is left out.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import google_crc32c
import numpy as np
from numcodecs import blosc

from xact.disk.places import Parts, Place, open_parts
from xact.disk.remote import RemotePath
from xact.errors import StoreError, make_command
from xact.store.chunks import BlockShape

ABSENT = 2**64 - 1
"""Offset and length in the index for a chunk that is left out, because it holds only the fill value."""

CHUNK_DTYPE = np.dtype("<f4")
"""Type of the values of a chunk."""

BLOSC = {"lz4": ("lz4", 5, blosc.BITSHUFFLE), "zstd": ("zstd", 3, blosc.SHUFFLE)}
"""{codec in the recipe: (compressor, level, filter)}. For float32, lz4 is fast and zstd makes small files."""

SHUFFLE_NAMES = {blosc.BITSHUFFLE: "bitshuffle", blosc.SHUFFLE: "shuffle"}


def make_codecs(codec: str, *, chunk: tuple[int, ...]) -> list[dict[str, Any]]:
    """Return the entry `codecs` in the metadata of an activations array."""
    inner: list[dict[str, Any]] = [{"name": "bytes", "configuration": {"endian": "little"}}]
    if codec in BLOSC:
        cname, level, shuffle = BLOSC[codec]
        settings = {"typesize": 4, "cname": cname, "clevel": level, "shuffle": SHUFFLE_NAMES[shuffle], "blocksize": 0}
        inner.append({"name": "blosc", "configuration": settings})
    crc = {"name": "crc32c"}
    configuration = {
        "chunk_shape": list(chunk),
        "codecs": [*inner, crc],
        "index_codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, crc],
        "index_location": "end",
    }
    return [{"name": "sharding_indexed", "configuration": configuration}]


def add_crc32c(data: bytes) -> bytes:
    """Return `data` followed by its crc32c (little endian)."""
    return data + struct.pack("<I", google_crc32c.value(data))


ShardRows = Mapping[int, np.ndarray]
"""{position along the layer axis of a shard: values (stimulus, replicate, unit)}. Values may be fewer than the shard
has room for along stimulus and unit; the rest, and the other layers, are fill value."""


def encode_shard(rows: ShardRows, shape: BlockShape, codec: str) -> list[bytes] | None:
    """Return the pieces of a shard that holds `rows`, or None if all values are NaN."""
    index = np.full((*shape.grid, 2), ABSENT, dtype="<u8")
    pieces: list[bytes] = []
    offset = 0
    n_stimuli, _, n_units = map(range, shape.grid)
    for at in itertools.product(n_stimuli, sorted(rows), n_units):
        piece = _encode_at(rows, at, shape, codec)
        if piece is not None:
            index[at] = offset, len(piece)
            offset += len(piece)
            pieces.append(piece)
    return [*pieces, add_crc32c(index.tobytes())] if pieces else None


def grow_shard(
    old: bytes, rows: ShardRows, changed: Iterable[int], file: Place, shape: BlockShape, codec: str
) -> list[bytes] | None:
    """Return the pieces of a shard that holds `rows` in place of the shard `old`, or None if all values are NaN.

    Only the rows `changed` differ; they are counted from the first row of the shard. A reader that has read the index
    of `old` may read its chunks from the new file: each chunk of `old` keeps its place, and changed chunks go where
    `old` has none. `file` is named in errors. If no chunk changes, the result is `old`.
    """
    index = _read_index(BytesParts(old), file, shape).copy()
    places = {int(start): int(nbytes) for start, nbytes in index.reshape(-1, 2) if start != ABSENT}
    chunks = {start: old[start : start + nbytes] for start, nbytes in places.items()}
    is_changed = False
    blocks = sorted({row // shape.chunk_stimuli for row in changed})
    for at in itertools.product(blocks, sorted(rows), range(shape.grid[2])):
        piece = _encode_at(rows, at, shape, codec)
        if piece == chunks.get(int(index[at][0])):
            continue
        is_changed = True
        index[at] = ABSENT, ABSENT
        if piece is not None:
            start = _find_room(chunks, len(piece))
            chunks[start] = piece
            index[at] = start, len(piece)
    if not is_changed:
        return [old]
    return [*_lay(chunks), add_crc32c(index.tobytes())] if (index != ABSENT).any() else None


def _find_room(chunks: Mapping[int, bytes], nbytes: int) -> int:
    """Return the first place for `nbytes` between chunks, {place: bytes}, or after them."""
    free = 0
    for start in sorted(chunks):
        if start - free >= nbytes:
            return free
        free = start + len(chunks[start])
    return free


def _lay(chunks: Mapping[int, bytes]) -> Iterator[bytes]:
    """Yield the bytes of chunks, {place: bytes}, in the order of their places; zeros lie between them."""
    end = 0
    for start in sorted(chunks):
        if start > end:
            yield bytes(start - end)
        yield chunks[start]
        end = start + len(chunks[start])


def _encode_at(rows: ShardRows, at: tuple[int, ...], shape: BlockShape, codec: str) -> bytes | None:
    """Return the bytes of the chunk at (block of stimuli, layer, block of units), or None if all values are NaN."""
    i, place, j = at
    chunk = rows[place][
        i * shape.chunk_stimuli : (i + 1) * shape.chunk_stimuli,
        :,
        j * shape.chunk_units : (j + 1) * shape.chunk_units,
    ]
    if chunk.size == 0 or (np.isnan(chunk.flat[0]) and np.isnan(chunk).all()):
        return None
    full = (shape.chunk_stimuli, shape.n_replicates, shape.chunk_units)
    if chunk.shape != full:
        padded = np.full(full, np.nan, dtype="<f4")
        padded[: chunk.shape[0], :, : chunk.shape[2]] = chunk
        chunk = padded
    return _encode_chunk(np.ascontiguousarray(chunk, dtype="<f4"), codec)


def _encode_chunk(chunk: np.ndarray, codec: str) -> bytes:
    if codec == "none":
        return add_crc32c(chunk.tobytes())
    cname, level, shuffle = BLOSC[codec]
    return add_crc32c(blosc.compress(chunk, cname.encode(), level, shuffle, 0, 4))


class BytesParts:
    """A shard in memory that is read in parts."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.size = len(data)

    def read(self, nbytes: int, offset: int) -> bytes:
        """Return bytes of the shard: fewer where it ends."""
        return self.data[offset : offset + nbytes]

    def expect(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Do nothing: all is in memory."""

    def has_changed(self) -> bool:
        """Return False."""
        return False


@dataclass(frozen=True)
class ShardFormat:
    """Format of the shards of an array."""

    shape: BlockShape
    codec: str
    """`none` or `blosc`. A blosc chunk names its own compressor."""


def parse_format(metadata: dict[str, Any]) -> ShardFormat:
    """Return the format of the shards from the metadata of an activations array."""
    shard = metadata["chunk_grid"]["configuration"]["chunk_shape"]
    configuration = metadata["codecs"][0]["configuration"]
    chunk = configuration["chunk_shape"]
    codecs = [codec["name"] for codec in configuration["codecs"]]
    return ShardFormat(
        BlockShape(shard[1], shard[4], chunk[1], chunk[4], chunk[3], shard[2]),
        "blosc" if "blosc" in codecs else "none",
    )


def read_shard(file: Place, form: ShardFormat, out: np.ndarray, *, place: int, first_row: int, first_unit: int) -> None:
    """Fill `out` (stimulus, replicate, unit) from one shard, starting at its row `first_row` and unit `first_unit`.

    `place` is the position of the layer along the layer axis of the shard.
    Values that the shard lacks become NaN; so do all values if there is no file. Raise StoreError for bytes that do
    not match their checksums.
    """
    try:
        rows = np.arange(first_row, first_row + len(out))
        read_rows(file, form, [RowsOfLayer(out, place, rows, first_unit)])
    except FileNotFoundError:
        out[...] = np.nan


@dataclass(frozen=True)
class RowsOfLayer:
    """Rows of one layer that are read from a shard."""

    out: np.ndarray
    """Where the values go: (stimulus, replicate, unit)."""
    place: int
    """Position of the layer along the layer axis of the shard."""
    rows: np.ndarray
    """Counted from the first row of the shard; they strictly increase."""
    first_unit: int
    """Unit of the shard at which `out` starts."""


def read_rows(file: Place, form: ShardFormat, wanted: Sequence[RowsOfLayer]) -> None:
    """Fill what is wanted of one shard, which is opened once.

    Only the chunks that hold the rows are read; chunks that are left out become NaN. Raise StoreError for bytes that do
    not match their checksums, and FileNotFoundError if there is no shard.
    """
    while True:
        with open_parts(file, n_last=_count_index_nbytes(form.shape)) as parts:
            try:
                _read_chunks(parts, file, form, wanted)
                return
            except StoreError:
                if not parts.has_changed():  # else a part may be of another generation than the index
                    raise


def decode_shard(data: bytes, file: Place, form: ShardFormat, out: np.ndarray, *, place: int) -> None:
    """Fill `out` (stimulus, replicate, unit) from the bytes of a whole shard, starting at its first row and unit.

    `place` is the position of the layer along the layer axis of the shard. Values that the shard lacks become NaN.
    Raise StoreError, which names `file`, for bytes that do not match their checksums.
    """
    _read_chunks(BytesParts(data), file, form, [RowsOfLayer(out, place, np.arange(len(out)), 0)])


def split_rows(rows: np.ndarray, size: int) -> Iterator[tuple[int, slice, np.ndarray]]:
    """Yield (block, slice of `rows` in this block, these rows counted from its start), for blocks of `size` rows.

    `rows` must strictly increase.
    """
    if len(rows) and rows[0] // size == rows[-1] // size:
        block = int(rows[0] // size)
        yield block, slice(0, len(rows)), rows - block * size
        return
    blocks = rows // size
    starts = [0, *(np.flatnonzero(np.diff(blocks)) + 1).tolist(), len(rows)]
    for start, stop in itertools.pairwise(starts if len(rows) else []):
        block = int(blocks[start])
        yield block, slice(start, stop), rows[start:stop] - block * size


def _read_chunks(parts: Parts, file: Place, form: ShardFormat, wanted: Sequence[RowsOfLayer]) -> None:
    index = _read_index(parts, file, form.shape)
    parts.expect(itertools.chain.from_iterable(_list_parts(index, form.shape, one) for one in wanted))
    for one in wanted:
        _read_layer(parts, file, form, index, one)


def _read_layer(parts: Parts, file: Place, form: ShardFormat, index: np.ndarray, wanted: RowsOfLayer) -> None:
    shape, out, first_unit = form.shape, wanted.out, wanted.first_unit
    full = (shape.chunk_stimuli, shape.n_replicates, shape.chunk_units)
    scratch: np.ndarray | None = None
    last_unit = first_unit + out.shape[2]
    first_chunk, end_chunk = first_unit // shape.chunk_units, -(-last_unit // shape.chunk_units)
    if end_chunk > shape.grid[2]:
        raise IndexError(f"unit {last_unit - 1} of a shard with {shape.shard_units}")
    for i, at, within in split_rows(wanted.rows, shape.chunk_stimuli):
        places = index[i, wanted.place, first_chunk:end_chunk].tolist()
        for j, (start, nbytes) in enumerate(places, first_chunk):
            unit = j * shape.chunk_units
            units = slice(max(first_unit, unit), min(last_unit, unit + shape.chunk_units))
            part = out[at, :, units.start - first_unit : units.stop - first_unit]
            if start == ABSENT:
                part[...] = np.nan
                continue
            what = f"chunk {i}/{wanted.place}/{j}"
            data = _read_checked(parts, file, start, nbytes, what=what)
            if form.codec == "none":
                values = _view_chunk(data, file, full, what=what)
            elif part.shape == full and part.flags.c_contiguous and part.dtype == CHUNK_DTYPE:
                _decompress(data, file, part, what=what)  # whole chunk, in place: no copy
                continue
            else:
                values = scratch = np.empty(full, dtype=CHUNK_DTYPE) if scratch is None else scratch
                _decompress(data, file, scratch, what=what)
            part[...] = _take(values, within)[:, :, units.start - unit : units.stop - unit]


def _list_parts(index: np.ndarray, shape: BlockShape, wanted: RowsOfLayer) -> Iterator[tuple[int, int]]:
    """Yield (bytes, offset) of each chunk of these rows and units that the shard has."""
    last_unit = wanted.first_unit + wanted.out.shape[2]
    units = slice(wanted.first_unit // shape.chunk_units, -(-last_unit // shape.chunk_units))
    for i in np.unique(wanted.rows // shape.chunk_stimuli):
        for start, nbytes in index[i, wanted.place, units].tolist():
            if start != ABSENT:
                yield nbytes, start


def _take(chunk: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return the given rows of a chunk; without a copy if they are consecutive."""
    first, last = int(rows[0]), int(rows[-1])
    return chunk[first : last + 1] if last - first + 1 == len(rows) else chunk[rows]


def _count_index_nbytes(shape: BlockShape) -> int:
    return 16 * prod(shape.grid) + 4


def _read_index(parts: Parts, file: Place, shape: BlockShape) -> np.ndarray:
    nbytes = _count_index_nbytes(shape)
    if parts.size < nbytes:
        raise _refuse(file, f"{parts.size} bytes cannot hold a shard")
    data = _read_checked(parts, file, parts.size - nbytes, nbytes, what="the index")
    return np.frombuffer(data, dtype="<u8").reshape(*shape.grid, 2)


def _view_chunk(data: np.ndarray, file: Place, full: tuple[int, ...], *, what: str) -> np.ndarray:
    """Return the values of a chunk that is not compressed, without a copy."""
    _check_nbytes(data.nbytes, file, full, what=what)
    return data.view(CHUNK_DTYPE).reshape(full)


def _decompress(data: np.ndarray, file: Place, out: np.ndarray, *, what: str) -> None:
    """Decompress a chunk into `out`, float32 of the shape of a chunk."""
    n_values, n_frame = (int.from_bytes(data[i : i + 4].tobytes(), "little") for i in (4, 12))  # header of blosc
    _check_nbytes(n_values, file, out.shape, what=what)
    if n_frame != data.nbytes:  # else blosc would read beyond its end
        raise _refuse(file, f"{what} has {data.nbytes} bytes, and its header says {n_frame}")
    try:
        blosc.decompress(data, out)
    except RuntimeError:
        raise _refuse(file, f"{what} cannot be decompressed") from None


def _check_nbytes(found: int, file: Place, full: tuple[int, ...], *, what: str) -> None:
    expected = CHUNK_DTYPE.itemsize * prod(full)
    if found != expected:
        raise _refuse(file, f"{what} holds {found} bytes, expected {expected}")


def _read_checked(parts: Parts, file: Place, offset: int, nbytes: int, *, what: str) -> np.ndarray:
    """Read `nbytes` and return them (uint8) without their crc32c, which is checked. Nothing is copied."""
    data = np.frombuffer(parts.read(nbytes, offset) if 4 <= nbytes <= parts.size - offset else b"", dtype=np.uint8)
    if len(data) != nbytes:
        raise _refuse(file, f"{what} ends after the file does")
    body = data[:-4]
    if google_crc32c.value(body) != int.from_bytes(data[-4:].tobytes(), "little"):
        raise _refuse(file, f"the checksum of {what} does not match its bytes")
    return body


def _refuse(file: Place, found: str) -> StoreError:
    store: Place
    if isinstance(file, RemotePath):
        store = file.store
    else:
        store = next((folder for folder in file.parents if (folder / ".xact").is_dir()), file.parent)
    return StoreError(f"{file}: {found}", hint=f"{make_command('verify', store)} names all that is damaged")
