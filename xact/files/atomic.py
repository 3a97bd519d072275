"""Write the files of an export: under a temporary name, synced, then renamed, each with a side file of its sha256.

At the end, the old side file is removed, the export is renamed, and the new side file is written, in this order. So a
kill may leave an export without a side file, but never with the side file of another export.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from xact.disk.digest import hash_file
from xact.disk.durable import NO_LINK, PARTIAL, count_free_nbytes, make_folder, make_new_file, sync_folder, write_file
from xact.disk.paths import MAX_NAME_NBYTES
from xact.disk.places import Place
from xact.errors import RequestError, WorkError
from xact.labels import check_label, fold_label

SIDE = ".sha256"
"""Ending of the side file. It holds one line in the format of `sha256sum`."""

PIECE_NBYTES = 2**20
"""Bytes that are hashed at a time."""

SYNC_NBYTES = 64 * 2**20
"""Bytes after which an unfinished file is synced. So the disk writes while the rest is computed."""

MARGIN_NBYTES = 32
"""Longest ending of side files and of unfinished files, bytes."""


NAME_PART_NBYTES = 200
"""Most bytes of a label in a file name. With the usual prefix and endings, such a name fits every file system."""


REPLACED = "[/:]"
"""Characters of a label that its file name does not have: Windows and rsync take `:` for another thing."""


def make_file_name(text: str, *, what: str, most: int = NAME_PART_NBYTES) -> str:
    """Return a label as one part of a path, with `_` for `/` and `:`.

    Raise RequestError for `.`, `..` and invalid labels. A label of more than `most` bytes is cut and gets a hash: 200
    characters may have 800 bytes.
    """
    name = re.sub(REPLACED, "_", check_label(text, what=what))
    if name in (".", ".."):
        raise RequestError(f"{what} {text!r} cannot be the name of a file or folder", hint="rename it")
    data = os.fsencode(name)
    if len(data) <= most:
        return name
    return f"{data[: most - 9].decode(errors='ignore')}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def check_targets(store: Place, folder: Path, targets: Sequence[tuple[str, Path]], *, may_exist: bool) -> None:
    """Raise RequestError for targets inside the store, with the same or too long names, or that exist already.

    `targets` are (content, path). Names that differ only in upper and lower case, or in Unicode composition, count as
    the same name, because many disks treat them as one file.
    """
    if isinstance(store, Path) and folder.resolve().is_relative_to(store.resolve()):
        raise RequestError(f"the output folder {str(folder)!r} lies inside the store", hint="give another --output-dir")
    whose: dict[str, tuple[str, Path]] = {}
    for label, path in targets:
        other, same = whose.setdefault(fold_label(str(path)), (label, path))
        if other != label:
            where = "" if same == path else f", which is {same.name!r} on a disk that does not tell capitals apart"
            raise RequestError(
                f"{other} and {label} would both be written to {str(path)!r}{where}",
                hint="export only one of them, or name the files in another way",
            )
        if len(os.fsencode(path.name)) > MAX_NAME_NBYTES - MARGIN_NBYTES:
            raise RequestError(f"{label}: the file name {path.name!r} is too long", hint="choose a shorter --prefix")
    there = [path for _, path in targets if os.path.lexists(path)]
    if there and not may_exist:
        more = f" and {len(there) - 1} more" if len(there) > 1 else ""
        raise RequestError(
            f"{str(there[0])!r}{more} exists already", hint="add --overwrite, or give another --output-dir"
        )


def check_room(folder: Path, sizes: Iterable[tuple[Path, int]]) -> None:
    """Raise WorkError if the disk has too little room. `sizes` are (path, bytes) in the order of writing."""
    needed = most = 0
    for path, nbytes in sizes:
        needed += nbytes
        most = max(most, needed)
        with suppress(OSError):
            needed -= path.stat().st_size  # the old file is removed when the new one is renamed
    free = count_free_nbytes(folder)
    if most > free:
        raise WorkError(
            f"no room in {str(folder)!r}: the export needs about {most} bytes, {free} are free",
            hint="make room, or choose another --output-dir",
        )


@dataclass
class Beside:
    """A file that is being written."""

    path: Path
    sha256: str | None = None
    """Hash of the whole file, if its writer computed it."""


@contextmanager
def write_beside(target: Path, *, nbytes: int) -> Iterator[Beside]:
    """Yield a temporary file to write. At the end of the block, sync it and rename it to `target`.

    `nbytes` is its approximate size. Raise WorkError if it cannot be written; `target` is then unchanged.
    """
    make_folder(target.parent)
    sweep_dead(target)
    beside = Beside(target.with_name(f"{target.name}.{os.getpid()}{PARTIAL}"))
    try:
        yield beside
        _place(beside, target)
    except (OSError, RuntimeError) as error:  # for a failing disk, h5py and torch raise either of these
        raise _explain(error, target, nbytes) from error
    finally:
        beside.path.unlink(missing_ok=True)


def _explain(error: OSError | RuntimeError, target: Path, nbytes: int) -> WorkError:
    """Return a WorkError of one line for an error of the disk, or of a library that writes to it."""
    first = _find_cause(error)
    said = re.search(r"errno = (\d+)", str(first))  # h5py gives the number only in the text
    number = int(said[1]) if said else getattr(first, "errno", None)
    reason = os.strerror(number) if number else str(first).partition("\n")[0]
    return WorkError(
        f"cannot write {target}: {reason}; it needs about {nbytes} bytes, {count_free_nbytes(target.parent)} are free",
        hint="repair this and run the same command again; add --overwrite if other files were finished",
    )


def _find_cause(error: BaseException) -> BaseException:
    """Return the OSError in the chain of an error, or the error itself if there is none.

    For example, after a failed write torch still closes its archive, and that second error names only the length.
    """
    at: BaseException | None = error
    while at is not None and not isinstance(at, OSError):
        at = at.__context__
    return at or error


def _place(beside: Beside, target: Path) -> None:
    """Sync and hash a complete file, rename it, and write its side file."""
    with beside.path.open("rb") as file, ThreadPoolExecutor(1) as pool:
        syncing = pool.submit(os.fsync, file.fileno())  # the disk writes while the processor hashes
        sha256 = beside.sha256 or hash_file(beside.path).sha256
        syncing.result()
    side = target.with_name(target.name + SIDE)
    side.unlink(missing_ok=True)
    sync_folder(target.parent)
    beside.path.replace(target)
    sync_folder(target.parent)
    write_file(side, [make_side_line(sha256, target.name).encode("utf-8", "surrogateescape")])


def make_side_line(sha256: str, name: str) -> str:
    """Return the line for `sha256sum -c`."""
    escaped = name.replace("\\", "\\\\")
    return f"{'' if escaped == name else chr(92)}{sha256}  {escaped}\n"


def open_beside(path: Path, *, is_new: bool) -> int:
    """Return the descriptor of the temporary file of an export, to read and write. A link is not followed."""
    return make_new_file(path) if is_new else os.open(path, os.O_RDWR | NO_LINK)


def write_at(fd: int, data: memoryview, at: int) -> None:
    """Write a whole buffer of bytes at the position `at` of a file."""
    while data:
        n = os.pwrite(fd, data, at)
        data, at = data[n:], at + n


class Follower:
    """Hash and sync the final part of a file while the rest is being written. `finish` returns the sha256."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb", buffering=0)
        self._hash = hashlib.sha256()
        self._at = 0
        self._hasher, self._syncer = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self._steps: list[Future[None]] = []
        self._sync: Future[None] | None = None
        self._synced = 0

    def __enter__(self) -> Follower:
        return self

    def __exit__(self, *_: object) -> None:
        for pool in (self._hasher, self._syncer):
            pool.shutdown(cancel_futures=True)
        self._file.close()

    def advance(self, end: int) -> None:
        """Hash up to `end`: the bytes before it must not change any more."""
        self._steps.append(self._hasher.submit(self._take, end))
        if end - self._synced >= SYNC_NBYTES and (self._sync is None or self._sync.done()):
            if self._sync is not None:
                self._sync.result()
            self._sync = self._syncer.submit(os.fdatasync, self._file.fileno())
            self._synced = end

    def finish(self) -> str:
        """Return the sha256 of the whole file. Call this when the file is complete."""
        size = os.fstat(self._file.fileno()).st_size
        self._steps.append(self._hasher.submit(self._take, size))
        for step in (*self._steps, *([self._sync] if self._sync is not None else ())):
            step.result()  # a disk reports a failure once: the last sync may not report it again
        return self._hash.hexdigest()

    def _take(self, end: int) -> None:
        while self._at < end and (data := os.pread(self._file.fileno(), min(end - self._at, PIECE_NBYTES), self._at)):
            self._hash.update(data)
            self._at += len(data)


class Sink:
    """A file for HDF5 whose `write` never raises: after a failed write, HDF5 would crash when it closes the file.

    After the first failure, nothing more is written; `check` raises that failure.
    """

    def __init__(self, path: Path, *, is_new: bool) -> None:
        self._file = os.fdopen(open_beside(path, is_new=is_new), "r+b", buffering=0)
        self._at = 0
        self._end = os.fstat(self._file.fileno()).st_size
        self._failure: OSError | None = None

    def __enter__(self) -> Sink:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._file.close()
        if kind is None or issubclass(kind, (OSError, RuntimeError)):
            self.check()

    def check(self) -> None:
        """Raise the error of the first failed write, if there is one."""
        if self._failure is not None:
            raise self._failure

    def seek(self, at: int, whence: int = os.SEEK_SET) -> int:
        """Set the position. HDF5 counts from the start or from the end of the file."""
        self._at = at + (self._end if whence == os.SEEK_END else 0)
        return self._at

    def tell(self) -> int:
        """Return the position of the next read or write."""
        return self._at

    def readinto(self, buffer: memoryview) -> int:
        """Fill a buffer. Bytes after the end of the file are zero."""
        n = os.preadv(self._file.fileno(), [buffer], self._at)
        buffer[n:] = bytes(len(buffer) - n)
        return len(buffer)

    def read(self, n: int) -> bytes:
        """Return up to `n` bytes from the current position."""
        return os.pread(self._file.fileno(), n, self._at)

    def write(self, data: memoryview) -> int:
        """Write a whole buffer, or keep the error for `check`."""
        try:
            if self._failure is None:
                write_at(self._file.fileno(), data, self._at)
        except OSError as error:
            self._failure = error
        self._end = max(self._end, self._at + len(data))
        return len(data)

    def truncate(self, size: int) -> int:
        """Set the length of the file."""
        try:
            self._file.truncate(size)
        except OSError as error:
            self._failure = self._failure or error
        self._end = size
        return size

    def flush(self) -> None:
        """Do nothing: writes are not buffered, and the file is synced at the end."""


def sweep_dead(target: Path) -> None:
    """Remove temporary files of the same target whose processes have ended: killed exports left them."""
    pattern = re.compile(re.escape(target.name) + r"\.(\d+)" + re.escape(PARTIAL))
    for left in target.parent.iterdir():
        if found := pattern.fullmatch(left.name):
            try:
                os.kill(int(found[1]), 0)
            except ProcessLookupError:
                left.unlink(missing_ok=True)
            except OSError:
                continue  # the process exists and belongs to another user
