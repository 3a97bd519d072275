"""Promises: every value, label and order of an old file stands in the store made of it; what it lacks is `unknown`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from support.cli import run
from support.dataset_trees import make_bold5000, make_nsd, make_things, unroll_nsd
from support.stores import draw_values, make_model, make_store_plan, make_table, write_store

import xact
from xact.building.import_files import import_files
from xact.errors import RequestError, StoreError, WorkError, XactError
from xact.files.export import export
from xact.files.read import open_old
from xact.files.verify import verify
from xact.recipe.stimuli_schema import Bold5000Stimuli, NsdStimuli, ThingsStimuli
from xact.stimuli.open import open_stimuli
from xact.store.journal import load_state

LAYERS = {"blocks.0": 5, "blocks.1": 5, "blocks.2": 7, "blocks.10": 3, "norm": 4}
"""{layer: units}, in forward order; the alphabet puts blocks.10 before blocks.2."""

Values = dict[str, np.ndarray]
"""{/model/stimulus/layer: (replicate, unit)}."""


def make_values(
    models: list[str], stems: list[str], layers: dict[str, int], *, seed: int = 0, dtype: str = "float32"
) -> Values:
    rng = np.random.default_rng(seed)
    return {
        f"{model}/{stem}/{layer}": rng.standard_normal((2, n_units)).astype(dtype)
        for model in models
        for stem in stems
        for layer, n_units in layers.items()
    }


def write_seed_file(file: Path, values: Values) -> Values:
    """Write what the older program wrote: groups that list their names by the alphabet."""
    with h5py.File(file, "w") as opened:
        for path, array in values.items():
            opened.create_dataset(path, data=array)
    return values


def open_plain(store: Path) -> xr.DataArray:
    """Open a cube as a person without xact does."""
    return xr.open_zarr(store)["activations"].load()


def test_hdf5_files_of_two_conditions_come_back_value_for_value_with_labels_and_forward_order(tmp_path: Path) -> None:
    stems = ["mug_000", "fish_000", "001", "NA"]
    written = {
        condition: write_seed_file(
            tmp_path / f"model_activations_{condition}.h5", make_values(["VGG-mine", "Own"], stems, LAYERS, seed=seed)
        )
        for seed, condition in enumerate(["plain", "leaves"])
    }
    files = [tmp_path / f"model_activations_{condition}.h5" for condition in written]
    outcome = import_files(files, tmp_path / "s.zarr")
    assert outcome.n_captured == 2 * 8
    acts = open_plain(tmp_path / "s.zarr")
    assert acts.sizes == {"model": 2, "stimulus": 8, "layer": 5, "replicate": 2, "unit": 7}
    assert acts.layer.values.tolist() == list(LAYERS)
    wanted = [f"{condition}/{stem}" for condition in ("plain", "leaves") for stem in sorted(stems)]
    assert acts.stimulus.values.tolist() == wanted
    assert acts.condition.values.tolist() == ["plain"] * 4 + ["leaves"] * 4
    for condition, values in written.items():
        for path, array in values.items():
            model, stem, layer = path.split("/")
            found = acts.sel(model=model, stimulus=f"{condition}/{stem}", layer=layer).values
            np.testing.assert_array_equal(found[:, : array.shape[1]], array)
            assert np.isnan(found[:, array.shape[1] :]).all()
    assert verify(tmp_path / "s.zarr").find_error() is None


def test_every_way_of_opening_a_store_opens_an_imported_one(tmp_path: Path) -> None:
    values = write_seed_file(tmp_path / "old.h5", make_values(["m"], ["a", "b"], LAYERS))
    import_files([tmp_path / "old.h5"], tmp_path / "s.zarr")
    assert xact.open_activations(tmp_path / "s.zarr", layers="blocks.*").sizes["layer"] == 4
    one = xact.open_layer(tmp_path / "s.zarr", "m", "blocks.10")
    np.testing.assert_array_equal(one.sel(stimulus="old/b").values, values["m/b/blocks.10"])
    assert one.feature.values.tolist() == [0, 1, 2]
    assert xact.open_map(tmp_path / "s.zarr", "m", "norm").dims == ("stimulus", "replicate", "feature")
    assert xact.load_stimuli(tmp_path / "s.zarr").stem.tolist() == ["a", "b"]
    assert xact.load_layers(tmp_path / "s.zarr").layer.tolist() == list(LAYERS)
    with xr.open_datatree(tmp_path / "s.zarr", engine="zarr") as tree:
        assert tree["activations"].shape == (1, 2, 5, 2, 7)


def test_wide_layers_make_a_store_of_groups(tmp_path: Path) -> None:
    values = write_seed_file(tmp_path / "old.h5", make_values(["m"], ["a", "b", "c"], {"conv1": 9000, "fc": 3}))
    import_files([tmp_path / "old.h5"], tmp_path / "s.zarr")
    found = xr.open_zarr(tmp_path / "s.zarr", group="m/conv1")["activations"].sel(model="m", layer="conv1")
    np.testing.assert_array_equal(found.sel(stimulus="old/c").values, values["m/c/conv1"])


def test_what_an_old_file_does_not_say_is_unknown_and_a_build_does_not_mix_with_it(tmp_path: Path) -> None:
    write_seed_file(tmp_path / "old.h5", make_values(["ResNet50"], ["a"], {"fc": 3}))
    import_files([tmp_path / "old.h5"], tmp_path / "s.zarr")
    acts = open_plain(tmp_path / "s.zarr")
    assert acts.weights.item() == "unknown"
    assert acts.source.item() == "import"
    assert np.isnan(acts.depth.values).all()
    assert (acts.n_parameters.item(), acts.seed.item()) == (-1, -1)
    assert acts.family.item() == "CNN"  # of the registry's ResNet50
    said = json.loads(json.loads((tmp_path / "s.zarr/xact/zarr.json").read_bytes())["attributes"]["provenance"])
    model = said["models"]["ResNet50"]
    assert [model[key] for key in ("id", "dtype", "device")] == ["unknown"] * 3
    assert model["transform"] == {"kind": "unknown"}
    recipe = tmp_path / "recipe.yml"
    objects = Path(__file__).parents[2] / "recipes" / "objects"
    recipe.write_text(f"store: {tmp_path / 's.zarr'}\nstimuli: {{source: folder, root: {objects}, folders: [plain]}}\n")
    with recipe.open("a") as file:
        file.write("models: [{label: ResNet50, source: torchvision, id: resnet18, weights: random, layers: [fc]}]\n")
    with pytest.raises(RequestError, match=r"stimuli.source differs: the store was made with 'import'"):
        xact.build(recipe)


def test_an_untrained_twin_is_known_by_its_label(tmp_path: Path) -> None:
    write_seed_file(tmp_path / "old.h5", make_values(["ResNet50", "ResNet50@random-3"], ["a"], {"fc": 3}))
    import_files([tmp_path / "old.h5"], tmp_path / "s.zarr")
    acts = open_plain(tmp_path / "s.zarr").sel(model=["ResNet50", "ResNet50@random-3"])
    assert acts.trained.values.tolist() == [True, False]
    assert acts.weights.values.tolist() == ["unknown", "random"]
    assert acts.seed.values.tolist() == [-1, 3]
    assert acts.base.values.tolist() == ["ResNet50", "ResNet50"]


def test_layers_that_the_registry_knows_are_in_its_order(tmp_path: Path) -> None:
    layers = {"layer1.0.conv1": 3, "conv1": 2, "layer4.2.conv2": 4}
    write_seed_file(tmp_path / "old.h5", make_values(["ResNet50"], ["a"], layers))
    outcome = import_files([tmp_path / "old.h5"], tmp_path / "s.zarr")
    assert open_plain(tmp_path / "s.zarr").layer.values.tolist() == ["conv1", "layer1.0.conv1", "layer4.2.conv2"]
    assert not any("alphabet" in warning for warning in outcome.warnings)


def test_the_order_of_the_registry_goes_before_that_of_the_names(tmp_path: Path) -> None:
    values = write_seed_file(
        tmp_path / "old.h5", make_values(["CORNet-S"], ["a", "b"], {"V1": 5, "V2": 4, "V4": 3, "IT": 2})
    )
    outcome = import_files([tmp_path / "old.h5"], tmp_path / "s.zarr")
    acts = open_plain(tmp_path / "s.zarr")
    assert acts.layer.values.tolist() == ["V1", "V2", "V4", "IT"]  # the way of the ventral stream
    assert acts.layer_index.values.tolist() == [[0, 1, 2, 3]]
    assert not any("alphabet" in warning for warning in outcome.warnings)
    for layer, n_units in (("V1", 5), ("IT", 2)):
        found = acts.sel(model="CORNet-S", stimulus="old/b", layer=layer).values
        np.testing.assert_array_equal(found[:, :n_units], values[f"CORNet-S/b/{layer}"])


def test_every_block_of_rows_of_an_old_file_has_its_own_values(tmp_path: Path) -> None:
    stems = [f"s{i}" for i in range(5)]
    written = [
        write_seed_file(tmp_path / f"{name}.h5", make_values(["m", "n"], stems, {"fc": 3, "head": 2}, seed=seed))
        for seed, name in enumerate("ab")
    ]
    opened = open_old([tmp_path / "a.h5", tmp_path / "b.h5"], None)
    assert opened.table.ids == [f"{name}/{stem}" for name in "ab" for stem in stems]
    rows = [(values, stem) for values in written for stem in stems]
    for model in opened.models:
        for start, stop in ((0, 4), (4, 7), (9, 10)):
            buffers = [np.full((stop - start, 2, n_units), np.nan, dtype=np.float32) for n_units in (3, 2)]
            opened.fill(model, start, buffers)
            for layer, buffer in zip(("fc", "head"), buffers, strict=True):
                expected = [values[f"{model.label}/{stem}/{layer}"] for values, stem in rows[start:stop]]
                np.testing.assert_array_equal(buffer, np.stack(expected))
    opened.close()


def link_elsewhere(group: h5py.Group, kind: str, elsewhere: Path) -> None:
    """Put a data set `fc` of (2, 3) into a group whose values are those of another file."""
    if kind == "raw file":
        group.create_dataset("fc", (2, 3), "f4", external=[(str(elsewhere.with_suffix(".raw")), 0, 24)])
    elif kind == "virtual":
        layout = h5py.VirtualLayout((2, 3), "f4")
        layout[:] = h5py.VirtualSource(str(elsewhere), "fc", (2, 3))
        group.create_virtual_dataset("fc", layout)
    elif kind == "external link":
        group["fc"] = h5py.ExternalLink(str(elsewhere), "fc")
    else:
        group["fc"] = h5py.SoftLink("/fc")


@pytest.mark.parametrize("kind", ["raw file", "virtual", "external link", "soft link"])
def test_values_outside_an_old_file_are_not_followed(tmp_path: Path, kind: str) -> None:
    secret = np.arange(6, dtype=np.float32).reshape(2, 3)
    (tmp_path / "secret.raw").write_bytes(secret.tobytes())
    with h5py.File(tmp_path / "secret.h5", "w") as opened:
        opened["fc"] = secret
    with h5py.File(tmp_path / "old.h5", "w") as opened:
        link_elsewhere(opened.create_group("m/a"), kind, tmp_path / "secret.h5")
    with pytest.raises(StoreError, match=r"old.h5: /m/a/fc .* which is not followed"):
        import_files([tmp_path / "old.h5"], tmp_path / "s.zarr")
    assert not (tmp_path / "s.zarr").exists()


def test_an_exported_file_comes_back_in_its_own_order_and_with_its_true_labels(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "mine_confound_leaves.h5", "w", track_order=True) as opened:
        opened.attrs["condition"] = "confound/leaves"
        model = opened.create_group("a_b", track_order=True)
        model.attrs["label"] = "a/b"
        for stem in ("z", "k"):
            stimulus = model.create_group(stem, track_order=True)
            for layer in ("late", "early_x"):
                stimulus[layer] = np.full((1, 2), ord(stem), dtype=np.float32)
            stimulus["early_x"].attrs["label"] = "early/x"
    outcome = import_files([tmp_path / "mine_confound_leaves.h5"], tmp_path / "s.zarr")
    acts = open_plain(tmp_path / "s.zarr")
    assert acts.model.item() == "a/b"
    assert acts.stimulus.values.tolist() == ["confound/leaves/z", "confound/leaves/k"]
    assert acts.layer.values.tolist() == ["late", "early/x"]
    assert acts.sel(stimulus="confound/leaves/k", layer="early/x").values.tolist() == [[[107, 107]]]
    assert outcome.warnings == []


def test_an_exported_netcdf_file_verifies_with_and_without_its_side_file(tmp_path: Path) -> None:
    plan = make_store_plan([make_model("m", {"map": [3, 4, 4], "fc": [7]})], make_table(9), layout="groups")
    write_store(tmp_path / "s.zarr", plan, draw_values)
    (file,) = export(tmp_path / "s.zarr", to="netcdf", output_dir=tmp_path)
    assert verify(file).findings.state == "compared with model_activations_m.nc.sha256"
    assert verify(file).find_error() is None
    file.with_name(f"{file.name}.sha256").unlink()
    assert verify(file).findings.faults == []


@pytest.mark.parametrize("kind", ["hdf5", "pt"])
def test_a_store_goes_out_and_comes_back_value_for_value(tmp_path: Path, kind: str) -> None:
    layers = {f"blocks.{i}": [6] for i in (10, 9, 0)}
    plan = make_store_plan(
        [make_model("org/ViT", layers), make_model("ViT@random-1", layers, base="org/ViT")],
        make_table(9, conditions=("plain", "confound/leaves")),
        layout="cube",
    )
    write_store(tmp_path / "s.zarr", plan, draw_values)
    files = export(tmp_path / "s.zarr", to=kind, output_dir=tmp_path / "out")
    for file in files:
        assert verify(file).find_error() is None
        assert verify(file).findings.state == f"compared with {file.name}.sha256"
        file.with_name(f"{file.name}.sha256").unlink()
        assert verify(file).findings.faults == []
    import_files(files, tmp_path / "back.zarr")
    first, back = open_plain(tmp_path / "s.zarr"), open_plain(tmp_path / "back.zarr")
    for name in ("model", "layer", "stimulus", *(["condition", "stem"] if kind == "hdf5" else ["base"])):
        assert back[name].values.tolist() == first[name].values.tolist()
    np.testing.assert_array_equal(back.values, first.values)


def test_the_vit_large_under_a_false_name_gets_its_own(tmp_path: Path) -> None:
    layers = {f"blocks.{i}.mlp.fc2": 1024 for i in range(24)}
    write_seed_file(tmp_path / "old.h5", make_values(["ViT-B-16-CLIP"], ["a"], layers))
    outcome = import_files([tmp_path / "old.h5"], tmp_path / "s.zarr")
    assert open_plain(tmp_path / "s.zarr").model.item() == "ViT-L-14-LAION-CLIP-ft"
    assert any(warning.startswith("ViT-B-16-CLIP: its layers") for warning in outcome.warnings)
    write_seed_file(
        tmp_path / "true.h5", make_values(["ViT-B-16-CLIP"], ["a"], {"transformer.resblocks.0.mlp.c_fc": 3072})
    )
    import_files([tmp_path / "true.h5"], tmp_path / "t.zarr")
    assert open_plain(tmp_path / "t.zarr").model.item() == "ViT-B-16-CLIP"


@pytest.mark.parametrize("dtype", ["float64", "float16"])
def test_other_number_formats_are_cast_and_said(tmp_path: Path, dtype: str) -> None:
    values = write_seed_file(tmp_path / "old.h5", make_values(["m"], ["a"], {"fc": 3}, dtype=dtype))
    outcome = import_files([tmp_path / "old.h5"], tmp_path / "s.zarr")
    np.testing.assert_array_equal(open_plain(tmp_path / "s.zarr").values[0, 0, 0], values["m/a/fc"].astype(np.float32))
    assert f"values of dtype {dtype} were cast to float32" in outcome.warnings


def test_a_value_too_large_for_float32_is_an_error_that_names_its_place(tmp_path: Path) -> None:
    values = make_values(["m"], ["a"], {"fc": 3}, dtype="float64")
    values["m/a/fc"][1, 2] = -1e300
    write_seed_file(tmp_path / "old.h5", values)
    with pytest.raises(WorkError, match=r"old.h5: /m/a/fc: 1e\+300 is too large for float32"):
        import_files([tmp_path / "old.h5"], tmp_path / "s.zarr")


def test_values_that_are_not_finite_are_kept_and_counted(tmp_path: Path) -> None:
    values = make_values(["m"], ["a", "b"], {"fc": 3, "dark": 2})
    values["m/a/fc"][0, :2] = np.nan, np.inf
    for stem in "ab":
        values[f"m/{stem}/dark"][...] = np.nan
    write_seed_file(tmp_path / "old.h5", values)
    outcome = import_files([tmp_path / "old.h5"], tmp_path / "s.zarr")
    assert "m, layer 'fc': 2 values are NaN or infinite" in outcome.warnings
    assert "m, layer 'dark': 8 values are NaN or infinite" in outcome.warnings
    np.testing.assert_array_equal(open_plain(tmp_path / "s.zarr").sel(layer="fc").values[0, 0], values["m/a/fc"])
    assert verify(tmp_path / "s.zarr").findings.faults == []


def change(path: str, array: np.ndarray | None) -> Callable[[Values], None]:
    def do(values: Values) -> None:
        values.pop(path, None)
        values.update({} if array is None else {path: array})

    return do


BROKEN = {
    "a stimulus of one model is missing": (
        lambda values: [values.pop(path) for path in list(values) if path.startswith("n/b")],
        "/n and /m differ in the stimulus 'b'",
    ),
    "a layer of one stimulus is missing": (change("m/b/blocks.2", None), "/m/b: its layers differ"),
    "another width": (change("m/b/blocks.2", np.ones((2, 9))), r"/m/b/blocks.2: has shape \(2, 9\), expected \(2, 7\)"),
    "other replicates": (change("n/b/norm", np.ones((3, 4))), r"/n/b/norm: has shape \(3, 4\), expected \(2, 4\)"),
    "one dim": (change("m/a/norm", np.ones(4)), r"/m/a/norm: has shape \(4,\)"),
    "integers": (change("m/a/norm", np.ones((2, 4), dtype=int)), "/m/a/norm: has dtype int64"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_file_that_is_not_of_one_shape_is_refused_with_the_place_and_leaves_nothing(
    tmp_path: Path, case: str
) -> None:
    values = make_values(["m", "n"], ["a", "b"], LAYERS)
    breaks, text = BROKEN[case]
    breaks(values)
    write_seed_file(tmp_path / "old.h5", values)
    with pytest.raises(StoreError, match=f"old.h5: {text}"):
        import_files([tmp_path / "old.h5"], tmp_path / "s.zarr")
    assert not (tmp_path / "s.zarr").exists()


def test_files_of_several_conditions_must_hold_the_same_models(tmp_path: Path) -> None:
    write_seed_file(tmp_path / "a.h5", make_values(["m", "n"], ["a"], LAYERS))
    write_seed_file(tmp_path / "b.h5", make_values(["m"], ["a"], LAYERS))
    with pytest.raises(StoreError, match=r"b.h5 holds the models m; those before m, n"):
        import_files([tmp_path / "a.h5", tmp_path / "b.h5"], tmp_path / "s.zarr")


def write_torch_file(file: Path, feats: torch.Tensor, **more: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"feats": feats, "num_params": 11, **more}, file)
    return file


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_torch_files_with_a_table_come_back_value_for_value_in_the_order_of_its_rows(tmp_path: Path) -> None:
    feats = {name: draw(5, 12, width, seed=width) for name, width in [("vit_tiny.augreg", 8), ("vit_base.mae", 6)]}
    files = [write_torch_file(tmp_path / f"features/nsd/all/{name}_pool-cls.pt", one) for name, one in feats.items()]
    table = tmp_path / "rows.csv"
    table.write_text("id,condition,cocoId\n003,in,7\n001,out,8\nNA,in,9\nb,in,1\na,out,2\n")
    import_files(files, tmp_path / "s.zarr", stimuli=table)
    acts = open_plain(tmp_path / "s.zarr")
    assert acts.stimulus.values.tolist() == ["003", "001", "NA", "b", "a"]
    assert acts.condition.values.tolist() == ["in", "out", "in", "in", "out"]
    assert acts.cocoId.values.tolist() == [7, 8, 9, 1, 2]
    assert acts.layer.values.tolist() == [f"blocks.{i}" for i in range(12)]
    assert acts.n_parameters.values.tolist() == [11, 11]
    for name, one in feats.items():
        found = acts.sel(model=name, replicate=0).transpose("stimulus", "layer", "unit")
        np.testing.assert_array_equal(found.values[:, :, : one.shape[2]], one.numpy())


def test_the_loss_and_the_tokens_of_every_caption_come_back(tmp_path: Path) -> None:
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0]], dtype=torch.bool)
    loss, bpb = torch.tensor([2.5, 3.25, float("nan")]), torch.tensor([0.5, 0.75, float("nan")])
    more = {"mask": mask, "loss": loss, "bpb": bpb, "stimulus": ["b", "a", "c"]}
    file = write_torch_file(tmp_path / "llama_pool-last.pt", draw(3, 2, 4), **more)
    assert import_files([file], tmp_path / "s.zarr").warnings == []
    data = xr.open_zarr(tmp_path / "s.zarr").load()
    np.testing.assert_array_equal(data.loss.values, [loss.numpy()])
    np.testing.assert_array_equal(data.bpb.values, [bpb.numpy()])
    assert data.n_tokens.values.tolist() == [[3, 2, 1]]
    assert data.stimulus.values.tolist() == ["b", "a", "c"]


def test_a_language_models_layers_are_hidden_states_and_its_loss_is_kept(tmp_path: Path) -> None:
    file = write_torch_file(
        tmp_path / "all-untrained/bigscience_bloomz-560m_pool-avg_prompt-coco.pt",
        draw(3, 4, 2).to(torch.bfloat16),
        mask=torch.ones(3, 9),
        loss=torch.tensor(2.5),
        bpb=0.75,
    )
    (tmp_path / "rows.csv").write_text("id\na\nb\nc\n")
    outcome = import_files([file], tmp_path / "s.zarr", stimuli=tmp_path / "rows.csv")
    acts = open_plain(tmp_path / "s.zarr")
    assert acts.layer.values.tolist() == [f"hidden.{i}" for i in range(4)]
    np.testing.assert_array_equal(acts.values[0, :, :, 0], draw(3, 4, 2).to(torch.bfloat16).float().numpy())
    assert (bool(acts.trained.item()), acts.weights.item()) == (False, "random")
    assert any("torch.bfloat16 were cast" in warning for warning in outcome.warnings)
    said = json.loads(json.loads((tmp_path / "s.zarr/xact/zarr.json").read_bytes())["attributes"]["provenance"])
    (model,) = said["models"].values()
    assert model["network"] | {"loss": 2.5, "bpb": 0.75, "prompt": "coco"} == model["network"]
    assert model["layers"][0]["reduction"] == "mean"


def test_every_block_of_rows_of_a_torch_file_has_its_own_values(tmp_path: Path) -> None:
    feats = {name: draw(7, 3, width, seed=width) for name, width in [("v", 4), ("w", 2)]}
    ids = [f"s{i}" for i in range(7)]
    files = [write_torch_file(tmp_path / f"{name}_pool-cls.pt", one, stimulus=ids) for name, one in feats.items()]
    opened = open_old(files, None)
    for model in opened.models:
        whole = feats[model.label].numpy()
        for start, stop in ((0, 3), (3, 6), (6, 7)):
            buffers = [np.full((stop - start, 1, whole.shape[2]), np.nan, dtype=np.float32) for _ in model.layers]
            opened.fill(model, start, buffers)
            np.testing.assert_array_equal(np.stack(buffers, axis=2)[:, 0], whole[start:stop])
    opened.close()


def test_the_blocks_of_a_torch_file_have_the_depths_of_a_build(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("id\na\nb\n")
    for n_layers, depths in ((5, [0.2, 0.4, 0.6, 0.8, 1]), (2, [0.5, 1]), (1, [1])):
        file = write_torch_file(tmp_path / f"vit_pool-cls/{n_layers}.pt", draw(2, n_layers, 3))
        import_files([file], tmp_path / f"{n_layers}.zarr", stimuli=tmp_path / "rows.csv")
        assert open_plain(tmp_path / f"{n_layers}.zarr").depth.values.tolist() == [depths]


def test_a_torch_file_of_a_label_with_a_slash_has_the_label_of_the_registry_and_its_untrained_twin_another(
    tmp_path: Path,
) -> None:
    name = "bigscience_bloomz-560m_pool-avg"
    feats = {key: draw(2, 3, 4, seed=seed) for seed, key in enumerate(["all", "all-untrained"])}
    files = [write_torch_file(tmp_path / key / f"{name}.pt", one, loss=1.5) for key, one in feats.items()]
    (tmp_path / "rows.csv").write_text("id\na\nb\n")
    import_files(files, tmp_path / "s.zarr", stimuli=tmp_path / "rows.csv")
    acts = open_plain(tmp_path / "s.zarr")
    labels = ["bigscience/bloomz-560m", "bigscience/bloomz-560m-untrained"]
    assert acts.model.values.tolist() == labels
    assert acts.base.values.tolist() == [labels[0]] * 2
    assert acts.trained.values.tolist() == [True, False]
    for label, one in zip(labels, feats.values(), strict=True):
        np.testing.assert_array_equal(acts.sel(model=label, replicate=0).transpose("stimulus", ...), one.numpy())


def test_a_file_that_ends_in_untrained_is_no_trained_network(tmp_path: Path) -> None:
    files = [write_torch_file(tmp_path / f"R_pool-avg{end}.pt", draw(2, 2, 3)) for end in ("", "-untrained")]
    (tmp_path / "rows.csv").write_text("id\na\nb\n")
    import_files(files, tmp_path / "s.zarr", stimuli=tmp_path / "rows.csv")
    acts = open_plain(tmp_path / "s.zarr")
    assert acts.model.values.tolist() == ["R", "R-untrained"]
    assert acts.trained.values.tolist() == [True, False]


def test_dots_of_an_id_stay_in_its_stem_and_only_a_path_loses_its_ending(tmp_path: Path) -> None:
    file = write_torch_file(tmp_path / "vit_pool-cls.pt", draw(3, 2, 4))
    for table, ids, stems in (
        ("id\nv1.0\nv1.1\nimg.png\n", ["v1.0", "v1.1", "img.png"], ["v1.0", "v1.1", "img.png"]),
        ("path\na/v1.0.png\na/v1.1.png\nb\n", ["a/v1.0", "a/v1.1", "b"], ["v1.0", "v1.1", "b"]),
        ("id,path\n1.5,a/v1.0.png\n1.6,b.c.png\n1.7,d\n", ["1.5", "1.6", "1.7"], ["v1.0", "b.c", "d"]),
    ):
        (tmp_path / "rows.csv").write_text(table)
        store = tmp_path / f"{ids[0].replace('/', '_')}.zarr"
        import_files([file], store, stimuli=tmp_path / "rows.csv")
        acts = open_plain(store)
        assert acts.stimulus.values.tolist() == ids
        assert acts.stem.values.tolist() == stems


def test_an_exported_torch_file_needs_no_table(tmp_path: Path) -> None:
    labels = {"stimulus": ["plain/b", "plain/a"], "layer": ["early", "late"], "model": "x/y", "base": "x/y"}
    file = write_torch_file(tmp_path / "x_y_pool-avg.pt", draw(2, 2, 3), transform={"resize": 8}, **labels)
    import_files([file], tmp_path / "s.zarr")
    acts = open_plain(tmp_path / "s.zarr")
    assert acts.model.item() == "x/y"
    assert acts.stimulus.values.tolist() == ["plain/b", "plain/a"]
    np.testing.assert_array_equal(acts.sel(layer="late").values[0, :, 0], draw(2, 2, 3)[:, 1].numpy())


INDEXES = {
    # data set: (its tree, the second study's own index of its images)
    "nsd": (lambda root: unroll_nsd(make_nsd(root, n=7)), "nsd.csv"),
    "bold5000": (lambda root: make_bold5000(root, has_index=True), "preprocessed/images.parquet"),
    "things": (lambda root: make_things(root, has_index=True), "preprocessed/images.csv"),
}
BLOCKS = {"nsd": NsdStimuli, "bold5000": Bold5000Stimuli, "things": ThingsStimuli}


@pytest.mark.parametrize("dataset", INDEXES)
def test_rows_that_the_second_studys_own_index_names_have_the_ids_of_a_build(tmp_path: Path, dataset: str) -> None:
    make, name = INDEXES[dataset]
    root = make(tmp_path / "tree")
    if name.endswith("parquet"):
        frame = pd.read_csv((root / name).with_suffix(".csv"))
        frame.astype({"stim_source": "category", "bold_id": "uint16"}).to_parquet(root / name, index=False)
    built = open_stimuli(BLOCKS[dataset](source=dataset, root=str(root)), tmp_path).table
    feats = draw(7, 2, 4)
    file = write_torch_file(tmp_path / f"features/{dataset}/all/vit_tiny_pool-cls.pt", feats)
    import_files([file], tmp_path / "s.zarr", stimuli=root / name)
    acts = open_plain(tmp_path / "s.zarr")
    frame = pd.read_csv((root / name).with_suffix(".csv"))
    number = {"nsd": "nsd_id", "bold5000": "bold_id", "things": "things_id"}[dataset]
    assert acts[number].values.tolist() == frame[number].tolist()  # row i of feats is row i of the index
    assert sorted(acts.stimulus.values) == sorted(built.ids)
    numbers = built.columns["nsdId" if dataset == "nsd" else number]
    for row, label in enumerate(built.ids):
        at = frame[number].tolist().index(numbers[row])
        found = acts.sel(model="vit_tiny", stimulus=label, replicate=0)
        np.testing.assert_array_equal(found.values, feats[at].numpy())
        assert found.stem.item() == built.stems[row]
        if dataset != "bold5000":  # the paths of this index lie elsewhere
            assert found.file.item() == built.files[row]


def test_rows_that_a_caption_table_of_the_second_study_names_have_the_ids_of_a_build(tmp_path: Path) -> None:
    file = write_torch_file(tmp_path / "llama_pool-avg_prompt-pixtral.pt", draw(2, 2, 4), loss=torch.tensor(1.5))
    (tmp_path / "c.csv").write_text(
        "nsd_id,name,path,caption,model,prompt\n"
        "17,nsd_00017,images/nsd_00000_00999/nsd_00017.jpg,A dog.,pixtral,Describe\n"
        "3,nsd_00003,images/nsd_00000_00999/nsd_00003.jpg,A cat.,pixtral,Describe\n"
    )
    outcome = import_files([file], tmp_path / "s.zarr", stimuli=tmp_path / "c.csv")
    acts = open_plain(tmp_path / "s.zarr")
    assert acts.stimulus.values.tolist() == ["nsd_00017", "nsd_00003"]
    assert acts.caption_model.values.tolist() == ["pixtral", "pixtral"]
    assert acts.file.values.tolist()[0] == "images/nsd_00000_00999/nsd_00017.jpg"
    assert "c.csv: the column 'model' is stored as 'caption_model'" in outcome.warnings
    (tmp_path / "c.csv").write_text("nsd_id\n17\n73000\n")
    with pytest.raises(RequestError, match=r"the column 'nsd_id' of '.*c.csv', row 2: '73000' is not an nsdId"):
        import_files([file], tmp_path / "t.zarr", stimuli=tmp_path / "c.csv")


def test_files_of_single_layers_come_back_as_one_model_in_forward_order(tmp_path: Path) -> None:
    layers = {f"blocks.{i}": [3 + i] for i in (10, 9, 0)}
    plan = make_store_plan([make_model("org/ViT", layers)], make_table(9), layout="cube")
    write_store(tmp_path / "s.zarr", plan, draw_values)
    files = export(tmp_path / "s.zarr", to="pt", output_dir=tmp_path / "out", per_layer=True)
    assert [file.name for file in files] == [
        f"org_ViT_layer-{layer}_pool-flatten-untrained.pt" for layer in ("blocks.10", "blocks.9", "blocks.0")
    ]
    import_files(sorted(files), tmp_path / "back.zarr")
    first, back = open_plain(tmp_path / "s.zarr"), open_plain(tmp_path / "back.zarr")
    assert back.layer.values.tolist() == first.layer.values.tolist() == list(layers)
    np.testing.assert_array_equal(back.values, first.values)
    copy = tmp_path / "out" / "copy.pt"
    copy.write_bytes(files[0].read_bytes())
    with pytest.raises(RequestError, match="both hold the model 'org/ViT'"):
        import_files([files[0], copy], tmp_path / "twice.zarr")


REFUSED = {
    "no table": ({"feats": torch.ones(3, 2, 4)}, None, "does not say what its 3 rows are"),
    "a shorter table": ({"feats": torch.ones(3, 2, 4)}, "id\na\nb\n", "has 3 rows, .*rows.csv 2"),
    "another order": ({"feats": torch.ones(2, 2, 4), "stimulus": ["a", "b"]}, "id\nb\na\n", "row 1 is 'a', in .* 'b'"),
    "one id twice": ({"feats": torch.ones(2, 2, 4)}, "id\na\na\n", "the stimulus id 'a' stands twice"),
    "no id column": ({"feats": torch.ones(2, 2, 4)}, "name\na\nb\n", "has no column id, stimulus or path"),
    "two dims": ({"feats": torch.ones(2, 2)}, "id\na\nb\n", r"feats has shape \(2, 2\)"),
    "code": ({"feats": torch.ones(2, 2, 4), "x": Path("x")}, "id\na\nb\n", "holds more than tensors and plain values"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_torch_file_that_cannot_be_labelled_is_refused_and_leaves_nothing(tmp_path: Path, case: str) -> None:
    held, table, text = REFUSED[case]
    torch.save(held, tmp_path / "m_pool-cls.pt")
    if table is not None:
        (tmp_path / "rows.csv").write_text(table)
    with pytest.raises(XactError, match=text):
        import_files(
            [tmp_path / "m_pool-cls.pt"], tmp_path / "s.zarr", stimuli=tmp_path / "rows.csv" if table else None
        )
    assert not (tmp_path / "s.zarr").exists()


def test_the_same_files_again_do_nothing_and_others_are_refused(tmp_path: Path) -> None:
    write_seed_file(tmp_path / "old.h5", make_values(["m"], ["a"], LAYERS))
    import_files([tmp_path / "old.h5"], tmp_path / "s.zarr")
    root = (tmp_path / "s.zarr/zarr.json").read_bytes()
    assert import_files([tmp_path / "old.h5"], tmp_path / "s.zarr").n_captured == 0
    write_seed_file(tmp_path / "old.h5", make_values(["m"], ["a"], LAYERS, seed=1))
    with pytest.raises(RequestError, match="was made of other files"):
        import_files([tmp_path / "old.h5"], tmp_path / "s.zarr")
    assert (tmp_path / "s.zarr/zarr.json").read_bytes() == root


def test_a_killed_import_is_unfinished_and_the_same_command_finishes_it(tmp_path: Path) -> None:
    values = write_seed_file(tmp_path / "old.h5", make_values(["m", "n"], [f"s{i}" for i in range(600)], {"fc": 4000}))
    store = tmp_path / "s.zarr"
    command = [sys.executable, "-m", "xact", "import", str(tmp_path / "old.h5"), "--store", str(store)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        journal = store / ".xact/journal-1.jsonl"
        while process.poll() is None and (not journal.exists() or journal.read_bytes().count(b'"task"') < 1):
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
    report = verify(store)
    assert report.findings.faults == []
    assert not report.findings.is_published
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    n_rows = int(done.stdout.split(": ")[1].split()[0])
    assert 0 < n_rows < 1200
    acts = open_plain(store)
    stimuli = list(acts.stimulus.values)
    for path, array in values.items():
        model, stem, _ = path.split("/")
        np.testing.assert_array_equal(acts.values["mn".index(model), stimuli.index(f"old/{stem}"), 0], array)
    assert verify(store).find_error() is None


def test_an_import_does_not_go_on_over_a_lost_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_seed_file(tmp_path / "old.h5", make_values(["m", "n"], ["s0", "s1"], {"fc": 5}))
    store = tmp_path / "s.zarr"
    write, written = sys.modules["xact.building.import_files"].write_task, []

    def stop(*arguments: Any) -> Any:
        written.append(1)
        if len(written) > 1:
            raise StoreError("stopped")
        return write(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["xact.building.import_files"], "write_task", stop)
        with pytest.raises(StoreError, match="stopped"):
            import_files([tmp_path / "old.h5"], store)
    (store / "activations/c.0.0.0.0.0").unlink()
    with pytest.raises(StoreError, match=r"activations/c\.0\.0\.0\.0\.0 is missing"):
        import_files([tmp_path / "old.h5"], store)


@pytest.mark.slow
@pytest.mark.parametrize("widths", [{"conv": [20], "fc": [300]}, {"fc": [300]}])
@pytest.mark.parametrize(("n_first", "n_stimuli", "chunk_units"), [(12, 12, 512), (600, 600, None), (12, 600, None)])
def test_a_store_that_is_imported_gets_the_shards_of_its_size(
    n_first: int, n_stimuli: int, chunk_units: int | None, widths: dict[str, list[int]], tmp_path: Path
) -> None:
    """A trial becomes small, a store that was small and has grown becomes large."""
    models, is_small = [make_model("m", widths)], n_first < n_stimuli
    plan = make_store_plan(models, make_table(n_first), layout="cube", is_small=is_small)
    if is_small:
        plan = make_store_plan(models, make_table(n_stimuli), layout="cube", is_small=True, old=plan)
        plan = plan.model_copy(update={"generation": 1})
    assert plan.chunk_units == (512 if is_small else None)
    write_store(tmp_path / "old.zarr", plan, draw_values)
    import_files([tmp_path / "old.zarr"], tmp_path / "new.zarr")
    found = load_state(tmp_path / "new.zarr").plan
    assert found is not None
    assert found.chunk_units == chunk_units
    assert verify(tmp_path / "new.zarr").findings.faults == []
    for layer in models[0].layers:
        values = xact.open_layer(tmp_path / "new.zarr", "m", layer.label).values
        assert values.tobytes() == draw_values("m", layer.label, 0, n_stimuli, layer.n_units).tobytes()
    if chunk_units:
        part = xr.open_zarr(tmp_path / "new.zarr").isel(stimulus=[0, 2])
        part.to_zarr(tmp_path / "part.zarr", consolidated=False)
        copy = xr.open_zarr(tmp_path / "part.zarr", consolidated=False)
        xr.testing.assert_equal(copy.load(), part.load())


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    peaks = []
    for n in (400, 1600):
        write_seed_file(tmp_path / f"{n}.h5", make_values(["m"], [f"s{i}" for i in range(n)], {"fc": 50_000}))
        code = (
            "from pathlib import Path; from xact.building.import_files import import_files; "
            f"import_files([{str(tmp_path / f'{n}.h5')!r}], {str(tmp_path / f'{n}.zarr')!r}); "
            "print(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])"
        )
        peaks.append(int(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout))
    assert peaks[1] < peaks[0] + 100_000  # kB; the second file is 480 MB longer


def test_the_command_says_how_to_open_what_it_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_seed_file(tmp_path / "old.h5", make_values(["m"], ["a"], LAYERS))
    code, out, err = run(capsys, "import", tmp_path / "old.h5", "--store", tmp_path / "s.zarr")
    assert code == 0
    assert "1 stimulus row imported" in out
    assert "xact.open_activations(" in out
    assert "warning: m: the file lists layers by the alphabet" in err


def test_a_file_of_another_kind_is_a_wrong_request(tmp_path: Path) -> None:
    for name, text in [("x.csv", "'.*x.csv' cannot be imported"), ("x.h5", "there is no file '.*x.h5'")]:
        with pytest.raises(RequestError, match=text):
            import_files([tmp_path / name], tmp_path / "s.zarr")
