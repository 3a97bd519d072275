"""Write a store anew from another one: other models, stimuli or places of the values, and the same bits.

Shards that stay as they are become links to the same bytes where the file system has links.
"""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from xact.building.provenance import make_provenance
from xact.building.write_task import load_rows, write_task
from xact.capture.base import TaskResult
from xact.disk.digest import hash_files
from xact.disk.durable import Written, make_folder, parse_json, sync_folder, write_file
from xact.errors import StoreError, make_command
from xact.labels import StoreRow
from xact.store.held import read_recorded
from xact.store.journal import FOLDER, load_state, read_manifest
from xact.store.plan import Plan, PlannedModel
from xact.store.snapshot import Room, load_label, open_snapshot
from xact.store.state import State, TaskRecord
from xact.store.tasks import Task, make_rows
from xact.store.verify import verify_store
from xact.store.write import StoreWriter

T = TypeVar("T")

NOT_CAPTURED = "not captured yet when other stimuli were taken out"
"""Recorded as the failure of a row without a value between rows with values; the next build tries it."""

N_THREADS = 2
"""Models that are carried over at once; each needs the memory of three tasks."""


@dataclass(frozen=True)
class Rebuild:
    """A store, and the plan of the store that is made of it."""

    store: Path
    to: Path
    """Where the new store is written."""
    state: State
    old: Plan
    plan: Plan
    rows: Sequence[StoreRow]
    """The rows of the old store that stay."""

    @cached_property
    def new_rows(self) -> Mapping[StoreRow, StoreRow]:
        """{row of the old store: row of the new store}."""
        return {row: StoreRow(i) for i, row in enumerate(self.rows)}

    @cached_property
    def moved_models(self) -> frozenset[str]:
        """The models whose layers have other places in their shards, e.g. because layers before them are gone."""
        kept = {model.label for model in self.plan.models}
        before = {model.label: self.old.list_shards(model, 0) for model in self.old.models if model.label in kept}
        return frozenset(
            model.label
            for model in self.plan.models
            if [(one.shape, one.parts) for one in before[model.label]]
            != [(one.shape, one.parts) for one in self.plan.list_shards(model, 0)]
        )

    def keeps_shards(self, model: str, block: int) -> bool:
        """Return True if the shards of a block hold the same values at the same places in both stores."""
        size = self.old.stimuli_per_task
        start, stop = block * size, min((block + 1) * size, self.old.n_stimuli)
        return model not in self.moved_models and list(self.rows[start : start + size]) == list(range(start, stop))


def write_rebuilt(rebuild: Rebuild) -> None:
    """Write the new store and compare every byte of it with its manifest. Go on from the tasks that it has."""
    plan, state, new = rebuild.plan, rebuild.state, rebuild.to
    present = [state.find_present(model.label, rebuild.old) for model in plan.models]
    stamps = {rebuild.new_rows[row]: stamp for row, stamp in state.stamps.items() if row in rebuild.new_rows}
    stamps = {row: stamp for row, stamp in stamps.items() if any(has[rebuild.rows[row]] for has in present)}
    is_rebatched = len(rebuild.rows) < rebuild.old.n_stimuli  # then no batch of the plan ran as it is there
    moved = {"is_rebatched": True} if is_rebatched else {}
    networks = {label: found | moved for label, found in state.networks.items() if plan.find_model(label) is not None}
    found = load_state(new)
    held = replace(found, stamps=found.stamps | stamps, networks=found.networks | networks)
    with StoreWriter(new, plan, held, jitter=_load_jitter(rebuild)) as writer:
        with ThreadPoolExecutor(N_THREADS) as pool:
            for done in [pool.submit(_carry_model, rebuild, writer, model) for model in plan.models]:
                done.result()
        failed_models = _load_failed_models(rebuild)
        is_whole = all(writer.state.is_whole(model.label, plan) for model in plan.models)
        writer.publish(make_provenance(plan, writer.state, failed_models), complete=is_whole and not failed_models)
    faults = verify_store(new).faults
    if faults:
        raise StoreError(f"{new / faults[0].file} {faults[0].found}: the store {str(rebuild.store)!r} stays as it was")


def _load_jitter(rebuild: Rebuild) -> dict[str, np.ndarray]:
    """Return the jitter of the stimuli that stay, after comparing its files with the manifest."""
    store, names = rebuild.store, rebuild.old.jitter_names
    lines = read_manifest(store / FOLDER / f"manifest-{rebuild.old.generation}.jsonl")
    files = {line["file"]: Written(line["nbytes"], line["sha256"]) for line in lines if "file" in line}
    keys = [key for key in files if key.partition("/")[0] in names]
    for key, found in hash_files(store, keys).items():
        if found != files[key]:
            raise StoreError(
                f"{store / key} is damaged", hint=f"{make_command('verify', store)} names all that is damaged"
            )
    metadata = open_snapshot(store).metadata
    room = Room()
    return {name: load_label(store, name, metadata[name], room)[np.array(rebuild.rows)] for name in names}


def _load_failed_models(rebuild: Rebuild) -> dict[str, str]:
    """Return {model: error} of the networks that failed, without those that are taken out."""
    gone = {model.label for model in rebuild.old.models} - {model.label for model in rebuild.plan.models}
    said = open_snapshot(rebuild.store).metadata["xact"]["attributes"]["provenance"]
    failed: dict[str, str] = parse_json(said).get("failed_models", {})
    return {label: error for label, error in failed.items() if label not in gone}


def _carry_model(rebuild: Rebuild, writer: StoreWriter, model: PlannedModel) -> None:
    """Write the rows of one model that stay."""
    old = rebuild.old.find_model(model.label)
    if old is None:
        raise StoreError(f"the plan of {str(rebuild.store)!r} has no model {model.label!r}")
    size = rebuild.plan.stimuli_per_task
    loaded: dict[int, list[np.ndarray]] = {}
    done = writer.state.find_done(model.label)
    for block in range(-(-model.n_stimuli // size)):
        if block in done:
            continue
        record = rebuild.state.tasks.get((model.label, block))
        if not rebuild.keeps_shards(model.label, block):
            rows = rebuild.rows[block * size : min((block + 1) * size, model.n_stimuli)]
            made = _carry_rows(rebuild, writer, old, model, block, rows, loaded)
        elif record is not None:
            made = _carry_block(rebuild, writer, old, model, record)
        else:
            made = None
        if made is not None:
            writer.add_task(made)


def _carry_block(
    rebuild: Rebuild, writer: StoreWriter, old: PlannedModel, model: PlannedModel, record: TaskRecord
) -> TaskRecord:
    """Take over the shards of one block byte for byte."""
    shards: dict[str, Written | None] = {}
    before, after = (plan.list_shards(one, record.block) for plan, one in ((rebuild.old, old), (rebuild.plan, model)))
    for shard, new in zip(before, after, strict=True):
        data = read_recorded(rebuild.store, shard.key, record.shards[shard.key])
        shards[new.key] = record.shards[shard.key]
        if data is not None:
            _take_over(rebuild.store / shard.key, writer.store / new.key, data)
    return replace(record, shards=shards)


def _take_over(file: Path, to: Path, data: bytes) -> None:
    """Link a file to a second place, or write its bytes there if the file system has no links."""
    make_folder(to.parent)
    with suppress(OSError):
        os.link(file, to)
    if to.exists():
        sync_folder(to.parent)
    else:
        write_file(to, [data])


def _carry_rows(
    rebuild: Rebuild,
    writer: StoreWriter,
    old: PlannedModel,
    model: PlannedModel,
    block: int,
    rows: Sequence[StoreRow],
    loaded: dict[int, list[np.ndarray]],
) -> TaskRecord | None:
    """Write a block of other rows than the old store has there; None if none of them was tried.

    `loaded` keeps the values of the last block of the old store.
    """
    plan, size, state = rebuild.old, rebuild.old.stimuli_per_task, rebuild.state
    shapes = [(len(rows), plan.n_replicates, layer.n_units) for layer in model.layers]
    buffers = [np.full(shape, np.nan, dtype=np.float32) for shape in shapes]
    failed: dict[StoreRow, str] = {}
    seconds, n_known = 0.0, 0
    for at, group in itertools.groupby(enumerate(rows), key=lambda item: item[1] // size):
        record = state.tasks.get((model.label, at))
        for i, row in group:
            new = rebuild.new_rows[row]
            if record is None or row >= record.stop:
                failed[new] = NOT_CAPTURED
                continue
            n_known = i + 1
            seconds += record.seconds / (record.stop - at * size)
            if row in record.failed:
                failed[new] = record.failed[row]
                continue
            for buffer, values in zip(buffers, _load_block(rebuild, old, record, loaded), strict=True):
                buffer[i] = values[row - at * size]
    if not n_known:
        return None
    start = StoreRow(block * size)
    kept = frozenset(make_rows(start, start + n_known))
    failed = {row: error for row, error in failed.items() if row in kept}
    task = Task(model.label, block, start, start + n_known, (), kept)
    names = sorted({name for record in state.find_records(model.label) for name in record.scores})
    scores = {name: _move(rebuild, state.find_scores(model.label, name), kept) for name in names}
    spans = _move(rebuild, state.find_spans(model.label), kept - failed.keys())
    made = [buffer[:n_known] for buffer in buffers]
    record = write_task(writer, model, TaskResult(task, made, failed, {}, 0, seconds, scores, spans))
    return replace(record, **_find_makers(state, model.label, {row // size for row in rows}, len(kept) - len(failed)))


def _find_makers(state: State, model: str, blocks: Collection[int], n_rows: int) -> dict[str, Any]:
    """Return what made the rows of a block that were in these blocks; of several versions of xact, all their rows."""
    records = [record for record in state.find_records(model) if record.block in blocks]
    rows = sum((Counter(record.xact) for record in records), Counter[str]())
    versions = {record.values_version for record in records if record.values_version is not None}
    return {
        "values_version": max(versions, default=None),
        "xact": dict(rows) if len(rows) > 1 else dict.fromkeys(rows, n_rows),
    }


def _load_block(
    rebuild: Rebuild, old: PlannedModel, record: TaskRecord, loaded: dict[int, list[np.ndarray]]
) -> list[np.ndarray]:
    """Return the values of one block of the old store, which are compared with their record."""
    if record.block not in loaded:
        loaded.clear()
        plan = rebuild.old
        start = record.block * plan.stimuli_per_task
        shapes = [(record.stop - start, plan.n_replicates, layer.n_units) for layer in old.layers]
        values = [np.empty(shape, dtype=np.float32) for shape in shapes]
        task = Task(old.label, record.block, start, record.stop, (), frozenset())
        load_rows(rebuild.store, plan, old, task, rebuild.state.tasks, values)
        loaded[record.block] = values
    return loaded[record.block]


def _move(rebuild: Rebuild, found: Mapping[StoreRow, T], kept: Collection[StoreRow]) -> dict[StoreRow, T]:
    """Return what was found of the rows `kept` of the new store, e.g. a score."""
    moved = {rebuild.new_rows[row]: one for row, one in found.items() if row in rebuild.new_rows}
    return {row: one for row, one in moved.items() if row in kept}
