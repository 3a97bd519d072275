"""Plan, journal and manifest: the record of a build, kept as plain files in the folder `.xact` of a store.

plan-G.json       the plan of generation G; it is written first
journal-G.jsonl   one line for each finished task and each loaded network, with the hashes of new stimuli; a line
                  `dropped` takes back the tasks of a model in the lines before it, and of one without a value all
replaced-G.jsonl  the record of each shard that takes the place of an older one; it is written before that happens
manifest-G.jsonl  the content of the journals and the hash of every file; it is written just before G is published
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from xact.disk.digest import hash_file
from xact.disk.durable import (
    Written,
    append_line,
    make_sealed_lines,
    parse_json,
    read_lines,
    read_sealed_lines,
    read_whole,
    remove_file,
    write_file,
)
from xact.disk.locks import check_held
from xact.disk.places import Place, find_file_state
from xact.errors import StoreError, make_command
from xact.store.check_journal import ShardKeys, find_line_fault, find_plan_fault, is_former
from xact.store.check_metadata import is_inside
from xact.store.plan import Plan
from xact.store.state import State, say_written

FOLDER = ".xact"
"""Folder of a store that zarr ignores."""

INBOX = "inbox"
"""Folder in `.xact` with one folder for each worker of a build."""

GROWING = ("journal", "replaced")
"""Files of a generation to which lines are added while it is built."""


def hint_verify(store: Place) -> str:
    """Return what to do about a store whose own records are damaged."""
    return f"{make_command('verify', store)} names what is damaged; copy the store again"


class Journal:
    """The journal of the generation that is being built. Every line is on disk when `add` returns."""

    def __init__(self, store: Path, generation: int) -> None:
        self.path = store / FOLDER / f"journal-{generation}.jsonl"
        self._replaced = store / FOLDER / f"replaced-{generation}.jsonl"

    def add(self, line: dict[str, Any]) -> None:
        """Append one line and sync it. A file that has a second name, e.g. in a copy of links, is copied first."""
        _add_line(self.path, line)

    def add_replaced(self, shards: Mapping[str, tuple[Written | None, Written | None]]) -> dict[str, Any]:
        """Note {path: (old record, new record)} of shards before they are replaced, and return the line."""
        line = {"replaced": {key: [say_written(old), say_written(new)] for key, (old, new) in shards.items()}}
        _add_line(self._replaced, line)
        return line


def _add_line(file: Path, line: dict[str, Any]) -> None:
    check_held(file.parent)
    _leave_links(file)
    append_line(file, line)


def _leave_links(file: Path) -> None:
    """Copy a file to a new one if it has a second name: the file of that name must not change."""
    try:
        n_names = file.lstat().st_nlink
    except FileNotFoundError:
        return
    if n_names > 1:
        try:
            data = read_whole(file)
        except OSError as error:
            raise StoreError(f"{file} cannot be read: {error.strerror}") from None
        write_file(file, [data])


def load_state(store: Place) -> State:
    """Read the journals of a store. Raise StoreError if the newest plan is damaged, or not one after the root's.

    At a URL, where nothing may be listed, only the generation that readers see is read.
    """
    folder = store / FOLDER
    state = State(committed=read_generation(store))
    published = [state.committed] if state.committed else []
    plans = find_generations(folder, "plan") if isinstance(folder, Path) else published
    if not plans and not state.committed:
        return state
    newest = max(plans, default=0)
    if newest < state.committed:
        raise StoreError(
            f"{folder / f'plan-{state.committed}.json'} is missing: the store cannot be resumed",
            hint=hint_verify(store),
        )
    if newest > state.committed + 1:
        raise StoreError(
            f"{store / 'zarr.json'} has generation {state.committed}, the newest plan has {newest}: it is damaged or "
            "older than the rest of the store",
            hint=hint_verify(store),
        )
    state.plan = read_plan(folder / f"plan-{newest}.json")
    if state.committed:
        manifest = folder / f"manifest-{state.committed}.jsonl"
        lines = read_manifest(manifest)
        if newest == state.committed:
            _check_plan(store, f"{FOLDER}/plan-{newest}.json", lines)
        take_lines(state, lines, state.plan, file=manifest)
        state.published = dict(state.tasks)
    if newest > state.committed:
        journal = folder / f"journal-{newest}.jsonl"
        take_lines(state, read_lines(journal), state.plan, file=journal)
        replaced = folder / f"replaced-{newest}.jsonl"
        take_lines(state, read_lines(replaced), state.plan, file=replaced)
        state.journaled = frozenset(
            key for key, record in state.tasks.items() if state.published.get(key) is not record
        )
    return state


def _check_plan(store: Place, key: str, lines: Iterable[dict[str, Any]]) -> None:
    """Refuse a plan whose bytes are not those that the manifest of its generation names."""
    said = next((line for line in lines if line.get("file") == key), None)
    found = hash_file(store / key)
    if said is not None and (said.get("nbytes"), said.get("sha256")) != (found.nbytes, found.sha256):
        raise StoreError(
            f"{store / key} is damaged: it is not the plan that the manifest names", hint=hint_verify(store)
        )


def take_lines(state: State, lines: Iterable[dict[str, Any]], plan: Plan, *, file: Place) -> None:
    """Add the lines of a file to `state`. Raise StoreError for a line that no build of `plan` can have written."""
    keys = ShardKeys(plan)
    for line in lines:
        fault = find_line_fault(line, plan, keys)
        if fault is not None:
            raise StoreError(f"{file} is damaged: {fault}", hint=hint_verify(file.parent.parent))
        if not is_former(line, plan, keys):
            state.take(line)


def read_generation(store: Place) -> int:
    """Return the generation that readers see; 0 if the store is unfinished or does not exist."""
    file = store / "zarr.json"
    try:
        generation = parse_json(read_whole(file))["attributes"]["xact_generation"]
    except FileNotFoundError:
        return 0
    except (OSError, ValueError, KeyError, TypeError):
        generation = None
    if type(generation) is not int or generation < 0:
        raise StoreError(f"{file} is not the root of an xact store", hint="give another path for the store")
    return generation


def find_generations(folder: Path, kind: str) -> list[int]:
    """Return the generations that have a file `KIND-G` in `folder`; `kind` is plan, journal, replaced or manifest."""
    found = [re.fullmatch(rf"{kind}-(\d+)\.jsonl?", file.name) for file in folder.glob(f"{kind}-*")]
    return [int(match[1]) for match in found if match]


def read_plan(file: Place) -> Plan:
    """Read a plan. Raise StoreError if the file is missing or damaged."""
    try:
        plan = Plan.model_validate_json(read_whole(file))
    except FileNotFoundError:
        raise StoreError(f"{file} is missing: the store cannot be resumed") from None
    except OSError as error:
        raise StoreError(f"{file} cannot be read: {error.strerror}") from None
    except ValidationError as error:
        raise StoreError(f"{file} is damaged ({error.error_count()} faults): the store cannot be resumed") from None
    fault = find_plan_fault(plan)
    if fault is not None:
        raise StoreError(f"{file} is damaged: {fault}", hint=hint_verify(file.parent.parent))
    return plan


def write_plan(store: Path, plan: Plan) -> None:
    """Write a plan and sync it."""
    check_held(store / FOLDER)
    write_file(store / FOLDER / f"plan-{plan.generation}.json", [plan.model_dump_json().encode()])


def write_manifest(store: Path, state: State, files: dict[str, Written]) -> None:
    """Write the manifest of the plan's generation: the state, the hash of every file, and the hash of these lines."""
    if state.plan is None:
        raise StoreError(f"{store}: there is no plan to write a manifest of")
    generation = state.plan.generation
    own = [f"{FOLDER}/plan-{generation}.json", *(f"{FOLDER}/{kind}-{generation}.jsonl" for kind in GROWING)]
    files = files | {key: hash_file(store / key) for key in own if (store / key).is_file()}
    lines = [*state.make_lines(), *({"file": key, "nbytes": w.nbytes, "sha256": w.sha256} for key, w in files.items())]
    check_held(store / FOLDER)
    write_file(store / FOLDER / f"manifest-{generation}.jsonl", make_sealed_lines(lines))


def read_manifest(file: Place) -> list[dict[str, Any]]:
    """Return the lines of a manifest. Raise StoreError if they do not match their hash."""
    if find_file_state(file, follows_links=True) is None:
        raise StoreError(f"{file} is missing: the store cannot be checked or resumed")
    try:
        return [dict(parse_json(line)) for line in read_sealed_lines(file)]
    except (ValueError, TypeError):
        raise StoreError(
            f"{file} is damaged: a line is not a JSON object", hint=hint_verify(file.parent.parent)
        ) from None


def list_files_of(manifest: Place) -> set[str]:
    """Return the paths of the metadata and labels that a manifest names."""
    lines = (line for line in read_sealed_lines(manifest) if line.startswith(b'{"file"'))
    keys = {str(parse_json(line)["file"]) for line in lines}
    return {key for key in keys if is_inside(key) and not key.startswith(f"{FOLDER}/")}


def list_boxes(store: Path) -> list[Path]:
    """Return the folders of workers, without links."""
    try:
        with os.scandir(store / FOLDER / INBOX) as entries:
            return sorted(Path(entry) for entry in entries if entry.is_dir(follow_symlinks=False))
    except (FileNotFoundError, NotADirectoryError):
        return []


def remove_older(store: Path, generation: int) -> None:
    """Remove plan, journal and manifest of every older generation, and the metadata and labels that only they name."""
    folder = store / FOLDER
    for old in find_generations(folder, "manifest"):
        if old < generation:
            with suppress(StoreError):  # a damaged manifest: `verify` names the files that stay
                left = list_files_of(folder / f"manifest-{old}.jsonl")
                for key in left - list_files_of(folder / f"manifest-{generation}.jsonl"):
                    remove_file(store / key)
    for kind, ending in (("plan", "json"), *((kind, "jsonl") for kind in GROWING), ("manifest", "jsonl")):
        for old in find_generations(folder, kind):
            if old < generation:
                remove_file(folder / f"{kind}-{old}.{ending}")
