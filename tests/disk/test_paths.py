"""Invalid paths, in every place where a person can write one: the error is one line, and no file is left."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from support.cli import assert_refused
from support.lab import make_entry, write_lab

from xact.disk.paths import expand_path
from xact.errors import RequestError

IMPOSSIBLE = {
    # why: path
    "longer than a path may be": "x/" * 3000,
    "a name longer than one may be": "a/" + "x" * 300,
    "NUL": "a\0b",
    "half a pair": "\ud800",
    "nobody's home": "~nobody-of-that-name/x",
}


@pytest.mark.parametrize("why", IMPOSSIBLE)
def test_a_path_that_nothing_can_have_is_refused_in_one_short_line(why):
    with pytest.raises(RequestError, match="invalid path") as caught:
        expand_path(IMPOSSIBLE[why])
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("path", ["a", "/", ".", "..", "é/🧠", "x" * 255, "~", "a b\nc"])
def test_a_path_that_a_file_can_have_is_taken_as_it_is(path):
    assert str(expand_path(path)) == os.path.expanduser(path)  # noqa: PTH111  another way to the same


FOLDERS = "{source: folder, root: stimuli, folders: [a, b]}"

PLACES = {
    # key of the recipe: (what stands there, what takes its place, `<` and `>` for braces)
    "store": ("store: {folder}/store.zarr", "store: {path}"),
    "stimuli.root": ("root: stimuli", "root: {path}"),
    "stimuli.folders": ("folders: [a, b]", "folders: [{path}]"),
    "stimuli.file of a table": (FOLDERS, "<source: table, file: {path}>"),
    "stimuli.file of HDF5": (FOLDERS, "<source: hdf5, file: {path}, dataset: x>"),
    "stimuli.file of captions": (FOLDERS, "<source: captions, file: {path}>"),
    "models.weights": ("weights: random, seed: 0", "weights: {path}"),
    "registry": ("models:", "registry: {path}\nmodels:"),
}


@pytest.mark.parametrize("place", PLACES)
def test_an_impossible_path_in_a_recipe_is_one_line(place, warm, tmp_path):
    recipe = write_lab(tmp_path, make_entry())
    whole = recipe.read_text()
    old, new = PLACES[place]
    old = old.replace("{folder}", str(tmp_path))
    assert old in whole
    for why, path in {**IMPOSSIBLE, "a loop of links": "loop/x", "a file for a folder": "recipe.yml/x"}.items():
        if not (tmp_path / "loop").is_symlink():
            (tmp_path / "loop").symlink_to("loop")
        quoted = json.dumps(path, ensure_ascii=path == "\ud800")
        written = new.replace("<", "{").replace(">", "}").replace("{path}", quoted)
        recipe.write_text(whole.replace(old, written))
        before = sorted(tmp_path.iterdir())
        assert_refused(warm.run("build", recipe, "--allow-code", folder=tmp_path), why, named="")
        assert [file for file in sorted(tmp_path.iterdir()) if file.name != "__pycache__"] == [
            file for file in before if file.name != "__pycache__"
        ]


@pytest.mark.parametrize(
    "command",
    [
        ["info"],
        ["verify"],
        ["build"],
        ["plan"],
        ["caption"],
        ["export", "--to", "hdf5"],
        ["import", "--store", "s.zarr"],
    ],
    ids=lambda command: command[0],
)
def test_an_impossible_path_on_the_command_line_is_one_line(command, warm, tmp_path):
    for why in ("longer than a path may be", "a name longer than one may be", "nobody's home"):
        assert_refused(warm.run(*command, IMPOSSIBLE[why], folder=tmp_path), why, named="")
    assert not list(Path(tmp_path).iterdir())
