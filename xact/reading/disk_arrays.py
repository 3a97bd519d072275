"""Activations on disk, described by paths, shapes and formats, so that another process can read them too.

A read decodes only the chunks that contain requested values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import numpy as np

from xact.disk.places import Place, count_readers
from xact.disk.remote import RemotePath
from xact.errors import RemoteError, StoreError, make_command
from xact.store.chunks import FLOAT32_NBYTES, name_chunk
from xact.store.shards import RowsOfLayer, ShardFormat, read_rows, split_rows
from xact.store.snapshot import check_same_store, find_absent_shards

PARALLEL_NBYTES = 8 * 2**20
"""Bytes of decoded chunks from which shards are read in parallel. For fewer, threads cost more than they save."""

PARTS_PER_THREAD = 4
"""Groups of pieces that each thread reads. More groups open a file more often; with fewer, a thread may end late."""

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
        pieces, finish = self.cut(out, rows, first_unit)
        read_pieces(pieces, self)
        finish()

    def cut(self, out: np.ndarray, rows: Pick, first_unit: int) -> tuple[list[Piece], Callable[[], None]]:
        """Return the pieces that fill `out`, and what to call after they are read."""
        asked = np.arange(rows.start, rows.stop, rows.step) if isinstance(rows, range) else rows
        present = self.rows.present
        if (np.diff(asked) > 0).all() and (present is None or present[asked].all()):
            return self._cut_known(out, asked, first_unit), lambda: None
        ordered, back = np.unique(asked, return_inverse=True)
        known = ordered if present is None else ordered[present[ordered]]
        values = np.empty((len(known), *out.shape[1:]), dtype=self.dtype)

        def finish() -> None:
            whole = np.full((len(ordered), *out.shape[1:]), np.nan, dtype=self.dtype)
            whole[np.isin(ordered, known, assume_unique=True)] = values
            out[...] = whole[back]

        return self._cut_known(values, known, first_unit), finish

    def _cut_known(self, out: np.ndarray, rows: np.ndarray, first_unit: int) -> list[Piece]:
        """Return the pieces of rows that strictly increase and are all present."""
        shape = self.form.shape
        last_unit = first_unit + out.shape[2]
        pieces: list[Piece] = []
        layer_block, place = divmod(self.layer_place, shape.shard_layers)
        for block, at, within in split_rows(rows, shape.shard_stimuli):
            for u in range(first_unit // shape.shard_units, -(-last_unit // shape.shard_units)):
                start = max(first_unit, u * shape.shard_units)
                stop = min(last_unit, (u + 1) * shape.shard_units)
                part = out[at, :, start - first_unit : stop - first_unit]
                key = name_chunk((self.model_place, block, layer_block, 0, u), self.separator)
                wanted = RowsOfLayer(part, place, within, start - u * shape.shard_units)
                pieces.append(Piece(self, f"{self.path}/{key}", wanted))
        return pieces

    def read_file(self, key: str, wanted: Sequence[RowsOfLayer]) -> None:
        """Fill what is wanted of one shard. Errors name this layer."""
        try:
            read_rows(self.store / key, self.form, wanted)
            return
        except FileNotFoundError:
            self._check_absent(key)
        except RemoteError as error:
            if not (error.is_refusal and key in find_absent_shards(self.store)):
                raise RemoteError(self._say(str(error)), hint=error.hint) from None
        except StoreError as error:
            raise self._refuse(str(error)) from None
        except OSError as error:
            raise self._refuse(f"{self.store / key} cannot be read: {error.strerror}") from None
        for one in wanted:
            one.out[...] = np.nan

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
class Piece:
    """Values of one layer in one shard."""

    layer: LayerArray
    key: str
    """Key of the shard in the store."""
    wanted: RowsOfLayer

    @property
    def nbytes(self) -> int:
        """Most bytes that are decoded: whole chunks."""
        shape, (n_rows, n_replicates, n_units) = self.layer.form.shape, self.wanted.out.shape
        n_chunks = min(n_rows, shape.grid[0]) * -(-(self.wanted.first_unit + n_units) // shape.chunk_units)
        nbytes: int = FLOAT32_NBYTES * n_chunks * shape.chunk_stimuli * n_replicates * shape.chunk_units
        return nbytes


def read_pieces(pieces: Sequence[Piece], layer: LayerArray) -> None:
    """Fill pieces of the store of a layer. Each thread opens a file once."""
    try:
        _read_pieces(pieces, layer.store)
    finally:  # afterwards, so that no shard of another store was read; its shards may also be missing
        check_same_store(layer.store, layer.store_id)


def _read_pieces(pieces: Sequence[Piece], store: Place) -> None:
    by_file: dict[str, list[Piece]] = {}
    for piece in pieces:
        by_file.setdefault(piece.key, []).append(piece)
    is_small = sum(piece.nbytes for piece in pieces) < PARALLEL_NBYTES and not isinstance(store, RemotePath)
    if is_small or len(pieces) < 2:
        for same in by_file.values():
            _read_file(same)
        return
    n_threads = count_readers(store)
    size = -(-len(pieces) // (n_threads * PARTS_PER_THREAD))
    groups = [same[i : i + size] for same in by_file.values() for i in range(0, len(same), size)]
    waiting = iter(groups)

    def read_groups() -> None:
        for group in waiting:
            _read_file(group)

    n_threads = min(n_threads, len(groups))
    with ThreadPoolExecutor(n_threads) as pool:  # reading and decoding release the GIL
        others = [pool.submit(read_groups) for _ in range(n_threads - 1)]
        read_groups()  # a thread that only waits would be woken for each group
        for other in others:
            other.result()


def _read_file(pieces: Sequence[Piece]) -> None:
    """Fill pieces of one file. After an error they are read one by one: then the error names the right layer."""
    try:
        pieces[0].layer.read_file(pieces[0].key, [piece.wanted for piece in pieces])
    except StoreError:
        for piece in pieces:
            piece.layer.read_file(piece.key, [piece.wanted])


@dataclass(frozen=True)
class StackArray:
    """Layers of several models, (model, stimulus, layer, replicate, unit), float32. NaN pads a layer's units."""

    cells: tuple[tuple[LayerArray | None, ...], ...]
    """`cells[model][layer]`; None if the model lacks the layer."""

    dtype = np.dtype(np.float32)

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the axes; `unit` is as long as the widest layer."""
        n_stimuli, n_replicates, _ = self.layers[0].shape
        return (len(self.cells), n_stimuli, len(self.cells[0]), n_replicates, max(one.n_units for one in self.layers))

    @cached_property
    def layers(self) -> list[LayerArray]:
        """The layers that the models have."""
        return [cell for row in self.cells for cell in row if cell is not None]

    @property
    def key(self) -> tuple[Any, ...]:
        """Values that identify this array among all arrays."""
        return tuple(cell and cell.key for row in self.cells for cell in row)

    def read(self, picks: Sequence[Pick]) -> np.ndarray:
        """Return the values at these positions along each axis."""
        models, rows, layers, replicates, units = picks
        out = np.empty([len(pick) for pick in picks], dtype=self.dtype)
        cut = [
            cut_cell(out[i, :, j], self.cells[m][k], rows, replicates, units)
            for i, m in enumerate(models)
            for j, k in enumerate(layers)
        ]
        read_pieces([piece for pieces, _ in cut for piece in pieces], self.layers[0])
        for _, finish in cut:
            finish()
        return out


def cut_cell(
    out: np.ndarray, cell: LayerArray | None, rows: Pick, replicates: Pick, units: Pick
) -> tuple[list[Piece], Callable[[], None]]:
    """Return the pieces that fill `out` (stimulus, replicate, unit) from a layer, and what to call after they are read.

    Units that the layer lacks become NaN.
    """
    if cell is None or 0 in out.shape:
        out[...] = np.nan
        return [], lambda: None
    if isinstance(units, range) and units.step == 1 and is_whole(replicates, cell.shape[1]):
        n = max(0, min(cell.n_units, units.stop) - units.start)
        out[:, :, n:] = np.nan
        return cell.cut(out[:, :, :n], rows, units.start) if n else ([], lambda: None)
    places = np.asarray(units)
    has = places < cell.n_units
    out[...] = np.nan
    out[:, :, has] = cell.read([rows, replicates, places[has]])
    return [], lambda: None


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
