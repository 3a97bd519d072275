"""CSV as text: cells that no spreadsheet runs, and records that know their line.

A spreadsheet runs a cell that begins with `=`, `+`, `-` or `@` as a formula. `escape_cell` puts one apostrophe before
such a text, and before a text that begins with apostrophes and then such a character, so that `unescape_cell` gives
every text back exactly. All other texts, `'tis` among them, stay as they are.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from xact.errors import RequestError

_RUNS = r"(\s*[=+\-@＝＋－＠]|[\t\r\n])"  # the wide forms too: East Asian spreadsheets take them for the narrow ones
_DANGEROUS = re.compile("'*" + _RUNS)
_ESCAPED = re.compile("'+" + _RUNS)

_OPEN_QUOTE = "unexpected end of data"
"""What the csv module says of a text that ends inside a quoted cell."""

Cell = str | int | float | bool


@dataclass(frozen=True)
class CsvRecord:
    """One row of a CSV text."""

    line: int
    """Where it begins, counted from 1."""
    cells: list[str]
    """Unescaped."""


def escape_cell(text: str) -> str:
    """Return a text that no spreadsheet runs as a formula; `unescape_cell` gives it back."""
    return "'" + text if _DANGEROUS.match(text) else text


def unescape_cell(text: str) -> str:
    """Return the text that `escape_cell` was given."""
    return text[1:] if _ESCAPED.match(text) else text


def make_line(cells: Sequence[Cell], *, end: str) -> str:
    """Return one record: texts escaped and in quotation marks, numbers bare, a missing number empty."""
    return ",".join(map(_format_cell, cells)) + end


def parse_records(text: str, *, name: str) -> list[CsvRecord]:
    """Return the records of a CSV text; empty lines are no records.

    Raise RequestError, naming the line, for what no CSV has.
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
                    f"{name}, line {line}: a quotation mark is opened and never closed", hint="close it by hand"
                ) from None
            raise RequestError(f"{name}, line {reader.line_num}: {error}", hint="mend the line by hand") from None
        if cells:
            records.append(CsvRecord(line, [unescape_cell(cell) for cell in cells]))


def _format_cell(cell: Cell) -> str:
    if isinstance(cell, str):
        return '"' + escape_cell(cell).replace('"', '""') + '"'
    return "" if isinstance(cell, float) and math.isnan(cell) else str(cell)
