"""The table of captions, as CSV or parquet, and the list of answers that a person should look at.

Answers are appended to a file of JSON lines beside the table, one line a batch. At the end of a run the table and the
list are written whole, with what stood in them before, and the file of answers is removed.
"""

from __future__ import annotations

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
from xact.stimuli.csv_text import Cell

KEY = "stimulus"
"""The column that says whose row it is."""

ANSWER_COLUMNS = ("caption", "caption_model", "caption_prompt")
"""What is added to a source's own columns."""

TAKEN = ("stimulus", "condition", "image_file", *ANSWER_COLUMNS, "captions")
"""Names that a source's own column gives up; `captions` would say that a row holds several."""

FORMATS = (".csv", ".parquet")


class Listed(NamedTuple):
    """An answer that a person should look at; its fields are the columns of the list."""

    stimulus: str
    problem: str
    answer: str


@dataclass(frozen=True)
class Layout:
    """What stands in the row of each stimulus before anything is answered."""

    columns: Mapping[str, Column]
    """The source's own columns by their name in the table."""
    row_of: Mapping[str, int]
    """{stimulus: its row in the source}."""
    model: str
    prompt_name: str

    @property
    def names(self) -> list[str]:
        """All columns, in the order of a new file."""
        return [*self.columns, *ANSWER_COLUMNS]

    def find_cells(self, stimulus: str) -> dict[str, Cell] | None:
        """Return every cell of a stimulus's row but the caption; None for no stimulus of the source."""
        row = self.row_of.get(stimulus)
        if row is None:
            return None
        cells: dict[str, Cell] = {name: column[row] for name, column in self.columns.items()}
        return cells | {"caption_model": self.model, "caption_prompt": self.prompt_name}


def make_layout(table: StimulusTable, *, model: str, prompt_name: str) -> Layout:
    """Return the columns of a table of captions; a source's column whose name is taken becomes `source_NAME`."""
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
    """A CSV or parquet file as it was read; `rows` are those that stand in it, none where there is no file."""

    def __init__(self, path: Path, columns: Sequence[str], needed: Sequence[str]) -> None:
        self._path = path
        self._data = _read(path)
        if _is_parquet(path):
            from xact.caption.parquet import add_to_parquet, load_parquet  # now: a signal leaves no time for an import

            self.rows = load_parquet(self._data, name=str(path))
            self._add = partial(add_to_parquet, columns=columns, name=str(path))
        else:
            self.rows = load_rows(self._data, needed=needed, name=str(path))
            self._add = partial(add_rows, columns=columns, name=str(path))

    def add(self, rows: Sequence[Mapping[str, Cell]]) -> None:
        """Write the file whole, with these rows at its end; refuse where another program has changed it."""
        data = self._add(self._data, rows)
        if _read(self._path) != self._data:
            raise StoreError(
                f"another program changed {self._path} while answers were being added",
                hint="run the same command again: it goes on from the file as it is now",
            )
        write_file(self._path.resolve(), [data])  # what a link leads to, not the link


class CaptionTable:
    """Captions by stimulus, and the answers to look at; each batch is safe once `add` returns."""

    def __init__(self, output: Path, review: Path, layout: Layout) -> None:
        self._layout = layout
        self._lines = make_rows_path(output)
        self._table = TableFile(output, layout.names, (KEY, *ANSWER_COLUMNS))
        self._review = TableFile(review, Listed._fields, Listed._fields)
        self.captions = _index(self._table.rows, layout, str(output))
        self.listed = dict.fromkeys(Listed(*(row[name] for name in Listed._fields)) for row in self._review.rows)
        self._held = frozenset(self.captions), frozenset(self.listed)
        captions, listed = self._load_answers()  # of a run that was killed
        self.captions |= captions
        self.listed |= listed

    def add(self, captions: Mapping[str, str], listed: Sequence[Listed]) -> None:
        """Keep the captions of these stimuli, in this order, and the answers to look at, listed already or not."""
        if captions or listed:
            append_line(self._lines, {"captions": dict(captions), "listed": listed})
            self.captions |= captions
            self.listed |= dict.fromkeys(listed)

    def finish(self) -> None:
        """Write the list and the table once, then remove the file of answers."""
        captions, listed = self._load_answers()  # a signal may have come between the line and the memory of it
        if listed:
            self._review.add([row._asdict() for row in listed])
        if captions:
            rows = [{**(self._layout.find_cells(one) or {}), "caption": text} for one, text in captions.items()]
            self._table.add(rows)
        remove_file(self._lines)
        sync_folder(self._lines.parent)

    def _load_answers(self) -> tuple[dict[str, str], dict[Listed, None]]:
        """Return the answers that are in their file and not in the table or the list, in order."""
        captions: dict[str, str] = {}
        listed: dict[Listed, None] = {}
        for line in read_lines(self._lines):
            said, problems = _parse_line(line, self._layout, self._lines)
            captions |= {one: text for one, text in said.items() if one not in self._held[0]}
            listed |= dict.fromkeys(row for row in problems if row not in self._held[1])
        return captions, listed


@contextmanager
def open_table(output: Path, review: Path, layout: Layout) -> Iterator[CaptionTable]:
    """Hold a table of captions, new or as it was left, while answers are added; write it at the end."""
    with hold_lines(make_rows_path(output), output):
        table = CaptionTable(output, review, layout)
        try:
            yield table
        except BaseException:
            with suppress(XactError):  # the answers stay in their own file, and the next run writes the table
                table.finish()
            raise
        table.finish()


def check_output(output: Path) -> None:
    """Refuse a file that can be no table of captions."""
    if output.suffix.lower() not in FORMATS:
        raise RequestError(
            f"the output {str(output)!r} has the extension {output.suffix!r}", hint=f"one of {', '.join(FORMATS)}"
        )
    if output.exists() and not output.is_file():
        raise RequestError(f"the output {str(output)!r} is there and is no file", hint="give another --output")


def make_rows_path(output: Path) -> Path:
    """Return the file beside a table that takes the answers of a run, as JSON lines."""
    return output.with_name(output.name + ".rows.jsonl")


def _read(path: Path) -> bytes:
    """Return the bytes of a file, none where it is not there."""
    try:
        return read_whole(path)
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from None


def _parse_line(line: Mapping[str, Any], layout: Layout, path: Path) -> tuple[dict[str, str], list[Listed]]:
    """Return the captions by stimulus, and the answers to look at, of one line that `CaptionTable.add` wrote."""
    hint = "remove the file: its answers are asked for again"
    try:
        captions = {one: str(text) for one, text in line["captions"].items()}
        listed = [Listed(*map(str, row)) for row in line["listed"]]
    except (AttributeError, KeyError, TypeError):
        raise StoreError(f"{path} is damaged", hint=hint) from None
    odd = next((one for one in captions if one not in layout.row_of), None)
    if odd is not None:
        raise RequestError(f"{path} has an answer for {odd!r}, which the stimuli lack", hint=f"put it back, or {hint}")
    return captions, listed


def _is_parquet(output: Path) -> bool:
    return output.suffix.lower() == ".parquet"


def _index(rows: Sequence[Mapping[str, str]], layout: Layout, name: str) -> dict[str, str]:
    """Return {stimulus: caption}; refuse rows of no stimulus, and two rows of one."""
    captions: dict[str, str] = {}
    for row in rows:
        stimulus = row[KEY]
        if not stimulus:
            continue
        if stimulus not in layout.row_of:
            nearest = make_nearest_text(stimulus, layout.row_of)
            raise RequestError(
                f"{name} has a row for {stimulus!r}, which the stimuli lack{nearest}",
                hint="a spreadsheet may have changed the name (001 to 1): put it back; a row of your own: take it out",
            )
        if stimulus in captions:
            raise RequestError(f"{name} has two rows for {stimulus!r}", hint="take one of them out")
        captions[stimulus] = row["caption"]
    return captions
