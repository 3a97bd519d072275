"""A network that is given as an object: a copy runs, and the object stays as it is."""

from __future__ import annotations

import threading
import types

import pytest
import torch
from torch import nn

from xact.errors import RequestError
from xact.models.given import copy_network, make_factory, open_module


def list_state(module: nn.Module) -> list[object]:
    """Everything of a module that a run could change."""
    tensors = [*module.parameters(), *module.buffers()]
    return [
        [(id(part), part.training, list(part._forward_hooks.values()), dict(vars(part))) for part in module.modules()],
        [(id(x), x.dtype, x.device, x.requires_grad, x.data_ptr(), x._version) for x in tensors],
        [x.detach().clone().tolist() for x in tensors],
    ]


class Stateful(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x):
        self.count += 1
        self.last = self.linear(x)
        return self.last


def test_what_is_done_to_the_copy_does_not_reach_the_network():
    module = Stateful().train()
    module(torch.ones(1, 2))  # an attribute with a history of operations, which torch does not copy
    before = list_state(module)
    copied = copy_network(module, label="Net")
    assert copied.linear.weight.data_ptr() == module.linear.weight.data_ptr()
    torch.testing.assert_close(copied(torch.ones(1, 2)), module.last)
    copied.eval().requires_grad_(False).to(torch.float64)
    assert str(list_state(module)) == str(before)


def test_parameters_that_are_one_stay_one():
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    module[1].weight = module[0].weight
    copied = copy_network(module, label="Net")
    assert copied[0].weight is copied[1].weight
    assert copied[0].weight is not module[0].weight


def test_a_network_that_cannot_be_copied_is_told():
    module = nn.Linear(2, 2)
    module.lock = threading.Lock()
    with pytest.raises(RequestError, match=r"^model 'Net': the copy of its network failed with TypeError: .*lock"):
        copy_network(module, label="Net")


def test_a_forward_that_holds_the_network_itself_is_refused_and_a_method_is_copied():
    module = Stateful()
    for forward in (lambda x: 2 * module.linear(x), lambda x, linear=module.linear: linear(x)):
        module.forward = forward
        with pytest.raises(RequestError, match="the forward of the network is a function that holds the network"):
            make_factory(module, module, label="M")
    module.forward = types.MethodType(lambda self, x: 2 * self.linear(x), module)
    copied = make_factory(module, module, label="M")()
    with torch.no_grad():
        copied.linear.weight.zero_()
        copied.linear.bias.fill_(1)
    assert copied(torch.ones(1, 2)).tolist() == [[2, 2]]


def test_a_network_without_numbers_is_refused():
    with pytest.raises(RequestError, match="'weight' of its network is on the meta device"):
        make_factory(nn.Linear(2, 2, device="meta"), None, label="Net")


@pytest.mark.parametrize("has_hook", [False, True])
def test_only_code_of_libraries_runs_on_the_meta_device(has_hook):
    module = nn.Sequential(nn.Linear(2, 2))
    if has_hook:
        module[0].register_forward_hook(lambda *_: None)
    factory = make_factory(module, None, label="Net")
    with torch.device("meta"):
        if has_hook:
            with pytest.raises(NotImplementedError):
                factory()
        else:
            assert not next(factory().parameters()).is_meta
    assert isinstance(factory(), nn.Sequential)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (3, "a name, a mapping, a torch.nn.Module or a function that makes one is wanted, found 3"),
        ({1}, "found a set"),
        (lambda: 3, "returned int, not a torch.nn.Module"),
        (nn.Linear, r"Linear failed with TypeError: .* missing 2 required positional arguments"),
    ],
)
def test_what_makes_no_network_is_told(given, told):
    with pytest.raises(RequestError, match=rf"^model: .*{told}"):
        open_module(given, what="model")
