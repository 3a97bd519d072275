"""The result of `xact verify`: the faults of a store or an export."""

from __future__ import annotations

from dataclasses import dataclass

EXTRA = "is extra: the manifest does not name it"
"""What is found of a file that is not the store's."""


@dataclass(frozen=True)
class Fault:
    """The fault of one file."""

    file: str
    found: str


@dataclass(frozen=True)
class Findings:
    """The result of checking one store or export."""

    state: str
    """Name of what the bytes were compared with, e.g. `generation 2`."""
    is_published: bool
    """True if readers see anything. An unfinished store may have no fault, but nothing can be read from it."""
    faults: list[Fault]
    notes: list[str]
    """Useful facts that are not faults."""
    n_files: int
    nbytes: int
