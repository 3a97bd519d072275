"""Ranks under weights: a bootstrap sample changes how often a pair is there, never the order of the pairs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class SortedRow:
    """A vector of values in ascending order: the place of each in the vector, the first and last of its equals."""

    order: np.ndarray
    first: np.ndarray | None
    last: np.ndarray | None


def sort_row(values: np.ndarray) -> SortedRow:
    """Sort a vector once. `first` and `last` are None where no two values are equal."""
    order = np.argsort(values)
    ascending = values[order]
    starts = np.concatenate([[True], ascending[1:] != ascending[:-1]])
    if starts.all():
        return SortedRow(order, None, None)
    group = np.cumsum(starts) - 1
    first = np.flatnonzero(starts)
    last = np.concatenate([first[1:], [len(values)]]) - 1
    return SortedRow(order, first[group], last[group])


def rank_row(row: SortedRow, weights: np.ndarray | None = None) -> np.ndarray:
    """Return the mean rank of each value in the sample that holds it `weights` times; None: once.

    Equal to the ranks of the expanded sample. The rank of a value of weight 0 means nothing.
    """
    ranks = np.empty(len(row.order))
    if weights is None:
        ascending = np.arange(1.0, len(ranks) + 1) if row.first is None else (row.first + row.last) / 2 + 1
    else:
        weight = weights[row.order]
        upper = np.cumsum(weight)
        lower = upper - weight
        if row.first is not None:
            upper, lower = upper[row.last], lower[row.first]
        ascending = (upper + lower + 1) / 2
    ranks[row.order] = ascending
    return ranks
