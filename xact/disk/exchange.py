"""Put a new folder in the place of an old one. A kill leaves the old folder, the new one, or what `settle` ends.

Beside FOLDER, with names of their own:

.FOLDER.xact-rebuilding   the new folder while it is written
.FOLDER.xact-new          the new folder, whole
.FOLDER.xact-old          the old folder

The steps: 1. write `rebuilding`; 2. rename it to `new`; 3. rename FOLDER to `old`; 4. rename `new` to FOLDER; 5. remove
`old`. Between 3 and 4 there is no FOLDER. Only the holder of the lock in FOLDER (or in `new`) may call these functions.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from xact.disk.durable import _disk_errors, sync_folder
from xact.disk.places import Place
from xact.errors import StoreError


def find_rebuilding(folder: Path) -> Path:
    """Return the place beside `folder` where its successor is written."""
    return _name(folder, "rebuilding")


def hint_missing(folder: Place, hint: str = "give the path of a store") -> str:
    """Return what to do about a store that is missing; `hint`, unless a killed exchange left it beside its place."""
    left = find_left(folder) if isinstance(folder, Path) else None
    return hint if left is None else f"xact drop was killed; xact build or xact drop puts {left} in its place"


def find_left(folder: Path) -> Path | None:
    """Return the folder that takes the place of a `folder` that is missing after a kill, or None."""
    if os.path.lexists(os.path.realpath(folder)):
        return None
    return next((left for left in (_name(folder, "new"), _name(folder, "old")) if left.is_dir()), None)


def exchange(folder: Path) -> None:
    """Put what was written at `find_rebuilding` in the place of `folder`, and remove the old folder."""
    _rename(find_rebuilding(folder), _name(folder, "new"))
    _rename(Path(os.path.realpath(folder)), _name(folder, "old"))
    settle(folder)


def settle(folder: Path) -> None:
    """End an exchange, wherever it was stopped: a `folder` that is missing is put in its place, the rest is removed."""
    left = find_left(folder)
    if left is not None:
        _rename(left, Path(os.path.realpath(folder)))
    new, old = _name(folder, "new"), _name(folder, "old")
    if new.is_dir() and old.is_dir():
        raise StoreError(
            f"{old} and {new} are left of a command that was killed, and {folder} was made meanwhile",
            hint=f"move {folder} away and run the same command again: it puts {new} in its place",
        )
    for path in (find_rebuilding(folder), new, old):
        if os.path.lexists(path):
            with _disk_errors(path, do="remove"):
                shutil.rmtree(path)


def _name(folder: Path, what: str) -> Path:
    real = Path(os.path.realpath(folder))  # a link stays a link to what it names
    return real.with_name(f".{real.name}.xact-{what}")


def _rename(path: Path, to: Path) -> None:
    with _disk_errors(to):
        path.rename(to)
        sync_folder(to.parent)
