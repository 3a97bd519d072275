"""The labels of a store, in memory, and the disk array of each layer. Needs neither xarray nor dask.

Does not import the code that writes a store, so torch and pydantic stay unloaded.
"""

from __future__ import annotations

import functools
import heapq
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import numpy as np

from xact.disk.durable import parse_json
from xact.disk.places import FileState, Place, locate
from xact.errors import RUN_AGAIN, RequestError, StoreError, check_name, make_command
from xact.labels import match_names
from xact.reading.disk_arrays import LayerArray, Rows
from xact.reading.labels import choose_labels, rank_values
from xact.store.chunks import get_separator
from xact.store.shards import ShardFormat, parse_format
from xact.store.snapshot import Labels, Snapshot, is_same_store, make_absolute, open_snapshot, stamp_root

Names = str | Iterable[str] | None
"""A name, a glob (`*` matches any text, `?` one character), several names or globs, or None for all."""


def open_catalog(store: str | Place) -> Catalog:
    """Return all labels of a store. Each generation of a store is read once."""
    place = make_absolute(locate(store))
    return _read_catalog(place, stamp_root(place))


@functools.lru_cache(maxsize=4)
def _read_catalog(store: Place, _stamp: FileState) -> Catalog:
    """Read the labels. `_stamp` only serves as a part of the cache key: it changes with each generation."""
    while True:
        snapshot = open_snapshot(store)
        labels = snapshot.load_labels()
        if is_same_store(store, snapshot.store_id):  # else these are the labels of a store that was built in its place
            break
    needed = {"model", "layer", "stimulus", "replicate", "n_units", "layer_index", "unit_axes", "unit_shape", "present"}
    lost = sorted(needed - labels.keys())
    if lost:
        raise StoreError(
            f"the store {str(store)!r} lacks its label {lost[0]!r}",
            hint=f"{make_command('verify', store)} names what is damaged",
        )
    lost = [name for name in labels if not _fits(name, labels)]
    if lost:
        dims, values = labels[lost[0]]
        raise StoreError(
            f"the store {str(store)!r} has labels {lost[0]!r:.60} of type {values.dtype} and shape {values.shape} on "
            f"{dims}",
            hint=f"{make_command('verify', store)} names what is damaged",
        )
    return Catalog(snapshot, labels)


KINDS = {
    **dict.fromkeys(["model", "stimulus", "layer"], ("U", None)),
    "replicate": ("i", None),
    "present": ("b", ("model", "stimulus")),
    **dict.fromkeys(["n_units", "layer_index"], ("i", ("model", "layer"))),
    **dict.fromkeys(["unit_axes", "unit_shape", "path"], ("U", ("model", "layer"))),
}
"""{label that the readers use: (numpy's letter for its type, its dimensions)}. None: the label is its own dimension."""


def _fits(name: str, labels: Labels) -> bool:
    """Return True if a label has the type, the dimensions and the lengths that its name requires."""
    dims, values = labels[name]
    kind, wanted = KINDS.get(name, (values.dtype.kind, dims))
    lengths = tuple(labels[dim][1].size for dim in dims)
    return values.dtype.kind == kind and dims == (wanted or (name,)) and values.shape == lengths


@dataclass(frozen=True)
class OneLayer:
    """One layer of one model, ready to be opened."""

    array: LayerArray
    coords: dict[str, Any]
    """All labels except those of the units."""
    unit_axes: dict[str, int]
    """{name of the axis: length}. If a label already has the name, the axis is called `unit_NAME`."""
    kept: np.ndarray | None = None
    """Positions of the stimuli that are not left out; None if all are kept."""

    def index_units(self) -> dict[str, np.ndarray]:
        """Return {axis: index along it of each unit}, int32."""
        indices = np.indices(tuple(self.unit_axes.values()), dtype=np.int32).reshape(len(self.unit_axes), -1)
        return dict(zip(self.unit_axes, indices, strict=True))


@dataclass(frozen=True)
class Catalog:
    """The labels of a store, in memory."""

    snapshot: Snapshot
    labels: Labels

    @cached_property
    def indexes(self) -> dict[str, Any]:
        """{dimension: its labels as an index}, empty at first: a reader that makes indexes keeps them here."""
        return {}

    @property
    def models(self) -> np.ndarray:
        """Labels of the models."""
        return self.labels["model"][1]

    @property
    def layers(self) -> np.ndarray:
        """Labels of the layers."""
        return self.labels["layer"][1]

    @property
    def n_units(self) -> np.ndarray:
        """Number of units, (model, layer); 0 if the model lacks the layer."""
        return self.labels["n_units"][1]

    @cached_property
    def cube_format(self) -> ShardFormat:
        """Format of the single array of a store with layout `cube`."""
        return self._find_format("activations")

    def find_models(self, wanted: Names) -> list[int]:
        """Return the positions of the wanted models, in the order of `wanted`."""
        known = self.models.tolist()
        what = f"the store {str(self.snapshot.path)!r} has no model"
        names = find_names(
            wanted, known, what=what, hint=f"{make_command('info', self.snapshot.path)} lists all {len(known)}"
        )
        return [known.index(name) for name in names]

    def order_layers(self, m: int) -> list[int]:
        """Return the positions of one model's layers, in forward order."""
        index = self.labels["layer_index"][1][m]
        has = np.flatnonzero(self.n_units[m])
        return [int(k) for k in has[np.argsort(index[has], kind="stable")]]

    def find_layers(self, wanted: Names, m: Sequence[int]) -> list[int]:
        """Return the positions of the wanted layers that the models `m` have, in forward order."""
        ordered = merge_orders([self.order_layers(i) for i in m])
        by_name = {str(self.layers[k]): k for k in ordered}
        what, one = "no chosen model has a layer", []
        if len(m) == 1:
            what, one = f"model {str(self.models[m[0]])!r} has no layer", ["--model", self.models[m[0]]]
        hint = f"{make_command('info', self.snapshot.path, *one, '--layers')} lists all {len(by_name)}"
        names = set(find_names(wanted, list(by_name), what=what, hint=hint))
        return [k for name, k in by_name.items() if name in names]

    def find_rows(self, m: Sequence[int], *, allow_incomplete: bool, kept: np.ndarray | None = None) -> dict[int, Rows]:
        """Return {model: its rows} for the models `m`. Refuse unfinished rows unless `allow_incomplete`.

        `kept` are the positions of the requested stimuli; None for all.
        """
        present = self.labels["present"][1]
        asked = np.arange(present.shape[1]) if kept is None else kept
        lacking = [(i, row) for i in m for row in asked[~present[i][asked]].tolist()]
        if lacking and not allow_incomplete:
            i, row = lacking[0]
            failed = self.find_failed(m)
            hint = f"allow_incomplete=True reads them as NaN, or {RUN_AGAIN}"
            if all(failed[i, row] for i, row in lacking):
                hint = "skip_failed=True leaves out the stimuli that failed, allow_incomplete=True reads them as NaN"
            raise StoreError(
                f"{len(lacking)} of {len(m) * len(asked)} requested rows are not finished; the first: model "
                f"{str(self.models[i])!r}, stimulus {str(self.labels['stimulus'][1][row])!r}",
                hint=hint,
            )
        return {i: Rows(present.shape[1], None if present[i].all() else present[i]) for i in m}

    def find_failed(self, m: Sequence[int]) -> np.ndarray:
        """Return (model, stimulus), True for the rows of the models `m` that the store records as failed."""
        failed = np.zeros_like(self.labels["present"][1])
        for i in m:
            stimuli = list(self.failures.get(str(self.models[i]), {}))
            failed[i] = np.isin(self.labels["stimulus"][1], stimuli) if stimuli else False
        failed &= ~self.labels["present"][1]
        return failed

    @cached_property
    def failures(self) -> Mapping[str, Mapping[str, str]]:
        """{model: {stimulus: error}} of the rows that failed, from the provenance."""
        said = self.snapshot.metadata.get("xact", {}).get("attributes", {}).get("provenance", "{}")
        try:
            models = parse_json(said).get("models", {})
            return {label: dict(record.get("failed", {})) for label, record in models.items()}
        except (ValueError, TypeError, AttributeError):
            raise StoreError(
                f"the provenance of the store {str(self.snapshot.path)!r} is damaged",
                hint=f"{make_command('verify', self.snapshot.path)} names what is damaged",
            ) from None

    def order_stimuli(self, sort: str, rows: np.ndarray | None) -> np.ndarray:
        """Return positions of stimuli in the order of one of their labels; of `rows`, None for all."""
        columns = {name: values for name, (dims, values) in self.labels.items() if dims == ("stimulus",)}
        check_name(sort, columns, what="sort: the stimuli have no label", hint=f"they have {', '.join(columns)}")
        ranks = rank_values(columns[sort])
        asked = np.arange(len(ranks)) if rows is None else rows
        ordered: np.ndarray = asked[np.argsort(ranks[asked], kind="stable")]
        return ordered

    def leave_out_failed(self, m: Sequence[int], rows: np.ndarray | None = None) -> np.ndarray:
        """Return the positions of the stimuli that failed in none of the models `m`; `rows` None means all stimuli."""
        is_failed: np.ndarray = np.any(self.find_failed(m), axis=0)
        asked = np.arange(len(is_failed)) if rows is None else rows
        kept: np.ndarray = asked[~is_failed[asked]]
        if not len(kept):
            raise StoreError(
                f"store {str(self.snapshot.path)!r}: each of the {len(asked)} stimuli failed in one of the chosen "
                f"models ({', '.join(str(self.models[i]) for i in m)})",
                hint=f"{make_command('info', self.snapshot.path)} says why; leave models out that failed",
            )
        return kept

    def leave_out_unfinished(self, m: Sequence[int], *, skip_failed: bool) -> list[int]:
        """Return those of the models `m` that have every row. With `skip_failed`, failed rows do not count."""
        has = self.labels["present"][1] | self.find_failed(m) if skip_failed else self.labels["present"][1]
        whole = [i for i in m if has[i].all()]
        if not whole:
            more = "" if skip_failed else "skip_failed=True too leaves out the stimuli that failed; "
            raise StoreError(
                f"store {str(self.snapshot.path)!r}: none of the {len(m)} chosen models has every row",
                hint=f"{more}{make_command('info', self.snapshot.path)} says what is missing; {RUN_AGAIN}",
            )
        return whole

    def find_array(self, m: int, k: int, rows: Rows, *, as_map: bool = False) -> LayerArray | None:
        """Return the array of one layer of one model, or None if the model lacks the layer."""
        n_units = int(self.n_units[m, k])
        if not n_units:
            return None
        if self.snapshot.layout == "cube":
            path, at = "activations", m
            place, form = k, self.cube_format
        else:
            path, at = f"{self.labels['path'][1][m, k]}/activations", 0
            place, form = 0, self._find_format(path)
        self._check_shape(path, n_units)
        return LayerArray(
            store=self.snapshot.path,
            store_id=self.snapshot.store_id,
            path=path,
            model_place=at,
            layer_place=place,
            model=str(self.models[m]),
            layer=str(self.layers[k]),
            form=form,
            separator=get_separator(self.snapshot.metadata[path]),
            rows=rows,
            unit_shape=self._load_lengths(m, k) if as_map else (n_units,),
            token=self.snapshot.token,
        )

    def _find_format(self, path: str) -> ShardFormat:
        try:
            return parse_format(self.snapshot.metadata[path])
        except KeyError:
            raise StoreError(
                f"the root of the store {str(self.snapshot.path)!r} does not list {path!r}",
                hint=f"{make_command('verify', self.snapshot.path)} names what is damaged",
            ) from None

    def _check_shape(self, path: str, n_units: int) -> None:
        """Refuse an array if its shape contradicts the labels."""
        shape = self.snapshot.metadata[path]["shape"]
        n_stimuli, n_replicates = (self.labels[name][1].size for name in ("stimulus", "replicate"))
        n_shown = self.snapshot.metadata[path]["codecs"][0]["configuration"]["chunk_shape"][3]
        if not (0 < n_units <= shape[4] and shape[1] >= n_stimuli and shape[3] == n_shown == n_replicates):
            raise StoreError(
                f"the store {str(self.snapshot.path)!r} has {path!r:.60} of shape {shape} for {n_stimuli} stimuli, "
                f"{n_replicates} replicates and {n_units} units",
                hint=f"{make_command('verify', self.snapshot.path)} names what is damaged",
            )

    def _load_lengths(self, m: int, k: int) -> tuple[int, ...]:
        """Return the lengths of the unit axes of one layer."""
        said = str(self.labels["unit_shape"][1][m, k])
        lengths = tuple(int(part) for part in re.findall(r"\d{1,18}", said))
        if said != json.dumps(lengths) or prod(lengths) != self.n_units[m, k]:
            raise StoreError(
                f"model {str(self.models[m])!r}, layer {str(self.layers[k])!r}: unit_shape {said:.60} is not "
                f"{self.n_units[m, k]} units"
            )
        return lengths

    def open_one(
        self,
        model: str,
        layer: str,
        *,
        allow_incomplete: bool,
        as_map: bool,
        skip_failed: bool = False,
        labels: str = "",
    ) -> OneLayer:
        """Return one layer of one model. Both names must be complete; globs are not allowed."""
        known = self.models.tolist()
        at = self.snapshot.path
        check_name(
            model,
            known,
            what=f"the store {str(at)!r} has no model",
            hint=f"{make_command('info', at)} lists all {len(known)}",
        )
        m = known.index(model)
        by_name = {str(self.layers[k]): k for k in self.order_layers(m)}
        hint = f"{make_command('info', at, '--model', model, '--layers')} lists all {len(by_name)}"
        check_name(layer, by_name, what=f"model {model!r} has no layer", hint=hint)
        k = by_name[layer]
        kept = self.leave_out_failed([m]) if skip_failed else None
        rows = self.find_rows([m], allow_incomplete=allow_incomplete, kept=kept)[m]
        array = self.find_array(m, k, rows, as_map=as_map)
        axes, shape = parse_names(self.labels["unit_axes"][1][m, k]), self._load_lengths(m, k)
        if array is None or axes is None or len(axes) != len(shape):
            raise StoreError(f"model {model!r}, layer {layer!r}: unit_shape {shape} has the axes {axes}")
        names: list[str] = []
        for name in axes:
            while name in self.labels or name in names:
                name = f"unit_{name}"
            names.append(name)
        coords = self.make_coords({"model": m, "layer": k}, labels)
        return OneLayer(array, coords, dict(zip(names, shape, strict=True)), kept)

    def make_coords(self, at: Mapping[str, int | np.ndarray], labels: str = "") -> dict[str, Any]:
        """Return the labels at the given positions {dimension: positions}. An integer position drops its dimension.

        `labels` may be `all` (the long ones last) or `short` (without the long ones).
        """
        coords: dict[str, Any] = {}
        for name in choose_labels(self.labels, labels):
            dims, values = self.labels[name]
            for axis in reversed(range(len(dims))):
                if dims[axis] in at:
                    values = np.take(values, at[dims[axis]], axis=axis)
            coords[name] = (tuple(dim for dim in dims if np.ndim(at.get(dim, [])) == 1), values)
        return coords


def parse_names(text: object) -> list[str] | None:
    """Return the names in a JSON list of distinct names, or None if `text` is anything else."""
    try:
        names = parse_json(str(text))
    except ValueError:
        return None
    is_list = isinstance(names, list) and all(isinstance(name, str) and name for name in names)
    return names if is_list and len(set(names)) == len(names) else None


def find_names(wanted: Names, known: Sequence[str], *, what: str, hint: str) -> list[str]:
    """Return the known names that `wanted` selects, in the order of `wanted`. Refuse a name or glob without a match."""
    if wanted is None:
        return list(known)
    if not isinstance(wanted, Iterable):
        raise RequestError(f"a name or a list of names is wanted, found {wanted!r:.60}")
    asked = [wanted] if isinstance(wanted, str) else [str(name) for name in wanted]
    if not asked:
        raise RequestError("an empty list of names selects nothing", hint="leave it out to select all")
    found: dict[str, None] = {}
    for name in asked:
        fits = [name] if name in known else match_names(name, known)
        if not fits:
            check_name(name, known, what=what, hint=hint)
        found |= dict.fromkeys(fits)
    return list(found)


def merge_orders(orders: Sequence[Sequence[int]]) -> list[int]:
    """Return each position once. Keep the given orders where they agree; otherwise use the first appearance."""
    rank = {place: i for i, place in enumerate(dict.fromkeys(place for order in orders for place in order))}
    after: dict[int, set[int]] = {place: set() for place in rank}
    for order in orders:
        for place, following in itertools.pairwise(order):
            after[place].add(following)
    n_before = Counter(place for following in after.values() for place in following)
    free = [(rank[place], place) for place in rank if not n_before[place]]
    merged: dict[int, None] = {}
    while len(merged) < len(rank):
        place = heapq.heappop(free)[1] if free else next(one for one in rank if one not in merged)  # break a cycle
        if place in merged:
            continue
        merged[place] = None
        for following in after[place]:
            n_before[following] -= 1
            if not n_before[following]:
                heapq.heappush(free, (rank[following], following))
    return list(merged)
