"""What `xact.extract` takes as a model and as stimuli."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.pictures import write_pictures
from torch import nn
from torchvision.models import resnet18

import xact
from xact.errors import CaptureError, RequestError, XactWarning

SEEN: dict[tuple[int, ...], torch.Tensor] = {}
"""What `Net` keeps for each shape, as code with a cache does."""


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(4, 5)

    def forward(self, pictures):
        SEEN.setdefault(tuple(pictures.shape), torch.ones(1, device=pictures.device))
        maps = self.norm(self.conv(pictures)).relu() * SEEN[tuple(pictures.shape)]
        return self.head(self.drop(maps.mean((2, 3))))


def prepare(picture: Image.Image) -> torch.Tensor:
    pixels = np.asarray(picture.resize((16, 12)), dtype=np.float32)  # 12 rows, 16 columns
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy()) / 255


def make() -> nn.Module:
    torch.manual_seed(0)
    module = Net()
    module.norm.running_mean.uniform_(-1, 1)
    module.norm.running_var.uniform_(0.5, 2)
    return module


class Ready(Net):
    xact_transform = staticmethod(prepare)


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    write_pictures(tmp_path / "pics", 5, seed=1, size=(24, 20))
    monkeypatch.chdir(tmp_path)
    return sorted(Path("pics").glob("*.png"))


def extract(model, stimuli, **more):
    return xact.extract(
        model, stimuli, **({"layers": "all", "reduce": "flatten", "device": "cpu", "workers": 2} | more)
    )


def run_by_hand(module, pictures, transform=prepare) -> dict[str, np.ndarray]:
    """Run a plain forward pass; return {layer: (picture, unit)} of each module and of the network."""
    module = copy.deepcopy(module).eval().float()
    found: dict[str, np.ndarray] = {}
    for name, part in module.named_modules():
        part.register_forward_hook(lambda _m, _a, out, name=name: found.update({name: out.flatten(1).numpy().copy()}))
    with torch.no_grad():
        module(torch.stack([transform(Image.open(path).convert("RGB")) for path in pictures]))
    return {name or "logits": values for name, values in found.items()}


def assert_equal_to_hand(answers, expected):
    assert set(answers) == set(expected)
    for layer, values in expected.items():
        np.testing.assert_allclose(answers[layer].values[:, 0], values, rtol=1e-5, atol=1e-6 * np.abs(values).max())


def copy_state(module) -> str:
    """Everything of a module that a run could change, as text."""
    parts = [
        (id(part), sorted(vars(part)), part.training, list(part._forward_hooks.values())) for part in module.modules()
    ]
    tensors = [*module.parameters(), *module.buffers()]
    return str([parts, [(id(x), x.dtype, x.device, x.requires_grad, x._version, x.tolist()) for x in tensors]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_a_module_gives_the_values_of_a_plain_forward_pass_and_stays_as_it_is(pictures, dtype):
    module = make().to(dtype).train()
    calls = []
    module.conv.register_forward_hook(lambda *_: calls.append(1))
    before = copy_state(module)
    answers = extract(module, pictures, transform=prepare)
    assert calls
    assert copy_state(module) == before
    assert_equal_to_hand(answers, run_by_hand(module, pictures))
    assert answers["conv"].attrs["unit_axes"] == ["channel", "y", "x"]
    assert {str(answers["conv"][name].item()) for name in ("model", "layer")} == {"Net", "conv"}
    assert answers["conv"]["stimulus"].values.tolist() == [str(path.with_suffix("")) for path in pictures]


def test_a_network_of_a_library_gives_the_values_of_a_plain_forward_pass(pictures):
    module = resnet18().train()
    answers = xact.extract(
        module, pictures, layers=["layer1.0", "logits"], reduce="flatten", transform=prepare, device="cpu"
    )
    expected = run_by_hand(module, pictures)
    assert_equal_to_hand(answers, {layer: expected[layer] for layer in ("layer1.0", "logits")})
    assert module.training
    assert answers["logits"]["model"].item() == "ResNet"


def test_a_function_or_a_class_that_makes_the_network_may_stand_for_it(pictures):
    answers = extract(make, pictures, transform=prepare, label="mine")
    assert_equal_to_hand(answers, run_by_hand(make(), pictures))
    assert answers["head"]["model"].item() == "mine"
    assert set(extract(Ready, pictures)) == set(answers)


def test_what_a_pass_keeps_in_globals_holds_no_tensor_of_the_meta_device(pictures):
    SEEN.clear()
    extract(make(), pictures, transform=prepare)
    assert SEEN
    assert not any(x.is_meta for x in SEEN.values())


def test_the_transform_may_be_an_attribute_of_the_module_its_class_or_what_makes_it(pictures):
    expected = extract(make(), pictures, transform=prepare)["head"].values
    module = make()
    module.xact_transform = prepare
    named = Ready()
    named.load_state_dict(module.state_dict())

    def factory():
        return make()

    factory.xact_transform = prepare
    for given in (module, named, factory):
        np.testing.assert_array_equal(extract(given, pictures)["head"].values, expected)


def test_a_module_takes_an_explicit_transform(pictures):
    block = {"resize": 16, "mean": [0, 0, 0], "std": [1, 1, 1]}
    answers = extract(make(), pictures, transform=block)
    entry = {"source": "torchvision", "id": "resnet18", "weights": "random", "transform": block}
    assert answers["conv"].attrs["unit_shape"] == [4, 7, 7]
    assert xact.extract(entry, pictures, layers=["conv1"], device="cpu")["conv1"].sizes["unit"] == 64


def test_any_network_for_pictures_takes_a_function_as_transform(pictures):
    entry = {"source": "torchvision", "id": "resnet18", "weights": "random", "seed": 3}
    answers = xact.extract(entry, pictures, layers=["layer1.0"], reduce="flatten", transform=prepare, device="cpu")
    torch.manual_seed(3)
    expected = run_by_hand(resnet18(), pictures)
    assert_equal_to_hand(answers, {"layer1.0": expected["layer1.0"]})


def test_a_label_names_any_network(pictures):
    entry = {"source": "torchvision", "id": "resnet18", "weights": "random", "label": "a"}
    for label, expected in ((None, "a"), ("b", "b")):
        answers = xact.extract(entry, pictures[:1], layers=["conv1"], transform=prepare, device="cpu", label=label)
        assert answers["conv1"]["model"].item() == expected


@pytest.mark.parametrize(
    ("model", "more", "told"),
    [
        (
            3,
            {},
            "xact.extract: model: a name, a mapping, a torch.nn.Module or a function that makes one is wanted, found 3",
        ),
        (None, {}, "xact.extract: model: .* found a NoneType"),
        (lambda: 3, {}, "xact.extract: model: .* returned int, not a torch.nn.Module"),
        (Net(), {}, "model 'Net': .*:Net declares no transform"),
        (Net(), {"transform": lambda _: 3}, "model 'Net': transform gave int, not float32"),
        (Net(), {"transform": np.asarray}, "model 'Net': transform gave ndarray, not float32"),
        (Net(), {"transform": lambda p: p.nothing}, "model 'Net': .*failed with AttributeError"),
        (Net(), {"transform": prepare, "label": 3}, "xact.extract: model.label: text is wanted, found 3"),
        (Net(), {"transform": 3}, "xact.extract: transform: text or mapping is wanted, found 3"),
        (nn.Linear(3, 2).to("meta"), {}, "model 'Linear': 'weight' of its network is on the meta device"),
        (nn.Linear(3, 2), {"transform": prepare}, "model 'Linear': a forward pass on pictures of shape .* failed with"),
    ],
)
def test_what_is_wrong_with_a_network_is_a_request_error(pictures, model, more, told):
    with pytest.raises(RequestError, match=f"^{told}"):
        extract(model, pictures, **more)


@pytest.mark.parametrize(
    ("layers", "hint"),
    [
        (["haed"], "xact.extract with layers='all' lists all 5"),
        ("blocks", "name layers; xact.extract with layers='all' lists all 5"),
        (["x*"], "xact.extract with layers='all' lists them"),
    ],
)
def test_a_layer_that_is_not_there_is_told_without_a_command_that_cannot_know_the_network(pictures, layers, hint):
    with pytest.raises(RequestError, match=r"^model 'Net' has no ") as caught:
        extract(make(), pictures, transform=prepare, layers=layers)
    assert caught.value.hint == hint


def test_a_network_that_depends_on_its_batch_is_refused_by_the_same_check(pictures):
    class Batched(Net):
        def forward(self, pictures):
            return super().forward(pictures - pictures.mean(0))

    with pytest.raises(CaptureError, match="'Batched'"):
        extract(Batched(), pictures, transform=prepare)


def test_every_way_to_give_pictures_gives_their_values(pictures):
    expected = extract(make(), pictures, transform=prepare)["head"].values
    opened = [Image.open(path) for path in pictures]
    for given in (
        "pics",
        "pics/*.png",
        Path("pics").glob("*.png") if [*Path("pics").glob("*.png")] == pictures else iter(pictures),
        (str(path) for path in pictures),
        opened,
        [np.asarray(Image.open(path).convert("RGB")) for path in pictures],
        [np.asarray(Image.open(path).convert("RGBA")) for path in pictures],
        np.stack([np.asarray(Image.open(path).convert("RGB")) for path in pictures]),
    ):
        np.testing.assert_array_equal(extract(make(), given, transform=prepare)["head"].values, expected)
    one = extract(make(), opened[0], transform=prepare)["head"]
    assert (one.sizes["stimulus"], one["stimulus"].values.tolist()) == (1, ["00000"])
    np.testing.assert_allclose(one.values[0], expected[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(40, 30, 3), (40, 30)])
def test_a_single_array_is_never_read_as_several_pictures(shape):
    with pytest.raises(RequestError, match="may be a picture or several") as refused:
        xact.extract("ResNet50", np.zeros(shape, np.uint8))
    assert refused.value.hint == "give a list of arrays: [picture]"


def test_what_is_not_a_stimulus_is_named_by_its_position():
    with pytest.raises(RequestError, match=r"^stimulus 1 is an int") as refused:
        xact.extract("ResNet50", ["a.png", 3])
    assert refused.value.hint.startswith("a picture is a path, a picture of PIL, or a uint8 array")


def test_the_amounts_of_jitter_are_coordinates_and_grey_pictures_are_told(tmp_path):
    write_pictures(tmp_path, 2, size=(24, 20))
    Image.open(tmp_path / "p01.png").convert("L").save(tmp_path / "p01.png")
    jittered = {"count": 3, "jitter": {"kind": "color", "saturation": 0.5, "hue": 0.2}}
    with pytest.warns(XactWarning, match="all replicates of 1 stimulus came out equal") as caught:
        found = xact.extract(
            Net(), sorted(tmp_path.glob("*.png")), transform=prepare, layers="all", replicates=jittered
        )
    assert {Path(one.filename) for one in caught} == {Path(__file__)}
    conv = found["conv"]
    assert conv.jitter_hue.dims == ("stimulus", "replicate")
    assert conv.jitter_hue.values[:, 0].tolist() == [0, 0]
    assert (conv.jitter_hue.values[:, 1:] != 0).all()
    assert not np.array_equal(conv.values[0, 0], conv.values[0, 1])
    np.testing.assert_array_equal(conv.values[1, 0], conv.values[1, 1])
