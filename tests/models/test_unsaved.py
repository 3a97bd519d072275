"""Tensors, arrays and numbers of a network that its state dict lacks are found wherever a module holds them."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from xact.models.unsaved import list_unsaved


@dataclass
class Settings:
    table: object


class Net(nn.Module):
    def __init__(self, change: object = None) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.alias = self.linear.weight
        self.register_buffer("saved", torch.ones(2))
        if change is not None:
            change(self)


def close_over(x):
    return lambda y: x * y


HOLD = {
    "buffer": lambda net, x: net.register_buffer("k", x, persistent=False),
    "buffer of a part": lambda net, x: net.linear.register_buffer("k", x, persistent=False),
    "attribute": lambda net, x: setattr(net, "k", x),
    "attribute of a part": lambda net, x: setattr(net.linear, "k", x),
    "list": lambda net, x: setattr(net, "k", [0, (x,)]),
    "dictionary": lambda net, x: setattr(net, "k", {"a": {3: x}}),
    "set": lambda net, x: setattr(net, "k", {x}),
    "array": lambda net, x: setattr(net, "k", x.numpy()),
    "array of objects": lambda net, x: setattr(net, "k", np.array([x.tolist(), "a"], dtype=object)),
    "object": lambda net, x: setattr(net, "k", SimpleNamespace(deep=Settings(x))),
    "closure": lambda net, x: setattr(net, "k", close_over(x)),
    "partial": lambda net, x: setattr(net, "k", functools.partial(torch.add, x)),
    "module in a list": lambda net, x: setattr(net, "k", [nn.Sequential(nn.Sequential(nn.ParameterList([x])))]),
    "half": lambda net, x: setattr(net, "k", x.half()),
    "complex": lambda net, x: setattr(net, "k", x + 1j),
    "sparse": lambda net, x: setattr(net, "k", x.to_sparse()),
    "quantized": lambda net, x: setattr(net, "k", torch.quantize_per_tensor(x, 0.1, 0, torch.qint8)),
}


def list_lines(change: object = None, *, with_numbers: bool = False) -> list[str]:
    return sorted(list_unsaved(Net(change), with_numbers=with_numbers))


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
@pytest.mark.parametrize("how", HOLD)
def test_a_tensor_outside_the_state_dict_is_found_with_its_numbers(how):
    lines = [list_lines(lambda net, x=x: HOLD[how](net, torch.tensor([1.0, x]))) for x in (2.0, 2.0, 3.0)]
    assert len(lines[0]) == 1
    assert lines[0] == lines[1]
    assert lines[0] != lines[2]


def test_what_the_state_dict_holds_is_not_told_again():
    assert list_lines() == []


def test_a_tensor_without_numbers_is_told_by_its_shape():
    (line,) = list_lines(lambda net: setattr(net, "k", torch.ones(2, device="meta")))
    assert line.startswith(".k torch.float32 (2,)")


def test_objects_that_hold_one_another_end():
    def tie(net: Net) -> None:
        net.self_held = [net]
        net.table = {"net": net}
        net.table["table"] = net.table
        net.lists = [[nn.Linear(1, 1)] * 30] * 30

    assert len(list_lines(tie)) == 2


def test_numbers_and_classes_count_where_they_are_asked_for():
    def set_scale(net: Net, scale: float) -> None:
        net.scale = {"deep": [scale]}
        net.name = "not a number"

    one, other = (list_lines(functools.partial(set_scale, scale=scale), with_numbers=True) for scale in (1.5, 2.5))
    assert [line for line in one if line not in other] == [".scale.deep.0 1.5"]
    assert "linear is Linear" in one
    assert list_lines(functools.partial(set_scale, scale=1.5)) == []
