"""`xact push`: copy a finished store to a bucket, so that readers there see the old generation or the new one.

The order: claim, shards, labels and metadata, plan and manifest, root. Each object is written only if it still is what
the listing at the start said (a conditional write), and is read back and compared. The claim `.xact/push.json` says
which generation is being pushed: an older one that was stopped, or still runs, gives way to a newer one and never
publishes. Writing the root publishes. Then the objects that only the old generation names are removed, and the claim.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xact.disk.digest import FolderListing, hash_file, list_files
from xact.disk.durable import Written, parse_json, read_whole
from xact.disk.paths import expand_path
from xact.disk.remote import CREDENTIALS, RemoteObject, RemotePath, parse_url
from xact.errors import RUN_AGAIN, MismatchError, NoStoreError, RemoteError, RequestError, StoreError, make_command
from xact.pace import Watch
from xact.store.expected import CLAIM, ROOT, find_expected, list_generation_files, read_named
from xact.store.held import read_recorded
from xact.store.hold import hold_store
from xact.store.journal import FOLDER
from xact.store.snapshot import open_snapshot

N_SENT = 8
"""Objects that are sent at once. Each is in memory as a whole."""

OTHER_URL = "push to another URL, or remove first what is there"
OTHER_PUSH = "run the same command again once no other push to this URL runs"


@dataclass(frozen=True)
class PlannedPush:
    """What a push does."""

    store: str
    url: str
    generation: int
    old_generation: int
    """The generation that is there; 0 for none."""
    n_objects: int
    nbytes: int
    """Bytes of all objects."""
    n_to_send: int
    nbytes_to_send: int
    to_remove: tuple[str, ...]
    """Objects that only the old generation names: they are removed once the new one is published."""
    others: tuple[str, ...]
    """Objects that are not of the store. They stay, and `xact verify` names them."""

    def to_json(self) -> dict[str, Any]:
        """Return the plan as JSON-able data."""
        return {
            "store": self.store,
            "url": self.url,
            "generation": self.generation,
            "old_generation": self.old_generation,
            "n_objects": self.n_objects,
            "nbytes": self.nbytes,
            "n_to_send": self.n_to_send,
            "nbytes_to_send": self.nbytes_to_send,
            "to_remove": list(self.to_remove),
            "others": list(self.others),
        }


@dataclass
class _Push:
    """A store, the bucket that it goes to, and what of it is there."""

    store: Path
    at: RemotePath
    generation: int
    files: dict[str, Written]
    """{path: length and sha256} of all files, in the order in which they are sent; the root is the last."""
    there: dict[str, RemoteObject]
    """{name: object}, as listed at the start, and as written since."""

    @property
    def claim(self) -> bytes:
        """The bytes of the claim: equal for every push of the same files."""
        said = {"generation": self.generation, "root_sha256": self.files[ROOT].sha256, "xact_id": read_id(self.store)}
        return json.dumps(said).encode()

    def is_there(self, key: str) -> bool:
        """Return True if an object has the length and the sha256 of its file."""
        found = self.there.get(key)
        if found is None or found.nbytes != self.files[key].nbytes:
            return False
        said = (self.at / key).read_attributes().get("sha256")  # another program may have copied it, without
        return (said or hash_file(self.at / key).sha256) == self.files[key].sha256

    def send(self, key: str) -> None:
        """Write an object, read it back and compare it. Raise RemoteError if it is another one by now."""
        want = self.files[key]
        data = read_recorded(self.store, key, want)
        if data is None:
            raise StoreError(f"{self.store / key} is missing")
        old = self.there.get(key)
        new = (self.at / key).put(data, old=old, attributes={"sha256": want.sha256})
        if hash_file(self.at / key) != want:  # also where the answer to a first, successful try was lost
            what = "was written by another push meanwhile"
            if new is not None:
                (self.at / key).remove()  # its attributes say the sha256 of the bytes that were sent
                what = "came back with other bytes than were sent"
            raise RemoteError(f"{self.at / key} {what}", hint=OTHER_PUSH)
        found = new or (self.at / key).find_object()
        if found is not None:
            self.there[key] = found


def push(
    store: str | Path,
    url: str,
    *,
    tell: Callable[[PlannedPush], None] = lambda _: None,
    watch: Watch = lambda _: lambda _: None,
) -> PlannedPush:
    """Copy a finished store to a bucket. `tell` is called with the plan, `watch` with the number of objects to send.

    Raise RequestError for a URL that is not a bucket, MismatchError if another store is there, StoreError if the store
    is not finished or is damaged, RemoteError if the bucket cannot be reached or another push writes to it.
    """
    at, path = _parse_target(url), expand_path(store)
    if not (path / FOLDER).is_dir():
        raise NoStoreError(f"there is no xact store at {str(path)!r}", hint="give the path of a store")
    with hold_store(path):
        one = _open(path, at)
        old = _check_old(one)
        _take_claim(one)
        is_there = dict(zip(one.files, _map(one.is_there, list(one.files)), strict=True))
        missing = [key for key in one.files if not is_there[key]]
        planned = _plan(one, missing, old)
        tell(planned)
        done = watch(len(missing))
        for keys in _split(missing):
            _map(one.send, keys, done)
        _check_all_there(one)
        if ROOT in missing:
            _check_claim(one)
            one.send(ROOT)
            done(1)
    for keys in (*_split(planned.to_remove), [CLAIM]):  # a manifest after what it names
        _map(lambda key: (at / key).remove(), keys)
    return planned


def _parse_target(url: str) -> RemotePath:
    scheme, is_url, _ = str(url).strip().partition("://")
    if scheme.lower() not in CREDENTIALS:
        other = f"{scheme[:20]}://" if is_url else "a path"  # what is no URL, user:password@host:path, is not shown
        raise RequestError(
            f"a store is pushed to {' or '.join(f'{one}://' for one in CREDENTIALS)}, not to {other}",
            hint="for another server, copy the folder with its hidden files (rsync -a), the file zarr.json last",
        )
    return parse_url(str(url))


def _open(store: Path, at: RemotePath) -> _Push:
    """Return a finished store whose files are those that its manifest names. Raise StoreError for any other."""
    expected = find_expected(store, list_files(store))
    if not expected.generation or expected.under_way is not None:
        raise StoreError(f"the store {str(store)!r} is not finished; only a finished one is pushed", hint=RUN_AGAIN)
    if expected.faults:
        first = expected.faults[0]
        raise StoreError(f"{store / first.file} {first.found}", hint=f"{make_command('verify', store)} says more")
    manifest = f"{FOLDER}/manifest-{expected.generation}.jsonl"
    found = {key: written for key, written in expected.files.items() if written is not None}
    found[manifest] = hash_file(store / manifest)
    files = {key: found[key] for key in sorted(found, key=_rank)}
    return _Push(store, at, expected.generation, files, at.list_objects())


def _rank(key: str) -> tuple[int, str]:
    """Return the place of a file in the order of sending: shards, labels and metadata, plan and manifest, root."""
    if key == ROOT:
        return 3, key
    if key.startswith(f"{FOLDER}/"):
        return 2, key
    return int("activations/c" not in key), key


def _split(keys: Sequence[str]) -> list[list[str]]:
    """Return the keys of each step before the root."""
    return [[key for key in keys if _rank(key)[0] == step] for step in range(3)]


def _check_old(one: _Push) -> int:
    """Return the generation that is there, 0 for none. Raise MismatchError unless the store goes on from it."""
    if ROOT not in one.there:
        if one.there and CLAIM not in one.there:
            raise MismatchError(f"{one.at} holds objects but is not an xact store", hint=OTHER_URL)
        return 0
    old, new = open_snapshot(one.at), open_snapshot(one.store)
    generation = _read_generation(one.at)
    if old.store_id != new.store_id or not old.store_id:
        raise MismatchError(f"another store is at {one.at}", hint=OTHER_URL)
    if generation > one.generation:
        raise MismatchError(
            f"{one.at} has generation {generation}, {str(one.store)!r} the older {one.generation}",
            hint="push the newer copy of the store",
        )
    if generation == one.generation:
        if hash_file(one.at / ROOT) != one.files[ROOT]:
            raise MismatchError(f"{one.at} has another generation {generation} of this store", hint=OTHER_URL)
        return generation
    before, after = old.load_labels(), new.load_labels()
    for name in ("model", "stimulus", "layer", "replicate"):
        held = before[name][1]
        if not np.array_equal(after[name][1][: len(held)], held):
            raise MismatchError(
                f"{one.at} has other labels {name!r} than the store began with: its readers would read wrong rows",
                hint=f"a store from which something was dropped is another one for them: {OTHER_URL}",
            )
    return generation


def _read_generation(at: RemotePath) -> int:
    return int(parse_json(read_whole(at / ROOT))["attributes"]["xact_generation"])


def read_id(store: Path) -> str:
    """Return the id of a published store."""
    return open_snapshot(store).store_id


def _take_claim(one: _Push) -> None:
    """Write the claim. An older generation of the store gives way; any other claim is refused."""
    claim = one.at / CLAIM
    old = one.there.get(CLAIM)
    if old is not None:
        said = read_whole(claim)
        if said != one.claim and not _gives_way(said, one):
            raise RemoteError(
                f"another push to {one.at} has begun and not ended",
                hint=f"run that one to its end, or remove {claim} if it will never run again",
            )
    if claim.put(one.claim, old=old, attributes={}) is None:
        _check_claim(one)
    if claim.put(b"{}", old=None, attributes={}) is not None:
        claim.remove()
        raise RemoteError(
            f"the server of {one.at} knows no conditional writes: two pushes could mix",
            hint="push to S3, Google Cloud Storage or another server that honours If-None-Match",
        )


def _gives_way(said: bytes, one: _Push) -> bool:
    try:
        claim = parse_json(said)
        return bool(claim["xact_id"] == parse_json(one.claim)["xact_id"] and claim["generation"] < one.generation)
    except (ValueError, TypeError, KeyError):
        return False


def _check_claim(one: _Push) -> None:
    """Raise RemoteError if another push has taken the claim."""
    try:
        said = read_whole(one.at / CLAIM)
    except FileNotFoundError:
        said = b""
    if said != one.claim:
        raise RemoteError(f"another push to {one.at} has begun meanwhile; this one published nothing", hint=OTHER_PUSH)


def _plan(one: _Push, missing: Sequence[str], old: int) -> PlannedPush:
    listing = FolderListing({key: found.nbytes for key, found in one.there.items()})
    former = list_generation_files(listing) - one.files.keys()
    for key in [key for key in former if "/manifest-" in key]:
        with suppress(StoreError):  # a damaged one: what it named is told as not of the store
            former |= read_named(one.at / key).keys()
    left = one.there.keys() - one.files.keys() - {CLAIM}
    return PlannedPush(
        store=str(one.store),
        url=str(one.at),
        generation=one.generation,
        old_generation=old,
        n_objects=len(one.files),
        nbytes=sum(written.nbytes for written in one.files.values()),
        n_to_send=len(missing),
        nbytes_to_send=sum(one.files[key].nbytes for key in missing),
        to_remove=tuple(sorted(left & former)),
        others=tuple(sorted(left - former)),
    )


def _check_all_there(one: _Push) -> None:
    """Raise RemoteError if an object but the root is not the one that was found or written."""
    there = one.at.list_objects()
    for key in one.files:
        if key != ROOT and (key not in there or there[key].tag != one.there[key].tag):
            raise RemoteError(f"{one.at / key} was changed by another program during the push", hint=OTHER_PUSH)


def _map(act: Callable[[str], Any], keys: Sequence[str], done: Callable[[int], None] = lambda _: None) -> list[Any]:
    """Return what `act` gives for each key, in threads. The first error ends all."""
    with ThreadPoolExecutor(N_SENT) as pool:
        waiting = [pool.submit(act, key) for key in keys]
        try:
            for one in as_completed(waiting):
                one.result()
                done(1)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        return [one.result() for one in waiting]
