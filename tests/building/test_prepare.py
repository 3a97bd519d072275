"""Weights that do not fit are found before the first picture of any model."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from support.pictures import write_pictures, write_recipe
from transformers import ViTConfig, ViTModel

import xact
from xact.building import run
from xact.errors import WeightsError
from xact.models import load as models

RECIPE = """
store: {store}
stimuli: {{source: folder, root: stimuli}}
models:
  - {{label: first, source: timm, id: test_vit, weights: random, layers: [blocks.0], reduce: mean}}
  - {second}
on_error: {on_error}
compute: {{device: cpu}}
"""
TRANSFORM = "transform: {resize: 32, crop: 32, mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5]}"


def write_timm(folder: Path, change: str) -> str:
    state = timm.create_model("test_resnet").state_dict()
    if change == "shape":
        state["conv1.0.weight" if "conv1.0.weight" in state else "conv1.weight"] = torch.zeros(2, 2)
    elif change == "missing":
        state.pop(next(iter(state)))
    elif change == "more":
        state["more"] = torch.zeros(2)
    torch.save(state, folder / "w.pt")
    save_file({key: x.contiguous() for key, x in state.items()}, folder / "w.safetensors")
    return "{label: second, source: timm, id: test_resnet, weights: FILE, layers: [layer1], reduce: mean}"


def write_vit(folder: Path, change: str) -> str:
    size = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16, "image_size": 32, "patch_size": 8}
    ViTModel(ViTConfig(**size, num_hidden_layers=2)).save_pretrained(folder / "net")
    more = {"shape": {"hidden_size": 32}, "missing": {"num_hidden_layers": 3}, "more": {"num_hidden_layers": 1}}
    config = ViTConfig(**(size | {"num_hidden_layers": 2} | more.get(change, {})), architectures=["ViTModel"])
    config.save_pretrained(folder / "net")
    return f"{{label: second, source: transformers, id: net, weights: pretrained, layers: blocks, {TRANSFORM}}}"


@pytest.mark.parametrize("change", ["shape", "missing", "more"])
@pytest.mark.parametrize(("write", "file"), [(write_timm, "w.pt"), (write_timm, "w.safetensors"), (write_vit, "")])
def test_weights_that_do_not_fit_are_found_before_the_first_picture(tmp_path, monkeypatch, change, write, file):
    write_pictures(tmp_path / "stimuli", 2)
    second = write(tmp_path, change).replace("FILE", file)
    text = RECIPE.format(store=tmp_path / "s.zarr", second=second, on_error="stop")
    recipe = write_recipe(tmp_path, text)
    monkeypatch.setattr(run, "load_network", lambda *_: pytest.fail("a network was loaded to run"))
    with pytest.raises(WeightsError, match=r"do(es)? not fit"):
        xact.build(recipe)
    assert not (tmp_path / "s.zarr").exists()
    monkeypatch.undo()
    recipe.write_text(text.replace("on_error: stop", "on_error: skip"))
    outcome = xact.build(recipe)
    assert list(outcome.failed_models) == ["second"]
    assert outcome.n_captured == 2


@pytest.mark.parametrize(("write", "file"), [(write_timm, "w.pt"), (write_timm, "w.safetensors"), (write_vit, "")])
def test_weights_that_fit_are_read_once(tmp_path, monkeypatch, write, file):
    """On the meta device names and shapes are compared; a loader that fails there would load the network twice."""
    write_pictures(tmp_path / "stimuli", 2)
    second = write(tmp_path, "").replace("FILE", file)
    recipe = write_recipe(tmp_path, RECIPE.format(store=tmp_path / "s.zarr", second=second, on_error="stop"))
    loaded: list[str] = []
    load = models.load_network

    def note(spec, weights):
        loaded.append(f"{spec.label} on {torch.get_default_device()}")
        return load(spec, weights)

    monkeypatch.setattr(models, "load_network", note)
    monkeypatch.setattr(run, "load_network", note)
    assert xact.build(recipe).is_complete
    assert loaded == ["second on meta", "first on cpu", "second on cpu"]
