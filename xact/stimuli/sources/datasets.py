"""Shared code for the sources of published data sets: root folder, index, image files."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from xact.errors import RequestError, make_nearest_text
from xact.labels import RESERVED_COLUMNS, Column, StimulusTable, fold_label
from xact.stimuli.base import FileSource
from xact.stimuli.files_on_disk import make_file_label, resolve_path
from xact.tables.columns import find_column, load_columns, to_labels

VARIABLES: Mapping[str, str] = {"nsd": "NSD_DATASET", "bold5000": "BOLD_DATASET", "things": "THINGS_DATASET"}
"""{source: environment variable with the root folder, for recipes without a root}."""

N_IMAGES: Mapping[str, int] = {"nsd": 73_000, "bold5000": 4_916, "things": 26_107}
"""{source: number of images in the whole data set}. Scripts use the ids of these data sets as row numbers."""

EXTENSIONS = (".jpg", ".jpeg", ".png")
"""Extensions of image files, in upper or lower case."""

INDEX = "preprocessed/images.csv"
"""Path of a data set's optional index, below its root. The same table may be a parquet file beside it."""

RENAMED: Mapping[str, str] = {"path": "image_path", "model": "caption_model"}
"""{column that the second study's scripts write, and that a store needs itself: its name in a store}."""


@dataclass(frozen=True)
class Image:
    """One image of a data set."""

    number: int
    """Its position in the data set's own order."""
    name: str
    """File name, with or without an extension."""
    path: Path


def find_root(root: str | None, dataset: str, folder: Path) -> Path:
    """Return the root folder of a data set from the recipe, or else from the environment."""
    variable = VARIABLES[dataset]
    named = os.environ.get(variable, "") if root is None else root
    ways = f"set stimuli.root in the recipe (or --stimuli-root), or the environment variable {variable}"
    if not named:
        raise RequestError(
            f"the root folder of {dataset} is unknown: neither stimuli.root nor {variable} is set", hint=ways
        )
    found = resolve_path(named, folder if root is not None else Path())
    if not found.is_dir():
        said_by = variable if root is None else "stimuli.root"
        nearest = make_nearest_text(found.name, [path.name for path in found.parent.glob("*/")])
        raise RequestError(
            f"the root folder {str(found)!r} of {dataset} ({said_by}) does not exist{nearest}", hint=ways
        )
    return found


def find_under(root: Path, candidates: Sequence[str], *, what: str) -> Path:
    """Return the first candidate that exists below a root."""
    found = next((root / name for name in candidates if (root / name).exists()), None)
    if found is None:
        raise RequestError(
            f"{what} is not under {str(root)!r}: no {' and no '.join(candidates)}", hint="set stimuli.root to its root"
        )
    return found


def find_index(root: Path) -> Path | None:
    """Return a data set's index, or None if it has none."""
    files = (root / INDEX, (root / INDEX).with_suffix(".parquet"))
    return next((file for file in files if file.exists()), None)


def load_index(
    file: Path, dataset: str, *, number: str, as_written: Collection[str] = (), held: Mapping[str, str] = {}
) -> dict[str, Column]:
    """Return the columns of a data set's index, sorted by the column `number`, without reserved names.

    `loss` becomes `crop_loss`; any other reserved name gets the name of the data set as a prefix. The unnamed index of
    pandas is dropped. `held` is {column: its type in the store}: what is text there stays text. Raise RequestError if
    `number` does not give each row an integer of its own.
    """

    def rename(columns: Mapping[str, Column]) -> Mapping[str, Column]:
        renamed = [_rename(name, dataset) for name in columns]
        twice = next((name for name in renamed if renamed.count(name) > 1), None)
        if twice is not None:
            raise RequestError(f"{str(file)!r} would have two columns {twice!r}", hint="rename one of the two")
        return dict(zip(renamed, columns.values(), strict=True))

    as_written = (*as_written, "condition")
    columns = load_columns(file, as_written=as_written, drop=("", "Unnamed: 0"), held=held, select=rename)
    numbers = find_column(columns, number, file, hint=f"it gives the order of {dataset}")
    integers = [cell for cell in numbers if isinstance(cell, int) and not isinstance(cell, bool)]
    if len(set(integers)) != len(numbers):
        raise RequestError(f"the column {number!r} of {str(file)!r} does not give every row an integer of its own")
    order = sorted(range(len(integers)), key=integers.__getitem__)
    taken: dict[str, Column] = {}
    for name, cells in columns.items():
        taken[name] = [cells[row] for row in order]  # type: ignore[assignment]
    return taken


def _rename(name: str, dataset: str) -> str:
    if name == "loss":
        return "crop_loss"
    return f"{dataset}_{name}" if name in RESERVED_COLUMNS - {"condition"} else name


def rename_columns(
    columns: Mapping[str, Column], file: Path, *, notes: list[str], keep: Collection[str] = ()
) -> dict[str, Column]:
    """Return the columns with the names of RENAMED, except those in `keep`. Add a note for each new name."""
    new = {name: RENAMED[name] for name in columns if name in RENAMED and name not in keep}
    twice = next((name for name in new if new[name] in columns), None)
    if twice is not None:
        raise RequestError(
            f"the table {str(file)!r} has both columns {twice!r} and {new[twice]!r}",
            hint=f"rename one of the two: a store needs {twice!r} itself, it would become {new[twice]!r}",
        )
    notes += [f"{file.name}: the column {name!r} is stored as {label!r}" for name, label in new.items()]
    return {new.get(name, name): cells for name, cells in columns.items()}


def add_index_columns(table: StimulusTable, source: str) -> StimulusTable:
    """Return the table with the columns by which the second study's scripts know an image, where it lacks them."""
    more: dict[str, Column] = {}
    if source == "nsd":
        more = {"nsd_id": table.columns["nsdId"], "name": table.stems}
    elif source in VARIABLES:
        more = {"image_path": table.files, "name": table.stems}
    return replace(table, columns={**more, **table.columns})


def strip_extension(name: str) -> str:
    """Return the name of an image without its folder and its extension."""
    path = PurePosixPath(name)
    return path.stem if path.suffix.lower() in EXTENSIONS else path.name


def find_images(folders: Iterable[Path]) -> dict[str, Path]:
    """Return {name without extension, case folded: file} for the image files in these folders."""
    images: dict[str, Path] = {}
    for folder in folders:
        try:
            listed = sorted(folder.iterdir())
        except OSError as error:
            raise RequestError(f"the folder {str(folder)!r} cannot be listed: {error.strerror}") from None
        for path in listed:
            if path.suffix.lower() in EXTENSIONS and not path.name.startswith("."):
                other = images.setdefault(fold_label(path.stem), path)
                if other is not path:
                    raise RequestError(
                        f"the files {str(other)!r} and {str(path)!r} have the same name", hint="leave one of them out"
                    )
    return images


def take_index(
    file: Path, columns: dict[str, Column], number: str, images: Mapping[str, Path], root: Path
) -> list[Image]:
    """Return the images of an index. Removes the column `image_path`, which is a path, from `columns`."""
    names = to_labels(find_column(columns, "image_name", file, hint="it names the images"), "image_name", file)
    places = columns.pop("image_path", names)
    numbers = [int(cell) for cell in columns[number]]
    return [
        Image(row, name, images.get(fold_label(strip_extension(name)), root / str(place)))
        for row, name, place in zip(numbers, names, places, strict=True)
    ]


def make_source(images: Sequence[Image], columns: Mapping[str, Column], root: Path) -> FileSource:
    """Return the source of these images. A column `condition` gives the conditions."""
    ids = [strip_extension(image.name) for image in images]
    conditions = to_labels(columns.get("condition", ["all"] * len(ids)), "condition", root / INDEX)
    table = StimulusTable(
        ids=ids,
        conditions=conditions,
        stems=ids,
        files=[make_file_label(image.path, root) for image in images],
        columns={name: cells for name, cells in columns.items() if name != "condition"},
    )
    return FileSource(table, [image.path for image in images], str(root), str(root))
