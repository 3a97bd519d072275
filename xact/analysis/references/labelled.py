"""netCDF and Zarr: arrays that name their dimensions, such as RDMs of xact, and responses (stimulus, unit)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from xact.analysis.references.base import (
    HDF5_DAMAGED,
    align_columns,
    check_rdms,
    make_texts,
    read_safely,
    refuse_large,
    stack_rdms,
)
from xact.disk.hdf5_members import check_whole
from xact.errors import RequestError

CODECS = frozenset(
    "bytes endian transpose sharding_indexed blosc zstd gzip zlib lz4 lzma bz2 crc32 crc32c adler32 fletcher32 shuffle "
    "delta fixedscaleoffset bitround quantize vlen-utf8 vlen-bytes".split()
)
"""Codecs of Zarr that only decode numbers and texts. Others, such as pickle, may run code."""

MAX_METADATA_NBYTES = 2**26
"""Most bytes of one document of Zarr's metadata."""

DIMS = "(stimulus, stimulus_) for dissimilarities, or (stimulus, unit) for responses"
UNIT_DIMS = ("unit", "voxel", "neuroid", "channel", "vertex")
GROUPS = ("rdm", "subject", "participant", "session", "roi", "region")

DAMAGED = (OSError, ValueError, LookupError, TypeError, RuntimeError, AttributeError, SystemError, MemoryError)
"""What xarray, zarr and h5netcdf raise for damaged or foreign files."""


def read_netcdf(file: Path) -> xr.DataArray:
    """Read a netCDF file, of version 4 by h5netcdf or of version 3 by scipy."""
    with file.open("rb") as stream:
        engine = "scipy" if stream.read(3) == b"CDF" else "h5netcdf"
    if engine == "h5netcdf":
        read_safely(lambda: check_whole(file), file, HDF5_DAMAGED, kind="netCDF")
    return _read(file, kind="netCDF", stored=file.stat().st_size, engine=engine, decode_times=False)


def read_zarr(folder: Path) -> xr.DataArray:
    """Read a group of Zarr, version 2 or 3."""
    documents = [*_read_metadata(folder)]
    if not documents:
        raise RequestError(f"{folder} is not a Zarr group: it has no zarr.json")
    kinds = documents[0].get("attributes")
    if isinstance(kinds, dict) and "xact_format" in kinds and kinds.get("xact_kind") != "rdm":
        raise RequestError(f"{folder} is a store of activations", hint=f"xact rdm {folder} --output RDMS.zarr")
    stored = sum(one.stat().st_size for one in folder.rglob("*") if one.is_file())
    more: dict[str, Any] = {"engine": "zarr", "consolidated": False, "decode_times": False}
    return _read(folder, kind="Zarr", stored=stored, **more)


def _read(path: Path, *, kind: str, stored: int, **options: Any) -> xr.DataArray:  # noqa: ANN401  options of xarray
    with read_safely(lambda: xr.open_dataset(path, **options), path, DAMAGED, kind=kind) as opened:
        name = _find_variable(opened, path)
        chosen = opened[name]
        nbytes = sum(one.nbytes for one in (chosen, *chosen.coords.values()))
        refuse_large(nbytes, path, stored=stored)
        found: xr.DataArray = read_safely(chosen.load, path, DAMAGED, kind=kind)
    if found.dtype.kind not in "fiub":
        raise RequestError(f"{path}: {name!r} has type {found.dtype}; numbers are wanted")
    if "stimulus_" in found.dims:
        return _make_rdms(found, path, is_xact=opened.attrs.get("xact_kind") == "rdm", attrs=opened.attrs)
    return make_responses(found, str(path))


def _find_variable(opened: xr.Dataset, path: Path) -> str:
    """Return the name of the array of RDMs or responses: `dissimilarity`, or the only one with a stimulus."""
    fitting = [str(name) for name, one in opened.data_vars.items() if "stimulus" in one.dims and one.ndim > 1]
    if "dissimilarity" in fitting or len(fitting) == 1:
        return "dissimilarity" if "dissimilarity" in fitting else fitting[0]
    if fitting:
        raise RequestError(f"{path}: one array is wanted, found {', '.join(fitting[:8])}", hint=f"dimensions {DIMS}")
    found = ", ".join(f"{name} ({', '.join(map(str, one.dims))})" for name, one in [*opened.data_vars.items()][:4])
    raise RequestError(
        f"{path}: no array has the dimension 'stimulus'; it has {found or 'none'}",
        hint=f"array.rename(NAME='stimulus') of xarray; wanted are {DIMS}",
    )


def _make_rdms(found: xr.DataArray, path: Path, *, is_xact: bool, attrs: Any) -> xr.DataArray:  # noqa: ANN401
    """Return (rdm, stimulus, stimulus_): other dimensions, such as model and layer, become `rdm` and its labels."""
    rdms = align_columns(stack_rdms(found.astype(np.float64)).rename("dissimilarity"), str(path))
    rdms.attrs = {**attrs, **found.attrs}
    if is_xact and rdms.sizes["rdm"] > 1:
        rdms = rdms[~np.isnan(rdms.values).all(axis=(1, 2))]  # a layer that a model lacks
    check_rdms(rdms, path, has_constant=is_xact)
    return rdms


def make_responses(found: xr.DataArray, what: str) -> xr.DataArray:
    """Return responses with the dimensions ([GROUP], [replicate], stimulus, unit)."""
    others = [str(dim) for dim in found.dims if dim not in ("stimulus", "replicate", *GROUPS)]
    units = [dim for dim in others if dim in UNIT_DIMS] or others
    if len(units) != 1 or len(others) != 1:
        raise RequestError(
            f"{what}: dimensions ({', '.join(map(str, found.dims))}); wanted are {DIMS}",
            hint="array.rename(NAME='unit') of xarray",
        )
    renamed = found if units == ["unit"] else found.rename({units[0]: "unit"})
    if "stimulus" in renamed.coords:
        renamed = renamed.assign_coords(stimulus=make_texts(renamed["stimulus"].values))
    return renamed.transpose(*[dim for dim in GROUPS if dim in found.dims], ..., "stimulus", "unit")


def _read_metadata(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the metadata documents of a folder, the root's first. Refuse a codec that is not known to be harmless."""
    for name in ("zarr.json", ".zmetadata", ".zgroup", ".zarray", ".zattrs"):
        for file in sorted(folder.rglob(name), key=lambda one: len(one.parts)):
            if file.stat().st_size > MAX_METADATA_NBYTES:
                raise RequestError(f"{file} has {file.stat().st_size} bytes, too many for metadata")
            try:
                document = json.loads(file.read_bytes())
            except (ValueError, RecursionError):
                raise RequestError(f"{file} is not valid JSON") from None
            if not isinstance(document, dict):
                raise RequestError(f"{file} is not a document of Zarr")
            for codec in _list_codecs(document):
                if codec.removeprefix("numcodecs.") not in CODECS:
                    raise RequestError(
                        f"{file} names the codec {codec!r}, which is not decoded here",
                        hint="save it again: xr.open_zarr(...).to_netcdf(...), if you trust it",
                    )
            yield document


def open_rdm_store(folder: Path) -> xr.DataArray:
    """Return the RDMs (model, layer, stimulus, stimulus_) that `xact rdm` wrote, read when they are asked for."""
    for _ in _read_metadata(folder):
        pass  # its codecs are known
    options: dict[str, Any] = {"engine": "zarr", "consolidated": False, "decode_times": False}
    opened: xr.Dataset = read_safely(lambda: xr.open_dataset(folder, **options), folder, DAMAGED, kind="Zarr")
    if "dissimilarity" not in opened:
        raise RequestError(f"{folder} is no whole RDM store: it has no `dissimilarity`", hint="xact rdm makes it again")
    return opened["dissimilarity"]


def _list_codecs(document: object) -> Iterator[str]:
    """Yield the names of all codecs in a document, wherever they are: `name` in version 3, `id` in version 2."""
    waiting = [document]
    while waiting:
        one = waiting.pop()
        if isinstance(one, list):
            waiting += one
        elif isinstance(one, dict):
            for key, value in one.items():
                if key in ("codecs", "index_codecs", "filters", "compressor"):
                    for codec in value if isinstance(value, list) else [value]:
                        if isinstance(codec, dict):
                            yield str(codec.get("name", codec.get("id")))
                if key not in ("attributes", ".zattrs"):
                    waiting.append(value)
