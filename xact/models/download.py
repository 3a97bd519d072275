"""Download one file of a URL: go on where an earlier try stopped, compare its hash, put it in place in one step."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import IO
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from xact.pace import Watch

READ_NBYTES = 2**20

PART = ".part"
"""Ending of a file that is not whole."""

RANGE_REFUSED = 416
"""Status of a server that is asked for bytes after the end."""

_WATCH: ContextVar[Watch] = ContextVar("watch_downloads", default=lambda _: lambda _n: None)


@contextmanager
def watch_downloads(watch: Watch) -> Iterator[None]:
    """Call `watch` with the bytes of each download in the block, and what it returns with those that have come."""
    token = _WATCH.set(watch)
    try:
        yield
    finally:
        _WATCH.reset(token)


def download_file(url: str, path: Path, *, hash_prefix: str | None, seconds: float) -> None:
    """Download a file. Its sha256 must begin with `hash_prefix`; `seconds` is how long the server may be silent.

    What has come stays beside it as NAME.part, and the next call goes on from there, if the hash is known. Raise
    URLError or TimeoutError if the server cannot be reached or stops early, ValueError if the hash differs; the file is
    then removed.
    """
    part = path.with_name(path.name + PART)
    with part.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # another process may download it: wait for it
        if path.is_file():
            return
        if not part.exists():  # the other process failed and removed it
            raise URLError("another process found it damaged; try again")
        if hash_prefix is None:  # nothing would tell that the rest is of another file
            _empty(file)
        _fill(url, file, seconds=seconds)
        file.flush()
        os.fsync(file.fileno())
        with part.open("rb") as whole:
            found = hashlib.file_digest(whole, "sha256").hexdigest()
        if hash_prefix and not found.startswith(hash_prefix):
            part.unlink()
            raise ValueError(f"its sha256 is {found[:16]}…, not {hash_prefix}…")
        part.replace(path)


def _empty(file: IO[bytes]) -> None:
    file.seek(0)
    file.truncate()


def _fill(url: str, file: IO[bytes], *, seconds: float) -> None:
    """Append to `file` what it lacks."""
    have = file.tell()
    headers = {"User-Agent": "xact"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        answer = urlopen(Request(url, headers=headers), timeout=seconds)  # noqa: S310  a library or a recipe names it
    except HTTPError as error:
        if have and error.code == RANGE_REFUSED:  # all of it is here
            return
        raise
    with answer:
        if have and getattr(answer, "status", None) != 206:  # the server begins anew
            _empty(file)
            have = 0
        length = answer.headers.get("Content-Length")
        total = None if length is None else have + int(length)
        count = _WATCH.get()(total or 0)
        count(have)
        while data := answer.read(READ_NBYTES):
            file.write(data)
            count(len(data))
    if total is not None and file.tell() < total:
        raise URLError(f"the connection ended after {file.tell()} of {total} bytes")
