"""An RDM as a picture: its values, and bands of a label along its rows and columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from xact.analysis.figures.style import (
    COLOUR_MAP,
    COLOURS,
    GREY,
    hold_axes,
    load_matplotlib,
    read_label,
    read_pair,
    shorten,
    take_one,
)
from xact.errors import RequestError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_CELLS = 512
"""Rows and columns of the picture at most: larger RDMs are averaged over blocks."""

BAND = 0.03
"""Width of a band, as a part of the side of the picture."""

LEAST_NAMED = 0.08
"""A run of stimuli is named beside its band if it is at least this part of all stimuli."""

MANY = ("#555555", "#AAAAAA")
"""The colours of neighbours where more values have bands than there are colours."""

SIGNS = {"correlation": "1 − r", "cosine": "1 − cosine", "euclidean": "squared distance / units"}


def rdm(
    rdms: xr.DataArray,
    *,
    ax: Axes | None = None,
    size: tuple[float, float] = (85, 75),
    bands: str | None = "condition",
    limits: tuple[float, float] | None = None,
    colorbar: bool = True,
) -> Axes:
    """Draw one RDM, or a block of one between two sets of stimuli.

    Parameters
    ----------
    rdms : xarray.DataArray
        Dissimilarities (stimulus, stimulus_), with labels on both as `xact.rdm` gives them. Dimensions of length 1
        are dropped. NaN (a constant pattern, a row that a model lacks) is grey. The order of the stimuli is kept;
        more than 512 are averaged over blocks of equal length, NaN left out.
    ax : matplotlib.axes.Axes, optional
        Where it is drawn. Default: a new figure.
    size : (float, float), optional
        Width and height of a new figure in millimetres.
    bands : str or None, optional
        Label of the stimuli that is shown as bands along rows and columns. Default `condition`, if there is one. Up to
        8 values have a colour each; of more, neighbours alternate between two greys.
    limits : (float, float), optional
        Dissimilarities of the darkest and of the brightest colour. Default: the smallest and the largest that is
        finite, without the diagonal of an RDM. Values beyond have the colour of the limit.
    colorbar : bool, optional
        If False, no colour bar is drawn.

    Returns
    -------
    matplotlib.axes.Axes
        The axes; x is the number of the column, y the number of the row from the top.

    Raises
    ------
    RequestError
        If there are several RDMs, a label or matplotlib is missing, or the limits are no two rising numbers.

    Examples
    --------
    >>> rdms = xact.rdm("quickstart.zarr", layers="features.8")
    >>> ax = xact.plot.rdm(rdms.sel(model="MobileNetV2"))
    >>> ax.figure.savefig("rdm.pdf")
    """
    one = take_one(rdms, ("stimulus", "stimulus_"), what="RDM")
    values = np.asarray(one.values, dtype=np.float64)
    if not values.size:
        raise RequestError(f"RDM: {values.shape[0]} by {values.shape[1]} stimuli: there is nothing to draw")
    low, high = find_limits(values, limits)
    rows = read_label(one, bands, "stimulus", default="condition")
    columns = read_label(one, bands and f"{bands}_", "stimulus_", default="condition_")
    with hold_axes(ax, size) as axes:
        n_rows, n_columns = values.shape
        cells = average_blocks(values, MOST_CELLS)
        cmap = load_matplotlib("matplotlib").colormaps[COLOUR_MAP].with_extremes(bad=GREY)
        extent = (-0.5, n_columns - 0.5, n_rows - 0.5, -0.5)
        image = axes.imshow(cells, cmap=cmap, vmin=low, vmax=high, extent=extent, interpolation="none")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
        draw_bands(axes, rows, columns)
        if colorbar:
            bar = axes.figure.colorbar(image, ax=axes, shrink=0.6, aspect=25)
            method = str(one.attrs.get("method", ""))
            bar.set_label(SIGNS.get(method, shorten(method) or "dissimilarity"))
            bar.outline.set_visible(False)
    return axes


def find_limits(values: np.ndarray, limits: tuple[float, float] | None) -> tuple[float, float]:
    """Return the dissimilarities between which the colours lie."""
    if limits is not None:
        low, high = read_pair(limits, "limits", hint="limits=(0, 1)")
        if low >= high:
            raise RequestError(f"limits: two rising numbers are wanted, found {limits!r:.40}", hint="limits=(0, 1)")
        return low, high
    is_shown = np.isfinite(values)
    if values.shape[0] == values.shape[1] and not np.nan_to_num(np.diagonal(values)).any():
        is_shown &= ~np.eye(len(values), dtype=bool)
    if not is_shown.any():
        return 0.0, 1.0
    shown = values[is_shown]
    return float(shown.min()), float(shown.max())


def average_blocks(values: np.ndarray, most: int) -> np.ndarray:
    """Return a matrix of at most `most` rows and columns: means over blocks, NaN where all of a block is NaN."""
    if max(values.shape) <= most:
        return values
    is_there = np.isfinite(values)
    sums, counts = np.where(is_there, values, 0), is_there.astype(np.float64)
    for axis in (0, 1):
        starts = np.unique(np.linspace(0, values.shape[axis], most, endpoint=False).astype(np.intp))
        if len(starts) < values.shape[axis]:
            sums, counts = np.add.reduceat(sums, starts, axis), np.add.reduceat(counts, starts, axis)
    return np.asarray(np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0))


@dataclass(frozen=True)
class LabelRun:
    """Stimuli beside each other that have the same label."""

    name: str
    start: int
    stop: int


def find_runs(labels: np.ndarray) -> list[LabelRun]:
    """Return the runs of equal labels, in their order."""
    texts = [str(label) for label in labels]
    starts = [i for i, text in enumerate(texts) if i == 0 or text != texts[i - 1]]
    return [LabelRun(texts[start], start, stop) for start, stop in zip(starts, [*starts[1:], len(texts)], strict=True)]


def draw_bands(axes: Axes, rows: np.ndarray | None, columns: np.ndarray | None) -> None:
    """Draw bands left of the rows and above the columns, with names where they have room."""
    sides = [[] if labels is None else find_runs(labels) for labels in (rows, columns)]
    names = list(dict.fromkeys(run.name for runs in sides for run in runs))
    for runs, is_row in zip(sides, (True, False), strict=True):
        for k, run in enumerate(runs):
            colour = COLOURS[names.index(run.name)] if len(names) <= len(COLOURS) else MANY[k % 2]
            draw_band(axes, run, colour, n=runs[-1].stop, is_row=is_row)


def draw_band(axes: Axes, run: LabelRun, colour: str, *, n: int, is_row: bool) -> None:
    """Draw the band of one run of the `n` rows or columns."""
    patches = load_matplotlib("matplotlib.patches")
    length = run.stop - run.start
    start, middle = run.start - 0.5, run.start - 0.5 + length / 2
    transform = axes.get_yaxis_transform() if is_row else axes.get_xaxis_transform()
    at, sides = ((-1.5 * BAND, start), (BAND, length)) if is_row else ((start, 1 + 0.5 * BAND), (length, BAND))
    axes.add_patch(patches.Rectangle(at, *sides, transform=transform, color=colour, lw=0, clip_on=False))
    if length < LEAST_NAMED * n:
        return
    shared: dict[str, Any] = {"transform": transform, "parse_math": False}
    if is_row:
        axes.text(-2 * BAND, middle, shorten(run.name), ha="right", va="center", **shared)
    else:
        turned = 0 if length >= 4 * LEAST_NAMED * n else 90
        axes.text(middle, 1 + 2 * BAND, shorten(run.name), ha="center", va="bottom", rotation=turned, **shared)
