"""The Natural Scenes Dataset: images from `imgBrick`, or unrolled to files, with the columns of its own table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from xact.errors import RequestError
from xact.labels import Column, SourceRow, StimulusTable
from xact.recipe.stimuli_schema import NsdStimuli
from xact.stimuli.base import ChosenStimuli, FileSource, ListedStimuli
from xact.stimuli.files_on_disk import make_file_label
from xact.stimuli.sources.datasets import find_images, find_root, find_under, load_index
from xact.stimuli.sources.hdf5 import Hdf5Source, load_shape
from xact.tables.columns import find_column, to_labels

BRICK = "imgBrick"
FILES = ("nsd_stimuli.hdf5", "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5")
TABLES = ("nsd_stim_info_merged.csv", "nsddata/experiments/nsd/nsd_stim_info_merged.csv")

UNROLLED = "images"
"""Folder of the images as files, `images/nsd_00000_00999/nsd_00000.jpg`, used if the brick is missing."""

GROUP = 1000
"""Images in one folder of unrolled files."""


def make_id(nsd_id: int) -> str:
    """Return the stimulus id of a 0-based nsdId."""
    return f"nsd_{nsd_id:05d}"


def open_source(block: NsdStimuli, folder: Path) -> ListedStimuli:
    """List the images in the recipe's `ids` and `subject`, or all images, by nsdId. The pixels stay on disk."""
    root = find_root(block.root, "nsd", folder)
    path = find_under(root, (*FILES, UNROLLED), what="the brick of images of NSD")
    file = find_under(root, TABLES, what="the table of NSD's images")
    columns = load_index(file, "nsd", number="nsdId", held=block.held)
    is_unrolled = path.name == UNROLLED
    n_images, *shape = (len(columns["nsdId"]),) if is_unrolled else load_shape(path, BRICK)
    if list(columns["nsdId"]) != list(range(n_images)):
        raise RequestError(
            f"{str(file)!r} and {str(path)!r} do not belong to the same data set: {n_images} images, "
            f"{len(columns['nsdId'])} rows with nsdId {columns['nsdId'][0]} to {columns['nsdId'][-1]}"
        )
    ids = [make_id(row) for row in range(n_images)]
    unrolled = find_unrolled(path, ids) if is_unrolled else []
    table = StimulusTable(
        ids=ids,
        conditions=to_labels(columns.pop("condition", ["all"] * n_images), "condition", file),
        stems=ids,
        files=[make_file_label(one, root) for one in unrolled] or [f"{BRICK}[{row}]" for row in range(n_images)],
        columns=columns,
    )
    rows = [SourceRow(row) for row in find_nsd_rows(block, columns, n_images, file)]
    listing: ListedStimuli = (
        FileSource(table, unrolled, str(root), str(root))
        if is_unrolled
        else Hdf5Source(path, BRICK, table, row_nbytes=math.prod(shape))
    )
    is_lossy = any(one.suffix.lower() != ".png" for one in unrolled)
    note = f"NSD is read from the files in {str(path)!r}: JPEG has changed their pixels, {BRICK} has the true ones"
    return ChosenStimuli(listing, rows, table.take(rows), [note] if is_lossy else [])


def find_unrolled(folder: Path, ids: Sequence[str]) -> list[Path]:
    """Return the file of each image; for an image without a file, the place where it is expected."""
    images = find_images([folder, *sorted(folder.glob("nsd_*/"))])
    groups = [row - row % GROUP for row in range(len(ids))]
    return [
        images.get(one, folder / f"{make_id(first)}_{first + GROUP - 1:05d}" / f"{one}.jpg")
        for one, first in zip(ids, groups, strict=True)
    ]


def find_nsd_rows(block: NsdStimuli, columns: Mapping[str, Column], n_images: int, file: Path) -> list[int]:
    """Return the rows in the recipe's `ids` that its `subject` saw, in the order of nsdId."""
    asked = range(n_images) if block.ids is None else block.ids
    if len(set(asked)) != len(asked) or max(asked) >= n_images:
        bad = next(one for i, one in enumerate(asked) if one >= n_images or one in asked[:i])
        what = f"appears twice; there are {n_images} images" if bad < n_images else f"is not below {n_images}"
        raise RequestError(f"stimuli.ids: the nsdId {bad} {what}")
    if block.subject is None:
        return sorted(asked)
    saw = find_column(columns, f"subject{block.subject}", file, hint="stimuli.subject names it")
    odd = next((cell for cell in saw if cell not in (0, 1)), None)
    if odd is not None:
        raise RequestError(f"the column 'subject{block.subject}' of {str(file)!r} holds {odd!r}: neither 0 nor 1")
    return [row for row in sorted(asked) if saw[row]]
