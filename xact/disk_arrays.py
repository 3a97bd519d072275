"""Activations on disk as arrays that are read when they are indexed: paths, shapes and formats, no numbers.

Dask slices these like numpy arrays, in threads and in other processes. Only the chunks that an index touches are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from xact.chunks import ITEM_NBYTES
from xact.errors import StoreError
from xact.shards import ShardFormat, read_rows, split_rows
from xact.snapshot import find_absent_shards

BLOCK_NBYTES = 64 * 2**20
"""Upper bound of a dask block, where one shard is not larger; small enough for a few at once in any memory."""

SMALLEST_BLOCK_NBYTES = 4 * 2**20
"""Smaller blocks cost more in planning than they save by being read side by side."""

BLOCKS_PER_LAYER = 8
"""Blocks that a layer is cut into at least, for as many cores, while they are not under the smallest size."""

MAX_BLOCKS = 20_000
"""Blocks that dask plans without a wait; with more of them a block grows, up to `LARGEST_BLOCK_NBYTES`."""

LARGEST_BLOCK_NBYTES = 4 * BLOCK_NBYTES

Pick = range | np.ndarray
"""Places along one axis: a range, or an array of them."""


@dataclass(frozen=True)
class Rows:
    """The stimuli of one model."""

    n: int
    present: np.ndarray | None
    """Whether each row is finished and safe; None where all are. Other rows read as NaN."""


@dataclass(frozen=True)
class LayerArray:
    """One layer of one model, (stimulus, replicate, *unit axes), float32."""

    store: str
    """Absolute path."""
    prefix: str
    """Path of the shards inside the store, up to the number of the block."""
    layer_place: int
    """Along the layer axis of the array on disk."""
    model: str
    layer: str
    form: ShardFormat
    rows: Rows
    unit_shape: tuple[int, ...]
    """Lengths of the unit axes; `(n_units,)` for one flat axis."""
    token: str
    """Of the generation, for the names that dask gives."""

    dtype = np.dtype(np.float32)

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the axes."""
        return (self.rows.n, self.form.shape.n_replicates, *self.unit_shape)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return 2 + len(self.unit_shape)

    @property
    def n_units(self) -> int:
        """Units over all axes."""
        return prod(self.unit_shape)

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        all_rows = self.rows.present is None
        return (type(self).__name__, self.token, self.model, self.layer, self.unit_shape, all_rows)

    def __getitem__(self, key: Any) -> np.ndarray:  # noqa: ANN401  any index that dask gives
        picks, kept = expand_index(key, self.shape)
        return self.read(picks[0], picks[1], picks[2:]).reshape(kept)

    def read(self, rows: Pick, replicates: Pick, units: Sequence[Pick]) -> np.ndarray:
        """Return the values at these places, (stimulus, replicate, *unit axes)."""
        lengths = (len(rows), len(replicates), *map(len, units))
        if 0 in lengths:
            return np.empty(lengths, dtype=self.dtype)
        flat = flatten_units(units, self.unit_shape)
        first, stop = (flat.start, flat.stop) if isinstance(flat, range) else (int(flat.min()), int(flat.max()) + 1)
        data = np.empty((len(rows), self.shape[1], stop - first), dtype=self.dtype)
        self.fill(data, rows, first)
        if not isinstance(flat, range):
            data = data[:, :, flat - first]
        if not is_whole(replicates, self.shape[1]):
            data = data[:, as_index(replicates)]
        return data.reshape(lengths)

    def fill(self, out: np.ndarray, rows: Pick, first_unit: int) -> None:
        """Fill `out` (stimulus, replicate, unit) from the given rows and from `first_unit` on."""
        asked = np.asarray(rows)
        ordered, back = np.unique(asked, return_inverse=True)
        present = self.rows.present
        known = ordered if present is None else ordered[present[ordered]]
        if len(known) == len(asked) and np.array_equal(known, asked):
            self._fill_known(out, known, first_unit)
            return
        whole = np.full((len(ordered), *out.shape[1:]), np.nan, dtype=self.dtype)
        values = np.empty((len(known), *out.shape[1:]), dtype=self.dtype)
        self._fill_known(values, known, first_unit)
        whole[np.isin(ordered, known, assume_unique=True)] = values
        out[...] = whole[back]

    def _fill_known(self, out: np.ndarray, rows: np.ndarray, first_unit: int) -> None:
        """Fill `out` from rows that strictly increase and are all present."""
        shape = self.form.shape
        last_unit = first_unit + out.shape[2]
        for block, at, within in split_rows(rows, shape.shard_stimuli):
            for u in range(first_unit // shape.shard_units, -(-last_unit // shape.shard_units)):
                start = max(first_unit, u * shape.shard_units)
                stop = min(last_unit, (u + 1) * shape.shard_units)
                part = out[at, :, start - first_unit : stop - first_unit]
                self._fill_part(part, f"{block}/{self.layer_place}/0/{u}", within, start - u * shape.shard_units)

    def _fill_part(self, out: np.ndarray, place: str, rows: np.ndarray, first_unit: int) -> None:
        key = f"{self.prefix}/{place}"
        try:
            read_rows(Path(self.store, key), self.form, out, rows=rows, first_unit=first_unit)
        except FileNotFoundError:
            self._check_absent(key)
            out[...] = np.nan
        except StoreError as error:
            raise self._refuse(str(error)) from None
        except OSError as error:
            raise self._refuse(f"{Path(self.store, key)} cannot be read: {error.strerror}") from None

    def _check_absent(self, key: str) -> None:
        """Refuse a shard that is missing, unless the build found nothing but NaN and wrote none."""
        try:
            absent = find_absent_shards(Path(self.store))
        except StoreError as error:
            raise self._refuse(f"{Path(self.store, key)} is missing, and {error}") from None
        if key not in absent:
            raise self._refuse(f"{Path(self.store, key)} is missing")

    def _refuse(self, found: str) -> StoreError:
        return StoreError(
            f"store {self.store!r}, model {self.model!r}, layer {self.layer!r}: {found}",
            hint=f"xact verify {self.store} names all that is damaged or missing",
        )


@dataclass(frozen=True)
class StackArray:
    """Layers of several models, (model, stimulus, layer, replicate, unit), float32; NaN beyond a layer's units."""

    cells: tuple[tuple[LayerArray | None, ...], ...]
    """By model and layer; None where the model has no such layer."""

    dtype = np.dtype(np.float32)
    ndim = 5

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the axes; `unit` is as long as the widest layer."""
        layers = [cell for row in self.cells for cell in row if cell is not None]
        n_stimuli, n_replicates, _ = layers[0].shape
        return (len(self.cells), n_stimuli, len(self.cells[0]), n_replicates, max(one.n_units for one in layers))

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        return (type(self).__name__, *([one and one.__dask_tokenize__() for one in row] for row in self.cells))

    def __getitem__(self, key: Any) -> np.ndarray:  # noqa: ANN401  any index that dask gives
        picks, kept = expand_index(key, self.shape)
        models, rows, layers, replicates, units = picks
        out = np.empty([len(pick) for pick in picks], dtype=self.dtype)
        for i, m in enumerate(models):
            for j, k in enumerate(layers):
                fill_cell(out[i, :, j], self.cells[m][k], rows, replicates, units)
        return out.reshape(kept)


def fill_cell(out: np.ndarray, cell: LayerArray | None, rows: Pick, replicates: Pick, units: Pick) -> None:
    """Fill `out` (stimulus, replicate, unit) from a layer, and with NaN where it has no such unit."""
    if cell is None or 0 in out.shape:
        out[...] = np.nan
        return
    if isinstance(units, range) and units.step == 1 and is_whole(replicates, cell.shape[1]):
        n = max(0, min(cell.n_units, units.stop) - units.start)
        out[:, :, n:] = np.nan
        if n:
            cell.fill(out[:, :, :n], rows, units.start)
        return
    places = np.asarray(units)
    has = places < cell.n_units
    out[...] = np.nan
    out[:, :, has] = cell.read(rows, replicates, [places[has]])


def expand_index(key: Any, shape: Sequence[int]) -> tuple[list[Pick], list[int]]:  # noqa: ANN401  any index
    """Return (places along each axis, shape of the result), each axis indexed on its own.

    Takes integers, slices, arrays of integers and masks; an integer drops its axis.
    """
    keys = list(key) if isinstance(key, tuple) else [key]
    at = next((i for i, one in enumerate(keys) if one is Ellipsis), None)
    if at is not None:
        keys[at : at + 1] = [slice(None)] * (len(shape) - len(keys) + 1)
    keys += [slice(None)] * (len(shape) - len(keys))
    if len(keys) > len(shape):
        raise IndexError(f"{len(keys)} indices for {len(shape)} axes")
    picks = [_pick(one, length) for one, length in zip(keys, shape, strict=True)]
    kept = [len(pick) for pick, one in zip(picks, keys, strict=True) if np.ndim(one) or isinstance(one, slice)]
    return picks, kept


def _pick(key: Any, length: int) -> Pick:  # noqa: ANN401  any index of one axis
    if isinstance(key, slice):
        return range(length)[key]
    places = np.asarray(key)
    if places.dtype == bool:
        if places.shape != (length,):
            raise IndexError(f"a mask of shape {places.shape} for an axis of length {length}")
        return np.flatnonzero(places)
    places = places.astype(np.intp)
    if places.ndim > 1 or ((places < -length) | (places >= length)).any():
        raise IndexError(f"an index beyond an axis of length {length}")
    places = np.where(places < 0, places + length, places)
    return places if places.ndim else range(int(places), int(places) + 1)


def flatten_units(units: Sequence[Pick], unit_shape: Sequence[int]) -> range | np.ndarray:
    """Return the places along the flat unit axis (C order): a range where they follow each other."""
    flat = np.zeros(1, dtype=np.intp)
    if all(is_whole(pick, length) for pick, length in zip(units[1:], unit_shape[1:], strict=True)):
        first, row = units[0], prod(unit_shape[1:])
        if isinstance(first, range) and first.step == 1:
            return range(first.start * row, first.stop * row)
    for pick, length in zip(units, unit_shape, strict=True):
        flat = np.add.outer(flat * length, np.asarray(pick)).ravel()
    return flat


def is_whole(pick: Pick, length: int) -> bool:
    """Return whether these are all places of an axis, in order."""
    return isinstance(pick, range) and pick == range(length)


def as_index(pick: Pick) -> slice | np.ndarray:
    """Return what numpy takes along one axis."""
    if isinstance(pick, range) and pick.step > 0:
        return slice(pick.start, pick.stop, pick.step)
    return np.asarray(pick)


def choose_block_rows(array: LayerArray | StackArray) -> int:
    """Return the stimuli of a dask block: whole shards, of moderate size, not too many of them."""
    if isinstance(array, LayerArray):
        form, n_stimuli, n_units, n_cells = array.form, array.rows.n, array.n_units, 1
    else:
        form = next(cell.form for row in array.cells for cell in row if cell is not None)
        n_stimuli, n_units, n_cells = array.shape[1], array.shape[4], array.shape[0] * array.shape[2]
    row_nbytes = ITEM_NBYTES * form.shape.n_replicates * n_units
    nbytes = min(BLOCK_NBYTES, max(SMALLEST_BLOCK_NBYTES, n_stimuli * row_nbytes // BLOCKS_PER_LAYER))
    nbytes = max(nbytes, min(n_stimuli * row_nbytes * n_cells // MAX_BLOCKS, LARGEST_BLOCK_NBYTES))
    size = form.shape.shard_stimuli
    return min(n_stimuli, max(1, nbytes // (row_nbytes * size)) * size)
