"""Which labels become coordinates, the order in which stimuli are read, and the provenance."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.lab import make_entry, write_lab
from support.pictures import write_pictures

import xact
from xact.errors import NameNotFoundError, RequestError, StoreError
from xact.reading.labels import LONG_LABELS, parse_lists


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    """A store of two conditions to which a picture of the first one was added."""
    folder = tmp_path_factory.mktemp("labels")
    recipe = write_lab(folder, make_entry("one"))
    xact.build(recipe, allow_code=True)
    write_pictures(folder / "stimuli" / "a", 5, seed=1, size=(24, 20))
    xact.build(recipe, allow_code=True)
    return folder / "store.zarr"


OPENED = {
    "activations": lambda store, **more: xact.open_activations(store, **more),
    "layer": lambda store, **more: xact.open_layer(store, "one", "0", **more),
    "map": lambda store, **more: xact.open_map(store, "one", "0", **more),
}


@pytest.mark.parametrize("kind", OPENED)
def test_labels_that_few_look_at_come_last_or_not_at_all(store, kind):
    names = [str(name) for name in OPENED[kind](store).coords]
    stored = set(xact.load_stimuli(store).columns) | set(xact.load_layers(store).columns)
    assert stored <= set(names)  # the contract: every label is a coordinate
    seen = [name for name in names if name in stored]
    assert [name in LONG_LABELS for name in seen] == sorted(name in LONG_LABELS for name in seen)
    short = [str(name) for name in OPENED[kind](store, labels="short").coords]
    assert short == [name for name in names if name not in LONG_LABELS]
    assert {"condition", "stem", "depth", "n_units", "jitter_dx"} <= set(short)
    with pytest.raises(RequestError, match="labels: 'all' or 'short' is wanted, found 'shrt'"):
        OPENED[kind](store, labels="shrt")


@pytest.mark.parametrize("kind", OPENED)
def test_stimuli_that_were_added_are_read_among_those_of_their_condition(store, kind):
    held, read = OPENED[kind](store), OPENED[kind](store, sort="condition")
    assert held.condition.values.tolist() == ["a"] * 4 + ["b"] * 3 + ["a"]
    assert read.condition.values.tolist() == ["a"] * 5 + ["b"] * 3
    assert read.stimulus.values[4] == held.stimulus.values[-1]
    np.testing.assert_array_equal(read.values, held.sel(stimulus=read.stimulus.values).values)
    assert read.attrs == held.attrs
    last = OPENED[kind](store, sort="stimulus_index")
    assert last.stimulus.values.tolist() == held.stimulus.values.tolist()
    with pytest.raises(NameNotFoundError, match="no label 'conditon'"):
        OPENED[kind](store, sort="conditon")


def test_the_axes_of_units_are_lists(store):
    layers = xact.load_layers(store)
    assert layers["unit_axes"].tolist() == [["channel"], ["channel"]]
    assert layers["unit_shape"].tolist() == [[4], [6]]


def test_the_provenance_is_a_dictionary(store, tmp_path):
    told = xact.load_provenance(store)
    assert told["generation"] == 2
    assert told["recipe"]["replicates"]["count"] == 2
    assert set(told["versions"]["one"]) == {"torch", "torchvision", "pillow", "numpy"}
    assert told["models"]["one"]["segments"] == [0, 7]
    with pytest.raises(StoreError, match="there is no xact store"):
        xact.load_provenance(tmp_path)


def test_the_module_shows_its_own_names_alone():
    code = "import xact; print(*dir(xact)); xact.errors.XactError"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert set(done.stdout.split()) == {*xact.__all__, "errors", "plot", "__version__"}


def test_a_label_that_is_no_list_is_an_error():
    with pytest.raises(StoreError, match="is not a list in JSON"):
        parse_lists(np.array(["[1]", "[1"]))
