"""Dissimilarities of one layer: blocks of units in, matrices of pairs out. Float64 from the first operation on.

Every method is a function of products of patterns (`gram.py`) and of a few numbers for each pattern. Before the
products are summed, a vector is subtracted that does not change the result: from the patterns of euclidean and
crossnobis their mean pattern, from a pattern of correlation its own provisional mean. Without this, an offset of 100
standard deviations would cost four digits.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from xact.analysis.gram import UNITS_STEP, Tile, UnitBlock, add_cross_products, add_products, run_all, sum_squares
from xact.analysis.measure import Measure

EPSILON = float(np.finfo(np.float64).eps)

CONSTANT = 8 * EPSILON
"""A pattern of P units is constant if its centred norm is at most this times sqrt(P) of its own norm."""

ZERO = 64 * EPSILON
"""A dissimilarity at most this times sqrt(P) of the numbers it is the difference of is rounding, and becomes 0."""


STRIP_VALUES = 2**14
"""Values of a strip of a tile: 128 kB."""


@dataclass
class PatternSums:
    """Numbers for each pattern, (replicate, stimulus), summed over blocks of units."""

    offset: np.ndarray
    """What is subtracted from each unit of the pattern: its mean over the first units."""
    total: np.ndarray
    """Sum of the units, after `offset` was subtracted."""
    squares: np.ndarray
    """Sum of their squares."""
    n_units: int = 0

    def compute_squares(self) -> np.ndarray:
        """Return the sum of the squares of the units as they are."""
        squares: np.ndarray = self.squares + self.offset * (2 * self.total + self.n_units * self.offset)
        return clip_negative(squares)

    def compute_centred_squares(self) -> np.ndarray:
        """Return the sum of the squares of the units after the mean of the pattern was subtracted."""
        return clip_negative(self.squares - self.total**2 / self.n_units)

    def find_constant(self) -> np.ndarray:
        """Return True for each pattern whose units are all equal."""
        limit = CONSTANT * np.sqrt(self.n_units) * np.sqrt(self.compute_squares())
        is_constant: np.ndarray = np.sqrt(self.compute_centred_squares()) <= limit
        return is_constant


def clip_negative(values: np.ndarray) -> np.ndarray:
    """Return the values with 0 in place of what rounding made negative."""
    clipped: np.ndarray = np.maximum(values, 0)
    return clipped


@dataclass
class LayerSums:
    """The sums of one layer, while its blocks are added."""

    measure: Measure
    n_units: int
    n_stimuli: int
    n_replicates: int
    matrices: Sequence[Sequence[Tile]]
    """The tiles of each matrix. There is one matrix, or one for each replicate."""
    patterns: PatternSums | None = None
    """Of all methods but crossed differences."""
    crossed_squares: np.ndarray | None = None
    """(stimulus): squares summed over units and replicates, as they went into crossed products."""
    has_unit_norm: bool = False
    """True if the patterns had mean 0 (correlation) and norm 1 in the products."""
    n_noisy: int = 0
    """Number of units that differ between replicates, where noise is asked for."""
    n_noiseless: int = 0
    """Number of units that differ between stimuli and never between replicates."""


def count_passes(measure: Measure) -> int:
    """Return how often the blocks of a layer are read: patterns get norm 1 before their replicates are crossed."""
    return 2 if measure.is_crossed and measure.method in ("correlation", "cosine") else 1


def compute_distances(sums: LayerSums, n_blocks: int, blocks: Iterator[np.ndarray]) -> np.ndarray:
    """Fill the tiles of a layer from its blocks (stimulus, replicate, unit), those of all passes.

    Return the undefined patterns, (matrix, stimulus). A pattern is undefined if the method has no dissimilarity for it:
    a constant one for correlation, one of zeros for cosine. Its dissimilarities are NaN.
    """
    n_passes = count_passes(sums.measure)
    for i in range(n_passes * n_blocks):
        block = prepare(next(blocks), sums)
        is_first, is_last = i % n_blocks == 0, i == n_passes * n_blocks - 1
        if not sums.measure.is_crossed:
            _add_plain(sums, block, is_first=is_first, is_last=is_last)
        elif i < (n_passes - 1) * n_blocks:
            _add_patterns(sums, block)
        else:
            _add_crossed(sums, block, is_first=is_first)
    if sums.measure.is_crossed:
        formula = _make_formula(sums, 0)
        run_all(functools.partial(formula, tile) for tile in sums.matrices[0])
    undefined = find_undefined(sums)
    if sums.measure.has_zero_diagonal:
        _clear_diagonals(sums, undefined)
    return undefined


def find_undefined(sums: LayerSums) -> np.ndarray:
    """Return True, (matrix, stimulus), for each pattern without a dissimilarity."""
    if sums.measure.method not in ("correlation", "cosine"):
        return np.zeros((len(sums.matrices), sums.n_stimuli), dtype=bool)
    undefined: np.ndarray = _find_unit_norm(sums.measure, _get_patterns(sums))[1] == 0
    return np.asarray(undefined.any(axis=0))[None] if sums.measure.is_crossed else undefined


def _clear_diagonals(sums: LayerSums, undefined: np.ndarray) -> None:
    """Set the dissimilarity of each stimulus to itself to 0, or NaN."""
    for tiles, is_undefined in zip(sums.matrices, undefined, strict=True):
        for tile in tiles:
            if tile.is_diagonal:
                np.fill_diagonal(tile.values, np.where(is_undefined[tile.rows], np.nan, 0))


def prepare(values: np.ndarray, sums: LayerSums) -> UnitBlock:
    """Return a block as (replicate, stimulus, unit), float64: replicates averaged, units centred or scaled."""
    measure, n_replicates = sums.measure, values.shape[1]
    if measure.replicates == "mean":
        block = values[:, 0].astype(np.float64)[None]
        for replicate in range(1, n_replicates):
            block[0] += values[:, replicate]
        if n_replicates > 1:
            block /= n_replicates
    else:
        block = values.transpose(1, 0, 2).astype(np.float64, order="C")
    if measure.units != "raw":
        _center_units(block)
    if measure.units == "zscore":
        _scale_units(block)
    if measure.noise == "diag":
        _weigh_units(block, sums)
    if measure.method in ("euclidean", "crossnobis"):
        block -= block.mean(axis=(0, 1) if measure.is_crossed else 1, keepdims=True)
    return block


def _center_units(block: UnitBlock) -> None:
    """Subtract from each unit its mean over the stimuli, in each replicate. A constant unit becomes 0."""
    norm = np.sqrt(np.einsum("rsu,rsu->ru", block, block))
    for _ in range(2):  # the second time takes away what the rounding of a large mean left
        block -= block.mean(axis=1, keepdims=True)
    centred = np.sqrt(np.einsum("rsu,rsu->ru", block, block))
    block *= (centred > CONSTANT * np.sqrt(block.shape[1]) * norm)[:, None, :]


def _scale_units(block: UnitBlock) -> None:
    """Divide each centred unit by its standard deviation over the stimuli, in each replicate. Zeros stay 0."""
    deviation = np.sqrt(np.einsum("rsu,rsu->ru", block, block) / block.shape[1])
    block /= np.where(deviation > 0, deviation, 1)[:, None, :]


def _weigh_units(block: UnitBlock, sums: LayerSums) -> None:
    """Divide each unit by the standard deviation of its residuals between replicates. A constant unit adds nothing."""
    n_replicates, n_stimuli, _ = block.shape
    mean = block.mean(axis=0)
    norm = np.sqrt(np.einsum("rsu,rsu->u", block, block))
    residual = np.zeros(block.shape[2])
    for one in block:
        difference = one - mean
        residual += np.einsum("su,su->u", difference, difference)
    limit = CONSTANT * np.sqrt(n_stimuli * n_replicates) * norm
    has_noise = np.sqrt(residual) > limit
    sums.n_noisy += int(has_noise.sum())
    sums.n_noiseless += int(((np.ptp(mean, axis=0) > limit) & ~has_noise).sum())
    variance = residual / (n_stimuli * (n_replicates - 1))
    block *= np.where(has_noise, 1 / np.sqrt(np.where(has_noise, variance, 1)), 0)


def _add_patterns(sums: LayerSums, block: UnitBlock) -> None:
    """Add a block to the numbers of its patterns. Subtract their offsets from it in place."""
    if sums.patterns is None:
        has_offset = sums.measure.method == "correlation"
        offset = block[:, :, :UNITS_STEP].mean(axis=2) if has_offset else np.zeros(block.shape[:2])
        sums.patterns = PatternSums(offset, np.zeros_like(offset), np.zeros_like(offset))
    patterns = sums.patterns
    if sums.measure.method == "correlation":
        block -= patterns.offset[:, :, None]
        patterns.total += block.sum(axis=2)
    patterns.squares += sum_squares(block)
    patterns.n_units += block.shape[2]


def _add_plain(sums: LayerSums, block: UnitBlock, *, is_first: bool, is_last: bool) -> None:
    """Add a block to the matrix of each of its replicates. After the last block, turn sums into dissimilarities."""
    _add_patterns(sums, block)
    if is_first and is_last and sums.measure.method in ("correlation", "cosine"):  # a whole layer: cheaper than later
        patterns = _get_patterns(sums)
        block -= (patterns.total / patterns.n_units)[:, :, None]
        block *= _find_unit_norm(sums.measure, patterns)[1][:, :, None]
        sums.has_unit_norm = True
    for k, (tiles, one) in enumerate(zip(sums.matrices, block, strict=True)):
        add_products(tiles, one, is_first=is_first, finish=_make_formula(sums, k) if is_last else None)


def _add_crossed(sums: LayerSums, block: UnitBlock, *, is_first: bool) -> None:
    """Add the products of different replicates. Patterns of correlation and cosine get norm 1 before."""
    if sums.patterns is not None:
        mean, factor = _find_unit_norm(sums.measure, sums.patterns)
        block -= mean[:, :, None]
        block *= factor[:, :, None]
    if sums.crossed_squares is None:
        sums.crossed_squares = np.zeros(sums.n_stimuli)
    add_cross_products(sums.matrices[0], block, sums.crossed_squares, is_first=is_first)


def _find_unit_norm(measure: Measure, patterns: PatternSums) -> tuple[np.ndarray, np.ndarray]:
    """Return what is subtracted from each pattern, and what it is multiplied with, for a norm of 1 (or 0)."""
    if measure.method == "cosine":
        mean, squares = np.zeros_like(patterns.total), patterns.squares
    else:
        mean, squares = patterns.offset + patterns.total / patterns.n_units, patterns.compute_centred_squares()
        squares = np.where(patterns.find_constant(), 0, squares)
    return mean, np.where(squares > 0, 1 / np.sqrt(np.where(squares > 0, squares, 1)), 0)


def _make_formula(sums: LayerSums, k: int) -> Callable[[Tile], None]:
    """Return the function that turns the sums of products in a tile of matrix `k` into dissimilarities."""
    if sums.measure.method in ("correlation", "cosine"):
        return functools.partial(_complement, *_find_similarity_terms(sums, k), ZERO * np.sqrt(sums.n_units))
    return functools.partial(_subtract, *_find_difference_terms(sums, k))


def _find_similarity_terms(sums: LayerSums, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return u and f: the similarity of two patterns is (product - u_i u_j) f_i f_j. f is NaN if it is undefined."""
    patterns = _get_patterns(sums)
    factors = _find_unit_norm(sums.measure, patterns)[1]
    if sums.measure.is_crossed:
        n_pairs = sums.n_replicates * (sums.n_replicates - 1)
        return np.zeros(sums.n_stimuli), np.where((factors == 0).any(axis=0), np.nan, 1 / np.sqrt(n_pairs))
    factor = np.where(factors[k] == 0, np.nan, 1 if sums.has_unit_norm else factors[k])
    mean = patterns.total[k] / np.sqrt(patterns.n_units)
    return (np.zeros_like(mean) if sums.has_unit_norm else mean), factor


def _complement(mean: np.ndarray, factor: np.ndarray, zero: float, tile: Tile) -> None:
    """Turn products into 1 - similarity, in place."""
    u, v, f, g = mean[tile.rows], mean[tile.columns], factor[tile.rows], factor[tile.columns]
    has_mean, has_factor = bool(u.any() and v.any()), bool((f != 1).any() or (g != 1).any())
    for at, values, scratch in cut_strips(tile):
        if has_mean:
            values -= np.multiply.outer(u[at], v, out=scratch)
        if has_factor:
            values *= np.multiply.outer(f[at], g, out=scratch)
        np.subtract(1, values, out=values)
        if not values.min() > zero:  # NaN or few small values: most strips have none
            values[np.abs(values) <= zero] = 0


def _find_difference_terms(sums: LayerSums, k: int) -> tuple[np.ndarray, float, np.ndarray]:
    """Return a, c and z: a distance is a_i + a_j - c product, and 0 if it is at most z_i + z_j."""
    zero = ZERO * np.sqrt(sums.n_units)
    if sums.crossed_squares is None:
        own = _get_patterns(sums).squares[k] / sums.n_units
        return own, 2 / sums.n_units, zero * own
    n_terms = sums.n_replicates * (sums.n_replicates - 1) * sums.n_units
    if sums.measure.method == "euclidean":
        own = sums.crossed_squares / (sums.n_replicates * sums.n_units)
        return own, 2 / n_terms, zero * own
    diagonal = _get_diagonal(sums.matrices[0], sums.n_stimuli)
    return diagonal / n_terms, 2 / n_terms, zero * (diagonal + 2 * sums.crossed_squares) / n_terms


def _subtract(own: np.ndarray, factor: float, zero: np.ndarray, tile: Tile) -> None:
    """Turn products into squared distances, in place."""
    left, right, low, high = own[tile.rows], own[tile.columns], zero[tile.rows], zero[tile.columns]
    largest = low.max() + high.max()
    for at, values, scratch in cut_strips(tile):
        values *= -factor
        values += np.add.outer(left[at], right, out=scratch)
        if not values.min() > largest:
            values[np.abs(values) <= np.add.outer(low[at], high, out=scratch)] = 0


def cut_strips(tile: Tile) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """Yield (rows, values, array of the same shape to use) of strips of a tile. A strip stays in the cache."""
    n_rows, n_columns = tile.values.shape
    size = max(1, STRIP_VALUES // n_columns)
    scratch = np.empty((size, n_columns))
    for first in range(0, n_rows, size):
        values = tile.values[first : first + size]
        yield slice(first, first + size), values, scratch[: len(values)]


def _get_patterns(sums: LayerSums) -> PatternSums:
    if sums.patterns is None:
        raise ValueError("no block was added")
    return sums.patterns


def _get_diagonal(tiles: Sequence[Tile], n_stimuli: int) -> np.ndarray:
    """Return the diagonal of a matrix, a copy. Stimuli that are in no tile get 0."""
    diagonal = np.zeros(n_stimuli)
    for tile in tiles:
        if tile.is_diagonal:
            diagonal[tile.rows] = np.diagonal(tile.values)
    return diagonal
