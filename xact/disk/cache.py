"""The user's cache folder: small files that can be made again at any time.

A file that is torn, damaged or of another program is as good as none, and a cache that cannot be written is left alone.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from xact.disk.durable import make_sealed_lines, parse_json, read_sealed_lines
from xact.errors import StoreError

MOST_FILES = 4000
"""Most files in a folder of the cache; beyond that the older half is removed."""


def find_cache_folder(environ: Mapping[str, str] = os.environ) -> Path | None:
    """Return xact's folder among the user's caches; None if the user has no home.

    XACT_CACHE names it; else it lies in XDG_CACHE_HOME, or where the system keeps caches.
    """
    said = environ.get("XACT_CACHE", "")
    if said:
        return Path(said).absolute()
    shared = environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(shared):  # noqa: PTH117  the standard: a relative one counts as none
        return Path(shared) / "xact"
    try:
        home = Path.home()
    except RuntimeError:
        return None
    if sys.platform == "win32":
        return Path(environ.get("LOCALAPPDATA") or home / "AppData" / "Local") / "xact" / "Cache"
    return (home / "Library" / "Caches" if sys.platform == "darwin" else home / ".cache") / "xact"


def read_cached(file: Path) -> list[Any] | None:
    """Return the lines of a file as they were written; None if it is not there, or not whole."""
    try:
        return [parse_json(line) for line in read_sealed_lines(file)]
    except (StoreError, ValueError):
        return None


def write_cached(file: Path, lines: Sequence[dict[str, Any]]) -> None:
    """Write the lines of a file in one rename; do nothing if the disk refuses it."""
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        fd, beside = tempfile.mkstemp(dir=file.parent)
        try:
            with os.fdopen(fd, "wb") as stream:
                stream.writelines(make_sealed_lines(lines))
            Path(beside).replace(file)
        except BaseException:
            Path(beside).unlink()
            raise
        _remove_oldest(file.parent)


def _remove_oldest(folder: Path) -> None:
    files = list(folder.iterdir())
    if len(files) > MOST_FILES:
        for file in sorted(files, key=lambda one: one.stat().st_mtime_ns)[: -MOST_FILES // 2]:
            file.unlink(missing_ok=True)
