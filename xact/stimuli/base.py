"""Sources of stimuli. A source lists its stimuli with their labels, and reads one stimulus by its row.

Each source is a module of `sources/` with a function `open_source(block, folder)`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from xact.disk.digest import FileStamp
from xact.disk.paths import MAX_NAME_NBYTES
from xact.errors import RequestError, StimulusError
from xact.labels import RESERVED_COLUMNS, Column, Kind, SourceRow, StimulusTable, check_label, fold_label
from xact.stimuli.files_on_disk import (
    FileLook,
    FileLooks,
    find_stores,
    find_twin,
    make_stamp,
    open_file,
    read_file,
    stamp_file,
)
from xact.store.check_metadata import count_text_nbytes, find_text_fault

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
                f"{find_twin(self.paths[missing[0]])}",
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
