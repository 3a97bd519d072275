"""Small real image files for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def write_pictures(folder: Path, n: int, *, seed: int = 0, size: tuple[int, int] = (96, 80), mode: str = "RGB") -> None:
    """Write n smooth random PNG files `p00.png`, `p01.png`, … of (width, height) pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for i in range(n):
        small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        small.resize(size, Image.Resampling.BICUBIC).convert(mode).save(folder / f"p{i:02d}.png")


def write_recipe(folder: Path, text: str) -> Path:
    """Write a recipe into `folder` and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "recipe.yml"
    file.write_text(text)
    return file
