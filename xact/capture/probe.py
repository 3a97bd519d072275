"""Run a network once without weights and list every output with its shape."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from xact.capture.axes import Axes, find_patches
from xact.capture.follow_axes import AxisFollower
from xact.capture.hooks import Runnable, find_device
from xact.capture.layers import OUTPUT, Output
from xact.capture.name_axes import HEIGHT_FACTOR, WIDTH_FACTOR, name_by_class, name_by_origins, name_by_sizes
from xact.errors import RequestError
from xact.models.base import tell_failures

PROBE_BATCH, SECOND_BATCH = 11, 5
"""Stimuli in the two probes. The batch axis is the one axis that changes with this number."""


def probe(network: Runnable, input_shape: Sequence[int]) -> list[Output]:
    """Return every output of a forward pass in forward order, then the modules that were never called (`n_calls` 0).

    `input_shape` is (3, height, width). A network on the meta device needs neither memory nor arithmetic; a network on
    another device runs on batches of zeros. Raise RequestError for compiled code.
    """
    module = network.module
    _check_eager(module)
    passed = _pass(network, (PROBE_BATCH, *input_shape), follow=True)
    others = find_other_names(module) | ({"": (OUTPUT,)} if passed.returns_logits else {})
    second = _pass(network, (SECOND_BATCH, *input_shape), follow=False).shapes
    modules = dict(module.named_modules())
    sizes = {name: sum(p.numel() for p in m.parameters()) for name, m in modules.items()}
    outputs = []
    for (name, call, part), axes in passed.axes.items():
        shape = _drop_batch(passed.shapes[name, call, part], second.get((name, call, part)))
        class_name = type(modules[name]).__name__
        output = Output(
            name,
            class_name,
            call,
            n_calls=max(1, passed.calls[name]),
            part=part,
            shape=shape,
            n_params=sizes[name],
            is_sole=(name, call, part) in passed.soles,
            is_result=not name and (bool(part) or not passed.has_logits),
            other_names=others.get(name, ()),
        )
        outputs.append(output if shape is None else _name_axes(output, modules[name], axes[1:]))
    outputs = _name_by_a_larger_picture(network, input_shape, outputs)
    silent = [name for name in modules if name and not passed.calls[name]]
    return outputs + [Output(name, type(modules[name]).__name__, 0, 0, "", None, sizes[name]) for name in silent]


@dataclass
class _Pass:
    """What one forward pass gave; keys are (name of the module, call, part)."""

    shapes: dict[tuple[str, int, str], tuple[int, ...] | None] = field(default_factory=dict)
    """None: not a tensor."""
    axes: dict[tuple[str, int, str], Axes] = field(default_factory=dict)
    """The axes of each output by their origin, if they are followed."""
    soles: set[tuple[str, int, str]] = field(default_factory=set)
    """Parts that are the only tensor in the tuple or list that the module returned."""
    calls: Counter[str] = field(default_factory=Counter)
    has_logits: bool = False
    returns_logits: bool = False
    """True if the network returned nothing but its logits."""


def _pass(network: Runnable, shape: tuple[int, ...], *, follow: bool) -> _Pass:
    """Forward zeros of `shape` once; with `follow`, also follow every axis. Keep no tensor alive."""
    module = network.module
    passed = _Pass()
    batch = torch.zeros(shape, device=find_device(module))
    follower = AxisFollower(batch) if follow else None

    def note(name: str, call: int, output: object) -> None:
        parts = list(_list_parts(output))
        tensors = [part for part, value in parts if isinstance(value, Tensor)]
        if len(tensors) == 1 and _is_nested_list(output):
            passed.soles.add((name, call, tensors[0]))
        for part, value in parts:
            is_real = isinstance(value, Tensor) and not value.is_complex()  # float32 cannot hold a complex number
            passed.shapes[name, call, part] = tuple(value.shape) if is_real else None  # type: ignore[attr-defined]
            passed.axes[name, call, part] = follower.get(value) if is_real and follower else ()  # type: ignore[arg-type]

    def keep(name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(_module: nn.Module, _args: object, output: object) -> None:
            note(name, passed.calls[name], output)
            passed.calls[name] += 1

        return hook

    handles = [m.register_forward_hook(keep(name)) for name, m in module.named_modules() if name]
    try:
        with torch.no_grad(), follower or nullcontext():  # inference mode would hide the parts of an operation
            result = network.forward(module, batch)
            logits = network.find_logits(result)
    finally:
        for handle in handles:
            handle.remove()
    passed.has_logits, passed.returns_logits = logits is not None, logits is result
    if logits is not None:
        note("", 0, logits)
    if isinstance(result, Mapping | list | tuple) or (logits is None and isinstance(result, Tensor)):
        note("", 0, result)
    return passed


def _drop_batch(first: tuple[int, ...] | None, second: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """Return the shape of one stimulus; None unless the first axis, and no other, changes with the batch."""
    if not first or not second or len(first) < 2 or first[1:] != second[1:]:
        return None
    return first[1:] if (first[0], second[0]) == (PROBE_BATCH, SECOND_BATCH) else None


def _name_axes(output: Output, module: nn.Module, axes: Axes) -> Output:
    """Return the output with the names of its axes, as far as their origins or its class tell them."""
    names = name_by_origins(axes) or name_by_class(module, axes)
    if names is None:
        return output
    patches = find_patches(axes[names.index("token")]) if "token" in names else None
    return replace(output, axes=names, patches=patches)


def _name_by_a_larger_picture(network: Runnable, input_shape: Sequence[int], outputs: list[Output]) -> list[Output]:
    """Name axes that are still unknown by a probe with a larger picture, if the network takes one."""
    unknown = [o for o in outputs if o.shape is not None and 2 <= len(o.shape) <= 3 and not o.axes]
    n_channels, height, width = input_shape
    if not unknown:
        return outputs
    larger = (1, n_channels, height * HEIGHT_FACTOR, width * WIDTH_FACTOR)
    try:
        with tell_failures("the probe with a larger picture"):
            shapes = _pass(network, larger, follow=False).shapes
    except RequestError:  # the network takes one size alone; lack of memory is not that
        return outputs

    def name(output: Output) -> Output:
        shape = shapes.get((output.name, output.call, output.part))
        if output not in unknown or shape is None or len(shape) != len(output.shape or ()) + 1:
            return output
        return replace(output, axes=name_by_sizes(output.shape or (), shape[1:]) or ())

    return [name(output) for output in outputs]


def _check_eager(module: nn.Module) -> None:
    """Refuse a module from torch.compile, which compiles hooks as part of the code."""
    for name, part in module.named_modules():
        if "_orig_mod" in part._modules or part._compiled_call_impl is not None:
            what = f"the module {name!r}" if name else "the network"
            raise RequestError(f"{what} is compiled by torch.compile", hint="give the module before torch.compile")


def _list_parts(value: object, part: str = "") -> Iterator[tuple[str, object]]:
    """Yield (part, value) of everything that a module returned, however nested."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _list_parts(item, f"{part}[{key}]")
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield from _list_parts(item, f"{part}[{i}]")
    else:
        yield part, value


def _is_nested_list(value: object) -> bool:
    """Return True for a list or tuple without a mapping inside."""
    return isinstance(value, list | tuple) and not any(_has_mapping(item) for item in value)


def _has_mapping(value: object) -> bool:
    return isinstance(value, Mapping) or (isinstance(value, list | tuple) and any(map(_has_mapping, value)))


MOST_NAMES = 1000
"""A module is found under at most this many names."""


def find_other_names(module: nn.Module) -> dict[str, tuple[str, ...]]:
    """Return {name of a module: its other names}, for modules that stand at several places of a network.

    The name is the first one, as in `named_modules`. A module inside one that has several names has them too.
    """
    first = {id(part): name for name, part in module.named_modules()}
    places = [
        (f"{name}.{key}" if name else key, first[id(child)])
        for name, part in module.named_modules()
        for key, child in part._modules.items()
        if child is not None
    ]
    again = [(place, name) for place, name in places if place != name and not _lies_in(place, name)]  # else a circle
    others = {}
    for name in first.values() if again else ():
        names = {name: None}
        queue = [name]
        while queue and len(names) < MOST_NAMES:
            one = queue.pop(0)
            found = [place + one[len(target) :] for place, target in again if _lies_in(one, target)]
            queue += [other for other in found if other not in names]
            names |= dict.fromkeys(found)
        if len(names) > 1:
            others[name] = tuple(names)[1:MOST_NAMES]
    return others


def _lies_in(name: str, holder: str) -> bool:
    """Return True if a name is that of a module or of a part of it."""
    return not holder or name == holder or name.startswith(f"{holder}.")
