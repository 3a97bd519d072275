"""CSV, TSV and parquet: a square with a header and a first column, a long table a, b, value, or responses of units."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from xact.analysis.references.base import RDM_LABELS, TOLERANCE, make_rdms, make_text, read_safely, refuse_large
from xact.errors import RequestError
from xact.tables.column_types import find_comma, is_missing
from xact.tables.csv_text import decode_text, find_separator, parse_records

SEPARATORS = {".csv": ",", ".tsv": "\t"}
LONG = ("a", "b", "value")
FORMS = "a square with ids in its first line and first column, or three columns a, b, value"
ROWS = "responses have a row for each stimulus, and a column for each unit"
NO_IDS = "write ids into its first line and first column, or save it as .npy and use --order"
NO_UNITS = frozenset((*RDM_LABELS, "session", "run", "trial", "repetition", "roi", "region", "condition"))
"""Columns that say what a row of responses is."""

MAX_EXAMPLES = 3


@dataclass(frozen=True)
class _Table:
    """The columns of a table; cells are text as written, or have the type of a parquet file."""

    file: Path
    names: list[str]
    columns: list[Sequence[Any]]

    @property
    def n_rows(self) -> int:
        return len(self.columns[0])

    def read_numbers(self, at: int) -> np.ndarray:
        """Return a column as numbers, NaN for missing cells. Raise RequestError with the first other cell."""
        cells = self.columns[at]
        try:
            return np.array([_parse(cell) for cell in cells], dtype=np.float64)
        except (ValueError, TypeError):
            row, cell = next((row, cell) for row, cell in enumerate(cells) if not is_number(cell))
            comma = " (it has a comma)" if find_comma([str(cell)]) else ""
            raise RequestError(
                f"{self.file}: row {row + 1} of the column {self.names[at]!r}: {str(cell)[:40]!r} is no number{comma}",
                hint=f"an RDM is {FORMS}; {ROWS}",
            ) from None

    def read_texts(self, at: int) -> list[str]:
        """Return a column as labels."""
        return [make_text(cell).strip() for cell in self.columns[at]]


def read_file(file: Path) -> xr.DataArray:
    """Read RDMs (rdm, stimulus, stimulus_), or responses ([replicate], stimulus, unit)."""
    table = _load_parquet(file) if file.suffix.casefold() not in SEPARATORS else _load_text(file)
    if len(table.names) < 2 or not table.n_rows:
        raise RequestError(f"{file}: {len(table.names)} columns and {table.n_rows} rows are no RDM", hint=FORMS)
    if set(LONG) <= set(map(str.casefold, table.names)) or _is_long(table):
        return _read_long(table)
    if table.n_rows == len(table.names) - 1 and _is_square(table):
        return _read_square(table)
    return _read_responses(table)


# ---- square


def _is_square(table: _Table) -> bool:
    """Return True if the header names the rows. Refuse a square that has other names there."""
    labels, names = table.read_texts(0), [name.strip() for name in table.names[1:]]
    if not is_missing(table.names[0]) and all(map(is_number, table.names)):
        raise RequestError(f"{table.file}: a square of numbers alone, without ids", hint=NO_IDS)
    if sorted(labels) == sorted(names):
        return True
    foreign = [name for name in names if name not in set(labels)]
    if "stimulus" in map(str.casefold, foreign):
        return False
    values = np.array([table.read_numbers(at + 1) for at in range(len(names))])
    if np.allclose(values, values.T, rtol=0, atol=TOLERANCE) or len(foreign) < len(names):
        raise RequestError(
            f"{table.file}: square, but {len(foreign)} of the {len(names)} names in its header are not in its first "
            f"column, such as {foreign[0]!r}",
            hint="the ids of the first line and of the first column are the same",
        )
    return False


def _read_square(table: _Table) -> xr.DataArray:
    labels, names = table.read_texts(0), [name.strip() for name in table.names[1:]]
    values = np.array([table.read_numbers(at + 1) for at in range(len(names))]).T
    if len(set(labels)) == len(labels):
        values = values[:, [names.index(label) for label in labels]]
    return make_rdms(values, table.file, on_stimulus={"stimulus": labels})


# ---- long


def _is_long(table: _Table) -> bool:
    """Return True for three columns: two of labels with cells in common, then numbers."""
    if len(table.names) != 3:
        return False
    first, second = set(table.read_texts(0)), set(table.read_texts(1))
    return len(first & second) >= min(len(first), len(second)) - 1 > 0 and len(first) < table.n_rows


def _read_long(table: _Table) -> xr.DataArray:
    """Return the RDMs of a table with a row for each pair, and a column `rdm` or `subject` if there are several."""
    folded = [name.casefold() for name in table.names]
    a, b, value = (folded.index(name) for name in LONG) if set(LONG) <= set(folded) else (0, 1, 2)
    at = next((folded.index(name) for name in RDM_LABELS if name in folded), None)
    subjects = ["0"] * table.n_rows if at is None else table.read_texts(at)
    left, right, values = table.read_texts(a), table.read_texts(b), table.read_numbers(value)
    rdm_of = {name: i for i, name in enumerate(dict.fromkeys(subjects))}
    row_of = {name: i for i, name in enumerate(dict.fromkeys([*left, *right]))}
    k = np.array([rdm_of[name] for name in subjects])
    i, j = (np.array([row_of[name] for name in side]) for side in (left, right))
    names, n = [*row_of], len(row_of)
    _refuse_twice(k, i, j, values, names, table.file)
    _refuse_missing(k[~np.isnan(values)], i[~np.isnan(values)], j[~np.isnan(values)], names, table.file)
    square = np.zeros((len(rdm_of), n, n))  # no more values than the table has twice
    square[k, j, i] = values
    square[k, i, j] = values
    on_rdm = {} if at is None else {folded[at]: [*rdm_of]}
    return make_rdms(square, table.file, on_stimulus={"stimulus": [*row_of]}, on_rdm=on_rdm)


def _refuse_missing(k: np.ndarray, i: np.ndarray, j: np.ndarray, names: Sequence[str], file: Path) -> None:
    """Refuse a table without a value for each pair, before memory is taken for all pairs."""
    n_rdms, n = int(k.max(initial=0)) + 1, len(names)
    is_pair = i != j
    found = {
        *zip(k[is_pair].tolist(), np.minimum(i, j)[is_pair].tolist(), np.maximum(i, j)[is_pair].tolist(), strict=True)
    }
    n_pairs = n_rdms * n * (n - 1) // 2
    if len(found) < n_pairs:
        pairs = ((one, a, b) for one in range(n_rdms) for a in range(n) for b in range(a + 1, n))
        missing = itertools.islice((pair for pair in pairs if pair not in found), MAX_EXAMPLES)
        shown = ", ".join(f"{names[a]!r} to {names[b]!r}" for _, a, b in missing)
        raise RequestError(
            f"{file}: {n_pairs - len(found)} of the {n_pairs} pairs have no value: {shown}",
            hint="an RDM has a value for each pair; leave these stimuli out",
        )


def _refuse_twice(
    k: np.ndarray, i: np.ndarray, j: np.ndarray, values: np.ndarray, names: Sequence[str], file: Path
) -> None:
    """Refuse a pair with two different values."""
    low, high = np.minimum(i, j), np.maximum(i, j)
    order = np.lexsort((high, low, k))
    same = np.ones(len(order) - 1, dtype=bool)
    for side in (k, low, high):
        same &= side[order][1:] == side[order][:-1]
    scale = np.nanmax(np.abs(values), initial=0)
    differ = same & ~(np.abs(np.diff(values[order])) <= TOLERANCE * scale)
    if differ.any():
        row = order[np.flatnonzero(differ)[0]]
        raise RequestError(
            f"{file}: {int(differ.sum())} pairs have two values, such as {names[i[row]]!r} to {names[j[row]]!r}",
            hint="several RDMs have a column `rdm` or `subject`",
        )


# ---- responses


def _read_responses(table: _Table) -> xr.DataArray:
    """Return the responses of units: a row for each stimulus, a column for each unit."""
    at = next((i for i, name in enumerate(table.names) if name.strip().casefold() == "stimulus"), 0)
    again = next((i for i, name in enumerate(table.names) if name.strip().casefold() == "replicate"), None)
    units = [i for i, name in enumerate(table.names) if i not in (at, again) and not _is_index(name)]
    _refuse_no_units([table.names[i] for i in units], table.file)
    values = np.array([table.read_numbers(i) for i in units]).T
    labels = table.read_texts(at)
    coords = {"stimulus": labels, "unit": [table.names[i] for i in units]}
    if again is None:
        return xr.DataArray(values, coords, ("stimulus", "unit"), name="responses")
    replicates = table.read_texts(again)
    ids, names = [*dict.fromkeys(labels)], [*dict.fromkeys(replicates)]
    if sorted(zip(labels, replicates, strict=True)) != sorted((one, name) for one in ids for name in names):
        raise RequestError(
            f"{table.file}: {len(ids)} stimuli in {len(names)} replicates are not its {table.n_rows} rows",
            hint="each stimulus has one row in each replicate",
        )
    row_of = {pair: row for row, pair in enumerate(zip(labels, replicates, strict=True))}
    rows = np.array([[row_of[one, name] for one in ids] for name in names])
    coords = {"replicate": names, "stimulus": ids, "unit": coords["unit"]}
    return xr.DataArray(values[rows], coords, ("replicate", "stimulus", "unit"), name="responses")


def _is_index(name: str) -> bool:
    """Return True for the name that the index of a table of pandas has in a file."""
    return is_missing(name) or name.startswith("Unnamed: ")


def _refuse_no_units(names: Sequence[str], file: Path) -> None:
    """Refuse columns that say what a row is, in place of units."""
    odd = [name for name in names if name.strip().casefold() in NO_UNITS]
    if odd:
        raise RequestError(
            f"{file}: the column {odd[0]!r} is no unit; {ROWS}",
            hint="take it out: one file for each subject, or netCDF with a dimension `subject`",
        )
    if not names:
        raise RequestError(f"{file} has no column of a unit", hint=ROWS)


# ---- files


def _load_text(file: Path) -> _Table:
    name = str(file)
    text = decode_text(file.read_bytes(), name=name)
    separator = find_separator(text, SEPARATORS[file.suffix.casefold()], name=name)
    records = parse_records(text, name=name, separator=separator)
    names = records[0].cells if records else []
    for record in records:
        if len(record.cells) != len(names):
            raise RequestError(
                f"{name}, line {record.line}: {len(record.cells)} cells, the first line has {len(names)}"
            )
    cells = [*zip(*(record.cells for record in records[1:]), strict=True)] or [()] * len(names)
    return _Table(file, names, [*cells])


def _load_parquet(file: Path) -> _Table:
    """Return the columns of a parquet file; an index of labels, which pandas writes last, comes first."""
    import pyarrow
    import pyarrow.parquet

    def load() -> Any:  # noqa: ANN401  pyarrow has no annotations
        opened = pyarrow.parquet.ParquetFile(file)
        found = opened.metadata
        refuse_large(8 * found.num_rows * found.num_columns, file)
        table = opened.read()
        names = [str(name) for name in table.column_names]
        return table, names, [name for name in names if name.startswith("__index_level_") or name in _find_index(table)]

    table, names, index = read_safely(load, file, (pyarrow.ArrowException, OSError, ValueError), kind="parquet")
    order = sorted(range(len(names)), key=lambda at: (names[at] not in index, at))
    columns = [read_safely(table.column(at).to_pylist, file, (ValueError,), kind="parquet") for at in order]
    is_place = bool(index) and columns[0] == list(range(len(columns[0]))) and len(columns) - 1 != len(columns[0])
    kept = slice(int(is_place), None)  # an index without labels
    return _Table(file, [names[at] for at in order][kept], columns[kept])


def _find_index(table: Any) -> list[str]:  # noqa: ANN401  pyarrow has no annotations
    """Return the names of pandas' index among the columns."""
    found = (table.schema.pandas_metadata or {}).get("index_columns", [])
    return [name for name in found if isinstance(name, str)]


def _parse(cell: object) -> float:
    if isinstance(cell, str):
        return math.nan if is_missing(cell) else float(cell)
    return math.nan if cell is None else float(cell)  # type: ignore[arg-type]


def is_number(cell: object) -> bool:
    """Return True for a number, or a missing one."""
    try:
        _parse(cell)
    except (ValueError, TypeError):
        return False
    return True
