"""HDF5: one file a condition, `/{model}/{stem}/{layer}`, float32 (replicate, unit), layers in forward order.

Data sets are made through h5py's low-level calls: a file may have 100,000 of them, and `create_dataset` takes three
times as long for each.
"""

from __future__ import annotations

import importlib.metadata
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from xact.errors import RequestError
from xact.files.atomic import Follower, Sink, make_file_name, write_at
from xact.files.export import ExportFile, Options, SelectedModel, Selection

OPTIONS: Mapping[str, Any] = {
    "output_dir": ".",
    "replicates": "all",
    "prefix": "model_activations",
    "names": "path",
    "append": False,
}

OVERHEAD_NBYTES = 420
"""What HDF5 itself takes of a file for each data set, bytes (measured: 370, its links among them)."""

LIBVER = ("earliest", "v108")
"""The format of HDF5 1.8: any h5py in use reads it."""


@dataclass(frozen=True)
class GroupNames:
    """The names of one file's groups and data sets."""

    models: Mapping[str, str]
    """{label: name}."""
    layers: Mapping[str, Mapping[str, str]]
    """{model: {label: name}}."""
    stems: Mapping[str, str]


def plan_files(chosen: Selection, options: Options) -> list[ExportFile]:
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
    """Return {label: its name in HDF5}, `/` as `_`; refuse a label that has none, and two of one name."""
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


def _name_stems(chosen: Selection, rows: np.ndarray, condition: str) -> dict[str, str]:
    """Return {stem: its name}; refuse a stem that stands twice."""
    first: dict[str, int] = {}
    for row, stem in zip(rows.tolist(), chosen.get_labels("stem", rows), strict=True):
        other = first.setdefault(stem, row)
        if other != row:
            one, two = chosen.get_labels("stimulus", np.array([other, row]))
            raise RequestError(
                f"condition {condition!r}: the stimuli {one!r} and {two!r} have one stem {stem!r}",
                hint="give them conditions of their own, or export --to netcdf",
            )
    return make_names(first, what=f"condition {condition!r}, stem")


def check_free(target: Path, models: Mapping[str, str], replicates: str) -> None:
    """Refuse to add models that a file has already, or that have other replicates than those in it."""
    try:
        with h5py.File(target, "r") as file:
            held = next((label for label, name in models.items() if name in file), None)
            shown = file.attrs.get("replicates", replicates)  # files of other programs say nothing
    except OSError as error:
        raise RequestError(
            f"{str(target)!r} cannot be read as HDF5: {error}", hint="--overwrite writes it anew"
        ) from error
    if shown != replicates:
        raise RequestError(
            f"{str(target)!r} has replicates: {shown}; what is added would have: {replicates}",
            hint="choose the same --replicates, or another --output-dir",
        )
    if held is not None:
        raise RequestError(
            f"{str(target)!r} has a model {held!r} already",
            hint="choose others (--models), or write the file anew (--overwrite)",
        )


def estimate_nbytes(chosen: Selection, rows: np.ndarray) -> int:
    """Return about the bytes that these rows take in a file."""
    layers = [layer for model in chosen.models for layer in model.layers]
    return len(rows) * (chosen.count_nbytes(layers) + OVERHEAD_NBYTES * len(layers))


def write_file(
    chosen: Selection, condition: str, rows: np.ndarray, names: GroupNames, added_to: Path | None, path: Path
) -> str:
    """Write one condition to `path`, added to a copy of the file `added_to` where there is one; return its sha256.

    HDF5 makes all groups and data sets first, each with its place in the file; the values are written there without
    it. So all but the values is final from then on, and the file is hashed while they are written.
    """
    if added_to is not None:
        shutil.copyfile(added_to, path)
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
    file: Any,  # noqa: ANN401  h5py ships no types
    sink: Sink,
    chosen: Selection,
    model: SelectedModel,
    rows: np.ndarray,
    names: GroupNames,
) -> np.ndarray:
    """Make the groups and data sets of one model; return the places of their values, (stimulus, layer), bytes."""
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


def _fill(path: Path, chosen: Selection, rows: np.ndarray, offsets: Sequence[np.ndarray]) -> str:
    """Write the values of each model to their places, float32 little-endian; return the sha256 of the file."""
    first = np.concatenate([at.min(1) for at in offsets])  # of each stimulus of each model
    final = np.minimum.accumulate(first[::-1])[::-1]  # what lies before all places still to be written
    n_written = 0
    with path.open("r+b", buffering=0) as file, Follower(path) as follower:
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
    """Makes groups in the order of their creation, and contiguous data sets whose values are written without HDF5."""

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

    def group(self, parent: Any, name: str, label: str) -> Any:  # noqa: ANN401  h5py ships no types
        """Make a group; where its name is not its label, the label is an attribute."""
        made = h5py.h5g.create(parent, name.encode(), self._link, self._group)
        if name != label:
            h5py.Group(made).attrs["label"] = label
        return made

    def dataset(self, parent: Any, name: str, label: str, shape: Any) -> int:  # noqa: ANN401  h5py ships no types
        """Make a data set of float32 values and return where they go in the file, bytes.

        Where its name is not its label, the label is an attribute.
        """
        made = h5py.h5d.create(parent, name.encode(), h5py.h5t.IEEE_F32LE, shape, self._dataset, None)
        if name != label:
            h5py.Dataset(made).attrs["label"] = label
        return int(made.get_offset())
