"""Choose models, layers and stimuli of activations, and read one layer in blocks of units."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from xact.errors import RUN_AGAIN, RequestError, StoreError
from xact.reading.catalog import Names, find_names
from xact.reading.dask import LazyArray
from xact.reading.xarray import open_activations
from xact.tables.where import find_rows

Activations = xr.DataArray | str | Path
"""A lazy or loaded array (stimulus, unit), perhaps with model, layer, replicate; or the path of a store."""

MIN_STIMULI = 3
"""Fewest stimuli of an RDM: two have one pair, which nothing can be correlated with."""

MODEL_LABELS = ("base", "source", "weights", "seed", "trained", "family", "training", "n_parameters")
LAYER_LABELS: Mapping[str, Any] = {"n_units": 0, "depth": np.nan, "depth_bin": 0, "layer_index": -1}
"""{label on (model, layer): its value if there is none}."""

RESERVED = frozenset(("stimulus_", "n_constant", "dissimilarity"))
"""Names that a label of the stimuli may not have."""

N_NAMED = 3
"""Most examples in a message."""


@dataclass(frozen=True)
class Selection:
    """Which part of the activations is used. None is all."""

    models: Names = None
    layers: Names = None
    conditions: Names = None
    where: str | None = None
    """Expression over labels of the stimuli, as the recipe's `where`."""
    sample: int | None = None
    """Number of stimuli that are drawn."""
    seed: int = 0
    allow_missing: bool = False
    """If True, rows that a model lacks become NaN. If False, they are refused."""


@dataclass(frozen=True)
class LayerPatterns:
    """The patterns of one layer of one model, read in blocks of units."""

    model: str
    layer: str
    variable: xr.Variable
    """Dimensions stimulus, unit and perhaps replicate."""
    stimuli: np.ndarray
    """Labels of its stimuli."""
    rows: np.ndarray
    """Their positions in `variable`."""
    replicate: int | None
    """Position of the one replicate that is read; None for all."""
    n_replicates: int
    n_units: int

    def read(self, units: range) -> np.ndarray:
        """Return the values of some units, (stimulus, replicate, unit). Refuse NaN and infinite values."""
        values = self._read(units)
        if not np.isfinite(values).all():
            raise self._refuse_nonfinite()
        return values

    def _read(self, units: range) -> np.ndarray:
        picks: dict[Hashable, Any] = {"unit": slice(units.start, units.stop)}
        if not np.array_equal(self.rows, np.arange(self.variable.sizes["stimulus"])):
            picks["stimulus"] = self.rows
        has_replicates = "replicate" in self.variable.dims
        if has_replicates and self.replicate is not None:
            picks["replicate"] = slice(self.replicate, self.replicate + 1)
        part = self.variable.isel(picks)
        data = part.data
        is_direct = isinstance(data, LazyArray) and data.name == data.name_on_disk
        values = data.on_disk[...] if is_direct else np.asarray(part.values)
        kept = ("stimulus", "replicate", "unit") if has_replicates else ("stimulus", "unit")
        values = values.transpose([part.dims.index(dim) for dim in kept])
        return values if has_replicates else values[:, None]

    def _refuse_nonfinite(self) -> StoreError:
        """Return the error that names the first stimulus with such values, and their number in the whole layer."""
        n_bad = np.zeros(len(self.rows), dtype=np.int64)
        step = max(1, 2**22 // max(1, len(self.rows) * self.n_replicates))
        for first in range(0, self.n_units, step):
            values = self._read(range(first, min(first + step, self.n_units)))
            n_bad += (~np.isfinite(values)).sum(axis=(1, 2))
        at = np.flatnonzero(n_bad)
        return StoreError(
            f"model {self.model!r}, layer {self.layer!r}: {int(n_bad.sum())} values of {len(at)} stimuli are NaN or "
            f"infinite; the first: stimulus {str(self.stimuli[at[0]])!r}",
            hint="leave these stimuli or this layer out",
        )


@dataclass(frozen=True)
class Chosen:
    """The chosen part of the activations, with its labels."""

    acts: xr.DataArray
    models: dict[str, int]
    """{label: position in `acts`}."""
    layers: dict[str, int]
    rows: np.ndarray
    """Positions of the chosen stimuli."""
    on_stimulus: dict[str, np.ndarray]
    """Labels of the chosen stimuli, `stimulus` first."""
    present: np.ndarray
    """(model, stimulus), for the chosen ones: True for the rows that are there."""
    replicates: np.ndarray
    """Labels of the replicates; [0] without that dimension."""
    warnings: list[str] = field(default_factory=list)

    @property
    def stimuli(self) -> np.ndarray:
        """Labels of the chosen stimuli."""
        return self.on_stimulus["stimulus"]

    def get_label(self, name: str, model: str, layer: str | None, default: Any) -> Any:  # noqa: ANN401
        """Return a label of a model or of a layer, `default` if there is none."""
        if name not in self.acts.coords:
            return default
        label = self.acts.coords[name]
        at = {"model": self.models[model]} | ({} if layer is None else {"layer": self.layers[layer]})
        if not set(label.dims) <= set(at):
            return default
        return label.isel({dim: at[str(dim)] for dim in label.dims}).values.item()

    def count_units(self, model: str, layer: str) -> int:
        """Return the number of units of a layer, 0 if the model lacks it. Padding does not count."""
        size = self.acts.sizes["unit"]
        return min(size, int(self.get_label("n_units", model, layer, size)))

    def open_layer(self, model: str, layer: str, *, only_first: bool) -> LayerPatterns | None:
        """Return the patterns of one layer, None if the model lacks it. `only_first`: read replicate 0 alone."""
        n_units = self.count_units(model, layer)
        if not n_units:
            return None
        at = {"model": self.models[model], "layer": self.layers[layer]}
        variable = self.acts.variable.isel({dim: at[str(dim)] for dim in self.acts.dims if dim in at})
        kept = self.present[list(self.models).index(model)]
        return LayerPatterns(
            model=model,
            layer=layer,
            variable=variable,
            stimuli=self.stimuli[kept],
            rows=self.rows[kept],
            replicate=self._find_first() if only_first else None,
            n_replicates=1 if only_first else len(self.replicates),
            n_units=n_units,
        )

    def _find_first(self) -> int:
        if 0 not in self.replicates:
            raise RequestError(
                f"there is no replicate 0; the replicates are {self.replicates.tolist()[:8]}", hint="replicates mean"
            )
        return int(np.flatnonzero(self.replicates == 0)[0])


def check_selection(selection: Selection) -> None:
    """Refuse arguments of a wrong type."""
    if selection.where is not None and not isinstance(selection.where, str):
        raise RequestError(f"where is an expression as text, found {selection.where!r:.60}", hint="where='rating > 3'")
    if not isinstance(selection.allow_missing, bool):
        raise RequestError(f"allow_missing is True or False, found {selection.allow_missing!r:.60}")
    for name, number in (("sample", selection.sample), ("seed", selection.seed)):
        is_number = isinstance(number, int | np.integer) and not isinstance(number, bool) and number >= 0
        if not is_number and not (name == "sample" and number is None):
            raise RequestError(f"{name} is a whole number, 0 or more, found {number!r:.60}")


def choose(acts: Activations, selection: Selection) -> Chosen:
    """Return the chosen models, layers and stimuli. Refuse unknown names, missing rows and fewer than 3 stimuli."""
    check_selection(selection)
    if isinstance(acts, str | Path):
        acts = open_activations(acts, models=selection.models, layers=selection.layers, allow_incomplete=True)
        models, layers = _list_names(acts, "model"), _list_names(acts, "layer")
    else:
        check_array(acts)
        models, layers = (
            _pick_names(acts, "model", selection.models),
            _pick_names(acts, "layer", selection.layers),
        )
    labels = _find_labels(acts)
    rows = choose_stimuli(labels, selection)
    replicates = acts["replicate"].values if "replicate" in acts.coords else np.arange(acts.sizes.get("replicate", 1))
    chosen = Chosen(
        acts=acts,
        models=models,
        layers=layers,
        rows=rows,
        on_stimulus={name: values[rows] for name, values in labels.items()},
        present=_find_present(acts, models, rows),
        replicates=np.atleast_1d(replicates),
    )
    _check_present(chosen, allow_missing=selection.allow_missing)
    return chosen


def check_array(acts: object) -> None:
    """Refuse what is no array of patterns with labels on `stimulus`."""
    if not isinstance(acts, xr.DataArray):
        hint = 'give its array, such as data["activations"]' if isinstance(acts, xr.Dataset) else "see xact.open_layer"
        raise RequestError(
            f"activations are a DataArray or the path of a store, found {type(acts).__name__}", hint=hint
        )
    dims = [str(dim) for dim in acts.dims]
    lost = [dim for dim in ("stimulus", "unit") if dim not in dims]
    if lost:
        raise RequestError(
            f"the array has the dimensions {', '.join(dims)} and lacks {lost[0]!r}",
            hint="name them stimulus and unit (and model, layer, replicate); xact.open_layer has one axis of units",
        )
    odd = [dim for dim in dims if dim not in ("model", "stimulus", "layer", "replicate", "unit")]
    if odd:
        raise RequestError(f"the array has a dimension {odd[0]!r}", hint=f"choose one of it: acts.isel({odd[0]}=0)")
    if acts.dtype.kind not in "fiu":
        raise RequestError(f"the array has values of type {acts.dtype}, not numbers")
    if "stimulus" not in acts.coords:
        raise RequestError(
            "the array has no labels on `stimulus`: rows are paired by label, never by place",
            hint="acts.assign_coords(stimulus=[...])",
        )


def _list_names(acts: xr.DataArray, dim: str) -> dict[str, int]:
    """Return {label: position} of models or layers. An array without them has one, of its own name."""
    if dim in acts.dims and dim not in acts.coords:
        raise RequestError(f"the array has no labels on {dim!r}", hint=f"acts.assign_coords({dim}=[...])")
    if dim in acts.coords:
        names = [str(name) for name in np.atleast_1d(acts[dim].values)]
    else:
        names = [str(acts.name or "responses") if dim == "model" else "all"]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise RequestError(f"the {dim} {twice[0]!r} is there twice", hint=f"choose each {dim} once")
    return {name: i for i, name in enumerate(names)}


def _pick_names(acts: xr.DataArray, dim: str, wanted: Names) -> dict[str, int]:
    known = _list_names(acts, dim)
    names = find_names(wanted, list(known), what=f"the array has no {dim}", hint=f"its {dim}s: {' '.join(known):.200}")
    if dim == "layer":  # in forward order, as the array has them
        names = [name for name in known if name in set(names)]
    return {name: known[name] for name in names}


def _find_labels(acts: xr.DataArray) -> dict[str, np.ndarray]:
    """Return the labels of all stimuli, `stimulus` first: text, integers, floats or true and false."""
    found = {"stimulus": _make_plain(acts["stimulus"].values)}
    for name, label in acts.coords.items():
        if label.dims == ("stimulus",):
            found.setdefault(str(name), _make_plain(label.values))
    taken = sorted(found.keys() & RESERVED)
    if taken:
        raise RequestError(f"the stimuli have a label {taken[0]!r}, which RDMs use themselves", hint="rename it")
    names, counts = np.unique(found["stimulus"], return_counts=True)
    if (counts > 1).any():
        twice = [str(name) for name in names[counts > 1]]
        raise RequestError(
            f"{len(twice)} stimuli are there more than once: {', '.join(twice[:N_NAMED])}", hint="choose each once"
        )
    return found


def _make_plain(values: np.ndarray) -> np.ndarray:
    """Return labels as a type that every file can hold."""
    kinds = {"b": bool, "i": np.int64, "u": np.int64, "f": np.float64}
    if values.dtype.kind in kinds:
        return values.astype(kinds[values.dtype.kind])
    return np.array([str(value) for value in values.tolist()])


def choose_stimuli(labels: Mapping[str, np.ndarray], selection: Selection) -> np.ndarray:
    """Return the positions of the chosen stimuli, in order."""
    rows = np.arange(len(labels["stimulus"]))
    if selection.conditions is not None:
        if "condition" not in labels:
            raise RequestError("the stimuli have no label `condition`", hint=f"their labels: {', '.join(labels)}")
        known = list(dict.fromkeys(labels["condition"].astype(str).tolist()))
        hint = f"the conditions: {' '.join(known):.200}"
        names = find_names(selection.conditions, known, what="there is no condition", hint=hint)
        rows = rows[np.isin(labels["condition"].astype(str), names)]
    if selection.where is not None:
        found = find_rows(selection.where, {name: one.tolist() for name, one in labels.items()}, key="where")
        rows = np.intersect1d(rows, np.asarray(found, dtype=np.intp))
    if selection.sample is not None:
        if not MIN_STIMULI <= selection.sample <= len(rows):
            raise RequestError(
                f"a sample of {selection.sample} stimuli was asked for, of {len(rows)}",
                hint=f"give a number from {MIN_STIMULI} to {len(rows)}",
            )
        rows = np.sort(np.random.default_rng(selection.seed).choice(rows, selection.sample, replace=False))
    if len(rows) < MIN_STIMULI:
        raise RequestError(
            f"{len(rows)} of {len(labels['stimulus'])} stimuli are chosen; an RDM wants at least {MIN_STIMULI}",
            hint="choose more conditions, or another expression",
        )
    return rows


def _find_present(acts: xr.DataArray, models: Mapping[str, int], rows: np.ndarray) -> np.ndarray:
    """Return (model, stimulus): True for the chosen rows that are finished."""
    if "present" not in acts.coords or "stimulus" not in acts["present"].dims:
        return np.ones((len(models), len(rows)), dtype=bool)
    present = acts["present"]
    if "model" not in present.dims:
        return np.asarray(present.values[None, rows], dtype=bool)
    table = np.asarray(present.transpose("model", "stimulus").values, dtype=bool)
    return table[[*models.values()]][:, rows]


def _check_present(chosen: Chosen, *, allow_missing: bool) -> None:
    """Refuse rows that are missing, or say that they become NaN."""
    n_lost = int((~chosen.present).sum())
    if not n_lost:
        return
    m, row = (int(place[0]) for place in np.nonzero(~chosen.present))
    model = list(chosen.models)[m]
    found = (
        f"{n_lost} of {chosen.present.size} rows are not there; the first: model {model!r}, stimulus "
        f"{str(chosen.stimuli[row])!r}"
    )
    if not allow_missing:
        raise StoreError(found, hint=f"allow_missing of an RDM makes their dissimilarities NaN, or {RUN_AGAIN}")
    few = [label for label, has in zip(chosen.models, chosen.present, strict=True) if has.sum() < MIN_STIMULI]
    if few:
        raise StoreError(f"model {few[0]!r} has fewer than {MIN_STIMULI} of the chosen rows", hint="leave it out")
    chosen.warnings.append(f"{found}: they have no dissimilarities")
