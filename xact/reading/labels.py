"""Which labels become coordinates, and in which order stimuli are read. Needs neither xarray nor dask."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from xact.disk.durable import parse_json
from xact.errors import RequestError, StoreError

LONG_LABELS = frozenset(
    "stimulus_index file sha256 base source weights seed family training n_parameters layer_index depth_bin unit_axes "
    "unit_shape path present token_spans".split()
)
"""Labels that are long, or that few look at: they tell how a row came about."""


def choose_labels(names: Iterable[str], labels: str) -> list[str]:
    """Return all names (`all`: the long ones last), or those that are not long (`short`)."""
    if not isinstance(labels, str) or labels not in ("", "all", "short"):
        raise RequestError(f"labels: 'all' or 'short' is wanted, found {labels!r:.60}")
    if labels == "":
        return list(names)
    short = [name for name in names if name not in LONG_LABELS]
    return short if labels == "short" else [*short, *(name for name in names if name in LONG_LABELS)]


def rank_values(values: np.ndarray) -> np.ndarray:
    """Return numbers in whose order labels are sorted: numbers rise, text comes in the order of first appearance."""
    if values.dtype.kind != "U":
        return values
    first = {value: at for at, value in reversed(list(enumerate(values.tolist())))}
    return np.array([first[value] for value in values.tolist()], dtype=np.intp)


LISTS = ("unit_axes", "unit_shape")
"""Labels of layers that a store keeps as JSON text."""


def parse_lists(texts: np.ndarray) -> np.ndarray:
    """Return the lists in texts of JSON, as an array of objects. Raise StoreError for a text that is no list."""
    parsed = {text: _parse_list(text) for text in dict.fromkeys(texts.tolist())}
    if None in parsed.values():
        raise StoreError(
            "unit_axes or unit_shape of a layer is not a list in JSON", hint="xact verify names what is damaged"
        )
    lists = np.empty(len(texts), dtype=object)
    for at, text in enumerate(texts.tolist()):
        lists[at] = list(parsed[text] or ())
    return lists


def _parse_list(text: str) -> list[Any] | None:
    try:
        found = parse_json(text)
    except ValueError:
        return None
    return found if isinstance(found, list) else None
