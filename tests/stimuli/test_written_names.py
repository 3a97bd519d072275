"""Names that a person wrote mean the names on disk and the labels that differ from them in their form only."""

from __future__ import annotations

import math
import unicodedata
from pathlib import Path

import pytest
from support.pictures import put_pictures

from xact.errors import RequestError
from xact.recipe.stimuli_schema import FolderStimuli, Hdf5Stimuli, TableStimuli
from xact.stimuli.base import ChosenStimuli
from xact.stimuli.files_on_disk import resolve_path
from xact.stimuli.open import open_stimuli
from xact.stimuli.written_names import pair_names, write_path

NFC = unicodedata.normalize("NFC", "café")
NFD = unicodedata.normalize("NFD", "café")
FORMS = [(NFC, NFD), (NFD, NFC)]


def open_folder(folder: Path, **keys: object) -> ChosenStimuli:
    return open_stimuli(FolderStimuli(source="folder", **keys), folder)


def open_table(folder: Path, **keys: object) -> ChosenStimuli:
    return open_stimuli(TableStimuli(source="table", file="t.csv", **keys), folder)


def write_table(folder: Path, text: str) -> None:
    (folder / "t.csv").write_bytes(text.encode())


@pytest.mark.parametrize(("written", "on_disk"), FORMS)
def test_folders_are_found_in_another_unicode_form_and_keep_the_name_as_written(written, on_disk, tmp_path):
    put_pictures(tmp_path, f"{on_disk}/{on_disk}/a.png")
    source = open_folder(tmp_path, root=written, folders=[written])
    assert source.table.ids == [f"{written}/a"]
    assert source.table.conditions == [written]
    assert source.table.files == [f"{on_disk}/a.png"]
    assert source.read(0) == (tmp_path / on_disk / on_disk / "a.png").read_bytes()
    assert open_folder(tmp_path, root=on_disk, folders={"x": written}).table.ids == ["x/a"]


@pytest.mark.parametrize(("written", "on_disk"), FORMS)
def test_globs_match_names_in_another_unicode_form(written, on_disk, tmp_path):
    put_pictures(tmp_path, f"{on_disk} 1/{on_disk}.png")
    assert open_folder(tmp_path, folders=[f"{written}*/"], pattern=f"{written}*").table.stems == [on_disk]


@pytest.mark.parametrize(("written", "on_disk"), FORMS)
def test_paths_of_a_table_are_found_in_another_unicode_form_and_stay_as_written(written, on_disk, tmp_path):
    put_pictures(tmp_path, f"s/{on_disk}/{on_disk}.png")
    write_table(tmp_path, f"path,n\n{written}/{written}.png,1\n")
    source = open_table(tmp_path, root="s")
    assert source.table.ids == [f"{written}/{written}"]
    assert source.table.stems == [written]
    assert source.table.files == [f"{on_disk}/{on_disk}.png"]
    assert source.read(0) == (tmp_path / "s" / on_disk / f"{on_disk}.png").read_bytes()


@pytest.mark.parametrize(("written", "on_disk"), FORMS)
def test_columns_and_where_compare_in_one_unicode_form(written, on_disk, tmp_path):
    put_pictures(tmp_path, f"{on_disk}.png", "b.png")
    write_table(tmp_path, f"stem,n,{on_disk}\n{written},1,{on_disk}\nb,2,x\n")
    table = open_folder(tmp_path, columns="t.csv", where=f"column['{written}'] == '{written}'").table
    assert table.ids == [on_disk]
    assert table.columns == {"n": [1], on_disk: [on_disk]}
    assert open_folder(tmp_path, where=f"stem in ['{written}']").table.ids == [on_disk]
    assert open_folder(tmp_path, where=f"stem != '{written}'").table.ids == ["b"]


def test_the_same_text_comes_first_and_two_other_forms_are_refused(tmp_path):
    both = [f"{NFC}-{NFD}", f"{NFD}-{NFC}"]
    put_pictures(tmp_path, *(f"{name}.png" for name in both))
    for name in both:
        write_table(tmp_path, f"path\n{name}.png\n")
        assert open_table(tmp_path).table.files == [f"{name}.png"]
    write_table(tmp_path, f"path\n{NFC}-{NFC}.png\n")
    with pytest.raises(RequestError, match=r"means 2 names in .*, which differ in their Unicode form only"):
        open_table(tmp_path)


def test_what_is_in_no_form_on_disk_is_told_as_written(tmp_path):
    put_pictures(tmp_path, f"{NFD}/a.png")
    write_table(tmp_path, f"path\n{NFC}/b.png\n")
    with pytest.raises(RequestError, match=r"1 of the 1 files of .* do not exist"):
        open_table(tmp_path)
    assert resolve_path(f"{NFC}/b.png", tmp_path) == tmp_path / NFD / "b.png"


def test_backslashes_are_slashes_unless_a_name_has_one(tmp_path):
    put_pictures(tmp_path, "s/sub/a.png", "s/c\\d.png", f"s/{NFD}/e.png")
    write_table(tmp_path, f"path\nsub\\a.png\nc\\d.png\n.\\sub\\..\\{NFC}\\e.png\n")
    table = open_table(tmp_path, root="s").table
    assert table.ids == ["sub/a", "c\\d", f"{NFC}/e"]
    assert table.stems == ["a", "c\\d", "e"]
    assert table.files == ["sub/a.png", "c\\d.png", f"{NFD}/e.png"]
    assert open_folder(tmp_path, root=".\\s", folders=["..\\s\\sub"]).table.ids == ["sub/a"]
    assert write_path("x\\y", tmp_path) == tmp_path / "x/y"


def test_files_of_a_recipe_are_found_in_another_form(tmp_path):
    put_pictures(tmp_path, "a.png")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / f"{NFD}.csv").write_text("stem,n\na,1\n")
    assert open_folder(tmp_path, columns=f"d\\{NFC}.csv").table.columns == {"n": [1]}
    (tmp_path / f"{NFD}.h5").write_bytes(b"no HDF5")
    with pytest.raises(RequestError, match="cannot be read as HDF5"):
        open_stimuli(Hdf5Stimuli(source="hdf5", file=f"{NFC}.h5", dataset="x"), tmp_path)


@pytest.mark.parametrize(
    ("key", "cells"),
    [
        ("stem", ["a.png", "b.v2.jpg"]),
        ("stem", ["a", "b.v2.jpg"]),
        ("stimulus", ["x/a.png", "y/b.v2.jpg"]),
        ("stimulus", ["x\\a.png", "y\\b.v2"]),
    ],
)
def test_names_in_a_table_of_labels_may_have_their_extension(key, cells, tmp_path):
    put_pictures(tmp_path, "x/a.png", "y/b.v2.jpg")
    write_table(tmp_path, f"{key},rating\n{cells[0]},NA\n{cells[1]},2\n")
    source = open_folder(tmp_path, folders=["*/"], pattern=["*.png", "*.jpg"], columns="t.csv")
    assert source.table.stems == ["a", "b.v2"]
    assert math.isnan(source.table.columns["rating"][0])
    assert source.table.columns["rating"][1] == 2.0
    assert source.notes == []


def test_a_name_of_two_labels_and_two_names_of_one_label_are_refused():
    files = ["a.png", "a.png.png"]
    assert pair_names(["a.png", "a"], ["a", "a.png"], files, what="stem", where="T") == {"a.png": 0, "a": 1}
    with pytest.raises(RequestError, match=r"the stem 'a' stands twice in T: as 'a' and as 'a.png'"):
        pair_names(["a", "a.png"], ["a"], files[:1], what="stem", where="T")
    with pytest.raises(RequestError, match=r"the stem '.*' of T could be '.*u0301.*' or '.*u0301.*'"):
        pair_names([NFC * 2], [NFC + NFD, NFD + NFC], ["a.png"] * 2, what="stem", where="T")
    assert pair_names(["b.jpg"], ["b"], ["b.png"], what="stem", where="T") == {}


@pytest.mark.parametrize("written", ["A.png", "a.PNG", "a.png "])
def test_a_name_that_differs_in_case_or_blanks_is_told_and_not_taken(written, tmp_path):
    put_pictures(tmp_path, "s/a.png")
    write_table(tmp_path, f"path,id\n{written},x\n")
    with pytest.raises(RequestError, match=r"the stimulus 'x' \(there is 'a.png'\)"):
        open_table(tmp_path, root="s")
