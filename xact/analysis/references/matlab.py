"""`.mat`: Meadows (`rdmutv`, `stimuli`), structs `RDM` and `name`, or one array. v5 by scipy, v7.3 by h5py."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xarray as xr

from xact.analysis.references.base import MAX_NBYTES, choose_array, make_rdms, read_safely, refuse_large
from xact.disk.hdf5_members import check_attributes, open_member, open_path
from xact.errors import RequestError

DAMAGED = (OSError, RuntimeError, KeyError, ValueError, OverflowError, zlib.error)
"""What scipy and h5py raise for damaged files."""

COMPRESSED = 15
"""Type of a compressed element of a v5 file."""

PIECE_NBYTES = 2**20

_EXTENSION = re.compile(r"\.[A-Za-z][A-Za-z0-9]{1,4}$")
"""The extension of a picture: `.png`, `.jpg`, `.webp`; not the `.5` of `face_0.5`."""

Struct = Mapping[str, Any]
"""One element of an array of structs: {field: value}."""


def read_file(file: Path) -> xr.DataArray:
    """Read the RDMs of a `.mat` file of either version."""
    if h5py.is_hdf5(file):
        variables: dict[str, Any] = read_safely(lambda: _load_hdf5(file), file, DAMAGED, kind="MATLAB v7.3")
    else:
        variables = _load_v5(file)
    meadows = sorted(name for name in variables if name == "rdmutv" or name.startswith("rdmutv_"))
    if meadows:
        return _make_meadows(variables, meadows, file)
    structs = {name: value for name, value in variables.items() if isinstance(value, list)}
    if structs:
        return _make_structs(structs, file)
    return choose_array({name: _order_axes(values) for name, values in variables.items()}, file)


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
    fitting = {name: items for name, items in structs.items() if items and all("RDM" in one for one in items)}
    if len(fitting) != 1:
        names = ", ".join([*(fitting or structs)][:8])
        raise RequestError(f"{file}: one array of structs with the field 'RDM' is wanted, found {names}")
    (items,) = fitting.values()
    parts = [make_rdms(_order_axes(np.asarray(one["RDM"])), file).values for one in items]
    if len({part.shape for part in parts}) > 1:
        raise RequestError(f"{file}: its RDMs have different shapes, {parts[0].shape[1:]} first")
    texts = [_take_text(one.get("name")) for one in items]
    on_rdm = {"name": texts} if any(texts) and all(len(part) == 1 for part in parts) else {}
    return make_rdms(np.concatenate(parts), file, on_rdm=on_rdm)


def _take_text(value: object) -> str:
    texts = np.atleast_1d(np.asarray(value)).tolist()
    return texts[0] if len(texts) == 1 and isinstance(texts[0], str) else ""


# ---- v5


def _load_v5(file: Path) -> dict[str, Any]:
    """Return {variable: array of numbers, of texts, or list of structs} of a v5 file."""
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    _check_v5(file)
    errors = (MatReadError, *DAMAGED, TypeError, NotImplementedError, MemoryError, IndexError, AttributeError)
    found = read_safely(lambda: loadmat(file, chars_as_strings=True), file, errors, kind="MATLAB v5")
    variables = {name: _simplify(value) for name, value in found.items() if not name.startswith("__")}
    return {name: value for name, value in variables.items() if value is not None}


def _check_v5(file: Path) -> None:
    """Refuse a file that is not v5, and one whose compressed elements hold too much; they are counted, not kept."""
    nbytes = 0
    with file.open("rb") as stream:
        head = stream.read(128)
        if len(head) < 128 or head[126:128] not in (b"IM", b"MI"):
            raise RequestError(f"{file} is not a MATLAB file of version 5 or 7.3", hint="save('FILE.mat', '-v7')")
        order = "<" if head[126:128] == b"IM" else ">"
        while tag := stream.read(8):
            kind, length = struct.unpack(f"{order}II", tag) if len(tag) == 8 else (0, 0)
            end = stream.tell() + length
            if kind == COMPRESSED:
                nbytes += _count_inflated(stream.read(min(length, file.stat().st_size)), MAX_NBYTES - nbytes)
                refuse_large(nbytes, file)
            stream.seek(end)


def _count_inflated(data: bytes, most: int) -> int:
    """Return the bytes of a compressed element, counted until they pass `most`."""
    inflater, nbytes = zlib.decompressobj(), 0
    while data and nbytes <= most and not inflater.eof:
        try:
            nbytes += len(inflater.decompress(data, PIECE_NBYTES))
        except zlib.error:
            return nbytes  # loadmat says what is wrong
        data = inflater.unconsumed_tail
    return nbytes


def _simplify(value: Any) -> Any:  # noqa: ANN401  whatever scipy gives
    """Return numbers, texts (text), a list of structs, or None for what holds no RDM: cells of arrays, objects."""
    if not isinstance(value, np.ndarray):
        return None
    if value.dtype.names is not None:
        return [{name: _simplify(one[name]) for name in value.dtype.names} for one in value.reshape(-1)]
    if value.dtype.kind == "U":
        return value.reshape(-1)
    if value.dtype.kind == "O":
        cells = [one for one in value.reshape(-1) if isinstance(one, np.ndarray) and one.dtype.kind == "U"]
        texts = [one.reshape(-1)[0] for one in cells if one.size == 1]
        return np.array(texts, dtype=str) if texts and len(texts) == value.size else None
    return value if value.dtype.kind in "fiub" else None


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


def _read_variable(member: h5py.HLObject, left: _Budget) -> Any:  # noqa: ANN401  the same as _simplify
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
