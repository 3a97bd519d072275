"""What each source lists, in which order and under which labels, and what it refuses before any network loads."""

from __future__ import annotations

import hashlib
import math
import os
import socket
import threading
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from support.files import write_hdf5
from support.pictures import put_pictures

from xact.errors import RequestError, StimulusError
from xact.labels import StimulusTable
from xact.recipe.stimuli_schema import FolderStimuli, Hdf5Stimuli, NpyStimuli, TableStimuli
from xact.stimuli.base import StimulusSource, check_table, hash_stimulus
from xact.stimuli.files_on_disk import MAX_FILE_NBYTES, find_stores
from xact.stimuli.open import open_stimuli
from xact.stimuli.sources.folder import _glob


def open_folder(tmp_path: Path, **keys: object) -> StimulusSource:
    return open_stimuli(FolderStimuli(source="folder", **keys), tmp_path)


def open_table(tmp_path: Path, **keys: object) -> StimulusSource:
    return open_stimuli(TableStimuli(source="table", **{"file": "t.csv", **keys}), tmp_path)


def write_table(tmp_path: Path, text: str, name: str = "t.csv") -> None:
    (tmp_path / name).write_bytes(text.encode("utf-8"))


def make_table(**fields: object) -> StimulusTable:
    ids = fields.pop("ids", ["a", "b"])
    n = len(ids)
    plain = {"conditions": ["all"] * n, "stems": list(ids), "files": [f"{i}.png" for i in range(n)]}
    return StimulusTable(ids=ids, **{**plain, **fields})


# folders


def test_one_root_folder_gives_ids_without_a_prefix_and_the_condition_root(tmp_path):
    put_pictures(tmp_path, "s/b.png", "s/a.png", "s/deep/c.png", "s/.hidden.png", "s/d.jpg")
    source = open_folder(tmp_path, root="s")
    assert source.table == StimulusTable(
        ids=["a", "b"], conditions=["root"] * 2, stems=["a", "b"], files=["a.png", "b.png"], columns={}
    )
    assert source.location == str(tmp_path / "s")


def test_folders_give_rows_by_condition_and_name_whatever_the_order_of_the_recipe(tmp_path):
    put_pictures(tmp_path, "rot/b.png", "rot/a10.png", "rot/a2.png", "confound/leaves/a2.png")
    table = open_folder(tmp_path, folders=["rot", "confound/leaves"]).table
    assert table.ids == ["confound/leaves/a2", "rot/a10", "rot/a2", "rot/b"]
    assert table.conditions == ["confound/leaves", "rot", "rot", "rot"]
    assert table.stems == ["a2", "a10", "a2", "b"]
    assert table.files == ["confound/leaves/a2.png", "rot/a10.png", "rot/a2.png", "rot/b.png"]


def test_reading_gives_the_bytes_of_the_row(tmp_path):
    put_pictures(tmp_path, "x/b.png", "x/a.png", "y/a.png")
    source = open_folder(tmp_path, folders=["*/"])
    for row, file in enumerate(["x/a.png", "x/b.png", "y/a.png"]):
        data = (tmp_path / file).read_bytes()
        assert source.read(row) == data
        stamp = source.stamp(row)
        assert (stamp.nbytes, stamp.mtime_ns) == (len(data), (tmp_path / file).stat().st_mtime_ns)
    source.close()


@pytest.mark.parametrize(
    ("folders", "ids", "reason"),
    [
        (["."], ["top"], "the default"),
        (["./"], ["top"], "the same folder, spelled otherwise"),
        (["x/.."], ["top"], "folded before it is compared"),
        (["x"], ["x/a"], "one folder that is not '.' keeps its prefix"),
        (["./x//"], ["x/a"], "the condition is normalised"),
        ([".", "x"], ["root/top", "x/a"], "with a second folder '.' is 'root' in the ids too"),
        (["*/"], ["x/a", "y/a"], "every sub-folder, but no hidden one"),
        (["[x]"], ["x/a"], "a glob of one"),
        (["*", "y/deep"], ["x/a", "y/a", "y/deep/a"], "a glob beside a name"),
        (["**/deep"], ["y/deep/a"], "a deep glob"),
        (["**/"], ["root/top", "x/a", "y/a", "y/deep/a"], "every folder that holds a match"),
        ("**/", ["root/top", "x/a", "y/a", "y/deep/a"], "one glob as a text"),
        ("x", ["x/a"], "one folder as a text"),
        (["y/**"], ["y/a", "y/deep/a"], "every one below a folder, and itself"),
        ({"left": "x", "right": "y"}, ["left/a", "right/a"], "the mapping's keys are the conditions"),
        ({"all": "."}, ["all/top"], "a mapping always gives a prefix"),
    ],
)
def test_folders_become_conditions(tmp_path, folders, ids, reason):
    put_pictures(tmp_path, "s/top.png", "s/x/a.png", "s/y/a.png", "s/y/deep/a.png", "s/.git/a.png")
    assert open_folder(tmp_path, root="s", folders=folders).table.ids == ids, reason


def test_two_stars_leave_out_folders_without_a_match_and_keep_the_prefix(tmp_path):
    put_pictures(tmp_path, "s/top.png", "s/x/y/z.txt", "s/.git/a.png", "s/out.zarr/a.png")
    assert open_folder(tmp_path, root="s", folders="**/").table.ids == ["root/top"]
    with pytest.raises(RequestError, match=r"no folder under '.*s/x' holds a file that matches '\*.png'"):
        open_folder(tmp_path, root="s/x", folders="**/")
    with pytest.raises(RequestError, match=r"no file in '.*s/x' matches"):
        open_folder(tmp_path, root="s", folders=["*/"])


@pytest.mark.parametrize(
    ("files", "keys", "hint"),
    [
        (["x/a.png", "y/b.png"], {}, 'its folders hold such files: stimuli.folders: ["*/"]'),
        (["x/a.png", "y/d/b.png"], {}, 'its folders hold such files: stimuli.folders: ["**/"]'),
        (["x/d/a.png"], {"folders": ["x"]}, 'its folders hold such files: stimuli.folders: ["x/*/"]'),
        (["x/d/a.png", "y/a.png"], {"folders": ["*/"]}, 'its folders hold such files: stimuli.folders: ["**/"]'),
        (["x/a.jpg"], {}, "set stimuli.pattern, for example '*.jpg', or name only the folders that hold stimuli"),
        (["x.zarr/a.png", "__MACOSX/a.png"], {}, "set stimuli.pattern, for example '*.jpg', or name only the folders"),
    ],
)
def test_the_hint_for_a_folder_without_a_match_says_where_the_pictures_are(tmp_path, files, keys, hint):
    put_pictures(tmp_path, *files)
    with pytest.raises(RequestError, match="no file in") as caught:
        open_folder(tmp_path, **keys)
    assert caught.value.hint.startswith(hint)


def test_other_pictures_beside_the_pattern_are_counted_in_a_note(tmp_path):
    put_pictures(tmp_path, "intact/a.png", "intact/b.jpg", "intact/.c.jpg", "intact/Thumbs.db", "intact/t.csv")
    put_pictures(tmp_path, "x/a.png", "x/a.TIF", "x/b.jpg", "x/d/c.jpg", "y/a.png", "__MACOSX/._a.png")
    notes = open_folder(tmp_path, folders=["intact"]).notes
    assert notes == ["1 .jpg in intact is not in the pattern (*.png)"]
    assert open_folder(tmp_path, folders=["*/"]).notes == [
        "2 .jpg in 2 folders (intact, x) are not in the pattern (*.png)",
        "1 .tif in x is not in the pattern (*.png)",
    ]
    assert open_folder(tmp_path, folders=["x"], pattern="**/*.png").notes[0].startswith("2 .jpg in x are not")
    assert open_folder(tmp_path, folders=["**/"], limit=1).notes[0].startswith("3 .jpg in 3 folders (intact, x, x/d)")
    assert open_folder(tmp_path, folders=["intact"], pattern=["*.png", "*.jpg"]).notes == []


def test_what_other_programs_leave_beside_pictures_is_never_a_stimulus(tmp_path):
    put_pictures(tmp_path, "x/a.png", "x/.DS_Store", "x/._a.png", "x/Thumbs.db", "x/desktop.ini")
    put_pictures(tmp_path, "__MACOSX/x/b.png", "__MACOSX/b.png", "x/__MACOSX/b.png")
    assert open_folder(tmp_path, folders=["*/"], pattern="*").table.ids == ["x/a"]
    assert open_folder(tmp_path, folders=["**/"]).table.ids == ["x/a"]
    assert open_folder(tmp_path, pattern="**/*").table.ids == ["x/a"]


def test_a_folder_whose_name_looks_like_a_glob_is_that_folder(tmp_path):
    put_pictures(tmp_path, "a[1]/x.png", "a1/x.png")
    assert open_folder(tmp_path, folders=["a[1]"]).table.ids == ["a[1]/x"]


def test_a_root_whose_name_looks_like_a_glob_is_that_root(tmp_path):
    put_pictures(tmp_path, "s[1]/x/a.png", "s1/y/a.png")
    assert open_folder(tmp_path, root="s[1]", folders=["*/"]).table.ids == ["x/a"]


def test_globs_may_be_absolute_or_lead_out_of_the_root(tmp_path):
    put_pictures(tmp_path, "s/a.png", "far/x/a.png", "far/y/a.png")
    for item in ("../far/*", str(tmp_path / "far/*/")):
        source = open_folder(tmp_path, root="s", folders=[item])
        assert source.table.ids == ["x/a", "y/a"]
        assert source.table.files[0] == (tmp_path / "far/x/a.png").as_posix()


def test_absolute_folders_are_named_by_their_path_under_the_root_or_else_by_their_name(tmp_path):
    put_pictures(tmp_path, "s/x/a.png", "far/away/b.png")
    table = open_folder(tmp_path, root="s", folders=[str(tmp_path / "s/x"), str(tmp_path / "far/away")]).table
    assert table.ids == ["away/b", "x/a"]
    assert table.files == [(tmp_path / "far/away/b.png").as_posix(), "x/a.png"]


def test_a_file_with_an_extension_in_capitals_is_left_out_only_where_no_pattern_meets_it(tmp_path):
    put_pictures(tmp_path, "x/a.png", "x/b.JPG", "x/d/c.PNG", "x/.e.PNG", "x/F.txt")
    assert open_folder(tmp_path, folders=["x"]).table.ids == ["x/a"]
    assert open_folder(tmp_path, folders=["x"], pattern=["*.png", "*.JPG"]).table.ids == ["x/a", "x/b"]
    assert open_folder(tmp_path, folders=["x"], pattern=["*.png", "d/*.PNG"]).table.ids == ["x/a", "x/d/c"]


def test_the_hint_for_an_extension_in_capitals_is_the_pattern_that_meets_the_file(tmp_path):
    put_pictures(tmp_path, "x/a.png", "x/d/b.Png")
    with pytest.raises(RequestError) as caught:
        open_folder(tmp_path, folders=["x"], pattern="**/*.png")
    assert caught.value.hint == "add '**/*.Png' to stimuli.pattern, or rename the file"
    assert open_folder(tmp_path, folders=["x"], pattern=["**/*.png", "**/*.Png"]).table.ids == ["x/a", "x/d/b"]


def test_patterns_reach_deeper_only_when_they_say_so(tmp_path):
    put_pictures(tmp_path, "x/a.png", "x/d/b.png", "x/d/.h/c.png", "x/e.v2.png", "x/f.jpg")
    assert open_folder(tmp_path, folders=["x"]).table.ids == ["x/a", "x/e.v2"]
    assert open_folder(tmp_path, folders=["x"], pattern="**/*.png").table.ids == ["x/a", "x/d/b", "x/e.v2"]
    assert open_folder(tmp_path, folders=["x"], pattern="d/*.png").table.ids == ["x/d/b"]
    both = open_folder(tmp_path, folders=["x"], pattern=["*.png", "*.jpg", "a.*"]).table
    assert both.ids == ["x/a", "x/e.v2", "x/f"]
    assert both.stems == ["a", "e.v2", "f"]


@pytest.mark.parametrize(
    "pattern",
    [
        "*1*.png",
        "*a*1*.png",
        "**/*a*1*.*",
        "*/*a*_*?*.p*",
        "*d*e*p*/*1*.png",
        "*d*e*p*/**/*_*[12]*.png",
        "deep/../*/*a*_*1*",
    ],
)
def test_a_part_with_many_stars_means_what_pathlib_means(tmp_path, pattern):
    put_pictures(
        tmp_path, *(f"{folder}{name}.png" for folder in ("", "deep/", "deep/er/") for name in ("a_1", "ab_12"))
    )
    wanted = sorted(path.resolve() for path in tmp_path.glob(pattern) if path.is_file())
    found = {path for path in _glob(tmp_path, pattern) if path.is_file()}
    assert sorted(found) == wanted
    assert wanted


def test_a_name_of_many_letters_and_a_pattern_of_many_stars_end_at_once(tmp_path):
    put_pictures(tmp_path, f"{'a' * 200}.png")
    with pytest.raises(RequestError, match="no file"):
        open_folder(tmp_path, pattern="a*" * 40 + "b")
    with pytest.raises(RequestError, match="between two"):
        open_folder(tmp_path, pattern="**/a*a*a*/**/x.png")


def test_limit_takes_the_first_rows(tmp_path):
    put_pictures(tmp_path, "c.png", "a.png", "b.png")
    source = open_folder(tmp_path, limit=2)
    assert source.table.ids == ["a", "b"]
    assert source.read(1) == (tmp_path / "b.png").read_bytes()
    assert len(open_folder(tmp_path, limit=10).table) == 3


def test_links_to_files_and_folders_are_followed(tmp_path):
    put_pictures(tmp_path, "far/a.png")
    (tmp_path / "s").mkdir()
    (tmp_path / "s/l.png").symlink_to(tmp_path / "far/a.png")
    (tmp_path / "s/x").symlink_to(tmp_path / "far")
    source = open_folder(tmp_path, root="s", folders=[".", "x"])
    assert source.table.ids == ["root/l", "x/a"]
    assert source.read(0) == source.read(1) == (tmp_path / "far/a.png").read_bytes()


@pytest.mark.parametrize("mark", ["x.zarr/", "x/zarr.json", "x/.zgroup", "x/.xact/lock"])
def test_the_files_of_a_store_are_never_stimuli(tmp_path, mark):
    put_pictures(tmp_path, "a/1.png")
    where = mark.split("/")[0]
    put_pictures(tmp_path, f"{where}/own.png", f"{where}/deep/own.png")
    if not mark.endswith("/"):
        (tmp_path / mark).parent.mkdir(exist_ok=True)
        (tmp_path / mark).write_text("{}")
    (tmp_path / "link").symlink_to(where)
    assert open_folder(tmp_path, folders=["*/"]).table.ids == ["a/1"]
    (tmp_path / "x.zarr/a").mkdir(parents=True, exist_ok=True)
    assert open_folder(tmp_path, folders=["**/a"]).table.ids == ["a/1"]
    assert open_folder(tmp_path, pattern="**/*.png").table.ids == ["a/1"]
    (tmp_path / where / "OTHER.PNG").write_bytes(b"")  # in another case, and no stimulus all the same
    assert open_folder(tmp_path, pattern="**/*.png").table.ids == ["a/1"]
    for folder in (where, f"{where}/deep", "link"):
        with pytest.raises(RequestError, match=rf"of stimuli.folders lies in the store '.*{where}'"):
            open_folder(tmp_path, folders=[folder])
        with pytest.raises(RequestError, match="lies in the store"):
            open_folder(tmp_path, root=folder)
        write_table(tmp_path, f"path\na/1.png\n{folder}/own.png\n")
        with pytest.raises(RequestError, match=rf"the stimulus '{folder}/own' lies in the store '.*{where}'"):
            open_table(tmp_path)
    assert open_table(tmp_path, limit=1).table.ids == ["a/1"]


def test_a_folder_of_any_depth_lies_in_a_store_or_in_none():
    deep = Path("/nowhere", *["x"] * 1500)
    assert find_stores([deep, deep / "s.ZARR" / "a", deep]) == {deep / "s.ZARR" / "a": deep / "s.ZARR"}


def test_a_folder_that_leads_only_to_a_store_is_no_condition(tmp_path):
    put_pictures(tmp_path, "a/1.png")
    (tmp_path / "out/deep/x.zarr/activations").mkdir(parents=True)
    assert open_folder(tmp_path, folders=["*/"]).table.ids == ["a/1"]
    (tmp_path / "out/deep/notes.txt").write_text("")
    with pytest.raises(RequestError, match=r"no file in '.*out' matches"):
        open_folder(tmp_path, folders=["*/"])


def test_folders_named_like_images_are_skipped(tmp_path):
    put_pictures(tmp_path, "a.png")
    (tmp_path / "b.png").mkdir()
    assert open_folder(tmp_path).table.ids == ["a"]


@pytest.mark.parametrize(
    ("files", "keys", "message"),
    [
        (["stimuli/a.png"], {"root": "stimluli"}, r"the root folder '.*stimluli' does not exist \(nearest: stimuli\)"),
        (["a.png"], {"root": "a.png"}, r"the root folder '.*a.png' is not a folder"),
        (["leaves/a.png"], {"folders": ["leafs"]}, r"there is no folder 'leafs' under '.*' \(nearest: leaves"),
        (["c/leaves/a.png"], {"folders": ["leaves"]}, r"no folder 'leaves' under '.*' \(nearest: c/leaves"),
        (["x/a.png"], {"folders": ["z*/"]}, r"no folder under '.*' matches 'z\*/' \(it holds "),
        (
            ["a.jpg", "b.jpg", "c.tif", "d/e.png"],
            {},
            r"no file in '.*' matches '\*.png' \(it holds 2 .jpg, 1 .tif, 1 folders\)",
        ),
        (["x/a.png", "y/b.txt"], {"folders": ["*/"]}, r"no file in '.*y' matches '\*.png' \(it holds 1 .txt\)"),
        (["x/a.png"], {"folders": ["x", "./x"]}, r"the folder '.*x' is named twice"),
        (["x/a.png"], {"folders": ["x", "*/"]}, r"the folder '.*x' is named twice"),
        (["x/a.png"], {"folders": {"p": "x", "q": "x"}}, r"the folder '.*x' is named twice"),
        (["a.png", "root/b.png"], {"folders": [".", "root"]}, r"would both be the condition 'root'"),
        (["s/a.png", "x/a/c.png", "y/a/c.png"], {"root": "s", "folders": ["../x/a", "../y/a"]}, "the condition 'a'"),
        (["x/a.png", "x/b/c.png"], {"folders": ["x", "x/b"], "pattern": "**/*.png"}, r"c.png' lies in two of"),
        (["a.png", "a.jpg"], {"pattern": "*"}, r"'.*a.jpg' and '.*a.png' would both be the stimulus 'a'"),
        (["x/a.png", "y/a.png"], {"folders": {"p": "[xy]"}}, r"'.*x/a.png' and '.*y/a.png' would both be .* 'p/a'"),
        (["A.png", "a.png"], {}, r"the stimulus ids 'A' and 'a' are one name after .*, 'A.png' and 'a.png'\)"),
        (
            ["a.png", "z.PNG"],
            {},
            r"'.*z\.PNG' would be left out: it differs from '\*\.png' only in upper or lower case",
        ),
        (["x/a.png", "x/d/b.Png"], {"pattern": "**/*.png"}, r"'.*b\.Png' would be left out"),
        (["a.png"], {"pattern": "../*.png"}, r"the pattern '../\*.png' is not a pattern for files inside"),
        (["a.png"], {"pattern": "/etc/*"}, r"the pattern '/etc/\*' is not a pattern for files inside"),
        (["a.png"], {"pattern": ""}, r"the pattern '' is not a pattern for files inside"),
        (["a.png"], {"pattern": "a**b"}, r"no file in|the pattern 'a\*\*b' is refused"),
        ([" a.png"], {}, r"the stimulus id ' a' is empty or begins or ends with white space"),
        (["a\nb.png"], {}, r"the stimulus id 'a\\nb' holds a control character"),
        (["x" * 201 + ".png"], {}, r"has 201 characters; 200 is the most"),
    ],
)
def test_folders_that_make_no_clear_list_are_refused(tmp_path, files, keys, message):
    put_pictures(tmp_path, *files)
    with pytest.raises(RequestError, match=message) as caught:
        open_folder(tmp_path, **keys)
    assert "\n" not in str(caught.value)


def test_names_equal_after_unicode_normalisation_are_refused(tmp_path):
    put_pictures(tmp_path, *(unicodedata.normalize(form, "é.png") for form in ("NFC", "NFD")))
    with pytest.raises(RequestError, match="are one name after Unicode normalisation"):
        open_folder(tmp_path)


def test_a_name_that_is_not_utf8_is_refused(tmp_path):
    put_pictures(tmp_path, os.fsdecode(b"caf\xe9.png"))
    with pytest.raises(RequestError, match=r"the file name b'caf\\xe9.png' is not UTF-8"):
        open_folder(tmp_path)


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (os.mkfifo, "'x.png' is a named pipe, not a file"),
        (lambda path: path.symlink_to("nowhere"), "'x.png' is a link to a file that is not there"),
        (lambda path: path.symlink_to("../.git/annex/objects/x"), "'x.png' is a link of git-annex to content that is"),
        (lambda path: path.symlink_to("/dev/null"), "'x.png' is a device, not a file"),
        (lambda path: path.symlink_to("x.png"), "'x.png' cannot be read"),
        (lambda path: socket.socket(socket.AF_UNIX).bind(str(path)), "'x.png' is a socket, not a file"),
    ],
)
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # the socket's owner is gone before it is listed
def test_what_is_no_regular_file_is_refused_at_listing_without_waiting(tmp_path, monkeypatch, make, message):
    monkeypatch.chdir(tmp_path)  # a socket's path has to be short
    put_pictures(tmp_path, "a.png")
    make(Path("x.png"))
    with pytest.raises(StimulusError, match=message):
        open_folder(tmp_path)


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("replace", "message"),
    [
        (lambda path: None, "'a.png' is not there"),
        (os.mkfifo, "'a.png' is a named pipe"),
        (os.mkdir, "'a.png' is a folder, not a file"),
    ],
)
def test_a_file_replaced_after_listing_is_refused_without_waiting(tmp_path, replace, message):
    put_pictures(tmp_path, "a.png")
    source = open_folder(tmp_path)
    (tmp_path / "a.png").unlink()
    replace(tmp_path / "a.png")
    for use in (source.read, source.stamp):
        with pytest.raises(StimulusError, match=message):
            use(0)


def test_a_file_too_large_for_a_stimulus_is_refused_unread(tmp_path):
    with (tmp_path / "a.png").open("wb") as file:
        file.truncate(MAX_FILE_NBYTES + 1)
    with pytest.raises(StimulusError, match=r"'a.png' has 500000001 bytes; 500000000 is the most"):
        open_folder(tmp_path).read(0)


# what every source checks


@pytest.mark.parametrize(
    ("table", "message", "hint"),
    [
        (make_table(ids=[]), "T holds no stimuli", None),
        (
            make_table(ids=["a", "a"]),
            r"the stimulus id 'a' stands twice \(rows 1 and 2, '0.png' and '1.png'\)",
            "rename",
        ),
        (make_table(ids=["ß", "SS"]), "the stimulus ids 'ß' and 'SS' are one name", "rename"),
        (make_table(ids=["a", ""]), "the stimulus id '' is empty", "rename it"),
        (make_table(conditions=["x", "y\0"]), r"the condition 'y\\x00' holds a control character", "rename it"),
        (make_table(stems=["x", "y "]), "the stem 'y ' is empty or begins or ends", "rename it"),
        (
            make_table(columns={"model": [1, 2]}),
            "column 'model' of T has a reserved name",
            "rename: {model: caption_model}",
        ),
        (
            make_table(columns={"loss": [1, 2]}),
            "column 'loss' of T has a reserved name",
            "rename: {loss: caption_loss}",
        ),
        (
            make_table(columns={"jitter_x": [1, 2]}),
            "column 'jitter_x' of T has a reserved",
            "rename: {jitter_x: caption_jitter_x}",
        ),
        (
            make_table(columns={"Model": [1, 2]}),
            "column 'Model' of T has a reserved name",
            "rename: {Model: caption_Model}",
        ),
        (make_table(columns={"Age": [1, 2], "age": [1, 2]}), "columns 'Age' and 'age' of T are one", "rename: {age: "),
        (make_table(columns={"a/b": [1, 2]}), "column 'a/b' of T cannot be the name", "rename: {a/b: caption_a/b}"),
        (make_table(columns={"a\t": [1, 2]}), "the column name .* begins or ends with white space", "rename it"),
        (make_table(columns={"word": ["x", "y\0z"]}), "column 'word' holds a NUL character in row 2", None),
    ],
)
def test_labels_that_a_store_cannot_have_are_refused(table, message, hint):
    with pytest.raises(RequestError, match=message) as caught:
        check_table(table, location="T")
    assert (caught.value.hint or "").startswith(hint or "")


def test_hashes_are_sha256_of_the_bytes():
    assert hash_stimulus(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    assert hash_stimulus(pixels) == hashlib.sha256(bytes(range(24))).hexdigest()
    turned = np.asfortranarray(pixels)
    assert hash_stimulus(turned) == hash_stimulus(pixels)


# tables


def test_a_table_keeps_its_rows_order_and_columns(tmp_path):
    put_pictures(tmp_path, "s/b.png", "s/d/a.x.png", "s/c.png")
    write_table(
        tmp_path,
        "\ufeffid,path,condition,rating,subject,word\r\n"
        "002,b.png,NA,1.5,7,null\r\n"
        '010,./d//a.x.png,y,,8,"two, words"\r\n'
        '1e3,../s/c.png,y,2,9,"two\nlines"\r\n',
    )
    source = open_table(tmp_path, root="s")
    table = source.table
    assert table.ids == ["002", "010", "1e3"]
    assert table.conditions == ["NA", "y", "y"]
    assert table.stems == ["b", "a.x", "c"]
    assert table.files == ["b.png", "d/a.x.png", "c.png"]
    assert table.columns["subject"] == [7, 8, 9]
    assert table.columns["word"] == ["null", "two, words", "two\nlines"]
    np.testing.assert_array_equal(table.columns["rating"], [1.5, math.nan, 2.0])
    assert list(table.columns) == ["rating", "subject", "word"]
    assert source.read(1) == (tmp_path / "s/d/a.x.png").read_bytes()
    assert source.location == str(tmp_path / "t.csv")


def test_without_ids_and_conditions_the_path_and_all_take_their_place(tmp_path):
    put_pictures(tmp_path, "x/a.png", "x/b.jpg")
    write_table(tmp_path, "file name\tn\nx/a.png\t1\nx/b.jpg\t2\n", "t.tsv")
    table = open_table(tmp_path, file="t.tsv", path="file name").table
    assert table == StimulusTable(
        ids=["x/a", "x/b"],
        conditions=["all", "all"],
        stems=["a", "b"],
        files=["x/a.png", "x/b.jpg"],
        columns={"n": [1, 2]},
    )


def test_a_column_may_have_a_reserved_name_where_the_recipe_takes_it_for_the_path_or_the_id(tmp_path):
    put_pictures(tmp_path, "a.png")
    write_table(tmp_path, "file,stimulus,id\na.png,first,7\n")
    table = open_table(tmp_path, path="file", id="stimulus").table
    assert table.ids == ["first"]
    assert table.columns == {"id": [7]}


def test_limit_needs_only_the_files_it_takes(tmp_path):
    put_pictures(tmp_path, "b.png", "a.png")
    write_table(tmp_path, "path\nb.png\na.png\nmissing.png\n")
    assert open_table(tmp_path, limit=2).table.ids == ["b", "a"]


def test_parquet_columns_keep_their_types(tmp_path):
    put_pictures(tmp_path, "a.png", "b.png")
    frame = pd.DataFrame(
        {
            "path": ["a.png", "b.png"],
            "id": [10, 2],
            "big": np.array([2**62, 1]),
            "some": pd.array([1, None], dtype="Int64"),
            "small": np.array([0.5, np.nan], dtype=np.float32),
            "flag": [True, False],
            "word": ["001", None],
            "kind": pd.Categorical(["x", "y"]),
        },
        index=[5, 9],
    )
    frame.to_parquet(tmp_path / "t.parquet")
    table = open_table(tmp_path, file="t.parquet").table
    assert table.ids == ["10", "2"]
    assert table.columns["big"] == [2**62, 1]
    np.testing.assert_array_equal(table.columns["some"], [1.0, math.nan])
    np.testing.assert_array_equal(table.columns["small"], [0.5, math.nan])
    assert table.columns["flag"] == [True, False]
    assert table.columns["word"] == ["001", ""]
    assert table.columns["kind"] == ["x", "y"]
    assert set(table.columns) == {"big", "some", "small", "flag", "word", "kind"}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"path": ["a.png"], "day": pd.to_datetime(["2020-01-01"])}, "the column 'day' of .* has type timestamp"),
        ({"path": ["a.png"], "box": [[1, 2]]}, "the column 'box' of .* has type list"),
        ({"path": ["a.png"], "raw": [b"x"]}, "the column 'raw' of .* has type binary"),
        ({"path": ["a.png"], "gone": [None]}, "the column 'gone' of .* has type null"),
        ({"path": ["a.png"], "n": np.array([2**63], np.uint64)}, "the column 'n' of .* holds integers too large"),
        ({"path": ["a.png"] * 2, "n": pd.array([2**53 + 1, None], "Int64")}, "'n' of .* integers too large"),
        ({"path": ["a.png"] * 2, "b": pd.array([True, None], "boolean")}, "'b' of .* has no value in row 2"),
        ({"path": ["a.png"], "id": [1.5]}, "the column 'id' of .* holds 1.5, which is neither text nor an integer"),
        ({"path": ["a.png"] * 2, "id": ["x", None]}, "the column 'id' of .* has no value in row 2"),
        ({"path": ["a.png"] * 2, "id": pd.array([1, None], "Int64")}, "the column 'id' of .* has no value in row 2"),
        ({"path": [1]}, "the column 'path' of .* is not text"),
    ],
)
def test_parquet_columns_without_one_meaning_are_refused(tmp_path, columns, message):
    put_pictures(tmp_path, "a.png")
    pd.DataFrame(columns).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(RequestError, match=message):
        open_table(tmp_path, file="t.parquet")


@pytest.mark.parametrize(
    ("text", "keys", "message"),
    [
        ("path\n", {}, "t.csv holds no stimuli"),
        ("", {}, "the table '.*t.csv' is empty"),
        ("paht\na.png\n", {}, r"has no column 'path' \(nearest: paht\)"),
        ("path,name\na.png,x\n", {"id": "nmae"}, r"has no column 'nmae' \(nearest: name\)"),
        ("path,x,x\na.png,1,2\n", {}, "the column 'x' appears twice"),
        ("path,\na.png,2\n", {}, "column 2 of '.*t.csv' has no name"),
        (",path\nx,a.png\n", {}, "column 1 of '.*t.csv' has no name"),
        ("path;x,y\na.png;1,2\n", {}, "is a table with commas and with semicolons between its cells"),
        ("path,x;y\na.png\n", {}, "line 2: 1 cells, the header has 2"),
        ("path;x\na.png\n", {}, "line 2: 1 cells, the header has 2"),
        ("path\na.png\nn/a\n", {}, "has no path in row 2"),
        ("path,x\na.png\n", {}, "line 2: 1 cells, the header has 2"),
        ("path,x\na.png,1,2\n", {}, "line 2: 3 cells, the header has 2"),
        ('path\n"a.png\n', {}, "line 2: a quotation mark is opened but never closed"),
        ("path\na.png\n   \n", {}, "has no path in row 2"),
        ("path,x\na.png,1\n,2\n", {}, "has no path in row 2"),
        ("path,id\na.png,x\na.png,\n", {}, "the column 'id' of .* has no value in row 2"),
        ("path,condition\na.png,\n", {}, "the column 'condition' of .* has no value in row 1"),
        ("path,id\na.png,x\na.png,X\n", {}, r"'x' and 'X' are one name .*\(rows 1 and 2\)"),
        ("path\na.png\na.png\n", {}, r"the stimulus id 'a' stands twice \(rows 1 and 2\)"),
        ("path,model\na.png,x\n", {}, "column 'model' of .*t.csv has a reserved name"),
        ("path,file\na.png,x\n", {}, "column 'file' of .*t.csv has a reserved name"),
        ("p,path\na.png,x\n", {"path": "p"}, "column 'path' of .*t.csv has a reserved name"),
        ("path,x\na.png,\0\n", {}, "holds NUL characters"),
        (
            "path\na.png\nb.png\nc.png\n",
            {},
            "2 of the 3 files of .* do not exist under .*the first is 'b.png', the stimulus 'b'",
        ),
        ("path\na.png\n", {"file": "tt.csv"}, r"there is no table '.*tt.csv' \(nearest: t.csv"),
        ("path\na.png\n", {"file": "t.xlsx"}, "has the extension '.xlsx'"),
        ("path\na.png\n", {"file": "."}, "has the extension ''"),
    ],
)
def test_tables_that_are_unclear_are_refused(tmp_path, text, keys, message):
    put_pictures(tmp_path, "a.png")
    write_table(tmp_path, text)
    with pytest.raises(RequestError, match=message) as caught:
        open_table(tmp_path, **keys)
    assert "\n" not in str(caught.value)


def test_tables_that_cannot_be_read_are_refused(tmp_path):
    (tmp_path / "t.csv").write_bytes("path\né.png\n".encode("latin-1"))
    with pytest.raises(RequestError, match=r"is not UTF-8 \(byte 5\)"):
        open_table(tmp_path)
    (tmp_path / "t.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(RequestError, match="cannot be read as parquet"):
        open_table(tmp_path, file="t.parquet")


@pytest.mark.parametrize("name", ["t.csv", "t.tsv"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_the_separator_and_the_encoding_of_a_table_are_found(encoding, separator, name, tmp_path):
    put_pictures(tmp_path, "a.png", "é.png")
    rows = [["path", "x", "word"], ["a.png", "1.5", '"one; two, \tthree"'], ["é.png", "NA", "é"]]
    (tmp_path / name).write_bytes("\r\n".join(map(separator.join, rows)).encode(encoding))
    source = open_table(tmp_path, file=name)
    assert source.table.ids == ["a", "é"]
    np.testing.assert_array_equal(source.table.columns["x"], [1.5, math.nan])
    assert source.table.columns["word"] == ["one; two, \tthree", "é"]
    assert source.notes == []


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("path,captions\na.png,one;two\n", {"captions": ["one;two"]}),
        ("path,a;b\na.png,1\n", {"a;b": [1]}),
        ('"path","a;b"\n"a.png","1;2"\n', {"a;b": ["1;2"]}),
        ("path;a,b\na.png;1\n", {"a,b": [1]}),
        ("path\ta, b\na.png\t1\n", {"a, b": [1]}),
        ("path,n,\na.png,1,\n,,\n", {"n": [1]}),
    ],
)
def test_a_separator_divides_every_line_into_as_many_cells(text, columns, tmp_path):
    put_pictures(tmp_path, "a.png")
    write_table(tmp_path, text)
    assert open_table(tmp_path).table.columns == columns


def test_decimal_commas_are_text_and_told(tmp_path):
    put_pictures(tmp_path, "a.png", "b.png")
    write_table(tmp_path, "path;rating;range\na.png;1,5;1,5\nb.png;NA;x\n")
    source = open_table(tmp_path)
    assert source.table.columns == {"rating": ["1,5", "NA"], "range": ["1,5", "x"]}
    assert source.notes == ["the column 'rating' is text: '1,5' has a comma; write its numbers with a decimal point"]


def test_the_index_that_pandas_writes_is_left_out_and_told(tmp_path):
    put_pictures(tmp_path, "a.png", "b.png", "c.png")
    frame = pd.DataFrame({"path": ["a.png", "b.png", "c.png"], "n": [1, 2, 3]})
    said = "t.csv: its first column was left out: it has no name and holds {}, as an index of pandas"

    def read() -> StimulusSource:
        source = open_table(tmp_path)
        assert source.table.columns == {"n": [1, 2, 3]}
        return source

    frame.to_csv(tmp_path / "t.csv")
    assert read().notes == [said.format("0 to 2")]
    pd.read_csv(tmp_path / "t.csv").to_csv(tmp_path / "t.csv")
    assert (tmp_path / "t.csv").read_text().startswith(",Unnamed: 0,path")
    assert read().notes == [said.format("0 to 2")] * 2
    frame.set_index([[4, 9, 4]]).to_csv(tmp_path / "t.csv")
    assert read().notes == [said.format("4 to 4")]
    frame.to_csv(tmp_path / "t.csv", index=False)
    assert read().notes == []
    frame.set_index([["x", "y", "z"]]).to_csv(tmp_path / "t.csv")
    with pytest.raises(RequestError, match=r"column 1 of .* has no name") as caught:
        open_table(tmp_path)
    assert caught.value.hint == "give it a name in its first line, or take it out (pandas: index=False)"


def test_a_column_that_pandas_named_is_kept_where_it_is_renamed_or_no_index(tmp_path):
    put_pictures(tmp_path, "a.png")
    write_table(tmp_path, "Unnamed: 0,path,Unnamed: 2\n7,a.png,x\n")
    assert open_table(tmp_path, rename={"Unnamed: 0": "n"}).table.columns == {"n": [7], "Unnamed: 2": ["x"]}
    assert open_table(tmp_path).table.columns == {"Unnamed: 2": ["x"]}


def test_an_index_without_a_name_in_parquet_is_left_out_and_told(tmp_path):
    put_pictures(tmp_path, "a.png", "b.png", "c.png")
    frame = pd.DataFrame({"path": ["a.png", "b.png", "c.png"], "n": [1, 2, 3]})
    for index, n_notes in (([4, 9, 4], 1), (["x", "y", "z"], 1), (pd.RangeIndex(3), 0)):
        frame.set_index(pd.Index(index)).to_parquet(tmp_path / "t.parquet")
        source = open_table(tmp_path, file="t.parquet")
        assert source.table.columns == {"n": [1, 2, 3]}
        said = "t.parquet: its index without a name was left out; reset_index(names='NAME') keeps it"
        assert source.notes == [said] * n_notes


EVENTS = (
    "onset\tduration\ttrial_type\tstim_file\trt\n"
    "0\t1\tface\tb.png\t0.5\n"
    "2\t1\thouse\tsub\\a.png\tn/a\n"
    "4\t1\tface\t./b.png\t0.5\n"
    "6\t4\trest\tn/a\tn/a\n"
    "8\t1\thouse\tsub/a.png\tn/a\n"
)


def test_a_list_of_presentations_gives_each_picture_once_in_the_order_of_its_first_row(tmp_path):
    put_pictures(tmp_path, "sub/a.png", "b.png")
    write_table(tmp_path, EVENTS, "events.tsv")
    source = open_table(tmp_path, file="events.tsv", path="stim_file", unique=True)
    assert source.table.ids == ["b", "sub/a"]
    assert {name: list(cells) for name, cells in source.table.columns.items() if name != "rt"} == {
        "duration": [1, 1],
        "trial_type": ["face", "house"],
    }
    np.testing.assert_array_equal(source.table.columns["rt"], [0.5, math.nan])
    assert source.notes == [
        "events.tsv: 1 of its 5 rows have no picture and were left out",
        "events.tsv: left out, since they differ between the presentations of one picture: onset",
    ]
    assert source.read(1) == (tmp_path / "sub/a.png").read_bytes()
    assert open_table(tmp_path, file="events.tsv", path="stim_file", unique=True, limit=1).table.ids == ["b"]


def test_a_list_of_presentations_is_told_how_to_be_read(tmp_path):
    put_pictures(tmp_path, "sub/a.png", "b.png")
    write_table(tmp_path, EVENTS, "events.tsv")
    with pytest.raises(RequestError, match=r"the column 'stim_file' of .* has no path in row 4") as caught:
        open_table(tmp_path, file="events.tsv", path="stim_file")
    assert "`unique: true` takes each picture once" in str(caught.value.hint)
    write_table(tmp_path, "path\nb.png\nsub/a.png\n./b.png\n")
    with pytest.raises(RequestError, match=r"'b' stands twice \(rows 1 and 3") as caught:
        open_table(tmp_path)
    assert caught.value.hint == "a list of presentations? `unique: true` takes each picture once"
    write_table(tmp_path, "path,id\nb.png,x\nb.png,y\n")
    assert open_table(tmp_path).table.ids == ["x", "y"]


@pytest.mark.parametrize("name", ["id", "condition"])
def test_presentations_of_one_picture_have_one_id_and_one_condition(name, tmp_path):
    put_pictures(tmp_path, "a.png")
    write_table(tmp_path, f"path,{name}\na.png,x\na.png,y\n")
    with pytest.raises(RequestError, match=f"the column '{name}' of .* differs between the presentations") as caught:
        open_table(tmp_path, unique=True)
    assert f"rename: {{{name}: trial_{name}}}" in str(caught.value.hint)
    source = open_table(tmp_path, unique=True, rename={name: f"trial_{name}"})
    assert (source.table.ids, source.table.columns) == (["a"], {})
    write_table(tmp_path, f"path,{name}\na.png,x\na.png,x\n")
    assert open_table(tmp_path, unique=True).table.ids == ["x" if name == "id" else "a"]


def test_presentations_in_parquet_are_the_same(tmp_path):
    put_pictures(tmp_path, "a.png", "b.png")
    paths = ["a.png", None, "b.png", "a.png"]
    frame = pd.DataFrame({"path": paths, "n": [1.0, 2.0, np.nan, 1.0], "time": [0, 1, 2, 3]})
    frame.to_parquet(tmp_path / "t.parquet")
    table = open_table(tmp_path, file="t.parquet", unique=True).table
    assert table.ids == ["a", "b"]
    np.testing.assert_array_equal(table.columns["n"], [1.0, math.nan])
    assert list(table.columns) == ["n"]
    frame.assign(path=[1, 2, 3, 4]).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(RequestError, match=r"the column 'path' of .* is not text"):
        open_table(tmp_path, file="t.parquet", unique=True)


def test_a_folder_in_place_of_a_listed_file_is_refused(tmp_path):
    (tmp_path / "a.png").mkdir()
    write_table(tmp_path, "path\na.png\n")
    with pytest.raises(StimulusError, match=r"'a.png' is a folder, not a file"):
        open_table(tmp_path)


# HDF5


IMAGES = np.random.default_rng(0).integers(0, 256, (4, 6, 5, 3), dtype=np.uint8)


def open_hdf5(tmp_path: Path, **keys: object) -> StimulusSource:
    return open_stimuli(Hdf5Stimuli(source="hdf5", **{"file": "s.h5", "dataset": "imgBrick", **keys}), tmp_path)


def test_rows_of_an_hdf5_array_are_stimuli(tmp_path):
    write_hdf5(tmp_path / "s.h5", {"imgBrick": IMAGES})
    source = open_hdf5(tmp_path)
    assert source.table == StimulusTable(
        ids=["00000", "00001", "00002", "00003"],
        conditions=["all"] * 4,
        stems=["00000", "00001", "00002", "00003"],
        files=["imgBrick[0]", "imgBrick[1]", "imgBrick[2]", "imgBrick[3]"],
        columns={},
    )
    for row in (2, 0, 3, 1):
        np.testing.assert_array_equal(source.read(row), IMAGES[row])
        assert source.stamp(row).nbytes == 6 * 5 * 3
    source.close()
    with pytest.raises(StimulusError, match="is closed"):
        source.read(0)


def test_a_file_of_images_that_is_replaced_while_it_is_open_is_refused(tmp_path):
    write_hdf5(tmp_path / "s.h5", {"imgBrick": IMAGES})
    source = open_hdf5(tmp_path)
    source.read(0)
    write_hdf5(tmp_path / "other.h5", {"imgBrick": 255 - IMAGES})
    (tmp_path / "other.h5").replace(tmp_path / "s.h5")
    with pytest.raises(StimulusError, match=r"s\.h5 has changed since it was opened"):
        source.read(1)


def test_a_stamp_tells_another_time_and_another_array_of_the_same_file(tmp_path):
    write_hdf5(tmp_path / "s.h5", {"imgBrick": IMAGES, "others": 255 - IMAGES})
    stamp = open_hdf5(tmp_path).stamp(0)
    assert open_hdf5(tmp_path).stamp(0) == stamp
    assert open_hdf5(tmp_path, dataset="others").stamp(0) != stamp
    os.utime(tmp_path / "s.h5", ns=(1, 1))
    assert open_hdf5(tmp_path).stamp(0) != stamp


@pytest.mark.parametrize(
    ("ids", "expected", "reason"),
    [
        (["007", "NA", "é", "d"], ["007", "NA", "é", "d"], "text of any length"),
        (np.array([b"a", b"bb", b"c", b"d"]), ["a", "bb", "c", "d"], "text of one length"),
        (np.array([10, 2, 30, 4]), ["10", "2", "30", "4"], "integers as text"),
    ],
)
def test_ids_come_from_a_second_data_set(tmp_path, ids, expected, reason):
    write_hdf5(tmp_path / "s.h5", {"a/images": IMAGES[..., 0], "a/ids": ids})
    source = open_hdf5(tmp_path, dataset="a/images", id="a/ids", limit=3)
    assert source.table.ids == expected[:3], reason
    assert source.table.stems == expected[:3]
    np.testing.assert_array_equal(source.read(2), IMAGES[2, ..., 0])


@pytest.mark.parametrize(
    ("datasets", "keys", "message"),
    [
        ({"imgBrick": IMAGES}, {"file": "t.h5"}, r"there is no file '.*t.h5' \(nearest: s.h5\)"),
        ({"x/imgBrick": IMAGES}, {}, r"the data set 'imgBrick' of .* is missing \(nearest: x/imgBrick\)"),
        ({"q": IMAGES}, {}, r"the data set 'imgBrick' of .* is missing \(it holds q\)"),
        ({"imgBrick/a": IMAGES}, {}, "the data set 'imgBrick' of .* is a group"),
        ({"imgBrick": IMAGES.astype(np.int32)}, {}, r"has shape \(4, 6, 5, 3\) and type int32"),
        ({"imgBrick": IMAGES.transpose(0, 3, 1, 2)[..., :3]}, {}, r"has shape \(4, 3, 6, 3\) and type uint8"),
        ({"imgBrick": IMAGES}, {"channels": "first"}, r"has shape \(4, 6, 5, 3\) and type uint8"),
        ({"imgBrick": IMAGES[0]}, {}, r"has shape \(6, 5, 3\) and type uint8"),
        ({"imgBrick": 3}, {}, r"has shape \(\) and type int64"),
        ({"imgBrick": IMAGES[:0]}, {}, "holds no stimuli"),
        (
            {"imgBrick": IMAGES, "ids": ["a"]},
            {"id": "ids"},
            r"the ids 'ids' of .* have shape \(1,\); there are 4 images",
        ),
        ({"imgBrick": IMAGES, "ids": np.ones(4)}, {"id": "ids"}, "the ids 'ids' of .* have type float64"),
        ({"imgBrick": IMAGES, "ids": ["a", "b", "A", "c"]}, {"id": "ids"}, "'a' and 'A' are one name"),
        ({"imgBrick": IMAGES, "ids": np.array([b"\xff"] * 4)}, {"id": "ids"}, "the ids 'ids' of .* are not UTF-8"),
        ({"imgBrick": IMAGES, "ids": ["a"]}, {"id": "idx"}, r"the data set 'idx' of .* \(nearest: ids\)"),
    ],
)
def test_hdf5_files_that_hold_no_clear_stimuli_are_refused(tmp_path, datasets, keys, message):
    write_hdf5(tmp_path / "s.h5", datasets)
    with pytest.raises(RequestError, match=message) as caught:
        open_hdf5(tmp_path, **keys)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("images", "keys"),
    [
        (IMAGES.transpose(0, 3, 1, 2), {}),
        (IMAGES / 255, {}),
        ((IMAGES / 255).astype(np.float16), {}),
        (IMAGES.transpose(0, 3, 1, 2).astype(np.float32) / 255, {"channels": "first"}),
        (IMAGES.astype(np.float32), {"white": 255}),
        (IMAGES.astype(np.uint16) * 257, {"white": 65535}),
    ],
)
@pytest.mark.parametrize("kind", ["h5", "npy"])
def test_images_of_any_order_and_type_have_the_same_pixels(tmp_path, kind, images, keys):
    source = open_array(tmp_path, kind, images, **keys)
    for row in range(len(IMAGES)):
        np.testing.assert_array_equal(source.read(row), IMAGES[row])
        assert source.stamp(row).nbytes == images[row].nbytes


@pytest.mark.parametrize("kind", ["h5", "npy"])
def test_images_with_alpha_and_grey_ones_keep_their_channels(tmp_path, kind):
    rgba = np.concatenate([IMAGES, IMAGES[..., :1]], axis=-1)
    for images, wanted in ((rgba, rgba), (rgba.transpose(0, 3, 1, 2), rgba), (IMAGES[..., :1], IMAGES[..., 0])):
        np.testing.assert_array_equal(open_array(tmp_path, kind, images).read(2), wanted[2])
    np.testing.assert_array_equal(open_array(tmp_path, kind, IMAGES[..., 0]).read(2), IMAGES[2, ..., 0])


def open_array(tmp_path: Path, kind: str, images: np.ndarray, **keys: object) -> StimulusSource:
    if kind == "h5":
        (tmp_path / "s.h5").unlink(missing_ok=True)
        write_hdf5(tmp_path / "s.h5", {"imgBrick": images})
        return open_hdf5(tmp_path, **keys)
    np.save(tmp_path / "s.npy", images)
    return open_npy(tmp_path, **keys)


def open_npy(tmp_path: Path, **keys: object) -> StimulusSource:
    return open_stimuli(NpyStimuli(source="npy", **{"file": "s.npy", **keys}), tmp_path)


def test_rows_of_a_npy_file_are_stimuli(tmp_path):
    np.save(tmp_path / "s.npy", IMAGES)
    source = open_npy(tmp_path, limit=3)
    assert source.table == StimulusTable(
        ids=["00000", "00001", "00002"],
        conditions=["all"] * 3,
        stems=["00000", "00001", "00002"],
        files=["s.npy[0]", "s.npy[1]", "s.npy[2]"],
        columns={},
    )
    source.read(1)
    np.save(tmp_path / "s.npy", IMAGES[:, :5])
    os.utime(tmp_path / "s.npy", ns=(1, 1))
    with pytest.raises(StimulusError, match=r"s\.npy has changed since it was listed"):
        source.read(1)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", r"'.*s\.npy' is no \.npy file"),
        (b"no", r"'.*s\.npy' is no \.npy file"),
        (b"\x93NUMPY", r"'.*s\.npy' cannot be read as \.npy"),
        (b"\x93NUMPY\1\0\xff\xff", r"'.*s\.npy' cannot be read as \.npy"),
        (b"version https://git-lfs.github.com/spec/v1\n", r"'.*s\.npy' is a pointer of Git LFS"),
        (np.array([IMAGES, None], dtype=object), r"'.*s\.npy' cannot be read as \.npy"),
        (IMAGES[0], r"the array of '.*s\.npy' has shape \(6, 5, 3\) and type uint8"),
        (np.asfortranarray(IMAGES), r"the array of '.*s\.npy' is in Fortran order"),
        (np.array(["a.png"]), r"has shape \(1,\) and type <U5"),
    ],
)
def test_npy_files_that_hold_no_clear_stimuli_are_refused(tmp_path, data, message):
    if isinstance(data, bytes):
        (tmp_path / "s.npy").write_bytes(data)
    else:
        np.save(tmp_path / "s.npy", data)
    with pytest.raises(RequestError, match=message) as caught:
        open_npy(tmp_path)
    assert "\n" not in str(caught.value)


def test_an_archive_of_arrays_is_refused_with_the_way_to_make_one_array(tmp_path):
    np.savez(tmp_path / "s.npz", images=IMAGES)
    with pytest.raises(RequestError, match=r"is an \.npz archive") as caught:
        open_npy(tmp_path, file="s.npz")
    assert caught.value.hint.startswith("np.save(")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.symlink_to("../.git/annex/objects/x"), "is a link of git-annex to content that is not here"),
        (lambda path: path.write_bytes(b"/annex/objects/x\n"), "is a pointer of git-annex, not the file itself"),
    ],
)
def test_a_file_of_images_whose_content_is_elsewhere_is_called_so(tmp_path, make, message):
    make(tmp_path / "s.h5")
    with pytest.raises(RequestError, match=message) as caught:
        open_hdf5(tmp_path)
    assert "git annex get" in caught.value.hint


def test_an_hdf5_file_that_is_gone_after_listing_is_refused(tmp_path):
    write_hdf5(tmp_path / "s.h5", {"imgBrick": IMAGES})
    source = open_hdf5(tmp_path)
    (tmp_path / "s.h5").unlink()
    for use in (source.read, source.stamp):
        with pytest.raises(StimulusError, match=r"s.h5"):
            use(0)


def test_a_file_that_is_not_hdf5_is_refused(tmp_path):
    (tmp_path / "s.h5").write_bytes(b"no")
    with pytest.raises(RequestError, match=r"'.*s.h5' cannot be read as HDF5"):
        open_hdf5(tmp_path)


def test_hdf5_rows_can_be_read_from_many_threads(tmp_path):
    images = np.arange(500, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 3), np.uint8)
    with h5py.File(tmp_path / "s.h5", "w") as file:
        file.create_dataset("imgBrick", data=images, chunks=(7, 4, 4, 3), compression="gzip")
    source = open_hdf5(tmp_path)
    start = threading.Barrier(4)

    def read(row: int) -> np.ndarray:
        if row < 4:
            start.wait()  # the first reads race for the handle
        return source.read(row)

    with ThreadPoolExecutor(4) as pool:
        np.testing.assert_array_equal(list(pool.map(read, range(500))), images)


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # a fork among threads is what is tested
def test_hdf5_rows_can_be_read_after_a_fork(tmp_path):
    write_hdf5(tmp_path / "s.h5", {"imgBrick": IMAGES})
    source = open_hdf5(tmp_path)
    source.read(0)
    child = os.fork()
    if child == 0:
        os._exit(0 if all(np.array_equal(source.read(row), IMAGES[row]) for row in range(4)) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    np.testing.assert_array_equal(source.read(3), IMAGES[3])
