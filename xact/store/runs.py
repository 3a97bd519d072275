"""What a run of a build leaves for the next one while the store is unfinished: how many rows were safe as it began.

Two runs that begin with the same number say that the first of them finished no task.
"""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from xact.disk.durable import read_whole, remove_file, write_file
from xact.store.journal import FOLDER

RUN = "run.json"
"""File in `.xact`; it is removed once the store is published."""


class RunNote(BaseModel):
    """The state of an unfinished store as a run began."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    generation: int
    n_safe: int
    n_idle: int = Field(ge=0)
    """Runs before it, in a row, that finished no task."""


def note_run(store: Path, generation: int, n_safe: int) -> int:
    """Note that a run begins with `n_safe` rows. Return how many runs before it, in a row, finished no task."""
    before = _read(store)
    is_idle = before is not None and (before.generation, before.n_safe) == (generation, n_safe)
    n_idle = before.n_idle + 1 if before is not None and is_idle else 0
    note = RunNote(generation=generation, n_safe=n_safe, n_idle=n_idle)
    write_file(store / FOLDER / RUN, [note.model_dump_json().encode()])
    return n_idle


def _read(store: Path) -> RunNote | None:
    try:
        return RunNote.model_validate_json(read_whole(store / FOLDER / RUN))
    except (OSError, ValidationError):  # the first run, or a note that was cut
        return None


def remove_note(store: Path) -> None:
    """Remove the note, if it is there."""
    if os.path.lexists(store / FOLDER / RUN):
        remove_file(store / FOLDER / RUN)
