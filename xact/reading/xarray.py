"""Open a store of either layout as labelled arrays: lazy values (dask), labels in memory.

Does not import the code that writes a store, so torch and pydantic stay unloaded.
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
    store: str | Path,
    *,
    models: Names = None,
    layers: Names = None,
    allow_incomplete: bool = False,
    skip_failed: bool = False,
    complete_only: bool = False,
) -> xr.DataArray:
    """Open layers of one or more models as one lazy array.

    Parameters
    ----------
    store : str or Path
        Folder of the store.
    models, layers : str, iterable of str, or None
        Labels or globs (`*` matches any text, `?` one character); None selects all. Models come in the order given,
        layers in forward order (`layer_index`). Layers that none of these models has are left out.
    allow_incomplete : bool, optional
        If True, unfinished rows read as NaN. If False, an unfinished row of a selected model raises StoreError.
    skip_failed : bool, optional
        If True, stimuli whose row is recorded as failed in one of the selected models are left out. Rows that are not
        finished for another reason, e.g. of a model that is being added, are refused as before.
    complete_only : bool, optional
        If True, models that lack a row are left out. With `skip_failed` too, a row that is recorded as failed does not
        count as lacking: its stimulus is left out, not the model.

    Returns
    -------
    xarray.DataArray
        Activations, float32, with dask blocks and dimensions (model, stimulus, layer, replicate, unit). `unit` is as
        long as the widest selected layer; NaN fills the rest of narrower layers, and layers that a model lacks. All
        labels of the store are coordinates in memory, for example `condition` (stimulus) and `n_units` (model, layer).
        The attributes `left_out_models` and `left_out_stimuli` list what the last two arguments left out, if anything.

    Raises
    ------
    StoreError
        If there is no store, or if it is damaged or unfinished, or has unfinished rows (see `allow_incomplete`).
    NameNotFoundError
        If a label or glob has no match.
    RequestError
        If `models` or `layers` is empty.

    Examples
    --------
    >>> acts = xact.open_activations("quickstart.zarr", models=["MobileNetV2"], layers="features.1*")
    >>> plain = acts.sel(stimulus=acts.condition == "plain").mean("replicate").compute()
    """
    catalog = open_catalog(store)
    asked = catalog.find_models(models)
    m = catalog.leave_out_unfinished(asked, skip_failed=skip_failed) if complete_only else asked
    k = catalog.find_layers(layers, m)
    kept = catalog.leave_out_failed(m) if skip_failed else None
    rows = catalog.find_rows(m, allow_incomplete=allow_incomplete, kept=kept)
    cells = tuple(tuple(catalog.find_array(i, j, rows[i]) for j in k) for i in m)
    coords = catalog.make_coords({"model": np.array(m), "layer": np.array(k)})
    acts = keep_stimuli(xr.DataArray(open_lazy(StackArray(cells)), coords, DIMS, name="activations"), kept)
    if len(m) < len(asked):
        acts.attrs["left_out_models"] = [str(catalog.models[i]) for i in asked if i not in m]
    return acts


def keep_stimuli(acts: xr.DataArray, kept: np.ndarray | None) -> xr.DataArray:
    """Return the stimuli at these positions; the attribute `left_out_stimuli` lists the others. None keeps all."""
    if kept is None or len(kept) == acts.sizes["stimulus"]:
        return acts
    lost = np.delete(acts["stimulus"].values, kept).tolist()
    return acts.isel(stimulus=kept).assign_attrs(left_out_stimuli=lost)


def open_layer(
    store: str | Path, model: str, layer: str, *, allow_incomplete: bool = False, skip_failed: bool = False
) -> xr.DataArray:
    """Open one layer of one model as a lazy array without padding.

    Parameters
    ----------
    store : str or Path
        Folder of the store.
    model, layer : str
        Labels of the model and the layer; globs are not allowed.
    allow_incomplete : bool, optional
        If True, unfinished rows read as NaN. If False, an unfinished row of the model raises StoreError.
    skip_failed : bool, optional
        If True, stimuli whose row is recorded as failed are left out; the attribute `left_out_stimuli` lists them. Rows
        that are not finished for another reason are refused as before.

    Returns
    -------
    xarray.DataArray
        Activations, float32, with dask blocks and dimensions (stimulus, replicate, unit). Coordinates on `unit` give
        the position of each unit in the layer's own output (int32): `channel`, `y`, `x`, or `token`, `feature`. All
        other labels of the store are coordinates too.

    Raises
    ------
    StoreError
        If there is no store, or if it is damaged or unfinished, or has unfinished rows (see `allow_incomplete`).
    NameNotFoundError
        If the model or the layer is unknown.

    Examples
    --------
    >>> layer = xact.open_layer("quickstart.zarr", "MobileNetV2", "features.8")
    >>> values = layer.mean("replicate").compute()  # (stimulus, unit)
    """
    one = open_catalog(store).open_one(
        model, layer, allow_incomplete=allow_incomplete, skip_failed=skip_failed, as_map=False
    )
    on_unit = {name: ("unit", indices) for name, indices in one.index_units().items()}
    dims = ("stimulus", "replicate", "unit")
    return keep_stimuli(xr.DataArray(open_lazy(one.array), one.coords | on_unit, dims, name="activations"), one.kept)


def open_map(
    store: str | Path, model: str, layer: str, *, allow_incomplete: bool = False, skip_failed: bool = False
) -> xr.DataArray:
    """Open one layer of one model as a lazy array in the layer's own shape.

    Parameters
    ----------
    store : str or Path
        Folder of the store.
    model, layer : str
        Labels of the model and the layer; globs are not allowed.
    allow_incomplete : bool, optional
        If True, unfinished rows read as NaN. If False, an unfinished row of the model raises StoreError.
    skip_failed : bool, optional
        If True, stimuli whose row is recorded as failed are left out; the attribute `left_out_stimuli` lists them. Rows
        that are not finished for another reason are refused as before.

    Returns
    -------
    xarray.DataArray
        Activations, float32, with dask blocks and dimensions (stimulus, replicate, ...): for example (..., channel, y,
        x) or (..., token, feature). Each axis of the layer has its positions as a coordinate (int32). All other
        labels of the store are coordinates too.

    Raises
    ------
    StoreError
        If there is no store, or if it is damaged or unfinished, or has unfinished rows (see `allow_incomplete`).
    NameNotFoundError
        If the model or the layer is unknown.

    Examples
    --------
    >>> grid = xact.open_map("quickstart.zarr", "ViT-Tiny-untrained", "blocks.3")
    >>> first = grid.isel(stimulus=0, replicate=0).compute()  # here (feature,)
    """
    one = open_catalog(store).open_one(
        model, layer, allow_incomplete=allow_incomplete, skip_failed=skip_failed, as_map=True
    )
    on_axes = {name: (name, np.arange(length, dtype=np.int32)) for name, length in one.unit_axes.items()}
    dims = ("stimulus", "replicate", *one.unit_axes)
    return keep_stimuli(xr.DataArray(open_lazy(one.array), one.coords | on_axes, dims, name="activations"), one.kept)


def load_stimuli(store: str | Path) -> pd.DataFrame:
    """Load the labels of the stimuli as a table.

    Parameters
    ----------
    store : str or Path
        Folder of the store.

    Returns
    -------
    pandas.DataFrame
        One row per stimulus, in the order of the store, with the index `stimulus`. Columns: `stimulus_index`,
        `condition`, `stem`, `file`, `sha256`, and the columns of the recipe's own tables.

    Raises
    ------
    StoreError
        If there is no store, or if it is damaged or unfinished.

    Examples
    --------
    >>> stimuli = xact.load_stimuli("quickstart.zarr")
    >>> n_per_condition = stimuli.groupby("condition").size()
    """
    labels = open_catalog(store).labels
    columns = {name: values for name, (dims, values) in labels.items() if dims == ("stimulus",)}
    index = pd.Index(columns.pop("stimulus"), name="stimulus")
    return pd.DataFrame(columns, index=index)


def load_layers(store: str | Path) -> pd.DataFrame:
    """Load the labels of the layers and of their models as a table.

    Parameters
    ----------
    store : str or Path
        Folder of the store.

    Returns
    -------
    pandas.DataFrame
        One row per layer of each model, in forward order. Columns: `model`, `layer`; labels of the layer, such as
        `n_units`, `depth` and `unit_shape`; labels of the model, such as `source`, `weights` and `seed`.

    Raises
    ------
    StoreError
        If there is no store, or if it is damaged or unfinished.

    Examples
    --------
    >>> layers = xact.load_layers("quickstart.zarr")
    >>> deepest = layers.loc[layers.groupby("model")["depth"].idxmax()]
    """
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
