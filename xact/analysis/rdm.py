"""Representational dissimilarity matrices (RDMs) of activations, one layer in memory at a time."""

from __future__ import annotations

import functools
import json
import warnings
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from importlib.metadata import version
from types import MappingProxyType
from typing import Any

import numpy as np
import xarray as xr

from xact.analysis.distances import LayerSums, compute_distances, count_passes
from xact.analysis.gram import Tile, cut_square, list_blocks, mirror, read_ahead
from xact.analysis.measure import FORMULAS, Measure, make_measure
from xact.analysis.select import (
    LAYER_LABELS,
    MODEL_LABELS,
    N_NAMED,
    Activations,
    Chosen,
    LayerPatterns,
    Selection,
    choose,
)
from xact.errors import RequestError, WorkError
from xact.reading.catalog import Names

NAME = "dissimilarity"
"""Name of the array of RDMs."""

DTYPES = ("float32", "float64")

RdmLabels = dict[str, tuple[tuple[str, ...], np.ndarray]]
"""{name: (dimensions, values)}."""


@dataclass(frozen=True)
class LayerRdm:
    """The RDM of one layer, or its RDM for each replicate."""

    model: str
    layer: str
    values: np.ndarray
    """(stimulus, stimulus), or (replicate, stimulus, stimulus); float64."""
    undefined: tuple[str, ...]
    """Stimuli whose pattern is constant (cosine: zero) in a replicate, so that their dissimilarities are NaN."""
    n_noiseless: int = 0
    """Units that were left out of crossnobis, because replicates never differ and stimuli do."""


def rdm(
    acts: Activations,
    *,
    method: str = "correlation",
    replicates: str | int | None = None,
    noise: str = "none",
    units: str = "raw",
    models: Names = None,
    layers: Names = None,
    conditions: Names = None,
    where: str | None = None,
    sample: int | None = None,
    seed: int = 0,
    dtype: str = "float64",
    allow_missing: bool = False,
) -> xr.DataArray:
    """Compute the dissimilarity of all pairs of stimuli, for each model and layer.

    Parameters
    ----------
    acts : xarray.DataArray, str or Path
        Lazy or loaded activations of one or several models (`open_activations`, `open_layer`), any array with the
        dimensions (stimulus, unit), perhaps also model, layer and replicate, and labels on `stimulus`; or the path
        of a store. A lazy array is read in blocks of units, one layer at a time.
    method : str, optional
        `correlation`: 1 - Pearson correlation over units. `cosine`: 1 - cosine. `euclidean`: squared distance divided
        by the number of units. `crossnobis`: the same product, but of differences in different replicates; unbiased,
        may be negative.
    replicates : str, optional
        `mean` (default): patterns are averaged first. `each`: one RDM a replicate. `cross`: the mean over pairs of
        different replicates, which gives a stimulus a dissimilarity to itself. `0`: the first replicate alone.
        crossnobis implies `cross`.
    noise : str, optional
        `diag`: crossnobis divides each unit by its residual variance between replicates. Default `none`.
    units : str, optional
        What is done to each unit over the chosen stimuli first (within each replicate, unless they are averaged):
        `raw` (default), `center` or `zscore`.
    models, layers, conditions : str, iterable of str, or None
        Labels or globs; None selects all.
    where : str, optional
        Expression over labels of the stimuli, e.g. `rating > 3 and condition == 'plain'`.
    sample, seed : int, optional
        Number of stimuli that are drawn from the chosen ones, and the seed of the draw.
    dtype : str, optional
        `float64` (default) or `float32`, of the result. All arithmetic is float64.
    allow_missing : bool, optional
        If True, a stimulus that a model lacks gets NaN. If False, it is refused.

    Returns
    -------
    xarray.DataArray
        Dissimilarities, (model, layer, stimulus, stimulus_), with `replicate` after layer for `each`. Every label of
        the stimuli is on `stimulus`, and on `stimulus_` with `_` at its end. `n_units`, `depth`, `depth_bin`,
        `layer_index` and `n_constant` are on (model, layer). NaN where a model lacks a layer, and for the patterns
        that `n_constant` counts: constant ones for correlation, zeros for cosine.

    Raises
    ------
    RequestError
        If an argument is wrong, there is one replicate to cross, or fewer than 3 stimuli are chosen.
    StoreError
        If rows are missing, or values are NaN or infinite.

    Examples
    --------
    >>> rdms = xact.rdm("quickstart.zarr", layers="features.*")
    >>> block = rdms.sel(stimulus=rdms.condition == "plain", stimulus_=rdms.condition_ == "leaves")
    """
    check_dtype(dtype)
    measure = make_measure(method, replicates, noise, units)
    selection = Selection(models, layers, conditions, where, sample, seed, allow_missing)
    chosen = choose(acts, selection)
    rdms = make_empty(chosen, measure, dtype)
    found = []
    places = {names: find_place(chosen, *names) for names in list_layers(chosen)}
    made = {names: rdms.values[at] for names, at in places.items() if dtype == "float64"}
    for one in compute_rdms(chosen, measure, list(places), made=made):
        at = places[one.model, one.layer]
        if one.values is not made.get((one.model, one.layer)):
            rdms.values[at] = one.values
        rdms["n_constant"].values[at] = len(one.undefined)
        found.append((one.model, one.layer, one.undefined, one.n_noiseless))
    for warning in [*chosen.warnings, *describe_found(found, measure), *find_warnings(chosen, measure)]:
        warnings.warn(warning, UserWarning, stacklevel=2)
    return rdms.assign_attrs(describe(measure, selection))


def check_dtype(dtype: object) -> None:
    """Refuse a type of RDMs that is not known."""
    if dtype not in DTYPES:
        raise RequestError(f"there is no dtype {dtype!r} of RDMs", hint="float32 or float64")


def list_layers(chosen: Chosen) -> list[tuple[str, str]]:
    """Return (model, layer) of all layers that are there, model by model."""
    return [(model, layer) for model in chosen.models for layer in chosen.layers if chosen.count_units(model, layer)]


def find_place(chosen: Chosen, model: str, layer: str) -> tuple[int, int]:
    """Return the position of a layer among the chosen models and layers."""
    return list(chosen.models).index(model), list(chosen.layers).index(layer)


def compute_rdms(
    chosen: Chosen,
    measure: Measure,
    layers: Sequence[tuple[str, str]],
    *,
    made: Mapping[tuple[str, str], np.ndarray] = MappingProxyType({}),
) -> Iterator[LayerRdm]:
    """Yield the RDM of each layer. While one block of units is used, another thread reads the next one.

    A layer in `made`, {(model, layer): float64 array}, is computed in that array, unless rows are missing.
    """
    check_replicates(chosen, measure)
    opened = open_layers(chosen, measure, layers)
    with closing(read_layers(opened, measure)) as blocks:
        for one in opened:
            yield compute_rdm(one, measure, blocks, chosen.stimuli, made.get((one.model, one.layer)))


def open_layers(chosen: Chosen, measure: Measure, layers: Sequence[tuple[str, str]]) -> list[LayerPatterns]:
    """Return the patterns of these layers, still on disk."""
    opened = [chosen.open_layer(*names, only_first=measure.replicates == "0") for names in layers]
    return [one for one in opened if one is not None]


def read_layers(opened: Sequence[LayerPatterns], measure: Measure) -> Generator[np.ndarray, None, None]:
    """Yield all blocks of all layers, in the order in which `compute_distances` takes them."""
    return read_ahead(
        functools.partial(one.read, units)
        for one in opened
        for _ in range(count_passes(measure))
        for units in list_blocks(len(one.rows) * one.n_replicates, one.n_units)
    )


def compute_rdm(
    patterns: LayerPatterns,
    measure: Measure,
    blocks: Iterator[np.ndarray],
    stimuli: np.ndarray,
    made: np.ndarray | None = None,
) -> LayerRdm:
    """Return the RDM of one layer from its blocks, for all `stimuli`: those that it lacks get NaN."""
    n, is_each = len(patterns.rows), measure.replicates == "each"
    if made is None or n < len(stimuli):
        made = np.empty((patterns.n_replicates, n, n) if is_each else (n, n))
    squares = made if is_each else made[None]
    tiles = [cut_square(square) for square in squares]
    undefined, n_noiseless = fill_tiles(patterns, measure, blocks, tiles)
    for one, square in zip(tiles, squares, strict=True):
        mirror(one, square)
    names = tuple(str(name) for name in patterns.stimuli[undefined])
    values = made if n == len(stimuli) else spread(made, np.isin(stimuli, patterns.stimuli))
    return LayerRdm(patterns.model, patterns.layer, values, names, n_noiseless)


def fill_tiles(
    patterns: LayerPatterns, measure: Measure, blocks: Iterator[np.ndarray], tiles: Sequence[Sequence[Tile]]
) -> tuple[np.ndarray, int]:
    """Fill the tiles of a layer. Return which stimuli are undefined, and the number of units without noise."""
    n = len(patterns.rows)
    sums = LayerSums(measure, patterns.n_units, n, patterns.n_replicates, tiles)
    n_blocks = len(list_blocks(n * patterns.n_replicates, patterns.n_units))
    undefined = compute_distances(sums, n_blocks, blocks).any(axis=0)
    check_noise(sums, patterns)
    return np.asarray(undefined), sums.n_noiseless


def spread(values: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Return matrices with NaN in the rows and columns that are not `kept`, and `values` in the others."""
    whole = np.full((*values.shape[:-2], len(kept), len(kept)), np.nan)
    whole[..., kept[:, None] & kept[None, :]] = values.reshape(*values.shape[:-2], -1)
    return whole


def check_replicates(chosen: Chosen, measure: Measure) -> None:
    """Refuse to cross a single replicate."""
    if measure.is_crossed and len(chosen.replicates) < 2:
        what = "crossnobis" if measure.method == "crossnobis" else "replicates cross"
        raise RequestError(
            f"{what} compares different replicates, and there is one",
            hint="build the store with replicates: {count: 4, ...}, or use another method",
        )


def check_noise(sums: LayerSums, patterns: LayerPatterns) -> None:
    """Refuse a layer whose replicates are identical where their noise is asked for."""
    if sums.measure.noise == "diag" and not sums.n_noisy:
        raise RequestError(
            f"model {patterns.model!r}, layer {patterns.layer!r}: the replicates are identical, so that there is no "
            "noise to divide by",
            hint="noise none; a colour jitter does not change grey pictures",
        )


def find_warnings(chosen: Chosen, measure: Measure) -> list[str]:
    """Return what should be known about the folds."""
    is_jittered = any(str(name).startswith("jitter_") for name in chosen.acts.coords)
    if measure.is_crossed and is_jittered and 0 in chosen.replicates:
        return ["replicate 0 is among the folds: it is the picture without jitter"]
    return []


def describe_found(found: Sequence[tuple[str, str, Sequence[str], int]], measure: Measure) -> list[str]:
    """Return one warning about all undefined patterns, and one about units without noise.

    `found` is (model, layer, stimuli with undefined patterns, units without noise).
    """
    warned = []
    bad = [one for one in found if one[2]]
    if bad:
        model, layer, stimuli, _ = bad[0]
        more = ", …" if len(stimuli) > N_NAMED else ""
        kind = "zero" if measure.method == "cosine" else "constant"
        warned.append(
            f"{sum(len(one[2]) for one in bad)} patterns in {len(bad)} layers are {kind}, and their dissimilarities "
            f"NaN; the first: model {model!r}, layer {layer!r}, stimuli {', '.join(stimuli[:N_NAMED])}{more}"
        )
    quiet = [one for one in found if one[3]]
    if quiet:
        model, layer, _, n = quiet[0]
        warned.append(
            f"{sum(one[3] for one in quiet)} units in {len(quiet)} layers never differ between replicates and are left "
            f"out; the first: model {model!r}, layer {layer!r}, {n} units"
        )
    return warned


def make_labels(chosen: Chosen, measure: Measure) -> RdmLabels:
    """Return all labels of the RDMs of a choice; `n_constant` is 0."""
    models, layers = list(chosen.models), list(chosen.layers)
    labels: RdmLabels = {"model": (("model",), np.array(models)), "layer": (("layer",), np.array(layers))}
    for name, values in chosen.on_stimulus.items():
        labels[name] = (("stimulus",), values)
    for name, values in chosen.on_stimulus.items():
        labels[name_twin(name, labels)] = (("stimulus_",), values)
    for name in MODEL_LABELS:
        found = [chosen.get_label(name, model, None, None) for model in models]
        if None not in found:
            labels.setdefault(name, (("model",), np.array(found)))
    for name, default in LAYER_LABELS.items():
        grid = [[chosen.get_label(name, model, layer, default) for layer in layers] for model in models]
        labels[name] = (("model", "layer"), np.array(grid))
    n_units = [[chosen.count_units(model, layer) for layer in layers] for model in models]
    labels["n_units"] = (("model", "layer"), np.array(n_units, dtype=np.int64))
    labels["n_constant"] = (("model", "layer"), np.zeros((len(models), len(layers)), dtype=np.int64))
    if measure.replicates == "each":
        labels["replicate"] = (("replicate",), chosen.replicates.astype(np.int64))
    return labels


def name_twin(name: str, taken: RdmLabels) -> str:
    """Return the name of a label on `stimulus_`: `_` at its end, or more of them if that is another label."""
    twin = f"{name}_"
    while twin in taken:
        twin += "_"
    return twin


def get_dims(measure: Measure) -> tuple[str, ...]:
    """Return the dimensions of the RDMs."""
    middle = ("replicate",) if measure.replicates == "each" else ()
    return ("model", "layer", *middle, "stimulus", "stimulus_")


def make_empty(chosen: Chosen, measure: Measure, dtype: str) -> xr.DataArray:
    """Return the labelled RDMs of a choice. Layers that are there are not filled yet, the others are NaN."""
    labels, dims = make_labels(chosen, measure), get_dims(measure)
    shape = [len(labels[dim][1]) for dim in dims]
    try:
        values = np.empty(shape, dtype=dtype)
    except MemoryError:
        raise WorkError(
            f"no memory for RDMs of shape {tuple(shape)} in {dtype}",
            hint="xact rdm writes them to disk; sample=5000, where or conditions choose fewer stimuli",
        ) from None
    values[labels["n_units"][1] == 0] = np.nan
    return xr.DataArray(values, labels, dims, name=NAME)


def describe(measure: Measure, selection: Selection) -> dict[str, Any]:
    """Return the attributes that say how the RDMs were made."""
    asked = {name: value for name, value in asdict(selection).items() if value is not None}
    return {
        "xact_kind": "rdm",
        "method": measure.method,
        "formula": FORMULAS[measure.method],
        "replicates": measure.replicates,
        "noise": measure.noise,
        "units": measure.units,
        "selection": json.dumps(asked, default=list),
        "versions": json.dumps({"xact": version("xact"), "numpy": np.__version__}),
    }
