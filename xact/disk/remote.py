"""Objects at a URL (https, http, s3, gs), read and written by obstore.

A `RemotePath` stands where a `Path` stands for files of this machine. It shows its URL without user, password and
query. For s3 and gs the credentials come from the environment, as obstore reads it.
"""

from __future__ import annotations

import bisect
import errno
import functools
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal
from urllib.parse import urlsplit, urlunsplit

from xact.errors import RemoteError, RequestError

SCHEMES = ("https", "http", "s3", "gs")
"""Schemes of the URLs that are read."""

N_REQUESTS = 16
"""Requests that are sent at once: they wait for the network, not for a processor."""

PIECE_NBYTES = 4 * 2**20
"""Bytes of a piece of an object that is read piece by piece."""

RETRIES = {"max_retries": 4, "retry_timeout": timedelta(seconds=60)}

CREDENTIALS = {
    "s3": "they come from the environment: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_SKIP_SIGNATURE=true for "
    "a public bucket; AWS_REGION names its region",
    "gs": "they come from the environment: GOOGLE_APPLICATION_CREDENTIALS, or GOOGLE_SKIP_SIGNATURE=true for a public "
    "bucket",
}
"""{scheme: where its credentials come from}."""

SETTINGS = ("AWS_", "GOOGLE_")
"""Beginnings of the variables of the environment that decide how buckets are reached."""

ALLOW_HTTP = "AWS_ALLOW_HTTP=true allows an endpoint of s3 whose address begins with http://"
NO_RANGE = "put it on a server that knows Range requests (nginx, Apache, S3), or copy it to this machine"
NOT_AFTER_FORK = "start the workers with the method spawn, or read URLs in the workers only"


@dataclass(frozen=True, order=True)
class RemotePath:
    """An object at a URL, or all objects whose names begin with it. Not a Path: nothing of it is on this machine."""

    _url: str = field(repr=False)
    """URL of the store, with the credentials in it, if any. It is never shown."""
    key: str = ""
    """Name of an object of the store, with `/`; empty for the store itself."""

    @property
    def scheme(self) -> str:
        """Scheme of the URL."""
        return self._url.partition(":")[0]

    @property
    def store(self) -> RemotePath:
        """The store that the object belongs to."""
        return RemotePath(self._url)

    @property
    def name(self) -> str:
        """Last part of the name."""
        return str(self).rpartition("/")[2]

    @property
    def parent(self) -> RemotePath:
        """The path without its last part; of the store itself, the store."""
        return RemotePath(self._url, self.key.rpartition("/")[0])

    @property
    def can_list(self) -> bool:
        """True if the objects below a path can be listed: by buckets, not by other servers."""
        return self.scheme in CREDENTIALS

    def __truediv__(self, part: str) -> RemotePath:
        return RemotePath(self._url, f"{self.key}/{part}".lstrip("/"))

    def __str__(self) -> str:
        at = urlsplit(self._url)
        shown = urlunsplit((at.scheme, at.netloc.rpartition("@")[2], at.path.rstrip("/"), "", ""))
        return f"{shown}/{self.key}" if self.key else shown

    def __repr__(self) -> str:
        return f"RemotePath({str(self)!r})"

    def read_whole(self) -> bytes:
        """Return the bytes of the object. Raise FileNotFoundError if there is none."""
        with _remote_errors(self):
            return bytes(_load().get(_connect(self), self.key).bytes())

    def read_pieces(self) -> Iterator[bytes]:
        """Yield the bytes of the object piece by piece."""
        with _remote_errors(self):
            yield from _load().get(_connect(self), self.key).stream(min_chunk_size=PIECE_NBYTES)

    @contextmanager
    def open_parts(self, *, n_last: int) -> Iterator[RemoteParts]:
        """Open the object to read parts of it. The last `n_last` bytes are read at once."""
        yield RemoteParts(self, n_last)

    def find_state(self, *, follows_links: bool = True) -> tuple[object, int, int] | None:
        """Return tag, time in us and size of the object; None if there is none. It differs once it is replaced."""
        with _remote_errors(self):
            try:
                return _make_state(_load().head(_connect(self), self.key))
            except FileNotFoundError:
                return None

    def list_objects(self) -> dict[str, RemoteObject]:
        """Return {name below this path: object} of all objects. Only for paths that `can_list`."""
        prefix = f"{self.key}/" if self.key else ""
        with _remote_errors(self):
            pages = _load().list(_connect(self), prefix or None, chunk_size=1000)
            found = [one for page in pages for one in page]
        return {one["path"].removeprefix(prefix): _make_object(one) for one in found}

    def read_attributes(self) -> Mapping[str, str]:
        """Return what is said beside the object: {name: text}."""
        with _remote_errors(self):
            attributes: Mapping[str, str] = _load().get(_connect(self), self.key, options={"head": True}).attributes
        return attributes

    def find_object(self) -> RemoteObject | None:
        """Return what a listing would say of the object; None if there is none."""
        with _remote_errors(self):
            try:
                return _make_object(_load().head(_connect(self), self.key))
            except FileNotFoundError:
                return None

    def put(self, data: bytes, *, old: RemoteObject | None, attributes: Mapping[str, str]) -> RemoteObject | None:
        """Write the object if it still is `old`; None: if there is none. Return None if it is another by now."""
        known = {} if old is None else {"e_tag": old.tag, "version": old.version}
        mode: Any = {name: text for name, text in known.items() if text is not None} or "create"
        refused = _load().exceptions.AlreadyExistsError, _load().exceptions.PreconditionError
        with _remote_errors(self, do="written"):
            try:
                new = _load().put(_connect(self), self.key, data, attributes=dict(attributes), mode=mode)
            except refused:
                return None
        return RemoteObject(len(data), new["e_tag"], new["version"])

    def remove(self) -> None:
        """Remove the object, if it exists."""
        with _remote_errors(self, do="removed"):
            try:
                _load().delete(_connect(self), self.key)
            except FileNotFoundError:
                return


@dataclass(frozen=True)
class RemoteObject:
    """What a listing says of an object."""

    nbytes: int
    tag: str | None
    """Text that differs once the object is written anew."""
    version: str | None


class RemoteParts:
    """An object that is read in parts. Parts that are announced are fetched together."""

    def __init__(self, path: RemotePath, n_last: int) -> None:
        self.path = path
        with _remote_errors(path):
            found = _load().get(_connect(path), path.key, options={"range": {"suffix": n_last}})
            self.size: int = found.meta["size"]
            self._state = _make_state(found.meta)
            self._parts = {found.range[0]: memoryview(found.bytes())}
        self._starts = sorted(self._parts)

    def read(self, nbytes: int, offset: int) -> bytes:
        """Return bytes of the object: fewer where it ends."""
        at = bisect.bisect_right(self._starts, offset) - 1
        if at >= 0:
            start = self._starts[at]
            part = self._parts[start][offset - start : offset - start + nbytes]
            if len(part) == nbytes or start + len(self._parts[start]) == self.size:
                return bytes(part)
        self.expect([(nbytes, offset)])
        return self.read(nbytes, offset) if nbytes and offset + nbytes <= self.size else b""

    def expect(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Fetch the parts (bytes, offset) that will be read."""
        wanted = sorted({offset: nbytes for nbytes, offset in ranges if 0 < nbytes <= self.size - offset}.items())
        if not wanted:
            return
        starts, lengths = zip(*wanted, strict=True)
        with _remote_errors(self.path):
            found = _load().get_ranges(_connect(self.path), self.path.key, starts=starts, lengths=lengths)
            self._parts |= {start: memoryview(part) for start, part in zip(starts, found, strict=True)}
        self._starts = sorted(self._parts)

    def has_changed(self) -> bool:
        """Return True if the object was replaced after it was opened."""
        return self.path.find_state() != self._state


def parse_url(text: str) -> RemotePath:
    """Return the path of a URL. Raise RequestError for a URL that cannot be used."""
    try:
        at = urlsplit(text.strip())
        host = at.hostname
        _ = at.port
    except ValueError:
        host = None
    if not host:
        raise RequestError("the URL of a store has no host or bucket", hint="for example s3://bucket/objects.zarr")
    if at.scheme in CREDENTIALS and (at.query or "@" in at.netloc):
        raise RequestError(
            f"'{at.scheme}://{host}/…' holds credentials, which are not taken from a URL", hint=CREDENTIALS[at.scheme]
        )
    return RemotePath(urlunsplit((at.scheme, at.netloc, at.path.rstrip("/"), at.query, "")))


_is_in_use = False
"""True once this process has sent a request: obstore then has threads, which a forked child does not have."""

_is_lost = False
"""True in a child that was forked after that."""


def _leave_threads() -> None:
    global _is_lost
    _is_lost = _is_in_use


os.register_at_fork(after_in_child=_leave_threads)


def _load() -> Any:  # noqa: ANN401  the module obstore, which is optional
    """Return obstore. Raise RequestError if it is not installed."""
    try:
        import obstore
        import obstore.exceptions
        import obstore.store
    except ImportError:
        raise RequestError(
            "stores at URLs are read with obstore, which is not installed", hint='pip install "xact[remote]"'
        ) from None
    return obstore


def _connect(path: RemotePath) -> Any:  # noqa: ANN401  a store of obstore
    """Return the connection to the store of a path. A forked child cannot use those of its parent, nor new ones."""
    global _is_in_use
    if _is_lost:
        raise RemoteError(
            f"{path} cannot be read in a process that was forked after a URL was read", hint=NOT_AFTER_FORK
        )
    _is_in_use = True
    settings = {name: value for name, value in os.environ.items() if name.startswith(SETTINGS)}
    return _make_connection(path._url, tuple(settings.items()))


@functools.lru_cache(maxsize=16)
def _make_connection(url: str, settings: tuple[tuple[str, str], ...]) -> Any:  # noqa: ANN401  a store of obstore
    """Return the connection to the store at a URL. obstore reads the `settings` from the environment itself."""
    options: dict[str, Any] = {"connect_timeout": "10s", "read_timeout": "60s", "timeout": "600s"}
    allows = dict(settings).get("AWS_ALLOW_HTTP", "").lower() in ("true", "1", "yes", "on")
    options["allow_http"] = url.startswith("http:") or allows
    return _load().store.from_url(url, client_options=options, retry_config=RETRIES)


def _make_object(meta: Mapping[str, Any]) -> RemoteObject:
    return RemoteObject(meta["size"], meta["e_tag"], meta["version"])


def _make_state(meta: Mapping[str, Any]) -> tuple[object, int, int]:
    return meta["e_tag"], int(meta["last_modified"].timestamp() * 1e6), meta["size"]


@contextmanager
def _remote_errors(path: RemotePath, do: Literal["read", "written", "removed"] = "read") -> Iterator[None]:
    """Turn an error of obstore into a FileNotFoundError or a RemoteError of one line.

    The texts of obstore are never shown: they hold whole URLs and what a server says of credentials.
    """
    errors = _load().exceptions
    try:
        yield
    except FileNotFoundError:
        raise FileNotFoundError(errno.ENOENT, "there is no such object") from None
    except (errors.BaseError, OSError, ValueError, RuntimeError) as error:
        found, hint = _describe(path, error)
        told = RemoteError(f"{path} cannot be {do}: {found}", hint=hint)
        told.is_refusal = "the server refuses" in found
        raise told from None


def _describe(path: RemotePath, error: Exception) -> tuple[str, str]:
    """Return what an error of obstore says, in words of xact, and what to do."""
    said, kind = str(error), type(error).__name__
    status = re.search(r"status code: (\d{3})((?: [A-Z][A-Za-z]+)*)", said)
    if "Range" in said and kind == "NotSupportedError":
        return "its server sends whole objects only and knows no Range requests", NO_RANGE
    if kind in ("PermissionDeniedError", "UnauthenticatedError") or (status and status[1] in ("401", "403")):
        hint = CREDENTIALS.get(path.scheme, "give the user and password, or the token, as parts of the URL")
        return f"the server refuses it ({status[1] if status else kind}): credentials are missing or wrong", hint
    if status:
        return f"the server answered {status[1]}{status[2]}", "look whether the URL is right; try again later"
    if "builder error" in said and path.scheme == "s3":
        return "its address is not allowed", ALLOW_HTTP
    if "timed out" in said or "Timeout" in said or "TimedOut" in said:
        return "the server did not answer in time", "look at the network; try again later"
    if "HTTP error" in said:
        return "there is no connection to its server", "look whether the URL is right, and at the network"
    hint = CREDENTIALS.get(path.scheme, "look whether the URL is right")
    return f"obstore cannot do it ({kind})", f"credentials and settings: {hint}" if path.can_list else hint
