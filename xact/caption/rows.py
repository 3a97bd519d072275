"""Rows of text in a CSV file, which a person may correct by hand between two runs.

Existing rows keep every byte. New rows follow, with the column order and the line ends of the file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from xact.errors import RequestError, make_nearest_text
from xact.tables.csv_text import Cell, make_line, parse_records


def load_rows(data: bytes, *, needed: Sequence[str], name: str) -> list[dict[str, str]]:
    """Return the rows of a CSV file, each as {column: cell}. An empty file has zero rows.

    Raise RequestError if a column in `needed` is missing, or if a row is ambiguous.
    """
    records = parse_records(_decode(data, name), name=name)
    if not records:
        return []
    header = records[0].cells
    _check_header(header, needed, name)
    for record in records[1:]:
        if len(record.cells) != len(header):
            raise RequestError(
                f"{name}, line {record.line}: {len(record.cells)} cells, the header has {len(header)}",
                hint="put quotation marks around a cell that holds a comma",
            )
    # a spreadsheet may end a table with empty rows
    return [dict(zip(header, record.cells, strict=True)) for record in records[1:] if any(record.cells)]


def add_rows(data: bytes, rows: Sequence[Mapping[str, Cell]], *, columns: Sequence[str], name: str) -> bytes:
    """Return the bytes of a CSV file with rows added at its end. Columns that the file lacks are left out.

    `columns` is the header of a new file. A file with a header keeps its own.
    """
    text = _decode(data, name)
    records = parse_records(text, name=name)
    header = records[0].cells if records else columns
    end = (re.search(r"\r\n|\n|\r", text) or ["\n"])[0]
    before = end if text and not text.endswith(("\n", "\r")) else ""
    if not records:
        before += make_line(columns, end=end)
    lines = [make_line([row.get(name, "") for name in header], end=end) for row in rows]
    return data + (before + "".join(lines)).encode()


def _check_header(found: Sequence[str], needed: Sequence[str], name: str) -> None:
    lacking = [column for column in needed if column not in found]
    if lacking:
        nearest = make_nearest_text(lacking[0], found) or f" (it has {', '.join(found[:8])})"
        raise RequestError(
            f"{name} has no column {lacking[0]!r}{nearest}",
            hint="the first line names the columns, with commas between them: save it as 'CSV UTF-8'",
        )


def _decode(data: bytes, name: str) -> str:
    """Return the text without its byte order mark."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RequestError(f"{name} is not UTF-8 (byte {error.start})", hint="save it as 'CSV UTF-8'") from None
