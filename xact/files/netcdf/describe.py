"""Describe a netCDF file: models, layers, shapes, attributes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5netcdf
import numpy as np

from xact.disk.hdf5_members import check_whole, read_texts
from xact.errors import StoreError, XactError, check_model, make_lines
from xact.files.describe import make_plain, show_attributes, show_shape


def describe(path: str | Path, *, model: str | None, with_layers: bool) -> dict[str, Any]:
    """Return the content of a file. A layer is a group, or the root, with a variable `activations`."""
    with open_netcdf(Path(path)) as file:
        return _describe_file(file, str(path), model=model, with_layers=with_layers)


@contextmanager
def open_netcdf(path: Path) -> Iterator[h5netcdf.File]:
    """Open a netCDF file. Turn each error that h5netcdf raises for a damaged or odd file into a StoreError."""
    try:
        check_whole(path)
        with h5netcdf.File(path, "r") as file:
            yield file
    except XactError:
        raise
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(
            f"{path} is damaged, or is not a netCDF file: {error}", hint="export or copy it again"
        ) from error


def _describe_file(file: h5netcdf.File, path: str, *, model: str | None, with_layers: bool) -> dict[str, Any]:
    holders = [group for group in _walk(file) if "activations" in group.variables]
    models = list(
        dict.fromkeys(name for group in [file, *holders] for name in _read_labels(group, "model", Path(path)))
    )
    check_model(model, models, where=f"the file {path!r}")
    described = {
        "file": path,
        "nbytes": Path(path).stat().st_size,
        "attributes": {name: make_plain(value) for name, value in file.attrs.items()},
        "models": models,
        "dimensions": {name: dim.size for name, dim in file.dimensions.items()},
        "n_layers": sum(len(_read_labels(group, "layer", Path(path))) or 1 for group in holders),
    }
    if with_layers:
        described["layers"] = [
            {
                "layer": ", ".join(_read_labels(group, "layer", Path(path))) or group.name,
                "path": group.name,
                "dims": list(group.variables["activations"].dimensions),
                "shape": list(group.variables["activations"].shape),
            }
            for group in holders
        ]
    return described


def _walk(group: h5netcdf.Group) -> Iterator[h5netcdf.Group]:
    """Yield a group and all groups below it."""
    yield group
    for below in group.groups.values():
        yield from _walk(below)


def _read_labels(group: h5netcdf.Group, name: str, file: Path) -> list[str]:
    if name in group.variables:
        variable = group.variables[name]
        if variable.dtype is str and variable.shape:
            labels = read_texts(variable.__getitem__, variable.shape[0], file)
        else:
            labels = list(np.atleast_1d(variable[...]))
        return [str(make_plain(label)) for label in labels]
    return [str(make_plain(group.attrs[name]))] if name in group.attrs else []


def show(description: dict[str, Any]) -> str:
    """Return the description as text for a terminal."""
    d = description
    sizes = ", ".join(f"{name} {size:,}" for name, size in d["dimensions"].items())
    lines = [f"{d['file']}: netCDF, {' '.join(d['models'])}, {d['n_layers']} layers, {d['nbytes']:,} bytes"]
    lines += [f"  ({sizes})"] if sizes else []
    lines += show_attributes(d["attributes"])
    for layer in d.get("layers", []):
        lines.append(f"  {layer['layer']}  ({', '.join(layer['dims'])}) {show_shape(layer['shape'])}")
    return make_lines(lines)
