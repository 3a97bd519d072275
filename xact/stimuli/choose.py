"""Add the recipe's labels to the stimuli of any source, and select rows by labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from xact.errors import RequestError
from xact.labels import Column, SourceRow, StimulusTable, fold_label
from xact.recipe.stimuli_schema import StimuliBlock
from xact.stimuli.base import check_columns
from xact.stimuli.files_on_disk import resolve_path
from xact.stimuli.written_names import pair_names
from xact.tables.columns import load_columns, to_labels
from xact.tables.where import find_rows

KEYS = ("stimulus", "stem")
"""Columns that pair the rows of a label table with the stimuli."""


def add_labels(table: StimulusTable, block: StimuliBlock, folder: Path) -> tuple[StimulusTable, list[str]]:
    """Return the table with the recipe's `columns` and then its `fields`, and notes to the user about them."""
    notes: list[str] = []
    names = [block.columns] if isinstance(block.columns, str) else block.columns or []
    for name in names:
        file = resolve_path(name, folder)
        found, more = load_labels(file, table, held=block.held)
        table = _add(table, found, where=str(file), hint=f"rename it in {file.name}")
        notes += more
    if block.fields is not None:
        from xact.stimuli.fields import load_fields  # its library takes a moment

        fields = load_fields(block.fields, table.stems, held=block.held)
        table = _add(table, fields, where="stimuli.fields", hint="name it otherwise")
    return table, notes


def choose_rows(table: StimulusTable, block: StimuliBlock) -> list[SourceRow]:
    """Return the rows that remain after the recipe's `where` and then its `limit`."""
    rows: Iterable[int] = range(len(table))
    if block.where is not None:
        own = {"stimulus": table.ids, "condition": table.conditions, "stem": table.stems, "file": table.files}
        rows = find_rows(block.where, {**table.columns, **own})
        if not rows:
            raise RequestError(f"stimuli.where {block.where!r} leaves none of the {len(table)} stimuli")
    return [SourceRow(row) for row in rows][: block.limit]


def load_labels(
    file: Path, table: StimulusTable, *, held: Mapping[str, str] = {}
) -> tuple[dict[str, Column], list[str]]:
    """Return the columns of a file with one cell per stimulus, and notes, e.g. if some rows match no stimulus.

    The column `stimulus` or `stem` pairs rows with stimuli. Raise RequestError if the file has both columns or
    neither, if a key appears twice, or if a stimulus has no row.
    """
    notes: list[str] = []
    columns = load_columns(file, notes=notes, key="columns", as_written=KEYS, held=held)
    keys = [key for key in KEYS if key in columns]
    if len(keys) != 1:
        raise RequestError(
            f"the table {str(file)!r} has {'both columns' if keys else 'neither column'} {' and '.join(KEYS)}",
            hint="its rows are paired with the stimuli by one of the two",
        )
    key = keys[0]
    written = to_labels(columns.pop(key), key, file)
    _refuse_twice(written, key, file)
    wanted = table.ids if key == "stimulus" else table.stems
    row_of = pair_names(written, wanted, table.files, what=key, where=repr(str(file)))
    lost = [label for label in dict.fromkeys(wanted) if label not in row_of]
    if lost:
        named = ", ".join(map(repr, lost[:3]))
        raise RequestError(
            f"the table {str(file)!r} has no row for {len(lost)} of the stimuli: {key} {named}",
            hint="add the rows, or leave the stimuli out at the source",
        )
    n_other = len(written) - len(row_of)
    notes += [f"{file.name}: {n_other} of its {len(written)} rows are of no stimulus and were left"] if n_other else []
    taken: dict[str, Column] = {}
    for name, cells in columns.items():
        taken[name] = [cells[row_of[label]] for label in wanted]  # type: ignore[assignment]
    return taken, notes


def _refuse_twice(labels: Sequence[str], key: str, file: Path) -> None:
    twice = next((label for label, n in Counter(labels).items() if n > 1), None)
    if twice is not None:
        raise RequestError(f"the {key} {twice!r} stands twice in {str(file)!r}", hint="leave one of the rows out")


def _add(table: StimulusTable, columns: Mapping[str, Column], *, where: str, hint: str) -> StimulusTable:
    known = {fold_label(name) for name in table.columns}
    for name in columns:
        if fold_label(name) in known:
            raise RequestError(f"the column {name!r} of {where} is there already", hint=hint)
    check_columns(columns, location=where, hint=hint)
    return replace(table, columns={**table.columns, **columns})
