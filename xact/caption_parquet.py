"""A table of captions as parquet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from xact.csv_text import Cell
from xact.durable import write_file
from xact.errors import RequestError


def load_parquet(file: Path) -> list[dict[str, str]]:
    """Return the column `stimulus` and the column `caption` of a file as text."""
    table = _read(file)
    for name in ("stimulus", "caption"):
        if name not in table.column_names:
            raise RequestError(f"{file} has no column {name!r} (it has {', '.join(table.column_names[:8])})")
    columns = [table.column(name).to_pylist() for name in ("stimulus", "caption")]
    return [
        {"stimulus": str(one), "caption": "" if text is None else str(text)} for one, text in zip(*columns, strict=True)
    ]


def add_to_parquet(file: Path, columns: Mapping[str, Sequence[Cell]]) -> None:
    """Add rows after those of a file, which keep their values, types and columns; the file is replaced in one step."""
    fresh = pyarrow.table({name: pyarrow.array(list(cells)) for name, cells in columns.items()})
    if file.exists():
        held = _read(file)
        arrays = [_fit(fresh, field, file) for field in held.schema]
        fresh = pyarrow.concat_tables([held, pyarrow.Table.from_arrays(arrays, schema=held.schema)])
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(fresh, sink)
    write_file(file, [sink.getvalue().to_pybytes()])


def _fit(fresh: Any, field: Any, file: Path) -> Any:  # noqa: ANN401  pyarrow ships no types
    """Return the new cells of one column in the type that the file has; nothing where the column is not ours."""
    if field.name not in fresh.column_names:
        return pyarrow.nulls(len(fresh), field.type)
    cells = fresh.column(field.name)
    try:
        if pyarrow.types.is_dictionary(field.type):
            return pyarrow.array(cells.to_pylist(), type=field.type)
        return cells.cast(field.type)
    except pyarrow.ArrowException as error:
        raise RequestError(
            f"the column {field.name!r} of {file} has the type {field.type}, which new rows do not fit: {error}",
            hint="give the column its old type back",
        ) from None


def _read(file: Path) -> Any:  # noqa: ANN401  pyarrow ships no types
    try:
        return pyarrow.parquet.ParquetFile(file).read()
    except (pyarrow.ArrowException, OSError) as error:
        raise RequestError(f"{file} cannot be read as parquet: {error}") from None
