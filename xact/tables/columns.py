"""Load a CSV or parquet file as named columns. Each column has one type."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

from xact.errors import RequestError, make_nearest_text
from xact.labels import Column
from xact.tables.column_types import MAX_EXACT, type_column
from xact.tables.csv_text import decode_text, find_separator, parse_records

SEPARATORS = {".csv": ",", ".tsv": "\t"}
"""{extension of a text table: separator of a table with a single column}."""

PARQUET = (".parquet", ".pq")

_PANDAS_NAME = re.compile(r"Unnamed: \d+(\.\d+)?")
"""What `pandas.read_csv` calls a column without a name, such as the index that `to_csv` wrote."""

_PARQUET_INDEX = re.compile(r"__index_level_\d+__")
"""What pandas calls an index without a name in parquet."""

T = TypeVar("T")
Select = Callable[[Mapping[str, Column]], Mapping[str, Column]]
"""A choice of rows and columns, before the columns of a text table get a type."""


def load_columns(
    file: Path,
    *,
    notes: list[str] | None = None,
    key: str = "file",
    as_written: Collection[str] = (),
    rename: Mapping[str, str] = {},
    drop: Collection[str] = (),
    held: Mapping[str, str] = {},
    select: Select = dict,
) -> dict[str, Column]:
    """Return the columns of a table, renamed by `rename` {old name: new name}, without the columns in `drop`.

    In a text table, the columns in `as_written` (new names) stay text; the others get a type. `held` is {column: its
    type in the store}: what is text there stays text. `select` sees the columns before they get a type. An index
    without a name, as pandas writes it, is left out, and a line is added to `notes`. `key` is the recipe's key under
    `stimuli` that names the file. Raise RequestError if the table cannot be read or is invalid.
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
    notes = [] if notes is None else notes
    kept = {*rename, *held}
    found: Mapping[str, Column]
    if suffix in PARQUET:
        found = _load_parquet(file, drop, kept, notes)
    else:
        found = _load_text(file, SEPARATORS[suffix], drop, kept, notes)
    columns = select(_rename_columns(found, rename, file))
    if suffix in PARQUET:
        return dict(columns)
    texts = {*as_written, *(name for name, kind in held.items() if kind == "string")}
    return {
        name: cells if name in texts else type_column(cast("Sequence[str]", cells)) for name, cells in columns.items()
    }


def _load_text(
    file: Path, usual: str, drop: Collection[str], kept: Collection[str], notes: list[str]
) -> dict[str, list[str]]:
    name = f"the table {str(file)!r}"
    try:
        text = decode_text(file.read_bytes(), name=name)
    except OSError as error:
        raise RequestError(f"{name} cannot be read: {error.strerror}") from None
    if "\0" in text:
        raise RequestError(f"{name} holds NUL characters: it is not a text table", hint="save it as 'CSV UTF-8'")
    separator = find_separator(text, usual, name=name)
    records = parse_records(text, name=name, separator=separator, is_escaped=False)
    if not records:
        raise RequestError(f"{name} is empty")
    names = records[0].cells
    for record in records:
        if len(record.cells) != len(names):
            raise RequestError(
                f"{name}, line {record.line}: {len(record.cells)} cells, the header has {len(names)}",
                hint="put quotation marks around a cell that holds the separator",
            )
    rows = [record.cells for record in records[1:] if len(names) == 1 or any(record.cells)]  # a spreadsheet adds empty
    listed = [(name, [row[i] for row in rows]) for i, name in enumerate(names)]
    return _take_named([one for one in listed if one[0] not in drop], kept, file, notes)


def _load_parquet(file: Path, drop: Collection[str], kept: Collection[str], notes: list[str]) -> dict[str, Column]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(file).read()
    except (pyarrow.ArrowException, OSError) as error:
        raise RequestError(f"the table {str(file)!r} cannot be read as parquet: {error}") from None
    listed: list[tuple[str, Column]] = []
    for name, column in zip(table.column_names, table.columns, strict=True):
        if _PARQUET_INDEX.fullmatch(name) and name not in kept:
            notes.append(f"{file.name}: its index without a name was left out; reset_index(names='NAME') keeps it")
        elif name not in drop:
            listed.append((name, _load_parquet_column(column, name, file)))
    return _take_named(listed, kept, file, notes)


def _take_named(
    listed: Sequence[tuple[str, Any]], kept: Collection[str], file: Path, notes: list[str]
) -> dict[str, Any]:
    """Return the columns without those that have no name and hold nothing: empty ones, and an index of pandas.

    Such an index is integers, to the left of all columns with a name.
    """
    named: list[tuple[str, Any]] = []
    for place, (name, cells) in enumerate(listed):
        is_unnamed = (name == "" or _PANDAS_NAME.fullmatch(name) is not None) and name not in kept
        texts = [str(cell).strip() for cell in cells] if is_unnamed else []
        if is_unnamed and not any(texts):
            continue
        if is_unnamed and not named and all(text.isdecimal() and text.isascii() for text in texts):
            notes.append(
                f"{file.name}: its first column was left out: it has no name and holds {texts[0]} to {texts[-1]}, as "
                "an index of pandas"
            )
        elif name == "" and name not in kept:
            raise RequestError(
                f"column {place + 1} of {str(file)!r} has no name",
                hint="give it a name in its first line, or take it out (pandas: index=False)",
            )
        else:
            named.append((name, cells))
    twice = [name for name, n in Counter(name for name, _ in named).items() if n > 1]
    if twice:
        raise RequestError(f"the column {twice[0]!r} appears twice in {str(file)!r}", hint="rename one of the two")
    return dict(named)


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


def drop_differing(
    columns: Mapping[str, Column], groups: Sequence[Sequence[int]]
) -> tuple[dict[str, Column], list[str]]:
    """Return the columns with one cell for each group of rows, and the names of those that differ within a group."""
    kept: dict[str, Column] = {}
    dropped: list[str] = []
    for name, cells in columns.items():
        firsts = [cells[rows[0]] for rows in groups]
        is_same = all(
            cells[row] == first or (cells[row] != cells[row] and first != first)  # NaN
            for rows, first in zip(groups, firsts, strict=True)
            for row in rows
        )
        if is_same:
            kept[name] = firsts  # type: ignore[assignment]
        else:
            dropped.append(name)
    return kept, dropped
