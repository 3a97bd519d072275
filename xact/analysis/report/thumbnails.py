"""Small pictures of the stimuli: a seeded sample, decoded by Pillow, as palette PNGs."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import xarray as xr

from xact.disk.paths import expand_path
from xact.errors import RequestError
from xact.tables.columns import load_columns
from xact.tables.csv_text import unescape_cell

MOST_PICTURES = 200
SIDE = 56
"""Longer side of a picture in pixels."""

N_COLOURS = 64

CAPTION_COLUMNS = ("caption", "captions", "text")
"""Columns that hold the captions of a table."""


@dataclass(frozen=True)
class Thumbnails:
    """The pictures that could be read."""

    rows: list[int]
    """Stimuli that are shown, in their order."""
    urls: dict[int, str]
    """{stimulus: data URL}."""
    texts: dict[int, str]
    """{stimulus: its caption}, where a table of captions holds it."""
    n_unread: int
    is_asked: bool


def load_thumbnails(stimuli: xr.Dataset, images: str | Path | None, seed: int) -> Thumbnails:
    """Return pictures or captions of at most MOST_PICTURES stimuli. Without a folder (None, `none`) there are none."""
    rows = draw_rows(stimuli.sizes["stimulus"], MOST_PICTURES, seed)
    if images is None or str(images) == "none":
        return Thumbnails(rows.tolist(), {}, {}, 0, is_asked=False)
    urls: dict[int, str] = {}
    texts: dict[int, str] = {}
    tables: dict[Path, list[str]] = {}
    for row, file in zip(rows.tolist(), find_files(stimuli, images, rows), strict=True):
        cell = None if file is None else re.fullmatch(r"(.+\.(?:csv|tsv|parquet|pq))\[(\d+)\]", file.name)
        if file is not None and cell is not None:
            text = read_text(file.with_name(cell[1]), int(cell[2]), tables)
            texts |= {} if text is None else {row: text}
        elif file is not None and (picture := read_picture(file)) is not None:
            urls[row] = picture
    return Thumbnails(rows.tolist(), urls, texts, len(rows) - len(urls) - len(texts), is_asked=True)


def read_text(file: Path, number: int, tables: dict[Path, list[str]]) -> str | None:
    """Return the caption in a row of a table, None if there is none. `tables` keeps the captions of each table."""
    if file not in tables:
        columns = load_columns(file, as_written=CAPTION_COLUMNS) if file.is_file() else {}
        name = next((name for name in CAPTION_COLUMNS if name in columns), None)
        tables[file] = [] if name is None else [unescape_cell(str(cell)) for cell in columns[name]]
    return tables[file][number] if number < len(tables[file]) else None


def draw_rows(n: int, most: int, seed: int) -> np.ndarray:
    """Return the rows of `n` stimuli that are shown: all, or a sample of `most` in their order."""
    return np.arange(n) if n <= most else np.sort(np.random.default_rng(seed).choice(n, most, replace=False))


def find_files(stimuli: xr.Dataset, images: str | Path | None, rows: np.ndarray) -> list[Path | None]:
    """Return the file of each stimulus below a folder; None for a name that would lie outside it."""
    folder = expand_path("" if images is None else images)
    if not folder.is_dir():
        raise RequestError(f"images: there is no folder {str(folder)!r}", hint="--images ROOT, or --images none")
    if "file" not in stimuli:
        raise RequestError("the stimuli have no label `file`: their pictures are not found", hint="--images none")
    names = [PurePath(str(name)) for name in stimuli["file"].values[rows]]
    return [None if name.is_absolute() or ".." in name.parts else folder / name for name in names]


def read_picture(file: Path) -> str | None:
    """Return a picture as a data URL; None if there is none that Pillow reads."""
    from PIL import Image

    try:
        with Image.open(file) as opened:
            picture = opened.convert("RGBA")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    return shrink(Image.alpha_composite(Image.new("RGBA", picture.size, "black"), picture).convert("RGB"))


def shrink(picture: Any) -> str:  # noqa: ANN401  an image of Pillow
    """Return a small copy of an RGB image as a data URL."""
    from PIL import Image

    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return encode_png(picture.quantize(N_COLOURS, dither=Image.Dither.NONE))


def encode_png(image: object) -> str:
    """Return an image of Pillow as a data URL."""
    stream = io.BytesIO()
    image.save(stream, "PNG", optimize=True)  # type: ignore[attr-defined]  # an image
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
