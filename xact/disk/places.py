"""How readers use the files of a store, on this machine or at a URL: read one whole, read parts, look at its state.

`Reachable` is what both have in common. `digest.list_files` lists them.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Protocol

from xact.disk.paths import expand_path, find_scheme, refuse_url
from xact.disk.remote import N_REQUESTS, SCHEMES, RemotePath, parse_url

Place = Path | RemotePath
"""A file or folder on this machine, or at a URL."""

FileState = tuple[object, int, int] | None
"""Inode or tag, time, and size of a file; None if it does not exist."""


class Parts(Protocol):
    """An open file that is read in parts."""

    size: int

    def read(self, nbytes: int, offset: int) -> bytes:
        """Return bytes of the file: fewer where it ends."""

    def expect(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Hear of the parts (bytes, offset) that will be read."""

    def has_changed(self) -> bool:
        """Return True if other bytes are in the place of the file by now."""


class Reachable(Protocol):
    """A file that can be read."""

    def read_whole(self) -> bytes:
        """Return its bytes. Raise FileNotFoundError if there is no such file."""

    def open_parts(self, *, n_last: int) -> AbstractContextManager[Parts]:
        """Open it to read parts of it, the last `n_last` bytes first."""

    def find_state(self, *, follows_links: bool = True) -> FileState:
        """Return its state, or that of a link itself. It differs once the file is replaced or written to."""


class LocalFile:
    """A file on this machine."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read_whole(self) -> bytes:
        """Return the bytes of a regular file. Raise OSError at once for any other kind of file."""
        with os.fdopen(os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise OSError(errno.EINVAL, "not a regular file")
            return file.read()

    @contextmanager
    def open_parts(self, *, n_last: int) -> Iterator[Parts]:
        """Open the file to read parts of it."""
        fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # does not wait if the file is a pipe
        try:
            yield LocalParts(fd)
        finally:
            os.close(fd)

    def find_state(self, *, follows_links: bool = True) -> FileState:
        """Return inode, time in ns and size of the file; None if it does not exist."""
        try:
            found = self.path.stat(follow_symlinks=follows_links)
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size


class LocalParts:
    """An open file on this machine. Its bytes stay: another file takes its name, never its descriptor."""

    def __init__(self, fd: int) -> None:
        self.size = os.fstat(fd).st_size
        self.read = partial(os.pread, fd)

    def expect(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Do nothing: a part is read when it is asked for."""

    def has_changed(self) -> bool:
        """Return False."""
        return False


def _reach(place: Place) -> Reachable:
    return place if isinstance(place, RemotePath) else LocalFile(place)


def read_whole(place: Place) -> bytes:
    """Return the bytes of a regular file or an object. Raise OSError at once for any other kind of file."""
    return _reach(place).read_whole()


def open_parts(place: Place, *, n_last: int) -> AbstractContextManager[Parts]:
    """Open a file or an object to read parts of it, the last `n_last` bytes first."""
    return _reach(place).open_parts(n_last=n_last)


def find_file_state(place: Place, *, follows_links: bool) -> FileState:
    """Return the state of a file, or of a link itself. It differs once the file is replaced or written to."""
    return _reach(place).find_state(follows_links=follows_links)


def count_readers(place: Place) -> int:
    """Return the number of threads that read at once."""
    return N_REQUESTS if isinstance(place, RemotePath) else os.cpu_count() or 1


def expand_place(given: str | Path) -> Place:
    """Return the place that a person names, with `~` expanded in a path."""
    place = locate(given)
    return expand_path(place) if isinstance(place, Path) else place


def locate(given: str | Path | RemotePath) -> Place:
    """Return the place of a store that a person names by a path or a URL. A URL never becomes a path."""
    if isinstance(given, RemotePath):
        return given
    if isinstance(given, str) and find_scheme(given) in SCHEMES:
        return parse_url(given)
    refuse_url(given, hint=f"give the URL of a store as text; {', '.join(SCHEMES)} are read")
    return Path(given)
