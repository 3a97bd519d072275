"""Pairs of an RDM as a vector."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import squareform

from xact.analysis.pairs import make_square, take_pairs, weigh_pairs


@pytest.fixture
def square() -> np.ndarray:
    return squareform(np.random.default_rng(0).standard_normal(15))


def test_pairs_are_the_upper_triangle_without_the_diagonal(square):
    np.fill_diagonal(square, 7)
    np.testing.assert_array_equal(take_pairs(square), square[np.triu_indices(6, 1)])


def test_rows_are_taken_in_the_order_given(square):
    rows = np.array([4, 0, 3])
    np.testing.assert_array_equal(take_pairs(square, rows), [square[4, 0], square[4, 3], square[0, 3]])


def test_a_square_comes_back(square):
    np.testing.assert_array_equal(make_square(take_pairs(square), 6), square)


def test_a_pair_weighs_the_product_of_its_multiplicities():
    np.testing.assert_array_equal(weigh_pairs(np.array([2, 0, 3])), [0, 6, 0])
