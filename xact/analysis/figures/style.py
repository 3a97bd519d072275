"""What all figures share: size, settings, colours, names. matplotlib is loaded when the first figure is drawn."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from xact.errors import RequestError, check_name, escape_controls

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
"""Eight colours that colour-blind readers tell apart (Okabe and Ito 2008)."""

GREY = "#D0D0D0"
"""The colour of NaN."""

COLOUR_MAP = "cividis"

MM_PER_INCH = 25.4
LONGEST_NAME = 28
"""Most characters of a name in a figure: a longer one loses its middle."""

SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text, which journals ask for
    "pdf.fonttype": 42,
    "ps.fonttype": 42,
    "svg.hashsalt": "xact",  # the same figure is the same bytes
    "savefig.dpi": 300,
    "font.size": 7,
    "axes.titlesize": 7,
    "axes.labelsize": 7,
    "xtick.labelsize": 6,
    "ytick.labelsize": 6,
    "legend.fontsize": 6,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.0,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
"""Settings of matplotlib for a figure that is made here."""

INSTALL = 'pip install "xact[report]" (or pip install matplotlib)'


def load_matplotlib(name: str) -> Any:  # noqa: ANN401  a module
    """Return a module of matplotlib, or raise RequestError in one line if it is not installed."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "matplotlib":
            raise
        raise RequestError("xact.plot needs matplotlib, which is not installed", hint=INSTALL) from None


@contextmanager
def hold_axes(ax: Axes | None, size: tuple[float, float]) -> Iterator[Axes]:
    """Hand out the axes that are given, with their settings; or those of a new figure, with SETTINGS."""
    matplotlib = load_matplotlib("matplotlib")
    if ax is not None:
        if not hasattr(ax, "get_xlim"):
            raise RequestError(
                f"ax: axes of matplotlib are wanted, found {type(ax).__name__}", hint="ax=figure.subplots()"
            )
        yield ax
        return
    with matplotlib.rc_context(SETTINGS):
        yield make_figure(size).add_subplot()


def make_figure(size: tuple[float, float]) -> Figure:
    """Return a new figure of (width, height) millimetres, which is saved with SETTINGS."""
    pyplot = load_matplotlib("matplotlib.pyplot")
    width, height = read_pair(size, "size: (width, height) in millimetres", hint="size=(85, 70)")
    if not (10 <= width <= 2000 and 10 <= height <= 2000):
        raise RequestError(f"size: 10 to 2,000 millimetres are wanted, found {size!r:.40}", hint="size=(85, 70)")
    paper = importlib.import_module("xact.analysis.figures.paper").PaperFigure
    inches = (width / MM_PER_INCH, height / MM_PER_INCH)
    figure: Figure = pyplot.figure(figsize=inches, layout="constrained", FigureClass=paper)
    return figure


def read_pair(value: object, what: str, *, hint: str) -> tuple[float, float]:
    """Return two finite numbers. Refuse anything else."""
    several: list[Any] = list(value) if isinstance(value, Sequence | np.ndarray) else []
    if len(several) != 2 or not all(isinstance(one, int | float | np.number) and np.isfinite(one) for one in several):
        raise RequestError(f"{what}: two numbers are wanted, found {value!r:.40}", hint=hint)
    return float(several[0]), float(several[1])


def shorten(name: object) -> str:
    """Return a name as one short line: control characters are escaped, a long middle is left out."""
    text = escape_controls(str(name))
    if len(text) <= LONGEST_NAME:
        return text
    half = (LONGEST_NAME - 1) // 2
    return f"{text[: LONGEST_NAME - 1 - half]}…{text[-half:]}"


def take_one(array: xr.DataArray, dims: Sequence[str], *, what: str) -> xr.DataArray:
    """Return an array with just these dimensions, in their order: others of length 1 are dropped."""
    if not isinstance(array, xr.DataArray):
        raise RequestError(f"{what}: an xarray.DataArray is wanted, found {type(array).__name__}")
    lacking = [dim for dim in dims if dim not in array.dims]
    if lacking:
        found = ", ".join(map(str, array.dims))
        raise RequestError(f"{what}: the dimension {lacking[0]!r} is missing in ({found})")
    several = [str(dim) for dim in array.dims if dim not in dims and array.sizes[dim] != 1]
    if several:
        text = ", ".join(f"{array.sizes[dim]} of {dim}" for dim in several)
        chosen = ", ".join(f"{dim}=…" for dim in several)
        raise RequestError(f"{what}: one is drawn, found {text}", hint=f".sel({chosen})")
    return array.squeeze([dim for dim in array.dims if dim not in dims]).transpose(*dims)


def read_label(array: xr.DataArray, name: str | None, dim: str, *, default: str | None = None) -> np.ndarray | None:
    """Return the values of a label on `dim`; None for no name, or for the default where the array lacks it."""
    known = [str(one) for one, label in array.coords.items() if label.dims == (dim,)]
    if name is None or (name == default and name not in known):
        return None
    check_name(name, known, what=f"label on {dim}", hint=f"there are {', '.join(known[:12]) or 'none'}")
    return np.asarray(array.coords[name].values)
