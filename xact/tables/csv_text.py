"""CSV text: its encoding, its separator, records with line numbers, cells that a spreadsheet does not run as formulas.

A spreadsheet runs a cell that begins with `=`, `+`, `-` or `@` as a formula. `escape_cell` adds an apostrophe:
`=1+1` becomes `'=1+1`, and `'=1+1` becomes `''=1+1`, so that `unescape_cell` restores every text exactly. Other texts,
for example `'tis`, do not change.
"""

from __future__ import annotations

import codecs
import csv
import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from xact.errors import RequestError

_RUNS = r"(\s*[=+\-@＝＋－＠]|[\t\r\n])"  # also the full-width forms: East Asian spreadsheets run them too
_DANGEROUS = re.compile("'*" + _RUNS)
_ESCAPED = re.compile("'+" + _RUNS)

_OPEN_QUOTE = "unexpected end of data"
"""Message of the csv module for a text that ends inside a quoted cell."""

SEPARATOR_NAMES: Mapping[str, str] = {",": "commas", "\t": "tabs", ";": "semicolons"}
"""{separator between cells: its name in messages}."""

Cell = str | int | float | bool


@dataclass(frozen=True)
class CsvRecord:
    """One row of a CSV text."""

    line: int
    """Number of its first line, from 1."""
    cells: list[str]
    """The cells; unescaped unless they are read as written."""


def escape_cell(text: str) -> str:
    """Return the text in a form that a spreadsheet does not run as a formula. `unescape_cell` restores the text."""
    return "'" + text if _DANGEROUS.match(text) else text


def unescape_cell(text: str) -> str:
    """Return the text that `escape_cell` received."""
    return text[1:] if _ESCAPED.match(text) else text


def make_line(cells: Sequence[Cell], *, end: str) -> str:
    """Return one record: texts are escaped and quoted, numbers are not quoted, a missing number is empty."""
    return ",".join(map(_format_cell, cells)) + end


def decode_text(data: bytes, *, name: str) -> str:
    """Return the text of a file in UTF-8, or in UTF-16 with a byte order mark, without that mark.

    Raise RequestError with the first byte that is not text.
    """
    encoding = "UTF-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "UTF-8"
    try:
        return data.decode("utf-16" if encoding == "UTF-16" else "utf-8-sig")
    except UnicodeDecodeError as error:
        odd = data[error.start : error.start + 1].decode("cp1252", errors="replace")
        line = data.count(b"\n", 0, error.start) + 1
        raise RequestError(
            f"{name} is not {encoding} (byte {error.start})",
            hint=f"save it as 'CSV UTF-8'; line {line} has {odd!r} if it is Windows-1252",
        ) from None


def find_separator(text: str, usual: str, *, name: str) -> str:
    """Return the separator that divides the first line, or `usual` if none does.

    Where several do, it is the one that gives every record as many cells as the first. Raise RequestError if the text
    is a table with more than one of them.
    """
    dividing = [one for one in SEPARATOR_NAMES if next(_iter_lengths(text, one), 0) > 1]
    if len(dividing) > 1:
        whole = [one for one in dividing if len(set(_iter_lengths(text, one))) == 1]
        if len(whole) > 1:
            raise RequestError(
                f"{name} is a table with {' and with '.join(SEPARATOR_NAMES[one] for one in whole)} between its cells",
                hint="put quotation marks around the cells of the first line",
            )
        dividing = whole or [one for one in dividing if one == usual] or dividing
    return dividing[0] if dividing else usual


def parse_records(text: str, *, name: str, separator: str = ",", is_escaped: bool = True) -> list[CsvRecord]:
    """Return the records of a CSV text without empty lines. If `is_escaped`, the cells are unescaped.

    Raise RequestError with the line number if the text is not valid CSV.
    """
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
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
            records.append(CsvRecord(line, [unescape_cell(cell) for cell in cells] if is_escaped else cells))


def _iter_lengths(text: str, separator: str) -> Iterator[int]:
    """Yield the number of cells of each record; -1 where the text is not valid CSV."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        yield from (len(cells) for cells in reader if cells)
    except csv.Error:
        yield -1


def _format_cell(cell: Cell) -> str:
    if isinstance(cell, str):
        return '"' + escape_cell(cell).replace('"', '""') + '"'
    return "" if isinstance(cell, float) and math.isnan(cell) else str(cell)
