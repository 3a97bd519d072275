"""A map: stimuli as points whose distances are near to their dissimilarities (classical MDS)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from xact.analysis.figures.style import COLOUR_MAP, COLOURS, hold_axes, load_matplotlib, read_label, shorten, take_one
from xact.analysis.layer_rdms import check_dims
from xact.analysis.mds import embed
from xact.errors import RequestError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PICTURE_MM = 5.0
"""Side of a picture."""


def map(
    rdms: xr.DataArray,
    *,
    ax: Axes | None = None,
    size: tuple[float, float] = (85, 85),
    colours: str | None = "condition",
    names: str | None = None,
    pictures: Sequence[np.ndarray] | None = None,
    squared: bool = True,
) -> Axes:
    """Draw the stimuli of one RDM as points in two dimensions, by classical multidimensional scaling.

    The points are the first two eigenvectors of -J D J / 2, J = I - 1/n, by the square roots of their eigenvalues
    (Torgerson 1952). Below the map stands the share that two dimensions keep: the two eigenvalues by the sum of all
    without their sign (Mardia, Kent and Bibby 1979, 14.4.7). Of a correlation RDM this is the map of a principal
    component analysis of the z-scored patterns.

    Parameters
    ----------
    rdms : xarray.DataArray
        Dissimilarities (stimulus, stimulus_). Dimensions of length 1 are dropped. A stimulus whose dissimilarities are
        all NaN (a constant pattern) is left out, which is told below the map.
    ax : matplotlib.axes.Axes, optional
        Where it is drawn. Default: a new figure.
    size : (float, float), optional
        Width and height of a new figure in millimetres.
    colours : str or None, optional
        Label of the stimuli that colours the points: up to 8 texts with a legend, numbers with a colour bar. Default
        `condition`, if there is one.
    names : str, optional
        Label of the stimuli that is written beside the points.
    pictures : sequence of numpy.ndarray, optional
        One picture (height, width, 3) for each stimulus, drawn in place of its point.
    squared : bool, optional
        If True, the dissimilarities are squared distances, as all of `xact.rdm` are: 1 - r is the squared distance
        of z-scored patterns by twice the number of units. Give False for distances, as judged ones.

    Returns
    -------
    matplotlib.axes.Axes
        The axes, with one scale on x and y.

    Raises
    ------
    RequestError
        If there are several RDMs, fewer than 3 stimuli, some pairs without a dissimilarity, more than 8 texts to
        colour, another number of pictures than of stimuli, or no matplotlib.

    Examples
    --------
    >>> rdms = xact.rdm("quickstart.zarr", layers="features.8")
    >>> ax = xact.plot.map(rdms.sel(model="MobileNetV2"), names="stem")
    """
    one = take_one(rdms, ("stimulus", "stimulus_"), what="map")
    check_dims(one)
    found = embed(one.values, squared=squared)
    kept = one.isel(stimulus=found.kept)
    groups = read_label(kept, colours, "stimulus", default="condition")
    texts = read_label(kept, names, "stimulus")
    shown = None if pictures is None else read_pictures(pictures, found.kept)
    with hold_axes(ax, size) as axes:
        draw_points(axes, found.points, groups, colours, is_visible=shown is None)
        if shown is not None:
            draw_pictures(axes, found.points, shown)
        for point, text in zip(found.points, [] if texts is None else texts, strict=texts is not None):
            axes.annotate(
                shorten(text),
                tuple(point),
                (3, 0),
                textcoords="offset points",
                va="center",
                size="xx-small",
                parse_math=False,
            )
        axes.set_aspect("equal", adjustable="datalim")
        axes.spines[:].set_visible(False)
        axes.set_xticks([])
        axes.set_yticks([])
        n_lost = int((~found.kept).sum())
        lost = f"; {n_lost} constant left out" if n_lost else ""
        axes.set_xlabel(f"two dimensions keep {100 * found.share:.0f} %{lost}")
        axes.margins(0.1)
    return axes


def read_pictures(pictures: Sequence[np.ndarray], kept: np.ndarray) -> list[np.ndarray]:
    """Return the pictures of the stimuli that are kept. Refuse what is no picture for each stimulus."""
    if isinstance(pictures, str | bytes) or not isinstance(pictures, Sequence | np.ndarray):
        raise RequestError(f"pictures: a list of arrays is wanted, found {type(pictures).__name__}")
    if len(pictures) != len(kept):
        raise RequestError(f"{len(pictures)} pictures for {len(kept)} stimuli", hint="give one for each")
    for one in pictures:
        if not isinstance(one, np.ndarray) or one.ndim != 3 or one.shape[2] not in (3, 4):
            raise RequestError(f"pictures: an array (height, width, 3) is wanted, found {type(one).__name__}")
    return [pictures[i] for i in np.flatnonzero(kept).tolist()]


def draw_points(
    axes: Axes, points: np.ndarray, groups: np.ndarray | None, label: str | None, *, is_visible: bool
) -> None:
    """Draw the points, in the colours of their groups."""
    marker: dict[str, Any] = {"s": 14 if is_visible else 0, "linewidths": 0}
    if groups is None:
        axes.scatter(*points.T, color=COLOURS[0], **marker)
    elif groups.dtype.kind in "fiu":
        drawn = axes.scatter(
            points[:, 0], points[:, 1], c=groups.astype(np.float64), cmap=COLOUR_MAP, plotnonfinite=True, **marker
        )
        axes.figure.colorbar(drawn, ax=axes, shrink=0.6, aspect=25).ax.set_ylabel(shorten(label), parse_math=False)
    else:
        draw_groups(axes, points, groups, label, marker)


def draw_groups(axes: Axes, points: np.ndarray, groups: np.ndarray, label: str | None, marker: dict[str, Any]) -> None:
    """Draw points in one colour for each text, with a legend."""
    texts = np.array([str(group) for group in groups], dtype=object)
    several = list(dict.fromkeys(texts))
    if len(several) > len(COLOURS):
        raise RequestError(
            f"colours: {label!r} has {len(several)} values, and {len(COLOURS)} colours are told apart",
            hint="colours=None, or another label",
        )
    for text, colour in zip(several, COLOURS, strict=False):
        axes.scatter(*points[texts == text].T, color=colour, **marker)
    line = load_matplotlib("matplotlib.lines").Line2D
    keys = [line([], [], color=colour, marker="o", ls="", ms=3.5) for _, colour in zip(several, COLOURS, strict=False)]
    write_legend(axes, keys, several)


def write_legend(axes: Axes, keys: Sequence[Any], names: Sequence[object]) -> None:
    """Write a legend beside the axes; names are no formulas."""
    legend = axes.legend(keys, [""] * len(names), frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_parse_math(False)
        text.set_text(shorten(name))


def draw_pictures(axes: Axes, points: np.ndarray, pictures: Sequence[np.ndarray]) -> None:
    """Draw one picture at each point, PICTURE_MM high or wide."""
    boxes = load_matplotlib("matplotlib.offsetbox")
    for point, picture in zip(points, pictures, strict=True):
        zoom = PICTURE_MM / 25.4 * 72 / max(picture.shape[:2])
        image = boxes.OffsetImage(picture, zoom=zoom)
        axes.add_artist(boxes.AnnotationBbox(image, tuple(point), frameon=False, pad=0))
