"""How a worker finds the coordinator of a build: a file in the store says where its scheduler listens.

The file is there only while a coordinator waits for workers. One that was killed leaves it; the next build removes it.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from xact.disk.durable import read_whole, remove_file, write_file
from xact.store.journal import FOLDER

CONTACT = "scheduler.json"
"""File in `.xact`."""


class Contact(BaseModel):
    """Where the scheduler of a build listens, and what is built."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    address: str
    scheduler: str
    """Id of the scheduler, which another process at this address does not have."""
    job: str
    store_id: str
    generation: int
    """Generation that readers see once the build is done."""
    pid: int = Field(default_factory=os.getpid)
    host: str = Field(default_factory=socket.gethostname)


def write_contact(store: Path, contact: Contact) -> None:
    """Write the file in one step."""
    write_file(store / FOLDER / CONTACT, [contact.model_dump_json().encode()])


def read_contact(store: Path) -> Contact | None:
    """Return what the file says; None if there is none, or it is no contact."""
    try:
        return Contact.model_validate_json(read_whole(store / FOLDER / CONTACT))
    except (OSError, ValidationError):
        return None


def remove_contact(store: Path) -> None:
    """Remove the file, if it is there."""
    if os.path.lexists(store / FOLDER / CONTACT):
        remove_file(store / FOLDER / CONTACT)


def is_listening(address: str, *, seconds: float = 2.0) -> bool:
    """Return True if a process takes connections at an address such as tcp://HOST:PORT."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=seconds).close()
    except (OSError, ValueError, OverflowError):  # the last: a port beyond 65535
        return False
    return True
