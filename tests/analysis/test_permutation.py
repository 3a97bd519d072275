"""Permutation tests against a naive loop."""

from __future__ import annotations

import numpy as np
import pytest
from rsatoolbox.rdm import compare as toolbox

from xact.analysis.inference import Inference, score_layers
from xact.analysis.methods import METHODS
from xact.analysis.pairs import make_square, take_pairs
from xact.analysis.permutation import draw_order, find_p, find_p_max
from xact.analysis.scorer import ProductScorer
from xact.analysis.toolbox import ToolboxScorer


def make_vectors(seed: int, n: int) -> np.ndarray:
    return np.random.default_rng(seed).random((n, 28))


def permute_by_hand(layers, reference, method, n_permutations):
    null = []
    for number in range(n_permutations):
        order = draw_order(5, number, 8)
        squares = [make_square(one, 8)[np.ix_(order, order)] for one in reference]
        null.append(toolbox(layers, np.stack([take_pairs(one) for one in squares]), method).mean(axis=1))
    return np.stack(null)


@pytest.mark.parametrize("method", [*METHODS, "tau-a"])
def test_the_reference_is_permuted_by_rows_and_columns_together(method):
    layers, reference = make_vectors(0, 3), make_vectors(1, 2)
    scorer = ProductScorer(METHODS[method], reference) if method in METHODS else ToolboxScorer(method, reference, 8)
    found = score_layers(scorer, layers, Inference(n_permutations=6, seed=5), n_stimuli=8, n_subjects=2)
    np.testing.assert_allclose(found.null, permute_by_hand(layers, reference, method, 6), rtol=0, atol=1e-12)


def test_the_controls_stay_while_the_reference_is_permuted():
    layers, reference, control = make_vectors(0, 3), make_vectors(1, 2), make_vectors(2, 1)
    scorer = ProductScorer(METHODS["corr"], reference, controls=control)
    found = score_layers(scorer, layers, Inference(n_permutations=4, seed=5), n_stimuli=8, n_subjects=2)
    for number, null in enumerate(found.null):
        order = draw_order(5, number, 8)
        permuted = np.stack([take_pairs(make_square(one, 8), order) for one in reference])
        other = ProductScorer(METHODS["corr"], permuted, controls=control)
        np.testing.assert_allclose(null, other.score(other.prepare(layers)).mean(axis=1), rtol=0, atol=1e-12)


def test_p_counts_the_score_itself():
    null = np.array([[0.1, 0.5], [0.2, 0.1], [0.3, 0.2]])
    np.testing.assert_array_equal(find_p(np.array([0.2, 0.9]), null), [3 / 4, 1 / 4])


def test_p_max_compares_with_the_best_layer_of_each_permutation():
    null = np.array([[0.1, 0.5], [0.2, 0.1], [0.3, 0.2]])
    np.testing.assert_array_equal(find_p_max(np.array([0.25, 0.4]), null), [3 / 4, 2 / 4])


def test_a_layer_without_a_score_has_no_p():
    null = np.array([[0.1, np.nan], [0.2, np.nan]])
    assert find_p_max(np.array([0.15, np.nan]), null)[0] == 2 / 3
    assert np.isnan(find_p(np.array([np.nan]), null[:, :1]))
    assert np.isnan(find_p_max(np.array([np.nan, np.nan]), null)).all()
