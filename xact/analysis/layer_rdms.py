"""The RDMs of the layers of models, one at a time: from a store, from an RDM store, or from arrays in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import xarray as xr

from xact.analysis.gram import add_products, cut_square, list_blocks, mirror
from xact.analysis.measure import make_measure
from xact.analysis.pairs import check_symmetric
from xact.analysis.rdm import compute_rdms, list_layers
from xact.analysis.reference import check_count
from xact.analysis.references.labelled import open_rdm_store
from xact.analysis.select import Chosen, Selection, choose
from xact.disk.durable import parse_json, read_whole
from xact.disk.places import expand_place
from xact.errors import NoStoreError, RequestError
from xact.reading.xarray import open_activations

RdmSource = xr.DataArray | str | Path
"""RDMs (model, layer, stimulus, stimulus_), activations, or the path of a store of either."""

LAYER_LABELS = ("depth", "depth_bin", "layer_index", "n_units", "n_constant")
"""Labels on (model, layer) that scores keep."""

LayerSquare = tuple[str, str, np.ndarray]
"""(model, layer, RDM)."""


@dataclass(frozen=True)
class LayerRdms:
    """Models, layers, the labels of their stimuli, and their RDMs as a stream."""

    models: list[str]
    layers: list[str]
    stimuli: xr.Dataset
    labels: xr.Dataset
    """Labels on (model, layer)."""
    stream: Callable[[int], Iterator[LayerSquare]]
    """Yields the RDM of each layer that a model has, float64 and symmetric, in a fixed order, from this number on."""

    @property
    def n_stimuli(self) -> int:
        """The number of stimuli."""
        return int(self.stimuli.sizes["stimulus"])


def is_rdm_store(path: Path) -> bool:
    """Return True for a folder that `xact rdm` wrote."""
    file = path / "zarr.json"
    if not file.is_file():
        return False
    found = parse_json(read_whole(file))
    attributes = found.get("attributes") if isinstance(found, dict) else None
    return isinstance(attributes, dict) and attributes.get("xact_kind") == "rdm"


def open_layer_rdms(source: RdmSource) -> LayerRdms:
    """Open the RDMs of a store, of an RDM store or of an array. Nothing but labels is read yet."""
    array = open_array(source)
    if "unit" in array.dims:
        chosen = choose(array, Selection())
        return _describe(add_dims(array, **name_only(chosen)), lambda first: _stream_computed(chosen, first))
    check_dims(array)
    rdms = add_dims(array)
    return _describe(rdms, lambda first: islice(_stream_squares(rdms), first, None))


def open_layer_grams(source: RdmSource, *, is_centred: bool, method: str) -> LayerRdms:
    """Open a store of activations, or an array of them: their Gram matrices (stimulus, stimulus_) in place of RDMs.

    `is_centred`: the mean pattern is subtracted first.
    """
    array = open_array(source)
    if "unit" not in array.dims:
        raise RequestError(
            f"method {method!r} needs activations, found RDMs", hint="give the store that xact build made"
        )
    chosen = choose(array, Selection())
    named = add_dims(array, **name_only(chosen))
    return _describe(named, lambda first: _stream_grams(chosen, first, is_centred=is_centred))


def name_only(chosen: Chosen) -> dict[str, str]:
    """Return the names of the only model and layer of an array without these dimensions, as its stream has them."""
    return {"model": next(iter(chosen.models)), "layer": next(iter(chosen.layers))}


def _stream_computed(chosen: Chosen, first: int) -> Iterator[LayerSquare]:
    for one in compute_rdms(chosen, make_measure(), list_layers(chosen)[first:]):
        yield one.model, one.layer, one.values


def _stream_grams(chosen: Chosen, first: int, *, is_centred: bool) -> Iterator[LayerSquare]:
    """Yield the products of the patterns of all stimuli, averaged over replicates, summed over blocks of units."""
    for model, layer in list_layers(chosen)[first:]:
        patterns = chosen.open_layer(model, layer, only_first=False)
        if patterns is None:
            continue
        n = len(patterns.rows)
        gram = np.empty((n, n))
        tiles = cut_square(gram)
        for units in list_blocks(n * patterns.n_replicates, patterns.n_units):
            block = patterns.read(units).astype(np.float64).mean(axis=1)
            add_products(tiles, block - block.mean(axis=0) if is_centred else block, is_first=units.start == 0)
        mirror(tiles, gram)
        yield model, layer, gram


def open_array(source: RdmSource) -> xr.DataArray:
    """Return the lazy array of a path, or the array itself."""
    if isinstance(source, xr.DataArray):
        return source
    path = expand_place(source)
    if not isinstance(path, Path):
        return open_activations(source)
    if not path.is_dir():
        what = "is a file, not a store" if path.is_file() else "does not exist"
        raise NoStoreError(f"{str(path)!r} {what}", hint="a store of xact build or of xact rdm is wanted")
    if not is_rdm_store(path):
        return open_activations(path)
    return open_rdm_store(path)


def check_dims(rdms: xr.DataArray) -> None:
    """Refuse an array that is not one RDM for each model and layer."""
    dims = set(map(str, rdms.dims))
    if not {"stimulus", "stimulus_"} <= dims:
        raise RequestError(
            f"dimensions ({', '.join(map(str, rdms.dims))}); wanted are RDMs (model, layer, stimulus, stimulus_)",
            hint="xact.rdm(acts) makes them",
        )
    more = sorted(dims - {"model", "layer", "stimulus", "stimulus_"})
    if more:
        raise RequestError(
            f"the RDMs have the dimension {more[0]!r} too", hint=f"choose one, e.g. rdms.isel({more[0]}=0), or the mean"
        )
    if rdms.sizes["stimulus"] != rdms.sizes["stimulus_"]:
        raise RequestError(
            f"not square: {rdms.sizes['stimulus']} stimuli by {rdms.sizes['stimulus_']}",
            hint="choose the same stimuli on `stimulus` and `stimulus_`",
        )
    both = {"stimulus", "stimulus_"} <= set(rdms.coords)
    if both and not np.array_equal(rdms["stimulus"].values, rdms["stimulus_"].values):
        raise RequestError(
            "`stimulus` and `stimulus_` hold different stimuli", hint="compare RDMs whose rows are their columns"
        )


def add_dims(array: xr.DataArray, *, model: str = "model", layer: str = "layer") -> xr.DataArray:
    """Return the array with a model and a layer: the labels of an array of one layer, or these names."""
    for dim, name in (("layer", layer), ("model", model)):
        if dim not in array.dims:
            array = array.expand_dims(dim) if dim in array.coords else array.expand_dims({dim: [name]})
    return array


def _describe(array: xr.DataArray, stream: Callable[[int], Iterator[LayerSquare]]) -> LayerRdms:
    n = array.sizes["stimulus"]
    check_count(n, "the array")
    on_stimulus = {str(name): one.variable for name, one in array.coords.items() if one.dims == ("stimulus",)}
    sizes = {dim: array.sizes[dim] for dim in ("model", "layer")}
    on_layer = {
        name: array.coords[name].variable.set_dims(sizes).transpose("model", "layer")
        for name in LAYER_LABELS
        if name in array.coords and set(array.coords[name].dims) <= set(sizes)
    }
    return LayerRdms(
        models=[str(name) for name in array["model"].values],
        layers=[str(name) for name in array["layer"].values],
        stimuli=xr.Dataset(coords=on_stimulus or {"stimulus": [f"row {row + 1} (no label)" for row in range(n)]}),
        labels=xr.Dataset(on_layer),
        stream=lambda first: _count_layers(stream(first)),
    )


_COUNT: ContextVar[Callable[[int], None]] = ContextVar("count_layers", default=lambda _: None)


@contextmanager
def watch_layers(count: Callable[[int], None]) -> Iterator[None]:
    """Call `count` with 1 after each layer whose RDM is used in the block; a layer may be used several times."""
    token = _COUNT.set(count)
    try:
        yield
    finally:
        _COUNT.reset(token)


def _count_layers(stream: Iterator[LayerSquare]) -> Iterator[LayerSquare]:
    for one in stream:
        yield one
        _COUNT.get()(1)


def _stream_squares(rdms: xr.DataArray) -> Iterator[LayerSquare]:
    """Yield the RDMs of an array; a layer that a model lacks is NaN and left out."""
    for model in range(rdms.sizes["model"]):
        for layer in range(rdms.sizes["layer"]):
            one = rdms.isel(model=model, layer=layer).transpose("stimulus", "stimulus_")
            square = np.asarray(one.values, dtype=np.float64)
            names = str(rdms["model"].values[model]), str(rdms["layer"].values[layer])
            if not np.isnan(square).all():
                check_symmetric(square, "model {!r}, layer {!r}".format(*names))
                yield *names, square
