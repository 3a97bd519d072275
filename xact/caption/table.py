"""The table of captions, as CSV or parquet, and the list of answers that a person should check.

During a run, answers are appended to a file of JSON lines beside the table, one line per batch. At the end of a run,
the table and the list are written whole, including their old rows, and the file of answers is removed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from xact.caption.rows import add_rows, load_rows
from xact.disk.durable import append_line, read_lines, read_whole, remove_file, sync_folder, write_file
from xact.disk.locks import hold_lines
from xact.errors import RequestError, StoreError, XactError, make_nearest_text
from xact.labels import Column, StimulusTable
from xact.tables.csv_text import Cell

KEY = "stimulus"
"""Column with the stimulus of each row."""

ANSWER_COLUMNS = ("caption", "caption_model", "caption_prompt")
"""Columns that are added to the columns of the source."""

TAKEN = ("stimulus", "condition", "image_file", *ANSWER_COLUMNS, "captions")
"""Names that a column of the source may not keep. A column `captions` would mean several captions per row."""

FORMATS = (".csv", ".parquet")


class Listed(NamedTuple):
    """An answer that a person should check. Its fields are the columns of the list."""

    stimulus: str
    problem: str
    answer: str


@dataclass(frozen=True)
class Layout:
    """The cells of each stimulus's row, without the caption."""

    columns: Mapping[str, Column]
    """{name in the table: column of the source}."""
    row_of: Mapping[str, int]
    """{stimulus: its row in the source}."""
    model: str
    prompt_name: str

    @property
    def names(self) -> list[str]:
        """All columns, in the order of a new file."""
        return [*self.columns, *ANSWER_COLUMNS]

    def find_cells(self, stimulus: str) -> dict[str, Cell] | None:
        """Return all cells of a stimulus's row except the caption, or None if the source lacks the stimulus."""
        row = self.row_of.get(stimulus)
        if row is None:
            return None
        cells: dict[str, Cell] = {name: column[row] for name, column in self.columns.items()}
        return cells | {"caption_model": self.model, "caption_prompt": self.prompt_name}


def make_layout(table: StimulusTable, *, model: str, prompt_name: str) -> Layout:
    """Return the columns of a table of captions. A source column with a name in TAKEN becomes `source_NAME`."""
    columns: dict[str, Column] = {
        "stimulus": table.ids,
        "condition": table.conditions,
        "image_file": table.files,
    }
    for name, column in table.columns.items():
        chosen = f"source_{name}" if name in TAKEN else name
        if chosen in columns or (chosen != name and chosen in table.columns):
            raise RequestError(f"the column {name!r} of the stimuli has a name that captions need", hint="rename it")
        columns[chosen] = column
    return Layout(columns, {one: row for row, one in enumerate(table.ids)}, model, prompt_name)


class TableFile:
    """A CSV or parquet file at the time of reading. `rows` is empty if the file does not exist."""

    def __init__(self, path: Path, columns: Sequence[str], needed: Sequence[str]) -> None:
        self._path = path
        self._data = _read(path)
        if _is_parquet(path):
            from xact.caption.parquet import add_to_parquet, load_parquet  # now: a signal leaves too little time

            self.rows = load_parquet(self._data, name=str(path))
            self._add = partial(add_to_parquet, columns=columns, name=str(path))
        else:
            self.rows = load_rows(self._data, needed=needed, name=str(path))
            self._add = partial(add_rows, columns=columns, name=str(path))

    def add(self, rows: Sequence[Mapping[str, Cell]]) -> None:
        """Write the whole file with these rows at its end. Refuse if another program has changed the file."""
        data = self._add(self._data, rows)
        if _read(self._path) != self._data:
            raise StoreError(
                f"another program changed {self._path} while answers were being added",
                hint="run the same command again: it continues from the present file",
            )
        write_file(self._path.resolve(), [data])  # write the target of a link, not the link


class CaptionTable:
    """Captions by stimulus, and the answers to check. When `add` returns, its batch is safe on disk."""

    def __init__(self, output: Path, review: Path, layout: Layout) -> None:
        self._layout = layout
        self._lines = make_rows_path(output)
        self._table = TableFile(output, layout.names, (KEY, *ANSWER_COLUMNS))
        self._review = TableFile(review, Listed._fields, Listed._fields)
        self.captions = _index(self._table.rows, layout, str(output))
        self.listed = dict.fromkeys(Listed(*(row[name] for name in Listed._fields)) for row in self._review.rows)
        self._held = frozenset(self.captions), frozenset(self.listed)
        captions, listed = self._load_answers()  # from a run that was killed
        self.captions |= captions
        self.listed |= listed

    def add(self, captions: Mapping[str, str], listed: Sequence[Listed]) -> None:
        """Append the captions of these stimuli, in this order, and the answers to check, even if already listed."""
        if captions or listed:
            append_line(self._lines, {"captions": dict(captions), "listed": listed})
            self.captions |= captions
            self.listed |= dict.fromkeys(listed)

    def write(self) -> None:
        """Write the list and the table once, then remove the file of answers."""
        captions, listed = self._load_answers()  # a signal may have stopped `add` after it wrote its line
        if listed:
            self._review.add([row._asdict() for row in listed])
        if captions:
            rows = [{**(self._layout.find_cells(one) or {}), "caption": text} for one, text in captions.items()]
            self._table.add(rows)
        remove_file(self._lines)
        sync_folder(self._lines.parent)

    def _load_answers(self) -> tuple[dict[str, str], dict[Listed, None]]:
        """Return the answers in the file of answers that the table and the list lack, in order."""
        captions: dict[str, str] = {}
        listed: dict[Listed, None] = {}
        for line in read_lines(self._lines):
            said, problems = _parse_line(line, self._layout, self._lines)
            captions |= {one: text for one, text in said.items() if one not in self._held[0]}
            listed |= dict.fromkeys(row for row in problems if row not in self._held[1])
        return captions, listed


@contextmanager
def open_table(output: Path, review: Path, layout: Layout) -> Iterator[CaptionTable]:
    """Lock a new or existing table of captions while answers are added; write the table at the end."""
    with hold_lines(make_rows_path(output), output) as may_write:
        table = CaptionTable(output, review, layout)
        if not may_write:
            yield table
            return
        try:
            yield table
        except BaseException:
            with suppress(XactError):  # the answers stay in their own file, and the next run writes the table
                table.write()
            raise
        table.write()


def check_writable(output: Path) -> None:
    """Raise StoreError if the folder of a table that has to change is read-only."""
    if not os.access(output.parent, os.W_OK):
        raise StoreError(
            f"the folder of {str(output)!r} is read-only, and captions are missing", hint="give another --output"
        )


def check_output(output: Path) -> None:
    """Refuse a path that cannot be a table of captions."""
    if output.suffix.lower() not in FORMATS:
        raise RequestError(
            f"the output {str(output)!r} has the extension {output.suffix!r}", hint=f"use one of {', '.join(FORMATS)}"
        )
    if output.exists() and not output.is_file():
        raise RequestError(f"the output {str(output)!r} exists but is not a file", hint="give another --output")


def make_rows_path(output: Path) -> Path:
    """Return the path of the JSON-lines file beside a table, which takes the answers during a run."""
    return output.with_name(output.name + ".rows.jsonl")


def _read(path: Path) -> bytes:
    """Return the bytes of a file, or zero bytes if it does not exist."""
    try:
        return read_whole(path)
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from None


def _parse_line(line: Mapping[str, Any], layout: Layout, path: Path) -> tuple[dict[str, str], list[Listed]]:
    """Return the captions by stimulus, and the answers to check, from a line that `CaptionTable.add` wrote."""
    hint = "remove the file, and its answers are asked for again"
    try:
        captions = {one: str(text) for one, text in line["captions"].items()}
        listed = [Listed(*map(str, row)) for row in line["listed"]]
    except (AttributeError, KeyError, TypeError):
        raise StoreError(f"{path} is damaged", hint=hint) from None
    odd = next((one for one in captions if one not in layout.row_of), None)
    if odd is not None:
        raise RequestError(
            f"{path} has an answer for {odd!r}, which is not a stimulus", hint=f"restore the stimulus, or {hint}"
        )
    return captions, listed


def _is_parquet(output: Path) -> bool:
    return output.suffix.lower() == ".parquet"


def _index(rows: Sequence[Mapping[str, str]], layout: Layout, name: str) -> dict[str, str]:
    """Return {stimulus: caption}. Refuse rows of unknown stimuli, and two rows of the same stimulus."""
    captions: dict[str, str] = {}
    for row in rows:
        stimulus = row[KEY]
        if not stimulus:
            continue
        if stimulus not in layout.row_of:
            nearest = make_nearest_text(stimulus, layout.row_of)
            raise RequestError(
                f"{name} has a row for {stimulus!r}, which is not a stimulus{nearest}",
                hint="restore the name if a spreadsheet changed it (001 to 1); remove a row that you added",
            )
        if stimulus in captions:
            raise RequestError(f"{name} has two rows for {stimulus!r}", hint="remove one of them")
        captions[stimulus] = row["caption"]
    return captions
