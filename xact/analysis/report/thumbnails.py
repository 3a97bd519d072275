"""Small pictures of the stimuli: a seeded sample, decoded by Pillow, as palette PNGs."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import xarray as xr

from xact.disk.paths import expand_path
from xact.errors import RequestError

MOST_PICTURES = 200
SIDE = 56
"""Longer side of a picture in pixels."""

N_COLOURS = 64


@dataclass(frozen=True)
class Thumbnails:
    """The pictures that could be read."""

    rows: list[int]
    """Stimuli that are shown, in their order."""
    urls: dict[int, str]
    """{stimulus: data URL}."""
    n_unread: int
    is_asked: bool


def load_thumbnails(stimuli: xr.Dataset, images: str | Path | None, seed: int) -> Thumbnails:
    """Return pictures of at most MOST_PICTURES stimuli. Without a folder (None, `none`) there are none."""
    rows = draw_rows(stimuli.sizes["stimulus"], MOST_PICTURES, seed)
    is_asked = images is not None and str(images) != "none"
    urls = {}
    for row, file in zip(rows.tolist(), find_files(stimuli, images, rows) if is_asked else (), strict=is_asked):
        picture = None if file is None else read_picture(file)
        if picture is not None:
            urls[row] = picture
    return Thumbnails(rows.tolist(), urls, len(rows) - len(urls) if is_asked else 0, is_asked)


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
