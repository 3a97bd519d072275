"""A head that no chosen layer reads may not fit; values are those of a plain `load_state_dict` and forward pass."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
import xarray as xr
from PIL import Image
from support.cli import run
from support.pictures import write_pictures, write_recipe

import xact
from xact.errors import MismatchError, RecipeError, RequestError, WeightsError

RECIPE = """
store: {store}
stimuli: {{source: folder, root: stimuli{more}}}
models:
  - {{label: M, {model}}}
compute: {{device: cpu, batch_size: 2, workers: 1}}
"""
TIMM = "source: timm, id: test_resnet, weights: w.pth, layers: [{layers}], reduce: mean{keys}"


def write(folder: Path, *, layers: str = "layer4", keys: str = "", n: int = 3, more: str = "") -> Path:
    write_pictures(folder / "stimuli", n)
    model = TIMM.format(layers=layers, keys=keys)
    return write_recipe(folder, RECIPE.format(store=folder / "s.zarr", model=model, more=more))


def make_state(**options) -> dict[str, torch.Tensor]:
    torch.manual_seed(5)
    return timm.create_model("test_resnet", **options).state_dict()


def compute_plain(folder: Path, state, layer: str, **options) -> np.ndarray:
    """Return the means over the map of one layer, from timm alone: (stimulus, channel)."""
    network = timm.create_model("test_resnet", **options).eval()
    network.load_state_dict(state)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(network))
    found = []
    handle = network.get_submodule(layer).register_forward_hook(lambda _m, _i, output: found.append(output))
    with torch.inference_mode():
        network(torch.stack([transform(Image.open(file)) for file in sorted((folder / "stimuli").glob("*.png"))]))
    handle.remove()
    values = found[0]
    return (values.mean((2, 3)) if values.ndim == 4 else values).numpy()


def read(folder: Path, layer: str) -> np.ndarray:
    acts = xact.open_activations(folder / "s.zarr").sel(model="M", layer=layer, replicate=0)
    return acts.dropna("unit").values


def assert_values(folder: Path, state, layer: str, module: str = "", **options) -> None:
    plain = compute_plain(folder, state, module or layer, **options)
    assert np.abs(read(folder, layer) - plain).max() < 1e-5 * np.abs(plain).max()


def read_provenance(folder: Path) -> dict:
    attributes = xr.open_zarr(folder / "s.zarr", group="xact").attrs
    return json.loads(attributes["provenance"])["models"]["M"]["network"]


HEADS = {
    # how the head of the file differs: (change, names that are left out)
    "another size": (
        lambda s: s.update({"fc.weight": torch.zeros(10, s["fc.weight"].shape[1]), "fc.bias": torch.zeros(10)}),
        ["fc.bias", "fc.weight"],
    ),
    "missing": (lambda s: (s.pop("fc.weight"), s.pop("fc.bias")), ["fc.bias", "fc.weight"]),
    "two layers": (
        lambda s: s.update({"fc.0.weight": s.pop("fc.weight"), "fc.0.bias": s.pop("fc.bias")}),
        ["fc.0.bias", "fc.0.weight", "fc.bias", "fc.weight"],
    ),
}


@pytest.mark.parametrize("how", HEADS)
def test_a_head_that_no_chosen_layer_reads_may_not_fit_and_it_is_told(tmp_path, capsys, how):
    change, left_out = HEADS[how]
    whole = make_state()
    state = dict(whole)
    change(state)
    recipe = write(tmp_path)
    torch.save(state, tmp_path / "w.pth")
    code, _, err = run(capsys, "plan", recipe)
    assert code == 0
    outcome = xact.build(recipe)
    (said,) = outcome.warnings
    assert f"{len(left_out)} tensors of w.pth do not fit and are left out (fc." in said
    assert said in err
    assert_values(tmp_path, whole, "layer4")
    assert read_provenance(tmp_path)["checkpoint"] == {"left_out": left_out}


def test_a_later_build_adds_stimuli_to_a_network_without_its_head(tmp_path):
    whole = make_state()
    torch.save({name: x for name, x in whole.items() if not name.startswith("fc")}, tmp_path / "w.pth")
    xact.build(write(tmp_path, n=2))
    torch.manual_seed(77)  # what the missing head is does not depend on random numbers
    assert xact.build(write(tmp_path, n=3)).n_captured == 1
    assert_values(tmp_path, whole, "layer4")


def test_a_later_build_that_asks_for_the_head_is_refused(tmp_path):
    torch.save({name: x for name, x in make_state().items() if not name.startswith("fc")}, tmp_path / "w.pth")
    xact.build(write(tmp_path))
    with pytest.raises((WeightsError, MismatchError), match=r"fc\.bias|layers"):
        xact.build(write(tmp_path, layers="layer4, logits"))
    assert xact.build(write(tmp_path)).is_complete


@pytest.mark.parametrize("layers", ["logits", "fc", "layer4, fc"])
def test_a_head_that_a_chosen_layer_reads_is_refused_by_name(tmp_path, layers):
    state = make_state()
    del state["fc.bias"]
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"do not fit the architecture: 1 missing \(fc\.bias\)") as caught:
        xact.build(write(tmp_path, layers=layers, keys=", head: drop"))
    assert "a chosen layer reads them" in caught.value.hint
    assert not (tmp_path / "s.zarr").exists()


def test_a_head_of_another_size_that_is_read_says_how_to_state_its_classes(tmp_path):
    """Also in a network of which every tensor is read: one without the buffers of batch norm."""
    whole = timm.create_model("test_vit", num_classes=10).state_dict()
    torch.save(whole, tmp_path / "w.pth")
    recipe = write(tmp_path, layers="logits")
    recipe.write_text(recipe.read_text().replace("test_resnet", "test_vit"))
    with pytest.raises(WeightsError, match=r"size mismatch for head\.weight") as caught:
        xact.build(recipe)
    assert "`num_classes: N`" in caught.value.hint
    recipe.write_text(recipe.read_text().replace("label: M", "label: M, num_classes: 10"))
    assert xact.build(recipe).is_complete
    assert xact.open_layer(tmp_path / "s.zarr", "M", "logits").sizes["unit"] == 10


def test_a_tensor_of_the_body_is_never_a_head(tmp_path):
    state = make_state()
    name = next(name for name in state if name.startswith("layer3") and name.endswith("weight"))
    del state[name]
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=rf"1 missing \({name}\)"):
        xact.build(write(tmp_path, keys=", head: drop"))


def test_a_file_without_later_blocks_is_another_network_unless_the_recipe_drops_them(tmp_path):
    whole = make_state()
    torch.save({name: x for name, x in whole.items() if not name.startswith(("layer4", "fc"))}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"missing \(layer4"):
        xact.build(write(tmp_path, layers="layer1"))
    (said,) = xact.build(write(tmp_path, layers="layer1", keys=", head: drop")).warnings
    assert "are left out (fc.bias" in said
    assert_values(tmp_path, whole, "layer1")


def test_head_keep_wants_every_tensor(tmp_path):
    state = make_state()
    del state["fc.bias"]
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"1 missing \(fc\.bias\)"):
        xact.build(write(tmp_path, keys=", head: keep"))


def test_head_drop_leaves_out_a_head_that_the_network_does_not_have(tmp_path):
    whole = make_state()
    torch.save({**whole, "projector.0.weight": torch.ones(3, 3)}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"1 unexpected \(projector\.0\.weight\)"):
        xact.build(write(tmp_path))
    (said,) = xact.build(write(tmp_path, keys=", head: drop")).warnings
    assert "projector.0.weight" in said
    assert_values(tmp_path, whole, "layer4")


def test_a_wrapped_checkpoint_is_told_by_plan_and_build(tmp_path, capsys):
    whole = make_state()
    torch.save({"state_dict": {f"model.{name}": x for name, x in whole.items()}, "epoch": 3}, tmp_path / "w.pth")
    recipe = write(tmp_path)
    code, _, err = run(capsys, "plan", recipe)
    said = "M: w.pth holds the weights in 'state_dict' under the prefix 'model.'"
    assert (code, said in err) == (0, True)
    assert xact.build(recipe).warnings == [said]
    assert_values(tmp_path, whole, "layer4")
    assert read_provenance(tmp_path)["checkpoint"] == {"container": "state_dict", "prefix": "model."}


def test_weights_that_fit_as_they_are_are_not_told(tmp_path):
    torch.save(make_state(), tmp_path / "w.pth")
    assert xact.build(write(tmp_path)).warnings == []
    assert "checkpoint" not in read_provenance(tmp_path)


def test_another_number_of_classes_is_built_and_compared(tmp_path):
    state = make_state(num_classes=10)
    torch.save(state, tmp_path / "w.pth")
    recipe = write(tmp_path, layers="layer4, logits", keys=", num_classes: 10")
    assert xact.build(recipe).warnings == []
    assert_values(tmp_path, state, "logits", "fc", num_classes=10)
    with pytest.raises((MismatchError, WeightsError)):
        xact.build(write(tmp_path, layers="layer4, logits", keys=", num_classes: 11"))


def test_classes_of_torchvision_are_those_asked_for(tmp_path):
    torch.manual_seed(3)
    network = torchvision.models.squeezenet1_1(num_classes=7)
    torch.save(network.state_dict(), tmp_path / "w.pth")
    write_pictures(tmp_path / "stimuli", 2)
    model = "source: torchvision, id: squeezenet1_1, weights: w.pth, num_classes: 7, layers: [logits]"
    xact.build(write_recipe(tmp_path, RECIPE.format(store=tmp_path / "s.zarr", model=model, more="")))
    transform = torchvision.models.SqueezeNet1_1_Weights.DEFAULT.transforms()
    pictures = torch.stack([transform(Image.open(file)) for file in sorted((tmp_path / "stimuli").glob("*.png"))])
    with torch.inference_mode():
        plain = network.eval()(pictures).numpy()
    assert np.abs(read(tmp_path, "logits") - plain).max() < 1e-5 * np.abs(plain).max()


@pytest.mark.parametrize(
    ("model", "error", "said"),
    [
        (
            "source: open_clip, id: ViT-S-32-alt, weights: random, num_classes: 3",
            RecipeError,
            "open_clip takes no",
        ),
        ("source: timm, id: test_resnet, num_classes: 3", RecipeError, "pretrained weights have their own number of"),
        ("source: timm, id: test_resnet, weights: random, head: drop", RecipeError, "head goes with a local file"),
        ("source: timm, id: test_resnet, checkpoint_key: a", RecipeError, "checkpoint_key goes with a local file"),
    ],
)
def test_a_key_that_does_not_go_with_the_weights_is_one_line(tmp_path, model, error, said):
    write_pictures(tmp_path / "stimuli", 1)
    recipe = write_recipe(tmp_path, RECIPE.format(store=tmp_path / "s.zarr", model=model, more=""))
    with pytest.raises(error, match=said):
        xact.build(recipe)


def test_extract_loads_a_file_with_another_head(tmp_path):
    whole = make_state()
    torch.save({"model": {**whole, "fc.weight": torch.zeros(10, 2), "fc.bias": torch.zeros(10)}}, tmp_path / "w.pth")
    write(tmp_path)
    entry = {"source": "timm", "id": "test_resnet", "weights": str(tmp_path / "w.pth")}
    files = sorted((tmp_path / "stimuli").glob("*.png"))
    with pytest.warns(UserWarning, match=r"w\.pth"):
        found = xact.extract(entry, files, layers=["layer4"], reduce="mean", device="cpu")
    plain = compute_plain(tmp_path, whole, "layer4")
    assert np.abs(found["layer4"].values[:, 0] - plain).max() < 1e-5 * np.abs(plain).max()
    with pytest.raises((WeightsError, RequestError)):
        xact.extract(entry, files, layers=["logits"], device="cpu")
