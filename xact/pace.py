"""How far some work is, how fast it goes, and how long the rest will take: arithmetic and words, without a screen."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from xact.errors import escape_controls
from xact.words import count_noun, format_nbytes, format_seconds, format_speed, shorten

Watch = Callable[[int], Callable[[int], None]]
"""Receives how much there is to do, and returns what receives each newly finished part of it."""

WINDOW = 60.0
"""Seconds whose speed is shown."""


@dataclass
class ModelPart:
    """The stimuli of one model of a build."""

    label: str
    n_stimuli: int
    n_before: int
    """Stimuli that the store had before this run."""
    weight: float
    """Cost of one stimulus, in any unit that all models share; it counts until the model is measured."""
    n_new: int = 0
    seconds: float = 0.0
    """Seconds in which `n_new` were captured."""
    has_ended: bool = False

    @property
    def n_left(self) -> int:
        """Stimuli that are to be captured."""
        return 0 if self.has_ended else max(0, self.n_stimuli - self.n_before - self.n_new)


class Speed:
    """Units a second over the last minute."""

    def __init__(self, now: float) -> None:
        self.restart(now)

    def restart(self, now: float) -> None:
        """Forget what was counted."""
        self._since = now
        self._seen: deque[tuple[float, int]] = deque()

    def add(self, n: int, now: float) -> None:
        """Count `n` units that have just been finished."""
        self._seen.append((now, n))
        while len(self._seen) > 1 and self._seen[0][0] < now - WINDOW:
            self._since, _ = self._seen.popleft()

    def measure(self) -> float | None:
        """Return the speed, or None if nothing was counted."""
        seconds = self._seen[-1][0] - self._since if self._seen else 0.0
        return sum(n for _, n in self._seen) / seconds if seconds > 0 else None


class Teller(Protocol):
    """Says how far some work is."""

    def tell(self, now: float) -> Sequence[Sequence[str]]:
        """Return the parts of the line; the first choice is the longest, the last one the shortest."""

    def tell_end(self, seconds: float, *, is_done: bool) -> str:
        """Return what the last line says."""


@dataclass
class UnitPace:
    """The progress of equal units, such as layers, files or bytes."""

    unit: str
    total: int
    """0 if it is not known."""
    started: float = field(default_factory=time.monotonic)
    done: int = 0

    def __post_init__(self) -> None:
        self._speed = Speed(self.started)

    def add(self, n: int, now: float) -> None:
        """Count `n` more units."""
        self.done += n
        self._speed.add(n, now)

    def tell(self, now: float) -> Sequence[Sequence[str]]:
        """Return the parts of the line."""
        speed = self._speed.measure()
        parts = [self._say_done()]
        if speed and not self.total:
            parts += [f"{self._say(speed)}/s"]
        elif speed:
            mean = self.done / max(1e-9, now - self.started)
            left = format_seconds((self.total - self.done) / mean)
            parts += [f"{self._say(speed)}/s", f"about {left} left"]
        return [parts]

    def tell_end(self, seconds: float, *, is_done: bool) -> str:
        """Return what the last line says."""
        return f"{'done' if is_done else 'stopped'}: {self._say_done()} in {format_seconds(seconds)}"

    def _say(self, n: float) -> str:
        return format_nbytes(round(n)) if self.unit == "bytes" else f"{format_speed(n)} {self.unit}"

    def _say_done(self) -> str:
        if self.unit == "bytes":
            return f"{format_nbytes(self.done)} of {format_nbytes(self.total)}"
        return f"{self.done:,}{f'/{self.total:,}' if self.total else ''} {self.unit}"


@dataclass(frozen=True)
class Safety:
    """What of a build is safe on disk."""

    count: Callable[[], int]
    """Returns the rows that are safe now."""
    n_begun: int
    """Rows that were safe as this run began."""
    n_idle: int = 0
    """Runs before this one, in a row, that finished no task."""

    def tell(self, pace: BuildPace) -> str:
        """Return what an interruption keeps and loses."""
        n_safe = self.count()
        n_lost = max(0, pace.n_before + pace.n_new - n_safe)
        lost = f", {n_lost:,} must be computed again" if n_lost else ""
        return f"{n_safe:,} of {count_noun(pace.n_stimuli, 'row')} are safe{lost}"

    def tell_hint(self, otherwise: str) -> str:
        """Return what to do, if several runs in a row finished no task."""
        if not self.n_idle or self.count() > self.n_begun:
            return otherwise
        before = "the one before it" if self.n_idle == 1 else f"the {self.n_idle} before it"
        return (
            f"this run and {before} finished no task, and so will the next: give it more time, or build another store "
            "with a smaller storage.buffer_mb, whose tasks are smaller"
        )


class BuildPace:
    """How far the models of a build are, how fast the present one is, and how long all of them will take."""

    def __init__(self, parts: Sequence[ModelPart], *, n_replicates: int, shown: str, now: float) -> None:
        self.parts = {part.label: part for part in parts}
        self._n_replicates = n_replicates
        self._shown = shown
        self._at: ModelPart | None = None
        self._last = now
        self._speed = Speed(now)

    def add(self, label: str, n: int, now: float) -> None:
        """Count `n` stimuli of a model that have just been captured; 0 says that it begins, or begins anew."""
        part = self.parts.get(label)
        if part is None:  # a worker has finished what this build no longer needs
            return
        if n == 0:
            if self._at is not None and self._at is not part:
                self._at.has_ended = True
            part.n_new, part.seconds = 0, 0.0
            self._speed.restart(now)
        else:
            part.n_new += n
            part.seconds += now - self._last
            self._speed.add(n, now)
        self._at, self._last = part, now

    @property
    def n_new(self) -> int:
        """Stimuli that this run has captured, over all models."""
        return sum(part.n_new for part in self.parts.values())

    @property
    def n_before(self) -> int:
        """Stimuli that the store had before this run, over all models."""
        return sum(part.n_before for part in self.parts.values())

    @property
    def n_stimuli(self) -> int:
        """All stimuli of all models."""
        return sum(part.n_stimuli for part in self.parts.values())

    def estimate_seconds(self) -> float | None:
        """Return the seconds that are left; None if nothing was measured.

        A model that has run costs what it took. Others cost as much as their weight says, scaled by those that ran.
        """
        measured = [part for part in self.parts.values() if part.n_new and part.seconds > 0]
        if not measured:
            return None
        scale = sum(part.seconds for part in measured) / sum(part.n_new * part.weight for part in measured)
        return sum(
            part.n_left * (part.seconds / part.n_new if part in measured else scale * part.weight)
            for part in self.parts.values()
        )

    def tell(self, now: float) -> Sequence[Sequence[str]]:
        """Return the parts of the line, with and without the sum over all models."""
        if self._at is None:
            return [["the first model is loaded"]]
        at, n_models = self._at, len(self.parts)
        index = list(self.parts).index(at.label) + 1
        name = escape_controls(f"model {index}/{n_models} {at.label}" if n_models > 1 else at.label)
        done = f"{at.n_before + at.n_new:,}/{at.n_stimuli:,} stimuli"
        in_all = f" ({self.n_before + self.n_new:,}/{self.n_stimuli:,} in all)" if n_models > 1 else ""
        speed, left = self._speed.measure(), self.estimate_seconds()
        rest = [f"{format_speed(speed * self._n_replicates)} {self._shown}/s"] if speed else []
        rest += [f"about {format_seconds(left - (now - self._last))} left"] if left is not None else []
        return [[name, done + in_all, *rest], [name, done, *rest], [shorten(name, 24), done, *rest]]

    def tell_start(self) -> str:
        """Return what the first line says."""
        n_left = self.n_stimuli - self.n_before
        images = f"{n_left * self._n_replicates:,} {self._shown}"
        models = count_noun(len(self.parts), "model")
        job = f", job {os.environ['SLURM_JOB_ID']}" if "SLURM_JOB_ID" in os.environ else ""
        if self.n_before:
            return f"resumed at {self.n_before:,}/{self.n_stimuli:,} rows: {models}, {images} left{job}"
        return f"started: {models}, {count_noun(self.n_stimuli, 'row')}, {images}{job}"

    def tell_end(self, seconds: float, *, is_done: bool) -> str:
        """Return what the last line says."""
        done = f"{self.n_before + self.n_new:,}/{self.n_stimuli:,} rows"
        speed = self.n_new * self._n_replicates / max(1e-9, seconds)
        verb = "done" if is_done else "stopped"
        return f"{verb}: {done}, {format_speed(speed)} {self._shown}/s, {format_seconds(seconds)}"
