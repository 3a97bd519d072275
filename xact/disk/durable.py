"""Write files that stay whole after a kill or a power cut.

A file is written under a temporary name, synced and renamed; or a line is appended to it and synced. Stores and
tables of captions are written only with these functions.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from xact.disk.places import Place
from xact.disk.places import read_whole as read_whole
from xact.errors import StoreError

PARTIAL = ".partial"
"""Ending of a file that is being written. After a kill, the next build removes it."""

NO_LINK = os.O_NOFOLLOW | os.O_CLOEXEC
"""Flags for opening a file to write: a link is not followed, so that xact writes only inside the store."""

NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | NO_LINK
"""Flags for a file that does not exist yet."""

APPEND = os.O_RDWR | os.O_APPEND | os.O_CREAT | NO_LINK
"""Flags for a file to which lines are added."""


@dataclass(frozen=True)
class Written:
    """Length and hash of a file that was written."""

    nbytes: int
    sha256: str


def write_file(path: Path, pieces: Sequence[bytes]) -> Written:
    """Replace `path` with a file of these `pieces`: write a temporary file, hash, fsync, rename, fsync the folder."""
    written = replace_file(path, pieces)
    sync_folder(path.parent)
    return written


def replace_file(path: Path, pieces: Sequence[bytes]) -> Written:
    """Do the same as `write_file`, but do not sync the folder: call `sync_folder` later."""
    written = write_partial(path, pieces)
    put_in_place(path)
    return written


def write_partial(path: Path, pieces: Sequence[bytes]) -> Written:
    """Write and sync the temporary file of `path`; `put_in_place` renames it. A build removes those that stay."""
    beside = path.with_name(path.name + PARTIAL)
    make_folder(path.parent)
    with _disk_errors(path, needed=sum(map(len, pieces))), _removed_on_error(beside):
        return _write_pieces(make_new_file(beside), pieces)


def _write_pieces(fd: int, pieces: Sequence[bytes]) -> Written:
    """Write, sync and close an open file."""
    digest = hashlib.sha256()
    nbytes = 0
    try:
        for piece in pieces:
            digest.update(piece)
            nbytes += len(piece)
            _write_all(fd, piece)
        os.fsync(fd)
    finally:
        os.close(fd)
    return Written(nbytes, digest.hexdigest())


def put_in_place(path: Path) -> None:
    """Rename the temporary file of `path` to `path`. Call `sync_folder` later."""
    beside = path.with_name(path.name + PARTIAL)
    with _disk_errors(path), _removed_on_error(beside):
        beside.replace(path)


def move_file(source: Path, target: Path) -> None:
    """Rename a file to `target`, in another folder. Call `sync_folder` later."""
    make_folder(target.parent)
    with _disk_errors(target):
        source.replace(target)


@contextmanager
def _removed_on_error(file: Path) -> Iterator[None]:
    """Remove a temporary file if it cannot be written or renamed: on a full disk this gives room to other writers."""
    try:
        yield
    except OSError:
        with suppress(OSError):
            file.unlink()
        raise


def make_new_file(path: Path) -> int:
    """Return the descriptor of a new, empty file in place of one that was left. Raise OSError for a link."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | NO_LINK, 0o666)
    except FileExistsError:
        if path.is_symlink():
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path)) from None
        path.unlink()  # not truncated: it may be another name of a file elsewhere
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | NO_LINK, 0o666)


def remove_file(path: Path) -> None:
    """Remove a file if it exists."""
    with _disk_errors(path, do="remove"):
        path.unlink(missing_ok=True)


def make_folder(folder: Path) -> None:
    """Make a folder and its parents. Sync the parent of each new folder."""
    with _disk_errors(folder):
        if folder.is_dir():
            return
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    with _disk_errors(folder):
        fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def count_free_nbytes(path: Path) -> int:
    """Return the free bytes on the disk of `path`. The path need not exist yet."""
    at = path.absolute()
    found = os.statvfs(next(folder for folder in (at, *at.parents) if folder.is_dir()))
    return found.f_bavail * found.f_frsize


def append_line(path: Path, line: dict[str, Any]) -> None:
    """Append one JSON line to a file and sync it. If a kill left an incomplete last line, end that line first."""
    text = _make_line(line)
    with _disk_errors(path, needed=len(text)):
        is_new = _append(os.open(path, APPEND, 0o666), text)
    if is_new:
        sync_folder(path.parent)


def _make_line(line: dict[str, Any]) -> bytes:
    return json.dumps(line, separators=(",", ":")).encode() + b"\n"


def _append(fd: int, text: bytes) -> bool:
    """Append a line to an open file, sync and close it. Return True if the file was empty."""
    try:
        size = os.fstat(fd).st_size
        if size and os.pread(fd, 1, size - 1) != b"\n":
            text = b"\n" + text
        _write_all(fd, text)
        os.fsync(fd)
    finally:
        os.close(fd)
    return not size


class FolderGoneError(StoreError):
    """Raised when an open folder was removed."""


class OpenFolder:
    """A folder that is held open: its files are addressed through it, also where its path leads elsewhere later.

    A folder that was removed stays removed: writing in it raises FolderGoneError.
    """

    def __init__(self, path: Path) -> None:
        """Make the folder; it must not exist."""
        make_folder(path.parent)
        with _disk_errors(path):
            path.mkdir()
            self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | NO_LINK)
        sync_folder(path.parent)
        self.path = path

    def write(self, name: str, pieces: Sequence[bytes]) -> Written:
        """Write and sync a new file. Call `sync` later."""
        with self._errors(name, needed=sum(map(len, pieces))):
            return _write_pieces(os.open(name, NEW, 0o666, dir_fd=self._fd), pieces)

    def append_line(self, name: str, line: dict[str, Any]) -> None:
        """Append one JSON line to a file and sync it."""
        text = _make_line(line)
        with self._errors(name, needed=len(text)):
            if _append(os.open(name, APPEND, 0o666, dir_fd=self._fd), text):
                os.fsync(self._fd)

    def sync(self) -> None:
        """Make the names in the folder durable."""
        with self._errors("."):
            os.fsync(self._fd)

    def close(self) -> None:
        """Close the folder."""
        os.close(self._fd)

    @contextmanager
    def _errors(self, name: str, *, needed: int = 0) -> Iterator[None]:
        try:
            with _disk_errors(self.path / name, needed=needed):
                yield
        except StoreError as error:
            cause = error.__cause__
            if isinstance(cause, OSError) and cause.errno in (errno.ENOENT, errno.ESTALE):
                raise FolderGoneError(f"the folder {self.path} is gone") from cause
            raise


def parse_json(data: bytes | str) -> Any:  # noqa: ANN401
    """Return the data in a JSON text. Raise ValueError if the text is not JSON or is nested too deeply."""
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_lines(path: Place) -> list[dict[str, Any]]:
    """Return the complete JSON lines of a file. Incomplete lines are left out; a missing file has no lines."""
    try:
        data = read_whole(path)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from None
    lines = []
    for text in data.split(b"\n"):
        try:
            line = parse_json(text)
        except ValueError:
            continue
        if isinstance(line, dict):
            lines.append(line)
    return lines


def make_sealed_lines(lines: Sequence[dict[str, Any]]) -> list[bytes]:
    """Return the pieces of a file of JSON lines. The last line holds the hash of the lines before it."""
    body = b"".join(map(_make_line, lines))
    return [body, _make_seal(body)]


def _make_seal(body: bytes) -> bytes:
    said = {"lines_sha256": hashlib.sha256(body).hexdigest(), "n_lines": body.count(b"\n")}
    return json.dumps(said).encode() + b"\n"


def read_sealed_lines(path: Place) -> list[bytes]:
    """Return all lines but the last, not parsed. Raise StoreError if they do not match the hash in the last line."""
    try:
        data = read_whole(path)
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from None
    at = data.rfind(b"\n", 0, max(0, len(data) - 1)) + 1
    body = data[:at]
    if data[at:] != _make_seal(body):
        raise StoreError(f"{path} is damaged: its last line is not the hash of the lines before")
    return [line for line in body.split(b"\n") if line]


def sweep_partial(store: Path, places: Iterable[str] | None = None) -> int:
    """Remove the files that a killed build left half written. Return their number.

    Look in the store's own folder, in `.xact`, and in those of its folders that `places` names; None: in all. Raise
    StoreError if such a folder, a folder in it, or a file in `.xact`, is a link: xact would write outside the store.
    """
    own, left = str(store / ".xact"), []
    with _disk_errors(store):
        entries = _walk(str(store)) if places is None else _list_places(store, places)
        for entry in entries if store.is_dir() else ():
            if entry.is_symlink() and (entry.is_dir() or os.path.split(entry.path)[0] == own):
                _refuse_link(Path(entry))
            if entry.name.endswith(PARTIAL) and not entry.is_dir():
                left.append(Path(entry))
    for path in left:
        remove_file(path)
    return len(left)


def _walk(folder: str) -> Iterator[os.DirEntry[str]]:
    """Yield all files and folders below a folder, without following links. A store may have 100,000 files."""
    with os.scandir(folder) as entries:
        for entry in entries:
            yield entry
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(entry.path)


def _list_places(store: Path, places: Iterable[str]) -> Iterator[os.DirEntry[str]]:
    """Yield the files and folders in a store's own folder, in `.xact` and in `places`. A link to a folder ends it.

    Each place comes after the folders above it, which are listed too.
    """
    above = {at for place in places for at in itertools.accumulate(place.split("/"), "{}/{}".format)}
    for place in ["", ".xact", *sorted(above)]:
        try:
            with os.scandir(store / place) as entries:
                yield from entries
        except (FileNotFoundError, NotADirectoryError):
            continue


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _refuse_link(path: Path) -> None:
    if path.is_symlink():
        raise StoreError(
            f"{path} is a link: xact would write to its target", hint="replace the link by the file or folder itself"
        )


@contextmanager
def _disk_errors(path: Path, *, needed: int = 0, do: Literal["write", "remove"] = "write") -> Iterator[None]:
    """Turn an OSError into a StoreError of one line. `needed` is the number of bytes to write."""
    try:
        yield
    except OSError as error:
        if do == "write" and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreError(
                f"no room to write {path}: {count_free_nbytes(path)} bytes are free ({error.strerror}), "
                f"{needed} are needed",
                hint="make room and run the same command again: it goes on where it stopped",
            ) from error
        raise StoreError(
            f"cannot {do} {path}: {error.strerror}", hint="repair this, then run the same command again"
        ) from error
