"""A CSV or parquet file with a column of image paths. Its other columns become coordinates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath

from xact.errors import RequestError
from xact.labels import Column, StimulusTable
from xact.recipe.stimuli_schema import TableStimuli
from xact.stimuli.base import FileSource, make_file_label, resolve_path
from xact.stimuli.columns import find_column, load_columns, to_labels

NAMING = "name it with stimuli.path or stimuli.id"


def open_source(block: TableStimuli, folder: Path) -> FileSource:
    """List the rows of a recipe's table in order. Keep all columns except path, id and condition as labels."""
    file, root = resolve_path(block.file, folder), resolve_path(block.root, folder)
    taken = (block.path, block.id, "condition")
    columns = load_columns(file, as_written=taken, rename=block.rename)
    paths = _take_paths(columns, block, file)
    located = [resolve_path(path, root) for path in paths]
    files = [make_file_label(path, root) for path in located]
    ids = _take_ids(columns, block, file, files)
    table = StimulusTable(
        ids=ids,
        conditions=to_labels(columns.get("condition", ["all"] * len(ids)), "condition", file),
        stems=[path.stem for path in located],
        files=files,
        columns={name: cells for name, cells in columns.items() if name not in taken},
    )
    return FileSource(table, located, str(file), str(root))


def _take_paths(columns: Mapping[str, Column], block: TableStimuli, file: Path) -> list[str]:
    cells = find_column(columns, block.path, file, hint=NAMING)
    for row, cell in enumerate(cells):
        if not isinstance(cell, str):
            raise RequestError(f"the column {block.path!r} of {str(file)!r} is not text")
        if not cell.strip() or not PurePath(cell).name:
            raise RequestError(f"the column {block.path!r} of {str(file)!r} has no path in row {row + 1}")
    return [str(cell) for cell in cells]


def _take_ids(columns: Mapping[str, Column], block: TableStimuli, file: Path, files: Sequence[str]) -> list[str]:
    if block.id in columns or block.id != TableStimuli.model_fields["id"].default:
        return to_labels(find_column(columns, block.id, file, hint=NAMING), block.id, file)
    return [str(PurePath(label).with_suffix("")) for label in files]
