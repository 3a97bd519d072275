"""CSV text: cells that a spreadsheet does not run as formulas, and records with their line numbers.

A spreadsheet runs a cell that begins with `=`, `+`, `-` or `@` as a formula. `escape_cell` adds an apostrophe:
`=1+1` becomes `'=1+1`, and `'=1+1` becomes `''=1+1`, so that `unescape_cell` restores every text exactly. Other texts,
for example `'tis`, do not change.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from xact.errors import RequestError

_RUNS = r"(\s*[=+\-@＝＋－＠]|[\t\r\n])"  # also the full-width forms: East Asian spreadsheets run them too
_DANGEROUS = re.compile("'*" + _RUNS)
_ESCAPED = re.compile("'+" + _RUNS)

_OPEN_QUOTE = "unexpected end of data"
"""Message of the csv module for a text that ends inside a quoted cell."""

Cell = str | int | float | bool


@dataclass(frozen=True)
class CsvRecord:
    """One row of a CSV text."""

    line: int
    """Number of its first line, from 1."""
    cells: list[str]
    """The unescaped cells."""


def escape_cell(text: str) -> str:
    """Return the text in a form that a spreadsheet does not run as a formula. `unescape_cell` restores the text."""
    return "'" + text if _DANGEROUS.match(text) else text


def unescape_cell(text: str) -> str:
    """Return the text that `escape_cell` received."""
    return text[1:] if _ESCAPED.match(text) else text


def make_line(cells: Sequence[Cell], *, end: str) -> str:
    """Return one record: texts are escaped and quoted, numbers are not quoted, a missing number is empty."""
    return ",".join(map(_format_cell, cells)) + end


def parse_records(text: str, *, name: str) -> list[CsvRecord]:
    """Return the records of a CSV text without empty lines.

    Raise RequestError with the line number if the text is not valid CSV.
    """
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    records: list[CsvRecord] = []
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return records
        except csv.Error as error:
            if str(error) == _OPEN_QUOTE:
                raise RequestError(
                    f"{name}, line {line}: a quotation mark is opened but never closed", hint="close it by hand"
                ) from None
            raise RequestError(f"{name}, line {reader.line_num}: {error}", hint="correct the line by hand") from None
        if cells:
            records.append(CsvRecord(line, [unescape_cell(cell) for cell in cells]))


def _format_cell(cell: Cell) -> str:
    if isinstance(cell, str):
        return '"' + escape_cell(cell).replace('"', '""') + '"'
    return "" if isinstance(cell, float) and math.isnan(cell) else str(cell)
