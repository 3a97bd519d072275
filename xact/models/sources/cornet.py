"""CORnet-S, defined here from its papers. Its weights come from the URL of its authors.

Kubilius et al. 2018 (doi:10.1101/408385) and 2019 (arXiv:1909.06161). Modules with parameters have the same names as
in the published weights.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn
from torch.nn import functional as F

from xact.models.base import Network, Transform, Weights, make_name_error
from xact.models.hub import find_at_url
from xact.models.transforms import declare_transform
from xact.models.unwrap import load_file
from xact.recipe.resolve import ModelSpec
from xact.recipe.schema import Resize

ID = "cornet_s"

URL = "https://s3.amazonaws.com/cornet-models/cornet_s-1d3f7974.pth"

TRANSFORM = Resize(resize=256, crop=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
"""The transform of its training and evaluation: bilinear, with the mean and std of ImageNet."""

N_CLASSES = 1000

EXPANSION = 4
"""Inner width of a bottleneck divided by the width of the block's output, as in ResNet."""


def make_network(spec: ModelSpec) -> Network:
    """Return the untrained network: convolutions drawn as in ResNet (He et al. 2015), the classifier as in torch."""
    _check_name(spec)
    module = CORnetS()
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
    return Network(module)


def make_transform(spec: ModelSpec) -> Transform:
    """Return the transform of the training: resize, centre crop and normalise."""
    _check_name(spec)
    return declare_transform(TRANSFORM, spec)


def find_pretrained(spec: ModelSpec) -> Weights:
    """Return the published file in torch's hub folder. Download it if it is missing."""
    _check_name(spec)
    return Weights(*find_at_url(URL, tag=ID, label=spec.label))


def load_network(spec: ModelSpec, weights: Weights) -> Network:
    """Return the network with the tensors of its one file."""
    _check_name(spec)
    module = CORnetS()
    checkpoint, _ = load_file(module, spec, weights)
    return Network(module, checkpoint=checkpoint)


class CORnetS(nn.Module):
    """Four areas in sequence and a decoder: (n, 3, 224, 224) -> (n, 1000)."""

    def __init__(self) -> None:
        super().__init__()
        self.V1 = InputBlock(3, 64)
        self.V2 = RecurrentBlock(64, 128, n_steps=2)
        self.V4 = RecurrentBlock(128, 256, n_steps=4)
        self.IT = RecurrentBlock(256, 512, n_steps=2)
        self.decoder = Decoder(512, N_CLASSES)

    def forward(self, pictures: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.decoder(self.IT(self.V4(self.V2(self.V1(pictures)))))
        return logits


class InputBlock(nn.Sequential):
    """V1, without recurrence: (n, n_in, y, x) -> (n, n_out, y / 4, x / 4)."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__(
            OrderedDict(
                conv1=nn.Conv2d(n_in, n_out, 7, stride=2, padding=3, bias=False),
                norm1=nn.BatchNorm2d(n_out),
                relu1=nn.ReLU(),
                pool=nn.MaxPool2d(3, stride=2, padding=1),
                conv2=nn.Conv2d(n_out, n_out, 3, padding=1, bias=False),
                norm2=nn.BatchNorm2d(n_out),
                relu2=nn.ReLU(),
                output=nn.Identity(),
            )
        )


class RecurrentBlock(nn.Module):
    """V2, V4 or IT: (n, n_in, y, x) -> (n, n_out, y / 2, x / 2).

    A bottleneck runs `n_steps` times. Each step takes the output of the step before, with the same convolutions but
    its own batch norms. The first step halves the map. Call t of `output` is the block's activation at step t.
    """

    def __init__(self, n_in: int, n_out: int, *, n_steps: int) -> None:
        super().__init__()
        n_wide = EXPANSION * n_out
        self.n_steps = n_steps
        self.conv_input = nn.Conv2d(n_in, n_out, 1, bias=False)
        self.skip = nn.Conv2d(n_out, n_out, 1, stride=2, bias=False)
        self.norm_skip = nn.BatchNorm2d(n_out)
        self.conv1 = nn.Conv2d(n_out, n_wide, 1, bias=False)
        self.relu1 = nn.ReLU()
        self.conv2 = StridedConv2d(n_wide, n_wide, 3, padding=1, bias=False)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(n_wide, n_out, 1, bias=False)
        self.relu3 = nn.ReLU()
        self.output = nn.Identity()
        for step in range(n_steps):
            self.add_module(f"norm1_{step}", nn.BatchNorm2d(n_wide))
            self.add_module(f"norm2_{step}", nn.BatchNorm2d(n_wide))
            self.add_module(f"norm3_{step}", nn.BatchNorm2d(n_out))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the activation at the last step."""
        state: Tensor = self.conv_input(inputs)
        for step in range(self.n_steps):
            is_first = step == 0
            norm1, norm2, norm3 = (self.get_submodule(f"norm{number}_{step}") for number in (1, 2, 3))
            carried = self.norm_skip(self.skip(state)) if is_first else state
            inner = self.relu1(norm1(self.conv1(state)))
            inner = self.relu2(norm2(self.conv2(inner, stride=2 if is_first else 1)))
            # the sum is before the last ReLU: 2018, "just prior to applying a nonlinearity"
            state = self.output(self.relu3(norm3(self.conv3(inner)) + carried))
        return state


class StridedConv2d(nn.Conv2d):
    """A convolution with the stride as an argument of each call."""

    def forward(self, inputs: Tensor, *, stride: int) -> Tensor:  # type: ignore[override]  # an additional argument
        """Return the convolved map; `stride` in pixels of `inputs`."""
        return F.conv2d(inputs, self.weight, stride=stride, padding=self.padding)


class Decoder(nn.Sequential):
    """A linear classifier on the mean over the map: (n, n_in, y, x) -> (n, n_classes)."""

    def __init__(self, n_in: int, n_classes: int) -> None:
        super().__init__(
            OrderedDict(
                avgpool=nn.AdaptiveAvgPool2d(1),
                flatten=nn.Flatten(),
                linear=nn.Linear(n_in, n_classes),
                output=nn.Identity(),
            )
        )


def _check_name(spec: ModelSpec) -> None:
    if spec.id != ID:
        raise make_name_error(spec, "network", spec.id, [ID])
