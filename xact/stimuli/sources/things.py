"""THINGS: images of object categories, in the order of their file names."""

from __future__ import annotations

from pathlib import Path

from xact.errors import RequestError
from xact.labels import Column
from xact.recipe.stimuli_schema import ThingsStimuli
from xact.stimuli.base import FileSource
from xact.stimuli.sources.datasets import Image, find_images, find_index, find_root, load_index, make_source, take_index

BASES = ("stimuli/THINGS/Images", "stimuli/THINGS", "stimuli", "Images", "")
"""Folders below the root that may contain the folders of images."""

CATEGORIES = "object_images*/*/"
"""Folders of the categories: in `object_images_A-C` and similar folders, or all in `object_images`."""


def open_source(block: ThingsStimuli, folder: Path) -> FileSource:
    """List the images by things_id, from the index if it exists, else by the rank of their file names."""
    root = find_root(block.root, "things", folder)
    folders = next((found for base in BASES if (found := sorted((root / base).glob(CATEGORIES)))), [])
    images = find_images(path for path in folders if not path.name.startswith("."))
    columns: dict[str, Column]
    index = find_index(root)
    if index is not None:
        columns = load_index(
            index, "things", number="things_id", as_written=("image_name", "category"), held=block.held
        )
        return make_source(take_index(index, columns, "things_id", images, root), columns, root)
    if not images:
        raise RequestError(
            f"there are no images of THINGS under {str(root)!r}: no {BASES[0]}/object_images_A-C/<category>/*.jpg",
            hint="set stimuli.root to the root of the data set",
        )
    paths = sorted(images.values(), key=lambda path: path.name)
    columns = {
        "things_id": list(range(len(paths))),
        "image_name": [path.name for path in paths],
        "category": [path.parent.name for path in paths],
    }
    return make_source([Image(rank, path.name, path) for rank, path in enumerate(paths)], columns, root)
