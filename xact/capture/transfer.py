"""Bring the inputs of batches to a device, and the units of their layers back.

`DirectTransfer` does one after the other. `StreamedTransfer` is for a device that computes while the host goes on: it
copies the next input to the device, and the units of the batch before, while the network runs. Both run the same
operations on the same numbers in the same order, so the values are equal bit for bit.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from xact.models.device import N_IN_FLIGHT

ROUNDED_AT_ONCE = 2**24
"""Values that a device rounds at once; it bounds the memory for layers of any width."""

EXPONENT = 0x7F800000
"""Bits of the exponent of a float32; all of them are 1 in NaN and infinity."""

Keep = Callable[[int, Tensor], None]
"""`keep(i, units)` takes the units (n, ...) of layer i, which are valid only during the call."""

Scores = Mapping[str, Sequence[float]]

Forward = Callable[[Any, Keep], Scores]
"""`forward(inputs, keep)` runs the network and calls `keep` once for each layer."""

Rest = Callable[[], bool]
"""Waits for the units of a batch and stores them; True if they are rounded."""


class Transfer(Protocol):
    """Brings inputs to a device and units back."""

    def stage(self, inputs: Any) -> Any:  # noqa: ANN401  what `collate` returns
        """Make an input ready for `run`; another thread calls this ahead of `run`."""

    def run(self, inputs: Any, forward: Forward, store: Keep) -> tuple[Scores, Rest]:  # noqa: ANN401
        """Run a batch. Return its scores, and what is left to do; after that, `store` was called for each layer.

        One thread calls `run`. One other thread may call what is left, batch by batch in the same order.
        """


class DirectTransfer:
    """Moves, runs and stores one batch at a time; many threads may use it."""

    def stage(self, inputs: Any) -> Any:  # noqa: ANN401
        """Return the input: `forward` moves it."""
        return inputs

    def run(self, inputs: Any, forward: Forward, store: Keep) -> tuple[Scores, Rest]:  # noqa: ANN401
        """Run a batch and store its units."""
        on_device: dict[int, Tensor] = {}

        def keep(i: int, units: Tensor) -> None:
            if units.device.type == "cpu":
                store(i, units)
            else:
                on_device[i] = units.clone()

        scores = forward(inputs, keep)
        for i, units in on_device.items():
            store(i, units.cpu())
        return scores, lambda: False


class Event(Protocol):
    """A point in the work of a device."""

    def synchronize(self) -> None:
        """Wait until the device has done all that was asked of it before this point."""


class Streams(Protocol):
    """The work of a device in three queues: what it computes, copies to it, and copies from it."""

    def pin(self, inputs: Any) -> Any:  # noqa: ANN401
        """Return a copy of an input in memory from which the device copies by itself."""

    def make_buffers(self, n: int) -> tuple[Tensor, Tensor]:
        """Return n float32 numbers on the device, and n in memory to which the device copies by itself."""

    def copy_in(self, move: Callable[[], Any]) -> Any:  # noqa: ANN401
        """Ask for `move()` in the queue of copies to the device. What is computed from now on waits for it."""

    def copy_out(self, target: Tensor, source: Tensor) -> Event:
        """Ask for a copy from the device, after all that it computes until now. Return the event of its end."""


class CudaStreams:
    """The streams of a CUDA device; networks run in the current stream of the thread."""

    def __init__(self, device: str) -> None:
        self._device = torch.device(device)
        make: Any = torch.cuda.Stream  # the library types it not
        self._into, self._out = make(self._device), make(self._device)

    def pin(self, inputs: Any) -> Any:  # noqa: ANN401
        """Return a copy of an input in pinned memory."""
        return inputs.pin_memory()

    def make_buffers(self, n: int) -> tuple[Tensor, Tensor]:
        """Return n float32 numbers on the device, and n in pinned memory."""
        return torch.empty(n, device=self._device), torch.empty(n, pin_memory=True)

    def copy_in(self, move: Callable[[], Any]) -> Any:  # noqa: ANN401
        """Ask for `move()`; the caller keeps its result until the device has used it."""
        with torch.cuda.stream(self._into):
            moved = move()
        torch.cuda.current_stream(self._device).wait_stream(self._into)
        return moved

    def copy_out(self, target: Tensor, source: Tensor) -> Event:
        """Ask for a copy and return the event of its end."""
        self._out.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._out):
            target.copy_(source, non_blocking=True)
        done: Event = self._out.record_event()
        return done


@dataclass
class _Slot:
    """Memory of one batch in flight: the units of all layers, one layer after the other, and a count."""

    on_device: Tensor
    pinned: Tensor
    inputs: Any = None
    """What the device reads. It is kept until the batch has left the device: its memory is that of another stream."""


class StreamedTransfer:
    """Has N_IN_FLIGHT batches on the device."""

    def __init__(
        self, streams: Streams, device: str, *, dtype: torch.dtype, widths: Sequence[int], is_rounding: bool
    ) -> None:
        """`widths` are the units of each layer. With `is_rounding`, the device rounds them to 10 bits of mantissa."""
        self._streams = streams
        self._device = device
        self._dtype = dtype
        self._widths = widths
        self._is_rounding = is_rounding
        self._free: queue.SimpleQueue[_Slot] = queue.SimpleQueue()
        for _ in range(N_IN_FLIGHT):
            self._free.put(_Slot(torch.empty(0), torch.empty(0)))

    def stage(self, inputs: Any) -> Any:  # noqa: ANN401
        """Return an input in pinned memory, in the number format of the network."""
        return self._streams.pin(inputs.to(self._dtype) if isinstance(inputs, Tensor) else inputs)

    def run(self, inputs: Any, forward: Forward, store: Keep) -> tuple[Scores, Rest]:  # noqa: ANN401
        """Ask the device for a batch, as soon as one of the batches in flight has ended."""
        slot = self._free.get()
        n_units = len(inputs) * sum(self._widths)
        if slot.pinned.numel() <= n_units:
            slot.on_device, slot.pinned = self._streams.make_buffers(n_units + 1)
        slot.inputs = self._streams.copy_in(lambda: inputs.to(self._device, dtype=self._dtype, non_blocking=True))
        layers = list(self._split(slot.on_device, len(inputs)))

        def gather(i: int, units: Tensor) -> None:
            layers[i].view(units.shape).copy_(units)

        scores = forward(slot.inputs, gather)
        if self._is_rounding:
            slot.on_device[n_units] = round_values(slot.on_device[:n_units])
        done = self._streams.copy_out(slot.pinned[: n_units + 1], slot.on_device[: n_units + 1])
        return scores, partial(self._store, slot, len(inputs), done, store)

    def _store(self, slot: _Slot, n_inputs: int, done: Event, store: Keep) -> bool:
        """Store the units of a batch once they are here, and free its slot."""
        try:
            done.synchronize()
            for i, units in enumerate(self._split(slot.pinned, n_inputs)):
                store(i, units)
            return self._is_rounding and float(slot.pinned[n_inputs * sum(self._widths)]) == 0
        finally:
            slot.inputs = None
            self._free.put(slot)

    def _split(self, units: Tensor, n_inputs: int) -> Iterator[Tensor]:
        """Yield the units (input, unit) of each layer, as views."""
        start = 0
        for width in self._widths:
            yield units[start : start + n_inputs * width].view(n_inputs, width)
            start += n_inputs * width


def round_values(values: Tensor) -> Tensor:
    """Round float32 (value,) in place to 10 bits of mantissa, as `write_task.round_mantissa` does.

    A finite value that would round to infinity stays. Return the number of such values, on the device of `values`.
    """
    n_over = values.new_zeros(())
    for part in torch.split(values, ROUNDED_AT_ONCE):
        bits = part.view(torch.int32)
        rounded = (bits + 0xFFF + ((bits >> 13) & 1)) & ~0x1FFF
        is_special = (bits & EXPONENT) == EXPONENT
        is_over = ((rounded & EXPONENT) == EXPONENT) & ~is_special
        n_over += is_over.sum()
        bits.copy_(torch.where(is_special | is_over, bits, rounded))
    return n_over
