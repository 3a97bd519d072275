"""List the files of a folder and compute their sha256. Links and special files are listed, never followed or opened."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from xact.disk.durable import Written
from xact.disk.places import FileState as FileState
from xact.disk.places import Place, count_readers
from xact.disk.places import find_file_state as find_file_state
from xact.disk.remote import RemotePath
from xact.errors import StoreError

READ_NBYTES = 4 * 2**20
"""Bytes that each thread reads at a time."""


@dataclass
class FolderListing:
    """All files in a folder and its subfolders."""

    files: dict[str, int] = field(default_factory=dict)
    """{path relative to the folder, with `/`: bytes} of the regular files."""
    others: dict[str, str] = field(default_factory=dict)
    """{path: kind of file} of links, pipes and other special files, and of folders that cannot be read."""


def list_files(folder: Place) -> FolderListing:
    """Return all files below `folder`. Files that are removed meanwhile are left out."""
    if isinstance(folder, RemotePath):
        return FolderListing({key: found.nbytes for key, found in folder.list_objects().items()})
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
    """Return the kind of a special file in words, e.g. `a link`."""
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
    """Open a regular file and return its descriptor. Raise StoreError at once for a link or a special file."""
    fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode):
        os.close(fd)
        raise StoreError(f"{file} is {name_file_kind(mode)}, not a file")
    return fd


def hash_file(file: Place) -> Written:
    """Return the length and the sha256 of a regular file or of an object."""
    digest = hashlib.sha256()
    nbytes = 0
    if isinstance(file, RemotePath):
        for piece in file.read_pieces():
            digest.update(piece)
            nbytes += len(piece)
        return Written(nbytes, digest.hexdigest())
    with os.fdopen(open_regular(file), "rb", buffering=0) as raw:
        buffer = memoryview(bytearray(min(READ_NBYTES, os.fstat(raw.fileno()).st_size + 1)))
        while n := raw.readinto(buffer):
            digest.update(buffer[:n])
            nbytes += n
    return Written(nbytes, digest.hexdigest())


def hash_files(
    folder: Place, keys: Sequence[str], *, count: Callable[[int], None] = lambda _: None
) -> Mapping[str, Written | str]:
    """Return {key: length and sha256, or the reason why the file cannot be read}. Each core hashes in one thread.

    `count` is called with the bytes of each file after it. Raise RemoteError if what is at a URL cannot be reached:
    this says nothing of the file.
    """

    def hash_one(key: str) -> Written | str:
        try:
            found = hash_file(folder / key)
        except (OSError, StoreError) as error:
            return getattr(error, "strerror", None) or str(error)
        count(found.nbytes)
        return found

    waiting = iter(keys)  # all threads share it: each takes the next key
    n_threads = count_readers(folder)
    with ThreadPoolExecutor(n_threads) as pool:
        parts = [pool.submit(lambda: {key: hash_one(key) for key in waiting}) for _ in range(n_threads)]
    return {key: found for part in parts for key, found in part.result().items()}


@dataclass(frozen=True)
class FileStamp:
    """Size and modification time: a cheap test that a file has not changed since it was hashed."""

    nbytes: int
    mtime_ns: int
