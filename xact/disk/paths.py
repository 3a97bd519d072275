"""Paths that a person writes: expand `~`, and refuse invalid paths."""

from __future__ import annotations

import os
from pathlib import Path

from xact.errors import RequestError

MAX_NAME_NBYTES = 255
"""Longest name of a file on every common file system, bytes."""

MAX_PATH_NBYTES = 4000
"""Longest path, bytes: 4,096 on Linux, less the part that xact appends."""


def expand_path(path: str | Path) -> Path:
    """Return a path with `~` expanded. Raise RequestError if the path is invalid."""
    try:
        expanded = Path(path).expanduser()
        name = max(map(len, map(os.fsencode, expanded.parts)), default=0)
        whole = len(os.fsencode(expanded))
    except RuntimeError:
        raise _refuse(path, "this home folder does not exist") from None
    except UnicodeEncodeError:
        raise _refuse(path, "it is not valid Unicode text") from None
    if "\0" in str(path):
        raise _refuse(path, "it contains a NUL character")
    if name > MAX_NAME_NBYTES or whole > MAX_PATH_NBYTES:
        raise _refuse(
            path,
            f"it has {whole} bytes (at most {MAX_PATH_NBYTES}), its longest name {name} (at most {MAX_NAME_NBYTES})",
        )
    return expanded


def _refuse(path: str | Path, reason: str) -> RequestError:
    return RequestError(f"invalid path {str(path)[:60]!r}: {reason}", hint="give another path")
