"""Open a store of either layout as labelled arrays: lazy values (dask), labels in memory.

Does not import the code that writes a store, so torch and pydantic stay unloaded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from xact.errors import RequestError
from xact.labels import DIMS
from xact.reading.catalog import Catalog, Names, OneLayer, open_catalog
from xact.reading.dask import open_lazy
from xact.reading.disk_arrays import StackArray
from xact.reading.labels import LISTS, parse_lists


def open_activations(
    store: str | Path,
    *,
    models: Names = None,
    layers: Names = None,
    allow_incomplete: bool = False,
    skip_failed: bool = False,
    complete_only: bool = False,
    labels: str = "all",
    sort: str | None = None,
) -> xr.DataArray:
    """Open layers of one or more models as one lazy array.

    Parameters
    ----------
    store : str or Path
        Folder of the store, or its URL (`https://`, `http://`, `s3://`, `gs://`).
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
    labels : str, default "all"
        `"short"` leaves out the coordinates that are long or tell how a row came about, such as `path`, `sha256`,
        `file`, `weights`, `depth_bin`; `load_stimuli` and `load_layers` have them all.
    sort : str, optional
        A label of the stimuli, e.g. `"condition"`: stimuli with one value stand together, text in the order of first
        appearance, numbers rising. Default: the order of the store, in which stimuli that were added later are last.

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
    RemoteError
        If what is at a URL cannot be reached.
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
    coords = _make_indexes(catalog, catalog.make_coords({"model": np.array(m), "layer": np.array(k)}, labels))
    order = kept if sort is None else catalog.order_stimuli(sort, kept)
    acts = keep_stimuli(xr.DataArray(open_lazy(StackArray(cells)), coords, DIMS, name="activations"), order)
    if len(m) < len(asked):
        acts.attrs["left_out_models"] = [str(catalog.models[i]) for i in asked if i not in m]
    return acts


def _make_indexes(catalog: Catalog, coords: dict[str, Any]) -> dict[str, Any]:
    """Return the coordinates with whole dimensions as indexes: to make one of text takes long, so a store keeps it."""
    for name, (dims, values) in coords.items():
        if dims == (name,) and values is catalog.labels[name][1]:
            if name not in catalog.indexes:
                catalog.indexes[name] = xr.Variable((name,), values).to_index_variable()
            coords[name] = catalog.indexes[name]
    return coords


def keep_stimuli(acts: xr.DataArray, kept: np.ndarray | None) -> xr.DataArray:
    """Return the stimuli at these positions; the attribute `left_out_stimuli` lists the others. None keeps all."""
    if kept is None or np.array_equal(kept, np.arange(acts.sizes["stimulus"])):
        return acts
    lost = np.delete(acts["stimulus"].values, kept).tolist()
    return acts.isel(stimulus=kept).assign_attrs({"left_out_stimuli": lost} if lost else {})


def open_layer(
    store: str | Path,
    model: str,
    layer: str,
    *,
    allow_incomplete: bool = False,
    skip_failed: bool = False,
    labels: str = "all",
    sort: str | None = None,
) -> xr.DataArray:
    """Open one layer of one model as a lazy array without padding.

    Parameters
    ----------
    store : str or Path
        Folder of the store, or its URL (`https://`, `http://`, `s3://`, `gs://`).
    model, layer : str
        Labels of the model and the layer; globs are not allowed.
    allow_incomplete : bool, optional
        If True, unfinished rows read as NaN. If False, an unfinished row of the model raises StoreError.
    skip_failed : bool, optional
        If True, stimuli whose row is recorded as failed are left out; the attribute `left_out_stimuli` lists them. Rows
        that are not finished for another reason are refused as before.
    labels : str, default "all"
        `"short"` leaves out the coordinates that are long or tell how a row came about, such as `path`, `sha256`,
        `file`, `weights`, `depth_bin`; `load_stimuli` and `load_layers` have them all.
    sort : str, optional
        A label of the stimuli, e.g. `"condition"`: stimuli with one value stand together, text in the order of first
        appearance, numbers rising. Default: the order of the store, in which stimuli that were added later are last.

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
    RemoteError
        If what is at a URL cannot be reached.
    NameNotFoundError
        If the model or the layer is unknown.

    Examples
    --------
    >>> layer = xact.open_layer("quickstart.zarr", "MobileNetV2", "features.8")
    >>> values = layer.mean("replicate").compute()  # (stimulus, unit)
    """
    catalog = open_catalog(store)
    one = catalog.open_one(
        model, layer, allow_incomplete=allow_incomplete, skip_failed=skip_failed, as_map=False, labels=labels
    )
    on_unit = {name: ("unit", indices) for name, indices in one.index_units().items()}
    dims = ("stimulus", "replicate", "unit")
    return _label_layer(catalog, one, on_unit, dims, sort)


def _label_layer(
    catalog: Catalog, one: OneLayer, positions: Mapping[str, Any], dims: Sequence[str], sort: str | None
) -> xr.DataArray:
    """Return a layer as an array with its labels and the positions of its units, its stimuli in the order of `sort`."""
    coords = {**_make_indexes(catalog, one.coords), **positions}
    order = one.kept if sort is None else catalog.order_stimuli(sort, one.kept)
    return keep_stimuli(xr.DataArray(open_lazy(one.array), coords, dims, name="activations"), order)


def open_map(
    store: str | Path,
    model: str,
    layer: str,
    *,
    allow_incomplete: bool = False,
    skip_failed: bool = False,
    labels: str = "all",
    sort: str | None = None,
) -> xr.DataArray:
    """Open one layer of one model as a lazy array in the layer's own shape.

    Parameters
    ----------
    store : str or Path
        Folder of the store, or its URL (`https://`, `http://`, `s3://`, `gs://`).
    model, layer : str
        Labels of the model and the layer; globs are not allowed.
    allow_incomplete : bool, optional
        If True, unfinished rows read as NaN. If False, an unfinished row of the model raises StoreError.
    skip_failed : bool, optional
        If True, stimuli whose row is recorded as failed are left out; the attribute `left_out_stimuli` lists them. Rows
        that are not finished for another reason are refused as before.
    labels : str, default "all"
        `"short"` leaves out the coordinates that are long or tell how a row came about, such as `path`, `sha256`,
        `file`, `weights`, `depth_bin`; `load_stimuli` and `load_layers` have them all.
    sort : str, optional
        A label of the stimuli, e.g. `"condition"`: stimuli with one value stand together, text in the order of first
        appearance, numbers rising. Default: the order of the store, in which stimuli that were added later are last.

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
    RemoteError
        If what is at a URL cannot be reached.
    NameNotFoundError
        If the model or the layer is unknown.

    Examples
    --------
    >>> grid = xact.open_map("quickstart.zarr", "ViT-Tiny-untrained", "blocks.3")
    >>> first = grid.isel(stimulus=0, replicate=0).compute()  # here (feature,)
    """
    catalog = open_catalog(store)
    one = catalog.open_one(
        model, layer, allow_incomplete=allow_incomplete, skip_failed=skip_failed, as_map=True, labels=labels
    )
    on_axes = {name: (name, np.arange(length, dtype=np.int32)) for name, length in one.unit_axes.items()}
    dims = ("stimulus", "replicate", *one.unit_axes)
    return _label_layer(catalog, one, on_axes, dims, sort)


def open_tokens(
    store: str | Path, model: str, layer: str, *, allow_incomplete: bool = False, skip_failed: bool = False
) -> xr.DataArray:
    """Open the vectors of the tokens of all texts, one row a token, as a lazy array.

    Parameters
    ----------
    store : str or Path
        Folder of the store, or its URL (`https://`, `http://`, `s3://`, `gs://`).
    model, layer : str
        Labels of the model and of a layer with `reduce: tokens`; globs are not allowed.
    allow_incomplete : bool, optional
        If True, texts without values have no rows. If False, an unfinished row of the model raises StoreError.
    skip_failed : bool, optional
        If True, texts whose row is recorded as failed are left out; the attribute `left_out_stimuli` lists them.

    Returns
    -------
    xarray.DataArray
        Activations, float32, with dask blocks and dimensions (token, unit), in the order of the texts. Coordinates on
        `token`: `stimulus` and the other labels of the stimuli, `replicate`, `token` (its number in its text, from 0),
        `text` (its characters), `start` and `end` (its place in the text as it was shown, in characters). A label of
        the stimuli that has one of these names is called `stimulus_NAME`. Special tokens have no rows.

    Raises
    ------
    StoreError
        If there is no store, or if it is damaged or unfinished, or has unfinished rows (see `allow_incomplete`).
    RemoteError
        If what is at a URL cannot be reached.
    NameNotFoundError
        If the model or the layer is unknown.
    RequestError
        If the layer does not keep tokens.

    Examples
    --------
    >>> words = xact.open_tokens("story.zarr", "gpt2", "hidden.6@tokens")
    >>> last = words.sel(token=words.stimulus == "s17")[-1].compute()  # (unit,)
    """
    grid = open_map(store, model, layer, allow_incomplete=allow_incomplete, skip_failed=skip_failed)
    axes = [str(name).removeprefix("unit_") for name in grid.dims[2:]]
    if "token_spans" not in grid.coords or axes != ["token", "feature"]:
        raise RequestError(
            f"model {model!r}, layer {layer!r} has no vector of each token", hint="reduce: tokens keeps them"
        )
    _, n_replicates, n_tokens, width = grid.shape
    rows = [
        (i, k, t, *span)
        for i, text in enumerate(grid["token_spans"].values.tolist())
        for k, spans in enumerate(json.loads(text or "[]"))
        for t, span in enumerate(spans)
    ]
    i, k, t = np.array([row[:3] for row in rows], dtype=np.intp).reshape(-1, 3).T
    own = {
        "replicate": grid["replicate"].values[k],
        "token": t,
        "text": np.array([row[3] for row in rows], dtype=str),
        "start": np.array([row[4] for row in rows], dtype=np.int64),
        "end": np.array([row[5] for row in rows], dtype=np.int64),
    }
    coords: dict[str, Any] = {name: ("token", values) for name, values in own.items()}
    for label, one in grid.drop_vars("token_spans").coords.items():
        name = f"stimulus_{label}" if label in own else str(label)
        if not one.dims:
            coords[name] = one.variable
        elif one.dims == ("stimulus",):
            coords[name] = ("token", one.values[i])
    flat = grid.data.reshape(-1, width)  # (stimulus x replicate x token, feature)
    chosen = flat[(i * n_replicates + k) * n_tokens + t]
    return xr.DataArray(chosen, coords, ("token", "unit"), name="activations", attrs=grid.attrs)


def load_stimuli(store: str | Path) -> pd.DataFrame:
    """Load the labels of the stimuli as a table.

    Parameters
    ----------
    store : str or Path
        Folder of the store, or its URL (`https://`, `http://`, `s3://`, `gs://`).

    Returns
    -------
    pandas.DataFrame
        One row per stimulus, in the order of the store, with the index `stimulus`. Columns: `stimulus_index`,
        `condition`, `stem`, `file`, `sha256`, and the columns of the recipe's own tables.

    Raises
    ------
    StoreError
        If there is no store, or if it is damaged or unfinished.
    RemoteError
        If what is at a URL cannot be reached.

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
        Folder of the store, or its URL (`https://`, `http://`, `s3://`, `gs://`).

    Returns
    -------
    pandas.DataFrame
        One row per layer of each model, in forward order. Columns: `model`, `layer`; labels of the layer, such as
        `n_units` and `depth`, and the lists `unit_axes` and `unit_shape`; labels of the model, such as `source`,
        `weights` and `seed`.

    Raises
    ------
    StoreError
        If there is no store, or if it is damaged or unfinished.
    RemoteError
        If what is at a URL cannot be reached.

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
            columns[name] = parse_lists(values[m, k]) if name in LISTS else values[m, k]
    for name, (dims, values) in catalog.labels.items():
        if dims == ("model",) and name != "model":
            columns[name] = values[m]
    return pd.DataFrame(columns)
