"""Layers against layers from activations: CKA and mutual neighbours, of one store or of two."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import xarray as xr
from support.analysis import make_activations
from support.stores import draw_values, make_model, make_store_plan, make_table, write_store

import xact
from xact.errors import RequestError


@pytest.fixture
def acts() -> xr.DataArray:
    return make_activations(20)


def find_patterns(acts: xr.DataArray) -> np.ndarray:
    return acts.mean("replicate").transpose("model", "layer", "stimulus", "unit").values.reshape(-1, 20, 30)


def compute_cka(x: np.ndarray, y: np.ndarray) -> float:
    """Unbiased linear CKA by U-centred Gram matrices, with loops."""
    centred = []
    for z in (x, y):
        gram = z @ z.T
        n = len(gram)
        u = np.zeros((n, n))
        sums = [sum(gram[i, j] for j in range(n) if j != i) for i in range(n)]
        for i in range(n):
            for j in range(n):
                if i != j:
                    u[i, j] = gram[i, j] - (sums[i] + sums[j]) / (n - 2) + sum(sums) / ((n - 1) * (n - 2))
        centred.append(u)
    a, b = centred
    return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))


def test_cka_of_all_layers(acts):
    grid = xact.compare(acts, method="cka")
    patterns = find_patterns(acts)
    expected = [[compute_cka(x, y) for y in patterns] for x in patterns]
    np.testing.assert_allclose(grid["score"].values.reshape(6, 6), expected, rtol=0, atol=1e-10)


def test_mutual_neighbours_of_all_layers_with_their_chance(acts):
    grid = xact.compare(acts, method="mutual_knn", permutations=20)
    near = []
    for x in find_patterns(acts):
        unit = x / np.linalg.norm(x, axis=1, keepdims=True)
        cosines = unit @ unit.T - 2 * np.eye(20)
        near.append([set(np.argsort(-row)[:10].tolist()) for row in cosines])
    expected = [[np.mean([len(a & b) / 10 for a, b in zip(x, y, strict=True)]) for y in near] for x in near]
    np.testing.assert_allclose(grid["score"].values.reshape(6, 6), expected, rtol=0, atol=1e-12)
    assert grid["chance"].item() == 10 / 19
    assert (grid["null_sd"] > 0).all()
    assert np.diagonal(grid["p"].values.reshape(6, 6)).tolist() == [1 / 21] * 6
    assert "p" not in xact.compare(acts, method="mutual_knn")


@pytest.mark.parametrize("method", ["rho-a", "corr", "cka"])
@pytest.mark.parametrize("n_held", [1, 2, 4])
def test_layers_that_do_not_fit_into_memory_stream_by_several_times(acts, method, n_held, monkeypatch):
    whole = xact.compare(acts, method=method)
    monkeypatch.setattr("xact.analysis.grid.HELD_NBYTES", n_held * 8 * 190)
    np.testing.assert_allclose(xact.compare(acts, method=method)["score"], whole["score"], rtol=0, atol=1e-13)


def test_rsatoolbox_takes_all_layers_at_once(acts, monkeypatch):
    monkeypatch.setattr("xact.analysis.grid.HELD_NBYTES", 5 * 8 * 190)
    with pytest.raises(RequestError, match="method 'corr_cov' takes the RDMs of all layers into memory"):
        xact.compare(acts, method="corr_cov")


@pytest.mark.parametrize("n_held", [1, 100])
@pytest.mark.parametrize("method", ["cka", "mutual_knn"])
def test_two_stores_are_paired_by_a_label(acts, method, n_held, monkeypatch):
    other = make_activations(25, models=["L"], n_layers=2, seed=8)
    order = np.random.default_rng(0).permutation(25)
    captions = other.isel(stimulus=order).assign_coords(stimulus=[f"caption/{i}" for i in order])
    monkeypatch.setattr("xact.analysis.grid.HELD_NBYTES", n_held * 8 * 190)
    with pytest.raises(RequestError, match=r"labels .* not among"):
        xact.compare(acts, to=captions, method=method, key="stem")
    captions = captions.isel(stimulus=np.flatnonzero(order < 20))
    grid = xact.compare(acts, to=captions, method=method, key="stem")
    assert grid["score"].shape == (2, 3, 1, 2)
    assert grid["model_"].values.tolist() == ["L"]
    joined = xr.concat(
        [acts, other.isel(stimulus=slice(0, 20))], "model", join="outer", coords="minimal", compat="override"
    )
    both = xact.compare(joined.isel(layer=[0, 1]).drop_vars(["depth", "depth_bin", "layer_index"]), method=method)
    np.testing.assert_allclose(grid["score"][:, :2, 0], both["score"].values[:2, :, 2], rtol=0, atol=1e-12)


def test_a_pattern_of_zeros_has_no_neighbours_and_is_left_out(acts):
    acts.values[0, 4, 1] = 0
    with pytest.warns(UserWarning, match="1 stimuli have a constant pattern"):
        grid = xact.compare(acts, method="mutual_knn")
    expected = xact.compare(acts.isel(stimulus=np.delete(np.arange(20), 4)), method="mutual_knn")
    np.testing.assert_array_equal(grid["score"], expected["score"])
    assert grid["chance"].item() == 10 / 18


def test_neighbours_need_more_stimuli_than_k():
    with pytest.raises(RequestError, match="11 stimuli have a pattern in every layer; mutual_knn needs 12"):
        xact.compare(make_activations(11), method="mutual_knn")
    with pytest.raises(RequestError, match="cka needs 4"):
        xact.compare(make_activations(3), method="cka")


@pytest.mark.parametrize("method", ["rho-a", "cka", "mutual_knn"])
def test_a_store_streams_by_and_gives_what_its_array_gives(tmp_path, method):
    models = [make_model("a", {"x": [700], "y": [16]}), make_model("b", {"x": [40]})]
    table = make_table(14)
    plan = make_store_plan(models, table, layout="cube", n_replicates=2)
    write_store(tmp_path / "s.zarr", plan, partial(draw_values, n_replicates=2))
    grid = xact.compare(tmp_path / "s.zarr", method=method)
    assert int(np.isfinite(grid["score"]).sum()) == 9
    loaded = xact.open_activations(tmp_path / "s.zarr").load()
    np.testing.assert_allclose(grid["score"], xact.compare(loaded, method=method)["score"], rtol=0, atol=1e-14)
