"""A CSV or parquet file with a column of image paths. Its other columns become coordinates."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath

from xact.errors import RequestError
from xact.labels import Column, StimulusTable
from xact.recipe.stimuli_schema import TableStimuli
from xact.stimuli.base import FileSource
from xact.stimuli.files_on_disk import make_file_label, resolve_path
from xact.stimuli.written_names import DiskNames, write_path
from xact.tables.column_types import is_missing
from xact.tables.columns import drop_differing, find_column, load_columns, to_labels

NAMING = "name it with stimuli.path or stimuli.id"


def open_source(block: TableStimuli, folder: Path) -> FileSource:
    """List the rows of a recipe's table in order. Keep all columns except path, id and condition as labels."""
    file, root = resolve_path(block.file, folder), resolve_path(block.root, folder)
    taken = (block.path, block.id, "condition")
    notes: list[str] = []

    def select(columns: Mapping[str, Column]) -> Mapping[str, Column]:
        return _take_first_rows(columns, block, file, root, notes)

    columns = load_columns(
        file,
        notes=notes,
        as_written=taken,
        rename=block.rename,
        held=block.held,
        select=select if block.unique else dict,
    )
    written = [write_path(path, root) for path in _take_paths(columns, block, file, root)]
    names = DiskNames()
    located = [names.find(path) for path in written]
    ids = _take_ids(columns, block, file, [make_file_label(path, root) for path in written])
    _refuse_twice(ids, located, block, file)
    table = StimulusTable(
        ids=ids,
        conditions=to_labels(columns.get("condition", ["all"] * len(ids)), "condition", file),
        stems=[path.stem for path in written],
        files=[make_file_label(path, root) for path in located],
        columns={name: cells for name, cells in columns.items() if name not in taken},
    )
    return FileSource(table, located, str(file), str(root), notes)


def _take_first_rows(
    columns: Mapping[str, Column], block: TableStimuli, file: Path, root: Path, notes: list[str]
) -> dict[str, Column]:
    """Return the first row of each picture. Leave out rows without a picture, and columns that differ between rows."""
    rows_of: dict[Path, list[int]] = {}
    paths = find_column(columns, block.path, file, hint=NAMING)
    names = DiskNames()
    for row, path in enumerate(_check_texts(paths, block, file)):
        if _is_path(path, root):
            rows_of.setdefault(names.find(write_path(path, root)), []).append(row)
    n_shown = sum(map(len, rows_of.values()))
    if n_shown < len(paths):
        notes.append(f"{file.name}: {len(paths) - n_shown} of its {len(paths)} rows have no picture and were left out")
    others = {name: cells for name, cells in columns.items() if name != block.path}
    kept, dropped = drop_differing(others, list(rows_of.values()))
    needed = next((name for name in dropped if name in (block.id, "condition")), None)
    if needed is not None:
        raise RequestError(
            f"the column {needed!r} of {str(file)!r} differs between the presentations of one picture",
            hint=f"stimuli.unique takes each picture once; rename: {{{needed}: trial_{needed}}} leaves the column out",
        )
    if dropped:
        notes.append(
            f"{file.name}: left out, since they differ between the presentations of one picture: {', '.join(dropped)}"
        )
    firsts = [rows[0] for rows in rows_of.values()]
    return {block.path: [str(paths[row]) for row in firsts], **kept}


def _is_path(cell: str, root: Path) -> bool:
    """Return True for a path. A missing value such as `n/a` is one only if it is the name of a file."""
    return bool(PurePath(cell).name) and (not is_missing(cell) or os.path.lexists(root / cell))


def _check_texts(cells: Column, block: TableStimuli, file: Path) -> list[str]:
    texts = [cell for cell in cells if isinstance(cell, str)]
    if len(texts) < len(cells):
        raise RequestError(f"the column {block.path!r} of {str(file)!r} is not text")
    return texts


def _take_paths(columns: Mapping[str, Column], block: TableStimuli, file: Path, root: Path) -> list[str]:
    cells = find_column(columns, block.path, file, hint=NAMING)
    texts = _check_texts(cells, block, file)
    for row, cell in enumerate(texts):
        if not _is_path(cell, root):
            raise RequestError(
                f"the column {block.path!r} of {str(file)!r} has no path in row {row + 1}",
                hint="a list of presentations? `unique: true` takes each picture once, and leaves out rows without one",
            )
    return texts


def _take_ids(columns: Mapping[str, Column], block: TableStimuli, file: Path, files: Sequence[str]) -> list[str]:
    if block.id in columns or block.id != TableStimuli.model_fields["id"].default:
        return to_labels(find_column(columns, block.id, file, hint=NAMING), block.id, file)
    return [str(PurePath(label).with_suffix("")) for label in files]


def _refuse_twice(ids: Sequence[str], located: Sequence[Path], block: TableStimuli, file: Path) -> None:
    """Refuse two rows of one id and one picture."""
    seen: dict[tuple[str, Path], int] = {}
    for row, one in enumerate(zip(ids, located, strict=True)):
        first = seen.setdefault(one, row)
        if first != row:
            raise RequestError(
                f"{file}: the stimulus id {one[0]!r} stands twice (rows {first + 1} and {row + 1})",
                hint="a list of presentations? `unique: true` takes each picture once",
            )
