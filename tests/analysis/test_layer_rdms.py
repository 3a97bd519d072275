"""RDMs of layers as a stream, and arrays that are none."""

from __future__ import annotations

import json

import numpy as np
import pytest
from support.analysis import make_activations, make_squares
from support.cli import run
from support.stores import draw_values, make_model, make_store_plan, make_table, write_store

import xact
from xact.analysis.layer_rdms import open_layer_rdms
from xact.errors import RequestError

ACTS = make_activations()
RDMS = xact.rdm(ACTS)


@pytest.mark.parametrize("source", [ACTS, RDMS], ids=["activations", "rdms"])
def test_the_layers_of_each_model_stream_by(source):
    opened = open_layer_rdms(source)
    places = [(model, layer) for model, layer, _ in opened.stream(0)]
    assert places == [(model, f"l{k}") for model in "AB" for k in range(3)]
    for (_, _, square), expected in zip(opened.stream(4), make_squares(ACTS).reshape(6, 16, 16)[4:], strict=True):
        np.testing.assert_allclose(square, expected, rtol=0, atol=1e-12)
    assert list(opened.stimuli["object"].values[:2]) == ["o0", "o1"]
    assert opened.labels["depth"].shape == (2, 3)


def test_an_rdm_store_gives_what_its_store_gives(tmp_path, capsys):
    models = [make_model("a", {"x": [700], "y": [16]}), make_model("b", {"x": [40]})]
    plan = make_store_plan(models, make_table(14), layout="cube")
    write_store(tmp_path / "s.zarr", plan, draw_values)
    code, _, err = run(capsys, "rdm", tmp_path / "s.zarr", "--output", tmp_path / "r.zarr", "--dtype", "float64")
    assert code == 0, err
    ours, theirs = open_layer_rdms(tmp_path / "r.zarr"), open_layer_rdms(tmp_path / "s.zarr")
    assert [*ours.stimuli["condition"].values] == [*theirs.stimuli["condition"].values]
    for (model, layer, square), (model_, layer_, expected) in zip(ours.stream(0), theirs.stream(0), strict=True):
        assert (model, layer) == (model_, layer_)
        np.testing.assert_array_equal(square, expected)
    grid, other = xact.compare(tmp_path / "r.zarr"), xact.compare(tmp_path / "s.zarr")
    np.testing.assert_array_equal(grid["score"], other["score"])
    np.testing.assert_array_equal(grid["position"], other["position"])


@pytest.mark.filterwarnings("ignore:Object at dissimilarity")
def test_a_damaged_rdm_store_is_refused_in_one_line(tmp_path, capsys):
    plan = make_store_plan([make_model("a", {"x": [700]})], make_table(14), layout="cube")
    write_store(tmp_path / "s.zarr", plan, draw_values)
    run(capsys, "rdm", tmp_path / "s.zarr", "--output", tmp_path / "r.zarr")
    file = tmp_path / "r.zarr" / "dissimilarity" / "zarr.json"
    document = json.loads(file.read_text())
    document["codecs"].append({"name": "numcodecs.pickle"})
    file.write_text(json.dumps(document))
    with pytest.raises(RequestError, match=r"names the codec 'numcodecs\.pickle'"):
        xact.compare(tmp_path / "r.zarr")
    file.unlink()
    with pytest.raises(RequestError, match="no `dissimilarity`"):
        xact.compare(tmp_path / "r.zarr")


def test_an_array_of_one_layer_has_its_labels():
    opened = open_layer_rdms(RDMS.isel(model=1, layer=2))
    assert (opened.models, opened.layers) == (["B"], ["l2"])
    assert opened.labels["depth"].values.tolist() == [[1.0]]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda one: one.isel(stimulus_=0), r"wanted are RDMs \(model, layer, stimulus, stimulus_\)"),
        (lambda one: one.expand_dims(replicate=2), "the RDMs have the dimension 'replicate' too"),
        (lambda one: one.isel(stimulus=slice(0, 5)), "not square: 5 stimuli by 16"),
        (lambda one: one.isel(stimulus=slice(None, None, -1)), "hold different stimuli"),
        (lambda one: one.isel(stimulus=slice(0, 2), stimulus_=slice(0, 2)), "has 2 stimuli to compare"),
    ],
)
def test_an_array_that_is_not_one_rdm_a_layer_is_refused(change, said):
    with pytest.raises(RequestError, match=said) as caught:
        open_layer_rdms(change(RDMS))
    assert caught.value.hint


def test_an_asymmetric_rdm_and_similarities_are_refused():
    lopsided = RDMS.copy(deep=True)
    lopsided.values[0, 1, 2, 5] += 1e-3
    with pytest.raises(RequestError, match="model 'A', layer 'l1': the RDM is not symmetric"):
        list(open_layer_rdms(lopsided).stream(0))
    with pytest.raises(RequestError, match=r"a diagonal of ones: these look like similarities"):
        list(open_layer_rdms(1 - RDMS).stream(0))
