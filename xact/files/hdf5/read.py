"""Read HDF5 files `/{model}/{stimulus}/{layer}` of arrays (replicate, unit). There is one file for each condition."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np

from xact.disk.hdf5_members import (
    MAX_EXPANSION,
    MEMBER_NBYTES,
    SMALL_NBYTES,
    check_attributes,
    count_bytes,
    open_member,
)
from xact.errors import RequestError, StoreError
from xact.files.read import OldLayer, OldModel, check_floating, to_float32
from xact.labels import StimulusTable
from xact.reading.trees.hdf5 import is_ordered, make_natural_key
from xact.recipe.registry.load import load_registry
from xact.stimuli.base import check_table

PREFIX = "model_activations_"
"""Prefix of the usual file names, before the condition."""


@dataclass(frozen=True)
class FileRow:
    """Location of one stimulus: the number of its file and its group."""

    file: int
    group: str


@dataclass
class Hdf5Files:
    """Open files, one for each condition, each with the same models."""

    table: StimulusTable
    models: Sequence[OldModel]
    n_replicates: int
    notes: Sequence[str]
    opened: Sequence[h5py.File]
    rows: Sequence[FileRow]
    members: Mapping[str, tuple[str, Sequence[str]]]
    """{model: (name of its group, name of the data set of each layer)}."""
    close: Callable[[], None]

    def fill(self, model: OldModel, start: int, buffers: Sequence[np.ndarray]) -> None:
        """Fill one buffer for each layer, starting at the row `start`."""
        group, names = self.members[model.label]
        for i in range(len(buffers[0])):
            row = self.rows[start + i]
            stimulus = self.opened[row.file][group][row.group]
            for name, buffer in zip(names, buffers, strict=True):
                where = f"{self.opened[row.file].filename}: /{group}/{row.group}/{name}"
                try:
                    buffer[i] = to_float32(stimulus[name][()], where)
                except OSError as error:
                    raise StoreError(f"{where}: cannot be read: {error}") from None


@dataclass
class _Scan:
    """Facts about the models so far. All stimuli must have the layers and shapes of the first stimulus."""

    shapes: dict[str, dict[str, tuple[int, int]]] = field(default_factory=dict)
    """{model: {layer: shape}}."""
    is_ordered: dict[str, bool] = field(default_factory=dict)
    """{model: True if the file lists its layers in the order of writing}."""
    labels: dict[str, dict[str, str]] = field(default_factory=dict)
    """{model: {data set: label of the layer}}."""
    true_models: dict[str, str] = field(default_factory=dict)
    dtypes: set[str] = field(default_factory=set)
    n_left: int = 0
    """Data sets that may follow in the file. Hard links can give one data set more names than a file has bytes."""
    nbytes_left: int = 0
    """Bytes of values that may follow in the file."""


def open_old(files: Sequence[Path], table: Path | None) -> Hdf5Files:
    """Open files, check all shapes, and list their stimuli in the order of the files."""
    if table is not None:
        raise RequestError("--stimuli is only for .pt files: HDF5 files contain the names of their stimuli")
    with ExitStack() as stack:
        opened = [stack.enter_context(_open(file)) for file in files]
        scan, rows, listed = _Scan(), [], _Listed()
        for number, file in enumerate(opened):
            rows += [FileRow(number, stimulus) for stimulus in _scan_file(file, scan, listed)]
        if not rows:
            raise StoreError(f"{files[0]} holds no stimuli")
        check_table(listed.make_table(), location="the files")
        models, members, notes = _make_models(scan)
        shape = next(iter(next(iter(scan.shapes.values())).values()))
        notes += [f"values of dtype {dtype} were cast to float32" for dtype in sorted(scan.dtypes - {"float32"})]
        return Hdf5Files(listed.make_table(), models, shape[0], notes, opened, rows, members, stack.pop_all().close)


@dataclass
class _Listed:
    """The labels of the stimuli, in the order of reading."""

    ids: list[str] = field(default_factory=list)
    conditions: list[str] = field(default_factory=list)
    stems: list[str] = field(default_factory=list)

    def make_table(self) -> StimulusTable:
        return StimulusTable(self.ids, self.conditions, self.stems, files=[""] * len(self.ids))


def _open(file: Path) -> h5py.File:
    try:
        opened = h5py.File(file, "r")
    except OSError as error:
        raise StoreError(f"{file} cannot be read as HDF5: {error}") from None
    check_attributes(opened)
    return opened


def list_members(group: h5py.Group, kind: type) -> Iterator[str]:
    """Yield the names in a group. Raise StoreError for a member that is not a `kind` stored in this file."""
    for name in group:
        member = open_member(group, name)
        if not isinstance(member, kind):
            raise StoreError(
                f"{group.file.filename}: {member.name} is not a {kind.__name__.lower()}: a file has three levels, "
                f"model, stimulus and layer"
            )
        yield name


def _scan_file(file: h5py.File, scan: _Scan, listed: _Listed) -> list[str]:
    """Return the stimuli of one file. Raise StoreError if its models, layers or shapes differ from those before."""
    models = list(list_members(file, h5py.Group))
    name = file.filename
    nbytes = Path(name).stat().st_size
    scan.n_left, scan.nbytes_left = nbytes // MEMBER_NBYTES, MAX_EXPANSION * nbytes + SMALL_NBYTES
    if not models or (scan.shapes and set(models) != set(scan.shapes)):
        odd = sorted(set(models) ^ set(scan.shapes))
        raise StoreError(
            f"{name} holds the models {', '.join(models) or 'none'}; those before {', '.join(scan.shapes) or 'none'}",
            hint=f"all files must have the same models ({', '.join(odd)} differ); give the others another store",
        )
    stimuli = list(list_members(file[models[0]], h5py.Group))
    for model in models:
        found = list(list_members(file[model], h5py.Group))
        if set(found) != set(stimuli):
            odd = sorted(set(found) ^ set(stimuli))
            raise StoreError(f"{name}: /{model} and /{models[0]} differ in the stimulus {odd[0]!r} ({len(odd)} in all)")
        scan.true_models[model] = read_label(file[model], "label", model)
        for stimulus in stimuli:
            _scan_stimulus(file[model][stimulus], model, scan)
    condition = read_label(file, "condition", Path(name).stem.removeprefix(PREFIX))
    for stimulus in stimuli:
        group = file[models[0]][stimulus]
        stem = read_label(group, "label", stimulus)
        listed.ids.append(f"{condition}/{stem}")
        listed.conditions.append(condition)
        listed.stems.append(stem)
    return stimuli


def _scan_stimulus(group: h5py.Group, model: str, scan: _Scan) -> None:
    where = f"{group.file.filename}: {group.name}"
    shapes: dict[str, tuple[int, int]] = {}
    for layer in list_members(group, h5py.Dataset):
        dataset = group[layer]
        if dataset.ndim != 2 or 0 in dataset.shape:
            raise StoreError(f"{where}/{layer}: has shape {dataset.shape}, expected (replicate, unit)")
        check_floating(dataset.dtype, f"{where}/{layer}")
        scan.dtypes.add(str(dataset.dtype))
        shapes[layer] = dataset.shape
        scan.n_left -= 1
        scan.nbytes_left -= count_bytes(dataset)
        if min(scan.n_left, scan.nbytes_left) < 0:
            raise StoreError(f"{where}/{layer}: the data sets so far declare more than a file of this size can hold")
        if model not in scan.shapes:
            scan.labels.setdefault(model, {})[layer] = read_label(dataset, "label", layer)
    if model not in scan.shapes:
        scan.shapes[model] = shapes
        scan.is_ordered[model] = is_ordered(group)
    first = scan.shapes[model]
    if not shapes or shapes.keys() != first.keys():
        odd = sorted(shapes.keys() ^ first.keys())
        raise StoreError(f"{where}: its layers differ from those of the first stimulus of {model!r} ({odd[:3]})")
    n_replicates = next(iter(next(iter(scan.shapes.values())).values()))[0]
    for layer, shape in shapes.items():
        if shape != (n_replicates, first[layer][1]):
            raise StoreError(f"{where}/{layer}: has shape {shape}, expected {(n_replicates, first[layer][1])}")


def read_label(member: h5py.HLObject, attribute: str, default: str) -> str:
    """Return the label in an attribute, or `default`. `xact export` writes it if the label cannot be the name."""
    value = member.attrs.get(attribute, default)
    return value if isinstance(value, str) else default


def _make_models(scan: _Scan) -> tuple[list[OldModel], dict[str, tuple[str, list[str]]], list[str]]:
    models, members, notes = [], {}, []
    for name, shapes in scan.shapes.items():
        label, labels = scan.true_models[name], scan.labels[name]
        order, note = order_layers(label, labels, keeps_order=scan.is_ordered[name])
        notes += [note] if note else []
        layers = tuple(OldLayer(labels[dataset], shapes[dataset][1]) for dataset in order)
        models.append(OldModel(label, layers))
        members[label] = (name, order)
    return models, members, notes


def order_layers(model: str, labels: Mapping[str, str], *, keeps_order: bool) -> tuple[list[str], str]:
    """Return the data sets of a model in forward order, and a note about this order for a person.

    The order is that of writing if the file has it, else that of the registry, else by name (2 before 10).
    """
    if keeps_order:
        return list(labels), ""
    entry = load_registry().entries.get(model)
    for known in entry.layer_sets.values() if entry else ():
        index = {label: i for i, label in enumerate(known.layers)}
        if all(label in index for label in labels.values()):
            return sorted(labels, key=lambda dataset: index[labels[dataset]]), ""
    note = f"{model}: the file lists layers by the alphabet; they were sorted by name, 2 before 10"
    return sorted(labels, key=lambda dataset: make_natural_key(labels[dataset])), note
