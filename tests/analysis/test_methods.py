"""Scores of two RDMs, against rsatoolbox, scipy and a naive loop."""

from __future__ import annotations

import numpy as np
import pytest
from rsatoolbox.rdm import compare as toolbox
from scipy import stats

from xact.analysis.methods import METHODS, center, correlate, correlate_without, prepare, rank


def make_vectors(seed: int, n: int, *, ties: bool = False, n_pairs: int = 45) -> np.ndarray:
    """Random vectors; with ties some are of few values and one is constant."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((n, n_pairs)) - 0.3
    if ties:
        values[0] = np.round(values[0])
        values[1] = 0.0
    return values


def compare_by_toolbox(x: np.ndarray, y: np.ndarray, method: str) -> np.ndarray:
    """Compare one pair of vectors at a time: beside a constant vector, rsatoolbox 0.3.2 shifts the other scores."""
    return np.array([[toolbox(a[None], b[None], method)[0, 0] for b in y] for a in x])


def score(x: np.ndarray, y: np.ndarray, method: str, weights: np.ndarray | None = None) -> np.ndarray:
    method = METHODS[method]
    a, b = (center(rank(prepare(v, method), weights), method, weights) for v in (x, y))
    return correlate(a, b, method, weights)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("seed", range(3))
def test_scores_are_those_of_rsatoolbox(method, ties, seed):
    x, y = make_vectors(seed, 4, ties=ties), make_vectors(seed + 50, 3, ties=ties)
    np.testing.assert_allclose(score(x, y, method), compare_by_toolbox(x, y, method), rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_a_weighted_score_is_the_score_of_the_expanded_pairs(method):
    x, y = make_vectors(1, 4, ties=True), make_vectors(2, 3)
    counts = np.random.default_rng(3).integers(0, 5, x.shape[1])
    expanded = compare_by_toolbox(np.repeat(x, counts, axis=1), np.repeat(y, counts, axis=1), method)
    np.testing.assert_allclose(score(x, y, method, counts.astype(float)), expanded, rtol=0, atol=1e-12)


def test_rho_a_is_the_expectation_of_spearman_under_random_tie_breaking():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 3, 30).astype(float), rng.integers(0, 4, 30).astype(float)
    drawn = [
        stats.spearmanr(np.lexsort((rng.random(30), x)).argsort(), np.lexsort((rng.random(30), y)).argsort())[0]
        for _ in range(4000)
    ]
    assert score(x[None], y[None], "rho-a")[0, 0] == pytest.approx(np.mean(drawn), abs=4 * np.std(drawn) / 4000**0.5)


@pytest.mark.parametrize("method", ["corr", "spearman", "rho-a"])
def test_a_constant_vector_with_an_offset_scores_zero(method):
    x = np.full((1, 45), 0.1)
    assert score(x, make_vectors(0, 1), method)[0, 0] == pytest.approx(0, abs=1e-15)


def partial(x, y, controls, method, weights=None):
    method = METHODS[method]
    vectors = [center(rank(prepare(v, method), weights), method, weights) for v in (x, y, controls)]
    return correlate_without(*vectors, weights)


@pytest.mark.parametrize("method", ["corr", "spearman"])
def test_a_partial_score_is_the_formula_for_one_control(method):
    x, y, c = (make_vectors(seed, 1)[0] + 0.5 * make_vectors(9, 1)[0] for seed in (1, 2, 9))
    r = stats.pearsonr if method == "corr" else stats.spearmanr
    ab, ac, bc = r(x, y)[0], r(x, c)[0], r(y, c)[0]
    expected = (ab - ac * bc) / np.sqrt((1 - ac**2) * (1 - bc**2))
    assert partial(x[None], y[None], c[None], method)[0, 0] == pytest.approx(expected, abs=1e-12)


def test_several_controls_are_taken_out_by_residuals_of_ranks():
    x, y, controls = make_vectors(1, 2), make_vectors(2, 3), make_vectors(3, 2)
    ranks = [np.apply_along_axis(stats.rankdata, 1, v) for v in (x, y)]
    design = np.column_stack([np.ones(45), np.apply_along_axis(stats.rankdata, 1, controls).T])
    left = [v - (design @ np.linalg.lstsq(design, v.T)[0]).T for v in ranks]
    expected = np.corrcoef(*left)[:2, 2:]
    np.testing.assert_allclose(partial(x, y, controls, "spearman"), expected, rtol=0, atol=1e-10)


def test_a_weighted_partial_score_is_that_of_the_expanded_pairs():
    x, y, controls = make_vectors(1, 2), make_vectors(2, 3), make_vectors(3, 2)
    counts = np.random.default_rng(3).integers(0, 5, 45)
    expanded = [np.repeat(v, counts, axis=1) for v in (x, y, controls)]
    found = partial(x, y, controls, "spearman", counts.astype(float))
    np.testing.assert_allclose(found, partial(*expanded, "spearman"), rtol=0, atol=1e-10)


def test_a_layer_that_the_control_explains_has_no_partial_score():
    x, y = make_vectors(1, 2), make_vectors(2, 1)
    found = partial(x, y, x[:1], "spearman")
    assert np.isnan(found[0, 0])
    assert np.isfinite(found[1, 0])
