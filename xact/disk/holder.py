"""The holder's file of a store: which process holds the lock, and a counter that shows that it lives.

Some disks of clusters lock files on one machine only: there, two machines can hold one lock. So the file has a
`nonce`, random text of the process, and a `counter` that the process raises every 10 seconds. A process that finds
the nonce of another one has lost the store.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from xact.disk.durable import NO_LINK, parse_json, read_whole, replace_file
from xact.errors import StoreError

BEAT_SECONDS = 10.0
"""Time between two counts of a holder."""

_END = b'%08d"}'
"""The end of the file, which changes; its length stays."""

WATCH_SECONDS = 25.0
"""How long the counter of a holder on another machine must stand still until its store is taken over."""

SETTLE_SECONDS = 1.0
"""How long a process waits, on a disk whose locks hold on one machine only, for another that begins with it."""

NODE = Path("/proc/sys/kernel/random/boot_id")
"""A name of the running kernel, which owns the file locks. Containers on one machine share it."""


class Me:
    """The nonce of this process. A forked child has another one."""

    nonce: ClassVar[str] = ""

    @classmethod
    def get_nonce(cls) -> str:
        """Return the nonce."""
        cls.nonce = cls.nonce or secrets.token_hex(8)
        return cls.nonce

    @classmethod
    def forget(cls) -> None:
        """Forget the nonce of the parent after a fork."""
        cls.nonce = ""


os.register_at_fork(after_in_child=Me.forget)


@dataclass(frozen=True)
class Holder:
    """The content of a holder's file."""

    said: str
    """The process, for messages."""
    node: str | None
    nonce: str | None
    counter: str | None

    @property
    def is_mine(self) -> bool:
        """True if the file has the nonce of this process."""
        return self.nonce == Me.get_nonce()


def find_node() -> str:
    """Return a name of this machine since it started."""
    try:
        return NODE.read_text().strip()
    except OSError:
        return socket.gethostname()


def read_holder(file: Path) -> Holder | None:
    """Return the content of a holder's file, or None if there is none that can be read."""
    try:
        found = parse_json(read_whole(file))
        said = f"process {found['pid']} on {found['host']}"
        return Holder(said, *(found.get(key) for key in ("node", "nonce", "counter")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


class Beat:
    """Write the holder's file of this process, and raise its counter until `stop`, in a thread."""

    def __init__(self, file: Path) -> None:
        me = {"pid": os.getpid(), "host": socket.gethostname(), "node": find_node(), "nonce": Me.get_nonce()}
        self._start = (json.dumps(me).removesuffix("}") + ', "counter": "').encode()
        replace_file(file, [self._start, _END % 0])
        self._file = file
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="xact-holder", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        n = 0
        while not self._stopped.wait(BEAT_SECONDS):
            n += 1
            with suppress(OSError):  # a disk that fails is told by what the build writes
                self._write(_END % n)

    def _write(self, end: bytes) -> None:
        """Write over the file of this process, never over that of a process that took the store over by a rename."""
        with os.fdopen(os.open(self._file, os.O_RDWR | os.O_SYNC | NO_LINK), "r+b", buffering=0) as file:
            if file.read(len(self._start)) == self._start:
                file.write(end)

    def stop(self) -> None:
        """End the thread. In a forked child there is none."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()


def wait_for_holder(file: Path, store: Path, disk: str) -> str | None:
    """Watch the holder on another machine. Return None if there is none, or a note if its counter stands still.

    Raise StoreError if the counter moves. `disk` names the mount. The lock of this machine is held, so that a holder
    on this machine is dead.
    """
    first = read_holder(file)
    if first is None or first.node == find_node():
        return None
    end = time.monotonic() + WATCH_SECONDS
    while time.monotonic() < end:
        time.sleep(min(1.0, WATCH_SECONDS / 10))
        now = read_holder(file)
        if now is None and not os.path.lexists(file):
            return None
        if now is not None and now != first:
            raise _refuse(store, now, disk)
    return (
        f"the store {str(store)!r} was held by {first.said}, whose counter stood still for {WATCH_SECONDS:g} s: "
        "this build took it over"
    )


def settle_holder(file: Path, store: Path, disk: str) -> None:
    """Raise StoreError if another machine took the store at the same moment. The last one keeps it."""
    time.sleep(SETTLE_SECONDS)
    found = read_holder(file)
    if found is None or not found.is_mine:
        raise _refuse(store, found, disk)


def _refuse(store: Path, holder: Holder | None, disk: str) -> StoreError:
    said = holder.said if holder is not None else "another process"
    return StoreError(
        f"the store {str(store)!r} is being built by {said}",
        hint=f"wait for it, or stop it (file locks of this disk hold on one machine only: {disk})",
    )


def check_mine(file: Path, store: Path) -> None:
    """Raise StoreError if the holder's file has not the nonce of this process: another machine holds the store too."""
    found = read_holder(file)
    if found is None or not found.is_mine:
        said = "is gone" if found is None else f"names {found.said}"
        raise StoreError(
            f"the store {str(store)!r} is no longer held by this process: {file} {said}; nothing more is written",
            hint="let the other process end, or stop it; then run the same command again: it goes on where it stopped",
        )
