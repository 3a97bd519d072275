"""The analyses that followed the two older programs, as recipes: on small stores whose answers are known."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from scipy.spatial.distance import pdist
from scipy.stats import rankdata
from support.recipes import load_script
from support.stores import draw_values, make_model, make_store_plan, make_table, write_store

import xact
from xact.cli.main import main

LAYERS = {f"layer{i}": [30] for i in range(5)}
N_SETS, N_VIEWS = 6, 4


def write_views(folder: Path) -> Path:
    """A store of 6 objects in 4 views, alone and among leaves."""
    n = 2 * N_SETS * N_VIEWS
    objects = [f"object{row % (n // 2) // N_VIEWS}" for row in range(n)]
    table = make_table(n, conditions=("plain", "leaves"), object=objects)
    plan = make_store_plan([make_model("A", LAYERS), make_model("B", LAYERS)], table, layout="cube", n_replicates=2)
    write_store(folder / "views.zarr", plan, partial(draw_values, n_replicates=2))
    return folder / "views.zarr"


def write_pairs(folder: Path) -> Path:
    """What `xact rdm --within object` writes."""
    store = write_views(folder)
    with pytest.raises(SystemExit) as done:
        main(["rdm", str(store), "--within", "object", "--output", str(folder / "pairs.csv")])
    assert done.value.code == 0
    return folder / "pairs.csv"


def test_distances_of_pairs_within_a_set_are_averaged_by_depth_and_condition(tmp_path):
    script = load_script("depth_bins")
    pairs = pd.read_csv(write_pairs(tmp_path))
    means = script.average_pairs(pairs, "object").set_index(["model", "depth_bin", "condition", "object"])
    assert len(means) == 2 * 5 * 2 * N_SETS
    acts = xact.open_layer(tmp_path / "views.zarr", "A", "layer3").mean("replicate").compute().astype(float)
    chosen = acts[(acts["object"] == "object2").values & (acts["condition"] == "leaves").values]
    assert chosen.sizes["stimulus"] == N_VIEWS
    expected = pdist(chosen.values, "correlation").mean()  # the pairs of one object, in one condition
    assert means.loc[("A", int(acts["depth_bin"]), "leaves", "object2"), "distance"] == pytest.approx(expected)


def test_the_command_and_the_recipe_go_together(tmp_path, monkeypatch):
    write_pairs(tmp_path)
    words = f"depth_bins.py {tmp_path}/pairs.csv --set object --conditions plain leaves --output {tmp_path}/bins.csv"
    monkeypatch.setattr(sys, "argv", words.split())
    load_script("depth_bins").main()
    found = pd.read_csv(tmp_path / "bins.csv")
    assert found.columns.tolist() == "model depth_bin difference t p p_max n_sets n_exchanges".split()
    assert len(found) == 10
    assert set(found["n_exchanges"]) == {2**N_SETS}
    assert (found["p_max"] >= found["p"]).all()
    assert found["p"].min() >= 2 / 2**N_SETS


def make_means(rng: np.random.Generator, n_sets: int, effect: float, n_bins: int = 4) -> pd.DataFrame:
    """Mean distances of sets that differ from each other, alike at all depths, as those of one network do."""
    noise = rng.normal(size=(2, n_sets, 1)) + 0.5 * rng.normal(size=(2, n_sets, n_bins))
    noise[0, :, 2] += effect
    index = pd.MultiIndex.from_product([["plain", "leaves"], [f"o{i}" for i in range(n_sets)], range(n_bins)])
    table = pd.DataFrame({"distance": noise.ravel()}, index.set_names(["condition", "object", "depth_bin"]))
    return table.reset_index().assign(model="A")


@pytest.mark.parametrize("n_sets", [8, 16])
def test_the_permutation_test_finds_no_difference_in_noise_more_often_than_it_says(n_sets):
    script = load_script("depth_bins")
    rng = np.random.default_rng(0)
    found = [
        script.compare_conditions(make_means(rng, n_sets, 0), "object", "plain", "leaves", permutations=199)
        for _ in range(200)
    ]
    rate = np.mean([one["p_max"].min() <= 0.05 for one in found])  # the whole profile: any depth
    assert rate <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 200)
    assert np.mean([one["p"].iloc[0] <= 0.25 for one in found]) == pytest.approx(0.25, abs=0.07)


def test_the_permutation_test_finds_a_difference_where_it_is():
    script = load_script("depth_bins")
    means = make_means(np.random.default_rng(1), 16, 4)
    found = script.compare_conditions(means, "object", "plain", "leaves", permutations=999)
    assert found["p_max"].idxmin() == 2
    assert found["p_max"].min() == 1 / 1000
    swapped = script.compare_conditions(means, "object", "leaves", "plain", permutations=999)
    np.testing.assert_allclose(swapped["difference"], -found["difference"])
    np.testing.assert_array_equal(swapped["p"], found["p"])


def test_the_permutation_test_refuses_what_it_cannot_test():
    script = load_script("depth_bins")
    means = make_means(np.random.default_rng(1), 4, 0)
    with pytest.raises(SystemExit, match="no condition 'leafs'"):
        script.compare_conditions(means, "object", "plain", "leafs")
    with pytest.raises(SystemExit, match="1 sets have both conditions"):
        script.compare_conditions(means[means["object"] == "o1"], "object", "plain", "leaves")


# ---- vision, language and a brain


N_PICTURES = 40
DIRECTIONS = np.random.default_rng(7).normal(size=(4, N_PICTURES, 30))
"""What each picture looks like, what it means, and two kinds of noise."""


def draw_mixture(look: dict[str, float], model: str, layer: str, start: int, stop: int, n_units: int) -> np.ndarray:
    """Values (stimulus, replicate, unit) between look, {layer: share}, and meaning."""
    rng = np.random.default_rng([len(model), int(layer[-1])])
    share = look[layer]
    mixed = share * DIRECTIONS[0] + (1 - share) * DIRECTIONS[1]
    whole = mixed @ rng.normal(size=(30, n_units)) / 5 + 0.3 * rng.normal(size=(N_PICTURES, n_units))
    return whole[start:stop, None].astype(np.float32)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vision network that goes from look to meaning, a language network of meaning, a brain in three sessions."""
    folder = tmp_path_factory.mktemp("study")
    layers = {f"block{i}": [50] for i in range(4)}
    vision = dict(zip(layers, (1, 0.8, 0.55, 0.4), strict=True))
    language = dict(zip(layers, (0, 0, 0, 0), strict=True))
    for name, model, look in (("vision", "ViT", vision), ("language", "llama", language)):
        plan = make_store_plan([make_model(model, layers)], make_table(N_PICTURES, conditions=("all",)), layout="cube")
        write_store(folder / f"{name}.zarr", plan, partial(draw_mixture, look))
    rng = np.random.default_rng(3)
    order = rng.permutation(N_PICTURES)
    ids = np.array([f"all/img{row}" for row in range(N_PICTURES)])
    seen = (0.55 * DIRECTIONS[0] + 0.45 * DIRECTIONS[1]) @ rng.normal(size=(30, 60))
    betas = seen + rng.normal(scale=2, size=(3, N_PICTURES, 60))
    coords = {"session": ["nsd01", "nsd02", "nsd03"], "stimulus": ids[order]}
    made = xr.DataArray(betas[:, order], coords, ("session", "stimulus", "voxel"), "betas")
    made.to_netcdf(folder / "betas.nc", engine="h5netcdf")
    return folder


def rank_correlate(x: np.ndarray, y: np.ndarray, *others: np.ndarray) -> float:
    """Spearman's correlation, without what both share with one other vector."""
    ranks = np.array([rankdata(one) for one in (x, y, *others)])
    if not others:
        return float(np.corrcoef(ranks)[0, 1])
    inverse = np.linalg.inv(np.corrcoef(ranks))
    return float(-inverse[0, 1] / np.sqrt(inverse[0, 0] * inverse[1, 1]))


CHOSEN = pytest.mark.filterwarnings("ignore:the best of 4 layers is chosen:UserWarning")


@CHOSEN
def test_models_and_brain_are_aligned_by_session_layer_and_store(study, monkeypatch):
    words = f"align_models.py {study}/vision.zarr {study}/language.zarr --brain {study}/betas.nc --output {study}/out"
    monkeypatch.setattr(sys, "argv", words.split())
    load_script("align_models").main()
    brain = pd.read_csv(study / "out/brain.csv").set_index(["kind", "layer", "session"])
    assert len(brain) == 2 * 4 * 3
    betas = xr.open_dataarray(study / "betas.nc")
    acts = xact.open_layer(study / "vision.zarr", "ViT", "block2").sel(replicate=0).compute()
    control = xact.open_layer(study / "language.zarr", "llama", "block3").sel(replicate=0).compute()
    own = betas.sel(session="nsd02", stimulus=acts["stimulus"])
    vectors = [pdist(one.values.astype(float), "correlation") for one in (acts, own, control)]
    found = brain.loc[("vision", "block2", "nsd02")]
    assert found["score"] == pytest.approx(rank_correlate(*vectors[:2]), abs=1e-10)
    assert found["partial"] == pytest.approx(rank_correlate(*vectors), abs=1e-10)
    means = brain.groupby(["kind", "layer"])[["score", "partial"]].mean()
    assert means.loc["vision", "score"].idxmax() == "block2"  # the mixture that the brain has
    assert means.loc[("vision", "block0"), "partial"] > means.loc[("vision", "block0"), "score"]
    assert means.loc["language", "partial"].max() < means.loc["language", "score"].max()


def test_layers_of_a_vision_network_come_closer_to_language(study):
    table = load_script("align_models").align_layers(study / "vision.zarr", study / "language.zarr", key="stimulus")
    assert len(table) == 16
    best = table.groupby("layer")[["cka", "mutual_knn"]].max()
    assert best["cka"].is_monotonic_increasing
    assert best.loc["block0", "cka"] < 0.2 < 0.4 < best.loc["block3", "cka"]
    chance = 10 / (N_PICTURES - 1)
    assert table["chance"].tolist() == pytest.approx([chance] * 16)
    assert best.loc["block3", "mutual_knn"] > chance + 0.15 > best.loc["block0", "mutual_knn"]


@CHOSEN
def test_betas_are_compared_with_a_store_in_one_line(study, capsys):
    betas, output = study / "betas.nc", study / "scores.csv"
    with pytest.raises(SystemExit) as done:
        main(["compare", str(study / "vision.zarr"), "--to", str(betas), "--output", str(output)])
    assert done.value.code == 0, capsys.readouterr().err
    table = pd.read_csv(output)
    assert set(table["subject"]) >= {"nsd01", "nsd02", "nsd03"}
    expected = xact.compare(study / "vision.zarr", to=betas)["score"].max()
    assert table["score"][table["subject"] == "all"].max() == pytest.approx(float(expected))
