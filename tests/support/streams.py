"""Streams of a device that is the CPU: its copies run in threads of their own, later than they were asked for."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class CopyEvent:
    """The end of a copy."""

    done: Future[None]

    def synchronize(self) -> None:
        self.done.result()


@dataclass
class ThreadStreams:
    """Really copies: inputs, units and pinned memory are tensors of their own.

    A copy from the device begins `delay` seconds after it was asked for, and once `gate` is set. What reads its target
    before its end, or writes to its source, gets other numbers than an ordinary copy gives.
    """

    delay: float = 0.002
    gate: threading.Event = field(default_factory=threading.Event)
    log: list[str] = field(default_factory=list)
    """What was done, in order."""

    def __post_init__(self) -> None:
        self._into, self._out = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self.gate.set()

    def pin(self, inputs: Any) -> Any:
        return copy.deepcopy(inputs)

    def make_buffers(self, n: int) -> tuple[Tensor, Tensor]:
        return torch.full((n,), torch.nan), torch.full((n,), torch.nan)

    def copy_in(self, move: Callable[[], Any]) -> Any:
        self.log.append("in")
        return self._into.submit(lambda: copy.deepcopy(move())).result()

    def copy_out(self, target: Tensor, source: Tensor) -> CopyEvent:
        def run() -> None:
            self.gate.wait()
            time.sleep(self.delay)
            target.copy_(source)

        self.log.append("out")
        return CopyEvent(self._out.submit(run))
