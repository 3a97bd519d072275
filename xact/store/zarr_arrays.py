"""Arrays of labels and their metadata, as the bytes of the files of a Zarr store (version 3). Needs no plan."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numcodecs import VLenUTF8
from numcodecs.zstd import Zstd

from xact.store.shards import add_crc32c

LABEL_CHUNKS = {"stimulus": 8192, "model": 64, "layer": 256, "replicate": 64, "stimulus_": 8192}
"""Chunk length of label arrays along each dimension. It is fixed, so that every axis can grow."""

FILLS: dict[str, Any] = {"string": "", "bool": False, "int64": 0, "float64": "NaN"}
"""{type: fill value} of label arrays."""

SHORT_RUN = 128
"""A run is that many texts of one length. To decode a shorter run at once takes longer than text after text."""

MAX_SHORT_RUNS = 8
"""Runs that may be shorter, in one chunk: numbered names begin with 10 of one length, 90 of the next."""

MAX_RUNS = LABEL_CHUNKS["stimulus"] // SHORT_RUN + MAX_SHORT_RUNS
"""Most runs in one chunk: each is found by comparing the lengths of all texts after it."""

Arrays = dict[str, tuple[tuple[str, ...], np.ndarray]]
"""{name: (dimensions, values)} of label arrays. Text is an object array of str."""


def make_text(values: Iterable[Any]) -> np.ndarray:
    """Return texts as an array of objects."""
    values = list(values)
    array = np.empty(len(values), dtype=object)
    array[:] = [str(value) for value in values]
    return array


def get_kind(values: np.ndarray) -> str:
    """Return Zarr's name for the type of labels."""
    return "string" if values.dtype == object else str(values.dtype)


def get_label_chunk(dims: Sequence[str]) -> tuple[int, ...]:
    """Return the shape of the chunks of a label array."""
    return tuple(LABEL_CHUNKS[dim] for dim in dims)


def encode_labels(dims: Sequence[str], values: np.ndarray) -> Iterator[tuple[tuple[int, ...], bytes]]:
    """Yield (position, bytes) of every chunk of a label array."""
    chunk = get_label_chunk(dims)
    kind = get_kind(values)
    for at in np.ndindex(*(-(-length // size) for length, size in zip(values.shape, chunk, strict=True))):
        part = values[tuple(slice(i * size, (i + 1) * size) for i, size in zip(at, chunk, strict=True))]
        padded = np.full(chunk, np.nan if kind == "float64" else FILLS[kind], dtype=values.dtype)
        padded[tuple(slice(length) for length in part.shape)] = part
        raw = (
            VLenUTF8().encode(padded.ravel())
            if kind == "string"
            else padded.astype(padded.dtype.newbyteorder("<")).tobytes()
        )
        yield at, add_crc32c(bytes(Zstd(level=3).encode(raw)))


def find_text_runs(raw: bytes, n: int) -> list[np.ndarray]:
    """Return the first `n` texts of a chunk, cut where their length changes: (text, character) each, uint8.

    `raw` is as `vlen-utf8` writes it (numcodecs): the number of texts, then each text after its length, 4 bytes each.
    The list is empty if the texts are not ASCII, or end early, or if their lengths change so often that it is quicker
    to decode one text after the other.
    """
    runs: list[np.ndarray] = []
    start, n_left = 4, n
    if not raw[start:].isascii():  # or a length is 128 to 255
        return []
    while n_left:
        length = int.from_bytes(raw[start : start + 4], "little")
        size = 4 + length
        n_same = min(n_left, (len(raw) - start) // size)
        if n_same <= 0 or len(runs) > min(MAX_RUNS, MAX_SHORT_RUNS + (n - n_left) // SHORT_RUN):
            return []
        lengths = np.ndarray(n_same, "<u4", raw, start, (size,))
        changes = np.flatnonzero(lengths != length)
        n_same = int(changes[0]) if len(changes) else n_same
        runs.append(np.frombuffer(raw, np.uint8, n_same * size, start).reshape(n_same, size)[:, 4:])
        start, n_left = start + n_same * size, n_left - n_same
    return runs


def join_text_runs(runs: Sequence[np.ndarray]) -> np.ndarray:
    """Return the texts of runs in order, as an array of text."""
    n_characters = max((run.shape[1] for run in runs), default=0)
    codes = np.zeros((sum(map(len, runs)), max(1, n_characters)), dtype=np.uint32)  # numpy's text: one code a character
    first = 0
    for run in runs:
        codes[first : first + len(run), : run.shape[1]] = run
        first += len(run)
    return codes.view(f"U{codes.shape[1]}")[:, 0]


def list_texts(runs: Iterable[np.ndarray]) -> np.ndarray:
    """Return the texts of runs in order, as an array of objects: a long one does not make room for it in all others."""
    return make_text(row.tobytes().decode("ascii") for run in runs for row in run)


def make_label_metadata(dims: Sequence[str], values: np.ndarray, separator: str) -> dict[str, Any]:
    """Return the metadata of a label array."""
    kind = get_kind(values)
    first: dict[str, Any] = {"name": "bytes", "configuration": {"endian": "little"}}
    if kind == "string":
        first = {"name": "vlen-utf8", "configuration": {}}
    elif kind == "bool":
        first = {"name": "bytes"}
    zstd = {"name": "zstd", "configuration": {"level": 3, "checksum": False}}
    return make_array_metadata(
        shape=values.shape,
        kind=kind,
        chunk=get_label_chunk(dims),
        fill=FILLS[kind],
        codecs=[first, zstd, {"name": "crc32c"}],
        dims=dims,
        separator=separator,
    )


def make_array_metadata(
    *,
    shape: Sequence[int],
    kind: str,
    chunk: Sequence[int],
    fill: str | bool | int,
    codecs: list[dict[str, Any]],
    dims: Sequence[str],
    separator: str,
) -> dict[str, Any]:
    """Return the metadata of an array."""
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(shape),
        "data_type": kind,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(chunk)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": separator}},
        "fill_value": fill,
        "codecs": codecs,
        "attributes": {},
        "dimension_names": list(dims),
        "storage_transformers": [],
    }


def make_group_metadata(attributes: dict[str, Any]) -> dict[str, Any]:
    """Return the metadata of a group."""
    return {"zarr_format": 3, "node_type": "group", "attributes": attributes}


def make_root_metadata(attributes: dict[str, Any], metadata: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the metadata of a root that holds a copy of all `metadata` below it."""
    empty: dict[str, Any] = {"kind": "inline", "must_understand": False, "metadata": {}}
    whole = {
        path: data | {"consolidated_metadata": empty} if data["node_type"] == "group" else data
        for path, data in metadata.items()
    }
    return {**make_group_metadata(attributes), "consolidated_metadata": empty | {"metadata": whole}}


def name_coordinates(arrays: Arrays) -> dict[str, str]:
    """Return the attribute `coordinates`, which tells xarray the labels. It cannot hold a name with a space."""
    names = [name for name, (dims, _) in arrays.items() if dims != (name,) and name.split() == [name]]
    return {"coordinates": " ".join(names)} if names else {}


def dump_metadata(data: Mapping[str, Any]) -> bytes:
    """Return metadata as the bytes of its file."""
    return json.dumps(data, separators=(",", ":"), allow_nan=False).encode()
