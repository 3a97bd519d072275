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
from xact.stimuli.base import resolve_path, stamp_file


class Hdf5Source:
    """Images in the rows of one data set. Row i of the table is row i of the array."""

    kind: ClassVar[Kind] = "image"
    n_replicates: ClassVar[int] = 1
    notes: ClassVar[Sequence[str]] = ()

    def __init__(self, path: Path, dataset: str, table: StimulusTable, *, row_nbytes: int) -> None:
        self.table = table
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

    def read(self, row: SourceRow) -> npt.NDArray[np.uint8]:
        """Return one row, of shape (height, width, 3) or (height, width)."""
        try:
            pixels: npt.NDArray[np.uint8] = self._open()[row]
        except (OSError, KeyError, ValueError, RuntimeError) as error:  # ValueError: the file was closed meanwhile
            found = str(error).replace(str(self._path), self._path.name)  # the error is recorded: leave the folder out
            raise StimulusError(f"{self.table.files[row]!r} of {self._path.name} cannot be read: {found}") from None
        if stamp_file(self._path, name=self._path.name) != self._opened:  # the stamp would be that of other pixels
            raise StimulusError(f"{self._path.name} has changed since it was opened", hint="run the same command again")
        return pixels

    def check(self, rows: Sequence[SourceRow], *, skip: bool = False) -> None:
        """Do nothing: `open_source` has already found the array."""

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
    path = resolve_path(block.file, folder)
    if not path.is_file():
        names = [found.name for found in path.parent.glob("*") if found.is_file()]
        raise RequestError(
            f"there is no file {str(path)!r}{make_nearest_text(path.name, names)}",
            hint="stimuli.file is relative to the recipe file",
        )
    shape = load_shape(path, block.dataset)
    ids = [f"{row:05d}" for row in range(shape[0])] if block.id is None else _load_ids(path, block.id, shape[0])
    files = [f"{block.dataset}[{row}]" for row in range(shape[0])]
    table = StimulusTable(ids=ids, conditions=["all"] * len(ids), stems=ids, files=files)
    return Hdf5Source(path, block.dataset, table, row_nbytes=math.prod(shape[1:]))


def load_shape(path: Path, dataset: str) -> tuple[int, ...]:
    """Return the shape (n, height, width, ...) of the images in a file. Refuse any other data set."""
    with _open_file(path) as file:
        return _check_images(_find_dataset(file, dataset, path), dataset, path)


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


def _check_images(found: Any, name: str, path: Path) -> tuple[int, ...]:  # noqa: ANN401  as above
    """Return the shape (n, height, width, ...), or refuse an array that does not hold images."""
    shape: tuple[int, ...] = tuple(found.shape or ())
    is_images = (len(shape) == 4 and shape[3] == 3) or (len(shape) == 3 and shape[2] != 3)
    if not is_images or found.dtype != np.uint8 or 0 in shape[1:]:
        raise RequestError(
            f"the data set {name!r} of {str(path)!r} has shape {shape} and type {found.dtype}",
            hint="images are uint8 of shape (n, height, width, 3) or (n, height, width)",
        )
    return shape


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
