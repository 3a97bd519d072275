"""Load a CSV or parquet file as named columns. Each column has one type."""

from __future__ import annotations

import csv
import io
import math
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from xact.errors import RequestError, make_nearest_text
from xact.labels import Column

SEPARATORS = {".csv": ",", ".tsv": "\t"}
"""{extension of a text table: separator between cells}."""

PARQUET = (".parquet", ".pq")

MAX_EXACT = 2**53
"""All integers up to this number are exact in float64."""

_INTEGER = re.compile(r"-?(0|[1-9]\d{0,17})", re.ASCII)
_FLOAT = re.compile(r"-?((0|[1-9]\d*)(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_BOOLEANS = {"True": True, "true": True, "False": False, "false": False}

T = TypeVar("T")


def load_columns(
    file: Path,
    *,
    key: str = "file",
    as_written: Collection[str] = (),
    rename: Mapping[str, str] = {},
    drop: Collection[str] = (),
) -> dict[str, Column]:
    """Return the columns of a table, renamed by `rename` {old name: new name}, without the columns in `drop`.

    In a text table, the columns in `as_written` (new names) stay text; the others get a type. `key` is the recipe's
    key under `stimuli` that names the file. Raise RequestError if the table cannot be read or is invalid.
    """
    suffix = file.suffix.lower()
    if suffix not in (*SEPARATORS, *PARQUET):
        raise RequestError(
            f"the table {str(file)!r} has the extension {suffix!r}",
            hint=f"use one of {', '.join((*SEPARATORS, *PARQUET))}",
        )
    if not file.is_file():
        names = [found.name for found in file.parent.glob("*") if found.is_file()]
        raise RequestError(
            f"there is no table {str(file)!r}{make_nearest_text(file.name, names)}",
            hint=f"stimuli.{key} is relative to the recipe file",
        )
    if suffix in PARQUET:
        return _rename_columns({k: c for k, c in _load_parquet(file).items() if k not in drop}, rename, file)
    texts = _rename_columns(_load_text(file, SEPARATORS[suffix], drop), rename, file)
    return {name: cells if name in as_written else type_column(cells) for name, cells in texts.items()}


def type_column(cells: Sequence[str]) -> Column:
    """Return the cells of a text column as integers, floats or booleans. Keep text that such a type would change.

    An integer is `-?(0|[1-9]digits)` with at most 18 digits. A float has the same form with a fraction or an exponent;
    an empty cell among floats becomes NaN. A boolean is true or false. Some columns stay text: codes such as `001`,
    words such as `NA`, and floats mixed with an integer that float64 cannot hold exactly.
    """
    distinct = set(cells)  # most columns have far fewer distinct cells
    if cells and all(_INTEGER.fullmatch(cell) for cell in distinct):
        return [int(cell) for cell in cells]
    if any(cells) and all(not cell or _is_float(cell) for cell in distinct):
        return [float(cell) if cell else math.nan for cell in cells]
    if cells and all(cell in _BOOLEANS for cell in distinct):
        return [_BOOLEANS[cell] for cell in cells]
    return list(cells)


def _is_float(cell: str) -> bool:
    if not _FLOAT.fullmatch(cell) or not math.isfinite(float(cell)):
        return False
    return bool(re.search(r"[.eE]", cell)) or abs(int(cell)) <= MAX_EXACT


def _load_text(file: Path, separator: str, drop: Collection[str]) -> dict[str, list[str]]:
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RequestError(
            f"the table {str(file)!r} is not UTF-8 (byte {error.start})", hint="save it as 'CSV UTF-8'"
        ) from None
    except OSError as error:
        raise RequestError(f"the table {str(file)!r} cannot be read: {error.strerror}") from None
    if "\0" in text:
        raise RequestError(f"the table {str(file)!r} holds NUL characters: it is not a text table")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    rows: list[list[str]] = []
    try:
        for row in reader:
            if rows and row and len(row) != len(rows[0]):
                raise RequestError(
                    f"the table {str(file)!r}, line {reader.line_num}: {len(row)} cells, the header has {len(rows[0])}",
                    hint="put quotation marks around a cell that holds the separator",
                )
            rows += [row] if row else []
    except csv.Error as error:
        raise RequestError(f"the table {str(file)!r}, line {reader.line_num}: {error}") from None
    if not rows:
        raise RequestError(f"the table {str(file)!r} is empty")
    _check_names([name for name in rows[0] if name not in drop], file)
    names = rows.pop(0)
    return {name: [row[i] for row in rows] for i, name in enumerate(names) if name not in drop}


def _load_parquet(file: Path) -> dict[str, Column]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(file).read()
    except (pyarrow.ArrowException, OSError) as error:
        raise RequestError(f"the table {str(file)!r} cannot be read as parquet: {error}") from None
    _check_names(table.column_names, file)
    unnamed = re.compile(r"__index_level_\d+__")  # pandas gives this name to an unnamed index
    return {
        name: _load_parquet_column(table.column(name), name, file)
        for name in table.column_names
        if not unnamed.fullmatch(name)
    }


def _load_parquet_column(column: Any, name: str, file: Path) -> Column:  # noqa: ANN401  pyarrow has no annotations
    """Return one column with its own type. A missing number becomes NaN, a missing text becomes empty."""
    from pyarrow import types

    kind = column.type.value_type if types.is_dictionary(column.type) else column.type
    cells = column.to_pylist()
    where = f"the column {name!r} of {str(file)!r}"
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return ["" if cell is None else str(cell) for cell in cells]
    if types.is_boolean(kind):
        if None in cells:
            raise RequestError(f"{where} has no value in row {cells.index(None) + 1}", hint="write it as text")
        return [bool(cell) for cell in cells]
    if types.is_floating(kind):
        return [math.nan if cell is None else float(cell) for cell in cells]
    if not types.is_integer(kind):
        raise RequestError(f"{where} has type {column.type}", hint="write it as text, a number or a boolean")
    limit = 2**63 - 1 if None not in cells else MAX_EXACT
    if any(cell is not None and abs(cell) > limit for cell in cells):
        raise RequestError(f"{where} holds integers too large to keep exactly", hint="write it as text")
    if None not in cells:
        return [int(cell) for cell in cells]
    return [math.nan if cell is None else float(cell) for cell in cells]


def _check_names(names: Sequence[str], file: Path) -> None:
    twice = [name for name, n in Counter(names).items() if n > 1]
    if twice:
        raise RequestError(f"the column {twice[0]!r} appears twice in {str(file)!r}", hint="rename one of the two")
    if "" in names:
        raise RequestError(f"column {list(names).index('') + 1} of {str(file)!r} has no name", hint="give it a name")


def _rename_columns(columns: Mapping[str, T], rename: Mapping[str, str], file: Path) -> dict[str, T]:
    """Return the columns with the new names of `rename`."""
    for name in rename:
        if name not in columns:
            raise RequestError(f"rename: {file.name} has no column {name!r}{make_nearest_text(name, columns)}")
    renamed = [rename.get(name, name) for name in columns]
    twice = next((name for name, n in Counter(renamed).items() if n > 1), None)
    if twice is not None:
        raise RequestError(f"rename: {file.name} would have two columns {twice!r}")
    return dict(zip(renamed, columns.values(), strict=True))


def to_labels(cells: Column, name: str, file: Path) -> list[str]:
    """Return the ids or conditions of a column as text. Refuse missing values, floats and booleans."""
    where = f"the column {name!r} of {str(file)!r}"
    for row, cell in enumerate(cells):
        if cell == "" or cell != cell:
            raise RequestError(f"{where} has no value in row {row + 1}", hint="every stimulus needs a value")
    if any(isinstance(cell, bool | float) for cell in cells):
        raise RequestError(f"{where} holds {cells[0]!r}, which is neither text nor an integer", hint="write it as text")
    return [str(cell) for cell in cells]


def find_column(columns: Mapping[str, T], name: str, file: Path, *, hint: str) -> T:
    """Return the column `name`; raise RequestError with the nearest names if it is missing."""
    if name not in columns:
        nearest = make_nearest_text(name, columns) or f" (it has {', '.join([*columns][:8])})"
        raise RequestError(f"the table {str(file)!r} has no column {name!r}{nearest}", hint=hint)
    return columns[name]
