"""Paths as people write them: `~` spelled out, and refused in one line where nothing can have such a path."""

from __future__ import annotations

import os
from pathlib import Path

from xact.errors import RequestError

MAX_NAME_NBYTES = 255
"""Bytes of a file's name on every common file system."""

MAX_PATH_NBYTES = 4000
"""Bytes of a path: 4,096 on Linux, less what xact adds to it."""


def expand_path(path: str | Path) -> Path:
    """Return a path with `~` expanded; RequestError for one that no file can have."""
    try:
        expanded = Path(path).expanduser()
        name = max(map(len, map(os.fsencode, expanded.parts)), default=0)
        whole = len(os.fsencode(expanded))
    except RuntimeError:
        raise _refuse(path, "there is no such home folder") from None
    except UnicodeEncodeError:
        raise _refuse(path, "it is no text") from None
    if "\0" in str(path):
        raise _refuse(path, "it holds a NUL character")
    if name > MAX_NAME_NBYTES or whole > MAX_PATH_NBYTES:
        raise _refuse(
            path, f"{whole} bytes with a name of {name}; {MAX_PATH_NBYTES} and {MAX_NAME_NBYTES} are the most"
        )
    return expanded


def _refuse(path: str | Path, reason: str) -> RequestError:
    return RequestError(f"nothing can have the path {str(path)[:60]!r}: {reason}", hint="give another path")
