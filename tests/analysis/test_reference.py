"""References and their rows."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from support.analysis import make_activations, make_subjects

from xact.analysis.pairs import make_square, take_pairs
from xact.analysis.reference import Reference, cut_in_half, make_label_reference, open_references, restrict
from xact.analysis.references.open_rdms import open_rdms
from xact.errors import RequestError

SQUARE = make_square(np.arange(1.0, 29), 8)


@pytest.fixture
def reference() -> Reference:
    return Reference("r", ("x", "y"), np.arange(2, 10), np.stack([take_pairs(SQUARE), take_pairs(SQUARE) + 1]))


def test_a_part_of_the_stimuli(reference):
    part = restrict(reference, np.array([0, 3, 5, 9]))
    assert part.rows.tolist() == [3, 5, 9]
    np.testing.assert_array_equal(part.pairs[0], take_pairs(SQUARE[np.ix_([1, 3, 7], [1, 3, 7])]))
    assert restrict(reference, np.arange(20)) is reference


def test_halves_share_no_stimulus_and_depend_on_the_seed(reference):
    first, second = cut_in_half(reference, 0)
    assert sorted([*first.rows, *second.rows]) == list(range(2, 10))
    assert (first.half, second.half) == (1, 2)
    assert cut_in_half(reference, 1)[0].rows.tolist() != first.rows.tolist()


def test_a_stimulus_without_a_value_is_left_out_and_said():
    acts = make_activations()
    stimuli = xr.Dataset(coords={"stimulus": acts["stimulus"].values, "rating": acts["rating"]})
    stimuli["rating"].values[3] = np.nan
    notes: list[str] = []
    found = make_label_reference("rating", stimuli, notes=notes)
    assert found.rows.tolist() == [0, 1, 2, *range(4, 16)]
    assert notes == ["reference 'rating' has no value for 1 of 16 stimuli; they are left out"]


def test_a_file_is_named_by_its_stem_and_keeps_its_subjects(tmp_path):
    acts = make_activations()
    it = make_subjects(acts)
    it.to_netcdf(tmp_path / "area it.nc", engine="h5netcdf")
    stimuli = acts.coords.to_dataset()[["stimulus", "stem"]]
    (found,) = open_references([tmp_path / "area it.nc"], None, stimuli, key="stimulus", order=None, notes=[])
    assert (found.name, found.subjects) == ("area it", ("sub0", "sub1", "sub2", "sub3"))
    np.testing.assert_array_equal(found.pairs[1], take_pairs(it.values[1]))


def test_a_reference_without_labels_demands_an_order():
    acts = make_activations()
    bare = xr.DataArray(make_subjects(acts).values, dims=("rdm", "stimulus", "stimulus_"))
    stimuli = acts.coords.to_dataset()[["stimulus"]]
    with pytest.raises(RequestError, match="no label 'stimulus' of its stimuli") as caught:
        open_references(bare, None, stimuli, key="stimulus", order=None, notes=[])
    assert "--order store" in caught.value.hint
    (found,) = open_references(bare, None, stimuli, key="stimulus", order="store", notes=[])
    assert found.rows.tolist() == list(range(16))


def test_an_array_is_checked_as_a_file_is():
    acts = make_activations()
    it = make_subjects(acts)
    stimuli = acts.coords.to_dataset()[["stimulus"]]
    it.values[1, 2, 5] += 0.1
    with pytest.raises(RequestError, match="reference 'it': the RDM is not symmetric"):
        open_references(it, None, stimuli, key="stimulus", order=None, notes=[])
    with pytest.raises(RequestError, match="a diagonal of ones: these look like similarities"):
        open_references(1 - make_subjects(acts), None, stimuli, key="stimulus", order=None, notes=[])


def test_an_opened_file_has_the_name_that_its_path_has(tmp_path):
    acts = make_activations()
    make_subjects(acts).to_netcdf(tmp_path / "it.nc", engine="h5netcdf")
    stimuli = acts.coords.to_dataset()[["stimulus"]]
    opened = open_rdms(tmp_path / "it.nc")
    assert open_references(opened, None, stimuli, key="stimulus", order=None, notes=[])[0].name == "it"
