"""Progress of a build on stderr: a bar on a terminal, otherwise one plain line every 30 seconds."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from xact.cli.terminal import write_err

LINE_EVERY = 30.0
"""Seconds between two plain lines."""


class Progress:
    """Counts stimuli, or other units, and prints the progress. Several threads may report at once."""

    def __init__(self, unit: str = "stimuli") -> None:
        self._unit = unit
        self._lock = threading.Lock()
        self._done = 0
        self._total = 0
        self._started = 0.0
        self._last = 0.0
        self._close: Callable[[], None] = lambda: None

    def start(self, total: int) -> Callable[[int], None]:
        """Start with `total` stimuli; return a function that receives the number of newly finished stimuli."""
        self._total = total
        self._started = self._last = time.monotonic()
        if not sys.stderr.isatty():
            return self._add_to_lines
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        bar = Bar(
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(f"{{task.fields[speed]:.1f}} {self._unit}/s"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        task = bar.add_task("build", total=total, speed=0.0)
        bar.start()
        self._close = bar.stop

        def add(n: int) -> None:
            with self._lock:
                self._done += n
                bar.update(task, completed=self._done, speed=self._speed())

        return add

    def _speed(self) -> float:
        return self._done / max(1e-9, time.monotonic() - self._started)

    def _add_to_lines(self, n: int) -> None:
        with self._lock:
            self._done += n
            now = time.monotonic()
            if now - self._last >= LINE_EVERY:
                self._last = now
                left = (self._total - self._done) / max(1e-9, self._speed())
                write_err(
                    f"{self._done}/{self._total} {self._unit}, {self._speed():.1f} {self._unit}/s, {left:.0f} s left\n"
                )
                sys.stderr.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()
