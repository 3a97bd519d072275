"""A table of captions as parquet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow
import pyarrow.parquet

from xact.errors import RequestError
from xact.tables.csv_text import Cell


def load_parquet(data: bytes, *, name: str) -> list[dict[str, str]]:
    """Return the columns `stimulus` and `caption` of a parquet file as text. An empty file has zero rows."""
    if not data:
        return []
    table = _read(data, name)
    for column in ("stimulus", "caption"):
        if column not in table.column_names:
            raise RequestError(f"{name} has no column {column!r} (it has {', '.join(table.column_names[:8])})")
    columns = [table.column(column).to_pylist() for column in ("stimulus", "caption")]
    return [
        {"stimulus": str(one), "caption": "" if text is None else str(text)} for one, text in zip(*columns, strict=True)
    ]


def add_to_parquet(data: bytes, rows: Sequence[Mapping[str, Cell]], *, columns: Sequence[str], name: str) -> bytes:
    """Return the bytes of a parquet file with rows added at its end. The file keeps its values, types and columns."""
    table = pyarrow.table({column: pyarrow.array([row[column] for row in rows]) for column in columns})
    if data:
        held = _read(data, name)
        arrays = [_fit(table, field, name) for field in held.schema]
        table = pyarrow.concat_tables([held, pyarrow.Table.from_arrays(arrays, schema=held.schema)])
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(table.combine_chunks(), sink)
    written: bytes = sink.getvalue().to_pybytes()
    return written


def _fit(fresh: Any, field: Any, name: str) -> Any:  # noqa: ANN401  pyarrow has no annotations
    """Return the new cells of one column in the type of the file; nulls if the new rows lack the column."""
    if field.name not in fresh.column_names:
        return pyarrow.nulls(len(fresh), field.type)
    cells = fresh.column(field.name)
    try:
        if pyarrow.types.is_dictionary(field.type):
            return pyarrow.array(cells.to_pylist(), type=field.type)
        return cells.cast(field.type)
    except pyarrow.ArrowException as error:
        raise RequestError(
            f"the column {field.name!r} of {name} has the type {field.type}, which new rows do not fit: {error}",
            hint="restore the old type of the column",
        ) from None


def _read(data: bytes, name: str) -> Any:  # noqa: ANN401  pyarrow has no annotations
    try:
        return pyarrow.parquet.ParquetFile(pyarrow.BufferReader(data)).read()
    except (pyarrow.ArrowException, OSError) as error:
        raise RequestError(f"{name} cannot be read as parquet: {error}") from None
