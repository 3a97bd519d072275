"""Classical multidimensional scaling (Torgerson 1952): stimuli as points whose distances are near to an RDM."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from xact.analysis.gram import limit_blas
from xact.errors import RequestError


@dataclass(frozen=True)
class Embedding:
    """Points of stimuli."""

    points: np.ndarray
    """(stimulus, 2), of the stimuli that are kept."""
    share: float
    """The part of the RDM that two dimensions keep: the first two eigenvalues, by the sum of all without their sign."""
    kept: np.ndarray
    """(stimulus) bool: False for a stimulus whose dissimilarities are all NaN."""


def embed(square: np.ndarray, *, squared: bool) -> Embedding:
    """Return the points of an RDM (stimulus, stimulus) in two dimensions.

    The eigenvectors of -J D J / 2, J = I - 1/n, by the square roots of their eigenvalues (Torgerson 1952). D holds
    squared distances: the dissimilarities, or their squares if they are distances (`squared` False). Eigenvalues below
    0, of dissimilarities that are no distances, get no dimension and count in the share (Mardia, Kent and Bibby 1979,
    14.4.7). The largest coordinate of each dimension is positive, so that the same RDM has the same points.
    """
    values = np.array(square, dtype=np.float64)
    np.fill_diagonal(values, 0)
    off_diagonal = ~np.eye(len(values), dtype=bool)
    kept = np.asarray((np.isfinite(values) & off_diagonal).any(axis=1))
    values = values[np.ix_(kept, kept)]
    if len(values) < 3:
        raise RequestError(f"a map needs at least 3 stimuli with dissimilarities, found {len(values)}")
    if not np.isfinite(values).all():
        raise RequestError(
            f"{int(np.isnan(values).sum()) // 2} pairs of stimuli have no dissimilarity (NaN)",
            hint="choose stimuli that all have one",
        )
    squares = values if squared else values**2
    centred = squares - squares.mean(axis=0) - squares.mean(axis=1, keepdims=True) + squares.mean()
    with limit_blas():
        found, vectors = np.linalg.eigh(-(centred + centred.T) / 4)
    largest = found[::-1][:2]
    points = vectors[:, ::-1][:, :2] * np.sqrt(np.maximum(largest, 0))
    points *= np.where(points[np.abs(points).argmax(axis=0), [0, 1]] < 0, -1, 1)
    total = np.abs(found).sum()
    share = float(np.maximum(largest, 0).sum() / total) if total > 0 else np.nan
    return Embedding(points, share, kept)
