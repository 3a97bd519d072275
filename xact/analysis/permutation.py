"""Permutation tests: rows and columns of the reference are permuted together, so that its structure stays."""

from __future__ import annotations

import numpy as np

SLACK = 1e-12
"""A permuted score counts as equal to the score if it is smaller by no more than this: rounding."""


def draw_order(seed: int, number: int, n_stimuli: int) -> np.ndarray:
    """Return permutation `number` of the stimuli. It depends on the seed, the number and the count alone."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(number, 2))).permutation(n_stimuli)


def find_p(scores: np.ndarray, null: np.ndarray) -> np.ndarray:
    """Return p = (b+1)/(m+1) of each score (...) against its permuted scores (permutation, ...), one-sided.

    b counts the permuted scores that reach the score, of m permutations. NaN for a score that is NaN.
    """
    b = (null >= scores - SLACK).sum(axis=0)
    return np.where(np.isnan(scores), np.nan, (b + 1) / (len(null) + 1))


def find_p_max(scores: np.ndarray, null: np.ndarray) -> np.ndarray:
    """Return p of each layer's score (layer) against the maximum over the layers of each permutation.

    `null` is (permutation, layer). Corrected for the number of layers: the best of many layers of noise is no finding.
    """
    if np.isnan(scores).all():
        return np.full(len(scores), np.nan)
    return find_p(scores, np.nanmax(null, axis=1)[:, None])
