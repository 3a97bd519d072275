"""What every reader of references gives: dissimilarities (rdm, stimulus, stimulus_) under their labels, checked."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import xarray as xr

from xact.analysis.pairs import make_square
from xact.errors import RequestError

MAX_NBYTES = 2**34
"""Most bytes of the values of one file in memory: one RDM of 46,000 stimuli."""

MAX_EXPANSION = 2_000
"""Most bytes of values for each byte of a file. Deflate, the strongest of the usual filters, reaches 1,032."""

TOLERANCE = 1e-6
"""Largest difference between the halves of an RDM, relative to its largest value."""

LEAST_STIMULI = 3
"""Fewest stimuli of an RDM: two give a single dissimilarity."""

STIMULUS_LABELS = ("stimulus", "stimuli")
RDM_LABELS = ("rdm", "subject", "participant")

NAMES = ("rdm", "rdms", "dissimilarity", "dissimilarities")
"""What the array of a file with several arrays may be called."""

HDF5_DAMAGED = (OSError, RuntimeError, KeyError, ValueError)
"""What h5py raises for damaged files."""

Columns = Mapping[str, Any]
"""{name: labels along one dimension}."""

NO_COLUMNS: Columns = MappingProxyType({})


def make_rdms(
    values: np.ndarray,
    file: Path | str,
    *,
    on_stimulus: Columns = NO_COLUMNS,
    on_rdm: Columns = NO_COLUMNS,
    attrs: Columns = NO_COLUMNS,
    is_checked: bool = True,
) -> xr.DataArray:
    """Return dissimilarities, checked, as an array (rdm, stimulus, stimulus_).

    `values` are (pair), (rdm, pair), (stimulus, stimulus_) or (rdm, stimulus, stimulus_). Labels of the stimuli lie on
    `stimulus`, and again on `stimulus_` with `_` at the end of their names. Without a label that tells the stimuli
    apart there is no coordinate `stimulus`. `file` names them in messages.
    """
    square = _make_square(_check_numbers(values, file), file)
    n_rdms, n_stimuli, _ = square.shape
    coords = add_labels(on_stimulus, n_stimuli)
    columns, more = name_rdms(on_rdm, n_rdms)
    coords |= {name: ("rdm", cells) for name, cells in columns.items()}
    found = xr.DataArray(square, coords, ("rdm", "stimulus", "stimulus_"), name="dissimilarity")
    source = find_label(on_stimulus, n_stimuli, STIMULUS_LABELS)
    found.attrs = {**attrs, **more, **({} if source in (None, "stimulus") else {"stimulus_from": source})}
    if is_checked:
        check_rdms(found, file)
    return found


def stack_rdms(found: xr.DataArray) -> xr.DataArray:
    """Return (rdm, stimulus, stimulus_) with one RDM for each combination of the other dimensions.

    `rdm` is the text of their labels with a space between them, such as `ResNet50 layer4.2`.
    """
    others = [str(dim) for dim in found.dims if dim not in ("stimulus", "stimulus_")]
    if others == ["rdm"]:
        names = make_texts(found["rdm"].values) if "rdm" in found.coords else make_texts(range(found.sizes["rdm"]))
        return found.transpose("rdm", "stimulus", "stimulus_").assign_coords(rdm=names)
    if not others:
        return found.expand_dims("rdm").assign_coords(rdm=["0"])
    named = found.assign_coords({dim: np.arange(found.sizes[dim]) for dim in others if dim not in found.coords})
    stacked = named.stack(rdm=others, create_index=False).transpose("rdm", "stimulus", "stimulus_")
    rows = zip(*(make_texts(stacked[dim].values).tolist() for dim in others), strict=True)
    return stacked.assign_coords(rdm=np.array([" ".join(row) for row in rows], dtype=str))


def align_columns(rdms: xr.DataArray, what: str) -> xr.DataArray:
    """Return RDMs whose columns are in the order of their rows, by label. Refuse other columns than rows."""
    if rdms.sizes["stimulus"] != rdms.sizes["stimulus_"]:
        raise RequestError(
            f"{what}: not square: {rdms.sizes['stimulus']} stimuli by {rdms.sizes['stimulus_']}",
            hint="choose the same stimuli on `stimulus` and `stimulus_`",
        )
    for dim in ("stimulus", "stimulus_"):
        if dim in rdms.coords:
            rdms = rdms.assign_coords({dim: make_texts(rdms[dim].values)})
    labels, again = (rdms[dim].values if dim in rdms.coords else None for dim in ("stimulus", "stimulus_"))
    if labels is None or (again is not None and np.array_equal(labels, again)):
        return rdms
    if again is not None:
        if not sorted(labels) == sorted(again) == sorted(set(labels)):
            raise RequestError(
                f"{what}: 'stimulus' and 'stimulus_' have different labels",
                hint="choose the same stimuli on `stimulus` and `stimulus_`",
            )
        rdms = rdms.sel(stimulus_=labels)
    return rdms.assign_coords(stimulus_=labels)


def add_labels(columns: Columns, n_stimuli: int) -> dict[str, Any]:
    """Return the labels of the stimuli as coordinates of both dimensions, with `stimulus` if one tells them apart."""
    source = find_label(columns, n_stimuli, STIMULUS_LABELS)
    named = {} if source is None else {"stimulus": make_texts(columns[source])}
    coords: dict[str, Any] = {}
    for name, cells in {**columns, **named}.items():
        coords[name] = ("stimulus", cells)
        coords[f"{name}_"] = ("stimulus_", cells)
    return coords


def name_rdms(columns: Columns, n_rdms: int) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the labels of the RDMs with `rdm`, text that tells them apart, and the attribute that says where from."""
    source = _find_rdm_label(columns, n_rdms)
    cells = list(map(str, range(n_rdms))) if source is None else columns[source]
    return {**columns, "rdm": make_texts(cells)}, {} if source == "rdm" else {"rdm_from": source or ""}


def _find_rdm_label(columns: Columns, n_rdms: int) -> str | None:
    usual = [name for name in RDM_LABELS if name in columns and len({*make_texts(columns[name])}) == n_rdms]
    others = {name: cells for name, cells in columns.items() if name not in RDM_LABELS}
    return usual[0] if usual else find_label(others, n_rdms, ())


def find_label(columns: Columns, n_cells: int, usual: Sequence[str]) -> str | None:
    """Return the column that tells rows apart: one of the `usual` names, else the only such text, else integers.

    A column `index`, and integers that count from 0 or 1, are places and no labels.
    """
    for name in usual:
        if name in columns:
            return name
    arrays = {name: np.asarray(cells) for name, cells in columns.items() if name != "index"}
    distinct = {name: cells for name, cells in arrays.items() if _is_distinct(cells, n_cells)}
    for kinds in ("UOT", "iu"):
        named = [name for name, cells in distinct.items() if cells.dtype.kind in kinds]
        if named:
            return named[0] if len(named) == 1 else None
    return None


def _is_distinct(cells: np.ndarray, n_cells: int) -> bool:
    """Return True for cells that tell rows apart by more than their place."""
    if cells.ndim != 1 or not len(set(cells.tolist())) == n_cells == len(cells):
        return False
    return cells.dtype.kind not in "iu" or not any(np.array_equal(cells, np.arange(n_cells) + k) for k in (0, 1))


def make_texts(cells: Any) -> np.ndarray:  # noqa: ANN401  labels of any type
    """Return labels as text. A whole number has no fraction; a missing label is empty."""
    return np.array([make_text(cell) for cell in np.asarray(cells).tolist()], dtype=str)


def make_text(cell: object) -> str:
    """Return one label as text: `73` for 73 and 73.0, empty for a missing one."""
    if cell is None or cell != cell:
        return ""
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    return cell.decode("utf-8", "replace") if isinstance(cell, bytes) else str(cell)


def choose_array(arrays: Mapping[str, Any], file: Path) -> xr.DataArray:
    """Return the RDMs among named arrays, with the only text that tells the stimuli apart as their label."""
    numbers = {name: values for name, values in arrays.items() if values.dtype.kind in "fiub" and values.size > 1}
    named = [name for name in numbers if name.casefold() in NAMES]
    chosen = named if len(named) == 1 else [*numbers]
    if len(chosen) != 1:
        names = ", ".join([*numbers][:8]) or "none"
        raise RequestError(
            f"{file}: one array of dissimilarities is wanted, found {names}", hint=f"call one of them {NAMES[0]!r}"
        )
    values = numbers[chosen[0]]
    is_square = values.ndim > 1 and values.shape[-1] == values.shape[-2]
    n_stimuli = values.shape[-1] if is_square else count_side(values.shape[-1])
    texts = {name: cells for name, cells in arrays.items() if cells.dtype.kind == "U" and cells.shape == (n_stimuli,)}
    return make_rdms(values, file, on_stimulus=texts)


# ---- numbers


def refuse_large(nbytes: int, file: Path | str, *, stored: int | None = None) -> None:
    """Raise RequestError before memory is taken for more than a file should hold.

    `nbytes` are those of the values in memory, `stored` those on disk; None for the size of the file.
    """
    stored = Path(file).stat().st_size if stored is None else stored
    if nbytes > 2**20 and nbytes > MAX_EXPANSION * stored:
        raise RequestError(f"{file}: it declares {nbytes} bytes of values, but {stored} are stored")
    if nbytes > MAX_NBYTES:
        raise RequestError(
            f"{file}: its values take {nbytes} bytes in memory; {MAX_NBYTES} is the most",
            hint="save fewer stimuli, or fewer RDMs, in one file",
        )


def count_side(n_pairs: int) -> int | None:
    """Return the number of stimuli with so many pairs, or None if no number has."""
    n = (1 + math.isqrt(1 + 8 * n_pairs)) // 2
    return n if n * (n - 1) // 2 == n_pairs else None


def _check_numbers(values: np.ndarray, file: Path | str) -> np.ndarray:
    if values.dtype.kind not in "fiub":
        raise RequestError(f"{file}: numbers are wanted, found values of type {values.dtype}")
    if not 1 <= values.ndim <= 3:
        raise RequestError(f"{file}: one to three axes are wanted, found the shape {values.shape}")
    return values


def _make_square(values: np.ndarray, file: Path | str) -> np.ndarray:
    """Return (rdm, stimulus, stimulus_) in float64, whatever the shape."""
    shape = values.shape
    if values.ndim >= 2 and shape[-1] == shape[-2]:
        refuse_large(8 * values.size, file, stored=values.nbytes)
        return np.array(values, dtype=np.float64).reshape(-1, shape[-1], shape[-1])
    n_stimuli = count_side(shape[-1])
    if values.ndim == 3 or n_stimuli is None:
        raise RequestError(
            f"{file}: not square, and {shape[-1]} is not a number of pairs: its shape is {shape}",
            hint="(n, n), (rdm, n, n), or the n (n - 1) / 2 values above the diagonal",
        )
    pairs = values.reshape(-1, shape[-1])
    refuse_large(8 * len(pairs) * n_stimuli**2, file, stored=values.nbytes)
    return np.stack([make_square(one, n_stimuli) for one in pairs])


# ---- checks


def check_rdms(rdms: xr.DataArray, file: Path | str, *, has_constant: bool = False) -> None:
    """Raise RequestError unless the values (rdm, stimulus, stimulus_) are dissimilarities.

    With `has_constant`, a stimulus may have NaN to all others, as a constant pattern has.
    """
    if rdms.sizes["stimulus"] < LEAST_STIMULI:
        raise RequestError(
            f"{file}: {rdms.sizes['stimulus']} stimuli; an RDM has at least {LEAST_STIMULI}",
            hint="save more stimuli; is this the right array?",
        )
    for one in rdms:
        where = f"{file}: the RDM {str(one['rdm'].values)!r}"
        square = one.values
        _check_finite(one, where, has_constant=has_constant)
        _check_symmetric(one, where)
        diagonal = np.diagonal(square)
        if np.all(np.abs(diagonal - 1) <= TOLERANCE):
            raise RequestError(f"{where} has a diagonal of ones: these look like similarities", hint="give 1 - them")


def _check_finite(one: xr.DataArray, where: str, *, has_constant: bool) -> None:
    bad = ~np.isfinite(one.values)
    np.fill_diagonal(bad, val=False)
    if has_constant:
        lost = bad.sum(axis=1) == len(bad) - 1
        bad &= ~(lost[:, None] | lost)
    if bad.any():
        i, j = np.argwhere(bad)[0]
        raise RequestError(
            f"{where} has {np.triu(bad | bad.T).sum()} pairs that are NaN or infinite, first {_name_pair(one, i, j)}",
            hint="leave these stimuli out; both halves of an RDM are wanted",
        )


def _check_symmetric(one: xr.DataArray, where: str) -> None:
    square = one.values
    limit = TOLERANCE * np.nanmax(np.abs(square), initial=0)
    differ = np.abs(square - square.T) > limit  # NaN of a constant pattern compares False
    if differ.any():
        i, j = np.argwhere(differ)[0]
        raise RequestError(
            f"{where} is not symmetric: {_name_pair(one, i, j)} {square[i, j]:.6g}, but {square[j, i]:.6g} the other "
            "way round",
            hint="average it with its transpose, if it should be",
        )


def _name_pair(one: xr.DataArray, i: int, j: int) -> str:
    if "stimulus" in one.coords:
        names = one["stimulus"].values
        return f"{str(names[i])!r} to {str(names[j])!r}"
    return f"row {i + 1}, column {j + 1}"


def read_safely(read: Callable[[], Any], file: Path, errors: tuple[type[Exception], ...], *, kind: str) -> Any:  # noqa: ANN401
    """Return what `read` gives. Turn these errors of a library into one line."""
    try:
        return read()
    except errors as error:
        raise RequestError(f"{file} cannot be read as {kind}: {error}") from None
