"""Classical MDS finds the points again, its share is that of its definition, and its signs do not change."""

from __future__ import annotations

import numpy as np
import pytest

from xact.analysis.mds import embed
from xact.errors import RequestError


def make_distances(points: np.ndarray) -> np.ndarray:
    return np.linalg.norm(points[:, None] - points, axis=-1)


@pytest.mark.parametrize("squared", [True, False])
def test_points_of_a_plane_are_found_again(squared):
    points = np.random.default_rng(0).standard_normal((12, 2))
    distances = make_distances(points)
    found = embed(distances**2 if squared else distances, squared=squared)
    np.testing.assert_allclose(make_distances(found.points), distances, atol=1e-10)
    assert found.share == pytest.approx(1, abs=1e-10)
    assert found.kept.all()


def test_the_map_of_a_correlation_rdm_is_that_of_principal_components():
    patterns = np.random.default_rng(1).standard_normal((10, 40))
    z = (patterns - patterns.mean(axis=1, keepdims=True)) / patterns.std(axis=1, keepdims=True)
    z -= z.mean(axis=0)
    u, s, _ = np.linalg.svd(z, full_matrices=False)
    found = embed(1 - np.corrcoef(patterns), squared=True)
    components = u[:, :2] * s[:2] / np.sqrt(2 * 40)
    np.testing.assert_allclose(np.abs(found.points), np.abs(components), atol=1e-10)
    assert found.share == pytest.approx((s[:2] ** 2).sum() / (s**2).sum(), abs=1e-10)


def test_eigenvalues_below_zero_count_in_the_share():
    values = np.array([[0, 1, 1, 9], [1, 0, 1, 1], [1, 1, 0, 1], [9, 1, 1, 0]], dtype=float)
    centre = np.eye(4) - 1 / 4
    expected = np.sort(np.linalg.eigvalsh(-centre @ values @ centre / 2))[::-1]
    assert expected[-1] < -0.1
    assert embed(values, squared=True).share == pytest.approx(expected[:2].clip(0).sum() / np.abs(expected).sum())


def test_the_largest_coordinate_of_each_dimension_is_positive():
    points = embed(make_distances(np.random.default_rng(2).standard_normal((9, 5))), squared=False).points
    assert (points[np.abs(points).argmax(axis=0), [0, 1]] > 0).all()


def test_constant_patterns_are_left_out_and_other_nan_is_refused():
    values = make_distances(np.random.default_rng(3).standard_normal((6, 2)))
    values[2] = values[:, 2] = np.nan
    assert embed(values, squared=False).kept.tolist() == [True, True, False, True, True, True]
    values[0, 1] = values[1, 0] = np.nan
    with pytest.raises(RequestError, match="1 pairs of stimuli have no dissimilarity"):
        embed(values, squared=False)
    with pytest.raises(RequestError, match="at least 3 stimuli with dissimilarities, found 0"):
        embed(values[:3, :3], squared=False)


def test_stimuli_that_all_are_the_same_lie_on_one_point():
    found = embed(np.zeros((4, 4)), squared=True)
    assert np.isnan(found.share)
    assert not found.points.any()
