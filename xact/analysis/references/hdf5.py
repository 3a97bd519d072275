"""HDF5 of rsatoolbox, read by h5py alone: dissimilarities, their measure, and the descriptors as labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xarray as xr

from xact.analysis.references.base import HDF5_DAMAGED, make_rdms, read_safely, refuse_large
from xact.disk.hdf5_members import check_attributes, count_bytes, open_member, read_texts
from xact.errors import RequestError


def read_file(file: Path) -> xr.DataArray:
    """Read the RDMs that `rsatoolbox.rdm.RDMs.save` wrote."""
    found: xr.DataArray = read_safely(lambda: _read(file), file, HDF5_DAMAGED, kind="HDF5")
    return found


def _read(file: Path) -> xr.DataArray:
    with h5py.File(file, "r") as opened:
        check_attributes(opened)
        if "dissimilarities" not in opened:
            names = ", ".join(sorted(map(str, opened))[:4])
            raise RequestError(
                f"{file} has no RDMs of rsatoolbox: `dissimilarities` is missing among {names or 'nothing'}",
                hint="rdms.save(file, file_type='hdf5') of rsatoolbox writes it; `xact rdm` makes RDMs of activations",
            )
        values = read_values(opened, "dissimilarities", file)
        attrs = _read_group(opened, "descriptors", file)
        measure = _read_members(opened, file, only="dissimilarity_measure").get("dissimilarity_measure")
        if measure is not None:
            attrs["dissimilarity_measure"] = str(np.asarray(measure).item())
        on_stimulus = _read_group(opened, "pattern_descriptors", file)
        on_rdm = _read_group(opened, "rdm_descriptors", file)
    return make_rdms(values, file, on_stimulus=on_stimulus, on_rdm=on_rdm, attrs=attrs)


def _read_group(opened: h5py.File, name: str, file: Path) -> dict[str, Any]:
    """Return a dictionary that rsatoolbox wrote; empty if it is not there."""
    if name not in opened:
        return {}
    group = open_member(opened, name)
    return _read_members(group, file) if isinstance(group, h5py.Group) else {}


def _read_members(group: h5py.Group, file: Path, *, only: str | None = None) -> dict[str, Any]:
    """Return the values of a group: its data sets, and its attributes, where rsatoolbox keeps single texts."""
    found: dict[str, Any] = {}
    for name in group if only is None else [only] if only in group else []:
        if _is_kept(group, name):
            values = read_values(group, name, file)
            found[name] = values.item() if values.ndim == 0 else values
    for name, value in group.attrs.items():
        if only in (None, name) and isinstance(value, str | np.ndarray | np.generic):
            found[name] = value
    return found


def _is_kept(group: h5py.Group, name: str) -> bool:
    """Return True for a data set with values; rsatoolbox writes None as one without."""
    is_own = isinstance(group.get(name, getlink=True), h5py.HardLink)
    return not is_own or (isinstance(group[name], h5py.Dataset) and group[name].shape is not None)


def read_values(group: h5py.Group, name: str, file: Path) -> np.ndarray:
    """Return a data set that the file stores itself, texts as str."""
    member = open_member(group, name)
    if not isinstance(member, h5py.Dataset):
        raise RequestError(f"{file}: {member.name} is a group, not an array")
    if h5py.check_string_dtype(member.dtype) is None:
        if member.dtype.kind not in "fiub":
            raise RequestError(f"{file}: {member.name} has type {member.dtype}; numbers or texts are wanted")
        refuse_large(count_bytes(member), file)
        return np.asarray(member[()])
    refuse_large(count_bytes(member), file)
    texts = member.asstr("utf-8", "replace")
    if member.ndim != 1:
        return np.asarray(texts[()], dtype=str)
    return np.array(read_texts(lambda rows: texts[rows], len(member), file), dtype=str)
