"""Find the tensors of a network that no chosen layer reads: those that operations take only after the last layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from xact.capture.follow_axes import list_tensors
from xact.capture.hooks import Runnable, find_device
from xact.capture.probe import PROBE_BATCH


class ReadNoter(TorchDispatchMode):
    """Notes the memory of every tensor that an operation takes while it is entered, until it is closed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.is_open = True
        self._storages: set[int] = set()

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401  the library does not type its operations
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """Run one operation and note what it takes."""
        self.note([args, kwargs or {}])
        return func(*args, **(kwargs or {}))

    def note(self, value: object) -> None:
        """Note the tensors in a nested value."""
        if self.is_open:
            self._storages |= {_find_storage(tensor) for tensor in list_tensors([value])}

    def has(self, tensor: Tensor) -> bool:
        """Return True if an operation took the tensor or another view of its memory."""
        return _find_storage(tensor) in self._storages


def _find_storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def find_unread(network: Runnable, input_shape: Sequence[int], outputs: Collection[tuple[str, int]]) -> frozenset[str]:
    """Return the names in the state dict of the tensors that no operation takes before the last of `outputs` is there.

    An output is (name of a module, number of its call); the name of the network itself is empty. One batch of zeros of
    `input_shape` runs through the network. What an operation takes later cannot change an output.
    """
    module = network.module
    tensors = {name: x for name, x in module.state_dict(keep_vars=True).items() if isinstance(x, Tensor)}
    waiting = set(outputs)
    calls: Counter[str] = Counter()
    noter = ReadNoter()

    def watch(name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(_module: nn.Module, _args: object, output: object) -> None:
            if (name, calls[name]) in waiting:
                noter.note(output)
                waiting.remove((name, calls[name]))
            calls[name] += 1
            noter.is_open = noter.is_open and bool(waiting)

        return hook

    modules = dict(module.named_modules())
    handles = [modules[name].register_forward_hook(watch(name)) for name in {name for name, _ in waiting if name}]
    try:
        with torch.no_grad(), noter:
            noter.note(network.forward(module, torch.zeros((PROBE_BATCH, *input_shape), device=find_device(module))))
    finally:
        for handle in handles:
            handle.remove()
    return frozenset(name for name, tensor in tensors.items() if not noter.has(tensor))
