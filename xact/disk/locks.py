"""Locks on folders and files: one process holds a lock; it is released when the process ends."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from xact.disk.durable import (
    NO_LINK,
    _disk_errors,
    _refuse_link,
    make_folder,
    parse_json,
    read_whole,
    remove_file,
    replace_file,
)
from xact.errors import StoreError


@contextmanager
def hold_lock(folder: Path, *, may_make: bool = True) -> Iterator[None]:
    """Hold the lock of a store. Raise StoreError at once if another process holds it, or if `folder` may not be made.

    A kill releases the lock. This is why `flock` is used directly: on a file system without flock, filelock may fall
    back to a lock that stays after a kill.
    """
    holder = folder / "holder.json"
    _refuse_link(folder)
    fd = _take_lock(folder / "lock", folder.parent, holder, may_make=may_make)
    try:
        replace_file(holder, [json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode()])
        yield
    finally:
        with suppress(OSError):
            holder.unlink()
        os.close(fd)


@contextmanager
def hold_lines(path: Path, owner: Path) -> Iterator[None]:
    """Lock the file of lines at `path`, which belongs to the file `owner`. At the end, remove it if it is empty.

    A kill releases the lock.
    """
    fd = _take_lock(path, owner)
    try:
        yield
    finally:
        try:
            found = os.fstat(fd)
            if found.st_nlink and not found.st_size:
                remove_file(path)
        finally:
            os.close(fd)


def _take_lock(path: Path, owner: Path, holder: Path | None = None, *, may_make: bool = True) -> int:
    """Lock `path` and return its descriptor. Closing the descriptor releases the lock."""
    while True:
        if may_make:
            make_folder(path.parent)
        with _disk_errors(path):
            fd = os.open(path, os.O_RDWR | os.O_CREAT | NO_LINK, 0o666)
        try:
            _lock_file(fd, owner, holder)
            if path.exists() and os.path.samestat(os.fstat(fd), path.stat()):
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # the last holder removed the file: try again


def _lock_file(fd: int, owner: Path, holder: Path | None) -> None:
    """Lock an open file that belongs to `owner`: a store if there is a file `holder`, else a file."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        said = f"the file {str(owner)!r} is being written by another process"
        if holder is not None:
            said = f"the store {str(owner)!r} is being built by {_name_holder(holder)}"
        raise StoreError(said, hint="wait for it, or stop it") from None
    except OSError as error:
        raise StoreError(
            f"the file system of {str(owner)!r} has no file locks ({error.strerror})",
            hint="put it on another disk",
        ) from None


def _name_holder(holder: Path) -> str:
    try:
        said = parse_json(read_whole(holder))
        return f"process {said['pid']} on {said['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
