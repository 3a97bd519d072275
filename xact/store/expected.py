"""List the files that a store should contain, from its manifest and journals.

Only files that a listing found inside the store are opened. A path that a manifest names is never opened.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from xact.disk.digest import FolderListing
from xact.disk.durable import PARTIAL, Written, read_lines
from xact.disk.exchange import hint_missing
from xact.disk.places import Place, read_whole
from xact.errors import NoStoreError, StoreError
from xact.store.check_metadata import is_inside
from xact.store.contact import CONTACT
from xact.store.findings import Fault
from xact.store.journal import FOLDER, INBOX, list_files_of, read_manifest, read_plan, take_lines
from xact.store.layout import make_files, make_metadata, make_shard_format, make_tree, make_unfinished_root
from xact.store.plan import Plan
from xact.store.runs import RUN
from xact.store.shards import ShardFormat
from xact.store.state import State
from xact.store.tasks import make_tasks

ROOT = "zarr.json"
"""The metadata file of the root. It decides what readers see."""

CLAIM = f"{FOLDER}/push.json"
"""What says, at a URL, that a push is under way."""

MALFORMED = (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError, RecursionError)
"""Errors that a line raises if xact did not write it."""


@dataclass(frozen=True)
class PendingShard:
    """A shard of a task that is not in the journal yet. The file may be the old one, the new one, or missing."""

    form: ShardFormat
    shapes: dict[int, tuple[int, int, int]]
    """{position along the layer axis of the shard: shape of the values (stimulus, replicate, unit)}."""


@dataclass
class UnderWay:
    """The files that a generation may have written before it is published."""

    generation: int
    shards: dict[str, Written | None] = field(default_factory=dict)
    """Shards of the tasks in its journal: {path: length and sha256}."""
    pending: dict[str, PendingShard] = field(default_factory=dict)
    """Shards of the tasks that no journal or manifest has: {path: shard}."""
    newer: dict[str, set[Written | None]] = field(default_factory=dict)
    """{path: records of the shards that may be in the place of the recorded one}."""
    made: dict[str, set[str]] = field(default_factory=dict)
    """{path of metadata or labels: sha256 of each content that the file may have}."""
    unhashed: set[str] = field(default_factory=set)
    """Paths of metadata and labels whose bytes only the build knows."""


@dataclass
class Expected:
    """The files that a store should contain."""

    generation: int = 0
    """The generation that the files are compared with; 0 if nothing is published."""
    files: dict[str, Written | None] = field(default_factory=dict)
    """{path: length and sha256}; None if all values were NaN, so that no file was written."""
    under_way: UnderWay | None = None
    faults: list[Fault] = field(default_factory=list)
    """Faults of the plan, journal and manifest themselves."""
    is_comparable: bool = True
    """False if there is nothing to compare the files with."""
    left: set[str] = field(default_factory=set)
    """Files that an older manifest names. The next build removes them, and that manifest."""

    def owns(self, key: str) -> bool:
        """Return True for a working file of a build: lock, holder, half-written file, or the files of a generation."""
        if key.endswith(PARTIAL) or key in self.left or key in _WORKING:
            return True
        if key.startswith(f"{FOLDER}/{INBOX}/"):  # of workers: the next build adopts or removes it
            return True
        match = _GENERATION_FILE.fullmatch(key)
        newest = self.under_way.generation if self.under_way else self.generation
        return match is not None and int(match[2]) <= newest


_WORKING = {*(f"{FOLDER}/{name}" for name in ("lock", "holder.json", CONTACT, RUN)), CLAIM}
_GENERATION_FILE = re.compile(rf"{re.escape(FOLDER)}/(?:plan-|journal-|replaced-|(manifest-))([1-9]\d{{0,15}})\.jsonl?")


def find_expected(store: Place, listing: FolderListing) -> Expected:
    """Return the files that a store should contain. Raise StoreError if there is no store."""
    manifests, others = _find_generations(listing, is_manifest=True), _find_generations(listing, is_manifest=False)
    root = read_root_generation(store, listing)
    if root is None and not manifests and not others:
        hint = hint_missing(store, "give the path of a store or of an export")
        raise NoStoreError(f"there is no xact store at {str(store)!r}", hint=hint)
    expected = Expected(root if root in manifests else max(manifests, default=root or 0))
    if expected.generation:
        _take_manifest(store, expected, root, has_manifest=expected.generation in manifests)
    for older in manifests:
        if older < expected.generation:
            with contextlib.suppress(*MALFORMED, StoreError, OSError):
                expected.left |= list_files_of(store / FOLDER / f"manifest-{older}.jsonl")
    newest = max(others, default=0)
    if newest > expected.generation and expected.is_comparable:
        _take_under_way(store, listing, expected, newest)
    return expected


def read_root_generation(store: Place, listing: FolderListing) -> int | None:
    """Return the generation in the metadata file of the root, or None if it cannot be read."""
    if ROOT not in listing.files:
        return None
    try:
        return int(json.loads(read_whole(store / ROOT))["attributes"]["xact_generation"])
    except (*MALFORMED, OSError):
        return None


def list_generation_files(listing: FolderListing) -> set[str]:
    """Return the paths of all plans, journals and manifests."""
    return {key for key in listing.files if _GENERATION_FILE.fullmatch(key)}


def _find_generations(listing: FolderListing, *, is_manifest: bool) -> list[int]:
    found = [_GENERATION_FILE.fullmatch(key) for key in listing.files if key.startswith(FOLDER)]
    return [int(match[2]) for match in found if match and bool(match[1]) == is_manifest]


def _take_manifest(store: Place, expected: Expected, root: int | None, *, has_manifest: bool) -> None:
    """Fill `expected.files` from the manifest of its generation."""
    key = f"{FOLDER}/manifest-{expected.generation}.jsonl"
    expected.is_comparable = has_manifest
    if not has_manifest:
        expected.faults.append(Fault(key, "is missing: without it nothing can be compared"))
        return
    try:
        expected.files = dict(_read_files(read_manifest(store / key)))
    except StoreError as error:
        found = str(error).removeprefix(f"{store / key} ")
        expected.faults.append(Fault(key, f"{found}: nothing can be compared with it"))
        expected.is_comparable = False
    except (*MALFORMED, OSError):
        expected.faults.append(Fault(key, "holds lines that xact did not write: nothing can be compared with it"))
        expected.is_comparable = False
    for name in [name for name in expected.files if not is_inside(name)]:
        expected.faults.append(Fault(key, f"names {name!r}, which is outside the store"))
        del expected.files[name]
    if root is not None and root != expected.generation:
        expected.faults.append(
            Fault(
                ROOT,
                f"has generation {root}, the manifest {expected.generation}: rolled back, or never published",
            )
        )


def read_named(manifest: Place) -> dict[str, Written | None]:
    """Return {path: length and sha256} of the files that a manifest names. Raise StoreError if it is damaged."""
    try:
        return dict(_read_files(read_manifest(manifest)))
    except MALFORMED:
        raise StoreError(f"{manifest} holds lines that xact did not write") from None


def _read_files(lines: Iterable[dict[str, Any]]) -> Iterator[tuple[str, Written | None]]:
    """Yield (path, length and sha256) of every file that the lines of a manifest or journal name."""
    state = State()
    for line in lines:
        state.take(line)
        if "file" in line:
            yield _check(line["file"], Written(line["nbytes"], line["sha256"]))
    for record in state.tasks.values():
        for key, written in record.shards.items():
            yield _check(key, written)


def _check(key: object, written: Written | None) -> tuple[str, Written | None]:
    is_sound = written is None or (type(written.nbytes) is int and isinstance(written.sha256, str))
    if not isinstance(key, str) or not is_sound:
        raise ValueError(f"{key!r} is not a file with a length and a hash")
    return key, written


def _take_under_way(store: Place, listing: FolderListing, expected: Expected, generation: int) -> None:
    """Fill `expected.under_way` from the plan and journal of a generation that is not published."""
    folder = store / FOLDER
    plan_key, journal_key = f"{FOLDER}/plan-{generation}.json", f"{FOLDER}/journal-{generation}.jsonl"
    under_way = expected.under_way = UnderWay(generation)
    if plan_key not in listing.files:
        expected.faults.append(
            Fault(plan_key, "is missing: the generation that is being built cannot be checked or resumed")
        )
        return
    try:
        plan = read_plan(store / plan_key)
    except (StoreError, OSError):
        expected.faults.append(
            Fault(plan_key, "is damaged: the generation that is being built cannot be checked or resumed")
        )
        return
    state = State(plan=plan)
    try:
        held = read_manifest(folder / f"manifest-{expected.generation}.jsonl") if expected.generation else []
        lines = read_lines(store / journal_key) if journal_key in listing.files else []
        take_lines(state, held, plan, file=store / journal_key)
        state.published = dict(state.tasks)
        take_lines(state, lines, plan, file=store / journal_key)
        under_way.shards = {key: w for key, w in _read_files(lines) if is_inside(key)}
        replaced_key = f"{FOLDER}/replaced-{generation}.jsonl"
        if replaced_key in listing.files:
            take_lines(state, read_lines(store / replaced_key), plan, file=store / replaced_key)
        under_way.newer = _find_newer(state)
    except (*MALFORMED, StoreError, OSError):
        expected.faults.append(Fault(journal_key, "holds lines that xact did not write"))
    under_way.pending = dict(_find_pending(plan, state))
    _take_made(store, listing, plan, state, under_way)
    if not expected.generation:
        roots = [make_unfinished_root(plan, complete=complete) for complete in (0, False)]
        under_way.made[ROOT] = {hashlib.sha256(root).hexdigest() for root in roots}


def _find_newer(state: State) -> dict[str, set[Written | None]]:
    recorded = {key: written for record in state.tasks.values() for key, written in record.shards.items()}
    return {key: state.find_newer(key, recorded[key]) for key in state.replaced if key in recorded}


def _find_pending(plan: Plan, state: State) -> Iterator[tuple[str, PendingShard]]:
    """Yield the shards of all tasks of a plan that were never written."""
    for model in plan.models:
        done = state.find_done(model.label)
        for task in make_tasks(plan, model, done):
            if task.block in done:
                continue
            for shard in plan.list_shards(model, task.block):
                shapes = {
                    part.place: (
                        task.stop - task.start,
                        plan.n_replicates,
                        min(part.units.stop, model.layers[part.layer].n_units) - part.units.start,
                    )
                    for part in shard.parts
                }
                yield shard.key, PendingShard(make_shard_format(plan, shard.shape), shapes)


def _take_made(store: Place, listing: FolderListing, plan: Plan, state: State, under_way: UnderWay) -> None:
    """Add every content that the metadata and labels of a plan may have before it is published."""
    jitter = {name: np.zeros((plan.n_stimuli, plan.n_replicates)) for name in plan.jitter_names}
    for is_final in (False, True):  # the labels sha256 and `present` are added after the last task
        tree = make_tree(plan, state, jitter, final=is_final)
        for key, data in make_files(tree, make_metadata(plan, tree, {}), separator=plan.separator).items():
            under_way.made.setdefault(key, set()).add(hashlib.sha256(data).hexdigest())
    under_way.unhashed = {key for key in under_way.made if _is_amount(key, plan)}
    under_way.unhashed.add(f"xact/{ROOT}")  # provenance: seconds and other facts of the run
    key = f"{FOLDER}/manifest-{under_way.generation}.jsonl"
    if key in listing.files:  # the manifest is complete, but not published
        try:
            written = dict(_read_files(read_manifest(store / key)))
        except (*MALFORMED, StoreError, OSError):
            return  # the manifest is incomplete: the next build writes it again
        for name, found in written.items():
            if found is not None and name != ROOT and name not in under_way.shards:
                under_way.made.setdefault(name, set()).add(found.sha256)


def _is_amount(key: str, plan: Plan) -> bool:
    """Return True for the values of a jitter label."""
    return key.partition("/")[0] in plan.jitter_names and not key.endswith(ROOT)
