"""Scores as a table and as files."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from support.analysis import make_activations, make_subjects

import xact
from xact.analysis.scores import COLUMNS, list_best, make_table, write_scores
from xact.errors import RequestError

pytestmark = pytest.mark.filterwarnings("ignore:the best of", "ignore:.* is not reliable")


@pytest.fixture
def scores() -> xr.Dataset:
    acts = make_activations()
    return xact.compare(
        acts, to=make_subjects(acts), labels="object", bootstrap="stimuli", samples=6, permutations=4, seed=2
    )


def test_the_table_has_a_row_for_each_layer_reference_and_subject(scores):
    table = make_table(scores)
    expected = (
        "model layer depth position depth_bin reference subject method score low high p p_max ceiling_low ceiling_high "
        "n_stimuli n_subjects chosen_on seed"
    )
    assert list(table) == COLUMNS == expected.split()
    assert len(table) == 2 * 3 * (1 + 4 + 1)
    row = table[(table["model"] == "B") & (table["layer"] == "l2") & (table["reference"] == "it")].set_index("subject")
    assert row.loc["all", "score"] == scores["score"].values[1, 2, 0]
    assert row.loc["sub3", "score"] == scores["subject_score"].values[1, 2, 3]
    assert row.loc["all", ["depth", "position", "depth_bin", "n_subjects", "seed"]].tolist() == [1, 1, 5, 4, 2]
    assert row["low"].notna().tolist() == [True, False, False, False, False]


def test_position_has_no_ties_where_depth_has():
    acts = make_activations(n_layers=4)
    acts["depth"].values[:] = [0, 0.5, 0.5, 1]
    acts["layer_index"].values[0] = [0, 2, 1, 3]
    scores = xact.compare(acts, labels="object")
    np.testing.assert_allclose(scores["position"], [[0, 2 / 3, 1 / 3, 1], [0, 1 / 3, 2 / 3, 1]])
    table = make_table(scores)
    assert table["layer"].tolist()[:4] == ["l0", "l2", "l1", "l3"]  # in forward order


def test_layers_that_are_lacking_have_no_row():
    acts = make_activations()
    rdms = xact.rdm(acts)
    rdms.values[0, 1] = np.nan
    table = make_table(xact.compare(rdms, labels="object"))
    assert table["layer"].tolist() == ["l0", "l2", "l0", "l1", "l2"]
    assert len(make_table(xact.compare(rdms))) == 25


def test_chosen_layers_have_a_row_for_each_half():
    acts = make_activations()
    table = make_table(xact.compare(acts, to=make_subjects(acts), choose_layer=True))
    assert table["chosen_on"].tolist() == ["half 1", "half 2"] * 2
    assert table["layer"].isin(["l0", "l1", "l2"]).all()
    assert table["n_stimuli"].tolist() == [8] * 4


def test_a_grid_has_a_row_for_each_pair_of_layers():
    acts = make_activations()
    grid = xact.compare(acts, method="corr")
    table = make_table(grid)
    assert len(table) == 36
    one = table[(table["model"] == "A") & (table["layer"] == "l1") & (table["reference"] == "B l2")]
    assert one["score"].item() == grid["score"].values[0, 1, 1, 2]


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_table_comes_back(scores, tmp_path, ending):
    file = write_scores(scores, tmp_path / "new" / f"scores.{ending}")
    read = pd.read_csv(file, keep_default_na=True) if ending == "csv" else pd.read_parquet(file)
    table = make_table(scores)
    read["chosen_on"] = read["chosen_on"].astype(object).fillna("")
    pd.testing.assert_frame_equal(read, table, check_dtype=False, rtol=0, atol=0)
    assert [one.name for one in file.parent.iterdir()] == [file.name]


def test_a_zarr_is_the_dataset_and_opens_without_a_warning(scores, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        file = write_scores(scores, tmp_path / "scores.zarr")
        with xr.open_zarr(file) as opened:
            np.testing.assert_array_equal(opened["score"], scores["score"])
            assert opened["layer"].values.tolist() == ["l0", "l1", "l2"]
            assert opened.attrs["method"] == "rho-a"
    assert [one.name for one in tmp_path.iterdir()] == ["scores.zarr"]


@pytest.mark.parametrize("ending", ["csv", "parquet", "zarr"])
def test_an_existing_output_is_refused(scores, tmp_path, ending):
    file = write_scores(scores, tmp_path / f"scores.{ending}")
    with pytest.raises(RequestError, match="exists") as caught:
        write_scores(scores, file)
    assert caught.value.hint == "remove it, or give another name"


def test_an_unknown_format_is_refused(scores, tmp_path):
    with pytest.raises(RequestError, match=r"'.*scores\.txt' is of no known format"):
        write_scores(scores, tmp_path / "scores.txt")


def test_the_best_layers_are_listed(scores):
    best = list_best(scores)
    assert [(row["model"], row["reference"]) for row in best.rows] == [
        ("A", "it"),
        ("A", "object"),
        ("B", "it"),
        ("B", "object"),
    ]
    assert best.rows[0]["score"] == scores["score"].values[0, :, 0].max()
    assert best.make_rows()[0] == "model reference layer score low high p p_max ceiling_low ceiling_high".split()
    assert best.to_json()["best"][1]["ceiling_low"] is None


def test_the_best_pair_of_layers_of_different_models_is_listed():
    grid = xact.compare(make_activations(20), method="mutual_knn")
    best = list_best(grid)
    assert [row["reference"][0] for row in best.rows] == ["B", "A"]
    assert "chance 0.5263" in best.text
