"""Score layers against the subjects of one reference: as they are, in bootstrap samples, under permutations."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from xact.analysis.ceiling import find_ceiling
from xact.analysis.methods import (
    CompareMethod,
    Vectors,
    center,
    correlate,
    correlate_without,
    prepare,
    rank,
    scale_product,
)
from xact.analysis.pairs import make_square, take_pairs, weigh_pairs


class Scorer(Protocol):
    """What one way to compare offers; `stimuli` are multiplicities of a sample, None is each stimulus once."""

    def prepare(self, layers: np.ndarray) -> Any:  # noqa: ANN401  what the same scorer takes
        """Return vectors (layer, pair) as `score` takes them."""

    def score(self, layers: Any, stimuli: np.ndarray | None = None) -> np.ndarray:  # noqa: ANN401
        """Return the score (layer, subject) of each layer against each subject."""

    def find_ceiling(self, subjects: np.ndarray, stimuli: np.ndarray | None = None) -> tuple[float, float]:
        """Return the bounds of the noise ceiling for a sample of `subjects`."""

    def permute(self, layers: Any, orders: Iterable[np.ndarray]) -> np.ndarray:  # noqa: ANN401
        """Return the mean score over subjects (permutation, layer) for each order of the reference's stimuli."""


class ProductScorer:
    """Scores that are products of vectors of pairs: rho-a, spearman, corr, cosine, with or without controls."""

    def __init__(
        self,
        method: CompareMethod,
        reference: np.ndarray,
        *,
        controls: np.ndarray | None = None,
    ) -> None:
        """Take vectors (subject, pair) and (control, pair)."""
        self._method = method
        self._reference = prepare(reference, method)
        self._controls = None if controls is None else prepare(controls, method)

    def prepare(self, layers: np.ndarray) -> Vectors:
        """Sort vectors (layer, pair)."""
        return prepare(layers, self._method)

    def score(self, layers: Vectors, stimuli: np.ndarray | None = None) -> np.ndarray:
        """Return the score (layer, subject) of each layer against each subject."""
        weights = None if stimuli is None else weigh_pairs(stimuli)
        reference = self._whole_reference if weights is None else self._center(self._reference, weights)
        return self._correlate(self._center(layers, weights), reference, weights)

    def find_ceiling(self, subjects: np.ndarray, stimuli: np.ndarray | None = None) -> tuple[float, float]:
        """Return the bounds of the noise ceiling for a sample of `subjects`."""
        weights = None if stimuli is None else weigh_pairs(stimuli)
        ranked = rank(self._reference, weights)
        return find_ceiling(ranked, subjects, self._method, lambda x, y: self._correlate(x, y, weights), weights)

    def permute(self, layers: Vectors, orders: Iterable[np.ndarray]) -> np.ndarray:
        """Return the mean score over subjects (permutation, layer) for each order of the reference's stimuli."""
        x, y = self._center(layers, None), self._whole_reference
        is_product = self._controls is None
        if is_product:  # the score is linear in the reference, so its mean over subjects is
            x, y = scale_product(x, y, self._method)
            y = y.mean(axis=0, keepdims=True)
        squares: list[np.ndarray] = []
        null = []
        for order in orders:
            squares = squares or [make_square(one, len(order)) for one in y]
            permuted = np.stack([take_pairs(square, order) for square in squares])
            scores = x @ permuted.T if is_product else self._correlate(x, permuted, None)
            null.append(scores.mean(axis=1))
        return np.stack(null)

    @cached_property
    def _whole_reference(self) -> np.ndarray:
        return self._center(self._reference, None)

    def _center(self, vectors: Vectors, weights: np.ndarray | None) -> np.ndarray:
        return center(rank(vectors, weights), self._method, weights)

    def _correlate(self, x: np.ndarray, y: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
        if self._controls is None:
            return correlate(x, y, self._method, weights)
        return correlate_without(x, y, self._center(self._controls, weights), weights)
