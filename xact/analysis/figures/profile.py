"""A profile: the score of each layer against its position, with intervals and the noise ceiling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from xact.analysis.figures.style import COLOURS, hold_axes, load_matplotlib, shorten
from xact.errors import RequestError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STYLES = ("-", "--", ":", "-.")
"""The styles of the lines: each eight lines have the next one."""

LINE_HEIGHT = 1.15
"""Distance of names beneath each other, in heights of the font."""

SAMPLE = 9
"""Length of the piece of a line before its name, in points."""

CEILING = "#DDDDDD"

SIGNS = {"rho-a": "Spearman's ρ-a", "spearman": "Spearman's ρ", "corr": "Pearson's r", "tau-a": "Kendall's τ-a"}


def profile(
    scores: xr.Dataset,
    *,
    ax: Axes | None = None,
    size: tuple[float, float] = (120, 70),
) -> Axes:
    """Draw the score of each layer against its position in the network.

    Parameters
    ----------
    scores : xarray.Dataset
        What `xact.compare` returns for references or labels: `score`, `low` and `high` (model, layer, reference),
        `position` (model, layer), `ceiling_low` and `ceiling_high` (reference). One line a model, or of one model one
        line a reference. NaN (a layer that a model lacks, a layer without a score) is a gap or left out. The band
        around a line is from `low` to `high`, where there was a bootstrap.
    ax : matplotlib.axes.Axes, optional
        Where it is drawn. Default: a new figure.
    size : (float, float), optional
        Width and height of a new figure in millimetres.

    Returns
    -------
    matplotlib.axes.Axes
        x is `position`, the rank of a layer among those of its model, 0 to 1. The grey band is the noise ceiling of
        one reference of several subjects, from `ceiling_low` to `ceiling_high`.

    Raises
    ------
    RequestError
        If there are several models and several references, the scores have no layers in forward order, or matplotlib
        is missing.

    Examples
    --------
    >>> scores = xact.compare("quickstart.zarr", labels=["condition", "stem"], bootstrap="stimuli", samples=200)
    >>> ax = xact.plot.profile(scores.sel(model="MobileNetV2"))
    """
    whole = check_scores(scores)
    lines = list_lines(whole)
    with hold_axes(ax, size) as axes:
        axes.axhline(0, color="#888888", lw=0.6, zorder=0)
        draw_ceiling(axes, whole)
        for k, one in enumerate(lines):
            colour, style = COLOURS[k % len(COLOURS)], STYLES[k // len(COLOURS) % len(STYLES)]
            if np.isfinite(one.low).any():
                axes.fill_between(one.positions, one.low, one.high, color=colour, alpha=0.2, lw=0)
            axes.plot(one.positions, one.scores, style, color=colour, marker="o", ms=2.5)
        axes.set_xlabel("position among the layers")
        method = str(scores.attrs.get("method", "score"))
        references = [shorten(name) for name in whole["reference"].values]
        what = f" with {references[0]}" if len(references) == 1 else ""
        axes.set_ylabel(f"{SIGNS.get(method, method)}{what}", parse_math=False)
        axes.set_xlim(-0.02, 1.02)
        write_names(axes, lines)
    return axes


@dataclass(frozen=True)
class ProfileLine:
    """One line, its layers in forward order."""

    name: str
    positions: np.ndarray
    scores: np.ndarray
    low: np.ndarray
    high: np.ndarray


def check_scores(scores: xr.Dataset) -> xr.Dataset:
    """Return scores with the dimensions model, layer and reference. Refuse others."""
    if not isinstance(scores, xr.Dataset) or "score" not in scores:
        raise RequestError(
            f"profile: the scores of xact.compare are wanted, found {type(scores).__name__}",
            hint="xact.compare(rdms, to=...) or xact.compare(rdms, labels=[...])",
        )
    for dim, what in (("model_", "a grid of layers"), ("chosen_on", "layers chosen on halves")):
        if dim in scores.dims:
            raise RequestError(f"profile: {what} has no profile", hint="compare with references (to) or labels")
    if "position" not in scores.coords or "layer" not in scores["score"].dims:
        raise RequestError("profile: the scores have no `position` of layers", hint="keep all layers, .sel(model=...)")
    for dim in ("model", "reference"):
        if dim not in scores.dims:
            scores = scores.expand_dims(dim) if dim in scores.coords else scores.expand_dims({dim: [dim]})
    if scores.sizes["model"] > 1 and scores.sizes["reference"] > 1:
        raise RequestError(
            f"profile: {scores.sizes['model']} models and {scores.sizes['reference']} references",
            hint="choose one: scores.sel(model=...) or scores.sel(reference=...)",
        )
    return scores


def list_lines(scores: xr.Dataset) -> list[ProfileLine]:
    """Return a line for each model, or of one model for each reference."""
    is_by_model = scores.sizes["model"] > 1 or scores.sizes["reference"] == 1
    dim = "model" if is_by_model else "reference"
    lines = []
    for k, name in enumerate(scores[dim].values.astype(str)):
        one = scores.isel({dim: [k]}).squeeze(["model", "reference"])
        positions = np.asarray(one["position"].values, dtype=np.float64)
        order = np.argsort(positions, kind="stable")[: int(np.isfinite(positions).sum())]
        nothing = np.full(len(positions), np.nan)
        values = [one[key].values if key in one else nothing for key in ("score", "low", "high")]
        lines.append(ProfileLine(name, positions[order], *(one[order] for one in values)))
    return lines


def draw_ceiling(axes: Axes, scores: xr.Dataset) -> None:
    """Draw the noise ceiling of one reference that has several subjects."""
    if scores.sizes["reference"] > 1 or "ceiling_low" not in scores or int(scores["n_subjects"].values.flat[0]) < 2:
        return
    low, high = (float(scores[name].values.flat[0]) for name in ("ceiling_low", "ceiling_high"))
    if np.isfinite([low, high]).all():
        axes.axhspan(low, high, color=CEILING, lw=0, zorder=0)
        axes.text(0, high, f"noise ceiling {low:.2f} to {high:.2f}", va="bottom", ha="left")


def write_names(axes: Axes, lines: list[ProfileLine]) -> None:
    """Write the name of each line at its end, names that would overlap beneath each other."""
    ends = [one.scores[np.isfinite(one.scores)] for one in lines]
    drawn = [k for k, end in enumerate(ends) if len(end)]
    bottom, top = axes.get_ylim()
    axes.set_ylim(bottom, top)
    figure = axes.get_figure(root=True)
    height = 72 * axes.get_position().height * (1 if figure is None else figure.get_figheight())
    size = float(axes.xaxis.label.get_fontsize())
    step = LINE_HEIGHT * size / height
    wanted = np.array([(ends[k][-1] - bottom) / (top - bottom) for k in drawn])
    for k, y in zip(drawn, push_apart(wanted, step), strict=True):
        axes.add_artist(draw_sample(k, y))
        at = load_matplotlib("matplotlib.transforms").offset_copy(axes.transAxes, figure, SAMPLE + 3, 0, units="points")
        axes.text(1.02, y, shorten(lines[k].name), transform=at, va="center", size=size, parse_math=False)


def draw_sample(k: int, y: float) -> Any:  # noqa: ANN401  an artist
    """Return a piece of line `k` that stands before its name: light colours are no colours for text."""
    boxes, line = load_matplotlib("matplotlib.offsetbox"), load_matplotlib("matplotlib.lines").Line2D
    area = boxes.DrawingArea(SAMPLE, 1)
    area.add_artist(line([0, SAMPLE], [0.5, 0.5], color=COLOURS[k % len(COLOURS)], ls=STYLES[k // len(COLOURS) % 4]))
    place = {"xycoords": "axes fraction", "box_alignment": (0, 0.5), "frameon": False, "pad": 0}
    return boxes.AnnotationBbox(area, (1.02, y), **place)


def push_apart(wanted: np.ndarray, step: float) -> np.ndarray:
    """Return places between 0 and 1 near to the wanted ones and a step apart; more than have room reach below 0."""
    order = np.argsort(wanted, kind="stable")
    places = wanted[order].astype(np.float64)
    for k in range(1, len(places)):
        places[k] = max(places[k], places[k - 1] + step)
    if len(places) and places[-1] > 1:
        places[-1] = 1
        for k in range(len(places) - 2, -1, -1):
            places[k] = min(places[k], places[k + 1] - step)
    found = np.empty_like(places)
    found[order] = places
    return found
