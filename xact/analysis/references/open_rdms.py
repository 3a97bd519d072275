"""Open a reference: the kind of its file says which module reads it."""

from __future__ import annotations

import importlib
from pathlib import Path

import xarray as xr

from xact.analysis.references.base import HDF5_DAMAGED, read_safely
from xact.disk.paths import expand_path
from xact.errors import NoStoreError, RequestError, make_nearest_text

READERS = {
    "hdf5 h5": ("hdf5", "read_file"),
    "nc nc4 netcdf cdf": ("labelled", "read_netcdf"),
    "zarr": ("labelled", "read_zarr"),
    "csv tsv parquet pq": ("tables", "read_file"),
    "npy": ("numpy_arrays", "read_npy"),
    "npz": ("numpy_arrays", "read_npz"),
    "mat": ("matlab", "read_file"),
}
"""{extensions: (module, function) that reads such a file}."""

CODE = ("pkl", "pickle", "p", "pt", "pth", "joblib", "rds", "rdata")
"""Extensions of files that only a program with the right to run code can read."""


def open_rdms(path: str | Path) -> xr.DataArray:
    """Open reference RDMs of any kind of file. No code of the file runs.

    Parameters
    ----------
    path : str or Path
        HDF5 of rsatoolbox (`.h5`, `.hdf5`), Zarr of xact, netCDF, a table (`.csv`, `.tsv`, `.parquet`: a square with
        ids in its first line and first column, or columns a, b, value), `.npy`, `.npz`, `.mat` (also of Meadows).
        Responses (stimulus, unit), perhaps also replicate and subject, in netCDF, Zarr or a table with a row for each
        stimulus, become correlation RDMs by `rdm`.

    Returns
    -------
    xarray.DataArray
        Dissimilarities, float64, with dimensions (rdm, stimulus, stimulus_). Labels of the file are coordinates on
        `rdm` and `stimulus`; those on `stimulus` lie again on `stimulus_`, with `_` at the end of their names. There is
        no coordinate `stimulus` if the file has no labels.

    Raises
    ------
    NoStoreError
        If there is no such file.
    RequestError
        If the file does not hold RDMs: not square, not symmetric, a diagonal of ones, NaN, fewer than 3 stimuli; or if
        reading it can run code.
    StoreError
        If an HDF5 file refers to other files, or declares more than it holds.

    Examples
    --------
    >>> it = xact.open_rdms("it_rdms.h5")
    >>> mean = it.mean("rdm")
    """
    found = open_reference(path)
    if "unit" not in found.dims:
        return found
    from xact.analysis.references.responses import compute_rdms

    return compute_rdms(found).assign_attrs(reference=found.attrs["reference"])


def open_reference(path: str | Path) -> xr.DataArray:
    """Return what a reference file holds: RDMs (rdm, stimulus, stimulus_), or responses with the dimension `unit`."""
    file = expand_path(path)
    suffix = file.suffix.removeprefix(".").casefold()
    if suffix in CODE:
        raise RequestError(
            f"{file}: reading a .{suffix} file can run code, so it is not read",
            hint="save it as HDF5: rdms.save('rdms.h5', file_type='hdf5') of rsatoolbox, or np.save of the numbers",
        )
    if not file.exists():
        names = [one.name for one in file.parent.glob("*")] if file.parent.is_dir() else []
        raise NoStoreError(f"there is no reference {str(file)!r}{make_nearest_text(file.name, names)}")
    if file.is_dir():
        suffix = "zarr"
    elif suffix in ("h5", "hdf5") and read_safely(lambda: _is_netcdf(file), file, HDF5_DAMAGED, kind="HDF5"):
        suffix = "nc"
    found = next((reader for names, reader in READERS.items() if suffix in names.split()), None)
    if found is None or file.is_dir() != (suffix == "zarr"):
        known = ", ".join(f".{name}" for names in READERS for name in names.split())
        raise RequestError(f"{file} is not a kind of reference that is known", hint=f"use one of {known}")
    module, name = found
    read = getattr(importlib.import_module(f"xact.analysis.references.{module}"), name)
    opened: xr.DataArray = read(file)
    opened.attrs.setdefault("reference", file.name)
    return opened


def _is_netcdf(file: Path) -> bool:
    """Return True for an HDF5 file that a netCDF library wrote."""
    import h5py

    if not h5py.is_hdf5(file):
        return False
    with h5py.File(file, "r") as opened:
        return "_NCProperties" in opened.attrs
