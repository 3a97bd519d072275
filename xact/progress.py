"""The progress of a command, in one line on stderr.

On a terminal and in a notebook the line is written again in its place. In a log there is one line every 30 seconds,
after one of the start and before one of the end; what takes less time writes none.
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Literal, Self

from xact.errors import escape_controls
from xact.pace import BuildPace, ModelPart, Safety, Teller, UnitPace

LINE_EVERY = 30.0
"""Seconds between two lines of a log."""

DRAW_EVERY = 0.5
"""Seconds between two drawings of the line on a terminal."""

NOTEBOOK_WIDTH = 120

GO_ON = "run the same command again: it goes on where it stopped"

Form = Literal["line", "log", "none"]


class Progress:
    """Shows how far a command is. Several threads may report at once.

    Parameters
    ----------
    unit : str
        What `start` counts: `stimuli`, `layers`, `bytes`, ...
    shown : bool or None
        True: a line on a terminal or in a notebook, else a log. None: the line alone. False: nothing.
    verb : str
        What `survey` says is done with a network.
    """

    def __init__(self, unit: str = "stimuli", *, shown: bool | None = True, verb: str = "surveying") -> None:
        self._unit, self._verb = unit, verb
        self._form = choose_form(shown)
        self._lock = threading.RLock()
        self._teller: Teller | None = None
        self._survey = ""
        self._started = 0.0
        self._drawn = 0
        """Characters of the line on the screen."""
        self._first_line = ""
        """What a log says of the start once it says more: a log of less than half a minute is empty."""
        self._n_lines = 0
        self._stop: threading.Event | None = None
        self.pace: BuildPace | None = None
        """How far the build is, once it has begun."""
        self._safety: Safety | None = None

    def survey(self, index: int, total: int, label: str) -> None:
        """Say at which network of how many the command is, before anything is counted."""
        with self._lock:
            self._survey = f"{self._verb} {index}/{total} {escape_controls(label)}"
            self._run()
            if self._form == "line":
                self._draw()

    def start(self, total: int) -> Callable[[int], None]:
        """Start with `total` units; return a function that receives the number of newly finished ones."""
        counted = UnitPace(self._unit, total)
        self._begin(counted)

        def add(n: int) -> None:
            with self._lock:
                counted.add(n, time.monotonic())

        return add

    def start_models(
        self, parts: Sequence[ModelPart], n_replicates: int, shown: str = "images"
    ) -> Callable[[str, int], None]:
        """Start with the models of a build; return a function of a label and the number of newly captured stimuli."""
        pace = BuildPace(parts, n_replicates=n_replicates, shown=shown, now=time.monotonic())
        if pace.n_before < pace.n_stimuli:
            self._begin(pace)
            self.pace = pace
            if self._form == "log" or pace.n_before:
                self._first_line = f"{time.strftime(DATE)}  {pace.tell_start()}\n"
            if self._form == "line" and pace.n_before:
                self._write_line()

        def add(label: str, n: int) -> None:
            with self._lock:
                pace.add(label, n, time.monotonic())

        return add

    def follow(self, safety: Safety) -> None:
        """Know from now on what is safe on disk."""
        self._safety = safety

    def tell_safe(self) -> str:
        """Return what a build that is interrupted now keeps and loses."""
        if self._safety is None or self.pace is None:
            return "all finished tasks are safe"
        return self._safety.tell(self.pace)

    def tell_hint(self) -> str:
        """Return what to do after a build that is interrupted now."""
        return GO_ON if self._safety is None else self._safety.tell_hint(GO_ON)

    def pause(self) -> None:
        """Take the line away, and end the survey."""
        with self._lock:
            self._survey = ""
            self._clear()

    def _begin(self, teller: Teller) -> None:
        with self._lock:
            self._survey = ""
            self._teller, self._started = teller, time.monotonic()
            self._run()

    def _run(self) -> None:
        """Start the thread that draws."""
        if self._stop is None and self._form != "none":
            self._stop = threading.Event()
            _SHOWN.append(self)
            threading.Thread(target=self._tick, args=(self._stop,), daemon=True, name="xact-progress").start()

    def _tick(self, stop: threading.Event) -> None:
        while not stop.wait(DRAW_EVERY if self._form == "line" else LINE_EVERY):
            with self._lock:
                if not stop.is_set():
                    self._draw()

    def _draw(self) -> None:
        """Show the line as it is now."""
        choices: Sequence[Sequence[str]] = [[self._survey]] if self._survey else []
        if not choices and self._teller is not None:
            choices = self._teller.tell(time.monotonic())
        if not choices:
            return
        if self._form == "line":
            text = fit_line(choices, find_width())
            sys.stderr.write("\r" + text.ljust(self._drawn))
            self._drawn = len(text)
            sys.stderr.flush()
        elif self._form == "log":
            self._write_line("  ".join(choices[0]))

    def _write_line(self, text: str = "") -> None:
        """Write a line that stays, after the line of the start."""
        self._clear()
        sys.stderr.write(self._first_line + (f"{time.strftime(DATE)}  {text}\n" if text else ""))
        sys.stderr.flush()
        self._first_line = ""
        self._n_lines += 1

    def clear(self) -> None:
        """Take the line away until it is drawn again. Do nothing if a thread hangs that draws it."""
        if self._lock.acquire(timeout=1):
            try:
                self._clear()
            finally:
                self._lock.release()

    def _clear(self) -> None:
        if self._drawn:
            sys.stderr.write("\r" + " " * self._drawn + "\r")
            sys.stderr.flush()
            self._drawn = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._clear()
            if self._stop is not None:
                self._stop.set()
                _SHOWN.remove(self)
            if self._teller is not None and (self._n_lines or (self._form == "line" and self.pace is not None)):
                seconds = time.monotonic() - self._started
                self._write_line(self._teller.tell_end(seconds, is_done=error is None))
            self._stop = self._teller = None


_SHOWN: list[Progress] = []
"""The lines that are shown now."""


def clear_line() -> None:
    """Take the line of a progress away, so that other text can be written; it comes back by itself."""
    for one in list(_SHOWN):
        one.clear()


DATE, CLOCK = "%Y-%m-%d %H:%M:%S", "%H:%M:%S"


def fit_line(choices: Sequence[Sequence[str]], width: int) -> str:
    """Return the first of several lines that fits, after the date and time or the time alone."""
    lines = [f"{time.strftime(DATE)}  {'  '.join(choices[0])}"]
    lines += [f"{time.strftime(CLOCK)}  {'  '.join(parts)}" for parts in choices]
    return next((line for line in lines if len(line) <= width), lines[-1][:width])


def choose_form(shown: bool | None) -> Form:
    """Return how progress is shown; see `Progress`."""
    if shown is False:
        return "none"
    if sys.stderr.isatty() or is_notebook():
        return "line"
    return "log" if shown else "none"


def is_notebook() -> bool:
    """Return True in a kernel of Jupyter. IPython is not imported."""
    get_shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)
    return hasattr(get_shell(), "kernel")


def find_width() -> int:
    """Return the number of characters that a line may have."""
    if is_notebook():
        return NOTEBOOK_WIDTH
    try:
        columns = os.get_terminal_size(sys.stderr.fileno()).columns
    except (OSError, ValueError):
        columns = 0
    return max(20, (columns or shutil.get_terminal_size().columns) - 1)
