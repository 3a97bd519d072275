"""Figures of a report: SVG of matplotlib as elements of the page, matrices as palette PNGs."""

from __future__ import annotations

import html
import importlib
import io
import re
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from xact.analysis.figures.map import map as draw_map
from xact.analysis.figures.profile import CEILING, profile
from xact.analysis.figures.style import COLOUR_MAP, COLOURS, GREY, MM_PER_INCH, SETTINGS, load_matplotlib, shorten
from xact.analysis.mds import embed
from xact.analysis.report.thumbnails import encode_png
from xact.errors import escape_controls

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from xact.analysis.report.gather import Gathered

N_LEVELS = 255
"""Levels of a matrix in 8 bits; one more is NaN."""

POINTS_PER_INCH = 72
PICTURE_SIDE = 18
"""Side of a picture in a map, in points."""

SCREEN = {
    "font.size": 9,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}
"""Sizes of text on a page, which is the ground of its figures."""

THEME = {"#000000": "currentColor", "#0072b2": "var(--blue)", CEILING.lower(): "var(--ceiling)"}
"""{colour of a figure: the page's own, which is another one on a dark page}."""

NO_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))


def draw_svg(draw: Callable[[Axes], object], size: tuple[float, float]) -> str:
    """Return what `draw` draws on new axes of (width, height) millimetres as an SVG element.

    What `draw` returns, if it is a function, is called with the finished figure and gives more SVG to put on top.
    """
    paper = importlib.import_module("xact.analysis.figures.paper").PaperFigure
    with load_matplotlib("matplotlib").rc_context(SETTINGS | SCREEN), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the browser has another font
        figure = paper(figsize=(size[0] / MM_PER_INCH, size[1] / MM_PER_INCH), layout="constrained")
        more = draw(figure.add_subplot())
        for artist in figure.findobj():
            artist.set_clip_on(False)  # the limits hold all; an element of a page shares the names of its clips
        stream = io.BytesIO()
        figure.savefig(stream, format="svg", metadata=NO_METADATA)
        added = more() if callable(more) else ""
    return fit_to_page(stream.getvalue().decode()).replace("</svg>", f"{added}</svg>")


def fit_to_page(svg: str) -> str:
    """Return an SVG file as an element of a page: in the colours of the page, without names of its parts."""
    element = svg[svg.index("<svg") :].strip()
    return re.sub(r"<[^<>]*>", _fit_tag, element)


def _fit_tag(tag: re.Match[str]) -> str:
    fitted = re.sub(r' id="\w[\w.]*_\d{1,5}"', "", tag[0])  # matplotlib's names of texts, axes, lines
    for colour, of_page in THEME.items():
        fitted = fitted.replace(colour, of_page)
    return fitted


def quantise(values: np.ndarray, low: float, high: float, n_levels: int = N_LEVELS) -> np.ndarray:
    """Return values in 8 bits, 0 to n_levels - 1 from `low` to `high`; NaN is n_levels."""
    scaled = (values - low) / (high - low if high > low else 1) * (n_levels - 1)
    clipped = np.clip(np.round(np.nan_to_num(scaled)), 0, n_levels - 1)
    return np.where(np.isfinite(scaled), clipped, n_levels).astype(np.uint8)


def draw_matrix(levels: np.ndarray, n_levels: int = N_LEVELS) -> str:
    """Return a matrix of levels as a data URL of a palette PNG, whose pixels are the levels: the script reads them."""
    from PIL import Image, ImageColor

    colours = load_matplotlib("matplotlib").colormaps[COLOUR_MAP](np.linspace(0, 1, n_levels))[:, :3]
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

    return draw_svg(draw, (88, 64))


def draw_profiles(scores: xr.Dataset, *, by_model: bool) -> list[tuple[str, str]]:
    """Return (name, SVG) of a profile for each model, or for each reference, all with the same scale."""
    dim = "model" if by_model else "reference"
    bounds = np.concatenate([scores[name].values.ravel() for name in ("score", "low", "high", "ceiling_high")])
    low, high = (float(bound(bounds[np.isfinite(bounds)], initial=0)) for bound in (np.min, np.max))
    margin = 0.05 * ((high - low) or 1)
    found = []
    for k, name in enumerate(scores[dim].values.astype(str)):
        one = scores.isel({dim: [k]})

        def draw(axes: Any, one: xr.Dataset = one) -> None:  # noqa: ANN401  axes
            axes.set_ylim(low - margin, high + margin)
            profile(one, ax=axes)

        found.append((shorten(name), draw_svg(draw, (116, 70) if by_model else (160, 84))))
    return found


def draw_maps(found: Gathered, maps: list[xr.DataArray], colours: dict[str, str]) -> list[tuple[str, str]]:
    """Return (name, SVG) of the map of each RDM: points in the colours of their conditions, pictures over them."""
    drawn = []
    for one in maps:

        def draw(axes: Any, one: xr.DataArray = one) -> Callable[[], str]:  # noqa: ANN401  axes
            draw_map(one, ax=axes, colours=None)
            (points,) = axes.collections
            kept = np.flatnonzero(embed(one.values, squared=True).kept)
            of_point = [COLOURS[0]] * len(kept)
            if colours:
                of_point = [colours[str(value)] for value in one["condition"].values[kept]]
                points.set_color(of_point)
            rows = [found.thumbnails.rows[k] for k in kept]
            shown = [k for k, row in enumerate(rows) if row in found.thumbnails.urls]
            names = found.stimuli["stimulus"].values

            def place() -> str:
                places = find_places(axes, np.asarray(points.get_offsets()))
                return "".join(
                    place_picture(rows[k], str(names[rows[k]]), of_point[k], *places[k].tolist()) for k in shown
                )

            return place

        name = f"{shorten(one['model'].item())} · {shorten(one['layer'].item())}"
        drawn.append((name, draw_svg(draw, (116, 100))))
    return drawn


def find_places(axes: Axes, points: np.ndarray) -> np.ndarray:
    """Return the places (x, y) of points of a finished figure in its SVG, in points from the upper left corner."""
    figure: Any = axes.figure
    parts = figure.transFigure.inverted().transform(axes.transData.transform(points))
    return np.asarray(np.column_stack([parts[:, 0], 1 - parts[:, 1]]) * figure.get_size_inches() * POINTS_PER_INCH)


def place_picture(row: int, name: str, colour: str, x: float, y: float) -> str:
    """Return SVG that shows a picture of the page, in a frame, at a place."""
    left, top, side = x - PICTURE_SIDE / 2, y - PICTURE_SIDE / 2, PICTURE_SIDE + 2
    return (
        f"<g><title>{html.escape(escape_controls(name))}</title>"
        f'<rect x="{left - 1:.1f}" y="{top - 1:.1f}" width="{side}" height="{side}" fill="{colour}"/>'
        f'<use href="#p{row}" transform="translate({left:.1f} {top:.1f}) scale({PICTURE_SIDE})"/></g>'
    )
