"""A store, of either layout, as model -> stimulus -> layer."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from xact.disk.places import Place
from xact.errors import RUN_AGAIN, NameNotFoundError, StoreError
from xact.reading.catalog import open_catalog
from xact.reading.disk_arrays import Rows
from xact.reading.trees.base import Tree
from xact.store.chunks import FLOAT32_NBYTES

NEIGHBOURS_NBYTES = 16 * 2**20
"""Upper bound, in bytes, of a chunk whose other stimuli are kept after one of them was requested."""


def open_tree(path: Place, *, allow_incomplete: bool) -> StoreTree:
    """Open a store; raise StoreError if it is not a store or is unfinished."""
    return StoreTree(path, allow_incomplete=allow_incomplete)


class StoreTree(Tree):
    """A store at the time of opening. Generations that are published later stay invisible."""

    def __init__(self, path: Place, *, allow_incomplete: bool = False) -> None:
        self.path = path
        self.allow_incomplete = allow_incomplete
        self._catalog = open_catalog(path)
        self.identity = self._catalog.snapshot.store_id
        self._layers: dict[str, dict[str, int]] = {}

    @cached_property
    def _models(self) -> dict[str, int]:
        return {str(label): m for m, label in enumerate(self._catalog.models)}

    @cached_property
    def _stimuli(self) -> dict[str, int]:
        return {str(label): row for row, label in enumerate(self._catalog.labels["stimulus"][1])}

    @cached_property
    def _stems(self) -> dict[str, list[str]]:
        """{stem: labels of its stimuli}."""
        stems: dict[str, list[str]] = {}
        for label, stem in zip(self._stimuli, self._catalog.labels["stem"][1].tolist(), strict=True):
            stems.setdefault(stem, []).append(label)
        return stems

    def _get_places(self, *at: str) -> dict[str, int]:
        """Return {label: position} of all names below `at`."""
        if len(at) < 2:
            return self._stimuli if at else self._models
        model = at[0]
        if model not in self._layers:
            catalog = self._catalog
            self._layers[model] = {str(catalog.layers[k]): k for k in catalog.order_layers(self._models[model])}
        return self._layers[model]

    def list_names(self, *at: str) -> list[str]:
        """Return all labels below `at`. Stimuli include those that the model has not finished."""
        self.check_open()
        return list(self._get_places(*at))

    def find_name(self, name: str, *at: str) -> str | None:
        """Return `name` if it is a label, the stimulus with the stem `name` if it is unique, else None."""
        self.check_open()
        if name in self._get_places(*at):
            return str(name)
        alike = self._stems.get(name, []) if len(at) == 1 else []
        return alike[0] if len(alike) == 1 else None

    def refuse(self, name: object, *at: str) -> NameNotFoundError:
        """Return the error for an unknown name, or for a stem that several stimuli share."""
        alike = self._stems.get(str(name), []) if len(at) == 1 else []
        if not alike:
            return super().refuse(name, *at)
        return NameNotFoundError(
            f"model {at[0]!r} has {len(alike)} stimuli with the stem {name!r} ({', '.join(alike[:3])})",
            hint="give the whole label, condition/stem",
        )

    def find_shape(self, model: str, stimulus: str, layer: str) -> tuple[int, ...]:
        """Return (n_replicates, n_units) of a layer."""
        m, k = self._models[model], self._get_places(model, stimulus)[layer]
        return len(self._catalog.labels["replicate"][1]), int(self._catalog.n_units[m, k])

    def read(self, model: str, stimulus: str, layer: str) -> dict[str, np.ndarray]:
        """Return the values of all stimuli in the chunk of `stimulus`; raise StoreError if its row is not finished."""
        m, k, row = self._models[model], self._get_places(model, stimulus)[layer], self._stimuli[stimulus]
        present = self._catalog.labels["present"][1][m]
        if not present[row] and not self.allow_incomplete:
            raise StoreError(
                f"store {str(self.path)!r}, model {model!r}: the row of stimulus {stimulus!r} is not finished",
                hint=f"allow_incomplete=True reads it as NaN, or {RUN_AGAIN}",
            )
        array = self._catalog.find_array(m, k, Rows(len(present), None if present.all() else present))
        if array is None:
            raise StoreError(f"store {str(self.path)!r}, model {model!r}: n_units of layer {layer!r} is 0")
        size = array.form.shape.chunk_stimuli
        rows = range(row - row % size, min(row - row % size + size, len(present)))
        if len(rows) * array.shape[1] * array.n_units * FLOAT32_NBYTES > NEIGHBOURS_NBYTES:
            rows = range(row, row + 1)
        values = array.read([rows, *map(range, array.shape[1:])])
        labels = self.list_names(model)[rows.start : rows.stop]
        return {label: values[i] for i, label in enumerate(labels) if present[rows[i]] or self.allow_incomplete}
