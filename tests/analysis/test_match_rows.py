"""Rows of a reference are found by label, never by place, unless the user says so."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from xact.analysis.match_rows import match_rows
from xact.errors import NameNotFoundError, NoStoreError, RequestError

IDS = ["plain/cat", "plain/dog", "plain/été", "leaves/cow", "leaves/7"]


def make_stimuli(**columns: list[object]) -> xr.Dataset:
    stems = [name.split("/")[1] for name in IDS]
    named = {"stimulus": IDS, "stem": stems, "nsd": [73, 12, 5, 99, 1], **columns}
    return xr.Dataset(coords={name: ("stimulus", cells) for name, cells in named.items()})


def make_reference(labels: list[object] | None, n: int | None = None, **columns: list[object]) -> xr.DataArray:
    n = len(labels) if labels is not None else n
    coords = {} if labels is None else {"stimulus": labels}
    coords |= {name: ("stimulus", cells) for name, cells in columns.items()}
    return xr.DataArray(
        np.zeros((1, n, n)), coords, ("rdm", "stimulus", "stimulus_"), attrs={"reference": "it_rdms.h5"}
    )


def test_permuted_rows_are_found_by_their_labels():
    order = np.array([3, 0, 4, 2, 1])
    rows, places = match_rows(make_reference([IDS[i] for i in order]), make_stimuli())
    assert rows.tolist() == [0, 1, 2, 3, 4]
    assert order[places].tolist() == [0, 1, 2, 3, 4]


def test_a_permuted_rdm_of_a_model_equals_the_model():
    values = np.random.default_rng(0).random((5, 5))
    order = np.array([3, 0, 4, 2, 1])
    rows, places = match_rows(make_reference([IDS[i] for i in order]), make_stimuli())
    permuted = values[np.ix_(order, order)]
    np.testing.assert_array_equal(permuted[np.ix_(places, places)], values[np.ix_(rows, rows)])


@pytest.mark.parametrize(
    ("key", "labels"),
    [
        ("stimulus", IDS[:3]),
        ("stem", ["cat", "dog", "e\u0301te\u0301"]),
        ("nsd", ["73", "12", "5"]),
        ("nsd", [73.0, 12.0, 5.0]),
        ("nsd", [73, 12, 5]),
    ],
)
def test_a_subset_is_found_by_any_key_and_is_said(key, labels):
    notes: list[str] = []
    rows, places = match_rows(make_reference(labels[::-1]), make_stimuli(), key=key, notes=notes)
    assert (rows.tolist(), places.tolist()) == ([0, 1, 2], [2, 1, 0])
    assert notes == ["it_rdms.h5 has 3 of the 5 stimuli; the others are left out"]


def test_the_reference_may_have_the_key_itself():
    reference = make_reference(list("abcde"), nsd=[1, 99, 5, 12, 73])
    assert match_rows(reference, make_stimuli(), key="nsd")[1].tolist() == [4, 3, 2, 1, 0]


def test_order_pairs_rows_by_place_only_where_it_is_asked(tmp_path):
    with pytest.raises(RequestError, match="has no label 'stimulus'") as caught:
        match_rows(make_reference(None, 5), make_stimuli())
    assert "--order store" in caught.value.hint
    assert match_rows(make_reference(None, 5), make_stimuli(), order="store")[1].tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(RequestError, match=r"it_rdms.h5 has 4 rows, but there are 5 stimuli"):
        match_rows(make_reference(None, 4), make_stimuli(), order="store")
    (tmp_path / "ids.txt").write_text("\n".join(IDS[::-1]) + "\n\n", encoding="utf-8")
    assert match_rows(make_reference(None, 5), make_stimuli(), order=tmp_path / "ids.txt")[1].tolist() == [
        4,
        3,
        2,
        1,
        0,
    ]
    with pytest.raises(RequestError, match=r"ids.txt has 5 lines, but it_rdms.h5 has 4 rows"):
        match_rows(make_reference(None, 4), make_stimuli(), order=tmp_path / "ids.txt")
    with pytest.raises(NoStoreError, match="there is no file"):
        match_rows(make_reference(None, 4), make_stimuli(), order=tmp_path / "none.txt")


@pytest.mark.parametrize(
    ("labels", "words", "hint"),
    [
        ([*IDS[:3], "x", "y", "z", "w"], "4 of its 7 labels ('x', 'y', 'z', …) are not among the 5 stimuli", "--key"),
        (["cat", "dog", "cow"], "3 of its 3 labels ('cat', 'dog', 'cow') are not among", "--key stem finds all"),
        ([IDS[0], IDS[1], IDS[1], IDS[0], IDS[2]], "2 of its 5 labels appear twice: 'plain/cat', 'plain/dog'", ""),
        ([IDS[0], "", IDS[1], ""], "2 of its 4 rows have no label, such as row 2, 4", ""),
        (IDS[:2], "has 2 stimuli; a comparison needs at least 3", ""),
    ],
)
def test_labels_that_do_not_pair_are_refused_with_counts_and_examples(labels, words, hint):
    with pytest.raises(RequestError) as caught:
        match_rows(make_reference(labels), make_stimuli())
    assert str(caught.value).startswith("it_rdms.h5")
    assert words in str(caught.value)
    assert hint in (caught.value.hint or "")


def test_a_key_that_does_not_tell_the_stimuli_apart_is_refused():
    with pytest.raises(RequestError, match=r"1 of its 3 labels \('a'\) are those of several stimuli by 'object'"):
        match_rows(make_reference(["a", "b", "c"]), make_stimuli(object=list("aabcd")), key="object")


def test_an_unknown_key_is_refused_with_the_nearest():
    with pytest.raises(NameNotFoundError, match=r"'stemm'.*stem"):
        match_rows(make_reference(IDS), make_stimuli(), key="stemm")


def test_two_labels_of_a_reference_are_named():
    reference = make_reference(None, 5, conds=IDS, names=IDS)
    with pytest.raises(RequestError) as caught:
        match_rows(reference, make_stimuli())
    assert "it has conds, names" in caught.value.hint


@pytest.mark.parametrize("order", ["store", "ids.txt"])
def test_an_order_that_contradicts_the_labels_of_a_reference_is_refused(tmp_path, order):
    (tmp_path / "ids.txt").write_text("\n".join(IDS) + "\n", encoding="utf-8")
    asked = order if order == "store" else tmp_path / order
    with pytest.raises(RequestError, match="its row 1 is 'leaves/7', --order says 'plain/cat'") as caught:
        match_rows(make_reference(IDS[::-1]), make_stimuli(), order=asked)
    assert "leave --order out" in caught.value.hint
    for labels in (IDS, ["of", "another", "data", "set", "5"]):  # the same order, or names that are no labels here
        assert match_rows(make_reference(labels), make_stimuli(), order=asked)[1].tolist() == [0, 1, 2, 3, 4]
