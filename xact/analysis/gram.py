"""Sums of products of patterns (Gram matrices), streamed over blocks of units.

The bits of a sum depend on the data and its shape alone. The lengths of blocks and tiles follow from the shape; BLAS
runs with one thread, because OpenBLAS adds in another order with two; the threads here share out whole tiles.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from threadpoolctl import ThreadpoolController

FLOAT64_NBYTES = 8

BLOCK_NBYTES = 48 * 2**20
"""Bytes of a block of patterns in float64."""

UNITS_STEP = 256
"""A block has a multiple of this number of units: the units of a chunk of a cube."""

TILES = (256, 768)
"""Fewest and most rows of a tile of a Gram matrix: with few, all processors have work; with many, BLAS is fast."""

UnitBlock = np.ndarray
"""Patterns of a few units, (replicate, stimulus, unit), float64."""

TileRows = slice | np.ndarray
"""Positions of stimuli."""


@dataclass(frozen=True)
class Tile:
    """A part of a matrix of pairs, which is filled in place."""

    rows: TileRows
    columns: TileRows
    values: np.ndarray
    """(row, column), float64."""
    is_diagonal: bool
    """True if rows and columns are the same stimuli."""


def choose_block_units(n_rows: int, n_units: int) -> int:
    """Return the units of a block of `n_rows` patterns. The number depends on the shape of the data alone."""
    n = BLOCK_NBYTES // (FLOAT64_NBYTES * n_rows) // UNITS_STEP * UNITS_STEP
    return min(n_units, max(UNITS_STEP, n))


def list_blocks(n_rows: int, n_units: int) -> list[range]:
    """Return the units of every block, in order."""
    size = choose_block_units(n_rows, n_units)
    return [range(first, min(first + size, n_units)) for first in range(0, n_units, size)]


def choose_tile(n: int) -> int:
    """Return the rows and columns of a tile of a square matrix of `n` rows: a third, in steps of the smallest tile."""
    smallest, largest = TILES
    return min(largest, max(smallest, n // 3 // smallest * smallest))


def cut_square(matrix: np.ndarray, stimuli: np.ndarray | None = None) -> list[Tile]:
    """Return the tiles on and above the diagonal of a square matrix, as views into it.

    `stimuli` are the positions of its rows and columns; None if these are all stimuli, in order.
    """
    size = choose_tile(len(matrix))
    cuts = [slice(first, min(first + size, len(matrix))) for first in range(0, len(matrix), size)]
    places: Sequence[TileRows] = cuts if stimuli is None else [stimuli[cut] for cut in cuts]
    return [
        Tile(places[i], places[j], matrix[cuts[i], cuts[j]], i == j)
        for i in range(len(cuts))
        for j in range(i, len(cuts))
    ]


class OneThread:
    """A context in which BLAS runs with one thread. The last one that leaves it gives BLAS its threads back."""

    _lock = threading.Lock()
    _n_inside = 0
    _limits: ClassVar[Any] = None

    def __enter__(self) -> None:
        with OneThread._lock:
            if not OneThread._n_inside:
                OneThread._limits = _find_blas().limit(limits=1, user_api="blas")
            OneThread._n_inside += 1

    def __exit__(self, *_: object) -> None:
        with OneThread._lock:
            OneThread._n_inside -= 1
            if not OneThread._n_inside:
                OneThread._limits.restore_original_limits()


def mirror(tiles: Iterable[Tile], matrix: np.ndarray) -> None:
    """Copy the tiles above the diagonal of a square matrix to those below."""
    for tile in tiles:
        if not tile.is_diagonal:
            matrix[tile.columns, tile.rows] = tile.values.T


def sum_squares(block: UnitBlock) -> np.ndarray:
    """Return the sum of the squares of each pattern, (replicate, stimulus)."""
    with OneThread():
        return np.asarray(np.vecdot(block, block))


def add_products(
    tiles: Sequence[Tile], patterns: np.ndarray, *, is_first: bool, finish: Callable[[Tile], None] | None = None
) -> None:
    """Add to each tile the products of its patterns (stimulus, unit), summed over units; the first time, set it.

    `finish` is called with each tile after that, while it is still in the cache.
    """

    def add(tile: Tile) -> None:
        left = patterns[tile.rows]
        right = left if tile.is_diagonal else patterns[tile.columns]
        if is_first:
            np.matmul(left, right.T, out=tile.values)
        else:
            np.add(tile.values, left @ right.T, out=tile.values)
        if finish is not None:
            finish(tile)

    run_all(functools.partial(add, tile) for tile in tiles)


def add_cross_products(tiles: Sequence[Tile], block: UnitBlock, squares: np.ndarray, *, is_first: bool) -> None:
    """Add to each tile the products of patterns of different replicates; the first time, set it.

    Over all ordered pairs of replicates, that is S S' - sum of X X' over the replicates X, with S their sum. `squares`
    (stimulus) gets the sum of the squares of all replicates.
    """
    total = block.sum(axis=0)

    def add(tile: Tile) -> None:
        left = total[tile.rows]
        product = left @ (left if tile.is_diagonal else total[tile.columns]).T
        for one in block:
            left = one[tile.rows]
            own = left @ (left if tile.is_diagonal else one[tile.columns]).T
            product -= own
            if tile.is_diagonal:
                squares[tile.rows] += np.diagonal(own)
        np.add(0 if is_first else tile.values, product, out=tile.values)

    run_all(functools.partial(add, tile) for tile in tiles)


def run_all(jobs: Iterable[Callable[[], None]]) -> None:
    """Run independent jobs on all processors, each with a BLAS of one thread."""
    with OneThread():
        waiting = list(jobs)
        if len(waiting) == 1:
            waiting[0]()
            return
        for done in [_get_workers(os.getpid()).submit(job) for job in waiting]:
            done.result()


def limit_blas() -> AbstractContextManager[object]:
    """Let BLAS run with one thread meanwhile, so that its sums are the same bits anywhere."""
    limited: AbstractContextManager[object] = _find_blas().limit(limits=1, user_api="blas")
    return limited


@functools.cache
def _find_blas() -> ThreadpoolController:
    return ThreadpoolController()


@functools.lru_cache(maxsize=1)
def _get_workers(_pid: int) -> ThreadPoolExecutor:
    """Return the threads of this process: a forked child gets its own."""
    n = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return ThreadPoolExecutor(n, thread_name_prefix="xact-gram")


def read_ahead(jobs: Iterable[Callable[[], np.ndarray]]) -> Generator[np.ndarray, None, None]:
    """Yield what each job reads. While one result is used, the next one is read by another thread."""
    with ThreadPoolExecutor(1, thread_name_prefix="xact-read") as reader:
        waiting: Future[np.ndarray] | None = None
        try:
            for job in jobs:
                following = reader.submit(job)
                if waiting is not None:
                    yield waiting.result()
                waiting = following
            if waiting is not None:
                yield waiting.result()
        finally:
            reader.shutdown(wait=True, cancel_futures=True)
