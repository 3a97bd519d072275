"""Small trees of the shapes and names that NSD, BOLD5000 and THINGS have on disk."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
from PIL import Image

NSD_HEADER = ["", "cocoId", "cocoSplit", "cropBox", "loss", "nsdId", "flagged", "BOLD5000", "shared1000"]

BOLD_NAMES = {
    "COCO": ["COCO_train2014_000000000036.jpg", "COCO_train2014_000000000510.jpg"],
    "ImageNet": ["n01440764_10110.JPEG", "n01443537_1029.JPEG"],
    "Scene": ["airport1.jpg", "homeoffice12.jpeg", "zengarden3.png"],
}

BOLD_SOURCES = {"COCO": "coco", "ImageNet": "imagenet", "Scene": "scenes"}
"""{folder: `stim_source` in the index of the second study}."""

BOLD_LISTS = {
    "CSI1/CSI1_sess01/CSI01_sess01_run01.txt": ["n01443537_1029.JPEG", "rep_homeoffice12.jpg", "zengarden3.png"],
    "CSI1/CSI1_sess01/CSI01_sess01_run02.txt": ["COCO_train2014_000000000510.jpg", "rep_homeoffice12.jpg"],
    "CSI1/CSI1_sess02/CSI01_sess02_run01.txt": ["N01440764_10110.jpeg", "COCO_train2014_000000000036.jpg"],
    "CSI2/CSI2_sess01/CSI02_sess01_run01.txt": ["zengarden3.png", "airport1.jpg", "rep_homeoffice12.jpg"],
}
"""Names as presented: with `rep_`, and with other extensions and cases than the files."""

BOLD_FIRST = {
    "n01443537_1029": 0,
    "homeoffice12": 1,
    "zengarden3": 2,
    "COCO_train2014_000000000510": 3,
    "n01440764_10110": 5,
    "COCO_train2014_000000000036": 6,
    "airport1": 8,
}
"""{id: row of its first presentation over all lists}, counted by hand."""

THINGS_NAMES = {
    "object_images_A-C/aardvark": ["aardvark_01b.jpg", "aardvark_02s.jpg"],
    "object_images_A-C/bat1": ["bat1_01b.jpg"],
    "object_images_A-C/bat": ["bat_01b.jpg", "bat_02s.jpg"],
    "object_images_D-K/dog": ["dog_01b.jpg"],
    "object_images_T-Z/zebra": ["zebra_01b.jpg"],
}

THINGS_RANKED = "aardvark_01b aardvark_02s bat1_01b bat_01b bat_02s dog_01b zebra_01b".split()
"""Ids by file name: `1` comes before `_`."""


def write_rows(file: Path, rows: Sequence[Sequence[object]]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="", encoding="utf-8") as opened:
        csv.writer(opened).writerows(rows)
    return file


def draw_pixels(n: int, *, side: int, seed: int = 0) -> np.ndarray:
    """Draw n pictures of smooth noise, uint8 (n, side, side, 3)."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (n, 5, 5, 3), dtype=np.uint8)
    return np.stack([np.asarray(Image.fromarray(one).resize((side, side), Image.Resampling.BICUBIC)) for one in coarse])


def make_nsd(root: Path, n: int = 12, *, side: int = 32, is_nested: bool = False, has_captions: bool = False) -> Path:
    """Make a brick of n pictures and its table; `is_nested` is the tree that the data set is published in.

    Subject s saw the images whose nsdId is a multiple of s; every fourth image is shared. COCO's ids fall while the
    nsdIds rise, so that the captions are in the opposite order.
    """
    brick = root / ("nsddata_stimuli/stimuli/nsd" if is_nested else "") / "nsd_stimuli.hdf5"
    brick.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(brick, "w") as file:
        file["imgBrick"] = draw_pixels(n, side=side)
    subjects = [f"subject{s}" for s in range(1, 9)]
    repeats = [f"subject{s}_rep{r}" for s in range(1, 9) for r in range(3)]
    rows: list[list[object]] = [[*NSD_HEADER, *subjects, *repeats]]
    for i in range(n):
        box = "(0, 0, 0.1671875, 0.1671875)"
        saw = [int(i % s == 0) for s in range(1, 9)]
        own = [i, 10_000 - i, "val2017" if i % 2 else "train2017", box, i / 8, i, False, i == 1, i % 4 == 0]
        rows.append([*own, *saw, *(one * (1 + 100 * r + i) for one in saw for r in range(3))])
    write_rows(root / ("nsddata/experiments/nsd" if is_nested else "") / "nsd_stim_info_merged.csv", rows)
    if has_captions:
        captions = [[i, 10_000 - i, "train2017", make_captions(i)] for i in reversed(range(n))]
        write_rows(root / "annotations/coco_captions.csv", [["nsd_id", "coco_id", "cocoSplit", "captions"], *captions])
    return root


def unroll_nsd(root: Path, extension: str = ".jpg", *, keeps_brick: bool = False) -> Path:
    """Write the brick as files and the index `nsd.csv`, as the second study does, in groups of a thousand."""
    with h5py.File(root / "nsd_stimuli.hdf5") as file:
        pixels = file["imgBrick"][:]
    rows: list[list[object]] = [["nsd_id", "name", "path"]]
    for i, picture in enumerate(pixels):
        place = f"images/nsd_{i - i % 1000:05d}_{i - i % 1000 + 999:05d}/nsd_{i:05d}{extension}"
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(root / place)
        rows.append([i, f"nsd_{i:05d}", place])
    write_rows(root / "nsd.csv", rows)
    if not keeps_brick:
        (root / "nsd_stimuli.hdf5").unlink()
    return root


def make_captions(nsd_id: int) -> str:
    """Return the captions of one image, joined as in COCO's file."""
    return ";".join(f"Picture {nsd_id}, said the {word}." for word in ("first", "second", "third"))


def make_bold5000(root: Path, *, has_index: bool = False, side: int = 32) -> Path:
    """Make 7 presented pictures with their lists of presentation, or with the index."""
    base = root / "bold5000_stimuli"
    names = [(folder, name) for folder, files in BOLD_NAMES.items() for name in files]
    pixels = draw_pixels(len(names), side=side, seed=1)
    for (folder, name), picture in zip(names, pixels, strict=True):
        file = base / "Scene_Stimuli/Presented_Stimuli" / folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(file)
    if has_index:
        rows = [
            [BOLD_FIRST[Path(name).stem], name, BOLD_SOURCES[folder], f"/far/away/{folder}/{name}"]
            for folder, name in names
        ]
        write_rows(root / "preprocessed/images.csv", [["bold_id", "image_name", "stim_source", "image_path"], *rows])
        return root
    for name, lines in BOLD_LISTS.items():
        file = base / "Stimuli_Presentation_Lists" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root


def make_things(root: Path, *, has_index: bool = False, is_flat: bool = False, side: int = 32) -> Path:
    """Make 7 pictures of 5 categories; `is_flat` puts all categories into `object_images`."""
    names = [(folder, name) for folder, files in THINGS_NAMES.items() for name in files]
    pixels = draw_pixels(len(names), side=side, seed=2)
    header = ["things_id", "image_name", "category", "category_id", "image_category_index", "image_path"]
    rows: list[list[object]] = []
    for (folder, name), picture in zip(names, pixels, strict=True):
        category = folder.split("/")[1]
        place = f"stimuli/THINGS/Images/{folder}/{name}" if not is_flat else f"object_images/{category}/{name}"
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(root / place)
        rows.append([THINGS_RANKED.index(name[:-4]), name, category, len(category), 1, place])
    if has_index:
        write_rows(root / "preprocessed/images.csv", [header, *rows])
    return root
