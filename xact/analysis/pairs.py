"""The pairs of stimuli of an RDM: the upper triangle without the diagonal, row by row, as one vector."""

from __future__ import annotations

import numpy as np

from xact.errors import RequestError

TOLERANCE = 1e-6
"""Largest difference between the halves of an RDM, relative to its largest value."""

BLOCK = 1024
"""Rows that are looked at together."""


def count_pairs(n_stimuli: int) -> int:
    """Return the number of pairs of different stimuli."""
    return n_stimuli * (n_stimuli - 1) // 2


def take_pairs(square: np.ndarray, rows: np.ndarray | None = None) -> np.ndarray:
    """Return the upper triangle of an RDM, float64, for stimuli at these `rows`; None takes all in their order."""
    rows = np.arange(len(square)) if rows is None else rows
    n = len(rows)
    pairs = np.empty(count_pairs(n))
    start = 0
    for i, row in enumerate(rows[:-1]):
        stop = start + n - 1 - i
        pairs[start:stop] = square[row][rows[i + 1 :]]
        start = stop
    return pairs


def make_square(pairs: np.ndarray, n_stimuli: int, *, diagonal: float = 0.0) -> np.ndarray:
    """Return the RDM with these pairs."""
    square = np.full((n_stimuli, n_stimuli), diagonal)
    start = 0
    for i in range(n_stimuli - 1):
        stop = start + n_stimuli - 1 - i
        square[i, i + 1 :] = square[i + 1 :, i] = pairs[start:stop]
        start = stop
    return square


def weigh_pairs(multiplicities: np.ndarray) -> np.ndarray:
    """Return m_i m_j for each pair of stimuli that a sample holds m_i and m_j times; a stimulus and its copy: none."""
    m = np.asarray(multiplicities, dtype=np.float64)
    return np.concatenate([m[i] * m[i + 1 :] for i in range(len(m) - 1)])


def find_undefined(square: np.ndarray, what: str) -> np.ndarray:
    """Return True for each stimulus whose pairs are all NaN, as of a constant pattern. Refuse other NaN or infinity."""
    n = len(square)
    bad = np.array([np.count_nonzero(~np.isfinite(row)) for row in square]) - ~np.isfinite(np.diagonal(square))
    undefined: np.ndarray = bad >= n - 1
    odd = np.flatnonzero(~undefined & (bad != np.count_nonzero(undefined)))
    if odd.size:
        raise RequestError(
            f"{what}: row {odd[0] + 1} of the RDM has {bad[odd[0]]} pairs that are NaN or infinite",
            hint="leave these stimuli out",
        )
    return undefined


def check_symmetric(square: np.ndarray, what: str) -> None:
    """Refuse an RDM whose halves differ, or whose diagonal is of ones."""
    limit = TOLERANCE * max((np.nanmax(np.abs(row), initial=0) for row in square), default=0)
    for start in range(0, len(square), BLOCK):
        rows = slice(start, start + BLOCK)
        if (np.abs(square[rows] - square[:, rows].T) > limit).any():
            raise RequestError(
                f"{what}: the RDM is not symmetric", hint="average it with its transpose, if it should be"
            )
    if np.all(np.abs(np.diagonal(square) - 1) <= TOLERANCE):
        raise RequestError(
            f"{what}: the RDM has a diagonal of ones: these look like similarities", hint="give 1 - them"
        )
