"""Signals that stop a command so that it can run again: exit code 75 within seconds, at any point."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType

from xact.cli.terminal import write_err
from xact.errors import InterruptedBuildError
from xact.progress import GO_ON

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
"""Signals after which a build can continue and an export run again. SLURM sends the last two before a time limit."""

PATIENCE = 3.0
"""Seconds that the current batch has to end. Then the process ends without it and loses only this batch."""

Words = str | Callable[[], str]
"""A text, or what returns it at the moment of the interruption."""


@contextmanager
def stop_on_signals(
    what: str = "build", *, safe: Words = "all finished tasks are safe", hint: Words = GO_ON
) -> Iterator[None]:
    """Raise InterruptedBuildError in the main thread on a signal, and end the process if that takes too long.

    The error names `what` was interrupted, what is `safe`, and what to do (`hint`). A call into C can delay a signal
    in the main thread for a long time, so a second thread listens too.
    """
    listening, telling = os.pipe()
    os.set_blocking(telling, False)
    old_fd = signal.set_wakeup_fd(telling, warn_on_full_buffer=False)
    make = partial(make_interruption, what=what, safe=safe, hint=hint)
    heard: list[int] = []
    old = {number: signal.signal(number, partial(_raise, heard)) for number in STOPPING}
    threading.Thread(target=_watch, args=(listening, make), daemon=True).start()
    try:
        yield
    except Exception as error:
        if not heard:
            raise
        # what is safe is known only now; code around an import may have turned the interruption into another error
        raise make(heard[0]) from (error.__cause__ if isinstance(error, InterruptedBuildError) else error)
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(old_fd)
        os.close(telling)


def ignore_signals() -> None:
    """Ignore further signals, so that they cannot change how this process ends. Python needs a second to end."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)


def _raise(heard: list[int], number: int, _frame: FrameType | None) -> None:
    ignore_signals()  # a second signal must not interrupt the work of the first
    heard.append(number)
    raise InterruptedBuildError(f"interrupted by {signal.Signals(number).name}")


def make_interruption(number: int, *, what: str, safe: Words, hint: Words) -> InterruptedBuildError:
    """Return the error for work that a signal interrupts."""
    told, to_do = (words if isinstance(words, str) else words() for words in (safe, hint))
    return InterruptedBuildError(f"the {what} was interrupted by {signal.Signals(number).name}; {told}", hint=to_do)


def _watch(listening: int, make: Callable[[int], InterruptedBuildError]) -> None:
    while data := os.read(listening, 1):
        if data[0] in STOPPING:
            time.sleep(PATIENCE)
            error = make(data[0])
            write_err(f"error: {error}\nhint: {error.hint}\n")
            sys.stderr.flush()
            os._exit(error.exit_code)
