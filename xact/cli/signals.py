"""Signals that stop a command so that it can run again: exit code 75 within seconds, at any point."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from types import FrameType

from xact.cli.terminal import write_err
from xact.errors import InterruptedBuildError

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
"""Signals after which a build can continue and an export run again. SLURM sends the last two before a time limit."""

PATIENCE = 3.0
"""Seconds that the current batch has to end. Then the process ends without it and loses only this batch."""

GO_ON = "run the same command again: it goes on where it stopped"


@contextmanager
def stop_on_signals(
    what: str = "build", *, safe: str = "all finished tasks are safe", hint: str = GO_ON
) -> Iterator[None]:
    """Raise InterruptedBuildError in the main thread on a signal, and end the process if that takes too long.

    The error names `what` was interrupted, what is `safe`, and what to do (`hint`). A call into C can delay a signal
    in the main thread for a long time, so a second thread listens too.
    """
    listening, telling = os.pipe()
    os.set_blocking(telling, False)
    old_fd = signal.set_wakeup_fd(telling, warn_on_full_buffer=False)
    errors = {int(number): make_interruption(number, what, safe, hint) for number in STOPPING}
    heard: list[InterruptedBuildError] = []
    old = {number: signal.signal(number, partial(_raise, errors, heard)) for number in STOPPING}
    threading.Thread(target=_watch, args=(listening, errors), daemon=True).start()
    try:
        yield
    except Exception as error:
        if heard and error is not heard[0]:  # code around an import may turn the interruption into another error
            raise heard[0] from error
        raise
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(old_fd)
        os.close(telling)


def ignore_signals() -> None:
    """Ignore further signals, so that they cannot change how this process ends. Python needs a second to end."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)


def _raise(
    errors: Mapping[int, InterruptedBuildError],
    heard: list[InterruptedBuildError],
    number: int,
    _frame: FrameType | None,
) -> None:
    ignore_signals()  # a second signal must not interrupt the work of the first
    heard.append(errors[number])
    raise errors[number]


def make_interruption(number: int, what: str, safe: str, hint: str) -> InterruptedBuildError:
    """Return the error for work that a signal interrupts."""
    return InterruptedBuildError(f"the {what} was interrupted by {signal.Signals(number).name}; {safe}", hint=hint)


def _watch(listening: int, errors: Mapping[int, InterruptedBuildError]) -> None:
    while data := os.read(listening, 1):
        if error := errors.get(data[0]):
            time.sleep(PATIENCE)
            write_err(f"error: {error}\nhint: {error.hint}\n")
            sys.stderr.flush()
            os._exit(error.exit_code)
