"""An array of images in a NumPy file `.npy`. One row is read at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from xact.disk.digest import FileStamp
from xact.errors import RequestError, StimulusError
from xact.labels import Kind, SourceRow, StimulusTable
from xact.recipe.stimuli_schema import NpyStimuli
from xact.stimuli.arrays import check_images, make_pixels
from xact.stimuli.files_on_disk import find_file, open_file, stamp_file


@dataclass(frozen=True)
class NpySource:
    """Images in the rows of one array. Row i of the table is row i of the array."""

    table: StimulusTable
    location: str
    path: Path
    block: NpyStimuli
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    """Shape of one row."""
    start: int
    """Position of the first row in the file."""
    listed: FileStamp
    """Stamp of the file when it was listed."""
    kind: ClassVar[Kind] = "image"
    n_replicates: ClassVar[int] = 1
    notes: ClassVar[Sequence[str]] = ()

    def stamp(self, row: SourceRow) -> FileStamp:
        """Return the number of bytes of one row, and the file's modification time."""
        mtime_ns = stamp_file(self.path, name=self.path.name).mtime_ns
        return FileStamp(math.prod(self.shape) * self.dtype.itemsize, mtime_ns)

    def list_stamps(self, rows: Sequence[SourceRow]) -> list[FileStamp]:
        """Return the stamps of these rows, which are those of one file."""
        return [self.stamp(row) for row in rows[:1]] * len(rows)

    def read(self, row: SourceRow) -> npt.NDArray[np.uint8]:
        """Return one picture, of shape (height, width), (height, width, 3) or (height, width, 4)."""
        nbytes = math.prod(self.shape) * self.dtype.itemsize
        with open_file(self.path, name=self.path.name) as file:
            file.seek(self.start + row * nbytes)
            data = file.read(nbytes)
        if stamp_file(self.path, name=self.path.name) != self.listed or len(data) < nbytes:
            raise StimulusError(f"{self.path.name} has changed since it was listed", hint="run the same command again")
        pixels = np.frombuffer(data, self.dtype).reshape(self.shape)
        name = self.table.files[row]
        return make_pixels(pixels, name=name, channels=self.block.channels, white=self.block.white)

    def check(self, rows: Sequence[SourceRow], *, skip: bool = False) -> None:
        """Do nothing: `open_source` has already found the array."""

    def check_header(self, row: SourceRow, *, mask_alpha: str) -> None:
        """Do nothing: `open_source` has already checked the shape and the type of all pictures."""

    def close(self) -> None:
        """Do nothing: each read closes the file."""


def open_source(block: NpyStimuli, folder: Path) -> NpySource:
    """List the rows of a recipe's array; their pixels stay on disk."""
    path = find_file(block.file, folder)
    listed = stamp_file(path, name=path.name)
    array = _map_array(path)
    shape, where = array.shape, f"the array of {str(path)!r}"
    check_images(shape, array.dtype, channels=block.channels, white=block.white, where=where)
    if not array.flags.c_contiguous:
        raise RequestError(f"{where} is in Fortran order", hint="np.save(FILE, np.ascontiguousarray(array))")
    ids = [f"{row:05d}" for row in range(shape[0])]
    files = [f"{path.name}[{row}]" for row in range(shape[0])]
    table = StimulusTable(ids=ids, conditions=["all"] * len(ids), stems=ids, files=files)
    return NpySource(table, str(path), path, block, array.dtype, shape[1:], int(array.offset), listed)


def _map_array(path: Path) -> np.memmap[Any, Any]:
    """Return the array of a file, mapped and not read. A file of pickled objects is refused."""
    with open_file(path, name=path.name) as file:
        head = file.read(6)
    if head[:4] == b"PK\3\4":
        raise RequestError(
            f"{str(path)!r} is an .npz archive of arrays", hint="np.save('images.npy', np.load(FILE)['NAME'])"
        )
    if head != np.lib.format.MAGIC_PREFIX:
        raise RequestError(f"{str(path)!r} is no .npy file", hint="np.save(FILE, array) writes one")
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError, TypeError, OverflowError, TokenError) as error:  # of a header that is damaged
        raise RequestError(f"{str(path)!r} cannot be read as .npy: {error}") from None
