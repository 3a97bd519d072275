"""Locks on folders and files: one process holds a lock; it is released when the process ends.

A forked child, such as a worker that a network starts, shares the open lock file with its parent and would hold the
lock after the parent has ended. So each child first closes the lock files of its parent.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import ClassVar

from xact.disk.durable import (
    NO_LINK,
    _disk_errors,
    _refuse_link,
    make_folder,
    remove_file,
)
from xact.disk.holder import Beat, check_mine, read_holder, settle_holder, wait_for_holder
from xact.disk.mounts import find_local_locks, read_mounts
from xact.errors import StoreError

HOLDER = "holder.json"
"""File beside the lock of a store: the process that holds it."""


class LockFile:
    """An open lock file. The lock belongs to the process that opened the file, never to a forked child."""

    _held: ClassVar[set[LockFile]] = set()
    """All lock files that this process has open."""

    def __init__(self, path: Path, flags: int) -> None:
        """Open the file. Raise OSError if that fails."""
        self.path = path.absolute()
        self.fd = os.open(path, flags | NO_LINK, 0o666)
        self._held.add(self)

    @property
    def is_held(self) -> bool:
        """True if this process opened the file and has not closed it."""
        return self in self._held

    def close(self) -> None:
        """Release the lock. In a forked child, do nothing."""
        if self.is_held:
            self._held.remove(self)
            os.close(self.fd)

    @classmethod
    def find_held(cls, path: Path) -> bool:
        """Return True if this process has opened the lock file at `path`."""
        return any(lock.path == path.absolute() for lock in cls._held)

    @classmethod
    def leave_all(cls) -> None:
        """Close the lock files of the parent after a fork. The parent keeps its locks."""
        for lock in cls._held:
            os.close(lock.fd)
        cls._held.clear()


os.register_at_fork(after_in_child=LockFile.leave_all)


@contextmanager
def hold_lock(
    folder: Path, *, may_make: bool = True, note: Callable[[str], object] = lambda _: None, mounts: str | None = None
) -> Iterator[bool]:
    """Hold the lock of a store. Raise StoreError at once if another process holds it, or if `folder` may not be made.

    Yield True if the store may be written. Yield False if its folder is read-only: the lock is then shared.

    A kill releases the lock. This is why `flock` is used directly: on a file system without flock, filelock may fall
    back to a lock that stays after a kill. Where a lock holds on one machine only, as `mounts` says (default: the
    mounts of this machine), a holder on another machine is watched by its file, and `note` receives a line if its
    store is taken over. `check_held` tells whether that happened to this process.
    """
    _refuse_link(folder)
    if _is_read_only(folder / "lock"):
        lock = _share_lock(folder / "lock", folder.parent, folder / HOLDER)
        try:
            yield False
        finally:
            if lock is not None:
                lock.close()
        return
    lock = _take_lock(folder / "lock", folder.parent, folder / HOLDER, may_make=may_make)
    try:
        disk = find_local_locks(read_mounts() if mounts is None else mounts, folder)
        with _hold_file(folder, lock, disk, note):
            yield True
    finally:
        lock.close()


@contextmanager
def _hold_file(folder: Path, lock: LockFile, disk: str | None, note: Callable[[str], object]) -> Iterator[None]:
    """Keep the holder's file of a locked store. `disk` names a mount whose locks hold on one machine only."""
    file, store = folder / HOLDER, folder.parent
    taken_over = None if disk is None else wait_for_holder(file, store, disk)
    beat = Beat(file)
    try:
        if disk is not None:
            settle_holder(file, store, disk)
        if taken_over is not None:
            note(taken_over)
        yield
    finally:
        beat.stop()
        if lock.is_held and not is_lost(folder):
            with suppress(OSError):
                file.unlink()


def check_held(folder: Path) -> None:
    """Raise StoreError if this process has locked the store of `folder`, and another process holds the store by now."""
    if LockFile.find_held(folder / "lock"):
        check_mine(folder / HOLDER, folder.parent)


def is_lost(folder: Path) -> bool:
    """Return True if the holder's file of `folder` names another process by now."""
    found = read_holder(folder / HOLDER)
    return found is not None and not found.is_mine


@contextmanager
def hold_lines(path: Path, owner: Path) -> Iterator[bool]:
    """Lock the file of lines at `path`, which belongs to the file `owner`. At the end, remove it if it is empty.

    Yield True if the file may be written. Yield False, without a lock, if its folder is read-only. A kill releases the
    lock.
    """
    if _is_read_only(path):
        yield False
        return
    lock = _take_lock(path, owner)
    try:
        yield True
    finally:
        try:
            found = os.fstat(lock.fd) if lock.is_held else None
            if found is not None and found.st_nlink and not found.st_size:
                remove_file(path)
        finally:
            lock.close()


def _is_read_only(path: Path) -> bool:
    """Return True if a lock file cannot be opened to write, although its folder exists."""
    return path.parent.is_dir() and not os.access(path if path.exists() else path.parent, os.W_OK)


def _share_lock(path: Path, owner: Path, holder: Path) -> LockFile | None:
    """Lock `path` together with other readers. Return None if there is no such file or it cannot be read."""
    try:
        lock = LockFile(path, os.O_RDONLY)
    except OSError:  # nothing will be written, so that only a running build matters, and a build has made the file
        return None
    try:
        _lock_file(lock.fd, owner, holder, fcntl.LOCK_SH)
    except BaseException:
        lock.close()
        raise
    return lock


def _take_lock(path: Path, owner: Path, holder: Path | None = None, *, may_make: bool = True) -> LockFile:
    """Lock `path`. Closing the file releases the lock."""
    while True:
        if may_make:
            make_folder(path.parent)
        with _disk_errors(path):
            lock = LockFile(path, os.O_RDWR | os.O_CREAT)
        try:
            _lock_file(lock.fd, owner, holder, fcntl.LOCK_EX)
            if path.exists() and os.path.samestat(os.fstat(lock.fd), path.stat()):
                return lock
        except BaseException:
            lock.close()
            raise
        lock.close()  # the last holder removed the file: try again


def _lock_file(fd: int, owner: Path, holder: Path | None, kind: int) -> None:
    """Lock an open file that belongs to `owner`: a store if there is a file `holder`, else a file."""
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        said = f"the file {str(owner)!r} is being written by another process"
        if holder is not None:
            found = read_holder(holder)
            said = f"the store {str(owner)!r} is being built by {found.said if found else 'another process'}"
        raise StoreError(said, hint="wait for it, or stop it") from None
    except OSError as error:
        raise StoreError(
            f"the file system of {str(owner)!r} has no file locks ({error.strerror})",
            hint="put it on another disk",
        ) from None
