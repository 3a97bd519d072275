"""Invalid paths, in every place where a person can write one: the error is one line, and no file is left."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from support.cli import assert_refused
from support.lab import make_entry, write_lab

import xact
from xact.disk.paths import expand_path, has_credentials
from xact.errors import RequestError, StoreError, hide_credentials

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


URLS = {
    "https": "https://user:SECRET@host/x.zarr",
    "a key with a slash": "s3://KEY:SEC/SECRET@bucket/x.zarr",
    "a token": "gs://SECRET@bucket/x.zarr",
    "a query": "https://host/x.zarr?token=SECRET",
    "file": "file:///tmp/x.zarr",
    "a chain": "zip::s3://KEY:SECRET@bucket/x.zip",
    "a path of a URL": "https:/user:SECRET@host/x.zarr",
}


@pytest.mark.parametrize("why", URLS)
def test_a_url_is_no_path_and_its_credentials_are_not_shown(why):
    for given in (URLS[why], Path(URLS[why])):
        with pytest.raises(RequestError, match="is a URL, not a path on this machine") as caught:
            expand_path(given)
        assert "SECRET" not in f"{caught.value} {caught.value.hint}"
    error = StoreError(f"no store at '/here/{URLS[why]}': {URLS[why]} is empty", hint=f"look at {URLS[why]}")
    assert "SECRET" not in f"{error} {error.hint}"


def test_only_the_credentials_of_a_text_are_hidden():
    shown = "open 'https://…@host/a b' and s3://…@bucket/x?… at C:/x, mail a@b.org, timm:vit"
    said = shown.replace("…@host", "user:p@ss/word@host").replace("…@bucket", "key@bucket").replace("?…", "?a=1&b=2")
    assert hide_credentials(said) == shown
    assert has_credentials(said)
    for innocent in ("https://host/@user", "a@b.org", "timm:vit@1", "C:/a@b", "see https://host/x?y=1"):
        assert not has_credentials(innocent), innocent


@pytest.mark.parametrize("place", [*PLACES, "caption.output", "models.template"])
def test_a_url_in_a_recipe_is_one_line_and_its_password_is_nowhere(place, warm, tmp_path):
    recipe = write_lab(tmp_path, make_entry())
    whole = recipe.read_text()
    unused = {"caption.output": "caption: <output: {path}>\nmodels:", "models.template": "prompt: {path}\nmodels:"}
    old, new = PLACES[place] if place in PLACES else ("models:", unused[place])
    for url in ("https://user:SECRET@host/x.zarr", "https://host/SECRET"):
        if place not in PLACES and "user" not in url:
            continue  # not used as a path by a build
        written = new.replace("<", "{").replace(">", "}").replace("{path}", url)
        recipe.write_text(whole.replace(old.replace("{folder}", str(tmp_path)), written))
        ran = warm.run("build", recipe, "--allow-code", folder=tmp_path)
        assert_refused(ran, url, named="")
        assert "SECRET" not in ran.out + ran.err
        recipe.unlink()
        texts = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
        assert not any(b"SECRET" in text for text in texts)
        assert not (tmp_path / "https:").exists()


def test_a_url_on_the_command_line_is_one_line_and_makes_no_file(warm, tmp_path):
    url, recipe = "https://user:HUSH@host/x.zarr", write_lab(tmp_path, make_entry())
    before = sorted(tmp_path.rglob("*"))
    for command in (
        ["build", recipe, "--allow-code", "--store", url],
        ["plan", recipe, "--allow-code", "--store", url],
        ["build", recipe, "--allow-code", "--set", f"store={url}"],
        ["build", recipe, "--allow-code", "--stimuli-root", url],
        ["build", recipe, "--allow-code", "--folders", url],
        ["caption", recipe, "--output", url],
        ["info", "ftp://user:HUSH@host/x.zarr"],
        ["verify", f"file://{tmp_path}/HUSH"],
        ["verify", "s3://user:HUSH@host/x.zarr"],
        ["export", "zip::s3://KEY:HUSH@bucket/x.zip", "--to", "hdf5"],
        ["drop", url, "--models", "x"],
        ["export", tmp_path, "--to", "pt", "--output-dir", url],
        ["import", recipe, "--store", url],
        ["import", url, "--store", "s.zarr"],
        ["build", url],
    ):
        ran = warm.run(*command, folder=tmp_path)
        assert_refused(ran, command, named="")
        assert "HUSH" not in ran.out + ran.err, command
    assert sorted(path for path in tmp_path.rglob("*") if "__pycache__" not in path.parts) == before
    with pytest.raises(RequestError, match="is a URL"):
        xact.extract("ResNet50", [url])
    for read in (xact.open_activations, xact.load_lazy_activations):
        for given in (Path(url), url.replace("https", "ftp")):  # a URL that can be read is given as text
            with pytest.raises(RequestError, match="is a URL, not a path on this machine") as caught:
                read(given)
            assert caught.value.hint == "give the URL of a store as text; https, http, s3, gs are read"
