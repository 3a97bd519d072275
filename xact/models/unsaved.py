"""Find what decides the values of a network and is not in its state dict."""

from __future__ import annotations

import functools
import hashlib
from collections import deque
from collections.abc import Iterator, Mapping
from types import FunctionType, ModuleType

import numpy as np
import torch
from torch import Tensor, nn

from xact.models.user_globals import get_content

OF_EVERY_MODULE = frozenset(vars(nn.Module()))
"""Attributes that torch gives every module: its tables of parameters, buffers, parts and hooks."""

DEPTH = 3
"""Number of objects, one within another, that are searched below a module; containers and modules do not count."""


def list_unsaved(module: nn.Module, *, with_numbers: bool) -> Iterator[str]:
    """Yield one line for each tensor or array that modules hold and the state dict lacks: where it is, and its hash.

    Buffers that are not saved are such tensors, and tensors in attributes, in containers, in objects and functions
    there, or in modules that are no registered parts. With `with_numbers`, yield the class of each module and its
    attributes that are numbers too.
    """
    saved = {id(value) for value in module.state_dict(keep_vars=True).values()}
    seen: dict[int, object] = {id(part): part for part in module.modules()}
    for path, part in module.named_modules():
        if with_numbers:
            yield f"{path} is {type(part).__qualname__}"
        attributes = {name: value for name, value in vars(part).items() if name not in OF_EVERY_MODULE}
        for at, value in _list_leaves(attributes | part._buffers, path, DEPTH, seen):
            if isinstance(value, Tensor | np.ndarray):
                if id(value) not in saved:
                    yield f"{at} {value.dtype} {tuple(value.shape)} {hashlib.sha256(get_bytes(value)).hexdigest()}"
            elif with_numbers:
                yield f"{at} {value!r}"


def get_bytes(value: Tensor | np.ndarray) -> memoryview | bytes:
    """Return the bytes of a tensor or array in C order; of one without numbers (on the meta device), nothing."""
    if isinstance(value, np.ndarray):
        return repr(value.tolist()).encode() if value.dtype.hasobject else value.tobytes()
    if value.is_meta:
        return b""
    if value.layout != torch.strided:
        value = value.to_dense()
    flat = (value.dequantize() if value.is_quantized else value).detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else b""


def _list_leaves(value: object, at: str, depth: int, seen: dict[int, object]) -> Iterator[tuple[str, object]]:
    """Yield (place, value) of every tensor, array and number in a value. Look into every object once."""
    if isinstance(value, Tensor | np.ndarray | bool | int | float | complex | np.generic):
        yield at, value
        return
    is_free = isinstance(value, Mapping | list | tuple | set | frozenset | deque | nn.Module)
    if id(value) in seen or (depth == 0 and not is_free):
        return
    seen[id(value)] = value
    for name, part in _list_parts(value):
        yield from _list_leaves(part, f"{at}.{name}", depth if is_free else depth - 1, seen)


def _list_parts(value: object) -> list[tuple[str, object]]:
    """Return (name, value) of what a container, an object, a function or a module holds."""
    if isinstance(value, Mapping):
        return [(str(key) if isinstance(key, str | int) else "", item) for key, item in value.items()]
    if isinstance(value, list | tuple | deque):
        return [(str(i), item) for i, item in enumerate(value)]
    if isinstance(value, set | frozenset):
        return [("", item) for item in value]
    if isinstance(value, nn.Module):
        own = {name: item for name, item in vars(value).items() if name not in OF_EVERY_MODULE}
        return list((own | value._parameters | value._buffers | value._modules).items())
    if isinstance(value, functools.partial):
        return [("args", value.args), ("keywords", value.keywords)]
    if isinstance(value, FunctionType):
        contents = [get_content(cell) for cell in value.__closure__ or ()]
        return [("closure", contents), ("defaults", value.__defaults__)]
    is_searched = hasattr(value, "__dict__") and not isinstance(value, type | ModuleType)
    return list(vars(value).items()) if is_searched else []
