"""Write a store. `StoreWriter` keeps the order: plan, labels, tasks, manifest, root."""

from __future__ import annotations

import hashlib
import os
import stat
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np

from xact.disk.digest import FileStamp
from xact.disk.durable import (
    Written,
    move_file,
    put_in_place,
    remove_file,
    replace_file,
    sweep_partial,
    sync_folder,
    write_file,
    write_partial,
)
from xact.disk.locks import check_held
from xact.errors import StoreError
from xact.labels import StoreRow
from xact.store.held import check_presence, check_shards, read_recorded
from xact.store.journal import FOLDER, Journal, remove_older, write_manifest, write_plan
from xact.store.layout import (
    list_final_paths,
    make_files,
    make_metadata,
    make_root,
    make_tree,
    make_unfinished_root,
)
from xact.store.plan import Plan, PlannedModel, PlannedShard
from xact.store.shards import ShardRows, encode_shard, grow_shard
from xact.store.state import State, TaskRecord, make_stimuli_line
from xact.store.tasks import make_tasks
from xact.store.zarr_arrays import Arrays

N_LOOKERS = 8
"""Threads that compare metadata and labels with the files on disk."""


class TaskWriter(Protocol):
    """Takes the tasks of one generation of a store; many threads call it."""

    store: Path
    plan: Plan
    state: State

    def write_shards(
        self, model: PlannedModel, buffers: Sequence[np.ndarray], block: int, *, rows: Collection[StoreRow]
    ) -> dict[str, Written | None]:
        """Write the shards of one task and return {path: length and sha256}; None if all values are NaN."""

    def add_task(self, record: TaskRecord, stamps: Mapping[StoreRow, tuple[FileStamp, str]] | None = None) -> None:
        """Record a task after its shards are written. `stamps` is {row: (stamp, sha256)} of the stimuli it read."""

    def add_network(self, model: str, found: Mapping[str, Any]) -> None:
        """Record the facts from loading a network."""

    def drop_tasks(self, model: PlannedModel) -> None:
        """Take back the tasks of a model that are not published, as if the build had been killed before them."""


@dataclass(frozen=True)
class EncodedShard:
    """The bytes of one shard of a task."""

    key: str
    pieces: Sequence[bytes] | None
    """None if all values are NaN: there is no file."""
    old: Written | None
    """The record of the shard whose place it takes, if there is one."""
    is_same: bool
    """True if it has the bytes of the old one."""


def encode_task(
    store: Path,
    plan: Plan,
    record: TaskRecord | None,
    model: PlannedModel,
    buffers: Sequence[np.ndarray],
    block: int,
    rows: Collection[StoreRow],
) -> Iterator[EncodedShard]:
    """Yield the shards of one task. With a `record`, its shards grow by `rows` and keep the bytes of the other rows."""
    changed = [row - block * plan.stimuli_per_task for row in rows]
    for shard, values in _list_shards(plan, model, buffers, block):
        written = None if record is None else record.shards[shard.key]
        old = None if written is None else read_recorded(store, shard.key, written)
        if old is None:
            pieces: Sequence[bytes] | None = encode_shard(values, shard.shape, plan.codec)
        else:
            pieces = grow_shard(old, values, changed, store / shard.key, shard.shape, plan.codec)
        yield EncodedShard(shard.key, pieces, written, pieces == [old])


class StoreWriter:
    """Write one generation of a store, in an order in which a kill does no harm at any moment.

    Entering the context removes half-written files, writes the plan, and creates all metadata and labels. Each task
    is added in two steps: `write_shards`, then `add_task`, which appends its line to the journal. `publish` writes the
    last labels and the manifest, then replaces the root's metadata file: this rename is the commit. Without it readers
    see the store as it was, and the next writer of the same plan continues from the journal.

    All methods but `publish` may be called from several threads.
    """

    def __init__(self, store: Path, plan: Plan, state: State, *, jitter: Mapping[str, np.ndarray]) -> None:
        """Take `state` from the journals (it is not changed) and `jitter`, {name: amounts (stimulus, replicate)}."""
        self.store = store
        self.state = state.copy()
        self._jitter = jitter
        self._journal = Journal(store, plan.generation)
        self._lock = threading.Lock()
        self._made: dict[str, bytes] = {}
        """{path: bytes} of the metadata and labels that are on disk."""
        self._set_plan(plan)

    def _set_plan(self, plan: Plan) -> None:
        self.plan = self.state.plan = plan

    def __enter__(self) -> Self:
        tree = make_tree(self.plan, self.state, self._jitter, final=False)
        metadata = make_metadata(self.plan, tree, {})
        places = [*metadata, *list_final_paths(self.plan)]  # where a killed build may have written
        # a store of the first format has a folder for each chunk
        sweep_partial(self.store, None if self.plan.xact_format == 1 else places)
        write_plan(self.store, self.plan)
        self._made = _create(self.store, self.plan, tree, metadata, {})
        for model in sorted(self.state.forgotten):  # before their shards are written anew, as if there were no tasks
            self._add({"dropped": model})
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the store as it is: finished tasks are already safe."""

    def replace_model(self, model: PlannedModel) -> None:
        """Replace the model of this label in the plan, and write the plan. It must not have finished tasks."""
        if self.state.find_done(model.label):
            raise StoreError(f"model {model.label!r} has finished tasks: its plan cannot change")
        models = tuple(model if old.label == model.label else old for old in self.plan.models)
        self._set_plan(self.plan.model_copy(update={"models": models}))
        write_plan(self.store, self.plan)

    def add_network(self, model: str, found: Mapping[str, Any]) -> None:
        """Add the facts from loading a network to the journal."""
        self._add({"network": model, **found})

    def write_shards(
        self, model: PlannedModel, buffers: Sequence[np.ndarray], block: int, *, rows: Collection[StoreRow]
    ) -> dict[str, Written | None]:
        """Write the shards of one task and return {path: length and sha256}; None if all values are NaN.

        `buffers[i]` (stimulus, replicate, unit) holds layer i, float32. `rows` are those that were captured: if the
        store has other rows of this block, its shards grow and keep the bytes of these rows.
        """
        record = self.state.tasks.get((model.label, block))
        shards = encode_task(self.store, self.plan, record, model, buffers, block, rows)
        if record is not None:
            return self._replace_shards(shards, record)
        written: dict[str, Written | None] = {}
        for shard in shards:
            file = self.store / shard.key
            if shard.pieces is None:
                remove_file(file)
            written[shard.key] = write_file(file, shard.pieces) if shard.pieces is not None else None
        return written

    def _replace_shards(self, shards: Iterable[EncodedShard], record: TaskRecord) -> dict[str, Written | None]:
        """Write the grown shards of a task beside the old ones, note their records, then rename them.

        After a kill, a shard is the old one or the noted one.
        """
        written: dict[str, Written | None] = {}
        for shard in shards:
            file = self.store / shard.key
            if shard.pieces is None:
                written[shard.key] = None
            else:
                written[shard.key] = shard.old if shard.is_same else write_partial(file, shard.pieces)
        fresh = self._note_replaced(record, written)
        for key, new in fresh.items():
            if new is None:
                remove_file(self.store / key)
            else:
                put_in_place(self.store / key)
        self._sync_folders(fresh)
        return written

    def _note_replaced(self, record: TaskRecord, written: Mapping[str, Written | None]) -> dict[str, Written | None]:
        """Note the new record of each shard that takes the place of another one, and return those shards."""
        fresh = {key: new for key, new in written.items() if new != record.shards[key]}
        if fresh:
            with self._lock:
                self.state.take(
                    self._journal.add_replaced({key: (record.shards[key], new) for key, new in fresh.items()})
                )
        return fresh

    def _sync_folders(self, keys: Iterable[str]) -> None:
        for folder in sorted({(self.store / key).parent for key in keys}):
            sync_folder(folder)

    def add_task(self, record: TaskRecord, stamps: Mapping[StoreRow, tuple[FileStamp, str]] | None = None) -> None:
        """Add a task after its shards are written. `stamps` is {row: (stamp, sha256)} of the stimuli that it read."""
        with self._lock:
            line = record.to_line() | {"at": int(time.time())}
            if stamps is not None:
                fresh = {row: stamp for row, stamp in stamps.items() if row not in self.state.stamps}
                line |= make_stimuli_line(fresh)
            self._add(line)

    def place_task(
        self, record: TaskRecord, stamps: Mapping[StoreRow, tuple[FileStamp, str]], files: Mapping[str, Path]
    ) -> None:
        """Move the shards of a task to their places, and record the task.

        `files` is {path of a shard: file with its bytes}. The other shards are in their places, or are not written.
        """
        older = self.state.tasks.get((record.model, record.block))
        fresh = record.shards if older is None else self._note_replaced(older, record.shards)
        for key, new in fresh.items():
            if new is None:
                remove_file(self.store / key)
            elif key in files:
                move_file(files[key], self.store / key)
        self._sync_folders(key for key, new in fresh.items() if new is not None or older is not None)
        self.add_task(record, stamps)

    def drop_tasks(self, model: PlannedModel) -> None:
        """Take back the tasks of a model that are not published, as if the build had been killed before them."""
        with self._lock:
            self._add({"dropped": model.label})
        self.settle(model)

    def settle(self, model: PlannedModel) -> None:
        """Take note of the shards of a model that has failed: a task may have written shards and have no record."""
        with self._lock:
            self._remove_unrecorded(model)
            self.state = check_shards(self.store, self.state, ())  # a shard that was replaced holds the recorded rows

    def _remove_unrecorded(self, model: PlannedModel) -> None:
        """Remove the shards of all blocks of a model that have no record."""
        done = self.state.find_done(model.label)
        for task in make_tasks(self.plan, model, done):
            if task.block not in done:
                for shard in self.plan.list_shards(model, task.block):
                    remove_file(self.store / shard.key)

    def _add(self, line: dict[str, Any]) -> None:
        self._journal.add(line)
        self.state.take(line)

    def publish(self, provenance: Mapping[str, str], *, complete: bool) -> None:
        """Publish the generation. `provenance` is {name: text} for the group `/xact`.

        Shards that a killed build wrote without a record are removed. Raise StoreError if a shard is missing or has
        another size than its record says, or if another machine holds the store by now.
        """
        check_held(self.store / FOLDER)
        for model in self.plan.models:
            self._remove_unrecorded(model)
        check_presence(self.store, self.state)
        tree = make_tree(self.plan, self.state, self._jitter, final=True)
        metadata = make_metadata(self.plan, tree, provenance)
        made = _create(self.store, self.plan, tree, metadata, self._made)
        files = {key: _written(data) for key, data in made.items()}
        root = make_root(self.plan, metadata, tree, complete=complete)
        write_manifest(self.store, self.state, {**files, "zarr.json": _written(root)})
        check_held(self.store / FOLDER)
        write_file(self.store / "zarr.json", [root])
        remove_older(self.store, self.plan.generation)


def _create(
    store: Path,
    plan: Plan,
    tree: Mapping[str, Arrays],
    metadata: Mapping[str, dict[str, Any]],
    known: Mapping[str, bytes],
) -> dict[str, bytes]:
    """Write and sync all metadata and labels of a plan, and return them. Equal files on disk stay as they are.

    `known` is {path: bytes} of files that this process has read or written.
    """
    made = make_files(tree, metadata, separator=plan.separator)
    changed = _find_changed(store, made, known)
    if not (store / "zarr.json").exists():
        changed["zarr.json"] = make_unfinished_root(plan)
    for key, data in changed.items():
        replace_file(store / key, [data])
    for folder in sorted({(store / key).parent for key in changed}):
        sync_folder(folder)
    return made


def _list_shards(
    plan: Plan, model: PlannedModel, buffers: Sequence[np.ndarray], block: int
) -> Iterator[tuple[PlannedShard, ShardRows]]:
    """Yield each shard of a task with its values."""
    for layer, buffer in zip(model.layers, buffers, strict=True):
        if buffer.shape[0] > plan.stimuli_per_task or buffer.shape[1:] != (plan.n_replicates, layer.n_units):
            raise StoreError(f"layer {layer.label!r}: a block of shape {buffer.shape} is not a whole shard")
    for shard in plan.list_shards(model, block):
        yield shard, {part.place: buffers[part.layer][:, :, part.units] for part in shard.parts}


def _written(data: bytes) -> Written:
    return Written(len(data), hashlib.sha256(data).hexdigest())


def _find_changed(store: Path, made: Mapping[str, bytes], known: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return those of the files to be made that are not on disk as they should be. Looks in threads."""
    waiting = iter(made.items())  # all threads share it: each takes the next file
    folder = str(store)

    def look() -> list[str]:
        return [key for key, data in waiting if not _holds(f"{folder}/{key}", data, known.get(key))]

    with ThreadPoolExecutor(N_LOOKERS) as pool:  # on a shared disk a look is mostly waiting
        lost = {key for part in [pool.submit(look) for _ in range(N_LOOKERS)] for key in part.result()}
    return {key: data for key, data in made.items() if key in lost}


def _holds(file: str, data: bytes, known: bytes | None) -> bool:
    """Return True if a file has these bytes; `known` are those that were read or written before."""
    try:
        found = os.stat(file)  # noqa: PTH116  a store of groups has 45,000 such files
    except OSError:
        return False
    if not stat.S_ISREG(found.st_mode) or found.st_size != len(data):
        return False
    return (Path(file).read_bytes() if known is None else known) == data
