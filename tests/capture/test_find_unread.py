"""A tensor is read if an operation takes its memory, under any name, before the last chosen layer is there."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from xact.capture.find_unread import find_unread
from xact.models.base import Network


class Head(nn.Module):
    """A body, a head after it, and a part that a forward pass never calls."""

    def __init__(self, use: str = "") -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1))
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.attend = nn.MultiheadAttention(4, 2, batch_first=True)
        self.fc = nn.Linear(4, 5)
        self.never = nn.Linear(2, 2)
        self.use = use
        if use == "tied":
            self.again = nn.Linear(4, 5, bias=False)
            self.again.weight = self.fc.weight

    def forward(self, pictures):
        if self.use == "before":
            pictures = pictures + self.fc.weight.sum()
        if self.use == "data":
            pictures = pictures + self.fc.weight.data[0, 0]
        if self.use == "tied":
            pictures = pictures + self.again.weight.mean()
        maps = self.body(pictures + self.token)
        tokens = maps.flatten(2).transpose(1, 2)
        return self.fc(self.attend(tokens, tokens, tokens)[0].mean(1))


def find(layers, use=""):
    with torch.device("meta"):
        network = Network(Head(use).eval())
    return find_unread(network, (3, 8, 8), [(name, 0) for name in layers])


NEVER = {"never.weight", "never.bias", "body.1.num_batches_tracked"}
FC = {"fc.weight", "fc.bias"}
ATTEND = {f"attend.{name}" for name in ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")}
BATCH_NORM = {f"body.1.{name}" for name in ("weight", "bias", "running_mean", "running_var")}


@pytest.mark.parametrize(
    ("layers", "use", "unread"),
    [
        (["body.0"], "", NEVER | FC | ATTEND | BATCH_NORM),
        (["body"], "", NEVER | FC | ATTEND),
        (["body", "attend"], "", NEVER | FC),
        (["fc"], "", NEVER),
        ([""], "", NEVER),
        (["body"], "before", NEVER | {"fc.bias"} | ATTEND),
        (["body"], "data", NEVER | {"fc.bias"} | ATTEND),
        (["body"], "tied", NEVER | {"fc.bias"} | ATTEND),
    ],
)
def test_what_operations_take_before_the_last_chosen_layer_is_read(layers, use, unread):
    assert find(layers, use) == unread


class Gives(nn.Module):
    """A layer whose output is its own tensor, without any operation."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3, 4))

    def forward(self, _pictures):
        return self.weight


def test_a_tensor_that_is_itself_the_output_of_a_layer_is_read():
    with torch.device("meta"):
        network = Network(nn.Sequential(Gives(), nn.Linear(4, 2)).eval())
    assert find_unread(network, (3, 8, 8), [("0", 0)]) == {"1.weight", "1.bias"}
