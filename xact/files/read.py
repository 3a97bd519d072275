"""Files of activations that older programs, or `xact export`, wrote: what they hold, and their values by row.

A kind of file is a module beside this one with a function `open_old(files, table)`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from xact.errors import RequestError, StoreError, WorkError
from xact.files.formats import list_endings
from xact.labels import Column, StimulusTable
from xact.stimuli.columns import load_columns

UNKNOWN = "unknown"
"""What is recorded where the file does not say."""

ID_COLUMNS = ("id", "stimulus")
"""Columns of a table of stimuli that ids are taken from, the first that is there; else `path`, less its extension."""


@dataclass(frozen=True)
class OldLayer:
    """One layer of a model in a file."""

    label: str
    n_units: int
    reduction: str = UNKNOWN
    depth: float = math.nan
    """0 to 1; NaN where the file does not tell."""


@dataclass(frozen=True)
class OldModel:
    """One model in the files, its layers in forward order."""

    label: str
    layers: tuple[OldLayer, ...]
    base: str = ""
    """Label of the trained network; empty for the label itself."""
    is_trained: bool = True
    n_parameters: int = -1
    """-1 where the file does not say."""
    found: Mapping[str, Any] = field(default_factory=dict)
    """What else the file says, as JSON-able data."""
    scores: Mapping[str, Sequence[float]] | None = None
    """{name: a number for each stimulus}, of a language model; None for others."""


class OldFiles(Protocol):
    """Open files of one kind: one axis of stimuli, every model over all of them."""

    table: StimulusTable
    models: Sequence[OldModel]
    n_replicates: int
    notes: Sequence[str]
    """What a person should know: what was cast, how layers were ordered."""

    def fill(self, model: OldModel, start: int, buffers: Sequence[np.ndarray]) -> None:
        """Fill one buffer for each layer, (stimulus, replicate, unit) float32, from the row `start` on."""
        ...

    def close(self) -> None:
        """Let go of the files."""
        ...


def open_old(files: Sequence[Path], table: Path | None) -> OldFiles:
    """Open files of one kind; `table` names the rows of those that do not. Raise RequestError or StoreError."""
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
    """Return values as float32; raise WorkError where one is finite and has no float32."""
    if values.dtype == np.float32:
        return values
    with np.errstate(over="ignore"):
        cast = values.astype(np.float32)
    if np.count_nonzero(np.isinf(cast)) != np.count_nonzero(np.isinf(values)):
        largest = np.abs(values[np.isfinite(values)]).max()
        raise WorkError(f"{where}: {largest} is too large for float32")
    return cast


def check_floating(dtype: np.dtype[Any], where: str) -> None:
    """Refuse values that are no floating-point numbers."""
    if not np.issubdtype(dtype, np.floating) or dtype.itemsize > 8:
        raise StoreError(f"{where}: has dtype {dtype}, floating-point numbers belong there")


def load_table(file: Path) -> StimulusTable:
    """Load ids, conditions and further columns of a CSV or parquet table, in its row order."""
    columns = load_columns(file, as_written=(*ID_COLUMNS, "path", "condition", "stem", "file"))
    texts = {
        name: _to_text(columns[name], name, file) for name in (*ID_COLUMNS, "path", "condition") if name in columns
    }
    key = next((name for name in (*ID_COLUMNS, "path") if name in texts), None)
    if key is None:
        raise RequestError(
            f"the table {str(file)!r} has no column {', '.join(ID_COLUMNS)} or path (it has {', '.join(columns)})",
            hint="give it a column id",
        )
    ids = texts[key] if key in ID_COLUMNS else [path.rpartition(".")[0] or path for path in texts[key]]
    files = texts.get("path", [""] * len(ids))
    return StimulusTable(
        ids=ids,
        conditions=texts.get("condition", ["all"] * len(ids)),
        stems=[Path(path or one).stem if path else one for path, one in zip(files, ids, strict=True)],
        files=files,
        columns={name: cells for name, cells in columns.items() if name not in texts},
    )


def _to_text(cells: Column, name: str, file: Path) -> list[str]:
    if any(isinstance(cell, float | bool) for cell in cells):
        raise RequestError(
            f"the column {name!r} of {str(file)!r} is neither text nor integers", hint="write it as text"
        )
    return [str(cell) for cell in cells]
