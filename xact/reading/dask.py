"""Dask arrays over activations on disk that read only the selected values.

Example: `acts.sel(model=...).sel(stimulus=...)` reads one row. A plain dask array would read whole blocks, because dask
joins only the first selection with the read, and never joins a selection by an array of positions.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import dask.array as da
import numpy as np

from xact.reading.disk_arrays import LayerArray, Pick, StackArray, is_whole
from xact.store.chunks import FLOAT32_NBYTES

BLOCK_NBYTES = 64 * 2**20
"""Upper bound of a dask block in bytes, unless one shard is larger. A few such blocks fit into any memory."""

MAX_BLOCKS = 20_000
"""Number of blocks that dask plans without a delay. Above it, blocks grow up to `LARGEST_BLOCK_NBYTES`."""

LARGEST_BLOCK_NBYTES = 4 * BLOCK_NBYTES

JOINED_NBYTES = 8 * 2**20
"""A selection of so many bytes is one block: it is read in threads, and one block for each layer would open the file of
many layers for each of them."""


@dataclass(frozen=True)
class View:
    """Selected positions along each axis of an array on disk. Indexing a view reads the values."""

    base: LayerArray | StackArray
    picks: tuple[Pick, ...]
    """Positions along each axis of `base`."""
    is_kept: tuple[bool, ...]
    """For each axis of `base`: True if the view keeps it. A dropped axis has a single position."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the axes."""
        return tuple(len(pick) for pick, kept in zip(self.picks, self.is_kept, strict=True) if kept)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return sum(self.is_kept)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the values."""
        return self.base.dtype

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        picks = [str(pick) if isinstance(pick, range) else pick.tolist() for pick in self.picks]
        return (type(self).__name__, type(self.base).__name__, self.base.key, picks, self.is_kept)

    def __getitem__(self, key: Any) -> np.ndarray:  # noqa: ANN401  dask passes any kind of index
        view = self.select(key)
        return self.base.read(view.picks).reshape(view.shape)

    def select(self, key: Any) -> View:  # noqa: ANN401  dask passes any kind of index
        """Return the view that an index selects from this view. Reads nothing."""
        inner, is_kept = expand_index(key, self.shape)
        picked = iter(zip(inner, is_kept, strict=True))
        picks, kept = list(self.picks), list(self.is_kept)
        for axis in range(len(picks)):
            if kept[axis]:
                pick, kept[axis] = next(picked)
                picks[axis] = join_picks(picks[axis], pick)
        return View(self.base, tuple(picks), tuple(kept))


class LazyArray(da.Array):
    """A dask array over a view. A selection gives a LazyArray again; any other operation gives a plain dask array."""

    on_disk: View
    blocks_of: tuple[int, ...]
    """Length of a block along each axis of the array on disk."""
    name_on_disk: str
    """Dask's name of the array with the values on disk. Assigning to elements changes `name`."""

    def __getitem__(self, index: Any) -> Any:  # noqa: ANN401  users pass any kind of index
        keys = index if isinstance(index, tuple) else (index,)
        is_plain = all(_is_plain(key) for key in keys) and sum(np.ndim(key) for key in keys) <= 1
        if not is_plain or self.name != self.name_on_disk:
            return super().__getitem__(index)  # type: ignore[no-untyped-call]
        view = self.on_disk.select(tuple(np.asarray(key) if isinstance(key, list) else key for key in keys))
        chunks = choose_chunks(view, self.blocks_of)
        if sum(map(len, chunks)) > sum(map(len, self.chunks)):
            return super().__getitem__(index)  # type: ignore[no-untyped-call]  # unsorted positions: dask reads each block once
        return make_lazy(view, self.blocks_of)

    def __dask_postcompute__(self) -> Any:  # noqa: ANN401  a function and its arguments, as dask wants them
        if self.name != self.name_on_disk or self.npartitions != 1:
            return super().__dask_postcompute__()  # type: ignore[no-untyped-call]
        return _take_block, ()


def _take_block(results: Any) -> np.ndarray:  # noqa: ANN401  lists within lists, one for each axis
    """Return the single block. Dask would copy it; a view reads into a new array each time, so nobody else has it."""
    while isinstance(results, (list, tuple)):
        (results,) = results
    block: np.ndarray = results
    return block


def _is_plain(key: Any) -> bool:  # noqa: ANN401  users pass any kind of index
    is_bool = isinstance(key, (bool, np.bool_))  # numpy adds an axis for a bool
    return key is Ellipsis or (isinstance(key, (int, np.integer, slice, list, np.ndarray)) and not is_bool)


def make_lazy(view: View, blocks_of: tuple[int, ...]) -> LazyArray:
    """Return a dask array over a view. `blocks_of` is the length of a block along each axis on disk."""
    meta = np.empty((0,) * view.ndim, dtype=view.dtype)
    chunks = choose_chunks(view, blocks_of)
    plain = da.from_array(view, chunks=chunks, asarray=False, fancy=True, meta=meta)  # type: ignore[no-untyped-call]
    lazy = LazyArray(plain.dask, plain.name, plain.chunks, meta=meta)  # type: ignore[no-untyped-call]
    lazy.on_disk, lazy.blocks_of, lazy.name_on_disk = view, blocks_of, lazy.name
    return lazy


def open_lazy(array: LayerArray | StackArray) -> LazyArray:
    """Return a dask array over a whole array on disk. Each block holds whole shards and all units."""
    rows = choose_block_rows(array)
    blocks_of = (rows, *array.shape[1:]) if isinstance(array, LayerArray) else (1, rows, 1, *array.shape[3:])
    return make_lazy(View(array, tuple(map(range, array.shape)), (True,) * len(array.shape)), blocks_of)


def choose_chunks(view: View, blocks_of: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Return the lengths of dask's blocks along each axis of a view: one block if it is small."""
    whole = all(is_whole(pick, length) for pick, length in zip(view.picks, view.base.shape, strict=True))
    if whole or FLOAT32_NBYTES * prod(view.shape) > JOINED_NBYTES:
        return make_chunks(view, blocks_of)
    return tuple((length,) for length in view.shape)


def make_chunks(view: View, blocks_of: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Return the lengths of dask's blocks along each axis of a view. They end where the blocks on disk end."""
    return tuple(
        _count_runs(pick, size) for pick, size, kept in zip(view.picks, blocks_of, view.is_kept, strict=True) if kept
    )


def _count_runs(pick: Pick, size: int) -> tuple[int, ...]:
    if isinstance(pick, range) and pick.step == 1:
        end = pick.start + len(pick)
        cuts = [pick.start, *range((pick.start // size + 1) * size, end, size), end]
        return tuple(stop - start for start, stop in itertools.pairwise(cuts))
    blocks = np.asarray(pick, dtype=np.intp) // size
    cuts = [0, *(np.flatnonzero(np.diff(blocks)) + 1).tolist(), len(blocks)]
    return tuple(stop - start for start, stop in itertools.pairwise(cuts))


def join_picks(outer: Pick, inner: Pick) -> Pick:
    """Return the positions `outer[inner]`."""
    if isinstance(outer, range) and isinstance(inner, range):
        start, step = outer.start + inner.start * outer.step, outer.step * inner.step
        return range(start, start + len(inner) * step, step)
    return np.asarray(outer, dtype=np.intp)[np.asarray(inner, dtype=np.intp)]


def expand_index(key: Any, shape: Sequence[int]) -> tuple[list[Pick], list[bool]]:  # noqa: ANN401  any kind of index
    """Return (positions along each axis, True for each axis that stays). Each axis is indexed on its own.

    The index of an axis is an integer, which drops the axis, a slice, an array of integers or a boolean mask.
    """
    keys = list(key) if isinstance(key, tuple) else [key]
    at = next((i for i, one in enumerate(keys) if one is Ellipsis), None)
    if at is not None:
        keys[at : at + 1] = [slice(None)] * (len(shape) - len(keys) + 1)
    keys += [slice(None)] * (len(shape) - len(keys))
    if len(keys) > len(shape):
        raise IndexError(f"{len(keys)} indices for {len(shape)} axes")
    picks = [_pick(one, length) for one, length in zip(keys, shape, strict=True)]
    return picks, [isinstance(one, slice) or np.ndim(one) == 1 for one in keys]


def _pick(key: Any, length: int) -> Pick:  # noqa: ANN401  users pass any kind of index
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


def choose_block_rows(array: LayerArray | StackArray) -> int:
    """Return the number of stimuli in a dask block: whole shards, moderate blocks, few blocks.

    A layer that fits into one block is one block: its shards are read in parallel anyway, and joining blocks copies.
    """
    if isinstance(array, LayerArray):
        form, n_stimuli, n_units, n_cells = array.form, array.rows.n, array.n_units, 1
    else:
        form = next(cell.form for row in array.cells for cell in row if cell is not None)
        n_stimuli, n_units, n_cells = array.shape[1], array.shape[4], array.shape[0] * array.shape[2]
    row_nbytes = FLOAT32_NBYTES * form.shape.n_replicates * n_units
    layer_nbytes = n_stimuli * row_nbytes
    nbytes = max(BLOCK_NBYTES, min(layer_nbytes * n_cells // MAX_BLOCKS, LARGEST_BLOCK_NBYTES))
    if layer_nbytes <= nbytes:
        return n_stimuli
    size = form.shape.shard_stimuli
    return min(n_stimuli, max(1, nbytes // (row_nbytes * size)) * size)
