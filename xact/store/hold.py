"""Lock a store for one process. If nothing was planned in a new store, remove all files again."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from xact.disk.exchange import find_left, settle
from xact.disk.locks import hold_lock, is_lost
from xact.errors import RequestError, StoreError


@contextmanager
def hold_store(store: Path, *, note: Callable[[str], object] = lambda _: None) -> Iterator[bool]:
    """Hold the lock of a store. At the end, remove a new store in which nothing was planned.

    What a killed `xact drop` left is ended first: the store is the old one or the new one. Yield True if the store may
    be written. Yield False for a store that is read-only. `note` receives a line if the store was taken over from a
    process on another machine.
    """
    left = find_left(store)
    if left is not None:  # the lock moves with the folder: a living command holds it there
        with hold_lock(left / ".xact", may_make=False):
            settle(store)
    is_store, was_there, pid = check_store_path(store), store.exists(), os.getpid()
    folder = store / ".xact"
    with hold_lock(folder, note=note) as may_write:
        try:
            if may_write:
                settle(store)
            yield may_write
        finally:
            is_child = os.getpid() != pid  # a forked child that ends here leaves the store to its parent
            if not is_child and not is_store and not any(folder.glob("plan-*")) and not is_lost(folder):
                # still locked: a waiting process sees that the lock file is gone, and makes a new file
                remove_traces(folder)
                if not was_there:
                    with suppress(OSError):
                        store.rmdir()


def check_store_path(store: Path) -> bool:
    """Return True if there is a store at this path. Raise RequestError for any other file or full folder."""
    if not store.exists():
        return False
    if not store.is_dir():
        raise RequestError(f"the store {str(store)!r} is a file", hint="give another path (--store PATH)")
    if (store / ".xact").is_dir():
        return True
    if any(store.iterdir()):
        raise RequestError(
            f"the folder {str(store)!r} contains files but is not an xact store",
            hint="give another path (--store PATH)",
        )
    return False


def check_writable(store: Path, *, may_write: bool) -> None:
    """Raise StoreError if the store has to change and is read-only."""
    if not may_write:
        raise StoreError(
            f"the store {str(store)!r} is read-only, and something is to be written",
            hint="give another path (--store PATH), or make its disk and its files writable",
        )


def remove_traces(folder: Path) -> None:
    """Remove the folder `.xact` of a store in which nothing was planned."""
    with suppress(OSError):  # another build has started, or the disk fails: the files left do no harm
        for name in ("lock", "holder.json"):
            (folder / name).unlink(missing_ok=True)
        folder.rmdir()
