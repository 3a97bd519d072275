"""The table of captions: a CSV file, or a parquet file that is put together from one.

A parquet file cannot be appended to: its new rows are kept in a CSV file beside it until all are there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from xact.caption_rows import KEY, RowFile, open_rows
from xact.csv_text import Cell
from xact.errors import RequestError, make_nearest_text
from xact.specs import Column, StimulusTable

ANSWER_COLUMNS = ("caption", "caption_model", "caption_prompt")
"""What is added to a source's own columns."""

TAKEN = ("stimulus", "condition", "image_file", *ANSWER_COLUMNS, "captions")
"""Names that a source's own column gives up; `captions` would say that a row holds several."""

FORMATS = (".csv", ".parquet")


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


class CaptionTable:
    """Captions by stimulus; each batch of rows is safe once `add` returns."""

    def __init__(self, output: Path, layout: Layout, rows: RowFile) -> None:
        self._output = output
        self._layout = layout
        self._file = rows
        self._fresh = [row for row in rows.rows if row[KEY]]
        self.captions = _index(self._fresh, layout, rows.name)
        if _is_parquet(output) and output.exists():
            from xact.caption_parquet import load_parquet

            stored = _index(load_parquet(output), layout, str(output))
            self._fresh = [row for row in self._fresh if row[KEY] not in stored]
            self.captions |= stored

    def add(self, captions: Mapping[str, str]) -> None:
        """Write the rows of these stimuli, in this order."""
        rows = [{**(self._layout.find_cells(one) or {}), "caption": text} for one, text in captions.items()]
        self._file.append(rows)
        self._fresh += [{KEY: one, "caption": text} for one, text in captions.items()]
        self.captions |= captions

    def finish(self) -> None:
        """Put a parquet file together, in one step, from what it held and what was added."""
        if not _is_parquet(self._output):
            return
        from xact.caption_parquet import add_to_parquet

        if self._fresh:
            rows = [{**(self._layout.find_cells(row[KEY]) or {}), "caption": row["caption"]} for row in self._fresh]
            add_to_parquet(self._output, {name: [row[name] for row in rows] for name in self._layout.names})
        self._file.remove()


@contextmanager
def open_table(output: Path, layout: Layout) -> Iterator[CaptionTable]:
    """Hold a table of captions, new or as it was left, while rows are added."""
    needed = (KEY, *ANSWER_COLUMNS)
    with open_rows(make_rows_path(output), layout.names, needed=needed, find_cells=layout.find_cells) as rows:
        yield CaptionTable(output, layout, rows)


def check_output(output: Path) -> None:
    """Refuse a file that can be no table of captions."""
    if output.suffix.lower() not in FORMATS:
        raise RequestError(
            f"the output {str(output)!r} has the extension {output.suffix!r}", hint=f"one of {', '.join(FORMATS)}"
        )
    if output.exists() and not output.is_file():
        raise RequestError(f"the output {str(output)!r} is there and is no file", hint="give another --output")


def make_rows_path(output: Path) -> Path:
    """Return the CSV file that takes the rows of a table: itself, or the one beside a parquet file."""
    return output.with_name(output.name + ".rows.csv") if _is_parquet(output) else output


def _is_parquet(output: Path) -> bool:
    return output.suffix.lower() == ".parquet"


def _index(rows: Sequence[Mapping[str, str]], layout: Layout, name: str) -> dict[str, str]:
    """Return {stimulus: caption}; refuse rows of no stimulus, and two rows of one."""
    captions: dict[str, str] = {}
    for row in rows:
        stimulus = row[KEY]
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
