"""Read files of activations that older programs, or `xact export`, wrote: their labels, and their values by row.

The module `read` of each format has a function `open_old(files, table)`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from xact.errors import RequestError, StoreError, WorkError
from xact.files.formats import list_endings
from xact.labels import Column, StimulusTable
from xact.stimuli.sources.captions import NAMES, NUMBERS, unescape_columns
from xact.stimuli.sources.datasets import N_IMAGES, rename_columns, strip_extension
from xact.stimuli.sources.nsd import make_id
from xact.tables.columns import SEPARATORS, load_columns

UNKNOWN = "unknown"
"""Recorded if a file does not give a fact."""

ID_COLUMNS = ("id", "stimulus")
"""Columns of a table with the ids of stimuli: the first that exists is used."""


@dataclass(frozen=True)
class OldLayer:
    """One layer of a model in a file."""

    label: str
    n_units: int
    reduction: str = UNKNOWN
    depth: float = math.nan
    """0 to 1; NaN if the file does not give it."""


@dataclass(frozen=True)
class OldModel:
    """One model in the files. Its layers are in forward order."""

    label: str
    layers: tuple[OldLayer, ...]
    base: str = ""
    """Label of the trained network; empty if it is `label`."""
    is_trained: bool = True
    n_parameters: int = -1
    """-1 if the file does not give it."""
    found: Mapping[str, Any] = field(default_factory=dict)
    """Other facts in the file, as JSON-able data."""
    scores: Mapping[str, Sequence[float]] | None = None
    """{name: one number for each stimulus} of a language model; None for other models."""


class OldFiles(Protocol):
    """Open files of one format. They share one axis of stimuli; every model has all stimuli."""

    table: StimulusTable
    models: Sequence[OldModel]
    n_replicates: int
    notes: Sequence[str]
    """Notes for a person, e.g. that values were cast, or how layers were ordered."""

    def fill(self, model: OldModel, start: int, buffers: Sequence[np.ndarray]) -> None:
        """Fill one buffer for each layer, (stimulus, replicate, unit) float32, starting at the row `start`."""
        ...

    def close(self) -> None:
        """Close the files."""
        ...


def open_old(files: Sequence[Path], table: Path | None) -> OldFiles:
    """Open files of one format. `table` names the rows of files without names. Raise RequestError or StoreError."""
    formats = list_endings("read")
    for file in files:
        if file.suffix.lower() not in formats:
            raise RequestError(f"{str(file)!r} cannot be imported", hint=f"a file ends in {', '.join(formats)}")
        if not file.is_file():
            raise RequestError(f"there is no file {str(file)!r}")
    first, *others = {formats[file.suffix.lower()].package: formats[file.suffix.lower()] for file in files}.values()
    if others:
        raise RequestError("one import cannot take files of several formats", hint="make one store for each format")
    opened: OldFiles = first.load_module("read").open_old(files, table)
    return opened


def to_float32(values: np.ndarray, where: str) -> np.ndarray:
    """Return values as float32. Raise WorkError if a finite value is too large for float32."""
    if values.dtype == np.float32:
        return values
    with np.errstate(over="ignore"):
        cast = values.astype(np.float32)
    if np.count_nonzero(np.isinf(cast)) != np.count_nonzero(np.isinf(values)):
        largest = np.abs(values[np.isfinite(values)]).max()
        raise WorkError(f"{where}: {largest} is too large for float32")
    return cast


def check_floating(dtype: np.dtype[Any], where: str) -> None:
    """Raise StoreError if the dtype is not a floating-point type of at most 8 bytes."""
    if not np.issubdtype(dtype, np.floating) or dtype.itemsize > 8:
        raise StoreError(f"{where}: has dtype {dtype}, expected floating-point numbers")


def load_table(file: Path) -> tuple[StimulusTable, list[str]]:
    """Load ids, conditions and other columns of a CSV or parquet table, in the order of its rows, and notes about it.

    A table with the numbers of a data set (the index or the captions of NSD, BOLD5000 or THINGS) gives the ids that a
    build of that data set gives.
    """
    as_written = (*ID_COLUMNS, *NAMES, "path", "image_path", "condition", "stem", "file")
    notes: list[str] = []
    columns = load_columns(file, notes=notes, as_written=as_written)
    is_index = any(number in columns for number in NUMBERS)
    if is_index and file.suffix.lower() in SEPARATORS:
        columns = unescape_columns(columns)  # a table of captions, as a build reads it
    ids = _find_ids(columns, file, is_index=is_index)
    place = "image_path" if is_index and "path" not in columns else "path"
    files = _to_text(columns[place], place, file) if place in columns else [""] * len(ids)
    taken = (*ID_COLUMNS, place, "condition")
    kept = {name: cells for name, cells in columns.items() if name not in taken}
    kept = rename_columns(kept, file, notes=notes) if is_index else kept
    table = StimulusTable(
        ids=ids,
        conditions=_to_text(columns.get("condition", ["all"] * len(ids)), "condition", file),
        stems=[Path(path).stem if path else label for path, label in zip(files, ids, strict=True)],
        files=files,
        columns=kept,
    )
    return table, notes


def _find_ids(columns: Mapping[str, Column], file: Path, *, is_index: bool) -> list[str]:
    """Return the id of each row: its own, else that of an image of a data set, else its path without extension."""
    names = (*ID_COLUMNS, *(("nsd_id", *NAMES) if is_index else ()), "path")
    key = next((name for name in names if name in columns), None)
    if key is None:
        raise RequestError(
            f"the table {str(file)!r} has no column {', '.join(ID_COLUMNS)} or path (it has {', '.join(columns)})",
            hint="add a column id",
        )
    labels = _to_text(columns[key], key, file)
    if key == "nsd_id":
        return [_make_nsd_label(label, row, file) for row, label in enumerate(labels)]
    if key in NAMES:
        return [strip_extension(label) for label in labels]
    return labels if key in ID_COLUMNS else [path.rpartition(".")[0] or path for path in labels]


def _make_nsd_label(number: str, row: int, file: Path) -> str:
    if not re.fullmatch(r"[0-9]{1,9}", number) or int(number) >= N_IMAGES["nsd"]:
        raise RequestError(f"the column 'nsd_id' of {str(file)!r}, row {row + 1}: {number!r} is not an nsdId")
    return make_id(int(number))


def _to_text(cells: Column, name: str, file: Path) -> list[str]:
    if any(isinstance(cell, float | bool) for cell in cells):
        raise RequestError(
            f"the column {name!r} of {str(file)!r} is neither text nor integers", hint="write it as text"
        )
    return [str(cell) for cell in cells]
