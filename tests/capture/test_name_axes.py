"""Names of axes from classes of torch, and from two sizes of the picture."""

from __future__ import annotations

import pytest
from torch import nn
from torchvision.models.convnext import LayerNorm2d

from xact.capture.axes import COLUMNS, CONSTANT, FEATURES, UNKNOWN, Factor, make_axes
from xact.capture.name_axes import name_by_class, name_by_sizes


class Strided(nn.Conv2d):
    def forward(self, x, stride):
        return nn.functional.conv2d(x, self.weight, stride=stride)


MAP, TOKENS = ("channel", "y", "x"), ("token", "feature")

CLASSES = [
    (nn.Conv1d(2, 3, 1), 2, ("channel", "x")),
    (nn.Conv2d(2, 3, 1), 3, MAP),
    (nn.ConvTranspose2d(2, 3, 1), 3, MAP),
    (nn.Conv3d(2, 3, 1), 4, ("channel", "z", "y", "x")),
    (Strided(2, 3, 1), 3, MAP),
    (nn.BatchNorm1d(3), 2, ("channel", "x")),
    (nn.BatchNorm2d(3), 3, MAP),
    (nn.BatchNorm3d(3), 4, ("channel", "z", "y", "x")),
    (nn.MaxPool2d(2), 3, MAP),
    (nn.AdaptiveAvgPool1d(2), 2, ("channel", "x")),
    (nn.Conv2d(2, 3, 1), 2, None),  # a picture without a batch axis would look so
    (nn.LayerNorm(4), 2, TOKENS),
    (nn.LayerNorm((4, 4)), 2, None),
    (LayerNorm2d(4), 2, None),  # a layer norm of the channel, with a forward of its own
    (nn.Linear(2, 4), 2, TOKENS),
    (nn.TransformerEncoderLayer(4, 1, 4, batch_first=True), 2, TOKENS),
    (nn.TransformerEncoderLayer(4, 1, 4), 2, None),
    (nn.ReLU(), 3, None),
]


@pytest.mark.parametrize(("module", "n_axes", "names"), CLASSES)
def test_a_class_of_torch_tells_the_axes_that_it_works_on(module, n_axes, names):
    assert name_by_class(module, make_axes(UNKNOWN, (4,) * n_axes)) == names


def test_a_linear_map_over_places_is_none_of_features():
    assert name_by_class(nn.Linear(2, 4), ((Factor(CONSTANT, 5),), (Factor(COLUMNS, 4),))) is None
    assert name_by_class(nn.Linear(2, 4), ((Factor(FEATURES, 5),), (Factor(UNKNOWN, 4),))) is None


@pytest.mark.parametrize(
    ("shape", "larger", "names"),
    [
        ((8, 4, 4), (8, 8, 12), MAP),
        ((4, 4, 8), (8, 12, 8), ("y", "x", "channel")),
        ((4, 4, 4), (12, 4, 8), ("x", "channel", "y")),
        ((16, 8), (96, 8), TOKENS),
        ((17, 8), (97, 8), TOKENS),
        ((8, 16), (8, 96), ("feature", "token")),
        ((5, 8), (5, 8), None),
        ((16, 16), (96, 96), None),
        ((2, 16, 16), (2, 96, 96), None),
    ],
)
def test_two_sizes_of_the_picture_tell_the_axes(shape, larger, names):
    assert name_by_sizes(shape, larger) == names
