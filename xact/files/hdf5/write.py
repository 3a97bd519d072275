"""Write HDF5: one file for each condition, `/{model}/{stem}/{layer}`, float32 (replicate, unit), in forward order.

Data sets are made with h5py's low-level calls: a file may have 100,000 data sets, and `create_dataset` takes three
times as long.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from xact.errors import RequestError
from xact.files.atomic import PIECE_NBYTES, Follower, Sink, make_file_name, open_beside, write_at
from xact.files.export import ExportFile, ExportSelection, Options, SelectedModel

OPTIONS: Mapping[str, Any] = {
    "output_dir": ".",
    "replicates": "all",
    "prefix": "model_activations",
    "names": "path",
    "append": False,
}

OVERHEAD_NBYTES = 420
"""Bytes that HDF5 itself needs in a file for each data set (measured: 370, including links)."""

LIBVER = ("earliest", "v108")
"""The format of HDF5 1.8. Every h5py in use reads it."""


@dataclass(frozen=True)
class GroupNames:
    """The names of the groups and data sets of one file."""

    models: Mapping[str, str]
    """{label: name}."""
    layers: Mapping[str, Mapping[str, str]]
    """{model: {label: name}}."""
    stems: Mapping[str, str]


def plan_files(chosen: ExportSelection, options: Options) -> list[ExportFile]:
    """Return one file for each condition."""
    files = []
    models = make_names([model.label for model in chosen.models], what="model")
    layers = {model.label: _name_layers(model) for model in chosen.models}
    for condition, rows in chosen.split_conditions().items():
        part = condition.rpartition("/")[2] if options.names == "basename" else condition
        name = make_file_name(part, what="the condition")
        target = options.output_dir / f"{options.prefix}_{name}.h5"
        names = GroupNames(models, layers, _name_stems(chosen, rows, condition))
        is_added = options.append and target.exists()
        if is_added:
            check_free(target, models, chosen.said_replicates)
        files.append(
            ExportFile(
                path=target,
                whose=f"condition {condition!r}",
                nbytes=estimate_nbytes(chosen, rows) + (target.stat().st_size if is_added else 0),
                write=partial(write_file, chosen, condition, rows, names, target if is_added else None),
            )
        )
    return files


def make_names(labels: Iterable[str], *, what: str) -> dict[str, str]:
    """Return {label: name in HDF5}, with `_` for `/`. Raise RequestError for invalid and for equal names."""
    names: dict[str, str] = {}
    whose: dict[str, str] = {}
    for label in labels:
        if label in ("", ".") or "\0" in label:
            raise RequestError(f"{what} {label!r} cannot be a name in HDF5", hint="rename it, or export --to netcdf")
        name = label.replace("/", "_")
        if whose.setdefault(name, label) != label:
            raise RequestError(f"{what} {whose[name]!r} and {what} {label!r} would both be {name!r} in HDF5")
        names[label] = name
    return names


def _name_layers(model: SelectedModel) -> dict[str, str]:
    return make_names([layer.label for layer in model.layers], what=f"model {model.label!r}, layer")


def _name_stems(chosen: ExportSelection, rows: np.ndarray, condition: str) -> dict[str, str]:
    """Return {stem: name in HDF5}. Raise RequestError if two stimuli have the same stem."""
    first: dict[str, int] = {}
    for row, stem in zip(rows.tolist(), chosen.get_labels("stem", rows), strict=True):
        other = first.setdefault(stem, row)
        if other != row:
            one, two = chosen.get_labels("stimulus", np.array([other, row]))
            raise RequestError(
                f"condition {condition!r}: the stimuli {one!r} and {two!r} have the same stem {stem!r}",
                hint="give them conditions of their own, or export --to netcdf",
            )
    return make_names(first, what=f"condition {condition!r}, stem")


def check_free(target: Path, models: Mapping[str, str], replicates: str) -> None:
    """Raise RequestError if the file already has one of the models, or has other replicates."""
    try:
        with h5py.File(target, "r") as file:
            held = next((label for label, name in models.items() if name in file), None)
            shown = file.attrs.get("replicates", replicates)  # files of other programs lack this attribute
    except OSError as error:
        raise RequestError(
            f"{str(target)!r} cannot be read as HDF5: {error}", hint="add --overwrite to replace it"
        ) from error
    if shown != replicates:
        raise RequestError(
            f"{str(target)!r} has replicates: {shown}; the added models have: {replicates}",
            hint="choose the same --replicates, or another --output-dir",
        )
    if held is not None:
        raise RequestError(
            f"{str(target)!r} has a model {held!r} already",
            hint="choose other models (--models), or replace the file (--overwrite)",
        )


def estimate_nbytes(chosen: ExportSelection, rows: np.ndarray) -> int:
    """Return the approximate bytes of these rows in a file."""
    layers = [layer for model in chosen.models for layer in model.layers]
    return len(rows) * (chosen.count_nbytes(layers) + OVERHEAD_NBYTES * len(layers))


def write_file(
    chosen: ExportSelection, condition: str, rows: np.ndarray, names: GroupNames, added_to: Path | None, path: Path
) -> str:
    """Write one condition to `path` and return the sha256 of the file. `added_to` is a file to copy and extend.

    HDF5 first makes all groups and data sets and gives each data set a position in the file. Then the values are
    written to these positions without HDF5. So everything but the values is final, and the file can be hashed while
    the values are written.
    """
    if added_to is not None:
        with added_to.open("rb") as old, os.fdopen(open_beside(path, is_new=True), "wb") as new:
            shutil.copyfileobj(old, new, PIECE_NBYTES)
    mode = "w" if added_to is None else "r+"
    with (
        Sink(path, is_new=added_to is None) as sink,
        h5py.File(sink, mode, libver=LIBVER, track_order=True) as file,
    ):
        if added_to is None:
            version = importlib.metadata.version("xact")
            file.attrs.update({"condition": condition, "replicates": chosen.said_replicates, "xact": version})
        offsets = [_make_model(file, sink, chosen, model, rows, names) for model in chosen.models]
    return _fill(path, chosen, rows, offsets)


def _make_model(
    file: h5py.File,
    sink: Sink,
    chosen: ExportSelection,
    model: SelectedModel,
    rows: np.ndarray,
    names: GroupNames,
) -> np.ndarray:
    """Make the groups and data sets of one model. Return the offsets of their values, (stimulus, layer), bytes."""
    make = Maker()
    top = make.group(file.id, names.models[model.label], model.label)
    layers = list(names.layers[model.label].items())
    shapes = [h5py.h5s.create_simple((chosen.n_replicates, layer.array.n_units)) for layer in model.layers]
    offsets = np.empty((len(rows), len(layers)), dtype=np.int64)
    for i, stem in enumerate(chosen.get_labels("stem", rows)):
        group = make.group(top, names.stems[stem], stem)
        offsets[i] = [
            make.dataset(group, name, label, shape) for (label, name), shape in zip(layers, shapes, strict=True)
        ]
        sink.check()
    return offsets


def _fill(path: Path, chosen: ExportSelection, rows: np.ndarray, offsets: Sequence[np.ndarray]) -> str:
    """Write the values of each model to their offsets, float32 little-endian. Return the sha256 of the file."""
    first = np.concatenate([at.min(1) for at in offsets])  # for each stimulus of each model
    final = np.minimum.accumulate(first[::-1])[::-1]  # all bytes before this offset are final
    n_written = 0
    with os.fdopen(open_beside(path, is_new=False), "r+b", buffering=0) as file, Follower(path) as follower:
        for model, at in zip(chosen.models, offsets, strict=True):
            for block in chosen.read_blocks(model.layers, rows):
                for i, here in enumerate(at[block.at].tolist()):
                    for offset, values in zip(here, block.values, strict=True):
                        write_at(file.fileno(), np.ascontiguousarray(values[i], dtype="<f4").data.cast("B"), offset)
                n_written += len(block.rows)
                if n_written < len(final):
                    follower.advance(int(final[n_written]))
        return follower.finish()


class Maker:
    """Make groups that keep the order of creation, and contiguous data sets whose values are written without HDF5."""

    def __init__(self) -> None:
        order = h5py.h5p.CRT_ORDER_TRACKED | h5py.h5p.CRT_ORDER_INDEXED
        self._group = h5py.h5p.create(h5py.h5p.GROUP_CREATE)
        self._group.set_link_creation_order(order)
        self._dataset = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        self._dataset.set_layout(h5py.h5d.CONTIGUOUS)
        self._dataset.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        self._dataset.set_fill_time(h5py.h5d.FILL_TIME_NEVER)  # every value is written
        self._dataset.set_obj_track_times(False)  # the same store gives the same bytes
        self._link = h5py.h5p.create(h5py.h5p.LINK_CREATE)
        self._link.set_char_encoding(h5py.h5t.CSET_UTF8)

    def group(self, parent: h5py.h5g.GroupID, name: str, label: str) -> h5py.h5g.GroupID:
        """Make a group. If its name is not its label, the label becomes an attribute."""
        made = h5py.h5g.create(parent, name.encode(), self._link, self._group)
        if name != label:
            h5py.Group(made).attrs["label"] = label
        return made

    def dataset(self, parent: h5py.h5g.GroupID, name: str, label: str, shape: h5py.h5s.SpaceID) -> int:
        """Make a data set of float32 values and return the offset of its values in the file, bytes.

        If its name is not its label, the label becomes an attribute.
        """
        made = h5py.h5d.create(parent, name.encode(), h5py.h5t.IEEE_F32LE, shape, self._dataset, None)
        if name != label:
            h5py.Dataset(made).attrs["label"] = label
        return int(made.get_offset())
