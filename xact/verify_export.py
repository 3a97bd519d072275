"""An export against its side file `NAME.sha256`; without one, what its structure must be."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from xact.digest import hash_file
from xact.errors import RequestError, StoreError, make_nearest_text
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
    faults = [Fault(name, found) for found in CHECKS[file.suffix](file)]
    note = f"there is no {side.name}: its structure was looked at, its bytes could not be compared"
    return Findings("structure", True, faults, [note], 1, file.stat().st_size)


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
    """Yield what is wrong with /model/stimulus/layer: depth, dims, layers, replicates, values."""
    import h5py

    try:
        with h5py.File(file, "r") as opened:
            if not len(opened):
                yield "holds no model"
            for model in opened:
                yield from _check_model(opened, model)
    except (OSError, RuntimeError, KeyError, ValueError) as error:  # h5py says damage in all these ways
        yield f"cannot be read as HDF5: {error}"


def _check_model(opened: Any, model: str) -> Iterator[str]:  # noqa: ANN401  h5py ships no types
    import h5py

    first: tuple[str, dict[str, tuple[int, ...]]] | None = None
    n_stimuli = 0
    for stimulus, group in _walk(opened, model, h5py.Group):
        if isinstance(group, str):
            yield group
            continue
        n_stimuli += 1
        shapes: dict[str, tuple[int, ...]] = {}
        for layer, dataset in _walk(group, "", h5py.Dataset):
            if isinstance(dataset, str):
                yield dataset
                continue
            shapes[layer] = dataset.shape
            yield from (f"/{model}/{stimulus}/{layer}: {found}" for found in _check_dataset(dataset))
        first = first or (stimulus, shapes)
        if shapes.keys() != first[1].keys():
            odd = sorted(shapes.keys() ^ first[1].keys())[0]
            yield f"/{model}/{stimulus}: the layers differ from those of {first[0]} ({odd})"
        elif shapes != first[1]:
            odd = next(layer for layer in shapes if shapes[layer] != first[1][layer])
            yield f"/{model}/{stimulus}/{odd}: has shape {shapes[odd]}, that of {first[0]} {first[1][odd]}"
        if len({shape[0] for shape in shapes.values() if shape}) > 1:
            yield f"/{model}/{stimulus}: its layers have different numbers of replicates"
    if not n_stimuli:
        yield f"/{model}: holds no stimulus"


def _walk(parent: Any, name: str, kind: type) -> Iterator[tuple[str, Any]]:  # noqa: ANN401
    """Yield (name, member) of one group, or (name, what is wrong with it); links out of the file are not followed."""
    import h5py

    group = parent[name] if name and isinstance(parent.get(name, getlink=True), h5py.HardLink) else parent
    if name and (group is parent or not isinstance(group, h5py.Group)):
        yield "", f"/{name}: is no group"
        return
    for member in group:
        at = f"{group.name.rstrip('/')}/{member}"
        if not isinstance(group.get(member, getlink=True), h5py.HardLink):
            yield member, f"{at}: is a link, not followed"
        elif not isinstance(group[member], kind):
            yield member, f"{at}: is no {kind.__name__.lower()}: a file has three levels, model, stimulus and layer"
        else:
            yield member, group[member]


def _check_dataset(dataset: Any) -> Iterator[str]:  # noqa: ANN401
    if dataset.ndim != 2:
        yield f"has {dataset.ndim} dims, 2 belong (replicate, unit)"
    elif not np.issubdtype(dataset.dtype, np.floating):
        yield f"has dtype {dataset.dtype}"
    elif dataset.external or dataset.is_virtual:
        yield "keeps its values in another file, not followed"
    else:
        yield from _check_finite(dataset.shape, lambda at: dataset[at])


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

    try:
        held = open_torch(file)
    except StoreError as error:
        yield str(error)
        return
    feats = held["feats"]
    for key, axis in (("stimulus", 0), ("layer", 1), ("mask", 0)):
        if key in held and len(held[key]) != feats.shape[axis]:
            yield f"{key} has {len(held[key])} entries, feats has {feats.shape[axis]} along that axis"
    yield from _check_finite(tuple(feats.shape), lambda at: feats[at].float().numpy())


def _check_netcdf(file: Path) -> Iterator[str]:
    """Yield what is wrong with every `activations`: its five dims, their labels, its values."""
    import h5netcdf

    try:
        with h5netcdf.File(file, "r") as opened:
            found = list(_find_activations(opened))
            if not found:
                yield "holds no activations"
            for variable, labels in found:
                yield from (f"{variable.name}: {fault}" for fault in _check_variable(variable, labels))
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        yield f"cannot be read as netCDF: {error}"


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
    if tuple(variable.dimensions) != DIMS:
        yield f"has dims {', '.join(variable.dimensions)}; {', '.join(DIMS)} belong"
        return
    for dim, length in zip(DIMS[:-1], variable.shape, strict=False):
        if dim not in labels:
            yield f"has no label {dim!r}"
        elif labels[dim].shape != (length,):
            yield f"the label {dim!r} has shape {labels[dim].shape}, the axis has {length}"
    per_stimulus = (variable.shape[0], *variable.shape[2:])
    shape = (variable.shape[1], *per_stimulus)
    yield from _check_finite(shape, lambda at: variable[:, at])


CHECKS: dict[str, Callable[[Path], Iterator[str]]] = {
    ".h5": _check_hdf5,
    ".hdf5": _check_hdf5,
    ".pt": _check_torch,
    ".nc": _check_netcdf,
}
