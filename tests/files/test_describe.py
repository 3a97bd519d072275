"""`xact info` tells what lies there, of a store and of the files that leave or enter one."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import xarray as xr
from support.stores import draw_values, make_model, make_store_plan, make_table, write_store

from xact.cli.main import main

draw = partial(draw_values, n_replicates=2)
LAYERS = {"blocks.2": [3], "blocks.10": [2, 2]}


def ask(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        main(["info", *map(str, arguments)])
    out, err = capsys.readouterr()
    assert isinstance(left.value.code, int)
    return left.value.code, out, err


def ask_json(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    code, out, err = ask(capsys, *arguments, "--json")
    assert (code, err) == (0, "")
    told: dict[str, Any] = json.loads(out)
    return told


@pytest.fixture(params=["cube", "groups"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Two of ten stimuli failed in one model; another model was never run."""
    models = [make_model(label, LAYERS, versions={"torch": "9.9"}, transform={"size": 224}) for label in ("A", "B")]
    plan = make_store_plan(models, make_table(10), layout=request.param, n_replicates=2)
    failed = {("A", 3): "cannot be decoded", ("A", 7): "is a FIFO"}
    write_store(tmp_path / "s.zarr", plan, draw, failed=failed, without=["B"])
    return tmp_path / "s.zarr"


def test_a_store_tells_done_failed_and_missing_rows_sizes_and_provenance(store, capsys):
    told = ask_json(capsys, store, "--layers")
    a, b = told["models"]
    assert (a["done"], a["failed"], a["missing"]) == (8, {"a/img3": "cannot be decoded", "b/img7": "is a FIFO"}, 0)
    assert (b["done"], b["failed"], b["missing"]) == (0, {}, 10)
    assert (a["versions"], a["transform"], a["dtype"]) == ({"torch": "9.9"}, {"size": 224}, "float32")
    assert told["nbytes"] == sum(file.stat().st_size for file in store.glob("**/activations/c.*") if file.is_file())
    assert [(layer["layer"], layer["n_units"]) for layer in a["layers"]] == [("blocks.2", 3), ("blocks.10", 4)]
    _, text, _ = ask(capsys, store, "--model", "A", "--layers")
    for line in (
        "A: 8 done, 2 failed, 0 missing; 2 layers, 7 units, ",
        "  failed b/img7: is a FIFO",
        "torch 9.9",
        "  transform  size 224\n",
        "  blocks.10  4 units (token feature), depth 1.00",
    ):
        assert line in text
    assert "B: " not in text


def test_of_many_failed_stimuli_a_terminal_shows_the_first_ones(tmp_path, capsys):
    plan = make_store_plan([make_model("A", LAYERS)], make_table(40), layout="cube", n_replicates=2)
    write_store(tmp_path / "s", plan, draw, failed={("A", row): "torn" for row in range(35)})
    _, text, _ = ask(capsys, tmp_path / "s")
    assert text.count(": torn") == 20
    assert "… and 15 more that failed; --json lists all" in text
    assert len(ask_json(capsys, tmp_path / "s")["models"][0]["failed"]) == 35


def test_a_store_without_its_hidden_folder_is_refused_with_what_it_lacks(store, capsys):
    (store / ".xact").rename(store.parent / "elsewhere")
    code, _, err = ask(capsys, store)
    assert code == 1
    assert err.startswith(f"error: '{store}' has no folder .xact: the plan and the journals")


def write_hdf5(path: Path) -> Path:
    with h5py.File(path, "w") as file:
        file.attrs["note"], file.attrs["sizes"] = "by hand", np.arange(2)
        for model in ("ResNet50", "ViT"):
            for row in range(12):
                for layer, shape in LAYERS.items():
                    file[f"{model}/img{row}/{layer}"] = np.zeros((4, int(np.prod(shape))), "f4")
            file[model].attrs["label"] = f"a/{model}"
    return path


def test_an_hdf5_file_tells_its_models_images_layers_shapes_and_attributes(tmp_path, capsys):
    path = write_hdf5(tmp_path / "a.h5")
    told = ask_json(capsys, path)
    assert told["attributes"] == {"note": "by hand", "sizes": [0, 1]}
    assert told["nbytes"] == path.stat().st_size
    assert told["n_models"] == ask_json(capsys, path, "--model", "ViT")["n_models"] == 2
    assert [(one["model"], one["n_stimuli"], one["n_layers"]) for one in told["models"]] == [
        ("ResNet50", 12, 2),
        ("ViT", 12, 2),
    ]
    (one,) = ask_json(capsys, path, "--model", "ViT", "--layers")["models"]
    assert one["layers"] == [{"layer": "blocks.2", "shape": [4, 3]}, {"layer": "blocks.10", "shape": [4, 4]}]
    assert sorted(one["stimuli"]) == sorted(f"img{row}" for row in range(12))
    assert one["attributes"] == {"label": "a/ViT"}
    _, text, _ = ask(capsys, path, "--model", "ViT", "--layers")
    assert text.startswith(f"{path}: HDF5, 2 models, ")  # what the file holds
    for line in ("ViT: 12 stimuli, 2 layers\n", "    blocks.10  4 x 4\n", "  note: by hand\n", "stimuli: img0, img1"):
        assert line in text


def test_a_netcdf_file_tells_its_models_layers_and_shapes(tmp_path, capsys):
    path = tmp_path / "a.nc"
    for layer, mode in (("blocks.2", "w"), ("blocks.10", "a")):
        values = np.zeros((3, 1, 5), "f4")
        one = xr.Dataset({"activations": (("stimulus", "replicate", "unit"), values)}, {"model": "ViT", "layer": layer})
        one.to_netcdf(path, engine="h5netcdf", group=layer, mode=mode)  # type: ignore[arg-type]
    told = ask_json(capsys, path, "--layers")
    assert (told["models"], told["n_layers"]) == (["ViT"], 2)
    assert [(layer["layer"], layer["shape"]) for layer in told["layers"]] == [
        ("blocks.2", [3, 1, 5]),
        ("blocks.10", [3, 1, 5]),
    ]
    _, text, _ = ask(capsys, path, "--layers")
    assert "  blocks.10  (stimulus, replicate, unit) 3 x 1 x 5\n" in text


def test_a_pt_file_tells_its_keys_and_shapes_without_reading_the_values(tmp_path, capsys):
    path = tmp_path / "ViT_pool-cls.pt"
    held = {"feats": torch.zeros(10, 12, 192), "num_params": 5, "layer": [f"blocks.{i}" for i in range(12)]}
    torch.save(held, path)
    told = ask_json(capsys, path, "--layers", "--model", "ViT")
    assert told["keys"]["feats"] == {"shape": [10, 12, 192], "dtype": "float32"}
    assert told["keys"]["num_params"] == {"value": 5}
    assert told["keys"]["layer"] == {"length": 12, "first": ["blocks.0", "blocks.1", "blocks.2"]}
    assert told["layers"][-1] == "blocks.11"
    _, text, _ = ask(capsys, path)
    assert "  feats: 10 x 12 x 192 float32\n" in text
    torch.save(held | {"model": "timm:vit"}, path)
    assert ask_json(capsys, path)["model"] == "timm:vit"


class Dangerous:
    """Pickles into a call."""

    def __reduce__(self):
        return print, ("this ran",)


@pytest.mark.parametrize(
    ("name", "write", "code", "said"),
    [
        ("a.pt", lambda path: torch.save(Dangerous(), path), 1, "holds more than tensors and plain values"),
        ("a.pt", lambda path: path.write_bytes(b"no zip"), 1, "is damaged, or was not written by torch.save"),
        ("a.h5", lambda path: path.write_bytes(b"no HDF5"), 1, "is not an HDF5 file, or is damaged"),
        ("a.nc", lambda path: path.write_bytes(b"no netCDF"), 1, "is damaged, or is not a netCDF file"),
        ("a.csv", lambda path: path.write_text("a,b"), 2, "its name does not end in .h5, .hdf5, .nc, .pt, .pth"),
        ("none.zarr", lambda _: None, 2, "there is no xact store at"),
    ],
    ids="code torn text_h5 text_nc ending nothing".split(),
)
def test_what_cannot_be_told_is_one_line_that_says_why(tmp_path, capsys, name, write, code, said):
    write(tmp_path / name)
    found, out, err = ask(capsys, tmp_path / name)
    assert (found, out) == (code, "")
    error, hint = err.splitlines()
    assert error.startswith("error: ")
    assert said in error
    assert hint.startswith("hint: ")


@pytest.mark.parametrize("kind", ["store", "h5", "pt"])
def test_a_model_that_is_not_there_is_refused_with_the_nearest(store, tmp_path, capsys, kind):
    torch.save({"feats": torch.zeros(2)}, tmp_path / "ResNet50.pt")
    place = {"store": store, "h5": write_hdf5(tmp_path / "a.h5"), "pt": tmp_path / "ResNet50.pt"}[kind]
    code, _, err = ask(capsys, place, "--model", "a" if kind == "store" else "Resnet5")
    assert code == 2
    assert ("(nearest: A)" if kind == "store" else "(nearest: ResNet50)") in err


def test_only_a_pt_file_needs_torch(tmp_path, store):
    path = write_hdf5(tmp_path / "a.h5")
    script = f"""
import sys
sys.modules["torch"] = None
from xact.files.describe import load_kind
for path in ({str(path)!r}, {str(store)!r}):
    load_kind(path).describe(path, model=None, with_layers=True)
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[2])
