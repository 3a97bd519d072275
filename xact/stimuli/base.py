"""Sources of stimuli. A source lists its stimuli with their labels, and reads one stimulus by its row.

Each source is a module of `sources/` with a function `open_source(block, folder)`.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from xact.disk.digest import FileStamp, name_file_kind
from xact.disk.paths import MAX_NAME_NBYTES
from xact.disk.pointers import find_pointer_at
from xact.errors import RequestError, StimulusError, make_nearest_text
from xact.labels import RESERVED_COLUMNS, Column, Kind, SourceRow, StimulusTable, check_label, fold_label
from xact.stimuli.written_names import DiskNames, write_path
from xact.store.check_metadata import count_text_nbytes, find_text_fault

MAX_FILE_NBYTES = 500_000_000
"""Most bytes of a file that is read as one stimulus."""

N_LOOKERS = 16
"""Threads that look at the files of a source."""

LOOKS_AT_ONCE = 256
"""Files that a thread looks at before it reports."""

SOURCES: Mapping[str, str] = {
    "folder": "xact.stimuli.sources.folder",
    "table": "xact.stimuli.sources.table",
    "hdf5": "xact.stimuli.sources.hdf5",
    "npy": "xact.stimuli.sources.npy",
    "nsd": "xact.stimuli.sources.nsd",
    "bold5000": "xact.stimuli.sources.bold5000",
    "things": "xact.stimuli.sources.things",
    "captions": "xact.stimuli.sources.captions",
}
"""{`source` of a recipe: its module}. A module is imported on first use."""


class StimulusSource(Protocol):
    """Stimuli in a fixed order, with their labels.

    A picture (`kind` is "image") is read as the bytes of a file or as an array of pixels. A caption ("text") is read
    as UTF-8: the `n_replicates` captions of one stimulus, joined by "\\0", so that one hash covers all of them.
    """

    @property
    def table(self) -> StimulusTable:
        """The labels of every stimulus."""
        ...

    @property
    def location(self) -> str:
        """Location of the stimuli, for messages."""
        ...

    @property
    def kind(self) -> Kind:
        """Kind of the stimuli, image or text."""
        ...

    @property
    def n_replicates(self) -> int:
        """Number of captions per stimulus; 1 for pictures, because the recipe replicates them."""
        ...

    def stamp(self, row: SourceRow) -> FileStamp:
        """Return the size and the modification time, a cheap test that a stimulus has not changed."""
        ...

    def read(self, row: SourceRow) -> bytes | npt.NDArray[np.uint8]:
        """Return the bytes of a file, an array of pixels, or text. Several threads may read at once."""
        ...

    def close(self) -> None:
        """Close open files. A later read is an error."""
        ...


class ListedStimuli(StimulusSource, Protocol):
    """All stimuli of a source, before the recipe's columns, fields, where and limit. Not checked yet."""

    def check(self, rows: Sequence[SourceRow], *, skip: bool = False) -> None:
        """Raise RequestError or StimulusError if the stimulus of a row does not exist.

        With `skip`, a stimulus that exists and cannot be read is left to the build, which records it.
        """
        ...

    @property
    def notes(self) -> Sequence[str]:
        """Notes to the user about what was listed."""
        ...

    def list_stamps(self, rows: Sequence[SourceRow]) -> list[FileStamp]:
        """Return the stamps of these rows as they were when they were listed: each file is looked at once."""
        ...

    def check_header(self, row: SourceRow, *, mask_alpha: str) -> tuple[int, int] | None:
        """Return (width, height) of the picture in a file, from its header; None if there is nothing more to check.

        Raise StimulusError if the header shows that the file cannot be decoded.
        """
        ...


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


@dataclass(frozen=True)
class FileSource:
    """Stimuli with one file each."""

    table: StimulusTable
    paths: Sequence[Path]
    location: str
    root: str
    """Root folder of the paths in `table.files`."""
    notes: Sequence[str] = ()
    """Notes to the user about what was listed."""
    looks: FileLooks = field(default_factory=FileLooks, repr=False, compare=False)
    """What was found at the paths when they were listed."""
    kind: ClassVar[Kind] = "image"
    n_replicates: ClassVar[int] = 1

    def stamp(self, row: SourceRow) -> FileStamp:
        """Return the size and the modification time of the file."""
        return stamp_file(self.paths[row], name=self.table.files[row])

    def read(self, row: SourceRow) -> bytes:
        """Return the whole file."""
        return read_file(self.paths[row], name=self.table.files[row])

    def check(self, rows: Sequence[SourceRow], *, skip: bool = False) -> None:
        """Refuse missing files, files inside a store, and, unless `skip`, files that are not regular."""
        stores = find_stores(self.paths[row].parent for row in rows)
        inside = next((row for row in rows if self.paths[row].parent in stores), None)
        if inside is not None:
            raise RequestError(
                f"{self.location!r}: the stimulus {self.table.ids[inside]!r} lies in the store "
                f"{str(stores[self.paths[inside].parent])!r}",
                hint="the files of a store are not stimuli: leave it out, or move it",
            )
        self.looks.look_at(self.paths[row] for row in rows)
        lost = [row for row in rows if not isinstance(self.looks.find(self.paths[row]), FileLook)]
        missing = [row for row in lost if not os.path.lexists(self.paths[row])]  # a link to nothing is there
        if missing:
            raise RequestError(
                f"{len(missing)} of the {len(rows)} files of {self.location!r} do not exist under {self.root!r}; "
                f"the first is {self.table.files[missing[0]]!r}, the stimulus {self.table.ids[missing[0]]!r}"
                f"{_find_twin(self.paths[missing[0]])}",
                hint="set stimuli.root to the folder that the files start from",
            )
        if not skip:
            self.list_stamps(rows)

    def list_stamps(self, rows: Sequence[SourceRow]) -> list[FileStamp]:
        """Return the size and the modification time of the files as they were listed."""
        self.looks.look_at(self.paths[row] for row in rows)
        return [make_stamp(self.looks.find(self.paths[row]), self.paths[row], self.table.files[row]) for row in rows]

    def check_header(self, row: SourceRow, *, mask_alpha: str) -> tuple[int, int]:
        """Return (width, height) of a picture; StimulusError if its header shows that it cannot be decoded."""
        from xact.stimuli.decode import check_header  # listing needs no Pillow

        name = self.table.files[row]
        try:
            with open_file(self.paths[row], name=name, look=self.looks.find(self.paths[row])) as file:
                return check_header(file, name=name, mask_alpha=mask_alpha)
        except OSError as error:
            raise StimulusError(f"{name!r} cannot be read: {error.strerror or error}") from None

    def close(self) -> None:
        """Do nothing: each read closes its file."""


@dataclass(frozen=True)
class ChosenStimuli:
    """Selected rows of a listing, with the labels that the recipe adds."""

    listing: ListedStimuli
    rows: Sequence[SourceRow]
    """Row of the listing for each row of the table."""
    table: StimulusTable
    notes: Sequence[str] = ()
    """Notes to the user about the labels."""

    @property
    def location(self) -> str:
        """Location of the stimuli, for messages."""
        return self.listing.location

    @property
    def kind(self) -> Kind:
        """Kind of the stimuli, image or text."""
        return self.listing.kind

    @property
    def n_replicates(self) -> int:
        """Number of captions per stimulus; 1 for pictures."""
        return self.listing.n_replicates

    def stamp(self, row: SourceRow) -> FileStamp:
        """Return the size and the modification time, a cheap test that a stimulus has not changed."""
        return self.listing.stamp(self.rows[row])

    def read(self, row: SourceRow) -> bytes | npt.NDArray[np.uint8]:
        """Return the bytes of a file, an array of pixels, or text."""
        return self.listing.read(self.rows[row])

    def check(self, rows: Sequence[SourceRow], *, skip: bool = False) -> None:
        """Raise RequestError or StimulusError if the stimulus of a row does not exist."""
        self.listing.check([self.rows[row] for row in rows], skip=skip)

    def list_stamps(self, rows: Sequence[SourceRow]) -> list[FileStamp]:
        """Return the stamps of these rows as they were listed."""
        return self.listing.list_stamps([self.rows[row] for row in rows])

    def check_header(self, row: SourceRow, *, mask_alpha: str) -> tuple[int, int] | None:
        """Return (width, height) of a picture; StimulusError if its header shows that it cannot be decoded."""
        return self.listing.check_header(self.rows[row], mask_alpha=mask_alpha)

    def close(self) -> None:
        """Close open files. A later read is an error."""
        self.listing.close()


def hash_stimulus(data: bytes | npt.NDArray[Any]) -> str:
    """Return the SHA-256 of a file's bytes, or of an array's bytes in C order, in hexadecimal."""
    return hashlib.sha256(data if isinstance(data, bytes) else np.ascontiguousarray(data).data).hexdigest()


def check_table(table: StimulusTable, *, location: str) -> None:
    """Refuse a table that cannot label the stimuli of a store.

    A valid table has at least one stimulus. Its ids stay distinct after Unicode normalisation and case folding. Its
    ids, conditions and stems are valid labels. Its columns do not use the names that the store uses itself.
    """
    if not len(table):
        raise RequestError(f"{location} holds no stimuli")
    for word, labels in (("stimulus id", table.ids), ("condition", table.conditions), ("stem", table.stems)):
        for label in dict.fromkeys(labels):
            check_label(label, what=f"{location}: the {word}")
    seen: dict[str, int] = {}
    for row, label in enumerate(table.ids):
        first = seen.setdefault(fold_label(label), row)
        if first != row:
            raise RequestError(_describe_twins(table, first, row, location), hint="rename one of the two")
    check_columns(table.columns, location=location)


def check_lengths(table: StimulusTable, *, location: str) -> None:
    """Refuse a column of text that a store's reader would refuse, because its longest cell is too long."""
    own = {"stimulus": table.ids, "condition": table.conditions, "stem": table.stems, "file": table.files}
    for name, cells in (own | dict(table.columns)).items():
        texts = [cell for cell in cells if isinstance(cell, str)]
        fault = find_text_fault(count_text_nbytes(texts))
        if fault is not None:
            row = max(range(len(texts)), key=lambda row: len(texts[row]))
            raise RequestError(
                f"{location}: column {name!r}: {fault}; the longest, of the stimulus {table.ids[row]!r}, has "
                f"{len(texts[row])} characters",
                hint="shorten it, or leave the column out of the table",
            )


def check_columns(columns: Mapping[str, Column], *, location: str, hint: str = "") -> None:
    """Refuse columns with a reserved or invalid name, or with a NUL character in a cell.

    Each column becomes a folder, and some disks treat `Age` and `age` as the same name.
    """
    seen: dict[str, str] = {}
    for column, cells in columns.items():
        other = seen.setdefault(fold_label(column), column)
        if other != column:
            raise RequestError(
                f"columns {other!r} and {column!r} of {location} are one name on some disks",
                hint=hint or f"rename: {{{column}: caption_{column}}}",
            )
        _check_column_name(column, location=location, hint=hint or f"rename: {{{column}: caption_{column}}}")
        bad = next((row for row, cell in enumerate(cells) if isinstance(cell, str) and "\0" in cell), None)
        if bad is not None:
            raise RequestError(f"{location}: column {column!r} holds a NUL character in row {bad + 1}")


def _check_column_name(column: str, *, location: str, hint: str) -> None:
    if fold_label(column) in {*RESERVED_COLUMNS, "zarr.json"} or fold_label(column).startswith("jitter_"):
        raise RequestError(f"column {column!r} of {location} has a reserved name", hint=hint)
    if "/" in column or "\\" in column or column.startswith((".", "__")):
        raise RequestError(f"column {column!r} of {location} cannot be the name of an array", hint=hint)
    check_label(column, what=f"{location}: the column name")
    if len(os.fsencode(column)) > MAX_NAME_NBYTES:
        found = f"has {len(os.fsencode(column))} bytes; {MAX_NAME_NBYTES} is the most of a folder"
        raise RequestError(f"column {column[:40]!r}… of {location} {found}", hint=hint)


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


ZARR_FILES = ("zarr.json", ".zgroup", ".zarray")
"""Files that make a folder a store of Zarr, version 3 or 2."""


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


def _find_twin(path: Path) -> str:
    """Return ` (there is NAME)` for a file whose name differs from a missing one in case or in blanks only."""
    wanted = fold_label(path.name.strip())
    twin = next((one.name for one in path.parent.glob("*") if fold_label(one.name.strip()) == wanted), None)
    return "" if twin is None else f" (there is {twin!r})"


def _describe_twins(table: StimulusTable, first: int, second: int, location: str) -> str:
    """Return the message about two rows with the same id, or with ids that look the same."""
    where = f"rows {first + 1} and {second + 1}"
    if table.files[first] != table.files[second]:
        where = f"{where}, {table.files[first]!r} and {table.files[second]!r}"
    if table.ids[first] == table.ids[second]:
        return f"{location}: the stimulus id {table.ids[first]!r} stands twice ({where})"
    return (
        f"{location}: the stimulus ids {table.ids[first]!r} and {table.ids[second]!r} are one name "
        f"after Unicode normalisation and case folding ({where})"
    )
