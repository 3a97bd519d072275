"""Files of stimuli: find them, look at them, stamp them, read them."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, NamedTuple

from xact.disk.digest import FileStamp, name_file_kind
from xact.disk.pointers import find_pointer_at
from xact.errors import RequestError, StimulusError, make_nearest_text
from xact.labels import fold_label
from xact.stimuli.written_names import DiskNames, write_path

MAX_FILE_NBYTES = 500_000_000
"""Most bytes of a file that is read as one stimulus."""

N_LOOKERS = 16
"""Threads that look at the files of a source."""

LOOKS_AT_ONCE = 256
"""Files that a thread looks at before it reports."""

ZARR_FILES = ("zarr.json", ".zgroup", ".zarray")
"""Files that make a folder a store of Zarr, version 3 or 2."""


class FileLook(NamedTuple):
    """What one `stat` says of a path."""

    mode: int
    nbytes: int
    mtime_ns: int


def look_at_file(path: Path) -> FileLook | Exception:
    """Return what is at a path, or why that cannot be said."""
    try:
        found = os.stat(path)  # noqa: PTH116  faster than pathlib, and there may be a million files
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        return error.with_traceback(None)
    return FileLook(found.st_mode, found.st_size, found.st_mtime_ns)


class FileLooks:
    """What is at the paths of a source when it is listed. Each path is looked at once, in threads."""

    def __init__(self) -> None:
        self._found: dict[Path, FileLook | Exception] = {}

    def look_at(self, paths: Iterable[Path]) -> None:
        """Look at those of the paths that were not looked at before."""
        new = [path for path in dict.fromkeys(paths) if path not in self._found]
        parts = [new[start : start + LOOKS_AT_ONCE] for start in range(0, len(new), LOOKS_AT_ONCE)]
        with ThreadPoolExecutor(N_LOOKERS) as pool:  # on a shared disk a look is mostly waiting
            for part, found in zip(parts, pool.map(lambda part: [*map(look_at_file, part)], parts), strict=True):
                self._found.update(zip(part, found, strict=True))

    def find(self, path: Path) -> FileLook | Exception:
        """Return what is at a path, or why that cannot be said."""
        if path not in self._found:
            self._found[path] = look_at_file(path)
        return self._found[path]

    def is_folder(self, path: Path) -> bool:
        """Return True if a path is a folder."""
        found = self.find(path)
        return isinstance(found, FileLook) and stat.S_ISDIR(found.mode)


def resolve_path(path: str, start: Path) -> Path:
    """Return the absolute form of `path`, which may start from `start`, with the names on disk that it means.

    Expands `~`, `.` and `..`; keeps links.
    """
    return DiskNames().find(write_path(path, start))


def find_file(file: str, folder: Path) -> Path:
    """Return the path of `stimuli.file`; RequestError if there is no such file, or only a pointer to its content."""
    path = resolve_path(file, folder)
    pointer = find_pointer_at(path)
    if pointer is not None:
        raise RequestError(f"{str(path)!r} is {pointer[0]}", hint=pointer[1])
    if not path.is_file():
        names = [found.name for found in path.parent.glob("*") if found.is_file()]
        raise RequestError(
            f"there is no file {str(path)!r}{make_nearest_text(path.name, names)}",
            hint="stimuli.file is relative to the recipe file",
        )
    return path


def make_file_label(path: Path, root: Path) -> str:
    """Return the path relative to `root` if it is inside, else the whole path, with `/` between its parts."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()


def is_store(folder: Path) -> bool:
    """Return True for a store of xact, finished or not, and for any other store of Zarr."""
    is_zarr = folder.suffix.lower() == ".zarr" or any(os.path.isfile(folder / name) for name in ZARR_FILES)  # noqa: PTH113
    return is_zarr or os.path.isdir(folder / ".xact")  # noqa: PTH112  pathlib raises an error for a folder without permission


def find_stores(folders: Iterable[Path]) -> dict[Path, Path]:
    """Return {folder: the store that it is, or lies in} for those of the folders that have one. Links are followed."""
    known: dict[str, Path | None] = {"": None}

    def find(folder: str) -> Path | None:
        inner: list[str] = []
        while folder not in known:
            inner.append(folder)
            parent = os.path.dirname(folder)  # noqa: PTH120  text is faster here
            folder = "" if parent == folder else parent
        for one in reversed(inner):
            known[one] = known[folder] or (Path(one) if is_store(Path(one)) else None)
            folder = one
        return known[folder]

    found = {folder: find(os.path.realpath(folder)) for folder in dict.fromkeys(folders)}
    return {folder: store for folder, store in found.items() if store is not None}


def stamp_file(path: Path, *, name: str) -> FileStamp:
    """Return the size and modification time of a regular file; raise StimulusError for anything else."""
    return make_stamp(look_at_file(path), path, name)


def make_stamp(look: FileLook | Exception, path: Path, name: str) -> FileStamp:
    """Return the size and modification time of a regular file; raise StimulusError for anything else."""
    if isinstance(look, FileNotFoundError):
        if path.is_symlink():
            what, hint = find_pointer_at(path) or ("a link to a file that is not there", "get that file")
            raise StimulusError(f"{name!r} is {what}", hint=f"{hint}, or leave it out")
        raise StimulusError(f"{name!r} is not there", hint="put it back, or leave it out")
    if isinstance(look, Exception):
        raise StimulusError(f"{name!r} cannot be read: {getattr(look, 'strerror', None) or look}")
    if not stat.S_ISREG(look.mode):
        raise StimulusError(f"{name!r} is {name_file_kind(look.mode)}, not a file", hint="leave it out")
    return FileStamp(nbytes=look.nbytes, mtime_ns=look.mtime_ns)


def open_file(path: Path, *, name: str, look: FileLook | Exception | None = None) -> BinaryIO:
    """Open a regular file; raise StimulusError for anything else. Never blocks on a pipe.

    `look` is what was found at the path, if it was looked at.
    """
    make_stamp(look_at_file(path) if look is None else look, path, name)
    try:
        # a pipe put in the file's place meanwhile would hang an ordinary open
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except OSError as error:
        raise StimulusError(f"{name!r} cannot be read: {error.strerror or error}") from None
    return os.fdopen(descriptor, "rb")


def read_file(path: Path, *, name: str) -> bytes:
    """Return the bytes of a regular file; raise StimulusError for anything else. Never blocks on a pipe."""
    with open_file(path, name=name) as file:
        nbytes = os.fstat(file.fileno()).st_size
        try:
            data = b"" if nbytes > MAX_FILE_NBYTES else file.read(MAX_FILE_NBYTES + 1)
        except OSError as error:
            raise StimulusError(f"{name!r} cannot be read: {error.strerror or error}") from None
    if max(nbytes, len(data)) > MAX_FILE_NBYTES:
        raise StimulusError(f"{name!r} has {max(nbytes, len(data))} bytes; {MAX_FILE_NBYTES} is the most")
    return data


def find_twin(path: Path) -> str:
    """Return ` (there is NAME)` for a file whose name differs from a missing one in case or in blanks only."""
    wanted = fold_label(path.name.strip())
    twin = next((one.name for one in path.parent.glob("*") if fold_label(one.name.strip()) == wanted), None)
    return "" if twin is None else f" (there is {twin!r})"
