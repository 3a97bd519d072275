"""Thirty hostile names, as models, stimuli, conditions and layers: they come back as written, or are refused by name.

Nothing is written outside the store or the export, whatever the name.
"""

from __future__ import annotations

import csv
import json
import unicodedata
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import xarray as xr
from support.cli import assert_one_line, run
from support.lab import make_entry, write_lab

import xact

NAMES = {
    # why it is hostile: the name
    "up and out": "../x",
    "far up": "../../../../../../tmp/x",
    "absolute": "/tmp/x",  # noqa: S108
    "two parts": "a/b",
    "nothing": "",
    "long": "x" * 300,
    "as long as may be": "y" * 200,
    "a line break": "a\nb",
    "NUL": "a\0b",
    "an escape of the terminal": "\x1b[31mred",
    "a flag": "-rf",
    "a device of Windows": "CON",
    "another with an ending": "nul.txt",
    "an emoji": "🧠",
    "composed": unicodedata.normalize("NFC", "é"),
    "decomposed": unicodedata.normalize("NFD", "é"),
    "a formula": "=1+1",
    "another formula": "@SUM(A1)",
    "here": ".",
    "up": "..",
    "a dot at the end": "dot.",
    "a space at the end": "space ",
    "the metadata": "zarr.json",
    "the old metadata": ".zarray",
    "the chunks": "c",
    "from right to left": "a\u202etxt.exe",
    "half a pair": "\ud800",
    "an escape of the web": "%2e%2e",
    "home": "~",
    "a variable": "$HOME",
    "a backslash": "..\\x",
    "quotes and brackets": "\"'`{}[]<>|*?",
}

TWINS = {"decomposed"}
"""Names that meet another one where both are asked for."""

CANNOT = {"nothing", "long", "a line break", "NUL", "an escape of the terminal", "a space at the end", "half a pair"}
"""Names that no label may be: refused by name."""

GOOD = [name for why, name in NAMES.items() if why not in CANNOT | TWINS]


def write_named(folder: Path, *, models=("m",), stimuli=("s",), conditions=("a",), layers: str = "['0']") -> Path:
    """Write a recipe with these names: the stimuli and conditions in a table, the models as entries."""
    entry = make_entry()
    entries = [entry.replace("label: one", f"label: {quote(name)}") for name in models]
    recipe = write_lab(folder, *[one.replace("layers: ['0', '2']", f"layers: {layers}") for one in entries])
    with (folder / "t.csv").open("w", newline="", encoding="utf-8", errors="surrogatepass") as file:
        rows = csv.writer(file, quoting=csv.QUOTE_ALL)
        rows.writerow(["path", "id", "condition"])
        rows.writerows([["a/p00.png", name, conditions[i % len(conditions)]] for i, name in enumerate(stimuli)])
    old = "{source: folder, root: stimuli, folders: [a, b]}"
    recipe.write_text(recipe.read_text().replace(old, "{source: table, file: t.csv, root: stimuli}"))
    return recipe


def quote(name: str) -> str:
    """Return a name as YAML; half a surrogate pair can only be written as an escape."""
    return json.dumps(name, ensure_ascii="\ud800" in name)


def list_outside(folder: Path, *inside: str) -> set[Path]:
    """List all around the sandbox but what a command may write."""
    return {file for file in folder.rglob("*") if not any(file.is_relative_to(folder / "in" / one) for one in inside)}


@pytest.mark.parametrize("why", sorted(CANNOT))
@pytest.mark.parametrize("place", ["models", "stimuli", "conditions"])
def test_a_name_that_no_label_may_be_is_refused_in_one_line(place, why, tmp_path, capsys):
    recipe = write_named(tmp_path / "in", **{place: [NAMES[why]]})
    before = list_outside(tmp_path, "store.zarr")
    code, _, err = run(capsys, "build", recipe, "--allow-code")
    assert code in (1, 2)
    assert_one_line(err)
    assert not (tmp_path / "in" / "store.zarr").exists()
    assert list_outside(tmp_path, "store.zarr") - before <= {tmp_path / "in" / "__pycache__"}


@pytest.mark.parametrize("place", ["models", "stimuli"])
def test_names_that_look_alike_are_refused_or_kept_apart(place, tmp_path, capsys):
    names = [NAMES["composed"], NAMES["decomposed"]]
    code, _, err = run(capsys, "build", write_named(tmp_path / "in", **{place: names}), "--allow-code")
    if code:
        assert code == 2
        assert_one_line(err)
        assert "é" in unicodedata.normalize("NFC", err)
        return
    stored = xr.open_zarr(tmp_path / "in" / "store.zarr")["model" if place == "models" else "stimulus"].values.tolist()
    assert stored == names


@pytest.fixture(scope="module")
def named(tmp_path_factory) -> Path:
    """A sandbox with stores of both layouts, whose models, stimuli and conditions have all names that may be."""
    folder = tmp_path_factory.mktemp("names")
    recipe = write_named(folder / "in", models=GOOD, stimuli=GOOD, conditions=GOOD)
    before = list_outside(folder, "cube.zarr", "groups.zarr")
    for layout in ("cube", "groups"):
        settings = [f"storage.layout={layout}", "replicates.count=1", "replicates.jitter={kind: none}"]
        xact.build(recipe, store=folder / "in" / f"{layout}.zarr", settings=settings, allow_code=True)
    assert list_outside(folder, "cube.zarr", "groups.zarr", "__pycache__") == before
    return folder


@pytest.mark.parametrize("layout", ["cube", "groups"])
def test_names_come_back_from_zarr_as_they_were_written(layout, named):
    store = named / "in" / f"{layout}.zarr"
    plain = xr.open_zarr(store)
    catalog = plain if layout == "cube" else xr.open_zarr(store, group="catalog")
    assert catalog.model.values.tolist() == GOOD
    assert plain.stimulus.values.tolist() == GOOD
    assert plain.condition.values.tolist() == GOOD
    acts = xact.open_activations(store)
    assert [acts[name].values.tolist() for name in ("model", "stimulus", "condition")] == [GOOD] * 3
    for model in GOOD:
        one = xact.open_layer(store, model, "0")
        assert bool(one.notnull().all())
        assert str(one.model.values) == model
    if layout == "groups":
        tree = xr.open_datatree(store, engine="zarr")
        paths = [str(path) for path in catalog.path.values[:, 0]]
        assert [str(tree[path].model.values[0]) for path in paths] == GOOD
        assert len({path.casefold() for path in paths}) == len(GOOD)


def load_hdf5(file: Path) -> list[tuple[str, list[str]]]:
    """Return (model, stimuli) of a file of three levels; a name that a path cannot have is an attribute."""

    def label(group) -> str:
        return str(group.attrs.get("label", group.name.rpartition("/")[2]))

    with h5py.File(file) as data:
        assert all(np.isfinite(stimulus["0"][:]).all() for model in data.values() for stimulus in model.values())
        return [(label(model), [label(stimulus) for stimulus in model.values()]) for model in data.values()]


def load_netcdf(file: Path) -> list[tuple[str, list[str]]]:
    tree = xr.open_datatree(file, engine="h5netcdf")
    data = next(node.to_dataset() for node in tree.subtree if "activations" in node.data_vars)
    return [(str(np.atleast_1d(data.model.values)[0]), data.stimulus.values.tolist())]


def load_pt(file: Path) -> list[tuple[str, list[str]]]:
    held = torch.load(file, weights_only=True)
    return [(held["model"], list(held["stimulus"]))]


EXPORTS = {
    # format: (ending, how its labels are read)
    "hdf5": (".h5", load_hdf5),
    "netcdf": (".nc", load_netcdf),
    "pt": (".pt", load_pt),
}

NO_FILES = [".", ".."]
"""Names that can be in no file's name as they are."""


@pytest.mark.parametrize("kind", EXPORTS)
def test_exports_keep_the_names_or_refuse_them_by_name(kind, named, capsys):
    ending, load = EXPORTS[kind]
    before = list_outside(named, kind)
    command = ["export", named / "in" / "cube.zarr", "--to", kind, "--output-dir", named / "in" / kind]
    for name in NO_FILES if kind != "hdf5" else ():  # HDF5 names files by conditions, models inside
        code, _, err = run(capsys, *command, f"--models={name}")
        assert code == 2
        assert_one_line(err)
        assert repr(name) in err
    kept = [name for name in GOOD if name not in NO_FILES]
    chosen = [f"--models={name}" for name in kept]
    if kind == "hdf5":
        chosen += [f"--conditions={name}" for name in kept]
    code, _, err = run(capsys, *command, *chosen)
    assert code == 0, err
    assert list_outside(named, kind) == before
    files = [file for file in (named / "in" / kind).rglob("*") if file.suffix == ending]
    assert len(files) == len(kept)
    found = [one for file in files for one in load(file)]
    if kind == "hdf5":
        assert sorted(found) == sorted([(model, ["p00"]) for model in kept] * len(kept))  # stimuli go by their stem
    else:
        assert sorted(found) == sorted((model, GOOD) for model in kept)


LAYERS = [name for name in GOOD if "." not in name]
"""Names that torch gives a module: without a dot."""


def test_layers_keep_their_names_or_are_refused_by_name(tmp_path, capsys):
    code = (
        "from torch import nn\n"
        f"NAMES = {LAYERS!r}\n"
        "def make():\n"
        "    net = nn.Sequential()\n"
        "    for i, name in enumerate(NAMES):\n"
        "        net.add_module(name, nn.Conv2d(3 if i == 0 else 4, 4, 1))\n"
        "    return net\n"
    )
    recipe = write_named(tmp_path / "in", layers="all")
    (tmp_path / "in" / "named_layers.py").write_text(code)
    recipe.write_text(recipe.read_text().replace("labnet:make", "named_layers:make"))
    for layout in ("cube", "groups"):
        store = tmp_path / "in" / f"{layout}.zarr"
        arguments = ["--allow-code", "--store", store, "--set", f"storage.layout={layout}"]
        assert run(capsys, "build", recipe, *arguments)[0] == 0
        acts = xact.open_activations(store)
        assert [name for name in acts.layer.values.tolist() if name in LAYERS] == LAYERS
        for layer in LAYERS:
            assert bool(xact.open_layer(store, "m", layer).notnull().all())


@pytest.mark.parametrize("why", ["a line break", "NUL", "an escape of the terminal", "half a pair"])
def test_a_module_whose_name_no_label_may_be_is_refused_in_one_line(why, tmp_path, capsys):
    recipe = write_named(tmp_path / "in", layers="all")
    module = f"odd_layer_{list(NAMES).index(why)}"
    code = (
        "from torch import nn\ndef make():\n    net = nn.Sequential()\n"
        f"    net.add_module({NAMES[why]!r}, nn.Conv2d(3, 4, 1))\n    return net\n"
    )
    (tmp_path / "in" / f"{module}.py").write_text(code)
    recipe.write_text(recipe.read_text().replace("labnet:make", f"{module}:make"))
    code, _, err = run(capsys, "build", recipe, "--allow-code")
    assert code == 2
    assert_one_line(err)
    assert "layer" in err
    assert not (tmp_path / "in" / "store.zarr").exists()
