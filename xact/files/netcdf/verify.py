"""Check a netCDF export."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5netcdf
import numpy as np

from xact.files.finite import check_finite
from xact.files.netcdf.describe import open_netcdf
from xact.labels import DIMS


def check_file(file: Path) -> Iterator[str]:
    """Yield the faults of every variable `activations`: its five dims, their labels, its values."""
    with open_netcdf(file) as opened:
        found = list(_find_activations(opened))
        if not found:
            yield "holds no activations"
        for variable, labels in found:
            yield from (f"{variable.name}: {fault}" for fault in _check_variable(variable, labels))


def _find_activations(opened: h5netcdf.File) -> Iterator[tuple[h5netcdf.Variable, dict[str, Any]]]:
    """Yield each variable `activations` with the label variables of its group and of the groups above."""
    waiting: list[tuple[h5netcdf.Group, dict[str, Any]]] = [(opened, {})]
    while waiting:
        group, above = waiting.pop()
        labels = above | dict(group.variables.items())
        if "activations" in group.variables:
            yield group.variables["activations"], labels
        waiting += [(child, labels) for child in group.groups.values()]


def _check_variable(variable: h5netcdf.Variable, labels: dict[str, Any]) -> Iterator[str]:
    dims = tuple(variable.dimensions)
    if dims != tuple(dim for dim in DIMS if dim in dims) or not {"stimulus", "unit"} <= set(dims):
        yield f"has dims {', '.join(dims)}, expected {', '.join(DIMS)} (a dim of length 1 may be missing)"
        return
    if np.dtype(variable.dtype).kind not in "fiub":
        yield f"has dtype {variable.dtype}, expected floating-point numbers"
        return
    lengths = dict(zip(dims, variable.shape, strict=True))
    for name in DIMS[:-1]:
        wanted = (lengths[name],) if name in dims else ()
        if name in labels and labels[name].shape != wanted:
            yield f"the label {name!r} has shape {labels[name].shape}, the axis {wanted}"
        elif name not in labels and not (name == "replicate" and lengths.get(name, 1) == 1):  # a mean has no replicates
            yield f"has no label {name!r}"
    axis = dims.index("stimulus")
    shape = (lengths["stimulus"], math.prod(variable.shape) // max(1, lengths["stimulus"]))
    yield from check_finite(shape, lambda at: variable[(slice(None),) * axis + (at,)])
