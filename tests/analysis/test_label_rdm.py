"""An RDM of one label: text same or different, numbers by their difference, angles around a circle."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from scipy.spatial.distance import pdist, squareform

from xact.analysis.label_rdm import label_rdm, make_label_rdm, parse_label
from xact.errors import NameNotFoundError, RequestError


def make_labels() -> xr.DataArray:
    coords = {"stimulus": ["a", "b", "c", "d"], "object": ("stimulus", ["cat", "dog", "cat", ""])}
    coords |= {"orientation": ("stimulus", [0.0, 90.0, 350.0, np.nan]), "n": ("stimulus", [1, 5, 2, 2])}
    return xr.DataArray(np.zeros(4), coords, ["stimulus"])


def test_text_is_the_same_or_different():
    found = label_rdm(make_labels()["object"])
    nan = np.nan
    np.testing.assert_array_equal(found.values, [[0, 1, 0, nan], [1, 0, 1, nan], [0, 1, 0, nan], [nan] * 4])
    assert found.dims == ("stimulus", "stimulus_")
    assert found["object_"].values.tolist() == ["cat", "dog", "cat", ""]


def test_numbers_differ_by_their_distance_as_scipy_has_it():
    values = np.random.default_rng(0).normal(size=20)
    np.testing.assert_array_equal(label_rdm(values).values, squareform(pdist(values[:, None], "cityblock")))


@pytest.mark.parametrize("period", [180, 360.0, 1])
def test_a_circle_takes_the_shorter_way(period):
    values = np.random.default_rng(0).uniform(-500, 500, size=20)
    angles = np.exp(2j * np.pi * values / period)
    expected = np.abs(np.angle(angles[:, None] / angles)) * period / (2 * np.pi)
    found = label_rdm(values, period=period).values
    np.testing.assert_allclose(found, expected, atol=1e-9)
    np.testing.assert_array_equal(found, found.T)


def test_a_missing_number_gives_nan():
    found = label_rdm(make_labels()["orientation"], period=360).values
    np.testing.assert_array_equal(found[:3, :3], [[0, 90, 10], [90, 0, 100], [10, 100, 0]])
    assert np.isnan(found[3]).all()
    assert np.isnan(found[:, 3]).all()


def test_a_column_of_pandas_keeps_its_labels():
    table = pd.DataFrame({"condition": ["p", "q", "p"]}, index=pd.Index(["a", "b", "c"], name="stimulus"))
    found = label_rdm(table["condition"])
    assert found["stimulus_"].values.tolist() == ["a", "b", "c"]
    np.testing.assert_array_equal(found.values, [[0, 1, 0], [1, 0, 1], [0, 1, 0]])


def test_a_request_names_a_column_and_a_period():
    assert parse_label("orientation:360") == ("orientation", 360)
    assert parse_label("object") == ("object", None)
    assert parse_label("a:b:0.5") == ("a:b", 0.5)
    assert parse_label("a:5", ["a:5"]) == ("a:5", None)
    assert make_label_rdm(make_labels(), "n").values[0].tolist() == [0, 4, 1, 1]
    assert make_label_rdm(make_labels(), "orientation:360").values[0, 2] == 10


@pytest.mark.parametrize("asked", ["orientation:", "orientation:x", "orientation:-5", "orientation:inf", ":360"])
def test_a_wrong_period_is_refused(asked):
    with pytest.raises(RequestError, match="COLUMN:PERIOD"):
        parse_label(asked)


def test_wrong_labels_are_refused():
    with pytest.raises(NameNotFoundError, match=r"'objekt'.*object"):
        make_label_rdm(make_labels(), "objekt")
    with pytest.raises(RequestError, match="these labels are text"):
        label_rdm(make_labels()["object"], period=360)
    with pytest.raises(RequestError, match="not both"):
        label_rdm(["a", 1])
    with pytest.raises(RequestError, match="dimensions"):
        label_rdm(xr.DataArray(np.zeros((2, 2)), dims=("stimulus", "unit")))
    with pytest.raises(RequestError, match="infinite"):
        label_rdm([1, 2, np.inf])


@pytest.mark.parametrize("period", [None, 1.0])
def test_equal_differences_of_decimal_numbers_are_equal(period):
    values = label_rdm([0.1, 0.2, 0.3, 0.4, 0.7], period).values  # 0.3 - 0.1 is below 0.4 - 0.2 in floating point
    by_hand = np.abs(np.subtract.outer([1, 2, 3, 4, 7], [1, 2, 3, 4, 7]))
    by_hand = by_hand if period is None else np.minimum(by_hand, 10 - by_hand)
    np.testing.assert_array_equal(values, by_hand / 10)


def test_numbers_of_any_size_keep_their_differences():
    for labels in ([1e300, 3e300, 0.0], [1e-300, 3e-300, 0.0], [0.0, 0.0, 0.0], [np.nan, 1e5, 3e5]):
        np.testing.assert_allclose(label_rdm(labels).values, np.abs(np.subtract.outer(labels, labels)), rtol=1e-12)
