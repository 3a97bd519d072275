"""`xact drop`: take models or stimuli out of a store.

Files that a reader may have open are never changed: the smaller store is written as a whole, beside the old one, and
takes its place when every byte of it was compared with its manifest. Shards that stay as they are become links to the
same bytes where the file system has links.
"""

from __future__ import annotations

import itertools
import os
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from xact.building.provenance import make_provenance
from xact.building.write_task import load_rows, write_task
from xact.capture.engine import TaskResult
from xact.disk.digest import hash_files, list_files
from xact.disk.durable import Written, count_free_nbytes, make_folder, parse_json, sync_folder, write_file
from xact.disk.exchange import exchange, find_left, find_rebuilding, hint_missing, settle
from xact.disk.locks import hold_lock
from xact.disk.paths import expand_path
from xact.errors import NoStoreError, RequestError, StoreError, WorkError, make_command
from xact.labels import StoreRow
from xact.reading.catalog import Names, find_names
from xact.store.expected import find_expected
from xact.store.held import read_recorded
from xact.store.hold import check_writable, hold_store
from xact.store.journal import FOLDER, State, TaskRecord, load_state, read_manifest
from xact.store.plan import Plan, PlannedModel, PlannedStimuli
from xact.store.snapshot import Room, load_label, open_snapshot
from xact.store.tasks import Task, make_rows
from xact.store.verify import verify_store
from xact.store.write import StoreWriter

T = TypeVar("T")

NOT_CAPTURED = "not captured yet when other stimuli were taken out"
"""Recorded as the failure of a row without a value between rows with values; the next build tries it."""

N_THREADS = 2
"""Models that are carried over at once; each needs the memory of three tasks."""


@dataclass(frozen=True)
class PlannedDrop:
    """What is taken out of a store."""

    store: Path
    models: tuple[str, ...]
    stimuli: tuple[str, ...]
    nbytes: int
    """About how many bytes of values go."""
    needed_nbytes: int
    """About how many bytes the smaller store needs beside the old one, until that is removed."""
    generation: int
    """Generation of the store without them."""


def drop(
    store: str | Path,
    *,
    models: Names = None,
    stimuli: Names = None,
    confirm: Callable[[PlannedDrop], bool] = lambda _: True,
) -> PlannedDrop:
    """Take models or stimuli out of a finished store.

    All other values and labels stay, bit for bit. The result is a new generation: programs that have the store open
    must open it again. After a kill the store is the old one or the new one; between two renames there is none, and the
    next `xact build` or `xact drop` of this store puts it back.

    Parameters
    ----------
    store : str or Path
        Folder of the store.
    models, stimuli : str, iterable of str, or None
        Labels or globs (`*` matches any text, `?` one character) of what goes. Not both may be None.
    confirm : callable, optional
        `confirm(planned)` is called before anything is written. If it returns False, nothing is dropped. Default:
        always True.

    Returns
    -------
    PlannedDrop
        `store`, `models` and `stimuli` (labels of what went), `nbytes` (about the size of their values), and
        `generation`.

    Raises
    ------
    NoStoreError
        If there is no store.
    NameNotFoundError
        If a label or glob has no match.
    RequestError
        If nothing is named, or if no model or no stimulus would be left.
    StoreError
        If the store is not finished, is being built, holds files that are not its own, or is damaged in what stays; or
        if the disk has no room.
    WorkError
        If `confirm` returned False.

    Examples
    --------
    >>> dropped = xact.drop("objects.zarr", models="*@random-3", stimuli=["img_050"])
    """
    path = expand_path(store)
    if not (path / FOLDER).is_dir() and find_left(path) is None:
        raise NoStoreError(f"there is no xact store at {str(path)!r}", hint=hint_missing(path))
    with hold_store(path) as may_write:
        check_writable(path, may_write=may_write)
        rebuild = _plan(path, load_state(path), models, stimuli)
        if not confirm(rebuild.planned):
            raise WorkError("nothing was dropped", hint="--yes drops it")
        _check_room(rebuild)
        try:
            with hold_lock(find_rebuilding(path) / FOLDER):
                _write(rebuild)
                exchange(path)
        finally:
            settle(path)  # also after an error or a signal: nothing is left beside the store
    return rebuild.planned


@dataclass(frozen=True)
class _Rebuild:
    """A store, and its plan without what is dropped."""

    planned: PlannedDrop
    state: State
    old: Plan
    plan: Plan
    rows: Sequence[StoreRow]
    """The rows of the old store that stay."""

    @property
    def store(self) -> Path:
        return self.planned.store

    @cached_property
    def new_rows(self) -> Mapping[StoreRow, StoreRow]:
        """{row of the old store: row of the new store}."""
        return {row: StoreRow(i) for i, row in enumerate(self.rows)}

    def is_same(self, block: int) -> bool:
        """Return True if a block has the same rows in the old and in the new store."""
        size = self.old.stimuli_per_task
        start, stop = block * size, min((block + 1) * size, self.old.n_stimuli)
        return list(self.rows[start : start + size]) == list(range(start, stop))


def _plan(path: Path, state: State, models: Names, stimuli: Names) -> _Rebuild:
    """Return what stays and what goes. Refuse what cannot be dropped."""
    old = state.plan
    if old is None or not state.is_committed:
        raise StoreError(
            f"the store {str(path)!r} is not finished: nothing can be dropped yet",
            hint="run its build to the end first; the recipe may leave out models that fail",
        )
    if models is None and stimuli is None:
        raise RequestError("nothing is named", hint="name what to drop: --models, --stimuli")
    known = [model.label for model in old.models]
    gone, lost = _find(path, models, known, "model"), _find(path, stimuli, old.stimuli.ids, "stimulus")
    rows = [row for row in make_rows(0, old.n_stimuli) if old.stimuli.ids[row] not in lost]
    _check_files(path)
    plan = _make_plan(old, gone, rows)
    planned = PlannedDrop(path, tuple(gone), tuple(lost), 0, 0, plan.generation)
    rebuild = _Rebuild(planned, state, old, plan, rows)
    gone_nbytes, needed_nbytes = _count_nbytes(rebuild)
    return replace(rebuild, planned=replace(planned, nbytes=gone_nbytes, needed_nbytes=needed_nbytes))


def _find(path: Path, wanted: Names, known: Sequence[str], what: str) -> dict[str, None]:
    """Return the names that go, in the order of the store."""
    if wanted is None:
        return {}
    hint = f"xact.load_stimuli({str(path)!r}) lists all"
    if what == "model":
        hint = f"{make_command('info', path)} lists the models"
    found = set(find_names(wanted, known, what=f"the store {str(path)!r} has no {what}", hint=hint))
    if len(found) == len(known):
        raise RequestError(f"no {what} would be left in the store {str(path)!r}", hint="delete its folder instead")
    return dict.fromkeys(name for name in known if name in found)


def _check_files(path: Path) -> None:
    """Refuse a store that holds files of others: they would go with the old folder."""
    listing = list_files(path)
    expected = find_expected(path, listing)
    others = [key for key in listing.files if key not in expected.files and not expected.owns(key)]
    others += listing.others
    if others:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        raise StoreError(f"{path / min(others)}{more} is not a file of the store", hint="move it away first")


def _make_plan(old: Plan, gone: Mapping[str, None], rows: Sequence[StoreRow]) -> Plan:
    """Return the plan of the store without the models `gone`, with the stimuli of `rows`."""
    models = []
    for model in old.models:
        if model.label not in gone:
            segments = dict.fromkeys(bisect_left(rows, first) for first in model.segments)
            n_stimuli = bisect_left(rows, model.n_stimuli)
            models.append(model.model_copy(update={"n_stimuli": n_stimuli, "segments": tuple(segments)}))
    labels = {layer.label for model in models for layer in model.layers}
    stimuli = old.stimuli
    columns = {name: [column[row] for row in rows] for name, column in stimuli.columns.items()}
    return old.model_copy(
        update={
            "generation": old.generation + 1,
            "models": tuple(models),
            "layer_labels": tuple(label for label in old.layer_labels if label in labels),
            "model_paths": {label: part for label, part in old.model_paths.items() if label not in gone},
            "layer_paths": {label: parts for label, parts in old.layer_paths.items() if label not in gone},
            "failed_models": {label: error for label, error in old.failed_models.items() if label not in gone},
            "stimuli": PlannedStimuli(
                ids=[stimuli.ids[row] for row in rows],
                conditions=[stimuli.conditions[row] for row in rows],
                stems=[stimuli.stems[row] for row in rows],
                files=[stimuli.files[row] for row in rows],
                columns=columns,
                column_types=stimuli.column_types,
            ),
        }
    )


def _count_nbytes(rebuild: _Rebuild) -> tuple[int, int]:
    """Return about (bytes of values that go, bytes that must be written anew)."""
    gone = needed = 0
    size, can_link = rebuild.old.stimuli_per_task, _can_link(rebuild.store)
    for record in rebuild.state.tasks.values():
        nbytes = sum(written.nbytes for written in record.shards.values() if written is not None)
        first = record.block * size
        n_kept = bisect_left(rebuild.rows, record.stop) - bisect_left(rebuild.rows, first)
        kept = nbytes * n_kept // (record.stop - first) if rebuild.plan.find_model(record.model) else 0
        gone += nbytes - kept
        needed += 0 if can_link and rebuild.is_same(record.block) else kept
    return gone, needed


def _can_link(store: Path) -> bool:
    """Return True if the file system of a store has hard links."""
    trial = store / FOLDER / "link.partial"  # a build removes what ends so
    trial.unlink(missing_ok=True)
    try:
        os.link(store / "zarr.json", trial)
    except OSError:
        return False
    trial.unlink()
    return True


def _check_room(rebuild: _Rebuild) -> None:
    free, needed = count_free_nbytes(find_rebuilding(rebuild.store).parent), rebuild.planned.needed_nbytes
    if needed > free:
        raise StoreError(
            f"no room to write the smaller store beside {str(rebuild.store)!r}: {free} bytes are free, about {needed} "
            "are needed until the old one is removed",
            hint="make room and run the same command again",
        )


def _write(rebuild: _Rebuild) -> None:
    """Write the smaller store beside the old one, and compare every byte of it with its manifest."""
    plan, state, new = rebuild.plan, rebuild.state, find_rebuilding(rebuild.store)
    present = [state.find_present(model.label, rebuild.old) for model in plan.models]
    stamps = {rebuild.new_rows[row]: stamp for row, stamp in state.stamps.items() if row in rebuild.new_rows}
    stamps = {row: stamp for row, stamp in stamps.items() if any(has[rebuild.rows[row]] for has in present)}
    moved = {"is_rebatched": True} if rebuild.planned.stimuli else {}  # no batch of the plan ran as it is there
    networks = {label: found | moved for label, found in state.networks.items() if plan.find_model(label) is not None}
    with StoreWriter(new, plan, State(stamps=stamps, networks=networks), jitter=_load_jitter(rebuild)) as writer:
        with ThreadPoolExecutor(N_THREADS) as pool:
            for done in [pool.submit(_carry_model, rebuild, writer, model) for model in plan.models]:
                done.result()
        failed_models = _load_failed_models(rebuild)
        is_whole = all(writer.state.is_whole(model.label, plan) for model in plan.models)
        writer.publish(make_provenance(plan, writer.state, failed_models), complete=is_whole and not failed_models)
    faults = verify_store(new).faults
    if faults:
        raise StoreError(f"{new / faults[0].file} {faults[0].found}: the store stays as it was")


def _load_jitter(rebuild: _Rebuild) -> dict[str, np.ndarray]:
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


def _load_failed_models(rebuild: _Rebuild) -> dict[str, str]:
    """Return {model: error} of the networks that failed, without those that are dropped."""
    said = open_snapshot(rebuild.store).metadata["xact"]["attributes"]["provenance"]
    failed: dict[str, str] = parse_json(said).get("failed_models", {})
    return {label: error for label, error in failed.items() if label not in rebuild.planned.models}


def _carry_model(rebuild: _Rebuild, writer: StoreWriter, model: PlannedModel) -> None:
    """Write the rows of one model that stay."""
    old = rebuild.old.find_model(model.label)
    if old is None:
        raise StoreError(f"the plan of {str(rebuild.store)!r} has no model {model.label!r}")
    size = rebuild.plan.stimuli_per_task
    loaded: dict[int, list[np.ndarray]] = {}
    for block in range(-(-model.n_stimuli // size)):
        record = rebuild.state.tasks.get((model.label, block))
        if not rebuild.is_same(block):
            rows = rebuild.rows[block * size : min((block + 1) * size, model.n_stimuli)]
            made = _carry_rows(rebuild, writer, old, model, block, rows, loaded)
        elif record is not None:
            made = _carry_block(rebuild, writer, old, model, record)
        else:
            made = None
        if made is not None:
            writer.add_task(made)


def _carry_block(
    rebuild: _Rebuild, writer: StoreWriter, old: PlannedModel, model: PlannedModel, record: TaskRecord
) -> TaskRecord:
    """Take over the shards of one block byte for byte."""
    shards: dict[str, Written | None] = {}
    for before, after in zip(old.layers, model.layers, strict=True):
        keys = rebuild.old.make_shard_keys(old, before, record.block)
        for (key, _), (new, _) in zip(keys, rebuild.plan.make_shard_keys(model, after, record.block), strict=True):
            data = read_recorded(rebuild.store, key, record.shards[key])
            shards[new] = record.shards[key]
            if data is not None:
                _take_over(rebuild.store / key, writer.store / new, data)
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
    rebuild: _Rebuild,
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
    rebuild: _Rebuild, old: PlannedModel, record: TaskRecord, loaded: dict[int, list[np.ndarray]]
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


def _move(rebuild: _Rebuild, found: Mapping[StoreRow, T], kept: Collection[StoreRow]) -> dict[StoreRow, T]:
    """Return what was found of the rows `kept` of the new store, e.g. a score."""
    moved = {rebuild.new_rows[row]: one for row, one in found.items() if row in rebuild.new_rows}
    return {row: one for row, one in moved.items() if row in kept}
