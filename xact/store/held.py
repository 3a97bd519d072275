"""Compare the shards that a store holds with their records, before a build goes on in it and before it is published.

A build that adds rows to a shard may be killed after it has replaced the file and before its line is in the journal.
Such a shard holds the recorded rows and new ones. It is told from a damaged shard by its recorded rows: encoded again,
they are the recorded bytes.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from xact.disk.digest import hash_files, name_file_kind, open_regular
from xact.disk.durable import Written, remove_file, write_file
from xact.errors import StoreError
from xact.store.journal import FOLDER, State, TaskRecord
from xact.store.layout import make_shard_format
from xact.store.plan import Plan
from xact.store.shards import decode_shard, encode_shard
from xact.store.tasks import make_tasks

TaskKey = tuple[str, int]
"""(model, block)."""

MALFORMED = (StoreError, ValueError, RuntimeError)
"""Errors of a shard that cannot be decoded: each codec has its own."""


def check_shards(store: Path, state: State, carried: Collection[TaskKey]) -> None:
    """Compare the shards of every finished task with their records. Raise StoreError, which names the first fault.

    `carried` names the tasks whose rows this run carries over. Their shards are read and compared with their sha256,
    and so are those of a generation that is not published. Of all others, only presence and size are compared. If
    there is no fault, the shards that a killed build replaced without a line in its journal get their recorded bytes
    back.
    """
    if state.plan is None:
        return
    pending = _find_pending(state, state.plan)
    is_read = {*carried, *pending, *state.journaled}
    owners = _find_owners(state)
    faults = find_faults(store, state)
    wanted = {
        key: record.shards[key]
        for key, record in owners.items()
        if _get_key(record) in is_read and key not in faults and record.shards[key] is not None
    }
    for key, found in hash_files(store, list(wanted)).items():
        if found != wanted[key]:
            faults[key] = f"cannot be read: {found}" if isinstance(found, str) else _describe(found, wanted[key])
    replaced = [key for key in faults if _get_key(owners[key]) in pending]
    replaced = [key for key in replaced if _encode_recorded(store, state.plan, owners[key], key) is not None]
    lost = {key: found for key, found in faults.items() if key not in set(replaced)}
    if lost:
        raise _refuse(store, state, lost, _get_key(owners[min(lost)]))
    for key in replaced:
        pieces = _encode_recorded(store, state.plan, owners[key], key)
        if pieces:
            write_file(store / key, pieces)
        else:
            remove_file(store / key)


def check_presence(store: Path, state: State) -> None:
    """Compare presence and size of every shard with its record. Raise StoreError, which names the first fault."""
    faults = find_faults(store, state)
    if faults:
        raise _refuse(store, state, faults, _get_key(_find_owners(state)[min(faults)]))


def read_recorded(store: Path, key: str, want: Written | None) -> bytes | None:
    """Return the bytes of a shard, None if it is recorded as absent. Raise StoreError for any other bytes."""
    try:
        with os.fdopen(open_regular(store / key), "rb") as file:
            data = file.read()
    except FileNotFoundError:
        data = None
    except OSError as error:
        raise StoreError(f"{store / key} cannot be read: {error.strerror}", hint=_hint(store)) from None
    found = None if data is None else Written(len(data), hashlib.sha256(data).hexdigest())
    if found != want:
        raise StoreError(f"{store / key} {_describe(found, want)}", hint=_hint(store))
    return data


def find_faults(store: Path, state: State) -> dict[str, str]:
    """Return {path: what was found} of the shards whose presence or size is not the recorded one."""
    faults = {}
    for record in state.tasks.values():
        for key, want in record.shards.items():
            fault = _look(store / key, want)
            if fault is not None:
                faults[key] = fault
    return faults


def _look(file: Path, want: Written | None) -> str | None:
    try:
        found = os.lstat(file)
    except (FileNotFoundError, NotADirectoryError):
        return None if want is None else _describe(None, want)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if not stat.S_ISREG(found.st_mode):
        return f"is {name_file_kind(found.st_mode)}, not a file"
    if want is None or found.st_size != want.nbytes:
        return _describe(Written(found.st_size, ""), want)
    return None


def _describe(found: Written | None, want: Written | None) -> str:
    """Return how a shard differs from its record."""
    if want is None:
        return "exists, but no file was written: all values were NaN"
    if found is None:
        return f"is missing ({want.nbytes} bytes)"
    if found.nbytes != want.nbytes:
        return f"has {found.nbytes} bytes, {want.nbytes} were written"
    return "holds other bytes than were written"


def _refuse(store: Path, state: State, faults: Mapping[str, str], task: TaskKey) -> StoreError:
    """Return the error of the first fault; `task` is the one that wrote this shard."""
    first = min(faults)
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    hint = _hint(store)
    if task in state.journaled and state.plan is not None:
        journal = store / FOLDER / f"journal-{state.plan.generation}.jsonl"
        hint += f"; without a copy, delete {journal}: all that is not published is then captured again"
    return StoreError(f"{store / first} {faults[first]}{more}", hint=hint)


def _hint(store: Path) -> str:
    return f"put it back from a copy of the store; xact verify {store} names all that is damaged"


def _get_key(record: TaskRecord) -> TaskKey:
    return record.model, record.block


def _find_owners(state: State) -> dict[str, TaskRecord]:
    """Return {path of a shard: the task that wrote it}."""
    return {key: record for record in state.tasks.values() for key in record.shards}


def _find_pending(state: State, plan: Plan) -> set[TaskKey]:
    """Return the tasks that a killed build may have begun to write."""
    if state.is_committed:
        return set()
    return {
        (task.model, task.block)
        for model in plan.models
        for task in make_tasks(plan, model, state.find_done(model.label))
    }


def _encode_recorded(store: Path, plan: Plan, record: TaskRecord, key: str) -> list[bytes] | None:
    """Return the recorded bytes of a shard that holds more rows than are recorded; no pieces if it was absent.

    Return None if the recorded rows are not in the file as they were.
    """
    model = plan.find_model(record.model)
    if model is None:
        return None
    start = record.block * plan.stimuli_per_task
    layer, units = next(
        (layer, units)
        for layer in model.layers
        for name, units in plan.make_shard_keys(model, layer, record.block)
        if name == key
    )
    form = make_shard_format(plan, layer)
    values = np.empty((record.stop - start, plan.n_replicates, min(units.stop, layer.n_units) - units.start), "<f4")
    try:
        with os.fdopen(open_regular(store / key), "rb") as file:
            decode_shard(file.read(), store / key, form, values)
    except (*MALFORMED, OSError):
        return None
    values[[row - start for row in record.failed]] = np.nan
    with ThreadPoolExecutor(
        1
    ) as pool:  # blosc uses several threads in the main thread: its bytes are not the same then
        pieces = pool.submit(encode_shard, values, form.shape, plan.codec).result() or []
    found = Written(sum(map(len, pieces)), hashlib.sha256(b"".join(pieces)).hexdigest()) if pieces else None
    return pieces if found == record.shards[key] else None
