"""The mounts of this machine, and whether a file lock on one of them holds on other machines too."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

MOUNTS = Path("/proc/self/mountinfo")

LOCAL_LOCKS: dict[str, frozenset[str]] = {
    "lustre": frozenset(["localflock"]),
    "nfs": frozenset(["nolock", "local_lock=flock", "local_lock=all"]),
    "nfs4": frozenset(["nolock", "local_lock=flock", "local_lock=all"]),
    "cifs": frozenset(["nobrl"]),
    "smb3": frozenset(["nobrl"]),
    "gfs2": frozenset(["localflocks"]),
    "ocfs2": frozenset(["localflocks"]),
}
"""{type of file system: options with which its locks hold on one machine only}."""


def read_mounts() -> str:
    """Return the mounts as the kernel lists them; empty where it has no such list."""
    with suppress(OSError):
        return MOUNTS.read_text(errors="surrogateescape")
    return ""


def find_local_locks(mounts: str, path: Path) -> str | None:
    """Return the type and the option of the mount of `path` if its locks hold on one machine only, else None.

    `mounts` is the text of `/proc/self/mountinfo`. The last of the deepest mounts above `path` counts, as it hides
    those before it.
    """
    real = os.path.realpath(path)
    deepest, found = -1, None
    for line in mounts.splitlines():
        about, _, rest = line.partition(" - ")
        words, kinds = about.split(" "), rest.split(" ")
        if len(words) < 6 or len(kinds) < 3:
            continue
        point = _unescape(words[4])
        if len(point) >= deepest and f"{real}/".startswith(f"{point.rstrip('/')}/"):
            deepest, found = len(point), (kinds[0], {*words[5].split(","), *kinds[2].split(",")})
    if found is None:
        return None
    kind, options = found
    local = sorted(LOCAL_LOCKS.get(kind, frozenset()) & options)
    return f"{kind}, {local[0]}" if local else None


def _unescape(text: str) -> str:
    """Return a path of the list: the kernel writes blanks and backslashes as octal numbers."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
