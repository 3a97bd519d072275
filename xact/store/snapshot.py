"""Read the metadata of a store from the metadata file of its root, and the labels that it names.

Shapes are taken only from this file: while a build appends, the metadata files of the arrays may already have grown.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import struct
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numcodecs import VLenUTF8
from numcodecs.zstd import Zstd

from xact.disk.durable import parse_json, read_sealed_lines
from xact.disk.exchange import hint_missing
from xact.disk.places import FileState, Place, count_readers, find_file_state, locate, read_whole
from xact.errors import RUN_AGAIN, NoStoreError, StoreError, make_command
from xact.store.check_metadata import (
    MAX_LABEL_NBYTES,
    MAX_LABELS_NBYTES,
    count_text_nbytes,
    find_attributes_fault,
    find_fault,
    find_text_fault,
)
from xact.store.chunks import get_separator, name_chunk
from xact.store.zarr_arrays import find_text_runs, join_text_runs, list_texts

LABEL_DIMS = frozenset(("model", "stimulus", "layer", "replicate"))
"""Dimensions that labels may have."""

MAX_LABEL_CHUNKS = 1_000_000
"""Most chunks in one label array, far more than in any real store."""

MAX_LABEL_VALUES = 2**24
"""Most values in one chunk of labels. A build writes at most 2^19."""

Labels = dict[str, tuple[tuple[str, ...], np.ndarray]]
"""{name: (dimensions, values)}. Text has dtype `<U`."""


@dataclass
class Room:
    """The memory that is left for the labels of a store."""

    nbytes: int = MAX_LABELS_NBYTES

    def take(self, nbytes: int, where: Place) -> None:
        """Take bytes before they are allocated. Raise StoreError if there is no room for them."""
        self.nbytes -= nbytes
        if self.nbytes < 0:
            raise StoreError(
                f"{where}: the labels of the store take more than {MAX_LABELS_NBYTES} bytes in memory",
                hint="this is no store of xact: a build refuses such labels",
            )


@dataclass(frozen=True)
class Snapshot:
    """One published generation of a store."""

    path: Place
    """Absolute path of the store, or its URL: a worker process may have another working directory."""
    layout: str
    """`cube` or `groups`."""
    metadata: Mapping[str, dict[str, Any]]
    """{path: metadata} of the labels at the root and in `/catalog`, and of all activations."""
    coordinates: tuple[str, ...]
    """Names of the labels at the root, in order."""
    store_id: str
    """Random text of the store, the same in all its generations; empty if an older xact wrote it."""
    token: str
    """Text that is different for every generation of every store."""
    generation: int = 0
    """Number of times that the store was published."""

    def load_labels(self) -> Labels:
        """Return the labels on stimuli, replicates, models and layers. Raise StoreError if a label is damaged."""
        found = dict.fromkeys([*sorted(LABEL_DIMS), *self.coordinates], "")
        if self.layout == "groups":
            named = self.metadata.get("catalog", {}).get("attributes", {}).get("coordinates", "")
            found |= dict.fromkeys(["model", "layer", *named.split()], "catalog/")
        for path in self.metadata:  # the attribute `coordinates` cannot hold a name with a space
            if "/" not in path:
                found.setdefault(path, "")
        arrays = {name: f"{group}{name}" for name, group in found.items() if self._is_label(f"{group}{name}")}
        room = Room()
        if isinstance(self.path, Path):
            return {name: self._load(path, room) for name, path in arrays.items()}
        with ThreadPoolExecutor(count_readers(self.path)) as pool:
            return dict(zip(arrays, pool.map(lambda path: self._load(path, room), arrays.values()), strict=True))

    def _is_label(self, path: str) -> bool:
        data = self.metadata.get(path, {})
        return data.get("node_type") == "array" and LABEL_DIMS.issuperset(data["dimension_names"])

    def _load(self, path: str, room: Room) -> tuple[tuple[str, ...], np.ndarray]:
        data = self.metadata[path]
        return tuple(data["dimension_names"]), load_label(self.path, path, data, room)


def open_snapshot(store: str | Place) -> Snapshot:
    """Read the root of a store. Raise StoreError if it is not a store, is unfinished, or has a newer format."""
    path = make_absolute(locate(store))
    with _collector_paused():
        while True:
            stamp = stamp_root(path)
            snapshot = _parse_root(path, stamp)
            if stamp_root(path) == stamp:  # else the store was published in between: the stamp is that of an older root
                _IDS[path] = stamp, snapshot.store_id
                return snapshot


_IDS: dict[Place, tuple[FileState, str | None]] = {}
"""{path: (stamp of the root, id of the store)} as last read; None if there is no store at the path."""


def is_same_store(path: Place, store_id: str) -> bool:
    """Return True if the store at `path` still has this id, in any generation."""
    stamp = stamp_root(path)
    known = _IDS.get(path)
    if known is None or known[0] != stamp:
        known = _IDS[path] = stamp, _read_id(path)
    return known[1] == store_id


def _read_id(path: Place) -> str | None:
    try:
        attributes = _read_root(path / "zarr.json").get("attributes")
    except StoreError:
        return None
    return str(attributes.get("xact_id", "")) if isinstance(attributes, dict) else None


def check_same_store(path: Place, store_id: str) -> None:
    """Raise StoreError if the store that was opened at `path` is no longer there."""
    if not is_same_store(path, store_id):
        raise StoreError(
            f"the store {str(path)!r} was built again, replaced or removed after it was opened", hint="open it again"
        )


def _parse_root(path: Place, stamp: FileState) -> Snapshot:
    data = _read_root(path / "zarr.json")
    attributes = data.get("attributes")
    if not isinstance(attributes, dict) or "xact_format" not in attributes:
        raise StoreError(
            f"{str(path)!r} was not written by xact: its root has no attribute xact_format",
            hint="open it with xarray.open_zarr, or give the path of an xact store",
        )
    if attributes.get("xact_kind") == "rdm":
        raise StoreError(f"{str(path)!r} holds RDMs, not activations", hint="open it with xact.open_rdms")
    if attributes["xact_format"] not in (1, 2):
        raise StoreError(
            f"{str(path)!r} has format {attributes['xact_format']!r}; this xact reads 1 and 2",
            hint="pip install --upgrade xact",
        )
    if not attributes.get("xact_generation"):
        raise StoreError(
            f"the store {str(path)!r} is not finished: nothing is published yet",
            hint=RUN_AGAIN,
        )
    try:
        metadata = data["consolidated_metadata"]["metadata"]
        kept = {at: node for at, node in metadata.items() if at.count("/") < 2 or at.endswith("/activations")}
    except (KeyError, TypeError, AttributeError):
        raise _refuse_root(path, "it has no consolidated snapshot") from None
    layout = attributes.get("xact_layout")
    fault = find_attributes_fault(attributes) or (None if layout in ("cube", "groups") else f"layout {layout!r:.60}")
    if fault is None:
        faults = ((at, find_fault(at, node)) for at, node in kept.items())
        fault = next((f"{at!r:.60}: {found}" for at, found in faults if found is not None), None)
    if fault is not None:
        raise _refuse_root(path, fault)
    coordinates, store_id = tuple(attributes.get("coordinates", "").split()), str(attributes.get("xact_id", ""))
    token, generation = f"{path} {store_id} {stamp}", int(attributes["xact_generation"])
    return Snapshot(path, str(layout), kept, coordinates, store_id, token, generation)


def _refuse_root(path: Place, fault: str) -> StoreError:
    return StoreError(
        f"{path / 'zarr.json'} is damaged: {fault}", hint=f"{make_command('verify', path)} names what is damaged"
    )


def make_absolute(store: Place) -> Place:
    """Return the place of a store in words that hold in any working directory."""
    return store.absolute() if isinstance(store, Path) else store


def stamp_root(store: Place) -> FileState:
    """Return a stamp that changes whenever the store is published again; None if there is no store."""
    return find_file_state(store / "zarr.json", follows_links=True)


def _read_root(file: Place) -> dict[str, Any]:
    try:
        data = parse_json(read_whole(file))
    except (FileNotFoundError, NotADirectoryError):
        raise NoStoreError(f"there is no xact store at {str(file.parent)!r}", hint=hint_missing(file.parent)) from None
    except OSError as error:
        raise StoreError(f"{file} cannot be read: {error.strerror}") from None
    except ValueError:
        data = None
    if not isinstance(data, dict):
        raise StoreError(f"{file} is damaged: it is not JSON", hint=f"{make_command('verify', file.parent)} says more")
    return data


@contextlib.contextmanager
def _collector_paused() -> Iterator[None]:
    """Stop the garbage collector: thousands of new dictionaries would start it again and again and double the time."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def load_label(store: Place, path: str, metadata: Mapping[str, Any], room: Room) -> np.ndarray:
    """Return one whole label array, after checking every chunk. The StoreError of a damaged file names the file.

    The array is taken from the `room` that is left in memory.
    """
    shape, chunk = metadata["shape"], metadata["chunk_grid"]["configuration"]["chunk_shape"]
    is_text = metadata["data_type"] == "string"
    kind = np.dtype(object if is_text else metadata["data_type"])
    if [codec["name"] for codec in metadata["codecs"][1:]] != ["zstd", "crc32c"]:
        raise StoreError(
            f"{store / path}: its codecs are not those of an xact store", hint="pip install --upgrade xact"
        )
    lengths = [-(-length // size) for length, size in zip(shape, chunk, strict=True)]
    if prod(lengths) > MAX_LABEL_CHUNKS or prod(chunk) > MAX_LABEL_VALUES:
        raise _refuse_root(store, f"labels {path!r:.60} of shape {shape} in chunks of {chunk}")
    parts: dict[tuple[int, ...], np.ndarray | list[np.ndarray]] = {}
    has_runs = is_text and len(shape) == 1
    for at in np.ndindex(*lengths):  # read all chunks before making `whole`: for a wrong shape a chunk is missing
        last = [min(length - i * size, size) - 1 for i, length, size in zip(at, shape, chunk, strict=True)]
        n_used = int(np.ravel_multi_index(last, chunk)) + 1
        file = store / path / name_chunk(at, get_separator(metadata))
        raw = _read_label(store, file, kind, prod(chunk), room)
        runs = find_text_runs(raw, n_used) if has_runs else []
        has_runs = bool(runs)
        parts[at] = runs or _decode_label(store, file, kind, chunk, n_used, raw)
    if has_runs:
        runs = [run for part in parts.values() for run in part]
        _take_texts(store, path, 4 * shape[0] * max((run.shape[1] for run in runs), default=0), room)
        return _share(join_text_runs(runs))
    whole = np.empty(shape, dtype=kind)
    for at, part in parts.items():
        values = list_texts(part) if isinstance(part, list) else part
        start = [i * size for i, size in zip(at, chunk, strict=True)]
        here = whole[tuple(slice(first, first + size) for first, size in zip(start, chunk, strict=True))]
        here[...] = values[tuple(map(slice, here.shape))]
    if is_text:
        _take_texts(store, path, count_text_nbytes(whole.ravel()), room)
        whole = whole.astype(str)
    return _share(whole)


def _share(whole: np.ndarray) -> np.ndarray:
    """Return an array that nobody can change: later readers get it too."""
    whole.flags.writeable = False
    return whole


def _take_texts(store: Place, path: str, nbytes: int, room: Room) -> None:
    """Take the bytes of all texts of a label from `room`. Raise StoreError if they are too many."""
    fault = find_text_fault(nbytes)
    if fault is not None:
        raise _refuse_root(store, f"labels {path!r:.60}: {fault}")
    room.take(nbytes, store / path)


def _read_label(store: Place, file: Place, kind: np.dtype[Any], n_values: int, room: Room) -> bytes:
    """Return the bytes of one chunk of labels, which hold `n_values` values, after checking them."""
    hint = _hint_verify(store)
    try:
        data = read_whole(file)
    except OSError as error:
        raise StoreError(f"the labels in {file} cannot be read: {error.strerror}", hint=hint) from None
    body = data[:-4]
    if len(data) < 4 or google_crc32c.value(body) != struct.unpack("<I", data[-4:])[0]:
        raise StoreError(f"the labels in {file} do not match their checksum", hint=hint)
    try:
        nbytes = _count_decompressed(body)
        if nbytes > MAX_LABEL_NBYTES:
            raise ValueError
        room.take(nbytes, file)
        raw = bytes(Zstd().decode(body))
        n_said = int.from_bytes(raw[:4], "little") if kind.hasobject else len(raw) // kind.itemsize
        if n_said != n_values:
            raise ValueError
    except (ValueError, RuntimeError):
        raise _refuse_label(store, file, kind, n_values) from None
    return raw


def _decode_label(
    store: Place, file: Place, kind: np.dtype[Any], chunk: Sequence[int], n_used: int, raw: bytes
) -> np.ndarray:
    """Return one chunk of labels. Of text, only the first `n_used` values: decoding the empty rest takes as long."""
    try:
        if not kind.hasobject:
            return np.frombuffer(raw, kind.newbyteorder("<")).reshape(chunk)
        values = np.empty(prod(chunk), dtype=object)
        values[:n_used] = VLenUTF8().decode(n_used.to_bytes(4, "little") + raw[4:])
        return values.reshape(chunk)
    except (ValueError, RuntimeError):
        raise _refuse_label(store, file, kind, prod(chunk)) from None


def _refuse_label(store: Place, file: Place, kind: np.dtype[Any], n_values: int) -> StoreError:
    return StoreError(f"the labels in {file} are not {n_values} values of type {kind}", hint=_hint_verify(store))


def _hint_verify(store: Place) -> str:
    return f"{make_command('verify', store)} names all that is damaged or missing"


def _count_decompressed(body: bytes) -> int:
    """Return the decompressed size in a zstd frame's header (RFC 8878, 3.1.1.1). Raise ValueError if it is missing."""
    if len(body) < 14:  # magic 4, descriptor 1, window 0 or 1, dictionary 0 to 4, size 0 to 8: too short for a label
        raise ValueError("not a zstd frame")
    flags = body[4]
    is_single, size_code = bool(flags & 0x20), flags >> 6
    n_size = (1 if is_single else 0) if size_code == 0 else 2**size_code
    if n_size == 0:
        raise ValueError("the frame does not give its decompressed size")
    start = 5 + (not is_single) + (0, 1, 2, 4)[flags & 3]
    return int.from_bytes(body[start : start + n_size], "little") + (256 if n_size == 2 else 0)


def find_absent_shards(store: Place) -> frozenset[str]:
    """Return the paths of the shards that hold only NaN, so that no file was written, from the newest manifest.

    Raise StoreError if there is no manifest, or if it is damaged.
    """
    while True:
        newest = _find_manifest(store)
        try:
            return _read_absent(newest, find_file_state(newest, follows_links=True))
        except StoreError:
            if _find_manifest(store) == newest:
                raise  # else the manifest of a newer generation has replaced it


def _find_manifest(store: Place) -> Place:
    """Return the newest manifest; at a URL, where nothing may be listed, that of the published generation."""
    folder = store / ".xact"
    if isinstance(folder, Path):
        numbers = {file: file.stem.partition("-")[2] for file in folder.glob("manifest-*.jsonl")}
        files = {int(number): file for file, number in numbers.items() if number.isdecimal()}
        if not files:
            raise StoreError(f"the manifest in {folder} is missing", hint="copy the store again, with .xact")
        return files[max(files)]
    attributes = _read_root(store / "zarr.json").get("attributes")
    generation = attributes.get("xact_generation") if isinstance(attributes, dict) else None
    return folder / f"manifest-{generation}.jsonl"


@functools.lru_cache(maxsize=4)
def _read_absent(file: Place, _stamp: FileState) -> frozenset[str]:
    lines = (line for line in read_sealed_lines(file) if b'"absent"' in line)
    try:
        tables = [dict(parse_json(line)).get("shards", {}) for line in lines]
        return frozenset(key for shards in tables for key, written in shards.items() if written == "absent")
    except (ValueError, TypeError, AttributeError):
        raise StoreError(f"{file} is damaged: a line is not a JSON object") from None
