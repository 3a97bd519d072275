"""Capture the units of the planned layers in one forward pass.

A hook reduces (and so copies) the output of a module at once, before an in-place operation can change it. In every
batch, every layer must fire exactly as in the probe; otherwise the batch is refused.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from xact.capture.reduce import Placed, apply_reduction, make_reduction
from xact.errors import CaptureError, RequestError, make_one_line
from xact.store.plan import PlannedLayer


class Runnable(Protocol):
    """A network and its forward pass."""

    @property
    def module(self) -> nn.Module:
        """The network, in eval mode."""

    @property
    def forward(self) -> Callable[[nn.Module, Any], object]:
        """Forward a batch (n, 3, height, width) through the module or a copy of it."""

    @property
    def find_logits(self) -> Callable[[object], Tensor | None]:
        """Find the logits in what `forward` returned."""


def find_device(module: nn.Module) -> torch.device:
    """Return the device of a module's first parameter or buffer; the CPU if it has neither."""
    for tensor in (*module.parameters(), *module.buffers()):
        return tensor.device
    return torch.device("cpu")


def find_part(value: object, part: str) -> object:
    """Return the tensor at `part` (`[0]`, `[key]`, `[0][1]`) of a module's output, or None. A key may be any text."""
    if not part:
        return value
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else ()
    parts = ((item, f"[{key}]") for key, item in items)
    found = (find_part(item, part.removeprefix(key)) for item, key in parts if part.startswith(key))
    return next((one for one in found if one is not None), None)


class _DeepestReached(BaseException):
    """Ends a forward pass after the deepest planned layer fired; `except Exception` in a network does not catch it."""


class Capture:
    """Capture fixed layers from one copy of a network, one batch at a time; for one thread."""

    def __init__(self, network: Runnable, layers: Sequence[PlannedLayer], *, n_prefix: int, model: str) -> None:
        """`layers` are in forward order; `n_prefix` tokens precede the patch tokens; `model` is for messages.

        Raise RequestError if the network cannot be copied, CaptureError if a stimulus's values would depend on the
        other stimuli of its batch.
        """
        self._network = network
        self.module = self._module = copy_module(network.module)
        self._guard = Guard(self._module, model=model)
        self._layers = [(layer, make_reduction(layer)) for layer in layers]
        self._n_prefix = n_prefix
        self._placed: Placed = {}
        self._model = model
        self._stop_early = all(layer.name for layer in layers)
        self._by_call: dict[tuple[str, int], list[int]] = {}
        for i, layer in enumerate(layers):
            self._by_call.setdefault((layer.name, layer.call), []).append(i)
        self._n_calls = {layer.name: layer.n_calls for layer in layers if layer.name}
        for name, module in self._module.named_modules():
            if isinstance(module, _BatchNorm) and module.running_mean is None:
                raise CaptureError(
                    f"model {model!r}: {name!r} normalises by the mean of its batch: a stimulus's values would depend "
                    "on the other stimuli of its batch"
                )

    def run(self, batch: Tensor, keep: Callable[[int, Tensor], None]) -> dict[str, list[float]]:
        """Forward `batch` (n, 3, height, width) and call `keep(i, units)` once for each layer i.

        `units` is (n, ...) float32 on the batch's device; its axes after the first are the units in C order. It is
        valid only during the call: copy it. Pictures have no scores, so the result is empty. Raise CaptureError if a
        layer does not fire exactly as planned, or if the pass draws torch's random numbers or changes the network.
        `check_values` measures what this does not see, such as a state in a plain attribute.
        """
        calls: Counter[str] = Counter()
        fired: set[int] = set()
        stopped = False
        with self._guard.watch(batch.device):
            with self._hooks(batch, calls, fired, keep), torch.inference_mode():
                try:
                    result = self._network.forward(self._module, batch)
                except _DeepestReached:
                    stopped = True
                else:
                    self._keep_all("", 0, partial(self._find_in_result, result), batch, fired, keep)
            self._check_firing(calls, fired, stopped=stopped)
        return {}

    @contextmanager
    def _hooks(
        self, batch: Tensor, calls: Counter[str], fired: set[int], keep: Callable[[int, Tensor], None]
    ) -> Iterator[None]:
        def hook_for(name: str) -> Callable[[nn.Module, object, object], None]:
            def hook(_module: nn.Module, _args: object, output: object) -> None:
                call = calls[name]
                calls[name] += 1
                self._keep_all(name, call, partial(find_part, output), batch, fired, keep)
                if self._stop_early and len(fired) == len(self._layers):
                    raise _DeepestReached

            return hook

        modules = dict(self._module.named_modules())
        handles = [modules[name].register_forward_hook(hook_for(name)) for name in self._n_calls]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _find_in_result(self, result: object, part: str) -> object:
        """Return a part of what the network returned; without a part its logits, or the whole if it has none."""
        logits = None if part else self._network.find_logits(result)
        return find_part(result, part) if logits is None else logits

    def _keep_all(
        self,
        name: str,
        call: int,
        find: Callable[[str], object],
        batch: Tensor,
        fired: set[int],
        keep: Callable[[int, Tensor], None],
    ) -> None:
        """Keep the layers of one call; `find` returns a part of what the call returned."""
        for i in self._by_call.get((name, call), []):
            layer, reduction = self._layers[i]
            value = find(layer.part)
            found = tuple(value.shape) if isinstance(value, Tensor) else None
            planned = (len(batch), *layer.output_shape)
            if not isinstance(value, Tensor) or found != planned:
                raise CaptureError(
                    f"model {self._model!r}, layer {layer.label!r}: gave {found} where {planned} was planned",
                    hint="the network's shapes depend on its input; such a layer cannot be stored",
                )
            value = self._to_float32(value, layer.label)
            if reduction.name == "flatten":
                keep(i, value)  # `keep` flattens it while it copies: one copy, not two
            else:
                placed = None if value.device.type == "cpu" else self._placed
                axes = layer.output_axes
                keep(i, apply_reduction(reduction, value, axes, n_prefix=self._n_prefix, placed=placed))
            fired.add(i)

    def _to_float32(self, value: Tensor, label: str) -> Tensor:
        narrow = value.float()
        if value.dtype == torch.float64 and bool((narrow.isinf() & ~value.isinf()).any()):
            raise CaptureError(f"model {self._model!r}, layer {label!r}: a value overflows float32")
        return narrow

    def _check_firing(self, calls: Counter[str], fired: set[int], *, stopped: bool) -> None:
        silent = [layer.label for i, (layer, _) in enumerate(self._layers) if i not in fired]
        if silent:
            raise CaptureError(f"model {self._model!r}, layer {silent[0]!r} did not fire in a forward pass")
        for name, planned in self._n_calls.items():
            if calls[name] > planned or (not stopped and calls[name] != planned):
                raise CaptureError(
                    f"model {self._model!r}: {name!r} was called {calls[name]} times where the probe saw {planned}"
                )


class Guard:
    """Checks that the output of a network depends only on its input."""

    def __init__(self, module: nn.Module, *, model: str) -> None:
        self._module = module
        self._model = model
        tensors = (*module.parameters(), *module.buffers())
        self._tensors = [tensor for tensor in tensors if not tensor.is_inference()]  # inference tensors have no version

    @contextmanager
    def watch(self, device: torch.device) -> Iterator[None]:
        """Raise CaptureError if the forward pass inside draws random numbers or changes the network."""
        self._check_mode()
        random, version = _get_random_state(device), self._count_changes()
        yield
        self._check_mode()
        if self._count_changes() != version:
            raise CaptureError(
                f"model {self._model!r} changes its own weights or buffers in a forward pass: a stimulus's values "
                "would depend on earlier stimuli"
            )
        if not torch.equal(_get_random_state(device), random):
            raise CaptureError(f"model {self._model!r} draws random numbers in a forward pass: two passes differ")

    def _check_mode(self) -> None:
        if any(module.training for module in self._module.modules()):
            raise CaptureError(
                f"model {self._model!r} is in train mode: its values would depend on the batch or on chance"
            )

    def _count_changes(self) -> int:
        """Return the total number of in-place changes to parameters and buffers."""
        return sum(tensor._version for tensor in self._tensors)


def _get_random_state(device: torch.device) -> Tensor:
    """Return the state of the global random generators that a pass on `device` could use."""
    state = torch.get_rng_state()
    if device.type == "cuda":
        return torch.cat([state, torch.cuda.get_rng_state(device)])
    return torch.cat([state, torch.mps.get_rng_state()]) if device.type == "mps" else state


def copy_module(module: nn.Module) -> nn.Module:
    """Return a copy of a module tree that shares its parameters and buffers.

    Threads must not share the module objects: a forward that stores a tensor on `self` could read the tensor of
    another thread.
    """
    tensors = (*module.parameters(), *module.buffers())
    try:
        return copy.deepcopy(module, {id(tensor): tensor for tensor in tensors})
    except (RuntimeError, TypeError, NotImplementedError) as error:
        raise RequestError(f"the network cannot be copied for a second thread: {make_one_line(str(error))}") from error
