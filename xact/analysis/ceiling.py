"""The noise ceiling: how well a model could score at best, from how well the subjects agree.

The two bounds of rsatoolbox's `boot_noise_ceiling`: the RDM pooled over all subjects against each subject (upper), and
the RDM pooled over the other subjects against each (lower).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from xact.analysis.methods import CompareMethod, center, prepare, rank

Correlate = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Centred vectors (a, pair), (b, pair) -> scores (a, b)."""


def list_pools(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the subjects that a sample holds, and how often each pool holds each subject: all, then all but one."""
    held = np.flatnonzero(counts)
    pools = np.tile(counts, (1 + len(held), 1)).astype(np.float64)
    if len(held) > 1:
        pools[np.arange(1, 1 + len(held)), held] = 0
    return held, pools


def pool(ranked: np.ndarray, pools: np.ndarray, method: CompareMethod, weights: np.ndarray | None = None) -> np.ndarray:
    """Return the pooled RDM of each pool (pool, pair): sums of ranks, or of vectors of unit length."""
    if method.is_ranked:
        sums: np.ndarray = pools @ ranked  # sums of ranks are exact, so ties stay ties
        return sums
    centred = center(ranked, method, weights)
    squares = centred**2 if weights is None else centred**2 * weights
    norms = np.sqrt(squares.sum(axis=1, keepdims=True))
    scaled = np.divide(centred, norms, out=np.zeros_like(centred), where=norms > 0)
    return np.asarray(pools @ scaled)


def find_ceiling(
    ranked: np.ndarray,
    counts: np.ndarray,
    method: CompareMethod,
    correlate: Correlate,
    weights: np.ndarray | None = None,
) -> tuple[float, float]:
    """Return the lower and the upper bound for subjects (subject, pair) of which a sample holds `counts`.

    `ranked` comes from `rank` with the same weights. Each different subject counts once, as in rsatoolbox.
    """
    held, pools = list_pools(counts)
    there = slice(None) if weights is None else weights > 0
    inside = None if weights is None else weights[there]
    pooled = prepare(pool(ranked, pools, method, weights)[:, there], method)
    pooled_vectors = center(rank(pooled, inside), method, inside)
    whole = np.zeros((len(pools), ranked.shape[1]))
    whole[:, there] = pooled_vectors
    scores = correlate(whole, center(ranked, method, weights)[held])
    lower = scores[np.arange(1, 1 + len(held)), np.arange(len(held))]
    return float(lower.mean()), float(scores[0].mean())
