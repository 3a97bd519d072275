"""Write netCDF 4: one file for each model. Each layer is a group with its own number of units; labels are coordinates.

The root has the labels of the stimuli, the group `catalog` those of the layers, the group `xact` the recipe and the
provenance (JSON text). The group of a layer has all its labels, as in a store of groups.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import h5netcdf
import h5py
import numpy as np

from xact.files.atomic import Sink, make_file_name
from xact.files.export import ExportFile, ExportSelection, Options, SelectedLayer, SelectedModel
from xact.labels import make_path_parts

OPTIONS: Mapping[str, Any] = {"output_dir": ".", "replicates": "all", "prefix": "model_activations"}

ON_LAYER = ("stimulus", "condition", "stem", "replicate")
"""Labels of the stimuli in the group of each layer, as in a store of groups. Other labels are only at the root."""

LABEL_NBYTES = 96
"""Approximate bytes of one short text in HDF5."""

Variables = dict[str, tuple[tuple[str, ...], np.ndarray]]
"""{name: (dimensions, values)}."""


def plan_files(chosen: ExportSelection, options: Options) -> list[ExportFile]:
    """Return one file for each model."""
    files = []
    for model in chosen.models:
        name = make_file_name(model.label, what="the model")
        nbytes = chosen.count_nbytes(model.layers) + LABEL_NBYTES * len(ON_LAYER) * (len(model.layers) + 2)
        files.append(
            ExportFile(
                path=options.output_dir / f"{options.prefix}_{name}.nc",
                whose=f"model {model.label!r}",
                nbytes=len(chosen.rows) * nbytes,
                write=partial(write_file, chosen, model),
            )
        )
    return files


def write_file(chosen: ExportSelection, model: SelectedModel, path: Path) -> None:
    """Write one model to `path`."""
    labels = take_labels(chosen, model)
    paths = make_path_parts((layer.label for layer in model.layers), reserved=labels)  # both are at the root
    at_layers = np.array([layer.axis_index for layer in model.layers])
    whole = chosen.catalog.make_coords({"model": model.axis_index, "layer": at_layers})
    on_layers = {name: found for name, found in whole.items() if "layer" in found[0] and name != "path"}
    on_layers["path"] = ("layer",), np.array([f"/{paths[layer.label]}" for layer in model.layers])
    with Sink(path, is_new=True) as sink, h5netcdf.File(sink, "w") as file:
        file.attrs["xact"] = importlib.metadata.version("xact")
        file.attrs["replicates"] = chosen.said_replicates
        add_variables(file, labels)
        add_variables(file.create_group("catalog"), on_layers)
        add_variables(file.create_group("xact"), find_provenance(chosen, model))
        for layer in model.layers:
            write_layer(file.create_group(paths[layer.label]), sink, chosen, model, layer, labels)


def take_labels(chosen: ExportSelection, model: SelectedModel) -> Variables:
    """Return the labels of the selected stimuli and replicates, and the labels of the model, without dimensions."""
    taken: Variables = {}
    for name, (dims, values) in chosen.catalog.make_coords({"model": model.axis_index}).items():
        if "layer" in dims or (chosen.replicates == "mean" and "replicate" in dims):
            continue
        if (
            "stimulus" in dims and len(chosen.rows) < values.shape[dims.index("stimulus")]
        ):  # otherwise: all rows, in order
            values = np.take(values, chosen.rows, axis=dims.index("stimulus"))
        if "replicate" in dims:
            values = np.take(values, range(chosen.n_replicates), axis=dims.index("replicate"))
        taken[name] = (dims, np.asarray(values))
    return taken


def write_layer(
    group: h5netcdf.Group,
    sink: Sink,
    chosen: ExportSelection,
    model: SelectedModel,
    layer: SelectedLayer,
    labels: Variables,
) -> None:
    """Write the values of one layer, (stimulus, replicate, unit), with its labels."""
    opened = chosen.catalog.open_one(model.label, layer.label, allow_incomplete=True, as_map=False)
    of_layer = {
        name: (dims, np.asarray(values))
        for name, (dims, values) in opened.coords.items()
        if dims == () and name != "path"
    }
    of_units = {name: (("unit",), indices) for name, indices in opened.index_units().items()}
    of_stimuli = {name: labels[name] for name in ON_LAYER if name in labels}
    lengths = {"stimulus": len(chosen.rows), "replicate": chosen.n_replicates, "unit": layer.array.n_units}
    coordinates: Variables = {**of_stimuli, **of_layer, **of_units}
    add_variables(group, coordinates, lengths=lengths)
    values = group.create_variable("activations", tuple(lengths), np.float32)
    for block in chosen.read_blocks([layer], chosen.rows):
        values[block.at] = block.values[0]
        sink.check()


def find_provenance(chosen: ExportSelection, model: SelectedModel) -> Variables:
    """Return the recipe and the provenance of one model, as JSON text."""
    said = chosen.load_provenance()
    found = {"recipe": said["recipe"], "provenance": said["models"].get(model.label, {})}
    return {name: ((), np.array(json.dumps(data))) for name, data in found.items()}


def add_variables(group: h5netcdf.Group, variables: Variables, *, lengths: Mapping[str, int] | None = None) -> None:
    """Add labels to a group as coordinates, with their dimensions."""
    lengths = dict(lengths or {})
    for dims, values in variables.values():
        lengths |= dict(zip(dims, values.shape, strict=True))
    group.dimensions = lengths
    for name, (dims, values) in variables.items():
        made = group.create_variable(name.replace("/", "_"), dims, **_encode(values))
        if values.dtype == bool:
            made.attrs["dtype"] = "bool"  # as xarray does: netCDF has no bool
        if "/" in name:
            made.attrs["long_name"] = name
    names = [name.replace("/", "_") for name in variables if name not in lengths and " " not in name]
    group.attrs["coordinates"] = " ".join(names)


def _encode(values: np.ndarray) -> dict[str, Any]:
    """Return the type and values of a variable in netCDF."""
    if values.dtype.kind in "OU":
        return {"dtype": h5py.string_dtype(), "data": values.astype(object)}
    data = values.astype(np.int8) if values.dtype == bool else values
    return {"dtype": data.dtype, "data": data}
