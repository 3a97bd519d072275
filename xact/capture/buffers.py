"""The buffers in which the units of a task gather before it is written."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from xact.store.tasks import Batch, Task


class BufferPool:
    """The buffers of the open tasks: a fixed number, which are reused, so that memory use stays constant."""

    def __init__(self, n_buffers: int, shapes: Sequence[tuple[int, int, int]]) -> None:
        self._free = threading.Semaphore(n_buffers)
        self._shapes = shapes
        self._kept: list[list[np.ndarray]] = []

    def take(self, stop: threading.Event) -> list[np.ndarray] | None:
        """Wait for free buffers and return the buffers of one task; return None after `stop` is set."""
        while not self._free.acquire(timeout=0.2):
            if stop.is_set():
                return None
        with contextlib.suppress(IndexError):
            return self._kept.pop()
        return [np.empty(shape, dtype=np.float32) for shape in self._shapes]

    def give_back(self, buffers: list[np.ndarray]) -> None:
        """Return the buffers of a written task to the pool."""
        self._kept.append(buffers)
        self._free.release()


def store_rows(buffer: np.ndarray, task: Task, batch: Batch, units: Tensor) -> None:
    """Copy those rows of a batch that a task needs into the buffer of a layer, each to its position."""
    target = torch.from_numpy(buffer)  # (stimulus, replicate, unit)
    start, rows = task.start, batch.rows
    n_replicates, first = target.shape[1], rows[0] - start
    if list(rows) == list(range(rows[0], rows[0] + len(rows))) and task.rows.issuperset(rows):
        copy_flat(target[first : first + len(rows)].flatten(0, 1), units)
        return
    for index, row in enumerate(rows):
        if row in task.rows:
            copy_flat(target[row - start], units[index * n_replicates : (index + 1) * n_replicates])


def copy_flat(target: Tensor, units: Tensor) -> None:
    """Copy `units` (n, ...) into `target` (n, unit), with the axes after the first in C order.

    A channels-last map is transposed picture by picture: torch copies a transposed matrix in blocks, which is several
    times faster than a copy through strides of four axes.
    """
    if units.ndim != 4 or units.is_contiguous() or not units.is_contiguous(memory_format=torch.channels_last):
        target.copy_(units.reshape(target.shape))
        return
    n_channels = units.shape[1]
    for row, one in zip(target, units, strict=True):
        row.view(n_channels, -1).copy_(one.permute(1, 2, 0).flatten(0, 1).t())  # (y x, channel) -> (channel, y x)
