"""An RDM from one label of the stimuli: text same or different, numbers by their difference, angles around a circle."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import xarray as xr

from xact.errors import RequestError, check_name

EXACT_DIGITS = 14
"""Digits of decimal numbers, from the first of the largest: 0.3 - 0.1 and 0.4 - 0.2 are equal, and ranks see it."""

TINIEST = 1e-280
"""Labels below this, or above 1 divided by it, are not rounded."""


def label_rdm(array: Any, period: float | None = None) -> xr.DataArray:  # noqa: ANN401  any labels
    """Return the dissimilarities of one label of the stimuli.

    Parameters
    ----------
    array : xarray.DataArray or sequence
        One label for each stimulus. Text: 0 for the same, 1 for different. Numbers: the absolute difference.
    period : float, optional
        Numbers are positions on a circle of this length, e.g. 360 for degrees and 180 for the orientation of a bar:
        the shorter way around counts.

    Returns
    -------
    xarray.DataArray
        Dissimilarities, float64, (stimulus, stimulus_). The labels of the stimuli are kept on both dimensions. A
        missing label (NaN, empty text) has NaN to all stimuli, itself included.

    Raises
    ------
    RequestError
        If the labels have other dimensions, or a period is given for text or is not above 0.

    Examples
    --------
    >>> stimuli = xact.load_stimuli("quickstart.zarr")
    >>> by_condition = xact.label_rdm(stimuli["condition"])
    >>> xact.label_rdm([0, 90, 350], period=360).values[0].tolist()
    [0.0, 90.0, 10.0]
    """
    labels = _take_labels(array)
    cells = labels.values
    if period is not None and not (_is_real(period) and 0 < period < math.inf):
        raise RequestError(f"period: a number above 0 is wanted, found {period!r:.40}")
    values = _compare_texts(cells, period) if cells.dtype.kind in "UOT" else _subtract(cells, period)
    coords: dict[str, Any] = {}
    for name, one in labels.coords.items():
        if one.dims == ("stimulus",):
            coords[str(name)] = ("stimulus", one.values)
            coords[f"{name}_"] = ("stimulus_", one.values)
    name = None if labels.name is None else str(labels.name)
    attrs = {"label": name or "", "period": 0.0 if period is None else float(period)}
    return xr.DataArray(values, coords, ("stimulus", "stimulus_"), name="dissimilarity", attrs=attrs)


def make_label_rdm(stimuli: xr.DataArray | xr.Dataset, asked: str) -> xr.DataArray:
    """Return the RDM of a request such as `object` or `orientation:360`, from the labels of the stimuli."""
    columns = [str(name) for name, one in stimuli.coords.items() if one.dims == ("stimulus",)]
    name, period = parse_label(asked, columns)
    hint = f"there are {', '.join(columns[:12]) or 'none'}"
    check_name(name, columns, what="there is no label of the stimuli", hint=hint)
    return label_rdm(stimuli.coords[name], period)


def parse_label(asked: str, columns: Iterable[str] = ()) -> tuple[str, float | None]:
    """Return the column and the period of a request such as `orientation:360`; a column may itself have a colon."""
    name, colon, period = asked.rpartition(":")
    if not colon or asked in set(columns):
        return asked, None
    try:
        length = float(period)
    except ValueError:
        length = math.nan
    if not name or not 0 < length < math.inf:
        raise RequestError(
            f"label {asked!r}: a column, or COLUMN:PERIOD with a number above 0, is wanted", hint="orientation:360"
        )
    return name, length


def _take_labels(array: Any) -> xr.DataArray:  # noqa: ANN401  any labels
    """Return labels with the dimension `stimulus`, numbers or text."""
    if hasattr(array, "index") and hasattr(array, "to_xarray"):  # a column of a table of pandas
        array = array.to_xarray()
    if not isinstance(array, xr.DataArray):
        if isinstance(array, str | bytes) or not isinstance(array, Iterable):
            raise RequestError(f"one label for each stimulus is wanted, found {array!r:.40}")
        array = xr.DataArray(_make_array(list(array)), dims="stimulus")
    labels: xr.DataArray = array
    if labels.dims != ("stimulus",):
        raise RequestError(f"labels on `stimulus` are wanted, found dimensions {labels.dims}")
    if labels.dtype.kind in "UOT":
        cells = labels.values.tolist()
        if not all(isinstance(cell, str) or cell is None or cell != cell for cell in cells):
            raise RequestError("labels are text or numbers, not both")
    elif labels.dtype.kind not in "fiub":
        raise RequestError(f"labels are text or numbers, found {labels.dtype}")
    return labels


def _make_array(cells: list[Any]) -> np.ndarray:
    if any(isinstance(cell, str) for cell in cells):
        return np.array(cells, dtype=object)
    if not all(cell is None or _is_real(cell) for cell in cells):
        raise RequestError(f"labels are text or numbers, found {cells!r:.60}")
    return np.array([math.nan if cell is None else float(cell) for cell in cells], dtype=np.float64)


def _is_real(value: object) -> bool:
    return isinstance(value, int | float | np.number | np.bool_) and not isinstance(value, complex | np.complexfloating)


def _compare_texts(cells: np.ndarray, period: float | None) -> np.ndarray:
    if period is not None:
        raise RequestError("period: these labels are text", hint="numbers lie on a circle; leave the period out")
    texts = ["" if cell is None or cell != cell else str(cell) for cell in cells.tolist()]
    code_of = {text: code for code, text in enumerate(dict.fromkeys(texts))}
    codes = np.array([code_of[text] for text in texts], dtype=np.intp)
    values: np.ndarray = (codes[:, None] != codes).astype(np.float64)
    is_missing = np.array([text == "" for text in texts], dtype=bool)
    values[is_missing] = values[:, is_missing] = np.nan
    return values


def _subtract(cells: np.ndarray, period: float | None) -> np.ndarray:
    if np.isinf(cells := cells.astype(np.float64)).any():
        raise RequestError("labels: infinite numbers have no difference")
    values = np.abs(cells[:, None] - cells)
    if period is not None:
        values %= period
        values = np.minimum(values, period - values)
    return _round_decimals(np.asarray(values), cells)


def _round_decimals(values: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """Return the differences of decimal numbers as decimal numbers; those of other numbers as they are."""
    known = cells[~np.isnan(cells)]
    largest = float(np.abs(known).max(initial=0))
    if not TINIEST < largest < 1 / TINIEST:
        return values
    scale = 10.0 ** (EXACT_DIGITS - 1 - math.floor(math.log10(largest)))
    is_decimal = bool((np.round(known * scale) / scale == known).all())
    return np.asarray(np.round(values * scale) / scale) if is_decimal else values
