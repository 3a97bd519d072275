"""Figures of a report as data URLs: SVG of matplotlib, matrices as palette PNGs."""

from __future__ import annotations

import base64
import importlib
import io
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from xact.analysis.figures.map import map as draw_map
from xact.analysis.figures.profile import profile
from xact.analysis.figures.style import COLOUR_MAP, COLOURS, GREY, MM_PER_INCH, SETTINGS, load_matplotlib, shorten
from xact.analysis.report.thumbnails import encode_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from xact.analysis.report.gather import Gathered

N_LEVELS = 255
"""Levels of a matrix in 8 bits; one more is NaN."""


SCREEN = {"font.size": 9, "axes.labelsize": 9, "xtick.labelsize": 8, "ytick.labelsize": 8, "legend.fontsize": 8}
"""Sizes of text on a page."""


def draw_svg(draw: Callable[[Axes], object], size: tuple[float, float]) -> str:
    """Return what `draw` draws on new axes of (width, height) millimetres as a data URL."""
    paper = importlib.import_module("xact.analysis.figures.paper").PaperFigure
    with load_matplotlib("matplotlib").rc_context(SETTINGS | SCREEN), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the browser has another font
        figure = paper(figsize=(size[0] / MM_PER_INCH, size[1] / MM_PER_INCH), layout="constrained")
        draw(figure.add_subplot())
        stream = io.BytesIO()
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    return "data:image/svg+xml;base64," + base64.b64encode(stream.getvalue()).decode()


def quantise(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return values in 8 bits, 0 to 254 from `low` to `high`; NaN is 255."""
    scaled = (values - low) / (high - low if high > low else 1) * (N_LEVELS - 1)
    return np.where(np.isfinite(scaled), np.clip(np.round(np.nan_to_num(scaled)), 0, 254), 255).astype(np.uint8)


def draw_matrix(levels: np.ndarray) -> str:
    """Return a matrix of levels as a data URL of a palette PNG."""
    from PIL import Image, ImageColor

    colours = load_matplotlib("matplotlib").colormaps[COLOUR_MAP](np.linspace(0, 1, N_LEVELS))[:, :3]
    palette = [*np.round(colours * 255).astype(int).ravel().tolist(), *ImageColor.getrgb(GREY)]
    image = Image.fromarray(levels)
    image.putpalette(palette)
    return encode_png(image)


def draw_quality(found: Gathered, name: str, label: str) -> str:
    """Return one number of all layers against their position, a line for each model."""
    models = list(dict.fromkeys(one.model for one in found.layers))

    def draw(axes: Any) -> None:  # noqa: ANN401  axes
        for k, model in enumerate(models):
            own = sorted((one for one in found.layers if one.model == model), key=lambda one: one.position)
            style = ("-", "--", ":", "-.")[k // len(COLOURS) % 4]
            values = [getattr(one, name) for one in own]
            axes.plot([one.position for one in own], values, style, color=COLOURS[k % len(COLOURS)], marker="o", ms=2)
        axes.set_xlabel("position among the layers")
        axes.set_ylabel(label)

    return draw_svg(draw, (75, 58))


def draw_profiles(scores: xr.Dataset, *, by_model: bool) -> list[tuple[str, str]]:
    """Return (name, data URL) of a profile for each model, or for each reference."""
    dim = "model" if by_model else "reference"
    found = []
    for k, name in enumerate(scores[dim].values.astype(str)):
        one = scores.isel({dim: [k]})

        def draw(axes: Any, one: xr.Dataset = one) -> None:  # noqa: ANN401  axes
            profile(one, ax=axes)

        found.append((shorten(name), draw_svg(draw, (95, 65) if by_model else (150, 80))))
    return found


def draw_maps(found: Gathered, maps: list[xr.DataArray]) -> list[tuple[str, str]]:
    """Return (name, data URL) of the map of each RDM, with pictures if all could be read."""
    drawn = []
    for one in maps:
        arrays = [found.thumbnails.arrays.get(row) for row in found.thumbnails.rows]
        pictures = None if any(array is None for array in arrays) else arrays
        known = {str(value) for value in one["condition"].values} if "condition" in one.coords else set()
        colours = "condition" if known and len(known) <= len(COLOURS) and pictures is None else None

        def draw(axes: Any, one: xr.DataArray = one, pictures: Any = pictures, colours: Any = colours) -> None:  # noqa: ANN401
            draw_map(one, ax=axes, colours=colours, pictures=pictures)

        drawn.append((f"{shorten(one['model'].item())} · {shorten(one['layer'].item())}", draw_svg(draw, (95, 95))))
    return drawn
