"""How alike two RDMs are: vectors of pairs -> scores. Equal to rsatoolbox 0.3.2, also under weights of the pairs.

Every method here is a product of two vectors: of ranks or values, centred or not, divided by their norms or, for
rho-a, by the largest product that ranks without ties can have (Schütt 2023).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from xact.analysis.ranks import SortedRow, rank_row, sort_row

TINY = 1e-13
"""A centred vector that is shorter than this part of the vector itself is constant: rounding is left of it."""

SMALLEST_RESIDUAL = 1e-10
"""Share of a squared norm below which a vector is explained by its controls."""


@dataclass(frozen=True)
class CompareMethod:
    """One way to compare two RDMs."""

    name: str
    is_ranked: bool = False
    is_centred: bool = True
    is_expected: bool = False
    """True for rho-a: the expectation of Spearman's coefficient under random tie breaking."""


METHODS = {
    one.name: one
    for one in (
        CompareMethod("rho-a", is_ranked=True, is_expected=True),
        CompareMethod("spearman", is_ranked=True),
        CompareMethod("corr"),
        CompareMethod("cosine", is_centred=False),
    )
}


@dataclass(frozen=True)
class Vectors:
    """RDMs as vectors (rdm, pair); where a method ranks them, their order alone."""

    values: np.ndarray | None = None
    sorted_rows: Sequence[SortedRow] = ()


def prepare(values: np.ndarray, method: CompareMethod) -> Vectors:
    """Sort vectors (rdm, pair) once, where the method ranks them."""
    return Vectors(sorted_rows=[sort_row(row) for row in values]) if method.is_ranked else Vectors(values)


def rank(vectors: Vectors, weights: np.ndarray | None = None) -> np.ndarray:
    """Return ranks (rdm, pair) in the sample that holds each pair `weights` times, or the values themselves."""
    if vectors.values is not None:
        return vectors.values
    ranks = np.empty((len(vectors.sorted_rows), len(vectors.sorted_rows[0].order)))
    for i, row in enumerate(vectors.sorted_rows):
        ranks[i] = rank_row(row, weights)
    return ranks


def center(ranked: np.ndarray, method: CompareMethod, weights: np.ndarray | None = None) -> np.ndarray:
    """Subtract the mean over the pairs, weighted, where the method does so. A constant vector becomes 0."""
    if not method.is_centred:
        return ranked
    if weights is None:
        means = ranked.mean(axis=1, keepdims=True)
    elif method.is_ranked:
        means = (weights.sum() + 1) / 2  # of ranks, whatever the ties
    else:
        means = (ranked @ weights / weights.sum())[:, None]
    centred: np.ndarray = ranked - means
    if not method.is_ranked:
        centred[_square(centred, weights) <= TINY**2 * _square(ranked, weights)] = 0
    return centred


def _square(x: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    """Return the squared norm of each row."""
    if weights is None:
        return np.asarray(np.einsum("ij,ij->i", x, x))
    return np.array([(row * weights) @ row for row in x], dtype=np.float64)


def correlate(x: np.ndarray, y: np.ndarray, method: CompareMethod, weights: np.ndarray | None = None) -> np.ndarray:
    """Return the scores (row of x, row of y) of vectors that `rank` and `center` made. A constant vector scores 0."""
    weighted = y if weights is None else y * weights
    products: np.ndarray = x @ weighted.T
    if method.is_expected:
        n = float(x.shape[1] if weights is None else weights.sum())
        products *= 12 / (n**3 - n)
        return products
    norms = np.sqrt(np.outer(_square(x, weights), np.einsum("ij,ij->i", y, weighted)))
    return np.asarray(np.divide(products, norms, out=np.zeros_like(products), where=norms > 0))


def scale_product(x: np.ndarray, y: np.ndarray, method: CompareMethod) -> tuple[np.ndarray, np.ndarray]:
    """Return both so that x @ y.T are their scores."""
    if method.is_expected:
        n = float(x.shape[1])
        return x, y * (12 / (n**3 - n))
    return scale_rows(x), scale_rows(y)


def scale_rows(x: np.ndarray) -> np.ndarray:
    """Return rows of unit length; a row of zeros stays."""
    norms = np.sqrt(_square(x, None))[:, None]
    return np.asarray(np.divide(x, norms, out=np.zeros_like(x), where=norms > 0))


def correlate_without(
    x: np.ndarray, y: np.ndarray, controls: np.ndarray, weights: np.ndarray | None = None
) -> np.ndarray:
    """Return the partial correlations (row of x, row of y) without what the `controls` explain of both.

    All are centred vectors. For one control this is (r_AB - r_AC r_BC) / sqrt((1 - r_AC^2)(1 - r_BC^2)). NaN for a
    vector that the controls explain.
    """
    weighted_y = y if weights is None else y * weights
    weighted_c = controls if weights is None else controls * weights
    inverse = np.linalg.pinv(weighted_c @ controls.T, hermitian=True)
    on_x, on_y = x @ weighted_c.T, y @ weighted_c.T
    products: np.ndarray = x @ weighted_y.T - on_x @ inverse @ on_y.T
    whole_x, whole_y = _square(x, weights), np.einsum("ij,ij->i", y, weighted_y)
    left_x = whole_x - np.einsum("ic,cd,id->i", on_x, inverse, on_x)
    left_y = whole_y - np.einsum("ic,cd,id->i", on_y, inverse, on_y)
    left_x[left_x <= SMALLEST_RESIDUAL * whole_x] = np.nan
    left_y[left_y <= SMALLEST_RESIDUAL * whole_y] = np.nan
    return products / np.sqrt(np.outer(left_x, left_y))
