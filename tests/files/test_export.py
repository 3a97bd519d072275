"""What every format of `xact export` promises: the right part of the store, whole files or none."""

from __future__ import annotations

import errno
import hashlib
import io
import math
import os
import random
import resource
import signal
import struct
import subprocess
import sys
import time
import zipfile
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import netCDF4
import numpy as np
import pytest
import torch
import xarray as xr
from support.cli import run
from support.stores import draw_values, make_model, make_store_plan, make_table, write_store

import xact
from xact.building.import_files import import_files
from xact.errors import NameNotFoundError, RequestError, StoreError, WorkError
from xact.files.atomic import MARGIN_NBYTES, check_room, write_beside
from xact.files.export import choose, export
from xact.files.hdf5.write import _fill
from xact.labels import MAX_LABEL_LENGTH
from xact.reading.catalog import open_catalog

R50 = {"conv1": [3, 4, 4], **{f"layer4.{i}": [40] for i in (10, 9, 2)}, "fc@mean": [7]}
VIT = {f"blocks.{i}": [16] for i in range(12)}
CONDITIONS = ("plain", "confound/leaves")


def make_random_store(folder: Path, layout: str, *, conditions: tuple[str, ...] = CONDITIONS, **changes: Any) -> Path:
    models = [make_model("R50", R50), make_model("org/ViT", VIT), make_model("ViT@random-1", VIT, base="org/ViT")]
    plan = make_store_plan(models, make_table(23, conditions=conditions), layout=layout, n_replicates=2)
    store = folder / f"{layout}.zarr"
    write_store(store, plan, partial(draw_values, n_replicates=2), **changes)
    return store


def read_by_xarray(store: Path, model: str, layer: str) -> np.ndarray:
    """Read (stimulus, replicate, unit) as one who has never heard of xact does."""
    root = xr.open_zarr(store)
    if root.attrs["xact_layout"] == "cube":
        return root["activations"].sel(model=model, layer=layer).dropna("unit", how="all").values
    path = xr.open_zarr(store, group="catalog")["path"].sel(model=model, layer=layer).values.item()
    return xr.open_zarr(store, group=path)["activations"].values[0, :, 0]


@pytest.fixture(scope="module", params=["cube", "groups"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_random_store(tmp_path_factory.mktemp("store"), request.param)


@pytest.fixture(scope="module")
def cube(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_random_store(tmp_path_factory.mktemp("store"), "cube")


# HDF5


def test_every_value_of_hdf5_is_that_of_the_store(store: Path, tmp_path: Path):
    files = export(store, to="hdf5", output_dir=tmp_path)
    assert [file.name for file in files] == [
        "model_activations_plain.h5",
        "model_activations_confound_leaves.h5",
    ]
    stems = [f"img{row}" for row in range(23)]
    for file, rows in zip(files, (range(12), range(12, 23)), strict=True):
        with h5py.File(file) as opened:
            assert list(opened) == ["R50", "org_ViT", "ViT@random-1"]
            assert opened["org_ViT"].attrs["label"] == "org/ViT"
            for name, label, layers in (("R50", "R50", R50), ("org_ViT", "org/ViT", VIT)):
                assert list(opened[name]) == [stems[row] for row in rows]
                expected = {layer: read_by_xarray(store, label, layer) for layer in layers}
                for row in rows:
                    assert list(opened[name][stems[row]]) == list(layers)
                    for layer in layers:
                        data = opened[name][stems[row]][layer]
                        assert data.dtype == np.float32
                        np.testing.assert_array_equal(data[:], expected[layer][row])


def test_an_old_library_can_read_the_hdf5(cube: Path, tmp_path: Path):
    file = export(cube, to="hdf5", output_dir=tmp_path, models="R50", conditions="plain")[0]
    assert file.read_bytes()[8] == 0  # version of the superblock: that of HDF5 1.0 to 1.8
    with h5py.File(file, libver=("earliest", "v108")) as opened:
        assert opened["R50/img3/conv1"].shape == (2, 48)
        assert opened["R50/img3/conv1"].chunks is None


@pytest.mark.parametrize(("replicates", "n"), [("all", 2), ("0", 1), ("mean", 1)])
def test_replicates_are_all_of_them_the_first_or_their_mean(store: Path, tmp_path: Path, replicates: str, n: int):
    whole = read_by_xarray(store, "R50", "conv1")
    expected = {"all": whole, "0": whole[:, :1], "mean": whole.astype(np.float64).mean(1, keepdims=True)}[replicates]
    chosen = {"models": "R50", "layers": "conv1", "replicates": replicates, "output_dir": tmp_path}
    with h5py.File(export(store, to="hdf5", conditions="plain", **chosen)[0]) as opened:
        assert opened["R50/img3/conv1"].shape == (n, 48)
        np.testing.assert_array_equal(opened["R50/img3/conv1"][:], expected[3].astype(np.float32))
    with netCDF4.Dataset(export(store, to="netcdf", **chosen)[0]) as opened:
        np.testing.assert_array_equal(opened["conv1"]["activations"][:], expected.astype(np.float32))
    if n == 1:
        values = torch.load(export(store, to="pt", **chosen)[0])["feats"][:, 0]
        np.testing.assert_array_equal(values.numpy(), expected.astype(np.float32)[:, 0])


HARD = np.array([[1e8, 1, -1e8], [3e38, 3e38, -3e38], [1, 2**-24, 2**-24], [16777216, 1, 1]], dtype=np.float32)
"""(unit, replicate): means that are wrong, or infinite, where the sum is kept in float32."""


@pytest.mark.parametrize("to", ["hdf5", "netcdf", "pt"])
def test_replicates_are_averaged_in_float64_whatever_their_sum(tmp_path: Path, to: str):
    plan = make_store_plan([make_model("m", {"fc": [4]})], make_table(5), layout="cube", n_replicates=3)
    write_store(tmp_path / "s", plan, lambda _m, _k, start, stop, _n: np.stack([HARD.T] * (stop - start)))
    expected = np.array([math.fsum(map(float, unit)) / 3 for unit in HARD], dtype=np.float32)
    file = export(tmp_path / "s", to=to, output_dir=tmp_path, replicates="mean")[0]
    if to == "pt":
        values = torch.load(file)["feats"][3, 0].numpy()
    else:
        with h5py.File(file) as opened:
            values = opened["m/img1/fc"][0] if to == "hdf5" else opened["fc/activations"][1, 0]
    np.testing.assert_array_equal(values, expected)


def test_models_of_other_replicates_are_not_added(cube: Path, tmp_path: Path):
    export(cube, to="hdf5", output_dir=tmp_path, models="R50")
    with pytest.raises(RequestError, match="has replicates: all 2; the added models have: mean of 2"):
        export(cube, to="hdf5", output_dir=tmp_path, models="*ViT", append=True, replicates="mean")


def test_names_are_those_of_the_first_seed_on_demand(cube: Path, tmp_path: Path):
    files = export(cube, to="hdf5", output_dir=tmp_path, names="basename", prefix="p", models="R50", layers="conv1")
    assert [file.name for file in files] == ["p_plain.h5", "p_leaves.h5"]


def test_appending_adds_models_and_keeps_what_is_there(cube: Path, tmp_path: Path):
    export(cube, to="hdf5", output_dir=tmp_path, models="R50")
    files = export(cube, to="hdf5", output_dir=tmp_path, models="*ViT", append=True)
    with h5py.File(files[0]) as opened:
        assert list(opened) == ["R50", "org_ViT"]
        assert list(opened["org_ViT/img0"]) == list(VIT)
        np.testing.assert_array_equal(opened["R50/img3/conv1"][:], read_by_xarray(cube, "R50", "conv1")[3])
    before = hash_files(tmp_path)
    with pytest.raises(RequestError, match="has a model 'R50' already"):
        export(cube, to="hdf5", output_dir=tmp_path, append=True)
    assert hash_files(tmp_path) == before


def make_odd_store(folder: Path, layer: str = "fc", *, stems: list[str], conditions: list[str]) -> Path:
    table = make_table(len(stems))
    object.__setattr__(table, "stems", stems)
    object.__setattr__(table, "conditions", conditions)
    plan = make_store_plan([make_model("m", {layer: [3]}), make_model("m/2", {layer: [3]})], table, layout="cube")
    write_store(folder / "odd.zarr", plan, draw_values)
    return folder / "odd.zarr"


@pytest.mark.parametrize(
    ("stems", "conditions", "layer", "options", "message"),
    [
        (["x", "x"], ["a", "a"], "fc", {}, "condition 'a': .* have the same stem 'x'"),  # one group would hold both
        (["x/y", "x_y"], ["a", "a"], "fc", {}, "'x/y' and .* 'x_y' would both be 'x_y'"),
        (["x", "y"], ["a/c", "b/c"], "fc", {"names": "basename"}, "condition 'a/c' and condition 'b/c' would both"),
        (["x", "y"], ["a/c", "a_c"], "fc", {}, "condition 'a/c' and condition 'a_c' would both"),
        (["x", "y"], ["Plain", "plain"], "fc", {}, "'.*_Plain.h5' on a disk that does not tell capitals apart"),
        (["x", "y"], ["a", "b"], ".", {}, "layer '.' cannot be a name in HDF5"),  # `.` is the group itself
        (["x", "y"], ["a", "b"], "fc", {"prefix": "../p"}, "--prefix '../p' contains a `/`"),
        (["x", "y"], ["a", "b" * 199], "fc", {"prefix": "p" * 60}, "is too long"),
    ],
)
def test_what_hdf5_cannot_name_is_refused(tmp_path: Path, stems, conditions, layer, options, message):
    odd = make_odd_store(tmp_path, layer, stems=stems, conditions=conditions)
    with pytest.raises(RequestError, match=message):
        export(odd, to="hdf5", output_dir=tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_label_with_a_slash_is_an_attribute(tmp_path: Path):
    odd = make_odd_store(tmp_path, "a/b", stems=["x/1", "y"], conditions=["c", "c"])
    with h5py.File(export(odd, to="hdf5", output_dir=tmp_path)[0]) as opened:
        assert list(opened["m"]) == ["x_1", "y"]
        assert opened["m/x_1"].attrs["label"] == "x/1"
        assert opened["m/x_1/a_b"].attrs["label"] == "a/b"


@pytest.mark.parametrize("condition", ["../../up", "..", "/etc/up"])
@pytest.mark.parametrize("to", ["hdf5", "netcdf", "pt"])
def test_no_name_leads_out_of_the_output_folder(tmp_path: Path, condition: str, to: str):
    table = make_table(2, conditions=(condition,))
    plan = make_store_plan([make_model(f"{condition}/m", {"../fc": [3]})], table, layout="groups")
    plan = plan.model_copy(update={"recipe": plan.recipe | {"stimuli": {"source": "folder", "dataset": condition}}})
    write_store(tmp_path / "s.zarr", plan, draw_values)
    before = set(tmp_path.rglob("*"))
    if condition == ".." and to != "netcdf":  # of a folder in pt, of a file in hdf5; netCDF has no use for it
        with pytest.raises(RequestError, match="cannot be the name of a file or folder"):
            export(tmp_path / "s.zarr", to=to, output_dir=tmp_path / "a" / "b")
        return
    files = export(tmp_path / "s.zarr", to=to, output_dir=tmp_path / "a" / "b")
    assert all(file.resolve().is_relative_to(tmp_path / "a" / "b") for file in files)
    new = set(tmp_path.rglob("*")) - before
    assert all(path.is_relative_to(tmp_path / "a") for path in new)


# netCDF


def test_every_value_and_label_of_netcdf_is_that_of_the_store(store: Path, tmp_path: Path):
    files = export(store, to="netcdf", output_dir=tmp_path, models=["R50", "org/ViT"])
    assert [file.name for file in files] == ["model_activations_R50.nc", "model_activations_org_ViT.nc"]
    labels = xr.open_zarr(store)
    with xr.open_datatree(files[0]) as tree, netCDF4.Dataset(files[0]) as other:
        assert tree["catalog"]["layer"].values.tolist() == list(R50)
        for name in ("stimulus", "condition", "stem", "file", "sha256", "stimulus_index"):
            assert tree[name].values.tolist() == labels[name].values.tolist()
        assert tree.coords["model"].item() == "R50"
        for layer in R50:
            path = str(tree["catalog"]["path"].sel(layer=layer).item())
            values = tree[path]["activations"]
            expected = read_by_xarray(store, "R50", layer)
            assert values.dims == ("stimulus", "replicate", "unit")
            np.testing.assert_array_equal(values.values, expected)
            np.testing.assert_array_equal(other[path]["activations"][:], expected)
            assert values["layer"].item() == layer
            assert values["condition"].values.tolist() == labels["condition"].values.tolist()
            assert values.dtype == np.float32
        assert tree["conv1"]["activations"]["channel"].values.tolist() == [c for c in range(3) for _ in range(16)]


def test_netcdf_of_some_conditions_has_their_labels(cube: Path, tmp_path: Path):
    file = export(cube, to="netcdf", output_dir=tmp_path, models="R50", conditions="confound/*", layers="fc*")[0]
    with xr.open_dataset(file, group="fc_mean") as opened:
        assert opened["stem"].values.tolist() == [f"img{row}" for row in range(12, 23)]
        assert opened["stimulus"].values[0] == "confound/leaves/img12"
        np.testing.assert_array_equal(opened["activations"].values, read_by_xarray(cube, "R50", "fc@mean")[12:])


def test_a_column_and_a_layer_of_one_name_stand_side_by_side(tmp_path: Path):
    table = make_table(4, fc=[1, 2, 3, 4], is_face=[True, False, True, True])
    plan = make_store_plan([make_model("m", {"fc": [3]})], table, layout="groups")
    write_store(tmp_path / "s", plan, draw_values)
    with xr.open_datatree(export(tmp_path / "s", to="netcdf", output_dir=tmp_path)[0]) as tree:
        assert tree["fc"].values.tolist() == [1, 2, 3, 4]
        assert tree["is_face"].values.tolist() == [True, False, True, True]
        values = tree[tree["catalog"]["path"].values.item()]["activations"]
        np.testing.assert_array_equal(values.values, read_by_xarray(tmp_path / "s", "m", "fc"))


def test_columns_keep_their_type_and_their_true_name_in_netcdf(tmp_path: Path):
    columns = {
        "is_face": [True, False, True, True],
        "a/b": [1, 2, 3, 4],
        "size": [0.5, 1, 1.5, 2],
        "word": list("xyzü"),
    }
    plan = make_store_plan([make_model("m", {"fc": [3]})], make_table(4, **columns), layout="groups")
    write_store(tmp_path / "s", plan, draw_values)
    (file,) = export(tmp_path / "s", to="netcdf", output_dir=tmp_path)
    with xr.open_dataset(file) as opened:
        kinds = {name: opened[name].dtype.kind for name in ("is_face", "a_b", "size", "present", "trained")}
        assert kinds == {"is_face": "b", "a_b": "i", "size": "f", "present": "b", "trained": "b"}
        for name, values in columns.items():
            assert opened[name.replace("/", "_")].values.tolist() == values
        assert opened["a_b"].attrs["long_name"] == "a/b"
        assert opened["a_b"].dims == ("stimulus",)
        assert "long_name" not in opened["size"].attrs


# .pt


def test_every_value_of_pt_is_that_of_the_store(store: Path, tmp_path: Path):
    (file,) = export(store, to="pt", output_dir=tmp_path, models="org/ViT")
    assert file == tmp_path / "folder" / "all-untrained" / "org_ViT_pool-flatten-untrained.pt"
    held = torch.load(file)
    expected = np.stack([read_by_xarray(store, "org/ViT", layer)[:, 0] for layer in VIT], axis=1)
    assert held["feats"].dtype == torch.float32
    np.testing.assert_array_equal(held["feats"].numpy(), expected)
    assert held["layer"] == list(VIT)
    assert held["stimulus"] == xr.open_zarr(store)["stimulus"].values.tolist()
    assert (held["model"], held["num_params"], held["transform"]) == ("org/ViT", 7, {})
    assert "row_note" not in held


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_pt_file_is_what_torch_would_have_saved(cube: Path, tmp_path: Path, dtype: str):
    (file,) = export(cube, to="pt", output_dir=tmp_path, models="org/ViT", dtype=dtype)
    held = torch.load(file)
    values = np.stack([read_by_xarray(cube, "org/ViT", layer)[:, 0] for layer in VIT], axis=1)
    assert torch.equal(held["feats"], torch.from_numpy(values).to(getattr(torch, dtype)))
    torch.save(
        {name: value.clone() if name == "feats" else value for name, value in held.items()}, tmp_path / "archive.pt"
    )
    with zipfile.ZipFile(file) as ours, zipfile.ZipFile(tmp_path / "archive.pt") as theirs:
        assert ours.testzip() is None
        assert ours.namelist() == theirs.namelist()
        for name in ours.namelist():
            assert name.endswith("serialization_id") or ours.read(name) == theirs.read(name)
    assert torch.load(file, mmap=True)["feats"].shape == (23, 12, 16)


def test_trained_twins_and_prompts_have_names_of_their_own(tmp_path: Path):
    models = [
        make_model("R", {"a": [3]}, trained=True, weights="pretrained", seed=-1),
        *(make_model(f"R@random-{seed}", {"a": [3]}, seed=seed) for seed in (0, 1)),
    ]
    models = [
        model.model_copy(update={"layers": tuple(one.model_copy(update={"reduction": "mean"}) for one in model.layers)})
        for model in models
    ]
    plan = make_store_plan(models, make_table(4), layout="cube")
    stimuli = {"source": "captions", "dataset": "nsd", "prompt_name": "coco"}
    write_store(tmp_path / "s", plan.model_copy(update={"recipe": plan.recipe | {"stimuli": stimuli}}), draw_values)
    files = export(tmp_path / "s", to="pt", output_dir=tmp_path / "features")
    assert [str(file.relative_to(tmp_path / "features")) for file in files] == [
        "nsd/all/R_pool-avg_prompt-coco.pt",
        "nsd/all-untrained/R@random-0_pool-avg_prompt-coco-untrained.pt",
        "nsd/all-untrained/R@random-1_pool-avg_prompt-coco-untrained.pt",
    ]
    held = [torch.load(file) for file in files]
    assert [one["base"] for one in held] == ["R", "R", "R"]
    assert "not ids" in held[0]["row_note"]  # NSD has 73,000
    assert not torch.equal(held[1]["feats"], held[2]["feats"])


def test_a_part_of_a_data_set_says_so(cube: Path, tmp_path: Path):
    (file,) = export(cube, to="pt", output_dir=tmp_path, models="org/ViT", conditions="plain")
    held = torch.load(file)
    assert held["feats"].shape[0] == 12
    assert "row numbers are not ids" in held["row_note"]


@pytest.mark.parametrize(
    ("dataset", "n_images"),
    [
        ("nsd", 73_000),  # Allen et al. 2022: 73,000 images
        ("bold5000", 4_916),  # Chang et al. 2019: 4,916 unique images
        ("things", 26_107),  # Hebart et al. 2019: 26,107 images
    ],
)
def test_the_whole_of_a_data_set_is_not_called_a_part(tmp_path: Path, dataset: str, n_images: int):
    for n, is_whole in ((n_images, True), (12, False)):
        plan = make_store_plan([make_model("m", {"fc": [1]})], make_table(n), layout="cube")
        plan = plan.model_copy(update={"recipe": plan.recipe | {"stimuli": {"source": dataset}}})
        write_store(tmp_path / f"{n}.zarr", plan, lambda _m, _l, start, stop, n: np.zeros((stop - start, 1, n), "f4"))
        (file,) = export(tmp_path / f"{n}.zarr", to="pt", output_dir=tmp_path / str(n))
        held = torch.load(file)
        assert len(held["feats"]) == n
        assert ("row_note" not in held) == is_whole


@pytest.mark.parametrize(("limit", "is_said"), [(4, True), (5, False), (None, False)])
def test_stimuli_that_a_limit_cut_are_called_a_part(tmp_path: Path, limit: int | None, is_said: bool):
    plan = make_store_plan([make_model("m", {"fc": [3]})], make_table(4), layout="cube")
    stimuli = {"source": "folder"} | ({"limit": limit} if limit else {})
    write_store(tmp_path / "s", plan.model_copy(update={"recipe": plan.recipe | {"stimuli": stimuli}}), draw_values)
    (file,) = export(tmp_path / "s", to="pt", output_dir=tmp_path / "out")
    assert ("row_note" in torch.load(file)) == is_said


N_TOKENS = {"llama": [3, 1, 4, 1, 5, 2], "bloomz": [6, 2, 1, 3, 2, 4]}
LOSS = {"llama": [0.5, 1.5, 2.5, 3.5, 4.5, 5.5], "bloomz": [9.25, 8.25, 7.25, 6.25, 5.25, 4.25]}
N_PARAMETERS = {"llama": 11, "bloomz": 22}


def make_text_store(store: Path) -> Path:
    """Write two language models over six texts, three in each condition."""
    models = [
        make_model(label, {"hidden.0": [3]}, kind="text", n_parameters=n_parameters)
        for label, n_parameters in N_PARAMETERS.items()
    ]
    plan = make_store_plan(models, make_table(6), layout="cube")
    state = write_store(store, plan, draw_values, is_published=False)
    for (label, _), record in state.tasks.items():
        record.scores["loss"] = dict(enumerate(LOSS[label]))
        record.scores["bpb"] = {row: loss / 8 for row, loss in enumerate(LOSS[label])}
        record.scores["n_tokens"] = dict(enumerate(N_TOKENS[label]))
    write_store(store, plan, draw_values, state=state)
    return store


@pytest.mark.parametrize("label", ["llama", "bloomz"])
@pytest.mark.parametrize(("condition", "rows"), [("a", slice(0, 3)), ("b", slice(3, 6)), (None, slice(0, 6))])
def test_numbers_of_a_pt_file_are_those_of_its_own_model_and_rows(
    tmp_path: Path, label: str, condition: str | None, rows: slice
):
    store = make_text_store(tmp_path / "s.zarr")
    (file,) = export(store, to="pt", output_dir=tmp_path, models=label, conditions=condition)
    held = torch.load(file)
    lengths = N_TOKENS[label][rows]
    assert held["num_params"] == N_PARAMETERS[label]
    assert held["loss"].tolist() == LOSS[label][rows]
    assert held["bpb"].tolist() == [loss / 8 for loss in LOSS[label][rows]]
    assert held["mask"].tolist() == [[place < length for place in range(max(lengths))] for length in lengths]


def test_every_model_of_one_export_has_its_own_numbers(tmp_path: Path):
    files = export(make_text_store(tmp_path / "s.zarr"), to="pt", output_dir=tmp_path)
    held = {one["model"]: one for one in map(torch.load, files)}
    assert {label: one["num_params"] for label, one in held.items()} == N_PARAMETERS
    assert {label: one["loss"].tolist() for label, one in held.items()} == LOSS


# what `.pt` exports rely on in torch


def find_records(file: BinaryIO) -> dict[str, tuple[int, int, int]]:
    """Return {record: (start of its bytes, their number, place of its entry in the directory)} of a ZIP file."""
    found = {}
    with zipfile.ZipFile(file) as archive:
        entry = archive.start_dir
        for record in archive.infolist():
            file.seek(record.header_offset)
            header = file.read(30)
            assert header[:4] == b"PK\3\4"
            lengths = struct.unpack("<2H", header[26:])
            found[record.filename] = (record.header_offset + 30 + sum(lengths), record.file_size, entry)
            assert record.compress_type == zipfile.ZIP_STORED
            file.seek(entry)
            directory = file.read(46)
            assert directory[:4] == b"PK\1\2"
            entry += 46 + sum(struct.unpack("<3H", directory[28:34]))
    return found


TOLD = f"torch {torch.__version__} lays out its files in another way; xact/export/torch.py relies on it: "


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_torch_leaves_the_places_that_the_pt_export_fills(dtype: torch.dtype):
    tensors = {
        "feats": torch.arange(1, 25.0).to(dtype).reshape(2, 3, 4),
        "loss": torch.tensor([2.0, 3.0]),
        "bpb": torch.tensor([5.0, 7.0]),
        "mask": torch.tensor([[True, False], [True, True]]),
    }
    whole, frame = io.BytesIO(), io.BytesIO()
    torch.save(tensors | {"num_params": 7}, whole)
    with torch.serialization.skip_data():
        torch.save(tensors | {"num_params": 7}, frame)
    records = find_records(whole)
    assert find_records(frame) == records, TOLD + "a file without its values has its records elsewhere"
    filled, expected = bytearray(frame.getvalue()), bytearray(whole.getvalue())
    data = [place for name, place in records.items() if "/data/" in name]
    assert len(data) == len(tensors), TOLD + "each tensor has one record in data/"
    for (start, nbytes, entry), (name, tensor) in zip(data, tensors.items(), strict=True):
        values = tensor.contiguous().view(torch.uint8).numpy().tobytes()
        assert expected[start : start + nbytes] == values, TOLD + f"record of {name}: order of the dictionary"
        assert not any(filled[start : start + nbytes]), TOLD + f"record of {name}: it is left empty"
        assert filled[start + nbytes :][:4] == b"PK\7\x08", TOLD + f"record of {name}: its CRC-32 stands behind it"
        filled[start : start + nbytes] = values
        for place in (start + nbytes + 4, entry + 16):
            filled[place : place + 4] = struct.pack("<I", zlib.crc32(values))
    start, nbytes, entry = records["archive/.data/serialization_id"]  # a hash over what the other records hold
    for content in (filled, expected):
        for place, n in ((start, nbytes), (start + nbytes + 4, 4), (entry + 16, 4)):
            content[place : place + n] = bytes(n)
    assert filled == expected, TOLD + "all but values and CRC-32 is there"


def test_torch_leaves_the_same_places_in_files_of_more_than_4_gib(tmp_path: Path):
    n = 2**30 + 8
    with (tmp_path / "hollow").open("wb") as hollow:
        hollow.truncate(4 * n)
    tensors = {"feats": torch.from_file(str(tmp_path / "hollow"), shared=True, size=n), "loss": torch.ones(3)}
    with (tmp_path / "frame").open("w+b") as frame:
        with torch.serialization.skip_data():
            torch.save(tensors, frame)
        places = {name: place for name, place in find_records(frame).items() if "/data/" in name}
        assert [nbytes for _, nbytes, _ in places.values()] == [4 * n, 12], TOLD + "order of the dictionary"
        for start, nbytes, _ in places.values():
            frame.seek(start + nbytes)
            assert frame.read(4) == b"PK\7\x08", TOLD + "the CRC-32 of a record stands behind it"


def test_pt_refuses_layers_of_unequal_width_and_several_replicates(cube: Path, tmp_path: Path):
    with pytest.raises(RequestError, match=r"'conv1' has 48 units, 'layer4.10' has 40"):
        export(cube, to="pt", output_dir=tmp_path, models="R50")
    with pytest.raises(RequestError, match="the store has 2 replicates"):
        export(cube, to="pt", output_dir=tmp_path, models="org/ViT", replicates="all")


def test_pt_writes_what_it_can_and_ends_with_an_error_that_names_the_rest(cube: Path, tmp_path: Path):
    notes: list[str] = []
    with pytest.raises(WorkError, match=r"1 of 3 files were not written: model 'R50', flatten") as caught:
        export(cube, to="pt", output_dir=tmp_path, note=notes.append)
    assert "--per-layer" in caught.value.hint
    assert notes == [
        "not written: model 'R50': layer 'conv1' has 48 units, 'layer4.10' has 40; a .pt file holds layers of one width"
    ]
    written = {torch.load(file)["model"]: torch.load(file) for file in tmp_path.rglob("*.pt")}
    assert set(written) == {"org/ViT", "ViT@random-1"}
    for model, held in written.items():
        expected = np.stack([read_by_xarray(cube, model, layer)[:, 0] for layer in VIT], axis=1)
        np.testing.assert_array_equal(held["feats"].numpy(), expected)


def test_the_command_ends_with_1_where_a_pt_file_cannot_hold_a_model(cube: Path, tmp_path: Path, capsys):
    code, out, err = run(capsys, "export", cube, "--to", "pt", "--output-dir", tmp_path)
    assert code == 1
    assert len(out.splitlines()) == 2
    note, error, hint = err.splitlines()
    assert note.startswith("note: not written: model 'R50': layer 'conv1' has 48 units")
    assert error == "error: 1 of 3 files were not written: model 'R50', flatten"
    assert hint.startswith("hint: --per-layer writes a file for each layer")
    code, out, err = run(capsys, "export", cube, "--to", "pt", "--output-dir", tmp_path / "layers", "--per-layer")
    assert (code, err) == (0, "")
    assert len(out.splitlines()) == len(R50) + 2 * len(VIT)


def test_pt_of_single_layers_holds_every_width(store: Path, tmp_path: Path):
    files = export(store, to="pt", output_dir=tmp_path, models="R50", per_layer=True)
    assert [file.name for file in files] == [f"R50_layer-{layer}_pool-flatten-untrained.pt" for layer in R50]
    for file, layer in zip(files, R50, strict=True):
        held = torch.load(file)
        assert held["layer"] == [layer]
        np.testing.assert_array_equal(held["feats"][:, 0].numpy(), read_by_xarray(store, "R50", layer)[:, 0])
    with pytest.raises(RequestError, match=r"--per-layer cannot be used with --to hdf5"):
        export(store, to="hdf5", output_dir=tmp_path, per_layer=True)


def find_trained(path: Path) -> Path:
    """The trained network's file, as the second study finds it from the untrained one's."""
    return Path(str(path).replace("-untrained", "").replace("all-untrained", "all"))


@pytest.mark.parametrize("twin", ["org/R@random-3", "org/R-untrained"])
def test_the_file_of_the_only_untrained_twin_pairs_with_the_trained_one(tmp_path: Path, twin: str):
    models = [
        make_model("org/R", {"a": [3]}, trained=True, weights="pretrained", seed=-1),
        make_model(twin, {"a": [3]}, base="org/R"),
    ]
    write_store(tmp_path / "s", make_store_plan(models, make_table(4), layout="cube"), draw_values)
    trained, untrained = export(tmp_path / "s", to="pt", output_dir=tmp_path / "features")
    assert untrained != trained == find_trained(untrained)
    assert [torch.load(file)["model"] for file in (trained, untrained)] == ["org/R", twin]
    (again,) = export(tmp_path / "s", to="pt", output_dir=tmp_path / "one", models=twin)
    assert again.name == untrained.name  # whatever is exported beside it


def test_a_colon_of_a_label_is_none_of_its_file_name(tmp_path: Path):
    plan = make_store_plan([make_model("timm:org/vit", {"a": [3]})], make_table(4, conditions=["a:b"]), layout="cube")
    write_store(tmp_path / "s", plan, draw_values)
    names = {to: export(tmp_path / "s", to=to, output_dir=tmp_path / to)[0].name for to in ("hdf5", "netcdf", "pt")}
    assert names == {
        "hdf5": "model_activations_a_b.h5",
        "netcdf": "model_activations_timm_org_vit.nc",
        "pt": "timm_org_vit_pool-flatten-untrained.pt",
    }
    (file,) = (tmp_path / "pt").rglob("*.pt")
    assert torch.load(file)["model"] == "timm:org/vit"


# what is refused


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"models": "R5O"}, NameNotFoundError, r"no model 'R5O' \(nearest: R50\)"),
        ({"layers": "layer4.1"}, NameNotFoundError, "has a layer 'layer4.1'"),
        ({"conditions": "plan"}, NameNotFoundError, r"no condition 'plan' \(nearest: plain\)"),
        (
            {"layers": "conv1"},
            RequestError,
            "model 'org/ViT' has none of the layers",
        ),  # a file without it would mislead
        ({"dtype": "bfloat16"}, RequestError, "--dtype cannot be used with --to hdf5"),
        ({"append": True, "overwrite": True}, RequestError, "exclude each other"),
        ({"replicates": "1"}, RequestError, "--replicates '1' is not one of"),
        ({"to": "csv"}, RequestError, "no format 'csv'"),
    ],
)
def test_a_wrong_request_is_refused_before_anything_is_written(cube: Path, tmp_path: Path, options, error, message):
    with pytest.raises(error, match=message):
        export(cube, output_dir=tmp_path / "out", **{"to": "hdf5"} | options)
    assert not (tmp_path / "out").exists()


def test_rows_that_are_not_there_are_refused_unless_left_out(tmp_path: Path):
    half = make_random_store(tmp_path, "groups", failed={("R50", 20): "cannot be read"})
    with pytest.raises(StoreError, match=r"1 of 23 rows to export are not finished.*'confound/leaves/img20'"):
        export(half, to="hdf5", output_dir=tmp_path / "out", models="R50")
    assert not (tmp_path / "out").exists()
    assert len(export(half, to="hdf5", output_dir=tmp_path / "out", models="R50", conditions="plain")) == 1
    assert len(export(half, to="hdf5", output_dir=tmp_path / "out", models="*ViT", overwrite=True)) == 2


@pytest.mark.parametrize("layout", ["cube", "groups"])
@pytest.mark.parametrize("to", ["hdf5", "netcdf", "pt"])
def test_skip_failed_exports_the_other_stimuli_and_names_those_left_out(tmp_path: Path, layout: str, to: str):
    store = make_random_store(tmp_path, layout, failed={("org/ViT", 20): "is empty", ("R50", 3): "is empty"})
    noted: list[str] = []
    asked = {"to": to, "models": "*ViT*", "replicates": "0", "output_dir": tmp_path / "out"}
    with pytest.raises(StoreError, match="1 of 46 rows to export are not finished") as caught:
        export(store, **asked)
    assert str(caught.value.hint).startswith("they failed: --skip-failed leaves their stimuli out")
    files = export(store, **asked, skip_failed=True, note=noted.append)
    assert noted == ["1 stimuli failed and are left out: 'confound/leaves/img20' (org/ViT: is empty)"]
    want = np.delete(draw_values("org/ViT", "blocks.3", 0, 23, 16, n_replicates=2)[:, 0], 20, axis=0)
    if to == "hdf5":
        found: dict[str, np.ndarray] = {}
        for file in files:
            with h5py.File(file) as opened:
                found |= {stem: group["blocks.3"][0] for stem, group in opened["org_ViT"].items()}
        got = np.stack([found.pop(f"img{row}") for row in range(23) if row != 20])
        assert found == {}
    elif to == "netcdf":
        group = xr.open_groups(files[0], engine="h5netcdf")["/blocks.3"]
        assert group.sizes["stimulus"] == 22
        got = group["activations"].values[:, 0]
    else:
        saved = torch.load(files[0])
        assert saved["stimulus"] == [one for one in make_table(23, conditions=CONDITIONS).ids if "img20" not in one]
        got = saved["feats"][:, 3].numpy()
    np.testing.assert_array_equal(got, want)


def test_the_command_says_on_stderr_what_skip_failed_leaves_out(tmp_path: Path):
    store = make_random_store(tmp_path, "cube", failed={("R50", row): "is empty" for row in range(3, 10)})
    command = [sys.executable, "-m", "xact", "export", str(store), "--to", "hdf5", "--models", "R50", "--skip-failed"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stderr.startswith("note: 7 stimuli failed and are left out: 'plain/img3' (R50: is empty), 'plain/img4'")
    assert done.stderr.endswith(" and 2 more\n")
    assert len(done.stdout.splitlines()) == 2


def test_a_file_that_exists_stays_without_overwrite(cube: Path, tmp_path: Path):
    export(cube, to="hdf5", output_dir=tmp_path, models="R50", conditions="plain")
    before = hash_files(tmp_path)
    with pytest.raises(RequestError, match=r"_plain.h5' exists already"):
        export(cube, to="hdf5", output_dir=tmp_path, models="*ViT")
    assert hash_files(tmp_path) == before
    export(cube, to="hdf5", output_dir=tmp_path, models="*ViT", overwrite=True)
    assert hash_files(tmp_path) != before


def test_the_store_is_no_place_for_exports(cube: Path):
    with pytest.raises(RequestError, match="lies inside the store"):
        export(cube, to="hdf5", output_dir=cube / "exports")


def test_a_disk_without_room_is_known_before_anything_is_written(tmp_path: Path):
    with pytest.raises(WorkError, match=r"needs about 1000000000000000000 bytes, \d+ are free"):
        check_room(tmp_path / "not" / "there", [(tmp_path / "a.h5", 10**18)])


# whole files or none


def hash_files(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


@pytest.mark.parametrize("to", ["hdf5", "netcdf", "pt"])
def test_sha256sum_finds_every_export_whole(cube: Path, tmp_path: Path, to: str):
    for file in export(cube, to=to, output_dir=tmp_path / "o", models="org/ViT"):
        done = subprocess.run(["sha256sum", "-c", f"{file.name}.sha256"], cwd=file.parent, capture_output=True)
        assert done.returncode == 0
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize("size", [1, 5_000, 40_000])
def test_the_hash_of_a_file_written_in_many_blocks_is_that_of_its_bytes(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
):
    whole = export(store, to="hdf5", output_dir=tmp_path / "whole")
    monkeypatch.setattr("xact.files.export.BLOCK_NBYTES", size)
    monkeypatch.setattr("xact.files.atomic.SYNC_NBYTES", 2 * size)
    monkeypatch.setattr("xact.files.atomic.PIECE_NBYTES", 100)
    export(store, to="hdf5", output_dir=tmp_path / "parts")
    assert hash_files(tmp_path / "parts") == hash_files(tmp_path / "whole")
    for models, append in (("R50", False), ("*ViT*", True)):
        files = export(store, to="hdf5", output_dir=tmp_path / "twice", models=models, append=append)
        assert [file.name for file in files] == [file.name for file in whole]
    for file in (*whole, *files):
        side = file.with_name(f"{file.name}.sha256").read_text()
        assert side.split()[0] == hashlib.sha256(file.read_bytes()).hexdigest()
    for one, other in zip(files, whole, strict=True):
        with h5py.File(one) as added, h5py.File(other) as expected:
            expected.visititems(lambda name, item: check_equal(item, added[name]))


def test_a_disk_that_fails_while_a_file_is_written_is_told_though_it_says_so_once(
    cube: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail(_fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("xact.files.export.BLOCK_NBYTES", 1)
    monkeypatch.setattr("xact.files.atomic.SYNC_NBYTES", 20_000)
    monkeypatch.setattr(os, "fdatasync", fail)
    with pytest.raises(WorkError, match="Input/output error"):
        export(cube, to="hdf5", output_dir=tmp_path, models="R50", conditions="plain")
    assert not list(tmp_path.iterdir())


def is_under_way(fd: int) -> bool:
    """Return whether this is an export that has not its name yet."""
    return Path(f"/proc/self/fd/{fd}").readlink().name.endswith(f".{os.getpid()}.partial")


@pytest.mark.parametrize("to", ["hdf5", "netcdf", "pt"])
def test_a_sync_of_a_whole_file_that_fails_once_is_told_and_leaves_the_old_file(
    cube: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str
):
    export(cube, to=to, output_dir=tmp_path, models="org/ViT", layers="blocks.0", conditions="plain")
    before, failed, fsync = hash_files(tmp_path), [], os.fsync

    def fail_once(fd: int) -> None:
        if is_under_way(fd) and not failed:
            failed.append(fd)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", fail_once)
    with pytest.raises(WorkError, match="Input/output error"):
        export(cube, to=to, output_dir=tmp_path, models="org/ViT", conditions="plain", overwrite=True)
    assert failed
    assert hash_files(tmp_path) == before


@pytest.mark.parametrize("to", ["hdf5", "netcdf", "pt"])
def test_an_export_is_synced_whole_before_it_takes_its_name_and_its_folder_after(
    cube: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str
):
    chosen: dict[str, Any] = {"to": to, "output_dir": tmp_path, "models": "org/ViT", "conditions": "plain"}
    (target,) = export(cube, **chosen)
    side = target.with_name(f"{target.name}.sha256")
    done: list[tuple[str, int]] = []
    fsync, replace = os.fsync, Path.replace

    def sync(fd: int) -> None:
        whose = "file" if is_under_way(fd) else Path(f"/proc/self/fd/{fd}").readlink().name
        done.append((f"sync {whose}", os.fstat(fd).st_size))
        fsync(fd)

    def rename(self: Path, to: Path) -> Path:
        assert to != target or not side.exists()  # the side file of the old one is gone before
        done.append((f"rename {to.name}", self.stat().st_size))
        return replace(self, to)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(Path, "replace", rename)
    export(cube, overwrite=True, **chosen)
    assert ("sync file", target.stat().st_size) in done
    assert [what for what, _ in done[-6:]] == [
        f"sync {target.parent.name}",
        f"rename {target.name}",
        f"sync {target.parent.name}",
        f"sync {side.name}.partial",
        f"rename {side.name}",
        f"sync {target.parent.name}",
    ]


@pytest.fixture
def living() -> Iterator[subprocess.Popen[bytes]]:
    """Give a process that lives as long as the test."""
    process = subprocess.Popen(["sleep", "600"])
    yield process
    process.kill()
    process.wait()


def test_what_living_exports_write_stays_and_what_dead_ones_left_goes(tmp_path: Path, living: subprocess.Popen[bytes]):
    dead = subprocess.Popen(["true"])
    dead.wait()
    gone = f"a.h5.{dead.pid}.partial"
    kept = [f"a.h5.{living.pid}.partial", f"b.h5.{dead.pid}.partial", f"xa.h5.{dead.pid}.partial", "a.h5.x.partial"]
    for name in (gone, *kept):
        (tmp_path / name).write_bytes(b"values")
    with write_beside(tmp_path / "a.h5", nbytes=4) as beside:
        beside.path.write_bytes(b"whole")
    assert {file.name for file in tmp_path.iterdir()} == {*kept, "a.h5", "a.h5.sha256"}


@pytest.mark.parametrize("to", ["hdf5", "netcdf"])
def test_a_disk_that_takes_a_part_of_each_write_gets_the_rest_too(
    cube: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str
):
    chosen = {"to": to, "models": "org/ViT", "conditions": "plain"}
    export(cube, output_dir=tmp_path / "whole", **chosen)
    n_short, pwrite = [], os.pwrite

    def write_part(fd: int, data: memoryview, at: int) -> int:
        n_short.append(len(data) > 50)
        return pwrite(fd, data[: max(50, len(data) // 2)], at)

    monkeypatch.setattr(os, "pwrite", write_part)
    export(cube, output_dir=tmp_path / "parts", **chosen)
    assert any(n_short)
    assert hash_files(tmp_path / "parts") == hash_files(tmp_path / "whole")


@pytest.mark.parametrize("size", [1, 1_000, 10**6])
def test_the_hash_is_that_of_the_file_wherever_the_places_of_the_values_lie(
    cube: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
):
    monkeypatch.setattr("xact.files.export.BLOCK_NBYTES", size)
    chosen = choose(open_catalog(cube), "org/ViT", "*", "*", "all")
    n_bytes = 4 * 2 * 16  # of one layer of one stimulus
    order = np.random.default_rng(size).permutation(23 * 12).reshape(23, 12)
    for name, places in (("falling", order.size - 1 - np.arange(order.size).reshape(order.shape)), ("mixed", order)):
        file = tmp_path / name
        file.write_bytes(bytes(n_bytes * order.size))
        sha256 = _fill(file, chosen, chosen.rows, [n_bytes * places])
        assert sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
        values = np.fromfile(file, "<f4").reshape(-1, 2, 16)[places]
        for k, layer in enumerate(VIT):
            np.testing.assert_array_equal(values[:, k], read_by_xarray(cube, "org/ViT", layer))


def check_equal(one: h5py.Group | h5py.Dataset, other: h5py.Group | h5py.Dataset) -> None:
    if isinstance(one, h5py.Dataset):
        np.testing.assert_array_equal(one[:], other[:])


@pytest.mark.parametrize("to", ["hdf5", "netcdf", "pt"])
def test_the_same_store_gives_the_same_bytes(cube: Path, tmp_path: Path, to: str):
    for folder in ("a", "b"):
        export(cube, to=to, output_dir=tmp_path / folder, models="org/ViT")
    assert hash_files(tmp_path / "a") == hash_files(tmp_path / "b")


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a store of which an export takes a while: 6.5 MB."""
    store = tmp_path_factory.mktemp("wide") / "wide.zarr"
    plan = make_store_plan([make_model("m", {f"b.{i}": [1024] for i in range(4)})], make_table(400), layout="cube")
    write_store(store, plan, draw_values)
    return store


def run_export(store: Path, to: str, folder: Path, **options: Any) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "xact",
        "export",
        str(store),
        "--to",
        to,
        "--output-dir",
        str(folder),
        "--overwrite",
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


@pytest.mark.parametrize(
    ("to", "limit"),
    [
        ("hdf5", 2_000),  # in its first bytes: HDF5 itself would crash when it closes the file
        ("hdf5", 1_500_000),  # in the middle of the values
        ("netcdf", 1_500_000),
        ("pt", 1_500_000),
    ],
)
def test_a_full_disk_is_one_line_and_leaves_the_old_file(wide: Path, tmp_path: Path, to: str, limit: int):
    folder = tmp_path / "out"
    export(wide, to=to, output_dir=folder, conditions="a")
    before, stored = hash_files(folder), hash_files(wide)
    child = run_export(wide, to, folder, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    _, stderr = child.communicate(timeout=120)
    assert child.returncode == 1
    lines = stderr.splitlines()
    assert len(lines) == 2, stderr
    assert "File too large; it needs about" in lines[0]
    assert hash_files(folder) == before
    assert hash_files(wide) == stored


@pytest.mark.parametrize("limit", [9_000, 20_000])
def test_a_disk_that_fills_while_torch_writes_is_told_as_such(tmp_path: Path, limit: int):
    """The labels are longer than the values here, so that the disk fills while torch writes."""
    store = tmp_path / "s.zarr"
    write_store(store, make_store_plan([make_model("m", {"fc": [1]})], make_table(2_000), layout="cube"), draw_values)
    child = run_export(
        store, "pt", tmp_path / "out", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    )
    _, stderr = child.communicate(timeout=120)
    lines = stderr.splitlines()
    assert (child.returncode, len(lines)) == (1, 2), stderr
    assert "File too large; it needs about" in lines[0]
    assert not [file for file in (tmp_path / "out").rglob("*") if file.is_file()]


def check_whole(folder: Path, expected: dict[str, str]) -> None:
    """Refuse anything but whole files, each beside its own sha256 or none."""
    for name, sha256 in hash_files(folder).items():
        if name.endswith((".h5", ".nc", ".pt")):
            assert sha256 == expected[name]
            side = folder / f"{name}.sha256"
            assert not side.exists() or side.read_text().split()[0] == sha256
        else:
            assert name.endswith((".sha256", ".partial"))


@pytest.mark.slow
@pytest.mark.parametrize("to", ["hdf5", "netcdf", "pt"])
def test_a_kill_leaves_every_file_absent_or_whole(wide: Path, tmp_path: Path, to: str):
    export(wide, to=to, output_dir=tmp_path / "whole")
    expected, stored = hash_files(tmp_path / "whole"), hash_files(wide)
    started = time.monotonic()
    run_export(wide, to, tmp_path / "timed").communicate()
    seconds = time.monotonic() - started
    draw = random.Random(to)  # noqa: S311  moments, not secrets
    for _ in range(12):
        child = run_export(wide, to, tmp_path / "out")
        time.sleep(draw.uniform(0.3, 1.0) * seconds)
        child.kill()
        child.communicate()
        if (tmp_path / "out").exists():
            check_whole(tmp_path / "out", expected)
    run_export(wide, to, tmp_path / "out").communicate()
    assert hash_files(tmp_path / "out") == expected  # what the kills left is swept
    assert hash_files(wide) == stored


@pytest.mark.parametrize("number", [signal.SIGTERM])
def test_a_signal_ends_an_export_with_75_and_nothing_half_written(wide: Path, tmp_path: Path, number: int):
    for attempt in range(5):  # on a busy machine an export can be done before the signal comes
        folder = tmp_path / f"out-{attempt}"
        child = run_export(wide, "hdf5", folder)
        deadline = time.monotonic() + 60
        while not list(folder.glob("*.partial")) and time.monotonic() < deadline:
            time.sleep(0.002)
        os.kill(child.pid, number)
        stdout, stderr = child.communicate(timeout=60)
        if child.returncode != 0:
            break
    assert child.returncode == 75, stderr
    assert stderr.startswith(f"error: the export was interrupted by {signal.Signals(number).name}; no file is half")
    assert not list(folder.glob("*.partial"))
    assert [str(file) for file in folder.glob("*.h5")] == stdout.split()


def test_the_command_prints_its_files_and_its_notes(cube: Path, tmp_path: Path):
    command = [
        sys.executable,
        "-m",
        "xact",
        "export",
        str(cube),
        "--to",
        "pt",
        "--models",
        "org/ViT",
        "--conditions",
        "plain",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    path, note = done.stdout.splitlines()
    assert path == "features/folder/all-untrained/org_ViT_pool-flatten-untrained.pt"
    assert note.startswith("note: row numbers are not ids")
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (again.returncode, again.stdout) == (2, "")
    assert "exists already" in again.stderr


@pytest.mark.parametrize("letter", ["x", "é", "🦊"])
@pytest.mark.parametrize("prompt", ["", "p", "é" * 200])
def test_the_longest_labels_have_names_that_a_disk_takes_and_come_back(letter, prompt, tmp_path):
    long = letter * MAX_LABEL_LENGTH
    labels = [long, long[:-1] + "y"]
    models = [make_model(label, {"a": [3]}) for label in labels]
    models = [
        model.model_copy(
            update={"layers": tuple(one.model_copy(update={"reduction": "patch_mean"}) for one in model.layers)}
        )
        for model in models
    ]
    conditions = [label[5:] for label in labels]  # an import calls a stimulus by its condition and its stem
    plan = make_store_plan(models, make_table(4, conditions=conditions), layout="cube")
    stimuli = {"source": "folder", "dataset": long, "prompt_name": prompt}
    write_store(tmp_path / "s", plan.model_copy(update={"recipe": plan.recipe | {"stimuli": stimuli}}), draw_values)
    for to in ("hdf5", "netcdf", "pt"):
        files = export(tmp_path / "s", to=to, output_dir=tmp_path / to)
        assert len({file.name for file in files}) == 2
        if to != "netcdf":
            import_files(files, tmp_path / f"{to}.zarr")
            assert xact.load_layers(tmp_path / f"{to}.zarr")["model"].tolist() == labels
            assert xact.load_stimuli(tmp_path / f"{to}.zarr")["condition"].isin([*conditions, "all"]).all()


def test_names_leave_room_for_the_endings_of_files_under_way():
    assert len(f".{2**22}.partial.partial") < MARGIN_NBYTES  # the largest process id of Linux


@pytest.mark.parametrize("to", ["hdf5", "netcdf", "pt"])
@pytest.mark.parametrize("plant", ["symlink", "link"])
def test_an_export_never_writes_through_a_link_that_someone_planted(to, plant, tmp_path):
    store = make_random_store(tmp_path, "cube", conditions=("a",))
    asked = {"to": to, "output_dir": tmp_path / "o", "models": ["R50"], "layers": ["layer4.2"]}
    (written,) = export(store, **asked)
    target = written
    whole = target.read_bytes()
    target.unlink()
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    planted = target.with_name(f"{target.name}.{os.getpid()}.partial")
    if plant == "symlink":
        planted.symlink_to(victim)
        with pytest.raises(WorkError, match=os.strerror(errno.ELOOP)):
            export(store, **asked, overwrite=True)
        assert not target.exists()
    else:
        planted.hardlink_to(victim)
        export(store, **asked, overwrite=True)
        assert len(target.read_bytes()) == len(whole)
    assert victim.read_bytes() == b"precious"
    assert not planted.is_symlink()
