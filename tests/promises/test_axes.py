"""What a reduction goes over is known, said in the recipe, or refused: values against the same by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import transformers
import xarray as xr
from support.pictures import write_pictures, write_recipe

import xact
from xact.errors import MismatchError, RequestError

CODE = """
import numpy as np
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1d = nn.Conv1d(48, 10, 3)
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.hidden = nn.Identity()

    def forward(self, x):
        self.conv1d(x.flatten(1, 2))
        y = self.conv(x)
        same = torch.zeros((len(x), 8, 128), dtype=torch.long, device=x.device)
        self.hidden(y.flatten(2).gather(2, same + torch.arange(128, device=x.device)).transpose(1, 2))
        if x.shape[2] != 16:
            raise ValueError("pictures of 16 x 8 are wanted")
        return y.mean((2, 3))

class ViT(nn.Module):
    def __init__(self, n_before, n_after, says=True):
        super().__init__()
        if says:
            self.num_prefix_tokens = n_before
        self.cls_token = nn.Parameter(torch.ones(1, n_before, 16))
        self.after = nn.Parameter(torch.full((1, n_after, 16), 3.0))
        self.patch_embed = nn.Conv2d(3, 16, 4, 4)
        self.blocks = nn.ModuleList([nn.TransformerEncoderLayer(16, 2, 32, batch_first=True) for _ in range(2)])

    def forward(self, x):
        tokens = self.patch_embed(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls_token.expand(len(x), -1, -1), tokens, self.after.expand(len(x), -1, -1)], 1)
        for block in self.blocks:
            tokens = block(tokens)
        return tokens[:, 0]

class Wrong(ViT):
    def __init__(self):
        super().__init__(2, 0)
        self.num_prefix_tokens = 1
        self.cls_token = nn.Parameter(torch.ones(1, 1, 16))
        self.register = nn.Parameter(torch.ones(1, 1, 16))

    def forward(self, x):
        tokens = self.patch_embed(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls_token.expand(len(x), -1, -1), self.register.expand(len(x), -1, -1), tokens], 1)
        for block in self.blocks:
            tokens = block(tokens)
        return tokens[:, 0]

def transform(picture):
    pixels = np.asarray(picture.resize((8, 16)), dtype=np.float32)  # 16 rows, 8 columns
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy()) / 255

def net(): return Net()
def vit(): return ViT(1, 0)
def silent_vit(): return ViT(1, 0, says=False)
def two_classes(): return ViT(2, 0)
def detector(): return ViT(1, 5)
def wrong(): return Wrong()

for make in (net, vit, silent_vit, two_classes, detector, wrong):
    make.xact_transform = transform
"""


@pytest.fixture
def lab(tmp_path, monkeypatch):
    (tmp_path / "axeslab.py").write_text(CODE)
    write_pictures(tmp_path / "stimuli", 3, seed=1, size=(24, 20))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def extract(name, layers, reduce, **entry):
    model = {"source": "python", "id": f"axeslab:{name}", "weights": "random", **entry}
    pictures = sorted(Path("stimuli").glob("*.png"))
    return xact.extract(model, pictures, layers=layers, reduce=reduce, device="cpu", allow_code=True)


def reduce_by_hand(flat, over):
    return flat.values[:, 0].reshape(-1, *flat.attrs["unit_shape"]).astype(np.float64).mean(over)


@pytest.mark.parametrize(
    ("layer", "shape", "axes", "over", "kept"),
    [
        ("conv1d", [10, 6], ["channel", "x"], 2, ["channel"]),
        ("conv", [8, 16, 8], ["channel", "y", "x"], (2, 3), ["channel"]),  # as many columns as channels
    ],
)
def test_a_mean_keeps_the_channel_whatever_the_lengths(lab, layer, shape, axes, over, kept):
    flat = extract("net", [layer], "flatten")[layer]
    assert (flat.attrs["unit_shape"], flat.attrs["unit_axes"]) == (shape, axes)
    mean = extract("net", [layer], "mean")[layer]
    assert mean.attrs["unit_axes"] == kept
    np.testing.assert_allclose(mean.values[:, 0], reduce_by_hand(flat, over), rtol=1e-5, atol=1e-6)


def test_the_mlp_over_the_tokens_of_a_mixer_is_averaged_over_its_tokens():
    pictures = [np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)]
    model = {"source": "timm", "id": "mixer_s32_224", "weights": "random"}
    layer = "blocks.0.mlp_tokens"
    flat = xact.extract(model, pictures, layers=[layer], reduce="flatten", device="cpu")[layer]
    assert (flat.attrs["unit_shape"], flat.attrs["unit_axes"]) == ([512, 49], ["feature", "token"])
    both = xact.extract(model, pictures, layers=[layer], reduce=["mean", "max"], device="cpu")
    np.testing.assert_allclose(both[f"{layer}@mean"].values[:, 0], reduce_by_hand(flat, 2), rtol=1e-5, atol=1e-6)
    tokens = flat.values[:, 0].reshape(1, 512, 49)
    np.testing.assert_array_equal(both[f"{layer}@max"].values[:, 0], tokens.max(2))


@pytest.mark.parametrize("reduce", ["mean", "max", "patch_mean", "cls", "last"])
def test_unknown_axes_are_refused_until_the_recipe_says_them(lab, reduce):
    with pytest.raises(RequestError) as caught:
        extract("net", ["hidden"], reduce)
    assert "\n" not in str(caught.value)
    if reduce == "cls":
        return
    assert "'hidden' gives (128, 8) for each stimulus: which axis to keep" in str(caught.value)
    assert "axes: {'hidden': [token, feature]}" in caught.value.hint
    flat = extract("net", ["hidden"], "flatten")["hidden"]
    assert flat.attrs["unit_axes"] == ["axis0", "axis1"]


def test_the_axes_that_the_recipe_says_are_the_axes(lab):
    said = extract("net", ["hidden", "conv"], "mean", axes={"hid*": ["token", "feature"]})
    flat = extract("net", ["hidden"], "flatten", axes={"hidden": ["token", "feature"]})["hidden"]
    assert flat.attrs["unit_axes"] == ["token", "feature"]
    np.testing.assert_allclose(said["hidden"].values[:, 0], reduce_by_hand(flat, 1), rtol=1e-5, atol=1e-6)
    assert said["conv"].attrs["unit_axes"] == ["channel"]
    other = extract("net", ["hidden"], "mean", axes={"hidden": ["channel", "x"]})["hidden"]
    assert (other.shape[2], other.attrs["unit_axes"]) == (128, ["channel"])


@pytest.mark.parametrize(
    ("axes", "said"),
    [
        ({"hiden": ["token", "feature"]}, "axes names 'hiden', which is not among its chosen layers (nearest: hidden)"),
        ({"hidden": ["channel", "y", "x"]}, "axes names 3 axes (channel, y, x), but the layer gives (128, 8)"),
        ({"hidden": ["y", "x"]}, "which axis to keep under 'mean' cannot be told"),
        ({"hidden": ["token", "token"]}, "each axis once is wanted"),
        ({"hidden": ["channel", "feature"]}, "channel or feature, not both"),
        ({"hidden": ["token", "unit"]}, "axes.hidden.1"),
        ({}, "axes"),
    ],
)
def test_axes_that_do_not_fit_are_one_line(lab, axes, said):
    with pytest.raises(RequestError) as caught:
        extract("net", ["hidden"], "mean", axes=axes)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def write(lab, axes):
    return write_recipe(
        lab,
        f"store: {lab}/s.zarr\nstimuli: {{source: folder, root: stimuli}}\nlayers: [hidden]\nreduce: mean\n{axes}"
        "models: [{source: python, id: 'axeslab:net', label: M, weights: random}]\ncompute: {device: cpu}\n",
    )


def test_axes_are_part_of_what_a_store_is(lab):
    recipe = write(lab, "axes: {hidden: [token, feature]}\n")
    assert xact.build(recipe, limit=2, allow_code=True).is_complete
    store = xr.open_zarr(lab / "s.zarr")
    assert json.loads(store["unit_axes"].values[0, 0]) == ["feature"]
    assert xact.build(recipe, allow_code=True).n_captured == 1
    with pytest.raises(MismatchError, match=r"models\.M\.layers\.hidden.*differs"):
        xact.build(write(lab, "axes: {hidden: [feature, token]}\n"), allow_code=True)


def test_a_vit_of_ones_own_has_a_class_token_where_it_says_so(lab):
    both = extract("vit", ["blocks.1"], ["cls", "patch_mean", "flatten"])
    tokens = both["blocks.1@flatten"].values[:, 0].reshape(-1, 9, 16)
    np.testing.assert_array_equal(both["blocks.1@cls"].values[:, 0], tokens[:, 0])
    np.testing.assert_allclose(both["blocks.1@patch_mean"].values[:, 0], tokens[:, 1:].mean(1), rtol=1e-5, atol=1e-6)


def test_the_patches_of_a_vit_that_says_nothing_are_found(lab):
    both = extract("silent_vit", ["blocks.1"], ["patch_mean", "flatten"])
    tokens = both["blocks.1@flatten"].values[:, 0].reshape(-1, 9, 16)
    np.testing.assert_allclose(both["blocks.1@patch_mean"].values[:, 0], tokens[:, 1:].mean(1), rtol=1e-5, atol=1e-6)
    with pytest.raises(RequestError, match="no class token"):
        extract("silent_vit", ["blocks.1"], "cls")


@pytest.mark.parametrize(
    ("name", "reduce", "said"),
    [
        ("two_classes", "cls", "the network has no class token, or several"),
        ("detector", "patch_mean", "gives 14 tokens, of which 1 to 8 are patches, where the network says 1 to 13"),
        ("wrong", "patch_mean", "gives 10 tokens, of which 2 to 9 are patches, where the network says 1 to 9"),
    ],
)
def test_tokens_that_are_not_patches_are_never_averaged_as_patches(lab, name, reduce, said):
    with pytest.raises(RequestError) as caught:
        extract(name, ["blocks.1"], reduce)
    assert said in str(caught.value)


def test_the_detection_tokens_of_yolos_are_not_patches(tmp_path):
    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.YolosConfig(
        **size, image_size=[32, 32], patch_size=8, num_detection_tokens=5, use_mid_position_embeddings=False
    )
    config.architectures = ["YolosModel"]
    config.save_pretrained(tmp_path)
    model = {"source": "transformers", "id": str(tmp_path), "weights": "random", "layers": ["**.layer*.1"]}
    model["transform"] = {"resize": 32, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
    picture = np.zeros((32, 32, 3), dtype=np.uint8)
    with pytest.raises(RequestError, match="gives 22 tokens, of which 1 to 16 are patches"):
        xact.extract(model, [picture], reduce="patch_mean", device="cpu")
    (cls,) = xact.extract(model, [picture], reduce="cls", device="cpu").values()
    assert cls.shape[2] == 16


def test_the_distillation_token_of_deit_is_not_a_patch():
    model = {"source": "timm", "id": "deit_tiny_distilled_patch16_224", "weights": "random", "layers": ["blocks.1"]}
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    both = xact.extract(model, [picture], reduce=["patch_mean", "flatten"], device="cpu")
    tokens = both["blocks.1@flatten"].values[0, 0].reshape(198, 192)
    np.testing.assert_allclose(both["blocks.1@patch_mean"].values[0, 0], tokens[2:].mean(0), rtol=1e-5, atol=1e-6)
