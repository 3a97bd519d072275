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
from xact.capture.probe import MOST_NAMES, find_other_names, probe
from xact.errors import NameNotFoundError, RequestError
from xact.models.base import find_returned_logits
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
        assert (
            caught.value.hint == f"name layers; xact layers net lists all {sum(o.shape is not None for o in outputs)}"
        )


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
        "xact layers net lists all 76",
        "a name that is not there",
    ),
    (
        "zzzzzz",
        NameNotFoundError,
        "model 'net' has no layer 'zzzzzz'",
        "xact layers net lists all 76",
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
        "xact layers net lists them",
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


class Gives(nn.Module):
    """Gives `function` of three maps of its input."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x + 1, x + 2, x + 3)


class Body(nn.Module):
    """A block whose return value is looked at, and a head."""

    def __init__(self, function):
        super().__init__()
        self.block = Gives(function)
        self.head = nn.Linear(3, 5)

    def forward(self, x):
        self.block(x)
        return self.head(x.mean((2, 3)))


ONE_TENSOR = [
    lambda a, b, c: (a,),
    lambda a, b, c: [a],
    lambda a, b, c: (None, a, None),
    lambda a, b, c: ((a, None), ()),
    lambda a, b, c: (a, 7, "text"),
]

SEVERAL = [
    (lambda a, b, c: (a, b), ["block[0]", "block[1]"]),
    (lambda a, b, c: (a, None, [b, c]), ["block[0]", "block[2][0]", "block[2][1]"]),
    (lambda a, b, c: {"one": a}, ["block[one]"]),
    (lambda a, b, c: ({"one": a},), ["block[0][one]"]),
    (lambda a, b, c: transformers.modeling_outputs.BaseModelOutput(last_hidden_state=a), ["block[last_hidden_state]"]),
]


@pytest.mark.parametrize("function", ONE_TENSOR)
def test_a_tuple_or_list_with_one_tensor_is_that_tensor_by_the_modules_name(function):
    outputs = probe_module(Body(function), 8)
    assert select("all", outputs) == ["block", "head", "logits"]
    assert select(["block"], outputs) == select(["bl*"], outputs) == ["block"]
    (sole,) = (o for o in outputs if o.is_sole)
    assert (sole.shape, select_layers([f"block{sole.part}"], outputs, aliases={}, model="net")) == (
        (3, 8, 8),
        {outputs.index(sole): f"block{sole.part}"},  # as stores of older versions name it
    )


@pytest.mark.parametrize(("function", "labels"), SEVERAL)
def test_the_parts_of_several_tensors_and_of_mappings_keep_their_names(function, labels):
    outputs = probe_module(Body(function), 8)
    assert select("all", outputs) == [*labels, "head", "logits"]
    with pytest.raises(RequestError, match="'block' gives several values: name the part") as caught:
        select(["block"], outputs)
    assert str(caught.value).endswith(f"({', '.join(labels)})")


def test_a_part_that_is_no_tensor_cannot_be_stored():
    outputs = probe_torchvision("vit_b_16")
    layer = "encoder.layers.encoder_layer_0.self_attention"
    assert select([layer], outputs) == [layer]
    assert select_layers([f"{layer}[0]"], outputs, aliases={}, model="net") == {
        next(i for i, o in enumerate(outputs) if o.label == layer): f"{layer}[0]"
    }
    with pytest.raises(RequestError, match="gives no tensor"):
        select([f"{layer}[1]"], outputs)  # the attention weights are not computed
    with pytest.raises(RequestError, match="two names of one output"):
        select([layer, f"{layer}[0]"], outputs)


def test_blocks_that_return_tuples_are_blocks_and_their_parts_can_still_be_named():
    outputs = probe_transformers("Swinv2", image_size=224, depths=(1, 1, 2, 1))
    blocks = [
        f"encoder.layers.{prepared}.blocks.{block}" for prepared, block in ((0, 0), (1, 0), (2, 0), (2, 1), (3, 0))
    ]
    assert select("blocks", outputs) == blocks
    chosen = select_layers(["encoder.layers.*.blocks.*[0]"], outputs, aliases={}, model="net")
    assert list(chosen.values()) == [f"{block}[0]" for block in blocks]


class Returns(nn.Module):
    """Returns `function` of a map, a vector and logits."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.conv = nn.Conv2d(3, 4, 3)
        self.fc = nn.Linear(4, 5)

    def forward(self, x):
        y = self.conv(x)
        return self.function(y, y.mean((2, 3)), self.fc(y.mean((2, 3))))


RETURNED = [
    # what the network returns, its own labels beside those of modules, whether `logits` is among them
    (lambda y, v, z: z, [], True),
    (lambda y, v, z: (z,), ["output"], True),
    (lambda y, v, z: (z, None), ["output"], True),
    (lambda y, v, z: y, ["output"], False),
    (lambda y, v, z: [y], ["output"], False),
    (lambda y, v, z: (z, y), ["output[0]", "output[1]"], False),
    (lambda y, v, z: {"embedding": v, "map": y}, ["output[embedding]", "output[map]"], False),
    (lambda y, v, z: {"embedding": v, "logits": z}, ["output[embedding]", "output[logits]"], True),
    (lambda y, v, z: {"logits": y}, ["output[logits]"], True),
    (lambda y, v, z: {"deep": {"one": (v, y)}}, ["output[deep][one][0]", "output[deep][one][1]"], False),
    (
        lambda y, v, z: transformers.modeling_outputs.ImageClassifierOutput(logits=z, hidden_states=(y, y)),
        ["output[logits]", "output[hidden_states][0]", "output[hidden_states][1]"],
        True,
    ),
]


@pytest.mark.parametrize(("function", "labels", "has_logits"), RETURNED)
def test_what_a_network_returns_has_names(function, labels, has_logits):
    outputs = probe_module(Returns(function), 8, find_logits=find_returned_logits)
    assert [o.label for o in outputs if o.is_result and o.shape] == labels
    logits = ["logits"] if has_logits else []
    assert select("all", outputs) == select(["**"], outputs) == ["conv", "fc", *logits]
    for label in labels:
        assert select([label], outputs) == [label]
    if labels:
        assert select(["output**"], outputs) == labels
    if not has_logits:
        with pytest.raises(NameNotFoundError) as caught:
            select(["logits"], outputs)
        assert str(caught.value) == f"model 'net' has no layer 'logits' (it returns {', '.join(labels)})"


def test_output_is_the_logits_of_a_network_that_returns_nothing_else():
    outputs = probe_module(Returns(lambda y, v, z: z), 8, find_logits=find_returned_logits)
    chosen = select_layers(["output"], outputs, aliases={}, model="net")
    assert list(chosen.values()) == ["output"]
    assert outputs[next(iter(chosen))].label == "logits"


def test_a_module_called_output_keeps_its_name():
    class Net(Returns):
        def __init__(self):
            super().__init__(lambda y, v, z: y)
            self.output = nn.Identity()

        def forward(self, x):
            return self.output(super().forward(x)) * 2

    outputs = probe_module(Net(), 8, find_logits=find_returned_logits)
    (chosen,) = select_layers(["output"], outputs, aliases={}, model="net")
    assert outputs[chosen].name == "output"


def test_a_name_of_an_operation_says_that_only_modules_have_names():
    outputs = probe_module(Returns(lambda y, v, z: z.relu()), 8)
    for name in ("relu", "layer1.add", "conv+x"):
        with pytest.raises(NameNotFoundError) as caught:
            select([name], outputs)
        assert caught.value.hint == (
            "only modules have names: F.relu(x) or x + y has none; name the module before it, or use nn.ReLU; "
            "xact layers net lists all 3"
        )
    with pytest.raises(NameNotFoundError) as caught:
        select(["**.relu*"], outputs)
    assert caught.value.hint.startswith("only modules have names: ")
    assert caught.value.hint.endswith("; xact layers net lists them")
    for name in ("cnv", "head"):
        with pytest.raises(NameNotFoundError) as caught:
            select([name], outputs)
        assert caught.value.hint == "xact layers net lists all 3"
    with pytest.raises(NameNotFoundError) as caught:
        select(["relu9"], probe_torchvision("resnet18"))  # it has modules of that name
    assert caught.value.hint == "xact layers net lists all 76"


class Shared(nn.Module):
    """One relu at three places, and one head at two, of which one is inside another module."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.relu1 = nn.ReLU()
        self.relu2 = self.relu1
        self.head = nn.Sequential(nn.Linear(4, 5), self.relu1)
        self.tower = nn.Module()
        self.tower.head = self.head

    def forward(self, x):
        return self.tower.head(self.relu2(self.relu1(self.conv(x))).mean((2, 3)))


def test_a_shared_module_is_found_under_each_of_its_names_with_all_its_calls():
    outputs = probe_module(Shared(), 8)
    assert select("all", outputs) == ["conv", "relu1:0", "relu1:1", "head.0", "relu1:2", "head", "logits"]
    for number in range(3):
        for name in ("relu1", "relu2", "head.1", "tower.head.1"):
            (at,) = select_layers([f"{name}:{number}"], outputs, aliases={}, model="net")
            assert (outputs[at].name, outputs[at].call) == ("relu1", number)
    assert list(select_layers(["tower.**"], outputs, aliases={}, model="net").values()) == [
        "tower.head.1:0",
        "tower.head.1:1",
        "tower.head.0",
        "tower.head.1:2",
        "tower.head",
    ]
    with pytest.raises(RequestError) as caught:
        select(["relu2"], outputs)
    assert str(caught.value) == "model 'net' calls 'relu2' 3 times: name the call (relu2:0, relu2:1, relu2:2)"
    with pytest.raises(RequestError, match="'relu1:0' and 'relu2:0' are two names of one output"):
        select_layers(["relu1:0", "relu2:0"], outputs, aliases={}, model="net")


def test_a_module_that_holds_itself_has_one_name():
    module = Shared()
    module.tower.parent = [module]  # a list is no module
    module.tower.up = module
    names = find_other_names(module)
    assert names["relu1"] == ("relu2", "head.1", "tower.head.1")
    assert names["head"] == ("tower.head",)
    assert "" not in names


def test_names_of_modules_that_share_modules_in_many_ways_are_bounded():
    module = nn.Sequential(nn.ReLU())
    for _ in range(30):
        module = nn.Sequential(module, module)  # 2 ** 30 names
    assert len(find_other_names(module)["0." * 30 + "0"]) == MOST_NAMES - 1


def select_of_vit(wanted):
    outputs = probe_timm("vit_tiny_patch16_224")
    return [(outputs[i].name, label) for i, label in select_layers(wanted, outputs, aliases={}, model="net").items()]


def test_a_set_may_stand_in_a_list_beside_names_and_globs():
    blocks = [f"blocks.{i}" for i in range(12)]
    assert [label for _, label in select_of_vit(["blocks", "logits"])] == [*blocks, "logits"]
    assert [label for _, label in select_of_vit(["patch_embed", "blocks", "blocks.3.a*"])] == [
        "patch_embed",
        *blocks[:3],
        "blocks.3.attn",
        *blocks[3:],
    ]
    outputs = probe_timm("vit_tiny_patch16_224")
    assert select(["all", "logits"], outputs) == select("all", outputs)


def test_a_module_that_is_called_as_a_set_is_named_by_its_call_or_where_the_network_lacks_the_set():
    assert select_of_vit(["blocks:0"]) == [("blocks", "blocks:0")]  # timm's `blocks` is a module that is called
    (listed,) = (o for o in probe_timm("vit_tiny_patch16_224") if o.label == "blocks")
    assert listed.list_places() == ["blocks:0"]

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.Conv2d(3, 4, 3)
            self.hidden = nn.Flatten()

        def forward(self, x):
            return self.hidden(self.blocks(x))

    outputs = probe_module(Net(), 8)
    assert select(["blocks", "hidden"], outputs) == ["blocks", "hidden"]
    with pytest.raises(RequestError, match="'net' has no residual or transformer blocks"):
        select(["blocks"], probe_torchvision("vgg11"))
    with pytest.raises(RequestError, match="'net' has no set of layers 'panel'"):
        select(["panel", "conv1"], probe_torchvision("resnet18"))


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
        assert inside == {(i + 1) / len(blocks)}


def test_the_stem_is_at_depth_0_a_stage_at_its_last_block_and_the_head_at_1():
    outputs = probe_torchvision("resnet18")
    at = {o.label: find_depth(o, i, outputs) for i, o in enumerate(outputs)}
    assert at["conv1"] == at["maxpool"] == 0
    assert at["layer1.0"] == 1 / 8
    assert at["layer1"] == at["layer1.1"] == 2 / 8
    assert at["layer2"] == at["layer2.1.bn2"] == 4 / 8
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
