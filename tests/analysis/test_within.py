"""Pairs of stimuli that share a label, as a long CSV file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import xact
from xact.analysis.measure import make_measure
from xact.analysis.select import Selection
from xact.analysis.within import plan_pairs, write_pairs
from xact.errors import NameNotFoundError, RequestError


def write(store: Path, output: Path, column: str, **options: object) -> pd.DataFrame:
    chosen = {name: options.pop(name) for name in ("conditions", "where", "models") if name in options}
    given = {name: options.pop(name) for name in ("dtype", "overwrite") if name in options}
    planned = plan_pairs(store, output, column, measure=make_measure(**options), selection=Selection(**chosen), **given)
    written = write_pairs(planned)
    table = pd.read_csv(output, keep_default_na=False, na_values=["NaN"])
    assert len(table) == written.n_pairs == planned.n_pairs
    return table


@pytest.mark.parametrize("options", [{}, {"method": "cosine"}, {"method": "euclidean", "units": "zscore"}])
def test_the_pairs_are_those_of_the_square_matrix(options, small, tmp_path):
    table = write(small, tmp_path / "pairs.csv", "word", dtype="float64", **options)
    rdms = xact.rdm(small, **options)
    assert list(table) == (
        "model layer layer_index depth depth_bin word condition condition_ stimulus stimulus_ dissimilarity".split()
    )
    assert len(table) == 4 * 3 * 3  # layers x words of several stimuli x pairs; a blank is no word
    for line in table.itertuples():
        one = rdms.sel(model=line.model, layer=line.layer, stimulus=line.stimulus, stimulus_=line.stimulus_)
        assert abs(line.dissimilarity - one.item()) < 1e-12
        assert (one.word.item(), one.word_.item()) == (line.word, line.word)
        assert (one.condition.item(), one.condition_.item()) == (line.condition, line.condition_)
        assert (one.depth.item(), one.layer_index.item()) == (line.depth, line.layer_index)
    assert set(table.word) == set("abc")


def test_each_replicate_and_crossed_ones(small, tmp_path):
    each = write(small, tmp_path / "each.csv", "word", replicates="each", models="B")
    assert each.replicate.value_counts().to_dict() == {0: 18, 1: 18}
    crossed = write(small, tmp_path / "cross.csv", "word", replicates="cross", models="B", dtype="float64")
    assert len(crossed) == 2 * 3 * 6  # a stimulus with itself counts
    rdms = xact.rdm(small, replicates="cross", models="B")
    for line in crossed.itertuples():
        one = rdms.sel(model=line.model, layer=line.layer, stimulus=line.stimulus, stimulus_=line.stimulus_)
        assert abs(line.dissimilarity - one.item()) < 1e-12


def test_within_conditions_and_chosen_stimuli(small, tmp_path):
    table = write(small, tmp_path / "pairs.csv", "condition", where="rating > 3", models="A")
    assert "condition_" not in table
    assert table.groupby("condition").size().to_dict() == {"a": 2, "b": 2 * 10}


def test_a_group_wider_than_a_tile_is_whole(small, tmp_path, monkeypatch):
    wanted = write(small, tmp_path / "one.csv", "condition")
    monkeypatch.setattr("xact.analysis.gram.TILES", (2, 2))
    found = write(small, tmp_path / "two.csv", "condition")
    assert np.abs(found.dissimilarity - wanted.dissimilarity).max() < 1e-6
    assert found.drop(columns="dissimilarity").equals(wanted.drop(columns="dissimilarity"))


def test_what_cannot_be_written_is_refused_in_one_line(small, tmp_path):
    with pytest.raises(RequestError, match=r"are a CSV file, found --output 'pairs.zarr'"):
        write(small, tmp_path / "pairs.zarr", "word")
    with pytest.raises(RequestError, match="have no crossnobis"):
        write(small, tmp_path / "pairs.csv", "word", method="crossnobis")
    with pytest.raises(NameNotFoundError, match=r"the stimuli have no label 'wrd' \(nearest: word\)"):
        write(small, tmp_path / "pairs.csv", "wrd")
    with pytest.raises(RequestError, match="no two of the chosen stimuli share their 'stem'"):
        write(small, tmp_path / "pairs.csv", "stem")
    write(small, tmp_path / "pairs.csv", "word")
    with pytest.raises(RequestError, match=r"pairs.csv' exists already"):
        write(small, tmp_path / "pairs.csv", "word")
    write(small, tmp_path / "pairs.csv", "word", overwrite=True)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["in", "pairs.csv"]
