"""What a layer's name gives is what an independent forward pass of plain torch gives there."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from support.cli import run
from support.pictures import write_pictures, write_recipe

import xact
from xact.errors import MismatchError, NameNotFoundError, RequestError

CODE = """
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

class Dicts(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, stride=2)
        self.block = nn.Conv2d(8, 8, 3)
        self.embed = nn.Linear(8, 6)
        self.head = nn.Linear(6, 4)
        self.classify = self.head

    def forward(self, x):
        y = F.relu(self.conv1(x))
        y = y[:, :, :-2, :-2] + self.block(y)
        embedding = self.embed(y.mean((2, 3)))
        return {"embedding": embedding, "map": y, "logits": self.classify(embedding)}

class ViT(nn.Module):
    def __init__(self, n_before, *, block=nn.TransformerEncoderLayer):
        super().__init__()
        self.first = nn.Parameter(torch.randn(1, n_before, 16))
        self.patch_embed = nn.Conv2d(3, 16, 4, 4)
        self.blocks = nn.ModuleList([block(16, 2, 32, batch_first=True) for _ in range(2)])
        self.norm = nn.LayerNorm(16)

    def forward(self, x):
        tokens = self.patch_embed(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.first.expand(len(x), -1, -1), tokens], 1)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)[:, 0]

class Tuples(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.pair = Pair()

    def forward(self, x):
        return self.pair(self.conv(x))[0].mean((2, 3))

class Pair(nn.Module):
    def forward(self, x):
        return x * 2, None

class Step(nn.Module):  # of a class that no list of blocks knows
    def __init__(self, *args, **options):
        super().__init__()
        self.inner = nn.TransformerEncoderLayer(*args, **options)

    def forward(self, x):
        return F.gelu(self.inner(x))

def transform(picture):
    pixels = np.asarray(picture.resize((8, 16)), dtype=np.float32)  # 16 rows, 8 columns: 8 patches
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy()) / 255

def dicts(): return Dicts()
def tuples(): return Tuples()
def bare(): return ViT(1)
def registers(): return ViT(5)
def steps(): return ViT(5, block=Step)
def says(): return ViT(5)
def module_says():
    module = ViT(5)
    module.xact_tokens = {"class": 1, "register": 4}
    return module
def attribute_says():
    module = ViT(5)
    module.num_prefix_tokens, module.cls_token = 1, nn.Parameter(torch.zeros(1, 1, 16))
    return module
def wrong(): return ViT(5)

says.xact_tokens = {"class": 1, "register": 4}
wrong.xact_tokens = {"klass": 1}
for make in (dicts, tuples, bare, registers, steps, says, module_says, attribute_says, wrong):
    make.xact_transform = transform
"""


@pytest.fixture
def lab(tmp_path, monkeypatch):
    (tmp_path / "namelab.py").write_text(CODE)
    write_pictures(tmp_path / "stimuli", 3, seed=1, size=(24, 20))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def extract(name, layers, reduce="flatten", **entry):
    model = {"source": "python", "id": f"namelab:{name}", "weights": "random", "seed": 3, **entry}
    return xact.extract(model, list_pictures(), layers=layers, reduce=reduce, device="cpu", allow_code=True)


def list_pictures():
    return sorted(Path("stimuli").glob("*.png"))


def run_by_hand(name):
    """Return the network of `name`, and its pictures as a batch."""
    code: dict[str, object] = {}
    exec(Path("namelab.py").read_text(), code)  # noqa: S102  the test's own network
    torch.manual_seed(3)
    module = code[name]().eval().requires_grad_(False)
    return module, torch.stack([code["transform"](Image.open(file).convert("RGB")) for file in list_pictures()])


def assert_close(found, expected):
    np.testing.assert_allclose(found.values[:, 0], expected.flatten(1).numpy(), rtol=1e-4, atol=1e-5)


def test_the_keys_of_what_a_network_returns_are_layers(lab):
    module, batch = run_by_hand("dicts")
    layers = ["conv1", "output[embedding]", "output[map]", "logits", "classify"]
    found = extract("dicts", layers)
    returned = module(batch)
    expected = {
        "conv1": torch.conv2d(batch, module.conv1.weight, module.conv1.bias, stride=2),  # before the relu
        "output[embedding]": returned["embedding"],
        "output[map]": returned["map"],
        "logits": returned["logits"],
        "classify": returned["logits"],  # a second name of the module `head`
    }
    assert set(found) == set(layers)
    for label, value in expected.items():
        assert_close(found[label], value)
    mean = extract("dicts", ["output[map]"], "mean")["output[map]"]
    assert_close(mean, returned["map"].mean((2, 3)))
    with pytest.raises(NameNotFoundError) as caught:
        extract("dicts", ["relu"])
    assert caught.value.hint == (
        "only modules have names: F.relu(x) or x + y has none; name the module before it, or use nn.ReLU; xact layers "
        "python:namelab:dicts --allow-code lists all 8"
    )


def find_tokens_by_hand(name):
    """Return the tokens after the last block, (stimulus, token, feature)."""
    module, batch = run_by_hand(name)
    tokens = torch.cat(
        [module.first.expand(len(batch), -1, -1), module.patch_embed(batch).flatten(2).transpose(1, 2)], 1
    )
    for block in module.blocks:
        tokens = block(tokens)
    return tokens


SAID = {"tokens": {"class": 1, "register": 4}}


@pytest.mark.parametrize(
    ("name", "entry", "layer"),
    [
        ("registers", SAID, "blocks.1"),
        ("steps", SAID, "blocks.1"),  # the user says it, where no blocks are known
        ("says", {}, "blocks.1"),
        ("module_says", {}, "blocks.1"),
        ("attribute_says", SAID, "blocks.1"),  # the network says 1, the recipe 5
    ],
)
def test_what_is_said_of_tokens_is_what_cls_and_patch_mean_take(lab, name, entry, layer):
    found = extract(name, [layer], ["cls", "patch_mean"], **entry)
    tokens = find_tokens_by_hand(name)
    assert tokens.shape[1] == 5 + 8
    assert_close(found[f"{layer}@cls"], tokens[:, 0])
    assert_close(found[f"{layer}@patch_mean"], tokens[:, 5:].mean(1))


def test_the_recipe_beats_the_attribute_and_neither_beats_what_is_known_of_the_patches(lab):
    with pytest.raises(RequestError, match="of which 5 to 12 are patches, where `tokens` says 2 to 12"):
        extract("says", ["blocks.1"], "patch_mean", tokens={"class": 1, "register": 1})
    with pytest.raises(RequestError, match="of which 5 to 12 are patches, where the network says 1 to 12"):
        extract("attribute_says", ["blocks.1"], "patch_mean")
    with pytest.raises(RequestError, match="has no class token, or several"):
        extract("says", ["blocks.1"], "cls", tokens={"register": 5})
    with pytest.raises(RequestError, match="has no class token, or several") as caught:
        extract("bare", ["blocks.1"], "cls")
    assert caught.value.hint == "reduce: mean; or say that token 0 is one: tokens: {class: 1}"
    assert_close(
        extract("bare", ["blocks.1"], "cls", tokens={"class": 1})["blocks.1"], find_tokens_by_hand("bare")[:, 0]
    )


def test_tokens_are_asked_of_the_reductions_that_need_them_alone(lab):
    found = extract("dicts", ["conv1", "logits"], "mean", tokens={"class": 1})
    assert [one.sizes["unit"] for one in found.values()] == [8, 4]
    with pytest.raises(RequestError, match="says that 13 precede the patches: there are no patches to average"):
        extract("registers", ["blocks.1"], "patch_mean", tokens={"register": 13})
    with pytest.raises(RequestError, match=r"namelab:wrong@random-3': xact_tokens is \{'klass': 1\}, not a mapping"):
        extract("wrong", ["blocks.1"], "mean")


def write(lab, tokens="", name="registers", reduce="flatten"):
    return write_recipe(
        lab,
        f"store: {lab}/s.zarr\nstimuli: {{source: folder, root: stimuli}}\nlayers: [blocks]\nreduce: {reduce}\n{tokens}"
        f"models: [{{source: python, id: 'namelab:{name}', label: M, weights: random}}]\ncompute: {{device: cpu}}\n",
    )


def test_a_store_whose_tuples_are_named_by_their_part_goes_on_by_either_name(lab):
    def build(layers, **limit):
        recipe = write(lab, name="tuples").read_text().replace("layers: [blocks]", f"layers: {layers}")
        return xact.build(write_recipe(lab, recipe), allow_code=True, **limit)

    assert build("['pair[0]', conv]", limit=1).n_captured == 1  # as older versions had to name it
    assert build("[pair, conv]", limit=2).n_captured == 1
    assert build("['p*', conv]").n_captured == 1
    layers = xact.load_layers(lab / "s.zarr")["layer"].tolist()
    assert layers == ["conv", "pair[0]"]
    stored = xact.open_layer(lab / "s.zarr", "M", "pair[0]").compute()
    assert xact.build(lab / "recipe.yml", allow_code=True, store=lab / "new.zarr").is_complete
    assert xact.load_layers(lab / "new.zarr")["layer"].tolist() == ["conv", "pair"]
    again = xact.open_layer(lab / "new.zarr", "M", "pair").compute()
    np.testing.assert_allclose(stored.values, again.values, rtol=1e-5, atol=1e-6)


def test_tokens_at_the_top_are_part_of_what_a_store_is(lab):
    recipe = write(lab, "tokens: {class: 1, register: 4}\n", reduce="patch_mean")
    assert xact.build(recipe, limit=2, allow_code=True).is_complete
    assert xact.build(recipe, allow_code=True).n_captured == 1
    (plan,) = (lab / "s.zarr" / ".xact").glob("plan-*.json")
    held = json.loads(plan.read_text())
    assert (held["recipe"]["tokens"], held["models"][0]["n_prefix_tokens"]) == ({"class": 1, "register": 4}, 5)
    assert xact.build(write(lab, "tokens: {register: 5}\n", reduce="patch_mean"), allow_code=True).n_captured == 0
    with pytest.raises(MismatchError, match=r"models\.M\.n_prefix_tokens differs"):
        xact.build(write(lab, "tokens: {class: 1}\n"), allow_code=True)


def test_a_wrong_kind_of_token_is_one_line(lab, capsys):
    code, _, err = run(capsys, "plan", write(lab, "tokens: {clas: 1}\n"), "--allow-code")
    assert code == 2
    assert err.startswith("error: "), err
    assert "line 5: tokens.clas: " in err
    assert "(nearest: class)" in err


SWIN = {"image_size": 32, "embed_dim": 8, "depths": [1, 2], "num_heads": [1, 2], "window_size": 4}
PVT = {"depths": [1, 1, 2, 1], "hidden_sizes": [8, 8, 16, 16], "num_attention_heads": [1, 1, 2, 2]}
VIT = {"image_size": 32, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}

TUPLES = {
    # class of transformers whose blocks return tuples: a small configuration
    "SwinForImageClassification": SWIN,
    "SwinModel": SWIN,
    "Swinv2ForImageClassification": SWIN | {"pretrained_window_sizes": [0, 0]},
    "DonutSwinModel": SWIN,
    "MaskFormerSwinModel": SWIN,
    "Swin2SRModel": {"image_size": 32, "embed_dim": 8, "depths": [1, 2], "num_heads": [1, 2], "window_size": 4},
    "Data2VecVisionForImageClassification": VIT,
    "PvtForImageClassification": PVT | {"image_size": 32},
    "PvtV2ForImageClassification": PVT | {"image_size": 32},
    "GLPNModel": {"depths": [1, 1, 2, 1], "hidden_sizes": [8, 8, 16, 16], "num_attention_heads": [1, 1, 2, 2]},
    "HieraForImageClassification": {
        "image_size": [64, 64],
        "embed_dim": 8,
        "depths": [1, 1, 2, 1],
        "num_heads": [1, 2, 4, 8],
    },
    "VitDetModel": VIT | {"patch_size": 8, "window_size": 2},
    "PoolFormerForImageClassification": {"depths": [1, 1, 2, 1], "hidden_sizes": [8, 8, 16, 16]},
}


def make_transformer(name, folder):
    """Write the configuration of a small network; return the network of seed 0 and the side of its pictures."""
    network = getattr(transformers, name)
    config = network.config_class(**TUPLES[name])
    config.architectures = [name]
    config.save_pretrained(folder)
    torch.manual_seed(0)
    size = TUPLES[name].get("image_size", 32)
    return network(config).eval().requires_grad_(False), size if isinstance(size, int) else size[0]


@pytest.mark.parametrize("name", TUPLES)
def test_the_blocks_of_transformers_that_return_tuples_are_their_default_layers(name, tmp_path):
    module, size = make_transformer(name, tmp_path)
    kept = {}

    def keep(label):
        return lambda _module, _args, output: kept.setdefault(label, output)

    layers = (label for label, part in module.named_modules() if part.__class__.__name__.endswith("Layer"))
    blocks = {label for label in layers if type(module.get_submodule(label)).__name__ != "PvtV2EncoderLayer"}
    blocks = {label for label in blocks if not any(label.startswith(f"{other}.") for other in blocks)}
    for label in blocks:
        module.get_submodule(label).register_forward_hook(keep(label))
    pixels = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    module(pixel_values=torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255)
    assert all(isinstance(output, tuple) for output in kept.values())
    scale = {"resize": size, "mean": [0, 0, 0], "std": [1, 1, 1]}
    model = {"source": "transformers", "id": str(tmp_path), "weights": "random", "seed": 0, "transform": scale}
    found = xact.extract(model, [pixels], reduce="flatten", device="cpu")
    assert set(found) == set(kept)
    assert len(found) == sum(TUPLES[name].get("depths", [2]))
    for label, output in kept.items():
        (tensor,) = (one for one in output if isinstance(one, torch.Tensor))
        assert_close(found[label], tensor)
    some = min(kept)
    (old,) = xact.extract(model, [pixels], layers=[f"{some}[0]"], reduce="flatten", device="cpu").values()
    assert old["layer"] == f"{some}[0]"  # as stores of older versions name it
    np.testing.assert_array_equal(old.values, found[some].values)
