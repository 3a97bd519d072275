"""The files of an export: written beside their name, synced, renamed when whole, each with its sha256 in a file beside.

The order at the end is: the old side file goes, the export takes its name, the new side file takes its own. So a kill
leaves an export without a side file at worst, never one beside a side file that belongs to another.
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
from xact.disk.durable import PARTIAL, count_free_nbytes, make_folder, sync_folder, write_file
from xact.disk.paths import MAX_NAME_NBYTES
from xact.errors import RequestError, WorkError
from xact.labels import check_label, fold_label

SIDE = ".sha256"
"""Ending of the side file: one line as `sha256sum` writes it."""

PIECE_NBYTES = 2**20
"""Bytes of a file that are hashed at a time."""

SYNC_NBYTES = 64 * 2**20
"""Bytes after which a file under way is synced: the disk then works while the rest is computed."""

MARGIN_NBYTES = 32
"""Bytes of a name that the endings of side files and of files under way may take."""


def make_file_name(text: str, *, what: str) -> str:
    """Return a label as a part of a path: `/` becomes `_`, what could lead out of its folder is refused."""
    name = check_label(text, what=what).replace("/", "_")
    if name in (".", ".."):
        raise RequestError(f"{what} {text!r} cannot be the name of a file or folder", hint="rename it")
    return name


def check_targets(store: Path, folder: Path, targets: Sequence[tuple[str, Path]], *, may_exist: bool) -> None:
    """Refuse targets inside the store, of one name, too long a name, or that exist; `targets` are (whose, path).

    Names that differ in case or composition alone are one name: they are one file on many a disk that they go to.
    """
    if folder.resolve().is_relative_to(store.resolve()):
        raise RequestError(
            f"the output folder {str(folder)!r} lies inside the store", hint="--output-dir somewhere else"
        )
    whose: dict[str, tuple[str, Path]] = {}
    for label, path in targets:
        other, same = whose.setdefault(fold_label(str(path)), (label, path))
        if other != label:
            where = "" if same == path else f", which is {same.name!r} on a disk that does not tell capitals apart"
            raise RequestError(
                f"{other} and {label} would both be written to {str(path)!r}{where}",
                hint="choose one of them, or another way to name files",
            )
        if len(os.fsencode(path.name)) > MAX_NAME_NBYTES - MARGIN_NBYTES:
            raise RequestError(f"{label}: the file name {path.name!r} is too long", hint="choose a shorter --prefix")
    there = [path for _, path in targets if os.path.lexists(path)]
    if there and not may_exist:
        more = f" and {len(there) - 1} more" if len(there) > 1 else ""
        raise RequestError(f"{str(there[0])!r}{more} exists already", hint="--overwrite, or another --output-dir")


def check_room(folder: Path, sizes: Iterable[tuple[Path, int]]) -> None:
    """Refuse what the disk has no room for; `sizes` are (path, bytes), written in this order."""
    needed = most = 0
    for path, nbytes in sizes:
        needed += nbytes
        most = max(most, needed)
        with suppress(OSError):
            needed -= path.stat().st_size  # freed when the new one takes its name
    free = count_free_nbytes(folder)
    if most > free:
        raise WorkError(
            f"no room in {str(folder)!r}: the export needs about {most} bytes, {free} are free",
            hint="make room, or choose another --output-dir",
        )


@dataclass
class Beside:
    """A file under way."""

    path: Path
    sha256: str | None = None
    """Of the whole, where its writer found it on the way."""


@contextmanager
def write_beside(target: Path, *, nbytes: int) -> Iterator[Beside]:
    """Give the file to write; at the end of the block it takes the name of `target`, whole and synced.

    `nbytes` is about what it takes. Raise WorkError where it cannot be written; the target is then as it was.
    """
    make_folder(target.parent)
    sweep_dead(target)
    beside = Beside(target.with_name(f"{target.name}.{os.getpid()}{PARTIAL}"))
    try:
        yield beside
        _place(beside, target)
    except (OSError, RuntimeError) as error:  # h5py and torch give a failing disk either type
        raise _explain(error, target, nbytes) from error
    finally:
        beside.path.unlink(missing_ok=True)


def _explain(error: OSError | RuntimeError, target: Path, nbytes: int) -> WorkError:
    """Return one line for what a disk, or a library on it, failed with."""
    first = _find_cause(error)
    said = re.search(r"errno = (\d+)", str(first))  # h5py tells the number in the text alone
    number = int(said[1]) if said else getattr(first, "errno", None)
    reason = os.strerror(number) if number else str(first).partition("\n")[0]
    return WorkError(
        f"cannot write {target}: {reason}; it needs about {nbytes} bytes, {count_free_nbytes(target.parent)} are free",
        hint="mend it and run the same command again, with --overwrite where other files were finished",
    )


def _find_cause(error: BaseException) -> BaseException:
    """Return the failure of the disk that an error follows from, where there is one, else the error itself.

    After a write that failed torch writes on to close its archive, and complains of the length alone.
    """
    at: BaseException | None = error
    while at is not None and not isinstance(at, OSError):
        at = at.__context__
    return at or error


def _place(beside: Beside, target: Path) -> None:
    """Sync and hash a file that is whole, and give it its name and its side file."""
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
    """Return the line that `sha256sum -c` checks."""
    escaped = name.replace("\\", "\\\\")
    return f"{'' if escaped == name else chr(92)}{sha256}  {escaped}\n"


def write_at(fd: int, data: memoryview, at: int) -> None:
    """Write all of a buffer of bytes at a place of a file."""
    while data:
        n = os.pwrite(fd, data, at)
        data, at = data[n:], at + n


class Follower:
    """Hashes a file while it is written, behind what is final, and syncs it; `finish` gives its sha256."""

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
        """Say that the bytes before `end` will not change any more."""
        self._steps.append(self._hasher.submit(self._take, end))
        if end - self._synced >= SYNC_NBYTES and (self._sync is None or self._sync.done()):
            if self._sync is not None:
                self._sync.result()
            self._sync = self._syncer.submit(os.fdatasync, self._file.fileno())
            self._synced = end

    def finish(self) -> str:
        """Return the sha256 of all of the file, which is whole now."""
        size = os.fstat(self._file.fileno()).st_size
        self._steps.append(self._hasher.submit(self._take, size))
        for step in (*self._steps, *([self._sync] if self._sync is not None else ())):
            step.result()  # a disk says once that it failed: the sync at the end may not hear of it again
        return self._hash.hexdigest()

    def _take(self, end: int) -> None:
        while self._at < end and (data := os.pread(self._file.fileno(), min(end - self._at, PIECE_NBYTES), self._at)):
            self._hash.update(data)
            self._at += len(data)


class Sink:
    """A file that HDF5 writes through and that never fails it: after a failed `write` HDF5 crashes when it closes.

    What comes after the first failure is dropped; `check` raises that failure.
    """

    def __init__(self, path: Path, *, is_new: bool) -> None:
        self._file = path.open("w+b" if is_new else "r+b", buffering=0)
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
        """Raise what the first write that failed failed with."""
        if self._failure is not None:
            raise self._failure

    def seek(self, at: int, whence: int = os.SEEK_SET) -> int:
        """Go to a place; HDF5 counts from the beginning or the end."""
        self._at = at + (self._end if whence == os.SEEK_END else 0)
        return self._at

    def tell(self) -> int:
        """Return the place of the next read or write."""
        return self._at

    def readinto(self, buffer: memoryview) -> int:
        """Fill a buffer; what is beyond the end is zero."""
        n = os.preadv(self._file.fileno(), [buffer], self._at)
        buffer[n:] = bytes(len(buffer) - n)
        return len(buffer)

    def read(self, n: int) -> bytes:
        """Return bytes."""
        return os.pread(self._file.fileno(), n, self._at)

    def write(self, data: memoryview) -> int:
        """Write all of a buffer, or keep the failure for `check`."""
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
        """Do nothing: nothing is kept back, and the whole is synced at the end."""


def sweep_dead(target: Path) -> None:
    """Remove what killed exports of the same file left: those of processes that are no more."""
    pattern = re.compile(re.escape(target.name) + r"\.(\d+)" + re.escape(PARTIAL))
    for left in target.parent.iterdir():
        if found := pattern.fullmatch(left.name):
            try:
                os.kill(int(found[1]), 0)
            except ProcessLookupError:
                left.unlink(missing_ok=True)
            except OSError:
                continue  # there is such a process, of another user
