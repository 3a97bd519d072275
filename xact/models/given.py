"""A network that the user gives as an object. A copy of it runs, so that the object stays as it is."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from xact.errors import RequestError
from xact.models.base import tell_failures
from xact.models.user_globals import get_content

LIBRARIES = frozenset({"torch", "torchvision", "timm", "open_clip", "transformers"})
"""Packages whose modules keep nothing in globals that a pass on the meta device would change."""


def open_module(given: object, *, what: str) -> nn.Module:
    """Return the module that is given, or that the given function makes. `what` begins the message of an error."""
    if isinstance(given, nn.Module):
        return given
    if not callable(given):
        raise RequestError(
            f"{what}: a name, a mapping, a torch.nn.Module or a function that makes one is wanted, "
            f"found {f'{given!r:.80}' if isinstance(given, int | float) else f'a {type(given).__name__}'}"
        )
    name = getattr(given, "__qualname__", type(given).__qualname__)
    with tell_failures(f"{what}: {name}"):
        module = given()
    if not isinstance(module, nn.Module):
        raise RequestError(f"{what}: {name} returned {type(module).__name__}, not a torch.nn.Module")
    return module


def make_factory(module: nn.Module, given: object, *, label: str) -> Callable[[], nn.Module]:
    """Return a function that makes copies of a module, with the `xact_` attributes of what was given.

    On the meta device it raises NotImplementedError for code that no library has: the code could keep meta tensors.
    """
    holes = [name for name, x in (*module.named_parameters(), *module.named_buffers()) if x.is_meta]
    if holes:
        raise RequestError(
            f"model {label!r}: {holes[0]!r} of its network is on the meta device, so it has no numbers",
            hint="load the weights before you give the network",
        )
    _check_forward(module, label=label)
    has_own_code = not _is_of_libraries(module)

    def factory() -> nn.Module:
        if has_own_code and torch.empty(0).is_meta:
            raise NotImplementedError(f"model {label!r} has code of its own")
        return copy_network(module, label=label)

    for holder in (module, given):
        for name in dir(holder):
            if name.startswith("xact_"):
                setattr(factory, name, getattr(holder, name))
    return factory


def _check_forward(module: nn.Module, *, label: str) -> None:
    """Refuse a `forward` that holds a module of the network itself: that of a copy would run the original."""
    parts = {id(part) for part in module.modules()}
    for name, part in module.named_modules():
        forward = vars(part).get("forward")
        if isinstance(forward, FunctionType):
            held = [one for cell in forward.__closure__ or () for one in get_content(cell)]
            held += forward.__defaults__ or ()
            if any(id(value) in parts for value in held):
                whose = repr(name) if name else "the network"
                raise RequestError(
                    f"model {label!r}: the forward of {whose} is a function that holds the network itself: a copy "
                    "of it would run the original",
                    hint="define forward in the class, or set it to types.MethodType(function, module), whose first "
                    "argument is the module",
                )


def copy_network(module: nn.Module, *, label: str) -> nn.Module:
    """Return a copy of a network with parameters of its own that share the memory of the given ones, until they move.

    Buffers and all other tensors are copied. Whatever happens to the copy, the network itself does not change.
    """
    shared = {id(p): nn.Parameter(p.detach(), False) for p in module.parameters() if type(p) is nn.Parameter}
    with (
        tell_failures(
            f"model {label!r}: the copy of its network",
            hint="a copy runs, so that yours stays as it is: keep locks, files and generators out of its attributes",
        ),
        _DetachCopies(),
    ):
        return copy.deepcopy(module, shared)


class _DetachCopies(TorchFunctionMode):
    """Copies a tensor that has a history of operations, which torch refuses, as a tensor without it."""

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        if func is Tensor.__deepcopy__ and not args[0].is_leaf:
            return args[0].detach().clone()
        return func(*args, **(kwargs or {}))


def _is_of_libraries(module: nn.Module) -> bool:
    """Return True if all code that a forward pass runs is code of the libraries: no own class, hook or method."""
    return all(
        type(part).__module__.partition(".")[0] in LIBRARIES
        and not (part._forward_hooks or part._forward_pre_hooks or "forward" in vars(part))
        for part in module.modules()
    )
