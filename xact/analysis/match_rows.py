"""Find the rows of a reference among the stimuli of a model by label; by place only where `order` says so."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xarray as xr

from xact.analysis.references.base import LEAST_STIMULI, make_texts
from xact.disk.paths import expand_path
from xact.errors import NoStoreError, RequestError, check_name
from xact.labels import compose_label
from xact.tables.csv_text import decode_text

Labelled = xr.DataArray | xr.Dataset | xr.Coordinates
"""Anything with labels on `stimulus`."""

MAX_EXAMPLES = 3


def match_rows(
    reference: xr.DataArray,
    stimuli: Labelled,
    *,
    key: str = "stimulus",
    order: str | Path | None = None,
    notes: list[str] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return which stimuli a reference has, and in which of its rows: (rows of the model, rows of the reference).

    Parameters
    ----------
    reference : xarray.DataArray
        RDMs (rdm, stimulus, stimulus_) or responses (stimulus, unit), as `open_rdms` gives them.
    stimuli : xarray.DataArray, Dataset or Coordinates
        Labels of the model's stimuli on `stimulus`, in the order of the model.
    key : str, optional
        Label of the stimuli that the reference's labels name: `stimulus`, `stem`, or any other column. The reference's
        own label of this name counts, or else its `stimulus`.
    order : str or Path, optional
        `store`: the rows of the reference are the stimuli of the model, in this order. A file with one label a line
        names the rows of a reference without labels. None pairs rows by the reference's labels.
    notes : list of str, optional
        Gets a line if the reference has a part of the stimuli.

    Returns
    -------
    tuple of numpy.ndarray
        Two arrays of one length. The first is in ascending order.

    Raises
    ------
    RequestError
        If labels are missing, appear twice or are not those of the model, or if fewer than 3 stimuli are left.
    NameNotFoundError
        If the model has no such column.
    """
    name = str(reference.attrs.get("reference") or "the reference")
    known = list_labels(stimuli, key)
    n_rows = reference.sizes["stimulus"]
    if order == "store":
        if n_rows != len(known):
            raise RequestError(
                f"{name} has {n_rows} rows, but there are {len(known)} stimuli", hint="--order FILE names each row"
            )
        _refuse_other_order(reference, key, known, known, name)
        rows = np.arange(n_rows)
        _check_count(rows, name)
        return rows, rows
    if order is None:
        asked = _list_reference(reference, key, name)
    else:
        asked = _read_order(order, n_rows, name)
        _refuse_other_order(reference, key, asked, known, name)
    _refuse_bad(asked, name)
    place_of = {label: row for row, label in enumerate(known)}
    foreign = [label for label in asked if label not in place_of]
    if foreign:
        raise RequestError(
            f"{name}: {_count(foreign, len(asked))} not among the {len(known)} stimuli by {key!r}",
            hint=_suggest_key(asked, stimuli, key) or f"a stimulus is called {known[0]!r}; --key names another column",
        )
    n_of = Counter(known)
    twice = [label for label in asked if n_of[label] > 1]
    if twice:
        raise RequestError(
            f"{name}: {_count(twice, len(asked))} those of several stimuli by {key!r}",
            hint="choose a key that tells the stimuli apart, or fewer stimuli: --conditions, --where",
        )
    found = np.array([place_of[label] for label in asked], dtype=np.intp)
    _check_count(found, name)
    if notes is not None and len(found) < len(known):
        notes.append(f"{name} has {len(found)} of the {len(known)} stimuli; the others are left out")
    rows = np.argsort(found)
    return found[rows], rows


def list_labels(stimuli: Labelled, key: str) -> list[str]:
    """Return a label of the stimuli as text. Raise NameNotFoundError if there is none of this name."""
    columns = _list_columns(stimuli)
    hint = f"there are {', '.join([*columns][:12]) or 'none'}"
    check_name(key, columns, what="there is no label of the stimuli", hint=hint)
    return _compose(columns[key].values)


def _list_columns(stimuli: Labelled) -> dict[str, xr.DataArray]:
    coords = stimuli if isinstance(stimuli, xr.Coordinates) else stimuli.coords
    columns = {str(name): one for name, one in coords.items() if one.dims == ("stimulus",)}
    if isinstance(stimuli, xr.Dataset):
        columns |= {str(name): one for name, one in stimuli.data_vars.items() if one.dims == ("stimulus",)}
    return columns


def _compose(cells: np.ndarray | Sequence[str]) -> list[str]:
    return [compose_label(text) for text in make_texts(cells).tolist()]


def _list_reference(reference: xr.DataArray, key: str, name: str) -> list[str]:
    own = _find_own_labels(reference, key)
    if own is not None:
        return own
    others = [str(label) for label, one in reference.coords.items() if one.dims == ("stimulus",)]
    hint = "--order store, if its rows are in the order of the stimuli; --order FILE with one label a line"
    if others:
        hint = f"it has {', '.join(others)}: rename the label of the stimuli to 'stimulus', or --key if both have it"
    raise RequestError(f"{name} has no label {key!r} of its stimuli", hint=hint)


def _refuse_other_order(
    reference: xr.DataArray, key: str, asked: Sequence[str], known: Sequence[str], name: str
) -> None:
    """Refuse an order that contradicts the reference's own labels, where these are labels of the stimuli."""
    own = _find_own_labels(reference, key)
    if own is None or own == [*asked] or not set(own) <= set(known):
        return
    row = next(i for i, (one, other) in enumerate(zip(own, asked, strict=True)) if one != other)
    raise RequestError(
        f"{name} has labels of its own in another order: its row {row + 1} is {own[row]!r}, --order says "
        f"{asked[row]!r}",
        hint="leave --order out: its rows are paired by their labels",
    )


def _find_own_labels(reference: xr.DataArray, key: str) -> list[str] | None:
    """Return the labels of the rows of a reference: those of this name, else `stimulus`, else None."""
    for label in (key, "stimulus"):
        if label in reference.coords and reference.coords[label].dims == ("stimulus",):
            return _compose(reference.coords[label].values)
    return None


def _read_order(order: str | Path, n_rows: int, name: str) -> list[str]:
    """Return the labels in a file, one a line."""
    file = expand_path(order)
    if not file.is_file():
        raise NoStoreError(f"there is no file {str(file)!r} with the order", hint="--order store, or a file of labels")
    lines = decode_text(file.read_bytes(), name=str(file)).splitlines()
    labels = _compose([line.strip() for line in lines])
    while labels and not labels[-1]:
        labels.pop()
    if len(labels) != n_rows:
        raise RequestError(f"{file} has {len(labels)} lines, but {name} has {n_rows} rows", hint="one label a line")
    return labels


def _refuse_bad(asked: Sequence[str], name: str) -> None:
    missing = [str(row + 1) for row, label in enumerate(asked) if not label]
    if missing:
        shown = ", ".join(missing[:MAX_EXAMPLES])
        raise RequestError(
            f"{name}: {len(missing)} of its {len(asked)} rows have no label, such as row {shown}",
            hint="name each row, or leave these rows out",
        )
    twice = [label for label, n in Counter(asked).items() if n > 1]
    if twice:
        shown = ", ".join(map(repr, twice[:MAX_EXAMPLES]))
        raise RequestError(
            f"{name}: {len(twice)} of its {len(asked)} labels appear twice: {shown}",
            hint="average their rows, or name them by another label: --key",
        )


def _check_count(rows: np.ndarray, name: str) -> None:
    if len(rows) < LEAST_STIMULI:
        raise RequestError(
            f"{name} has {len(rows)} stimuli; a comparison needs at least {LEAST_STIMULI}",
            hint="choose more stimuli, or another reference",
        )


def _count(labels: Sequence[str], n_all: int) -> str:
    """Return `2 of its 30 labels ('a', 'b') are`."""
    shown = ", ".join(repr(label[:60]) for label in labels[:MAX_EXAMPLES])
    return f"{len(labels)} of its {n_all} labels ({shown}{', …' if len(labels) > MAX_EXAMPLES else ''}) are"


def _suggest_key(asked: Sequence[str], stimuli: Labelled, key: str) -> str | None:
    """Return a hint that names a column which has all the labels, if there is one."""
    for name, one in _list_columns(stimuli).items():
        if name != key and one.dtype.kind in "UOTiu" and set(asked) <= set(_compose(one.values)):
            return f"--key {name} finds all of them"
    return None
