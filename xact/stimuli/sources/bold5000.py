"""BOLD5000: the presented images, in the order of their first presentation."""

from __future__ import annotations

import re
from pathlib import Path

from xact.errors import RequestError
from xact.labels import Column, fold_label
from xact.recipe.stimuli_schema import Bold5000Stimuli
from xact.stimuli.base import FileSource
from xact.stimuli.sources.datasets import (
    INDEX,
    Image,
    find_images,
    find_index,
    find_root,
    find_under,
    load_index,
    make_source,
    strip_extension,
    take_index,
)

FOLDERS = ("COCO", "ImageNet", "Scene")
PRESENTED = "Scene_Stimuli/Presented_Stimuli"
LISTS = "Stimuli_Presentation_Lists"
BASES = ("bold5000_stimuli/", "BOLD5000_Stimuli/", "")
"""Folders below the root that may contain the images and the presentation lists."""

REPEAT = "rep_"
"""Prefix of an image's name when a list presents the image again."""


def open_source(block: Bold5000Stimuli, folder: Path) -> FileSource:
    """List the images by bold_id, from the index if it exists, else from the presentation lists."""
    root = find_root(block.root, "bold5000", folder)
    presented = next((root / base / PRESENTED for base in BASES if (root / base / PRESENTED).is_dir()), None)
    places = [presented / name for name in FOLDERS if (presented / name).is_dir()] if presented else []
    images = find_images(places)
    columns: dict[str, Column]
    index = find_index(root)
    if index is not None:
        columns = load_index(
            index, "bold5000", number="bold_id", as_written=("image_name", "stim_source"), held=block.held
        )
        return make_source(take_index(index, columns, "bold_id", images, root), columns, root)
    if not images:
        raise RequestError(
            f"there are no images of BOLD5000 under {str(root)!r}: no {BASES[0]}{PRESENTED}/{{{','.join(FOLDERS)}}}",
            hint="set stimuli.root to the root of the data set",
        )
    lists = find_under(root, [base + LISTS for base in BASES], what="the order of BOLD5000's images")
    found = list_first_presentations(lists, images)
    columns = {
        "bold_id": [image.number for image in found],
        "image_name": [image.name for image in found],
        "stim_source": [find_stim_source(image.name) for image in found],
    }
    return make_source(found, columns, root)


def find_stim_source(name: str) -> str:
    """Return the origin of an image by its name, in the words of the data set's index: coco, imagenet or scenes."""
    if name.casefold().startswith("coco_"):
        return "coco"
    return "imagenet" if re.match(r"n\d+_\d+", name, re.IGNORECASE) else "scenes"


def list_first_presentations(lists: Path, images: dict[str, Path]) -> list[Image]:
    """Return every image with the row of its first presentation. Rows count over all lists, by subject and run.

    Names are compared without extension and case. The prefix `rep_` marks an image that was shown before. Raise
    RequestError for an image that is in no list.
    """
    first: dict[str, Image] = {}
    n_presented = 0
    for file in sorted(lists.glob("CSI*/CSI*_sess*/*.txt")):
        for line in _read_lines(file):
            name = line.removeprefix(REPEAT)
            key = fold_label(strip_extension(name))
            path = images.get(key, lists.parent / PRESENTED / name)
            first.setdefault(key, Image(n_presented, path.name, path))
            n_presented += 1
    lost = [path for key, path in images.items() if key not in first]
    if lost:
        raise RequestError(
            f"{len(lost)} images of BOLD5000 are in no presentation list; the first is {lost[0].name!r}",
            hint=f"complete the lists under {str(lists)!r}, or write {INDEX}",
        )
    return list(first.values())


def _read_lines(file: Path) -> list[str]:
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"the presentation list {str(file)!r} cannot be read: {error}") from None
    return [line.strip() for line in lines if line.strip()]
