"""An export against its side file `NAME.sha256`; without one, what its structure must be."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from xact.digest import hash_file
from xact.errors import RequestError, XactError, make_nearest_text
from xact.findings import Fault, Findings
from xact.labels import DIMS

SIDE = ".sha256"
"""Ending of the file beside an export that holds its sha256, as sha256sum writes it."""

READ_VALUES = 2**22
"""Values looked at at a time."""


def verify_export(file: Path) -> Findings:
    """Compare an export with its side file, or look at its structure and that all its values are finite."""
    side = file.with_name(file.name + SIDE)
    name = file.name
    if side.is_file():
        faults = [Fault(name, found) for found in _compare(file, side)]
        return Findings(f"compared with {side.name}", True, faults, [], 1, file.stat().st_size)
    if file.suffix not in CHECKS:
        raise RequestError(
            f"{str(file)!r} has no side file {side.name!r} and is no export{make_nearest_text(file.suffix, CHECKS)}",
            hint=f"an export ends in {', '.join(CHECKS)}; a store is a folder",
        )
    faults = [Fault(name, found) for found in _look(file)]
    note = f"there is no {side.name}: its structure was looked at, its bytes could not be compared"
    return Findings("structure", True, faults, [note], 1, file.stat().st_size)


def _look(file: Path) -> Iterator[str]:
    """Yield what is wrong with the structure and the values; what cannot be read ends it."""
    try:
        yield from CHECKS[file.suffix](file)
    except XactError as error:
        yield str(error).removeprefix(f"{file}: ")
    except (OSError, RuntimeError, KeyError, ValueError) as error:  # h5py says damage in all these ways
        yield f"cannot be read: {error}"


def _compare(file: Path, side: Path) -> Iterator[str]:
    with side.open("rb") as opened:
        text = opened.read(10_000).decode("utf-8", "replace")
    said = re.fullmatch(r"\\?([0-9a-fA-F]{64})(?: [ *].*)?\s*", text)
    if said is None:
        yield f"cannot be compared: {side.name} is no line of sha256sum"
        return
    found = hash_file(file.resolve())
    if found.nbytes == 0:
        yield "is empty"
    elif found.sha256 != said[1].lower():
        yield f"holds other bytes than {side.name} says (sha256 {found.sha256[:16]}… in place of {said[1][:16]}…)"


def _check_hdf5(file: Path) -> Iterator[str]:
    """Yield what is wrong with /model/stimulus/layer: levels, dims, layers, replicates, values."""
    from xact.old_files.hdf5 import open_old

    with closing(open_old([file], None)) as old:
        for model in old.models:
            group, layers = old.members[model.label]
            for row in old.rows:
                for layer in layers:
                    dataset = old.opened[row.file][group][row.group][layer]
                    found = _check_finite(dataset.shape, dataset.__getitem__)
                    yield from (f"/{group}/{row.group}/{layer}: {one}" for one in found)


def _check_finite(shape: tuple[int, ...], read: Callable[[slice], Any]) -> Iterator[str]:
    """Yield how many values are not finite, reading some rows of the first axis at a time."""
    step = max(1, READ_VALUES // max(1, math.prod(shape[1:])))
    n_bad = 0
    for start in range(0, shape[0], step):
        n_bad += int(np.count_nonzero(~np.isfinite(read(slice(start, start + step)))))
    if n_bad:
        yield f"{n_bad} values are NaN or infinite"


def _check_torch(file: Path) -> Iterator[str]:
    """Yield what is wrong with `feats` (stimulus, layer, unit) and the labels beside it."""
    from xact.old_files.torch import open_torch

    held = open_torch(file)
    feats = held["feats"]
    for key, axis in (("stimulus", 0), ("layer", 1), ("mask", 0), ("loss", 0), ("bpb", 0)):
        if key in held and np.ndim(held[key]) and len(held[key]) != feats.shape[axis]:
            yield f"{key} has {len(held[key])} entries, feats has {feats.shape[axis]} along that axis"
    yield from _check_finite(tuple(feats.shape), lambda at: feats[at].float().numpy())


def _check_netcdf(file: Path) -> Iterator[str]:
    """Yield what is wrong with every `activations`: its five dims, their labels, its values."""
    import h5netcdf

    with h5netcdf.File(file, "r") as opened:
        found = list(_find_activations(opened))
        if not found:
            yield "holds no activations"
        for variable, labels in found:
            yield from (f"{variable.name}: {fault}" for fault in _check_variable(variable, labels))


def _find_activations(opened: Any) -> Iterator[tuple[Any, dict[str, Any]]]:  # noqa: ANN401
    """Yield each variable `activations` with the label variables of its group and those above."""
    waiting: list[tuple[Any, dict[str, Any]]] = [(opened, {})]
    while waiting:
        group, above = waiting.pop()
        labels = above | dict(group.variables.items())
        if "activations" in group.variables:
            yield group.variables["activations"], labels
        waiting += [(child, labels) for child in group.groups.values()]


def _check_variable(variable: Any, labels: dict[str, Any]) -> Iterator[str]:  # noqa: ANN401
    dims = tuple(variable.dimensions)
    if dims != tuple(dim for dim in DIMS if dim in dims) or not {"stimulus", "unit"} <= set(dims):
        yield f"has dims {', '.join(dims)}; {', '.join(DIMS)} belong, one of length 1 may be left out"
        return
    lengths = dict(zip(dims, variable.shape, strict=True))
    for name in DIMS[:-1]:
        wanted = (lengths[name],) if name in dims else ()
        if name in labels and labels[name].shape != wanted:
            yield f"the label {name!r} has shape {labels[name].shape}, the axis {wanted}"
        elif name not in labels and not (name == "replicate" and lengths.get(name, 1) == 1):  # a mean has none
            yield f"has no label {name!r}"
    axis = dims.index("stimulus")
    shape = (lengths["stimulus"], math.prod(variable.shape) // max(1, lengths["stimulus"]))
    yield from _check_finite(shape, lambda at: variable[(slice(None),) * axis + (at,)])


CHECKS: dict[str, Callable[[Path], Iterator[str]]] = {
    ".h5": _check_hdf5,
    ".hdf5": _check_hdf5,
    ".pt": _check_torch,
    ".nc": _check_netcdf,
}
