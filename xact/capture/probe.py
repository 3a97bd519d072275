"""Run a network once without weights and list every output with its shape."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from xact.capture.hooks import Runnable, find_device
from xact.capture.layers import Output
from xact.errors import RequestError

PROBE_BATCH = 11
"""Stimuli in a probe. Axes of outputs rarely have this length (maps and windows often have 7), so it marks the batch
axis."""


def probe(network: Runnable, input_shape: Sequence[int]) -> list[Output]:
    """Return every output of a forward pass in forward order, then the modules that were never called (`n_calls` 0).

    `input_shape` is (3, height, width). A network on the meta device needs neither memory nor arithmetic; a network on
    another device runs on a batch of zeros. Raise RequestError for compiled code.
    """
    module = network.module
    _check_eager(module)
    batch = torch.zeros((PROBE_BATCH, *input_shape), device=find_device(module))
    returned: list[tuple[str, int, object]] = []
    calls: Counter[str] = Counter()

    def keep(name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(_module: nn.Module, _args: object, output: object) -> None:
            returned.append((name, calls[name], _shape_of(output)))
            calls[name] += 1

        return hook

    handles = [m.register_forward_hook(keep(name)) for name, m in module.named_modules() if name]
    try:
        with torch.inference_mode():
            result = network.forward(module, batch)
    finally:
        for handle in handles:
            handle.remove()
    modules = dict(module.named_modules())
    sizes = {name: sum(p.numel() for p in m.parameters()) for name, m in modules.items()}
    outputs = [
        Output(name, type(modules[name]).__name__, call, calls[name], part, shape, sizes[name])
        for name, call, shapes in returned
        for part, shape in _flatten_shapes(shapes)
    ]
    logits = network.find_logits(result)
    if logits is not None:
        outputs.append(Output("", type(module).__name__, 0, 1, "", _per_stimulus(tuple(logits.shape)), sizes[""]))
    silent = [name for name in modules if name and not calls[name]]
    return outputs + [Output(name, type(modules[name]).__name__, 0, 0, "", None, sizes[name]) for name in silent]


def _check_eager(module: nn.Module) -> None:
    """Refuse a module from torch.compile, which compiles hooks as part of the code."""
    for name, part in module.named_modules():
        if "_orig_mod" in part._modules or part._compiled_call_impl is not None:
            what = f"the module {name!r}" if name else "the network"
            raise RequestError(f"{what} is compiled by torch.compile", hint="give the module before torch.compile")


def _per_stimulus(shape: tuple[int, ...]) -> tuple[int, ...] | None:
    return shape[1:] if len(shape) > 1 and shape[0] == PROBE_BATCH else None


def _shape_of(value: object) -> object:
    """Return `value` with every tensor replaced by its shape, so that the probe keeps no tensor alive."""
    if isinstance(value, Tensor):  # float32 cannot hold a complex number
        return (None if value.is_complex() else _per_stimulus(tuple(value.shape))) or ()
    if isinstance(value, Mapping):
        return {str(key): _shape_of(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_shape_of(item) for item in value]
    return None


def _flatten_shapes(shapes: object, part: str = "") -> Iterator[tuple[str, tuple[int, ...] | None]]:
    """Yield (part, shape) of every tensor; None if a value is not a tensor or has no stimulus axis."""
    if isinstance(shapes, tuple):
        yield part, shapes or None
    elif isinstance(shapes, Mapping):
        for key, item in shapes.items():
            yield from _flatten_shapes(item, f"{part}[{key}]")
    elif isinstance(shapes, list):
        for i, item in enumerate(shapes):
            yield from _flatten_shapes(item, f"{part}[{i}]")
    else:
        yield part, None
