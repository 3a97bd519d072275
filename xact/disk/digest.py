"""The files of a folder and their sha256. Links and special files are named, never followed or opened."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from xact.disk.durable import Written
from xact.errors import StoreError

READ_NBYTES = 4 * 2**20
"""Bytes read at a time, in each thread."""


@dataclass
class FolderListing:
    """All that lies in a folder and below it."""

    files: dict[str, int] = field(default_factory=dict)
    """{path below the folder, with `/`: bytes} of the regular files."""
    others: dict[str, str] = field(default_factory=dict)
    """{path: what it is} of links, pipes and folders that cannot be read."""


def list_files(folder: Path) -> FolderListing:
    """Return all that lies below `folder`; what goes away meanwhile is left out."""
    listing = FolderListing()
    waiting = [""]
    while waiting:
        at = waiting.pop()
        try:
            entries = list(os.scandir(folder / at))
        except FileNotFoundError:
            continue
        except OSError as error:
            listing.others[at or "."] = f"a folder that cannot be read ({error.strerror})"
            continue
        for entry in entries:
            key = f"{at}/{entry.name}" if at else entry.name
            try:
                found = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            if stat.S_ISDIR(found.st_mode):
                waiting.append(key)
            elif stat.S_ISREG(found.st_mode):
                listing.files[key] = found.st_size
            else:
                listing.others[key] = name_file_kind(found.st_mode)
    return listing


def name_file_kind(mode: int) -> str:
    """Return what a file that is not a regular one is, in words."""
    kinds = {
        stat.S_IFLNK: "a link",
        stat.S_IFIFO: "a named pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFDIR: "a folder",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    return kinds.get(stat.S_IFMT(mode), "something else")


def open_regular(file: Path) -> int:
    """Return a descriptor of a regular file; raise StoreError for a link or special file, without waiting on it."""
    fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode):
        os.close(fd)
        raise StoreError(f"{file} is {name_file_kind(mode)}, not a file")
    return fd


def hash_file(file: Path) -> Written:
    """Return the length and the sha256 of a regular file."""
    digest = hashlib.sha256()
    nbytes = 0
    with os.fdopen(open_regular(file), "rb", buffering=0) as raw:
        buffer = memoryview(bytearray(min(READ_NBYTES, os.fstat(raw.fileno()).st_size + 1)))
        while n := raw.readinto(buffer):
            digest.update(buffer[:n])
            nbytes += n
    return Written(nbytes, digest.hexdigest())


def hash_files(folder: Path, keys: Sequence[str]) -> Mapping[str, Written | str]:
    """Return {key: length and sha256, or why it cannot be read}, hashed in as many threads as there are cores."""

    def hash_one(key: str) -> Written | str:
        try:
            return hash_file(folder / key)
        except (OSError, StoreError) as error:
            return getattr(error, "strerror", None) or str(error)

    waiting = iter(keys)  # shared: each thread takes the next
    n_threads = os.cpu_count() or 1
    with ThreadPoolExecutor(n_threads) as pool:
        parts = [pool.submit(lambda: {key: hash_one(key) for key in waiting}) for _ in range(n_threads)]
    return {key: found for part in parts for key, found in part.result().items()}


@dataclass(frozen=True)
class FileStamp:
    """What tells cheaply that a file has not changed since its bytes were hashed."""

    nbytes: int
    mtime_ns: int
