"""`.mat`: Meadows (`rdmutv`, `stimuli`), structs `RDM` and `name`, or one array. versions 5 and 7.3."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xarray as xr

from xact.analysis.references.base import HDF5_DAMAGED, choose_array, make_rdms, read_safely, refuse_large
from xact.analysis.references.mat5 import load_variables
from xact.disk.hdf5_members import check_attributes, open_member, open_path
from xact.errors import RequestError

_EXTENSION = re.compile(r"\.[A-Za-z][A-Za-z0-9]{1,4}$")
"""The extension of a picture: `.png`, `.jpg`, `.webp`; not the `.5` of `face_0.5`."""

Struct = Mapping[str, Any]
"""One element of an array of structs: {field: value}."""


def read_file(file: Path) -> xr.DataArray:
    """Read the RDMs of a `.mat` file of either version."""
    if h5py.is_hdf5(file):
        variables: dict[str, Any] = read_safely(lambda: _load_hdf5(file), file, HDF5_DAMAGED, kind="MATLAB v7.3")
    else:
        variables = load_variables(file)
    meadows = sorted(name for name in variables if name == "rdmutv" or name.startswith("rdmutv_"))
    if meadows:
        return _make_meadows(variables, meadows, file)
    structs = {name: value for name, value in variables.items() if _has_rdms(value)}
    if structs:
        return _make_structs(structs, file)
    arrays = {name: _order_axes(value) for name, value in variables.items() if isinstance(value, np.ndarray)}
    return choose_array(arrays, file)


def _has_rdms(value: object) -> bool:
    """Return True for an array of structs with the field `RDM`."""
    return isinstance(value, list) and bool(value) and all(isinstance(one.get("RDM"), np.ndarray) for one in value)


def _order_axes(values: np.ndarray) -> np.ndarray:
    """Return (rdm, n, n) for MATLAB's (n, n, rdm), and one axis for a row or a column."""
    if values.ndim == 3 and values.shape[0] == values.shape[1]:
        return np.moveaxis(values, -1, 0)
    return values.reshape(-1) if values.ndim == 2 and 1 in values.shape else values


# ---- what the variables mean


def _make_meadows(variables: Mapping[str, Any], names: list[str], file: Path) -> xr.DataArray:
    """Return the RDMs of all participants, each in the order of the stimuli of the first."""
    shown: list[list[str]] = []
    values: list[np.ndarray] = []
    for name in names:
        label = "stimuli" + name.removeprefix("rdmutv")
        if label not in variables:
            raise RequestError(f"{file}: the variable {label!r}, the stimuli of {name!r}, is missing")
        shown.append([text.strip() for text in np.atleast_1d(variables[label]).tolist()])
        square = make_rdms(_order_axes(variables[name]), file).values
        if sorted(shown[-1]) != sorted(shown[0]) or len(shown[0]) != square.shape[-1]:
            raise RequestError(f"{file}: {label!r} names other stimuli than those of {names[0]!r}")
        rows = np.array([shown[-1].index(text) for text in shown[0]])
        values.append(square[:, rows[:, None], rows])
    own = [name.removeprefix("rdmutv_") for name in names]
    participants = [] if names == ["rdmutv"] else [text.replace("_", "-") for text in own]
    stems = [_EXTENSION.sub("", text) for text in shown[0]]
    on_rdm = {"participant": participants} if participants and all(len(one) == 1 for one in values) else {}
    on_stimulus = {"stimulus": stems, "file": shown[0]}
    return make_rdms(np.concatenate(values), file, on_stimulus=on_stimulus, on_rdm=on_rdm)


def _make_structs(structs: Mapping[str, list[Struct]], file: Path) -> xr.DataArray:
    """Return the RDMs of an array of structs with the fields `RDM` and `name`."""
    if len(structs) != 1:
        names = ", ".join([*structs][:8])
        raise RequestError(f"{file}: one array of structs with the field 'RDM' is wanted, found {names}")
    (items,) = structs.values()
    parts = [make_rdms(_order_axes(one["RDM"]), file).values for one in items]
    if len({part.shape for part in parts}) > 1:
        raise RequestError(f"{file}: its RDMs have different shapes, {parts[0].shape[1:]} first")
    texts = [_take_text(one.get("name")) for one in items]
    on_rdm = {"name": texts} if any(texts) and all(len(part) == 1 for part in parts) else {}
    return make_rdms(np.concatenate(parts), file, on_rdm=on_rdm)


def _take_text(value: object) -> str:
    texts = np.atleast_1d(np.asarray(value)).tolist()
    return texts[0] if len(texts) == 1 and isinstance(texts[0], str) else ""


# ---- v7.3


def _load_hdf5(file: Path) -> dict[str, Any]:
    """Return the variables of a v7.3 file in the same form. Its axes are in reverse order."""
    with h5py.File(file, "r") as opened:
        check_attributes(opened)
        names = [name for name in opened if not name.startswith("#")]
        left = _Budget(file)
        found = {name: _read_variable(open_member(opened, name), left) for name in names}
    return {name: value for name, value in found.items() if value is not None}


class _Budget:
    """Bytes that may still be read of one file: many references may name one array."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.nbytes = 0

    def take(self, dataset: h5py.Dataset) -> np.ndarray:
        self.nbytes += dataset.size * dataset.dtype.itemsize
        refuse_large(self.nbytes, self.file)
        return np.asarray(dataset[()]).T


def _read_variable(member: h5py.HLObject, left: _Budget) -> Any:  # noqa: ANN401  as load_variables gives it
    if isinstance(member, h5py.Group):
        return _read_structs(member, left)
    kind = _find_class(member)
    if kind == "cell":
        cells = [_read_variable(one, left) for one in _follow(member, left)]
        texts = [one[0] for one in cells if isinstance(one, np.ndarray) and one.dtype.kind == "U" and len(one) == 1]
        return np.array(texts, dtype=str) if texts and len(texts) == len(cells) else None
    if "MATLAB_empty" in member.attrs or member.dtype.kind not in "fiub":
        return None
    values = left.take(member)
    if kind != "char":
        return values
    rows = values.reshape(1, -1) if values.ndim != 2 else values
    return np.array(["".join(map(chr, row)) for row in rows.tolist()], dtype=str)


def _read_structs(group: h5py.Group, left: _Budget) -> list[Struct] | None:
    """Return a struct, or an array of structs, whose fields hold references to the values of each."""
    if _find_class(group) != "struct":
        return None
    fields = {name: open_member(group, name) for name in group if name in ("RDM", "name")}
    lists = {
        name: _follow(member, left)
        for name, member in fields.items()
        if isinstance(member, h5py.Dataset) and member.dtype == h5py.ref_dtype and _find_class(member) != "cell"
    }
    if not lists:
        return [{name: _read_variable(member, left) for name, member in fields.items()}]
    n_items = min(map(len, lists.values()))
    return [{name: _read_variable(items[i], left) for name, items in lists.items()} for i in range(n_items)]


def _follow(member: h5py.Dataset, left: _Budget) -> list[h5py.HLObject]:
    """Return what the references of a data set name, each opened by its path, so that it is checked."""
    found: list[h5py.HLObject] = []
    for reference in left.take(member).T.reshape(-1):
        target = open_path(member.file, member.file[reference].name) if reference else None
        if target is None:
            raise RequestError(f"{left.file}: {member.name} refers to nothing")
        found.append(target)
    return found


def _find_class(member: h5py.HLObject) -> str:
    """Return the class that MATLAB wrote: double, char, cell, struct."""
    name = member.attrs.get("MATLAB_class", b"")
    return name.decode() if isinstance(name, bytes) else str(name)
