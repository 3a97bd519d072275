"""Rows of text that are appended to a CSV file, which a person may correct by hand between two runs.

What stands in the file is never rewritten. New rows follow it in its own order of columns and with its own line ends.
"""

from __future__ import annotations

import codecs
import csv
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from xact.csv_text import Cell, Record, format_number, make_line, parse_records
from xact.durable import GrowingFile
from xact.errors import RequestError, make_nearest_text

KEY = "stimulus"
"""The column that says whose row it is."""

FindCells = Callable[[str], Mapping[str, Cell] | None]
"""stimulus -> the cells of its row that are known without an answer; None for no stimulus of ours."""


class RowFile:
    """A CSV file with a header, held under a lock; `rows` are those that stood in it when it was opened."""

    def __init__(self, file: GrowingFile, columns: Sequence[str], needed: Sequence[str], find_cells: FindCells) -> None:
        self._file = file
        self._needed = needed
        self._find_cells = find_cells
        self.name = str(file.path)
        self._header: Sequence[str] = columns
        self._end = "\n"
        self._prefix = make_line(columns, end=self._end)
        self.rows: list[dict[str, str]] = []
        data = file.read()
        text, n_bom = _decode(data, self.name)
        whole = self._find_whole(text)
        nbytes = n_bom + len(text[:whole].encode())
        if nbytes < len(data):
            file.cut(nbytes)
        if whole:
            self._take(text[:whole])

    def append(self, rows: Sequence[Mapping[str, Cell]]) -> None:
        """Write rows at the end and sync them; columns that the file lacks are left out."""
        if not rows:
            return
        lines = [make_line([row.get(name, "") for name in self._header], end=self._end) for row in rows]
        self._file.append((self._prefix + "".join(lines)).encode())
        self._prefix = ""

    def remove(self) -> None:
        """Take the file away, still under its lock."""
        self._file.remove()

    def _take(self, text: str) -> None:
        """Read the rows, and how the file is written."""
        records, _ = parse_records(text, name=self.name)
        self._check_header(records[0].cells)
        self._header = records[0].cells
        self._end = (re.search(r"\r\n|\n|\r", text) or ["\n"])[0]
        self._prefix = "" if text.endswith(("\n", "\r")) else self._end
        for record in records[1:]:
            if len(record.cells) != len(self._header):
                raise RequestError(
                    f"{self.name}, line {record.line}: {len(record.cells)} cells, the header has {len(self._header)}",
                    hint="put quotation marks around a cell that holds a comma",
                )
            if any(record.cells):  # a spreadsheet may end a table with rows of nothing
                self.rows.append(dict(zip(self._header, record.cells, strict=True)))

    def _check_header(self, found: Sequence[str]) -> None:
        lacking = [name for name in self._needed if name not in found]
        if lacking:
            nearest = make_nearest_text(lacking[0], found) or f" (it has {', '.join(found[:8])})"
            raise RequestError(
                f"{self.name} has no column {lacking[0]!r}{nearest}",
                hint="the first line names the columns, with commas between them: save it as 'CSV UTF-8'",
            )

    def _find_whole(self, text: str) -> int:
        """Return where the row begins that a kill cut short, else the length of the text."""
        if make_line(self._header, end="\n").startswith(text):
            return 0  # not even the header
        records, rest = parse_records(text, name=self.name)
        if rest < len(text):  # the text ends inside quotation marks
            self._check_torn(text[rest:], 1 + text[:rest].count("\n"))
            return rest
        if text.endswith(("\n", "\r")) or len(records) < 2:
            return len(text)
        return records[-1].start if self._is_torn(records[0].cells, records[-1]) else len(text)

    def _check_torn(self, torn: str, line: int) -> None:
        """Refuse to cut what holds whole rows: then a person forgot a quotation mark."""
        later = [row for text in torn.splitlines()[1:] for row in csv.reader([text])]
        if any(self._find_cells(cell) is not None for row in later for cell in row):
            raise RequestError(
                f"{self.name}, line {line}: a quotation mark is opened and never closed", hint="close it by hand"
            )

    def _is_torn(self, header: Sequence[str], record: Record) -> bool:
        """Return whether the last row, which no line end follows, was cut short by a kill."""
        if len(record.cells) < len(header):
            return True
        row = dict(zip(header, record.cells, strict=False))
        known = (self._find_cells(row.get(KEY, "")) or {}).get(header[-1])
        if known is None:
            raise RequestError(
                f"{self.name}, line {record.line}: no line end follows, so that the row may have been cut short",
                hint="end the line by hand where it is whole; remove it where it is not",
            )
        whole = known if isinstance(known, str) else format_number(known)
        return record.cells[-1] != whole and whole.startswith(record.cells[-1])


@contextmanager
def open_rows(path: Path, columns: Sequence[str], *, needed: Sequence[str], find_cells: FindCells) -> Iterator[RowFile]:
    """Hold a file and its rows, a torn last row cut off; a file that is not there comes with its first row.

    `columns` are those of a new file; a file that exists has its own, of which `needed` must be some.
    """
    file = GrowingFile(path)
    try:
        yield RowFile(file, columns, needed, find_cells)
    finally:
        file.close()


def _decode(data: bytes, name: str) -> tuple[str, int]:
    """Return the text, half a character at its end left out, and the bytes of its byte order mark."""
    n_bom = len(codecs.BOM_UTF8) if data.startswith(codecs.BOM_UTF8) else 0
    try:
        return codecs.getincrementaldecoder("utf-8")().decode(data[n_bom:]), n_bom
    except UnicodeDecodeError as error:
        raise RequestError(f"{name} is not UTF-8 (byte {error.start})", hint="save it as 'CSV UTF-8'") from None
