"""Render the objects of the quick start: three objects, eight orientations, alone and among leaves.

    python recipes/render_objects.py [FOLDER]

Writes `plain/OBJECT_DEGREES.png` and `leaves/OBJECT_DEGREES.png` (RGBA, alpha 0 outside) under FOLDER, default the
folder `objects` beside this file. Degrees turn counter-clockwise from upright. The same files come out every time.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

SIDE = 144
"""Pixels of a picture's side."""

SAMPLES = 4
"""Samples along each side of a pixel: what makes the edges smooth."""

ORIENTATIONS = tuple(range(0, 360, 45))
"""Degrees, counter-clockwise."""

N_BEHIND, N_IN_FRONT = 26, 5
"""Leaves behind the object and in front of it."""

GREENS = ((88, 132, 46), (120, 160, 60), (60, 104, 40), (160, 150, 50), (150, 96, 40))
"""Colours of leaves."""

Point = tuple[float, float]
Color = tuple[int, int, int]
Plane = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Shape = Callable[[Plane, Plane], Mask]
"""(x, y) of samples -> which of them lie inside; x to the right, y up, the picture is [-1, 1] both ways."""

Part = tuple[Color | Literal["hole"], Shape]


def make_ellipse(center: Point, radii: Point) -> Shape:
    """Return an ellipse with axes along x and y."""
    return lambda x, y: ((x - center[0]) / radii[0]) ** 2 + ((y - center[1]) / radii[1]) ** 2 <= 1


def make_polygon(*corners: Point) -> Shape:
    """Return a polygon, inside by the even-odd rule."""

    def contains(x: Plane, y: Plane) -> Mask:
        inside = np.zeros(x.shape, dtype=bool)
        for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
            if y0 != y1:
                inside ^= ((y0 > y) != (y1 > y)) & (x < (x1 - x0) * (y - y0) / (y1 - y0) + x0)
        return inside

    return contains


def make_box(left: float, bottom: float, right: float, top: float) -> Shape:
    """Return an upright rectangle."""
    return make_polygon((left, bottom), (right, bottom), (right, top), (left, top))


def make_leaf(center: Point, length: float, degrees: float) -> Shape:
    """Return a pointed leaf: what two discs have in common."""
    turn = np.deg2rad(degrees)
    radius, shift = 0.65 * length, 0.42 * length

    def contains(x: Plane, y: Plane) -> Mask:
        across = (y - center[1]) * np.cos(turn) - (x - center[0]) * np.sin(turn)
        along = (x - center[0]) * np.cos(turn) + (y - center[1]) * np.sin(turn)
        return along**2 + (np.abs(across) + shift) ** 2 <= radius**2

    return contains


OBJECTS: Mapping[str, Sequence[Part]] = {
    "mug": (
        ((176, 40, 34), make_ellipse((0.42, -0.05), (0.32, 0.34))),
        ("hole", make_ellipse((0.44, -0.05), (0.19, 0.21))),
        ((214, 58, 44), make_box(-0.5, -0.58, 0.38, 0.45)),
        ((214, 58, 44), make_ellipse((-0.06, -0.58), (0.44, 0.13))),
        ((244, 196, 66), make_box(-0.5, -0.28, 0.38, -0.02)),
        ((236, 120, 96), make_ellipse((-0.06, 0.45), (0.44, 0.16))),
        ((84, 44, 26), make_ellipse((-0.06, 0.45), (0.36, 0.11))),
    ),
    "fish": (
        ((236, 120, 30), make_polygon((-0.38, 0.0), (-0.82, 0.38), (-0.7, 0.0), (-0.82, -0.38))),
        ((236, 120, 30), make_polygon((-0.3, 0.24), (0.02, 0.62), (0.3, 0.24))),
        ((40, 130, 200), make_ellipse((0.12, 0.0), (0.62, 0.36))),
        ((150, 210, 236), make_ellipse((0.14, -0.16), (0.48, 0.17))),
        ((20, 74, 150), make_polygon((-0.22, 0.29), (-0.12, 0.32), (-0.12, -0.32), (-0.22, -0.29))),
        ((236, 120, 30), make_polygon((0.16, -0.04), (-0.12, -0.14), (-0.08, 0.12))),
        ((250, 240, 200), make_ellipse((0.48, 0.09), (0.1, 0.1))),
        ((24, 24, 60), make_ellipse((0.5, 0.09), (0.05, 0.05))),
    ),
    "hammer": (
        ((172, 108, 44), make_box(-0.09, -0.82, 0.09, 0.5)),
        ((206, 42, 62), make_box(-0.12, -0.82, 0.12, -0.3)),
        ((60, 84, 140), make_box(-0.16, 0.34, 0.4, 0.66)),
        ((96, 130, 190), make_box(0.36, 0.28, 0.52, 0.72)),
        ((60, 84, 140), make_polygon((-0.16, 0.34), (-0.16, 0.66), (-0.62, 0.44), (-0.6, 0.36))),
    ),
}
"""Each object upright, as parts from back to front; a hole takes away what lies behind it."""


@dataclass
class Canvas:
    """Samples of a picture: colour, and whether anything is there."""

    color: npt.NDArray[np.uint8]
    filled: Mask

    @classmethod
    def make_empty(cls) -> Canvas:
        """Return a canvas with nothing on it."""
        n = SIDE * SAMPLES
        return cls(np.zeros((n, n, 3), dtype=np.uint8), np.zeros((n, n), dtype=bool))

    def draw(self, parts: Sequence[Part], degrees: float = 0.0) -> None:
        """Draw parts over what is there, turned counter-clockwise about the middle."""
        ticks = (np.arange(SIDE * SAMPLES) + 0.5) * 2 / (SIDE * SAMPLES) - 1
        x, y = np.meshgrid(ticks, -ticks)
        turn = np.deg2rad(degrees)
        x, y = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
        color, filled = np.zeros_like(self.color), np.zeros_like(self.filled)
        for paint, contains in parts:
            inside = contains(x, y)
            filled[inside] = paint != "hole"
            if paint != "hole":
                color[inside] = paint
        self.color[filled] = color[filled]
        self.filled |= filled

    def make_picture(self) -> Image.Image:
        """Return the RGBA picture: alpha is the part of a pixel that is filled, colour the mean of that part."""
        blocks = (SIDE, SAMPLES, SIDE, SAMPLES)
        n_filled = self.filled.reshape(blocks).sum(axis=(1, 3))
        total = (self.color * self.filled[..., None]).reshape(*blocks, 3).sum(axis=(1, 3), dtype=np.int64)
        rgb = (total + n_filled[..., None] // 2) // np.maximum(1, n_filled)[..., None]
        alpha = (n_filled * 255 + SAMPLES**2 // 2) // SAMPLES**2
        return Image.fromarray(np.concatenate([rgb, alpha[..., None]], axis=2).astype(np.uint8))


def make_leaves(generator: np.random.Generator, n_leaves: int) -> list[Part]:
    """Return leaves of random place, size, turn and colour."""
    leaves: list[Part] = []
    for _ in range(n_leaves):
        angle, distance = generator.uniform(0, 2 * np.pi), 0.78 * np.sqrt(generator.uniform(0, 1))
        center = (float(distance * np.cos(angle)), float(distance * np.sin(angle)))
        green = GREENS[int(generator.integers(len(GREENS)))]
        leaves.append((green, make_leaf(center, float(generator.uniform(0.3, 0.46)), float(generator.uniform(0, 360)))))
    return leaves


def render(name: str, degrees: int, *, with_leaves: bool) -> Image.Image:
    """Return one picture; the leaves differ from one object and orientation to the next."""
    generator = np.random.Generator(np.random.PCG64([list(OBJECTS).index(name), degrees]))
    canvas = Canvas.make_empty()
    if with_leaves:
        canvas.draw(make_leaves(generator, N_BEHIND))
    canvas.draw(OBJECTS[name], degrees)
    if with_leaves:
        canvas.draw(make_leaves(generator, N_IN_FRONT))
    return canvas.make_picture()


def main(folder: Path) -> None:
    """Write every picture under `folder`."""
    for condition in ("plain", "leaves"):
        (folder / condition).mkdir(parents=True, exist_ok=True)
        for name in OBJECTS:
            for degrees in ORIENTATIONS:
                picture = render(name, degrees, with_leaves=condition == "leaves")
                picture.save(folder / condition / f"{name}_{degrees:03d}.png", optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "objects")
