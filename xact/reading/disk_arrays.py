"""Activations on disk, described by paths, shapes and formats, so that another process can read them too.

A read decodes only the chunks that contain requested values.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import numpy as np

from xact.disk.places import Place, count_readers
from xact.disk.remote import RemotePath
from xact.errors import RemoteError, StoreError, make_command
from xact.store.chunks import name_chunk
from xact.store.shards import ShardFormat, read_rows, split_rows
from xact.store.snapshot import check_same_store, find_absent_shards

PARALLEL_NBYTES = 8 * 2**20
"""Bytes of values from which shards are read in parallel. For fewer bytes, threads cost more than they save."""

Pick = range | np.ndarray
"""Positions along one axis: a range or an array of integers."""


@dataclass(frozen=True)
class Rows:
    """The stimuli of one model."""

    n: int
    present: np.ndarray | None
    """True for each row that is finished and safe on disk; None if all are. Other rows read as NaN."""


@dataclass(frozen=True)
class LayerArray:
    """One layer of one model, (stimulus, replicate, *unit axes), float32."""

    store: Place
    """Absolute path, or URL."""
    path: str
    """Path of the array inside the store."""
    model_place: int
    """Position along the model axis of the array on disk."""
    layer_place: int
    """Position along the layer axis of the array on disk."""
    model: str
    layer: str
    form: ShardFormat
    separator: str
    """Separator of the numbers in the key of a shard."""
    rows: Rows
    unit_shape: tuple[int, ...]
    """Lengths of the unit axes; `(n_units,)` for one flat axis."""
    token: str
    """Identifies the generation; a part of dask's array names."""
    store_id: str = ""
    """Id of the store that was opened. Another store at the same path is refused."""

    dtype = np.dtype(np.float32)

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the axes."""
        return (self.rows.n, self.form.shape.n_replicates, *self.unit_shape)

    @property
    def n_units(self) -> int:
        """Units over all axes."""
        return prod(self.unit_shape)

    @property
    def key(self) -> tuple[Any, ...]:
        """Values that identify this array among all arrays."""
        return (self.token, self.model, self.layer, self.unit_shape, self.rows.present is None)

    def read(self, picks: Sequence[Pick]) -> np.ndarray:
        """Return the values at these positions along each axis."""
        rows, replicates, *units = picks
        lengths = [len(pick) for pick in picks]
        if 0 in lengths:
            return np.empty(lengths, dtype=self.dtype)
        flat = flatten_units(units, self.unit_shape)
        first, stop = (flat.start, flat.stop) if isinstance(flat, range) else (int(flat.min()), int(flat.max()) + 1)
        data = np.empty((len(rows), self.shape[1], stop - first), dtype=self.dtype)
        self.fill(data, rows, first)
        if not isinstance(flat, range):
            data = data[:, :, flat - first]
        if not is_whole(replicates, self.shape[1]):
            data = data[:, np.asarray(replicates)]
        return data.reshape(lengths)

    def fill(self, out: np.ndarray, rows: Pick, first_unit: int) -> None:
        """Fill `out` (stimulus, replicate, unit) with the given rows and the units from `first_unit` on."""
        try:
            self._fill(out, rows, first_unit)
        finally:  # afterwards, so that no shard of another store was read; its shards may also be missing
            check_same_store(self.store, self.store_id)

    def _fill(self, out: np.ndarray, rows: Pick, first_unit: int) -> None:
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
        parts: list[tuple[np.ndarray, str, np.ndarray, int]] = []
        layer_block = self.layer_place // shape.shard_layers
        for block, at, within in split_rows(rows, shape.shard_stimuli):
            for u in range(first_unit // shape.shard_units, -(-last_unit // shape.shard_units)):
                start = max(first_unit, u * shape.shard_units)
                stop = min(last_unit, (u + 1) * shape.shard_units)
                part = out[at, :, start - first_unit : stop - first_unit]
                key = name_chunk((self.model_place, block, layer_block, 0, u), self.separator)
                parts.append((part, f"{self.path}/{key}", within, start - u * shape.shard_units))
        is_small = out.nbytes < PARALLEL_NBYTES and not isinstance(self.store, RemotePath)
        if len(parts) == 1 or is_small:
            for one in parts:
                self._fill_part(*one)
            return
        with ThreadPoolExecutor(count_readers(self.store)) as pool:  # reading, checking and decoding release the GIL
            for done in [pool.submit(self._fill_part, *one) for one in parts]:
                done.result()

    def _fill_part(self, out: np.ndarray, key: str, rows: np.ndarray, first_unit: int) -> None:
        place = self.layer_place % self.form.shape.shard_layers
        try:
            read_rows(self.store / key, self.form, out, place=place, rows=rows, first_unit=first_unit)
        except FileNotFoundError:
            self._check_absent(key)
            out[...] = np.nan
        except RemoteError as error:
            if not (error.is_refusal and key in find_absent_shards(self.store)):
                raise RemoteError(self._say(str(error)), hint=error.hint) from None
            out[...] = np.nan
        except StoreError as error:
            raise self._refuse(str(error)) from None
        except OSError as error:
            raise self._refuse(f"{self.store / key} cannot be read: {error.strerror}") from None

    def _check_absent(self, key: str) -> None:
        """Refuse a missing shard, unless the build left it out because all its values are NaN."""
        try:
            absent = find_absent_shards(self.store)
        except StoreError as error:
            raise self._refuse(f"{self.store / key} is missing, and {error}") from None
        if key not in absent:
            raise self._refuse(f"{self.store / key} is missing")

    def _refuse(self, found: str) -> StoreError:
        hint = f"{make_command('verify', self.store)} names all that is damaged or missing"
        return StoreError(self._say(found), hint=hint)

    def _say(self, found: str) -> str:
        return f"store {str(self.store)!r}, model {self.model!r}, layer {self.layer!r}: {found}"


@dataclass(frozen=True)
class StackArray:
    """Layers of several models, (model, stimulus, layer, replicate, unit), float32. NaN pads a layer's units."""

    cells: tuple[tuple[LayerArray | None, ...], ...]
    """`cells[model][layer]`; None if the model lacks the layer."""

    dtype = np.dtype(np.float32)

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the axes; `unit` is as long as the widest layer."""
        layers = [cell for row in self.cells for cell in row if cell is not None]
        n_stimuli, n_replicates, _ = layers[0].shape
        return (len(self.cells), n_stimuli, len(self.cells[0]), n_replicates, max(one.n_units for one in layers))

    @property
    def key(self) -> tuple[Any, ...]:
        """Values that identify this array among all arrays."""
        return tuple(cell and cell.key for row in self.cells for cell in row)

    def read(self, picks: Sequence[Pick]) -> np.ndarray:
        """Return the values at these positions along each axis."""
        models, rows, layers, replicates, units = picks
        out = np.empty([len(pick) for pick in picks], dtype=self.dtype)
        for i, m in enumerate(models):
            for j, k in enumerate(layers):
                fill_cell(out[i, :, j], self.cells[m][k], rows, replicates, units)
        return out


def fill_cell(out: np.ndarray, cell: LayerArray | None, rows: Pick, replicates: Pick, units: Pick) -> None:
    """Fill `out` (stimulus, replicate, unit) from a layer. Units that the layer lacks become NaN."""
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
    out[:, :, has] = cell.read([rows, replicates, places[has]])


def flatten_units(units: Sequence[Pick], unit_shape: Sequence[int]) -> range | np.ndarray:
    """Return the positions along the flat unit axis (C order), as a range if they are consecutive."""
    flat = np.zeros(1, dtype=np.intp)
    if all(is_whole(pick, length) for pick, length in zip(units[1:], unit_shape[1:], strict=True)):
        first, row = units[0], prod(unit_shape[1:])
        if isinstance(first, range) and first.step == 1:
            return range(first.start * row, first.stop * row)
    for pick, length in zip(units, unit_shape, strict=True):
        flat = np.add.outer(flat * length, np.asarray(pick)).ravel()
    return flat


def is_whole(pick: Pick, length: int) -> bool:
    """Return True if `pick` is every position of an axis, in order."""
    return isinstance(pick, range) and pick == range(length)
