"""Locks on folders and files: one holder at a time, freed when its process ends."""

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
def hold_lock(folder: Path) -> Iterator[None]:
    """Hold the store's lock, which a kill frees; refuse at once where another process holds it.

    flock itself: filelock may take, where a file system has none, a lock that outlives a kill.
    """
    holder = folder / "holder.json"
    _refuse_link(folder)
    fd = _take_lock(folder / "lock", folder.parent, holder)
    try:
        replace_file(holder, [json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode()])
        yield
    finally:
        with suppress(OSError):
            holder.unlink()
        os.close(fd)


@contextmanager
def hold_lines(path: Path, owner: Path) -> Iterator[None]:
    """Lock the file of lines that belongs to the file `owner`; a kill frees the lock, an empty file is removed."""
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


def _take_lock(path: Path, owner: Path, holder: Path | None = None) -> int:
    """Return a descriptor that holds the lock until it is closed."""
    while True:
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
        os.close(fd)  # whoever held it took the file away: begin anew


def _lock_file(fd: int, owner: Path, holder: Path | None) -> None:
    """Lock an open file for the store at `owner`, or for the file at `owner` where no file names the holder."""
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
