"""Ranks under weights are the ranks of the expanded sample."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import rankdata

from xact.analysis.ranks import rank_row, sort_row


def make_values(seed: int, *, ties: bool) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(-3, 4, 40).astype(float) if ties else rng.standard_normal(40)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_ranks_are_those_of_scipy(seed, ties):
    values = make_values(seed, ties=ties)
    np.testing.assert_array_equal(rank_row(sort_row(values)), rankdata(values))


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_weighted_ranks_are_those_of_the_expanded_sample(seed, ties):
    values = make_values(seed, ties=ties)
    counts = np.random.default_rng(seed + 100).integers(0, 4, 40)
    ranks = rank_row(sort_row(values), counts.astype(float))
    np.testing.assert_array_equal(np.repeat(ranks, counts), rankdata(np.repeat(values, counts)))


def test_all_values_equal():
    np.testing.assert_array_equal(rank_row(sort_row(np.zeros(4))), [2.5] * 4)
