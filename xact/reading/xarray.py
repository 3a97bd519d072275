"""Open a store lazily as labelled arrays, whatever its layout: dask-backed values, labels in memory.

Knows nothing of how a store is made: torch and pydantic stay unloaded.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

from xact.labels import DIMS
from xact.reading.catalog import Names, open_catalog
from xact.reading.dask import open_lazy
from xact.reading.disk_arrays import StackArray


def open_activations(
    store: str | Path, *, models: Names = None, layers: Names = None, allow_incomplete: bool = False
) -> xr.DataArray:
    """Open layers of several models as one lazy array (model, stimulus, layer, replicate, unit), float32.

    Layers that no chosen model has are left out; the others are in the order of `layer_index`. `unit` is as long as
    the widest chosen layer; values beyond a layer's `n_units`, and of layers that a model lacks, are NaN. All labels
    are in memory. Raise NameNotFoundError for a name that is not there, StoreError where a row of a chosen model is
    not finished; `allow_incomplete` gives such rows as NaN.
    """
    catalog = open_catalog(store)
    m = catalog.find_models(models)
    k = catalog.find_layers(layers, m)
    rows = catalog.find_rows(m, allow_incomplete=allow_incomplete)
    cells = tuple(tuple(catalog.find_array(i, j, rows[i]) for j in k) for i in m)
    coords = catalog.make_coords({"model": np.array(m), "layer": np.array(k)})
    return xr.DataArray(open_lazy(StackArray(cells)), coords, DIMS, name="activations")


def open_layer(store: str | Path, model: str, layer: str, *, allow_incomplete: bool = False) -> xr.DataArray:
    """Open one layer as a lazy array (stimulus, replicate, unit), float32, without padding.

    The place of each unit in the layer's own output is on `unit`: `channel`, `y`, `x`, or `token`, `feature`. Errors
    are those of `open_activations`.
    """
    one = open_catalog(store).open_one(model, layer, allow_incomplete=allow_incomplete, as_map=False)
    on_unit = {name: ("unit", indices) for name, indices in one.index_units().items()}
    return xr.DataArray(
        open_lazy(one.array), one.coords | on_unit, ("stimulus", "replicate", "unit"), name="activations"
    )


def open_map(store: str | Path, model: str, layer: str, *, allow_incomplete: bool = False) -> xr.DataArray:
    """Open one layer in its own shape as a lazy array: (stimulus, replicate, channel, y, x), or (…, token, feature).

    Errors are those of `open_activations`.
    """
    one = open_catalog(store).open_one(model, layer, allow_incomplete=allow_incomplete, as_map=True)
    on_axes = {name: (name, np.arange(length, dtype=np.int32)) for name, length in one.unit_axes.items()}
    return xr.DataArray(
        open_lazy(one.array), one.coords | on_axes, ("stimulus", "replicate", *one.unit_axes), name="activations"
    )


def load_stimuli(store: str | Path) -> pd.DataFrame:
    """Load the labels of the stimuli, one row a stimulus in the order of the store, indexed by `stimulus`."""
    labels = open_catalog(store).labels
    columns = {name: values for name, (dims, values) in labels.items() if dims == ("stimulus",)}
    index = pd.Index(columns.pop("stimulus"), name="stimulus")
    return pd.DataFrame(columns, index=index)


def load_layers(store: str | Path) -> pd.DataFrame:
    """Load the labels of the layers and their models, one row for each layer of each model, in forward order."""
    catalog = open_catalog(store)
    places = [(m, k) for m in range(len(catalog.models)) for k in catalog.order_layers(m)]
    m, k = np.array(places, dtype=np.intp).reshape(-1, 2).T
    columns = {"model": catalog.models[m], "layer": catalog.layers[k]}
    for name, (dims, values) in catalog.labels.items():
        if dims == ("model", "layer"):
            columns[name] = values[m, k]
    for name, (dims, values) in catalog.labels.items():
        if dims == ("model",) and name != "model":
            columns[name] = values[m]
    return pd.DataFrame(columns)
