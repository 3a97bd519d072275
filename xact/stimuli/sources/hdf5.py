"""An array of images in an HDF5 file. One row is read at a time."""

from __future__ import annotations

import math
import os
import threading
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import h5py
import numpy as np
import numpy.typing as npt

from xact.disk.digest import FileStamp
from xact.disk.hdf5_members import open_path, read_texts
from xact.errors import RequestError, StimulusError, make_nearest_text
from xact.labels import Kind, SourceRow, StimulusTable
from xact.recipe.stimuli_schema import Hdf5Stimuli
from xact.stimuli.arrays import Channels, check_images, make_pixels
from xact.stimuli.files_on_disk import find_file, stamp_file


class Hdf5Source:
    """Images in the rows of one data set. Row i of the table is row i of the array."""

    kind: ClassVar[Kind] = "image"
    n_replicates: ClassVar[int] = 1
    notes: ClassVar[Sequence[str]] = ()

    def __init__(
        self,
        path: Path,
        dataset: str,
        table: StimulusTable,
        *,
        row_nbytes: int,
        channels: Channels | None = None,
        white: float | None = None,
    ) -> None:
        self.table = table
        self._channels: Channels | None = channels
        self._white = white
        self.location = f"{path}:{dataset}"
        self._path = path
        self._dataset = dataset
        self._row_nbytes = row_nbytes
        self._lock = threading.Lock()
        self._owner = os.getpid()
        self._array: Any = None
        self._opened: FileStamp | None = None
        """Stamp of the file when this process opened it."""
        self._is_closed = False

    def stamp(self, row: SourceRow) -> FileStamp:
        """Return the number of bytes of one row, and the file's modification time mixed with the data set's name.

        One file may contain several arrays of the same shape; the time alone would not distinguish them.
        """
        mtime_ns = stamp_file(self._path, name=self._path.name).mtime_ns
        return FileStamp(self._row_nbytes, mtime_ns ^ zlib.crc32(self._dataset.encode()))

    def list_stamps(self, rows: Sequence[SourceRow]) -> list[FileStamp]:
        """Return the stamps of these rows, which are those of one file."""
        return [self.stamp(row) for row in rows[:1]] * len(rows)

    def read(self, row: SourceRow) -> npt.NDArray[np.uint8]:
        """Return one picture, of shape (height, width), (height, width, 3) or (height, width, 4)."""
        try:
            pixels = self._open()[row]
        except (OSError, KeyError, ValueError, RuntimeError) as error:  # ValueError: the file was closed meanwhile
            found = str(error).replace(str(self._path), self._path.name)  # the error is recorded: leave the folder out
            raise StimulusError(f"{self.table.files[row]!r} of {self._path.name} cannot be read: {found}") from None
        if stamp_file(self._path, name=self._path.name) != self._opened:  # the stamp would be that of other pixels
            raise StimulusError(f"{self._path.name} has changed since it was opened", hint="run the same command again")
        return make_pixels(pixels, name=self.table.files[row], channels=self._channels, white=self._white)

    def check(self, rows: Sequence[SourceRow], *, skip: bool = False) -> None:
        """Do nothing: `open_source` has already found the array."""

    def check_header(self, row: SourceRow, *, mask_alpha: str) -> None:
        """Do nothing: `open_source` has already checked the shape and the type of all pictures."""

    def close(self) -> None:
        """Close the file. A later read is an error."""
        with self._lock:
            self._is_closed = True
            if self._array is not None and self._owner == os.getpid():
                self._array.file.close()
            self._array = None

    def _open(self) -> Any:  # noqa: ANN401  h5py has no annotations
        """Return the data set. Each process has its own handle, because a fork shares the position in the file."""
        if self._owner != os.getpid():
            self._lock, self._owner, self._array = threading.Lock(), os.getpid(), None
        with self._lock:
            if self._is_closed:
                raise StimulusError(f"{self.location} is closed")
            if self._array is None:
                self._opened = stamp_file(self._path, name=self._path.name)
                self._array = _find_dataset(h5py.File(self._path, "r"), self._dataset, self._path)
            return self._array


def open_source(block: Hdf5Stimuli, folder: Path) -> Hdf5Source:
    """List the rows of the data set that a recipe names; their pixels stay on disk."""
    path = find_file(block.file, folder)
    with _open_file(path) as file:
        found = _find_dataset(file, block.dataset, path)
        shape: tuple[int, ...] = tuple(found.shape or ())
        where = f"the data set {block.dataset!r} of {str(path)!r}"
        check_images(shape, found.dtype, channels=block.channels, white=block.white, where=where)
        row_nbytes = math.prod(shape[1:]) * found.dtype.itemsize
    ids = [f"{row:05d}" for row in range(shape[0])] if block.id is None else _load_ids(path, block.id, shape[0])
    files = [f"{block.dataset}[{row}]" for row in range(shape[0])]
    table = StimulusTable(ids=ids, conditions=["all"] * len(ids), stems=ids, files=files)
    return Hdf5Source(path, block.dataset, table, row_nbytes=row_nbytes, channels=block.channels, white=block.white)


def load_shape(path: Path, dataset: str) -> tuple[int, ...]:
    """Return the shape (n, height, width, ...) of the images in a file. Refuse a data set without images."""
    with _open_file(path) as file:
        found = _find_dataset(file, dataset, path)
        where = f"the data set {dataset!r} of {str(path)!r}"
        check_images(tuple(found.shape or ()), found.dtype, channels="last", white=None, where=where)
        return tuple(found.shape)


@contextmanager
def _open_file(path: Path) -> Iterator[Any]:
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, RuntimeError) as error:
        raise RequestError(f"{str(path)!r} cannot be read as HDF5: {error}") from None


def _find_dataset(file: Any, name: str, path: Path) -> Any:  # noqa: ANN401  h5py has no annotations
    found = open_path(file, name) if name.strip("/") else None
    if not isinstance(found, h5py.Dataset):
        names: list[str] = []
        file.visititems(lambda found, item: names.append(found) if isinstance(item, h5py.Dataset) else None)
        what = "a group" if isinstance(found, h5py.Group) else "missing"
        listed = make_nearest_text(name, names) or f" (it holds {', '.join(names[:5]) or 'none'})"
        raise RequestError(f"the data set {name!r} of {str(path)!r} is {what}{listed}")
    return found


def _load_ids(path: Path, name: str, n_stimuli: int) -> list[str]:
    """Return the ids as text."""
    where = f"the ids {name!r} of {str(path)!r}"
    with _open_file(path) as file:
        found = _find_dataset(file, name, path)
        if found.shape != (n_stimuli,):
            raise RequestError(f"{where} have shape {found.shape}; there are {n_stimuli} images")
        kind = h5py.check_string_dtype(found.dtype)
        if kind is not None:
            texts = found.asstr()
            try:
                cells = texts[:] if kind.length else read_texts(texts.__getitem__, n_stimuli, path)
                return [str(cell) for cell in cells]
            except UnicodeDecodeError:
                raise RequestError(f"{where} are not UTF-8") from None
        if found.dtype.kind in "iu":
            return [str(number) for number in found[:].tolist()]
        raise RequestError(f"{where} have type {found.dtype}", hint="ids are text or integers")
