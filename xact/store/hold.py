"""Where a store is, or is to be: held by one process, and left without a trace where nothing was planned."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from xact.disk.locks import hold_lock
from xact.errors import RequestError


@contextmanager
def hold_store(store: Path) -> Iterator[None]:
    """Hold a store's lock; leave no trace where nothing was planned in a store that was not there."""
    is_store, was_there = check_store_path(store), store.exists()
    folder = store / ".xact"
    with hold_lock(folder):
        try:
            yield
        finally:
            if not is_store and not any(folder.glob("plan-*")):
                remove_traces(folder)  # under the lock: whoever waits for it sees its file gone, and takes a new one
                if not was_there:
                    with suppress(OSError):
                        store.rmdir()


def check_store_path(store: Path) -> bool:
    """Return whether a store is at this path; refuse a path that holds something else."""
    if not store.exists():
        return False
    if not store.is_dir():
        raise RequestError(f"the store {str(store)!r} is a file", hint="give another path (--store PATH)")
    if (store / ".xact").is_dir():
        return True
    if any(store.iterdir()):
        raise RequestError(
            f"the folder {str(store)!r} holds something that is no xact store", hint="give another path (--store PATH)"
        )
    return False


def remove_traces(folder: Path) -> None:
    """Remove the folder `.xact` of a store in which nothing was planned."""
    with suppress(OSError):  # another builder has begun, or the disk fails: what is left harms nobody
        for name in ("lock", "holder.json"):
            (folder / name).unlink(missing_ok=True)
        folder.rmdir()
