"""Every stored value against an independent forward pass: the library's own model and transform, plain hooks that
clone, one image at a time.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import open_clip
import pytest
import timm
import torch
import torchvision
import transformers
import xarray as xr
from PIL import Image
from support.pictures import write_pictures, write_recipe

import xact

N_PICTURES = 5


def forward_with_hooks(module, run, modules, picture):
    """Return {(module, call): output} of one picture."""
    kept, handles = defaultdict(list), []
    for name in modules:
        handles.append(
            module.get_submodule(name).register_forward_hook(
                lambda _m, _i, out, name=name: kept[name].append((out[0] if isinstance(out, tuple) else out).clone())
            )
        )
    with torch.inference_mode():
        result = run(module, picture[None])
    for handle in handles:
        handle.remove()
    return {(name, call): out[0] for name, outs in kept.items() for call, out in enumerate(outs)} | {
        ("logits", 0): result[0]
    }


def make_resnet18(seed):
    torch.manual_seed(seed)
    module = torchvision.models.resnet18().eval()
    return module, lambda m, x: m(x), torchvision.models.ResNet18_Weights.DEFAULT.transforms()


def make_mobilenet(_seed):
    weights = torchvision.models.MobileNet_V2_Weights.IMAGENET1K_V1
    return torchvision.models.mobilenet_v2(weights=weights).eval(), lambda m, x: m(x), weights.transforms()


def make_timm(name):
    def make(seed):
        torch.manual_seed(seed)
        module = timm.create_model(name).eval()
        config = timm.data.resolve_model_data_config(module)
        return module, lambda m, x: m(x), timm.data.create_transform(**config, is_training=False)

    return make


def make_clip(seed):
    torch.manual_seed(seed)
    model, _, transform = open_clip.create_model_and_transforms("ViT-B-32", pretrained=None)
    return model.visual.eval(), lambda m, x: m(x), transform


CASES = {
    # label: (recipe entry, the library's own, {layer of the store: (module, call)})
    "resnet18": (
        "{label: m, source: torchvision, id: resnet18, weights: random, seed: 3, layers: LAYERS}",
        make_resnet18,
        {
            "bn1": ("bn1", 0),  # followed by an in-place ReLU
            "layer1.0.bn1": ("layer1.0.bn1", 0),  # the same
            "layer1.0.bn2": ("layer1.0.bn2", 0),  # followed by `out += identity`
            "layer1.0.relu:0": ("layer1.0.relu", 0),  # one module called twice
            "layer1.0.relu:1": ("layer1.0.relu", 1),
            "layer2.1": ("layer2.1", 0),
            "layer4": ("layer4", 0),
            "logits": ("logits", 0),
        },
    ),
    "mobilenet_v2": (
        "{label: m, source: torchvision, id: mobilenet_v2.IMAGENET1K_V1, layers: LAYERS}",
        make_mobilenet,
        {
            "features.0.1": ("features.0.1", 0),  # followed by an in-place ReLU6
            "features.3": ("features.3", 0),
            "features.17": ("features.17", 0),
            "features.18.2": ("features.18.2", 0),
            "logits": ("logits", 0),
        },
    ),
    "timm ViT": (
        "{label: m, source: timm, id: vit_tiny_patch16_224.augreg_in21k, weights: random, seed: 3, layers: LAYERS}",
        make_timm("vit_tiny_patch16_224.augreg_in21k"),
        {
            "patch_embed": ("patch_embed", 0),
            "blocks.0": ("blocks.0", 0),
            "blocks.5.mlp.fc2": ("blocks.5.mlp.fc2", 0),
            "blocks.11": ("blocks.11", 0),
        },
    ),
    "timm ConvNeXt": (
        "{label: m, source: timm, id: convnext_atto.d2_in1k, weights: random, seed: 3, layers: LAYERS}",
        make_timm("convnext_atto.d2_in1k"),
        {
            "stages.0.blocks.1.conv_dw": ("stages.0.blocks.1.conv_dw", 0),
            "stages.3.blocks.1": ("stages.3.blocks.1", 0),
            "logits": ("logits", 0),
        },
    ),
    "open_clip ViT": (
        "{label: m, source: open_clip, id: ViT-B-32, weights: random, seed: 3, layers: LAYERS}",
        make_clip,
        {
            "transformer.resblocks.0": ("transformer.resblocks.0", 0),
            "transformer.resblocks.11.mlp.c_fc": ("transformer.resblocks.11.mlp.c_fc", 0),
            "logits": ("logits", 0),
        },
    ),
}


def build_and_compare(tmp_path, entry, made, layers):
    """Build a store and compare every value with the plain forward pass."""
    module, run, transform = made
    write_pictures(tmp_path / "stimuli", N_PICTURES)
    recipe = write_recipe(
        tmp_path,
        f"store: {tmp_path / 'store.zarr'}\n"
        "stimuli: {source: folder, root: stimuli}\n"
        f"models:\n  - {entry.replace('LAYERS', str(list(layers)))}\n"
        "reduce: flatten\ncompute: {device: cpu, batch_size: 3, workers: 2}\nstorage: {layout: groups}\n",
    )
    xact.build(recipe)
    stored = xr.open_datatree(tmp_path / "store.zarr", engine="zarr")["m"]
    pictures = [Image.open(file).convert("RGB") for file in sorted((tmp_path / "stimuli").glob("*.png"))]
    found = {str(group["layer"].item()): group["activations"].values[0, :, 0, 0] for group in stored.children.values()}
    assert set(found) == set(layers)
    modules = sorted({name for name, _ in layers.values() if name != "logits"})
    for row, picture in enumerate(pictures):
        expected = forward_with_hooks(module, run, modules, transform(picture))
        for layer, key in layers.items():
            true = expected[key].flatten().numpy()
            assert found[layer][row].shape == true.shape, layer
            assert np.abs(found[layer][row] - true).max() <= 1e-5 * np.abs(true).max(), (layer, row)


@pytest.mark.parametrize("case", [name for name in CASES if name != "mobilenet_v2"])
def test_stored_values_equal_a_plain_forward_pass_of_the_library(case, tmp_path):
    entry, make, layers = CASES[case]
    build_and_compare(tmp_path, entry, make(3), layers)


@pytest.mark.usefixtures("mobilenet_weights")
def test_stored_values_of_real_weights_equal_a_plain_forward_pass(tmp_path):
    entry, make, layers = CASES["mobilenet_v2"]
    build_and_compare(tmp_path, entry, make(3), layers)


def test_stored_values_of_a_transformers_folder_equal_a_plain_forward_pass(tmp_path):
    config = transformers.ViTConfig(
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        image_size=64,
        patch_size=16,
        num_labels=7,
        architectures=["ViTForImageClassification"],
    )
    torch.manual_seed(5)
    model = transformers.ViTForImageClassification(config).eval()
    folder = tmp_path / "vit"
    model.save_pretrained(folder)
    processor = transformers.ViTImageProcessor(size={"height": 64, "width": 64})
    processor.save_pretrained(folder)
    names = [name for name, module in model.named_modules() if type(module).__name__ == "ViTLayer"]
    assert len(names) == 3
    automatic = transformers.AutoImageProcessor.from_pretrained(folder)
    made = (
        model,
        lambda m, x: m(pixel_values=x).logits,
        lambda picture: automatic(images=picture, return_tensors="pt").pixel_values[0],
    )
    entry = "{label: m, source: transformers, id: vit, layers: LAYERS}"
    build_and_compare(tmp_path, entry, made, {**{name: (name, 0) for name in names}, "logits": ("logits", 0)})


REDUCTIONS = {
    # reduction: the same by hand, on tokens (token, feature) of a ViT with one class token
    "mean": lambda x: x.mean(0),
    "patch_mean": lambda x: x[1:].mean(0),
    "max": lambda x: x.max(0),
    "cls": lambda x: x[0],
    "last": lambda x: x[-1],
    "flatten": lambda x: x.ravel(),
}


def test_every_reduction_of_tokens_equals_the_same_by_hand(tmp_path):
    write_pictures(tmp_path / "stimuli", 3)
    recipe = write_recipe(
        tmp_path,
        f"store: {tmp_path / 'store.zarr'}\nstimuli: {{source: folder, root: stimuli}}\n"
        "models: [{label: m, source: timm, id: vit_tiny_patch16_224.augreg_in21k, weights: random}]\n"
        "layers: [blocks.2]\n"
        f"reduce: [{', '.join(REDUCTIONS)}]\nstorage: {{layout: groups}}\n",
    )
    xact.build(recipe)
    stored = xr.open_datatree(tmp_path / "store.zarr", engine="zarr")["m"]
    found = {str(g["layer"].item()): g["activations"].values[0, :, 0, 0] for g in stored.children.values()}
    tokens = found["blocks.2@flatten"].reshape(3, 197, 192)
    for name, by_hand in REDUCTIONS.items():
        for row in range(3):
            np.testing.assert_allclose(found[f"blocks.2@{name}"][row], by_hand(tokens[row]), rtol=1e-5, atol=1e-6)


def test_maps_are_reduced_over_rows_and_columns_wherever_the_channel_lies(tmp_path):
    pictures = [np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)]
    first = {"source": "torchvision", "id": "resnet18", "weights": "random"}  # (channel, y, x)
    last = {"source": "torchvision", "id": "swin_t", "weights": "random"}  # (y, x, channel)
    for model, layer, axes in ((first, "layer3", (1, 2)), (last, "features.3", (0, 1))):
        flat = xact.extract(model, pictures, layers=[layer], reduce="flatten", device="cpu")[layer]
        maps = flat.values[0, 0].reshape(flat.attrs["unit_shape"])
        both = xact.extract(model, pictures, layers=[layer], reduce=["mean", "max"], device="cpu")
        np.testing.assert_allclose(both[f"{layer}@mean"].values[0, 0], maps.mean(axes), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(both[f"{layer}@max"].values[0, 0], maps.max(axes), rtol=1e-6)


def test_a_projection_keeps_distances_and_is_the_same_for_the_same_seed():
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (64, 64, 3), dtype=np.uint8) for _ in range(6)]
    model = {"source": "torchvision", "id": "resnet18", "weights": "random"}
    flat = xact.extract(model, pictures, layers=["layer2"], reduce="flatten")["layer2"].values[:, 0]
    one = xact.extract(model, pictures, layers=["layer2"], reduce={"project": 2000, "seed": 1})["layer2"].values[:, 0]
    two = xact.extract(model, pictures, layers=["layer2"], reduce={"project": 2000, "seed": 1})["layer2"].values[:, 0]
    three = xact.extract(model, pictures, layers=["layer2"], reduce={"project": 2000, "seed": 2})["layer2"].values[:, 0]
    assert one.shape == (6, 2000)
    assert np.array_equal(one, two)
    assert not np.array_equal(one, three)
    for i in range(6):
        for j in range(i):
            true = np.linalg.norm(flat[i] - flat[j])
            assert abs(np.linalg.norm(one[i] - one[j]) / true - 1) < 0.15


@pytest.mark.usefixtures("mobilenet_weights")
def test_real_weights_name_the_cat_and_the_coffee(tmp_path):
    import skimage.data

    (tmp_path / "stimuli").mkdir()
    for name in ("chelsea", "coffee"):
        Image.fromarray(getattr(skimage.data, name)()).save(tmp_path / "stimuli" / f"{name}.png")
    recipe = write_recipe(
        tmp_path,
        f"store: {tmp_path / 'store.zarr'}\nstimuli: {{source: folder, root: stimuli}}\n"
        "models: [{label: m, source: torchvision, id: mobilenet_v2.IMAGENET1K_V1, layers: [logits]}]\n",
    )
    xact.build(recipe)
    logits = xr.open_zarr(tmp_path / "store.zarr").activations.isel(model=0, layer=0, replicate=0)
    categories = torchvision.models.MobileNet_V2_Weights.IMAGENET1K_V1.meta["categories"]
    named = {str(s): categories[int(logits.sel(stimulus=s).argmax("unit"))] for s in logits.stimulus.values}
    assert named == {"chelsea": "Egyptian cat", "coffee": "espresso"}
