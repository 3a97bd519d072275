"""Compare the shards that a store holds with their records, before a build goes on in it and before it is published.

A build that adds rows to a shard may be killed after it has replaced the file and before its line is in the journal.
Such a shard holds the recorded rows and new ones; its record was noted before it was renamed.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

from xact.disk.digest import hash_files, name_file_kind, open_regular
from xact.disk.durable import Written
from xact.errors import StoreError, make_command
from xact.store.journal import FOLDER
from xact.store.state import State, TaskRecord

TaskKey = tuple[str, int]
"""(model, block)."""


def check_shards(store: Path, state: State, carried: Collection[TaskKey]) -> State:
    """Compare the shards of every finished task with their records. Raise StoreError, which names the first fault.

    `carried` names the tasks whose rows this run carries over. Their shards are read and compared with their sha256,
    and so are those of a generation that is not published. Of all others, only presence and size are compared. Return
    the state to go on from: a shard that a killed build replaced has its new record.
    """
    is_read = {*carried, *state.journaled}
    owners = _find_owners(state)
    faults = find_faults(store, state)
    keys = [
        key
        for key, record in owners.items()
        if (key in state.replaced and os.path.lexists(store / key))
        or (_get_key(record) in is_read and key not in faults and record.shards[key] is not None)
    ]
    newer: dict[str, Written | None] = {}
    for key, found in hash_files(store, keys).items():
        want = owners[key].shards[key]
        if isinstance(found, str):
            faults.setdefault(key, f"cannot be read: {found}")
        elif found in state.find_newer(key, want):
            newer[key] = found
            faults.pop(key, None)
        elif found != want:
            faults[key] = _describe(found, want)
    if faults:
        raise _refuse(store, state, faults, _get_key(owners[min(faults)]))
    return _take_newer(state, newer)


def _take_newer(state: State, newer: Mapping[str, Written | None]) -> State:
    """Return a state whose records name the shards that are there."""
    state = state.copy()
    for task, record in state.tasks.items():
        found = {key: newer[key] for key in record.shards.keys() & newer.keys()}
        if found:
            state.tasks[task] = replace(record, shards=record.shards | found)
            state.grown.add(task)
    return state


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
    folder = str(store)
    for record in state.tasks.values():
        for key, want in record.shards.items():
            fault = _look(f"{folder}/{key}", want)  # a path of pathlib takes longer than the look
            if fault is not None:
                faults[key] = fault
    return faults


def _look(file: str, want: Written | None) -> str | None:
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
    return f"put it back from a copy of the store; {make_command('verify', store)} names all that is damaged"


def _get_key(record: TaskRecord) -> TaskKey:
    return record.model, record.block


def _find_owners(state: State) -> dict[str, TaskRecord]:
    """Return {path of a shard: the task that wrote it}."""
    return {key: record for record in state.tasks.values() for key in record.shards}
