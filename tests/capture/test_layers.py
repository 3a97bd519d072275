"""Which outputs a recipe means, on the real outputs of real networks; the meta device makes them cost nothing."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace

import pytest
import timm
import torch
import torchvision
import transformers
from torch import nn

from xact.capture.layers import (
    Output,
    find_blocks,
    find_depth,
    match_glob,
    resolve_aliases,
    select_layers,
)
from xact.capture.probe import probe
from xact.errors import NameNotFoundError, RequestError
from xact.recipe.schema import Depths


def probe_module(module, size, *, forward=lambda module, x: module(x), find_logits=lambda y: y):
    network = SimpleNamespace(module=module.eval().to("meta"), forward=forward, find_logits=find_logits)
    return tuple(probe(network, (3, size, size)))


@cache
def probe_timm(name):
    with torch.device("meta"):
        module = timm.create_model(name)
    return probe_module(module, module.default_cfg["input_size"][-1])


@cache
def probe_torchvision(name):
    try:
        with torch.device("meta"):
            module = torchvision.models.get_model(name)
    except NotImplementedError:  # RegNet computes its widths with tensors
        module = torchvision.models.get_model(name)
    return probe_module(module, 224)


@cache
def probe_transformers(name, **changes):
    changes = {key: list(value) if isinstance(value, tuple) else value for key, value in changes.items()}
    config = getattr(transformers, f"{name}Config")(**changes)
    with torch.device("meta"):
        module = getattr(transformers, f"{name}Model")(config)
    return probe_module(module, 224, forward=lambda m, x: m(pixel_values=x), find_logits=lambda _: None)


def select(wanted, outputs, **aliases):
    chosen = select_layers(wanted, outputs, aliases=aliases, model="net")
    assert list(chosen) == sorted(chosen)
    assert all(outputs[i].label == aliases.get(label, label) for i, label in chosen.items())
    return list(chosen.values())


def number(pattern, *counts):
    """Names by hand: `layer{}.{}` with counts (2, 2) gives layer1.0 layer1.1 layer2.0 layer2.1."""
    first = 1 if "layer{" in pattern else 0
    return [pattern.format(prepared + first, block) for prepared, n in enumerate(counts) for block in range(n)]


BLOCKS = {
    # network: (its outputs, the names of its blocks by hand)
    "torchvision resnet18": (lambda: probe_torchvision("resnet18"), number("layer{}.{}", 2, 2, 2, 2)),
    "torchvision vgg11": (lambda: probe_torchvision("vgg11"), []),
    "torchvision vit_b_16": (
        lambda: probe_torchvision("vit_b_16"),
        [f"encoder.layers.encoder_layer_{i}" for i in range(12)],
    ),
    "torchvision mobilenet_v2": (lambda: probe_torchvision("mobilenet_v2"), [f"features.{i}" for i in range(1, 18)]),
    "torchvision maxvit_t": (lambda: probe_torchvision("maxvit_t"), number("blocks.{}.layers.{}", 2, 2, 5, 2)),
    "timm vit_tiny": (lambda: probe_timm("vit_tiny_patch16_224"), [f"blocks.{i}" for i in range(12)]),
    "timm convnext_atto": (lambda: probe_timm("convnext_atto"), number("stages.{}.blocks.{}", 2, 2, 6, 2)),
    "timm tf_efficientnet_lite0": (
        lambda: probe_timm("tf_efficientnet_lite0"),
        number("blocks.{}.{}", 1, 2, 2, 3, 3, 4, 1),
    ),
    "timm swin_tiny": (lambda: probe_timm("swin_tiny_patch4_window7_224"), number("layers.{}.blocks.{}", 2, 2, 6, 2)),
    "transformers ViT": (lambda: probe_transformers("ViT", num_hidden_layers=3), [f"layers.{i}" for i in range(3)]),
    # the stem is made of a class of the same kind
    "transformers ResNet": (
        lambda: probe_transformers("ResNet", depths=(1, 2, 2, 1)),
        number("encoder.stages.{}.layers.{}", 1, 2, 2, 1),
    ),
}


@pytest.mark.parametrize("network", BLOCKS)
def test_the_blocks_found_are_the_networks_own(network):
    make, expected = BLOCKS[network]
    assert find_blocks(make()) == expected


FAMILIES = {
    # timm name: (number of blocks by the paper or the definition, first, last)
    "resnetv2_50": (3 + 4 + 6 + 3, "stages.0.blocks.0", "stages.3.blocks.2"),
    "regnetx_002": (1 + 1 + 4 + 7, "s1.b1", "s4.b7"),
    "densenet121": (4, "features.denseblock1", "features.denseblock4"),  # a dense block counts as one
    "mobilenetv3_small_050": (11, "blocks.0.0", "blocks.4.2"),  # its last 1x1 convolution is none
    "tf_efficientnetv2_b0": (2 + 2 + 3 + 5 + 8, "blocks.1.0", "blocks.5.7"),  # but for the plain first stage
    "mobilenetv4_hybrid_medium": (1 + 22 + 8, "blocks.0.0", "blocks.3.15"),  # 8 blocks of attention
    "convnextv2_atto": (2 + 2 + 6 + 2, "stages.0.blocks.0", "stages.3.blocks.1"),
    "maxvit_tiny_rw_224": (2 + 2 + 5 + 2, "stages.0.blocks.0", "stages.3.blocks.1"),
    "coatnet_0_rw_224": (2 + 3 + 7 + 2, "stages.0.blocks.0", "stages.3.blocks.1"),  # convolution, then attention
    "beit_base_patch16_224": (12, "blocks.0", "blocks.11"),
    "eva02_tiny_patch14_224": (12, "blocks.0", "blocks.11"),
    "deit3_small_patch16_224": (12, "blocks.0", "blocks.11"),
    "cait_xxs24_224": (24 + 2, "blocks.0", "blocks_token_only.1"),  # two blocks of class attention at the end
    "xcit_nano_12_p16_224": (12 + 2, "blocks.0", "cls_attn_blocks.1"),
    "mixer_s32_224": (8, "blocks.0", "blocks.7"),
    "poolformer_s12": (2 + 2 + 6 + 2, "stages.0.blocks.0", "stages.3.blocks.1"),
    "nfnet_f0": (1 + 2 + 6 + 3, "stages.0.0", "stages.3.2"),
    "fastvit_t8": (2 + 2 + 4 + 2, "stages.0.blocks.0", "stages.3.blocks.1"),  # not its stem nor its last convolution
    "efficientformer_l1": (3 + 2 + 6 + 4, "stages.0.blocks.0", "stages.3.blocks.4"),
    "volo_d1_224": (4 + 4 + 8 + 2 + 2, "network.0.0", "post_network.1"),  # 4 outlookers, 14 transformers, 2 of class
    "pit_ti_224": (2 + 6 + 4, "transformers.0.blocks.0", "transformers.2.blocks.3"),  # not the stages that hold them
    "tiny_vit_5m_224": (2 + 2 + 6 + 2, "stages.0.blocks.0", "stages.3.blocks.1"),
    "dla34": (12, "level2.tree1", "level5.tree2"),
    "gcvit_xxtiny": (2 + 2 + 6 + 2, "stages.0.blocks.0", "stages.3.blocks.1"),  # not what makes its global queries
}


@pytest.mark.parametrize("name", FAMILIES)
def test_blocks_are_what_the_family_calls_so(name):
    n_blocks, first, last = FAMILIES[name]
    found = find_blocks(probe_timm(name))
    assert (len(found), found[0], found[-1]) == (n_blocks, first, last)


@pytest.mark.parametrize("name", ["vgg11", "alexnet", "squeezenet1_0"])
def test_a_network_without_blocks_says_so_and_where_its_layers_are_listed(name):
    outputs = probe_torchvision(name)
    for wanted in ("blocks", Depths(depths=[0, 1])):
        with pytest.raises(RequestError, match="model 'net' has no residual or transformer blocks") as caught:
            select(wanted, outputs)
        assert caught.value.hint == "name layers: 'xact layers net'"


DEPTHS = [
    # depths asked for, of the 8 blocks of a ResNet-18, expected
    ([0, 1], ["layer1.0", "layer4.1"]),
    ([0, 0.5, 1], ["layer1.0", "layer3.0", "layer4.1"]),  # 3.5 rounds to block 4
    ([1, 0], ["layer1.0", "layer4.1"]),  # forward order, whatever is asked first
    ([0.14], ["layer1.1"]),
    ([0.0, 0.01], ["layer1.0"]),  # one block is one layer
]


@pytest.mark.parametrize(("depths", "expected"), DEPTHS)
def test_depths_pick_blocks_by_their_position(depths, expected):
    assert select(Depths(depths=depths), probe_torchvision("resnet18")) == expected


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("layer4.*", ["layer4.0", "layer4.1"]),
        ("layer?", ["layer1", "layer2", "layer3", "layer4"]),
        ("layer*", ["layer1", "layer2", "layer3", "layer4"]),
        ("*.0", ["layer1.0", "layer2.0", "layer3.0", "layer4.0"]),
        ("layer[12].0", []),  # brackets are parts of tuples here, never sets of characters
        ("layer1.0.relu:*", ["layer1.0.relu:0", "layer1.0.relu:1"]),
        ("**.downsample.0", ["layer2.0.downsample.0", "layer3.0.downsample.0", "layer4.0.downsample.0"]),
        ("**.conv2", [f"layer{i}.{b}.conv2" for i in range(1, 5) for b in range(2)]),
        ("LAYER4.*", []),  # names are as written
        ("layer4", ["layer4"]),
        ("ayer4.*", []),  # the whole name
        ("l*4.1", ["layer4.1"]),
    ],
)
def test_a_star_stays_within_a_part_of_a_name_and_two_cross_the_dots(pattern, expected):
    assert match_glob(pattern, [o.label for o in probe_torchvision("resnet18") if o.shape]) == expected


def test_two_stars_take_all_that_lies_in_a_module():
    outputs = probe_torchvision("resnet18")
    inside = [o.label for o in outputs if o.name.startswith("layer4.") and o.shape]
    assert select(["layer4.**"], outputs) == inside
    assert len(inside) == 2 + 6 + 6 + 3  # 2 blocks; conv bn relu conv bn relu each; and a downsample of 3


def test_forward_order_is_kept_whatever_order_is_asked():
    outputs = probe_torchvision("resnet18")
    assert select(["logits", "layer4", "conv1", "layer1.*", "layer1.0"], outputs) == [
        "conv1",
        "layer1.0",
        "layer1.1",
        "layer4",
        "logits",
    ]


def test_all_is_every_output_that_can_be_stored_each_once():
    outputs = probe_torchvision("resnet18")
    labels = select("all", outputs)
    assert len(labels) == len(set(labels)) == 76  # 68 calls of modules that hold none, 4 + 8 + 3 that do, logits
    assert labels[0] == "conv1"
    assert labels[-2:] == ["fc", "logits"]
    assert "layer1.0.relu" not in labels


ERRORS = [
    # asked, error, said, hint, why
    (
        "layer4.2.conv9",
        NameNotFoundError,
        "model 'net' has no layer 'layer4.2.conv9' (nearest: layer4.1.conv2, layer4.1.conv1, layer4.0.conv2)",
        "'xact layers net' lists all 76",
        "a name that is not there",
    ),
    (
        "zzzzzz",
        NameNotFoundError,
        "model 'net' has no layer 'zzzzzz'",
        "'xact layers net' lists all 76",
        "none is near",
    ),
    (
        "layer1.0.relu",
        RequestError,
        "model 'net' calls 'layer1.0.relu' 2 times: name the call (layer1.0.relu:0, layer1.0.relu:1)",
        None,
        "one module, two calls",
    ),
    (
        "layer1.0.relu:2",
        RequestError,
        "model 'net' calls 'layer1.0.relu' 2 times: name the call (layer1.0.relu:0, layer1.0.relu:1)",
        None,
        "a call too many",
    ),
    ("conv1:0", RequestError, "model 'net' has no layer 'conv1:0': it is called once (conv1)", None, "one call only"),
    (
        "conv9.*",
        NameNotFoundError,
        "model 'net' has no layer that 'conv9.*' matches",
        "'xact layers net' lists them",
        "a glob that matches nothing",
    ),
]


@pytest.mark.parametrize(("name", "kind", "said", "hint", "reason"), ERRORS)
def test_a_name_that_means_nothing_or_too_much_is_one_line(name, kind, said, hint, reason):
    with pytest.raises(kind) as caught:
        select(["conv1", name], probe_torchvision("resnet18"))
    assert str(caught.value) == said, reason
    assert caught.value.hint == hint


def test_a_module_that_never_fires_is_told_from_one_that_is_not_there():
    outputs = probe_torchvision("vit_b_16")
    layer = "encoder.layers.encoder_layer_0.self_attention"
    with pytest.raises(RequestError) as caught:
        select([f"{layer}.out_proj"], outputs)  # MultiheadAttention uses its weights and never calls it
    assert str(caught.value).startswith(f"model 'net': '{layer}.out_proj' is never called in a forward pass")
    assert f"{layer}.out_proj" not in select("all", outputs)


def test_an_output_of_several_values_needs_a_part():
    outputs = probe_torchvision("vit_b_16")
    layer = "encoder.layers.encoder_layer_0.self_attention"
    with pytest.raises(RequestError) as caught:
        select([layer], outputs)
    assert str(caught.value) == f"model 'net': '{layer}' gives several values: name the part ({layer}[0])"
    assert select([f"{layer}[0]"], outputs) == [f"{layer}[0]"]
    with pytest.raises(RequestError, match="gives no tensor"):
        select([f"{layer}[1]"], outputs)  # the attention weights are not computed


def test_blocks_that_return_tuples_ask_for_the_part_and_a_glob_can_name_it():
    outputs = probe_transformers("Swinv2", image_size=224, depths=(1, 1, 2, 1))
    with pytest.raises(RequestError, match=r"name the part \(encoder\.layers\.0\.blocks\.0\[0\]\)"):
        select("blocks", outputs)
    assert select(["encoder.layers.*.blocks.*[0]"], outputs) == [
        f"encoder.layers.{prepared}.blocks.{block}[0]" for prepared, block in ((0, 0), (1, 0), (2, 0), (2, 1), (3, 0))
    ]


ALIASES = {"maxpool1": "features.2", "maxpool5": "features.20"}


def test_an_alias_and_the_true_name_mean_one_layer_and_the_alias_stays():
    outputs = probe_torchvision("vgg11")
    assert select(["maxpool5", "maxpool1"], outputs, **ALIASES) == ["maxpool1", "maxpool5"]
    assert select(["features.2"], outputs, **ALIASES) == ["maxpool1"]
    assert select(["maxpool1", "features.2"], outputs, **ALIASES) == ["maxpool1"]
    assert select(["maxpool*"], outputs, **ALIASES) == ["maxpool1", "maxpool5"]


def test_an_alias_of_several_true_names_means_the_first_that_the_network_has_else_the_first():
    outputs = probe_torchvision("vgg11")
    names = {
        "pool": ["features.99", "features.2", "features.5"],
        "fc": ["classifier.6", "head"],
        "none": ["one", "two", "three"],
    }
    found = resolve_aliases(names, outputs)
    assert found == {"pool": "features.2", "fc": "classifier.6", "none": "one"}
    with pytest.raises(NameNotFoundError, match="model 'net' has no layer 'one'"):
        select(["none"], outputs, **found)


def test_two_outputs_of_one_label_are_refused_never_stored_over_each_other():
    outputs = (
        Output("relu", "ReLU", 0, 2, "", (3,), 0),
        Output("relu", "ReLU", 1, 2, "", (4,), 0),
        Output("relu:1", "ReLU", 0, 1, "", (5,), 0),  # the name of a module may hold a colon
    )
    with pytest.raises(RequestError, match="several of its outputs have the label 'relu:1'"):
        select("all", outputs)


def test_a_module_called_logits_is_not_taken_for_the_networks_own_output():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(3, 5)
            self.logits = nn.Linear(5, 7)

        def forward(self, x):
            return self.logits(self.body(x.mean((2, 3)))).softmax(1)

    outputs = probe_module(Net(), 8)
    assert select("all", outputs) == ["body", "logits:0", "logits"]
    [own] = select_layers(["logits"], outputs, aliases={}, model="net")
    [module] = select_layers(["logits:0"], outputs, aliases={}, model="net")
    assert (outputs[own].name, outputs[module].name) == ("", "logits")


def test_hidden_states_are_of_language_models_only():
    with pytest.raises(RequestError, match="is not a language model"):
        select("hidden", probe_torchvision("resnet18"))


@pytest.mark.parametrize("network", ["torchvision resnet18", "timm swin_tiny", "timm vit_tiny", "torchvision vgg11"])
def test_the_depth_rises_from_0_to_1_and_is_a_blocks_own_within_it(network):
    outputs = BLOCKS[network][0]()
    blocks = find_blocks(outputs)
    fired = [o for o in outputs if o.n_calls]
    depths = [find_depth(o, i, outputs) for i, o in enumerate(fired)]
    assert depths[0] == 0.0
    assert depths[-1] == 1.0
    leaves = [d for o, d in zip(fired, depths, strict=True) if not any(x.name.startswith(f"{o.name}.") for x in fired)]
    assert all(0 <= depth <= 1 for depth in depths)
    assert leaves == sorted(leaves)
    for i, block in enumerate(blocks):
        inside = {d for o, d in zip(fired, depths, strict=True) if o.name == block or o.name.startswith(f"{block}.")}
        assert inside == {i / (len(blocks) - 1)}


def test_the_stem_is_at_depth_0_a_stage_at_its_last_block_and_the_head_at_1():
    outputs = probe_torchvision("resnet18")
    at = {o.label: find_depth(o, i, outputs) for i, o in enumerate(outputs)}
    assert at["conv1"] == at["maxpool"] == at["layer1.0"] == 0
    assert at["layer1"] == at["layer1.1"] == 1 / 7
    assert at["layer2"] == at["layer2.1.bn2"] == 3 / 7
    assert at["layer4"] == at["avgpool"] == at["fc"] == at["logits"] == 1


def test_the_channel_of_a_map_of_three_equal_axes_is_known_wherever_it_lies():
    first, last = ("channel", "y", "x"), ("y", "x", "channel")
    outputs = probe_timm("mobilevit_s")  # pictures of 256: 64 channels of 64 x 64
    cubes = [o for o in outputs if o.shape and len(o.shape) == 3 and len(set(o.shape)) == 1 and o.shape[0] > 1]
    assert {o.shape for o in cubes} == {(64, 64, 64), (128, 128, 128)}
    assert {o.axes for o in cubes} == {first}
    axes = {o.label: o.axes for o in probe_timm("swinv2_cr_tiny_384") if o.shape == (96, 96, 96)}
    assert axes["patch_embed.norm"] == axes["stages.0.blocks.1"] == last  # a LayerNorm works on the last axis
    assert axes["patch_embed.proj"] == first  # a Conv2d gives its channels first
