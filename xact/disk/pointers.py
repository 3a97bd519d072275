"""Files whose content is elsewhere: pointers of Git LFS and of git-annex, and links of git-annex to nothing."""

from __future__ import annotations

import re
from pathlib import Path

HEAD_NBYTES = 512
"""Bytes at the beginning of a file that tell whether it is a pointer."""

_LFS = b"version https://git-lfs.github.com/spec/"
_ANNEX = re.compile(rb"((\.\./)*\.git)?/annex/objects/")

Pointer = tuple[str, str]
"""(what the file is, what brings its content)."""

LFS: Pointer = ("a pointer of Git LFS, not the file itself: its content is not here", "git lfs pull brings it")
ANNEX: Pointer = (
    "a pointer of git-annex, not the file itself: its content is not here",
    "git annex get FILE (or datalad get FILE) brings it",
)
ANNEX_LINK: Pointer = ("a link of git-annex to content that is not here", ANNEX[1])


def find_pointer(head: bytes) -> Pointer | None:
    """Return the kind of pointer that the first bytes of a file are; None for any other file."""
    if head.startswith(_LFS):
        return LFS
    return ANNEX if _ANNEX.match(head) else None


def find_pointer_at(path: Path) -> Pointer | None:
    """Return the kind of pointer at a path, a regular file or a link; None for any other file and for none at all."""
    try:
        if path.is_symlink() and not path.exists():
            return ANNEX_LINK if "annex/objects/" in path.readlink().as_posix() else None
        if not path.is_file():  # a pipe would wait
            return None
        with path.open("rb") as file:
            return find_pointer(file.read(HEAD_NBYTES))
    except OSError:
        return None
