"""Alignment of two layers from their activations: unbiased linear CKA, and mutual nearest neighbours."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from xact.analysis.pairs import take_pairs

N_NEIGHBOURS = 10
"""k of the mutual nearest neighbours (Huh 2024)."""

BLOCK = 512
"""Rows of stimuli that are looked at together."""

TABLE_NBYTES = 2**26
"""Bytes of the table of neighbours that others are looked up in."""


def center_gram(gram: np.ndarray) -> np.ndarray:
    """Return the pairs of a Gram matrix (stimulus, stimulus_), U-centred and of unit length.

    The product of two such vectors is the unbiased linear CKA: Song 2012 eq. 5 without the constant factors. The
    diagonal is not used. 0 where nothing is left, e.g. of a constant layer.
    """
    n = len(gram)
    sums = gram.sum(axis=1) - np.diagonal(gram)
    shift = sums / (n - 2)
    total = sums.sum() / ((n - 1) * (n - 2))
    pairs = take_pairs(gram)
    scale = np.sqrt(pairs @ pairs)
    start = 0
    for i in range(n - 1):
        stop = start + n - 1 - i
        pairs[start:stop] += total - shift[i] - shift[i + 1 :]
        start = stop
    norm = np.sqrt(pairs @ pairs)
    if norm <= 1e-13 * scale:
        return np.zeros_like(pairs)
    return np.asarray(pairs / norm)


def find_neighbours(gram: np.ndarray, k: int = N_NEIGHBOURS) -> np.ndarray:
    """Return the k nearest stimuli (stimulus, k) of each by the cosine of their patterns, itself left out.

    Of equally near ones the first in the order of the stimuli is taken. int32, ascending positions.
    """
    n = len(gram)
    norms = np.sqrt(np.diagonal(gram))
    near = np.empty((n, k), dtype=np.int32)
    for start in range(0, n, BLOCK):
        rows = np.arange(start, min(start + BLOCK, n))
        cosines = gram[rows] / norms[rows, None] / norms
        cosines[np.arange(len(rows)), rows] = -np.inf
        least = np.partition(cosines, n - k, axis=1)[:, n - k, None]
        above, equal = cosines > least, cosines == least
        wanted = k - above.sum(axis=1, keepdims=True)
        chosen = above | (equal & (np.cumsum(equal, axis=1) <= wanted))
        near[rows] = np.nonzero(chosen)[1].reshape(len(rows), k)
    return near


def overlap(near: np.ndarray, others: Sequence[np.ndarray]) -> np.ndarray:
    """Return the mean share of its k nearest stimuli that a layer has in common with each of the others."""
    n, k = near.shape
    common = np.zeros(len(others))
    n_rows = max(1, TABLE_NBYTES // n)
    for start in range(0, n, n_rows):
        rows = slice(start, start + n_rows)
        here = np.arange(len(near[rows]))[:, None]
        table = np.zeros((len(here), n), dtype=bool)
        table[here, near[rows]] = True
        common += [np.count_nonzero(table[here, other[rows]]) for other in others]
    return np.asarray(common / (n * k))


def permute_neighbours(near: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Return the neighbours of the same layer if the stimuli had come in this `order`."""
    place = np.argsort(order)
    permuted: np.ndarray = place[near[order]]
    return permuted


def count_patterns(near: np.ndarray) -> np.ndarray:
    """Return the sums over a layer's graph of neighbours that `find_null_sd` needs."""
    n, k = near.shape
    inward = np.bincount(near.ravel(), minlength=n).astype(np.float64)
    codes = np.arange(n)[:, None] * n + near
    mutual = len(np.intersect1d(codes, near.astype(np.int64) * n + np.arange(n)[:, None], assume_unique=True))
    edges = float(n * k)
    same_row = n * k**2 - edges
    same_column = (inward**2).sum() - edges
    chain = k * inward.sum() - mutual
    rest = edges**2 - edges - mutual - same_row - same_column - 2 * chain
    return np.array([edges, mutual, same_row, same_column, chain, chain, rest])


def find_null_sd(patterns: np.ndarray, other: np.ndarray, *, n: int, k: int) -> float:
    """Return the standard deviation of the overlap over all permutations of the stimuli of one layer, exactly.

    The mean over all permutations is the chance level k/(n-1). Both are the moments of Mantel 1967: the sums over pairs
    of neighbours that share no, one or two stimuli, each divided by the number of such pairs.
    """
    pairs = n * (n - 1)
    counts = np.array([1, 1, n - 2, n - 2, n - 2, n - 2, (n - 2) * (n - 3)], dtype=np.float64) * pairs
    square = (patterns * other / counts).sum()
    mean = (n * k) ** 2 / pairs
    return float(np.sqrt(max(square - mean**2, 0.0)) / (n * k))
