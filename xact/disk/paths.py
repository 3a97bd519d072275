"""Paths that a person writes: expand `~`, and refuse URLs and invalid paths."""

from __future__ import annotations

import os
import re
from pathlib import Path

from xact.errors import RequestError

MAX_NAME_NBYTES = 255
"""Longest name of a file on every common file system, bytes."""

MAX_PATH_NBYTES = 3500
"""Longest path, bytes: 4,096 on Linux, less the part that xact appends, with two names of 200 or one of 255."""


_URL = re.compile(r"\s*([A-Za-z][A-Za-z0-9+.:-]+):/")
"""The beginning of a URL. In a `Path` it has lost a slash: `https:/host`. One letter may be a drive of Windows."""


def find_scheme(text: str) -> str:
    """Return the scheme of a whole URL, in small letters; an empty text for anything else."""
    found = _URL.match(text)
    return found[1].lower() if found is not None and text.startswith("/", found.end()) else ""


COPY = "copy what the URL names to this machine, and give the path of the copy"


def refuse_url(path: str | Path, *, hint: str = COPY) -> None:
    """Raise RequestError if `path` is a URL, whose scheme and host alone are in the message, or no path at all."""
    if not isinstance(path, str | os.PathLike):
        raise RequestError(f"a path is wanted, found {path!r:.60}", hint="give it as text or as a Path")
    if "\0" in str(path):
        raise _refuse(path, "it contains a NUL character")
    found = _URL.match(str(path))
    if found is not None:
        host = str(path)[found.end() :].lstrip("/").rpartition("@")[2].partition("?")[0].partition("/")[0]
        raise RequestError(
            f"'{found[1]}://{host[:60]}/…' is a URL, not a path on this machine",
            hint=hint,
        )


def has_credentials(text: str) -> bool:
    """Return True if a word of `text` is a URL with a user or a password."""
    for word in text.split() if ":/" in text else ():
        scheme, _, rest = word.partition(":/")
        credentials, at, _ = rest.lstrip("/").rpartition("@")
        if at and len(scheme) > 1 and (":" in credentials or "/" not in credentials):
            return True
    return False


def expand_path(path: str | Path) -> Path:
    """Return a path with `~` expanded. Raise RequestError if the path is a URL or invalid."""
    refuse_url(path)
    try:
        expanded = Path(path).expanduser()
        name = max(map(len, map(os.fsencode, expanded.parts)), default=0)
        whole = len(os.fsencode(expanded))
    except RuntimeError:
        raise _refuse(path, "this home folder does not exist") from None
    except UnicodeEncodeError:
        raise _refuse(path, "it is not valid Unicode text") from None
    if name > MAX_NAME_NBYTES or whole > MAX_PATH_NBYTES:
        raise _refuse(
            path,
            f"it has {whole} bytes (at most {MAX_PATH_NBYTES}), its longest name {name} (at most {MAX_NAME_NBYTES})",
        )
    return expanded


def _refuse(path: str | Path, reason: str) -> RequestError:
    return RequestError(f"invalid path {str(path)[:60]!r}: {reason}", hint="give another path")
