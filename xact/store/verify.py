"""Compare every byte of a store with its manifest: find damaged, missing and extra files."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence

import google_crc32c
import numpy as np

from xact.disk.digest import FileState, FolderListing, find_file_state, hash_files, list_files
from xact.disk.durable import PARTIAL, Written
from xact.disk.places import Place, read_whole
from xact.disk.remote import RemotePath
from xact.errors import StoreError
from xact.pace import Watch
from xact.store.check_metadata import is_inside
from xact.store.expected import CLAIM, ROOT, Expected, UnderWay, find_expected, list_generation_files
from xact.store.findings import EXTRA, Fault, Findings
from xact.store.journal import FOLDER, INBOX, read_generation, read_manifest
from xact.store.shards import read_shard

MAX_LOOKS = 50
"""Most times that files at fault are looked at again, while a build writes to the store."""


def verify_store(store: Place, *, watch: Watch = lambda _: lambda _n: None) -> Findings:
    """Compare every file of a store with its manifest. Raise StoreError if there is no store.

    Files of a generation that is being built are compared with its journal. Nothing outside the store is read. A build
    may write to the store meanwhile: a fault is reported only if it is found twice, and the file did not change since
    before the manifest and the journal were read for the second time. `watch` is called with the bytes of the files to
    read; what it returns, with those of each file.
    """
    look = _Look(store, watch)
    look.take(suspects=())
    for _ in range(MAX_LOOKS):
        before = _find_states(store, look.faults)
        if not before:
            return look.find()
        look.take(suspects=before)
        after = _find_states(store, look.faults)
        if after.items() <= before.items():
            return look.find()
    raise StoreError(f"{store} changes faster than it can be read", hint="verify it again when no build writes to it")


def _find_states(store: Place, faults: Sequence[Fault]) -> dict[str, FileState]:
    return {fault.file: find_file_state(store / fault.file, follows_links=False) for fault in faults}


class _Look:
    """One look at all files of a store. The next look reads only the files at fault and new ones again."""

    def __init__(self, store: Place, watch: Watch) -> None:
        self.store = store
        self._watch = watch
        self.faults: list[Fault] = []
        self._hashes: dict[str, Written | str] = {}

    def take(self, *, suspects: Collection[str]) -> None:
        """Look at the store: read the manifest and the journal again, and the files `suspects`."""
        self.expected, self.listing = _find_expected(self.store)
        self.faults = [*self.expected.faults, *_check_others(self.listing)]
        if self.expected.is_comparable:
            known = self.expected.files.keys() | _list_under_way(self.expected.under_way)
            keys = sorted(
                key for key in self.listing.files.keys() & known if key in suspects or key not in self._hashes
            )
            count = self._watch(sum(self.listing.files[key] for key in keys)) if keys else None
            self._hashes |= hash_files(self.store, keys, count=count or (lambda _: None))
            found = {key: said for key, said in self._hashes.items() if key in self.listing.files}
            self.faults += _check_all(self.store, self.listing, self.expected, found)

    def find(self) -> Findings:
        """Return the findings of this look."""
        nbytes = sum(found.nbytes for found in self._hashes.values() if isinstance(found, Written))
        return Findings(
            _describe_state(self.expected),
            bool(self.expected.generation),
            _sort_faults(self.faults),
            _make_notes(self.store, self.listing, self.expected),
            len(self._hashes),
            nbytes,
        )


def _list_store(store: Place) -> FolderListing:
    """Return the files of a store. On a server that lists none, those that the published manifest names."""
    if not isinstance(store, RemotePath) or store.can_list:
        return list_files(store)
    generation = read_generation(store)
    named = [ROOT, f"{FOLDER}/manifest-{generation}.jsonl"] if generation else []
    for line in read_manifest(store / named[1]) if named else ():
        shards = [key for key, written in line.get("shards", {}).items() if written != "absent"]
        named += [key for key in (*shards, line.get("file", ROOT)) if is_inside(key)]
    return FolderListing(dict.fromkeys(named, 0))


def _find_expected(store: Place) -> tuple[Expected, FolderListing]:
    """Return the files that a store should contain and those that it has, of one moment between two generations."""
    listing = _list_store(store)
    for _ in range(MAX_LOOKS):
        expected = find_expected(store, listing)
        before, listing = listing, _list_store(store)  # list again after the journal: a build may be writing
        if list_generation_files(before) == list_generation_files(listing):
            return expected, listing
    raise StoreError(f"{store} changes faster than it can be read", hint="verify it again when no build writes to it")


def _sort_faults(faults: list[Fault]) -> list[Fault]:
    """Return the first fault of each file, in the order of the files."""
    first: dict[str, Fault] = {}
    for fault in faults:
        first.setdefault(fault.file, fault)
    return sorted(first.values(), key=lambda fault: fault.file)


def _list_under_way(under_way: UnderWay | None) -> set[str]:
    return {*under_way.shards, *under_way.pending, *under_way.made} if under_way else set()


def _check_others(listing: FolderListing) -> Iterator[Fault]:
    for key, kind in listing.others.items():
        yield Fault(key, f"is {kind}: a store holds only plain files and folders, and other files are not followed")


def _check_all(
    store: Place, listing: FolderListing, expected: Expected, hashes: Mapping[str, Written | str]
) -> Iterator[Fault]:
    owners = {w.sha256: key for key, w in expected.files.items() if w is not None}
    under_way = expected.under_way
    for key in expected.files.keys() | listing.files.keys() | (under_way.shards.keys() if under_way else set()):
        if key in listing.others:
            continue
        found = hashes.get(key)
        is_known = key in expected.files
        want = expected.files.get(key)
        if under_way is not None and isinstance(found, Written) and found in under_way.newer.get(key, ()):
            continue
        if under_way is not None and key in under_way.shards:
            is_known, want = True, under_way.shards[key]
        elif under_way is not None and _is_under_way(store, key, under_way, found, want, is_known=is_known):
            continue
        if key not in listing.files:
            if want is not None:
                yield Fault(key, f"is missing ({want.nbytes} bytes)")
        elif not is_known:
            if not expected.owns(key):
                yield Fault(key, EXTRA)
        elif want is None:
            yield Fault(key, "exists, but no file was written: all values were NaN")
        elif isinstance(found, str):
            yield Fault(key, f"cannot be read: {found}")
        elif found is not None and found != want:
            yield Fault(key, _describe(key, found, want, owners))


def _describe(key: str, found: Written, want: Written, owners: Mapping[str, str]) -> str:
    """Return how a file differs from the bytes that were written."""
    owner = owners.get(found.sha256, key)
    if found.nbytes == 0:
        return f"is empty ({want.nbytes} bytes were written)"
    if owner != key:
        return f"holds the bytes of {owner}"
    if found.nbytes < want.nbytes:
        return f"has {found.nbytes} of {want.nbytes} bytes"
    if found.nbytes > want.nbytes:
        return f"has {found.nbytes} bytes, {want.nbytes} were written"
    return f"holds other bytes than were written (sha256 {found.sha256[:16]}… in place of {want.sha256[:16]}…)"


def _is_under_way(
    store: Place,
    key: str,
    under_way: UnderWay,
    found: Written | str | None,
    want: Written | None,
    *,
    is_known: bool,
) -> bool:
    """Return True if the generation that is being built may have left the file so: old, new, or not written yet."""
    if not isinstance(found, Written):
        return found is None and not is_known and (key in under_way.pending or key in under_way.made)
    if is_known and found == want:
        return True
    if key in under_way.pending:
        return _is_sound_shard(store / key, under_way, key)
    if key in under_way.unhashed:
        return _is_sound_file(store / key)
    return found.sha256 in under_way.made.get(key, ())


def _is_sound_shard(file: Place, under_way: UnderWay, key: str) -> bool:
    """Return True if every chunk of a shard matches its own checksum."""
    pending = under_way.pending[key]
    try:
        for place, shape in pending.shapes.items():
            values = np.empty(shape, dtype=np.float32)
            read_shard(file, pending.form, values, place=place, first_row=0, first_unit=0)
    except (StoreError, OSError, ValueError, RuntimeError):  # each codec has its own errors for damaged bytes
        return False
    return True


def _is_sound_file(file: Place) -> bool:
    """Return True if labels match their checksum, or if metadata is JSON."""
    data = read_whole(file)
    if file.name == ROOT:
        try:
            return isinstance(json.loads(data), dict)
        except (ValueError, RecursionError):
            return False
    return len(data) > 4 and google_crc32c.value(data[:-4]) == int.from_bytes(data[-4:], "little")


def _describe_state(expected: Expected) -> str:
    if not expected.generation:
        return "not finished: nothing is published yet"
    state = f"generation {expected.generation}"
    if not expected.is_comparable:
        return f"{state}, nothing to compare with"
    return f"{state}, generation {expected.under_way.generation} under way" if expected.under_way else state


def _make_notes(store: Place, listing: FolderListing, expected: Expected) -> list[str]:
    notes = []
    if isinstance(store, RemotePath) and not store.can_list:
        notes.append("its server lists no files: what the manifest names was compared, others were not looked for")
    if CLAIM in listing.files:
        notes.append("a push to this URL is under way, or was stopped: what it has written is not published yet")
    if expected.under_way is not None:
        n_journaled, n_pending = (
            sum(key in listing.files for key in keys)
            for keys in (expected.under_way.shards, expected.under_way.pending)
        )
        notes.append(
            f"generation {expected.under_way.generation} is being built, or was stopped: {n_journaled} shards were "
            f"compared with its journal, {n_pending} shards that the journal lacks with their own checksums"
        )
    n_partial = sum(key.endswith(PARTIAL) for key in listing.files)
    if n_partial:
        notes.append(f"{n_partial} files are half written ({PARTIAL}); the next build removes them")
    n_left = sum(key.startswith(f"{FOLDER}/{INBOX}/") for key in listing.files)
    if n_left:
        notes.append(f"{n_left} files are of workers; the next build adopts what they finished, and removes the rest")
    return notes
