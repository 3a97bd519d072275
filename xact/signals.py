"""Signals that end a build so that it can be resumed: exit code 75 within seconds, wherever it is."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from xact.errors import InterruptedBuildError

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
"""Signals after which a build can be resumed; SLURM sends the last two ahead of a time limit."""

PATIENCE = 3.0
"""Seconds for the batch under way to end; then the process ends without it, which loses that batch only."""


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """Raise InterruptedBuildError in the main thread on a signal, and end the process if that takes too long.

    A call into C can keep the main thread from hearing of a signal for long, so another thread listens as well.
    """
    listening, telling = os.pipe()
    os.set_blocking(telling, False)
    old_fd = signal.set_wakeup_fd(telling, warn_on_full_buffer=False)
    old = {number: signal.signal(number, _raise) for number in STOPPING}
    threading.Thread(target=_watch, args=(listening,), daemon=True).start()
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(old_fd)
        os.close(telling)


def _raise(number: int, _frame: FrameType | None) -> None:
    for other in STOPPING:
        signal.signal(other, signal.SIG_IGN)  # one is enough: a second must not break off what the first began
    raise make_interruption(number)


def make_interruption(number: int) -> InterruptedBuildError:
    """Return the error that a signal ends a build with."""
    return InterruptedBuildError(
        f"interrupted by {signal.Signals(number).name}; all that was finished is safe",
        hint="run the same command again: it goes on where it stopped",
    )


def _watch(listening: int) -> None:
    while data := os.read(listening, 1):
        number = data[0]
        if number in STOPPING:
            time.sleep(PATIENCE)
            error = make_interruption(number)
            sys.stderr.write(f"error: {error}\nhint: {error.hint}\n")
            sys.stderr.flush()
            os._exit(error.exit_code)
