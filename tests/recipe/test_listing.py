"""`xact models` tells what the registry holds, and which weights lie here, at once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.cli import run

from xact.recipe.registry.listing import describe_model, find_checkpoints, find_weights_here, list_models
from xact.recipe.registry.load import load_registry

REGISTRY = load_registry()


def test_the_table_has_a_line_for_every_network_and_names_the_sets(capsys):
    code, out, _ = run(capsys, "models")
    lines = out.splitlines()
    assert code == 0
    assert lines[0].split() == "model source id family training parameters licence weights".split()
    assert len(lines) == 1 + len(REGISTRY.entries) + 1
    resnet = next(line for line in lines if line.startswith("ResNet50 "))
    assert "25,557,032" in resnet
    assert "BSD-3-Clause" in resnet
    assert {"panel-a (14)", "panel-b-vision (17)", "panel-a-original (13)"} <= {*lines[-1][6:].split(", ")}


def test_a_set_lists_its_own_networks_and_json_is_data(capsys):
    code, out, _ = run(capsys, "models", "panel-b-vision", "--json")
    assert code == 0
    assert [row["label"] for row in json.loads(out)] == REGISTRY.sets["panel-b-vision"].models


def test_one_network_is_told_in_full(capsys):
    _, out, _ = run(capsys, "models", "VGG19")
    assert "  maxpool3  (module features.18; depth bin 3)" in out.splitlines()
    assert "transform: resize 256, crop 224, squash no, interpolation bilinear, mean 0.485 0.456 0.406" in out
    assert "sets: panel-a panel-a-original cnn image" in out
    told = json.loads(run(capsys, "models", "ResNet50", "--json")[1])
    assert told["panel_transform"]["resize"] == 256
    assert told["transform"]["resize"] == 232
    assert told["depth_bins"]["layer4.2.conv2"] == 5
    assert len(told["layer_sets"]["panel"]["layers"]) == 33
    assert told["weights"] == {"file": "resnet50-11ad3fa6.pth", "sha256": "11ad3fa6", "hub": None, "revision": None}


def test_what_is_told_of_every_network_is_json():
    for label in REGISTRY.entries:
        told = describe_model(REGISTRY, label)
        assert json.loads(json.dumps(told)).keys() == told.keys() > {"label", "sets"}


def test_an_unknown_name_gets_the_nearest_and_the_sets(capsys):
    code, _, err = run(capsys, "models", "VG19")
    assert code == 2
    assert "no model 'VG19' (nearest: VGG19" in err
    assert "panel-a" in err


def test_weights_here_are_seen_in_torchs_folder_and_in_the_cache_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    vgg, deit = REGISTRY.entries["VGG19"], REGISTRY.entries["DeiT-Base"]
    assert (find_weights_here(vgg), find_weights_here(deit)) == (False, False)
    snapshot = tmp_path / "hub" / f"models--{deit.weights.hub.replace('/', '--')}" / "snapshots" / "0123"
    for file in (tmp_path / "hub" / "checkpoints" / str(vgg.weights.file), snapshot / "config.json"):
        file.parent.mkdir(parents=True)
        file.touch()
    assert (find_weights_here(vgg), find_weights_here(deit)) == (True, False)
    (snapshot / "model.safetensors").touch()
    assert find_weights_here(deit) is True
    assert {row["label"]: row["weights_here"] for row in list_models(REGISTRY, None)}["DeiT-Base"] is True


@pytest.mark.parametrize("name", ["TORCH_HOME", "XDG_CACHE_HOME", None])
def test_torchs_folder_is_the_one_that_torch_uses(name, tmp_path, monkeypatch):
    for one in ("TORCH_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(one, raising=False)
    if name:
        monkeypatch.setenv(name, str(tmp_path))
    assert find_checkpoints() == Path(torch.hub.get_dir()).expanduser() / "checkpoints"


def test_the_list_needs_no_torch_and_no_library_of_networks():
    code = (
        "import sys; from xact.cli.main import main\n"
        "try: main(['models'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'timm', 'open_clip', 'transformers', 'torchvision', 'xarray'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
