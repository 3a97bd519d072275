"""CKA and mutual nearest neighbours, against naive loops."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from xact.analysis.similarity import (
    center_gram,
    count_patterns,
    find_neighbours,
    find_null_sd,
    overlap,
    permute_neighbours,
)


def compute_hsic(k: np.ndarray, l: np.ndarray) -> float:  # noqa: E741  the letters of the paper
    """Song 2012 eq. 5, as it is written."""
    n = len(k)
    k, l = (m - np.diag(np.diag(m)) for m in (k, l))  # noqa: E741
    one = np.ones(n)
    last = 2 / (n - 2) * (one @ k @ l @ one)
    return (np.trace(k @ l) + (one @ k @ one) * (one @ l @ one) / ((n - 1) * (n - 2)) - last) / (n * (n - 3))


@pytest.mark.parametrize("seed", range(3))
def test_cka_is_equation_5_of_song(seed):
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((20, 7)) + 3, rng.standard_normal((20, 40)) @ np.diag(rng.random(40))
    y[:, :7] += x
    k, other = x @ x.T, y @ y.T
    expected = compute_hsic(k, other) / np.sqrt(compute_hsic(k, k) * compute_hsic(other, other))
    assert center_gram(k) @ center_gram(other) == pytest.approx(expected, abs=1e-10)


def test_cka_of_independent_noise_is_near_zero():
    rng = np.random.default_rng(0)
    vectors = [center_gram(x @ x.T) for x in rng.standard_normal((12, 48, 1280))]
    assert np.mean([a @ b for a, b in itertools.combinations(vectors, 2)]) == pytest.approx(0, abs=0.02)


def test_cka_does_not_change_with_the_mean_pattern():
    x = np.random.default_rng(0).standard_normal((15, 6))
    moved = x + 10
    np.testing.assert_allclose(center_gram(x @ x.T), center_gram(moved @ moved.T), rtol=0, atol=1e-12)


def test_a_constant_layer_has_no_alignment():
    assert not center_gram(np.full((6, 6), 0.7)).any()


def find_neighbours_by_hand(x: np.ndarray, k: int) -> np.ndarray:
    near = []
    for i in range(len(x)):
        cosines = [(-(x[i] @ y) / np.linalg.norm(x[i]) / np.linalg.norm(y), j) for j, y in enumerate(x) if j != i]
        near.append(sorted(j for _, j in sorted(cosines)[:k]))
    return np.array(near)


def test_neighbours_are_the_nearest_by_cosine_without_the_stimulus_itself():
    x = np.random.default_rng(0).standard_normal((40, 5))
    np.testing.assert_array_equal(find_neighbours(x @ x.T), find_neighbours_by_hand(x, 10))


def test_of_equally_near_stimuli_the_first_are_taken():
    x = np.eye(6)
    np.testing.assert_array_equal(find_neighbours(x @ x.T, 2)[[0, 1, 5]], [[1, 2], [0, 2], [0, 1]])


def test_the_overlap_is_the_mean_share_of_common_neighbours():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((30, 5)), rng.standard_normal((30, 5))
    near, other = find_neighbours(x @ x.T), find_neighbours(y @ y.T)
    expected = np.mean([len({*a} & {*b}) / 10 for a, b in zip(near.tolist(), other.tolist(), strict=True)])
    np.testing.assert_allclose(overlap(near, [other, near]), [expected, 1], rtol=0, atol=1e-15)


def test_the_overlap_is_the_same_in_any_blocks(monkeypatch):
    x, y = np.random.default_rng(0).standard_normal((2, 30, 5))
    near, other = find_neighbours(x @ x.T), find_neighbours(y @ y.T)
    whole = overlap(near, [other])
    monkeypatch.setattr("xact.analysis.similarity.TABLE_NBYTES", 200)
    np.testing.assert_array_equal(overlap(near, [other]), whole)


@pytest.mark.parametrize("seed", range(3))
def test_chance_and_spread_are_those_of_all_permutations(seed):
    rng = np.random.default_rng(seed)
    n, k = 6, 2
    x, y = rng.standard_normal((2, n, 4))
    near, other = find_neighbours(x @ x.T, k), find_neighbours(y @ y.T, k)
    every = overlap(near, [permute_neighbours(other, np.array(p)) for p in itertools.permutations(range(n))])
    assert np.mean(every) == pytest.approx(k / (n - 1), abs=1e-12)
    found = find_null_sd(count_patterns(near), count_patterns(other), n=n, k=k)
    assert found == pytest.approx(np.std(every), abs=1e-12)


def test_permuted_neighbours_are_those_of_the_permuted_stimuli():
    x = np.random.default_rng(0).standard_normal((15, 5))
    order = np.random.default_rng(1).permutation(15)
    permuted = np.sort(permute_neighbours(find_neighbours(x @ x.T, 3), order), axis=1)
    np.testing.assert_array_equal(permuted, find_neighbours((x @ x.T)[np.ix_(order, order)], 3))
